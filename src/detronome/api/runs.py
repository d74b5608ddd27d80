"""Evaluating and predicting with a model, and reporting on runs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from detronome.api.folders import may_write, write_json, writing
from detronome.data.build import build_eval_batches, build_quarantine, resolve_workers
from detronome.data.split import DataSplit, open_split
from detronome.engine.build import build_panoptic_meter
from detronome.engine.evaluator import evaluate as evaluate_model
from detronome.engine.resume import for_another_run
from detronome.errors import ConfigError, DataError, Problem, first_few
from detronome.evaluation.detection import DetectionEvaluator, DetectionMetrics, evaluate_results_file
from detronome.model import Model, Prediction, load
from detronome.ops.segment_ids import colors_of_ids
from detronome.report import html
from detronome.report.pictures import save_picture
from detronome.runtime.files import write_atomic
from detronome.runtime.precision import resolve_precision

__all__ = ["evaluate", "evaluate_results", "measure", "predict", "write_report"]

_PANOPTIC = "panoptic"
_PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def evaluate(
    model: str | Path | Model,
    data: str | Path,
    *,
    split: str = "val",
    device: str = "auto",
    details: str | Path | None = None,
) -> DetectionMetrics:
    """Measure a model on a split of a data folder.

    Args:
        model: a `Model`, or what `load` takes: a run, a checkpoint, published weights.
        data: the data folder.
        split: of the data folder.
        device: where to compute, for a model that is not loaded yet.
        details: a JSON file to write confusion matrix, precision-recall curves, kinds of errors and worst images to.

    Raises:
        CheckpointError, DataError: the model or the data cannot be used, or their categories differ.
        ConfigError: the details cannot be written.
    """
    if details is not None:
        may_write(Path(details), option="--details")
    loaded = model if isinstance(model, Model) else load(model, device=device)
    config = loaded.config
    data_split = open_split(
        data,
        split,
        annotations=config.data.annotations,
        shard_cache_bytes=int(config.data.shard_cache_gib * 2**30),
    )
    metrics, evaluator = measure(loaded, data_split)
    if details is not None:
        found = evaluator.details(max_detections=config.eval.max_detections)
        record = found.to_json(split=split, step=loaded.checkpoint.state.step)
        write_json(Path(details), record, option="--details")
    return metrics


def measure(model: Model, split: DataSplit) -> tuple[DetectionMetrics, DetectionEvaluator]:
    """Measure a model on a split; return the numbers, and the evaluator with the detections they come from."""
    config = model.config
    workers, _ = resolve_workers(for_another_run(config), model.device.type, split.index.sizes_hw)
    precision, _ = resolve_precision(config.train.precision, model.device)
    quarantine = build_quarantine(config, split)
    evaluator = DetectionEvaluator(split.box_truth(), unknown_categories="drop")
    with build_eval_batches(
        config,
        split,
        model.categories,
        batch_size=8 if config.eval.batch_size == "auto" else config.eval.batch_size,
        workers=workers,
        device=model.device,
        quarantine=quarantine,
    ) as batches:
        metrics = evaluate_model(
            model.detector,
            batches,
            evaluator,
            categories=model.categories,
            max_detections=config.eval.max_detections,
            precision=precision,
            device=model.device,
            panoptic=build_panoptic_meter(config, split, model.categories),
        )
    unusable = [f"image id {image.image_id} was left out: {image.where}: {image.what}" for image in quarantine.drain()]
    return replace(metrics, notes=(*metrics.notes, *unusable)), evaluator


def evaluate_results(
    detections: str | Path,
    annotations: str | Path,
    *,
    iou_type: Literal["bbox", "segm"] = "bbox",
    max_detections: int = 100,
    details: str | Path | None = None,
) -> DetectionMetrics:
    """Measure a COCO results file, from any tool, against a COCO annotation file.

    Args:
        detections: the results file.
        annotations: the annotation file.
        iou_type: overlap of boxes or of masks.
        max_detections: detections counted per image and category.
        details: a JSON file to write confusion matrix, precision-recall curves, kinds of errors and worst images to;
            for boxes.

    Raises:
        DataError: a file is missing or malformed.
        ConfigError: the details cannot be written, or are asked for masks.
    """
    if details is None:
        return evaluate_results_file(
            Path(detections), Path(annotations), iou_type=iou_type, max_detections=max_detections
        )
    if iou_type != "bbox":
        raise ConfigError(
            f"details are made of boxes, and iou_type is {iou_type}", where="details", fix="leave one of the two out"
        )
    may_write(Path(details), option="--details")
    evaluator = DetectionEvaluator(Path(annotations))
    evaluator.add_results_file(Path(detections))
    metrics = evaluator.compute(max_detections=max_detections)
    write_json(Path(details), evaluator.details(max_detections=max_detections).to_json(), option="--details")
    return metrics


def predict(
    model: str | Path | Model,
    images: str | Path | Iterable[str | Path],
    *,
    out: str | Path,
    score: float = 0.5,
    device: str = "auto",
) -> list[Prediction]:
    """Find objects in image files and folders; write pictures and `detections.json` (COCO results) to `out`, and with a
    panoptic model `panoptic.json` and its maps in `panoptic/`.

    The results hold every detection; pictures and return value those from `score` on. Image ids are the numbers
    in COCO's file names where all names are numbers, else 1, 2, ...; each record also has the file's name.

    Raises:
        CheckpointError: the model cannot be loaded.
        DataError: two images have the same name; or some cannot be read, all of them at once: the others' pictures and
            results have been written by then.
    """
    files = _image_files([images] if isinstance(images, str | Path) else images)
    loaded = model if isinstance(model, Model) else load(model, device=device)
    ids = _image_ids(files)
    out_dir = Path(out)
    predictions: list[Prediction] = []
    records: list[dict[str, Any]] = []
    maps: list[dict[str, Any]] = []
    unreadable: list[Problem] = []
    for file, image_id in zip(files, ids, strict=True):
        try:
            complete = loaded.predict(file, score=0.0)
        except DataError as error:
            unreadable += error.problems
            continue
        panoptic = complete.panoptic and replace(complete.panoptic, image_id=image_id)
        detections = replace(complete.detections, image_id=image_id, panoptic=panoptic)
        records += [{**record, "file_name": file.name} for record in detections.to_coco()]
        prediction = replace(complete, detections=detections.above(score))
        with writing(out_dir):
            prediction.save(out_dir / f"{file.stem}.jpg")
            if panoptic:
                map_file = out_dir / _PANOPTIC / f"{file.stem}.png"
                save_picture(colors_of_ids(panoptic.segment_ids), map_file)
                maps.append(panoptic.to_coco(map_file.name))
        predictions.append(prediction)
    with writing(out_dir):
        write_atomic(out_dir / "detections.json", json.dumps(records) + "\n")
        if maps:
            write_atomic(out_dir / f"{_PANOPTIC}.json", json.dumps({"annotations": maps}) + "\n")
    if unreadable:
        raise DataError(unreadable)
    return predictions


def write_report(runs: str | Path | Sequence[str | Path], *, out: str | Path | None = None) -> Path:
    """Write the HTML page of a run, or of several beside each other; by default into the first run's folder.

    Raises:
        DataError: a folder is no run.
        ConfigError: no run is named, or the page cannot be written.
    """
    folders = [Path(run) for run in ([runs] if isinstance(runs, str | Path) else runs)]
    if not folders:
        raise ConfigError("no run to report on", where="write_report", fix="name one run folder or more")
    page = Path(out) if out else folders[0] / ("report.html" if len(folders) == 1 else "comparison.html")
    with writing(page):
        return html.write_report(folders, page)


def _image_files(images: Iterable[str | Path]) -> list[Path]:
    files: list[Path] = []
    for image in images:
        path = Path(image)
        if path.is_dir():
            files += sorted(p for p in path.iterdir() if p.suffix.lower() in _PICTURE_SUFFIXES)
        else:
            files.append(path)
    if not files:
        raise DataError("no images", where=", ".join(map(str, images)), fix="name image files or folders of them")
    names = [file.stem for file in files]
    repeated = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if repeated:
        raise DataError(
            f"several images have the same name, and their pictures would overwrite each other: {first_few(repeated)}",
            fix="predict them into different folders",
        )
    return files


def _image_ids(files: Sequence[Path]) -> list[int]:
    if all(file.stem.isdecimal() and len(file.stem) < 19 for file in files):
        ids = [int(file.stem) for file in files]
        if len(set(ids)) == len(ids):
            return ids
    return list(range(1, len(files) + 1))

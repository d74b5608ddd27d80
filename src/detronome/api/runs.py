"""Evaluating a model, and reporting on runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from detronome.api.folders import may_write, write_json, writing
from detronome.data.build import build_eval_batches, build_quarantine, resolve_workers
from detronome.data.split import DataSplit, open_split
from detronome.engine.build import build_panoptic_meter
from detronome.engine.evaluator import evaluate as evaluate_model
from detronome.engine.resume import for_another_run
from detronome.errors import ConfigError
from detronome.evaluation.detection import DetectionEvaluator, DetectionMetrics, evaluate_results_file
from detronome.model import Model, load
from detronome.report import html
from detronome.runtime.precision import resolve_precision

__all__ = ["evaluate", "evaluate_results", "measure", "write_report"]


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
        record = found.to_json(split=split, step=loaded.step)
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

"""`detronome eval`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from detronome.cli.options import DATA_GROUP, MACHINE_GROUP, OUTPUT_GROUP, Json
from detronome.cli.render import print_json, print_metrics, print_panoptic_metrics
from detronome.errors import ConfigError

__all__ = ["evaluate"]


def evaluate(
    checkpoint: str | None = None,
    data: str | None = None,
    /,
    *,
    split: Annotated[str | None, DATA_GROUP] = None,
    detections: Annotated[Path | None, DATA_GROUP] = None,
    annotations: Annotated[Path | None, DATA_GROUP] = None,
    panoptic: Annotated[bool, DATA_GROUP, Parameter(negative=())] = False,
    iou_type: Literal["bbox", "segm"] | None = None,
    max_detections: int | None = None,
    device: Annotated[str | None, MACHINE_GROUP] = None,
    details: Annotated[Path | None, OUTPUT_GROUP] = None,
    json: Json = False,
) -> None:
    """Print COCO AP and AR, or panoptic quality: of a checkpoint on a data folder, or of a results file.

    Parameters
    ----------
    checkpoint
        Run or checkpoint folder; published weights: detr-r50, a .pth or .safetensors file, a Hugging Face folder or id.
    data
        Data folder.
    split
        Split of the data folder; val, if not given.
    detections
        COCO results file from any tool, instead of a checkpoint.
    annotations
        COCO annotation file that goes with --detections.
    panoptic
        With --detections: both files are panoptic ones, their PNG maps in folders of the same names beside them.
    iou_type
        With --detections: overlap of boxes (bbox, the default) or of masks (segm).
    max_detections
        With --detections: detections counted per image and category; 100, if not given.
    device
        Where a checkpoint computes: auto (the default), cpu, cuda, cuda:N or mps.
    details
        Write confusion matrix, precision-recall curves, kinds of errors and worst images to this JSON file.
    """
    from detronome import api

    if panoptic:
        if detections is None or annotations is None or checkpoint is not None or details is not None:
            raise ConfigError(
                "files of panoptic predictions are measured with --detections and --annotations, both and alone",
                where="detronome eval --panoptic",
                fix="detronome eval --panoptic --detections PREDICTED.json --annotations panoptic_val.json; "
                "a checkpoint that makes masks is measured both ways: detronome eval CHECKPOINT DATA",
            )
        _reject_unused(
            {"--split": split, "--iou-type": iou_type, "--max-detections": max_detections, "--device": device},
            measured="files of panoptic predictions",
        )
        quality = api.evaluate_panoptic_results(detections, annotations)
        print_json(quality.to_json()) if json else print_panoptic_metrics(quality, title=str(detections))
        return
    if detections is not None or annotations is not None:
        if detections is None or annotations is None or checkpoint is not None:
            raise ConfigError(
                "a results file is measured with --detections and --annotations, both and alone",
                where="detronome eval",
                fix="detronome eval --detections RESULTS.json --annotations GT.json",
            )
        _reject_unused({"--split": split, "--device": device}, measured="a results file")
        metrics = api.evaluate_results(
            detections,
            annotations,
            iou_type=iou_type or "bbox",
            max_detections=100 if max_detections is None else max_detections,
            details=details,
        )
        title = str(detections)
    elif checkpoint is None or data is None:
        raise ConfigError(
            "a checkpoint and a data folder are needed", where="detronome eval", fix="detronome eval CHECKPOINT DATA"
        )
    else:
        _reject_unused({"--iou-type": iou_type, "--max-detections": max_detections}, measured="a checkpoint")
        split = split or "val"
        metrics = api.evaluate(checkpoint, data, split=split, device=device or "auto", details=details)
        title = f"{checkpoint} on {data} ({split}, {metrics.num_images} images)"
    if json:
        print_json(metrics.to_json())
        return
    print_metrics(metrics, title=title)
    if metrics.panoptic is not None:
        print_panoptic_metrics(metrics.panoptic, title="panoptic quality")


def _reject_unused(options: Mapping[str, object], *, measured: str) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise ConfigError(
            f"{', '.join(given)}: of no effect when what is measured is {measured}",
            where="detronome eval",
            fix="leave it out" if len(given) == 1 else "leave them out",
        )

"""What a run folder says of its data and of its best evaluation, beyond the numbers: `data.json`, `evaluation.json`.

These files explain a run and are not worth losing it: what goes wrong here is told and leaves them out.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from detronome.api.folders import write_json
from detronome.api.runs import measure
from detronome.data.label_counts import label_counts
from detronome.data.split import DataSplit
from detronome.errors import DetronomeError
from detronome.evaluation.detection import DetectionEvaluator
from detronome.model import Model
from detronome.report.gallery import write_worst

__all__ = ["write_label_counts", "write_run_details"]

_FORMAT = 1
_logger = logging.getLogger(__name__)


def write_label_counts(run_dir: Path, train: DataSplit, val: DataSplit | None) -> None:
    """Write `data.json`: classes, sizes and crowding of the splits."""
    splits = {"train": train} | ({} if val is None else {"val": val})
    file = run_dir / "data.json"
    with _or_without(file):
        counts = {name: label_counts(split.index) for name, split in splits.items()}
        write_json(file, {"format": _FORMAT, "splits": counts})


def write_run_details(
    run_dir: Path, model: Model, split: DataSplit, *, split_name: str, evaluator: DetectionEvaluator | None
) -> None:
    """Write `evaluation.json`, and pictures of the worst images.

    Args:
        run_dir: the run.
        model: its best checkpoint.
        split: that it was evaluated on.
        split_name: what the run calls it.
        evaluator: holds what this checkpoint found there; None costs a pass over the split.
    """
    file = run_dir / "evaluation.json"
    with _or_without(file):
        file.unlink(missing_ok=True)  # of an earlier end of this run
        if evaluator is None:
            _, evaluator = measure(model, split)
        details = evaluator.details(max_detections=model.config.eval.max_detections)
        pictures = write_worst(
            run_dir / "pictures",
            [image.image_id for image in details.worst_images],
            split,
            evaluator.detections_of,
            score=details.score_threshold,
        )
        places = {image_id: str(picture.relative_to(run_dir)) for image_id, picture in pictures.items()}
        write_json(file, details.to_json(split=split_name, step=model.step, pictures=places))


@contextmanager
def _or_without(file: Path) -> Iterator[None]:
    try:
        yield
    except (DetronomeError, OSError, MemoryError) as error:
        _logger.warning("%s is not written, and the report goes without it: %s", file, error)

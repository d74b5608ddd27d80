"""What trimming gave: a trimmed model on disk, and what each way to trim costs and gains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from detronome.api.training import Run
from detronome.deploy.sweep import Sweep, SweepPoint
from detronome.deploy.trim import Extent
from detronome.model import Model, load

__all__ = ["TrimSweep", "Trimmed"]


@dataclass(frozen=True, kw_only=True)
class Trimmed:
    """A trimmed model on disk."""

    folder: Path
    """A checkpoint, or the run that fine-tuned it; what `load` takes."""
    extent: Extent
    whole: Extent
    """Of the model that it was made of."""
    split: str = ""
    """What the metrics were measured on; empty where no data were given."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """AP, AP50, ..., before any fine-tuning."""
    whole_metrics: Mapping[str, float] = field(default_factory=dict)
    """Of the model that it was made of."""
    run: Run | None = None
    """The fine-tuning, where it was asked for."""
    fine_tuned_metrics: Mapping[str, float] = field(default_factory=dict)
    """Of its best checkpoint, on the same split as the others."""
    notes: tuple[str, ...] = ()

    @cached_property
    def model(self) -> Model:
        """The trimmed model, loaded."""
        return load(self.folder)

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "folder": str(self.folder),
            **_extent_record(self.extent),
            "whole": _extent_record(self.whole),
            "split": self.split or None,
            "metrics": dict(self.metrics),
            "whole_metrics": dict(self.whole_metrics),
            "fine_tuned_metrics": dict(self.fine_tuned_metrics) or None,
            "notes": list(self.notes),
        }


@dataclass(frozen=True, kw_only=True)
class TrimSweep:
    """What trimming a model in several ways costs and gains."""

    result: Sweep
    recommended: SweepPoint
    """The fastest that loses no more than the tolerance, and is proven to be faster than the whole model; or that."""
    tolerance: float
    split: str
    environment: Mapping[str, str]
    """Machine and versions."""
    notes: tuple[str, ...]
    trimmed: Trimmed | None = None
    """The recommended model on disk, where that was asked for."""

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        front = self.result.front()
        return {
            "metric": self.result.metric,
            "tolerance": self.tolerance,
            "split": self.split,
            "num_images": self.result.num_images,
            "recommended": _extent_record(self.recommended.extent),
            "points": [_point_record(point, self.result, is_on_front=point in front) for point in self.result.points],
            "trimmed": self.trimmed.to_json() if self.trimmed else None,
            "environment": dict(self.environment),
            "notes": list(self.notes),
        }


def _extent_record(extent: Extent) -> dict[str, int]:
    return {
        "decoder_layers": extent.decoder_layers,
        "queries": extent.num_queries,
        "image_size": extent.image_size,
    }


def _point_record(point: SweepPoint, result: Sweep, *, is_on_front: bool) -> dict[str, Any]:
    low, high = point.latency_iqr_s
    return {
        **_extent_record(point.extent),
        "metrics": dict(point.metrics),
        "loss": result.loss(point),
        "latency_ms": 1e3 * point.latency_s,
        "latency_iqr_ms": [1e3 * low, 1e3 * high],
        "speedup": point.speedup.ratio,
        "speedup_95": [point.speedup.low, point.speedup.high],
        "rounds": len(point.latencies_s),
        "is_on_front": is_on_front,
    }

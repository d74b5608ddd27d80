"""The trackers that a run was asked to tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detronome.report.trackers.mlflow_log import MlflowTracker
from detronome.report.trackers.names import TrackerName
from detronome.report.trackers.tensorboard import TensorBoardTracker
from detronome.report.trackers.tracker import Tracker, Trackers
from detronome.report.trackers.wandb_log import WandbTracker

__all__ = ["build_trackers"]


def build_trackers(names: Sequence[TrackerName], run_dir: Path, config: Mapping[str, Any]) -> Trackers:
    """Return an observer that tells all of these trackers, each named once or more.

    Args:
        names: of the trackers; none gives an observer that does nothing.
        run_dir: the run folder.
        config: all settings of the run, nested.

    Raises:
        MissingExtraError: the package of one of them is not installed.
    """
    return Trackers([_build(name, run_dir, config) for name in dict.fromkeys(names)], run_dir)


def _build(name: TrackerName, run_dir: Path, config: Mapping[str, Any]) -> Tracker:
    match name:
        case "tensorboard":
            return TensorBoardTracker(run_dir, config)
        case "wandb":
            return WandbTracker(run_dir, config)
        case "mlflow":
            return MlflowTracker(run_dir, config)

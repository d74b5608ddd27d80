"""Detronome trains, evaluates and deploys detection transformers (DETR) on COCO-format data.

    import detronome as dt

    run = dt.train("data/", model="nano")
    run.metrics["AP"]
    run.model.predict("photo.jpg").show()

Importing the package does not import torch; the first use of a function does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from detronome.version import __version__ as __version__

if TYPE_CHECKING:
    from detronome.api import (
        Benchmark,
        ExportedModel,
        Plan,
        Predictions,
        PresetInfo,
        Profile,
        Run,
        Search,
        Trimmed,
        TrimSweep,
        Tuning,
        benchmark,
        check_data,
        check_environment,
        clear_caches,
        convert_data,
        data_stats,
        demo,
        download_data,
        evaluate,
        evaluate_panoptic_results,
        evaluate_results,
        export,
        follow_run,
        index_data,
        list_caches,
        list_models,
        plan,
        predict,
        profile,
        resume,
        run_state,
        search,
        serve,
        serve_run,
        shard_data,
        train,
        trim,
        trim_sweep,
        tune,
        verify_shards,
        write_report,
    )
    from detronome.doctor.findings import Examination
    from detronome.errors import (
        CheckpointError,
        ConfigError,
        DataError,
        DetronomeError,
        MissingExtraError,
        TrainingError,
    )
    from detronome.evaluation.detection import DetectionMetrics
    from detronome.evaluation.panoptic import PanopticMetrics
    from detronome.model import Model, Prediction, load

__all__ = [
    "Benchmark",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DetectionMetrics",
    "DetronomeError",
    "Examination",
    "ExportedModel",
    "MissingExtraError",
    "Model",
    "PanopticMetrics",
    "Plan",
    "Prediction",
    "Predictions",
    "PresetInfo",
    "Profile",
    "Run",
    "Search",
    "TrainingError",
    "TrimSweep",
    "Trimmed",
    "Tuning",
    "benchmark",
    "check_data",
    "check_environment",
    "clear_caches",
    "convert_data",
    "data_stats",
    "demo",
    "download_data",
    "evaluate",
    "evaluate_panoptic_results",
    "evaluate_results",
    "export",
    "follow_run",
    "index_data",
    "list_caches",
    "list_models",
    "load",
    "plan",
    "predict",
    "profile",
    "resume",
    "run_state",
    "search",
    "serve",
    "serve_run",
    "shard_data",
    "train",
    "trim",
    "trim_sweep",
    "tune",
    "verify_shards",
    "write_report",
]

_HOME = {
    "DetectionMetrics": "detronome.evaluation.detection",
    "Examination": "detronome.doctor.findings",
    "Model": "detronome.model",
    "PanopticMetrics": "detronome.evaluation.panoptic",
    "Prediction": "detronome.model",
    "load": "detronome.model",
} | {name: "detronome.errors" for name in __all__ if name.endswith("Error")}
"""Where a public name lives, when not in `detronome.api`."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'detronome' has no attribute {name!r}")
    return getattr(import_module(_HOME.get(name, "detronome.api")), name)


def __dir__() -> list[str]:
    return sorted(__all__)

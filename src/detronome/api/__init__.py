"""The typed functions behind the command line: `training`, `runs` (models and reports) and `data` (data sets).

Everything here is also in the package's namespace: `import detronome as dt; dt.train("data/", model="nano")`. The
modules are imported on first use, so that looking after data does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detronome.api.benchmarking import Benchmark, benchmark
    from detronome.api.data import (
        check_data,
        clear_caches,
        convert_data,
        data_stats,
        download_data,
        index_data,
        list_caches,
        shard_data,
        verify_shards,
    )
    from detronome.api.environment import check_environment
    from detronome.api.exporting import ExportedModel, export
    from detronome.api.models import PresetInfo, list_models
    from detronome.api.panoptic_results import evaluate_panoptic_results
    from detronome.api.planning import Plan, plan
    from detronome.api.predicting import Predictions, predict
    from detronome.api.profiling import Profile, profile
    from detronome.api.runs import evaluate, evaluate_results, write_report
    from detronome.api.searching import Search, search
    from detronome.api.serving import serve
    from detronome.api.training import Run, demo, resume, train
    from detronome.api.trim_results import Trimmed, TrimSweep
    from detronome.api.trimming import trim, trim_sweep
    from detronome.api.tuning import Tuning, tune
    from detronome.api.watching import follow_run, run_state, serve_run

__all__ = [
    "Benchmark",
    "ExportedModel",
    "Plan",
    "Predictions",
    "PresetInfo",
    "Profile",
    "Run",
    "Search",
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

_HOMES = {
    "environment": ("check_environment",),
    "exporting": ("ExportedModel", "export"),
    "benchmarking": ("Benchmark", "benchmark"),
    "models": ("PresetInfo", "list_models"),
    "panoptic_results": ("evaluate_panoptic_results",),
    "planning": ("Plan", "plan"),
    "predicting": ("Predictions", "predict"),
    "profiling": ("Profile", "profile"),
    "runs": ("evaluate", "evaluate_results", "write_report"),
    "searching": ("Search", "search"),
    "serving": ("serve",),
    "training": ("Run", "demo", "resume", "train"),
    "trim_results": ("TrimSweep", "Trimmed"),
    "trimming": ("trim", "trim_sweep"),
    "tuning": ("Tuning", "tune"),
    "watching": ("follow_run", "run_state", "serve_run"),
}
"""Names by module; the others live in `data`."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'detronome.api' has no attribute {name!r}")
    home = next((module for module, names in _HOMES.items() if name in names), "data")
    return getattr(import_module(f"detronome.api.{home}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)

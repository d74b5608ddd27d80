"""The typed functions behind the command line: `runs` (models and training) and `data` (data sets).

Everything here is also in the package's namespace: `import detronome as dt; dt.train("data/", model="nano")`. The
modules are imported on first use, so that looking after data does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    from detronome.api.runs import Run, demo, evaluate, evaluate_results, predict, resume, train, write_report

__all__ = [
    "Run",
    "check_data",
    "clear_caches",
    "convert_data",
    "data_stats",
    "demo",
    "download_data",
    "evaluate",
    "evaluate_results",
    "index_data",
    "list_caches",
    "predict",
    "resume",
    "shard_data",
    "train",
    "verify_shards",
    "write_report",
]

_DATA = frozenset(
    {
        "check_data",
        "clear_caches",
        "convert_data",
        "data_stats",
        "download_data",
        "index_data",
        "list_caches",
        "shard_data",
        "verify_shards",
    }
)
"""The names that live in `data`; the others live in `runs`."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'detronome.api' has no attribute {name!r}")
    return getattr(import_module(f"detronome.api.{'data' if name in _DATA else 'runs'}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)

"""Profiles on a rank, for the tests to call there."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest.mock import patch

import detronome as dt
from detronome.data.store.source import FolderSource
from detronome.engine import parallel
from detronome.engine.step import TrainingStep
from detronome.runtime.distributed import world_of_environment

SLOW_S = 0.25


def profile_on_rank(data: str, settings: dict[str, Any], fault: str) -> dict[str, Any]:
    """Profile with something slow on purpose: `collective` everywhere, `compute` or `disk` on rank 1 alone."""
    is_at_fault = fault == "collective" or world_of_environment().rank == 1
    with slow(fault) if is_at_fault else nullcontext():
        found = dt.profile(data, model="nano", steps=3, settings=settings)
    return {**found.to_json(), "is_main": found.is_main}


def slow(fault: str) -> AbstractContextManager[Any]:
    match fault:
        case "collective":
            return patch.object(parallel.Replicated, "sum_gradients", delayed(parallel.Replicated.sum_gradients))
        case "compute":
            return patch.object(TrainingStep, "_add_gradients", delayed(TrainingStep._add_gradients))
        case _:
            return patch.object(FolderSource, "read", delayed(FolderSource.read, SLOW_S / 4))


def delayed(function: Any, seconds: float = SLOW_S) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        time.sleep(seconds)
        return function(*args, **kwargs)

    return call

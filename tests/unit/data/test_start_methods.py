"""However processes are started: spawn (macOS, Windows), forkserver (Linux from Python 3.14 on), fork (before)."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import pytest
import torch

import detronome as dt


@pytest.fixture(params=["spawn", "forkserver"])
def start_method(request: pytest.FixtureRequest) -> Iterator[str]:
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(request.param, force=True)
    yield request.param
    multiprocessing.set_start_method(before, force=True)


@pytest.fixture(scope="module")
def settings(tiny_settings: dict[str, Any]) -> dict[str, Any]:
    return {**tiny_settings, "data.cache": "ram", "batch.global_batch_size": 8}


@pytest.fixture(scope="module")
def alone(blocks: Path, settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dt.Run:
    """A run whose batches come from the training process itself."""
    return dt.train(blocks, model="nano", epochs=2, out=tmp_path_factory.mktemp("alone") / "run", settings=settings)


def test_workers_started_by_any_method_give_the_same_run(
    start_method: str, alone: dt.Run, blocks: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    """Two epochs and two evaluations, with pixels kept in memory that the workers share."""
    children = set(active_children())
    run = dt.train(blocks, model="nano", epochs=2, out=tmp_path / "run", settings={**settings, "data.workers": 1})
    assert set(active_children()) == children
    assert run.metrics == alone.metrics
    expected, found = alone.model.detector.state_dict(), run.model.detector.state_dict()
    assert all(torch.equal(found[name], values) for name, values in expected.items())

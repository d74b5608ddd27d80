"""Small checkpoints with different values for every step, and their comparison bit for bit."""

from copy import deepcopy
from dataclasses import replace

import torch

from detronome.engine.checkpoint import Checkpoint
from detronome.engine.state import TrainingState
from detronome.types import Categories

STATE = TrainingState(
    step=0,
    seconds={"forward": 1e-5},
    training_s=1.25,
    num_skipped=3,
    scaler={"scale": 2.0},
    best={"value": 0.1, "step": 7, "num_without_gain": 0, "patience_value": None},
    best_metrics={"AP": 0.1 + 0.2, "AP_large": None},
    data_fingerprint="abc",
)


def checkpoint_of(step: int, *, with_training: bool = True) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    weights = {"a.weight": torch.randn(4, 3, generator=generator), "a.count": torch.tensor(step)}
    return Checkpoint(
        config={"preset": "nano", "model": {"widths": [8, 16]}, "optim": {"lr": 0.1}},
        categories=Categories((3, 7), ("rød", "blue")),
        state=replace(deepcopy(STATE), step=step),
        model=weights,
        training={name: value + 1 for name, value in weights.items()} if with_training else None,
        optimizer={"a.weight.exp_avg": torch.randn(4, 3, generator=generator), "a.weight.step": torch.tensor(5.0)},
    )


def assert_same(read: Checkpoint, written: Checkpoint) -> None:
    assert (read.config, read.categories, read.state) == (written.config, written.categories, written.state)
    for part in ("model", "training", "optimizer"):
        ours, theirs = getattr(written, part), getattr(read, part)
        assert (ours is None) == (theirs is None)
        assert (ours or {}).keys() == (theirs or {}).keys()
        for name in ours or {}:
            assert ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name])

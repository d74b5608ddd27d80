"""Whole trainings on a rank, for the tests to call there, and what is left of them to compare."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file
from torch.distributed.tensor import DTensor

import detronome as dt
from detronome.cli import main
from detronome.engine.events import Event
from detronome.engine.step import TrainingStep
from detronome.report.run_log import read_run_log
from detronome.types import EffectiveBatch

__all__ = [
    "CLASSIC",
    "RankOfRun",
    "TraceRow",
    "command_line",
    "farthest",
    "go_on",
    "learned",
    "samples_of",
    "tensors_of",
    "train_run",
]

CLASSIC: Mapping[str, Any] = {
    "model.backbone_weights": "none",
    "model.backbone_norm": "frozen",
    "model.frozen_stages": 5,
    "model.dropout": 0.0,
    "model.hidden_dim": 16,
    "model.num_heads": 2,
    "model.ffn_dim": 16,
    "model.num_encoder_layers": 1,
    "model.num_decoder_layers": 2,
    "model.num_queries": 6,
    "augment.sizes": [32],
    "augment.max_size": 48,
    "augment.crop": "none",
    "augment.eval_size": 32,
    "augment.eval_max_size": 48,
    "batch.global_batch_size": 6,
    "batch.micro_batch_size": 2,
    "train.ema_decay": 0.9,
    "train.log_steps": 1,
    "train.eval_epochs": 1,
    "train.precision": "fp32",
    "train.device": "cpu",
    "train.worst_case_first": False,
    "data.workers": 0,
}
"""DETR on a frozen random ResNet-18: no layer sees a batch, so the number of ranks can change nothing but rounding.
The images of a step have one size, and so the same padding on every rank."""


@dataclass(frozen=True)
class TraceRow:
    """A training step as one rank was given it."""

    step: int
    samples: list[tuple[int, str]]
    """Image id, and digest of pixels, labels and boxes."""
    num_objects: int


@dataclass
class RankOfRun:
    """What one rank knows of a run in which it took part."""

    reason: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    signal: str = ""
    error: str = ""
    """Type and text of the error that ended it."""
    is_told: bool = False
    trace: list[TraceRow] = field(default_factory=list)
    evaluated: list[list[int]] = field(default_factory=list)
    """Image ids that this rank ran through the model, by evaluation."""
    num_events: int = 0
    num_sharded: int = 0
    """Parameters of which this rank has held only a part."""


def train_run(
    data: Path,
    out: Path,
    settings: Mapping[str, Any],
    *,
    epochs: int = 2,
    stop_at: Mapping[int, int] | None = None,
) -> RankOfRun:
    """Train from the beginning.

    Args:
        data: the data folder.
        out: the run folder.
        settings: dotted settings of a `detr-r18`.
        epochs: how long.
        stop_at: rank -> step in which it is told to stop.
    """

    def call(observer: Callable[[Event], None]) -> dt.Run:
        return dt.train(data, model="detr-r18", epochs=epochs, out=out, settings=settings, observers=[observer])

    return _watched(call, stop_at or {})


def go_on(out: Path, settings: Mapping[str, Any], stop_at: Mapping[int, int] | None = None) -> RankOfRun:
    """Resume a run."""
    return _watched(lambda observer: dt.resume(out, settings=settings, observers=[observer]), stop_at or {})


def command_line(*arguments: str) -> tuple[int, str, str]:
    """Run the command line; return its exit code and what it printed to stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(arguments)
        except SystemExit as end:
            return int(end.code or 0), out.getvalue(), err.getvalue()
    return 0, out.getvalue(), err.getvalue()


def _watched(call: Callable[[Callable[[Event], None]], dt.Run], stop_at: Mapping[int, int]) -> RankOfRun:
    known = RankOfRun()
    _trace_steps(known, stop_at.get(int(os.environ["RANK"]), -1))
    _trace_evaluations(known)

    def count(event: Event) -> None:
        known.num_events += 1

    try:
        run = call(count)
    except dt.DetronomeError as error:
        known.error, known.is_told = f"{type(error).__name__}: {error}", error.is_told
        return known
    known.reason, known.metrics, known.signal = run.reason, run.metrics, run.signal
    return known


def _trace_steps(known: RankOfRun, stop_at: int) -> None:
    original = TrainingStep.__call__

    @functools.wraps(original)
    def traced(self: TrainingStep, batch: EffectiveBatch, *arguments: Any, step: int, **options: Any) -> Any:
        known.num_sharded = sum(isinstance(parameter, DTensor) for parameter in self.model.parameters())
        objects = sum(len(target.labels) for target in batch.targets)
        known.trace.append(TraceRow(step, _samples(batch), objects))
        if step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch, *arguments, step=step, **options)

    TrainingStep.__call__ = traced  # type: ignore[method-assign]


def _trace_evaluations(known: RankOfRun) -> None:
    from detronome.engine import trainer

    original = trainer.evaluate

    @functools.wraps(original)
    def traced(model: Any, batches: Any, *arguments: Any, **options: Any) -> Any:
        ids: list[int] = []
        known.evaluated.append(ids)

        def seen() -> Any:
            for batch in batches:
                ids.extend(batch.image_ids)
                yield batch

        return original(model, seen(), *arguments, **options)

    trainer.evaluate = traced


def _samples(batch: EffectiveBatch) -> list[tuple[int, str]]:
    samples = []
    for part in batch.parts:
        for image, target in zip(part.images, part.targets, strict=True):
            height, width = target.size_hw
            digest = hashlib.sha256(image[:, :height, :width].contiguous().numpy().tobytes())
            digest.update(target.labels.numpy().tobytes())
            digest.update(target.boxes_cxcywh.numpy().tobytes())
            samples.append((int(target.image_id), digest.hexdigest()))
    return samples


# ------------------------------------------------------------------------------------------------ what a run leaves


def samples_of(ranks: Sequence[RankOfRun]) -> dict[int, list[tuple[int, str]]]:
    """Return what each step was given, over all ranks."""
    steps: dict[int, list[tuple[int, str]]] = {}
    for rank in ranks:
        for row in rank.trace:
            steps[row.step] = sorted([*steps.get(row.step, []), *row.samples])
    return steps


def tensors_of(run: Path, which: str = "last") -> dict[str, np.ndarray]:
    """Return weights, average and moments of a checkpoint."""
    files = sorted((run / "checkpoints" / which).glob("*.safetensors"))
    assert files
    return {f"{file.stem}/{name}": tensor for file in files for name, tensor in load_file(file).items()}


def farthest(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> float:
    """Return the largest difference between two sets of tensors of the same names."""
    assert ours.keys() == theirs.keys()
    return max(
        float(np.abs(ours[name].astype(np.float64) - theirs[name].astype(np.float64)).max(initial=0)) for name in ours
    )


def learned(run: Path) -> list[tuple[Any, ...]]:
    """Return what the log says of learning, without clocks."""
    rows: list[tuple[Any, ...]] = []
    for record in read_run_log(run / "log.jsonl"):
        if record["kind"] == "step":
            rows.append(("step", record["step"], record["loss"], record["grad_norm"], json.dumps(record["losses"])))
        if record["kind"] == "eval":
            rows.append(("eval", record["step"], json.dumps(record["metrics"]), record["is_best"]))
    return rows

"""Memory that runs out in training or evaluation, at any moment: the run finishes, and has learnt the same."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from tests.faults.oom_injection import Injection, out_of_memory
from torch import nn
from torchvision.models import resnet18

import detronome as dt
from detronome.engine import build
from detronome.engine.events import Evaluated, Event, MemorySplit, Observer, StepLogged

Settings = dict[str, Any]
Report = Callable[[str, str], None]

NUM_STEPS = 3
"""So many forward passes precede the evaluation."""
BATCH = 8
EVALUATED = 6
"""Images of an evaluation batch: all of the split."""
SHAPE = "32x64"
CLASSIC: Settings = {
    "model.frozen_stages": 5,
    "model.hidden_dim": 16,
    "model.num_heads": 2,
    "model.ffn_dim": 16,
    "model.num_encoder_layers": 1,
    "model.num_decoder_layers": 2,
    "model.num_queries": 10,
    "model.dropout": 0.0,
    "augment.sizes": [32],
    "augment.max_size": 48,
    "augment.crop": "none",
    "augment.eval_size": 32,
    "augment.eval_max_size": 48,
    "batch.global_batch_size": BATCH,
    "batch.micro_batch_size": BATCH,
    "eval.batch_size": EVALUATED,
    "optim.lr": 1e-3,
    "optim.backbone_lr": 1e-4,
    "train.log_steps": 1,
    "train.device": "cpu",
    "data.workers": 0,
}
"""Classic DETR with frozen norms and without dropout: what it learns does not depend on the cut."""


@dataclass(frozen=True, kw_only=True)
class Shortage:
    """When memory runs out: in passes of more images than it has room for."""

    max_images: int
    during: Literal["forward", "backward"] = "forward"
    calls: range | None = None
    """The passes of the model that may fail, all of them when None."""

    @property
    def splits(self) -> list[tuple[int, int]]:
        """The old and new sizes that are to be told."""
        of_training = of_evaluation = False
        if self.calls is None or self.calls.start < NUM_STEPS:
            of_training = True
        if self.during == "forward" and (self.calls is None or self.calls.start >= NUM_STEPS):
            of_evaluation = True
        is_once = self.calls is not None and len(self.calls) == 1
        told: list[tuple[int, int]] = []
        for is_hit, size in ((of_training, BATCH), (of_evaluation, EVALUATED)):
            while is_hit and size > self.max_images:
                told.append((size, size // 2))
                size //= 2
                is_hit = not is_once
        return told


@dataclass
class Lived:
    """What a run, or a part of it, came to."""

    run: dt.Run
    injections: list[Injection]
    events: list[Event] = field(default_factory=list)

    @property
    def splits(self) -> list[tuple[str, int, int]]:
        return [(e.shape, e.old_size, e.new_size) for e in self.events if isinstance(e, MemorySplit)]

    @property
    def evaluated(self) -> Evaluated:
        """The last evaluation."""
        return [event for event in self.events if isinstance(event, Evaluated)][-1]

    def weights(self) -> dict[str, np.ndarray]:
        """Return the weights of the last checkpoint."""
        return load_file(self.run.folder / "checkpoints" / "last" / "model.safetensors")


@contextmanager
def short_of_memory(shortage: Shortage | None) -> Iterator[list[Injection]]:
    """Let the models that are built for training be short of memory."""
    original, injections = build.build_model, []
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:

        def build_short(*args: Any, **settings: Any) -> nn.Module:
            model = original(*args, **settings)
            if shortage is not None:
                lack = out_of_memory(
                    model, max_images=shortage.max_images, during=shortage.during, calls=shortage.calls
                )
                injections.append(stack.enter_context(lack))
            return model

        patch.setattr(build, "build_model", build_short)
        yield injections


@dataclass
class Runs:
    """Makes runs that are short of memory, each in a folder of its own."""

    data: Path
    folder: Path
    settings: Settings
    count: int = 0

    def live(self, shortage: Shortage | None, *observers: Observer, **settings: Any) -> Lived:
        """Train from the beginning, one epoch."""
        self.count += 1
        together = {**self.settings, **{key.replace("__", "."): value for key, value in settings.items()}}
        events: list[Event] = []
        with short_of_memory(shortage) as injections:
            run = dt.train(
                self.data,
                model="detr-r18",
                epochs=1,
                out=self.folder / f"run {self.count}",
                settings=together,
                observers=[events.append, *observers],
            )
        return Lived(run, injections, events)

    def resume(self, run: dt.Run, shortage: Shortage | None) -> Lived:
        """Go on with a run."""
        events: list[Event] = []
        with short_of_memory(shortage) as injections:
            return Lived(dt.resume(run.folder, observers=[events.append]), injections, events)


@pytest.fixture(scope="module")
def runs(blocks: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("memory")
    torch.manual_seed(0)
    torch.save(resnet18(weights=None).state_dict(), folder / "resnet18.pt")
    return Runs(blocks, folder, {**CLASSIC, "model.backbone_weights": str(folder / "resnet18.pt")})


@pytest.fixture(scope="module")
def undisturbed(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Lived:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETRONOME_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        return runs.live(None)


def distance(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> float:
    """Return the relative difference of the weights that are trained, as one vector.

    One by one they may differ by more: an optimiser that divides by the gradient's size makes steps of rounding errors
    where the gradient is zero but for these.
    """
    assert ours.keys() == theirs.keys()
    trained = [name for name in theirs if not name.startswith("backbone.")]
    apart = np.concatenate([(ours[name] - theirs[name]).ravel() for name in trained])
    return float(np.linalg.norm(apart) / np.linalg.norm(np.concatenate([theirs[name].ravel() for name in trained])))


def problems_of(lived: Lived, undisturbed: Lived, splits: list[tuple[int, int]]) -> list[str]:
    """Return in what a run differs from one that had all the memory it wanted, but for the splits that it told."""
    found = []
    if lived.run.reason != "finished":
        found.append(lived.run.reason)
    if lived.splits != [(SHAPE, old, new) for old, new in splits]:
        found.append(f"told {lived.splits} instead of {splits}")
    if (apart := distance(lived.weights(), undisturbed.weights())) > 1e-5:
        found.append(f"the weights differ by {apart:.1e}")
    ours, theirs = lived.evaluated, undisturbed.evaluated
    if repr(ours.metrics) != repr(theirs.metrics):
        found.append(f"metrics {ours.metrics} instead of {theirs.metrics}")
    if any(abs(value - theirs.losses[name]) > 1e-5 * abs(theirs.losses[name]) for name, value in ours.losses.items()):
        found.append(f"losses {ours.losses} instead of {theirs.losses}")
    return found


def shortages(count: int, seed: int) -> list[Shortage]:
    """Return shortages of all kinds in turn; the rest is chance."""
    draw = random.Random(seed)
    kinds: list[Callable[[], Shortage]] = [
        lambda: Shortage(max_images=draw.randint(1, 7), during="backward"),
        lambda: Shortage(max_images=draw.randint(1, 5)),
        lambda: Shortage(max_images=0, during="backward", calls=_one(draw.randrange(NUM_STEPS))),
        lambda: Shortage(max_images=0, calls=_one(NUM_STEPS)),
        lambda: Shortage(max_images=draw.randint(1, 5), calls=range(NUM_STEPS, 1000)),
        lambda: Shortage(max_images=0, calls=_one(draw.randrange(NUM_STEPS))),
    ]
    return [kinds[i % len(kinds)]() for i in range(count)]


def _one(number: int) -> range:
    return range(number, number + 1)


def prove(name: str, count: int, runs: Runs, undisturbed: Lived, report_figure: Report) -> None:
    started = time.monotonic()
    problems: list[str] = []
    num_failures = num_survived = 0
    farthest = 0.0
    for shortage in shortages(count, seed=count):
        try:
            lived = runs.live(shortage)
        except Exception as error:
            problems.append(f"{shortage}: the run ended with {error!r}")
            continue
        found = problems_of(lived, undisturbed, shortage.splits)
        num_survived += not found
        num_failures += sum(injection.num_failures for injection in lived.injections)
        farthest = max(farthest, distance(lived.weights(), undisturbed.weights()))
        problems += [f"{shortage}: {what}" for what in found]
    report_figure(
        name,
        f"{num_survived} of {count} runs finished and learnt the same (weights within {farthest:.0e}, same AP) | "
        f"{num_failures} allocations failed | {time.monotonic() - started:.0f} s",
    )
    assert problems == []


def test_a_few_runs_short_of_memory(runs: Runs, undisturbed: Lived, report_figure: Report) -> None:
    prove("memory, few", 6, runs, undisturbed, report_figure)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_many_runs_short_of_memory(runs: Runs, undisturbed: Lived, report_figure: Report) -> None:
    prove("memory, many", 50, runs, undisturbed, report_figure)


def test_a_run_that_is_not_short_of_memory_tells_of_nothing(undisturbed: Lived) -> None:
    assert undisturbed.splits == []
    assert undisturbed.run.reason == "finished" and undisturbed.evaluated.losses["loss_bbox"] > 0


def test_a_resume_remembers_what_fitted(runs: Runs, undisturbed: Lived) -> None:
    def stop(event: Event) -> None:
        if isinstance(event, StepLogged) and event.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    shortage = Shortage(max_images=3, during="backward")
    stopped = runs.live(shortage, stop)
    assert stopped.run.reason == "interrupted"
    assert stopped.splits == [(SHAPE, 8, 4), (SHAPE, 4, 2)]
    again = runs.resume(stopped.run, shortage)
    assert [injection.num_failures for injection in again.injections] == [0]
    assert problems_of(again, undisturbed, splits=[]) == []


def test_the_worst_case_meets_the_lack_before_the_first_step(runs: Runs, undisturbed: Lived) -> None:
    lived = runs.live(Shortage(max_images=2), train__worst_case_first=True)
    kinds = [type(event) for event in lived.events if isinstance(event, StepLogged | MemorySplit)]
    assert kinds == [MemorySplit] * 4 + [StepLogged] * NUM_STEPS
    assert problems_of(lived, undisturbed, [(8, 4), (4, 2), (6, 3), (3, 1)]) == []

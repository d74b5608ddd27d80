"""Numbers that are not finite, anywhere, on any rank: the step never was, and the run says what was wrong with it."""

from __future__ import annotations

import hashlib
import math
import random
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from tests.dist.ranks import on_ranks
from tests.faults.fault_injection import ModuleFault, injected
from tests.unit.engine.trainers import CLASSIC, learnt, tiny_trainer
from torch import Tensor, nn

from detronome.engine.checkpoint import Checkpoint, CheckpointFolder
from detronome.engine.diagnosis import WHOLE_MODEL
from detronome.engine.events import Event, StepSkipped
from detronome.engine.trainer import Trainer
from detronome.runtime.distributed import ALONE, World, joined_world
from detronome.runtime.precision import Precision

pytestmark = pytest.mark.alone

Settings = dict[str, Any]
Report = Callable[[str, str], None]
Phase = Literal["forward", "backward"]

NUM_STEPS = 6
FP16_SCALE = 256.0
"""Low enough that no good step overflows: what is skipped is the fault."""
PRESETS = {"nano": "nano", "detr": "detr-r18"}


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of training."""

    family: Literal["nano", "detr"]
    precision: Precision
    micro_batch_size: int = 4


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Where a number is spoilt."""

    kind: Kind
    rank: int
    step: int
    phase: Phase
    value: float
    is_persistent: bool
    """Whether it comes again with the same batch."""
    draw: float
    """Decides the module and the image, 0-1."""


@dataclass
class Toll:
    """What came of faults."""

    num_survived: int = 0
    num_told: int = 0
    num_reproducible: int = 0
    num_harmless: int = 0
    """The numbers that were spoilt did not reach the loss, as when an infinity goes through a sigmoid."""
    problems: list[str] = field(default_factory=list)

    def __add__(self, other: Toll) -> Toll:
        return Toll(
            num_survived=self.num_survived + other.num_survived,
            num_told=self.num_told + other.num_told,
            num_reproducible=self.num_reproducible + other.num_reproducible,
            num_harmless=self.num_harmless + other.num_harmless,
            problems=self.problems + other.problems,
        )


@dataclass
class Witnessed(ModuleFault):
    """A fault that remembers what it has spoilt."""

    dtype: str = ""
    image_ids: list[int] = field(default_factory=list)
    """Of the micro-batch."""
    has_rows_of_images: bool = False

    def spoil(self, x: Tensor, image_ids: list[int]) -> Tensor:
        """Note the tensor as it is first met."""
        if self.num_fired == 0:
            self.dtype = str(x.dtype).removeprefix("torch.")
            self.image_ids = image_ids
            count = len(image_ids)
            self.has_rows_of_images = x.shape[:1] == (count,) and x.shape[1:2] != (count,)
        return super().spoil(x, image_ids)


class Nowhere(CheckpointFolder):
    """Writes nothing: these runs are over in no time."""

    def save(self, checkpoint: Checkpoint, *, is_best: bool) -> Path:
        """Forget the checkpoint."""
        return self.path


@dataclass
class Undisturbed:
    """What can be seen on this rank of a run without faults."""

    passes: list[list[int]] = field(default_factory=list)
    """Images of each forward pass."""
    with_output: set[str] = field(default_factory=set)
    """Modules that give numbers."""
    with_gradient: set[str] = field(default_factory=set)
    """Modules to whose numbers a gradient comes back."""

    def note(self, name: str, _: nn.Module, args: tuple[Any, ...], output: object) -> None:
        """Look at a module: a forward hook."""
        if not name:
            self.passes.append([target.image_id for target in args[2]])
        if isinstance(output, Tensor) and output.is_floating_point():
            self.with_output.add(name)
            if output.requires_grad:
                output.register_hook(lambda _: self.with_gradient.add(name))


class Proof:
    """Trains with faults and without, on the ranks of a world; every rank does the same at the same time.

    Args:
        data: the data folder.
        settings: that make `nano` tiny.
        world: the ranks.
    """

    def __init__(self, data: Path, settings: Settings, world: World = ALONE) -> None:
        self.data = data
        self.settings = {"nano": {**settings, "train.ema_decay": 0.9}, "detr": dict(CLASSIC)}
        self.world = world
        self._without: dict[tuple[Kind, int], dict[str, str]] = {}
        self._seen: dict[Kind, Undisturbed] = {}

    def of(self, faults: Sequence[Fault]) -> Toll:
        """Train once with each fault; return what came of it on this rank."""
        return sum(map(self._endure, faults), Toll())

    def _endure(self, fault: Fault) -> Toll:
        trainer, events = self._trainer(fault.kind)
        injection = self._injection(fault)
        is_here = fault.rank == self.world.rank
        try:
            with injected(trainer.model, injection) if is_here else nullcontext():
                trainer.fit()
        except Exception as error:
            return Toll(problems=[f"{fault}: the run ended with {error!r}"])
        skipped = [event for event in events if isinstance(event, StepSkipped)]
        # Told on the main rank, fired on another: both have to know.
        (is_skipped,) = self.world.max([float(bool(skipped))])
        injection, *_ = [i for i in self.world.gather(injection if is_here else None) if i is not None]
        if injection.num_fired == 0:
            return Toll(problems=[f"{fault}: did not fire in {injection.module}"])
        if not is_skipped and math.isinf(fault.value):
            digests(trainer)  # all is finite
            return Toll(num_harmless=1)
        ours, theirs = digests(trainer), self._run_without(fault.kind, fault.step)
        changed = [name for name, digest in ours.items() if digest != theirs[name]]
        toll = Toll(
            num_survived=not changed,
            num_reproducible=fault.is_persistent,
            problems=[f"{fault}: {changed[:3]} are not as without step {fault.step}"] if changed else [],
        )
        if not self.world.is_main:
            return toll
        wrong = wrongly_told(fault, injection, skipped)
        toll.num_told = not wrong
        toll.problems += [f"{fault} in {injection.module or WHOLE_MODEL}: {what}" for what in wrong]
        return toll

    def _trainer(self, kind: Kind) -> tuple[Trainer, list[Event]]:
        events: list[Event] = []
        trainer = tiny_trainer(
            self.data,
            self.data,
            {**self.settings[kind.family], "batch.micro_batch_size": kind.micro_batch_size},
            model=PRESETS[kind.family],
            precision=kind.precision,
            validate=False,
            world=self.world,
            observers=[events.append],
        )
        trainer.checkpoints.folder = Nowhere(self.data)
        if kind.precision == "fp16":
            trainer.training_step.loss_scale.restore({"scale": FP16_SCALE, "num_good": 0.0})
        return trainer, events

    def _injection(self, fault: Fault) -> Witnessed:
        seen = self._undisturbed(fault.kind)
        passes = seen.passes
        num_passes = len(passes) // NUM_STEPS
        draw = random.Random(fault.draw)
        number = fault.step * num_passes + draw.randrange(num_passes)
        image_ids = passes[number] if fault.rank == self.world.rank else [0]
        module = draw.choice(sorted(seen.with_output if fault.phase == "forward" else seen.with_gradient))
        return Witnessed(
            module=module,
            phase=fault.phase,
            value=fault.value,
            passes=None if fault.is_persistent else {number},
            image_id=draw.choice(image_ids) if fault.is_persistent else None,
        )

    def _undisturbed(self, kind: Kind) -> Undisturbed:
        if kind not in self._seen:
            seen = self._seen[kind] = Undisturbed()
            trainer, events = self._trainer(kind)
            handles = [
                module.register_forward_hook(partial(seen.note, name)) for name, module in trainer.model.named_modules()
            ]
            trainer.fit()
            for handle in handles:
                handle.remove()
            assert not any(isinstance(event, StepSkipped) for event in events)
        return self._seen[kind]

    def _run_without(self, kind: Kind, step: int) -> dict[str, str]:
        """Return what a run has learnt that never had the step."""
        if (kind, step) not in self._without:
            trainer, events = self._trainer(kind)
            trainer.excluded = {step}
            if kind.precision == "fp16":
                _lower_loss_scale_before(trainer, step + 1)
            trainer.fit()
            assert not any(isinstance(event, StepSkipped) for event in events)
            self._without[kind, step] = digests(trainer)
        return self._without[kind, step]


def digests(trainer: Trainer) -> dict[str, str]:
    """Return a digest of each tensor that training changes."""
    found = {}
    for name, tensor in learnt(trainer).items():
        assert tensor.isfinite().all(), name
        found[name] = hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()
    return found


def _lower_loss_scale_before(trainer: Trainer, step: int) -> None:
    """Do what a step that is not finite does to the scale of fp16, and to nothing else."""

    def lower(module: nn.Module, args: object) -> None:
        if trainer.step == step:
            trainer.training_step.loss_scale.update(torch.tensor(0.0))
            handle.remove()

    handle = trainer.model.register_forward_pre_hook(lower)


def wrongly_told(fault: Fault, injection: Witnessed, skipped: Sequence[StepSkipped]) -> list[str]:
    """Return what the events have wrong."""
    if [event.step for event in skipped] != [fault.step]:
        return [f"skipped {[event.step for event in skipped]} instead of {[fault.step]}"]
    (event,) = skipped
    told: dict[str, object] = {"is_reproducible": event.is_reproducible, "module": event.module, "dtype": event.dtype}
    right: dict[str, object] = {"is_reproducible": fault.is_persistent, "module": "", "dtype": ""}
    if fault.is_persistent:
        right |= {"module": injection.module or WHOLE_MODEL, "dtype": injection.dtype}
    if fault.is_persistent or fault.phase == "forward":
        # A gradient that was wrong once has been added to those of other ranks, and has left no mark.
        told["rank"], right["rank"] = event.rank, fault.rank
    wrong = [f"{name} is {told[name]!r} instead of {right[name]!r}" for name in right if told[name] != right[name]]
    images = set(event.image_ids)
    if fault.is_persistent and injection.has_rows_of_images and images != {injection.image_id}:
        wrong.append(f"images {images} instead of {injection.image_id}")
    if fault.is_persistent and not {injection.image_id} <= images <= set(injection.image_ids):
        wrong.append(f"images {images}, but {injection.image_id} of {injection.image_ids} did it")
    return wrong


def drawn(count: int, kinds: Sequence[Kind], *, num_ranks: int, seed: int) -> list[Fault]:
    """Return faults of all kinds, evenly; the rest is chance."""
    draw = random.Random(seed)
    phases: tuple[Phase, ...] = ("forward", "backward")
    values = (math.nan, math.inf, -math.inf)
    cases = list(product(kinds, phases, values, (True, False)))
    draw.shuffle(cases)
    return [
        Fault(
            kind=kind,
            rank=draw.randrange(num_ranks),
            step=draw.randrange(NUM_STEPS),
            phase=phase,
            value=value,
            is_persistent=is_persistent,
            draw=draw.random(),
        )
        for kind, phase, value, is_persistent in (cases * -(-count // len(cases)))[:count]
    ]


NANO = [Kind(family="nano", precision=precision) for precision in ("fp32", "bf16", "fp16")]
DETR = [Kind(family="detr", precision=precision) for precision in ("fp32", "bf16", "fp16")]
CUT = [Kind(family="nano", precision=precision, micro_batch_size=1) for precision in ("fp32", "bf16", "fp16")]


def on_this_rank(data: Path, settings: Settings, faults: Sequence[Fault]) -> Toll:
    with joined_world("cpu", timeout_s=120) as world:
        return Proof(data, settings, world).of(faults)


def over_ranks(data: Path, settings: Settings, faults: Sequence[Fault], *, num_ranks: int) -> Toll:
    """Return what all ranks agree on: a fault is survived when it is on every rank."""
    tolls: list[Toll] = on_ranks(num_ranks, on_this_rank, data, settings, faults, timeout_s=600)
    main, *others = tolls
    main.num_survived = min(toll.num_survived for toll in tolls)
    main.problems += [problem for toll in others for problem in toll.problems]
    return main


def figure(toll: Toll, num_faults: int, seconds: float) -> str:
    num_harmful = num_faults - toll.num_harmless
    return (
        f"{toll.num_survived} of {num_harmful} faults survived bit-identically | {toll.num_told} of {num_harmful} told "
        f"rightly ({toll.num_reproducible} reproducible) | {toll.num_harmless} more did no harm | {seconds:.0f} s"
    )


def prove(report_figure: Report, name: str, faults: Sequence[Fault], proof: Callable[[Sequence[Fault]], Toll]) -> None:
    started = time.monotonic()
    toll = proof(faults)
    report_figure(name, figure(toll, len(faults), time.monotonic() - started))
    assert toll.problems == []
    assert toll.num_survived == toll.num_told == len(faults) - toll.num_harmless


def test_a_few_faults_of_each_precision(blocks: Path, tiny_settings: Settings, report_figure: Report) -> None:
    faults = drawn(8, NANO, num_ranks=1, seed=1)
    prove(report_figure, "guard, few", faults, Proof(blocks, tiny_settings).of)


@pytest.mark.dist
def test_a_few_faults_on_two_ranks(blocks: Path, tiny_settings: Settings, report_figure: Report) -> None:
    faults = drawn(6, NANO[:2], num_ranks=2, seed=2)
    prove(report_figure, "guard, few on 2 ranks", faults, lambda f: over_ranks(blocks, tiny_settings, f, num_ranks=2))


@pytest.mark.dist
def test_a_fault_in_the_very_first_step_of_three_ranks(
    blocks: Path, tiny_settings: Settings, report_figure: Report
) -> None:
    """Sums of three numbers round by their order: it must be the same in a run's first pass as in all others."""
    fault = Fault(kind=DETR[0], rank=2, step=0, phase="forward", value=math.nan, is_persistent=True, draw=0.5)
    prove(report_figure, "guard, first step", [fault], lambda f: over_ranks(blocks, tiny_settings, f, num_ranks=3))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_many_faults_of_each_family_cut_and_precision(
    blocks: Path, tiny_settings: Settings, report_figure: Report
) -> None:
    proof = Proof(blocks, tiny_settings)
    prove(report_figure, "guard, nano", drawn(48, [*NANO, *CUT], num_ranks=1, seed=3), proof.of)
    prove(report_figure, "guard, detr", drawn(24, DETR, num_ranks=1, seed=4), proof.of)


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_many_faults_on_ranks(num_ranks: int, blocks: Path, tiny_settings: Settings, report_figure: Report) -> None:
    faults = drawn(24, [*NANO, DETR[0]], num_ranks=num_ranks, seed=5 + num_ranks)
    prove(
        report_figure,
        f"guard, {num_ranks} ranks",
        faults,
        lambda f: over_ranks(blocks, tiny_settings, f, num_ranks=num_ranks),
    )

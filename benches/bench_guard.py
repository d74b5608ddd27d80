"""What the step guard costs: a training step with it and without it, and its own work alone.

The guard keeps BatchNorm's statistics before a step, judges loss and gradient norm on the device, steers the update,
and is read once a step. Without it, the step is given a constant verdict. Both steps have weights, moments and average
of their own, and train on the same images. `guard alone` is `remember`, `read` and `judge` in turn, many times, on the
same model: the difference of two whole steps is mostly noise.

    python benches/bench_guard.py --threads 2 --out benches/results
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace

import torch

from detronome.config.presets import preset
from detronome.config.schema import DetrConfig, RunConfig
from detronome.engine import schedule as schedules
from detronome.engine.ema import ModelEma
from detronome.engine.guard import Judgement, StepGuard
from detronome.engine.micro_batches import MicroBatchSizes
from detronome.engine.optim import build_optimizer
from detronome.engine.parallel import Parallel
from detronome.engine.step import KeptStep, TrainingStep
from detronome.losses.build import build_criterion
from detronome.losses.terms import BatchTotals
from detronome.models.build import build_model
from detronome.models.detector import Detector
from detronome.runtime.distributed import ALONE
from detronome.types import Batch, EffectiveBatch, Target
from harness import Samples, arguments, compare, report

CPU = torch.device("cpu")
NUM_CLASSES = 80
NUM_QUERIES = 25
CASES = {
    "nano": ("nano", 16, (128, 128)),
    "detr-r50": ("detr-r50", 2, (480, 640)),
}
"""Preset, batch size, height and width in pixels."""
TIMES = 100
"""`guard alone` is so short that it is done so many times in one sample."""


class NoGuard(StepGuard[KeptStep]):
    """Lets every step pass."""

    def remember(self) -> None:
        """Keep nothing."""

    def judge(self, *, loss: torch.Tensor, grad_norm: torch.Tensor, step: int, kept: KeptStep) -> Judgement:
        """Return constants."""
        return Judgement(_ONE, _ONE)


_ONE = torch.ones(())


def main() -> None:
    """Time the contenders, report."""
    parser = arguments(__doc__, repeats=30, warmup=3)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cases: dict[str, dict[str, Samples]] = {}
    for name in options.cases:
        preset_name, batch_size, size_hw = CASES[name]
        config, batch = preset(preset_name), synthetic_batch(batch_size, size_hw)
        contenders = {
            "with guard": step_of(config, batch, StepGuard),
            "without guard": step_of(config, batch, NoGuard),
            f"guard alone x{TIMES}": guard_alone(config),
        }
        samples = compare(contenders, repeats=options.repeats, warmup=options.warmup)
        cases[f"{name}, batch {batch_size}, {size_hw[0]}x{size_hw[1]}, fp32"] = samples
        alone = samples[f"guard alone x{TIMES}"]
        shares = [
            part / TIMES / whole for part, whole in zip(alone["wall_s"], samples["with guard"]["wall_s"], strict=True)
        ]
        low, middle, high = statistics.quantiles(shares, n=4)
        print(f"{name}: the guard's work is {middle:.3%} of a step ({low:.3%} - {high:.3%})")
    settings = vars(options) | {"out": str(options.out), "times": TIMES}
    report("guard", cases, baseline="without guard", settings=settings, out=options.out)


def step_of(config: RunConfig, batch: EffectiveBatch, guard: type[StepGuard[KeptStep]]) -> Callable[[], None]:
    """Return a function that does a step and reads the verdict on it, as the trainer does."""
    step = training_step(config, guard)
    number = 0

    def run() -> None:
        nonlocal number
        step(batch, step=number, progress=0.5, before_update=step.guard.read)
        number += 1

    return run


def guard_alone(config: RunConfig) -> Callable[[], None]:
    """Return a function that does the guard's part of steps and nothing else."""
    guard: StepGuard[KeptStep] = StepGuard(new_model(config), CPU, loss_spike_factor=10.0, gradient_spike_factor=100.0)
    kept = KeptStep(micro_batches=[], totals=BatchTotals(1, 1, 1), progress=0.5, loss=torch.ones(()))
    loss, norm = torch.tensor(3.0), torch.tensor(2.0)

    def run() -> None:
        for number in range(TIMES):
            guard.remember()
            guard.read()
            guard.judge(loss=loss, grad_norm=norm, step=number, kept=kept)

    return run


def training_step(config: RunConfig, guard: type[StepGuard[KeptStep]]) -> TrainingStep:
    """Return a step of the preset, with new weights."""
    model = new_model(config)
    optim = config.optim
    return TrainingStep(
        parallel=Parallel(model, ALONE),
        criterion=build_criterion(config.loss),
        optimizer=build_optimizer(
            model,
            lr=optim.lr,
            backbone_lr=optim.backbone_lr,
            weight_decay=optim.weight_decay,
            decay_one_dimensional=optim.decay_one_dimensional,
        ),
        schedule=schedules.constant(),
        guard=guard(
            model,
            CPU,
            loss_spike_factor=config.guard.loss_spike_factor,
            gradient_spike_factor=config.guard.gradient_spike_factor,
        ),
        ema=ModelEma(model, decay=config.train.ema_decay) if config.train.ema_decay else None,
        sizes=MicroBatchSizes(config.batch.global_batch_size),
        clip_norm=optim.clip_norm,
        precision="fp32",
        device=CPU,
    )


def new_model(config: RunConfig) -> Detector:
    """Return the preset's model with seeded weights, nothing downloaded."""
    torch.manual_seed(0)
    model = config.model
    if isinstance(model, DetrConfig):
        model = replace(model, backbone_weights="none")
    else:
        model = replace(model, num_queries=NUM_QUERIES)
    return build_model(model, NUM_CLASSES).train()


def synthetic_batch(batch_size: int, size_hw: tuple[int, int], *, boxes: int = 7) -> EffectiveBatch:
    """Return noise images with some boxes each."""
    generator = torch.Generator().manual_seed(1)
    targets = tuple(
        Target(
            boxes_cxcywh=torch.rand(boxes, 4, generator=generator) * 0.4 + 0.2,
            labels=torch.randint(NUM_CLASSES, (boxes,), generator=generator),
            image_id=i,
            size_hw=size_hw,
            orig_size_hw=size_hw,
        )
        for i in range(batch_size)
    )
    images = torch.randint(256, (batch_size, 3, *size_hw), dtype=torch.uint8, generator=generator)
    padding_mask = torch.zeros(batch_size, *size_hw, dtype=torch.bool)
    return EffectiveBatch((Batch(images=images, padding_mask=padding_mask, targets=targets),))


if __name__ == "__main__":
    main()

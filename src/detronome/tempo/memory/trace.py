"""Runs the real training step, or an evaluation batch, on tensors without data, and keeps account of its memory.

Model, criterion, guard, average and optimiser are those of a run, from `engine.build`. Nothing is downloaded, read or
computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from detronome.config.schema import RunConfig, WithPretrainedBackbone
from detronome.engine.build import build_plan, build_step
from detronome.engine.evaluator import detect_batch
from detronome.engine.optim import materialise_state
from detronome.engine.resolve import Resolved
from detronome.losses.terms import BatchTotals
from detronome.runtime.progress import Progress, Section
from detronome.tempo.memory.account import Cause, OpCost
from detronome.tempo.memory.ledger import Ledger, Stage
from detronome.tempo.memory.stand_in import DeviceType, StandIn, allowances
from detronome.types import Batch, Categories, EffectiveBatch

__all__ = ["ALLOCATION_BYTES", "StepTracer", "Traced"]

ALLOCATION_BYTES: Mapping[DeviceType, int] = {"cpu": 64, "cuda": 512}
"""What torch's allocators round a tensor up to."""

_STAGES: Mapping[Section, Stage] = {
    Section.COPY: "forward",
    Section.FORWARD: "forward",
    Section.MATCHER: "matcher",
    Section.LOSS: "loss",
    Section.BACKWARD: "backward",
    Section.REDUCE: "update",
    Section.UPDATE: "update",
}
_HEADS = ("class_embed", "bbox_embed", "score_head", "bbox_head", "bbox_attention", "mask_head")
_PARTS: Mapping[str, Cause] = {
    "backbone": Cause.BACKBONE,
    "decoder": Cause.DECODER,
    "encoder": Cause.ENCODER,
    "transformer.decoder": Cause.DECODER,
    "transformer.encoder": Cause.ENCODER,
    # The fast family's encoder is what lies between the backbone's maps and the tokens.
    "coarse_proj": Cause.ENCODER,
    "enc_output": Cause.ENCODER,
    "fine_proj": Cause.ENCODER,
    "fuse": Cause.ENCODER,
}


@dataclass(frozen=True, kw_only=True)
class Traced:
    """What a trace saw."""

    stage: Stage
    """When most was held."""
    bytes_by_cause: Mapping[Cause, int]
    """At that moment, rounded as the allocator does."""
    num_gradient_bytes: int
    """Of all the weights that are trained."""
    movements: Sequence[tuple[int, int]]
    """What came and went from the building of the model on, in order: a storage's number, and its bytes, negative when
    it goes."""
    ops: Sequence[OpCost]


class StepTracer:
    """Traces one run's step, built once.

    Args:
        config: resolved, but for the micro-batch size.
        num_images: of the training split.
        num_classes: of the data.
        device_type: of the device that the run is to have.
    """

    def __init__(self, config: RunConfig, *, num_images: int, num_classes: int, device_type: DeviceType) -> None:
        config = replace(config, batch=replace(config.batch, micro_batch_size=1))
        if isinstance(config.model, WithPretrainedBackbone):
            config = replace(config, model=replace(config.model, backbone_weights="none"))
        resolved = Resolved(config)
        resolved.device = torch.device("meta")
        self._config = config
        self._categories = Categories(tuple(range(num_classes)), ("",) * num_classes)
        self._ledger = Ledger(ALLOCATION_BYTES[device_type])
        self._stand_in = StandIn(device_type)
        with self._ledger, torch.device("meta"), torch.random.fork_rng(devices=[]):
            plan = build_plan(config, num_images)
            self._step = step = build_step(resolved, self._categories, plan, activity=_Announcer(self._ledger))
            materialise_state(step.optimizer)
            self._ledger.rebook(_tensors(step.guard), Cause.GUARD)
            self._ledger.rebook(_of_model(step.model), Cause.WEIGHTS)
            if step.ema is not None:
                self._ledger.rebook(_of_model(step.ema.model), Cause.AVERAGE)
            self._ledger.rebook([v for state in step.optimizer.state.values() for v in state.values()], Cause.OPTIMIZER)
        step.device = self._stand_in.device
        self._made = self._ledger.movements
        self._watch(step.model)
        if step.ema is not None:
            self._watch(step.ema.model)
        for parameter in step.model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._book_gradient)

    def training(self, batch: Batch, *, has_gradients: bool) -> Traced:
        """Trace a step of one micro-batch.

        Args:
            batch: on the `meta` device.
            has_gradients: whether micro-batches before it have left theirs.
        """
        step = self._step
        step.model.train()
        effective = EffectiveBatch((batch,))
        step.sizes.size = len(batch)
        with self._traced():
            if has_gradients:
                for parameter in step.model.parameters():
                    if parameter.requires_grad:
                        parameter.grad = torch.zeros_like(parameter)
                        self._book_gradient(parameter)
            totals = BatchTotals.of(batch.targets, step.model.num_queries)
            step(effective, step=0, progress=0.5, totals=totals)
        step.optimizer.zero_grad(set_to_none=True)
        return self._result()

    def evaluation(self, batch: Batch) -> Traced:
        """Trace the detection of one batch, on the `meta` device, with the weights that an evaluation takes."""
        step = self._step
        model = step.model if step.ema is None else step.ema.model
        model.eval()
        with self._traced():
            detect_batch(
                model,
                batch,
                categories=self._categories,
                max_detections=self._config.eval.max_detections,
                precision=step.precision,
                device=step.device,
            )
        return self._result()

    @contextmanager
    def _traced(self) -> Iterator[None]:
        self._ledger.begin()
        with torch.random.fork_rng(devices=[]), allowances(), self._ledger, self._stand_in:
            yield

    def _result(self) -> Traced:
        stage, held = self._ledger.peak
        return Traced(
            stage=stage,
            bytes_by_cause=held,
            num_gradient_bytes=sum(p.nbytes for p in self._step.model.parameters() if p.requires_grad),
            movements=[*self._made, *self._ledger.movements],
            ops=self._ledger.ops(),
        )

    def _book_gradient(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self._ledger.rebook([parameter.grad], Cause.GRADIENTS)

    def _watch(self, model: nn.Module) -> None:
        model.register_forward_hook(lambda *_: self._stand_in.forget_casts(), always_call=True)
        for name, module in model.named_modules():
            cause = _cause_of(name)
            if cause is not None:
                module.register_forward_pre_hook(lambda *_, cause=cause: self._ledger.parts.append(cause))
                # Checkpointing stops in the middle of a part, by an exception, when it has all it needs.
                module.register_forward_hook(lambda *_: self._leave_part(), always_call=True)

    def _leave_part(self) -> None:
        self._ledger.parts.pop()


class _Announcer(Progress):
    """Tells the ledger which section of a step is under way."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self._ledger = ledger

    def enter(self, section: Section, *, step: int | None = None, images: Sequence[int] = ()) -> None:
        super().enter(section, step=step, images=images)
        if section in _STAGES:
            self._ledger.stage = _STAGES[section]


def _cause_of(name: str) -> Cause | None:
    """Return what a module's memory is booked to; None: to the module around it."""
    name = name.removeprefix("detr.")  # of a model with masks
    if any(f".{head}" in f".{name}" for head in _HEADS):
        return Cause.HEADS
    for part, cause in _PARTS.items():
        if name == part or name.startswith(f"{part}."):
            return cause
    return None


def _of_model(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _tensors(record: object) -> list[Tensor]:
    """Return the tensors that an object keeps in its attributes."""
    values = list(vars(record).values())
    return [t for value in values for t in (value if isinstance(value, list) else [value]) if isinstance(t, Tensor)]

"""One optimiser update over one effective batch, however it is cut into micro-batches and spread over ranks.

Every loss term is divided by totals of the whole effective batch, so the gradients of the micro-batches and ranks add
up to the gradient of the whole (BatchNorm and dropout apart, which see each micro-batch alone).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from detronome.engine.ema import ModelEma
from detronome.engine.guard import StepGuard
from detronome.engine.loss_scale import LossScale
from detronome.engine.micro_batches import MicroBatchSizes, OutOfMemoryAt, attempt, until_it_fits
from detronome.engine.parallel import Parallel, full_tensor
from detronome.engine.schedule import Schedule
from detronome.errors import TrainingError
from detronome.losses.set_criterion import SetCriterion
from detronome.losses.terms import BatchTotals
from detronome.models.detector import Detector
from detronome.runtime.precision import Precision, autocast
from detronome.runtime.progress import Progress, Section
from detronome.runtime.seeding import seed_torch
from detronome.types import Batch, EffectiveBatch, Target

__all__ = ["KeptStep", "StepResult", "TrainingStep"]

_BLANK_PX = 64


@dataclass(frozen=True)
class StepResult:
    """What a step measured; tensors stay on the device until somebody logs them."""

    loss: Tensor
    losses: dict[str, Tensor]
    """Unweighted terms of the last decoder layer."""
    grad_norm: Tensor
    is_applied: Tensor
    """1.0 or 0.0: the guard's verdict."""


@dataclass(frozen=True, kw_only=True)
class KeptStep:
    """All it takes to run a step's forward and backward again, and what this rank's part of it came to."""

    micro_batches: list[Batch]
    totals: BatchTotals
    progress: float
    loss_scale: Tensor
    """By which the loss was multiplied for backward."""
    loss: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)
    """All terms."""


class TrainingStep:
    """Prepare, forward and backward, sum over ranks, clip, judge, update, average.

    Args:
        parallel: the model, in training mode, and how it is spread over ranks.
        criterion: the losses.
        optimizer: fused, so that the guard's verdict can stop an update on the device.
        schedule: factor on each group's `base_lr`.
        guard: judges each step.
        ema: average to update, if any.
        sizes: how many images go through the model at once.
        clip_norm: largest gradient norm; 0 for no clipping.
        precision: of the forward pass.
        device: where the model is.
        seed: of dropout and denoising noise, which follow from it, the step and the rank.
        activity: is told what is being done.
        on_split: is told where memory ran out, and how many images go through the model at once from now on.
    """

    def __init__(
        self,
        *,
        parallel: Parallel,
        criterion: SetCriterion,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        guard: StepGuard[KeptStep],
        ema: ModelEma | None,
        sizes: MicroBatchSizes,
        clip_norm: float,
        precision: Precision,
        device: torch.device,
        seed: int = 0,
        activity: Progress | None = None,
        on_split: Callable[[OutOfMemoryAt, int], None] = lambda *_: None,
    ) -> None:
        self.parallel = parallel
        self.model: Detector = parallel.model
        self.criterion = criterion
        self.optimizer = optimizer
        self.schedule = schedule
        self.guard = guard
        self.ema = ema
        self.sizes = sizes
        self.clip_norm = clip_norm
        self.precision = precision
        self.device = device
        self.seed = seed
        self.activity = activity or Progress()
        self.on_split = on_split
        self.lr_scale = 1.0
        self.loss_scale = LossScale(device, enabled=precision == "fp16")
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def __call__(
        self,
        batch: EffectiveBatch,
        *,
        step: int,
        progress: float,
        totals: BatchTotals | None = None,
        before_update: Callable[[], bool] = lambda: False,
    ) -> StepResult:
        """Do update number `step` (from 0).

        Args:
            batch: this rank's images; it may have none.
            step: decides rate and randomness.
            progress: part of the training done, 0-1.
            totals: of the effective batch over all ranks; by default this rank has all of it.
            before_update: called when the gradients are there and the weights are still as they were; returns whether
                it has changed the model, so that the gradients are worth nothing. What it raises leaves the step undone
                altogether.
        """
        totals = totals or BatchTotals.of(batch.targets, self.model.num_queries)
        while True:
            kept = self.gradients(batch, totals=totals, step=step, progress=progress)
            self.activity.enter(Section.REDUCE)
            self.parallel.sum_gradients()
            loss, losses = self._sum_losses(kept)
            grad_norm = self._clip()
            if not before_update():
                break
            self.drop_gradients()
        self.activity.enter(Section.UPDATE)
        judgement = self.guard.judge(loss=loss, grad_norm=grad_norm, step=step, kept=kept)
        self._update(step, judgement.is_applied)
        self.loss_scale.update(judgement.is_finite)
        if self.ema is not None:
            self.ema.update(self.model, num_updates=step, is_applied=judgement.is_applied)
        return StepResult(loss, losses, grad_norm, judgement.is_applied)

    def gradients(self, batch: EffectiveBatch, *, totals: BatchTotals, step: int, progress: float) -> KeptStep:
        """Add up the gradients of this rank's micro-batches; when memory runs out on a rank, all cut smaller and begin
        again.

        Raises:
            TrainingError: memory has no room for a single image.
        """
        self.guard.remember()
        self.reseed(step)
        self.activity.enter(Section.FORWARD, step=step, images=batch.image_ids)

        def restart() -> None:
            self.drop_gradients()
            self.reseed(step)
            self.activity.enter(Section.FORWARD, images=batch.image_ids)

        return until_it_fits(
            lambda: self._accumulate(self.sizes.cut(batch), totals, progress),
            self.sizes,
            restart=restart,
            on_split=self.on_split,
            agree=self._agree_on_failures,
        )

    def reseed(self, step: int) -> None:
        """Put torch's generators where they are at the beginning of a step."""
        world = self.parallel.world
        seed_torch("step", self.seed, step, *([world.rank] if world.rank else []))

    def drop_gradients(self) -> None:
        """Forget the gradients, and what the forward passes have done to BatchNorm's statistics."""
        self.optimizer.zero_grad(set_to_none=True)
        self.guard.put_back()

    def _accumulate(self, micro_batches: list[Batch], totals: BatchTotals, progress: float) -> KeptStep | OutOfMemoryAt:
        kept = KeptStep(
            micro_batches=micro_batches,
            totals=totals,
            progress=progress,
            loss_scale=self.loss_scale.scale,
            loss=torch.zeros((), device=self.device),
        )
        num_passes = self._num_passes(len(micro_batches))
        for i in range(num_passes):
            self.parallel.before_backward(is_last=i == num_passes - 1)
            if i >= len(micro_batches):
                self._keep_step_with_others(kept)
                continue
            micro_batch = micro_batches[i]
            failure = attempt(
                lambda micro_batch=micro_batch: self._add_gradients(micro_batch, kept),  # type: ignore[misc]
                micro_batch,
                self.device,
                rank=self.parallel.world.rank,
            )
            if failure is not None:
                return failure
        return kept

    def _add_gradients(self, micro_batch: Batch, kept: KeptStep) -> None:
        terms = self._losses(micro_batch, kept)
        loss = self.criterion.total(terms)
        self._begin(Section.BACKWARD)
        self.loss_scale.apply(loss).backward()
        kept.loss.add_(loss.detach())
        for name, value in terms.items():
            kept.losses[name] = kept.losses[name] + value.detach() if name in kept.losses else value.detach()

    def _keep_step_with_others(self, kept: KeptStep) -> None:
        (self.criterion.total(self._losses(_blank(), kept)) * 0).backward()

    def _losses(self, micro_batch: Batch, kept: KeptStep) -> dict[str, Tensor]:
        self._begin(Section.COPY)
        micro_batch = micro_batch.to(self.device)
        self._begin(Section.FORWARD)
        with autocast(self.precision, self.device):
            output = self.model(micro_batch.images, micro_batch.padding_mask, micro_batch.targets)
        self._begin(Section.MATCHER)
        matchings = self.criterion.match(output, micro_batch.targets)
        self._begin(Section.LOSS)
        return self.criterion(output, micro_batch.targets, matchings, totals=kept.totals, progress=kept.progress)

    def _begin(self, section: Section) -> None:
        """Enter a section of the same step, with the same images."""
        self.activity.enter(section, images=self.activity.now.images)

    def _num_passes(self, num_micro_batches: int) -> int:
        """Return how many passes every rank makes, where each is a collective: as many as the one with the most."""
        if self.parallel.can_run_alone:
            return num_micro_batches
        (most,) = self.parallel.world.max([num_micro_batches])
        return int(most)

    def _agree_on_failures(self, mine: list[OutOfMemoryAt]) -> list[OutOfMemoryAt]:
        """Return the failures of all ranks, on all ranks."""
        if mine and not self.parallel.can_run_alone:
            raise TrainingError(
                f"memory ran out on rank {self.parallel.world.rank}, and FSDP ranks cannot cut smaller on their own",
                where=f"{mine[0].num_images} images of {mine[0].shape} in one forward pass; {mine[0].memory}",
                fix="resume with --set batch.micro_batch_size=N lower, or with --set train.parallel=ddp",
            )
        self.activity.enter(Section.AGREE)
        world = self.parallel.world
        if not any(world.max([bool(mine)])):
            return []
        return [failure for failures in world.gather(mine) for failure in failures]

    def _sum_losses(self, kept: KeptStep) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and the terms of the last decoder layer over all ranks."""
        names = list(self.criterion.weights)
        none = torch.zeros((), device=self.device)  # a rank without images has no terms
        loss, *terms = self.parallel.sum(torch.stack([kept.loss, *(kept.losses.get(name, none) for name in names)]))
        return loss, dict(zip(names, terms, strict=True))

    def _clip(self) -> Tensor:
        """Scale the gradients down to `clip_norm`; return their norm before, over all ranks."""
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        self.loss_scale.undo(gradients)
        norm = full_tensor(torch.nn.utils.get_total_norm(gradients, foreach=True))
        if self.clip_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, self.clip_norm, norm, foreach=True)
        return norm

    def _update(self, step: int, is_applied: Tensor) -> None:
        factor = self.schedule(step) * self.lr_scale
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        # A fused optimiser leaves weights, moments and its step count alone where this is 1.
        self.optimizer.found_inf = 1 - is_applied  # type: ignore[attr-defined]
        self.optimizer.grad_scale = None  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def _blank() -> Batch:
    """Return an image of nothing, for a pass that only keeps step with other ranks."""
    nothing = Target(
        boxes_cxcywh=torch.zeros(0, 4),
        labels=torch.zeros(0, dtype=torch.int64),
        image_id=-1,
        size_hw=(_BLANK_PX, _BLANK_PX),
        orig_size_hw=(_BLANK_PX, _BLANK_PX),
        masks=torch.zeros(0, _BLANK_PX, _BLANK_PX, dtype=torch.bool),
    )
    return Batch(
        images=torch.zeros(1, 3, _BLANK_PX, _BLANK_PX, dtype=torch.uint8),
        padding_mask=torch.zeros(1, _BLANK_PX, _BLANK_PX, dtype=torch.bool),
        targets=(nothing,),
    )

"""Looking after steps that the guard refused: what was wrong, whom to tell, what to do about it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from detronome.engine.diagnosis import WHOLE_MODEL, Diagnosis, diagnose
from detronome.engine.events import Event, StepSkipped
from detronome.engine.guard import Verdict
from detronome.engine.ladder import Ladder, Skip
from detronome.engine.micro_batches import is_out_of_memory, release_memory
from detronome.engine.step import KeptStep, TrainingStep
from detronome.runtime.progress import Progress, Section

__all__ = ["Recovery", "compute_in_fp32"]


@dataclass(frozen=True, kw_only=True)
class _Finding:
    """What all ranks know about a refused step."""

    rank: int = 0
    diagnosis: Diagnosis | None = None
    image_ids: list[int]
    is_loss_scale: bool
    """Whether a lower loss scale is the cure."""


class Recovery:
    """Reads the guard's verdicts, diagnoses refused steps on every rank, and does what the ladder decides.

    Args:
        step: the training step.
        ladder: decides.
        activity: is told what is being done.
        steps_per_epoch: of the run.
        tell: takes events.
    """

    def __init__(
        self,
        step: TrainingStep,
        ladder: Ladder,
        activity: Progress,
        *,
        steps_per_epoch: int,
        tell: Callable[[Event], None],
    ) -> None:
        self.ladder = ladder
        self._step = step
        self._activity = activity
        self._steps_per_epoch = steps_per_epoch
        self._tell = tell

    def examine(self) -> bool:
        """Read the verdict on the step before, while the weights are those with which it ran; act where it was refused.

        Returns:
            Whether the model computes otherwise from now on.

        Raises:
            RollBack, TrainingError: see `Ladder`.
        """
        verdict = self._step.guard.read()
        if verdict is None:
            return False
        if verdict.is_applied:
            self.ladder.applied()
            return False
        self._activity.void_step(verdict.step)
        with self._activity.within(Section.RECOVERY, step=verdict.step):
            finding = self._find_out(verdict)
            try:
                if verdict.is_finite:
                    skip = self.ladder.spike(verdict.step, verdict.reason)
                else:
                    skip = self.ladder.not_finite(
                        verdict.step, verdict.reason, finding.diagnosis, is_loss_scale=finding.is_loss_scale
                    )
            except Exception:
                self._tell_skipped(verdict, finding, Skip())
                raise
            if skip.fp32_module:
                self.compute_in_fp32(skip.fp32_module)
            self._tell_skipped(verdict, finding, skip)
        return bool(skip.fp32_module)

    def _find_out(self, verdict: Verdict[KeptStep]) -> _Finding:
        """Return what every rank can tell about a refused step, after running it again where that can help."""
        kept = verdict.kept
        can_be_run = not verdict.is_finite and self._step.parallel.can_run_alone
        mine = self._run_again(verdict) if can_be_run else None
        image_ids = [image_id for batch in kept.micro_batches for image_id in batch.image_ids]
        with self._activity.within(Section.AGREE):
            everywhere = self._step.parallel.world.gather((mine, image_ids))
        if not can_be_run:
            is_loss_scale = math.isfinite(verdict.loss) and not verdict.is_finite and kept.loss_scale.item() > 1
            return _Finding(image_ids=[i for _, ids in everywhere for i in ids], is_loss_scale=is_loss_scale)
        # A fault that does not come again has at most left its mark in a rank's losses.
        marks: list[list[str]] = [
            [one.where if one else "" for one, _ in everywhere],
            [one.loss_term if one else "" for one, _ in everywhere],
        ]
        rank = next((r for mark in marks for r, text in enumerate(mark) if text), 0)
        diagnosis, of_rank = everywhere[rank]
        return _Finding(
            rank=rank,
            diagnosis=diagnosis,
            image_ids=(diagnosis.image_ids if diagnosis else []) or of_rank,
            is_loss_scale=diagnosis is not None and diagnosis.is_loss_scale,
        )

    def _run_again(self, verdict: Verdict[KeptStep]) -> Diagnosis | None:
        """Return what running this rank's part of a step again shows; None when memory has no room for that."""
        kept, step = verdict.kept, self._step
        try:
            return diagnose(
                step.model,
                step.criterion,
                kept.micro_batches,
                totals=kept.totals,
                progress=kept.progress,
                precision=step.precision,
                device=step.device,
                loss_scale=kept.loss_scale.item(),
                reseed=lambda: step.reseed(verdict.step),
                seen_losses={name: value.item() for name, value in kept.losses.items()},
            )
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        release_memory(step.device)
        return None

    def _tell_skipped(self, verdict: Verdict[KeptStep], finding: _Finding, skip: Skip) -> None:
        diagnosis = finding.diagnosis
        self._tell(
            StepSkipped(
                step=verdict.step,
                epoch=verdict.step / self._steps_per_epoch,
                reason=verdict.reason if diagnosis is None else f"{verdict.reason}: {diagnosis.describe()}",
                image_ids=finding.image_ids,
                rank=finding.rank,
                module=diagnosis.module if diagnosis else "",
                dtype=diagnosis.dtype if diagnosis else "",
                loss_term=diagnosis.loss_term if diagnosis else "",
                is_reproducible=diagnosis.is_reproducible if diagnosis else None,
                action=skip.action,
            )
        )

    def compute_in_fp32(self, module: str) -> None:
        """Make a module of the model, and of its average, compute in fp32 from now on."""
        averages = [] if self._step.ema is None else [self._step.ema.model]
        for model in (self._step.model, *averages):
            compute_in_fp32(model, module)


def compute_in_fp32(model: nn.Module, name: str) -> None:
    """Make a module, and all in it, compute in fp32 also under autocast; what it returns stays fp32.

    Args:
        model: holds the module.
        name: its dotted path, or `WHOLE_MODEL`.
    """
    module = model if name == WHOLE_MODEL else model.get_submodule(name)
    forward = module.forward
    device_type = next(model.parameters()).device.type

    def in_fp32(*args: object, **kwargs: object) -> object:
        with torch.autocast(device_type, enabled=False):
            return forward(*map(_as_fp32, args), **{key: _as_fp32(value) for key, value in kwargs.items()})

    module.forward = in_fp32


def _as_fp32(value: object) -> object:
    if isinstance(value, torch.Tensor) and value.dtype in (torch.float16, torch.bfloat16):
        return value.float()
    if isinstance(value, list):
        return [_as_fp32(item) for item in value]
    if type(value) is tuple:
        return tuple(_as_fp32(item) for item in value)
    return value

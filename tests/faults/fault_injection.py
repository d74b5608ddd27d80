"""Faults made on purpose: numbers that are not finite, in a module's output or gradient, a weight, a box or a loss.

Each is undone when its `with` block ends. A fault "fires" in chosen forward passes of the model (counted from 0 since
it was injected; a micro-batch is one pass), only for a chosen image, or always.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from detronome.types import Batch, EffectiveBatch

LOW_PRECISION = (torch.bfloat16, torch.float16)


@dataclass(kw_only=True)
class ModuleFault:
    """A module that miscalculates."""

    module: str
    """Dotted path; empty for the model itself."""
    phase: Literal["forward", "backward"] = "forward"
    """What is spoilt: the first tensor of the output, or the gradient that the module hands back for it."""
    value: float = math.nan
    """Added to every number: one alone may be masked away or never read."""
    factor: float | None = None
    """Instead of adding `value`, multiply: 1e5 overflows in float16 and is finite in float32."""
    passes: Collection[int] | None = None
    """Forward passes in which it fires: `{0}` is a transient fault, None a persistent one."""
    image_id: int | None = None
    """Fires only when this image is there, and only in its row (everywhere where rows are not images)."""
    only_in_low_precision: bool = False
    """Fires only where the tensor is bfloat16 or float16."""
    num_fired: int = 0

    def spoil(self, x: Tensor, image_ids: list[int]) -> Tensor:
        """Return the tensor with the fault in it."""
        self.num_fired += 1
        spoilt = x + self.value if self.factor is None else x * self.factor
        if self.image_id is None or x.shape[:1] != (len(image_ids),):
            return spoilt
        is_hit = torch.tensor([image_id == self.image_id for image_id in image_ids], device=x.device)
        return torch.where(is_hit.view(-1, *(1,) * (x.dim() - 1)), spoilt, x)


class _SpoiltGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, spoil: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.spoil = spoil
        return x.clone()  # not a view: modules work on it in place

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.spoil(gradients[0]), None


@contextmanager
def injected(model: nn.Module, fault: ModuleFault) -> Iterator[ModuleFault]:
    """Let a module of the model have the fault. The model's third argument must be the targets."""
    number = -1
    image_ids: list[int] = []

    def begin(module: nn.Module, args: tuple[Any, ...]) -> None:
        nonlocal number, image_ids
        number += 1
        image_ids = [target.image_id for target in args[2]]

    def is_due(x: Tensor) -> bool:
        return (
            (fault.passes is None or number in fault.passes)
            and (fault.image_id is None or fault.image_id in image_ids)
            and (not fault.only_in_low_precision or x.dtype in LOW_PRECISION)
        )

    def change(x: Tensor) -> Tensor:
        if not is_due(x):
            return x
        images = list(image_ids)
        if fault.phase == "forward":
            return fault.spoil(x, images)
        return _SpoiltGradient.apply(x, lambda gradient: fault.spoil(gradient, images)) if x.requires_grad else x

    handles = [
        model.register_forward_pre_hook(begin),
        # First, so that hooks of others see the spoilt output.
        model.get_submodule(fault.module).register_forward_hook(
            lambda module, args, output: _change_first(output, change)[0], prepend=True
        ),
    ]
    try:
        yield fault
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def poisoned_loss(
    criterion: nn.Module, term: str, *, value: float = math.nan, passes: Collection[int] | None = None
) -> Iterator[None]:
    """Add a value to one loss term where it is computed, in the chosen calls of the criterion or always."""
    number = -1

    def change(module: nn.Module, args: object, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        nonlocal number
        number += 1
        is_due = term in losses and (passes is None or number in passes)
        return {**losses, term: losses[term] + value} if is_due else losses

    handle = criterion.register_forward_hook(change)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def poisoned_weight(model: nn.Module, name: str, *, value: float = math.nan) -> Iterator[None]:
    """Set one number of a weight or buffer."""
    tensor = (dict(model.named_parameters()) | dict(model.named_buffers()))[name].detach()
    index = (0,) * tensor.dim()
    before = tensor[index].clone()
    tensor[index] = value
    try:
        yield
    finally:
        tensor[index] = before


def with_poisoned_box(batch: EffectiveBatch, image_id: int, *, value: float = math.nan) -> EffectiveBatch:
    """Return the batch with one coordinate of the image's first box replaced."""

    def poisoned(part: Batch) -> Batch:
        targets = []
        for target in part.targets:
            if target.image_id == image_id:
                boxes = target.boxes_cxcywh.clone()
                boxes[0, 0] = value
                target = replace(target, boxes_cxcywh=boxes)
            targets.append(target)
        return replace(part, targets=tuple(targets))

    return EffectiveBatch(tuple(poisoned(part) for part in batch.parts))


def _change_first(value: Any, change: Callable[[Tensor], Tensor]) -> tuple[Any, bool]:
    """Return the value with its first floating-point tensor changed, and whether there was one."""
    if isinstance(value, Tensor):
        return (change(value), True) if value.is_floating_point() else (value, False)
    if isinstance(value, list | tuple):
        for i, item in enumerate(value):
            changed, is_done = _change_first(item, change)
            if is_done:
                return type(value)([*value[:i], changed, *value[i + 1 :]]), True
    elif is_dataclass(value) and not isinstance(value, type):
        for attribute in fields(value):
            changed, is_done = _change_first(getattr(value, attribute.name), change)
            if is_done:
                return replace(value, **{attribute.name: changed}), True
    return value, False

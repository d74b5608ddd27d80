"""Activation checkpointing: a part of a model keeps only its inputs, and computes the rest again in backward.

Costs about one more forward pass of that part (arXiv 1604.06174). Gradients, dropout's draws and BatchNorm's statistics
stay what they are without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

__all__ = ["CheckpointedSequential", "checkpointed", "is_computed_again"]

_Result = TypeVar("_Result")

_is_computed_again: ContextVar[bool] = ContextVar("_is_computed_again", default=False)


def checkpointed(
    run: Callable[..., _Result], *args: Tensor | None, enabled: bool, norms_in: Iterable[nn.Module] = ()
) -> _Result:
    """Return `run(*args)`; when `enabled`, without keeping what `run` computes on the way.

    Args:
        run: a module or function; its randomness must come from torch's generators, which are put back for the second
            run, and it must not change its arguments.
        args: kept for backward.
        enabled: False simply calls `run`, as does a pass without gradients.
        norms_in: the modules that `run` applies, if there may be BatchNorm in training mode among them.
    """
    if not (enabled and torch.is_grad_enabled()):
        return run(*args)
    if torch.compiler.is_compiling():
        # The compiler computes again what the gradient needs, and nothing beside it.
        return checkpoint(run, *args, use_reentrant=False)
    return checkpoint(run, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), _computing_again(norms_in)))


def is_computed_again() -> bool:
    """Return whether what runs now is the second run of a checkpointed part, in backward: for hooks on modules."""
    return _is_computed_again.get()


class CheckpointedSequential(nn.Sequential):
    """Modules that follow each other, checkpointed in groups of the square root of their number.

    With groups of n, as many outputs are kept as there are groups, and n modules' activations come back at a time in
    backward: the square root keeps the sum of both small.

    Args:
        modules: each takes and gives one tensor.
        checkpoint_activations: whether to.
    """

    def __init__(self, *modules: nn.Module, checkpoint_activations: bool) -> None:
        super().__init__(*modules)
        self.checkpoint_activations = checkpoint_activations

    def forward(self, x: Tensor) -> Tensor:
        modules = list(self)
        size = max(1, math.ceil(math.sqrt(len(modules))))
        for start in range(0, len(modules), size):
            group = modules[start : start + size]

            def run(x: Tensor, group: list[nn.Module] = group) -> Tensor:
                for module in group:
                    x = module(x)
                return x

            x = checkpointed(run, x, enabled=self.checkpoint_activations, norms_in=group)
        return x


@contextmanager
def _computing_again(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Let BatchNorm in training mode update copies of its statistics: the forward pass has updated them already."""
    norms = [
        norm
        for module in modules
        for norm in module.modules()
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.training
    ]
    kept = [(norm, name, buffer) for norm in norms for name, buffer in norm.named_buffers(recurse=False)]
    for norm, name, buffer in kept:
        setattr(norm, name, buffer.clone())
    token = _is_computed_again.set(True)
    try:
        yield
    finally:
        _is_computed_again.reset(token)
        for norm, name, buffer in kept:
            setattr(norm, name, buffer)

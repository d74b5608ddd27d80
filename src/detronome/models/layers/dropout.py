"""Dropout with a mask that is cheap to draw on a CPU.

Shape letters: `*S` any shape.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["Dropout", "dropout"]

_LANES = 4
"""16-bit numbers in one 64-bit draw."""


class Dropout(nn.Module):
    """Zeroes each value with probability `p` in training and scales up the rest; see `dropout`."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
        return dropout(x, self.p) if self.training else x

    def extra_repr(self) -> str:
        return f"p={self.p}"


def dropout(x: Float[Tensor, "*S"], p: float) -> Float[Tensor, "*S"]:
    """Zero each value with probability `p` and divide the others by `1 - p`.

    torch draws one float a value, which took about a sixteenth of a DETR training step on a CPU. Here one 64-bit draw
    of torch's generator decides four values, so `p` is rounded to 1/65536. Other devices, and compiled graphs, use
    torch's own.
    """
    if p == 0.0:
        return x
    if p == 1.0 or x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, p)
    return _CpuDropout.apply(x, p)


class _CpuDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        dropped = min(round(p * 2**16), 2**16 - 1)
        draws = torch.empty(-(-x.numel() // _LANES), dtype=torch.int64).random_(-(2**63), None)
        keep = (draws.view(torch.int16)[: x.numel()] >= dropped - 2**15).view(x.shape)
        ctx.scale = 2**16 / (2**16 - dropped)
        ctx.save_for_backward(keep)
        return keep.to(x.dtype).mul_(x).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (keep,) = ctx.saved_tensors
        return keep.to(grads[0].dtype).mul_(grads[0]).mul_(ctx.scale), None

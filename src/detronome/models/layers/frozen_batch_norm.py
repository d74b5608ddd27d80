"""Batch normalisation whose statistics and affine parameters never change.

Shape letters: `B` batch, `C` channels, `H W` height and width.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["FrozenBatchNorm2d"]


class FrozenBatchNorm2d(nn.Module):
    """A fixed scale and shift per channel, stored under BatchNorm's names so that its weights load.

    Args:
        num_channels: channels of the input.
        eps: added to the variance.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_channels: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_channels))
        self.register_buffer("bias", torch.zeros(num_channels))
        self.register_buffer("running_mean", torch.zeros(num_channels))
        self.register_buffer("running_var", torch.ones(num_channels))

    def scale_and_shift(self) -> tuple[Float[Tensor, " C"], Float[Tensor, " C"]]:
        """Return what the layer multiplies by and adds: a convolution before it can absorb both."""
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        return scale, torch.addcmul(self.bias, self.running_mean, scale, value=-1)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Normalise in the input's own dtype: a float32 buffer would widen bfloat16 activations and keep them so."""
        scale, shift = (v.to(x.dtype)[:, None, None] for v in self.scale_and_shift())
        return torch.addcmul(shift, x, scale)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.pop(prefix + "num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"

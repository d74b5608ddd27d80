"""A convolution, its BatchNorm and an activation: the brick of convolutional backbones and encoders.

Shape letters: `B` batch, `C D` channels, `H W` and `h w` height and width before and after.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from detronome.models.layers.frozen_batch_norm import FrozenBatchNorm2d
from detronome.models.layers.packed import PackedConv2d
from detronome.ops.onednn import Activation

__all__ = ["ConvNorm", "conv_norm", "folded"]


class ConvNorm(nn.Module):
    """Convolution without bias, norm, activation; padded so that stride 1 keeps the size of odd kernels.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        kernel_size: side of the kernel.
        stride: of the convolution.
        groups: of the convolution; `in_channels` makes it depthwise.
        activation: after the norm.
        norm: `nn.BatchNorm2d`, or `FrozenBatchNorm2d`, which costs no pass of its own.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        groups: int = 1,
        activation: Activation = "none",
        norm: type[nn.Module] = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, (kernel_size - 1) // 2, groups=groups, bias=False
        )
        self.norm = norm(out_channels)
        self.activation = activation

    def forward(
        self, x: Float[Tensor, "B C H W"], residual: Float[Tensor, "B D h w"] | None = None
    ) -> Float[Tensor, "B D h w"]:
        """Return the map; `residual` is a shortcut, added before the activation."""
        return conv_norm(x, self.conv, self.norm, self.activation, residual)

    def fused(self) -> tuple[Float[Tensor, "D C k k"], Float[Tensor, " D"]]:
        """Return kernel and bias of the convolution that does what this one and its norm do in evaluation."""
        return folded(self.conv, self.norm)

    def extra_repr(self) -> str:
        return f"activation={self.activation}"


def conv_norm(
    x: Float[Tensor, "B C H W"],
    conv: nn.Module,
    norm: nn.Module | None,
    activation: Activation = "none",
    residual: Float[Tensor, "B D h w"] | None = None,
) -> Float[Tensor, "B D h w"]:
    """Apply a convolution, its norm, a sum and an activation.

    A frozen norm is folded into the weights: it then costs no pass over the activations, forward or backward, and keeps
    none of them for the gradient.

    Args:
        x: the input.
        conv: the convolution.
        norm: after it; None or `nn.Identity` where it is part of the convolution already.
        activation: applied last.
        residual: a shortcut, added before the activation.
    """
    if isinstance(conv, PackedConv2d) and isinstance(norm, nn.Identity | None):
        return conv(x, activation=activation, residual=residual)
    if isinstance(norm, FrozenBatchNorm2d):
        assert isinstance(conv, nn.Conv2d)
        scale, shift = norm.scale_and_shift()
        weight = conv.weight * scale[:, None, None, None]
        x = F.conv2d(x, weight, shift, conv.stride, conv.padding, conv.dilation, conv.groups)
    else:
        x = conv(x) if norm is None else norm(conv(x))
    if residual is not None:
        x = x.add_(residual)
    if activation == "relu":
        return F.relu(x, inplace=True)
    return F.silu(x) if activation == "silu" else x


def folded(conv: nn.Module, norm: nn.Module) -> tuple[Float[Tensor, "D C k k"], Float[Tensor, " D"]]:
    """Return kernel and bias of the convolution that does what one without bias and its norm do in evaluation."""
    assert isinstance(conv, nn.Conv2d) and conv.bias is None
    assert isinstance(norm, nn.BatchNorm2d | FrozenBatchNorm2d)
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return conv.weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale

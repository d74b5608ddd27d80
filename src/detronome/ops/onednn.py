"""Convolutions and linear layers by oneDNN, with weights laid out for it beforehand: prediction on x86 CPUs.

For one image on one thread torch takes matrix products and 1x1 convolutions to MKL, which keeps to AVX2 on AMD
processors; oneDNN uses AVX-512 and reaches twice the speed. It also applies an activation and adds a shortcut while the
result is still in the cache. The operators are those that torch.compile emits for CPUs. They are not public, so
`is_available` tries them before anything relies on them. They have no gradient.

Shape letters: `B` batch, `C D` channels, `H W` and `h w` height and width before and after, `*S` any shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

__all__ = ["Activation", "ConvGeometry", "convolve", "is_available", "linear", "pack_conv", "pack_linear"]

Activation = Literal["none", "relu", "silu"]
_ONEDNN_NAMES: dict[Activation, str] = {"none": "none", "relu": "relu", "silu": "swish"}


@dataclass(frozen=True, kw_only=True)
class ConvGeometry:
    """How a two-dimensional convolution moves over its input."""

    stride: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] = (0, 0)
    dilation: tuple[int, ...] = (1, 1)
    groups: int = 1


@cache
def is_available(dtype: torch.dtype) -> bool:
    """Return whether this machine computes these operators in `dtype`, and rightly."""
    try:
        if not torch.backends.mkldnn.is_available():
            return False
        if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False  # emulated: slower than float32
        return dtype in (torch.float32, torch.bfloat16) and _agrees(dtype)
    except (AttributeError, RuntimeError, TypeError):  # another build or version of torch
        return False


def pack_conv(weight: Float[Tensor, "D _ k_h k_w"], geometry: ConvGeometry, input_shape: Sequence[int]) -> Tensor:
    """Return a kernel laid out for inputs of a shape. It is right for every other shape, but slow for some."""
    # Typed in torch's stubs by position only, and not in every version.
    reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
    packed: Tensor = reorder(
        weight.to_mkldnn(), geometry.padding, geometry.stride, geometry.dilation, geometry.groups, list(input_shape)
    )
    return packed


def convolve(
    x: Float[Tensor, "B C H W"],
    packed: Tensor,
    bias: Float[Tensor, " D"],
    geometry: ConvGeometry,
    *,
    activation: Activation = "none",
    residual: Float[Tensor, "B D h w"] | None = None,
) -> Float[Tensor, "B D h w"]:
    """Return the activation of a convolution, or of its sum with a shortcut; channels last.

    Args:
        x: channels last, of the kernel's dtype, as the others.
        packed: the kernel, see `pack_conv`.
        bias: of each channel.
        geometry: of the convolution.
        activation: applied last.
        residual: added before the activation; `relu` and `none` only.
    """
    where = (geometry.padding, geometry.stride, geometry.dilation, geometry.groups)
    name = _ONEDNN_NAMES[activation]
    ops: Any = torch.ops.mkldnn
    result: Tensor
    if residual is None:
        result = ops._convolution_pointwise(x, packed, bias, *where, name, [], "")
    else:
        unary = None if activation == "none" else name
        result = ops._convolution_pointwise.binary(x, residual, packed, bias, *where, "add", 1.0, unary, [], "")
    return result


def pack_linear(weight: Float[Tensor, "D C"]) -> Tensor:
    """Return the weight of a linear layer laid out for any number of rows."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
    return packed


def linear(x: Float[Tensor, "*S C"], packed: Tensor, bias: Float[Tensor, " D"] | None) -> Float[Tensor, "*S D"]:
    """Return `x` times a weight, see `pack_linear`, plus the bias."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return result


@torch.inference_mode()
def _agrees(dtype: torch.dtype) -> bool:
    """Compare the operators with torch's own on a few numbers."""
    x = torch.linspace(-1, 1, 2 * 8 * 5 * 6).view(2, 8, 5, 6).to(dtype, memory_format=torch.channels_last)
    kernel = torch.linspace(-1, 1, 8 * 8 * 9).view(8, 8, 3, 3).to(dtype)
    weight = kernel[:, :, 0, 0].contiguous()
    bias = torch.linspace(-1, 1, 8).to(dtype)
    geometry = ConvGeometry(padding=(1, 1))
    packed = pack_conv(kernel, geometry, x.shape)
    expected = F.conv2d(x.float(), kernel.float(), bias.float(), padding=1)
    rows = x.permute(0, 2, 3, 1)
    pairs = [
        (convolve(x, packed, bias, geometry), expected),
        (convolve(x, packed, bias, geometry, activation="silu"), F.silu(expected)),
        (convolve(x, packed, bias, geometry, activation="relu", residual=x), F.relu(expected + x)),
        (linear(rows, pack_linear(weight), bias), F.linear(rows.float(), weight.float(), bias.float())),
    ]
    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    return all(torch.allclose(ours.float(), theirs.float(), rtol=tolerance, atol=tolerance) for ours, theirs in pairs)

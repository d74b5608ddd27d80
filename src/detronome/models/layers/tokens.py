"""From a feature map to the tokens of a transformer.

Shape letters: `B` batch, `D` channels, `H W` height and width, `S` cells.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["tokens_of"]


def tokens_of(feature_map: Float[Tensor, "B D H W"]) -> Float[Tensor, "B S D"]:
    """Return the cells of a map, row by row.

    The gradient comes back with the channels side by side. BatchNorm's CPU kernel misreads that for a batch of one
    whose map lies channel by channel, without a word (torch 2.15), so there it is put in order first.
    """
    if (
        feature_map.shape[0] == 1
        and feature_map.device.type == "cpu"
        and feature_map.requires_grad
        and feature_map.is_contiguous()
        and not torch.compiler.is_compiling()
    ):
        feature_map.register_hook(lambda gradient: gradient.contiguous())
    return feature_map.flatten(2).transpose(1, 2)

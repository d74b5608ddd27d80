"""Which classic DETR a state dict belongs to: shapes say what they can, the file or the preset the rest."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from detronome.config.schema import DetrConfig
from detronome.errors import CheckpointError, Problem
from detronome.weights.detr_sayings import Sayings
from detronome.weights.labels import MAX_CLASSES

__all__ = ["detr_config"]

_BACKBONES: Mapping[tuple[bool, tuple[int, ...]], Any] = {
    (False, (2, 2, 2, 2)): "resnet18",
    (False, (3, 4, 6, 3)): "resnet34",
    (True, (3, 4, 6, 3)): "resnet50",
    (True, (3, 4, 23, 3)): "resnet101",
}
"""By whether blocks are bottlenecks, and the number of blocks in each stage."""
_BLOCK = re.compile(r"backbone\.0\.body\.layer([1-4])\.(\d+)\.")
_LAYER = re.compile(r"transformer\.(encoder|decoder)\.layers\.(\d+)\.")
_MAX_LAYERS = 64


def detr_config(
    state: Mapping[str, Tensor], sayings: Sayings, *, base: DetrConfig, where: str
) -> tuple[DetrConfig, int, list[str]]:
    """Return (the network, its classes without no-object, what had to be assumed).

    Where a tensor that would say something is missing, `base` stands in, so that the report can name all that is.

    Args:
        state: under our keys; those of a detector with masks begin with `detr.`.
        sayings: what shapes do not show.
        base: for what nobody says.
        where: the file, for messages.

    Raises:
        CheckpointError: sizes that no model of this family has; all of them at once.
    """
    problems: list[Problem] = []
    mask_head = any(key.startswith(("mask_head.", "bbox_attention.")) for key in state)
    if mask_head:
        state = {key.removeprefix("detr."): value for key, value in state.items()}

    def size(key: str, dimension: int, default: int) -> int:
        tensor = state.get(key)
        return tensor.shape[dimension] if tensor is not None and tensor.dim() > dimension else default

    hidden_dim = size("class_embed.weight", 1, base.hidden_dim)
    num_classes = size("class_embed.weight", 0, 92) - 1
    depth = {part: _num_layers(state, part) for part in ("encoder", "decoder")}
    assumed: list[str] = []
    dilation = sayings.dilation
    if dilation is None:
        dilation = base.dilation
        kind = "with" if dilation else "without"
        assumed.append(f"{kind} a dilated last stage (DC5), which weights do not show")
    num_heads = sayings.num_heads
    if num_heads is None:
        num_heads = base.num_heads
        assumed.append(f"{num_heads} heads of attention, which weights do not show")
    config = replace(
        base,
        backbone=_backbone(state, problems, where) or base.backbone,
        dilation=dilation,
        hidden_dim=hidden_dim,
        num_heads=num_heads,
        ffn_dim=size("transformer.decoder.layers.0.linear1.weight", 0, base.ffn_dim),
        num_encoder_layers=depth["encoder"],
        num_decoder_layers=depth["decoder"],
        num_queries=size("query_embed.weight", 0, base.num_queries),
        dropout=base.dropout if sayings.dropout is None else sayings.dropout,
        pre_norm="transformer.encoder.norm.weight" in state or sayings.pre_norm is True,
        mask_head=mask_head,
    )
    checks = (
        (1 <= num_classes <= MAX_CLASSES, f"{num_classes:,} classes"),
        (config.num_queries >= 1, f"{config.num_queries} queries"),
        (config.ffn_dim >= 1, f"feed-forward blocks of {config.ffn_dim} channels"),
        (hidden_dim >= 4 and hidden_dim % 4 == 0, f"tokens of {hidden_dim} channels, which is no multiple of 4"),
        (num_heads >= 1 and hidden_dim % max(num_heads, 1) == 0, f"{num_heads} heads for {hidden_dim} channels"),
        (1 <= depth["decoder"] <= _MAX_LAYERS, f"{depth['decoder']} decoder layers"),
        (depth["encoder"] <= _MAX_LAYERS, f"{depth['encoder']} encoder layers"),
        (
            not mask_head or (hidden_dim % 128 == 0 and num_heads % 8 == 0),
            f"masks with {hidden_dim} channels and {num_heads} heads",
        ),
    )
    problems += [
        Problem(what=f"no DETR has {what}", where=where, fix="name a file with the weights of a DETR")
        for is_sound, what in checks
        if not is_sound
    ]
    if problems:
        raise CheckpointError(problems)
    return config, num_classes, assumed


def _num_layers(state: Mapping[str, Tensor], part: str) -> int:
    """Count layers that have tensors; a number left out shows in the report."""
    return len({match[2] for key in state if (match := _LAYER.match(key)) and match[1] == part})


def _backbone(state: Mapping[str, Tensor], problems: list[Problem], where: str) -> Any:
    blocks = {(match[1], match[2]) for key in state if (match := _BLOCK.match(key))}
    if not blocks:
        return None
    depths = tuple(sum(1 for stage, _ in blocks if stage == wanted) for wanted in "1234")
    is_bottleneck = any(".conv3.weight" in key for key in state)
    backbone = _BACKBONES.get((is_bottleneck, depths))
    if backbone is None:
        kind = "bottleneck" if is_bottleneck else "basic"
        shown = ", ".join(map(str, depths))
        problems.append(
            Problem(
                what=f"the backbone is no ResNet-18, 34, 50 or 101: its stages have {shown} {kind} blocks",
                where=where,
                fix="these weights need another backbone than this version has; or the file is incomplete",
            )
        )
    return backbone

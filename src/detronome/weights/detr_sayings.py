"""What is said of a classic DETR where its weights' shapes say nothing: by config.json, or by the options it was
trained with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from detronome.errors import CheckpointError, Problem
from detronome.weights.hub_settings import other_settings

__all__ = ["Sayings", "sayings_of_arguments", "sayings_of_hub"]

_OURS: Mapping[str, object] = {
    "position_embedding_type": "sine",
    "activation_function": "relu",
    "num_channels": 3,
    "backbone_config.downsample_in_bottleneck": False,
    "backbone_config.downsample_in_first_stage": False,
    "backbone_config.hidden_act": "relu",
}


@dataclass(frozen=True, kw_only=True)
class Sayings:
    """What is known of a network beside its shapes; None where nothing is said."""

    num_heads: int | None = None
    dilation: bool | None = None
    dropout: float | None = None
    pre_norm: bool | None = None


def sayings_of_arguments(arguments: Mapping[str, Any]) -> Sayings:
    """Return what the reference's own options say; they may be anything, and shapes are believed before them."""

    def said(name: str, kind: type) -> Any:
        value = arguments.get(name)
        return value if type(value) is kind else None

    dropout = said("dropout", float)
    return Sayings(
        num_heads=said("nheads", int),
        dilation=said("dilation", bool),
        dropout=dropout if dropout is not None and 0 <= dropout < 1 else None,
        pre_norm=said("pre_norm", bool),
    )


def sayings_of_hub(config: Mapping[str, Any], *, where: str) -> Sayings:
    """Return what a config.json of DETR says; refuse what this program would compute differently."""
    problems = []

    def read(name: str, default: Any, *kinds: type, below: int = 2**31) -> Any:
        value = default if config.get(name) is None else config[name]  # transformers writes null for false
        if type(value) in kinds and 0 <= value < below:
            return value
        problems.append(
            Problem(
                what=f"{name} is {ascii(value)[:80]}, which makes no sense",
                where=where,
                fix=f"leave it out, or give e.g. {default!r}",
            )
        )
        return default

    heads = read("encoder_attention_heads", 8, int)
    dilation = read("dilation", False, bool)
    dropout = float(read("dropout", 0.1, float, int, below=1))
    problems += other_settings(config, {"decoder_attention_heads": heads, **_OURS}, where=where)
    backbone = config.get("backbone_config")
    if isinstance(backbone, Mapping) and backbone.get("output_stride") == 16:
        dilation = True
    if problems:
        raise CheckpointError(problems)
    return Sayings(num_heads=heads, dilation=dilation, dropout=dropout)

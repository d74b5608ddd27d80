"""Whose weights these are: the family and the program that named their keys, from config.json or from the keys."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from detronome.weights.names import detr, dfine, rtdetr

__all__ = ["MODEL_TYPES", "Origin", "origin_of_keys", "renamed"]

Family = Literal["detr", "rtdetr", "dfine"]

MODEL_TYPES: Mapping[str, Family] = {
    "detr": "detr",
    "rt_detr": "rtdetr",
    "rt_detr_v2": "rtdetr",
    "d_fine": "dfine",
}
"""Families by the `model_type` of a config.json."""


@dataclass(frozen=True)
class Origin:
    """What a state dict is."""

    family: Family
    named_by: Literal["official", "transformers"]


_Table = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


def renamed(state: Mapping[str, Tensor], origin: Origin) -> dict[str, Tensor]:
    """Return weights under our keys; what has no name among them keeps its own."""
    return _tables()[origin](state)


def _tables() -> dict[Origin, _Table]:
    return {
        Origin("detr", "official"): detr.from_official,
        Origin("detr", "transformers"): detr.from_transformers,
        Origin("rtdetr", "official"): rtdetr.from_official,
        Origin("rtdetr", "transformers"): rtdetr.from_transformers,
        Origin("dfine", "official"): dfine.from_official,
        Origin("dfine", "transformers"): dfine.from_transformers,
    }


def origin_of_keys(keys: Iterable[str]) -> Origin | None:
    """Return what keys alone show, or None where they are of no family that is known."""
    names = list(keys)

    def have(*fragments: str) -> bool:
        return any(fragment in name for name in names for fragment in fragments)

    if have("query_position_embeddings.", "class_labels_classifier.", "bbox_predictor."):
        return Origin("detr", "transformers")
    if have("transformer.decoder.layers.", "transformer.encoder.layers."):
        return Origin("detr", "official")
    family: Family = "dfine" if have("lqe_layers.", "pre_bbox_head.") else "rtdetr"
    if have("decoder.dec_score_head.", "decoder.dec_bbox_head.", "decoder.enc_score_head."):
        return Origin(family, "official")
    if have("model.decoder.class_embed.", "model.enc_score_head.", "model.encoder_input_proj."):
        return Origin(family, "transformers")
    return None

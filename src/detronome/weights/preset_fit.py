"""Which preset's network weights belong to, by trying: names and shapes of each are compared, nothing is allocated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from detronome.config.presets import PRESETS
from detronome.config.schema import DetrConfig, ModelConfig, NanoConfig, RunConfig, WithPretrainedBackbone
from detronome.errors import CheckpointError, Problem
from detronome.models.build import build_model
from detronome.weights.coco import COCO80
from detronome.weights.fit import misfits
from detronome.weights.hub_settings import other_settings
from detronome.weights.labels import MAX_CLASSES

__all__ = ["expected_weights", "fitting_preset"]

_OURS: Mapping[str, object] = {
    "encoder_attention_heads": 8,
    "decoder_attention_heads": 8,
    "encoder_activation_function": "gelu",
    "activation_function": "silu",
    "decoder_activation_function": "relu",
    "normalize_before": False,
    "learn_initial_query": False,
    "decoder_offset_scale": 0.5,
    "positional_encoding_temperature": 10000,
    "eval_idx": -1,
}


def fitting_preset(
    state: Mapping[str, Tensor], *, family: str, base: RunConfig | None, hub_config: Mapping[str, object], where: str
) -> tuple[RunConfig, int]:
    """Return (configuration, classes) of a family whose networks come in a few sizes: that which fits best.

    Args:
        state: under our keys.
        family: of the presets to look at.
        base: the only one to look at, if given.
        hub_config: the config.json beside the weights; empty where there is none.
        where: the file, for messages.

    Raises:
        CheckpointError: classes or queries that no detector has, or settings that make it another network.
    """
    problems = other_settings(hub_config, _OURS, where=where)
    num_queries = hub_config.get("num_queries")
    head = state.get("decoder.enc_score_head.weight")
    num_classes = head.shape[0] if head is not None and head.dim() == 2 else len(COCO80)
    for count, of_what in ((num_classes, "classes"), (num_queries, "queries")):
        if count is not None and (type(count) is not int or not 1 <= count <= MAX_CLASSES):
            problems.append(
                Problem(what=f"no detector has {ascii(count)[:40]} {of_what}", where=where, fix="name another file")
            )
    if problems:
        raise CheckpointError(problems)
    candidates = [base] if base else [p() for p in PRESETS.values() if p().model.family == family]
    best: tuple[int, RunConfig] | None = None
    for candidate in candidates:
        model = candidate.model
        assert not isinstance(model, DetrConfig | NanoConfig)
        if isinstance(num_queries, int):
            model = replace(model, num_queries=num_queries)
        if hub_config.get("decoder_method") == "discrete":
            model = replace(model, sampling="discrete")
        wrong = sum(map(len, misfits(state, expected_weights(model, num_classes)).values()))
        if best is None or wrong < best[0]:
            best = wrong, replace(candidate, model=model)
    assert best is not None, "every family has a preset"
    return best[1], num_classes


def expected_weights(model: ModelConfig, num_classes: int) -> dict[str, Tensor]:
    """Return names, shapes and types of a model's weights; nothing is allocated."""
    if isinstance(model, WithPretrainedBackbone):
        model = replace(model, backbone_weights="none")
    with torch.device("meta"):
        return build_model(model, num_classes).state_dict()

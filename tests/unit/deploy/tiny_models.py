"""A small untrained detector of each family, and what tests of their forms need beside it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from detronome.config.presets import preset
from detronome.config.schema import DetrConfig, DFineConfig, NanoConfig, RtDetrConfig, RunConfig
from detronome.models.build import build_model
from detronome.models.detector import Detector
from detronome.models.layers.frozen_batch_norm import FrozenBatchNorm2d
from detronome.types import Categories, Detections

CATEGORIES = Categories((1, 2, 3), ("a", "b", "c"), (True, True, False))

_DETR = DetrConfig(
    backbone="resnet18",
    backbone_weights="none",
    hidden_dim=32,
    num_heads=2,
    ffn_dim=32,
    num_encoder_layers=2,
    num_decoder_layers=2,
    num_queries=6,
)
_MODELS = {
    "detr": ("detr-r18", _DETR),
    "detr-dc5": (
        "detr-r18",
        replace(_DETR, dilation=True, pre_norm=True, backbone_norm="trainable", frozen_stages=0, num_encoder_layers=0),
    ),
    "panoptic": ("detr-r50-panoptic", replace(_DETR, mask_head=True, hidden_dim=128, num_heads=8)),
    "nano": (
        "nano",
        NanoConfig(
            widths=(16, 16, 32),
            depths=(1, 2, 1),
            hidden_dim=16,
            num_heads=2,
            num_points=2,
            ffn_dim=16,
            num_queries=6,
        ),
    ),
    "rtdetr": (
        "rtdetr-v2-s",
        RtDetrConfig(
            backbone="resnet18vd",
            backbone_weights="none",
            encoder_dim=32,
            encoder_ffn_dim=32,
            encoder_expansion=0.5,
            hidden_dim=16,
            num_heads=2,
            ffn_dim=16,
            num_decoder_layers=2,
            num_queries=8,
        ),
    ),
    "dfine": (
        "dfine-s",
        DFineConfig(
            backbone="hgnetv2_b0",
            backbone_affine=True,
            backbone_weights="none",
            encoder_dim=32,
            encoder_ffn_dim=32,
            encoder_expansion=0.5,
            encoder_depth=0.34,
            hidden_dim=32,
            num_heads=2,
            ffn_dim=16,
            num_decoder_layers=2,
            num_queries=8,
        ),
    ),
}
FAMILIES = tuple(_MODELS)


def config_of(family: str, *, side: int = 64, buckets: tuple[str, ...] = ()) -> RunConfig:
    """Return the run of a small model on images of about `side` pixels."""
    name, model = _MODELS[family]
    config = preset(name)
    return replace(
        config,
        model=model,
        augment=replace(config.augment, sizes=(side,), max_size=2 * side, eval_size=side, eval_max_size=2 * side),
        data=replace(config.data, buckets=buckets),
        eval=replace(config.eval, panoptic_score=0.3),
    )


@cache
def model_of(family: str) -> Detector:
    """Return the model in eval mode; its norms and heads are as telling as trained ones."""
    torch.manual_seed(0)
    model = build_model(_MODELS[family][1], len(CATEGORIES))
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d):
                for value, low, high in zip(
                    _norm_of(module), (0.5, -0.3, -0.3, 0.5), (1.5, 0.3, 0.3, 2.0), strict=True
                ):
                    value.uniform_(low, high)
            if isinstance(module, nn.Linear) and any(part.endswith(("embed", "head")) for part in name.split(".")):
                module.weight.normal_(0, 1.5 * module.in_features**-0.5)
            if isinstance(module, nn.Embedding):
                module.weight.normal_(0, 3)  # else all queries have nearly the same mask
    return model.eval()


def _norm_of(norm: nn.BatchNorm2d | FrozenBatchNorm2d) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    assert norm.running_mean is not None and norm.running_var is not None
    return norm.weight, norm.bias, norm.running_mean, norm.running_var


def picture(height: int, width: int, seed: int) -> np.ndarray:
    """Return coarse noise: what convolutions of any stride see."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return np.ascontiguousarray(coarse.repeat(8, axis=0).repeat(8, axis=1)[:height, :width])


def assert_close(found: Detections, expected: Detections, *, score: float = 1e-4, pixels: float = 0.05) -> None:
    """Compare detections up to rounding: those of nearly equal scores may change places, or take the last place."""
    np.testing.assert_allclose(found.scores, expected.scores, atol=score)
    for ours, theirs in ((found, expected), (expected, found)):
        last = ours.scores.min(initial=1.0)
        for n in np.flatnonzero(ours.scores > last + 2 * score):
            is_it = (
                (theirs.labels == ours.labels[n])
                & (abs(theirs.scores - ours.scores[n]) <= 2 * score)
                & (abs(theirs.boxes_xyxy - ours.boxes_xyxy[n]).max(axis=1) <= pixels)
            )
            assert is_it.any(), (n, ours.scores[n], ours.boxes_xyxy[n])
    assert (found.panoptic is None) == (expected.panoptic is None)
    if found.panoptic is not None and expected.panoptic is not None:
        is_same = _category_map(found) == _category_map(expected)
        assert is_same.mean() > 0.97, is_same.mean()  # pixels where two masks are equally likely


def _category_map(found: Detections) -> np.ndarray:
    assert found.panoptic is not None
    categories = {0: 0} | {segment.id: segment.category_id for segment in found.panoptic.segments}
    return np.vectorize(categories.__getitem__)(found.panoptic.segment_ids)

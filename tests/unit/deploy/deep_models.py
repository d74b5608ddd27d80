"""Tiny models of every family, several decoder layers deep, whose layers say different things."""

from dataclasses import replace
from functools import cache

import torch

from detronome.config.convert import to_dict
from detronome.config.presets import preset
from detronome.config.schema import DetrConfig, DFineConfig, ModelConfig, NanoConfig, RtDetrConfig, RunConfig
from detronome.engine.checkpoint import Checkpoint
from detronome.engine.state import TrainingState
from detronome.models.build import build_model
from detronome.types import Categories

CATEGORIES = Categories((1, 2, 5), ("a", "b", "c"))
MODELS: dict[str, tuple[str, ModelConfig]] = {
    "detr": (
        "detr-r18",
        DetrConfig(
            backbone="resnet18",
            backbone_weights="none",
            backbone_norm="trainable",
            frozen_stages=0,
            hidden_dim=16,
            num_heads=2,
            ffn_dim=16,
            num_encoder_layers=1,
            num_decoder_layers=3,
            num_queries=6,
        ),
    ),
    "panoptic": (
        "detr-r50-panoptic",
        DetrConfig(
            backbone="resnet18",
            backbone_weights="none",
            backbone_norm="trainable",
            frozen_stages=0,
            hidden_dim=128,
            num_heads=8,
            ffn_dim=16,
            num_encoder_layers=1,
            num_decoder_layers=2,
            num_queries=4,
            mask_head=True,
        ),
    ),
    "nano": (
        "nano",
        NanoConfig(
            widths=(16, 16, 32),
            depths=(1, 1, 1),
            hidden_dim=16,
            num_heads=2,
            num_points=2,
            ffn_dim=16,
            num_queries=9,
            num_decoder_layers=3,
        ),
    ),
    "rtdetr": (
        "rtdetr-v2-s",
        RtDetrConfig(
            backbone="resnet18vd",
            backbone_weights="none",
            backbone_norm="trainable",
            frozen_stages=0,
            encoder_dim=32,
            encoder_ffn_dim=32,
            encoder_expansion=0.5,
            hidden_dim=32,
            num_heads=2,
            ffn_dim=32,
            num_decoder_layers=3,
            num_queries=9,
        ),
    ),
    "dfine": (
        "dfine-n",
        DFineConfig(
            backbone="hgnetv2_b0",
            backbone_affine=True,
            backbone_weights="none",
            backbone_norm="trainable",
            frozen_stages=0,
            encoder_dim=32,
            encoder_ffn_dim=32,
            encoder_expansion=0.5,
            encoder_depth=0.34,
            hidden_dim=32,
            num_heads=2,
            ffn_dim=32,
            num_points=(2, 2),
            num_decoder_layers=3,
            num_queries=9,
        ),
    ),
}


def config_of(family: str, **augment: object) -> RunConfig:
    name, model = MODELS[family]
    config = preset(name)
    return replace(config, model=model, augment=replace(config.augment, **augment))  # type: ignore[arg-type]


@cache
def whole(family: str, image_size: int = 0) -> Checkpoint:
    """Return a model; with a size, for images of that many pixels."""
    torch.manual_seed(0)
    config = config_of(family)
    if image_size:
        config = config_of(
            family, sizes=(image_size,), max_size=2 * image_size, eval_size=image_size, eval_max_size=2 * image_size
        )
    model = build_model(config.model, len(CATEGORIES))
    with torch.no_grad():  # heads begin at zero, where all layers would say the same
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    state = TrainingState(step=40, training_s=2.0, best_metrics={"AP": 0.5})
    return Checkpoint(config=to_dict(config), categories=CATEGORIES, state=state, model=model.state_dict())

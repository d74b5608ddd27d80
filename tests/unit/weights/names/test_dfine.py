"""The name table of D-FINE: what the authors and transformers call its weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from detronome.config.schema import DFineConfig
from detronome.models.build import build_model
from detronome.weights.names.dfine import from_official, from_transformers

SMALL = DFineConfig(
    backbone="hgnetv2_b0",
    backbone_weights="none",
    backbone_affine=True,
    encoder_dim=32,
    encoder_ffn_dim=16,
    hidden_dim=16,
    num_heads=2,
    ffn_dim=16,
    num_decoder_layers=2,
)


@pytest.fixture(scope="module")
def own() -> dict[str, Tensor]:
    return build_model(SMALL, 3).state_dict()


def test_nothing_is_nothing() -> None:
    assert from_official({}) == from_transformers({}) == {}


def test_the_authors_have_our_names(own: dict[str, Tensor]) -> None:
    """And constants twice, of which those outside count, and some that follow from the configuration."""
    twice = {f"decoder.decoder.{name}": torch.full((1,), -1.0) for name in ("up", "reg_scale")}
    constants = {"decoder.anchors": torch.zeros(1), "decoder.valid_mask": torch.zeros(1)}
    constants["decoder.decoder.layers.0.cross_attn.num_points_scale"] = torch.zeros(1)
    for prefix in ("", "module."):
        loaded = from_official({f"{prefix}{key}": value for key, value in (own | twice | constants).items()})
        assert set(loaded) == {key for key in own if not key.endswith("num_batches_tracked")}
        assert all(loaded[key] is own[key] for key in loaded)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("model.decoder.reg_scale", "decoder.reg_scale"),
        ("model.decoder.up", "decoder.up"),
        ("model.decoder.pre_bbox_head.layers.2.bias", "decoder.pre_bbox_head.layers.2.bias"),
        (
            "model.decoder.lqe_layers.1.reg_conf.layers.0.weight",
            "decoder.decoder.lqe_layers.1.reg_conf.layers.0.weight",
        ),
        ("model.decoder.layers.0.gateway.gate.weight", "decoder.decoder.layers.0.gateway.gate.weight"),
        ("model.decoder.layers.0.gateway.norm.bias", "decoder.decoder.layers.0.gateway.norm.bias"),
        ("model.decoder.layers.0.fc1.weight", "decoder.decoder.layers.0.linear1.weight"),
        ("model.decoder.layers.0.mlp.layers.1.bias", "decoder.decoder.layers.0.linear2.bias"),
        ("model.decoder.layers.0.final_layer_norm.bias", "decoder.decoder.layers.0.norm3.bias"),
        (
            "model.decoder.layers.1.encoder_attn.attention_weights.bias",
            "decoder.decoder.layers.1.cross_attn.attention_weights.bias",
        ),
        ("model.decoder.bbox_embed.1.layers.2.weight", "decoder.dec_bbox_head.1.layers.2.weight"),
        ("class_embed.0.weight", "decoder.dec_score_head.0.weight"),
        ("model.encoder.encoder.0.layers.0.fc1.weight", "encoder.encoder.0.layers.0.linear1.weight"),
        ("model.encoder.aifi.0.layers.0.mlp.layers.0.weight", "encoder.encoder.0.layers.0.linear1.weight"),
        ("model.encoder.fpn_blocks.1.conv1.conv.weight", "encoder.fpn_blocks.1.cv1.conv.weight"),
        ("model.encoder.fpn_blocks.1.conv2.norm.bias", "encoder.fpn_blocks.1.cv2.1.norm.bias"),
        ("model.encoder.pan_blocks.0.conv3.conv.weight", "encoder.pan_blocks.0.cv3.1.conv.weight"),
        ("model.encoder.pan_blocks.0.conv4.norm.running_var", "encoder.pan_blocks.0.cv4.norm.running_var"),
        (
            "model.encoder.fpn_blocks.0.csp_rep1.bottlenecks.2.conv1.conv.weight",
            "encoder.fpn_blocks.0.cv2.0.bottlenecks.2.conv1.conv.weight",
        ),
        ("model.encoder.fpn_blocks.0.csp_rep2.conv2.norm.weight", "encoder.fpn_blocks.0.cv3.0.conv2.norm.weight"),
        ("model.encoder.downsample_convs.1.conv2.conv.weight", "encoder.downsample_convs.1.0.cv2.conv.weight"),
        ("model.encoder.lateral_convs.0.norm.bias", "encoder.lateral_convs.0.norm.bias"),
        ("model.encoder_input_proj.0.1.running_mean", "encoder.input_proj.0.norm.running_mean"),
        (
            "model.backbone.model.encoder.stages.2.blocks.1.layers.3.conv2.lab.scale",
            "backbone.stages.2.blocks.1.layers.3.conv2.lab.scale",
        ),
        ("something.else.weight", "something.else.weight"),
    ],
)
def test_names_of_transformers(theirs: str, ours: str) -> None:
    assert list(from_transformers({theirs: torch.zeros(1)})) == [ours]


def test_every_weight_of_transformers_has_a_place(own: dict[str, Tensor]) -> None:
    """Going by their current names, which a model says itself."""
    transformers = pytest.importorskip("transformers")
    stages = {
        "stem_channels": [3, 16, 16],
        "stage_in_channels": [16, 64, 256, 512],
        "stage_mid_channels": [16, 32, 64, 128],
        "stage_out_channels": [64, 256, 512, 1024],
        "hidden_sizes": [64, 256, 512, 1024],
        "stage_num_blocks": [1, 1, 2, 1],
        "stage_numb_of_layers": [3, 3, 3, 3],
    }
    config = transformers.DFineConfig(
        backbone_config=transformers.HGNetV2Config(
            **stages, use_learnable_affine_block=True, out_features=["stage2", "stage3", "stage4"]
        ),
        num_labels=3,
        encoder_in_channels=[256, 512, 1024],
        encoder_hidden_dim=32,
        encoder_ffn_dim=16,
        encoder_attention_heads=2,
        d_model=16,
        decoder_in_channels=[32] * 3,
        decoder_ffn_dim=16,
        decoder_attention_heads=2,
        decoder_layers=2,
        decoder_n_points=[3, 6, 3],
    )
    with torch.device("meta"):
        theirs = transformers.DFineForObjectDetection(config).state_dict()
    loaded = from_transformers(theirs)
    assert {key: tuple(value.shape) for key, value in loaded.items()} == {
        key: tuple(value.shape) for key, value in own.items() if not key.endswith("num_batches_tracked")
    }

"""The name table of RT-DETR: every way the authors and transformers have called a weight."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from detronome.config.schema import RtDetrConfig
from detronome.models.build import build_model
from detronome.weights.names.rtdetr import from_official, from_transformers

SMALL = RtDetrConfig(
    backbone="resnet18vd",
    backbone_weights="none",
    encoder_dim=16,
    encoder_ffn_dim=16,
    encoder_expansion=1.0,
    hidden_dim=16,
    num_heads=2,
    ffn_dim=16,
    num_decoder_layers=1,
)


@pytest.fixture(scope="module")
def own() -> dict[str, Tensor]:
    return build_model(SMALL, 3).state_dict()


def test_nothing_is_nothing() -> None:
    assert from_official({}) == from_transformers({}) == {}


def test_the_authors_second_version_has_our_names(own: dict[str, Tensor]) -> None:
    constants = {"decoder.anchors": torch.zeros(1), "decoder.valid_mask": torch.zeros(1)}
    constants["decoder.decoder.layers.0.cross_attn.num_points_scale"] = torch.zeros(1)
    official = {f"module.{key}": value for key, value in (own | constants).items()}
    loaded = from_official(official)
    assert set(loaded) == {key for key in own if not key.endswith("num_batches_tracked")}
    assert all(loaded[key] is own[key] for key in loaded)


def test_their_first_version_numbers_what_the_second_names(own: dict[str, Tensor]) -> None:
    first = {}
    for key, value in own.items():
        parts = key.split(".")
        if "input_proj" in parts or "enc_output" in parts:
            parts[-2] = {"conv": "0", "proj": "0", "norm": "1"}[parts[-2]]
        first[".".join(parts)] = value
    assert "encoder.input_proj.0.0.weight" in first and "decoder.enc_output.1.bias" in first
    assert set(from_official(first)) == set(from_official(own))


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("model.backbone.model.embedder.embedder.2.convolution.weight", "backbone.conv1.conv1_3.conv.weight"),
        (
            "model.backbone.model.encoder.stages.1.layers.0.shortcut.1.normalization.running_var",
            "backbone.res_layers.1.blocks.0.short.conv.norm.running_var",
        ),
        (
            "model.backbone.model.encoder.stages.0.layers.0.shortcut.convolution.weight",
            "backbone.res_layers.0.blocks.0.short.conv.weight",
        ),
        (
            "model.backbone.model.encoder.stages.3.layers.1.layer.2.normalization.bias",
            "backbone.res_layers.3.blocks.1.branch2c.norm.bias",
        ),
        ("model.encoder.encoder.0.layers.0.fc1.weight", "encoder.encoder.0.layers.0.linear1.weight"),
        ("model.encoder.aifi.0.layers.0.mlp.fc1.weight", "encoder.encoder.0.layers.0.linear1.weight"),
        ("model.encoder.aifi.0.layers.0.final_layer_norm.bias", "encoder.encoder.0.layers.0.norm2.bias"),
        ("model.decoder.layers.4.final_layer_norm.bias", "decoder.decoder.layers.4.norm3.bias"),
        ("model.decoder.layers.4.self_attn.out_proj.bias", "decoder.decoder.layers.4.self_attn.out_proj.bias"),
        (
            "model.decoder.layers.2.encoder_attn.sampling_offsets.weight",
            "decoder.decoder.layers.2.cross_attn.sampling_offsets.weight",
        ),
        ("class_embed.3.bias", "decoder.dec_score_head.3.bias"),
        ("model.decoder.bbox_embed.3.layers.2.bias", "decoder.dec_bbox_head.3.layers.2.bias"),
        ("model.enc_output.1.weight", "decoder.enc_output.norm.weight"),
        ("model.encoder_input_proj.0.1.running_mean", "encoder.input_proj.0.norm.running_mean"),
        ("model.decoder_input_proj.2.0.weight", "decoder.input_proj.2.conv.weight"),
        (
            "model.encoder.fpn_blocks.1.bottlenecks.2.conv1.conv.weight",
            "encoder.fpn_blocks.1.bottlenecks.2.conv1.conv.weight",
        ),
        ("model.backbone.model.embedder.stem2a.convolution.weight", "backbone.stem.stem2a.conv.weight"),
        (
            "model.backbone.model.encoder.stages.2.blocks.1.layers.3.conv2.normalization.weight",
            "backbone.stages.2.blocks.1.layers.3.conv2.bn.weight",
        ),
        (
            "model.backbone.model.encoder.stages.1.downsample.convolution.weight",
            "backbone.stages.1.downsample.conv.weight",
        ),
        ("something.else.weight", "something.else.weight"),
    ],
)
def test_names_of_transformers(theirs: str, ours: str) -> None:
    assert list(from_transformers({theirs: torch.zeros(1)})) == [ours]


def test_projections_of_queries_keys_and_values_become_one() -> None:
    name = "model.decoder.layers.0.self_attn."
    parts = {f"{name}{part}_proj.weight": torch.full((2, 2), float(i)) for i, part in enumerate("qkv")}
    (key, value), *rest = from_transformers(parts).items()
    assert key == "decoder.decoder.layers.0.self_attn.in_proj_weight" and not rest
    assert value[:, 0].tolist() == [0, 0, 1, 1, 2, 2]


def test_heads_that_are_there_twice_are_taken_once() -> None:
    state = {"class_embed.0.bias": torch.zeros(1), "model.decoder.class_embed.0.bias": torch.ones(1)}
    assert from_transformers(state) == {"decoder.dec_score_head.0.bias": torch.ones(1)}

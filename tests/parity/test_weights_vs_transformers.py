"""Folders that transformers writes load whole, under the names of 4.x and 5.x, and predict what it predicts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from detronome.config.schema import DetrConfig, RtDetrConfig
from detronome.models.build import build_model
from detronome.models.layers.frozen_batch_norm import FrozenBatchNorm2d
from detronome.weights.coco import COCO80
from detronome.weights.names import detr
from detronome.weights.pretrained import load_pretrained

CONFIG = DetrConfig(
    backbone="resnet18",
    backbone_weights="none",
    hidden_dim=32,
    num_heads=4,
    ffn_dim=64,
    num_encoder_layers=2,
    num_decoder_layers=3,
    num_queries=9,
)
WITH_MASKS = replace(CONFIG, hidden_dim=128, num_heads=8, num_encoder_layers=1, num_decoder_layers=1, mask_head=True)
NUM_CLASSES = 7


@pytest.mark.parametrize("config", [pytest.param(CONFIG, id="boxes"), pytest.param(WITH_MASKS, id="masks")])
@pytest.mark.parametrize("names", ["as-saved", "in-memory"])
@torch.no_grad()
def test_a_saved_folder_predicts_the_same(config: DetrConfig, names: str, tmp_path: Path) -> None:
    model, peer = _pair(config)
    peer.config.id2label = {label: f"thing {label}" for label in range(NUM_CLASSES)}
    peer.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    in_memory = {key: value.contiguous() for key, value in peer.state_dict().items()}
    # transformers 5 writes the names of 4.x, and computes with its own.
    assert saved.keys() != in_memory.keys()
    if names == "in-memory":
        save_file(in_memory, tmp_path / "model.safetensors")

    loaded = load_pretrained(tmp_path)

    assert loaded.categories.names == tuple(f"thing {label}" for label in range(NUM_CLASSES))
    assert loaded.config.model == replace(config, backbone_weights="imagenet")
    state = model.state_dict()
    assert set(loaded.state_dict) == set(state)
    assert all(torch.equal(loaded.state_dict[key], value) for key, value in state.items())
    ours = build_model(replace(config, backbone_weights="none"), NUM_CLASSES).eval()
    ours.load_state_dict(loaded.state_dict)
    images, padding_mask = _padded_batch()
    output = ours(images, padding_mask)
    normalizer = ours.get_submodule("detr.normalizer" if config.mask_head else "normalizer")
    expected = peer(pixel_values=normalizer(images, padding_mask), pixel_mask=(~padding_mask).long())
    torch.testing.assert_close(output.pred_logits, expected.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(output.pred_boxes, expected.pred_boxes, atol=1e-4, rtol=1e-4)
    if config.mask_head:
        torch.testing.assert_close(output.pred_masks, expected.pred_masks, atol=1e-4, rtol=1e-4)


def test_without_config_json_the_names_tell_the_family(tmp_path: Path) -> None:
    model, peer = _pair(CONFIG)
    save_file({key: value.contiguous() for key, value in peer.state_dict().items()}, tmp_path / "a.safetensors")
    loaded = load_pretrained(tmp_path / "a.safetensors")
    assert all(torch.equal(loaded.state_dict[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("inner", ["model.", "model._backbone."])
@pytest.mark.parametrize("outer", ["model.backbone.conv_encoder.", "model.backbone."])
def test_timms_names_of_the_backbone(outer: str, inner: str) -> None:
    """Those of the published files, which were made with timm: torchvision's, behind a prefix."""
    state = build_model(CONFIG, NUM_CLASSES).state_dict()
    body = {key: value for key, value in state.items() if key.startswith("backbone.0.body.")}
    theirs = {outer + inner + key.removeprefix("backbone.0.body."): value for key, value in body.items()}
    counters = {key.replace("running_mean", "num_batches_tracked"): torch.zeros(()) for key in theirs if "mean" in key}
    assert counters
    ours = detr.from_transformers(theirs | counters)
    assert ours.keys() == body.keys()


def test_shards_of_save_pretrained(tmp_path: Path) -> None:
    model, peer = _pair(CONFIG)
    peer.save_pretrained(tmp_path, max_shard_size="20MB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    loaded = load_pretrained(tmp_path)
    assert all(torch.equal(loaded.state_dict[key], value) for key, value in model.state_dict().items())


def test_a_dilated_network_is_seen_in_config_json(tmp_path: Path) -> None:
    model, peer = _pair(CONFIG)
    peer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change in ({"dilation": True}, {"backbone_config": {"model_type": "timm_backbone", "output_stride": 16}}):
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        loaded = load_pretrained(tmp_path)
        assert isinstance(loaded.config.model, DetrConfig) and loaded.config.model.dilation
    assert all(torch.equal(loaded.state_dict[key], value) for key, value in model.state_dict().items())


@torch.no_grad()
def test_a_saved_rt_detr_finds_its_preset(tmp_path: Path) -> None:
    """Its size is seen in the weights; names of COCO in other spellings become COCO's ids."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = [64, 128, 256, 512]
    backbone = transformers.RTDetrResNetConfig(
        depths=[2, 2, 2, 2], hidden_sizes=sizes, layer_type="basic", out_features=["stage2", "stage3", "stage4"]
    )
    names = [{"couch": "sofa", "tv": "tvmonitor"}.get(name, name) for name in COCO80.names]
    peer = transformers.RTDetrV2ForObjectDetection(
        transformers.RTDetrV2Config(
            backbone_config=backbone,
            encoder_in_channels=sizes[1:],
            decoder_in_channels=[256] * 3,
            hidden_expansion=0.5,
            decoder_layers=3,
            num_queries=50,
            id2label=dict(enumerate(names)),
        )
    ).eval()
    peer.save_pretrained(tmp_path)

    loaded = load_pretrained(tmp_path)

    assert loaded.config.preset == "rtdetr-v2-s" and loaded.categories == COCO80
    assert isinstance(loaded.config.model, RtDetrConfig) and loaded.config.model.num_queries == 50
    ours = build_model(replace(loaded.config.model, backbone_weights="none"), 80).eval()
    ours.load_state_dict(loaded.state_dict)
    images = torch.randint(0, 256, (2, 3, 96, 128), dtype=torch.uint8)
    output = ours(images, torch.zeros(2, 96, 128, dtype=torch.bool))
    expected = peer(pixel_values=images / 255)
    torch.testing.assert_close(output.pred_logits, expected.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(output.pred_boxes, expected.pred_boxes, atol=1e-4, rtol=1e-4)


def _pair(config: DetrConfig) -> tuple[Any, Any]:
    """Return our model with random weights and statistics, and transformers' with the same."""
    bridge = pytest.importorskip("tests.parity.transformers_detr")
    torch.manual_seed(0)
    model = build_model(config, NUM_CLASSES).eval()
    with torch.no_grad():
        for norm in (module for module in model.modules() if isinstance(module, FrozenBatchNorm2d)):
            norm.weight.uniform_(0.3, 0.9)
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 2.0)
    build = bridge.build_transformers_segmentation if config.mask_head else bridge.build_transformers_detr
    return model, build(model, config).eval()


def _padded_batch() -> tuple[Tensor, Tensor]:
    """Two images of 75x130 and 96x101 pixels, padded to 96x130."""
    images = torch.randint(0, 256, (2, 3, 96, 130), dtype=torch.uint8)
    padding_mask = torch.ones(2, 96, 130, dtype=torch.bool)
    for i, (height, width) in enumerate([(75, 130), (96, 101)]):
        padding_mask[i, :height, :width] = False
    images[padding_mask[:, None].expand_as(images)] = 0
    return images, padding_mask

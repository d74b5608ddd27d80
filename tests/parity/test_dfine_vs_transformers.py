"""Our D-FINE gives what transformers' gives, with its weights moved across by our name table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from detronome.config.presets import preset
from detronome.config.schema import DFineConfig
from detronome.models.build import build_model
from detronome.models.dfine.model import DFINE
from detronome.weights.names.dfine import from_transformers
from detronome.weights.preset_fit import expected_weights
from detronome.weights.pretrained import load_pretrained

NUM_CLASSES = 7
TINY = DFineConfig(
    backbone="hgnetv2_b0",
    backbone_weights="none",
    backbone_affine=True,
    encoder_dim=32,
    encoder_ffn_dim=48,
    encoder_expansion=0.5,
    encoder_depth=0.34,
    hidden_dim=32,
    num_heads=2,
    ffn_dim=40,
    num_decoder_layers=3,
    num_queries=9,
)
_BACKBONES: dict[str, dict[str, Any]] = {
    "hgnetv2_b0": {
        "stem_channels": [3, 16, 16],
        "stage_in_channels": [16, 64, 256, 512],
        "stage_mid_channels": [16, 32, 64, 128],
        "stage_out_channels": [64, 256, 512, 1024],
        "stage_num_blocks": [1, 1, 2, 1],
        "stage_numb_of_layers": [3, 3, 3, 3],
    },
    "hgnetv2_b2": {
        "stem_channels": [3, 24, 32],
        "stage_in_channels": [32, 96, 384, 768],
        "stage_mid_channels": [32, 64, 128, 256],
        "stage_out_channels": [96, 384, 768, 1536],
        "stage_num_blocks": [1, 1, 3, 1],
        "stage_numb_of_layers": [4, 4, 4, 4],
    },
    "hgnetv2_b4": {
        "stem_channels": [3, 32, 48],
        "stage_in_channels": [48, 128, 512, 1024],
        "stage_mid_channels": [48, 96, 192, 384],
        "stage_out_channels": [128, 512, 1024, 2048],
        "stage_num_blocks": [1, 1, 3, 1],
        "stage_numb_of_layers": [6, 6, 6, 6],
    },
    "hgnetv2_b5": {
        "stem_channels": [3, 32, 64],
        "stage_in_channels": [64, 128, 512, 1024],
        "stage_mid_channels": [64, 128, 256, 512],
        "stage_out_channels": [128, 512, 1024, 2048],
        "stage_num_blocks": [1, 2, 5, 2],
        "stage_numb_of_layers": [6, 6, 6, 6],
    },
}


@pytest.mark.parametrize(
    ("config", "size_hw"),
    [
        pytest.param(TINY, (96, 96), id="s"),
        pytest.param(replace(TINY, num_points=(6, 6), encoder_depth=0.5), (64, 128), id="n-two-maps-not-square"),
        pytest.param(
            replace(
                TINY, backbone="hgnetv2_b4", backbone_affine=False, hidden_dim=16, encoder_expansion=1.0, reg_scale=8.0
            ),
            (64, 96),
            id="x-projected-maps",
        ),
    ],
)
@torch.no_grad()
def test_same_predictions(config: DFineConfig, size_hw: tuple[int, int]) -> None:
    """On a batch with padding, which both see as black picture; ours then speaks of the unpadded image."""
    transformers = pytest.importorskip("transformers")
    peer = _peer(transformers, config).eval()
    model = _ours(config, peer).eval()
    images = torch.randint(0, 256, (2, 3, *size_hw), dtype=torch.uint8)
    padding_mask = torch.zeros(2, *size_hw, dtype=torch.bool)
    padding_mask[1, size_hw[0] // 2 :] = True
    padding_mask[1, :, size_hw[1] * 3 // 4 :] = True
    images[padding_mask[:, None].expand_as(images)] = 0

    output = model(images, padding_mask)
    expected = peer(pixel_values=images / 255, pixel_mask=(~padding_mask).long())

    torch.testing.assert_close(output.pred_logits, expected.logits, atol=1e-4, rtol=1e-4)
    boxes = expected.pred_boxes
    boxes[1] /= torch.tensor([0.75, 0.5, 0.75, 0.5])
    torch.testing.assert_close(output.pred_boxes, boxes, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_same_layers_in_training() -> None:
    """The boxes before all layers, those of each layer, their distributions and the proposals."""
    transformers = pytest.importorskip("transformers")
    config = replace(TINY, num_denoising=0)
    peer = _peer(transformers, config)
    model = _ours(config, peer)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    # Statistics of BatchNorm as in evaluation: only what the decoder gives is another.
    model.eval().decoder.train()
    model.training = True
    peer.eval().model.decoder.train()

    output = model(images, torch.zeros(2, 64, 64, dtype=torch.bool))
    expected = peer(pixel_values=images / 255)

    assert output.enc_outputs is not None
    layers = [*output.aux_outputs, output]
    for i, layer in enumerate(layers):
        torch.testing.assert_close(layer.pred_logits, expected.intermediate_logits[:, i], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(layer.pred_boxes, expected.intermediate_reference_points[:, i], atol=1e-4, rtol=1e-4)
    assert len(layers) == 4 and layers[0].edges is None
    for i, layer in enumerate(layers[1:]):
        assert layer.edges is not None
        corners = expected.intermediate_predicted_corners[:, i]
        torch.testing.assert_close(layer.edges.logits.flatten(-2), corners, atol=1e-4, rtol=1e-4)
        references = expected.initial_reference_points[:, i]
        torch.testing.assert_close(layer.edges.reference_boxes, references, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(output.enc_outputs.pred_boxes, expected.enc_topk_bboxes, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["dfine-n", "dfine-s", "dfine-m", "dfine-l", "dfine-x"])
def test_presets_are_the_published_networks(name: str) -> None:
    """Sizes as in the config.json files that transformers' converter writes; nothing is allocated."""
    transformers = pytest.importorskip("transformers")
    config = preset(name).model
    assert isinstance(config, DFineConfig)
    with torch.device("meta"):
        theirs = _model(transformers, config, num_labels=80).state_dict()
    loaded = {key: tuple(value.shape) for key, value in from_transformers(theirs).items()}
    expected = {key: tuple(value.shape) for key, value in expected_weights(config, 80).items()}
    assert loaded == {key: shape for key, shape in expected.items() if not key.endswith("num_batches_tracked")}


@torch.no_grad()
def test_a_saved_folder_finds_its_preset_and_gives_the_same(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = preset("dfine-n").model
    assert isinstance(config, DFineConfig)
    config = replace(config, num_queries=50)
    peer = _randomised(_model(transformers, config, num_labels=5)).eval()
    peer.save_pretrained(tmp_path)

    loaded = load_pretrained(tmp_path)

    assert loaded.config.preset == "dfine-n" and len(loaded.categories) == 5
    assert loaded.config.model == config
    ours = build_model(replace(config, backbone_weights="none"), 5).eval()
    ours.load_state_dict(loaded.state_dict)
    images = torch.randint(0, 256, (1, 3, 128, 96), dtype=torch.uint8)
    output = ours(images, torch.zeros(1, 128, 96, dtype=torch.bool))
    expected = peer(pixel_values=images / 255)
    torch.testing.assert_close(output.pred_logits, expected.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(output.pred_boxes, expected.pred_boxes, atol=1e-4, rtol=1e-4)


def _peer(transformers: Any, config: DFineConfig) -> Any:
    """Return transformers' model with random weights and statistics."""
    torch.manual_seed(0)
    return _randomised(_model(transformers, config, num_labels=NUM_CLASSES))


def _model(transformers: Any, config: DFineConfig, *, num_labels: int) -> Any:
    num_maps = len(config.num_points)
    channels = _BACKBONES[config.backbone]["stage_out_channels"][-num_maps:]
    return transformers.DFineForObjectDetection(
        transformers.DFineConfig(
            backbone_config=transformers.HGNetV2Config(
                **_BACKBONES[config.backbone],
                hidden_sizes=_BACKBONES[config.backbone]["stage_out_channels"],
                use_learnable_affine_block=config.backbone_affine,
                out_features=["stage2", "stage3", "stage4"][-num_maps:],
            ),
            num_labels=num_labels,
            encoder_in_channels=channels,
            feat_strides=[8, 16, 32][-num_maps:],
            encode_proj_layers=[num_maps - 1],
            encoder_hidden_dim=config.encoder_dim,
            encoder_ffn_dim=config.encoder_ffn_dim,
            encoder_attention_heads=config.num_heads,
            hidden_expansion=config.encoder_expansion,
            depth_mult=config.encoder_depth,
            d_model=config.hidden_dim,
            num_feature_levels=num_maps,
            decoder_in_channels=[config.encoder_dim] * num_maps,
            decoder_ffn_dim=config.ffn_dim,
            decoder_attention_heads=config.num_heads,
            decoder_layers=config.num_decoder_layers,
            decoder_n_points=list(config.num_points),
            num_queries=config.num_queries,
            num_denoising=config.num_denoising,
            reg_scale=config.reg_scale,
        )
    )


@torch.no_grad()
def _randomised(peer: Any) -> Any:
    for name, value in peer.state_dict().items():
        if value.dtype == torch.float32 and not name.endswith(("num_points_scale", ".up", ".reg_scale")):
            if name.endswith("running_var"):
                value.uniform_(0.5, 2.0)
            elif value.dim() > 1:
                value.normal_(0, value[0].numel() ** -0.5)
            else:
                value.normal_(0, 0.1)
                if ("norm" in name and name.endswith("weight")) or name.endswith("lab.scale"):
                    value.add_(1)
    return peer


def _ours(config: DFineConfig, peer: Any) -> DFINE:
    # Constants that the weights bring along: ours must not stand in for them.
    model = build_model(replace(config, reg_scale=1.0), NUM_CLASSES)
    assert isinstance(model, DFINE)
    missing, unexpected = model.load_state_dict(from_transformers(peer.state_dict()), strict=False)
    assert not unexpected and all("num_batches_tracked" in key for key in missing), (missing, unexpected)
    return model

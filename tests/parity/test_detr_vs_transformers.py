"""Our DETR gives what transformers' DETR gives, and has the reference's state dict."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from detronome.config.schema import DetrConfig
from detronome.models.build import build_model
from detronome.models.detr.model import DETR
from detronome.models.layers.frozen_batch_norm import FrozenBatchNorm2d

TINY = DetrConfig(
    backbone="resnet18",
    backbone_weights="none",
    hidden_dim=32,
    num_heads=4,
    ffn_dim=64,
    num_encoder_layers=2,
    num_decoder_layers=3,
    num_queries=9,
)
R50 = DetrConfig(backbone_weights="none")


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(TINY, id="r18"),
        pytest.param(replace(TINY, dilation=True), id="r18-dc5"),
        pytest.param(R50, id="r50"),
        pytest.param(replace(R50, dilation=True), id="r50-dc5"),
    ],
)
@torch.no_grad()
def test_same_predictions_on_a_padded_batch(config: DetrConfig) -> None:
    bridge = pytest.importorskip("tests.parity.transformers_detr")
    torch.manual_seed(0)
    model = _with_random_statistics(build_model(config, 7).eval())
    peer = bridge.build_transformers_detr(model, config).eval()
    images, padding_mask = _padded_batch()

    output = model(images, padding_mask)
    pixels = model.normalizer(images, padding_mask)
    expected = peer(pixel_values=pixels, pixel_mask=(~padding_mask).long())

    torch.testing.assert_close(output.pred_logits, expected.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(output.pred_boxes, expected.pred_boxes, atol=1e-4, rtol=1e-4)


def test_normalisation_is_the_references() -> None:
    """Bytes to 0-1, minus mean, over std, then zeros as padding."""
    model = build_model(TINY, 7)
    images, padding_mask = _padded_batch()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (images / 255 - mean[:, None, None]) / std[:, None, None]
    expected[padding_mask[:, None].expand_as(expected)] = 0
    torch.testing.assert_close(model.normalizer(images, padding_mask), expected, atol=1e-6, rtol=1e-6)


def test_state_dict_has_the_references_keys_and_sizes() -> None:
    model = build_model(R50, 91)
    assert set(model.state_dict()) == _reference_keys()
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert shapes["class_embed.weight"] == (92, 256)
    assert shapes["query_embed.weight"] == (100, 256)
    assert shapes["input_proj.weight"] == (256, 2048, 1, 1)
    assert shapes["transformer.encoder.layers.0.self_attn.in_proj_weight"] == (768, 256)


def test_number_of_parameters_is_the_references() -> None:
    model = build_model(R50, 91)
    assert sum(p.numel() for p in model.parameters()) == 41_524_768
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 41_302_368


def test_dilation_does_not_change_the_keys() -> None:
    plain, dilated = build_model(TINY, 7), build_model(replace(TINY, dilation=True), 7)
    dilated.load_state_dict(plain.state_dict())


def _reference_keys() -> set[str]:
    norm = ("weight", "bias", "running_mean", "running_var")
    body = {"conv1.weight", *(f"bn1.{leaf}" for leaf in norm)}
    for stage, depth in enumerate((3, 4, 6, 3), start=1):
        for block in range(depth):
            for i in (1, 2, 3):
                body.add(f"layer{stage}.{block}.conv{i}.weight")
                body.update(f"layer{stage}.{block}.bn{i}.{leaf}" for leaf in norm)
        body.add(f"layer{stage}.0.downsample.0.weight")
        body.update(f"layer{stage}.0.downsample.1.{leaf}" for leaf in norm)
    keys = {f"backbone.0.body.{key}" for key in body}
    linear = ("weight", "bias")
    attention = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
    for part, attentions, num_norms in (("encoder", ["self_attn"], 2), ("decoder", ["self_attn", "multihead_attn"], 3)):
        for layer in range(6):
            prefix = f"transformer.{part}.layers.{layer}."
            keys.update(f"{prefix}{name}.{leaf}" for name in attentions for leaf in attention)
            keys.update(f"{prefix}linear{i}.{leaf}" for i in (1, 2) for leaf in linear)
            keys.update(f"{prefix}norm{i + 1}.{leaf}" for i in range(num_norms) for leaf in linear)
    heads = ("input_proj", "class_embed", "transformer.decoder.norm", *(f"bbox_embed.layers.{i}" for i in range(3)))
    keys.update(f"{name}.{leaf}" for name in heads for leaf in linear)
    return keys | {"query_embed.weight"}


def _with_random_statistics(model: DETR) -> DETR:
    """Give the frozen norms values that a mistake in them would show."""
    for norm in (module for module in model.modules() if isinstance(module, FrozenBatchNorm2d)):
        norm.weight.uniform_(0.3, 0.9)
        norm.bias.normal_(0, 0.1)
        norm.running_mean.normal_(0, 0.1)
        norm.running_var.uniform_(0.5, 2.0)
    return model


def _padded_batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Two images of 75x130 and 96x101 pixels, padded to 96x130."""
    images = torch.randint(0, 256, (2, 3, 96, 130), dtype=torch.uint8)
    padding_mask = torch.ones(2, 96, 130, dtype=torch.bool)
    for i, (height, width) in enumerate([(75, 130), (96, 101)]):
        padding_mask[i, :height, :width] = False
    images[padding_mask[:, None].expand_as(images)] = 0
    return images, padding_mask

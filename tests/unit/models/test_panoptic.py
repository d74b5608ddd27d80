"""The panoptic model: freezing a part, and masks that do not depend on what lies beside them."""

from __future__ import annotations

import pytest
import torch

from detronome.config.schema import DetrConfig
from detronome.errors import ConfigError
from detronome.models.build import build_model
from detronome.models.panoptic.model import PanopticDETR

CONFIG = DetrConfig(
    backbone="resnet18",
    backbone_weights="none",
    backbone_norm="trainable",
    frozen_stages=0,
    hidden_dim=128,
    ffn_dim=32,
    num_encoder_layers=1,
    num_decoder_layers=2,
    num_queries=5,
    dropout=0.5,
    mask_head=True,
)


def test_a_frozen_part_does_not_change_and_computes_as_in_evaluation() -> None:
    model = _model().train()
    model.freeze(["detr"])
    before = {name: value.clone() for name, value in model.detr.state_dict().items()}
    images, padding_mask = _images(2)
    first, second = model(images, padding_mask), model(images, padding_mask)
    assert torch.equal(first.pred_logits, second.pred_logits) and not first.aux_outputs
    assert first.pred_masks is not None
    first.pred_masks.square().sum().backward()
    assert {n for n, p in model.named_parameters() if p.grad is not None} == {
        n for n, _ in model.named_parameters() if not n.startswith("detr.")
    }
    assert all(torch.equal(value, before[name]) for name, value in model.detr.state_dict().items())
    assert model.eval().train().mask_head.training and not model.detr.training


def test_all_unknown_parts_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        _model().freeze(["detr", "dter", "mask_haed"])
    assert [problem.what.split("'")[1] for problem in caught.value.problems] == ["dter", "mask_haed"]


@torch.no_grad()
def test_a_batch_of_equal_sizes_gives_what_single_images_give() -> None:
    model = _model().eval()
    images, padding_mask = _images(3)
    together = model(images, padding_mask).pred_masks
    for b in range(3):
        alone = model(images[b : b + 1], padding_mask[b : b + 1]).pred_masks
        torch.testing.assert_close(alone[0], together[b], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_masks_are_computed_in_the_models_precision() -> None:
    model = _model().eval()
    images, padding_mask = _images(1)
    exact = model(images, padding_mask).pred_masks
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(images, padding_mask)
    rough = output.pred_masks  # made outside of autocast
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).abs().max() < 0.2 * exact.abs().max()


def _model() -> PanopticDETR:
    torch.manual_seed(0)
    model = build_model(CONFIG, 4)
    assert isinstance(model, PanopticDETR)
    return model


def _images(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.randint(0, 256, (count, 3, 64, 96), dtype=torch.uint8)
    return images, torch.zeros(count, 64, 96, dtype=torch.bool)

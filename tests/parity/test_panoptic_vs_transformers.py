"""Our panoptic DETR gives what transformers' DetrForSegmentation gives, and has the reference's state dict."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from detronome.config.schema import DetrConfig, LossConfig
from detronome.losses.build import build_criterion
from detronome.models.build import build_model
from detronome.models.panoptic.model import PanopticDETR
from detronome.types import Target

TINY = DetrConfig(
    backbone="resnet18",
    backbone_weights="none",
    hidden_dim=128,
    num_heads=8,
    ffn_dim=64,
    num_encoder_layers=1,
    num_decoder_layers=2,
    num_queries=6,
    dropout=0.0,
    mask_head=True,
)
NUM_CLASSES = 7


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(TINY, id="r18"),
        pytest.param(replace(TINY, dilation=True), id="r18-dc5"),
        pytest.param(
            replace(TINY, backbone="resnet50", hidden_dim=256, ffn_dim=2048, num_queries=20), id="r50-one-layer"
        ),
    ],
)
@torch.no_grad()
def test_same_predictions_on_a_padded_batch(config: DetrConfig) -> None:
    bridge = pytest.importorskip("tests.parity.transformers_detr")
    torch.manual_seed(0)
    model = _panoptic(config).eval()
    peer = bridge.build_transformers_segmentation(model, config).eval()
    images, padding_mask = _padded_batch()

    output = model(images, padding_mask)
    pixels = model.detr.normalizer(images, padding_mask)
    expected = peer(pixel_values=pixels, pixel_mask=(~padding_mask).long())

    torch.testing.assert_close(output.pred_logits, expected.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(output.pred_boxes, expected.pred_boxes, atol=1e-4, rtol=1e-4)
    assert output.pred_masks is not None and output.pred_masks.shape == (2, config.num_queries, 24, 33)
    assert output.pred_masks.std() > 0.1, "masks without contrast would agree whatever is wrong"
    torch.testing.assert_close(output.pred_masks, expected.pred_masks, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_chosen_masks_are_those_of_all() -> None:
    torch.manual_seed(0)
    output = _panoptic(TINY).eval()(*_padded_batch())
    assert output.masks is not None
    images, queries = torch.tensor([0, 0, 1]), torch.tensor([4, 1, 4])
    torch.testing.assert_close(output.masks.of(images, queries), output.masks.all()[images, queries])
    assert output.masks.of(images[:0], queries[:0]).shape == (0, 24, 33)


@pytest.mark.parametrize(
    "num_objects",
    [pytest.param((3, 2), id="objects"), pytest.param((4, 0), id="one-without"), pytest.param((0, 0), id="none")],
)
def test_every_loss_and_gradient_agrees(num_objects: tuple[int, int]) -> None:
    from transformers.loss.loss_for_object_detection import ForSegmentationLoss

    torch.manual_seed(sum(num_objects))
    model = _panoptic(TINY).train()
    images, padding_mask = _padded_batch()
    targets = [_target(count, size) for count, size in zip(num_objects, SIZES, strict=True)]

    criterion = build_criterion(LossConfig(weight_mask=2.0, weight_dice=3.0), with_masks=True)
    output = model(images, padding_mask)
    losses = criterion(output, targets)
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    gradients = torch.autograd.grad(criterion.total(losses), list(parameters.values()), materialize_grads=True)

    config = SimpleNamespace(
        class_cost=1, bbox_cost=5, giou_cost=2, bbox_loss_coefficient=5, giou_loss_coefficient=2, eos_coefficient=0.1,
        mask_loss_coefficient=2, dice_loss_coefficient=3, num_labels=NUM_CLASSES, auxiliary_loss=True, decoder_layers=2,
    )  # fmt: skip
    labels = [{"class_labels": t.labels, "boxes": t.boxes_cxcywh, "masks": t.masks} for t in targets]
    output = model(images, padding_mask)
    layers = [*output.aux_outputs, output]
    total, expected, _ = ForSegmentationLoss(
        output.pred_logits,
        labels,
        "cpu",
        output.pred_boxes,
        output.pred_masks,
        config,
        outputs_class=torch.stack([layer.pred_logits for layer in layers]),
        outputs_coord=torch.stack([layer.pred_boxes for layer in layers]),
    )
    expected_gradients = torch.autograd.grad(total, list(parameters.values()), materialize_grads=True)

    expected = {name: loss for name, loss in expected.items() if not name.startswith("cardinality")}
    assert set(losses) == set(expected) and {"loss_mask", "loss_dice"} < set(losses)
    for name, loss in expected.items():
        torch.testing.assert_close(losses[name], loss, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    torch.testing.assert_close(criterion.total(losses), total, atol=1e-5, rtol=1e-4)
    for name, ours, theirs in zip(parameters, gradients, expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


def test_state_dict_has_the_references_keys_and_sizes() -> None:
    config = DetrConfig(backbone_weights="none", mask_head=True)
    state = build_model(config, 250).state_dict()
    plain = build_model(replace(config, mask_head=False), 250).state_dict()
    convolutions = [*(f"lay{i}" for i in range(1, 6)), *(f"gn{i}" for i in range(1, 6)), "out_lay"]
    convolutions += ["adapter1", "adapter2", "adapter3"]
    own = [f"mask_head.{name}" for name in convolutions] + ["bbox_attention.q_linear", "bbox_attention.k_linear"]
    expected = {f"detr.{key}" for key in plain} | {f"{name}.{leaf}" for name in own for leaf in ("weight", "bias")}
    assert set(state) == expected
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    assert shapes["detr.class_embed.weight"] == (251, 256)
    assert shapes["mask_head.lay1.weight"] == (264, 264, 3, 3)
    assert shapes["mask_head.lay5.weight"] == (16, 32, 3, 3)
    assert shapes["mask_head.out_lay.weight"] == (1, 16, 3, 3)
    assert [shapes[f"mask_head.adapter{i}.weight"] for i in (1, 2, 3)] == [
        (128, 1024, 1, 1), (64, 512, 1, 1), (32, 256, 1, 1)
    ]  # fmt: skip


SIZES = ((75, 130), (96, 101))


def _panoptic(config: DetrConfig) -> PanopticDETR:
    model = build_model(config, NUM_CLASSES)
    assert isinstance(model, PanopticDETR)
    for norm in (module for module in model.mask_head.modules() if isinstance(module, torch.nn.GroupNorm)):
        torch.nn.init.normal_(norm.weight, 1.0, 0.2)
        torch.nn.init.normal_(norm.bias, 0.0, 0.2)
    # Sharper than at the start, so that a mistake in the attention shows in the masks.
    for linear in (model.bbox_attention.q_linear, model.bbox_attention.k_linear):
        torch.nn.init.normal_(linear.weight, 0.0, 0.3)
        torch.nn.init.normal_(linear.bias, 0.0, 0.3)
    return model


def _padded_batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Two images of 75x130 and 96x101 pixels, padded to 96x130."""
    images = torch.randint(0, 256, (2, 3, 96, 130), dtype=torch.uint8)
    padding_mask = torch.ones(2, 96, 130, dtype=torch.bool)
    for i, (height, width) in enumerate(SIZES):
        padding_mask[i, :height, :width] = False
    images[padding_mask[:, None].expand_as(images)] = 0
    return images, padding_mask


def _target(count: int, size_hw: tuple[int, int]) -> Target:
    return Target(
        boxes_cxcywh=torch.rand(count, 4) * 0.5 + 0.2,
        labels=torch.randint(0, NUM_CLASSES, (count,)),
        image_id=0,
        size_hw=size_hw,
        orig_size_hw=size_hw,
        masks=torch.rand(count, *size_hw) < 0.3,
    )

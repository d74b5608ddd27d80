"""Our matcher and losses give what transformers' DETR loss gives."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from detronome.config.schema import LossConfig
from detronome.losses.build import build_criterion
from detronome.types import ModelOutput, Target

NUM_CLASSES, NUM_QUERIES, NUM_LAYERS = 11, 20, 4


@pytest.mark.parametrize(
    "num_objects",
    [
        pytest.param((3,), id="one-image"),
        pytest.param((5, 0, 1), id="one-without-objects"),
        pytest.param((20, 7), id="full"),
    ],
)
def test_every_loss_and_gradient_agrees(num_objects: tuple[int, ...]) -> None:
    from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss

    torch.manual_seed(len(num_objects))
    targets = [_target(count) for count in num_objects]
    logits = torch.randn(NUM_LAYERS, len(targets), NUM_QUERIES, NUM_CLASSES + 1, requires_grad=True)
    boxes = torch.rand(NUM_LAYERS, len(targets), NUM_QUERIES, 4, requires_grad=True)

    criterion = build_criterion(LossConfig())
    losses = criterion(_output(logits, boxes), targets)
    total = criterion.total(losses)
    gradients = torch.autograd.grad(total, (logits, boxes))

    config = SimpleNamespace(
        class_cost=1, bbox_cost=5, giou_cost=2, bbox_loss_coefficient=5, giou_loss_coefficient=2, eos_coefficient=0.1,
        num_labels=NUM_CLASSES, auxiliary_loss=True, decoder_layers=NUM_LAYERS,
    )  # fmt: skip
    labels = [{"class_labels": target.labels, "boxes": target.boxes_cxcywh} for target in targets]
    expected_total, expected, _ = ForObjectDetectionLoss(
        logits[-1], labels, "cpu", boxes[-1], config, outputs_class=logits, outputs_coord=boxes
    )
    expected_gradients = torch.autograd.grad(expected_total, (logits, boxes))

    expected = {name: loss for name, loss in expected.items() if not name.startswith("cardinality")}
    assert set(losses) == set(expected)
    for name, loss in expected.items():
        torch.testing.assert_close(losses[name], loss, atol=1e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    torch.testing.assert_close(total, expected_total, atol=1e-5, rtol=1e-5)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, atol=1e-5, rtol=1e-5)


def _output(logits: torch.Tensor, boxes: torch.Tensor) -> ModelOutput:
    *earlier, last = (ModelOutput(pred_logits=a, pred_boxes=b) for a, b in zip(logits, boxes, strict=True))
    return ModelOutput(pred_logits=last.pred_logits, pred_boxes=last.pred_boxes, aux_outputs=tuple(earlier))


def _target(count: int) -> Target:
    return Target(
        boxes_cxcywh=torch.rand(count, 4) * 0.5 + 0.2,
        labels=torch.randint(0, NUM_CLASSES, (count,)),
        image_id=0,
        size_hw=(64, 64),
        orig_size_hw=(64, 64),
    )

"""Mask losses: empty images, cutting a batch, and what only matched queries cost."""

from __future__ import annotations

import pytest
import torch

from detronome.config.schema import LossConfig
from detronome.losses.build import build_criterion
from detronome.losses.mask_terms import mask_dice_loss, mask_focal_loss, padded_masks
from detronome.losses.terms import BatchTotals
from detronome.types import ModelOutput, Target

SIZE_HW = (20, 28)


class GivenMasks:
    """Masks that are there already; remembers how many were asked for."""

    def __init__(self, masks: torch.Tensor) -> None:
        self.masks = masks
        self.padded_size_hw = SIZE_HW
        self.num_made = 0

    def of(self, image_index: torch.Tensor, query_index: torch.Tensor) -> torch.Tensor:
        self.num_made += len(image_index)
        return self.masks[image_index, query_index]

    def all(self) -> torch.Tensor:
        return self.masks


def make_output(seed: int, images: int, queries: int = 6) -> ModelOutput:
    random = torch.Generator().manual_seed(seed)
    return ModelOutput(
        pred_logits=torch.randn(images, queries, 5, generator=random),
        pred_boxes=torch.rand(images, queries, 4, generator=random) * 0.4 + 0.3,
        masks=GivenMasks(torch.randn(images, queries, 5, 7, generator=random).requires_grad_()),
    )


def make_target(seed: int, count: int, size_hw: tuple[int, int] = (17, 28)) -> Target:
    random = torch.Generator().manual_seed(seed)
    return Target(
        boxes_cxcywh=torch.rand(count, 4, generator=random) * 0.4 + 0.3,
        labels=torch.randint(4, (count,), generator=random),
        image_id=seed,
        size_hw=size_hw,
        orig_size_hw=size_hw,
        masks=torch.rand(count, *size_hw, generator=random) < 0.4,
    )


def test_images_without_objects_cost_nothing() -> None:
    criterion, output = build_criterion(LossConfig(), with_masks=True), make_output(0, 2)
    losses = criterion(output, [make_target(0, 0), make_target(1, 0)])
    assert losses["loss_mask"] == 0 and losses["loss_dice"] == 0
    criterion.total(losses).backward()
    assert isinstance(output.masks, GivenMasks) and output.masks.num_made == 0


def test_only_matched_masks_are_made() -> None:
    output = make_output(0, 3)
    build_criterion(LossConfig(), with_masks=True)(output, [make_target(i, count) for i, count in enumerate((2, 0, 9))])
    assert isinstance(output.masks, GivenMasks) and output.masks.num_made == 2 + 6


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_cut_batch_has_the_same_loss_and_gradient(cut: int) -> None:
    criterion, output = build_criterion(LossConfig(), with_masks=True), make_output(3, 4)
    targets = [make_target(i, count, (20 - i, 20 + 2 * i)) for i, count in enumerate((3, 0, 5, 1))]
    masks = output.pred_masks
    assert masks is not None
    totals = BatchTotals.of(targets, 6)
    whole = criterion(output, targets, totals=totals)
    (gradient,) = torch.autograd.grad(criterion.total(whole), masks)
    sums = dict.fromkeys(whole, torch.zeros(()))
    cut_gradient = torch.zeros_like(masks)
    for start in range(0, 4, cut):
        part = slice(start, start + cut)
        piece = ModelOutput(
            pred_logits=output.pred_logits[part], pred_boxes=output.pred_boxes[part], masks=GivenMasks(masks[part])
        )
        losses = criterion(piece, targets[part], totals=totals)
        cut_gradient += torch.autograd.grad(criterion.total(losses), masks)[0]
        sums = {name: sums[name] + loss.detach() for name, loss in losses.items()}
    torch.testing.assert_close(sums, {name: loss.detach() for name, loss in whole.items()})
    torch.testing.assert_close(cut_gradient, gradient)


def test_right_and_wrong_masks() -> None:
    truth = torch.zeros(2, 4, 6, dtype=torch.bool)
    truth[0, :2] = truth[1, :, :3] = True
    totals = BatchTotals(num_images=1, num_objects=2, num_matches=2)
    right = torch.where(truth, 50.0, -50.0)
    assert mask_focal_loss(right, truth, totals) < 1e-6 and mask_dice_loss(right, truth, totals) < 1e-6
    assert mask_dice_loss(-right, truth, totals) == pytest.approx(1 - 1 / 25)
    assert mask_focal_loss(-right, truth, totals) == pytest.approx(50 * (0.25 + 0.75) / 2)


def test_models_without_masks_have_no_mask_losses() -> None:
    output, targets = make_output(0, 1), [make_target(0, 2)]
    assert "loss_mask" not in build_criterion(LossConfig())(output, targets)
    boxes = ModelOutput(pred_logits=output.pred_logits, pred_boxes=output.pred_boxes)
    assert "loss_mask" not in build_criterion(LossConfig(), with_masks=True)(boxes, targets)


def test_targets_are_padded_right_and_bottom() -> None:
    targets = [make_target(0, 2, (3, 5)), make_target(1, 0, (4, 4)), make_target(2, 1, (4, 2))]
    padded = padded_masks(targets, (4, 6))
    assert padded.shape == (3, 4, 6) and padded.sum() == sum(int(t.masks.sum()) for t in targets if t.masks is not None)
    assert targets[2].masks is not None and torch.equal(padded[2, :, :2], targets[2].masks[0])

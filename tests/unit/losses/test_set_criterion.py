"""The criterion: names, empty images, cutting a batch, and numbers that are not finite."""

import pytest
import torch

from detronome.config.presets import preset
from detronome.losses.build import build_criterion
from detronome.losses.terms import BatchTotals
from detronome.types import ModelOutput, Target


def make_output(seed: int, images: int, queries: int, logits: int, *, aux: int = 0) -> ModelOutput:
    random = torch.Generator().manual_seed(seed)

    def one() -> ModelOutput:
        return ModelOutput(
            pred_logits=torch.randn(images, queries, logits, generator=random, requires_grad=True),
            pred_boxes=(torch.rand(images, queries, 4, generator=random) * 0.4 + 0.3).requires_grad_(),
        )

    last = one()
    return ModelOutput(
        pred_logits=last.pred_logits, pred_boxes=last.pred_boxes, aux_outputs=tuple(one() for _ in range(aux))
    )


def make_target(seed: int, count: int) -> Target:
    random = torch.Generator().manual_seed(seed)
    return Target(
        boxes_cxcywh=torch.rand(count, 4, generator=random) * 0.4 + 0.3,
        labels=torch.randint(4, (count,), generator=random),
        image_id=seed,
        size_hw=(8, 8),
        orig_size_hw=(8, 8),
    )


@pytest.mark.parametrize(("name", "logits"), [("detr-r50", 5), ("nano", 4), ("rtdetr-v2-s", 4)])
def test_images_without_objects_give_a_finite_loss_and_gradient(name: str, logits: int) -> None:
    criterion = build_criterion(preset(name).loss)
    output = make_output(0, 2, 6, logits, aux=1)
    losses = criterion(output, [make_target(0, 0), make_target(1, 0)])
    criterion.total(losses).backward()
    assert output.pred_logits.grad is not None and output.pred_logits.grad.isfinite().all()
    assert losses["loss_bbox"] == 0 and losses["loss_giou"] == 0 and losses["loss_ce"] > 0


def test_names_follow_the_field() -> None:
    criterion = build_criterion(preset("detr-r50").loss)
    losses = criterion(make_output(0, 1, 6, 5, aux=2), [make_target(0, 2)])
    terms = ("loss_ce", "loss_bbox", "loss_giou")
    assert set(losses) == {f"{term}{suffix}" for term in terms for suffix in ("", "_0", "_1")}


@pytest.mark.parametrize(("name", "logits"), [("detr-r50", 5), ("nano", 4), ("rtdetr-v2-s", 4)])
@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_cut_batch_has_the_same_loss(name: str, logits: int, cut: int) -> None:
    criterion = build_criterion(preset(name).loss)
    output = make_output(3, 4, 6, logits, aux=1)
    targets = [make_target(i, count) for i, count in enumerate((3, 0, 5, 1))]
    whole = criterion.total(criterion(output, targets))
    totals = BatchTotals.of(targets, 6)

    def part(o: ModelOutput, where: slice) -> ModelOutput:
        return ModelOutput(
            pred_logits=o.pred_logits[where],
            pred_boxes=o.pred_boxes[where],
            aux_outputs=tuple(part(a, where) for a in o.aux_outputs),
        )

    pieces = [slice(i, i + cut) for i in range(0, 4, cut)]
    summed = sum(criterion.total(criterion(part(output, p), targets[p], totals=totals)) for p in pieces)
    torch.testing.assert_close(summed, whole, rtol=1e-6, atol=1e-6)


def test_nan_boxes_reach_the_loss() -> None:
    criterion = build_criterion(preset("detr-r50").loss)
    output = make_output(0, 1, 6, 5)
    with torch.no_grad():
        output.pred_boxes[0, 0, 0] = torch.nan
    assert not criterion.total(criterion(output, [make_target(0, 2)])).isfinite()


def test_quality_targets_ramp_up_with_progress() -> None:
    criterion = build_criterion(preset("nano").loss)
    output, targets = make_output(0, 1, 6, 4), [make_target(0, 2)]
    start, end = (criterion(output, targets, progress=p)["loss_ce"] for p in (0.0, 1.0))
    assert start != end

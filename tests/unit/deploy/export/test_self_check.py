"""The self-check lets rounding pass and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from tests.unit.deploy.tiny_models import FAMILIES, model_of
from torch import Tensor, nn

from detronome.deploy.benchmark.difference import Difference
from detronome.deploy.export.self_check import (
    Accuracy,
    SelfCheck,
    compare_outputs,
    problems_of,
    synthetic_batches,
    tolerance_of,
)
from detronome.models.detector import Detector
from detronome.types import ModelOutput, Target


class Changed(Detector):
    """A detector whose outputs are changed a little."""

    def __init__(self, detector: Detector, *, logits: float = 0.0, boxes: float = 0.0, reverse: bool = False) -> None:
        super().__init__()
        self.detector, self.logits, self.boxes, self.reverse = detector, logits, boxes, reverse
        self.num_queries = detector.num_queries
        self.activation = detector.activation  # type: ignore[misc]

    def forward(self, images: Tensor, padding_mask: Tensor, targets: Sequence[Target] | None = None) -> ModelOutput:
        output = self.detector(images, padding_mask)
        order = [-1, 1][not self.reverse]
        logits, boxes = output.pred_logits + self.logits, output.pred_boxes + self.boxes
        if order < 0:
            logits, boxes = logits.flip(1), boxes.flip(1)
        return ModelOutput(pred_logits=logits, pred_boxes=boxes, masks=output.masks)

    def parts_to_compile(self) -> list[nn.Module]:
        return []


def check_of(family: str, **changes: float) -> SelfCheck:
    model = model_of(family)
    difference, masks = compare_outputs(model, Changed(model, **changes), synthetic_batches(64))  # type: ignore[arg-type]
    return SelfCheck(
        images="synthetic", difference=difference, masks=masks, accuracy=None, tolerance=tolerance_of("fp32")
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_does_not_differ_from_itself(family: str) -> None:
    check = check_of(family)
    assert problems_of(check) == []
    assert check.difference.largest_score == check.difference.largest_box == 0
    assert check.difference.num_images == 6
    assert (check.masks is None) == (family != "panoptic")


def test_the_order_of_queries_does_not_count() -> None:
    assert problems_of(check_of("rtdetr", reverse=True)) == []


@pytest.mark.parametrize("changes", [{"boxes": 1e-3}, {"logits": 0.1}, {"boxes": float("nan")}])
def test_what_is_more_than_rounding_is_refused(changes: dict[str, float]) -> None:
    # A number added to all logits changes no softmax: the sigmoid family shows it.
    (problem,) = problems_of(check_of("nano", **changes))
    assert "its outputs differ from the model's" in problem.what


class LastImageDiffers(Changed):
    """A detector that says something else of the last image it is shown."""

    change: Callable[[ModelOutput], None]

    def forward(self, images: Tensor, padding_mask: Tensor, targets: Sequence[Target] | None = None) -> ModelOutput:
        output = super().forward(images, padding_mask, targets)
        if len(images) == 3:
            self.change(output)
        return output


def one_object_more(output: ModelOutput) -> None:
    output.pred_logits[-1, output.pred_logits[-1].amax(-1).argmin()] = 9.0


def no_numbers(output: ModelOutput) -> None:
    output.pred_logits[-1] = output.pred_boxes[-1] = float("nan")


@pytest.mark.parametrize("change", [one_object_more, no_numbers])
def test_one_image_of_all_is_enough(change: Callable[[ModelOutput], None]) -> None:
    model = model_of("nano")
    other = LastImageDiffers(model)
    other.change = change
    found, _ = compare_outputs(model, other, synthetic_batches(64))
    check = SelfCheck(images="synthetic", difference=found, masks=None, accuracy=None, tolerance=tolerance_of("fp32"))
    assert problems_of(check)


def difference(score: float = 0.0) -> Difference:
    return Difference(num_images=3, median_score=score, largest_score=score, median_box=0.0, largest_box=0.0)


@pytest.mark.parametrize(
    ("precision", "original", "exported", "is_refused"),
    [
        ("fp32", 0.5, 0.4985, False),
        ("fp32", 0.5, 0.495, True),
        ("fp32", 0.5, 0.6, False),
        ("int8", 0.5, 0.491, False),
        ("int8", 0.5, 0.485, True),
        ("int8", 0.5, float("nan"), True),
    ],
)
def test_lost_accuracy_is_refused(precision: str, original: float, exported: float, is_refused: bool) -> None:
    accuracy = Accuracy(num_images=9, split="val", original=original, exported=exported)
    check = SelfCheck(
        images="real", difference=difference(), masks=None, accuracy=accuracy, tolerance=tolerance_of(precision)
    )
    problems = problems_of(check)
    assert bool(problems) is is_refused
    if problems:
        assert "AP" in problems[0].what and problems[0].where == "9 images of val"


def test_masks_count_too() -> None:
    check = SelfCheck(
        images="synthetic", difference=difference(), masks=0.5, accuracy=None, tolerance=tolerance_of("fp32")
    )
    (problem,) = problems_of(check)
    assert "its masks differ" in problem.what


def test_synthetic_batches_have_what_goes_wrong_elsewhere() -> None:
    batches = list(synthetic_batches(64))
    assert [len(images) for images, _ in batches] == [1, 2, 3]
    assert [bool(mask.any()) for _, mask in batches] == [False, True, True]
    assert any(side % 32 for images, _ in batches for side in images.shape[2:])
    for images, mask in batches:
        assert images.dtype == torch.uint8
        assert not images[mask[:, None].expand_as(images)].any()
        assert all(np.std(image[:, ~m].numpy()) > 20 for image, m in zip(images, mask, strict=True))
    again = list(synthetic_batches(64))
    assert all(torch.equal(x, y) for (x, _), (y, _) in zip(batches, again, strict=True))

"""From model output to detections."""

from __future__ import annotations

import numpy as np
import torch

from detronome.models.postprocess import postprocess
from detronome.types import Categories, ModelOutput

CATEGORIES = Categories(ids=(5, 7, 40), names=("a", "b", "c"))


def test_softmax_gives_one_detection_a_query_best_first() -> None:
    logits = torch.log(torch.tensor([[[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1], [0.0001, 0.3, 0.2, 0.4999]]]))
    boxes = torch.tensor([[[0.5, 0.5, 1.0, 1.0], [0.25, 0.5, 0.5, 0.2], [0.5, 0.5, 0.0, 0.0]]])
    (found,) = postprocess(_output(logits, boxes), [(100, 200)], [17], CATEGORIES, activation="softmax")
    assert found.image_id == 17
    np.testing.assert_allclose(found.scores, [0.7, 0.3, 0.3], atol=1e-6)
    assert found.labels.tolist() == [5, 40, 7]
    np.testing.assert_allclose(found.boxes_xyxy[0], [0, 40, 100, 60], atol=1e-4)
    np.testing.assert_allclose(found.boxes_xyxy[1], [0, 0, 200, 100], atol=1e-4)
    assert (found.boxes_xyxy.dtype, found.scores.dtype, found.labels.dtype) == (np.float32, np.float32, np.int64)


def test_softmax_equals_the_reference_formula_for_every_query() -> None:
    torch.manual_seed(0)
    logits, boxes = torch.randn(2, 30, 4), torch.rand(2, 30, 4)
    sizes = [(427, 640), (333, 500)]
    for i, found in enumerate(postprocess(_output(logits, boxes), sizes, [1, 2], CATEGORIES, activation="softmax")):
        scores, labels = logits[i].softmax(-1)[:, :-1].max(-1)
        order = np.argsort(-scores.numpy(), kind="stable")
        height, width = sizes[i]
        corners = torch.cat((boxes[i, :, :2] - boxes[i, :, 2:] / 2, boxes[i, :, :2] + boxes[i, :, 2:] / 2), dim=1)
        expected = (corners * torch.tensor([width, height, width, height])).numpy()[order]
        assert len(found) == 30
        np.testing.assert_allclose(found.scores, scores.numpy()[order], rtol=1e-6)
        np.testing.assert_allclose(found.boxes_xyxy, expected, atol=1e-4)
        assert found.labels.tolist() == [CATEGORIES.ids[label] for label in labels[order]]


def test_equal_scores_keep_the_order_of_the_queries() -> None:
    boxes = torch.linspace(0, 1, 40)[None, :, None].expand(1, 40, 4)
    (found,) = postprocess(
        _output(torch.zeros(1, 40, 4), boxes), [(1, 1)], [0], CATEGORIES, activation="softmax", max_detections=10
    )
    assert len(found) == 10
    assert (np.diff(found.boxes_xyxy[:, 2]) > 0).all()


def test_sigmoid_gives_the_best_pairs_of_query_and_class() -> None:
    logits = torch.tensor([[[3.0, 2.0, -5.0], [-5.0, -5.0, 1.0]]])
    boxes = torch.tensor([[[0.5, 0.5, 1.0, 1.0], [0.5, 0.5, 0.5, 0.5]]])
    (found,) = postprocess(_output(logits, boxes), [(10, 10)], [0], CATEGORIES, activation="sigmoid", max_detections=3)
    np.testing.assert_allclose(found.scores, torch.tensor([3.0, 2.0, 1.0]).sigmoid(), rtol=1e-6)
    assert found.labels.tolist() == [5, 7, 40]
    np.testing.assert_allclose(found.boxes_xyxy[:, 2], [10, 10, 7.5])


def test_no_images() -> None:
    assert (
        postprocess(_output(torch.zeros(0, 5, 4), torch.zeros(0, 5, 4)), [], [], CATEGORIES, activation="softmax") == []
    )


def _output(logits: torch.Tensor, boxes: torch.Tensor) -> ModelOutput:
    return ModelOutput(pred_logits=logits, pred_boxes=boxes)

"""The batched matcher against the reference's way: one layer at a time, everything against everything."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torchvision.ops import generalized_box_iou

from detronome.losses.matcher import HungarianMatcher, LayerStack
from detronome.ops.boxes import cxcywh_to_xyxy
from detronome.types import Target


def make_target(seed: int, count: int, num_classes: int = 5) -> Target:
    random = torch.Generator().manual_seed(seed)
    return Target(
        boxes_cxcywh=torch.rand(count, 4, generator=random) * 0.5 + 0.2,
        labels=torch.randint(num_classes, (count,), generator=random),
        image_id=seed,
        size_hw=(10, 10),
        orig_size_hw=(10, 10),
    )


def make_stack(seed: int, layers: int, images: int, queries: int, classes: int = 6) -> LayerStack:
    random = torch.Generator().manual_seed(seed)
    return LayerStack(
        torch.randn(layers, images, queries, classes, generator=random),
        torch.rand(layers, images, queries, 4, generator=random) * 0.5 + 0.2,
    )


MATCHER = HungarianMatcher(cost_class=1.0, cost_bbox=5.0, cost_giou=2.0, class_cost="softmax")


def test_no_objects_at_all() -> None:
    (matching,) = MATCHER([make_stack(0, 3, 2, 4)], [make_target(0, 0), make_target(1, 0)])
    assert matching.query_index.shape == (3, 0) and matching.image_index.shape == (0,)


@given(seed=st.integers(0, 1000), counts=st.lists(st.integers(0, 6), min_size=1, max_size=4), queries=st.integers(1, 8))
def test_every_layer_and_image_gets_the_cheapest_assignment(seed: int, counts: list[int], queries: int) -> None:
    targets = [make_target(seed + i, count) for i, count in enumerate(counts)]
    stack = make_stack(seed, 2, len(counts), queries)
    (matching,) = MATCHER([stack], targets)
    first = [sum(counts[:i]) for i in range(len(counts))]
    for layer in range(2):
        for i, target in enumerate(targets):
            boxes = stack.boxes_cxcywh[layer, i]
            cost = (
                -stack.logits[layer, i].softmax(-1)[:, target.labels]
                + 5 * torch.cdist(boxes, target.boxes_cxcywh, p=1)
                - 2 * generalized_box_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(target.boxes_cxcywh))
            )
            rows, columns = linear_sum_assignment(cost.numpy())
            mine = matching.image_index == i
            found_queries = matching.query_index[layer, mine]
            found_targets = matching.target_index[layer, mine] - first[i]
            assert len(set(found_queries.tolist())) == len(found_queries) == min(counts[i], queries)
            total = cost[found_queries, found_targets].sum()
            assert float(total) == pytest.approx(float(cost[rows, columns].sum()), abs=1e-4)


def test_several_stacks_are_matched_as_if_alone() -> None:
    targets = [make_target(1, 3), make_target(2, 0), make_target(3, 5)]
    small, large = make_stack(4, 2, 3, 7), make_stack(5, 1, 3, 40)
    together = MATCHER([small, large], targets)
    for matching, stack in zip(together, (small, large), strict=True):
        (alone,) = MATCHER([stack], targets)
        assert torch.equal(matching.query_index, alone.query_index)
        assert torch.equal(matching.target_index, alone.target_index)


def test_non_finite_predictions_are_told_not_hidden() -> None:
    stack = make_stack(0, 1, 1, 4)
    stack.boxes_cxcywh[0, 0, 2] = torch.nan
    (matching,) = MATCHER([stack], [make_target(0, 2)])
    assert not matching.is_finite

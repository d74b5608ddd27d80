"""Box arithmetic against torchvision, empty boxes first."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import box_iou, generalized_box_iou

from detronome.ops.boxes import (
    cxcywh_to_xyxy,
    elementwise_giou,
    elementwise_iou,
    pairwise_l1_and_giou,
    xyxy_to_cxcywh,
)


def _boxes(seed: int, count: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    corner, size = torch.rand(count, 2, generator=random), torch.rand(count, 2, generator=random) + 1e-3
    return torch.cat((corner, corner + size), dim=-1)


def test_no_boxes() -> None:
    none = torch.empty(0, 4)
    assert cxcywh_to_xyxy(none).shape == (0, 4)
    assert elementwise_giou(none, none).shape == (0,)
    l1, giou = pairwise_l1_and_giou(none, torch.rand(3, 4))
    assert l1.shape == giou.shape == (0, 3)


@given(seed=st.integers(0, 10_000), n=st.integers(0, 6), m=st.integers(0, 6))
def test_overlaps_equal_torchvision(seed: int, n: int, m: int) -> None:
    a, b = _boxes(seed, n), _boxes(seed + 1, m)
    centred_a, centred_b = xyxy_to_cxcywh(a), xyxy_to_cxcywh(b)
    l1, giou = pairwise_l1_and_giou(centred_a, centred_b)
    torch.testing.assert_close(l1, torch.cdist(centred_a, centred_b, p=1), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(giou, generalized_box_iou(a, b), atol=1e-5, rtol=1e-5)
    few = min(n, m)
    torch.testing.assert_close(
        elementwise_iou(a[:few], b[:few]), box_iou(a[:few], b[:few]).diagonal(), atol=1e-6, rtol=1e-5
    )
    torch.testing.assert_close(
        elementwise_giou(a[:few], b[:few]), generalized_box_iou(a[:few], b[:few]).diagonal(), atol=1e-6, rtol=1e-5
    )


@given(seed=st.integers(0, 10_000))
def test_formats_are_inverse(seed: int) -> None:
    boxes = _boxes(seed, 5)
    torch.testing.assert_close(cxcywh_to_xyxy(xyxy_to_cxcywh(boxes)), boxes, atol=1e-6, rtol=0)


@pytest.mark.parametrize("function", [elementwise_iou, elementwise_giou])
def test_degenerate_boxes_give_finite_values_and_gradients(function) -> None:
    a = torch.tensor([[0.5, 0.5, 0.5, 0.5]], requires_grad=True)
    b = torch.tensor([[0.5, 0.5, 0.5, 0.5]])
    value = function(a, b)
    value.sum().backward()
    assert value.isfinite().all() and a.grad is not None and a.grad.isfinite().all()

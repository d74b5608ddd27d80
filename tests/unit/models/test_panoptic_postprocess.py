"""From masks to panoptic maps: the reference's steps, written a second time with numpy and Pillow, give the same."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from detronome.models.panoptic.postprocess import panoptic_postprocess
from detronome.types import Categories, ModelOutput, PanopticPrediction

CATEGORIES = Categories(ids=(1, 5, 90, 92, 200), names=tuple("abcde"), is_thing=(True, True, True, False, False))
NO_OBJECT = len(CATEGORIES)


class GivenMasks:
    """Masks that are there already."""

    def __init__(self, masks: torch.Tensor, padded_size_hw: tuple[int, int]) -> None:
        self.masks = masks
        self.padded_size_hw = padded_size_hw

    def of(self, image_index: torch.Tensor, query_index: torch.Tensor) -> torch.Tensor:
        return self.masks[image_index, query_index]

    def all(self) -> torch.Tensor:
        return self.masks


def test_nothing_confident_gives_nothing_but_void() -> None:
    (found,) = _postprocess(_output([3, 4], [0.85, 0.3], torch.randn(2, 4, 4)), (16, 16), (9, 7))
    assert found.segments == () and found.segment_ids.shape == (9, 7) and not found.segment_ids.any()
    (found,) = _postprocess(_output([NO_OBJECT], [0.99], torch.randn(1, 4, 4)), (16, 16), (9, 7))
    assert found.segments == ()


def test_one_confident_query_takes_every_pixel() -> None:
    (found,) = _postprocess(_output([NO_OBJECT, 3], [0.9, 0.9], torch.full((2, 4, 4), -9.0)), (16, 16), (9, 7))
    (segment,) = found.segments
    assert (segment.id, segment.category_id, segment.is_thing, segment.area) == (1, 92, False, 63)
    assert abs(segment.score - 0.9) < 1e-5 and (found.segment_ids == 1).all() and found.image_id == 77


def test_things_of_a_class_stay_apart() -> None:
    left = torch.linspace(3, -3, 8).expand(8, 8)
    (found,) = _postprocess(_output([1, 1], [0.9, 0.95], torch.stack((left, -left))), (32, 32), (32, 32))
    assert [segment.area for segment in found.segments] == [512, 512]
    assert found.segment_ids[0, 0] == 1 and found.segment_ids[0, -1] == 2


def test_merged_stuff_falls_apart_when_a_segment_is_dropped() -> None:
    """The quirk: the second query of a kind of stuff is left without pixels, is dropped with the small ones, and the
    map is made anew without it; its pixels go to whoever comes next."""
    left = torch.linspace(3, -3, 8).expand(8, 8)
    thing = torch.full((8, 8), -1.0)
    thing[0, 0] = 9.0
    masks = torch.stack((left, -left, thing))
    (found,) = _postprocess(_output([3, 3, 0], [0.9, 0.9, 0.9], masks), (32, 32), (32, 32))
    assert [segment.category_id for segment in found.segments] == [92, 1]
    assert found.segments[1].area > 200, "the thing has none of these pixels as long as both queries are there"


def test_padding_is_cut_off() -> None:
    masks = torch.full((2, 8, 8), -5.0)
    masks[0, :, :4] = masks[1, :, 4:] = 5.0
    (found,) = _postprocess(_output([0, 1], [0.9, 0.9], masks), (20, 16), (20, 16), padded_hw=(32, 32))
    assert [segment.category_id for segment in found.segments] == [1], "the other lies in the padding"


def test_a_prediction_does_not_depend_on_its_neighbours() -> None:
    torch.manual_seed(0)
    one = _output([0, 3, 3, 1], [0.9, 0.9, 0.95, 0.86], torch.randn(4, 8, 8))
    other = _output([NO_OBJECT, 2, 3, 1], [0.9, 0.9, 0.95, 0.5], torch.randn(4, 8, 8))
    assert one.pred_masks is not None and other.pred_masks is not None
    both = ModelOutput(
        pred_logits=torch.cat((one.pred_logits, other.pred_logits)),
        pred_boxes=torch.cat((one.pred_boxes, other.pred_boxes)),
        masks=GivenMasks(torch.cat((one.pred_masks, other.pred_masks)), (32, 32)),
    )
    together = panoptic_postprocess(both, [(32, 32)] * 2, [(40, 30), (20, 50)], [1, 2], CATEGORIES)
    for output, size, found in zip((one, other), ((40, 30), (20, 50)), together, strict=True):
        (alone,) = _postprocess(output, (32, 32), size)
        np.testing.assert_array_equal(found.segment_ids, alone.segment_ids)
        assert found.segments == alone.segments


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    num_queries=st.integers(1, 12),
    cells=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    orig_hw=st.tuples(st.integers(1, 50), st.integers(1, 50)),
)
def test_equals_the_reference_written_a_second_time(
    seed: int, num_queries: int, cells: tuple[int, int], orig_hw: tuple[int, int]
) -> None:
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, NO_OBJECT + 1, (num_queries,), generator=random).tolist()
    scores = (0.8 + 0.19 * torch.rand(num_queries, generator=random)).tolist()
    masks = 3 * torch.randn(num_queries, *cells, generator=random)
    size_hw = (4 * cells[0], 4 * cells[1])
    output = _output(labels, scores, masks)
    (found,) = _postprocess(output, size_hw, orig_hw)
    expected_map, expected = _reference(output, size_hw, orig_hw)
    assert [(s.category_id, s.is_thing, s.area) for s in found.segments] == expected
    np.testing.assert_array_equal(found.segment_ids, expected_map + 1 if expected else np.zeros(orig_hw))


def _postprocess(
    output: ModelOutput, size_hw: tuple[int, int], orig_hw: tuple[int, int], padded_hw: tuple[int, int] | None = None
) -> list[PanopticPrediction]:
    assert isinstance(output.masks, GivenMasks)
    output.masks.padded_size_hw = padded_hw or size_hw
    return panoptic_postprocess(output, [size_hw], [orig_hw], [77], CATEGORIES)


def _output(labels: list[int], scores: list[float], masks: torch.Tensor) -> ModelOutput:
    """Return the output for one image, in which each query has this best class with this probability."""
    probabilities = torch.zeros(len(labels), NO_OBJECT + 1)
    for query, (label, score) in enumerate(zip(labels, scores, strict=True)):
        probabilities[query] = (1 - score) / NO_OBJECT
        probabilities[query, label] = score
    return ModelOutput(
        pred_logits=probabilities.log()[None],
        pred_boxes=torch.zeros(1, len(labels), 4),
        masks=GivenMasks(masks[None], (0, 0)),
    )


def _reference(
    output: ModelOutput, size_hw: tuple[int, int], orig_hw: tuple[int, int]
) -> tuple[NDArray[np.int64], list[tuple[int, bool, int]]]:
    """Follow the published description step by step, with sets and loops: confident queries; bilinear masks; softmax
    over queries and the best one for each pixel; stuff merged; nearest pixels; small segments dropped, again and again,
    without merging."""
    probabilities = np.exp(output.pred_logits[0].double().numpy())
    probabilities /= probabilities.sum(1, keepdims=True)
    kept = [q for q, p in enumerate(probabilities) if p.argmax() != NO_OBJECT and p.max() > 0.85]
    assert output.pred_masks is not None
    wide = torch.nn.functional.interpolate(output.pred_masks, size=size_hw, mode="bilinear")[0].double().numpy()
    assert CATEGORIES.is_thing is not None
    label_of = {q: int(probabilities[q].argmax()) for q in kept}
    stuff_owner: dict[int, int] = {}
    for q in kept:
        if not CATEGORIES.is_thing[label_of[q]]:
            stuff_owner.setdefault(label_of[q], q)

    def drawn(queries: list[int], *, merge: bool) -> tuple[NDArray[np.int64], list[int]]:
        if not queries:
            return np.zeros(orig_hw, np.int64), []
        exponents = np.exp(wide[queries] - wide[queries].max(0))
        winners = (exponents / exponents.sum(0)).argmax(0)
        for place, q in enumerate(queries):
            if merge and label_of[q] in stuff_owner:
                winners[winners == place] = queries.index(stuff_owner[label_of[q]])
        picture = Image.fromarray(winners.astype(np.uint8)).resize(orig_hw[::-1], Image.Resampling.NEAREST)
        pixels = np.asarray(picture).astype(np.int64)
        return pixels, [int((pixels == place).sum()) for place in range(len(queries))]

    pixels, areas = drawn(kept, merge=True)
    while any(area <= 4 for area in areas):
        kept = [q for q, area in zip(kept, areas, strict=True) if area > 4]
        pixels, areas = drawn(kept, merge=False)
    segments = [
        (CATEGORIES.ids[label_of[q]], CATEGORIES.is_thing[label_of[q]], area)
        for q, area in zip(kept, areas, strict=True)
    ]
    return pixels, segments

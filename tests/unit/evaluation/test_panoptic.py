"""Panoptic quality is what its definition says: an oracle in plain loops over pixels, and its properties."""

from __future__ import annotations

import math
import pickle
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detronome.evaluation.panoptic import PanopticEvaluator, PanopticMetrics
from detronome.evaluation.panoptic_defects import DefectivePredictionError
from detronome.types import Categories, PanopticPrediction, PanopticTruth, Segment

CATEGORIES = Categories((9, 2, 40), ("sky", "cat", "dog"), (False, True, True))
Ids = Any
Pair = tuple[PanopticTruth, PanopticPrediction]


def truth_of(ids: Ids, categories: dict[int, int], crowds: Iterable[int] = (), image_id: int = 1) -> PanopticTruth:
    segment_ids = np.array(ids, np.int32)
    listed = list(categories)
    return PanopticTruth(
        segment_ids=segment_ids,
        ids=np.array(listed, np.int64),
        category_ids=np.array([categories[i] for i in listed], np.int64),
        areas=np.array([(segment_ids == i).sum() for i in listed], np.int64),
        is_crowd=np.array([i in set(crowds) for i in listed], np.bool_),
        image_id=image_id,
    )


def prediction_of(ids: Ids, categories: dict[int, int], image_id: int = 1) -> PanopticPrediction:
    segments = tuple(Segment(id=i, category_id=c, is_thing=True, area=0) for i, c in categories.items())
    return PanopticPrediction(segment_ids=np.array(ids, np.int32), segments=segments, image_id=image_id)


def measured(*pairs: Pair) -> PanopticMetrics:
    evaluator = PanopticEvaluator(CATEGORIES)
    for truth, prediction in pairs:
        evaluator.add(truth, prediction)
    return evaluator.compute()


def oracle(pairs: Iterable[Pair]) -> dict[int, tuple[float, float, float]]:
    """PQ, SQ and RQ of each category that occurs: sets of pixels, and the definition read aloud."""
    iou_sum: dict[int, float] = defaultdict(float)
    found: dict[int, int] = defaultdict(int)
    errors: dict[int, int] = defaultdict(int)
    for truth, prediction in pairs:
        places = list(np.ndindex(*truth.segment_ids.shape))
        void = {p for p in places if truth.segment_ids[p] == 0}
        true = {int(i): {p for p in places if truth.segment_ids[p] == i} for i in truth.ids}
        guessed = {s.id: {p for p in places if prediction.segment_ids[p] == s.id} for s in prediction.segments}
        category = {int(i): int(c) for i, c in zip(truth.ids, truth.category_ids, strict=True)}
        crowds = {int(i) for i, crowd in zip(truth.ids, truth.is_crowd, strict=True) if crowd}
        hit: set[int] = set()
        for segment in prediction.segments:
            pixels = guessed[segment.id]
            for i, true_pixels in true.items():
                if i in crowds or category[i] != segment.category_id or not pixels & true_pixels:
                    continue
                iou = len(pixels & true_pixels) / len((pixels | true_pixels) - (pixels & void))
                if iou > 0.5:
                    iou_sum[category[i]] += iou
                    found[category[i]] += 1
                    hit.add(i)
                    break
            else:
                crowd = [true[i] for i in true if i in crowds and category[i] == segment.category_id]
                excused = pixels & (void | (crowd[-1] if crowd else set()))
                if 2 * len(excused) <= len(pixels):
                    errors[segment.category_id] += 1
        for i in true:
            if i not in hit and i not in crowds:
                errors[category[i]] += 1
    return {
        c: (
            iou_sum[c] / (found[c] + errors[c] / 2),
            iou_sum[c] / found[c] if found[c] else 0.0,
            found[c] / (found[c] + errors[c] / 2),
        )
        for c in {*found, *errors}
    }


def some_map(rng: np.random.Generator, num_segments: int) -> tuple[np.ndarray[Any, Any], dict[int, int]]:
    """A map of overlapping rectangles on void, and the category of each id that is left."""
    ids = np.zeros((8, 9), np.int32)
    for _ in range(num_segments):
        top, left = rng.integers(0, 6), rng.integers(0, 7)
        ids[top : top + rng.integers(1, 7), left : left + rng.integers(1, 7)] = rng.integers(1, 2**24)
    return ids, {int(i): int(rng.choice(CATEGORIES.ids)) for i in np.unique(ids) if i}


def some_pair(seed: int, image_id: int) -> Pair:
    """A truth with void and crowds, and a prediction that is partly a distorted copy of it."""
    rng = np.random.default_rng(seed)
    true_ids, true_categories = some_map(rng, int(rng.integers(0, 8)))
    crowds = [i for i in true_categories if rng.random() < 0.3]
    ids, categories = some_map(rng, int(rng.integers(0, 5)))
    if rng.random() < 0.7:
        ids = np.where(rng.random((8, 1)) < 0.7, true_ids, ids)
        known = true_categories | categories
        categories = {int(i): known[int(i)] for i in np.unique(ids) if i}
    if rng.random() < 0.3:  # true segments that are not listed, or nowhere
        true_categories = {i: c for i, c in true_categories.items() if rng.random() < 0.5} | {2**24: 2}
    return truth_of(true_ids, true_categories, crowds, image_id), prediction_of(ids, categories, image_id)


def test_nothing_is_measured_where_there_is_nothing() -> None:
    metrics = measured()
    assert metrics.num_images == 0 and metrics.all.num_categories == 0
    assert all(math.isnan(value) for value in metrics.numbers.values())
    assert metrics.to_json()["numbers"]["PQ"] is None
    empty = measured((truth_of(np.zeros((3, 4)), {}), prediction_of(np.zeros((3, 4)), {})))
    assert empty.num_images == 1 and math.isnan(empty.all.PQ)


def test_an_empty_prediction_finds_nothing() -> None:
    metrics = measured((truth_of([[5, 5], [6, 0]], {5: 2, 6: 9}), prediction_of([[0, 0], [0, 0]], {})))
    assert metrics.numbers == dict.fromkeys(metrics.numbers, 0.0)
    assert metrics.per_category[2].false_negatives == metrics.per_category[9].false_negatives == 1
    assert math.isnan(metrics.per_category[40].PQ)


def test_void_under_a_segment_does_not_count_against_it() -> None:
    truth = truth_of([[5, 5, 0, 0]], {5: 2})
    metrics = measured((truth, prediction_of([[7, 7, 7, 7]], {7: 2})))
    assert metrics.per_category[2].PQ == 1.0


def test_half_on_void_is_a_false_positive_and_more_is_not() -> None:
    half = measured((truth_of([[0, 0, 5, 5]], {5: 9}), prediction_of([[7, 7, 7, 7]], {7: 2})))
    assert half.per_category[2].false_positives == 1
    more = measured((truth_of([[0, 0, 0, 5]], {5: 9}), prediction_of([[7, 7, 7, 7]], {7: 2})))
    assert more.per_category[2].false_positives == 0


def test_a_crowd_excuses_its_own_category_alone() -> None:
    truth = truth_of([[5, 5, 5, 6]], {5: 2, 6: 9}, crowds=[5])
    cats = measured((truth, prediction_of([[7, 7, 8, 8]], {7: 2, 8: 2})))
    assert cats.per_category[2].false_positives == 1  # 7 lies on the crowd, 8 half of it
    dogs = measured((truth, prediction_of([[7, 7, 7, 7]], {7: 40})))
    assert dogs.per_category[40].false_positives == 1
    assert dogs.per_category[2].false_negatives == 0, "a crowd cannot be missed"


def test_of_two_crowds_the_last_listed_counts_as_in_panopticapi() -> None:
    prediction = prediction_of([[7, 7, 7, 7]], {7: 2})
    first = truth_of([[5, 5, 5, 6]], {5: 2, 6: 2}, crowds=[5, 6])
    last = truth_of([[5, 5, 5, 6]], {6: 2, 5: 2}, crowds=[5, 6])
    assert measured((first, prediction)).per_category[2].false_positives == 1
    assert measured((last, prediction)).per_category[2].false_positives == 0


def test_iou_of_one_half_is_no_match() -> None:
    metrics = measured((truth_of([[5, 5, 6, 6]], {5: 2, 6: 9}), prediction_of([[7, 0, 8, 8]], {7: 2, 8: 9})))
    assert metrics.per_category[2].true_positives == 0 and metrics.per_category[9].true_positives == 1


@given(st.integers(0, 10**9), st.integers(1, 4))
def test_numbers_are_those_of_the_definition(seed: int, num_images: int) -> None:
    pairs = [some_pair(seed + n, n) for n in range(num_images)]
    metrics, expected = measured(*pairs), oracle(pairs)
    for category_id, quality in metrics.per_category.items():
        numbers = (quality.PQ, quality.SQ, quality.RQ)
        if category_id in expected:
            assert numbers == pytest.approx(expected[category_id], abs=1e-12)
        else:
            assert all(math.isnan(number) for number in numbers)
    things = [expected[c] for c in (2, 40) if c in expected]
    if things:
        numbers = (metrics.things.PQ, metrics.things.SQ, metrics.things.RQ)
        assert numbers == pytest.approx(tuple(np.mean(things, axis=0)), abs=1e-12)
    assert metrics.things.num_categories == len(things)
    assert metrics.all.num_categories == metrics.things.num_categories + metrics.stuff.num_categories == len(expected)


@given(st.integers(0, 10**9))
def test_the_truth_as_prediction_is_perfect(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ids, categories = some_map(rng, 6)
    metrics = measured((truth_of(ids, categories), prediction_of(ids, categories)))
    for quality in metrics.per_category.values():
        assert quality.PQ == quality.SQ == quality.RQ == 1.0 or math.isnan(quality.PQ)


@given(st.integers(0, 10**9))
def test_which_ids_segments_have_does_not_matter(seed: int) -> None:
    truth, prediction = some_pair(seed, 3)
    rng = np.random.default_rng(seed)
    others = dict(zip((s.id for s in prediction.segments), rng.permutation(np.arange(1, 500)).tolist(), strict=False))
    ids = np.vectorize(lambda i: others.get(i, 0), otypes=[np.int32])(prediction.segment_ids)
    shuffled = {others[s.id]: s.category_id for s in sorted(prediction.segments, key=lambda s: others[s.id])}
    renamed = measured((truth, prediction_of(ids, shuffled, 3)))
    for category_id, quality in measured((truth, prediction)).per_category.items():
        assert vars(renamed.per_category[category_id]) == pytest.approx(vars(quality), nan_ok=True)


@given(st.integers(0, 10**9))
def test_parts_measured_apart_add_up(seed: int) -> None:
    pairs = [some_pair(seed + n, n) for n in range(6)]
    whole = measured(*pairs)
    parts = [PanopticEvaluator(CATEGORIES) for _ in range(3)]
    for n, pair in enumerate(pairs):
        parts[n % 3].add(*pair)
    main = PanopticEvaluator(CATEGORIES)
    for part in parts:
        main.add_arrays(pickle.loads(pickle.dumps(part.to_arrays())))
    assert main.compute().numbers == pytest.approx(whole.numbers, nan_ok=True)
    assert main.compute().num_images == 6
    with pytest.raises(DefectivePredictionError, match="compared twice: image 0; image 3"):
        main.add_arrays(parts[0].to_arrays())


def test_everything_wrong_with_a_prediction_is_said_at_once() -> None:
    evaluator = PanopticEvaluator(CATEGORIES)
    truth = truth_of([[5, 5], [5, 0]], {5: 2})
    wrong = prediction_of([[1, 1], [8, 8]], {8: 3, 4: 2})
    with pytest.raises(DefectivePredictionError) as caught:
        evaluator.add(truth, wrong)
    assert [defect.kind for defect in caught.value.defects] == ["id_unlisted", "id_absent", "category_unknown"]
    assert "image 1: 1" in caught.value.problems[0].what and "image 1: 4" in caught.value.problems[1].what
    assert pickle.loads(pickle.dumps(caught.value)).defects == caught.value.defects
    assert evaluator.compute().num_images == 0
    with pytest.raises(DefectivePredictionError, match=r"another size.*image 1: 1x2, the true one 2x2"):
        evaluator.add(truth, prediction_of([[0], [0]], {}))
    with pytest.raises(DefectivePredictionError, match="image 7 with 1"):
        evaluator.add(truth, prediction_of([[0, 0], [0, 0]], {}, image_id=7))
    with pytest.raises(DefectivePredictionError, match="true segments have categories"):
        evaluator.add(truth_of([[5]], {5: 11}), prediction_of([[0]], {}))
    evaluator.add(truth, prediction_of([[0, 0], [0, 0]], {}))
    with pytest.raises(DefectivePredictionError, match="compared twice"):
        evaluator.add(truth, prediction_of([[0, 0], [0, 0]], {}))


def test_categories_that_nobody_sorted_are_things() -> None:
    evaluator = PanopticEvaluator(Categories((1,), ("cell",)))
    evaluator.add(truth_of([[5]], {5: 1}), prediction_of([[3]], {3: 1}))
    assert evaluator.compute().things.PQ == 1.0 and evaluator.compute().stuff.num_categories == 0

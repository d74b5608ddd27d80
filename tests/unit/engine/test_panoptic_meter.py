"""Panoptic quality while a model is evaluated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.unit.data.panoptic_folder import write_panoptic

from detronome.data.split import DataSplit, open_split
from detronome.engine.panoptic_meter import PanopticMeter
from detronome.evaluation.panoptic import PanopticMetrics
from detronome.runtime.distributed import ALONE
from detronome.types import Categories, PanopticPrediction, Segment


@pytest.fixture
def split(tmp_path: Path) -> DataSplit:
    return open_split(write_panoptic(tmp_path, 3), "train", annotations="panoptic")


def test_the_truth_is_its_own_best_prediction(split: DataSplit) -> None:
    meter = PanopticMeter(split, split.index.categories, min_score=0.85)
    meter.add([_truth(split, i) for i in range(3)])
    metrics = meter.compute(ALONE)
    assert metrics.num_images == 3
    assert metrics.numbers["PQ"] == pytest.approx(1.0)
    meter.reset()
    assert meter.compute(ALONE).num_images == 0


def test_segments_of_categories_that_the_split_does_not_list_are_void(split: DataSplit) -> None:
    """A model may know more categories than a split."""
    more = Categories(ids=(1, 17, 200, 999), names=("cat", "dog", "sky", "unicorn"), is_thing=(True, True, False, True))
    one = _truth(split, 0)
    first, *rest = one.segments
    unknown = replace(one, segments=(replace(first, category_id=999), *rest))
    void = replace(
        one,
        segment_ids=np.where(one.segment_ids == first.id, 0, one.segment_ids).astype(np.int32),
        segments=tuple(rest),
    )
    assert _measured(split, more, unknown).numbers == pytest.approx(_measured(split, more, void).numbers, nan_ok=True)


def _measured(split: DataSplit, categories: Categories, prediction: PanopticPrediction) -> PanopticMetrics:
    meter = PanopticMeter(split, categories, min_score=0.85)
    meter.add([prediction])
    return meter.compute(ALONE)


def _truth(split: DataSplit, i: int) -> PanopticPrediction:
    assert split.maps is not None
    truth = split.maps.truth(i)
    rows = zip(truth.ids.tolist(), truth.category_ids.tolist(), truth.areas.tolist(), strict=True)
    return PanopticPrediction(
        segment_ids=truth.segment_ids,
        segments=tuple(Segment(id=n, category_id=c, is_thing=c != 200, area=area) for n, c, area in rows),
        image_id=truth.image_id,
    )

"""Panoptic quality of files equals what panopticapi's `pq_compute` gave for them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from detronome.api import evaluate_panoptic_results


@pytest.mark.parametrize(
    ("name", "predicted"),
    [("predicted", "predicted.json"), ("ground_truth_as_prediction", "panoptic_examples.json")],
)
def test_all_numbers_are_those_of_panopticapi(shared_data: Path, name: str, predicted: str) -> None:
    folder = shared_data / "eval_panoptic_sample"
    expected = json.loads((folder / "expected.json").read_text())[name]
    metrics = evaluate_panoptic_results(folder / predicted, folder / "panoptic_examples.json")
    for group in ("All", "Things", "Stuff"):
        quality, theirs = getattr(metrics, group.lower()), expected[group]
        numbers = (quality.PQ, quality.SQ, quality.RQ)
        assert numbers == pytest.approx((theirs["pq"], theirs["sq"], theirs["rq"]), abs=1e-9)
        assert quality.num_categories == theirs["n"]
    assert set(expected["per_class"]) == {str(category_id) for category_id in metrics.per_category}
    for category_id, theirs in expected["per_class"].items():
        ours = metrics.per_category[int(category_id)]
        for value, wanted in ((ours.PQ, theirs["pq"]), (ours.SQ, theirs["sq"]), (ours.RQ, theirs["rq"])):
            # A category that does not occur is 0 there, and not a number here.
            assert (0.0 if math.isnan(value) else value) == pytest.approx(wanted, abs=1e-9)

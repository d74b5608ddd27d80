"""Our twelve numbers against pycocotools': random sets with ties, crowds and empties, and a published fixture."""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detronome.evaluation.detection import DetectionEvaluator, DetectionMetrics, evaluate_results_file
from detronome.types import Detections

pytest.importorskip("pycocotools")
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

TEST_DATA = Path(os.environ.get("DETRONOME_TEST_DATA", Path(__file__).parents[2] / "../shared/data")).resolve()
FAKE100 = TEST_DATA / "eval_coco2014_fake100"
TWELVE = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
TWELVE += ("AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large")
TOLERANCE = 1e-9


def oracle(
    truth: dict[str, Any],
    rows: np.ndarray,
    *,
    max_dets: tuple[int, ...] = (1, 10, 100),
    class_agnostic: bool = False,
    image_ids: list[int] | None = None,
) -> tuple[list[float], list[float], list[float]]:
    """Return pycocotools' twelve numbers, AP per category and AR per category; nan where it says -1."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = json.loads(json.dumps(truth))
        coco.createIndex()
        if len(rows):
            results = coco.loadRes(rows)
        else:
            results = COCO()
            results.dataset = {**coco.dataset, "annotations": []}
            results.createIndex()
        evaluation = COCOeval(coco, results, "bbox")
        evaluation.params.maxDets = list(max_dets)
        evaluation.params.useCats = int(not class_agnostic)
        if image_ids is not None:
            evaluation.params.imgIds = image_ids
        evaluation.evaluate()
        evaluation.accumulate()
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]

    def mean(values: np.ndarray) -> float:
        return float(values[values > -1].mean()) if (values > -1).any() else float("nan")

    numbers = [mean(precision[..., 0, -1]), mean(precision[0, ..., 0, -1]), mean(precision[5, ..., 0, -1])]
    numbers += [mean(precision[..., a, -1]) for a in (1, 2, 3)]
    numbers += [mean(recall[..., 0, m]) for m in (0, 1, 2)] + [mean(recall[..., a, -1]) for a in (1, 2, 3)]
    categories = range(precision.shape[2])
    return (
        numbers,
        [mean(precision[:, :, k, 0, -1]) for k in categories],
        [mean(recall[:, k, 0, -1]) for k in categories],
    )


def as_detections(rows: np.ndarray, image_ids: list[int]) -> list[Detections]:
    """Turn (image id, left, top, width, height, score, category id) rows into our records, in double precision."""
    records = []
    for image_id in image_ids:
        own = rows[rows[:, 0] == image_id]
        boxes_xyxy = np.column_stack([own[:, 1:3], own[:, 1:3] + own[:, 3:5]])
        labels = own[:, 6].astype(np.int64)
        records.append(Detections(boxes_xyxy=boxes_xyxy, scores=own[:, 5], labels=labels, image_id=image_id))
    return records


# Corners are multiples of 1/4 up to 1024, so that x + w - x gives w back to the last bit.
quarter = st.integers(0, 4 * 150).map(lambda n: n / 4)
side = st.one_of(
    st.integers(1, 4 * 130).map(lambda n: n / 4),
    st.sampled_from([0.0, 31.75, 32.0, 32.25, 95.75, 96.0, 96.25]),
)
box = st.tuples(quarter, quarter, side, side)
score = st.one_of(st.sampled_from([0.1, 0.3, 0.5, 0.5, 0.9]), st.floats(0, 1))


@st.composite
def problems(draw: st.DrawFn) -> tuple[dict[str, Any], np.ndarray]:
    """Draw a ground truth and detections, most of which are shifted copies of its boxes."""
    image_ids = draw(st.lists(st.integers(0, 99), min_size=1, max_size=5, unique=True))
    category_ids = draw(st.lists(st.integers(0, 30), min_size=1, max_size=3, unique=True))
    annotations: list[dict[str, Any]] = []
    for n in range(draw(st.integers(0, 12))):
        x, y, w, h = draw(box)
        area = draw(st.sampled_from([w * h, w * h * 0.5, 32.0**2, 96.0**2, 0.0]))
        annotations.append(
            {
                "id": n + 1,
                "image_id": draw(st.sampled_from(image_ids)),
                "category_id": draw(st.sampled_from(category_ids)),
                "bbox": [x, y, w, h],
                "area": area,
                "iscrowd": int(draw(st.integers(0, 4)) == 0),
            }
        )
    truth = {
        "images": [{"id": i, "width": 400, "height": 400} for i in image_ids],
        "categories": [{"id": c, "name": f"c{c}"} for c in category_ids],
        "annotations": annotations,
    }
    rows = []
    for _ in range(draw(st.integers(0, 25))):
        if annotations and draw(st.integers(0, 3)):
            near = draw(st.sampled_from(annotations))
            shift = draw(st.tuples(*[st.integers(-12, 12).map(lambda n: n / 4)] * 4))
            x, y, w, h = np.maximum(np.add(near["bbox"], shift), 0.0).tolist()
            image_id, category_id = near["image_id"], near["category_id"]
        else:
            x, y, w, h = draw(box)
            image_id, category_id = draw(st.sampled_from(image_ids)), draw(st.sampled_from(category_ids))
        rows.append([image_id, x, y, w, h, draw(score), category_id])
    return truth, np.array(rows, dtype=np.float64).reshape(-1, 7)


def assert_equal(metrics: DetectionMetrics, expected: tuple[list[float], list[float], list[float]]) -> None:
    numbers, per_class_ap, per_class_ar = expected
    ours = [metrics.numbers[name] for name in TWELVE]
    np.testing.assert_allclose(ours, numbers, rtol=0, atol=TOLERANCE)
    if metrics.per_class_ap:
        np.testing.assert_allclose(list(metrics.per_class_ap.values()), per_class_ap, rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(list(metrics.per_class_ar.values()), per_class_ar, rtol=0, atol=TOLERANCE)


SETTINGS = settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


@SETTINGS
@given(problems(), st.booleans())
def test_random_sets(problem: tuple[dict[str, Any], np.ndarray], class_agnostic: bool) -> None:
    truth, rows = problem
    evaluator = DetectionEvaluator(truth)
    evaluator.add(as_detections(rows, [image["id"] for image in truth["images"]]))
    metrics = evaluator.compute(class_agnostic=class_agnostic)
    assert_equal(metrics, oracle(truth, rows, class_agnostic=class_agnostic))
    assert metrics.num_detections == len(rows)


@SETTINGS
@given(problems(), st.integers(1, 3))
def test_few_detections_allowed_and_a_subset_of_images(
    problem: tuple[dict[str, Any], np.ndarray], max_detections: int
) -> None:
    truth, rows = problem
    image_ids = sorted(image["id"] for image in truth["images"])[::2]
    evaluator = DetectionEvaluator(truth, image_ids=image_ids)
    evaluator.add(as_detections(rows, image_ids))
    limits = (1, max_detections, max_detections)
    expected = oracle(truth, rows, max_dets=limits, image_ids=image_ids)
    assert_equal(evaluator.compute(max_detections=max_detections), expected)


@pytest.mark.parametrize("max_detections", [5, 100, 150])
def test_more_detections_than_the_limit(max_detections: int) -> None:
    rng = np.random.default_rng(0)
    truth = {
        "images": [{"id": i, "width": 400, "height": 400} for i in (7, 3)],
        "categories": [{"id": c, "name": str(c)} for c in (2, 1)],
        "annotations": [
            {"id": n + 1, "image_id": 3 + 4 * (n % 2), "category_id": 1 + n % 3 // 2, "area": 900.0, "iscrowd": 0}
            | {"bbox": [float(9 * n), 5.0, 30.0, 30.0]}
            for n in range(40)
        ],
    }
    rows = np.empty((600, 7))
    rows[:, 0] = rng.choice([3, 7], 600)
    rows[:, 1:3] = rng.integers(0, 1500, (600, 2)) / 4
    rows[:, 2] /= 20
    rows[:, 3:5] = rng.integers(100, 140, (600, 2)) / 4
    rows[:, 5] = rng.integers(0, 50, 600) / 50
    rows[:, 6] = rng.choice([1, 2], 600)
    evaluator = DetectionEvaluator(truth)
    evaluator.add(as_detections(rows, [3, 7]))
    limits = tuple(sorted(min(k, max_detections) for k in (1, 10, 100)))
    metrics = evaluator.compute(max_detections=max_detections)
    if max_detections <= 100:
        assert_equal(metrics, oracle(truth, rows, max_dets=limits))
        return
    numbers, _, _ = oracle(truth, rows, max_dets=(1, 10, 100, max_detections))
    assert metrics.numbers["AP"] == pytest.approx(numbers[0], abs=TOLERANCE)
    assert metrics.numbers["AR_100"] == pytest.approx(numbers[8], abs=TOLERANCE)
    assert metrics.numbers["AR_150"] > metrics.numbers["AR_100"]


def test_annotation_id_zero_is_counted_here_and_lost_there() -> None:
    truth = {
        "images": [{"id": 1}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [
            {
                "id": n,
                "image_id": 1,
                "category_id": 1,
                "bbox": [50.0 * n, 0.0, 40.0, 40.0],
                "area": 1600.0,
                "iscrowd": 0,
            }
            for n in (0, 1)
        ],
    }
    rows = np.array([[1, 0, 0, 40, 40, 0.9, 1], [1, 50, 0, 40, 40, 0.8, 1]], dtype=np.float64)
    evaluator = DetectionEvaluator(truth)
    evaluator.add(as_detections(rows, [1]))
    metrics = evaluator.compute()
    assert metrics.numbers["AP"] == 1.0
    assert oracle(truth, rows)[0][0] < 0.6
    assert any("annotation with id 0" in note for note in metrics.notes)


# --- the published fixture ----------------------------------------------------------------------------------------

needs_fixture = pytest.mark.skipif(not FAKE100.is_dir(), reason=f"no test data in {TEST_DATA}")


def fixture_cases() -> list[str]:
    if not FAKE100.is_dir():
        return []
    return [name for name, case in expected_numbers().items() if isinstance(case, dict) and "iou_type" in case]


def expected_numbers() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((FAKE100 / "expected.json").read_text())
    return content


@needs_fixture
@pytest.mark.parametrize("case", fixture_cases())
def test_fixture(case: str, capfd: pytest.CaptureFixture[str]) -> None:
    expected = expected_numbers()[case]
    iou_type, max_detections = expected["iou_type"], expected["max_dets"][-1]
    metrics = evaluate_results_file(
        FAKE100 / f"instances_val2014_fake{iou_type}100_results.json",
        FAKE100 / "instances_val2014_100.json",
        iou_type=iou_type,
        max_detections=max_detections,
        class_agnostic=not expected["use_cats"],
    )
    assert capfd.readouterr() == ("", "")
    assert (metrics.num_images, metrics.num_detections) == (100, 734)
    if expected.get("stats"):
        assert [metrics.numbers[name] for name in TWELVE] == pytest.approx(
            list(expected["stats"].values()), abs=TOLERANCE
        )
    assert metrics.numbers["AP"] == pytest.approx(expected["AP_at_last_max_dets"], abs=TOLERANCE)
    assert metrics.numbers["AR_100"] == pytest.approx(expected["AR_at_last_max_dets"], abs=TOLERANCE)
    names = {c["id"]: c["name"] for c in json.loads((FAKE100 / "instances_val2014_100.json").read_text())["categories"]}
    for category_id, values in (expected.get("per_category") or {}).items():
        name = names[int(category_id)]
        for ours, theirs in ((metrics.per_class_ap[name], values["AP"]), (metrics.per_class_ar[name], values["AR"])):
            assert ours == pytest.approx(np.nan if theirs in (None, -1) else theirs, abs=TOLERANCE, nan_ok=True)

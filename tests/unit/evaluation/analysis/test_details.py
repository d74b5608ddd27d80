"""What lies behind the numbers: empty things, scenes by hand, a slow reference, and the AP of the engine."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detronome.evaluation.analysis.confusion import ErrorKind
from detronome.evaluation.analysis.details import EvaluationDetails
from detronome.evaluation.detection import DetectionEvaluator
from detronome.types import Detections

Box = tuple[float, float, float, float]
Scene = tuple[list[tuple[Box, int, bool]], list[tuple[Box, int, float]]]
"""Of one image: (box, class, is a crowd region) of the truth, (box, class, score) of what was found."""

CLASSES = ("cat", "dog", "bird")
A, B, FAR = (0.0, 0.0, 10.0, 10.0), (40.0, 0.0, 10.0, 10.0), (80.0, 80.0, 10.0, 10.0)


def evaluator_of(scenes: list[Scene], classes: tuple[str, ...] = CLASSES) -> DetectionEvaluator:
    annotations = [
        {"id": n, "image_id": 10 * i, "category_id": 1 + label, "bbox": box, "area": box[2] * box[3], "iscrowd": crowd}
        for n, (i, (box, label, crowd)) in enumerate(
            ((i, one) for i, (truth, _) in enumerate(scenes) for one in truth), start=1
        )
    ]
    evaluator = DetectionEvaluator(
        {
            "images": [{"id": 10 * i, "file_name": f"{i}.jpg"} for i in range(len(scenes))],
            "categories": [{"id": 1 + k, "name": name} for k, name in enumerate(classes)],
            "annotations": annotations,
        }
    )
    for i, (_, found) in enumerate(scenes):
        table = np.array([[*box, score, label] for box, label, score in found], dtype=np.float64).reshape(-1, 6)
        boxes_xyxy = np.concatenate([table[:, :2], table[:, :2] + table[:, 2:4]], axis=1)
        evaluator.add(
            [
                Detections(
                    boxes_xyxy=boxes_xyxy.astype(np.float32),
                    scores=table[:, 4].astype(np.float32),
                    labels=1 + table[:, 5].astype(np.int64),
                    image_id=10 * i,
                )
            ]
        )
    return evaluator


def details_of(scenes: list[Scene], classes: tuple[str, ...] = CLASSES) -> EvaluationDetails:
    return evaluator_of(scenes, classes).details()


# --- empty things -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scenes", "classes"),
    [([], ()), ([], CLASSES), ([([], [])], CLASSES), ([([], [])], ())],
    ids=["nothing", "no image", "no object, no detection", "no class"],
)
def test_nothing_to_find_and_nothing_found(scenes: list[Scene], classes: tuple[str, ...]) -> None:
    details = details_of(scenes, classes)
    assert details.confusion.tolist() == [[0] * (len(classes) + 1)] * (len(classes) + 1)
    assert set(details.errors.values()) == {0}
    assert details.worst_images == ()
    record = details.to_json()
    assert [curve["precision"] for curve in record["curves"]] == [[]] * len(classes)
    assert record["overall"]["ap50"] is record["overall"]["best_f1"] is None
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_objects_without_detections_are_missed() -> None:
    details = details_of([([(A, 0, False), (B, 1, False)], []), ([], [])])
    assert details.confusion.tolist() == [[0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert details.overall.best_f1 == 0 and math.isnan(details.overall.best_score)
    assert details.overall.ap50 == 0
    assert details.to_json()["score_threshold"] == 0.5
    assert [(image.image_id, image.f1) for image in details.worst_images] == [(0, 0.0)]


def test_detections_without_objects_are_background() -> None:
    details = details_of([([], [(A, 0, 0.9), (B, 0, 0.8)])])
    assert details.confusion.tolist()[-1] == [2, 0, 0, 0]
    assert details.errors[ErrorKind.BACKGROUND] == 2
    assert details.worst_images[0].f1 == 0


def test_one_class_found_perfectly() -> None:
    details = details_of([([(A, 0, False)], [(A, 0, 0.7)])], ("cat",))
    assert details.confusion.tolist() == [[1, 0], [0, 0]]
    assert details.score_threshold == pytest.approx(0.7)
    assert details.overall.best_f1 == 1 and details.overall.ap50 == pytest.approx(1)
    assert details.worst_images == ()


# --- by hand ------------------------------------------------------------------------------------------------------


def test_each_kind_of_error() -> None:
    near = (40.0, 4.0, 10.0, 10.0)  # IoU 0.43 with B
    many = [((200.0, float(20 * k), 10.0, 10.0), 0) for k in range(30)]
    scene: Scene = (
        [(A, 0, False), (B, 1, False), (FAR, 2, False), *((box, label, False) for box, label in many)],
        [
            (A, 0, 0.9),
            (A, 0, 0.8),  # duplicate
            (near, 1, 0.9),  # location: leaves B missed
            (near, 2, 0.9),  # of another class: background
            (FAR, 0, 0.9),  # class
            *((box, label, 0.7) for box, label in many),
        ],
    )
    details = details_of([scene])
    assert details.score_threshold == pytest.approx(0.7)
    assert dict(details.errors) == {"missed": 1, "background": 1, "class": 1, "location": 1, "duplicate": 1}
    assert details.top_confusions() == [(2, 0, 1)]
    record = details.to_json(split="val", step=7, pictures={0: "worst_00-0.jpg"})
    assert record["top_confusions"] == [{"truth": "bird", "predicted": "cat", "count": 1}]
    (worst,) = record["worst_images"]
    assert worst["file"] == "0.jpg" and worst["picture"] == "worst_00-0.jpg"
    assert worst["f1"] == pytest.approx(2 * 31 / (33 + 35))
    assert [curve["num_missed"] for curve in record["curves"]] == [0, 1, 0]
    assert [curve["num_no_object"] for curve in record["curves"]] == [1, 1, 1]


def test_two_objects_at_one_place_are_not_confused() -> None:
    rider, bicycle = (0.0, 0.0, 10.0, 10.0), (0.0, 1.0, 10.0, 10.0)
    details = details_of([([(rider, 0, False), (bicycle, 1, False)], [(rider, 1, 0.9), (bicycle, 0, 0.8)])])
    assert details.confusion.tolist()[:2] == [[1, 0, 0, 0], [0, 1, 0, 0]]


def test_crowd_regions_ignore_detections_of_their_class_alone() -> None:
    crowd = (0.0, 0.0, 100.0, 100.0)
    details = details_of(
        [([(crowd, 0, True), (A, 1, False)], [(A, 1, 0.9), (B, 0, 0.95), (FAR, 2, 0.9), (A, 0, 0.99)])]
    )
    assert details.confusion.tolist() == [[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]]
    assert details.overall.num_found == 2
    assert details.curves[0].num_objects == 0 and details.curves[0].num_found == 0


def test_equal_scores_are_not_parted() -> None:
    details = details_of([([(A, 0, False), (B, 0, False)], [(A, 0, 0.5), (FAR, 0, 0.5), (B, 0, 0.5), (FAR, 0, 0.4)])])
    assert details.score_threshold == 0.5
    assert details.overall.best_f1 == pytest.approx(2 * 2 / (2 + 3))


def test_many_classes_leave_the_matrix_out() -> None:
    names = tuple(f"class {k}" for k in range(101))
    record = details_of([([(A, 100, False), (B, 3, False)], [(A, 99, 0.9), (B, 3, 0.9)])], names).to_json()
    assert record["confusion"] == []
    assert record["top_confusions"] == [{"truth": "class 100", "predicted": "class 99", "count": 1}]


def test_limit_of_detections() -> None:
    evaluator = evaluator_of([([(A, 0, False)], [(B, 0, 0.9), (A, 0, 0.8)])])
    assert evaluator.details(max_detections=1).overall.num_found == 1


def test_a_box_of_negative_area_counts_as_little_as_for_coco() -> None:
    evaluator = evaluator_of([([(A, 0, False)], [((0.0, 20.0, 10.0, -10.0), 0, 0.9), (A, 0, 0.8)])])
    _assert_ap50_agrees(evaluator)
    assert evaluator.details().overall.num_found == 1


def test_the_curve_over_all_classes_is_their_mean() -> None:
    details = details_of(
        [([(A, 0, False), (B, 1, False)], [(A, 0, 0.9), (FAR, 1, 0.95)]), ([(A, 0, False)], [(A, 0, 0.9)])]
    )
    assert [details.curves[k].ap50 for k in (0, 1)] == [pytest.approx(1), 0]
    assert details.overall.precision is not None and details.overall.precision.tolist() == [0.5] * 101


def test_detections_of_an_image() -> None:
    evaluator = evaluator_of([([], [(A, 0, 0.5), (B, 2, 0.75)]), ([], [(A, 1, 1.0)])])
    found = evaluator.detections_of(0)
    assert found.image_id == 0
    assert found.boxes_xyxy.tolist() == [[40, 0, 50, 10], [0, 0, 10, 10]]
    assert found.scores.tolist() == [0.75, 0.5] and found.labels.tolist() == [3, 1]
    assert len(evaluator.detections_of(12345)) == 0


# --- against a slow reference -------------------------------------------------------------------------------------

boxes = st.tuples(*(st.integers(0, 4),) * 2, *(st.integers(1, 4),) * 2).map(lambda box: tuple(map(float, box)))
scenes_of_boxes = st.lists(
    st.tuples(
        st.lists(st.tuples(boxes, st.integers(0, 2), st.integers(0, 4).map(lambda n: n == 0)), max_size=6),
        st.lists(st.tuples(boxes, st.integers(0, 2), st.sampled_from([0.125, 0.25, 0.5, 0.75, 1.0])), max_size=8),
    ),
    max_size=4,
)


def overlap(a: Box, b: Box, *, over: str = "union") -> float:
    wide = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    high = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(0.0, wide) * max(0.0, high)
    return shared / (a[2] * a[3] + (b[2] * b[3] - shared if over == "union" else 0.0))


def slowly(scenes: list[Scene], score: float) -> tuple[list[list[int]], dict[str, int], list[float]]:
    """Return matrix, errors and F1 of each image, one detection after the other."""
    matrix = [[0] * 4 for _ in range(4)]
    errors = dict.fromkeys(("missed", "background", "class", "location", "duplicate"), 0)
    f1s = []
    for truth, found in scenes:
        objects = [(box, label) for box, label, is_crowd in truth if not is_crowd]
        crowds = [(box, label) for box, label, is_crowd in truth if is_crowd]
        free = set(range(len(objects)))
        right = wrong = 0
        for box, label, value in sorted(found, key=lambda one: -one[2]):
            if value < score:
                continue
            is_ignored = any(own == label and overlap(box, crowd, over="found") >= 0.5 for crowd, own in crowds)
            choices = [
                (objects[j][1] == label, overlap(box, objects[j][0]), j)
                for j in free
                if overlap(box, objects[j][0]) >= 0.5 and (objects[j][1] == label or not is_ignored)
            ]
            if choices:
                is_same, _, j = max(choices)
                free.remove(j)
                matrix[objects[j][1]][label] += 1
                right, wrong = right + is_same, wrong + (not is_same)
                errors["class"] += not is_same
            elif not is_ignored:
                matrix[3][label] += 1
                wrong += 1
                if any(overlap(box, other) >= 0.5 for other, _ in objects):
                    errors["duplicate"] += 1
                elif any(own == label and overlap(box, other) >= 0.1 for other, own in objects):
                    errors["location"] += 1
                else:
                    errors["background"] += 1
        for j in free:
            matrix[objects[j][1]][3] += 1
        errors["missed"] += len(free)
        total = right + wrong + len(objects)
        f1s.append(2 * right / total if total else math.nan)
    return matrix, errors, f1s


@given(scenes_of_boxes)
def test_equals_a_slow_reference(scenes: list[Scene]) -> None:
    details = details_of(scenes)
    matrix, errors, f1s = slowly(scenes, details.score_threshold)
    assert details.confusion.tolist() == matrix
    assert details.errors == errors
    worst = {image.image_id: image.f1 for image in details.worst_images}
    assert worst == {10 * i: pytest.approx(f1) for i, f1 in enumerate(f1s) if 10 * i in worst}
    wrong = {10 * i for i, f1 in enumerate(f1s) if f1 < 1}
    assert set(worst) == wrong
    assert [image.f1 for image in details.worst_images] == sorted(worst.values())


@given(scenes_of_boxes)
def test_sums_agree(scenes: list[Scene]) -> None:
    details = details_of(scenes)
    matrix, errors = details.confusion, details.errors
    num_objects = [sum(not crowd and label == k for truth, _ in scenes for _, label, crowd in truth) for k in range(3)]
    assert matrix.sum(axis=1)[:-1].tolist() == num_objects == [curve.num_objects for curve in details.curves]
    assert errors[ErrorKind.MISSED] == matrix[:, -1].sum()
    assert (
        errors[ErrorKind.CLASS]
        == matrix[:-1, :-1].sum() - np.trace(matrix)
        == sum(count for *_, count in details.top_confusions())
    )
    free = (ErrorKind.BACKGROUND, ErrorKind.LOCATION, ErrorKind.DUPLICATE)
    assert sum(errors[kind] for kind in free) == matrix[-1].sum()


@given(scenes_of_boxes)
def test_curves_have_the_ap50_of_the_metrics(scenes: list[Scene]) -> None:
    _assert_ap50_agrees(evaluator_of(scenes))


@given(scenes_of_boxes)
def test_the_best_score_is_the_best(scenes: list[Scene]) -> None:
    """F1 at every threshold, by counting right boxes of each class one by one."""
    details = details_of(scenes)
    thresholds = {value for _, found in scenes for *_, value in found}
    best = max((_f1(scenes, threshold) for threshold in thresholds), default=0.0)
    if details.overall.num_objects:
        assert details.overall.best_f1 == pytest.approx(best)
        if best > 0:
            assert _f1(scenes, details.score_threshold) == pytest.approx(best)


def _f1(scenes: list[Scene], threshold: float) -> float:
    right = total = 0
    for (truth, found), k in itertools.product(scenes, range(3)):
        mine = [(t for t in truth if t[1] == k), (f for f in found if f[1] == k)]
        matrix, _, _ = slowly([(list(mine[0]), list(mine[1]))], threshold)
        right += matrix[k][k]
        total += sum(matrix[k]) + matrix[k][k] + matrix[3][k]
    return 2 * right / total if total else 0.0


# --- real data ----------------------------------------------------------------------------------------------------


def test_published_detections(shared_data: Path) -> None:
    folder = shared_data / "eval_coco2014_fake100"
    evaluator = DetectionEvaluator(folder / "instances_val2014_100.json")
    evaluator.add_results_file(folder / "instances_val2014_fakebbox100_results.json")
    _assert_ap50_agrees(evaluator)
    record = json.loads(json.dumps(evaluator.details().to_json(), allow_nan=False))
    assert record["overall"]["ap50"] == pytest.approx(0.69697, abs=1e-5)  # as pycocotools has published it
    for curve in (*record["curves"], record["overall"]):
        if curve["num_objects"]:
            assert np.mean(curve["precision"]) == pytest.approx(curve["ap50"], abs=1e-6)
    assert all(image["file"].startswith("COCO_val2014_") for image in record["worst_images"])


def _assert_ap50_agrees(evaluator: DetectionEvaluator) -> None:
    """Compare every class with the engine's AP at IoU 0.50 alone."""
    details, engine = evaluator.details(), _ap50_of_engine(evaluator)
    assert [curve.ap50 for curve in details.curves] == pytest.approx(engine, abs=1e-9, nan_ok=True)
    assert details.overall.ap50 == pytest.approx(evaluator.compute().numbers["AP50"], abs=1e-9, nan_ok=True)


def _ap50_of_engine(evaluator: DetectionEvaluator) -> list[float]:
    import hotcoco

    engine: Any = hotcoco.COCOeval(
        evaluator._engine_truth, evaluator._engine_truth.load_res(evaluator._all_rows()), "bbox"
    )
    engine.evaluate()
    engine.accumulate()
    precision = engine.eval["precision"][0, :, :, 0, -1]
    return [float(np.mean(column)) if (column > -1).all() else math.nan for column in precision.T]

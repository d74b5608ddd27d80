"""COCO detection metrics: empty things first, then what is collected, then what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detronome.errors import ConfigError, DataError
from detronome.evaluation.detection import DetectionEvaluator, DetectionMetrics, evaluate_results_file
from detronome.types import Detections

ONE = pytest.approx(1.0, abs=1e-9)
"""The curve of perfect detections falls short of 1 by an epsilon, as in pycocotools."""
NAMES = ["AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"]
NAMES += ["AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large"]


def truth(**changes: Any) -> dict[str, Any]:
    """Two images (5, 9), two categories (3 cat, 8 dog), one medium box each; `changes` replaces whole lists."""
    box = {"area": 1600.0, "iscrowd": 0, "bbox": [10.0, 10.0, 40.0, 40.0]}
    content: dict[str, Any] = {
        "images": [{"id": 5, "width": 100, "height": 100}, {"id": 9, "width": 100, "height": 100}],
        "categories": [{"id": 3, "name": "cat"}, {"id": 8, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 5, "category_id": 3, **box},
            {"id": 2, "image_id": 9, "category_id": 8, **box},
        ],
    }
    return content | changes


def detections(image_id: int, *rows: tuple[float, float, float, float, float, int]) -> Detections:
    """Rows of (left, top, right, bottom, score, category id)."""
    table = np.array(rows, dtype=np.float64).reshape(-1, 6)
    return Detections(
        boxes_xyxy=table[:, :4].astype(np.float32),
        scores=table[:, 4].astype(np.float32),
        labels=table[:, 5].astype(np.int64),
        image_id=image_id,
    )


PERFECT = [detections(5, (10, 10, 50, 50, 0.9, 3)), detections(9, (10, 10, 50, 50, 0.8, 8))]


def measure(annotations: dict[str, Any], records: list[Detections], **settings: Any) -> DetectionMetrics:
    evaluator = DetectionEvaluator(annotations)
    evaluator.add(records)
    return evaluator.compute(**settings)


# --- empty things -------------------------------------------------------------------------------------------------


def test_no_ground_truth_is_nan_and_says_so() -> None:
    metrics = measure(truth(annotations=[]), PERFECT)
    assert list(metrics.numbers) == NAMES
    assert all(math.isnan(value) for value in metrics.numbers.values())
    assert metrics.notes == ("there is no object to find in the 2 images (crowd regions aside): every number is nan",)


def test_no_images_and_no_categories() -> None:
    metrics = measure(truth(annotations=[], images=[], categories=[]), [])
    assert math.isnan(metrics.numbers["AP"])
    assert (metrics.num_images, metrics.num_detections, metrics.per_class_ap) == (0, 0, {})


def test_only_crowds_is_nan() -> None:
    crowds = [annotation | {"iscrowd": 1} for annotation in truth()["annotations"]]
    assert math.isnan(measure(truth(annotations=crowds), PERFECT).numbers["AP"])


@pytest.mark.parametrize("records", [[], [detections(5), detections(9)]], ids=["never added", "added empty"])
def test_no_detections_is_zero(records: list[Detections]) -> None:
    metrics = measure(truth(), records)
    assert metrics.numbers["AP"] == metrics.numbers["AR_100"] == metrics.numbers["AP_medium"] == 0.0
    assert metrics.per_class_ap == {"cat": 0.0, "dog": 0.0}
    assert math.isnan(metrics.numbers["AP_small"])
    assert any("2 of 2 images were never added" in note for note in metrics.notes) == (not records)


def test_category_without_ground_truth_is_nan_and_in_no_mean() -> None:
    categories = [*truth()["categories"], {"id": 1, "name": "bird"}]
    metrics = measure(truth(categories=categories), PERFECT)
    assert metrics.numbers["AP"] == ONE
    assert list(metrics.per_class_ap) == ["bird", "cat", "dog"]
    assert math.isnan(metrics.per_class_ap["bird"]) and math.isnan(metrics.per_class_ar["bird"])
    assert "1 of 3 categories have no object to find and are in no mean: bird" in metrics.notes


# --- what is collected --------------------------------------------------------------------------------------------


def test_perfect_detections_score_one_without_any_output(capfd: pytest.CaptureFixture[str]) -> None:
    metrics = measure(truth(), PERFECT)
    assert [metrics.numbers[name] for name in ("AP", "AP75", "AR_1")] == [ONE, ONE, ONE]
    assert (metrics.num_images, metrics.num_detections, metrics.max_detections) == (2, 2, 100)
    assert capfd.readouterr() == ("", "")


def test_order_of_images_does_not_matter_and_compute_repeats() -> None:
    evaluator = DetectionEvaluator(truth())
    evaluator.add(PERFECT[1:])
    evaluator.add(PERFECT[:1])
    assert evaluator.compute().to_json() == evaluator.compute().to_json() == measure(truth(), PERFECT).to_json()


def test_reset_forgets() -> None:
    evaluator = DetectionEvaluator(truth())
    evaluator.add(PERFECT)
    evaluator.reset()
    assert evaluator.compute().num_detections == 0
    evaluator.add(PERFECT)
    assert evaluator.compute().numbers["AP"] == ONE


def test_ranks_together_equal_one_process() -> None:
    whole = DetectionEvaluator(truth())
    whole.add(PERFECT)
    ranks = [DetectionEvaluator(truth()) for _ in range(3)]
    ranks[0].add(PERFECT[:1])
    ranks[1].add(PERFECT[1:])
    merged = DetectionEvaluator(truth())
    for rank in ranks:
        merged.add_arrays(rank.to_arrays())
    assert merged.compute().to_json() == whole.compute().to_json()
    with pytest.raises(DataError, match="added twice: image ids 5"):
        merged.add_arrays(ranks[0].to_arrays())


def test_subset_of_images() -> None:
    evaluator = DetectionEvaluator(truth(), image_ids=[9])
    evaluator.add(PERFECT[1:])
    metrics = evaluator.compute()
    assert (metrics.num_images, metrics.numbers["AP"]) == (1, ONE)
    assert math.isnan(metrics.per_class_ap["cat"])
    assert evaluator.image_ids.tolist() == [9]
    with pytest.raises(DataError, match="image ids 5"):
        evaluator.add(PERFECT[:1])
    with pytest.raises(DataError, match="image ids 77"):
        DetectionEvaluator(truth(), image_ids=[9, 77])


def test_class_agnostic_ignores_the_category() -> None:
    swapped = [detections(5, (10, 10, 50, 50, 0.9, 8)), detections(9, (10, 10, 50, 50, 0.8, 3))]
    assert measure(truth(), swapped).numbers["AP"] == 0.0
    metrics = measure(truth(), swapped, class_agnostic=True)
    assert (metrics.numbers["AP"], metrics.per_class_ap, metrics.per_class_ar) == (ONE, {}, {})


def test_limit_of_detections() -> None:
    late = [detections(5, (60, 60, 90, 90, 0.95, 3), (10, 10, 50, 50, 0.9, 3)), PERFECT[1]]
    assert measure(truth(), late).numbers["AR_100"] == ONE
    metrics = measure(truth(), late, max_detections=1)
    assert list(metrics.numbers) == NAMES
    assert metrics.numbers["AR_1"] == metrics.numbers["AR_100"] == 0.5
    assert list(measure(truth(), late, max_detections=300).numbers) == [*NAMES, "AR_300"]
    with pytest.raises(ConfigError, match="max_detections is 0"):
        measure(truth(), late, max_detections=0)


def test_detections_that_are_not_finite_are_dropped_and_counted() -> None:
    bad = [
        detections(5, (10, 10, 50, 50, 0.9, 3), (math.nan, 10, 50, 50, 0.9, 3), (1, 1, 5, 5, math.inf, 3)),
        PERFECT[1],
    ]
    metrics = measure(truth(), bad)
    assert (metrics.numbers["AP"], metrics.num_detections) == (ONE, 2)
    assert "2 of 4 detections were dropped: their box or score is not finite" in metrics.notes


def test_categories_in_order_of_id() -> None:
    evaluator = DetectionEvaluator(truth(categories=truth()["categories"][::-1]))
    assert (evaluator.categories.ids, evaluator.categories.names) == ((3, 8), ("cat", "dog"))


def test_categories_of_one_name_stay_apart() -> None:
    metrics = measure(truth(categories=[{"id": 3, "name": "cat"}, {"id": 8, "name": "cat"}]), PERFECT)
    assert list(metrics.per_class_ap) == ["cat (id 3)", "cat (id 8)"]


def test_categories_without_a_name_are_called_by_their_id(capfd: pytest.CaptureFixture[str]) -> None:
    metrics = measure(truth(categories=[{"id": 3, "name": ""}, {"id": 8}]), PERFECT)
    assert list(metrics.per_class_ap) == ["3", "8"]
    assert capfd.readouterr() == ("", "")


def test_ids_beyond_double_precision() -> None:
    big = 2**53 + 1
    content = truth(
        images=[{"id": big}, {"id": big + 1}],
        annotations=[truth()["annotations"][0] | {"image_id": big}],
    )
    metrics = measure(content, [detections(big, (10, 10, 50, 50, 0.9, 3)), detections(big + 1)])
    assert metrics.numbers["AP"] == ONE


def test_to_json_has_no_nan() -> None:
    metrics = measure(truth(), PERFECT)
    text = json.dumps(metrics.to_json(), allow_nan=False)
    assert json.loads(text)["numbers"]["AP_small"] is None


def test_oddities_of_the_truth_are_noted() -> None:
    first, second = truth()["annotations"]
    del second["area"], second["iscrowd"]
    ghost = first | {"id": 3, "image_id": 404}
    metrics = measure(truth(annotations=[first | {"id": 0}, second | {"id": 0}, ghost]), PERFECT)
    assert metrics.numbers["AP"] == ONE
    text = "\n".join(metrics.notes)
    assert "1 of 3 annotations name an image or category that the file does not list" in text
    assert "annotation with id 0" in text
    assert "1 of 3 annotations repeat the id of another" in text
    assert "1 of 3 annotations have no area" in text


# --- what is refused ----------------------------------------------------------------------------------------------


def test_unknown_image_and_category_and_second_time() -> None:
    evaluator = DetectionEvaluator(truth())
    with pytest.raises(DataError, match=r"1 of 2 entries name images .* image ids 6") as caught:
        evaluator.add([PERFECT[0], detections(6)])
    assert caught.value.problems[0].where and caught.value.problems[0].fix
    with pytest.raises(DataError, match=r"1 of 2 detections have a category .* category ids 0"):
        evaluator.add([detections(5, (1, 1, 2, 2, 0.5, 3), (1, 1, 2, 2, 0.5, 0))])
    assert evaluator.compute().num_detections == 0, "a refused call leaves nothing behind"
    evaluator.add(PERFECT)
    with pytest.raises(DataError, match="added twice: image ids 9"):
        evaluator.add(PERFECT[1:])
    with pytest.raises(DataError, match="added twice: image ids 5"):
        DetectionEvaluator(truth()).add([PERFECT[0], PERFECT[0]])


def test_unknown_categories_can_be_dropped() -> None:
    evaluator = DetectionEvaluator(truth(), unknown_categories="drop")
    evaluator.add([detections(5, (10, 10, 50, 50, 0.9, 3), (10, 10, 50, 50, 0.9, 12)), PERFECT[1]])
    metrics = evaluator.compute()
    assert (metrics.numbers["AP"], metrics.num_detections) == (ONE, 2)
    assert any(
        note.startswith("1 of 3 detections were dropped: the ground truth does not list") for note in metrics.notes
    )


RECORD = {"image_id": 5, "category_id": 3, "bbox": [10, 10, 40, 40], "score": 0.9}


@pytest.fixture
def evaluate(tmp_path: Path) -> Callable[..., DetectionMetrics]:
    def run(results: object, annotations: object = None, **settings: Any) -> DetectionMetrics:
        paths = tmp_path / "results.json", tmp_path / "truth.json"
        for path, content in zip(paths, (results, truth() if annotations is None else annotations), strict=True):
            path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return evaluate_results_file(*paths, **settings)

    return run


def test_results_file(evaluate: Callable[..., DetectionMetrics]) -> None:
    metrics = evaluate([RECORD, RECORD | {"image_id": 9, "category_id": 8, "extra": {"kept": "out"}}])
    assert (metrics.numbers["AP"], metrics.num_images, metrics.num_detections) == (ONE, 2, 2)
    assert evaluate([]).numbers["AP"] == 0.0


def test_harmless_spellings_are_understood(evaluate: Callable[..., DetectionMetrics]) -> None:
    second = RECORD | {"image_id": 9, "category_id": 8}
    with_bom = b"\xef\xbb\xbf" + json.dumps([RECORD | {"image_id": 5.0}, second]).encode()
    assert evaluate(with_bom).numbers["AP"] == ONE
    flags = [annotation | {"iscrowd": False, "id": "a"} for annotation in truth()["annotations"]]
    assert evaluate([RECORD, second], truth(annotations=flags)).numbers["AP"] == ONE


@pytest.mark.parametrize(
    ("results", "message"),
    [
        (b"", "the file is empty"),
        (b"[{", "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b"[" * 100_000, "nested too deeply"),
        ({"annotations": []}, "an object, not a list of detections"),
        (None, "null, not a list"),
        ([1], r"the record is the value 1, not an object\n.*results.json: \[0\]"),
        ([RECORD, {}], r"'image_id' is missing\n.*\[1\]"),
        ([RECORD | {"score": None}], r"'score' is None, not a finite number\n.*\[0\]\.score"),
        ([RECORD | {"score": float("nan")}], "'score' is nan"),
        (json.dumps([RECORD]).replace("0.9", "1e999").encode(), "'score' is inf"),
        ([RECORD | {"bbox": [1, 2, 3]}], r"'bbox' is \[1, 2, 3\], not four finite numbers\n.*\[0\]\.bbox"),
        ([RECORD | {"bbox": ["1", 2, 3, 4]}], "not four finite numbers"),
        ([RECORD | {"bbox": [1, 2, 3, float("inf")]}], "not four finite numbers"),
        ([RECORD | {"bbox": None}], "'bbox' is None"),
        ([RECORD | {"image_id": "5"}], "'image_id' is '5', not an integer"),
        ([RECORD | {"image_id": 10**30}], "not an integer"),
        ([RECORD | {"category_id": True}], "'category_id' is True"),
        ([RECORD | {"image_id": 6}], "image ids 6"),
        ([RECORD | {"category_id": 1}], "category ids 1"),
    ],
)
def test_malformed_results(evaluate: Callable[..., DetectionMetrics], results: object, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        evaluate(results)
    assert all("results.json" in problem.where for problem in caught.value.problems)


def test_all_problems_at_once_and_a_count(evaluate: Callable[..., DetectionMetrics]) -> None:
    with pytest.raises(DataError) as caught:
        evaluate([{"image_id": 5, "bbox": [1, 2, 3, 4]}] * 20)
    assert len(caught.value.problems) == 11
    assert caught.value.problems[-1].what == "and 30 more problems in the same file (40 in all)"
    assert all(problem.fix for problem in caught.value.problems[:10])


def test_missing_files(tmp_path: Path) -> None:
    (tmp_path / "truth.json").write_text(json.dumps(truth()))
    with pytest.raises(DataError, match="the results file does not exist"):
        evaluate_results_file(tmp_path / "none.json", tmp_path / "truth.json")
    with pytest.raises(DataError, match="the annotation file does not exist"):
        DetectionEvaluator(tmp_path / "none.json")
    with pytest.raises(DataError, match="cannot be read"):
        DetectionEvaluator(tmp_path)


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ([], "a list, not an object with images, annotations and categories"),
        ({"images": [], "annotations": {}}, "'annotations' is an object, not a list(.|\n)*'categories' is missing"),
        (truth(images=[{"id": 5}, {"id": 5}]), "image ids occur more than once: 5"),
        (truth(categories=[{"id": 3}, {"id": 8}, {"id": 8}]), "category ids occur more than once: 8"),
        (truth(annotations=[{"id": 1, "image_id": 5, "category_id": 3}]), r"'bbox' is missing\n.*annotations\[0\]"),
        (truth(annotations=[truth()["annotations"][0] | {"bbox": [1, 1, -4, 4]}]), "negative width or height"),
        (truth(annotations=[truth()["annotations"][0] | {"iscrowd": "0"}]), "'iscrowd' is '0', neither 0 nor 1"),
        (truth(annotations=[truth()["annotations"][0] | {"area": float("nan")}]), "'area' is nan"),
        (truth(images=[{"id": "5"}]), "'id' is '5', not an integer"),
        (truth(images=[{"id": 5, "width": -1}, {"id": 9}]), r"'width' is -1, not a size in pixels"),
    ],
)
def test_malformed_truth(evaluate: Callable[..., DetectionMetrics], annotations: object, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        evaluate([], annotations)
    assert all("truth.json" in problem.where for problem in caught.value.problems)


# --- masks --------------------------------------------------------------------------------------------------------

SQUARE = [[10, 10, 50, 10, 50, 50, 10, 50]]


def mask_truth(segmentation: object = SQUARE) -> dict[str, Any]:
    return truth(annotations=[annotation | {"segmentation": segmentation} for annotation in truth()["annotations"]])


def test_masks(evaluate: Callable[..., DetectionMetrics]) -> None:
    records = [
        {"image_id": image, "category_id": category, "score": 0.9, "segmentation": SQUARE}
        for image, category in ((5, 3), (9, 8))
    ]
    assert evaluate(records, mask_truth(), iou_type="segm").numbers["AP"] == ONE


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (None, "is null, neither polygons nor run lengths"),
        ([], "is empty"),
        ([[1, 2, 3, 4]], "at least three points"),
        ({"size": [100, 100]}, "no run lengths 'counts'"),
        ({"size": [100, 100], "counts": [9000, 999]}, "do not add up to its size"),
        ({"size": [100, 100], "counts": [[10000]]}, "do not add up to its size"),
        ({"size": [50, 100], "counts": "abc"}, r"has size \[50, 100\]; its image has height and width \[100, 100\]"),
    ],
)
def test_malformed_masks(evaluate: Callable[..., DetectionMetrics], segmentation: object, message: str) -> None:
    record = {"image_id": 5, "category_id": 3, "score": 0.9, "segmentation": segmentation}
    with pytest.raises(DataError, match=message):
        evaluate([record], mask_truth(), iou_type="segm")
    with pytest.raises(DataError, match=message):
        evaluate([], mask_truth(segmentation), iou_type="segm")


def test_masks_without_masks(evaluate: Callable[..., DetectionMetrics]) -> None:
    with pytest.raises(DataError, match="'segmentation' is missing"):
        evaluate([RECORD], mask_truth(), iou_type="segm")

"""A sweep's numbers are those of the models that trimming makes, and its recommendation follows from them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.unit.data.panoptic_folder import write_panoptic
from tests.unit.deploy.deep_models import CATEGORIES, MODELS, config_of, whole

from detronome.config.convert import from_dict
from detronome.data.build import build_eval_batches
from detronome.data.split import DataSplit, open_split
from detronome.deploy.predictor import build_predictor
from detronome.deploy.sweep import Sweep, SweepPoint, rank_queries, sweep, sweep_extents
from detronome.deploy.trim import Extent, detector_of, extent_of, trimmed
from detronome.engine.checkpoint import Checkpoint
from detronome.engine.evaluator import evaluate
from detronome.errors import ConfigError, DataError
from detronome.evaluation.detection import DetectionEvaluator
from detronome.runtime.speedup import Speedup

CPU = torch.device("cpu")
SIZES_HW = [(64, 96), (96, 64), (64, 96), (70, 90)]


def folder_of(root: Path, checkpoint: Checkpoint | None) -> Path:
    """Write noise whose truth is what a model finds in it, so that its AP says something."""
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (*size_hw, 3), dtype=np.uint8) for size_hw in SIZES_HW]
    (root / "annotations").mkdir(parents=True)
    (root / "images").mkdir()
    images, annotations = [], []
    for n, picture in enumerate(pictures):
        Image.fromarray(picture).save(root / "images" / f"{n}.png")
        images.append({"id": n, "file_name": f"{n}.png", "height": picture.shape[0], "width": picture.shape[1]})
    if checkpoint is not None:
        predictor = build_predictor(from_dict(checkpoint.config), detector_of(checkpoint), CATEGORIES, CPU)
        for n, found in enumerate(predictor.predict(pictures)):
            best = replace(found, boxes_xyxy=found.boxes_xyxy[:3], scores=found.scores[:3], labels=found.labels[:3])
            for record in best.to_coco():
                area = record["bbox"][2] * record["bbox"][3]
                annotations.append({**record, "id": len(annotations) + 1, "image_id": n, "area": area, "iscrowd": 0})
    categories = [{"id": id_, "name": name} for id_, name in CATEGORIES.by_id.items()]
    truth = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations" / "instances_val.json").write_text(json.dumps(truth))
    return root


def measured(checkpoint: Checkpoint, split: DataSplit) -> dict[str, float]:
    """Return the metrics of a model evaluated by itself."""
    config = from_dict(checkpoint.config)
    with build_eval_batches(config, split, checkpoint.categories, batch_size=8, workers=0, device=CPU) as batches:
        return evaluate(
            detector_of(checkpoint),
            batches,
            DetectionEvaluator(split.box_truth(), unknown_categories="drop"),
            categories=checkpoint.categories,
            max_detections=config.eval.max_detections,
            precision="fp32",
            device=CPU,
        ).numbers


@pytest.mark.parametrize("family", [family for family in MODELS if family != "panoptic"])
def test_one_pass_measures_what_each_trimmed_model_would(family: str, tmp_path: Path) -> None:
    checkpoint = whole(family, 64)
    split = open_split(folder_of(tmp_path, checkpoint), "val")
    extents = sweep_extents(from_dict(checkpoint.config), queries=[6, 4], image_sizes=[64, 48])
    assert len(extents) == 12 + (MODELS[family][1].num_queries != 6)
    best_queries = rank_queries(checkpoint, split, device=CPU) if family == "detr" else []
    result = sweep(checkpoint, split, extents, device=CPU, best_queries=best_queries, rounds=2)
    assert [point.extent for point in result.points] == extents
    for point in result.points:
        alone = measured(trimmed(checkpoint, point.extent, best_queries=best_queries), split)
        assert dict(point.metrics) == pytest.approx(alone, abs=0, nan_ok=True), point.extent
    values = {point.metrics["AP"] for point in result.points}
    assert result.whole.metrics["AP"] == max(values) > 0.3 and len(values) > 1


def test_with_masks_each_depth_is_measured_by_its_own_maps(tmp_path: Path) -> None:
    split = open_split(write_panoptic(tmp_path, split="val"), "val", annotations="panoptic")
    checkpoint = replace(whole("panoptic", 64), categories=split.index.categories)
    extents = sweep_extents(from_dict(checkpoint.config), queries=[4], image_sizes=[64])
    result = sweep(checkpoint, split, extents, device=CPU, rounds=1)
    assert [point.extent.decoder_layers for point in result.points] == [2, 1]
    assert result.metric == "PQ" and all("PQ" in point.metrics for point in result.points)
    for point in result.points:
        alone = measured(trimmed(checkpoint, point.extent), split)
        assert {name: point.metrics[name] for name in alone} == pytest.approx(alone, abs=0, nan_ok=True)


def test_the_latency_of_all_is_taken_in_the_same_rounds(tmp_path: Path) -> None:
    checkpoint = whole("nano", 64)
    split = open_split(folder_of(tmp_path, checkpoint), "val")
    told: list[str] = []
    extents = [extent_of(from_dict(checkpoint.config)), Extent(decoder_layers=1, num_queries=4, image_size=32)]
    result = sweep(checkpoint, split, extents, device=CPU, rounds=3, on_progress=told.append)
    assert told == ["AP at 64 px", "AP at 32 px", "latency of 2 models in turn"]
    assert [len(point.latencies_s) for point in result.points] == [3, 3]
    assert min(latency for point in result.points for latency in point.latencies_s) > 0
    assert result.whole.speedup == Speedup(ratio=1, low=1, high=1, num_pairs=3)
    a, b = (point.latencies_s for point in result.points)
    assert result.points[1].speedup.ratio == pytest.approx(float(np.median(np.array(a) / np.array(b))))
    low, high = result.whole.latency_iqr_s
    assert low <= result.whole.latency_s <= high
    assert (result.metric, result.num_images, result.notes) == ("AP", 4, ())


def test_a_split_without_objects_is_refused(tmp_path: Path) -> None:
    split = open_split(folder_of(tmp_path, None), "val")
    with pytest.raises(DataError, match="no object is annotated"):
        sweep(whole("nano"), split, [extent_of(config_of("nano"))], device=CPU)


def test_defaults_are_all_depths_fewer_queries_and_smaller_images() -> None:
    config = config_of("detr", eval_size=800, eval_max_size=1333)
    extents = sweep_extents(config, most_objects=3)
    assert extents[0] == extent_of(config)
    assert {e.decoder_layers for e in extents} == {1, 2, 3}
    assert {e.num_queries for e in extents} == {6, 3}  # a quarter, 1, is too few for three objects
    assert {e.image_size for e in extents} == {800, 640, 512}
    assert len(extents) == len(set(extents)) == 18


def test_an_axis_that_is_given_is_all_that_is_tried_beside_the_whole_model() -> None:
    config = config_of("nano")
    extents = sweep_extents(config, decoder_layers=[1], queries=[5, 5], image_sizes=[192])
    assert extents == [extent_of(config), Extent(decoder_layers=1, num_queries=5, image_size=192)]
    with pytest.raises(ConfigError, match="7 decoder layers: the model has 3"):
        sweep_extents(config, decoder_layers=[1, 7])


def point(ap: float, ratio: float, low: float | None = None) -> SweepPoint:
    return SweepPoint(
        extent=Extent(decoder_layers=1, num_queries=1, image_size=64),
        metrics={"AP": ap},
        latencies_s=(1 / ratio,),
        speedup=Speedup(ratio=ratio, low=ratio if low is None else low, high=ratio, num_pairs=1),
    )


def swept(*points: SweepPoint) -> Sweep:
    return Sweep(points=points, metric="AP", num_images=1)


def test_the_fastest_within_the_tolerance_is_recommended() -> None:
    points = [point(0.50, 1.0), point(0.49, 1.5), point(0.485, 2.0), point(0.51, 1.2)]
    assert swept(*points).recommended(0.01) is points[1]
    assert swept(*points).recommended(0.02) is points[2]
    assert swept(*points).recommended(0.0) is points[3]


def test_what_is_not_proven_faster_is_not_recommended() -> None:
    points = [point(0.50, 1.0), point(0.50, 1.5, low=0.9)]
    assert swept(*points).recommended(0.01) is points[0]


pairs = st.tuples(st.sampled_from([0.1, 0.2, 0.3, 0.4]), st.sampled_from([0.5, 1.0, 2.0, 4.0]))


@given(st.lists(pairs, min_size=1, max_size=12))
def test_the_front_is_what_nothing_beats(values: list[tuple[float, float]]) -> None:
    points = [point(ap, ratio) for ap, ratio in values]
    front = swept(*points).front()
    assert front
    for one, (ap, ratio) in zip(points, values, strict=True):
        is_beaten = any(a >= ap and r >= ratio and (a, r) != (ap, ratio) for a, r in values)
        assert any(one is kept for kept in front) is not is_beaten

"""Panoptic runs from end to end: all at once, in the reference's two stages, and what is made of them afterwards."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.unit.data.panoptic_folder import write_panoptic

import detronome as dt
from detronome.config.presets import preset
from detronome.engine.checkpoint import find_checkpoint, load_checkpoint
from detronome.engine.resolve import check_consistency
from detronome.report.run_log import read_run_log

TINY = {
    "model.backbone": "resnet18",
    "model.backbone_weights": "none",
    "model.backbone_norm": "trainable",
    "model.frozen_stages": 0,
    "model.hidden_dim": 128,
    "model.ffn_dim": 32,
    "model.num_encoder_layers": 1,
    "model.num_decoder_layers": 2,
    "model.num_queries": 8,
    "augment.sizes": [64],
    "augment.max_size": 96,
    "augment.eval_size": 64,
    "augment.eval_max_size": 96,
    "augment.crop": "none",
    "batch.global_batch_size": 3,
    "batch.micro_batch_size": 2,
    "eval.panoptic_score": 0.0,
    "data.annotations": "panoptic",
    "data.workers": 0,
    "train.device": "cpu",
    "train.log_steps": 1,
}

BY_HEART = {
    "model.backbone": "resnet18",
    "model.backbone_weights": "none",
    "model.backbone_norm": "trainable",
    "model.frozen_stages": 0,
    "model.hidden_dim": 128,
    "model.ffn_dim": 512,
    "model.num_encoder_layers": 1,
    "model.num_decoder_layers": 2,
    "model.num_queries": 12,
    "model.dropout": 0.0,
    "augment.square": True,  # of equal size, so that nothing is padded: group norms see padding
    "augment.sizes": [192],
    "augment.eval_size": 192,
    "augment.crop": "none",
    "augment.horizontal_flip": 0.0,
    "batch.global_batch_size": 5,
    "data.val_split": "train",
    "data.cache": "ram",
    "schedule.kind": "cosine",
    "optim.clip_norm": 1.0,
}
BOXES = {
    "model.mask_head": False,
    "train.metric": "AP",
    "train.epochs": 120,
    "train.eval_epochs": 120,
    "optim.lr": 2e-3,
    "optim.backbone_lr": 5e-4,
    "schedule.warmup_steps": 20,
}
MASKS = {
    "model.mask_head": True,
    "train.freeze": ["detr"],
    "train.metric": "PQ",
    "train.epochs": 900,
    "train.eval_epochs": 50,
    "optim.lr": 2e-3,
    "optim.clip_norm": 0.1,
    "schedule.warmup_steps": 0,
}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_panoptic(tmp_path_factory.mktemp("shapes"), 6)
    return write_panoptic(folder, 2, split="val")


@pytest.fixture(scope="module")
def run(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> dt.Run:
    folder = tmp_path_factory.mktemp("panoptic") / "run"
    return dt.train(shapes, model="detr-r50-panoptic", epochs=2, out=folder, settings=TINY)


def test_a_run_measures_masks_boxes_and_quality(run: dt.Run) -> None:
    records = read_run_log(run.folder / "log.jsonl")
    steps = [record for record in records if record["kind"] == "step"]
    assert len(steps) == 4 and all(0 < step["losses"]["loss_dice"] < 1.1 for step in steps)
    evaluations = [record for record in records if record["kind"] == "eval"]
    assert {"AP", "PQ", "SQ_things", "RQ_stuff"} < set(evaluations[-1]["metrics"])
    assert {"loss_mask", "loss_dice"} < set(evaluations[-1]["losses"])
    assert run.metrics["PQ"] == max(record["metrics"]["PQ"] for record in evaluations)
    assert len(list((run.folder / "pictures").glob("[0-9]*.jpg"))) == 2


def test_an_evaluation_gives_the_runs_numbers_and_those_of_its_predictions(
    run: dt.Run, shapes: Path, tmp_path: Path
) -> None:
    metrics = dt.evaluate(run.folder, shapes)
    assert metrics.panoptic is not None and metrics.panoptic.num_images == 2
    assert metrics.numbers["PQ"] == pytest.approx(run.metrics["PQ"], abs=1e-9)
    assert metrics.to_json()["panoptic"]["numbers"]["PQ"] == pytest.approx(run.metrics["PQ"])

    truth = json.loads((shapes / "annotations" / "panoptic_val.json").read_text())
    files = [shapes / "images" / image["file_name"] for image in truth["images"]]
    predictions = dt.predict(run.folder, files, out=tmp_path)
    assert predictions.results["panoptic"] == tmp_path / "panoptic.json"
    with pytest.raises(dt.ConfigError, match="tiles"):
        dt.predict(run.folder, files, out=tmp_path / "tiled", tile=64)
    with Image.open(tmp_path / f"{files[0].stem}.jpg") as picture:
        assert picture.size[0] >= 480
    written = json.loads((tmp_path / "panoptic.json").read_text())
    ids = {image["file_name"]: image["id"] for image in truth["images"]}
    for annotation in written["annotations"]:
        annotation["image_id"] = ids[annotation["file_name"]]
    (tmp_path / "panoptic.json").write_text(json.dumps(written))
    again = dt.evaluate_panoptic_results(tmp_path / "panoptic.json", shapes / "annotations" / "panoptic_val.json")
    assert again.numbers == pytest.approx(metrics.panoptic.numbers, nan_ok=True)


def test_masks_are_learnt_on_a_frozen_run_of_boxes(shapes: Path, tmp_path: Path) -> None:
    boxes = dt.train(
        shapes, model="detr-r50-panoptic", epochs=1, out=tmp_path / "boxes",
        settings={**TINY, "model.mask_head": False, "train.metric": "AP"},
    )  # fmt: skip
    masks = dt.train(
        shapes, model=boxes.folder, epochs=2, out=tmp_path / "masks",
        settings={"model.mask_head": True, "train.freeze": ["detr"], "train.metric": "PQ"},
    )  # fmt: skip
    before, after = _weights(boxes.folder), _weights(masks.folder)
    assert set(after) > {f"detr.{name}" for name in before}
    for name, value in before.items():
        assert torch.equal(after[f"detr.{name}"], value), f"{name} has changed"
    start, *steps = [r for r in read_run_log(masks.folder / "log.jsonl") if r["kind"] in ("start", "step")]
    assert start["num_trainable_parameters"] == sum(v.numel() for n, v in after.items() if not n.startswith("detr."))
    assert {"loss_mask", "loss_dice"} < set(steps[0]["losses"])
    assert {"PQ", "AP"} < set(masks.metrics)
    resumed = dt.resume(masks.folder)
    assert resumed.was_finished


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model.hidden_dim": 64}, "hidden_dim in steps of 128"),
        ({"model.mask_head": False}, "needs a model that makes masks"),
        ({"train.freeze": ["dter"]}, "no part 'dter'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    shapes: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(dt.DetronomeError, match=message):
        dt.train(shapes, model="detr-r50-panoptic", epochs=1, out=tmp_path / "run", settings={**TINY, **settings})


def test_masks_are_not_learnt_from_boxes() -> None:
    config = preset("detr-r50-panoptic")
    check_consistency(config)
    with pytest.raises(dt.ConfigError, match="learns from panoptic maps"):
        check_consistency(replace(config, data=replace(config.data, annotations="instances")))


def _weights(run: Path) -> dict[str, torch.Tensor]:
    return dict(load_checkpoint(find_checkpoint(run)).model)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_small_panoptic_detr_takes_five_photos_by_heart(shared_data: Path, tmp_path: Path) -> None:
    """Both stages learn: from random weights to a panoptic quality above 0.8 on the model's own images."""
    data = tmp_path / "five"
    write_simple_photos(shared_data / "coco2017_sample", data)
    boxes = dt.train(data, model="detr-r50-panoptic", out=tmp_path / "boxes", settings={**BY_HEART, **BOXES})
    assert boxes.metrics["AP"] > 0.7
    masks = dt.train(
        data, model=boxes.folder, out=tmp_path / "masks", settings=MASKS,
        stop_when=lambda evaluated: evaluated.metrics["PQ"] > 0.82,
    )  # fmt: skip
    assert masks.metrics["PQ"] > 0.8
    prediction = masks.model.predict(data / "images" / json.loads(_annotations(data))["images"][0]["file_name"])
    assert prediction.panoptic is not None
    assert len(np.unique(prediction.panoptic.segment_ids)) == len(prediction.panoptic.segments)


def _annotations(data: Path) -> str:
    return (data / "annotations" / "panoptic_train.json").read_text()


def write_simple_photos(source: Path, data: Path) -> None:
    """Write a panoptic file of the first five photos with at most six segments, each half a per cent of the photo or
    more; photos and maps stay where they are."""
    truth = json.loads((source / "annotations" / "panoptic_train.json").read_text())
    pixels = {image["id"]: image["height"] * image["width"] for image in truth["images"]}
    truth["annotations"] = [
        annotation
        for annotation in truth["annotations"]
        if len(annotation["segments_info"]) <= 6
        and all(s["area"] >= 0.005 * pixels[annotation["image_id"]] for s in annotation["segments_info"])
    ][:5]
    chosen = {annotation["image_id"] for annotation in truth["annotations"]}
    truth["images"] = [image for image in truth["images"] if image["id"] in chosen]
    (data / "annotations").mkdir(parents=True)
    (data / "annotations" / "panoptic_train.json").write_text(json.dumps(truth))
    (data / "annotations" / "panoptic_train").symlink_to(source / "annotations" / "panoptic_train")
    (data / "images").symlink_to(source / "images")

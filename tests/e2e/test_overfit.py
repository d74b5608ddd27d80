"""Classic DETR learns: from random weights it takes eight real photos by heart."""

import json
from pathlib import Path

import pytest

import detronome as dt
from detronome.report.run_log import read_run_log


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_detr_r18_overfits_eight_photos(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "coco2017_sample"
    data = tmp_path / "eight"
    write_eight_photos(source, data)
    run = dt.train(
        data,
        model="detr-r18",
        epochs=1000,
        out=tmp_path / "run",
        settings={
            "model.backbone_weights": "none",
            "model.backbone_norm": "trainable",
            "model.frozen_stages": 0,
            "model.dropout": 0.0,
            "augment.sizes": [256],
            "augment.max_size": 384,
            "augment.eval_size": 256,
            "augment.eval_max_size": 384,
            "augment.crop": "none",
            "augment.horizontal_flip": 0.0,
            "batch.global_batch_size": 8,
            "data.val_split": "train",
            "train.eval_epochs": 50,
            "optim.lr": 2e-4,
            "optim.backbone_lr": 2e-4,
            "schedule.kind": "cosine",
            "schedule.warmup_steps": 20,
        },
    )
    evaluations = [r["metrics"] for r in read_run_log(run.folder / "log.jsonl") if r["kind"] == "eval"]
    assert any(metrics["AP50"] > 0.95 and metrics["AP"] > 0.7 for metrics in evaluations)
    assert run.metrics["AP"] > 0.8


def write_eight_photos(source: Path, data: Path) -> None:
    """Write an annotation file of the first eight photos with 1 to 10 objects; the photos stay where they are."""
    truth = json.loads((source / "annotations" / "instances_train.json").read_text())
    counts: dict[int, int] = {}
    for annotation in truth["annotations"]:
        counts[annotation["image_id"]] = counts.get(annotation["image_id"], 0) + (not annotation["iscrowd"])
    chosen = [image for image in truth["images"] if 1 <= counts.get(image["id"], 0) <= 10][:8]
    ids = {image["id"] for image in chosen}
    truth["images"] = chosen
    truth["annotations"] = [a for a in truth["annotations"] if a["image_id"] in ids]
    (data / "annotations").mkdir(parents=True)
    (data / "annotations" / "instances_train.json").write_text(json.dumps(truth))
    (data / "images").symlink_to(source / "images")

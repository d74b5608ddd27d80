"""RT-DETR from a data folder to detections: squares of changing size, average, checkpoint, prediction."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import detronome as dt

SETTINGS: dict[str, Any] = {
    "model.backbone_weights": "none",
    "model.encoder_dim": 32,
    "model.encoder_ffn_dim": 32,
    "model.hidden_dim": 32,
    "model.num_heads": 2,
    "model.ffn_dim": 32,
    "model.num_decoder_layers": 2,
    "model.num_queries": 12,
    "model.num_denoising": 8,
    "augment.sizes": [64, 96],
    "augment.eval_size": 64,
    "optim.lr": 1e-3,
    "optim.backbone_lr": 1e-3,
    "schedule.warmup_steps": 1,
    "batch.global_batch_size": 4,
    "train.log_steps": 1,
    "train.ema_decay": 0.5,
    "train.device": "cpu",
    "data.workers": 0,
}


@pytest.fixture(scope="module")
def run(blocks: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETRONOME_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        out = tmp_path_factory.mktemp("rtdetr") / "run"
        return dt.train(blocks, model="rtdetr-v2-s", epochs=1, out=out, settings=SETTINGS)


def test_the_loss_falls_and_the_terms_are_logged(run: Any) -> None:
    records = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    steps = [record for record in records if "loss_giou" in json.dumps(record)]
    losses = [record["loss"] for record in steps if "loss" in record]
    assert len(losses) >= 6 and all(np.isfinite(losses))
    assert min(losses[3:]) < losses[0]


def test_a_prediction_is_in_pixels_of_the_original(run: Any) -> None:
    model = dt.load(run.folder)
    found = model.predict(np.zeros((50, 200, 3), np.uint8), score=0.0)
    assert 0 < len(found.scores) <= 12 * 2
    centres = (found.boxes_xyxy[:, :2] + found.boxes_xyxy[:, 2:]) / 2
    assert (centres >= 0).all() and (centres[:, 0] <= 200).all() and (centres[:, 1] <= 50).all()
    assert centres[:, 0].max() > 50, "boxes are scaled by the width of the original, not of the square"


def test_evaluating_the_run_gives_its_own_metrics(run: Any, blocks: Path) -> None:
    again = dt.evaluate(dt.load(run.folder), blocks)
    assert again.numbers["AP"] == pytest.approx(run.metrics["AP"], abs=1e-6)

"""A run on a backbone of timm: planned, trained, loaded again without a download, without timm one message."""

import sys
from pathlib import Path
from typing import Any

import pytest

import detronome as dt
from detronome.cli import main

pytest.importorskip("timm")

SETTINGS: dict[str, Any] = {
    "model.backbone": "timm:test_resnet",
    "model.backbone_weights": "none",
    "model.backbone_norm": "trainable",
    "model.frozen_stages": 1,
    "model.hidden_dim": 16,
    "model.num_heads": 2,
    "model.ffn_dim": 16,
    "model.num_encoder_layers": 1,
    "model.num_decoder_layers": 1,
    "augment.sizes": [64],
    "augment.max_size": 96,
    "augment.crop": "none",
    "augment.eval_size": 64,
    "augment.eval_max_size": 96,
    "train.device": "cpu",
    "data.workers": 0,
}


def test_train_load_and_predict(blocks: Path, tmp_path: Path) -> None:
    run = dt.train(blocks, model="detr-r50", epochs=1, out=tmp_path / "run", settings=SETTINGS)
    model = dt.load(run.folder, device="cpu")
    assert model.config.model.backbone == "timm:test_resnet"
    assert dt.evaluate(model, blocks).numbers["AP"] == run.metrics["AP"]
    assert len(model.predict(blocks / "images" / "val_00.png", score=0.0)) == 100


@pytest.mark.parametrize("checkpointed", ["none", "all"])
def test_its_memory_is_planned(blocks: Path, checkpointed: str) -> None:
    settings = {**SETTINGS, "train.checkpoint_activations": checkpointed}
    plan = dt.plan(blocks, model="detr-r50", settings=settings, gpu="RTX 3060")
    assert plan.training.peak_bytes > 0 and plan.settings


def test_without_timm_a_run_ends_with_the_install_line(
    blocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(SystemExit) as end:
        main(["train", str(blocks), "--out", str(tmp_path / "run"), "--set", "model.backbone=timm:resnet50"])
    error = capsys.readouterr().err
    assert end.value.code == 1 and "pip install 'detronome[timm]'" in error and "Traceback" not in error

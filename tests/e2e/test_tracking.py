"""A real run told to all trackers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import detronome as dt

pytestmark = pytest.mark.filterwarnings("ignore")  # the packages' own deprecations


def test_a_run_is_told_everywhere(
    blocks: Path, tiny_settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("tensorboard", "wandb", "mlflow"):
        pytest.importorskip(package)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    everywhere = ["tensorboard", "wandb", "mlflow"]
    settings = {**tiny_settings, "train.log_steps": 1, "train.epochs": 2}
    out = tmp_path / "run"
    dt.train(blocks, model="nano", out=out, settings=settings, trackers=everywhere)
    known = json.loads((out / "trackers.json").read_text())
    assert known.keys() == {"wandb", "mlflow"}
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=known["mlflow"]["tracking_uri"])
    run = client.get_run(known["mlflow"]["run_id"])
    assert run.info.status == "FINISHED" and run.data.params["train.epochs"] == "2"
    steps = [r["step"] for r in map(json.loads, (out / "log.jsonl").read_text().splitlines()) if r["kind"] == "step"]
    history = client.get_metric_history(run.info.run_id, "loss/total")
    assert [point.step for point in history] == steps
    assert any(name.startswith("step_s/") for name in run.data.metrics)
    assert "report.html" in {file.path for file in client.list_artifacts(run.info.run_id)}
    assert list((out / "tensorboard").iterdir()) and list((out / "wandb").rglob("report_*.html"))
    state = dt.run_state(out)
    assert state.status == "finished" and state.step_parts  # too short for a sample of the machine


def test_an_unknown_tracker_is_named_before_anything_is_made(blocks: Path, tmp_path: Path) -> None:
    with pytest.raises(dt.ConfigError, match="tensorbord"):
        dt.train(blocks, model="nano", out=tmp_path / "run", trackers=["tensorbord"])  # type: ignore[list-item]
    assert not (tmp_path / "run").exists()

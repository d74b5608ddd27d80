"""TensorBoard, Weights & Biases and MLflow themselves, all without a network."""

from __future__ import annotations

import json
import logging
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from run_events import ended, evaluated, eventful_run, logged, started, warned

from detronome.engine.events import Event
from detronome.errors import MissingExtraError
from detronome.report.trackers.build import build_trackers
from detronome.report.trackers.names import TrackerName
from detronome.report.trackers.remembered import recall, remember

CONFIG: dict[str, Any] = {"optim": {"lr": 1e-3}, "model": {"name": "nano"}}
PACKAGES: dict[TrackerName, str] = {
    "tensorboard": "torch.utils.tensorboard",
    "wandb": "wandb",
    "mlflow": "mlflow.tracking",
}

pytestmark = pytest.mark.filterwarnings("ignore")  # the packages' own deprecations


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "my run"
    (folder / "pictures").mkdir(parents=True)
    (folder / "config.toml").write_text("")
    (folder / "report.html").write_text("<p>the report</p>")
    Image.new("RGB", (40, 30)).save(folder / "pictures" / "a.jpg")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_PROJECT", "WANDB_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # set here so that it is taken back
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    return folder


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every connection to elsewhere."""
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: Any) -> None:
        is_local = self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "::1", "localhost")
        assert is_local, f"a connection to {address}"
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local_only)
    monkeypatch.setenv("WANDB_MODE", "offline")


def track(name: TrackerName, run_dir: Path, *events: Event, config: dict[str, Any] = CONFIG) -> None:
    with build_trackers([name], run_dir, config) as trackers:
        for event in events:
            trackers(event)


@pytest.mark.parametrize("name", PACKAGES)
def test_a_missing_package_gives_the_line_that_installs_it(
    name: TrackerName, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, PACKAGES[name], None)
    with pytest.raises(MissingExtraError, match=f"pip install 'detronome\\[{name}\\]'"):
        build_trackers([name], run_dir, CONFIG)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", PACKAGES)
def test_an_eventful_run_is_written_without_a_complaint(
    name: TrackerName, run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip(PACKAGES[name])
    with caplog.at_level(logging.WARNING, logger="detronome"):
        track(name, run_dir, *eventful_run())
    assert [record.getMessage() for record in caplog.records if record.name.startswith("detronome")] == []


def test_tensorboard_hides_the_steps_that_a_rollback_undid(run_dir: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    track("tensorboard", run_dir, *eventful_run())
    read = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0})
    read.Reload()
    assert [point.step for point in read.Scalars("loss/total")] == list(range(1, 101))
    assert "pictures/a" in read.Tags()["images"]
    assert {f"events/{kind}/text_summary" for kind in ("skip", "rollback", "warning")} <= set(read.Tags()["tensors"])


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", PACKAGES)
def test_a_picture_that_cannot_be_read_does_not_keep_a_run_open(
    name: TrackerName, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = pytest.importorskip(PACKAGES[name])
    places = {
        "tensorboard": (getattr(package, "SummaryWriter", None), "close"),
        "wandb": (getattr(package, "Run", None), "finish"),
        "mlflow": (getattr(package, "MlflowClient", None), "set_terminated"),
    }
    owner, method = places[name]
    end, calls = getattr(owner, method), []
    monkeypatch.setattr(owner, method, lambda *args, **options: (calls.append(method), end(*args, **options))[1])
    (run_dir / "pictures" / "a.jpg").write_bytes(b"no picture")
    track(name, run_dir, started(), logged(1), ended(1))
    assert calls == [method]


@pytest.mark.usefixtures("offline")
def test_wandb_offline_goes_on_under_the_same_id(run_dir: Path) -> None:
    pytest.importorskip("wandb")
    track("wandb", run_dir, started(), logged(1), warned(1), ended(5, "interrupted"))
    first = recall(run_dir, "wandb")
    track("wandb", run_dir, started(5), logged(6), ended(10))
    assert recall(run_dir, "wandb") == first
    runs = list((run_dir / "wandb").glob(f"offline-run-*-{first['id']}*"))
    assert len(runs) == 2 and all(list(run.glob(f"run-{first['id']}*.wandb")) for run in runs)
    assert len(list((run_dir / "wandb").rglob("report_*.html"))) == 1  # of the second, which has ended
    track("wandb", run_dir, started(), ended(10))  # began anew
    assert recall(run_dir, "wandb")["id"] != first["id"]


@pytest.mark.usefixtures("offline")
def test_wandb_has_nothing_to_say_of_pictures_of_two_sizes(
    run_dir: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("wandb")
    Image.new("RGB", (20, 50)).save(run_dir / "pictures" / "b.jpg")
    track("wandb", run_dir, started(), ended(10))
    media = {file.name[:2] for file in (run_dir / "wandb").glob("offline-run-*/files/media/images/pictures/*")}
    assert media == {"a_", "b_"}
    assert all(record.levelname in ("DEBUG", "INFO") for record in caplog.records)
    assert "WARNING" not in capfd.readouterr().err


def test_wandb_without_a_key_asks_for_none(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setattr(wandb, "login", lambda **arguments: arguments.get("prompt", True))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(wandb, "init", lambda **_: pytest.fail("it must not be reached"))
    monkeypatch.setattr(wandb, "setup", lambda: type("Setup", (), {"settings": type("S", (), {"mode": "online"})}))
    with caplog.at_level(logging.WARNING):
        track("wandb", run_dir, started(), logged(1))
    assert "WANDB_MODE=offline does without" in caplog.text


@pytest.mark.usefixtures("offline")
def test_mlflow_writes_files_and_goes_on_in_the_same_run(run_dir: Path) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    track("mlflow", run_dir, started(), logged(1), warned(1), evaluated(5, 0.3), ended(5, "interrupted"))
    known = recall(run_dir, "mlflow")
    client = MlflowClient(tracking_uri=known["tracking_uri"])
    assert client.get_run(known["run_id"]).info.status == "KILLED"
    track("mlflow", run_dir, started(5), logged(6), ended(10), config={**CONFIG, "optim": {"lr": 2e-3}})
    assert recall(run_dir, "mlflow") == known
    run = client.get_run(known["run_id"])
    assert run.info.status == "FINISHED" and run.info.run_name == "my run"
    assert run.data.params["optim.lr"] == "0.001" and run.data.tags["resumed_with.optim.lr"] == "0.002"
    assert run.data.metrics["best/AP"] == 0.3
    assert [point.step for point in client.get_metric_history(known["run_id"], "loss/total")] == [1, 6]
    assert {file.path for file in client.list_artifacts(known["run_id"])} >= {"report.html", "pictures"}


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", ["../../up", "a\nb", "ä?*:", "", ".", "x" * 50])
def test_mlflow_takes_any_class_name(name: str, run_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("mlflow")
    from dataclasses import replace

    with caplog.at_level(logging.WARNING, logger="detronome"):
        track("mlflow", run_dir, started(), replace(evaluated(5, 0.3), per_class_ap={name: 0.5}), ended(5))
    assert not [record for record in caplog.records if record.name.startswith("detronome")]
    assert not (run_dir.parent / "up").exists()


def test_a_server_that_is_away_costs_a_warning(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with caplog.at_level(logging.WARNING, logger="detronome"):
        track("mlflow", run_dir, *eventful_run())
    assert [record.getMessage().split(":")[0] for record in caplog.records if record.name.startswith("detronome")] == [
        "MLflow cannot follow the run, training goes on"
    ]


def test_what_is_remembered_survives_a_damaged_file(tmp_path: Path) -> None:
    assert recall(tmp_path, "wandb") == {}
    remember(tmp_path, "wandb", {"id": "a"})
    remember(tmp_path, "mlflow", {"run_id": "b"})
    assert recall(tmp_path, "wandb") == {"id": "a"} and recall(tmp_path, "mlflow") == {"run_id": "b"}
    for content in ("", "[]", '{"wandb": 3}', json.dumps({"wandb": {"id": None}})[:-3]):
        (tmp_path / "trackers.json").write_text(content)
        assert recall(tmp_path, "wandb") == {}

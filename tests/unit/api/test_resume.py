"""Going on with a run: the same call for the first start and every later one, and settings that may change."""

import os
import shutil
import signal
import tomllib
from pathlib import Path
from typing import Any

import pytest

import detronome as dt
from detronome.api import training
from detronome.engine.events import Event, RunEnded, StepLogged
from detronome.report.run_log import read_run_log

Settings = dict[str, Any]


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_MAX_RESTARTS"):
        monkeypatch.delenv(name, raising=False)


def stop(event: Event) -> None:
    if isinstance(event, StepLogged) and event.step == 1:
        os.kill(os.getpid(), signal.SIGUSR1)


def config_of(run: Path) -> dict[str, Any]:
    return tomllib.loads((run / "config.toml").read_text())


def log_of(run: Path) -> list[dict[str, Any]]:
    return read_run_log(run / "log.jsonl")


@pytest.fixture(scope="module")
def stopped_run(blocks: Path, tiny_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped in its first epoch; not to be written to."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETRONOME_CACHE", str(folder.parent / "cache"))
        run = dt.train(blocks, model="nano", epochs=1, out=folder, settings=tiny_settings, observers=[stop])
    assert (run.reason, run.signal, run.was_finished) == ("interrupted", "SIGUSR1", False)
    return folder


@pytest.fixture
def run(stopped_run: Path, tmp_path: Path) -> Path:
    """A copy of the stopped run."""
    return Path(shutil.copytree(stopped_run, tmp_path / "run", symlinks=True))


def test_one_call_serves_the_first_start_every_later_one_and_the_end(
    blocks: Path, tiny_settings: Settings, tiny_run: Path, tmp_path: Path
) -> None:
    def start(*observers: Any) -> dt.Run:
        # As from a shell: `auto` is asked for again each time.
        settings = {name: value for name, value in tiny_settings.items() if name != "train.device"}
        return dt.train(
            blocks,
            model="nano",
            epochs=1,
            out=tmp_path / "run",
            settings=settings,
            if_exists="resume",
            observers=observers,
        )

    assert start(stop).reason == "interrupted"
    finished = start()
    assert (finished.reason, finished.was_finished) == ("finished", False)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    heard: list[Event] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(training, "build_trainer")  # nothing is trained
        again = start(heard.append)
    assert (again.reason, again.was_finished, again.report) == ("finished", True, finished.report)
    assert str(again.metrics) == str(finished.metrics)  # nan is not itself
    assert [type(event) for event in heard] == [RunEnded]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == files
    for name in ("model", "training", "optimizer"):
        file = f"checkpoints/last/{name}.safetensors"
        assert (tmp_path / "run" / file).read_bytes() == (tiny_run / file).read_bytes()


def test_a_run_whose_report_was_not_written_is_ended_properly(tiny_run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_run, tmp_path / "run", symlinks=True))
    (folder / "report.html").unlink()
    run = dt.resume(folder)
    assert (run.reason, run.was_finished) == ("finished", False)
    assert (folder / "report.html").is_file()


def test_a_folder_without_a_checkpoint_is_a_first_start(
    blocks: Path, tiny_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start that was killed before its first checkpoint has left this."""
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    (tmp_path / "config.toml").write_text("")
    (tmp_path / "checkpoints").mkdir()
    run = dt.train(blocks, model="nano", epochs=1, out=tmp_path, settings=tiny_settings)
    assert run.reason == "finished" and config_of(tmp_path)["train"]["epochs"] == 1


def test_a_process_that_torchrun_starts_again_goes_on(
    blocks: Path, tiny_settings: Settings, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start() -> dt.Run:
        return dt.train(blocks, model="nano", epochs=1, out=run, settings=tiny_settings)

    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    with pytest.raises(dt.ConfigError, match="already holds a run"):
        start()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    assert start().reason == "finished"
    assert [record["step"] > 0 for record in log_of(run) if record["kind"] == "start"] == [False, True]


@pytest.mark.parametrize("name", ["TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_MAX_RESTARTS", ""])
def test_a_run_that_may_be_started_again_needs_its_folder_named(
    name: str, blocks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name:
        monkeypatch.setenv(name, "1")
    with pytest.raises(dt.ConfigError, match="--out RUN"):
        dt.train(blocks, model="nano", if_exists="error" if name else "resume")


def test_what_to_do_with_a_run_that_exists_is_checked(blocks: Path) -> None:
    with pytest.raises(dt.ConfigError, match="did you mean 'resume'"):
        dt.train(blocks, if_exists="resum")  # type: ignore[arg-type]


def test_another_command_is_refused_and_changes_nothing(blocks: Path, tiny_settings: Settings, run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    with pytest.raises(dt.ConfigError) as error:
        dt.train(
            blocks,
            model="nano",
            epochs=2,
            out=run,
            settings={**tiny_settings, "optim.lr": 0.5, "data.workers": 1},
            if_exists="resume",
        )
    assert [problem.what.partition(" ")[0] for problem in error.value.problems] == ["optim.lr", "train.epochs"]
    with pytest.raises(dt.ConfigError, match=r"train\.seed is 42 in the checkpoint, and 1 is asked for"):
        dt.resume(run, settings={"train.seed": 1})
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_a_run_stopped_by_bad_images_goes_on_with_a_larger_budget(
    blocks: Path, tiny_settings: Settings, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(blocks, tmp_path / "data"))
    for number in (3, 4, 5):
        (data / "images" / f"train_{number:02d}.png").write_bytes(b"")
    folder = tmp_path / "run"
    with pytest.raises(dt.DataError, match="bad_image_budget"):
        dt.train(data, model="nano", epochs=1, out=folder, settings=tiny_settings)
    assert dt.resume(folder, settings={"data.bad_image_budget": 0.5}).reason == "finished"
    assert config_of(folder)["data"]["bad_image_budget"] == 0.5
    (old,) = folder.glob("config-until-step-*.toml")
    assert tomllib.loads(old.read_text())["data"]["bad_image_budget"] == 0.001
    # From now on it is what the run holds.
    assert dt.load(folder).config.data.bad_image_budget == 0.5
    assert dt.resume(folder).was_finished


def test_a_change_that_costs_the_exactness_is_told(run: Path, tmp_path: Path) -> None:
    changes = tmp_path / "changes.toml"
    changes.write_text("[batch]\nmicro_batch_size = 4\n")
    assert dt.resume(run, config=changes, settings={"train.log_steps": 2}).reason == "finished"
    start = [record for record in log_of(run) if record["kind"] == "start"][-1]
    assert "no longer bit for bit" in start["resolved"]["batch.micro_batch_size"]
    assert start["resolved"]["train.log_steps"] == "2 (was 1 until now)"


def test_data_that_have_moved_are_found_where_they_are_said_to_be(
    blocks: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(blocks, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    assert dt.resume(run, settings={"data.root": "moved"}).reason == "finished"
    assert config_of(run)["data"]["root"] == str(tmp_path / "moved")


def test_a_setting_changed_twice_at_one_step_keeps_what_was_in_force(run: Path) -> None:
    for minutes in (1.0, 2.0):
        with pytest.raises(KeyboardInterrupt):
            dt.resume(run, settings={"train.checkpoint_minutes": minutes}, observers=[stop_at_first_step])
    assert config_of(run)["train"]["checkpoint_minutes"] == 2.0
    (old,) = run.glob("config-until-step-*.toml")
    assert tomllib.loads(old.read_text())["train"]["checkpoint_minutes"] == 5.0


def stop_at_first_step(event: Event) -> None:
    if isinstance(event, StepLogged):
        raise KeyboardInterrupt

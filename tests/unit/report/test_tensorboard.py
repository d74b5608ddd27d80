from __future__ import annotations

import sys
from pathlib import Path

import pytest
from run_events import eventful_run, started, whole_run

from detronome.errors import MissingExtraError
from detronome.report.tensorboard import TensorBoardLog, _scalars, _texts


def test_a_missing_package_gives_the_line_that_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtraError, match="pip install 'detronome\\[tensorboard\\]'"):
        TensorBoardLog(tmp_path)


@pytest.mark.filterwarnings("ignore")  # the package's own deprecations
def test_a_run_is_written(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    log = TensorBoardLog(tmp_path / "tb")
    for event in whole_run():
        log(event)
    assert any(file.stat().st_size > 1000 for file in (tmp_path / "tb").iterdir())


def test_every_number_has_a_name_of_its_own() -> None:
    for event in eventful_run():
        names = [name for name, _ in (*_scalars(event), *_texts(event))]
        assert len(names) == len(set(names))


def test_validation_losses_goodput_and_events_are_told() -> None:
    events = list(eventful_run())
    scalars = dict(pair for event in events for pair in _scalars(event))
    assert "validation_loss/loss_bbox" in scalars and scalars["goodput/goodput"] == pytest.approx(19 / 31)
    texts = dict(pair for event in events for pair in _texts(event))
    kinds = ("skip", "rollback", "split", "checkpoint_failed", "warning", "bad_image")
    assert texts.keys() == {"run", "goodput", *(f"events/{kind}" for kind in kinds)}
    assert "**fix:** stop early" in texts["events/warning"]


@pytest.mark.filterwarnings("ignore")  # the package's own deprecations
def test_steps_undone_by_a_rollback_are_hidden(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = TensorBoardLog(tmp_path / "tb")
    for event in eventful_run():
        log(event)
    read = EventAccumulator(str(tmp_path / "tb"), size_guidance={"scalars": 0})
    read.Reload()
    assert [point.step for point in read.Scalars("loss/total")] == list(range(1, 101))


@pytest.mark.filterwarnings("ignore")  # the package's own deprecations
def test_a_run_that_only_started_is_written(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    log = TensorBoardLog(tmp_path / "tb")
    log(started())
    log.close()
    assert list((tmp_path / "tb").iterdir())

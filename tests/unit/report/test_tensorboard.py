from __future__ import annotations

import sys
from pathlib import Path

import pytest
from run_events import whole_run

from detronome.errors import MissingExtraError
from detronome.report.tensorboard import TensorBoardLog, _scalars


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
    for event in whole_run():
        names = [name for name, _ in _scalars(event)]
        assert len(names) == len(set(names))

"""A run that somebody judges pointless after an evaluation ends as by an early stop, with all that a run leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import detronome as dt
from detronome.engine.events import Evaluated
from detronome.report.run_log import read_run_log


def test_a_pointless_run_ends_after_the_evaluation_that_says_so(
    tmp_path: Path, blocks: Path, tiny_settings: dict[str, Any]
) -> None:
    asked: list[Evaluated] = []

    def stop_when(event: Evaluated) -> bool:
        asked.append(event)
        return event.epoch >= 2

    run = dt.train(blocks, model="nano", epochs=5, out=tmp_path / "run", settings=tiny_settings, stop_when=stop_when)
    assert run.reason == "early_stop" and run.report is not None and run.report.is_file()
    assert [event.epoch for event in asked] == [1, 2]
    records = list(read_run_log(run.folder / "log.jsonl"))
    assert [record["kind"] for record in records].count("eval") == 2
    assert records[-1]["kind"] == "end" and records[-1]["epoch"] == 2
    assert (run.folder / "checkpoints" / "best").exists()

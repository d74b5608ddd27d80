"""Ranks under torchrun that are killed, stopped or stuck: the job finishes by itself, and nobody can tell."""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.faults.kill_harness import fingerprint
from tests.faults.torchrun import Job, Restart, job, restart_after, train_command, wait_for

pytestmark = [pytest.mark.dist, pytest.mark.alone]

Settings = dict[str, Any]
Report = Callable[[str, str], None]

CHECKPOINT_S = 1.0


def settings_of(tiny_settings: Settings, **more: object) -> Settings:
    return {
        **tiny_settings,
        "batch.global_batch_size": 6,
        "train.ema_decay": 0.99,
        "train.eval_epochs": 15,
        "train.checkpoint_minutes": CHECKPOINT_S / 60,
        **{name.replace("__", "."): value for name, value in more.items()},
    }


def left_of(run: Path) -> dict[str, str]:
    """All that a run has learned and told. How many older checkpoints are kept depends on the clock."""
    return {name: text for name, text in fingerprint(run).items() if name not in ("checkpoints", "files")}


def undisturbed(data: Path, folder: Path, settings: Settings, *, num_ranks: int, epochs: int) -> dict[str, str]:
    run = folder / "undisturbed"
    with job(train_command(data, run, "nano", epochs, settings), run, folder / "calm.txt", num_ranks=num_ranks) as calm:
        assert calm.finish(300) == 0, calm.output[-4000:]
    return left_of(run)


def kill_one(struck: Job, draw: random.Random) -> float:
    """Kill a rank at random; return when."""
    ranks = wait_for(struck.ranks, struck)
    assert ranks, struck.output[-4000:]
    os.kill(ranks[draw.choice(sorted(ranks))], signal.SIGKILL)
    return time.time()


def fire(struck: Job, num_kills: int, draw: random.Random) -> list[Restart]:
    """Kill ranks, most in training, some while they start; return how the run went on after those in training."""
    restarts, struck_at = [], 0.0
    for number in range(num_kills):
        if number % 5 == 3:  # right after the last: nobody has trained yet
            time.sleep(draw.uniform(0.5, 8.0))
            struck_at = kill_one(struck, draw)
            continue
        assert wait_for(lambda: struck.steps_since(struck_at), struck), struck.output[-4000:]  # noqa: B023
        time.sleep(draw.uniform(0, 1.5 * CHECKPOINT_S))
        last_step = struck.last_step()
        struck_at = kill_one(struck, draw)
        restarts.append(restart_after(struck, struck_at, last_step))
    return restarts


def shown(num_ranks: int, num_kills: int, restarts: list[Restart]) -> str:
    seconds, lost = [one.seconds for one in restarts], [one.num_lost for one in restarts]
    return (
        f"{num_ranks} ranks | {num_kills} kills | bit-identical | {statistics.median(seconds):.1f} s from kill to next "
        f"step (median; {max(seconds):.1f} at most) | {statistics.mean(lost):.1f} steps lost a kill (most {max(lost)})"
    )


@pytest.mark.parametrize(
    ("num_ranks", "num_kills", "epochs"),
    [
        (2, 1, 15),
        pytest.param(2, 20, 300, marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
        pytest.param(3, 20, 300, marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
    ],
)
def test_a_job_whose_ranks_are_killed_finishes_by_itself_bit_identical(
    blocks: Path,
    tiny_settings: Settings,
    tmp_path: Path,
    report_figure: Report,
    num_ranks: int,
    num_kills: int,
    epochs: int,
) -> None:
    settings = settings_of(tiny_settings)
    expected = undisturbed(blocks, tmp_path, settings, num_ranks=num_ranks, epochs=epochs)
    run = tmp_path / "run"
    command = train_command(blocks, run, "nano", epochs, settings)
    with job(command, run, tmp_path / "struck.txt", num_ranks=num_ranks) as struck:
        restarts = fire(struck, num_kills, random.Random(num_ranks))
        assert struck.finish(300) == 0, struck.output[-4000:]
    report_figure("torchrun, ranks killed", shown(num_ranks, num_kills, restarts))
    assert left_of(run) == expected


@pytest.mark.slow
def test_a_rank_that_is_stopped_is_named_and_the_job_goes_on_without_it(
    blocks: Path, tiny_settings: Settings, tmp_path: Path, report_figure: Report
) -> None:
    settings = settings_of(tiny_settings, train__hang_minutes=0.05)
    run = tmp_path / "run"
    with job(train_command(blocks, run, "nano", 60, settings), run, tmp_path / "out.txt") as hanging:
        assert wait_for(lambda: hanging.steps_since(0) > 20, hanging), hanging.output[-4000:]
        last_step, struck_at = hanging.last_step(), time.time()
        stopped = hanging.ranks()[1]
        os.kill(stopped, signal.SIGSTOP)
        restart = restart_after(hanging, struck_at, last_step)
        assert hanging.finish(120) == 0, hanging.output[-4000:]
        told = hanging.output
    (report,) = (run / "hangs").glob("hang-*-rank1.json")
    content = json.loads(report.read_text())
    assert (content["kind"], content["culprits"]) == ("silent", [1])
    assert "The run hangs: rank 1 of 2 (" in told and f"pid {stopped}" in told and "exitcode: 75" in told
    report_figure("torchrun, a rank stopped", f"{restart.seconds:.1f} s from SIGSTOP to next step")

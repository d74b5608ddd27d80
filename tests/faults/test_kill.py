"""Kill -9 at any moment, resume, and nobody can tell: not from weights, averages, moments, metrics, log or samples."""

import os
import random
import shutil
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.faults.kill_harness import (
    FINISHED,
    INTERRUPTED,
    Blow,
    Campaign,
    RunUnderFire,
    Variant,
    differences,
    fork_server,
    num_redone,
    read_trace,
)

import detronome as dt
from detronome.data import sampler
from detronome.data.dataset import DetectionDataset
from detronome.engine.checkpoint import Checkpoint
from detronome.engine.events import Event, StepLogged
from detronome.engine.trainer import Trainer
from detronome.runtime.signals import STOP_SIGNALS

pytestmark = pytest.mark.alone

Settings = dict[str, Any]
Report = Callable[[str, str], None]

# Colours, crops and flips are the preset's; a checkpoint every 0.1 s falls between evaluations.
SHORT = {"batch.global_batch_size": 4, "train.checkpoint_minutes": 0.002}
CLASSIC = {
    "model.backbone_weights": "none",
    "model.backbone_norm": "trainable",
    "model.frozen_stages": 5,
    "model.hidden_dim": 16,
    "model.num_heads": 2,
    "model.ffn_dim": 16,
    "model.num_encoder_layers": 1,
    "model.num_decoder_layers": 2,
    "model.num_queries": 10,
    "augment.crop": "fraction",
    "augment.sizes": [32],
    "augment.max_size": 48,
    "augment.eval_size": 32,
    "augment.eval_max_size": 48,
    "batch.global_batch_size": 8,
    "train.ema_decay": 0.99,
    "train.checkpoint_minutes": 0.003,
}
"""DETR on a frozen random ResNet-18: dropout, and checkpoints of 90 MB that take long enough to be hit."""


@pytest.fixture(scope="module", autouse=True)
def _fork_server() -> Iterator[None]:
    with fork_server():
        yield


def nano(tiny_settings: Settings, name: str = "nano", *, epochs: int = 12, **settings: object) -> Variant:
    dotted = {key.replace("__", "."): value for key, value in settings.items()}
    together = {**tiny_settings, **SHORT, "batch.micro_batch_size": 2, **dotted}
    return Variant(name=name, model="nano", epochs=epochs, settings=together)


def all_variants(tiny_settings: Settings) -> list[Variant]:
    variants = [
        nano(
            tiny_settings,
            f"nano {precision} micro-{micro} ema-{ema}",
            epochs=20,
            train__precision=precision,
            train__ema_decay=ema,
            batch__micro_batch_size=micro,
        )
        for precision in ("fp32", "bf16")
        for micro in (1, 4)
        for ema in (0.0, 0.99)
    ]
    plain = {key: value for key, value in tiny_settings.items() if not key.startswith("model.")}
    variants += [
        Variant(
            name=f"detr {precision} micro-{micro}",
            model="detr-r18",
            epochs=12,
            settings={**plain, **CLASSIC, "train.precision": precision, "batch.micro_batch_size": micro},
        )
        for precision in ("fp32", "bf16")
        for micro in (3, 8)
    ]
    return variants


def table_of(campaign: Campaign, num_variants: int) -> str:
    num_identical = campaign.num_runs - len({problem.partition(":")[0] for problem in campaign.problems})
    return (
        f"{campaign.num_kills} kills | {campaign.num_in_write} inside a checkpoint write | {num_variants} variants | "
        f"{num_identical} of {campaign.num_runs} runs bit-identical | {campaign.num_redone} steps redone | "
        f"{statistics.median(campaign.recoveries_s):.2f} s from kill to next step (median)"
    )


def test_a_run_killed_at_random_instants_ends_bit_identical(
    blocks: Path, tiny_settings: Settings, tmp_path: Path, report_figure: Report
) -> None:
    variants = [
        nano(tiny_settings, "fp32", epochs=6, train__precision="fp32"),
        nano(tiny_settings, "bf16", epochs=6, train__precision="bf16", batch__micro_batch_size=3),
    ]
    campaign = Campaign(blocks, tmp_path, seed=1)
    campaign.fire(variants, kills=3, in_write=1)
    report_figure("kill -9, few", table_of(campaign, len(variants)))
    assert campaign.problems == []
    assert campaign.num_kills >= 6 and campaign.num_in_write >= 2


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_runs_of_all_kinds_killed_at_a_hundred_random_instants_end_bit_identical(
    blocks: Path, tiny_settings: Settings, tmp_path: Path, report_figure: Report
) -> None:
    variants = all_variants(tiny_settings)
    campaign = Campaign(blocks, tmp_path, seed=2)
    campaign.fire(variants, kills=10, in_write=2)
    report_figure("kill -9, many", table_of(campaign, len(variants)))
    assert campaign.problems == []
    assert campaign.num_kills >= 100 and campaign.num_in_write >= 20


def test_a_run_killed_in_its_evaluation_does_it_again(blocks: Path, tiny_settings: Settings, tmp_path: Path) -> None:
    variant = nano(tiny_settings, epochs=4, train__checkpoint_minutes=1)
    reference = RunUnderFire(variant, blocks, tmp_path / "undisturbed")
    run = RunUnderFire(variant, blocks, tmp_path / "killed")
    assert reference.live().exit_code == FINISHED
    for number, workers in ((1, 2), (2, 0), (1, 0)):
        assert run.live(Blow(moment="evaluation", number=number), workers=workers).is_killed
    assert run.live().exit_code == FINISHED
    assert differences(run, reference) == []
    # The steps of the epoch that was to be evaluated are done again, no others: the first kill, then two in a row.
    assert num_redone(run) == 3 * 6


def test_a_run_whose_leader_alone_is_killed_goes_on_while_its_workers_are_still_there(
    blocks: Path, tiny_settings: Settings, tmp_path: Path
) -> None:
    variant = nano(tiny_settings, epochs=6)
    reference = RunUnderFire(variant, blocks, tmp_path / "undisturbed")
    run = RunUnderFire(variant, blocks, tmp_path / "killed")
    assert reference.live().exit_code == FINISHED
    assert run.live(Blow(moment="write", number=4, to_group=False), workers=4).is_killed
    assert run.live().exit_code == FINISHED
    assert differences(run, reference) == []


def test_a_run_killed_at_its_file_operations_leaves_nothing_that_is_in_the_way(
    blocks: Path, tiny_settings: Settings, tmp_path: Path
) -> None:
    _kill_at_file_operations(range(5, 1000, 30), blocks, tiny_settings, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_killed_at_every_one_of_its_file_operations_leaves_nothing_that_is_in_the_way(
    blocks: Path, tiny_settings: Settings, tmp_path: Path, report_figure: Report
) -> None:
    num_kills, num_early = _kill_at_file_operations(range(1, 1000), blocks, tiny_settings, tmp_path)
    shown = f"{num_kills} kills, {num_early} before the first step | bit-identical, no stray file"
    report_figure("kill -9 at every file operation of a run", shown)


def _kill_at_file_operations(numbers: range, blocks: Path, tiny_settings: Settings, folder: Path) -> tuple[int, int]:
    """Kill runs just before each of these operations in the run folder, from `config.toml` to the report.

    Return how many were killed, and how many of them before their first step.
    """
    variant = nano(tiny_settings, epochs=1, train__checkpoint_minutes=1)
    reference = RunUnderFire(variant, blocks, folder / "undisturbed")
    assert reference.live().exit_code == FINISHED

    def strike(number: int) -> tuple[bool, bool, list[str]]:
        run = RunUnderFire(variant, blocks, folder / str(number))
        is_killed = run.live(Blow(moment="file", number=number)).is_killed
        is_early = not read_trace(run.trace)
        if is_killed:
            run.live()
        assert run.is_finished
        return is_killed, is_early, [f"operation {number}: {what}" for what in differences(run, reference)]

    ends: list[tuple[bool, bool, list[str]]] = []
    with ThreadPoolExecutor(2) as pool:
        for i in range(0, len(numbers), 2):
            ends += pool.map(strike, numbers[i : i + 2])
            if not ends[-1][0]:
                break
    assert [problem for *_, problems in ends for problem in problems] == []
    num_kills, num_early = sum(end[0] for end in ends), sum(end[1] for end in ends)
    assert num_kills > num_early > 0
    return num_kills, num_early


def test_a_run_told_to_stop_saves_within_a_step(blocks: Path, tiny_settings: Settings, tmp_path: Path) -> None:
    variant = nano(tiny_settings, epochs=6, train__checkpoint_minutes=1)
    assert _stop_at_random(3, variant, blocks, tmp_path) <= 1


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_told_to_stop_at_many_instants_saves_within_a_step_each_time(
    blocks: Path, tiny_settings: Settings, tmp_path: Path, report_figure: Report
) -> None:
    variant = nano(tiny_settings, epochs=20, train__checkpoint_minutes=1)
    most = _stop_at_random(30, variant, blocks, tmp_path)
    names = ", ".join(number.name for number in STOP_SIGNALS)
    report_figure(names, f"30 stops | saved after {most} step at most | 0 steps redone | bit-identical")
    assert most <= 1


def _stop_at_random(num_stops: int, variant: Variant, data: Path, folder: Path) -> int:
    """Stop runs at random instants, with each signal in turn; return the most steps that were completed after one.

    Before training has begun a signal ends the process, as it does any other; that does not count.
    """
    draw = random.Random(3)
    reference = RunUnderFire(variant, data, folder / "undisturbed")
    started = time.monotonic()
    assert reference.live().exit_code == FINISHED
    length_s = time.monotonic() - started
    most, stopped, attempt = 0, 0, 0
    while stopped < num_stops:
        run = RunUnderFire(variant, data, folder / str(attempt))
        attempt += 1
        while not run.is_finished:
            blow = Blow(
                moment="time",
                delay_s=draw.uniform(0, length_s),
                signal=STOP_SIGNALS[stopped % len(STOP_SIGNALS)],
                to_group=draw.random() < 0.5,
            )
            end = run.live(blow if stopped < num_stops else None, workers=draw.choice((0, 2)))
            if end.exit_code == INTERRUPTED and end.struck_at is not None:
                stopped += 1
                most = max(most, sum(step.at > end.struck_at for step in read_trace(run.trace)))
        assert differences(run, reference) == []
        assert num_redone(run) == 0
    return most


def test_a_resume_at_step_ninety_thousand_costs_what_one_at_step_ten_does(
    blocks: Path, tiny_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, report_figure: Report
) -> None:
    settings = {**tiny_settings, "batch.global_batch_size": 4, "train.eval_epochs": 20_000}
    stop_at = _stop_after(10)
    run = dt.train(blocks, model="nano", epochs=20_000, out=tmp_path / "run", settings=settings, observers=[stop_at])
    assert run.reason == "interrupted"
    costs = {step: _cost_of_resume(run.folder, step, tmp_path, monkeypatch) for step in (10, 90_000)}
    assert costs[90_000]["permutations"] <= costs[10]["permutations"] == 1
    assert costs[90_000]["images read"] == costs[10]["images read"]
    assert costs[90_000]["calls"] <= 1.05 * costs[10]["calls"]
    shown = "; ".join(
        f"{n:g} {what} at step 10, {costs[90_000][what]:g} at 90,000"
        for what, n in costs[10].items()
        if what != "seconds"
    )
    report_figure("resume and first step", shown)


def _stop_after(step: int) -> Callable[[Event], None]:
    def observer(event: Event) -> None:
        if isinstance(event, StepLogged) and event.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return observer


def _cost_of_resume(run: Path, step: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Resume a copy of a run as if it had got to a step; return what was done until the first step was over."""
    copy = folder / f"resumed at {step}"
    shutil.copytree(run, copy, symlinks=True)
    cost = {"permutations": 0.0, "images read": 0.0, "calls": 0.0}
    resume, draw, read = Trainer.resume, sampler.generator, DetectionDataset.__getitem__

    def resume_at_step(trainer: Trainer, checkpoint: Checkpoint) -> None:
        resume(trainer, replace(checkpoint, state=replace(checkpoint.state, step=step)))

    def counted_draw(*key: int | str) -> Any:
        cost["permutations"] += 1
        return draw(*key)

    def counted_read(self: DetectionDataset, key: Any) -> Any:
        cost["images read"] += 1
        return read(self, key)

    def on_call(frame: object, event: str, argument: object) -> None:
        cost["calls"] += event == "call"

    def observer(event: Event) -> None:
        if isinstance(event, StepLogged) and event.step == step + 1:
            sys.setprofile(None)
            os.kill(os.getpid(), signal.SIGTERM)

    sampler.epoch_permutation.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "resume", resume_at_step)
        patch.setattr(sampler, "generator", counted_draw)
        patch.setattr(DetectionDataset, "__getitem__", counted_read)
        sys.setprofile(on_call)
        try:
            resumed = dt.resume(copy, observers=[observer])
        finally:
            sys.setprofile(None)
    assert resumed.reason == "interrupted"
    return cost

"""Whole trainers on a tiny data set: what becomes of bad steps, spikes, interruptions, failures, and of the time."""

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from tests.faults.fault_injection import ModuleFault, injected
from tests.unit.engine.trainers import CLASSIC, Crash, crash_when, differing, learnt, multiply_loss, tiny_trainer

from detronome.engine import guard
from detronome.engine.checkpoint import CheckpointFolder, load_checkpoint, load_last_good
from detronome.engine.events import (
    CheckpointFailed,
    Evaluated,
    Event,
    RolledBack,
    RunEnded,
    StepLogged,
    StepSkipped,
)
from detronome.engine.trainer import Trainer
from detronome.errors import CheckpointError, TrainingError
from detronome.runtime.progress import Section
from detronome.types import EffectiveBatch

Settings = dict[str, Any]
STEPS_PER_EPOCH = 6


@dataclass
class Bench:
    """Makes trainers whose events it hears; those of one folder are one run."""

    data: Path
    folder: Path
    settings: Settings

    def __post_init__(self) -> None:
        self.events: list[Event] = []

    def trainer(self, name: str = "run", *, epochs: int = 3, observers: Sequence[Any] = (), **options: Any) -> Trainer:
        """Return a new trainer; begin to listen anew."""
        self.events = []
        settings = {**self.settings, **options.pop("settings", {})}
        everyone = [self.events.append, *observers]
        return tiny_trainer(self.data, self.folder / name, settings, epochs=epochs, observers=everyone, **options)

    def resumed(self, name: str = "run", **options: Any) -> Trainer:
        """Return a trainer where the folder's last checkpoint left the run."""
        checkpoint, damaged = load_last_good(self.folder / name / "checkpoints")
        assert not damaged
        return self.trainer(name, resume_from=checkpoint, **options)

    def heard(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


@pytest.fixture
def bench(blocks: Path, tiny_settings: Settings, tmp_path: Path) -> Bench:
    return Bench(blocks, tmp_path, {**tiny_settings, "train.ema_decay": 0.9})


@pytest.fixture
def early_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard knows spikes after a few steps."""
    monkeypatch.setattr(guard, "_WARMUP_STEPS", 4)


def at_steps(factor: float, *steps: int) -> Callable[[int], float]:
    return lambda step: factor if step in steps else 1.0


def evaluations(events: Iterable[Evaluated]) -> list[tuple[object, ...]]:
    return [(e.step, repr(e.metrics), repr(e.losses), e.is_best) for e in events]


# --- a skipped step was never there ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [0, 3, 5])
@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_run_with_a_skipped_step_is_the_run_without_that_step(bad: int, factor: float, bench: Bench) -> None:
    trainer = bench.trainer("skipped", epochs=1)
    multiply_loss(trainer, at_steps(factor, bad))
    assert trainer.fit().reason == "finished"
    (skipped,) = bench.heard(StepSkipped)
    assert (skipped.step, skipped.rank, skipped.module, skipped.is_reproducible) == (bad, 0, "", False)
    evaluated = evaluations(bench.heard(Evaluated))

    without = bench.trainer("excluded", epochs=1)
    without.excluded = {bad}
    without.fit()
    assert bench.heard(StepSkipped) == []
    assert differing(learnt(trainer), learnt(without)) == []
    assert evaluated == evaluations(bench.heard(Evaluated))


def test_the_same_of_classic_detr(bench: Bench) -> None:
    bench.settings = dict(CLASSIC)
    trainer = bench.trainer("skipped", model="detr-r18", epochs=1)
    multiply_loss(trainer, at_steps(math.nan, 2))
    trainer.fit()
    assert [skipped.step for skipped in bench.heard(StepSkipped)] == [2]
    without = bench.trainer("excluded", model="detr-r18", epochs=1)
    without.excluded = {2}
    without.fit()
    assert differing(learnt(trainer), learnt(without)) == []


def test_a_skipped_spike_was_never_there_either(bench: Bench, early_guard: None) -> None:
    trainer = bench.trainer("skipped")
    multiply_loss(trainer, at_steps(1e4, 8, 14))
    trainer.fit()
    assert [(skipped.step, skipped.is_reproducible) for skipped in bench.heard(StepSkipped)] == [(8, None), (14, None)]
    without = bench.trainer("excluded")
    without.excluded = {8, 14}
    without.fit()
    assert differing(learnt(trainer), learnt(without)) == []


def test_a_step_that_is_not_finite_is_no_spike_and_does_not_count_as_one(bench: Bench, early_guard: None) -> None:
    """Five high steps in a row are a new level; an infinity before them is none of the five."""
    spikes = range(7, 13)

    def factor(step: int) -> float:
        return math.inf if step == 6 else 1e4 if step in spikes else 1.0

    trainer = bench.trainer("skipped")
    multiply_loss(trainer, factor)
    trainer.fit()
    skipped = [event.step for event in bench.heard(StepSkipped)]
    without = bench.trainer("excluded")
    without.excluded = {6}
    multiply_loss(without, factor)
    without.fit()
    assert skipped == [6, *(event.step for event in bench.heard(StepSkipped))]
    assert differing(learnt(trainer), learnt(without)) == []


# --- rewinding -------------------------------------------------------------------------------------------------------

REWIND = {"guard.on_spike": "rewind", "guard.rewind_steps": 1}
SPIKES = (8, 15)
NEVER_SEEN = {7, 8, 14, 15}


def rewinding(bench: Bench, name: str, **options: Any) -> Trainer:
    trainer = bench.trainer(name, settings=REWIND, **options)
    multiply_loss(trainer, at_steps(1e4, *SPIKES))
    return trainer


def run_that_never_had_them(bench: Bench) -> tuple[Trainer, list[tuple[object, ...]]]:
    trainer = bench.trainer("never")
    trainer.excluded = set(NEVER_SEEN)
    trainer.fit()
    assert bench.heard(StepSkipped) == []
    return trainer, evaluations(bench.heard(Evaluated))


def test_a_rewound_run_is_the_run_that_never_had_the_batches(bench: Bench, early_guard: None) -> None:
    never, expected = run_that_never_had_them(bench)
    trainer = rewinding(bench, "rewound")
    trainer.fit()
    told = [(e.step, e.lr_scale, e.excluded) for e in bench.heard(RolledBack)]
    assert told == [(6, 1.0, [7, 8]), (12, 1.0, [7, 8, 14, 15])]
    assert all("spike" in event.reason for event in bench.heard(RolledBack))
    assert trainer.excluded == NEVER_SEEN
    assert differing(learnt(trainer), learnt(never)) == []
    assert evaluations(bench.heard(Evaluated)) == expected


def test_a_rewind_over_a_checkpoint_undoes_that_too(bench: Bench, early_guard: None) -> None:
    """The newest checkpoint, of step 12, has learnt from two of the three batches that are left out."""
    settings = {**REWIND, "guard.rewind_steps": 2}
    never = bench.trainer("never", settings=settings)
    never.excluded = {10, 11, 12}
    never.fit()
    expected = evaluations(bench.heard(Evaluated))

    trainer = bench.trainer("rewound", settings=settings)
    multiply_loss(trainer, at_steps(1e4, 12))
    trainer.fit()
    (told,) = bench.heard(RolledBack)
    assert told.step <= 10 and told.excluded == [10, 11, 12]
    assert differing(learnt(trainer), learnt(never)) == []
    # Step 12 has been evaluated twice; what counts is what was told last.
    last = {event[0]: event for event in evaluations(bench.heard(Evaluated))}
    assert list(last.values()) == expected


@pytest.mark.parametrize("step", [10, 13, 17])
def test_a_rewound_run_that_dies_and_is_resumed_is_that_run_too(step: int, bench: Bench, early_guard: None) -> None:
    """Once before the first checkpoint after a rewind, which knows of nothing, and twice after it."""
    never, _ = run_that_never_had_them(bench)
    is_rewound: list[Event] = []

    def is_time(event: Event) -> bool:
        is_rewound.extend([event] if isinstance(event, RolledBack) else [])
        return bool(is_rewound) and isinstance(event, StepLogged) and event.step == step

    with pytest.raises(Crash):
        rewinding(bench, "rewound", observers=[crash_when(is_time)]).fit()
    trainer = bench.resumed("rewound", settings=REWIND)
    multiply_loss(trainer, at_steps(1e4, *SPIKES))
    assert trainer.fit().reason == "finished"
    assert trainer.excluded == NEVER_SEEN
    assert differing(learnt(trainer), learnt(never)) == []


# --- the ladder ------------------------------------------------------------------------------------------------------

LADDER = {"guard.max_skipped_steps": 2, "guard.max_rollbacks": 1, "guard.rollback_lr_factor": 0.5}


def test_the_ladder_from_skips_over_a_rollback_to_the_end(bench: Bench) -> None:
    trainer = bench.trainer(settings=LADDER)
    multiply_loss(trainer, lambda step: math.nan if step >= 8 else 1.0)
    with pytest.raises(TrainingError, match=r"(?s)2 steps in a row.*after 1 rollback"):
        trainer.fit()
    told = [(type(e), e.step) for e in bench.events if isinstance(e, StepSkipped | RolledBack | RunEnded)]
    skips = [(StepSkipped, 8), (StepSkipped, 9)]
    assert told == [*skips, (RolledBack, 6), *skips]
    (rolled_back,) = bench.heard(RolledBack)
    assert (rolled_back.from_step, rolled_back.lr_scale, rolled_back.excluded) == (10, 0.5, [])
    # What it leaves behind is sound.
    checkpoint, damaged = load_last_good(bench.folder / "run" / "checkpoints")
    assert not damaged and checkpoint.state.step == 6
    assert all(value.isfinite().all() for part in checkpoint.parts().values() for value in part.values())


def test_after_a_rollback_the_run_goes_on_at_half_the_rate_and_remembers_it(bench: Bench) -> None:
    settings = {**LADDER, "schedule.kind": "constant", "schedule.warmup_steps": 0}
    is_cured: list[Event] = []

    def listen(event: Event) -> None:
        is_cured.extend([event] if isinstance(event, RolledBack) else [])

    trainer = bench.trainer(settings=settings, observers=[listen, crash_when(lambda e: e.step == 15)])
    multiply_loss(trainer, lambda step: math.nan if step in (8, 9) and not is_cured else 1.0)
    with pytest.raises(Crash):
        trainer.fit()
    rates = [(e.step, e.learning_rates["model"]) for e in bench.heard(StepLogged)]
    assert rates == [*((s, 2e-3) for s in range(1, 10)), *((s, 1e-3) for s in range(7, 16))]
    again = bench.resumed(settings=settings)
    assert (again.step, again.training_step.lr_scale, again.ladder.num_rollbacks) == (12, 0.5, 1)
    again.fit()
    assert {e.learning_rates["model"] for e in bench.heard(StepLogged)} == {1e-3}


OVERFLOWING = "decoder.layers.0.linear1"


@pytest.mark.parametrize("module", [OVERFLOWING, ""], ids=["part", "whole model"])
def test_a_module_that_overflows_computes_in_fp32_from_then_on(module: str, bench: Bench) -> None:
    options: Settings = {"settings": LADDER, "precision": "bf16", "validate": False}
    trainer = bench.trainer(**options, observers=[crash_when(lambda e: isinstance(e, StepLogged) and e.step == 8)])
    with injected(trainer.model, ModuleFault(module=module, only_in_low_precision=True)), pytest.raises(Crash):
        trainer.fit()
    skips = bench.heard(StepSkipped)
    name = module or "model"
    assert [skip.step for skip in skips] == [0, 1]
    assert all((skip.module, skip.dtype, skip.is_reproducible) == (name, "bfloat16", True) for skip in skips)
    assert [skip.action for skip in skips] == ["skipped", f"{name} computes in fp32 from now on"]

    again = bench.resumed(**options)
    assert again.step == STEPS_PER_EPOCH and again.ladder.fp32_modules == [name]
    with injected(again.model, ModuleFault(module=module, only_in_low_precision=True)) as fault:
        assert again.fit().reason == "finished"
    assert fault.num_fired == 0 and bench.heard(StepSkipped) == []


def test_when_a_module_goes_to_fp32_does_not_depend_on_when_checkpoints_are_written(bench: Bench) -> None:
    learnt_by = []
    for minutes in (5.0, 0.0):
        settings = {**LADDER, "train.checkpoint_minutes": minutes, "train.log_steps": 100}
        trainer = bench.trainer(f"{minutes:g}", settings=settings, precision="bf16", epochs=1, validate=False)
        with injected(trainer.model, ModuleFault(module=OVERFLOWING, only_in_low_precision=True)):
            trainer.fit()
        assert trainer.ladder.fp32_modules == [OVERFLOWING]
        learnt_by.append(learnt(trainer))
    assert differing(*learnt_by) == []


def test_an_overflow_of_the_loss_scale_is_no_fault_of_hardware(bench: Bench) -> None:
    trainer = bench.trainer(precision="fp16", epochs=1, validate=False)
    trainer.training_step.loss_scale.scale.fill_(2.0**40)
    trainer.fit()
    skips = bench.heard(StepSkipped)
    assert len(skips) == STEPS_PER_EPOCH and trainer.ladder.num_consecutive == 0
    assert all(skip.is_reproducible and skip.action == "loss scale lowered" for skip in skips)
    assert trainer.training_step.loss_scale.scale == 2.0 ** (40 - STEPS_PER_EPOCH)


# --- interruptions ---------------------------------------------------------------------------------------------------


@dataclass
class Interrupting:
    """Validation batches that ask the run to stop while they are evaluated."""

    batches: Iterable[EffectiveBatch]

    def __iter__(self) -> Iterator[EffectiveBatch]:
        for batch in self.batches:
            os.kill(os.getpid(), signal.SIGTERM)
            yield batch


def test_an_interrupted_evaluation_is_made_anew(bench: Bench) -> None:
    whole = bench.trainer("whole")
    whole.fit()
    expected = evaluations(bench.heard(Evaluated))

    trainer = bench.trainer()
    assert trainer.validation is not None
    trainer.validation = replace(trainer.validation, batches=Interrupting(trainer.validation.batches))
    result = trainer.fit()
    assert (result.reason, result.signal, result.state.step) == ("interrupted", "SIGTERM", STEPS_PER_EPOCH)
    assert result.state.evaluated_step == -1 and bench.heard(Evaluated) == []

    again = bench.resumed()
    assert again.fit().reason == "finished"
    assert evaluations(bench.heard(Evaluated)) == expected
    assert differing(learnt(again), learnt(whole)) == []


def test_an_older_checkpoint_that_is_resumed_is_the_newest_from_then_on(bench: Bench) -> None:
    whole = bench.trainer("whole", settings={"train.keep_checkpoints": 9})
    whole.fit()
    checkpoints = bench.folder / "whole" / "checkpoints"
    older = load_checkpoint(checkpoints / f"step-{STEPS_PER_EPOCH:08d}", with_training=True)
    crash = crash_when(lambda e: isinstance(e, StepLogged) and e.step == STEPS_PER_EPOCH + 2)
    options: Settings = {"settings": {"train.keep_checkpoints": 9}, "resume_from": older, "observers": [crash]}
    with pytest.raises(Crash):
        bench.trainer("whole", **options).fit()
    assert load_last_good(checkpoints)[0].state.step == STEPS_PER_EPOCH


def test_the_guard_decides_after_a_resume_as_it_would_have(bench: Bench, early_guard: None) -> None:
    """Its limit is so tight that many steps are about as high: the running mean decides, not the spike."""
    tight = {"guard.loss_spike_factor": 1.1}

    def wave(step: int) -> float:
        return 1.0 + step / 6 + math.sin(4 * step) / 4  # the loss falls about as fast

    whole = bench.trainer("whole", settings=tight)
    multiply_loss(whole, wave)
    whole.fit()
    expected = [(e.step, e.reason) for e in bench.heard(StepSkipped)]
    assert 3 <= len(expected) < 12

    seen: list[tuple[int, str]] = []
    for crash_at in (8, 14, None):
        stop = crash_when(lambda e, at=crash_at: isinstance(e, StepLogged) and e.step == at)
        options: Settings = {"settings": tight, "observers": [stop]}
        trainer = bench.trainer(**options) if crash_at == 8 else bench.resumed(**options)
        multiply_loss(trainer, wave)
        seen = [told for told in seen if told[0] < trainer.step]
        if crash_at is None:
            trainer.fit()
        else:
            with pytest.raises(Crash):
                trainer.fit()
        seen += [(e.step, e.reason) for e in bench.heard(StepSkipped)]
    assert seen == expected
    assert differing(learnt(trainer), learnt(whole)) == []


# --- the ends of a run -----------------------------------------------------------------------------------------------


def test_a_run_without_validation(bench: Bench) -> None:
    trainer = bench.trainer(validate=False, epochs=2)
    result = trainer.fit()
    assert (result.reason, result.state.step, result.state.best_metrics) == ("finished", 2 * STEPS_PER_EPOCH, {})
    assert bench.heard(Evaluated) == []
    assert load_last_good(bench.folder / "run" / "checkpoints")[0].state.step == 2 * STEPS_PER_EPOCH


def test_a_finished_run_has_nothing_left_to_do(bench: Bench) -> None:
    trainer = bench.trainer(epochs=1)
    trainer.fit()
    again = bench.resumed(epochs=1)
    assert again.fit().reason == "finished"
    assert (bench.heard(StepLogged), bench.heard(Evaluated)) == ([], [])
    assert bench.heard(RunEnded)[0].best_metrics == trainer.best_metrics
    assert differing(learnt(again), learnt(trainer)) == []


def test_a_run_that_cannot_write_its_first_checkpoint_ends_at_once(bench: Bench) -> None:
    (bench.folder / "run").mkdir()
    (bench.folder / "run" / "checkpoints").write_text("a file stands in the way")
    with pytest.raises(CheckpointError):
        bench.trainer().fit()
    assert bench.heard(StepLogged) == []


def test_a_checkpoint_that_fails_on_the_way_is_told_and_the_run_goes_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = bench.trainer("whole")
    whole.fit()
    save = CheckpointFolder.save

    def fail_once(self: CheckpointFolder, checkpoint: Any, *, is_best: bool) -> Path:
        if checkpoint.state.step == STEPS_PER_EPOCH:
            raise CheckpointError("no space left on device", where="the disk", fix="free some")
        return save(self, checkpoint, is_best=is_best)

    monkeypatch.setattr(CheckpointFolder, "save", fail_once)
    trainer = bench.trainer()
    assert trainer.fit().reason == "finished"
    (failed,) = bench.heard(CheckpointFailed)
    assert failed.step == STEPS_PER_EPOCH
    assert failed.reason == "no space left on device; the best weights so far are not on disk"
    assert differing(learnt(trainer), learnt(whole)) == []


# --- where the time goes ---------------------------------------------------------------------------------------------


def test_the_seconds_of_all_sections_are_the_wall_time(bench: Bench) -> None:
    started = time.perf_counter()
    trainer = bench.trainer()
    trainer.fit()
    wall_s = time.perf_counter() - started
    (ended,) = bench.heard(RunEnded)
    assert ended.wall_s == pytest.approx(sum(ended.seconds.values()))
    # Opening the data precedes the trainer: some milliseconds, whatever the length of the run.
    assert ended.wall_s == pytest.approx(wall_s, rel=0.01, abs=0.02)
    assert not {Section.SKIPPED, Section.REDONE, Section.STOPPED} & ended.seconds.keys()
    assert 0 < ended.goodput < 1


def test_a_run_that_breaks_off_leaves_no_thread(bench: Bench) -> None:
    before = set(threading.enumerate())
    with pytest.raises(Crash):
        bench.trainer(observers=[crash_when(lambda e: isinstance(e, StepLogged) and e.step == 2)]).fit()
    assert set(threading.enumerate()) <= before


def test_skipped_and_undone_steps_do_not_count_as_useful(bench: Bench) -> None:
    is_cured: list[Event] = []

    def listen(event: Event) -> None:
        is_cured.extend([event] if isinstance(event, RolledBack) else [])

    def factor(step: int) -> float:
        if is_cured:
            return 1.0
        time.sleep({2: 0.4, 7: 0.5, 9: 0.2}.get(step, 0.0))
        return math.nan if step in (2, 9, 10) else 1.0

    trainer = bench.trainer(settings=LADDER, observers=[listen])
    multiply_loss(trainer, factor)
    trainer.fit()
    (ended,) = bench.heard(RunEnded)
    # Steps 2, 9 and 10 were skipped; 6 to 8 were done in vain, since the run went back from step 10 to step 6.
    assert 0.6 <= ended.seconds[Section.SKIPPED] < 0.6 + ended.seconds[Section.FORWARD]
    assert 0.5 <= ended.seconds[Section.REDONE] < 0.5 + ended.seconds[Section.FORWARD]
    assert ended.wall_s == pytest.approx(sum(ended.seconds.values()))
    for record in bench.heard(StepLogged):
        assert sum(record.sections_s.values()) == pytest.approx(record.step_s)


def test_every_log_record_tells_where_a_step_went(bench: Bench) -> None:
    trainer = bench.trainer(epochs=2)
    trainer._monitor._interval_s = 0.01
    trainer.fit()
    records = bench.heard(StepLogged)
    in_every_step = {
        Section.DATA_WAIT,
        Section.FORWARD,
        Section.MATCHER,
        Section.LOSS,
        Section.BACKWARD,
        Section.UPDATE,
    }
    for record in records:
        assert in_every_step <= record.sections_s.keys()
        assert sum(record.sections_s.values()) == pytest.approx(record.step_s)
        assert record.sections_s[Section.DATA_WAIT] == pytest.approx(record.data_wait_s, rel=0.05, abs=1e-3)
        assert record.device_s == {}  # the host's clock is the device's
    assert records[-1].system["rss_bytes"] > 0

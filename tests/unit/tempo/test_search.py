"""A study over a made-up training: what is tried, pruned, resumed, refused; and how a space is read."""

from __future__ import annotations

import math
import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from detronome.config.presets import nano
from detronome.errors import ConfigError, TrainingError
from detronome.runtime.files import locked
from detronome.tempo import search
from detronome.tempo.search import Evaluation, FinishedTrial, Pruner, Study, TrialEnd, TrialInfo
from detronome.tempo.search_space import Choice, Range, parse_space

SPACE = ["optim.lr=1e-4..1e-2:log", "model.num_queries=25|50|100"]
EPOCHS = 12


def study(folder: Path, *, pruner: Pruner = "median", space: Sequence[str] = SPACE, **meaning: Any) -> Study:
    return Study(folder, parse_space(space, nano()), meaning=meaning, epochs=EPOCHS, pruner=pruner, seed=3)


def quality(settings: Any) -> float:
    """Best at a rate of 1e-3 with 50 queries."""
    return 0.8 - 0.2 * abs(math.log10(settings["optim.lr"]) + 3) - 0.1 * (settings["model.num_queries"] != 50)


def trained(trial: TrialInfo, should_stop: Callable[[Evaluation], bool]) -> TrialEnd:
    """Learn without a computer."""
    trial.folder.mkdir(exist_ok=True)
    for epoch in range(1, EPOCHS + 1):
        if should_stop(Evaluation(epoch=epoch, value=quality(trial.settings) * epoch / EPOCHS)):
            break
    return TrialEnd(value=quality(trial.settings) * epoch / EPOCHS)


def test_a_search_finds_what_is_good_and_ends_what_is_not_early(tmp_path: Path) -> None:
    begun: list[TrialInfo] = []
    ended: list[FinishedTrial] = []
    result = study(tmp_path).run(trained, num_trials=25, on_begin=begun.append, on_end=ended.append)
    assert [trial.number for trial in result.trials] == list(range(25))
    assert result.trials == ended
    assert [trial.folder for trial in begun] == [tmp_path / f"trial-{i:04d}" for i in range(25)]
    best = result.best
    assert best is not None and best.value is not None and best.value > 0.7
    assert best.value == pytest.approx(quality(best.settings)) and best.epochs == EPOCHS
    pruned = [trial for trial in result.trials if trial.state == "pruned"]
    assert pruned and all(EPOCHS // 3 <= trial.epochs < EPOCHS for trial in pruned)
    assert set(result.importances) == {"optim.lr", "model.num_queries"}
    assert sum(result.importances.values()) == pytest.approx(1)


def test_no_trial_is_ended_early_where_nobody_wants_it(tmp_path: Path) -> None:
    result = study(tmp_path, pruner="none").run(trained, num_trials=12)
    assert {trial.state for trial in result.trials} == {"done"}


def test_halving_ends_most_trials_early(tmp_path: Path) -> None:
    result = study(tmp_path, pruner="halving").run(trained, num_trials=16)
    assert sum(trial.state == "pruned" for trial in result.trials) >= 4
    assert result.best is not None


def test_what_is_tried_follows_from_the_seed_also_over_restarts(tmp_path: Path) -> None:
    whole = study(tmp_path / "whole").run(trained, num_trials=12).trials
    for number in range(1, 13):  # a process for each trial
        parts = study(tmp_path / "parts").run(trained, num_trials=number).trials
    assert [trial.settings for trial in parts] == [trial.settings for trial in whole]
    assert len({str(trial.settings) for trial in whole}) == 12


def test_a_large_seed_is_a_seed(tmp_path: Path) -> None:
    space = parse_space(SPACE, nano())
    large = Study(tmp_path, space, meaning={}, epochs=EPOCHS, seed=2**32 - 1)
    assert len(large.run(trained, num_trials=2).trials) == 2


def test_an_empty_study_and_one_that_has_enough_train_nothing(tmp_path: Path) -> None:
    def never(trial: TrialInfo, should_stop: Callable[[Evaluation], bool]) -> TrialEnd:
        raise AssertionError

    empty = study(tmp_path).result()
    assert (empty.trials, empty.best, empty.importances) == ([], None, {})
    study(tmp_path).run(trained, num_trials=2)
    assert len(study(tmp_path).run(never, num_trials=2).trials) == 2


@pytest.mark.parametrize("how", ["KeyboardInterrupt", "SIGTERM"])
def test_an_interrupted_trial_is_gone_on_with_in_its_folder(tmp_path: Path, how: str) -> None:
    def interrupted(trial: TrialInfo, should_stop: Callable[[Evaluation], bool]) -> TrialEnd:
        should_stop(Evaluation(epoch=1, value=0.25))
        if how == "KeyboardInterrupt":
            raise KeyboardInterrupt
        return TrialEnd(value=0.25, interrupted_by=how)

    first = study(tmp_path).run(interrupted, num_trials=3)
    assert first.interrupted_by == ("SIGINT" if how == "KeyboardInterrupt" else how)
    assert [(trial.state, trial.value) for trial in first.trials] == [("interrupted", 0.25)]
    begun: list[TrialInfo] = []
    result = study(tmp_path).run(trained, num_trials=3, on_begin=begun.append)
    assert begun[0].folder == first.trials[0].folder and begun[0].settings == first.trials[0].settings
    assert [trial.state for trial in result.trials] == ["done"] * 3 and not result.interrupted_by


def killed_in_a_trial(folder: Path) -> None:
    def dies(trial: TrialInfo, should_stop: Callable[[Evaluation], bool]) -> TrialEnd:
        should_stop(Evaluation(epoch=1, value=0.1))
        os._exit(9)

    study(folder).run(dies, num_trials=2)


def test_a_trial_of_a_killed_process_is_gone_on_with(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=killed_in_a_trial, args=(tmp_path,))
    process.start()
    process.join(60)
    assert process.exitcode == 9
    result = study(tmp_path).run(trained, num_trials=2)
    assert [(trial.number, trial.state) for trial in result.trials] == [(0, "done"), (1, "done")]


def held(folder: Path, is_held: Any, may_end: Any) -> None:
    with locked(folder / ".trial-0000.lock", with_children=False) as is_ours:
        assert is_ours
        is_held.set()
        may_end.wait(60)


def test_a_trial_that_another_process_trains_is_left_to_it(tmp_path: Path) -> None:
    def interrupted(trial: TrialInfo, should_stop: Callable[[Evaluation], bool]) -> TrialEnd:
        raise KeyboardInterrupt

    study(tmp_path).run(interrupted, num_trials=1)
    context = multiprocessing.get_context("spawn")
    is_held, may_end = context.Event(), context.Event()
    other = context.Process(target=held, args=(tmp_path, is_held, may_end))
    other.start()
    try:
        assert is_held.wait(60)
        result = study(tmp_path).run(trained, num_trials=3)
        assert [trial.state for trial in result.trials] == ["running", "done", "done"]
    finally:
        may_end.set()
        other.join(60)


def test_a_lock_that_somebody_asks_about_is_waited_for(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    is_held, may_end = context.Event(), context.Event()
    other = context.Process(target=held, args=(tmp_path, is_held, may_end))
    other.start()
    try:
        assert is_held.wait(60)
        threading.Timer(0.3, may_end.set).start()
        assert [trial.state for trial in study(tmp_path).run(trained, num_trials=1).trials] == ["done"]
    finally:
        may_end.set()
        other.join(60)


def test_a_trial_that_ends_while_one_is_chosen_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(trial: TrialInfo, should_stop: Callable[[Evaluation], bool]) -> TrialEnd:
        raise KeyboardInterrupt

    other = study(tmp_path)
    other.run(interrupted, num_trials=1)

    ended: list[Path] = []

    def locked_after_its_end(path: Path, **how: Any) -> Any:
        if path.name == ".trial-0000.lock" and not ended:
            ended.append(path)
            other._study.tell(0, 0.5)
        return locked(path, **how)

    monkeypatch.setattr(search, "locked", locked_after_its_end)
    begun: list[TrialInfo] = []
    result = study(tmp_path).run(trained, num_trials=2, on_begin=begun.append)
    assert [trial.number for trial in begun] == [1]
    assert [trial.state for trial in result.trials] == ["done", "done"] and result.trials[0].value == 0.5


def test_a_torn_line_at_the_end_of_the_journal_is_dropped(tmp_path: Path) -> None:
    study(tmp_path).run(trained, num_trials=1)
    with (tmp_path / "study.journal").open("a") as journal:
        journal.write('{"op_code": 5, "tri')
    study(tmp_path).run(trained, num_trials=2)
    assert [trial.state for trial in study(tmp_path).result().trials] == ["done", "done"]


def test_a_damaged_journal_is_told(tmp_path: Path) -> None:
    study(tmp_path).run(trained, num_trials=1)
    journal = tmp_path / "study.journal"
    journal.write_bytes(journal.read_bytes().replace(b":", b"?", 1))
    with pytest.raises(ConfigError, match="damaged") as caught:
        study(tmp_path)
    assert caught.value.problems[0].where == str(journal)


def test_a_trial_that_fails_is_counted_and_told(tmp_path: Path) -> None:
    def sometimes(trial: TrialInfo, should_stop: Callable[[Evaluation], bool]) -> TrialEnd:
        if trial.number == 0:
            raise ConfigError("two settings cannot work together")
        if trial.number == 1:
            return TrialEnd(value=math.nan)
        return trained(trial, should_stop)

    result = study(tmp_path).run(sometimes, num_trials=4)
    assert [trial.state for trial in result.trials] == ["failed", "failed", "done", "done"]
    assert result.trials[0].failure == "two settings cannot work together"
    assert "no metric" in result.trials[1].failure


def test_a_search_of_which_nothing_works_ends(tmp_path: Path) -> None:
    def fails(trial: TrialInfo, should_stop: Callable[[Evaluation], bool]) -> TrialEnd:
        raise RuntimeError("CUDA error\nand a page of text")

    with pytest.raises(TrainingError, match=r"no trial was trained, 3 failed: CUDA error\n") as caught:
        study(tmp_path / "many").run(fails, num_trials=20)
    assert caught.value.problems[0].fix
    for _ in range(2):  # also when it is asked again
        with pytest.raises(TrainingError, match="no trial was trained, 2 failed"):
            study(tmp_path / "few").run(fails, num_trials=2)


def test_another_search_is_not_mixed_with_this_one(tmp_path: Path) -> None:
    study(tmp_path, data="/a").run(trained, num_trials=1)
    with pytest.raises(ConfigError) as caught:
        study(tmp_path, data="/b", space=["optim.lr=1e-4..1e-2:log"])
    assert [problem.what.split()[0] for problem in caught.value.problems] == ["data", "space"]
    assert "optim.lr=0.0001..0.01:log" in str(caught.value)


# --- the space -------------------------------------------------------------------------------------------------------


def test_dimensions_have_the_types_of_the_settings() -> None:
    space = parse_space(
        [
            "optim.weight_decay=0..1",
            "model.num_decoder_layers=1..6",
            "model.num_queries=auto|50",
            "model.widths=[16, 32, 32]|[32, 32, 64]",
            "loss.aux_loss=true|false",
            "schedule.kind=cosine|one_cycle",
        ],
        nano(),
    )
    assert space == [
        Range(setting="optim.weight_decay", low=0.0, high=1.0, is_whole=False, is_log=False),
        Range(setting="model.num_decoder_layers", low=1, high=6, is_whole=True, is_log=False),
        Choice(setting="model.num_queries", values=("auto", 50)),
        Choice(setting="model.widths", values=((16, 32, 32), (32, 32, 64))),
        Choice(setting="loss.aux_loss", values=(True, False)),
        Choice(setting="schedule.kind", values=("cosine", "one_cycle")),
    ]


def test_lists_and_names_come_back_as_settings_take_them(tmp_path: Path) -> None:
    texts = ["model.widths=[16, 32, 32]|[32, 32, 64]", "schedule.kind=cosine|one_cycle", "loss.aux_loss=true|false"]
    seen: list[TrialInfo] = []

    def recorded(trial: TrialInfo, should_stop: Callable[[Evaluation], bool]) -> TrialEnd:
        return TrialEnd(value=0.5)

    study(tmp_path, space=texts).run(recorded, num_trials=6, on_begin=seen.append)
    from detronome.config.convert import apply_overrides

    for trial in seen:
        config = apply_overrides(nano(), trial.settings)
        assert config.schedule.kind == trial.settings["schedule.kind"]
        assert list(config.model.widths) == trial.settings["model.widths"]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "what", "fix"),
    [
        ("optim.lr", "says not what to search", "optim.lr=1e-4..1e-2:log"),
        ("optim.lr=", "says not what to search", "write e.g."),
        ("lr=1..2", "unknown setting 'lr'", "did you mean optim.lr?"),
        ("optim.lrr=1..2", "unknown setting 'optim.lrr'", "did you mean 'lr'?"),
        ("optim.lr=fast..slow", "not allowed", "a number"),
        ("optim.lr=1e-2..1e-4", "nothing lies between", "smaller number first"),
        ("optim.lr=1e-4..1e-2:lag", "unknown scale", "did you mean 'log'?"),
        ("optim.weight_decay=0..1:log", "has no 0", "begin above 0"),
        ("optim.lr=-1..1", "must be above 0", "1e-4"),
        ("model.num_queries=0..100", "out of range", "1 or more"),
        ("model.num_queries=25", "one value", "--set model.num_queries=25"),
        ("model.num_queries=25|25.0", "one value", "--set"),
        ("schedule.kind=cosine..step", "no number", "A|B"),
        ("schedule.kind=cosine|stepp", "not allowed", "'step'"),
        ("model.num_heads=6|7", "no multiple of num_heads", "multiple"),
        ("train.epochs=5..10", "cannot be searched", "leave it out"),
    ],
)
def test_a_mistake_in_the_space_is_told(text: str, what: str, fix: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_space([text], nano())
    problem = caught.value.problems[0]
    assert what in problem.what and fix in problem.fix and "--space" in problem.where


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_space(["optim.lrr=1..2", "optim.lr=2..1", "model.num_queries=1|2", "model.num_queries=3|4"], nano())
    assert len(caught.value.problems) == 3
    with pytest.raises(ConfigError, match="nothing to search"):
        parse_space([], nano())

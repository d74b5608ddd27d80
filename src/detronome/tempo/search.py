"""Looking for settings that give a higher AP: the only file that knows Optuna.

A study lies in a folder and is shared by every process that works on it. A trial is a training run in the same folder.
What becomes of a process does not matter: a trial is running as long as somebody holds its lock, and one that nobody
holds is gone on with by whoever comes next.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from detronome.errors import ConfigError, DetronomeError, MissingExtraError, Problem, TrainingError
from detronome.runtime.files import locked
from detronome.tempo.search_space import Choice, Dimension

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

__all__ = ["Evaluation", "FinishedTrial", "SearchResult", "Study", "TrainTrial", "TrialEnd", "TrialInfo"]

Pruner = Literal["median", "halving", "none"]
TrialState = Literal["done", "pruned", "failed", "running", "interrupted"]

_JOURNAL = "study.journal"
_NAME = "detronome"
_FOLDER = "folder"
_MEANING = "meaning"
_SEED_STRIDE = 100_003
_STARTUP_TRIALS = 5
_FIRST_FAILURES = 3


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The metric of a trial at some moment."""

    epoch: int
    value: float


@dataclass(frozen=True, kw_only=True)
class TrialInfo:
    """What a trial is to train."""

    number: int
    folder: Path
    settings: Mapping[str, Any]
    """Plain data by dotted name."""


@dataclass(frozen=True, kw_only=True)
class TrialEnd:
    """How a trial's training ended."""

    value: float
    """Of its best evaluation; nan where it has none."""
    interrupted_by: str = ""
    """Name of the signal that ended it; the next call goes on with it."""
    was_finished: bool = False
    """Whether it had ended before, and only that was not written down."""


@dataclass(frozen=True, kw_only=True)
class FinishedTrial:
    """A trial that is over, running elsewhere, or to be gone on with."""

    number: int
    folder: Path
    state: TrialState
    settings: Mapping[str, Any]
    value: float | None
    """The metric; of a pruned trial, at its last evaluation."""
    epochs: int
    """Of its last evaluation."""
    failure: str = ""


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """A study as it stands."""

    trials: Sequence[FinishedTrial]
    importances: Mapping[str, float]
    """What part of the differences each setting explains, 0-1; empty where there are too few trials to tell."""
    interrupted_by: str = ""
    """Name of the signal that ended this call; empty where it ran to its end."""

    @property
    def best(self) -> FinishedTrial | None:
        """The trial with the highest metric that ran to its end."""
        done = [trial for trial in self.trials if trial.state == "done" and trial.value is not None]
        return max(done, key=lambda trial: trial.value or 0.0, default=None)


TrainTrial = Callable[[TrialInfo, Callable[[Evaluation], bool]], TrialEnd]
"""Trains a trial in its folder, or goes on with it there. Every evaluation is given to the second argument; the
training ends early where that says so."""


class Study:
    """A search in a folder.

    Args:
        folder: for the study and its trials; made if it is missing.
        space: what is varied.
        meaning: what else makes trials comparable (data, settings, length); must be that of earlier calls.
        epochs: length of a trial.
        pruner: `median`: a trial ends that is below the median of the others after the same epochs. `halving`: only the
            best quarter goes on, again and again (ASHA). `none`: all are trained to their end.
        seed: of what is tried.

    Raises:
        MissingExtraError: Optuna is not installed.
        ConfigError: the folder holds another search, or one whose journal is damaged.
    """

    def __init__(
        self,
        folder: Path,
        space: Sequence[Dimension],
        *,
        meaning: Mapping[str, Any],
        epochs: int,
        pruner: Pruner = "median",
        seed: int = 0,
    ) -> None:
        self.folder = folder
        self._space = space
        self._seed = seed
        self._optuna = _import_optuna()
        folder.mkdir(parents=True, exist_ok=True)
        with self._alone():
            self._study = self._open(self._pruner(pruner, epochs))
            self._check_meaning({**meaning, "space": sorted(map(str, space))})

    def run(
        self,
        train: TrainTrial,
        *,
        num_trials: int,
        on_begin: Callable[[TrialInfo], None] = lambda _: None,
        on_end: Callable[[FinishedTrial], None] = lambda _: None,
    ) -> SearchResult:
        """Train trials until the study has so many, over all processes; Ctrl-C ends it, and the next call goes on.

        Args:
            train: trains one.
            num_trials: how many the study is to have, those of earlier calls included.
            on_begin: is told of each trial that begins here.
            on_end: is told of each trial that ended here.

        Raises:
            TrainingError: the first trials have all failed.
        """
        signal = ""
        while not signal:
            self._check_failures(num_trials)
            with self._next(num_trials) as trial:
                if trial is None:
                    break
                info = self._info(trial)
                on_begin(info)
                signal = self._train(trial, info, train)
            if not signal:
                on_end(next(ended for ended in self._trials() if ended.number == info.number))
        return self.result(interrupted_by=signal)

    def result(self, *, interrupted_by: str = "") -> SearchResult:
        """Return the study as it stands."""
        return SearchResult(trials=self._trials(), importances=self._importances(), interrupted_by=interrupted_by)

    # --- one trial ---------------------------------------------------------------------------------------------------

    @contextmanager
    def _next(self, num_trials: int) -> Iterator[optuna.Trial | None]:
        """Yield the trial to train next, or None when there are enough; its lock is held until the end."""
        with self._alone() as alone:
            trial = self._orphan() or self._new(num_trials)
            if trial is None:
                yield None
                return
            # Loader workers outlive a killed process for some seconds, and must not keep the next one out. The lock is
            # free, but for a moment where another process asks whether it is.
            with locked(self._lock(trial.number), wait=True, with_children=False):
                alone()
                yield trial

    def _new(self, num_trials: int) -> optuna.Trial | None:
        states = self._optuna.trial.TrialState
        counted = [trial for trial in self._study.trials if trial.state != states.WAITING]
        if len(counted) >= num_trials:
            return None
        # What is tried follows from seed and number: a process that starts anew does not repeat what was tried.
        self._study.sampler = self._optuna.samplers.TPESampler(seed=(self._seed + _SEED_STRIDE * len(counted)) % 2**32)
        trial = self._study.ask()
        for dimension in self._space:
            _suggest(trial, dimension)
        trial.set_user_attr(_FOLDER, f"trial-{trial.number:04d}")
        return trial

    def _orphan(self) -> optuna.Trial | None:
        """Return a trial that was begun, and that no process trains any more."""
        for frozen in self._study.trials:
            if not self._is_orphan(frozen):
                continue
            if len(frozen.params) < len(self._space) or _FOLDER not in frozen.user_attrs:  # ended while being asked
                self._study.tell(frozen.number, state=self._optuna.trial.TrialState.FAIL)
                continue
            return self._optuna.Trial(self._study, frozen._trial_id)
        return None

    def _is_orphan(self, frozen: FrozenTrial) -> bool:
        """Whether a trial was begun and no process trains it. Not to be asked while this one trains."""
        running = self._optuna.trial.TrialState.RUNNING
        if frozen.state != running:
            return False
        with locked(self._lock(frozen.number), with_children=False) as is_ours:
            return is_ours and self._study.trials[frozen.number].state == running  # it may have ended meanwhile

    def _train(self, trial: optuna.Trial, info: TrialInfo, train: TrainTrial) -> str:
        """Train a trial and write down how it ended; return the signal that interrupted it, if one did."""
        states = self._optuna.trial.TrialState
        is_pruned = False

        def should_stop(evaluation: Evaluation) -> bool:
            nonlocal is_pruned
            if math.isnan(evaluation.value):
                return False
            if evaluation.epoch not in self._reported(trial):  # a resumed run repeats what came after its checkpoint
                trial.report(evaluation.value, evaluation.epoch)
            is_pruned = trial.should_prune()
            return is_pruned

        try:
            end = train(info, should_stop)
        except KeyboardInterrupt:
            return "SIGINT"
        except (DetronomeError, RuntimeError, MemoryError) as error:
            trial.set_user_attr("failure", str(error).partition("\n")[0] or type(error).__name__)
            self._study.tell(trial, state=states.FAIL)
            return ""
        if end.interrupted_by:
            return end.interrupted_by
        if is_pruned or (end.was_finished and trial.should_prune()):
            self._study.tell(trial, state=states.PRUNED)
        elif math.isnan(end.value):
            trial.set_user_attr("failure", "no metric: the validation split has no objects")
            self._study.tell(trial, state=states.FAIL)
        else:
            self._study.tell(trial, end.value)
        return ""

    def _reported(self, trial: optuna.Trial) -> Mapping[int, float]:
        return self._study.trials[trial.number].intermediate_values

    def _info(self, trial: optuna.Trial) -> TrialInfo:
        frozen = self._study.trials[trial.number]
        return TrialInfo(
            number=trial.number,
            folder=self.folder / str(frozen.user_attrs[_FOLDER]),
            settings=self._settings(frozen),
        )

    # --- the study ---------------------------------------------------------------------------------------------------

    def _open(self, pruner: Any) -> optuna.Study:
        path = self.folder / _JOURNAL
        lock = self._optuna.storages.journal.JournalFileSymlinkLock(str(path))
        lock.acquire()
        try:  # a full disk or a power cut leaves a part of a line, and what is appended to that cannot be read
            if path.exists() and not (held := path.read_bytes()).endswith(b"\n"):
                os.truncate(path, held.rfind(b"\n") + 1)
        finally:
            lock.release()
        try:
            return self._optuna.create_study(
                storage=self._optuna.storages.JournalStorage(
                    self._optuna.storages.journal.JournalFileBackend(str(path), lock)
                ),
                study_name=_NAME,
                direction="maximize",
                pruner=pruner,
                load_if_exists=True,
            )
        except ValueError as error:  # JSON's among them
            raise ConfigError(
                f"the journal of the search is damaged: {error}",
                where=str(path),
                fix="begin another search in another folder (--out); the trials in this one are runs of their own",
            ) from error

    def _trials(self) -> list[FinishedTrial]:
        states = self._optuna.trial.TrialState
        names: dict[Any, TrialState] = {
            states.COMPLETE: "done",
            states.PRUNED: "pruned",
            states.FAIL: "failed",
            states.RUNNING: "running",
        }
        return [
            FinishedTrial(
                number=frozen.number,
                folder=self.folder / str(frozen.user_attrs.get(_FOLDER, "")),
                state="interrupted" if self._is_orphan(frozen) else names[frozen.state],
                settings=self._settings(frozen),
                value=frozen.value if frozen.state == states.COMPLETE else _last(frozen),
                epochs=frozen.last_step or 0,
                failure=str(frozen.user_attrs.get("failure", "")),
            )
            for frozen in self._study.trials
            if frozen.state in names
        ]

    def _settings(self, frozen: FrozenTrial) -> dict[str, Any]:
        settings: dict[str, Any] = {}
        for dimension in self._space:
            if dimension.setting in frozen.params:
                value = frozen.params[dimension.setting]
                settings[dimension.setting] = json.loads(value) if isinstance(dimension, Choice) else value
        return settings

    def _importances(self) -> dict[str, float]:
        evaluator = self._optuna.importance.PedAnovaImportanceEvaluator()
        done = [trial for trial in self._trials() if trial.state == "done"]
        if len(done) < 2 * _STARTUP_TRIALS or len({trial.value for trial in done}) < 2:
            return {}
        with suppress(ValueError, RuntimeError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return dict(self._optuna.importance.get_param_importances(self._study, evaluator=evaluator))
        return {}

    def _check_meaning(self, meaning: Mapping[str, Any]) -> None:
        """Refuse to mix trials that cannot be compared."""
        plain = json.loads(json.dumps(meaning))
        held = self._study.user_attrs.get(_MEANING)
        if held is None:
            self._study.set_user_attr(_MEANING, plain)
            return
        problems = [
            Problem(
                what=f"{name} was {_brief(held.get(name))} when the search began, and is {_brief(plain.get(name))} now",
                where=str(self.folder),
                fix="leave it as it was, or begin another search in another folder (--out)",
            )
            for name in sorted({*held, *plain})
            if held.get(name) != plain.get(name)
        ]
        if problems:
            raise ConfigError(problems)

    def _check_failures(self, num_trials: int) -> None:
        ended = [trial for trial in self._trials() if trial.state in ("done", "pruned", "failed")]
        if len(ended) >= min(_FIRST_FAILURES, num_trials) and all(trial.state == "failed" for trial in ended):
            reasons = dict.fromkeys(trial.failure for trial in ended)
            raise TrainingError(
                f"no trial was trained, {len(ended)} failed: {'; '.join(reasons)}",
                where=str(self.folder),
                fix="train once with these settings to see why, and begin again in another folder",
            )

    def _pruner(self, name: Pruner, epochs: int) -> Any:
        pruners = self._optuna.pruners
        # A detection transformer's AP stays at 0 for some epochs and then jumps: until then nothing can be said.
        silent = max(1, epochs // 3)
        if name == "median":
            return pruners.MedianPruner(n_startup_trials=_STARTUP_TRIALS, n_warmup_steps=silent)
        if name == "halving":
            return pruners.SuccessiveHalvingPruner(min_resource=silent)
        return pruners.NopPruner()

    @contextmanager
    def _alone(self) -> Iterator[Callable[[], None]]:
        """Keep other processes from choosing a trial; yield what lets them again."""
        lock = locked(self.folder / ".choosing.lock", wait=True)
        lock.__enter__()
        is_held = True

        def release() -> None:
            nonlocal is_held
            if is_held:
                is_held = False
                lock.__exit__(None, None, None)

        try:
            yield release
        finally:
            release()

    def _lock(self, number: int) -> Path:
        return self.folder / f".trial-{number:04d}.lock"


def _import_optuna() -> Any:
    try:
        import optuna
        import optuna.storages.journal
    except ImportError as error:
        raise MissingExtraError("optuna", extra="search", needed_for="a search") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _suggest(trial: optuna.Trial, dimension: Dimension) -> None:
    if isinstance(dimension, Choice):
        # Optuna keeps numbers, texts and truth values; lists only as text.
        trial.suggest_categorical(dimension.setting, [json.dumps(value) for value in dimension.values])
    elif dimension.is_whole:
        trial.suggest_int(dimension.setting, int(dimension.low), int(dimension.high), log=dimension.is_log)
    else:
        trial.suggest_float(dimension.setting, dimension.low, dimension.high, log=dimension.is_log)


def _last(frozen: FrozenTrial) -> float | None:
    return None if frozen.last_step is None else frozen.intermediate_values[frozen.last_step]


def _brief(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else f"{text[:97]}..."

"""Looking for settings that give a higher AP: every trial is a training run in the search's folder."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

import torch

from detronome.api.arguments import one_of, one_process, whole_number
from detronome.api.asked import asked_config, open_splits
from detronome.api.folders import holds_run, writing
from detronome.api.runs import write_report
from detronome.api.training import train
from detronome.config.convert import apply_overrides, to_dict
from detronome.config.schema import RunConfig
from detronome.engine.events import Evaluated
from detronome.engine.resume import judge
from detronome.errors import ConfigError, DetronomeError, TrainingError
from detronome.runtime.device import resolve_device
from detronome.runtime.files import write_atomic
from detronome.runtime.processors import usable_cpus
from detronome.runtime.signals import StopRequest, exit_code
from detronome.tempo.search import Evaluation, FinishedTrial, SearchResult, Study, TrialEnd, TrialInfo
from detronome.tempo.search_space import parse_space
from detronome.tempo.settings_file import differing_settings, settings_toml

__all__ = ["Search", "search"]

Pruner = Literal["median", "halving", "none"]

_COMPARED = 5
"""The best trials that the page shows beside each other."""
_POLL_S = 1.0
_ENDED = ("done", "pruned", "failed")


@dataclass(frozen=True, kw_only=True)
class Search:
    """A search on disk."""

    folder: Path
    metric: str
    result: SearchResult
    best: Path | None
    """The best settings, valid as `--config`; None before a trial has ended."""
    report: Path | None
    """The page that compares the best trials."""


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What a search was asked for; travels to its processes."""

    data: str
    model: str
    space: tuple[str, ...]
    epochs: int
    folder: Path
    config: Path | None
    settings: Mapping[str, Any]
    trials: int
    pruner: Pruner
    seed: int


def search(
    data: str | Path,
    *,
    space: Sequence[str],
    epochs: int,
    out: str | Path,
    model: str | Path = "detr-r50",
    config: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    trials: int = 20,
    jobs: int = 1,
    pruner: Pruner = "median",
    seed: int = 0,
    on_begin: Callable[[TrialInfo], None] = lambda _: None,
    on_evaluation: Callable[[Evaluation], None] = lambda _: None,
    on_end: Callable[[FinishedTrial], None] = lambda _: None,
) -> Search:
    """Train with other settings again and again, and find those with the highest AP on the validation split.

    Called again with the same arguments it goes on, also after a kill; several processes may work in the same folder.
    Trials that fall behind are ended early. Ctrl-C saves and ends it.

    Args:
        data: as for `train`.
        space: what is varied: `setting=low..high`, with `:log` for a logarithmic scale, or `setting=a|b|c`.
        epochs: length of a trial.
        out: folder for the study and its runs.
        model: as for `train`.
        config: a TOML file on top of the preset.
        settings: dotted settings on top of both, the same for all trials.
        trials: how many the folder is to hold, those of earlier calls included.
        jobs: processes that train at the same time, which share the processors, or take a GPU each where there are
            several. They are spawned, so a script needs its `if __name__ == "__main__":`.
        pruner: who is ended early: `median`: who is below the median of the others after the same epochs. `halving`:
            all but the best quarter, again and again (ASHA). `none`: nobody.
        seed: of what is tried.
        on_begin: is told of each trial that begins in this process.
        on_evaluation: is told of its evaluations.
        on_end: is told of each trial that has ended.

    Raises:
        MissingExtraError: Optuna is not installed.
        ConfigError: the space makes no sense, the settings cannot work, or the folder holds another search.
        DataError: the data cannot be used.
        TrainingError: the first trials have all failed.
    """
    one_process("search")
    whole_number(epochs, "epochs", least=1, of_what="{} epochs")
    whole_number(trials, "trials", least=1, of_what="{} trials")
    whole_number(jobs, "jobs", least=1, of_what="{} jobs")
    whole_number(seed, "seed", least=0, of_what="a seed of {}")
    one_of(pruner, Pruner, "pruner")
    asked = _Asked(
        data=str(data),
        model=str(model),
        space=tuple(space),
        epochs=epochs,
        folder=Path(out),
        config=None if config is None else Path(config),
        settings=dict(settings or {}),
        trials=trials,
        pruner=pruner,
        seed=seed,
    )
    run_config = _run_config(asked)
    open_splits(run_config)  # what is wrong with the data is no trial's failure
    resolve_device(run_config.train.device)
    if holds_run(asked.folder):
        raise ConfigError(
            "the folder holds a run, and a search has runs of its own",
            where=str(asked.folder),
            fix="choose another --out",
        )
    with writing(asked.folder):
        study = _study(asked, run_config)
        if jobs > 1:
            result = _work_together(asked, study, jobs, on_end)
        else:
            trainer = _trainer(asked, run_config, on_evaluation)
            result = study.run(trainer, num_trials=trials, on_begin=on_begin, on_end=on_end)
    return Search(
        folder=asked.folder,
        metric=run_config.train.metric,
        result=result,
        best=_write_best(asked, run_config, result),
        report=_write_page(asked.folder, result),
    )


def _run_config(asked: _Asked) -> RunConfig:
    config, _ = asked_config(
        asked.data, model=asked.model, config=asked.config, settings=asked.settings, epochs=asked.epochs
    )
    if not config.data.val_split:
        raise ConfigError(
            "a search needs a validation split, which tells the trials apart",
            where="data.val_split",
            fix="name one with --set data.val_split=NAME",
        )
    return config


def _study(asked: _Asked, config: RunConfig) -> Study:
    return Study(
        asked.folder,
        parse_space(asked.space, config),
        meaning={"model": asked.model, "pruner": asked.pruner, "seed": asked.seed, **_what_matters(config)},
        epochs=asked.epochs,
        pruner=asked.pruner,
        seed=asked.seed,
    )


def _what_matters(config: RunConfig) -> dict[str, Any]:
    """Return the settings on which a trial's AP depends."""
    flat: dict[str, Any] = {}
    for section, values in to_dict(config).items():
        if isinstance(values, dict):
            flat |= {f"{section}.{name}": value for name, value in values.items()}
    return {key: v for key, v in flat.items() if key != "train.device" and judge(key, config, config)[0] != "free"}


def _trainer(
    asked: _Asked, config: RunConfig, on_evaluation: Callable[[Evaluation], None], device: str | None = None
) -> Callable[[TrialInfo, Callable[[Evaluation], bool]], TrialEnd]:
    """Return what trains a trial as `train` does, and goes on with one that was interrupted."""
    metric = config.train.metric
    of_the_job = {} if device is None else {"train.device": device}

    def train_trial(trial: TrialInfo, should_stop: Callable[[Evaluation], bool]) -> TrialEnd:
        def stop_when(event: Evaluated) -> bool:
            evaluation = Evaluation(epoch=round(event.epoch), value=event.metrics[metric])
            on_evaluation(evaluation)
            return should_stop(evaluation)

        run = train(
            asked.data,
            model=asked.model,
            epochs=asked.epochs,
            out=trial.folder,
            config=asked.config,
            settings={**asked.settings, **of_the_job, **trial.settings},
            if_exists="resume",
            stop_when=stop_when,
        )
        return TrialEnd(
            value=run.metrics.get(metric, math.nan),
            interrupted_by=run.signal if run.reason == "interrupted" else "",
            was_finished=run.was_finished,
        )

    return train_trial


def _work_together(asked: _Asked, study: Study, jobs: int, on_end: Callable[[FinishedTrial], None]) -> SearchResult:
    """Let several processes work on the study, and wait for them."""
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_work, args=(asked, job, jobs), name=f"search-{job}") for job in range(jobs)]
    told = {trial.number for trial in study.result().trials if trial.state in _ENDED}
    with StopRequest() as stop:
        for worker in workers:
            worker.start()
        try:
            is_passed_on = False
            while any(worker.is_alive() for worker in workers):
                for worker in workers:
                    worker.join(_POLL_S / jobs)
                if stop.is_set and not is_passed_on:
                    is_passed_on = True
                    _pass_on(stop.signal, workers)
                for trial in study.result().trials:
                    if trial.state in _ENDED and trial.number not in told:
                        told.add(trial.number)
                        on_end(trial)
        except BaseException:
            _pass_on("SIGTERM", workers)
            raise
    result = study.result(interrupted_by=stop.signal)
    num_trained = sum(trial.state in (*_ENDED, "running") for trial in result.trials)
    if not stop.is_set and any(worker.exitcode for worker in workers) and num_trained < asked.trials:
        raise TrainingError(
            f"the processes of the search have failed, after {num_trained} of {asked.trials} trials",
            where=str(asked.folder),
            fix="see above, or use one: --jobs 1; the same command goes on",
        )
    return result


def _pass_on(name: str, workers: Sequence[BaseProcess]) -> None:
    """Tell the processes to save and end; a terminal may have told them already, which counts as the same request."""
    for worker in workers:
        with suppress(ProcessLookupError):
            if worker.pid is not None and worker.is_alive():
                os.kill(worker.pid, signal.Signals[name])


def _work(asked: _Asked, job: int, jobs: int) -> None:
    """Be one of several processes of a search."""
    num_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    torch.set_num_threads(max(1, usable_cpus() // jobs))
    config = _run_config(asked)
    device = f"cuda:{job % num_devices}" if num_devices > 1 and config.train.device in ("auto", "cuda") else None
    try:
        result = _study(asked, config).run(_trainer(asked, config, lambda _: None, device), num_trials=asked.trials)
    except DetronomeError as error:
        raise SystemExit(f"search process {job}: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit(exit_code("SIGINT")) from None
    if result.interrupted_by:
        raise SystemExit(exit_code(result.interrupted_by))


def _write_best(asked: _Asked, config: RunConfig, result: SearchResult) -> Path | None:
    best = result.best
    if best is None or best.value is None:
        return None
    base, _ = asked_config(asked.data, model=asked.model)
    settings = differing_settings(apply_overrides(config, best.settings), base)
    num_done = sum(trial.state in ("done", "pruned") for trial in result.trials)
    reasons = {name: ["searched"] for name in best.settings}
    header = [
        f"detronome search: the best of {num_done} trials, {config.train.metric} {best.value:.4f} "
        f"on {config.data.val_split!r} ({best.folder.name})",
        "the best of many is luck in part: another seed, or the test split, tells how much",
    ]
    file = asked.folder / "best.toml"
    with writing(file):
        write_atomic(file, settings_toml({**settings, **best.settings}, header=header, reasons=reasons))
    return file


def _write_page(folder: Path, result: SearchResult) -> Path | None:
    ended = [trial for trial in result.trials if trial.state in ("done", "pruned") and trial.value is not None]
    kept = [trial for trial in ended if trial.folder.is_dir()]
    best = sorted(kept, key=lambda trial: (trial.state == "done", trial.value or 0.0), reverse=True)[:_COMPARED]
    return write_report([trial.folder for trial in best], out=folder / "comparison.html") if best else None

"""Training a model, going on with a run, and the demo: on one process, or on each rank that torchrun has started."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from detronome.api.arguments import one_of
from detronome.api.asked import asked_config, data_root, open_splits
from detronome.api.folders import holds_run, new_run_dir, numbered, writing
from detronome.api.planning import RunPlanner
from detronome.api.profiling import write_verdict
from detronome.api.run_details import write_label_counts, write_run_details
from detronome.api.runs import write_report
from detronome.config.convert import apply_overrides, from_dict, read_toml, to_dict, to_toml
from detronome.config.schema import RunConfig
from detronome.data.scenes import write_scenes
from detronome.data.split import DataSplit
from detronome.engine.build import build_trainer
from detronome.engine.checkpoint import Checkpoint, load_last_good
from detronome.engine.events import Evaluated, Observer, RunEnded
from detronome.engine.fine_tune import head_change
from detronome.engine.resolve import resolve
from detronome.engine.resume import reconcile
from detronome.engine.trainer import Trainer
from detronome.errors import CheckpointError, ConfigError, DataError, TrainingError, first_few
from detronome.model import Model, load
from detronome.report.gallery import write_gallery
from detronome.report.run_log import RunLog, read_run_log
from detronome.report.trackers.build import build_trackers
from detronome.report.trackers.names import TrackerName
from detronome.runtime.distributed import World, joined_world
from detronome.runtime.files import locked, remove_lock, write_atomic
from detronome.runtime.watchdog import Watchdog

__all__ = ["Run", "demo", "resume", "train"]

IfExists = Literal["error", "resume"]

_HANGS = "hangs"
_TIMEOUT_S = 24 * 3600.0
"""Of a collective: longer than the watchdog takes to say which rank the others wait for."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A training run on disk."""

    folder: Path
    reason: Literal["finished", "early_stop", "interrupted"]
    metrics: dict[str, float]
    """Of the best evaluation."""
    report: Path | None
    """The page, when the run has ended."""
    signal: str = ""
    """Name of the signal that interrupted it, e.g. `SIGTERM`."""
    was_finished: bool = False
    """Whether it had ended before this call, which then trained nothing."""

    @cached_property
    def model(self) -> Model:
        """The best checkpoint."""
        return load(self.folder)


@dataclass(frozen=True, kw_only=True)
class _Start:
    """What the main rank has decided about a run; the same on all ranks."""

    run_dir: Path
    config: RunConfig
    """Without any `auto`."""
    reasons: Mapping[str, str]
    resume_from: Checkpoint | None = None
    ended: Run | None = None
    """The run, when there is nothing left to do."""


def train(
    data: str | Path,
    *,
    model: str | Path | Model = "detr-r50",
    epochs: int | None = None,
    out: str | Path | None = None,
    config: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    if_exists: IfExists = "error",
    observers: Sequence[Observer] = (),
    trackers: Sequence[TrackerName] = (),
    stop_when: Callable[[Evaluated], bool] = lambda _: False,
) -> Run:
    """Train a detector on a data folder, with checkpoints, run log, pictures and a report.

    Args:
        data: a folder in COCO, Roboflow, YOLO or Pascal VOC layout, or a sharded data set, also at an address.
        model: a preset's name, or what to fine-tune: a `Model`, or anything else that `load` takes (a run, a .pth or
            .safetensors file, a model's id on huggingface.co). A preset's name is the recipe, without its weights:
            `load("detr-r50")`, or the file's name `detr-r50-e632da11.pth`, are those. Where the data has categories
            that the model does not know, its classification head begins anew, and nothing else.
        epochs: shortcut for the setting `train.epochs`.
        out: the run folder; by default `runs/<preset>`, numbered.
        config: a TOML file on top of the preset.
        settings: dotted settings on top of both, e.g. `{"optim.lr": 2e-4}`.
        if_exists: what to do when `out` holds a run already. `resume` goes on with it, under the rules of `resume`, so
            that the same call serves for the first start and for every later one; the run that has ended is returned.
            A process that torchrun has started anew always does so.
        observers: are told how the run goes, beside the run log.
        trackers: where else to write how it goes: `tensorboard`, `wandb`, `mlflow`.
        stop_when: given an evaluation, says whether training on is pointless; the run then ends as by an early stop.

    Raises:
        ConfigError, DataError, CheckpointError: what is wrong with settings, data or the model to start from.
    """
    one_of(if_exists, IfExists, "if_exists")
    for name in trackers:
        one_of(name, TrackerName, "trackers")
    may_go_on = if_exists == "resume" or _is_restart(os.environ)
    if out is None and (may_go_on or _may_be_restarted(os.environ)):
        raise ConfigError(
            "only the run folder tells which run a later start is to go on with, and none is given",
            where="--out",
            fix="name it: --out RUN",
        )
    with _joined() as world:
        run_config, start_from = asked_config(data, model=model, config=config, settings=settings, epochs=epochs)

        def begin() -> _Start:
            if out is not None and may_go_on and holds_run(Path(out)):
                return _go_on(Path(out), lambda _: run_config, world, observers)
            return _begin(run_config, out, start_from, world)

        return _fit(
            world.on_main(begin),
            world,
            observers,
            trackers=trackers,
            start_from=start_from,
            stop_when=stop_when,
        )


def resume(
    run: str | Path,
    *,
    config: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    observers: Sequence[Observer] = (),
    trackers: Sequence[TrackerName] = (),
) -> Run:
    """Go on with an interrupted run from its last checkpoint; on a CPU, bit for bit as if it had never stopped.

    A run that has ended is left as it is and returned.

    Args:
        run: the run folder, or one checkpoint in it: later steps are then done again.
        config: a TOML file with settings to change.
        settings: dotted settings to change, on top of it, e.g. `{"data.workers": 4}`. Those that would make it another
            run are refused; those that cost the bit-exactness are told.
        observers: are told how the run goes, beside the run log.
        trackers: where else to write how it goes: `tensorboard`, `wandb`, `mlflow`.

    Raises:
        CheckpointError: the folder holds no checkpoint of a run, or the data has changed.
        ConfigError: settings that cannot change, all of them at once.
    """
    for name in trackers:
        one_of(name, TrackerName, "trackers")
    changed = dict(settings or {})
    if isinstance(changed.get("data.root"), str):
        changed["data.root"] = data_root(changed["data.root"])

    def asked(held: RunConfig) -> RunConfig:
        wanted = held if config is None else from_dict(read_toml(Path(config)), base=held, where=str(config))
        return apply_overrides(wanted, changed)

    with _joined() as world:
        start = world.on_main(lambda: _go_on(Path(run), asked, world, observers))
        return _fit(start, world, observers, trackers=trackers)


def demo(
    out: str | Path = "detronome-demo",
    *,
    quick: bool = False,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    observers: Sequence[Observer] = (),
) -> Run:
    """Write the embedded data set, train the small detector on it, and report.

    Args:
        out: folder for data and run; a finished data set in it is used again, and beside a run in it the new one gets
            a number.
        quick: a few scenes and steps, to see that everything works; says nothing about accuracy.
        seed: of the training.
        settings: dotted settings on top of the preset.
        observers: are told how the run goes.

    Raises:
        MissingExtraError: scikit-learn, which holds the digits, is not installed.
    """
    folder = Path(out)
    data = folder / ("data-quick" if quick else "data")
    with writing(folder):
        write_scenes(data, num_train=320 if quick else 4000, num_val=40 if quick else 300)
    short = {"train.epochs": 2} if quick else {}
    return train(
        data,
        model="demo",
        out=numbered(folder / "run"),
        settings={"train.seed": seed, **short, **(settings or {})},
        observers=observers,
    )


@contextmanager
def _joined() -> Iterator[World]:
    """Join the ranks."""
    with joined_world("cuda" if torch.cuda.is_available() else "cpu", timeout_s=_TIMEOUT_S) as world:
        yield world


def _begin(config: RunConfig, out: str | Path | None, start_from: Model | None, world: World) -> _Start:
    """Decide everything about a new run, and write it down."""
    train_split, val_split = open_splits(config)
    planner = RunPlanner(train_split, val_split, world=world)
    resolved = resolve(config, train_split, world, planner=planner)
    run_dir = new_run_dir(out, resolved.config.preset)
    with writing(run_dir):
        (run_dir / "plan.json").unlink(missing_ok=True)  # of a start in this folder that failed
        if planner.made is not None:
            write_atomic(run_dir / "plan.json", json.dumps(planner.made.to_record(), indent=1))
        write_atomic(run_dir / "config.toml", to_toml(resolved.config))
    reasons = dict(resolved.reasons)
    if start_from is not None and (told := head_change(start_from.categories, train_split.index.categories)):
        reasons["classes"] = told
    return _Start(run_dir=run_dir, config=resolved.config, reasons=reasons)


def _go_on(path: Path, asked: Callable[[RunConfig], RunConfig], world: World, observers: Sequence[Observer]) -> _Start:
    """Decide how to continue a run, given what is asked for now; `auto` in it stands for what the checkpoint holds."""
    checkpoint, damaged = load_last_good(path)
    run_dir = _run_folder(path)
    held = from_dict(checkpoint.config, where=str(run_dir))
    config, changes = reconcile(held, asked(held), run=run_dir)
    if not changes and not damaged and (ended := _ended_run(run_dir, checkpoint, observers)):
        with suppress(TrainingError), _only_here(run_dir):
            pass  # perhaps it was killed when nothing was left but to tidy up
        return _Start(run_dir=run_dir, config=config, reasons={}, ended=ended)
    train_split, _ = open_splits(config)
    resolved = resolve(config, train_split, world)
    reasons = {**resolved.reasons, **{change.key: change.told for change in changes}}
    if damaged:
        passed_over = first_few([f"{problem.where}: {problem.what}" for problem in damaged], separator="; ")
        reasons["checkpoint"] = f"step {checkpoint.state.step} (newer ones cannot be used: {passed_over})"
    return _Start(run_dir=run_dir, config=resolved.config, reasons=reasons, resume_from=checkpoint)


def _run_folder(path: Path) -> Path:
    """Return the run that a path names, or that a checkpoint at the path belongs to."""
    for folder in (path, path.resolve().parent, path.resolve().parent.parent):
        if (folder / "config.toml").is_file():
            return folder
    raise CheckpointError("not a run folder: config.toml is missing", where=str(path), fix="name the folder of the run")


def _ended_run(run_dir: Path, checkpoint: Checkpoint, observers: Sequence[Observer]) -> Run | None:
    """Return the run if it has ended at this checkpoint, report and all, and tell the observers of the end again."""
    log, page = run_dir / "log.jsonl", run_dir / "report.html"
    try:
        *_, last = read_run_log(log)
    except (DataError, ValueError):
        return None
    reason = last.get("reason")
    if last["kind"] != "end" or last["step"] != checkpoint.state.step:
        return None
    if reason not in ("finished", "early_stop") or not page.is_file() or page.stat().st_mtime < log.stat().st_mtime:
        return None
    names = {field.name for field in fields(RunEnded)}
    metrics = {name: math.nan if value is None else value for name, value in last["best_metrics"].items()}
    event = RunEnded(**{name: value for name, value in last.items() if name in names} | {"best_metrics": metrics})
    for observer in observers:
        observer(event)
    return Run(folder=run_dir, reason=reason, metrics=metrics, report=page, was_finished=True)


def _put_in_force(config: RunConfig, run_dir: Path, checkpoint: Checkpoint) -> None:
    """Let `config.toml` say what the run goes on with; what it said until now is kept beside it."""
    if to_dict(config) == checkpoint.config:
        return
    current, old = run_dir / "config.toml", run_dir / f"config-until-step-{checkpoint.state.step:08d}.toml"
    with writing(run_dir):
        if not old.exists():  # changed twice at this step, the one between was never in force
            write_atomic(old, current.read_bytes())
        write_atomic(current, to_toml(config))


def _fit(
    start: _Start,
    world: World,
    observers: Sequence[Observer],
    *,
    trackers: Sequence[TrackerName],
    start_from: Model | None = None,
    stop_when: Callable[[Evaluated], bool] = lambda _: False,
) -> Run:
    if start.ended is not None:
        return start.ended
    run_dir = start.run_dir
    train_split, val_split = open_splits(start.config)
    resolved = resolve(start.config, train_split, world)
    resolved.reasons.update(start.reasons)
    with (
        _only_here(run_dir) if world.is_main else nullcontext(),
        build_trackers(trackers if world.is_main else (), run_dir, to_dict(resolved.config)) as tracked,
    ):
        trainer = build_trainer(
            resolved,
            train=train_split,
            val=val_split,
            run_dir=run_dir,
            observers=[RunLog(run_dir / "log.jsonl"), *observers, tracked] if world.is_main else (),
            world=world,
            start_from=start_from.checkpoint if start_from else None,
            resume_from=start.resume_from,
            stop_when=stop_when,
        )
        if world.is_main:
            write_label_counts(run_dir, train_split, val_split)
        if start.resume_from is not None and world.is_main:
            _put_in_force(resolved.config, run_dir, start.resume_from)
        timeout_s = 60 * start.config.train.hang_minutes
        with Watchdog(trainer.activity, world, timeout_s=timeout_s, folder=run_dir / _HANGS):
            result = trainer.fit()
        signal = next(filter(None, world.gather(result.signal)), "")  # perhaps one rank alone was told to stop
        page = None
        if result.reason != "interrupted" and world.is_main:
            page = _write_results(run_dir, trainer, train_split, val_split)
    return Run(folder=run_dir, reason=result.reason, metrics=trainer.best_metrics, report=page, signal=signal)


def _write_results(run_dir: Path, trainer: Trainer, train_split: DataSplit, val_split: DataSplit | None) -> Path:
    """Write the pictures, the details of the best evaluation, what held the run back, and the page."""
    model = load(run_dir, device=str(trainer.training_step.device))
    with writing(run_dir / "pictures"):
        write_gallery(run_dir / "pictures", model._predictor, val_split or train_split, model.categories)
    if val_split is not None:
        evaluator = trainer.evaluator_of(model.step)
        write_run_details(run_dir, model, val_split, split_name=model.config.data.val_split, evaluator=evaluator)
    write_verdict(run_dir, model.config)
    return write_report([run_dir])


@contextmanager
def _only_here(run_dir: Path) -> Iterator[None]:
    """Keep a second process from training in the same folder, and remove what a killed one was writing there."""
    lock = run_dir / ".lock"
    # Loader workers outlive a killed trainer for some seconds, and must not keep the next one out.
    with locked(lock, with_children=False) as is_ours:
        if not is_ours:
            raise TrainingError(
                "another process is training in this folder", where=str(run_dir), fix="wait for it, or end it first"
            )
        for leftover in (*run_dir.glob(".*.tmp"), *run_dir.glob("pictures/.*.tmp")):
            leftover.unlink(missing_ok=True)
        try:
            yield
        finally:
            remove_lock(lock)


def _is_restart(environment: Mapping[str, str]) -> bool:
    """Whether torchrun has started this process anew after a failure."""
    return _count(environment, "TORCHELASTIC_RESTART_COUNT") > 0


def _may_be_restarted(environment: Mapping[str, str]) -> bool:
    return _count(environment, "TORCHELASTIC_MAX_RESTARTS") > 0


def _count(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    return int(text) if text.isdecimal() else 0

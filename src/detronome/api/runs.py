"""Training, evaluating and predicting: load, train, resume, evaluate, predict, report, demo."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from detronome.api.arguments import one_of
from detronome.config.convert import apply_overrides, from_dict, read_toml, to_dict, to_toml
from detronome.config.presets import PRESETS, preset
from detronome.config.schema import RunConfig
from detronome.data.build import build_eval_batches, build_quarantine, resolve_workers
from detronome.data.layout import available_splits
from detronome.data.scenes import write_scenes
from detronome.data.split import DataSplit, open_split
from detronome.data.split_files import resolve_name
from detronome.engine.build import build_trainer
from detronome.engine.checkpoint import Checkpoint, find_checkpoint, load_checkpoint
from detronome.engine.evaluator import evaluate as evaluate_model
from detronome.engine.events import Observer, RunEnded
from detronome.engine.resolve import Resolved, resolve
from detronome.engine.resume import reconcile, resume_command
from detronome.errors import CheckpointError, ConfigError, DataError, Problem, nearest_name_hint
from detronome.evaluation.detection import DetectionEvaluator, DetectionMetrics, evaluate_results_file
from detronome.model import Model, Prediction, load
from detronome.report import html
from detronome.report.gallery import write_gallery
from detronome.report.run_log import RunLog, read_run_log
from detronome.runtime.files import write_atomic
from detronome.runtime.precision import resolve_precision

__all__ = [
    "Run",
    "demo",
    "evaluate",
    "evaluate_results",
    "predict",
    "resume",
    "train",
    "write_report",
]

IfExists = Literal["error", "resume"]

_PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


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
    tensorboard: bool = False,
) -> Run:
    """Train a detector on a data folder, with checkpoints, run log, pictures and a report.

    Args:
        data: a folder in COCO, Roboflow, YOLO or Pascal VOC layout, or a sharded data set, also at an address.
        model: a preset's name, or a run, checkpoint or `Model` to fine-tune.
        epochs: shortcut for the setting `train.epochs`.
        out: the run folder; by default `runs/<preset>`, numbered.
        config: a TOML file on top of the preset.
        settings: dotted settings on top of both, e.g. `{"optim.lr": 2e-4}`.
        if_exists: what to do when `out` holds a run already. `resume` goes on with it, under the rules of `resume`, so
            that the same call serves for the first start and for every later one; the run that has ended is returned.
            A process that torchrun has started anew always does so.
        observers: are told how the run goes, beside the run log.
        tensorboard: also write TensorBoard files into the run folder.

    Raises:
        ConfigError, DataError, CheckpointError: what is wrong with settings, data or the model to start from.
    """
    one_of(if_exists, IfExists, "if_exists")
    may_go_on = if_exists == "resume" or _is_restart(os.environ)
    if out is None and (may_go_on or _may_be_restarted(os.environ)):
        raise ConfigError(
            "only the run folder tells which run a later start is to go on with, and none is given",
            where="--out",
            fix="name it: --out RUN",
        )
    start_from = _as_model(model)
    run_config = _for_another_run(start_from.config) if start_from else preset(str(model))
    if config is not None:
        run_config = from_dict(read_toml(Path(config)), base=run_config, where=str(config))
    shortcuts: dict[str, Any] = {"data.root": _data_root(data)}
    if epochs is not None:
        shortcuts["train.epochs"] = epochs
    run_config = apply_overrides(run_config, {**(settings or {}), **shortcuts})
    if out is not None and may_go_on and _holds_run(Path(out)):
        return _go_on(Path(out), _last_checkpoint(Path(out)), run_config, observers, tensorboard)
    train_split, val_split = _open_splits(run_config)
    if start_from is not None:
        _check_classes(start_from, train_split)
    resolved = resolve(run_config, train_split)
    run_dir = _new_run_dir(out, resolved.config.preset)
    with _writing(run_dir):
        write_atomic(run_dir / "config.toml", to_toml(resolved.config))
    observers = _with_tensorboard(observers, run_dir, tensorboard)
    return _fit(resolved, train_split, val_split, run_dir, observers, start_from=start_from)


def resume(
    run: str | Path,
    *,
    config: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    observers: Sequence[Observer] = (),
    tensorboard: bool = False,
) -> Run:
    """Go on with an interrupted run from its last checkpoint; on a CPU, bit for bit as if it had never stopped.

    A run that has ended is left as it is and returned.

    Args:
        run: the run folder, or one checkpoint in it: later steps are then done again.
        config: a TOML file with settings to change.
        settings: dotted settings to change, on top of it, e.g. `{"data.workers": 4}`. Those that would make it another
            run are refused; those that cost the bit-exactness are told.
        observers: are told how the run goes, beside the run log.
        tensorboard: also write TensorBoard files into the run folder.

    Raises:
        CheckpointError: the folder holds no checkpoint of a run, or the data has changed.
        ConfigError: settings that cannot change, all of them at once.
    """
    run_dir = Path(run)
    folder = find_checkpoint(run_dir, prefer="last")
    checkpoint = load_checkpoint(folder, with_training=True)
    if not (run_dir / "config.toml").is_file():
        run_dir = folder.parent.parent
    if not (run_dir / "config.toml").is_file():
        raise CheckpointError(
            "not a run folder: config.toml is missing", where=str(run_dir), fix="name the folder of the run"
        )
    asked = from_dict(checkpoint.config, where=str(run_dir))
    if config is not None:
        asked = from_dict(read_toml(Path(config)), base=asked, where=str(config))
    changed = dict(settings or {})
    if isinstance(changed.get("data.root"), str):
        changed["data.root"] = _data_root(changed["data.root"])
    return _go_on(run_dir, checkpoint, apply_overrides(asked, changed), observers, tensorboard)


def evaluate(
    model: str | Path | Model, data: str | Path, *, split: str = "val", device: str = "auto"
) -> DetectionMetrics:
    """Measure a model on a split of a data folder.

    Raises:
        CheckpointError, DataError: the model or the data cannot be used, or their categories differ.
    """
    loaded = model if isinstance(model, Model) else load(model, device=device)
    config = loaded.config
    data_split = open_split(data, split, shard_cache_bytes=int(config.data.shard_cache_gib * 2**30))
    workers, _ = resolve_workers(_for_another_run(config), loaded.device.type, data_split.index.sizes_hw)
    precision, _ = resolve_precision(config.train.precision, loaded.device)
    quarantine = build_quarantine(config, data_split)
    with build_eval_batches(
        config,
        data_split,
        loaded.categories,
        batch_size=8 if config.eval.batch_size == "auto" else config.eval.batch_size,
        workers=workers,
        device=loaded.device,
        quarantine=quarantine,
    ) as batches:
        metrics = evaluate_model(
            loaded.detector,
            batches,
            DetectionEvaluator(data_split.files.annotation_file, unknown_categories="drop"),
            categories=loaded.categories,
            max_detections=config.eval.max_detections,
            precision=precision,
            device=loaded.device,
        )
    unusable = [f"image id {image.image_id} was left out: {image.where}: {image.what}" for image in quarantine.drain()]
    return replace(metrics, notes=(*metrics.notes, *unusable))


def evaluate_results(
    detections: str | Path,
    annotations: str | Path,
    *,
    iou_type: Literal["bbox", "segm"] = "bbox",
    max_detections: int = 100,
) -> DetectionMetrics:
    """Measure a COCO results file, from any tool, against a COCO annotation file.

    Raises:
        DataError: a file is missing or malformed.
    """
    return evaluate_results_file(Path(detections), Path(annotations), iou_type=iou_type, max_detections=max_detections)


def predict(
    model: str | Path | Model,
    images: str | Path | Iterable[str | Path],
    *,
    out: str | Path,
    score: float = 0.5,
    device: str = "auto",
) -> list[Prediction]:
    """Find objects in image files and folders; write pictures and `detections.json` (COCO results) to `out`.

    The results hold every detection; pictures and return value those from `score` on. Image ids are the numbers
    in COCO's file names where all names are numbers, else 1, 2, ...; each record also has the file's name.

    Raises:
        CheckpointError: the model cannot be loaded.
        DataError: two images have the same name; or some cannot be read, all of them at once: the others' pictures and
            results have been written by then.
    """
    files = _image_files([images] if isinstance(images, str | Path) else images)
    loaded = model if isinstance(model, Model) else load(model, device=device)
    ids = _image_ids(files)
    out_dir = Path(out)
    predictions: list[Prediction] = []
    records: list[dict[str, Any]] = []
    unreadable: list[Problem] = []
    for file, image_id in zip(files, ids, strict=True):
        try:
            complete = loaded.predict(file, score=0.0)
        except DataError as error:
            unreadable += error.problems
            continue
        detections = replace(complete.detections, image_id=image_id)
        records += [{**record, "file_name": file.name} for record in detections.to_coco()]
        prediction = replace(complete, detections=detections.above(score))
        with _writing(out_dir):
            prediction.save(out_dir / f"{file.stem}.jpg")
        predictions.append(prediction)
    with _writing(out_dir):
        write_atomic(out_dir / "detections.json", json.dumps(records) + "\n")
    if unreadable:
        raise DataError(unreadable)
    return predictions


def write_report(runs: str | Path | Sequence[str | Path], *, out: str | Path | None = None) -> Path:
    """Write the HTML page of a run, or of several beside each other; by default into the first run's folder.

    Raises:
        DataError: a folder is no run.
        ConfigError: no run is named, or the page cannot be written.
    """
    folders = [Path(run) for run in ([runs] if isinstance(runs, str | Path) else runs)]
    if not folders:
        raise ConfigError("no run to report on", where="write_report", fix="name one run folder or more")
    page = Path(out) if out else folders[0] / ("report.html" if len(folders) == 1 else "comparison.html")
    with _writing(page):
        return html.write_report(folders, page)


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
        out: folder for data and run; a finished data set in it is used again, a run in it is replaced by a new one.
        quick: a few scenes and steps, to see that everything works; says nothing about accuracy.
        seed: of the training.
        settings: dotted settings on top of the preset.
        observers: are told how the run goes.

    Raises:
        MissingExtraError: scikit-learn, which holds the digits, is not installed.
    """
    folder = Path(out)
    data = folder / ("data-quick" if quick else "data")
    with _writing(folder):
        write_scenes(data, num_train=320 if quick else 4000, num_val=40 if quick else 300)
    short = {"train.epochs": 2} if quick else {}
    return train(
        data,
        model="demo",
        out=_numbered(folder / "run"),
        settings={"train.seed": seed, **short, **(settings or {})},
        observers=observers,
    )


def _go_on(
    run_dir: Path, checkpoint: Checkpoint, asked: RunConfig, observers: Sequence[Observer], tensorboard: bool
) -> Run:
    """Continue a run from a checkpoint under the settings asked for, in which `auto` stands for the checkpoint's."""
    held = from_dict(checkpoint.config, where=str(run_dir))
    config, changes = reconcile(held, asked, run=run_dir)
    if not changes and (ended := _ended_run(run_dir, checkpoint, observers)):
        return ended
    train_split, val_split = _open_splits(config)
    resolved = resolve(config, train_split)
    resolved.reasons.update({change.key: change.told for change in changes})
    observers = _with_tensorboard(observers, run_dir, tensorboard)
    return _fit(resolved, train_split, val_split, run_dir, observers, resume_from=checkpoint)


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
    with _writing(run_dir):
        if not old.exists():  # changed twice at this step, the one between was never in force
            write_atomic(old, current.read_bytes())
        write_atomic(current, to_toml(config))


def _fit(
    resolved: Resolved,
    train_split: DataSplit,
    val_split: DataSplit | None,
    run_dir: Path,
    observers: Sequence[Observer],
    *,
    start_from: Model | None = None,
    resume_from: Checkpoint | None = None,
) -> Run:
    trainer = build_trainer(
        resolved,
        train=train_split,
        val=val_split,
        run_dir=run_dir,
        observers=[RunLog(run_dir / "log.jsonl"), *observers],
        start_from=start_from.checkpoint if start_from else None,
        resume_from=resume_from,
    )
    if resume_from is not None:
        _put_in_force(resolved.config, run_dir, resume_from)
    result = trainer.fit()
    page = None
    if result.reason != "interrupted":
        model = load(run_dir, device=str(resolved.device))
        shown = val_split or train_split
        with _writing(run_dir / "pictures"):
            write_gallery(run_dir / "pictures", model._predictor, shown, model.categories)
        page = write_report([run_dir])
    return Run(folder=run_dir, reason=result.reason, metrics=trainer.best_metrics, report=page, signal=result.signal)


def _with_tensorboard(observers: Sequence[Observer], run_dir: Path, wanted: bool) -> Sequence[Observer]:
    if not wanted:
        return observers
    from detronome.report.tensorboard import TensorBoardLog

    return [*observers, TensorBoardLog(run_dir / "tensorboard")]


def _open_splits(config: RunConfig) -> tuple[DataSplit, DataSplit | None]:
    root = config.data.root
    train_split = _open_split(root, config.data.train_split, config)
    if not config.data.val_split:
        return train_split, None
    names = available_splits(root)
    if config.data.val_split == "val" and resolve_name("val", names) is None:
        raise DataError(
            "there is no validation split, so nothing can choose the best checkpoint",
            where=root,
            fix=f"add one, name one of {', '.join(names)} with --set data.val_split=NAME, "
            "or train without: --set data.val_split=''",
        )
    return train_split, _open_split(root, config.data.val_split, config)


def _open_split(data: str | Path, split: str, config: RunConfig) -> DataSplit:
    """Open a split for a run; missing images count as bad ones."""
    return open_split(
        data,
        split,
        missing_budget=0.0 if config.data.on_bad_image == "stop" else config.data.bad_image_budget,
        shard_cache_bytes=int(config.data.shard_cache_gib * 2**30),
    )


def _as_model(model: str | Path | Model) -> Model | None:
    """Return the model to fine-tune, or None for the name of a preset."""
    if isinstance(model, Model):
        return model
    if isinstance(model, str) and model in PRESETS:
        return None
    if Path(model).exists():
        return load(model)
    raise ConfigError(
        f"{str(model)!r} is neither a preset nor a run or checkpoint folder",
        where="--model",
        fix=nearest_name_hint(str(model), list(PRESETS)),
    )


def _check_classes(model: Model, split: DataSplit) -> None:
    theirs, ours = split.index.categories, model.categories
    if theirs != ours:
        raise CheckpointError(
            f"the checkpoint knows {len(ours)} classes ({_few(ours.names)}), the data has {len(theirs)} "
            f"({_few(theirs.names)})",
            where=str(split.files.annotation_file),
            fix="use data with the checkpoint's categories (same ids and names), or train from a preset",
        )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _for_another_run(config: RunConfig) -> RunConfig:
    """Return a run's configuration with what fitted its machine and its images to be decided anew."""
    return apply_overrides(config, dict.fromkeys(("train.device", "data.workers", "data.buckets"), "auto"))


def _data_root(data: str | Path) -> str:
    """Return data as a run keeps it: an address as it is, a path whole, so that a resume from elsewhere finds it."""
    return str(data) if "://" in str(data) else str(Path(data).resolve())


def _holds_run(run_dir: Path) -> bool:
    # A start that failed before its first checkpoint has left a config.toml, and nothing that could be resumed.
    return any((run_dir / "checkpoints").glob("step-*"))


def _last_checkpoint(run_dir: Path) -> Checkpoint:
    return load_checkpoint(find_checkpoint(run_dir, prefer="last"), with_training=True)


def _is_restart(environment: Mapping[str, str]) -> bool:
    """Whether torchrun has started this process anew after a failure."""
    return _count(environment, "TORCHELASTIC_RESTART_COUNT") > 0


def _may_be_restarted(environment: Mapping[str, str]) -> bool:
    return _count(environment, "TORCHELASTIC_MAX_RESTARTS") > 0


def _count(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    return int(text) if text.isdecimal() else 0


def _new_run_dir(out: str | Path | None, name: str) -> Path:
    run_dir = _numbered(Path("runs") / name) if out is None else Path(out)
    if _holds_run(run_dir):
        raise ConfigError(
            "the folder already holds a run",
            where=str(run_dir),
            fix=f"choose another --out, or go on with it: {resume_command(run_dir)}",
        )
    with _writing(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
    return run_dir


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn the disk's refusal into an error that says where."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"cannot write there: {error.strerror or error}",
            where=str(error.filename or path),
            fix="choose a folder with free space that you may write to, with --out",
        ) from error


def _numbered(path: Path) -> Path:
    """Return the path, or the first of path-2, path-3, ... that does not exist."""
    candidate, number = path, 1
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def _image_files(images: Iterable[str | Path]) -> list[Path]:
    files: list[Path] = []
    for image in images:
        path = Path(image)
        if path.is_dir():
            files += sorted(p for p in path.iterdir() if p.suffix.lower() in _PICTURE_SUFFIXES)
        else:
            files.append(path)
    if not files:
        raise DataError("no images", where=", ".join(map(str, images)), fix="name image files or folders of them")
    names = [file.stem for file in files]
    repeated = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if repeated:
        raise DataError(
            f"several images have the same name, and their pictures would overwrite each other: {_few(repeated)}",
            fix="predict them into different folders",
        )
    return files


def _image_ids(files: Sequence[Path]) -> list[int]:
    if all(file.stem.isdecimal() and len(file.stem) < 19 for file in files):
        ids = [int(file.stem) for file in files]
        if len(set(ids)) == len(ids):
            return ids
    return list(range(1, len(files) + 1))

"""Trimming a trained model: making a smaller one of it, and finding out which smaller one is worth having."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from detronome.api.arguments import one_process, whole_number
from detronome.api.asked import open_a_split
from detronome.api.folders import may_write, numbered, writing
from detronome.api.runs import measure
from detronome.api.training import train
from detronome.api.trim_results import Trimmed, TrimSweep
from detronome.config.convert import from_dict
from detronome.config.schema import DetrConfig, RunConfig
from detronome.data.layout import available_splits
from detronome.data.split_files import resolve_name
from detronome.deploy.exported import is_exported
from detronome.deploy.sweep import Sweep, SweepPoint, rank_queries, sweep, sweep_extents
from detronome.deploy.trim import Extent, check_extent, extent_of, has_learned_queries, trimmed
from detronome.engine.checkpoint import Checkpoint, write_checkpoint
from detronome.engine.events import Observer
from detronome.errors import ConfigError
from detronome.model import Model, load
from detronome.report.trade_off import TradeOff, draw_trade_offs
from detronome.runtime.device import describe_environment
from detronome.runtime.files import write_atomic

__all__ = ["trim", "trim_sweep"]

_FINE_TUNE_LR = 0.5
"""Of the rates that the model was trained with: it is to recover, not to learn anew. A tenth recovered less (docs)."""
_SQUARE_STEP_PX = 32
_FEWEST_ROUNDS = 6
"""Fewer have no 95 % interval."""


def trim(
    model: str | Path | Model,
    data: str | Path | None = None,
    *,
    decoder_layers: int | None = None,
    queries: int | None = None,
    image_size: int | None = None,
    out: str | Path | None = None,
    split: str = "val",
    fine_tune: int = 0,
    settings: Mapping[str, Any] | None = None,
    device: str = "auto",
    observers: Sequence[Observer] = (),
    on_progress: Callable[[str], None] = lambda _: None,
) -> Trimmed:
    """Make a smaller, faster model of a trained one: fewer decoder layers, queries, pixels. Nothing is trained, unless
    `fine_tune` asks for it.

    Args:
        model: a `Model`, or what `load` takes: a run, a checkpoint, published weights.
        data: the data folder: measures what trimming costs, and tells which learned queries are worth keeping (classic
            DETR; on the training split where there is one).
        decoder_layers: to keep; the first ones.
        queries: to keep.
        image_size: short side at evaluation and prediction, or side of squares, in pixels.
        out: the new folder; by default `runs/<preset>-trimmed`, numbered.
        split: of the data, to measure on.
        fine_tune: epochs of training afterwards, on `data`; `out` is an ordinary run then.
        settings: dotted settings of the fine-tuning; by default half of the model's rates, falling to 0.
        device: where to compute, for a model that is not loaded yet.
        observers: are told how the fine-tuning goes.
        on_progress: is told what is done next.

    Raises:
        ConfigError: the model cannot be trimmed to that, or the folder exists.
        CheckpointError, DataError: the model or the data cannot be used, or their categories differ.
    """
    one_process("trim")
    if decoder_layers is None and queries is None and image_size is None:
        raise ConfigError(
            "nothing is said to be trimmed",
            where="trim",
            fix="give --decoder-layers, --queries or --image-size, or DATA to find out what is worth it",
        )
    _check_fine_tuning(fine_tune, data, settings)
    loaded = _trimmable(model, device)
    folder = _new_folder(out, loaded.config)
    extent = _asked_extent(loaded.config, decoder_layers, queries, image_size)
    may_write(folder)
    best_queries: Sequence[int] = ()
    notes = _mask_notes(loaded.config, extent)
    if has_learned_queries(loaded.config.model) and extent.num_queries < extent_of(loaded.config).num_queries:
        if data is None:
            raise ConfigError(
                "the model's queries are learned, and which ones are worth keeping shows on data",
                where="--queries",
                fix="name the data folder too: detronome trim CHECKPOINT DATA --queries N",
            )
        best_queries, note = _ranked_queries(loaded, data, split, on_progress)
        notes += note
    smaller = trimmed(loaded.checkpoint, extent, best_queries=best_queries, source=str(loaded.source))
    metrics: Mapping[str, float] = {}
    whole_metrics: Mapping[str, float] = {}
    if data is not None:
        data_split = open_a_split(data, split, loaded.config)
        on_progress(f"measuring the whole model on {split}")
        whole_metrics = measure(loaded, data_split)[0].numbers
        on_progress(f"measuring {extent}")
        metrics = measure(_as_model(smaller, loaded), data_split)[0].numbers
    return _published(
        smaller,
        loaded,
        folder,
        Trimmed(
            folder=folder,
            extent=extent,
            whole=extent_of(loaded.config),
            split=split if data is not None else "",
            metrics=metrics,
            whole_metrics=whole_metrics,
            notes=notes,
        ),
        data=data,
        fine_tune=fine_tune,
        settings=settings,
        observers=observers,
    )


def trim_sweep(
    model: str | Path | Model,
    data: str | Path,
    *,
    decoder_layers: Sequence[int] = (),
    queries: Sequence[int] = (),
    image_sizes: Sequence[int] = (),
    split: str = "val",
    tolerance: float = 0.01,
    rounds: int = 30,
    out: str | Path | None = None,
    picture: str | Path | None = None,
    fine_tune: int = 0,
    settings: Mapping[str, Any] | None = None,
    device: str = "auto",
    observers: Sequence[Observer] = (),
    on_progress: Callable[[str], None] = lambda _: None,
) -> TrimSweep:
    """Measure accuracy and latency of a model trimmed in many ways, and recommend one of them.

    Recommended is the fastest, by the median of the ratios to the whole model, of those that lose at most `tolerance`
    and are proven to be faster. Nothing is written, unless `out` or `picture` ask for it.

    Args:
        model: as for `trim`.
        data: the data folder.
        decoder_layers: depths to try; by default all.
        queries: numbers of queries; by default all, half and a quarter, where these are enough for the fullest image.
        image_sizes: sizes of images; by default the model's, and about 0.8 and 0.65 of it.
        split: of the data, to measure on.
        tolerance: how much of the deciding metric (the one that chose the checkpoint, as a rule AP) may be lost, 0-1.
        rounds: timed turns of each trimmed model, one image at a time; at least six.
        out: a new folder for the recommended model, as `trim` makes it.
        picture: a PNG file for the accuracy against the latency.
        fine_tune: as for `trim`, of the recommended model; needs `out`.
        settings: as for `trim`.
        device: where to compute, for a model that is not loaded yet.
        observers: as for `trim`.
        on_progress: is told what is measured next.

    Raises:
        ConfigError, CheckpointError, DataError: as for `trim`.
    """
    one_process("trim")
    whole_number(rounds, "--rounds", least=_FEWEST_ROUNDS, of_what="{} rounds prove nothing")
    if not 0 <= tolerance <= 1:
        raise ConfigError(f"a tolerance of {tolerance!r}", where="--tolerance", fix="give a number from 0 to 1")
    if fine_tune and out is None:
        raise ConfigError(
            "a fine-tuned model needs a folder", where="--fine-tune", fix="name a new one for it with --out"
        )
    _check_fine_tuning(fine_tune, data, settings)
    loaded = _trimmable(model, device)
    folder = None if out is None else _new_folder(out, loaded.config)
    if folder is not None:
        may_write(folder)
    if picture is not None:
        may_write(Path(picture), option="--picture")
    data_split = open_a_split(data, split, loaded.config)
    extents = sweep_extents(
        loaded.config,
        decoder_layers=decoder_layers,
        queries=queries,
        image_sizes=image_sizes,
        most_objects=data_split.index.max_objects_per_image,
    )
    whole, best_queries, notes = extents[0], list[int](), _mask_notes(loaded.config, extents[-1])
    if has_learned_queries(loaded.config.model) and any(e.num_queries < whole.num_queries for e in extents):
        best_queries, note = _ranked_queries(loaded, data, split, on_progress)
        notes += note
    result = sweep(
        loaded.checkpoint,
        data_split,
        extents,
        device=loaded.device,
        best_queries=best_queries,
        rounds=rounds,
        on_progress=on_progress,
    )
    best = result.recommended(tolerance)
    if picture is not None:
        with writing(Path(picture), option="--picture"):
            write_atomic(Path(picture), draw_trade_offs(_trade_offs(result, best), metric=result.metric))
    published = None
    if folder is not None:
        published = _published(
            trimmed(loaded.checkpoint, best.extent, best_queries=best_queries, source=str(loaded.source)),
            loaded,
            folder,
            Trimmed(
                folder=folder,
                extent=best.extent,
                whole=whole,
                split=split,
                metrics=best.metrics,
                whole_metrics=result.whole.metrics,
                notes=notes,
            ),
            data=data,
            fine_tune=fine_tune,
            settings=settings,
            observers=observers,
        )
    return TrimSweep(
        result=result,
        recommended=best,
        tolerance=tolerance,
        split=split,
        environment=describe_environment(loaded.device),
        notes=(*notes, *result.notes),
        trimmed=published,
    )


def _trimmable(model: str | Path | Model, device: str) -> Model:
    if not isinstance(model, Model):
        if is_exported(Path(model)):
            raise ConfigError(
                "the graph of an exported file is fixed",
                where=str(model),
                fix="trim the checkpoint that it was exported from, and export the result",
            )
        model = load(model, device=device)
    return model


def _new_folder(out: str | Path | None, config: RunConfig) -> Path:
    folder = numbered(Path("runs") / f"{config.preset}-trimmed") if out is None else Path(out)
    if folder.exists():
        raise ConfigError("exists already", where=str(folder), fix="choose another --out")
    return folder


def _check_fine_tuning(epochs: int, data: str | Path | None, settings: Mapping[str, Any] | None) -> None:
    whole_number(epochs, "--fine-tune", least=0, of_what="{} epochs of fine-tuning")
    if settings and not epochs:
        raise ConfigError(
            "settings are those of fine-tuning, which was not asked for",
            where="--set",
            fix="leave them out, or add --fine-tune EPOCHS",
        )
    if epochs and data is None:
        raise ConfigError(
            "fine-tuning needs data", where="--fine-tune", fix="detronome trim CHECKPOINT DATA --fine-tune EPOCHS"
        )


def _asked_extent(config: RunConfig, decoder_layers: int | None, queries: int | None, image_size: int | None) -> Extent:
    """Return what to keep; what is not said stays as it is.

    Raises:
        ConfigError: the model cannot be trimmed to that, or would stay as it is.
    """
    whole = extent_of(config)
    extent = Extent(
        decoder_layers=whole.decoder_layers if decoder_layers is None else decoder_layers,
        num_queries=whole.num_queries if queries is None else queries,
        image_size=whole.image_size if image_size is None else image_size,
    )
    check_extent(config, extent)
    if extent == whole:
        raise ConfigError(f"the model is as asked for already: {whole}", where="trim", fix="ask for less of it")
    return extent


def _mask_notes(config: RunConfig, extent: Extent) -> tuple[str, ...]:
    is_shallower = extent.decoder_layers < extent_of(config).decoder_layers
    if not (isinstance(config.model, DetrConfig) and config.model.mask_head and is_shallower):
        return ()
    return (
        "the mask head has only ever seen the last decoder layer: masks of an earlier one are worse than its boxes; "
        "--fine-tune with --set train.freeze=detr trains the mask head alone",
    )


def _ranked_queries(
    loaded: Model, data: str | Path, split: str, on_progress: Callable[[str], None]
) -> tuple[list[int], tuple[str, ...]]:
    """Return learned queries by their use, and on what it was measured."""
    names = available_splits(data, loaded.config.data.annotations)
    # Not on the images that the accuracy is measured on, if there are others.
    name = "train" if resolve_name("train", names) is not None else split
    on_progress(f"which queries find objects, on {name}")
    data_split = open_a_split(data, name, loaded.config)
    ranked = rank_queries(loaded.checkpoint, data_split, device=loaded.device)
    return ranked, (f"those learned queries are kept that found most of the objects in the split {name!r}",)


def _as_model(checkpoint: Checkpoint, loaded: Model) -> Model:
    return Model(checkpoint, source=loaded.source, device=str(loaded.device))


def _published(
    checkpoint: Checkpoint,
    loaded: Model,
    folder: Path,
    record: Trimmed,
    *,
    data: str | Path | None,
    fine_tune: int,
    settings: Mapping[str, Any] | None,
    observers: Sequence[Observer],
) -> Trimmed:
    """Write a trimmed model: as a checkpoint, or as the run that fine-tunes it."""
    known = {name: None if math.isnan(value) else value for name, value in record.metrics.items()}
    checkpoint = replace(checkpoint, state=replace(checkpoint.state, best_metrics=known))
    if not fine_tune:
        write_checkpoint(checkpoint, folder)
        return record
    assert data is not None
    run = train(
        data,
        model=_as_model(checkpoint, loaded),
        epochs=fine_tune,
        out=folder,
        settings={
            **_fine_tuning(from_dict(checkpoint.config), scale=record.extent.image_size / record.whole.image_size),
            **(settings or {}),
        },
        observers=observers,
    )
    tuned, _ = measure(run.model, open_a_split(data, record.split, run.model.config))
    return replace(record, run=run, fine_tuned_metrics=tuned.numbers)


def _fine_tuning(config: RunConfig, *, scale: float) -> dict[str, Any]:
    """Return the settings of a short training that ends well: low rates that fall to 0, an evaluation an epoch, and
    images as much smaller as those of evaluation."""
    augment = config.augment

    def smaller(sides: Sequence[int]) -> list[int]:
        step = _SQUARE_STEP_PX if augment.square else 1
        return [max(2 * step, round(side * scale / step) * step) for side in sides]

    images: dict[str, Any] = {}
    if scale < 1:
        images = {
            "augment.sizes": list(dict.fromkeys(smaller(augment.sizes))),
            "augment.max_size": max(round(augment.max_size * scale), *smaller(augment.sizes)),
            "augment.crop_resize": smaller(augment.crop_resize),
            "augment.crop_px": smaller(augment.crop_px),
        }
    return {
        **images,
        "optim.lr": _FINE_TUNE_LR * config.optim.lr,
        "optim.backbone_lr": _FINE_TUNE_LR * config.optim.backbone_lr,
        "schedule.kind": "cosine",
        "schedule.warmup_steps": 0,
        "train.eval_epochs": 1,
    }


def _trade_offs(result: Sweep, best: SweepPoint) -> list[TradeOff]:
    front = result.front()
    return [
        TradeOff(
            group=f"{point.extent.image_size} px",
            label=_short(point.extent),
            time=1 / point.speedup.ratio,
            time_interval=(1 / point.speedup.high, 1 / point.speedup.low),
            quality=point.metrics[result.metric],
            is_on_front=point in front,
            is_recommended=point is best,
        )
        for point in result.points
    ]


def _short(extent: Extent) -> str:
    layers = "1 layer" if extent.decoder_layers == 1 else f"{extent.decoder_layers} layers"
    return f"{layers}, {extent.num_queries} queries"

"""What a caller asked for: a configuration from preset or model, TOML file and settings, and the splits of the data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detronome.config.convert import apply_overrides, from_dict, read_toml
from detronome.config.presets import PRESETS, preset
from detronome.config.schema import RunConfig
from detronome.data.layout import available_splits
from detronome.data.split import DataSplit, open_split
from detronome.data.split_files import resolve_name
from detronome.engine.resume import for_another_run
from detronome.errors import ConfigError, DataError, nearest_name_hint
from detronome.model import Model, load
from detronome.weights.sources import is_pretrained_source

__all__ = ["asked_config", "data_root", "open_a_split", "open_splits"]


def asked_config(
    data: str | Path,
    *,
    model: str | Path | Model,
    config: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    epochs: int | None = None,
) -> tuple[RunConfig, Model | None]:
    """Return (configuration, the model to fine-tune or None), as asked for: with every `auto` in it.

    Args:
        data: the data folder or address.
        model: a preset's name, or what to fine-tune: a `Model`, or anything else that `load` takes.
        config: a TOML file on top of the preset.
        settings: dotted settings on top of both.
        epochs: shortcut for the setting `train.epochs`.

    Raises:
        ConfigError, CheckpointError: what is wrong with settings or the model to start from.
    """
    start_from = _as_model(model)
    if start_from is not None:
        _ = start_from.checkpoint  # an exported model has none, and says so before any work is done
    run_config = for_another_run(start_from.config) if start_from else preset(str(model))
    if config is not None:
        run_config = from_dict(read_toml(Path(config)), base=run_config, where=str(config))
    shortcuts: dict[str, Any] = {"data.root": data_root(data)}
    if epochs is not None:
        shortcuts["train.epochs"] = epochs
    return apply_overrides(run_config, {**(settings or {}), **shortcuts}), start_from


def data_root(data: str | Path) -> str:
    """Return data as a run keeps it: an address as it is, a path whole, so that a resume from elsewhere finds it."""
    return str(data) if "://" in str(data) else str(Path(data).resolve())


def open_splits(config: RunConfig) -> tuple[DataSplit, DataSplit | None]:
    """Return the splits to train on and to evaluate on.

    Raises:
        DataError: the data cannot be used, or has no validation split and nobody said that it needs none.
    """
    root = config.data.root
    train_split = open_a_split(root, config.data.train_split, config)
    if not config.data.val_split:
        return train_split, None
    names = available_splits(root, config.data.annotations)
    if config.data.val_split == "val" and resolve_name("val", names) is None:
        raise DataError(
            "there is no validation split, so nothing can choose the best checkpoint",
            where=root,
            fix=f"add one, name one of {', '.join(names)} with --set data.val_split=NAME, "
            "or train without: --set data.val_split=''",
        )
    return train_split, open_a_split(root, config.data.val_split, config)


def open_a_split(data: str | Path, split: str, config: RunConfig) -> DataSplit:
    """Open a split for a run; missing images count as bad ones."""
    return open_split(
        data,
        split,
        annotations=config.data.annotations,
        missing_budget=0.0 if config.data.on_bad_image == "stop" else config.data.bad_image_budget,
        shard_cache_bytes=int(config.data.shard_cache_gib * 2**30),
    )


def _as_model(model: str | Path | Model) -> Model | None:
    """Return the model to fine-tune, or None for the name of a preset."""
    if isinstance(model, Model):
        return model
    if isinstance(model, str) and model in PRESETS:
        return None
    if Path(model).exists() or is_pretrained_source(model):
        return load(model)
    raise ConfigError(
        f"{str(model)!r} is neither a preset nor a run, a checkpoint or published weights",
        where="--model",
        fix=nearest_name_hint(str(model), list(PRESETS)),
    )

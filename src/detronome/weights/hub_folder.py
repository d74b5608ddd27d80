"""A folder as transformers saves a model: config.json, and weights in one file or in several with an index."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from detronome.errors import CheckpointError, Problem, first_few
from detronome.weights.weight_file import read_weight_file

__all__ = ["CONFIG", "INDEXES", "PREPROCESSOR", "SINGLE_FILES", "HubFolder", "is_plain_name", "read_hub_folder"]

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
"""Weights in one file, the preferred first."""
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")

_MAX_JSON_BYTES = 2**24
_MAX_SHARDS = 1000


@dataclass(frozen=True, kw_only=True)
class HubFolder:
    """What such a folder holds."""

    config: Mapping[str, Any]
    preprocessor: Mapping[str, Any]
    """How images are prepared; empty where the folder does not say."""
    tensors: dict[str, Tensor]
    file: Path
    """The weights, or their index."""


def is_plain_name(name: object) -> bool:
    """Return whether a name from a file is that of a file beside it, and leads nowhere else."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & {"/", "\\", "\0"}


def read_hub_folder(folder: Path, *, weights: Path | None = None) -> HubFolder:
    """Read a folder.

    Args:
        folder: holds config.json.
        weights: the file in it to read; by default, that which transformers would read.

    Raises:
        CheckpointError: files are missing or damaged.
    """
    config = _read_json(folder / CONFIG)
    preprocessor = _read_json(folder / PREPROCESSOR) if (folder / PREPROCESSOR).is_file() else {}
    names = [name for name in (*SINGLE_FILES, *INDEXES) if (folder / name).is_file()]
    if weights is None and not names:
        raise CheckpointError(
            "the folder has a config.json and no weights",
            where=str(folder),
            fix=f"put one of {', '.join((*SINGLE_FILES, *INDEXES))} into it",
        )
    file = weights or folder / names[0]
    tensors = _read_shards(file) if file.name in INDEXES else read_weight_file(file).tensors
    return HubFolder(config=config, preprocessor=preprocessor, tensors=tensors, file=file)


def _read_shards(index: Path) -> dict[str, Tensor]:
    where = str(index)
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError("the index has no weight_map", where=where, fix="get the folder again")
    bad = sorted({ascii(name)[:80] for name in weight_map.values() if not is_plain_name(name)})
    names = sorted({name for name in weight_map.values() if is_plain_name(name)})
    if bad or len(names) > _MAX_SHARDS:
        raise CheckpointError(
            f"the index names what are no files beside it: {first_few(bad) or f'{len(names):,} of them'}",
            where=where,
            fix="do not trust the folder; get it again from where it came",
        )
    absent = [name for name in names if not (index.parent / name).is_file()]
    if absent:
        raise CheckpointError(
            f"{len(absent)} of {len(names)} files of weights are missing: {first_few(absent)}",
            where=str(index.parent),
            fix="put them into the folder",
        )
    tensors: dict[str, Tensor] = {}
    problems: list[Problem] = []
    for name in names:
        try:
            tensors |= read_weight_file(index.parent / name).tensors
        except CheckpointError as error:
            problems += error.problems
    if problems:
        raise CheckpointError(problems)
    return tensors


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ValueError(f"{path.stat().st_size:,} bytes are too many for such a file")
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"cannot be read: {getattr(error, 'strerror', None) or ascii(str(error))[1:-1][:160]}",
            where=str(path),
            fix="get the folder again from where it came",
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"the file holds a {type(content).__name__}, not settings by name",
            where=str(path),
            fix="get the folder again from where it came",
        )
    return content

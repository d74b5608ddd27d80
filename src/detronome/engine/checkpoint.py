"""Checkpoints: one folder a step, safetensors and JSON, published whole and verified on loading.

checkpoints/
  step-00001200/
    model.safetensors       weights that were evaluated (the average, where there is one)
    training.safetensors    raw weights, when `model` holds the average
    optimizer.safetensors   moments by parameter name
    state.json              configuration, categories, position, metrics, size and SHA-256 of each file
  last -> step-00001200
  best -> step-00000900
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from detronome.errors import CheckpointError, Problem
from detronome.runtime.files import atomic_directory, atomic_symlink, sha256_of
from detronome.types import Categories

__all__ = ["Checkpoint", "CheckpointFolder", "TrainingState", "find_checkpoint", "load_checkpoint"]

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """All that a resume needs beside tensors: randomness and order follow from the seed and the step."""

    step: int = 0
    training_s: float = 0.0
    eval_s: float = 0.0
    num_skipped: int = 0
    num_consecutive_skips: int = 0
    scaler: dict[str, float] = field(default_factory=dict)
    best: dict[str, float | None] = field(default_factory=dict)
    best_metrics: dict[str, float | None] = field(default_factory=dict)
    """Metrics of the best evaluation; None stands for nan."""
    data_fingerprint: str = ""
    quarantined: list[int] = field(default_factory=list)
    """Ids of the training images that could not be used so far."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint in memory."""

    config: dict[str, Any]
    """The resolved configuration as plain data."""
    categories: Categories
    state: TrainingState
    model: dict[str, Tensor]
    training: dict[str, Tensor] | None = None
    """Raw weights, when `model` is the moving average."""
    optimizer: dict[str, Tensor] | None = None


class CheckpointFolder:
    """The checkpoints of one run: writes new ones, keeps `last` and `best`, deletes what neither points at."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def save(self, checkpoint: Checkpoint, *, is_best: bool) -> Path:
        """Publish a checkpoint and repoint `last` (and `best`).

        Raises:
            CheckpointError: the disk refuses; older checkpoints stay as they were.
        """
        folder = self.path / f"step-{checkpoint.state.step:08d}"
        try:
            self._delete_leftovers()
            if folder.exists() and not _is_whole(folder):
                shutil.rmtree(folder)
            if not folder.exists():
                with atomic_directory(folder) as temporary:
                    _write(checkpoint, temporary)
            if is_best:
                atomic_symlink(self.path / "best", folder.name)
            atomic_symlink(self.path / "last", folder.name)
            self._delete_unused()
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"the checkpoint of step {checkpoint.state.step} could not be written: {error}",
                where=str(folder),
                fix="free disk space or choose another --out; older checkpoints are intact",
            ) from error
        return folder

    def _delete_leftovers(self) -> None:
        """Remove what a killed process was writing."""
        for path in self.path.glob(".*.tmp"):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def _delete_unused(self) -> None:
        used = {(self.path / name).resolve() for name in ("last", "best")}
        for folder in self.path.glob("step-*"):
            if folder.resolve() not in used:
                shutil.rmtree(folder)


def find_checkpoint(path: Path, *, prefer: str = "best") -> Path:
    """Return the checkpoint folder for a run folder, a `checkpoints` folder, or a checkpoint folder itself.

    Raises:
        CheckpointError: there is none.
    """
    other = "last" if prefer == "best" else "best"
    for folder in (path, *(path / "checkpoints" / n for n in (prefer, other)), path / prefer, path / other):
        if (folder / "state.json").is_file():
            return folder.resolve()
    raise CheckpointError(
        f"no checkpoint in {str(path)!r}" if path.exists() else f"{str(path)!r} does not exist",
        where=str(path),
        fix="name a run folder, RUN/checkpoints/best, or RUN/checkpoints/last",
    )


def load_checkpoint(path: Path, *, with_training: bool = False) -> Checkpoint:
    """Read and verify a checkpoint folder.

    Args:
        path: the folder that holds `state.json`.
        with_training: also read what a resume needs.

    Raises:
        CheckpointError: a file is missing, damaged, or of another format; all of them at once.
    """
    record = _read_record(path / "state.json")
    wanted = [n for n in record["files"] if with_training or n == "model.safetensors"]
    problems = [problem for n in wanted if (problem := _verify(path / n, record["files"][n]))]
    if problems:
        raise CheckpointError(problems)
    tensors = {name: load_file(path / name) for name in wanted}
    return Checkpoint(
        config=record["config"],
        categories=Categories(tuple(record["categories"]["ids"]), tuple(record["categories"]["names"])),
        state=TrainingState(**record["state"]),
        model=tensors["model.safetensors"],
        training=tensors.get("training.safetensors"),
        optimizer=tensors.get("optimizer.safetensors"),
    )


def _write(checkpoint: Checkpoint, folder: Path) -> None:
    parts = {"model": checkpoint.model, "training": checkpoint.training, "optimizer": checkpoint.optimizer}
    files = {}
    for part, tensors in parts.items():
        if tensors is None:
            continue
        path = folder / f"{part}.safetensors"
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
        files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    record = {
        "format_version": FORMAT_VERSION,
        "config": checkpoint.config,
        "categories": {"ids": checkpoint.categories.ids, "names": checkpoint.categories.names},
        "state": vars(checkpoint.state),
        "files": files,
    }
    record["sha256"] = _digest(record)
    (folder / "state.json").write_text(json.dumps(record, indent=1) + "\n")


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(path.read_text())
        version, digest = record["format_version"], record.pop("sha256")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"not a readable checkpoint: {error!r}", where=str(path), fix="use an older checkpoint of the run"
        ) from error
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"checkpoint format {version}, this version reads {FORMAT_VERSION}",
            where=str(path),
            fix="use the version of detronome that wrote it",
        )
    if digest != _digest(record):
        raise CheckpointError(
            "the content does not have the SHA-256 it was written with",
            where=str(path),
            fix="the file is damaged: use another checkpoint of the run",
        )
    return record


def _digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _is_whole(folder: Path) -> bool:
    try:
        files = _read_record(folder / "state.json")["files"]
    except CheckpointError:
        return False
    return all(_verify(folder / name, expected) is None for name, expected in files.items())


def _verify(path: Path, expected: dict[str, Any]) -> Problem | None:
    fix = "the file is damaged: use another checkpoint of the run"
    if not path.is_file():
        return Problem(what="a file of the checkpoint is missing", where=str(path), fix=fix)
    size = path.stat().st_size
    if size != expected["bytes"]:
        return Problem(what=f"{size} bytes instead of {expected['bytes']}", where=str(path), fix=fix)
    if sha256_of(path) != expected["sha256"]:
        return Problem(what="the content does not have the SHA-256 it was written with", where=str(path), fix=fix)
    return None

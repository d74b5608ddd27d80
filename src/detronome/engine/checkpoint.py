"""Checkpoints: one folder a step, safetensors and JSON, published whole or not at all, verified on loading.

checkpoints/
  step-00001200/
    model.safetensors       weights that were evaluated (the average, where there is one)
    training.safetensors    raw weights, when `model` holds the average
    optimizer.safetensors   moments by parameter name
    state.json              configuration, categories, position, metrics, size and SHA-256 of each file
  last -> step-00001200     for people: programs go by what the records say
  best -> step-00000900

A folder is written under a hidden name, flushed, and renamed when it is complete; older ones are deleted only when
that is done, and are hidden first. So whatever has its final name is whole, wherever the process was killed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from detronome.engine.state import TrainingState
from detronome.engine.tensor_file import write_hashed, write_tensors
from detronome.errors import CheckpointError, Problem, first_few
from detronome.runtime.files import atomic_directory, atomic_symlink, format_size, is_disk_full, sha256_of
from detronome.types import Categories

__all__ = [
    "Checkpoint",
    "CheckpointFolder",
    "find_checkpoint",
    "load_checkpoint",
    "load_last_good",
    "write_checkpoint",
]

FORMAT_VERSION = 2
_RECORD = "state.json"
_DAMAGED = "the file is damaged: use another checkpoint of the run"

Preference = Literal["best", "last"]


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
    origin: str = ""
    """In words, what the weights were made of, where that was not by training."""

    def parts(self) -> dict[str, dict[str, Tensor]]:
        """Return the tensors of each file."""
        parts = {"model": self.model, "training": self.training, "optimizer": self.optimizer}
        return {part: tensors for part, tensors in parts.items() if tensors is not None}

    def mapped(self, change: Callable[[str, Tensor], Tensor]) -> Checkpoint:
        """Return the checkpoint with `change(PART/NAME, tensor)` for each tensor."""
        parts = {p: {n: change(f"{p}/{n}", t) for n, t in tensors.items()} for p, tensors in self.parts().items()}
        return replace(self, model=parts["model"], training=parts.get("training"), optimizer=parts.get("optimizer"))


class CheckpointFolder:
    """The checkpoints of one run: publishes new ones, keeps the newest few and the best, deletes the others.

    Args:
        path: the folder; made with the first checkpoint.
        keep_last: how many of the newest are kept, 1 or more.
    """

    def __init__(self, path: Path, keep_last: int = 1) -> None:
        assert keep_last >= 1
        self.path = path
        self.keep_last = keep_last

    def save(self, checkpoint: Checkpoint, *, is_best: bool) -> Path:
        """Publish a checkpoint, repoint `last` (and `best`), and delete what is no longer kept.

        A step that was written before, in a part of the run that was rolled back, gets a second folder.

        Raises:
            CheckpointError: a value is not finite, or the disk refuses. What was published before is as it was.
        """
        checkpoint = checkpoint.mapped(lambda _, tensor: tensor.detach().cpu())
        step = checkpoint.state.step
        _require_finite(checkpoint)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._delete_leftovers()
            self._require_space(checkpoint)
            folder = self._unused_name(step)
            with atomic_directory(folder) as temporary:
                _write(checkpoint, temporary, serial=self._next_serial(), is_best=is_best)
            # Reading it back would cost as much again and come from memory, not from the disk: sizes must do.
            _read_sized(folder)
        except OSError as error:
            raise CheckpointError(
                f"the checkpoint of step {step} could not be written: {_reason(error, checkpoint, self.path)}",
                where=str(self.path),
                fix="free disk space or choose another --out; older checkpoints are intact",
            ) from error
        self._finish(folder)
        return folder

    def tidy(self) -> None:
        """Do what a killed process has left undone: point the links, delete what is left over or no longer kept."""
        self._delete_leftovers()
        for newest in _in_order(_survey(self.path)[0], "last")[:1]:
            self._finish(newest.folder)

    def newest_step(self) -> int | None:
        """Return the step of the newest checkpoint; None where there is none."""
        for newest in _in_order(_survey(self.path)[0], "last")[:1]:
            step: int = _read_record(newest.folder / _RECORD)["state"]["step"]
            return step
        return None

    def _finish(self, newest: Path) -> None:
        published, _ = _survey(self.path)
        self._point("last", newest.name)
        for best in _in_order(published, "best")[:1]:
            self._point("best", best.folder.name)
        with suppress(OSError):  # it is tried again with the next checkpoint
            self._delete_unused(newest, published)

    def _delete_leftovers(self) -> None:
        """Remove what a killed process was writing or deleting."""
        for path in self.path.glob(".*.tmp"):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with suppress(OSError):
                    path.unlink()

    def _require_space(self, checkpoint: Checkpoint) -> None:
        """Refuse before the disk is full: other files of the run are written to it too."""
        if shutil.disk_usage(self.path).free < _size_of(checkpoint):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _unused_name(self, step: int) -> Path:
        folder = first = self.path / f"step-{step:08d}"
        number = 1
        while os.path.lexists(folder):
            number += 1
            folder = first.with_name(f"{first.name}-{number}")
        return folder

    def _next_serial(self) -> int:
        """Return the time, or more where the clock was set back."""
        newest = max((one.serial for one in _survey(self.path)[0]), default=0)
        return max(newest + 1, time.time_ns())

    def _point(self, link: str, target: str) -> None:
        """Repoint a link, or leave none: nothing depends on it, and some disks have no links."""
        try:
            atomic_symlink(self.path / link, target)
        except OSError:
            with suppress(OSError):
                (self.path / link).unlink()

    def _delete_unused(self, newest: Path, published: list[_Published]) -> None:
        """Delete what is whole and not kept. What is damaged stays: somebody may want to look at it."""
        kept = {newest}  # even if just now it could not be read
        kept |= {one.folder for one in _in_order(published, "last")[: self.keep_last]}
        kept |= {one.folder for one in _in_order(published, "best")[:1]}
        for one in published:
            if one.folder not in kept and one.folder.name.startswith("step-"):
                hidden = one.folder.with_name(f".{one.folder.name}.tmp")
                os.rename(one.folder, hidden)
                shutil.rmtree(hidden)


def find_checkpoint(path: Path, *, prefer: Preference = "best") -> Path:
    """Return the checkpoint folder for a run folder, a `checkpoints` folder, or a checkpoint folder itself.

    A folder whose record or file sizes are wrong is passed over, unless it is named itself.

    Raises:
        CheckpointError: there is none; or all there are is damaged.
    """
    return _candidates(path, prefer)[0][0]


def load_last_good(path: Path, *, until: int | None = None) -> tuple[Checkpoint, list[Problem]]:
    """Read the newest checkpoint that is not damaged, with all that a resume needs.

    Args:
        path: as for `find_checkpoint`; for a checkpoint folder that is named itself there is no substitute.
        until: the newest of at most so many steps, where there is one.

    Returns:
        The checkpoint, and what is wrong with each one that was passed over.

    Raises:
        CheckpointError: there is none; or all there are is damaged.
    """
    folders, problems = _candidates(path, "last")
    if until is not None:
        folders.sort(key=lambda folder: _read_record(folder / _RECORD)["state"]["step"] > until)
    for folder in folders:
        try:
            return load_checkpoint(folder, with_training=True), problems
        except CheckpointError as error:
            problems += error.problems
    raise CheckpointError(problems)


def load_checkpoint(path: Path, *, with_training: bool = False) -> Checkpoint:
    """Read and verify a checkpoint folder.

    Args:
        path: the folder that holds `state.json`.
        with_training: also read what a resume needs.

    Raises:
        CheckpointError: a file is missing, damaged, or of another format; all of them at once.
    """
    record = _read_record(path / _RECORD)
    wanted = [n for n in record["files"] if with_training or n == "model.safetensors"]
    problems = [problem for n in wanted if (problem := _verify(path / n, record["files"][n]))]
    if problems:
        raise CheckpointError(problems)
    try:
        tensors = {name: load_file(path / name) for name in wanted}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot be read: {error}", where=str(path), fix=_DAMAGED) from error
    return Checkpoint(
        config=record["config"],
        categories=_categories(record["categories"]),
        state=TrainingState(**record["state"]),
        model=tensors["model.safetensors"],
        training=tensors.get("training.safetensors"),
        optimizer=tensors.get("optimizer.safetensors"),
        origin=record.get("origin", ""),
    )


def write_checkpoint(checkpoint: Checkpoint, folder: Path) -> None:
    """Publish a checkpoint that belongs to no run as a folder of its own, which must not exist.

    Raises:
        CheckpointError: the folder exists, a value is not finite, or the disk refuses. Nothing is left behind then.
    """
    checkpoint = checkpoint.mapped(lambda _, tensor: tensor.detach().cpu())
    _require_finite(checkpoint)
    try:
        with atomic_directory(folder) as temporary:
            _write(checkpoint, temporary, serial=time.time_ns(), is_best=True)
    except FileExistsError as error:
        raise CheckpointError("exists already", where=str(folder), fix="choose another --out") from error
    except OSError as error:
        raise CheckpointError(
            f"the checkpoint could not be written: {_reason(error, checkpoint, folder.parent)}",
            where=str(folder),
            fix="free disk space or choose another --out",
        ) from error


def _categories(record: dict[str, Any]) -> Categories:
    is_thing = record.get("is_thing")  # which checkpoints of older versions lack
    return Categories(tuple(record["ids"]), tuple(record["names"]), None if is_thing is None else tuple(is_thing))


def _require_finite(checkpoint: Checkpoint) -> None:
    bad = [f"{part}/{name}" for part, tensors in checkpoint.parts().items() for name in _non_finite(tensors)]
    if bad:
        raise CheckpointError(
            f"the checkpoint of step {checkpoint.state.step} was not written: {len(bad):,} of its tensors "
            f"hold values that are not finite: {first_few(bad)}",
            where="the state of the training",
            fix="go on from an older checkpoint with a lower optim.lr, or with train.precision=fp32",
        )


def _non_finite(tensors: dict[str, Tensor]) -> list[str]:
    return [name for name, tensor in tensors.items() if tensor.is_floating_point() and not _is_finite(tensor)]


def _is_finite(tensor: Tensor) -> bool:
    """Look at the extremes, which need no memory and are nan if a value is.

    Not with torch: it would start threads of its own beside those that compute.
    """
    if tensor.numel() == 0:
        return True
    values = (tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()).numpy()
    with np.errstate(invalid="ignore"):
        return math.isfinite(values.min()) and math.isfinite(values.max())


def _size_of(checkpoint: Checkpoint) -> int:
    """Return the bytes of the tensors: all but a few thousand of what is written."""
    return sum(t.numel() * t.element_size() for tensors in checkpoint.parts().values() for t in tensors.values())


def _reason(error: OSError, checkpoint: Checkpoint, folder: Path) -> str:
    reason = error.strerror or str(error)
    if not is_disk_full(error):
        return reason
    free = "an unknown amount is"
    with suppress(OSError):
        free = f"{format_size(shutil.disk_usage(folder).free)} are"
    return f"{reason}: {format_size(_size_of(checkpoint))} are needed, {free} free"


def _write(checkpoint: Checkpoint, folder: Path, *, serial: int, is_best: bool) -> None:
    files = {}
    for part, tensors in checkpoint.parts().items():
        name = f"{part}.safetensors"
        files[name] = asdict(write_tensors(folder / name, tensors))
    record = {
        "format_version": FORMAT_VERSION,
        "serial": serial,
        "is_best": is_best,
        "config": checkpoint.config,
        "categories": asdict(checkpoint.categories),
        "state": vars(checkpoint.state),
        "files": files,
    }
    if checkpoint.origin:
        record["origin"] = checkpoint.origin
    record["sha256"] = _digest(record)
    write_hashed(folder / _RECORD, [_encode(record)])


def _encode(record: dict[str, Any]) -> bytes:
    return (json.dumps(record, indent=1) + "\n").encode()


def _digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _read_record(path: Path) -> dict[str, Any]:
    try:
        content = path.read_bytes()
        record: dict[str, Any] = json.loads(content)
        # Other bytes can stand for the same values, e.g. 1E-4 for 1e-4.
        is_ours = content == _encode(record)
        version, digest = record["format_version"], record.pop("sha256")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"not a readable checkpoint: {error!r}", where=str(path), fix="use an older checkpoint of the run"
        ) from error
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"checkpoint format {version}, this version reads {FORMAT_VERSION}",
            where=str(path),
            fix="use the version of detronome that wrote it",
        )
    if not is_ours or digest != _digest(record):
        raise CheckpointError(
            "the content does not have the SHA-256 it was written with", where=str(path), fix=_DAMAGED
        )
    return record


@dataclass(frozen=True)
class _Published:
    """A checkpoint whose record is sound and whose files have their sizes."""

    folder: Path
    serial: int
    """Nanoseconds since 1970. Not the step tells which is newer: a run that was rolled back does steps again."""
    is_best: bool


def _survey(folder: Path) -> tuple[list[_Published], list[Problem]]:
    """Return the whole checkpoints in a folder, in no order, and what is wrong with the others."""
    published: list[_Published] = []
    problems: list[Problem] = []
    try:
        # No links: a second name for a folder would make it look like one more.
        paths = [path for path in sorted(folder.glob("[!.]*")) if not path.is_symlink() and (path / _RECORD).is_file()]
    except OSError as error:
        return [], [Problem(what=f"cannot be read: {error.strerror}", where=str(folder), fix="check the disk")]
    for path in paths:
        try:
            record = _read_sized(path)
        except CheckpointError as error:
            problems += error.problems
        else:
            published.append(_Published(path, record["serial"], record["is_best"]))
    return published, problems


def _in_order(published: list[_Published], prefer: Preference) -> list[_Published]:
    """Return the newest first; or only those that were the best when they were written."""
    newest = sorted(published, key=lambda one: one.serial, reverse=True)
    return newest if prefer == "last" else [one for one in newest if one.is_best]


def _candidates(path: Path, prefer: Preference) -> tuple[list[Path], list[Problem]]:
    """Return the whole checkpoints that a path may stand for, first choice first, and what is wrong with others."""
    is_link = path.name in ("last", "best") and (path.is_symlink() or not path.exists())
    if is_link:
        prefer = "best" if path.name == "best" else "last"
    if (path / _RECORD).is_file() and not is_link:
        return [path.resolve()], []
    found_problems: list[Problem] = []
    for folder in (path.parent,) if is_link else (path / "checkpoints", path):
        published, problems = _survey(folder)
        folders = [one.folder for one in [*_in_order(published, prefer), *_in_order(published, "last")]]
        if is_link:
            folders = [*(one for one in folders if one.name == path.resolve().name), *folders]
        if folders:
            return list(dict.fromkeys(one.resolve() for one in folders)), problems
        found_problems += problems
    if found_problems:
        raise CheckpointError(found_problems)
    raise CheckpointError(
        f"no checkpoint in {str(path)!r}" if os.path.lexists(path) else f"{str(path)!r} does not exist",
        where=str(path),
        fix="name a run folder, RUN/checkpoints/best, or RUN/checkpoints/last",
    )


def _read_sized(folder: Path) -> dict[str, Any]:
    """Read the record of a checkpoint whose files have the sizes they were written with.

    Raises:
        CheckpointError: they do not; or the record cannot be read.
    """
    record = _read_record(folder / _RECORD)
    problems = [problem for name, file in record["files"].items() if (problem := _check_size(folder / name, file))]
    if problems:
        raise CheckpointError(problems)
    return record


def _check_size(path: Path, expected: dict[str, Any]) -> Problem | None:
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return Problem(what="a file of the checkpoint is missing", where=str(path), fix=_DAMAGED)
    except OSError as error:
        return Problem(what=f"cannot be read: {error.strerror}", where=str(path), fix=_DAMAGED)
    if size != expected["bytes"]:
        return Problem(what=f"{size} bytes instead of {expected['bytes']}", where=str(path), fix=_DAMAGED)
    return None


def _verify(path: Path, expected: dict[str, Any]) -> Problem | None:
    if problem := _check_size(path, expected):
        return problem
    try:
        digest = sha256_of(path)
    except OSError as error:
        return Problem(what=f"cannot be read: {error.strerror}", where=str(path), fix=_DAMAGED)
    if digest != expected["sha256"]:
        return Problem(what="the content does not have the SHA-256 it was written with", where=str(path), fix=_DAMAGED)
    return None

"""The exported files that a benchmark measures, kept for the next one."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from detronome.api.folders import write_json
from detronome.deploy.benchmark.forms import FORMS, Form
from detronome.deploy.benchmark.messages import Export, Exported, Subject
from detronome.deploy.benchmark.process import FormFailedError, FormProcess
from detronome.deploy.export.description import description_of
from detronome.model import Model
from detronome.runtime.processors import usable_cpus
from detronome.version import __version__

__all__ = ["Exporter", "digest_of"]


@dataclass(frozen=True, kw_only=True)
class _Recipe:
    """What an exported file was made from: another one must be made where any of this differs."""

    weights: str
    form: str
    data: str
    detronome: str
    runtime: str
    """What alone can run the file, where others cannot."""


class Exporter:
    """Makes exported files, each in a process of its own, or finds those of an earlier benchmark.

    Args:
        entry: module that such a process runs.
        folder: of the files, each form in a folder of its own.
        weights: `digest_of` the model.
        logs: folder for what the processes print.
        on_begin: is told what is done next.
    """

    def __init__(self, entry: str, folder: Path, *, weights: str, logs: Path, on_begin: Callable[[str], None]) -> None:
        self._entry = entry
        self._folder = folder
        self._weights = weights
        self._logs = logs
        self._on_begin = on_begin
        self._failed: dict[str, FormFailedError] = {}

    def file_of(self, subject: Subject) -> Path:
        """Return the file of an exported form.

        Raises:
            FormFailedError: it cannot be made.
        """
        form = subject.form
        assert form is not None
        if form.file_of:
            form = next(one for one in FORMS if one.name == form.file_of)
            subject = replace(subject, form=form)
        if form.name in self._failed:
            raise self._failed[form.name]
        file = self._folder / form.name / f"model{form.suffix}"
        recipe = asdict(
            _Recipe(
                weights=self._weights,
                form=form.name,
                data=str(Path(subject.data).resolve()) if form.precision == "int8" else "",
                detronome=__version__,
                runtime=_runtime_of(form, subject.device),
            )
        )
        note = file.with_name("made_from.json")
        with suppress(OSError, ValueError):
            if json.loads(note.read_text(encoding="utf-8")) == recipe and description_of(file).is_file():
                return file
            for part in file.parent.glob(f"{file.stem}.*"):  # ours, as the note says: of another model, or half made
                part.unlink()
            for part in file.parent.glob(f".{file.name}-*.tmp"):  # of an export that was interrupted
                shutil.rmtree(part)
        self._on_begin(f"exporting {form.name}")
        write_json(note, recipe)
        log = self._logs / f"{form.name}-export.log"
        with FormProcess(self._entry, threads=usable_cpus(), log=log) as process:
            try:
                process.ask(Export(subject=subject, file=file), Exported)
            except FormFailedError as error:
                self._failed[form.name] = error
                raise
        return file


def _runtime_of(form: Form, device: str) -> str:
    """Return the version of what runs an exported file, where a file does not outlive it; otherwise nothing."""
    if form.to == "torch":
        return torch.__version__
    if form.to != "tensorrt":
        return ""
    gpu = torch.cuda.get_device_name(device)
    try:
        return f"{version('tensorrt')} on {gpu}"
    except PackageNotFoundError:  # installed under another name
        return gpu


def digest_of(model: Model) -> str:
    """Return what changes when a weight does, or the configuration."""
    digest = hashlib.sha256(repr(model.config).encode())
    for name, tensor in sorted(model.checkpoint.model.items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

"""Every form of a detector beside the others: latency, throughput, memory, AP, difference."""

from __future__ import annotations

import datetime
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from detronome.api.arguments import one_process
from detronome.api.benchmark_child import measured_config
from detronome.api.benchmark_exports import Exporter, digest_of
from detronome.api.folders import may_write, writing
from detronome.config.schema import RunConfig
from detronome.data.build import augment_policy, padded_shapes
from detronome.data.split import DataSplit, label_map, open_split
from detronome.deploy.benchmark.calls import Call, calls_of, padded_shape
from detronome.deploy.benchmark.forms import Form, LeftOut, available_forms
from detronome.deploy.benchmark.messages import Subject
from detronome.deploy.benchmark.process import FormFailedError
from detronome.deploy.benchmark.records import FormRecord, to_json
from detronome.deploy.benchmark.session import Contender, Session
from detronome.deploy.export.real_images import readable_images
from detronome.deploy.exported import is_exported
from detronome.errors import ConfigError, Problem
from detronome.model import load
from detronome.report.benchmark_chart import BenchmarkPoint, save_benchmark
from detronome.runtime.device import describe_environment
from detronome.runtime.files import write_atomic
from detronome.runtime.processors import usable_cpus

__all__ = ["Benchmark", "benchmark"]

_ENTRY = "detronome.api.benchmark_child"
_EXPORTS = "exports"
_LOGS = "logs"
_MOST_CALLS = 64
"""Different calls of each batch size: enough shapes, and few enough to warm up with all of them."""
_COMPARED = 8
"""Images on which outputs are compared."""
_TOLERANCE = 0.01
"""AP that a recommended form may lose."""
_BACKENDS = ("onnxruntime", "openvino", "nncf", "tensorrt")


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What a benchmark found, and where it was written."""

    folder: Path
    forms: Sequence[FormRecord]
    """In the order of the table; the others are compared with the first."""
    left_out: Sequence[LeftOut]
    model: str
    data: str
    split: str
    num_images: int
    """On which AP was measured; 0 where it was not."""
    shapes_hw: Sequence[tuple[int, int]]
    """Heights and widths in pixels of what entered the network, in the smallest batches."""
    threads: int
    is_on_cpu: bool
    environment: Mapping[str, str]
    """Machine and versions."""
    date: str

    @property
    def recommended(self) -> FormRecord | None:
        """The fastest form, by the smallest batch's whole path, that loses at most 0.01 AP; None without AP."""
        first = self.forms[0]
        if first.metrics is None or not math.isfinite(first.metrics["AP"]):
            return None
        sound = [
            form
            for form in self.forms
            if form.batches and form.metrics is not None and form.metrics["AP"] >= first.metrics["AP"] - _TOLERANCE
        ]

        def speedup(form: FormRecord) -> float:
            gain = form.batches[0].whole_speedup
            return gain.ratio if gain is not None else 1.0

        return max(sound, key=speedup, default=None)

    @property
    def share_of_processor(self) -> float | None:
        """Part of the time of the first form's network, 0-1, in which it had a processor: the rest is other programs'.

        None where several threads or another device make that unknown.
        """
        first = self.forms[0]
        if self.threads > 1 or not first.batches or not self.is_on_cpu:
            return None
        return min(1.0, first.batches[0].network_cpu_ms / first.batches[0].network.p50_ms)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        best = self.recommended
        return {
            "model": self.model,
            "data": self.data,
            "split": self.split,
            "num_images": self.num_images,
            "shapes_hw": [list(shape) for shape in self.shapes_hw],
            "threads": self.threads,
            "share_of_processor": self.share_of_processor,
            "environment": dict(self.environment),
            "date": self.date,
            "recommended": best.form if best else None,
            **to_json(self.forms, self.left_out),
        }


def benchmark(
    model: str | Path,
    data: str | Path,
    *,
    split: str = "val",
    forms: Sequence[str] | None = None,
    also: Sequence[str | Path] = (),
    batch_sizes: Sequence[int] = (1, 4),
    threads: int | None = None,
    images: int = 200,
    seconds: float = 5.0,
    image_size: int | None = None,
    device: str = "auto",
    out: str | Path = "benchmark",
    on_begin: Callable[[str], None] = lambda _: None,
) -> Benchmark:
    """Measure a detector in every form that this machine can run: time, memory, AP, difference from eager.

    Each form has a process of its own; all are measured in turn on the same images of the data, in their own shapes. A
    form that fails is a record with the reason. Exported files stay in `out`, so that they are not made a second time;
    `results.json` and the pictures there are replaced.

    Args:
        model: as `load` takes it. An exported file is measured as it is, with `also` beside it.
        data: the data folder.
        split: of the data folder.
        forms: names of those wanted (`FORMS`); by default all that can run. Eager is always among them.
        also: exported files, runs or checkpoints to measure beside them, e.g. of a trimmed model.
        batch_sizes: images of a call.
        threads: that a form may use; by default as many as there are processors.
        images: of the split, on which AP is measured; 0 measures none.
        seconds: about how long a form is measured at one batch size.
        image_size: short side in pixels, instead of the model's own.
        device: auto, cpu, cuda, cuda:N or mps.
        out: folder for results and exported files.
        on_begin: is told what is done next.

    Raises:
        CheckpointError, DataError: the model or the data cannot be used, or their categories differ.
        ConfigError: arguments out of range, or a form that nobody knows; all at once.
    """
    one_process("benchmark")
    if sys.platform == "win32":  # whose processes are handed no pipe by its number
        raise ConfigError("forms are measured on Linux and macOS only", where="benchmark", fix="use Linux, also as WSL")
    threads = usable_cpus() if threads is None else threads
    _check(batch_sizes, threads, images, seconds, image_size)
    if forms is not None and is_exported(Path(model)):
        raise ConfigError(
            "an exported file is measured as it is, and has no other forms",
            where="forms",
            fix="leave them out, or name the checkpoint that it was exported from",
        )
    folder = Path(out)
    sources = [str(model), *map(str, also)]
    loaded = load(model, device=device)
    where = loaded.device
    config = measured_config(loaded.config, image_size)
    wanted, left_out = ([], []) if is_exported(Path(model)) else available_forms(forms, where)
    data_split = open_split(data, split, annotations=config.data.annotations)
    label_map(data_split, loaded.categories)
    for name in ("results.json", f"{_EXPORTS}/x", f"{_LOGS}/x"):
        may_write(folder / name)
    images_in_order = readable_images(data_split, max(images, _MOST_CALLS * max(batch_sizes)))
    calls = _calls(config, data_split, images_in_order, batch_sizes)

    subject = Subject(
        source=str(model),
        form=None,
        data=str(data),
        split=split,
        device=str(where),
        threads=threads,
        image_size=image_size,
    )
    session = Session(
        entry=_ENTRY,
        threads=threads,
        logs=folder / _LOGS,
        calls=calls,
        seconds=seconds,
        compared=tuple(images_in_order[:_COMPARED]),
        evaluated=tuple(images_in_order[:images]),
        on_begin=on_begin,
    )
    exporter = Exporter(
        _ENTRY,
        folder / _EXPORTS,
        weights=digest_of(loaded) if wanted else "",
        logs=folder / _LOGS,
        on_begin=on_begin,
    )
    del loaded
    contenders, failed = _contenders(subject, wanted, sources, exporter)
    measured = {record.form: record for record in session.run(contenders)}
    found = Benchmark(
        folder=folder,
        forms=_in_order(wanted, failed, measured),
        left_out=left_out,
        model=sources[0],
        data=str(data),
        split=split,
        num_images=len(session.evaluated),
        shapes_hw=sorted({call.shape_hw for call in next(iter(calls.values()))}),
        threads=threads,
        is_on_cpu=where.type == "cpu",
        environment=_environment(where, threads),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    _write(found)
    return found


def _contenders(
    subject: Subject, wanted: Sequence[Form], sources: Sequence[str], exporter: Exporter
) -> tuple[list[Contender], dict[str, FormFailedError]]:
    """Return the forms of the first source and the other sources as they are; and which forms could not be exported.

    Where no form is wanted the first source is an exported file, and is measured as it is too.
    """
    contenders: list[Contender] = []
    failed: dict[str, FormFailedError] = {}
    for form in wanted:
        asked = replace(subject, form=form)
        try:
            file = exporter.file_of(asked) if form.to is not None else None
        except FormFailedError as error:
            failed[form.name] = error
        else:
            contenders.append(
                Contender(
                    name=form.name,
                    subject=asked,
                    file=file,
                    what=form.what,
                    backend=form.backend,
                    precision=form.precision,
                )
            )
    as_they_are = sources[1:] if wanted else sources
    names = _names(as_they_are, taken=[form.name for form in wanted])
    contenders += [
        Contender(name=name, subject=replace(subject, source=source), file=None)
        for name, source in zip(names, as_they_are, strict=True)
    ]
    return contenders, failed


def _check(batch_sizes: Sequence[int], threads: int, images: int, seconds: float, image_size: int | None) -> None:
    checks = [
        ("batch_sizes", batch_sizes, "whole numbers from 1", len(batch_sizes) > 0 and min(batch_sizes) >= 1),
        ("threads", threads, "a whole number from 1", threads >= 1),
        ("images", images, "a whole number from 0", images >= 0),
        ("seconds", seconds, "a number above 0", 0 < seconds < math.inf),
        ("image_size", image_size, "32 pixels or more", image_size is None or image_size >= 32),
    ]
    problems = [
        Problem(what=f"{value!r} is out of range", where=name, fix=f"give {wanted}")
        for name, value, wanted, is_sound in checks
        if not is_sound
    ]
    if problems:
        raise ConfigError(problems)


def _calls(
    config: RunConfig, split: DataSplit, images: Sequence[int], batch_sizes: Sequence[int]
) -> dict[int, list[Call]]:
    policy, buckets = augment_policy(config.augment), padded_shapes(config)
    sizes = split.index.sizes_hw
    shapes = [(i, padded_shape(tuple(sizes[i].tolist()), policy, buckets)) for i in images]
    return {size: calls_of(shapes, size, most=_MOST_CALLS) for size in sorted(set(batch_sizes))}


def _names(sources: Sequence[str], *, taken: Sequence[str]) -> list[str]:
    """Return a short name for each source, different from all others."""
    names: list[str] = []
    for source in sources:
        place = Path(source)
        short = _short(str(place.parent.parent if place.parent.name == "checkpoints" else place))
        number, name = 1, short
        while name in (*taken, *names):
            number += 1
            name = f"{short}-{number}"
        names.append(name)
    return names


def _in_order(
    wanted: Sequence[Form], failed: Mapping[str, FormFailedError], measured: Mapping[str, FormRecord]
) -> list[FormRecord]:
    records = [
        measured.get(form.name)
        or FormRecord(
            form=form.name,
            backend=form.backend,
            precision=form.precision,
            what=form.what,
            failure=failed[form.name].why,
            fix=failed[form.name].fix,
        )
        for form in wanted
    ]
    known = {form.name for form in wanted}
    return [*records, *(record for name, record in measured.items() if name not in known)]


def _environment(device: torch.device, threads: int) -> dict[str, str]:
    environment = {**describe_environment(device), "threads": str(threads)}
    for package in _BACKENDS:
        with suppress(PackageNotFoundError):
            environment[package] = version(package)
    return environment


def _write(found: Benchmark) -> None:
    with writing(found.folder):
        write_atomic(found.folder / "results.json", json.dumps(found.to_json(), indent=1, allow_nan=False) + "\n")
        title = f"{_short(found.model)} on {_short(found.data)} ({found.split}), {found.environment['device']}, "
        title += "1 thread" if found.threads == 1 else f"{found.threads} threads"
        save_benchmark(_points(found), found.folder, title=title, tolerance=_TOLERANCE)


def _points(found: Benchmark) -> list[BenchmarkPoint]:
    best = found.recommended
    return [
        BenchmarkPoint(
            form=form.form,
            backend=form.backend,
            precision=form.precision,
            batch_size=batch.batch_size,
            ms=batch.whole.p50_ms,
            quartiles_ms=batch.whole.quartiles_ms,
            images_per_s=batch.images_per_s,
            speedup=batch.whole_speedup.ratio if batch.whole_speedup else None,
            ap=form.metrics["AP"] if form.metrics else None,
            is_recommended=form is best,
        )
        for form in found.forms
        for batch in form.batches
    ]


def _short(place: str) -> str:
    return Path(place).name or place

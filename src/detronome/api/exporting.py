"""Exporting a model: written, described, compared with the original, and only then put where it was asked for."""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from detronome.api.arguments import one_of
from detronome.api.asked import open_a_split
from detronome.api.folders import may_write, writing
from detronome.config.convert import apply_overrides, to_dict
from detronome.config.schema import RunConfig
from detronome.data.split import DataSplit
from detronome.deploy.export.description import (
    SUFFIXES,
    Description,
    Form,
    Precision,
    describe,
    description_of,
    write_description,
)
from detronome.deploy.export.graph import trace
from detronome.deploy.export.int8 import quantize_onnx, quantize_openvino, require_nncf
from detronome.deploy.export.onnx import require_onnx, write_onnx
from detronome.deploy.export.openvino import require_openvino, write_openvino
from detronome.deploy.export.real_images import compare_accuracy, readable_images, real_batches
from detronome.deploy.export.self_check import (
    SelfCheck,
    compare_outputs,
    problems_of,
    synthetic_batches,
    tolerance_of,
)
from detronome.deploy.export.tensorrt import ShapeRange, require_tensorrt, write_tensorrt
from detronome.deploy.export.torch_program import write_torch_program
from detronome.deploy.exported import open_exported
from detronome.errors import ConfigError, Problem
from detronome.model import Model, load
from detronome.models.detector import Detector
from detronome.version import __version__

__all__ = ["ExportedModel", "export"]

_FOLDER = "exports"
_COMPARED_IMAGES = 8
"""Of the data, whose outputs are compared; the accuracy is measured on more."""
_SYNTHETIC_SIDE_PX = 256
_MOST_AT_ONCE = 8
"""Images in the largest batch of a TensorRT engine."""


@dataclass(frozen=True, kw_only=True)
class ExportedModel:
    """An exported model on disk, checked."""

    file: Path
    """What `load` takes. Its description lies beside it, and OpenVINO's weights."""
    description: Description

    @property
    def self_check(self) -> SelfCheck:
        """What it was found to differ by from the original."""
        assert self.description.self_check is not None
        return self.description.self_check

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        check = self.self_check
        accuracy = check.accuracy
        return {
            "file": str(self.file),
            "description": str(description_of(self.file)),
            "form": self.description.form,
            "precision": self.description.precision,
            "bytes": sum(self.file.with_name(name).stat().st_size for name in self.description.files),
            "compared_on": check.images,
            "median_difference": max(check.difference.median_score, check.difference.median_box),
            "largest_difference": max(check.difference.largest_score, check.difference.largest_box),
            "AP": None if accuracy is None else accuracy.exported,
            "AP_of_original": None if accuracy is None else accuracy.original,
            "AP_images": None if accuracy is None else accuracy.num_images,
        }


def export(
    model: str | Path | Model,
    to: Form = "onnx",
    *,
    out: str | Path | None = None,
    int8: bool = False,
    data: str | Path | None = None,
    images: int = 100,
    calibration_images: int = 200,
    on_progress: Callable[[str], None] = lambda _: None,
) -> ExportedModel:
    """Write a model in a form that runs without this library, for any batch and image size, and check it.

    The form's outputs are compared with the model's, in several batches and sizes, with padding and without; with
    `data`, its AP too. Where they differ by more than rounding may (for INT8: where AP falls by more than 0.01),
    nothing is written.

    Args:
        model: a `Model`, or what `load` takes: a run, a checkpoint, published weights.
        to: `onnx` (one file), `openvino` (.xml and .bin), `torch` (torch.export's .pt2) or `tensorrt` (an engine for
            this machine's GPU).
        out: the file; by default `exports/NAME` with the form's suffix. What exists there is not overwritten.
        int8: compute in 8 bits, calibrated on images of `data`; for onnx and openvino.
        data: a data folder: images to calibrate on, of the split that the model was trained on, and images to compare
            the AP on, of the one that it was evaluated on.
        images: to compare the AP on.
        calibration_images: to calibrate on.
        on_progress: is told what is being done.

    Raises:
        ConfigError: what is asked for cannot be, or the form differs from the model by more than is allowed.
        MissingExtraError: a package is missing that writes or runs the form.
        CheckpointError, DataError: the model or the data cannot be used.
    """
    one_of(to, Form, "to")
    form = to
    device = torch.device("cuda") if form == "tensorrt" else torch.device("cpu")
    precision: Precision = "int8" if int8 else "fp32"
    _check_arguments(form, int8=int8, has_data=data is not None, images=images, calibration_images=calibration_images)
    made_with = _require_packages(form, int8=int8)
    loaded = model if isinstance(model, Model) else load(model, device="cpu")
    state = loaded.checkpoint.state
    file = _destination(out, loaded, form, precision)
    config = loaded.config
    validation = None if data is None else open_a_split(data, config.data.val_split or config.data.train_split, config)
    training = open_a_split(data, config.data.train_split, config) if int8 and data is not None else None

    detector = _on_cpu(loaded.detector)
    on_progress("capturing the graph")
    with writing(file), tempfile.TemporaryDirectory(dir=file.parent, prefix=f".{file.name}-", suffix=".tmp") as folder:
        written = Path(folder) / file.name
        calibration = None
        if training is not None:
            chosen = readable_images(training, calibration_images)
            calibration = ((x.numpy(), mask.numpy()) for x, mask in real_batches(config, training, chosen))
        _write(detector, form, written, config, calibration=calibration, on_progress=on_progress)
        description = describe(
            _files_of(written, form),
            form=form,
            precision=precision,
            activation=detector.activation,
            num_queries=detector.num_queries,
            has_masks=config.model.family == "detr" and config.model.mask_head,
            config=to_dict(apply_overrides(config, {"data.root": ""})),  # nobody else's business
            categories=loaded.categories,
            metrics=loaded.metrics,
            step=state.step,
            origin=loaded.checkpoint.origin,
            self_check=None,
            made_with=made_with,
        )
        write_description(written, description)
        on_progress("comparing it with the model")
        exported = open_exported(written, device=device)
        checked = _check(detector, exported, loaded, validation, images=images, precision=precision, device=device)
        problems = problems_of(checked)
        if problems:
            raise ConfigError([_refused(problem, file) for problem in problems])
        description = replace(description, self_check=checked)
        write_description(written, description)
        _require_free(file, form)  # minutes have passed
        # The description last: without it, nothing is an exported model.
        for part in (*_files_of(written, form), description_of(written)):
            with part.open("rb") as content:
                os.fsync(content.fileno())
            os.replace(part, file.with_name(part.name))
    return ExportedModel(file=file, description=description)


def _check_arguments(form: Form, *, int8: bool, has_data: bool, images: int, calibration_images: int) -> None:
    problems = []
    if int8 and form not in ("onnx", "openvino"):
        problems.append(
            Problem(
                what=f"there is no INT8 for {form}", where="--int8", fix="export to onnx or openvino, or leave it out"
            )
        )
    if int8 and not has_data:
        problems.append(
            Problem(
                what="INT8 needs images to calibrate on, and to measure what it costs in accuracy",
                where="--int8",
                fix="name the data folder: --data DATA",
            )
        )
    for name, value in (("images", images), ("calibration_images", calibration_images)):
        if value < 1:
            problems.append(Problem(what=f"{value} images", where=name, fix="give a whole number from 1"))
    if problems:
        raise ConfigError(problems)


def _require_packages(form: Form, *, int8: bool) -> dict[str, str]:
    """Return the versions of what writes the form."""
    needed_for = f"exporting to {form}"
    versions = {"detronome": __version__, "torch": version("torch")}
    if form != "torch":
        # The others read it. `int8` brings all that OpenVINO's needs, so one line installs it.
        extra = "int8" if int8 and form == "openvino" else form
        versions |= require_onnx(needed_for=needed_for, extra=extra)
    if form == "onnx":
        versions |= require_onnx(needed_for="checking the file", runs=True)
    if form == "openvino":
        versions |= require_openvino(needed_for=needed_for)
        versions |= require_nncf() if int8 else {}
    if form == "tensorrt":
        versions |= require_tensorrt(needed_for=needed_for)
    return versions


def _destination(out: str | Path | None, model: Model, form: Form, precision: Precision) -> Path:
    suffix = SUFFIXES[form]
    kind = "" if precision == "fp32" else f"-{precision}"
    file = Path(_FOLDER) / f"{_name_of(model)}{kind}{suffix}" if out is None else Path(out)
    if file.suffix != suffix:
        raise ConfigError(
            f"a file for {form} ends in {suffix}, and {file.name!r} does not",
            where="--out",
            fix=f"name it {file.parent / (file.stem or 'model')}{suffix}",
        )
    _require_free(file, form)
    may_write(file)
    return file


def _require_free(file: Path, form: Form) -> None:
    for part in (*_files_of(file, form), description_of(file)):
        if os.path.lexists(part):
            raise ConfigError(
                "there is something at this place already, and it is not overwritten",
                where=str(part),
                fix="choose another file with --out, or remove it first",
            )


def _name_of(model: Model) -> str:
    """Return a run's name, or what a file or folder of weights is called."""
    source = model.source
    if source.parent.name == "checkpoints":
        return source.parent.parent.resolve().name
    return source.stem if source.is_file() else source.name


def _files_of(file: Path, form: Form) -> list[Path]:
    return [file, file.with_suffix(".bin")] if form == "openvino" else [file]


def _on_cpu(detector: Detector) -> Detector:
    """Return the detector on the CPU, in eval mode; the model's own stays where it is."""
    is_there = all(tensor.device.type == "cpu" for tensor in chain(detector.parameters(), detector.buffers()))
    return detector.eval() if is_there else copy.deepcopy(detector).cpu().eval()


def _write(
    detector: Detector,
    form: Form,
    file: Path,
    config: RunConfig,
    *,
    calibration: Iterator[Any] | None,
    on_progress: Callable[[str], None],
) -> None:
    program = trace(detector)
    on_progress(f"writing {form}")
    if form == "torch":
        write_torch_program(program, file)
        return
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        between = Path(folder) / "model.onnx"
        write_onnx(program, between)
        del program
        if form == "tensorrt":
            write_tensorrt(between, file, _shapes_of(config))
            return
        if form == "openvino":
            ir = Path(folder) / "model.xml"
            write_openvino(between, ir)
            between = ir
        if calibration is None:
            for source, target in zip(_files_of(between, form), _files_of(file, form), strict=True):
                shutil.move(source, target)
            return
        on_progress("calibrating INT8")
        quantize = quantize_onnx if form == "onnx" else quantize_openvino
        quantize(between, file, calibration)


def _shapes_of(config: RunConfig) -> ShapeRange:
    """Return the shapes that an engine is built for: those of evaluation and of the self-check."""
    augment = config.augment
    side = augment.eval_size
    longest = side if augment.square else augment.eval_max_size
    usual = (1, side, side if augment.square else min(longest, round(side * 4 / 3)))
    smallest = min(side, _SYNTHETIC_SIDE_PX) // 2
    largest = -(-max(longest, round(min(side, _SYNTHETIC_SIDE_PX) * 1.3)) // 32) * 32
    return (1, smallest, smallest), usual, (_MOST_AT_ONCE, largest, largest)


def _check(
    original: Detector,
    exported: Detector,
    model: Model,
    split: DataSplit | None,
    *,
    images: int,
    precision: Precision,
    device: torch.device,
) -> SelfCheck:
    config = model.config
    batches = synthetic_batches(min(config.augment.eval_size, _SYNTHETIC_SIDE_PX))
    chosen: Sequence[int] = ()
    if split is not None:
        chosen = readable_images(split, images)
        real = real_batches(config, split, chosen[:_COMPARED_IMAGES])
        # INT8 knows the range of real images' activations; patches of colour would only show that.
        batches = real if precision == "int8" else chain(real, batches)
    difference, masks = compare_outputs(original, exported, batches)
    accuracy = None
    if split is not None:
        accuracy = compare_accuracy(
            original if device.type == "cpu" else copy.deepcopy(original).to(device),
            exported,
            config=config,
            categories=model.categories,
            split=split,
            images=chosen,
            device=device,
        )
    return SelfCheck(
        images="synthetic" if split is None else "real" if precision == "int8" else "real and synthetic",
        difference=difference,
        masks=masks,
        accuracy=accuracy,
        tolerance=tolerance_of(precision),
    )


def _refused(problem: Problem, file: Path) -> Problem:
    fix = problem.fix or "nothing was written; export to another form, and tell the authors of Detronome"
    return replace(
        problem, what=f"the exported model is not the model: {problem.what}", where=problem.where or str(file), fix=fix
    )

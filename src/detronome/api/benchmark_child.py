"""What the process of one form runs: it opens the form, and then answers the benchmark's requests."""

from __future__ import annotations

import signal
import sys
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from detronome.api.exporting import export
from detronome.config.convert import apply_overrides
from detronome.config.schema import RunConfig
from detronome.data.split import open_split
from detronome.deploy.benchmark.child import OpenForm, serve
from detronome.deploy.benchmark.forms import Form
from detronome.deploy.benchmark.messages import Export, Open
from detronome.deploy.export.description import FORMS as BACKENDS
from detronome.deploy.export.description import read_description
from detronome.deploy.export.openvino import open_openvino
from detronome.deploy.exported import ExportedDetector
from detronome.deploy.optimize import optimized
from detronome.deploy.trim import extent_of, trimmed_config
from detronome.model import Model, load
from detronome.models.detector import Detector

__all__ = ["main", "measured_config"]

_NAMES = {"onnx": "ONNX Runtime", "openvino": "OpenVINO", "torch": "PyTorch", "tensorrt": "TensorRT"}


def main(descriptor: int) -> None:
    """Answer requests that come through a pipe until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C in the terminal is for the process that asks
    serve(Connection(descriptor), open_form=_open, export=_export)


def measured_config(config: RunConfig, image_size: int | None) -> RunConfig:
    """Return the configuration that is measured: full precision, but for what a form does itself, and images of the
    size that was asked for."""
    config = apply_overrides(config, {"train.precision": "fp32"})
    return config if image_size is None else trimmed_config(config, replace(extent_of(config), image_size=image_size))


def _open(request: Open) -> OpenForm:
    subject, form = request.subject, request.subject.form
    torch.set_num_threads(subject.threads)
    model = load(request.file or subject.source, device=subject.device)
    config = measured_config(model.config, subject.image_size)
    failures: list[str] = []
    backend, precision = (form.backend, form.precision) if form is not None else _kind_of(Path(subject.source))
    return OpenForm(
        detector=_detector(model, form, failures=failures),
        config=config,
        categories=model.categories,
        split=open_split(subject.data, subject.split, annotations=config.data.annotations),
        device=model.device,
        backend=backend,
        precision=precision,
        failures=failures,
    )


def _detector(model: Model, form: Form | None, *, failures: list[str]) -> Detector:
    if form is None or form.name == "eager":
        return model.detector
    if form.to is None:
        assert form.precision != "int8"
        return optimized(
            model.detector, precision=form.precision, compiled=form.is_compiled, on_failure=failures.append
        )
    if form.to == "openvino" and form.precision == "bf16":
        session = open_openvino(model.source, device=model.device, precision="bf16")
        return ExportedDetector(session, read_description(model.source), model.source)
    return model.detector


def _kind_of(source: Path) -> tuple[str, str]:
    """Return (backend, precision) of a source that is measured as it is."""
    if source.suffix not in BACKENDS:
        return _NAMES["torch"], "fp32"
    description = read_description(source)
    return _NAMES[description.form], description.precision


def _export(request: Export) -> None:
    subject, form = request.subject, request.subject.form
    assert form is not None and form.to is not None
    is_int8 = form.precision == "int8"
    export(subject.source, form.to, out=request.file, int8=is_int8, data=subject.data if is_int8 else None)


if __name__ == "__main__":
    main(int(sys.argv[1]))

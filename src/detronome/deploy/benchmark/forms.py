"""The forms that a detector can be run in, and which of them this machine can run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import torch

from detronome.errors import ConfigError, Problem, nearest_name_hint

__all__ = ["FORMS", "ExportTarget", "Form", "FormPrecision", "LeftOut", "available_forms"]

ExportTarget = Literal["onnx", "openvino", "torch", "tensorrt"]
FormPrecision = Literal["fp32", "bf16", "fp16", "int8"]


@dataclass(frozen=True, kw_only=True)
class Form:
    """One way to run a detector."""

    name: str
    backend: str
    precision: FormPrecision
    what: str
    """What is done, in a few words."""
    is_compiled: bool = False
    """By torch.compile."""
    to: ExportTarget | None = None
    """What it is exported to; None where PyTorch runs it from the checkpoint."""
    suffix: str = ""
    """Of the exported file."""
    file_of: str = ""
    """Name of the form whose file it runs; empty where it has its own."""
    packages: tuple[str, ...] = ()
    """Names to import, without which it cannot be made or run."""
    extra: str = ""
    """Of ours, which brings the packages."""
    devices: tuple[str, ...] = ("cpu", "cuda", "mps")


FORMS = (
    Form(name="eager", backend="PyTorch", precision="fp32", what="as it was trained"),
    Form(name="optimized", backend="PyTorch", precision="fp32", what="norms folded, oneDNN layouts"),
    Form(name="optimized-bf16", backend="PyTorch", precision="bf16", what="optimized, in bf16"),
    Form(name="optimized-fp16", backend="PyTorch", precision="fp16", what="optimized, in fp16", devices=("cuda",)),
    Form(
        name="compiled",
        backend="PyTorch",
        precision="fp32",
        what="norms folded, torch.compile",
        is_compiled=True,
        devices=("cpu", "cuda"),
    ),
    Form(
        name="torch",
        backend="PyTorch",
        precision="fp32",
        what="exported program",
        to="torch",
        suffix=".pt2",
        devices=("cpu", "cuda"),
    ),
    Form(
        name="onnx",
        backend="ONNX Runtime",
        precision="fp32",
        what="",
        to="onnx",
        suffix=".onnx",
        packages=("onnx", "onnxscript", "onnxruntime"),
        extra="onnx",
        devices=("cpu", "cuda"),
    ),
    Form(
        name="onnx-int8",
        backend="ONNX Runtime",
        precision="int8",
        what="calibrated on the data",
        to="onnx",
        suffix=".onnx",
        packages=("onnx", "onnxscript", "onnxruntime"),
        extra="onnx",
        devices=("cpu",),
    ),
    Form(
        name="openvino",
        backend="OpenVINO",
        precision="fp32",
        what="",
        to="openvino",
        suffix=".xml",
        packages=("onnx", "onnxscript", "openvino"),
        extra="openvino",
        devices=("cpu",),
    ),
    Form(
        name="openvino-bf16",
        backend="OpenVINO",
        precision="bf16",
        what="the same file, computed in bf16",
        to="openvino",
        suffix=".xml",
        file_of="openvino",
        packages=("onnx", "onnxscript", "openvino"),
        extra="openvino",
        devices=("cpu",),
    ),
    Form(
        name="openvino-int8",
        backend="OpenVINO",
        precision="int8",
        what="calibrated on the data",
        to="openvino",
        suffix=".xml",
        packages=("onnx", "onnxscript", "openvino", "nncf"),
        extra="int8",
        devices=("cpu",),
    ),
    Form(
        name="tensorrt",
        backend="TensorRT",
        precision="fp32",
        what="",
        to="tensorrt",
        suffix=".engine",
        packages=("onnx", "onnxscript", "tensorrt"),
        extra="tensorrt",
        devices=("cuda",),
    ),
)
"""In the order of the table; the first is what the others are compared with."""


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A form that is not measured here."""

    form: str
    why: str
    fix: str = ""


def available_forms(names: Sequence[str] | None, device: torch.device) -> tuple[list[Form], list[LeftOut]]:
    """Return the forms to measure, and those left out with the reason.

    Args:
        names: of the forms that are wanted, in any order; None for all. Eager is always among them.
        device: where they are to run.

    Raises:
        ConfigError: there is no form of such a name; all of them at once.
    """
    known = [form.name for form in FORMS]
    problems = [
        Problem(what=f"there is no form {name!r}", where="forms", fix=nearest_name_hint(name, known))
        for name in names or ()
        if name not in known
    ]
    if problems:
        raise ConfigError(problems)
    usable: list[Form] = []
    left_out: list[LeftOut] = []
    for form in FORMS:
        if names is not None and form.name not in names and form is not FORMS[0]:
            continue
        missing = [package for package in form.packages if find_spec(package) is None]
        if device.type not in form.devices:
            # Nobody misses on a CPU what only a GPU runs, unless it was asked for.
            if names is not None or form.packages == ():
                left_out.append(LeftOut(form=form.name, why=f"runs on {' or '.join(form.devices)}, not {device.type}"))
        elif missing:
            left_out.append(
                LeftOut(
                    form=form.name,
                    why=f"{', '.join(missing)} not installed",
                    fix=f"pip install 'detronome[{form.extra}]'",
                )
            )
        else:
            usable.append(form)
    return usable, left_out

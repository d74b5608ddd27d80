"""Exports of the small models, made once a session: one capture of each serves all forms."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import jaxtyping
import torch
from tests.unit.deploy.tiny_models import CATEGORIES, config_of, model_of

from detronome.config.convert import to_dict
from detronome.deploy.export.description import SUFFIXES, Description, Form, describe, write_description
from detronome.deploy.export.graph import trace
from detronome.deploy.export.onnx import write_onnx
from detronome.deploy.export.openvino import write_openvino
from detronome.deploy.export.torch_program import write_torch_program
from detronome.deploy.exported import ExportedDetector, open_exported

FORMS: tuple[Form, ...] = ("onnx", "openvino", "torch")
CPU = torch.device("cpu")
root = Path()
"""Where they are written: a folder of this session, see `conftest.py`."""


@contextmanager
def without_shape_checks() -> Iterator[None]:
    """Let a graph be captured: sizes are symbols then, which the tests' shape checks do not take for numbers."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


@cache
def folder_of(family: str) -> Path:
    """Return a folder with `model.onnx`, `model.xml`, `model.bin`, `model.pt2` and their descriptions."""
    folder = root / family
    folder.mkdir()
    with without_shape_checks():
        program = trace(model_of(family))
    write_onnx(program, folder / "model.onnx")
    write_openvino(folder / "model.onnx", folder / "model.xml")
    write_torch_program(program, folder / "model.pt2")
    for form in FORMS:
        write_description(folder / f"model{SUFFIXES[form]}", description(family, form, folder))
    return folder


def description(family: str, form: Form, folder: Path) -> Description:
    model = model_of(family)
    file = folder / f"model{SUFFIXES[form]}"
    return describe(
        [file, *([file.with_suffix(".bin")] if form == "openvino" else [])],
        form=form,
        precision="fp32",
        activation=model.activation,
        num_queries=model.num_queries,
        has_masks=family == "panoptic",
        config=to_dict(config_of(family)),
        categories=CATEGORIES,
        metrics={"AP": 0.5, "AP_large": float("nan")},
        step=12,
        origin="",
        self_check=None,
        made_with={},
    )


@cache
def form_of(family: str, form: Form) -> ExportedDetector:
    return open_exported(folder_of(family) / f"model{SUFFIXES[form]}", device=CPU)

"""The form for ONNX Runtime, and for everything else that reads ONNX: one file, the weights inside."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram

from detronome.deploy.export.graph import INPUT_NAMES, OUTPUT_NAMES, quiet_export
from detronome.deploy.export.reasons import reason_of
from detronome.deploy.export.session import Session
from detronome.errors import CheckpointError, ConfigError, MissingExtraError

if TYPE_CHECKING:
    import onnx

__all__ = ["OPSET", "onnx_runs_on", "open_onnx", "require_onnx", "write_onnx"]

OPSET = 18
"""What torch's exporter makes without converting; ONNX Runtime, OpenVINO and TensorRT have read it for years."""


def require_onnx(*, needed_for: str, extra: str = "onnx", runs: bool = False) -> dict[str, str]:
    """Return the versions of the packages that write ONNX, or that run it.

    Args:
        needed_for: names what asks for them.
        extra: of ours, which brings them.
        runs: for running it.

    Raises:
        MissingExtraError: one of them is not installed.
    """
    versions = {}
    for package in ("onnx", "onnxruntime") if runs else ("onnx", "onnxscript"):
        try:
            module = import_module(package)
        except ImportError as error:
            raise MissingExtraError(package, extra=extra, needed_for=needed_for) from error
        versions[package] = str(module.__version__)
    return versions


def write_onnx(program: ExportedProgram, path: Path) -> None:
    """Write a graph as one ONNX file of opset 18, any batch, height and width.

    Args:
        program: as `graph.trace` gives it.
        path: where to.

    Raises:
        ConfigError: the network has an operation that ONNX has not, or is larger than an ONNX file can be (2 GiB).
    """
    num_outputs = len(program.graph_signature.user_outputs)
    with quiet_export(), _quiet("torch.onnx", "onnxscript", "onnx_ir"):
        try:
            torch.onnx.export(
                program,
                (),
                path,
                dynamo=True,
                external_data=False,
                opset_version=OPSET,
                input_names=INPUT_NAMES,
                output_names=OUTPUT_NAMES[:num_outputs],
                verbose=False,
            )
        except (torch.onnx.OnnxExporterError, ValueError) as error:  # ValueError: of protobuf, above 2 GiB
            raise ConfigError(
                f"the network cannot be written as ONNX: {reason_of(error)}",
                where=str(path),
                fix="export it to torch instead: --to torch",
            ) from error


def open_onnx(path: Path, *, device: torch.device) -> Session:
    """Return a session of ONNX Runtime.

    Args:
        path: the file; all of it is read now. One that points to other files is refused: the digest of the file says
            nothing of them, and such paths have led out of their folder before (CVE-2024-27318, CVE-2026-27489).
        device: the CPU, or a CUDA device where the package onnxruntime-gpu is installed.

    Raises:
        MissingExtraError: onnx or onnxruntime is not installed.
        CheckpointError: the file cannot be run, or points to other files.
        ConfigError: the installed ONNX Runtime does not know the device.
    """
    require_onnx(needed_for=f"running {path.name}", runs=True)
    import onnx
    import onnxruntime
    from google.protobuf.message import DecodeError

    content = path.read_bytes()
    try:
        model = onnx.load_model_from_string(content)
    except DecodeError as error:
        raise CheckpointError("this is no ONNX file", where=str(path), fix="export the model again") from error
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in _tensors(model)):
        raise CheckpointError(
            "the file points to weights in other files, which are not read",
            where=str(path),
            fix="use a file as `detronome export` writes it: one file, the weights inside",
        )
    del model
    providers = _providers(device)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(content, options, providers=providers)
    except Exception as error:  # ONNX Runtime has a kind of error for each status, without a common one
        raise CheckpointError(
            f"ONNX Runtime cannot load the file: {reason_of(error)}",
            where=str(path),
            fix="update onnxruntime, or export the model again with the versions installed here",
        ) from error
    return _OnnxSession(session)


class _OnnxSession:
    def __init__(self, session: Any) -> None:
        self._session = session

    def __call__(self, images: Tensor, padding_mask: Tensor) -> tuple[Tensor, ...]:
        arrays = (np.ascontiguousarray(x.cpu().numpy()) for x in (images, padding_mask))
        outputs = self._session.run(None, dict(zip(INPUT_NAMES, arrays, strict=True)))
        return tuple(torch.from_numpy(output).to(images.device) for output in outputs)


def onnx_runs_on(device: torch.device) -> bool:
    """Return whether the installed ONNX Runtime can compute on a device."""
    if device.type != "cuda":
        return device.type == "cpu"
    require_onnx(needed_for="running a .onnx file", runs=True)
    import onnxruntime

    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def _providers(device: torch.device) -> list[Any]:
    if device.type == "cpu":
        return ["CPUExecutionProvider"]
    if onnx_runs_on(device):
        return [("CUDAExecutionProvider", {"device_id": device.index or 0}), "CPUExecutionProvider"]
    raise ConfigError(
        f"the installed ONNX Runtime cannot compute on {device.type}",
        where="device",
        fix="pip install onnxruntime-gpu in place of onnxruntime for a CUDA device, or use --device cpu",
    )


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor of a file: of its graph, of the graphs inside, of its functions."""
    yield from _tensors_of_graph(model.graph)
    for function in model.functions:
        yield from _tensors_of_nodes(function.node)
    for info in model.training_info:
        yield from _tensors_of_graph(info.initialization)
        yield from _tensors_of_graph(info.algorithm)


def _tensors_of_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _tensors_of_nodes(graph.node)


def _tensors_of_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            for graph in (attribute.g, *attribute.graphs):
                yield from _tensors_of_graph(graph)


@contextmanager
def _quiet(*loggers: str) -> Iterator[None]:
    """Keep the exporter's own notices, which are about its steps, out of the log."""
    before = {name: logging.getLogger(name).level for name in loggers}
    for name in loggers:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)

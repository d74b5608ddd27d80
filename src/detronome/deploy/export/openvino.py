"""The form for OpenVINO: its own two files, `.xml` for the graph and `.bin` for the weights."""

from __future__ import annotations

import errno
import threading
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from detronome.deploy.export.graph import INPUT_NAMES
from detronome.deploy.export.session import Session
from detronome.deploy.export.usage_reports import without_usage_reports
from detronome.errors import CheckpointError, ConfigError, MissingExtraError

__all__ = ["open_openvino", "require_openvino", "save_openvino", "write_openvino"]

_EXTRA = "openvino"


def require_openvino(*, needed_for: str) -> dict[str, str]:
    """Return OpenVINO's version.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        with without_usage_reports():
            import openvino
    except ImportError as error:
        raise MissingExtraError("openvino", extra=_EXTRA, needed_for=needed_for) from error
    return {"openvino": str(openvino.__version__)}


def write_openvino(onnx_file: Path, path: Path) -> None:
    """Write an ONNX file as OpenVINO's files, weights in fp32.

    Args:
        onnx_file: as `write_onnx` writes it.
        path: of the `.xml`; the `.bin` goes beside it.

    Raises:
        MissingExtraError: OpenVINO is not installed.
    """
    require_openvino(needed_for="exporting to openvino")
    import openvino

    # Not convert_model: it reports its use to a server.
    model = openvino.Core().read_model(onnx_file)
    save_openvino(model, path)


def save_openvino(model: Any, path: Path) -> None:
    """Write a model of OpenVINO as its two files, weights as they are.

    Raises:
        OSError: it cannot be written; OpenVINO does not say why.
    """
    import openvino

    try:
        openvino.save_model(model, path, compress_to_fp16=False)
    except RuntimeError as error:
        raise OSError(errno.EIO, "OpenVINO cannot write its files", str(path)) from error


def open_openvino(path: Path, *, device: torch.device, precision: Literal["fp32", "bf16"] = "fp32") -> Session:
    """Return a session of OpenVINO on the CPU.

    Args:
        path: of the `.xml`; the `.bin` lies beside it.
        device: the CPU.
        precision: to compute in, where the file leaves that open; only some processors are faster in bf16.

    Raises:
        MissingExtraError: openvino is not installed.
        CheckpointError: the file cannot be run.
        ConfigError: another device than the CPU is asked for.
    """
    require_openvino(needed_for=f"running {path.name}")
    import openvino

    if device.type != "cpu":
        raise ConfigError(
            f"exported to OpenVINO, a model runs on the CPU here, not on {device.type}",
            where="device",
            fix="use --device cpu",
        )
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        # By itself it would choose bfloat16 on newer processors, and the form would not be what its name says.
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
    }
    core = openvino.Core()
    try:
        compiled = core.compile_model(core.read_model(path), "CPU", settings)
    except RuntimeError as error:
        reason = next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
        raise CheckpointError(
            f"OpenVINO cannot load the file: {reason}",
            where=str(path),
            fix="update openvino, or export the model again with the version installed here",
        ) from error
    return _OpenVinoSession(compiled)


class _OpenVinoSession:
    def __init__(self, compiled: Any) -> None:
        self._request = compiled.create_infer_request()
        self._is_free = threading.Lock()
        """A request holds its inputs and outputs: one call at a time."""

    def __call__(self, images: Tensor, padding_mask: Tensor) -> tuple[Tensor, ...]:
        arrays = (np.ascontiguousarray(x.numpy()) for x in (images, padding_mask))
        with self._is_free:
            outputs = self._request.infer(dict(zip(INPUT_NAMES, arrays, strict=True)))
            return tuple(torch.from_numpy(np.array(output)) for output in outputs.values())

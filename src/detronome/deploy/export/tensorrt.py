"""The form for TensorRT: an engine for one kind of GPU, built on it from the ONNX file.

Written from TensorRT's documentation (10.x and later) and not yet run by us on a GPU; the self-check, which every
export goes through, says at once whether an engine is right.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detronome.deploy.export.graph import INPUT_NAMES
from detronome.deploy.export.session import Session
from detronome.errors import CheckpointError, ConfigError, MissingExtraError

__all__ = ["ShapeRange", "open_tensorrt", "require_tensorrt", "write_tensorrt"]

_EXTRA = "tensorrt"
_WORKSPACE_BYTES = 4 * 2**30

ShapeRange = tuple[tuple[int, int, int], tuple[int, int, int], tuple[int, int, int]]
"""(batch, height, width): the smallest, the usual and the largest. An engine runs what lies between, and is fastest at
the usual one."""


def require_tensorrt(*, needed_for: str) -> dict[str, str]:
    """Return TensorRT's version.

    Raises:
        MissingExtraError: it is not installed.
        ConfigError: there is no CUDA device.
    """
    try:
        import tensorrt
    except ImportError as error:
        raise MissingExtraError("tensorrt", extra=_EXTRA, needed_for=needed_for) from error
    if not torch.cuda.is_available():
        raise ConfigError(
            f"{needed_for} needs a CUDA device: TensorRT builds an engine for the GPU it finds, and runs it there",
            where="tensorrt",
            fix="run the command on the machine with the GPU, or export to onnx or openvino",
        )
    return {"tensorrt": str(tensorrt.__version__), "gpu": torch.cuda.get_device_name()}


def write_tensorrt(onnx_file: Path, path: Path, shapes: ShapeRange) -> None:
    """Build an engine for this machine's GPU; takes minutes.

    It computes in fp32, where the GPU has TF32 in that.

    Args:
        onnx_file: as `write_onnx` writes it.
        path: of the engine.
        shapes: that it can run.

    Raises:
        ConfigError: TensorRT cannot build it.
    """
    import tensorrt

    logger = tensorrt.Logger(tensorrt.Logger.ERROR)
    builder = tensorrt.Builder(logger)
    # Later versions know no other networks, and no longer the flag.
    flag = getattr(tensorrt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = tensorrt.OnnxParser(network, logger)
    if not parser.parse(onnx_file.read_bytes()):
        problems = "; ".join(str(parser.get_error(n)) for n in range(parser.num_errors))
        raise ConfigError(f"TensorRT cannot read the network: {problems}", where=str(path), fix="update tensorrt")
    profile = builder.create_optimization_profile()
    images, padding_mask = INPUT_NAMES
    profile.set_shape(images, *((batch, 3, height, width) for batch, height, width in shapes))
    profile.set_shape(padding_mask, *shapes)
    config = builder.create_builder_config()
    config.add_optimization_profile(profile)
    config.set_memory_pool_limit(tensorrt.MemoryPoolType.WORKSPACE, _WORKSPACE_BYTES)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise ConfigError(
            "TensorRT could not build an engine; it has said why above",
            where=str(path),
            fix="free memory of the GPU, update tensorrt, or export to onnx for ONNX Runtime's CUDA provider",
        )
    path.write_bytes(bytes(engine))


def open_tensorrt(path: Path, *, device: torch.device) -> Session:
    """Return a session of TensorRT.

    Args:
        path: the engine. An engine is machine code: run only those that you, or those you trust, have built.
        device: a CUDA device, of the kind that it was built on.

    Raises:
        MissingExtraError: tensorrt is not installed.
        ConfigError: there is no CUDA device, or another one is asked for.
        CheckpointError: the engine is of another version of TensorRT or of another GPU.
    """
    require_tensorrt(needed_for=f"running {path.name}")
    import tensorrt

    if device.type != "cuda":
        raise ConfigError(
            f"exported to TensorRT, a model runs on CUDA, not on {device.type}", where="device", fix="use --device cuda"
        )
    with torch.cuda.device(device):
        runtime = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.ERROR))
        engine = runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise CheckpointError(
                "the engine was built by another version of TensorRT, or for another GPU",
                where=str(path),
                fix="export the model again on this machine",
            )
        return _TensorRtSession(runtime, engine, device)


class _TensorRtSession:
    def __init__(self, runtime: Any, engine: Any, device: torch.device) -> None:
        self._runtime = runtime  # must outlive the engine
        self._engine = engine
        self._device = device
        self._context = engine.create_execution_context()
        self._is_free = threading.Lock()
        """A context holds the addresses of one call."""
        names = [engine.get_tensor_name(n) for n in range(engine.num_io_tensors)]
        self._outputs = [name for name in names if name not in INPUT_NAMES]

    def __call__(self, images: Tensor, padding_mask: Tensor) -> tuple[Tensor, ...]:
        inputs = {
            name: tensor.to(self._device).contiguous()
            for name, tensor in zip(INPUT_NAMES, (images, padding_mask), strict=True)
        }
        context, stream = self._context, torch.cuda.current_stream(self._device)
        with self._is_free, torch.cuda.device(self._device):
            for name, tensor in inputs.items():
                if not context.set_input_shape(name, tuple(tensor.shape)):
                    raise ValueError(f"the engine was not built for {name} of shape {list(tensor.shape)}")
                context.set_tensor_address(name, tensor.data_ptr())
            outputs = []
            for name in self._outputs:
                shape = tuple(context.get_tensor_shape(name))
                outputs.append(torch.empty(shape, dtype=torch.float32, device=self._device))
                context.set_tensor_address(name, outputs[-1].data_ptr())
            if not context.execute_async_v3(stream.cuda_stream):
                raise RuntimeError("TensorRT could not run the engine")
            stream.synchronize()  # the inputs must live until then
        return tuple(output.to(images.device) for output in outputs)

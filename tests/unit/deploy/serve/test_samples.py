"""The samples in docs/serving fit what they are samples for."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import pytest

from detronome.cli.serve import serve

SAMPLES = Path(__file__).resolve().parents[4] / "docs" / "serving"
TYPES = {"TYPE_UINT8": "UINT8", "TYPE_BOOL": "BOOL", "TYPE_FP32": "FLOAT"}


def tensors_of(config: str, block: str) -> dict[str, tuple[str, list[int]]]:
    """Return name, data type and dims of each tensor in a block of a config.pbtxt."""
    (body,) = re.findall(rf"^{block} \[(.*?)^\]", config, flags=re.DOTALL | re.MULTILINE)
    found = re.findall(r'name: "(\w+)"\s+data_type: (\w+)\s+dims: \[([-\d, ]+)\]', body)
    return {name: (kind, [int(size) for size in dims.split(",")]) for name, kind, dims in found}


def test_the_triton_configuration_is_the_exported_graphs(tiny_run: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    from detronome import api

    file = tmp_path / "model.onnx"
    api.export(tiny_run, "onnx", out=file)
    graph = onnx.load(str(file)).graph
    config = (SAMPLES / "triton" / "detronome" / "config.pbtxt").read_text()
    assert 'backend: "onnxruntime"' in config and "dynamic_batching" in config
    for block, values in (("input", graph.input), ("output", graph.output)):
        named = tensors_of(config, block)
        assert list(named) == [value.name for value in values]
        for value in values:
            kind, dims = named[value.name]
            tensor = value.type.tensor_type
            assert onnx.TensorProto.DataType.Name(tensor.elem_type) == TYPES[kind]
            batch, *sizes = tensor.shape.dim
            assert batch.dim_param, "the batch must be free"
            assert len(sizes) == len(dims)
            assert all(dim == -1 or dim == size.dim_value for dim, size in zip(dims, sizes, strict=True))
            assert all(dim == -1 for dim, size in zip(dims, sizes, strict=True) if size.dim_param)


def test_the_dockerfile_starts_a_server_that_there_is() -> None:
    text = (SAMPLES / "Dockerfile").read_text()
    words = [
        word for line in re.findall(r"^(?:ENTRYPOINT|CMD) (\[.*\])$", text, re.MULTILINE) for word in json.loads(line)
    ]
    assert words[:2] == ["detronome", "serve"] and words[-1] == "/model"
    parameters = {f"--{name.replace('_', '-')}" for name in inspect.signature(serve).parameters}
    assert {word for word in words if word.startswith("--")} <= parameters
    assert "EXPOSE 8000" in text and words[words.index("--port") + 1] == "8000"

"""INT8 of exported graphs: weights and activations in 8 bits, calibrated on the user's images.

Convolutions and matrix products with weights, where nearly all the time goes, are computed in integers. What scores,
places and chooses objects stays in float: the heads, and what computes where a map is read. It is little work, and an
error in it is seen at once. It is found by its place in the graph, so that one rule holds for every family.
`docs/int8.md` has the figures.
"""

from __future__ import annotations

import io
import logging
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from detronome.deploy.export.graph import INPUT_NAMES
from detronome.deploy.export.onnx import require_onnx
from detronome.deploy.export.openvino import require_openvino, save_openvino
from detronome.deploy.export.usage_reports import without_usage_reports
from detronome.errors import DataError, MissingExtraError

__all__ = ["CalibrationBatch", "quantize_onnx", "quantize_openvino", "require_nncf"]

CalibrationBatch = tuple[UInt8[np.ndarray, "B 3 H W"], Bool[np.ndarray, "B H W"]]
"""Images and padding mask, as a network is given them."""

_WEIGHTED = frozenset({"Conv", "Gemm", "MatMul", "Convolution", "GroupConvolution"})
"""Operations with weights, by their names in ONNX and in OpenVINO."""
_NORMS = frozenset({"LayerNormalization", "GroupNormalization", "InstanceNormalization", "MVN"})
"""A head begins behind the last norm before it."""
_PLACES_INPUT = {"GridSample": 1, "Gather": 1, "GatherElements": 1, "GatherND": 1}
"""Operations that read a tensor at computed places: the input that holds the places."""


@dataclass(frozen=True)
class _Graph:
    """The operations of a network in either format."""

    kinds: Mapping[str, str]
    """Kind of each operation, by its name."""
    sources: Mapping[str, Sequence[str]]
    """The operation that makes each input; empty where none does."""
    ends: Sequence[str]
    """The operations that make the network's outputs."""

    def float_operations(self) -> list[str]:
        """Return the weighted operations between outputs, or places to read at, and the norms before them."""
        places = [self.sources[name][_PLACES_INPUT[kind]] for name, kind in self.kinds.items() if kind in _PLACES_INPUT]
        waiting, seen = [*self.ends, *places], {""}
        found = []
        while waiting:
            name = waiting.pop()
            if name in seen or self.kinds[name] in _NORMS:
                continue
            seen.add(name)
            if self.kinds[name] in _WEIGHTED:
                found.append(name)
            waiting.extend(self.sources[name])
        return sorted(found)


def require_nncf() -> dict[str, str]:
    """Return NNCF's version.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        with without_usage_reports(), _quiet():
            import nncf
    except ImportError as error:
        raise MissingExtraError("nncf", extra="int8", needed_for="INT8 with OpenVINO") from error
    return {"nncf": str(nncf.__version__)}


def quantize_onnx(fp32_file: Path, out: Path, batches: Iterable[CalibrationBatch]) -> None:
    """Write an INT8 copy of an ONNX file, for ONNX Runtime: pairs of QuantizeLinear and DequantizeLinear.

    Args:
        fp32_file: as exported, in float32; stays as it is.
        out: the file to write.
        batches: images like those to come, e.g. 100 to 300 of the training split, resized and padded as in use; sizes
            may differ from batch to batch. All are kept in memory.

    Raises:
        DataError: there is no image.
        MissingExtraError: ONNX or ONNX Runtime is not installed.
    """
    inputs = _calibration_inputs(batches)
    require_onnx(needed_for="INT8 with ONNX Runtime", runs=True)
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._inputs = iter(inputs)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._inputs, None)

    with tempfile.TemporaryDirectory(prefix="detronome-int8-") as folder, _quiet():
        # Folds constants, so that convolutions find their weights.
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(fp32_file, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            out,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "MatMul", "Gemm"],
            nodes_to_exclude=_onnx_graph(onnx.load(prepared, load_external_data=False)).float_operations(),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"MatMulConstBOnly": True},
        )


def quantize_openvino(fp32_file: Path, out: Path, batches: Iterable[CalibrationBatch]) -> None:
    """Write an INT8 copy of an OpenVINO model.

    Args:
        fp32_file: the .xml as exported, its .bin beside it; both stay as they are.
        out: the .xml to write; its .bin is written beside it.
        batches: see `quantize_onnx`.

    Raises:
        DataError: there is no image.
        MissingExtraError: OpenVINO or NNCF is not installed.
    """
    inputs = _calibration_inputs(batches)
    require_openvino(needed_for="INT8 with OpenVINO")
    require_nncf()
    import nncf
    import openvino
    from openvino.passes import ConstantFolding, Manager

    with _quiet():
        model = openvino.Core().read_model(fp32_file)
        # Attention's three projections are slices of one weight: as they stand, they are not recognised as weights.
        folding = Manager()
        folding.register_pass(ConstantFolding())
        folding.run_passes(model)
        quantized = nncf.quantize(
            model,
            nncf.Dataset(inputs),
            subset_size=len(inputs),
            model_type=nncf.ModelType.TRANSFORMER,
            preset=nncf.QuantizationPreset.MIXED,
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                # SmoothQuant off: it moves ranges from activations into weights, and cost up to 0.06 AP (docs/int8.md).
                smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=-1, convolution=-1)
            ),
            ignored_scope=nncf.IgnoredScope(names=_openvino_graph(model).float_operations()),
        )
        save_openvino(quantized, out)


def _calibration_inputs(batches: Iterable[CalibrationBatch]) -> list[dict[str, np.ndarray]]:
    inputs = [dict(zip(INPUT_NAMES, batch, strict=True)) for batch in batches if len(batch[0])]
    if not inputs:
        raise DataError(
            "INT8 needs images to find the range of each activation, and there are none",
            where="calibration",
            fix="give a data folder with images like those that the detector will see",
        )
    return inputs


def _onnx_graph(model: Any) -> _Graph:
    maker = {output: node.name for node in model.graph.node for output in node.output}
    return _Graph(
        kinds={node.name: node.op_type for node in model.graph.node},
        sources={node.name: [maker.get(name, "") for name in node.input] for node in model.graph.node},
        ends=[maker.get(output.name, "") for output in model.graph.output],
    )


def _openvino_graph(model: Any) -> _Graph:
    operations = model.get_ordered_ops()
    return _Graph(
        kinds={node.get_friendly_name(): node.get_type_name() for node in operations},
        sources={
            node.get_friendly_name(): [value.get_node().get_friendly_name() for value in node.input_values()]
            for node in operations
        },
        ends=[result.get_friendly_name() for result in model.get_results()],
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep to itself what the quantisers say of their own insides: in the log, as warnings and on stdout."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"), redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(previous)

"""INT8 of every family on both runtimes: near, smaller, the heads in float; and what it asks for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import openvino
import pytest
import torch
from tests.unit.deploy.export.forms import CPU, folder_of, form_of
from tests.unit.deploy.tiny_models import CATEGORIES, FAMILIES, picture
from torch import Tensor

import detronome as dt
from detronome.data.scenes import write_scenes
from detronome.deploy.export.int8 import CalibrationBatch, quantize_onnx, quantize_openvino
from detronome.deploy.export.onnx import open_onnx
from detronome.deploy.export.openvino import open_openvino
from detronome.deploy.export.session import Session
from detronome.deploy.export.usage_reports import without_usage_reports
from detronome.errors import DataError, MissingExtraError
from detronome.runtime.files import sha256_of

Quantize = Callable[..., None]
RUNTIMES: dict[str, tuple[str, Quantize, Callable[..., Session]]] = {
    "onnx": ("model.onnx", quantize_onnx, open_onnx),
    "openvino": ("model.xml", quantize_openvino, open_openvino),
}
ON_BOTH = pytest.mark.parametrize("runtime", RUNTIMES)


def batch(*sizes_hw: tuple[int, int], seed: int = 0) -> CalibrationBatch:
    """Return pictures of several sizes, padded to the largest."""
    height, width = (max(side) for side in zip(*sizes_hw, strict=True))
    images = np.zeros((len(sizes_hw), 3, height, width), np.uint8)
    padding_mask = np.ones((len(sizes_hw), height, width), bool)
    for b, (h, w) in enumerate(sizes_hw):
        images[b, :, :h, :w] = picture(h, w, seed + b).transpose(2, 0, 1)
        padding_mask[b, :h, :w] = False
    return images, padding_mask


def scores_and_boxes(outputs: tuple[Tensor, ...], activation: str) -> np.ndarray:
    """Return the queries of all images, the most confident of each first, as class probabilities and box."""
    logits, boxes = outputs[:2]
    scores = logits.softmax(-1)[..., :-1] if activation == "softmax" else logits.sigmoid()
    queries = torch.cat((scores, boxes), dim=-1)
    order = scores.amax(-1).argsort(descending=True)
    return queries.gather(1, order[..., None].expand_as(queries)).numpy()


def quick(family: str) -> object:
    return family if family in ("detr", "nano") else pytest.param(family, marks=pytest.mark.slow)


@ON_BOTH
@pytest.mark.parametrize("family", [quick(family) for family in FAMILIES])
def test_int8_is_near_and_leaves_the_original_alone(runtime: str, family: str, tmp_path: Path) -> None:
    name, quantize, open_form = RUNTIMES[runtime]
    original = folder_of(family) / name
    digest = sha256_of(original)
    seen = [batch((64, 96)), batch((96, 64), (64, 80)), batch((128, 128), seed=3)]
    quantize(original, tmp_path / name, iter(seen))
    assert sha256_of(original) == digest
    fp32, int8 = form_of(family, "onnx"), open_form(tmp_path / name, device=CPU)
    for images, padding_mask in (*seen, batch((80, 112), (96, 96), (64, 64), seed=7)):
        tensors = torch.from_numpy(images), torch.from_numpy(padding_mask)
        ours, output = int8(*tensors), fp32(*tensors)
        theirs = (output.pred_logits, output.pred_boxes)
        assert [tuple(x.shape) for x in ours[:2]] == [tuple(x.shape) for x in theirs]
        apart = np.abs(scores_and_boxes(ours, fp32.activation) - scores_and_boxes(theirs, fp32.activation))
        assert 0 < np.median(apart) < 0.1
        if family == "detr":
            assert apart.max() < 0.25  # its queries are learned: none changes its place in the image


@ON_BOTH
def test_weights_take_a_byte_each(runtime: str, tmp_path: Path) -> None:
    name, quantize, _ = RUNTIMES[runtime]
    quantize(folder_of("detr") / name, tmp_path / name, [batch((64, 64))])
    weights = Path(name).with_suffix(".bin" if runtime == "openvino" else ".onnx")
    assert (tmp_path / weights).stat().st_size < 0.3 * (folder_of("detr") / weights).stat().st_size


def onnx_float_widths(file: Path) -> list[int]:
    """Return the numbers of outputs of the matrix products whose weights stayed float."""
    model = onnx.load(file)
    shapes = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    return sorted(
        shapes[node.input[1]][-1]
        for node in model.graph.node
        if node.op_type in ("MatMul", "Gemm") and node.input[1] in shapes
    )


def openvino_float_widths(file: Path) -> list[int]:
    model = openvino.Core().read_model(file)
    found = []
    for node in model.get_ordered_ops():
        weights = node.input_value(1).get_node() if node.get_type_name() == "MatMul" else None
        if weights is not None and weights.get_type_name() == "Constant":
            found.append(weights.shape[0 if node.get_attributes()["transpose_b"] else 1])
    return sorted(found)


@ON_BOTH
def test_the_heads_stay_float_and_nothing_else(runtime: str, tmp_path: Path) -> None:
    name, quantize, _ = RUNTIMES[runtime]
    widths = {"onnx": onnx_float_widths, "openvino": openvino_float_widths}[runtime]
    quantize(folder_of("detr") / name, tmp_path / name, [batch((64, 64))])
    heads = [len(CATEGORIES) + 1, 32, 32, 4]
    # NNCF sees that the first attention among learned queries is the same for every image, and leaves it.
    constant = [64, 32, 32, 32] if runtime == "openvino" else []
    assert widths(tmp_path / name) == sorted(heads + constant)
    # Two decoder layers refine boxes and place points; scores and boxes of all cells choose the queries.
    quantize(folder_of("nano") / name, tmp_path / f"nano-{name}", [batch((64, 64))])
    found = widths(tmp_path / f"nano-{name}")
    assert found.count(4) == 3 and found.count(len(CATEGORIES)) >= 2


@ON_BOTH
@pytest.mark.parametrize("batches", [[], [(np.zeros((0, 3, 64, 64), np.uint8), np.zeros((0, 64, 64), bool))]])
def test_no_image_to_calibrate_on(runtime: str, batches: list[CalibrationBatch], tmp_path: Path) -> None:
    name, quantize, _ = RUNTIMES[runtime]
    with pytest.raises(DataError, match="there are none"):
        quantize(tmp_path / "absent" / name, tmp_path / name, batches)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("runtime", "package", "extra"),
    [("onnx", "onnxruntime", "onnx"), ("openvino", "openvino", "openvino"), ("openvino", "nncf", "int8")],
)
def test_a_missing_package_is_named(
    runtime: str, package: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    name, quantize, _ = RUNTIMES[runtime]
    with pytest.raises(MissingExtraError, match=rf"(?s){package}.*detronome\[{extra}\]"):
        quantize(folder_of("nano") / name, tmp_path / name, [batch((64, 64))])


@ON_BOTH
def test_nothing_is_said(runtime: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    name, quantize, _ = RUNTIMES[runtime]
    quantize(folder_of("nano") / name, tmp_path / name, [batch((64, 64))])
    assert capfd.readouterr().out == ""


def test_no_usage_report_can_be_sent() -> None:
    before = sys.modules.get("openvino_telemetry")
    with without_usage_reports(), pytest.raises(ImportError):
        import openvino_telemetry  # noqa: F401
    assert sys.modules.get("openvino_telemetry") is before


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """The demo's run, and its scenes: with a quarter of them AP is only 0.09."""
    root = tmp_path_factory.mktemp("scenes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETRONOME_CACHE", str(root / "cache"))
        write_scenes(root / "data", num_train=4000, num_val=300)
        yield dt.train(root / "data", model="demo", epochs=8, out=root / "run").folder, root / "data"


@pytest.mark.slow
@pytest.mark.timeout(3600)
@ON_BOTH
def test_a_trained_detector_loses_at_most_a_hundredth_of_ap(
    runtime: str, trained: tuple[Path, Path], tmp_path: Path
) -> None:
    run, data = trained
    file = tmp_path / RUNTIMES[runtime][0]
    model = dt.load(run)
    dt.export(model, runtime, out=file, int8=True, data=data)  # type: ignore[arg-type]
    ap, int8_ap = (dt.evaluate(m, data).numbers["AP"] for m in (model, dt.load(file)))
    assert ap > 0.3
    assert int8_ap >= ap - 0.01

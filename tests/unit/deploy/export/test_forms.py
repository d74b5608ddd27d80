"""Every form of every family says what the model says, for any batch and size, with padding and without."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.unit.deploy.export.forms import CPU, FORMS, folder_of, form_of, without_shape_checks
from tests.unit.deploy.tiny_models import CATEGORIES, FAMILIES, assert_close, config_of, model_of, picture
from torch import Tensor

from detronome.deploy.export.description import Form, description_of
from detronome.deploy.export.graph import INPUT_NAMES, OUTPUT_NAMES, trace
from detronome.deploy.export.onnx import OPSET
from detronome.deploy.export.openvino import write_openvino
from detronome.deploy.export.self_check import compare_outputs
from detronome.deploy.export.torch_program import write_torch_program
from detronome.deploy.exported import ExportedDetector, default_device
from detronome.deploy.predictor import build_predictor
from detronome.errors import CheckpointError
from detronome.models.detector import Detector
from detronome.types import ModelOutput

Sizes = list[tuple[int, int]]
QUICK = ("detr", "nano", "rtdetr")
"""The others' exports take minutes together."""
BY_FAMILY = pytest.mark.parametrize(
    "family", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
BATCHES: list[Sizes] = [
    [(64, 64)],
    [(65, 97)],
    [(40, 130), (64, 64)],
    [(101, 33), (57, 77), (101, 77)],
    [(96, 64)] * 5,
]


def batch_of(sizes: Sizes) -> tuple[Tensor, Tensor]:
    """Return pictures of these sizes, padded to the largest height and width."""
    height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
    images = torch.zeros(len(sizes), 3, height, width, dtype=torch.uint8)
    padding_mask = torch.ones(len(sizes), height, width, dtype=torch.bool)
    for b, (h, w) in enumerate(sizes):
        images[b, :, :h, :w] = torch.from_numpy(picture(h, w, 31 * b + h)).permute(2, 0, 1)
        padding_mask[b, :h, :w] = False
    return images, padding_mask


def run(detector: Detector, batch: tuple[Tensor, Tensor]) -> ModelOutput:
    with torch.inference_mode():
        output: ModelOutput = detector(*batch)
    return output


@pytest.mark.parametrize("form", FORMS)
@BY_FAMILY
def test_same_outputs(family: str, form: Form) -> None:
    """Although the graph was captured from a batch of two without padding."""
    model, exported = model_of(family), form_of(family, form)
    for sizes in BATCHES:
        batch = batch_of(sizes)
        ours, theirs = run(model, batch), run(exported, batch)
        assert theirs.pred_logits.shape == ours.pred_logits.shape
        assert theirs.pred_logits.dtype == torch.float32
        difference, _ = compare_outputs(model, exported, [batch])
        assert max(difference.largest_score, difference.largest_box) < 1e-4, (sizes, difference)
        if exported.activation == "softmax":  # learned queries keep their places
            torch.testing.assert_close(theirs.pred_logits, ours.pred_logits, atol=1e-3, rtol=1e-4)
            torch.testing.assert_close(theirs.pred_boxes, ours.pred_boxes, atol=1e-5, rtol=0)
        assert (theirs.masks is None) == (ours.masks is None) == (family != "panoptic")
        if ours.masks is not None and theirs.masks is not None:
            assert theirs.masks.padded_size_hw == ours.masks.padded_size_hw
            image, query = torch.tensor([len(sizes) - 1, 0]), torch.tensor([1, 3])
            with torch.inference_mode():  # masks are made when they are asked for
                every, chosen = ours.masks.all(), ours.masks.of(image, query)
            torch.testing.assert_close(theirs.masks.all(), every, atol=1e-3, rtol=1e-4)
            torch.testing.assert_close(theirs.masks.of(image, query), chosen, atol=1e-3, rtol=1e-4)


@BY_FAMILY
@given(sizes=st.lists(st.tuples(st.integers(33, 150), st.integers(33, 150)), min_size=1, max_size=3))
@settings(max_examples=8)
def test_any_batch_and_size(family: str, sizes: Sizes) -> None:
    batch = batch_of(sizes)
    difference, masks = compare_outputs(model_of(family), form_of(family, "onnx"), [batch])
    assert max(difference.median_score, difference.median_box) < 1e-4
    assert masks is None or masks < 1e-3


@BY_FAMILY
def test_a_predictor_takes_every_form(family: str) -> None:
    config = config_of(family)
    images = [picture(70, 50, 0), picture(64, 64, 1), picture(40, 90, 2)]
    expected = build_predictor(config, model_of(family), CATEGORIES, CPU).predict(images)
    for form in FORMS:
        found = build_predictor(config, form_of(family, form), CATEGORIES, CPU).predict(images)
        for one, other in zip(found, expected, strict=True):
            assert_close(one, other)


def test_the_onnx_file_is_one_file_that_says_what_it_takes() -> None:
    model = onnx.load(folder_of("detr") / "model.onnx", load_external_data=False)
    onnx.checker.check_model(model)
    assert [(one.domain, one.version) for one in model.opset_import if one.domain == ""] == [("", OPSET)]
    assert tuple(one.name for one in model.graph.input) == INPUT_NAMES
    assert tuple(one.name for one in model.graph.output) == OUTPUT_NAMES[:2]
    kinds = [one.type.tensor_type.elem_type for one in model.graph.input]
    assert kinds == [onnx.TensorProto.UINT8, onnx.TensorProto.BOOL]
    images = model.graph.input[0].type.tensor_type.shape.dim
    assert [bool(one.dim_param) for one in images] == [True, False, True, True]
    norms = {"BatchNormalization"} & {node.op_type for node in model.graph.node}
    assert not norms, "folded into the convolutions"


@pytest.mark.parametrize(("family", "size_hw"), [("detr", (64, 80)), ("detr", (297, 200)), ("nano", (101, 300))])
def test_some_lines_without_this_library(family: str, size_hw: tuple[int, int], tmp_path: Path) -> None:
    """As docs/export.md has them, on images whose sides do not scale to whole pixels."""
    text = (Path(__file__).parents[4] / "docs" / "export.md").read_text(encoding="utf-8")
    code = text.partition("```python\n# without Detronome\n")[2].partition("```")[0]
    config = replace(config_of(family), data=replace(config_of(family).data, buckets=()))
    file = folder_of(family) / "model.onnx"
    description = json.loads(description_of(file).read_text(encoding="utf-8"))
    assert description["config"]["augment"]["eval_size"] == config.augment.eval_size
    photo = tmp_path / "photo.png"
    pixels = picture(*size_hw, 3)
    Image.fromarray(pixels).save(photo)
    for name, path in {"model.onnx": str(file), "photo.jpg": str(photo)}.items():
        assert name in code
        code = code.replace(name, path)
    space: dict[str, Any] = {}
    exec(code, space)
    (expected,) = build_predictor(config, model_of(family), CATEGORIES, CPU).predict([pixels])
    found = space["found"]
    assert len(found) == len(expected) >= 6
    np.testing.assert_allclose([score for _, score, _ in found], expected.scores, atol=1e-4)
    by_id = CATEGORIES.by_id
    assert [name for name, _, _ in found] == [by_id[int(label)] for label in expected.labels]


@pytest.mark.parametrize("form", FORMS)
def test_images_with_fewer_cells_than_queries(form: Form) -> None:
    """They give fewer queries, as with the model itself; torch's program says that it cannot."""
    batch = batch_of([(8, 16)])
    expected = run(model_of("nano"), batch)
    assert expected.pred_boxes.shape[1] == 2 < model_of("nano").num_queries
    if form == "torch":
        with pytest.raises(CheckpointError, match="cannot run on 1 images of 8x16 pixels"):
            run(form_of("nano", form), batch)
    else:
        found = run(form_of("nano", form), batch)
        torch.testing.assert_close(found.pred_boxes, expected.pred_boxes, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at alloc_cpu.cpp:1] . DefaultCPUAllocator: can't allocate memory"),
        Exception("[ONNXRuntimeError] : 1 : FAIL : Failed to allocate memory for requested buffer of size 64000000"),
        RuntimeError("Exception from src/core.cpp:1:\nstd::bad_alloc"),
    ],
)
def test_a_batch_without_room_in_memory_is_cut(error: Exception) -> None:
    inner = form_of("nano", "onnx")

    def session(images: Tensor, padding_mask: Tensor) -> tuple[Tensor, ...]:
        if len(images) > 1:
            raise error
        return inner._session(images, padding_mask)

    cut = ExportedDetector(session, inner.description, inner.path)
    images = [picture(64, 64, seed) for seed in range(3)]
    found = build_predictor(config_of("nano"), cut, CATEGORIES, CPU).predict(images)
    assert [len(one) for one in found] == [
        len(build_predictor(config_of("nano"), inner, CATEGORIES, CPU).predict([image])[0]) for image in images
    ]


@pytest.mark.parametrize("form", FORMS)
def test_it_computes_in_its_own_precision(form: Form) -> None:
    """Although a run in bf16 is evaluated in that."""
    batch = batch_of([(64, 64)])
    expected = run(form_of("nano", form), batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = run(form_of("nano", form), batch)
    torch.testing.assert_close(found.pred_logits, expected.pred_logits, atol=1e-4, rtol=0)


def test_without_a_named_device_a_form_runs_where_its_runtime_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert default_device("onnx") == default_device("openvino") == CPU  # the installed ONNX Runtime knows no CUDA
    assert default_device("torch").type == default_device("tensorrt").type == "cuda"


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    with without_shape_checks():
        program = trace(model_of("nano"))
    with pytest.raises(OSError, match="No space left"):  # torch's own writer would end the process
        write_torch_program(program, Path("/dev/full"))
    (tmp_path / "model.bin").symlink_to("/dev/full")
    with pytest.raises(OSError, match="OpenVINO cannot write"):
        write_openvino(folder_of("nano") / "model.onnx", tmp_path / "model.xml")


def test_it_stays_in_eval_mode() -> None:
    exported = form_of("nano", "onnx")
    assert not exported.eval().training
    with pytest.raises(CheckpointError, match="cannot be trained"):
        exported.train()

"""The optimised form of a detector: the same outputs, and the detector it was made from untouched."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.unit.deploy.tiny_models import FAMILIES, model_of, picture
from torch import Tensor

from detronome.deploy.optimize import OptimizedDetector, optimized
from detronome.models.layers.packed import PackedConv2d, PackedLinear
from detronome.ops import onednn
from detronome.types import ModelOutput

IS_CHECKED = os.environ.get("DETRONOME_SHAPE_CHECKS") != "off"
needs_onednn = pytest.mark.skipif(not onednn.is_available(torch.float32), reason="no oneDNN operators here")
needs_bf16 = pytest.mark.skipif(not onednn.is_available(torch.bfloat16), reason="no oneDNN operators in bf16 here")


def batch(sizes: list[tuple[int, int]], padded: tuple[int, int] = (64, 96)) -> tuple[Tensor, Tensor]:
    images = torch.zeros(len(sizes), 3, *padded, dtype=torch.uint8)
    padding_mask = torch.ones(len(sizes), *padded, dtype=torch.bool)
    for b, (height, width) in enumerate(sizes):
        images[b, :, :height, :width] = torch.from_numpy(picture(height, width, b)).permute(2, 0, 1)
        padding_mask[b, :height, :width] = False
    return images, padding_mask


BATCHES = [batch([(64, 96)]), batch([(40, 96), (64, 96), (64, 50)]), batch([(64, 64)], (64, 64)), batch([(64, 96)])]
"""Without and with padding, of several shapes; the first comes again after the others."""


def outputs(model: torch.nn.Module, images: Tensor, padding_mask: Tensor) -> ModelOutput:
    with torch.inference_mode():
        output: ModelOutput = model(images, padding_mask)
    return output


@torch.inference_mode()  # masks are computed when asked for
def assert_agree(ours: ModelOutput, theirs: ModelOutput, *, tolerance: float) -> None:
    torch.testing.assert_close(ours.pred_logits, theirs.pred_logits, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(ours.pred_boxes, theirs.pred_boxes, rtol=tolerance, atol=tolerance)
    assert ours.pred_logits.dtype == ours.pred_boxes.dtype == torch.float32
    assert (ours.pred_masks is None) == (theirs.pred_masks is None)
    if ours.pred_masks is not None and theirs.pred_masks is not None:
        torch.testing.assert_close(ours.pred_masks, theirs.pred_masks, rtol=tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("packs", [pytest.param(True, marks=needs_onednn), False])
def test_outputs_are_those_of_the_detector(family: str, packs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not packs:
        monkeypatch.setattr(onednn, "is_available", lambda dtype: False)
    model = model_of(family)
    fast = optimized(model)
    assert any(isinstance(module, PackedConv2d) for module in fast.modules()) == packs
    for images, padding_mask in BATCHES:
        assert_agree(outputs(fast, images, padding_mask), outputs(model, images, padding_mask), tolerance=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_norm_is_left_behind_a_convolution_and_the_detector_keeps_all_it_had(family: str) -> None:
    model = model_of(family)
    before = copy.deepcopy(model.state_dict())
    needs_gradient = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    fast = optimized(model)
    kinds = {type(module).__name__ for name, module in fast.named_modules() if name != "network.fuse.0"}
    assert not kinds & {"BatchNorm2d", "FrozenBatchNorm2d"}
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == needs_gradient


@pytest.mark.parametrize("family", ["detr", "panoptic", "rtdetr", "dfine", pytest.param("nano", marks=needs_bf16)])
def test_in_bf16_heads_keep_fp32(family: str) -> None:
    model = model_of(family)
    fast = optimized(model, precision="bf16")
    images, padding_mask = BATCHES[1]
    ours, theirs = outputs(fast, images, padding_mask), outputs(model, images, padding_mask)
    assert ours.pred_logits.dtype == ours.pred_boxes.dtype == torch.float32
    heads = {m.dtype for name, m in fast.named_modules() if "embed" in name and isinstance(m, PackedLinear)}
    assert heads <= {torch.float32}
    if family in ("detr", "panoptic"):  # the others' queries may be other cells of the map
        assert_agree(ours, theirs, tolerance=0.3)
    # Not what it was before, or bf16 is nothing but a word.
    assert not torch.equal(ours.pred_logits, theirs.pred_logits)


def test_it_stays_in_eval_mode() -> None:
    fast = optimized(copy.deepcopy(model_of("detr")).train())
    assert not any(module.training for module in fast.modules())
    with pytest.raises(AssertionError, match="cannot be trained"):
        fast.train()


@needs_bf16
def test_a_copy_in_bf16_holds_its_weights_in_half_the_bytes() -> None:
    fast = optimized(model_of("detr"), precision="bf16")
    assert {m.weight.dtype for m in fast.modules() if isinstance(m, PackedConv2d)} == {torch.bfloat16}
    trunk = [m for name, m in fast.named_modules() if "transformer" in name and isinstance(m, PackedLinear)]
    assert {m.dtype for m in trunk} == {torch.bfloat16}


@pytest.mark.slow
@pytest.mark.skipif(not IS_CHECKED, reason="this is that process")
@pytest.mark.timeout(3600)
def test_compiled_in_a_process_without_shape_checks() -> None:
    """The compiler does not understand the functions that shape checks make."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "slow", __file__]
    environment = {**os.environ, "DETRONOME_SHAPE_CHECKS": "off"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout[-5000:]


@pytest.mark.slow
@pytest.mark.skipif(IS_CHECKED, reason="in a process of its own")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("family", ["detr", "nano"])
def test_compiled_outputs_are_those_of_the_detector(family: str) -> None:
    failures: list[str] = []
    fast = optimized(model_of(family), compiled=True, on_failure=failures.append)
    assert isinstance(fast, OptimizedDetector)
    for images, padding_mask in BATCHES:
        assert_agree(
            outputs(fast, images, padding_mask), outputs(model_of(family), images, padding_mask), tolerance=1e-4
        )
    assert not failures

"""A compiled detector is the detector, only faster; the compiler's failure is told."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from tests.faults.fault_injection import ModuleFault, injected
from tests.unit.engine.test_diagnosis import batch_of, diagnosis_of
from tests.unit.engine.trainers import tiny_trainer
from torch import Tensor, fx
from torch._dynamo import lookup_backend
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_compiler

from detronome.config.convert import apply_overrides
from detronome.config.presets import preset
from detronome.config.schema import ActivationCheckpointing, DetrConfig, LossConfig, ModelConfig, NanoConfig
from detronome.engine.compilation import compile_detectors
from detronome.engine.ema import ModelEma
from detronome.engine.events import Event, RunWarned
from detronome.engine.recovery import compute_in_fp32
from detronome.engine.resolve import check_consistency
from detronome.errors import ConfigError
from detronome.losses.build import build_criterion
from detronome.models.build import build_model
from detronome.models.detector import Detector

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's compiler looks at everything, and so warns of itself

IS_CHECKED = os.environ.get("DETRONOME_SHAPE_CHECKS") != "off"
plain = pytest.mark.skipif(IS_CHECKED, reason="runs in a process of its own")

FAMILIES: dict[str, ModelConfig] = {
    "detr": DetrConfig(
        backbone="resnet18",
        backbone_weights="none",
        backbone_norm="trainable",
        frozen_stages=2,
        hidden_dim=16,
        num_heads=2,
        ffn_dim=32,
        num_encoder_layers=1,
        num_decoder_layers=1,
        num_queries=5,
        dropout=0.0,
    ),
    "nano": NanoConfig(
        widths=(16, 16, 32),
        depths=(1, 1, 1),
        hidden_dim=16,
        num_heads=2,
        ffn_dim=16,
        num_decoder_layers=1,
        num_queries=6,
        denoising_groups=1,
    ),
}


@pytest.mark.skipif(not IS_CHECKED, reason="this is that process")
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("mark", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_in_a_process_without_shape_checks(mark: str) -> None:
    """The other tests of this file: the compiler does not understand the functions that shape checks make."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", mark, __file__]
    environment = {**os.environ, "DETRONOME_SHAPE_CHECKS": "off"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert done.returncode == 0, done.stdout[-5000:]


@pytest.fixture(autouse=True)
def _forget_graphs() -> None:
    torch.compiler.reset()


def refuse(reason: str) -> None:
    raise AssertionError(reason)


def let_inductor(compile_graph: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "torch._dynamo.lookup_backend", lambda name: compile_graph if name == "inductor" else lookup_backend(name)
    )


def built(family: str, part: ActivationCheckpointing = "none") -> Detector:
    torch.manual_seed(0)
    return build_model(FAMILIES[family], 3, checkpoint_activations=part).train()


def step(model: Detector) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Return the loss, the gradients and the statistics of two micro-batches of different sizes."""
    torch.manual_seed(1)
    classification = "softmax" if isinstance(model, type(built("detr"))) else "quality"
    criterion = build_criterion(LossConfig(classification=classification))  # type: ignore[arg-type]
    total = torch.zeros(())
    for part in (batch_of((2, 0, 1)).parts[0], batch_of((1, 3)).parts[0]):
        output = model(part.images, part.padding_mask, part.targets)
        loss = criterion.total(criterion(output, part.targets))
        loss.backward()
        total += loss.detach()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return total, gradients, {name: buffer.clone() for name, buffer in model.named_buffers()}


def assert_same_step(compiled: Detector, eager: Detector) -> None:
    actual, expected = step(compiled), step(eager)
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-5, atol=0)
    assert actual[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        difference = (actual[1][name] - gradient).norm()
        assert difference <= 1e-3 * gradient.norm() + 1e-5, name
    for name, buffer in expected[2].items():
        torch.testing.assert_close(actual[2][name], buffer, rtol=1e-4, atol=1e-5)


@plain
@pytest.mark.parametrize(
    ("family", "part"),
    [
        ("nano", "all"),
        pytest.param("nano", "none", marks=pytest.mark.slow),
        pytest.param("detr", "none", marks=pytest.mark.slow),
        pytest.param("detr", "all", marks=pytest.mark.slow),
    ],
)
def test_a_compiled_step_is_the_step(family: str, part: ActivationCheckpointing) -> None:
    model = built(family, part)
    compile_detectors([model], on_failure=refuse, backend="aot_eager")
    assert_same_step(model, built(family))


@plain
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_through_torchs_own_compiler_is_the_step(family: str) -> None:
    model = built(family, "backbone")
    compile_detectors([model], on_failure=refuse)
    assert_same_step(model, built(family))


def test_the_oldest_torch_can_compile_too(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []

    def compile_as_of_torch_2_11(
        model: Callable[..., object],
        *,
        fullgraph: bool = False,
        dynamic: bool | None = None,
        backend: object = "inductor",
        mode: str | None = None,
        options: dict[str, object] | None = None,
        disable: bool = False,
    ) -> Callable[..., object]:
        asked.append({"dynamic": dynamic, "backend": backend})
        return model

    monkeypatch.setattr(torch, "compile", compile_as_of_torch_2_11)
    compile_detectors([built("nano")], on_failure=refuse)
    assert asked and torch._dynamo.config.recompile_limit == 64


@plain
@pytest.mark.parametrize("family", FAMILIES)
def test_names_copies_and_hooks_do_not_notice(family: str) -> None:
    model = built(family)
    names, children = list(model.state_dict()), [name for name, _ in model.named_modules()]
    compile_detectors([model], on_failure=refuse, backend="eager")
    assert list(model.state_dict()) == names
    assert [name for name, _ in model.named_modules()] == children
    duplicate = ModelEma(model, decay=0.9).model.train()
    for parameter in copy.deepcopy(model).parameters():
        parameter.data.zero_()  # of the copy alone
    part = batch_of((2,)).parts[0]
    with torch.no_grad():
        torch.manual_seed(0)
        ours = model.eval()(part.images, part.padding_mask).pred_boxes
        theirs = duplicate.eval()(part.images, part.padding_mask).pred_boxes
    torch.testing.assert_close(ours, theirs)


@plain
def test_a_fault_inside_a_compiled_part_is_found() -> None:
    model, criterion = built("detr"), build_criterion(LossConfig())
    compile_detectors([model], on_failure=refuse, backend="eager")
    part = batch_of().parts[0]
    model(part.images, part.padding_mask, part.targets)
    name = "transformer.encoder.layers.0.linear1"
    with injected(model, ModuleFault(module=name)):
        found = diagnosis_of((model, criterion))
    assert (found.where, found.module) == ("forward", name)


@plain
def test_a_module_is_moved_to_fp32_inside_a_compiled_part() -> None:
    model = built("detr").eval()
    compile_detectors([model], on_failure=refuse, backend="eager")
    part = batch_of().parts[0]

    def boxes() -> Tensor:
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            return model(part.images, part.padding_mask).pred_boxes

    before = boxes()
    compute_in_fp32(model, "backbone.0.body.layer4")
    assert not torch.equal(boxes(), before)


@plain
def test_a_failing_compiler_is_told_once_and_the_result_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> None:
        raise RuntimeError("no C++ compiler found\nmore")

    let_inductor(fail, monkeypatch)
    told: list[str] = []
    model = built("nano", "all")
    compile_detectors([model], on_failure=told.append)
    assert_same_step(model, built("nano"))
    assert told == ["no C++ compiler found"]


@plain
def test_a_compiler_that_fails_at_the_backward_graph_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> None:
        raise RuntimeError("no kernel for this device")

    let_inductor(aot_autograd(fw_compiler=make_boxed_compiler(lambda graph, _: graph), bw_compiler=fail), monkeypatch)
    told: list[str] = []
    model = built("nano")
    compile_detectors([model], on_failure=told.append)
    assert_same_step(model, built("nano"))
    assert told == ["no kernel for this device"]


@plain
def test_lack_of_memory_is_no_failure_of_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> None:
        raise torch.OutOfMemoryError("out of memory")

    let_inductor(fail, monkeypatch)
    model = built("nano")
    compile_detectors([model], on_failure=refuse)
    part = batch_of().parts[0]
    with pytest.raises(RuntimeError, match="out of memory"):
        model(part.images, part.padding_mask, part.targets)


@plain
@pytest.mark.slow
def test_a_run_warns_of_a_failing_compiler_and_goes_on(
    blocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> None:
        raise RuntimeError("no C++ compiler found")

    let_inductor(fail, monkeypatch)
    heard: list[Event] = []
    settings = {"train.compile": True, "train.device": "cpu", "data.workers": 0, "train.checkpoint_activations": "all"}
    tiny_trainer(blocks, tmp_path, settings, observers=[heard.append]).fit()
    (warned,) = [event for event in heard if isinstance(event, RunWarned) and event.subject == "compiler_failed"]
    assert "no C++ compiler found" in warned.what and "train.compile" in warned.fix


def test_compiling_shards_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"train\.compile"):
        check_consistency(apply_overrides(preset("nano"), {"train.compile": True, "train.parallel": "fsdp"}))

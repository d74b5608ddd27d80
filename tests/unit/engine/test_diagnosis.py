import gc
import math
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tests.faults.fault_injection import ModuleFault, injected, poisoned_loss, poisoned_weight, with_poisoned_box
from torch import Tensor, nn

from detronome.config.schema import LossConfig, NanoConfig
from detronome.engine.diagnosis import WHOLE_MODEL, Diagnosis, diagnose
from detronome.losses.build import build_criterion
from detronome.losses.set_criterion import SetCriterion
from detronome.losses.terms import BatchTotals
from detronome.models.backbones.resnet import ResNetBackbone
from detronome.models.build import build_model
from detronome.models.detector import Detector
from detronome.models.detr.model import DETR
from detronome.runtime.precision import Precision
from detronome.runtime.seeding import seed_torch
from detronome.types import Batch, EffectiveBatch, Target

Phase = Literal["forward", "backward"]
PHASES: tuple[Phase, ...] = ("forward", "backward")

CPU = torch.device("cpu")
COUNTS = (2, 0, 1)
"""Objects an image."""
IDS = [100, 101, 102]


def detr(
    *,
    norm: Literal["frozen", "trainable"] = "trainable",
    pre_norm: bool = False,
    dropout: float = 0.1,
    checkpoint: bool = False,
) -> DETR:
    """A DETR on the first half of a small backbone."""
    torch.manual_seed(0)
    backbone = ResNetBackbone(
        "resnet18", norm=norm, frozen_stages=0 if norm == "trainable" else 2, checkpoint_activations=checkpoint
    )
    backbone.body.layer3 = backbone.body.layer4 = nn.Identity()
    backbone.out_channels = (64, 128, 128, 128)
    return DETR(
        backbone,
        num_classes=3,
        hidden_dim=16,
        num_heads=2,
        ffn_dim=32,
        num_encoder_layers=1,
        num_decoder_layers=2,
        num_queries=6,
        dropout=dropout,
        pre_norm=pre_norm,
        checkpoint_transformer=checkpoint,
    ).train()


def nano(*, checkpoint: bool = False, **changes: object) -> Detector:
    torch.manual_seed(0)
    config = NanoConfig(
        widths=(16, 16, 32), depths=(1, 1, 1), hidden_dim=16, num_heads=2, num_points=2, ffn_dim=16, num_queries=6
    )
    config = replace(config, **changes)  # type: ignore[arg-type]
    return build_model(config, 3, checkpoint_activations="all" if checkpoint else "none").train()


FAMILIES: dict[str, tuple[Callable[[], Detector], LossConfig]] = {
    "detr": (detr, LossConfig()),
    "detr pre-norm, frozen norm": (
        lambda: detr(norm="frozen", pre_norm=True),
        LossConfig(),
    ),
    "nano": (nano, LossConfig(classification="quality")),
    "detr, checkpointed activations": (lambda: detr(checkpoint=True), LossConfig()),
    "nano, checkpointed activations": (lambda: nano(checkpoint=True), LossConfig(classification="quality")),
}


@pytest.fixture(scope="module", params=list(FAMILIES))
def trained(request: pytest.FixtureRequest) -> tuple[Detector, SetCriterion]:
    """A model of each family and its criterion; shared, so every test must leave them as they were."""
    make, loss = FAMILIES[request.param]
    return make(), build_criterion(loss)


@pytest.fixture(scope="module")
def tiny() -> tuple[Detector, SetCriterion]:
    make, loss = FAMILIES["nano"]
    return make(), build_criterion(loss)


def batch_of(counts: Sequence[int] = COUNTS) -> EffectiveBatch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (len(counts), 3, 64, 64), generator=generator, dtype=torch.uint8)
    padding_mask = torch.zeros(len(counts), 64, 64, dtype=torch.bool)
    padding_mask[-1, :, 40:] = True
    targets = tuple(
        Target(
            boxes_cxcywh=torch.rand(count, 4, generator=generator) * 0.4 + torch.tensor([0.3, 0.3, 0.1, 0.1]),
            labels=torch.randint(0, 3, (count,), generator=generator),
            image_id=100 + i,
            size_hw=(64, 64),
            orig_size_hw=(64, 64),
        )
        for i, count in enumerate(counts)
    )
    return EffectiveBatch((Batch(images=images, padding_mask=padding_mask, targets=targets),))


def diagnosis_of(
    trained: tuple[Detector, SetCriterion],
    batch: EffectiveBatch | None = None,
    *,
    micro_batch_size: int = 8,
    precision: Precision = "fp32",
    loss_scale: float = 1.0,
    seen_losses: dict[str, float] | None = None,
) -> Diagnosis:
    model, criterion = trained
    batch = batch or batch_of()
    return diagnose(
        model,
        criterion,
        batch.split(micro_batch_size),
        totals=BatchTotals.of(batch.targets, model.num_queries),
        progress=0.5,
        precision=precision,
        device=CPU,
        loss_scale=loss_scale,
        reseed=lambda: seed_torch("step", 0, 7),
        seen_losses=seen_losses,
    )


def parts_that_run(model: Detector, *, leaves: bool) -> dict[str, bool]:
    """Return the modules that return numbers in a training step, and whether these have a gradient."""
    found: dict[str, bool] = {}
    handles = []
    for name, module in model.named_modules():
        if leaves == (next(module.children(), None) is None):

            def note(module: nn.Module, args: object, output: object, name: str = name) -> None:
                if isinstance(output, Tensor) and output.is_floating_point():
                    found[name] = found.get(name, False) or output.requires_grad

            handles.append(module.register_forward_hook(note))
    (part,) = batch_of().parts
    model(part.images, part.padding_mask, part.targets)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("counts", [(0, 0), (2, 0, 1)], ids=["no objects", "objects"])
@pytest.mark.parametrize("micro_batch_size", [1, 8])
def test_a_finite_step_has_nothing_to_reproduce(
    trained: tuple[Detector, SetCriterion], counts: tuple[int, ...], micro_batch_size: int
) -> None:
    found = diagnosis_of(trained, batch_of(counts), micro_batch_size=micro_batch_size)
    assert found == Diagnosis(is_reproducible=False)
    assert "hardware" in found.describe()


def test_no_module_takes_or_returns_infinities_in_a_good_step(trained: tuple[Detector, SetCriterion]) -> None:
    """Attention masks hold none: an infinity that a module gives or gets is always a fault."""
    model, _ = trained
    bad: list[str] = []

    def judge(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: object) -> None:
        tensors = [x for x in (*args, *kwargs.values(), output) if isinstance(x, Tensor)]
        bad.extend(type(module).__name__ for x in tensors if not x.isfinite().all())

    handles = [module.register_forward_hook(judge, with_kwargs=True) for module in model.modules()]
    (part,) = batch_of().parts
    nothing_but_padding = replace(part, padding_mask=torch.ones_like(part.padding_mask))
    for batch in (part, nothing_but_padding):
        model(batch.images, batch.padding_mask, batch.targets)
    for handle in handles:
        handle.remove()
    assert bad == []


@pytest.mark.parametrize("phase", PHASES)
def test_the_leaf_module_is_named(trained: tuple[Detector, SetCriterion], phase: Phase) -> None:
    leaves = parts_that_run(trained[0], leaves=True)
    assert len(leaves) > 15
    assert misnamed(trained, dict([*leaves.items()][::4]), phase, math.nan) == {}


@pytest.mark.slow
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("phase", PHASES)
def test_every_leaf_module_is_named_unless_the_fault_is_harmless(
    trained: tuple[Detector, SetCriterion], phase: Phase, value: float
) -> None:
    """ReLU makes 0 of minus infinity, a sigmoid 1 of infinity: then the step is finite."""
    assert misnamed(trained, parts_that_run(trained[0], leaves=True), phase, value) == {}


def misnamed(
    trained: tuple[Detector, SetCriterion], parts: dict[str, bool], phase: Phase, value: float
) -> dict[str, Diagnosis]:
    """Spoil each part in turn; return those with a wrong diagnosis."""
    wrong = {}
    for name, has_gradient in parts.items():
        if phase == "backward" and not has_gradient:
            continue
        with injected(trained[0], ModuleFault(module=name, phase=phase, value=value)) as fault:
            found = diagnosis_of(trained)
            assert fault.num_fired > 0
            is_harmless = not math.isnan(value) and is_finite_step(trained)
        right = ("", "", "", False) if is_harmless else (phase, name, "float32", True)
        if (found.where, found.module, found.dtype, found.is_reproducible) != right:
            wrong[name] = found
    return wrong


def is_finite_step(trained: tuple[Detector, SetCriterion], *, micro_batch_size: int = 8) -> bool:
    """Run the step itself, without its update, and put back BatchNorm's statistics as the guard does."""
    model, criterion = trained
    batch, loss = batch_of(), torch.zeros(())
    totals = BatchTotals.of(batch.targets, model.num_queries)
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    seed_torch("step", 0, 7)
    for part in batch.split(micro_batch_size):
        output = model(part.images, part.padding_mask, part.targets)
        part_loss = criterion.total(criterion(output, part.targets, totals=totals, progress=0.5))
        part_loss.backward()
        loss += part_loss.detach()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    for buffer, before in buffers:
        buffer.copy_(before)
    return bool(loss.isfinite() and norm.isfinite())


@pytest.mark.parametrize("phase", PHASES)
def test_every_container_is_named_when_it_spoils_what_its_parts_gave(
    trained: tuple[Detector, SetCriterion], phase: Phase
) -> None:
    assert misnamed(trained, parts_that_run(trained[0], leaves=False), phase, math.nan) == {}


@pytest.mark.parametrize("phase", PHASES)
def test_the_model_itself_is_named_by_a_word(tiny: tuple[Detector, SetCriterion], phase: Phase) -> None:
    with injected(tiny[0], ModuleFault(module="", phase=phase)):
        found = diagnosis_of(tiny)
    assert (found.where, found.module) == (phase, WHOLE_MODEL)
    assert "between its modules" in found.describe()


class Between(nn.Module):
    """Spoils a number, or its gradient, by an operation between two parts."""

    def __init__(self, operation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 16)
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.operation(self.first(x)))


@pytest.mark.parametrize(
    ("where", "operation"),
    [
        ("forward", lambda x: (x - 1e9).log()),
        ("forward", lambda x: (x * 0).log()),
        ("backward", lambda x: (x * 0).sqrt()),
        ("backward", lambda x: torch.where(x > 1e9, x / 0, x)),
    ],
    ids=["nan", "minus infinity", "infinite slope", "hidden nan"],
)
def test_an_operation_between_modules_is_its_containers(
    where: str, operation: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = (detr(), build_criterion(LossConfig()))
    trained[0].transformer.encoder.layers[0].linear2 = nn.Sequential(  # type: ignore[union-attr, index]
        nn.Linear(32, 16), Between(operation)
    )
    found = diagnosis_of(trained)
    assert (found.where, found.module) == (where, "transformer.encoder.layers.0.linear2.1")


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("micro_batch_size", [1, 2, 3])
def test_the_image_to_blame_is_named(phase: Phase, micro_batch_size: int) -> None:
    """Modules before any BatchNorm mixes images, and after: rows are found at the birth."""
    trained = (detr(dropout=0.0), build_criterion(LossConfig()))
    for name in ("input_proj", "transformer.encoder.layers.0.norm1", "transformer.decoder.layers.1.multihead_attn"):
        for image_id in IDS:
            fault = ModuleFault(module=name, phase=phase, image_id=image_id)  # type: ignore[arg-type]
            with injected(trained[0], fault):
                found = diagnosis_of(trained, micro_batch_size=micro_batch_size)
            assert (found.module, found.image_ids) == (name, [image_id])
            assert f"image {image_id}" in found.describe()


def test_images_are_found_at_the_models_output_when_rows_at_the_birth_are_not_images() -> None:
    trained = (detr(), build_criterion(LossConfig()))
    norm = trained[0].transformer.decoder.norm
    handle = norm.register_forward_hook(lambda module, args, out: out.index_fill(1, torch.tensor([1]), math.nan))
    # Decoder layers are the rows here: two layers, and two or three images.
    for num_images in (2, 3):
        found = diagnosis_of(trained, batch_of(COUNTS[:num_images]))
        assert (found.module, found.image_ids) == ("transformer.decoder.norm", [101])
    handle.remove()


def test_weights_come_first(trained: tuple[Detector, SetCriterion]) -> None:
    model = trained[0]
    for name in [*dict(model.named_parameters())][::7] + [n for n, b in model.named_buffers() if b.is_floating_point()]:
        with poisoned_weight(model, name, value=math.inf):
            found = diagnosis_of(trained, with_poisoned_box(batch_of(), 100), seen_losses={"a": 1.0, "b": math.nan})
        assert found == Diagnosis(where="weights", parameter=name, dtype="float32", loss_term="b")
        assert name in found.describe()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_box_that_is_not_finite_is_the_inputs_fault(trained: tuple[Detector, SetCriterion], value: float) -> None:
    for micro_batch_size in (1, 3):
        found = diagnosis_of(
            trained, with_poisoned_box(batch_of(), 102, value=value), micro_batch_size=micro_batch_size
        )
        assert found == Diagnosis(where="input", dtype="float32", image_ids=[102])
        assert "image 102" in found.describe()


def test_every_loss_term_is_named(trained: tuple[Detector, SetCriterion]) -> None:
    model, criterion = trained
    (part,) = batch_of().parts
    terms = list(criterion(model(part.images, part.padding_mask, part.targets), part.targets))
    assert len(terms) >= 6
    for term in terms:
        with poisoned_loss(criterion, term):
            found = diagnosis_of(trained)
        assert found == Diagnosis(where="loss", dtype="float32", loss_term=term, image_ids=IDS)
    with poisoned_loss(criterion, terms[-1], passes={2}):
        found = diagnosis_of(trained, micro_batch_size=1)
    assert found == Diagnosis(where="loss", dtype="float32", loss_term=terms[-1], image_ids=[102])


def test_the_loss_and_its_gradient_are_told_apart(
    tiny: tuple[Detector, SetCriterion], monkeypatch: pytest.MonkeyPatch
) -> None:
    criterion = tiny[1]
    total = criterion.total
    monkeypatch.setattr(criterion, "total", lambda losses: total(losses) * math.inf)
    assert (found := diagnosis_of(tiny)).where == "loss" and found.loss_term == "total"

    def no_slope(module: nn.Module, args: object, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**losses, "loss_bbox": losses["loss_bbox"] + (losses["loss_bbox"] * 0).sqrt()}

    monkeypatch.undo()
    handle = criterion.register_forward_hook(no_slope)  # type: ignore[arg-type]
    found = diagnosis_of(tiny)
    handle.remove()
    assert (found.where, found.module, found.loss_term) == ("backward", "", "loss_bbox")
    assert "gradient of loss_bbox" in found.describe()


def test_a_bad_output_is_the_modules_fault_and_names_the_first_term(tiny: tuple[Detector, SetCriterion]) -> None:
    with injected(tiny[0], ModuleFault(module="decoder.bbox_embed.1")):
        found = diagnosis_of(tiny)
    assert (found.where, found.module) == ("forward", "decoder.bbox_embed.1")
    assert found.loss_term.startswith("loss_")
    assert found.loss_term in found.describe()


def test_finite_gradients_whose_norm_is_not_are_reproducible(tiny: tuple[Detector, SetCriterion]) -> None:
    """The guard judges the norm: squares overflow long before the gradients do."""
    name = "decoder.class_embed.1"
    with injected(tiny[0], ModuleFault(module=name, phase="backward", value=1e25)):
        found = diagnosis_of(tiny)
    assert (found.where, found.is_reproducible, found.image_ids) == ("backward", True, IDS)


def test_a_number_that_harms_nothing_is_not_blamed(tiny: tuple[Detector, SetCriterion]) -> None:
    """A module's NaN that nobody reads, in the first micro-batch, and the one to blame in the second."""

    class Unread(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / 0

    model = nano()
    unread = Unread()
    model.add_module("unread", unread)
    handle = model.fuse.register_forward_hook(lambda module, args, output: [unread(output), output][1])  # type: ignore[union-attr]
    assert diagnosis_of((model, tiny[1])) == Diagnosis(is_reproducible=False)
    handle.remove()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_overflow_of_a_low_precision_is_finite_in_fp32(
    trained: tuple[Detector, SetCriterion], precision: Precision
) -> None:
    leaves = [name for name in parts_that_run(trained[0], leaves=True) if "linear1" in name or "out_proj" in name][:2]
    for name in leaves:
        with injected(trained[0], ModuleFault(module=name, value=math.inf, only_in_low_precision=True)):
            found = diagnosis_of(trained, precision=precision)
        dtype = {"bf16": "bfloat16", "fp16": "float16"}[precision]
        assert (found.where, found.module, found.dtype) == ("forward", name, dtype)
        assert found.is_finite_in_fp32 is True
        assert "in fp32 the step is finite" in found.describe()
        with injected(trained[0], ModuleFault(module=name, value=math.inf)):
            found = diagnosis_of(trained, precision=precision)
        assert (found.module, found.dtype, found.is_finite_in_fp32) == (name, dtype, False)


def test_a_product_too_large_for_fp16_is_finite_in_fp32(trained: tuple[Detector, SetCriterion]) -> None:
    name = next(name for name in parts_that_run(trained[0], leaves=True) if name.endswith("layers.0.linear1"))
    with injected(trained[0], ModuleFault(module=name, factor=1e6)):
        found = diagnosis_of(trained, precision="fp16")
        assert (found.where, found.module, found.is_finite_in_fp32) == ("forward", name, True)
        assert not diagnosis_of(trained).is_reproducible


def test_only_the_loss_scale_is_to_blame(trained: tuple[Detector, SetCriterion]) -> None:
    found = diagnosis_of(trained, precision="fp16", loss_scale=2.0**40)
    assert (found.where, found.dtype, found.is_loss_scale, found.is_finite_in_fp32) == (
        "backward",
        "float16",
        True,
        None,
    )
    assert "loss scale" in found.describe()
    assert not diagnosis_of(trained, precision="fp16", loss_scale=2.0**4).is_reproducible

    name = next(name for name in parts_that_run(trained[0], leaves=True) if name.endswith("layers.0.linear1"))
    for phase in PHASES:
        with injected(trained[0], ModuleFault(module=name, phase=phase)):
            found = diagnosis_of(trained, precision="fp16", loss_scale=2.0**4)
        assert (found.where, found.module, found.is_loss_scale) == (phase, name, False)


FAULTS: dict[str, Callable[[Detector, SetCriterion], AbstractContextManager[object]]] = {
    "none": lambda model, criterion: nullcontext(),
    "forward": lambda model, criterion: injected(model, ModuleFault(module="fuse.2")),
    "backward": lambda model, criterion: injected(model, ModuleFault(module="fuse.2", phase="backward")),
    "loss": lambda model, criterion: poisoned_loss(criterion, "loss_ce"),
    "weights": lambda model, criterion: poisoned_weight(model, "fine_proj.weight"),
}


@hypothesis_settings(max_examples=15)
@given(
    fault=st.sampled_from(list(FAULTS)),
    micro_batch_size=st.integers(1, 3),
    precision=st.sampled_from(["fp32", "bf16", "fp16"]),
    with_gradients=st.booleans(),
    frozen=st.booleans(),
)
def test_everything_is_left_as_it_was(
    tiny: tuple[Detector, SetCriterion],
    fault: str,
    micro_batch_size: int,
    precision: Precision,
    with_gradients: bool,
    frozen: bool,
) -> None:
    model, criterion = tiny
    model.backbone.train(not frozen)  # type: ignore[union-attr]
    parameters = list(model.parameters())
    for parameter in parameters:
        parameter.grad = torch.rand_like(parameter) if with_gradients else None

    def state() -> dict[str, Tensor]:
        values = {f"grad {i}": p.grad.clone() for i, p in enumerate(parameters) if p.grad is not None}
        values |= {name: value.clone() for name, value in (*model.named_parameters(), *model.named_buffers())}
        return values | {"random": torch.get_rng_state()}

    def hooks() -> list[int]:
        kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        of_modules = [len(getattr(m, kind)) for m in (*model.modules(), criterion) for kind in kinds]
        return of_modules + [len(p._backward_hooks or {}) for p in parameters]

    with FAULTS[fault](model, criterion):
        before, num_hooks, modes = state(), hooks(), [m.training for m in model.modules()]
        gradients = [p.grad for p in parameters]
        found = diagnosis_of(
            tiny, micro_batch_size=micro_batch_size, precision=precision, loss_scale=8.0 if precision == "fp16" else 1.0
        )
        after = state()
        assert found.is_reproducible == (fault != "none")
        assert found.where == ("" if fault == "none" else fault)
        assert all(p.grad is gradient for p, gradient in zip(parameters, gradients, strict=True))
        assert before.keys() == after.keys()
        assert [n for n in before if not torch.allclose(before[n], after[n], rtol=0, atol=0, equal_nan=True)] == []
        assert (hooks(), [m.training for m in model.modules()]) == (num_hooks, modes)
    for parameter in parameters:
        parameter.grad = None
    model.train()


def test_everything_is_left_as_it_was_when_running_again_fails(tiny: tuple[Detector, SetCriterion]) -> None:
    model, _ = tiny
    parameter = next(model.parameters())
    parameter.grad = gradient = torch.ones_like(parameter)
    before, random = {name: b.clone() for name, b in model.named_buffers()}, torch.get_rng_state()

    def fail(module: nn.Module, args: object) -> None:
        raise torch.OutOfMemoryError

    handle = model.decoder.register_forward_pre_hook(fail)  # type: ignore[union-attr]
    with pytest.raises(torch.OutOfMemoryError):
        diagnosis_of(tiny)
    handle.remove()
    assert parameter.grad is gradient
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    assert all(len(m._forward_hooks) == len(m._forward_pre_hooks) == 0 for m in model.modules())
    parameter.grad = None


def test_the_step_that_is_watched_is_the_step_that_ran(trained: tuple[Detector, SetCriterion]) -> None:
    """A rare fault depends on the noise: the same random numbers and outputs, bit for bit."""
    model = trained[0]
    seen: list[Tensor] = []
    handle = model.register_forward_hook(lambda module, args, output: seen.append(output.pred_boxes.detach()))
    batch = batch_of()
    seed_torch("step", 0, 7)
    for part in batch.split(2):
        model(part.images, part.padding_mask, part.targets)
    diagnosis_of(trained, batch, micro_batch_size=2)
    handle.remove()
    assert len(seen) == 4
    assert all(torch.equal(ran, again) for ran, again in zip(seen[:2], seen[2:], strict=True))


def test_no_graph_outlives_the_diagnosis(tiny: tuple[Detector, SetCriterion]) -> None:
    class Mark:
        pass

    alive: list[weakref.ref[Mark]] = []

    def mark(module: nn.Module, args: object, output: Tensor) -> None:
        assert output.grad_fn is not None
        output.grad_fn.metadata["mark"] = mark = Mark()
        alive.append(weakref.ref(mark))

    with_hook = tiny[0].fuse[2].register_forward_hook(mark)  # type: ignore[index, operator, union-attr]
    for phase in PHASES:
        with injected(tiny[0], ModuleFault(module="fuse.4", phase=phase)):
            assert diagnosis_of(tiny).where == phase
    with_hook.remove()
    gc.collect()
    assert [mark() for mark in alive] == [None, None]


def misjudged(trained: tuple[Detector, SetCriterion], number: int) -> list[str]:
    """Run steps with random faults, transient and persistent in turn; return those that are judged wrong."""
    model = trained[0]
    leaves = [name for name, has_gradient in parts_that_run(model, leaves=True).items() if has_gradient]
    random = torch.Generator().manual_seed(0)
    wrong = []
    for i in range(number):
        is_transient = i % 2 == 0
        name = leaves[int(torch.randint(len(leaves), (), generator=random))]
        phase = PHASES[int(torch.randint(2, (), generator=random))]
        micro_batch_size = 1 + int(torch.randint(3, (), generator=random))
        parts = batch_of().split(micro_batch_size)
        hit = int(torch.randint(len(parts), (), generator=random))
        fault = ModuleFault(
            module=name,
            phase=phase,
            passes={hit} if is_transient else None,
            image_id=None if is_transient else parts[hit].image_ids[0],
        )
        with injected(model, fault):
            assert not is_finite_step(trained, micro_batch_size=micro_batch_size)
            found = diagnosis_of(trained, micro_batch_size=micro_batch_size)
        right = ("", "") if is_transient else (phase, name)
        if (found.where, found.module) != right or found.is_reproducible == is_transient:
            wrong.append(f"{fault}: {found}")
    return wrong


def test_transient_and_persistent_faults_are_told_apart(tiny: tuple[Detector, SetCriterion]) -> None:
    assert misjudged(tiny, 30) == []


@pytest.mark.slow
def test_a_hundred_transient_and_persistent_faults_are_told_apart(trained: tuple[Detector, SetCriterion]) -> None:
    assert misjudged(trained, 100) == []

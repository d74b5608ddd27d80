"""The training step: the same gradient however a batch is cut, and steps that must change nothing."""

import copy

import pytest
import torch

from detronome.config.presets import nano, preset
from detronome.config.schema import DetrConfig, RtDetrConfig
from detronome.engine.ema import ModelEma
from detronome.engine.guard import StepGuard
from detronome.engine.optim import build_optimizer
from detronome.engine.schedule import constant
from detronome.engine.step import TrainingStep
from detronome.errors import TrainingError
from detronome.losses.build import build_criterion
from detronome.models.build import build_model
from detronome.models.detector import Detector
from detronome.types import Batch, Target

CLASSIC = DetrConfig(
    backbone="resnet18",
    backbone_weights="none",
    hidden_dim=32,
    num_heads=2,
    ffn_dim=48,
    num_encoder_layers=1,
    num_decoder_layers=2,
    num_queries=7,
    dropout=0.0,
)
FAST = RtDetrConfig(widths=(8, 16, 16), hidden_dim=16, num_heads=2, ffn_dim=16, num_queries=6, denoising_groups=1)


def make_batch(num_images: int = 8) -> Batch:
    """Images of different sizes, so that there is padding, with 0 to 4 objects."""
    # A seed with no activation so near 0 that rounding flips its ReLU: the gradient jumps there, however it is cut.
    random = torch.Generator().manual_seed(5)
    padding_mask = torch.ones(num_images, 64, 96, dtype=torch.bool)
    targets = []
    for i in range(num_images):
        height, width, count = 64 - 8 * (i % 3), 96 - 16 * (i % 2), i % 5
        padding_mask[i, :height, :width] = False
        targets.append(
            Target(
                boxes_cxcywh=torch.rand(count, 4, generator=random) * 0.4 + 0.3,
                labels=torch.randint(3, (count,), generator=random),
                image_id=50 + i,
                size_hw=(height, width),
                orig_size_hw=(height, width),
            )
        )
    images = torch.randint(256, (num_images, 3, 64, 96), generator=random, dtype=torch.uint8)
    return Batch(images=images, padding_mask=padding_mask, targets=tuple(targets))


def make_step(model: Detector, *, micro_batch_size: int = 8, clip_norm: float = 0.0, name: str = "detr-r50", **guard):
    optimizer = build_optimizer(model, lr=1e-3, backbone_lr=1e-4, weight_decay=1e-4, decay_one_dimensional=False)
    return TrainingStep(
        model=model,
        criterion=build_criterion(preset(name).loss),
        optimizer=optimizer,
        schedule=constant(),
        guard=StepGuard(model, max_consecutive=guard.get("max_consecutive", 3)),
        ema=ModelEma(model, decay=0.9),
        micro_batch_size=micro_batch_size,
        clip_norm=clip_norm,
        precision="fp32",
        device=torch.device("cpu"),
    )


def classic() -> Detector:
    torch.manual_seed(0)
    return build_model(CLASSIC, 3).train()


def fast() -> Detector:
    torch.manual_seed(0)
    return build_model(FAST, 3).train()


@pytest.mark.parametrize("micro_batch_size", [4, 2, 1, 3])
def test_the_gradient_does_not_depend_on_the_cut(micro_batch_size: int) -> None:
    batch = make_batch()
    gradients, losses = [], []
    for size in (8, micro_batch_size):
        model = classic().double()
        step = make_step(model, micro_batch_size=size)
        loss, _ = step._accumulate(batch, progress=0.5)
        losses.append(loss)
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-6, atol=0)
    whole, cut = (torch.cat([g.flatten() for g in one.values()]) for one in gradients)
    assert gradients[0].keys() == gradients[1].keys()
    assert (cut - whole).norm() / whole.norm() < 1e-6


@pytest.mark.parametrize("micro_batch_size", [4, 2, 1])
def test_the_gradient_does_not_depend_on_the_cut_in_fp32(micro_batch_size: int) -> None:
    whole, cut = [], []
    for size, kept in ((8, whole), (micro_batch_size, cut)):
        model = classic()
        make_step(model, micro_batch_size=size)._accumulate(make_batch(), progress=0.5)
        kept.extend(p.grad.flatten() for p in model.parameters() if p.grad is not None)
    difference = (torch.cat(cut) - torch.cat(whole)).norm() / torch.cat(whole).norm()
    assert difference < 1e-6


def test_clipping_limits_the_norm_and_reports_the_one_before() -> None:
    model = classic()
    step = make_step(model, clip_norm=0.1)
    step._accumulate(make_batch(), 0.0)
    before = step._clip()
    after = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    assert before > 0.1 and after == pytest.approx(0.1, rel=1e-4)


@pytest.mark.parametrize(("make", "name"), [(classic, "detr-r50"), (fast, "nano")])
def test_a_step_that_is_not_finite_changes_nothing(make, name: str) -> None:
    model = make()
    step = make_step(model, name=name)
    batch = make_batch()
    step(batch, step=0, progress=0.0)
    step.guard.drain()
    before = copy.deepcopy(model.state_dict())
    moments = copy.deepcopy(step.optimizer.state_dict()["state"])
    average = copy.deepcopy(step.ema.model.state_dict())

    poisoned = Batch(
        images=batch.images,
        padding_mask=batch.padding_mask,
        targets=tuple(Target(**{**vars_of(t), "boxes_cxcywh": t.boxes_cxcywh * torch.nan}) for t in batch.targets),
    )
    step(poisoned, step=1, progress=0.0)
    (skipped,) = step.guard.drain()
    assert skipped.step == 1 and skipped.image_ids == batch.image_ids and "nan" in skipped.reason
    assert_same(model.state_dict(), before)
    assert_same(step.ema.model.state_dict(), average)
    for key, state in step.optimizer.state_dict()["state"].items():
        assert_same(state, moments[key])

    step(batch, step=2, progress=0.0)
    assert step.guard.drain() == []
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_bad_batch_norm_statistics_are_put_back() -> None:
    model = fast()
    step = make_step(model, name="nano")
    with torch.no_grad():
        next(model.parameters()).fill_(torch.inf)
    statistics = {n: b.clone() for n, b in model.named_buffers()}
    step(make_batch(), step=0, progress=0.0)
    assert len(step.guard.drain()) == 1
    assert_same(dict(model.named_buffers()), statistics)


def test_too_many_bad_steps_in_a_row_stop_the_run() -> None:
    model = classic()
    step = make_step(model, max_consecutive=2)
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).fill_(torch.nan)
    for number in range(3):
        step(make_batch(2), step=number, progress=0.0)
    step.guard.drain()
    with pytest.raises(TrainingError, match="3 steps in a row"):
        step.guard.check()


def test_parameter_groups() -> None:
    optimizer = build_optimizer(classic(), lr=1e-3, backbone_lr=1e-4, weight_decay=0.1, decay_one_dimensional=False)
    groups = {group["name"]: group for group in optimizer.param_groups}
    assert {n: (g["lr"], g["weight_decay"]) for n, g in groups.items()} == {
        "model": (1e-3, 0.1),
        "model_no_decay": (1e-3, 0.0),
        "backbone": (1e-4, 0.1),
    }
    model = classic()
    frozen = build_optimizer(model, lr=1e-3, backbone_lr=0.0, weight_decay=0.1, decay_one_dimensional=True)
    assert [group["name"] for group in frozen.param_groups] == ["model"]
    assert not any(p.requires_grad for n, p in model.named_parameters() if "backbone" in n)


def test_no_objects_in_the_whole_batch() -> None:
    batch = make_batch(1)
    assert batch.num_objects == 0
    for make, name in ((classic, "detr-r50"), (fast, "nano")):
        step = make_step(make(), name=name)
        result = step(batch, step=0, progress=0.0)
        assert result.loss.isfinite() and step.guard.drain() == []


def test_nano_preset_is_sound() -> None:
    assert nano().loss.classification == "quality"


def vars_of(target: Target) -> dict[str, object]:
    return {name: getattr(target, name) for name in Target.__dataclass_fields__}


def assert_same(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name

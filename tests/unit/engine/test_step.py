import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from detronome.config.schema import DetrConfig, LossConfig, NanoConfig
from detronome.data.collate import collate
from detronome.engine import schedule as schedules
from detronome.engine.ema import ModelEma
from detronome.engine.guard import StepGuard
from detronome.engine.micro_batches import MicroBatchSizes
from detronome.engine.optim import build_optimizer, freeze_backbone, load_optimizer_tensors, optimizer_tensors
from detronome.engine.parallel import Parallel
from detronome.engine.step import KeptStep, TrainingStep
from detronome.losses.build import build_criterion
from detronome.losses.terms import BatchTotals
from detronome.models.build import build_model
from detronome.models.detector import Detector
from detronome.runtime.distributed import ALONE
from detronome.runtime.precision import Precision
from detronome.types import Batch, EffectiveBatch, Target

CPU = torch.device("cpu")


def small_detr(**changes: object) -> Detector:
    torch.manual_seed(0)
    config = DetrConfig(
        backbone="resnet18",
        backbone_weights="none",
        frozen_stages=0,
        hidden_dim=16,
        num_heads=2,
        ffn_dim=32,
        num_encoder_layers=1,
        num_decoder_layers=2,
        num_queries=6,
        dropout=0.0,
        **changes,  # type: ignore[arg-type]
    )
    return build_model(config, 3).train()


def batch_of(
    counts: Sequence[int], sizes_hw: Sequence[tuple[int, int]] = ((64, 64),), *, seed: int = 0
) -> EffectiveBatch:
    generator = torch.Generator().manual_seed(seed)
    sizes = [sizes_hw[i % len(sizes_hw)] for i in range(len(counts))]
    height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
    images = torch.zeros(len(counts), 3, height, width, dtype=torch.uint8)
    padding_mask = torch.ones(len(counts), height, width, dtype=torch.bool)
    targets = []
    for i, (count, (h, w)) in enumerate(zip(counts, sizes, strict=True)):
        images[i, :, :h, :w] = torch.randint(0, 256, (3, h, w), generator=generator, dtype=torch.uint8)
        padding_mask[i, :h, :w] = False
        boxes = torch.rand(count, 4, generator=generator) * 0.4 + torch.tensor([0.3, 0.3, 0.1, 0.1])
        labels = torch.randint(0, 3, (count,), generator=generator)
        targets.append(Target(boxes_cxcywh=boxes, labels=labels, image_id=100 + i, size_hw=(h, w), orig_size_hw=(h, w)))
    return EffectiveBatch((Batch(images=images, padding_mask=padding_mask, targets=tuple(targets)),))


def training_step(
    model: Detector,
    *,
    micro_batch_size: int = 8,
    clip_norm: float = 0.0,
    lr: float = 1e-3,
    ema: bool = False,
    precision: Precision = "fp32",
) -> TrainingStep:
    return TrainingStep(
        parallel=Parallel(model, ALONE),
        criterion=build_criterion(LossConfig()),
        optimizer=build_optimizer(model, lr=lr, backbone_lr=lr, weight_decay=1e-4, decay_one_dimensional=True),
        schedule=schedules.constant(),
        guard=StepGuard(model, CPU),
        ema=ModelEma(model, decay=0.9) if ema else None,
        sizes=MicroBatchSizes(micro_batch_size),
        clip_norm=clip_norm,
        precision=precision,
        device=CPU,
    )


def accumulate(step: TrainingStep, batch: EffectiveBatch) -> KeptStep:
    totals = BatchTotals.of(batch.targets, step.model.num_queries)
    return step.gradients(batch, totals=totals, step=0, progress=0.5)


def everything(step: TrainingStep) -> dict[str, Tensor]:
    tensors = {f"model.{name}": value for name, value in step.model.state_dict().items()}
    tensors |= {f"optim.{n}": value for n, value in optimizer_tensors(step.optimizer, step.model).items()}
    if step.ema is not None:
        tensors |= {f"ema.{name}": value for name, value in step.ema.model.state_dict().items()}
    return {name: value.clone() for name, value in tensors.items()}


def differing(before: dict[str, Tensor], after: dict[str, Tensor]) -> list[str]:
    assert before.keys() == after.keys()
    return [name for name, value in before.items() if not torch.equal(value, after[name])]


SAME_SIZE = ((64, 64),)
PADDED = ((64, 64), (48, 80), (33, 65))


@pytest.fixture(scope="module")
def whole() -> dict[tuple[tuple[int, int], ...], tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]]:
    """Loss, its terms and all gradients of the effective batch in one piece, for both kinds of sizes."""
    return {sizes: gradients(8, COUNTS, sizes) for sizes in (SAME_SIZE, PADDED)}


COUNTS = (3, 0, 1, 8, 0, 2, 5, 1)
"""Objects an image; 8 are more than the model has queries."""


def gradients(
    micro_batch_size: int, counts: Sequence[int], sizes_hw: Sequence[tuple[int, int]]
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    step = training_step(small_detr(), micro_batch_size=micro_batch_size)
    kept = accumulate(step, batch_of(counts, sizes_hw))
    return kept.loss, kept.losses, {name: p.grad for name, p in step.model.named_parameters() if p.grad is not None}


def relative_difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    total = torch.stack([grad.norm() for grad in theirs.values()]).norm()
    assert total > 0
    return float(torch.stack([(ours[name] - grad).norm() for name, grad in theirs.items()]).norm() / total)


@pytest.mark.parametrize("sizes_hw", [SAME_SIZE, PADDED], ids=["same size", "padded"])
@pytest.mark.parametrize("micro_batch_size", [1, 2, 3, 4])
def test_gradient_does_not_depend_on_the_cut(
    micro_batch_size: int,
    sizes_hw: tuple[tuple[int, int], ...],
    whole: dict[tuple[tuple[int, int], ...], tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]],
) -> None:
    loss, losses, grads = whole[sizes_hw]
    cut_loss, cut_losses, cut_grads = gradients(micro_batch_size, COUNTS, sizes_hw)
    torch.testing.assert_close(cut_loss, loss, rtol=1e-6, atol=0)
    assert cut_losses.keys() == losses.keys()
    for name in losses:
        torch.testing.assert_close(cut_losses[name], losses[name], rtol=2e-6, atol=1e-7)
    assert cut_grads.keys() == grads.keys()
    # Rounding of float32 alone: about 1e-7, but 6e-7 to 2e-6, by the seed, for the convolutions of single images.
    assert relative_difference(cut_grads, grads) <= (1e-6 if micro_batch_size > 1 else 5e-6)


def test_gradient_of_the_fast_family_does_not_depend_on_the_cut_either() -> None:
    def run(micro_batch_size: int) -> dict[str, Tensor]:
        torch.manual_seed(0)
        config = NanoConfig(widths=(16, 16, 32), depths=(1, 1, 1), hidden_dim=16, num_heads=2, ffn_dim=16)
        model = build_model(replace(config, num_queries=6, denoising_groups=0), 3).train()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        step = training_step(model, micro_batch_size=micro_batch_size)
        step.criterion = build_criterion(LossConfig(classification="quality"))
        accumulate(step, batch_of(COUNTS, PADDED))
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    grads, cut_grads = run(8), run(2)
    assert cut_grads.keys() == grads.keys()
    assert relative_difference(cut_grads, grads) <= 5e-6


def in_buckets(batch: EffectiveBatch) -> EffectiveBatch:
    """The same images, each padded to the smallest multiple of 32 that holds it."""
    (whole,) = batch.parts
    samples = [(whole.images[b, :, : t.size_hw[0], : t.size_hw[1]], t) for b, t in enumerate(whole.targets)]
    return collate(samples, ((64, 64), (64, 96)))


def test_gradient_of_buckets_does_not_depend_on_the_cut() -> None:
    def run(micro_batch_size: int) -> tuple[Tensor, dict[str, Tensor]]:
        step = training_step(small_detr(), micro_batch_size=micro_batch_size)
        kept = accumulate(step, in_buckets(batch_of(COUNTS, PADDED)))
        return kept.loss, {name: p.grad for name, p in step.model.named_parameters() if p.grad is not None}

    loss, grads = run(8)
    for micro_batch_size in (1, 2, 3):
        cut_loss, cut_grads = run(micro_batch_size)
        torch.testing.assert_close(cut_loss, loss, rtol=1e-6, atol=0)
        assert relative_difference(cut_grads, grads) <= 5e-6


def test_a_batch_without_any_object_trains_the_no_object_class() -> None:
    loss, losses, grads = gradients(8, (0, 0), SAME_SIZE)
    assert loss.isfinite() and loss > 0
    assert losses["loss_bbox"] == 0 and losses["loss_giou"] == 0
    assert all(grad.isfinite().all() for grad in grads.values())
    cut_loss, _, _ = gradients(1, (0, 0), SAME_SIZE)
    torch.testing.assert_close(cut_loss, loss, rtol=1e-6, atol=0)


@pytest.mark.parametrize("clip_norm", [0.1, 1e9])
def test_gradients_are_clipped_to_the_norm_and_the_norm_before_is_reported(clip_norm: float) -> None:
    batch = batch_of((2, 1))
    reference = training_step(small_detr())
    accumulate(reference, batch)
    norm = torch.nn.utils.get_total_norm([p.grad for p in reference.model.parameters() if p.grad is not None])

    step = training_step(small_detr(), clip_norm=clip_norm)
    accumulate(step, batch)
    torch.testing.assert_close(step._clip(), norm)
    clipped = torch.nn.utils.get_total_norm([p.grad for p in step.model.parameters() if p.grad is not None])
    torch.testing.assert_close(clipped, norm.clamp(max=clip_norm), rtol=1e-4, atol=0)


def test_the_schedule_multiplies_each_groups_own_rate() -> None:
    step = training_step(small_detr())
    step.schedule = lambda number: 0.5**number
    step(batch_of((1,)), step=3, progress=0.0)
    assert [group["lr"] for group in step.optimizer.param_groups] == [1e-3 / 8, 1e-3 / 8]


class PoisonedCriterion(nn.Module):
    """The loss of the wrapped criterion, made non-finite when told to."""

    def __init__(self, criterion: nn.Module) -> None:
        super().__init__()
        self.criterion = criterion
        self.weights = criterion.weights
        self.match = criterion.match
        self.factor = 1.0

    def forward(self, *args: object, **kwargs: object) -> dict[str, Tensor]:
        return self.criterion(*args, **kwargs)

    def total(self, losses: dict[str, Tensor]) -> Tensor:
        return self.criterion.total(losses) * self.factor


@pytest.mark.parametrize("factor", [math.nan, math.inf])
@pytest.mark.parametrize("num_good", [0, 2])
def test_a_step_that_is_not_finite_changes_no_bit_and_is_told(factor: float, num_good: int) -> None:
    step = training_step(small_detr(backbone_norm="trainable"), ema=True)
    step.criterion = criterion = PoisonedCriterion(step.criterion)  # type: ignore[assignment]
    for number in range(num_good):
        step(batch_of((2, 0), seed=number), step=number, progress=0.1)
    before = everything(step)

    criterion.factor = factor
    step(batch_of((1, 3), seed=9), step=num_good, progress=0.1)
    after = everything(step)
    if num_good == 0:  # the optimiser has made its state, all zero
        made = after.keys() - before.keys()
        assert all(name.startswith("optim.") and not after[name].any() for name in made)
        before |= {name: after[name] for name in made}
    assert differing(before, after) == []
    verdict = step.guard.read()
    assert verdict is not None and not verdict.is_applied and not verdict.is_finite
    assert (verdict.step, verdict.kept.micro_batches[0].image_ids) == (num_good, [100, 101])

    criterion.factor = 1.0
    step(batch_of((2, 0), seed=10), step=num_good + 1, progress=0.1)
    changed = differing(before, everything(step))
    verdict = step.guard.read()
    assert verdict is not None and verdict.is_applied
    assert {name.partition(".")[0] for name in changed} == {"model", "optim", "ema"}
    assert all(value.isfinite().all() for value in everything(step).values())


def test_weights_that_have_become_nan_do_not_break_the_matcher() -> None:
    step = training_step(small_detr())
    with torch.no_grad():
        next(p for name, p in step.model.named_parameters() if "class_embed" in name).fill_(math.nan)
    step(batch_of((2, 0, 1)), step=0, progress=0.1)
    verdict = step.guard.read()
    assert verdict is not None and not verdict.is_finite


def toy() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"backbone": nn.Conv2d(3, 4, 3), "norm": nn.LayerNorm(4), "head": nn.Linear(4, 2)})


def test_groups_give_the_backbone_its_rate_and_spare_vectors_from_decay() -> None:
    model = toy()
    optimizer = build_optimizer(model, lr=1e-3, backbone_lr=1e-4, weight_decay=0.05, decay_one_dimensional=False)
    groups = {g["name"]: (g["lr"], g["base_lr"], g["weight_decay"], len(g["params"])) for g in optimizer.param_groups}
    assert groups == {
        "model": (1e-3, 1e-3, 0.05, 1),
        "model_no_decay": (1e-3, 1e-3, 0.0, 3),
        "backbone": (1e-4, 1e-4, 0.05, 1),
        "backbone_no_decay": (1e-4, 1e-4, 0.0, 1),
    }


def test_vectors_decay_too_where_asked() -> None:
    optimizer = build_optimizer(toy(), lr=1e-3, backbone_lr=1e-4, weight_decay=0.05, decay_one_dimensional=True)
    assert [(g["name"], len(g["params"])) for g in optimizer.param_groups] == [("model", 4), ("backbone", 2)]


def test_a_frozen_backbone_is_left_out() -> None:
    model = toy()
    freeze_backbone(model)
    optimizer = build_optimizer(model, lr=1e-3, backbone_lr=0.0, weight_decay=0.05, decay_one_dimensional=True)
    assert [g["name"] for g in optimizer.param_groups] == ["model"]
    assert not any(p.requires_grad for p in model["backbone"].parameters())  # type: ignore[index]
    assert all(p.requires_grad for p in model["head"].parameters())  # type: ignore[index]


def test_gradients_are_computed_anew_when_the_model_has_changed_meanwhile() -> None:
    def double(model: Detector) -> None:
        with torch.no_grad():
            next(p for name, p in model.named_parameters() if "class_embed" in name).mul_(2)

    step = training_step(small_detr(backbone_norm="trainable"))
    is_changed = False

    def before_update() -> bool:
        nonlocal is_changed
        if is_changed:
            return False
        double(step.model)
        is_changed = True
        return True

    step(batch_of((2, 1)), step=0, progress=0.1, before_update=before_update)
    reference = training_step(small_detr(backbone_norm="trainable"))
    double(reference.model)
    reference(batch_of((2, 1)), step=0, progress=0.1)
    assert is_changed and differing(everything(step), everything(reference)) == []


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_optimisers_state_goes_on_bit_for_bit_in_any_memory_layout(memory_format: torch.memory_format) -> None:
    def make() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)).to(memory_format=memory_format)
        return model, build_optimizer(model, lr=0.1, backbone_lr=0.1, weight_decay=0.1, decay_one_dimensional=True)

    def train(model: nn.Module, optimizer: torch.optim.Optimizer, seeds: range) -> None:
        for seed in seeds:
            torch.manual_seed(seed)
            model(torch.randn(2, 3, 8, 8)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    model, optimizer = make()
    train(model, optimizer, range(2))
    again, other = make()
    again.load_state_dict({name: value.contiguous() for name, value in model.state_dict().items()})
    saved = {name: value.clone().contiguous() for name, value in optimizer_tensors(optimizer, model).items()}
    load_optimizer_tensors(other, again, saved)
    train(model, optimizer, range(2, 4))
    train(again, other, range(2, 4))
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)

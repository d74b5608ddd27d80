"""Training steps on a rank, for the tests to call there."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Literal

import torch
from tests.faults.oom_injection import out_of_memory
from tests.unit.engine.test_step import batch_of, small_detr
from torch import Tensor, nn

from detronome.config.schema import DetrConfig, LossConfig, NanoConfig, RtDetrConfig
from detronome.engine import schedule as schedules
from detronome.engine.ema import ModelEma
from detronome.engine.guard import StepGuard
from detronome.engine.micro_batches import MicroBatchSizes
from detronome.engine.optim import build_optimizer, freeze_backbone, optimizer_tensors
from detronome.engine.parallel import Parallel, Replicated, Sharded
from detronome.engine.step import TrainingStep
from detronome.losses.build import build_criterion
from detronome.losses.terms import BatchTotals
from detronome.models.build import build_model
from detronome.models.detector import Detector
from detronome.runtime.distributed import World, joined_world
from detronome.types import Batch, EffectiveBatch

CPU = torch.device("cpu")
Kind = Literal["ddp", "fsdp"]
_CLASSIFICATIONS: dict[str, Literal["softmax", "quality", "vfl"]] = {
    "detr": "softmax",
    "nano": "quality",
    "panoptic": "softmax",
    "rtdetr": "vfl",
}
Family = Literal["detr", "nano", "panoptic", "rtdetr"]


def take_share(batch: EffectiveBatch, world: World) -> EffectiveBatch:
    """The rank's images, as the data layer shares them out."""
    (whole,) = batch.parts
    mine = slice(world.rank, None, world.size)
    if not whole.targets[mine]:
        return EffectiveBatch(())
    part = Batch(images=whole.images[mine], padding_mask=whole.padding_mask[mine], targets=tuple(whole.targets[mine]))
    return EffectiveBatch((part,))


def small_nano(denoising_groups: int = 0) -> Detector:
    torch.manual_seed(0)
    config = NanoConfig(
        widths=(16, 16, 32),
        depths=(1, 1, 1),
        hidden_dim=16,
        num_heads=2,
        ffn_dim=16,
        num_queries=6,
        denoising_groups=denoising_groups,
    )
    model = build_model(config, 3).train()
    return model


def small_rtdetr() -> Detector:
    torch.manual_seed(0)
    config = RtDetrConfig(
        backbone="resnet18vd",
        backbone_weights="none",
        encoder_dim=16,
        encoder_ffn_dim=16,
        hidden_dim=16,
        num_heads=2,
        ffn_dim=16,
        num_decoder_layers=2,
        num_queries=100,  # all cells: which ones are chosen would hang on rounding
        num_denoising=0,
    )
    model = build_model(config, 3).train()
    for name, parameter in model.named_parameters():
        # At first, points lie right on the borders between cells, where a gradient hangs on rounding.
        if "sampling_offsets" in name or "bbox_head" in name:
            nn.init.normal_(parameter, std=0.1)
    return model


def small_panoptic() -> Detector:
    torch.manual_seed(0)
    config = DetrConfig(
        backbone="resnet18",
        backbone_weights="none",
        frozen_stages=0,
        hidden_dim=128,
        ffn_dim=32,
        num_encoder_layers=1,
        num_decoder_layers=2,
        num_queries=6,
        dropout=0.0,
        mask_head=True,
    )
    return build_model(config, 3).train()


def with_masks(batch: EffectiveBatch) -> EffectiveBatch:
    """Give each object a mask of its own."""
    random = torch.Generator().manual_seed(0)
    return EffectiveBatch(
        tuple(
            replace(
                part,
                targets=tuple(
                    replace(t, masks=torch.rand(t.num_objects, *t.size_hw, generator=random) < 0.4)
                    for t in part.targets
                ),
            )
            for part in batch.parts
        )
    )


def train_steps(
    kind: Kind,
    family: Family,
    counts: Sequence[Sequence[int]],
    *,
    micro_batch_size: int = 8,
    poison: Mapping[int, int] = MappingProxyType({}),
    excluded: Collection[int] = (),
    room: Mapping[int, int] = MappingProxyType({}),
    denoising_groups: int = 0,
    is_backbone_frozen: bool = False,
    frozen: Sequence[str] = (),
    checkpoint_activations: bool = False,
) -> dict[str, Any]:
    """Train some steps; return what every rank knows afterwards.

    Args:
        kind: how the model is spread.
        family: of the model.
        counts: for each step, the objects of each image of the global batch.
        micro_batch_size: images at once.
        poison: step -> rank whose gradients are made NaN.
        excluded: steps that are passed over.
        room: rank -> the most images at once for which its memory has room.
        denoising_groups: of nano.
        is_backbone_frozen: the backbone has no rate.
        frozen: parts that stay as they are.
        checkpoint_activations: of every part.
    """
    with joined_world("cpu", timeout_s=60) as world:
        makers = {
            "detr": small_detr,
            "nano": lambda: small_nano(denoising_groups),
            "panoptic": small_panoptic,
            "rtdetr": small_rtdetr,
        }
        model = makers[family]()
        if is_backbone_frozen:
            freeze_backbone(model)
        model.freeze(frozen)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):  # a rank would see other statistics than the whole batch has
                module.eval()
            if hasattr(module, "checkpoint_activations"):
                module.checkpoint_activations = checkpoint_activations
        ema = ModelEma(model, decay=0.9)
        parallel = _parallel(kind, model, ema, world)
        splits: list[tuple[str, int, int]] = []
        step = TrainingStep(
            parallel=parallel,
            criterion=build_criterion(
                LossConfig(classification=_CLASSIFICATIONS[family]), with_masks=family == "panoptic"
            ),
            optimizer=build_optimizer(model, lr=1e-4, backbone_lr=1e-5, weight_decay=1e-4, decay_one_dimensional=True),
            schedule=schedules.constant(),
            guard=StepGuard(model, CPU),
            ema=ema,
            sizes=MicroBatchSizes(micro_batch_size),
            clip_norm=0.1,
            precision="fp32",
            device=CPU,
            on_split=lambda failure, new: splits.append((failure.shape, failure.rank, new)),
        )
        results, applied = [], []
        with ExitStack() as stack:
            if world.rank in room:
                stack.enter_context(out_of_memory(model, max_images=room[world.rank], during="backward"))
            for number, of_images in enumerate(counts):
                if number in excluded:
                    continue
                batch = with_masks(batch_of(of_images, seed=number))
                totals = BatchTotals.of(batch.targets, model.num_queries)
                is_poisoned = poison.get(number) == world.rank
                with nan_in_backward(model) if is_poisoned else nullcontext():
                    result = step(take_share(batch, world), step=number, progress=0.5, totals=totals)
                results.append((float(result.loss), float(result.grad_norm)))
                verdict = step.guard.read()
                assert verdict is not None
                applied.append(verdict.is_applied)
        return {
            "weights": _numpy(parallel.weights(model)),
            "average": _numpy(parallel.weights(ema.model)),
            "optimizer": _numpy(optimizer_tensors(step.optimizer, model)),
            "results": results,
            "applied": applied,
            "splits": splits,
        }


@contextmanager
def nan_in_backward(model: nn.Module) -> Iterator[None]:
    """Make one gradient NaN."""
    handle = next(p for p in model.parameters() if p.requires_grad).register_hook(lambda grad: grad * torch.nan)
    try:
        yield
    finally:
        handle.remove()


def _parallel(kind: Kind, model: Detector, ema: ModelEma, world: World) -> Parallel:
    if world.size == 1:
        return Parallel(model, world)
    if kind == "ddp":
        return Replicated(model, world)
    parallel = Sharded(model, world, "cpu")
    parallel.shard(ema.model)
    return parallel


def _numpy(tensors: dict[str, Tensor]) -> dict[str, Any]:
    return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}

"""Activation checkpointing changes memory and time, and nothing else."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from detronome.config.schema import (
    ActivationCheckpointing,
    DetrConfig,
    DFineConfig,
    ModelConfig,
    NanoConfig,
    RtDetrConfig,
)
from detronome.models.backbones.resnet import ResNetBackbone
from detronome.models.build import build_model
from detronome.models.detector import Detector
from detronome.models.detr.transformer import Transformer
from detronome.models.layers.activation_checkpointing import CheckpointedSequential, checkpointed
from detronome.types import ModelOutput, Target

DETR_TINY = DetrConfig(
    backbone="resnet18",
    backbone_weights="none",
    backbone_norm="trainable",
    frozen_stages=0,
    hidden_dim=16,
    num_heads=2,
    ffn_dim=32,
    num_encoder_layers=2,
    num_decoder_layers=2,
    num_queries=5,
)
FAMILIES: dict[str, ModelConfig] = {
    "detr": DETR_TINY,
    "detr, frozen stages": replace(DETR_TINY, backbone_norm="frozen", frozen_stages=2),
    "detr, frozen backbone": replace(DETR_TINY, frozen_stages=5),
    "detr, pre-norm": replace(DETR_TINY, pre_norm=True, dilation=True),
    "nano": NanoConfig(widths=(16, 16, 32), depths=(1, 3, 2), hidden_dim=16, num_heads=2, ffn_dim=16, num_queries=6),
    "rtdetr": RtDetrConfig(
        backbone="resnet18vd",
        backbone_norm="trainable",
        backbone_weights="none",
        frozen_stages=1,
        encoder_dim=16,
        encoder_ffn_dim=16,
        hidden_dim=16,
        num_heads=2,
        ffn_dim=16,
        num_decoder_layers=2,
        num_queries=6,
        num_denoising=4,
    ),
    "dfine": DFineConfig(
        backbone="hgnetv2_b0",
        backbone_affine=True,
        backbone_norm="trainable",
        backbone_weights="none",
        frozen_stages=1,
        encoder_dim=32,
        encoder_ffn_dim=16,
        encoder_depth=0.34,
        hidden_dim=16,
        num_heads=2,
        ffn_dim=16,
        num_decoder_layers=2,
        num_queries=6,
        num_denoising=4,
    ),
}
PARTS: tuple[ActivationCheckpointing, ...] = ("backbone", "transformer", "all")


def built(config: ModelConfig, part: ActivationCheckpointing) -> Detector:
    torch.manual_seed(0)
    return build_model(config, 3, checkpoint_activations=part).train()


def inputs() -> tuple[Tensor, Tensor, Sequence[Target]]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (3, 3, 64, 96), generator=generator, dtype=torch.uint8)
    padding_mask = torch.zeros(3, 64, 96, dtype=torch.bool)
    padding_mask[-1, :, 64:] = True
    targets = [
        Target(
            boxes_cxcywh=torch.rand(count, 4, generator=generator) * 0.3 + 0.2,
            labels=torch.randint(0, 3, (count,), generator=generator),
            image_id=i,
            size_hw=(64, 96),
            orig_size_hw=(64, 96),
        )
        for i, count in enumerate((2, 0, 1))
    ]
    return images, padding_mask, targets


def a_number(output: ModelOutput) -> Tensor:
    """A scalar that depends on all predictions."""
    outputs = [output, *output.aux_outputs, *output.dn_outputs]
    return torch.stack([o.pred_logits.float().tanh().sum() + o.pred_boxes.square().sum() for o in outputs]).sum()


def step(model: Detector, *, autocast: bool = False) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Forward and backward of two micro-batches; returns a number, gradients, buffers, and the next random number."""
    images, padding_mask, targets = inputs()
    torch.manual_seed(7)
    total = torch.zeros(())
    for rows in (slice(0, 2), slice(2, 3)):
        with torch.autocast("cpu", dtype=torch.bfloat16) if autocast else nullcontext():
            output = model(images[rows], padding_mask[rows], targets[rows])
        number = a_number(output)
        number.backward()
        total += number.detach()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return total, gradients, dict(model.named_buffers()), torch.rand(())


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_statistics_and_random_numbers_are_the_same_bit_for_bit(
    family: str, autocast: bool, part: ActivationCheckpointing
) -> None:
    expected = step(built(FAMILIES[family], "none"), autocast=autocast)
    actual = step(built(FAMILIES[family], part), autocast=autocast)
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(actual[3], expected[3])
    for ours, theirs in zip(actual[1:3], expected[1:3], strict=True):
        assert ours.keys() == theirs.keys()
        assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert any("num_batches_tracked" in name for name in actual[2]) or "frozen" in family


@pytest.mark.parametrize("family", FAMILIES)
def test_keys_of_the_state_dict_do_not_change(family: str) -> None:
    plain, checkpointing = (built(FAMILIES[family], part).state_dict() for part in ("none", "all"))
    assert list(plain) == list(checkpointing)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_evaluation_is_the_same(family: str) -> None:
    images, padding_mask, _ = inputs()
    outputs = [built(FAMILIES[family], part).eval()(images, padding_mask) for part in ("none", "all")]
    assert torch.equal(outputs[0].pred_boxes, outputs[1].pred_boxes)


class Kept:
    """A tensor that autograd holds on to."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def kept_bytes(model: Detector) -> int:
    """Memory that is held for backward after a forward pass, but for the weights."""
    kept: weakref.WeakSet[Kept] = weakref.WeakSet()

    def pack(tensor: Tensor) -> Kept:
        kept.add(holder := Kept(tensor))
        return holder

    with saved_tensors_hooks(pack, lambda holder: holder.tensor):
        output = model(*inputs())
    storages = {one.tensor.untyped_storage().data_ptr(): one.tensor.untyped_storage().nbytes() for one in kept}
    for tensor in (*model.parameters(), *model.buffers()):
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    del output
    return sum(storages.values())


@pytest.mark.parametrize("family", ["detr", "detr, frozen stages", "nano"])
def test_less_is_kept_for_backward(family: str) -> None:
    none, backbone, transformer, both = (
        kept_bytes(built(FAMILIES[family], part)) for part in ("none", "backbone", "transformer", "all")
    )
    assert both < min(backbone, transformer) and max(backbone, transformer) < none
    assert both < 0.7 * none


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_works_on_tensors_without_memory(device: str) -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(
        Transformer(hidden_dim=16, num_heads=2, ffn_dim=32, checkpoint_activations=True).encoder.layers[0],
        ResNetBackbone("resnet18", norm="trainable", frozen_stages=0, checkpoint_activations=True),
    )
    with FakeTensorMode():
        layer, backbone = layers
        for module in layers.modules():
            for name, parameter in [*module.named_parameters(recurse=False)]:
                setattr(module, name, nn.Parameter(torch.empty(parameter.shape, device=device)))
            for name, buffer in [*module.named_buffers(recurse=False)]:
                setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype, device=device))
        x = torch.zeros(2, 10, 16, device=device)
        loss = checkpointed(layer, x, x, None, enabled=True).sum()
        loss = loss + backbone(torch.zeros(2, 3, 64, 64, device=device))[-1].sum()
        loss.backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in layers.parameters())


class Counted(nn.Module):
    """A layer that counts how often it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.num_runs = 0

    def forward(self, x: Tensor) -> Tensor:
        self.num_runs += 1
        return self.linear(x).tanh()


@pytest.mark.parametrize("num_modules", [0, 1, 2, 5, 23])
def test_each_module_of_a_sequence_runs_once_more(num_modules: int) -> None:
    modules = [Counted() for _ in range(num_modules)]
    x = torch.randn(3, 4, requires_grad=True)
    expected = nn.Sequential(*modules)(x) if modules else x
    (expected_gradient,) = torch.autograd.grad(expected.sum(), x)
    for module in modules:
        module.num_runs = 0
    CheckpointedSequential(*modules, checkpoint_activations=True)(x).sum().backward()
    assert x.grad is not None and torch.equal(x.grad, expected_gradient)
    assert [module.num_runs for module in modules] == [2] * num_modules


def test_runs_once_without_gradients_or_unless_enabled() -> None:
    layer = Counted()
    x = torch.randn(3, 4, requires_grad=True)
    with torch.no_grad():
        checkpointed(layer, x, enabled=True)
    checkpointed(layer, x, enabled=False).sum().backward()
    assert layer.num_runs == 2


@pytest.mark.parametrize("momentum", [0.1, None], ids=["running mean", "plain mean"])
def test_statistics_are_updated_once_a_pass(momentum: float | None) -> None:
    norm = nn.BatchNorm2d(3, momentum=momentum)
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    buffers = dict(norm.named_buffers())
    out = checkpointed(norm, x, enabled=True, norms_in=[norm])
    after_forward = {name: buffer.clone() for name, buffer in buffers.items()}
    out.square().sum().backward()
    assert after_forward["num_batches_tracked"] == 1
    for name, buffer in norm.named_buffers():
        assert buffer is buffers[name] and torch.equal(buffer, after_forward[name])

"""D-FINE: shifts of edges, boxes from them, padding, fused convolutions, gradients everywhere, and that it learns."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from detronome.config.schema import DFineConfig, LossConfig
from detronome.engine import schedule as schedules
from detronome.engine.guard import StepGuard
from detronome.engine.micro_batches import MicroBatchSizes
from detronome.engine.optim import build_optimizer
from detronome.engine.parallel import Parallel
from detronome.engine.step import TrainingStep
from detronome.losses.build import build_criterion
from detronome.models.backbones.compact import CompactBackbone
from detronome.models.build import build_model
from detronome.models.dfine.encoder import FineEncoder
from detronome.models.dfine.model import DFINE
from detronome.models.dfine.transformer import FineDecoder
from detronome.ops.boxes import cxcywh_to_xyxy
from detronome.runtime.distributed import ALONE
from detronome.types import Batch, EffectiveBatch, Target

NUM_CLASSES = 3


class SmallBackbone(nn.Module):
    """Maps of strides 8, 16 and 32 from a few thousand weights."""

    out_channels = (16, 32, 32)

    def __init__(self) -> None:
        super().__init__()
        self.body = CompactBackbone(widths=(16, 16, 32, 32), depths=(1, 1, 1, 1))

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.body(images)[1:]


def small_dfine(*, num_denoising: int = 6, num_queries: int = 8, num_layers: int = 2) -> DFINE:
    torch.manual_seed(0)
    backbone = SmallBackbone()
    encoder = FineEncoder(backbone.out_channels, hidden_dim=32, num_heads=2, ffn_dim=32, depth=0.34)
    decoder = FineDecoder(
        [32] * 3,
        num_classes=NUM_CLASSES,
        hidden_dim=32,
        num_heads=2,
        ffn_dim=32,
        num_layers=num_layers,
        has_denoising=num_denoising > 0,
    )
    return DFINE(backbone, encoder, decoder, num_queries=num_queries, num_denoising=num_denoising)


def target(count: int, *, seed: int = 0) -> Target:
    random = torch.Generator().manual_seed(seed)
    return Target(
        boxes_cxcywh=torch.rand(count, 4, generator=random) * 0.3 + 0.3,
        labels=torch.randint(NUM_CLASSES, (count,), generator=random),
        image_id=seed,
        size_hw=(64, 64),
        orig_size_hw=(64, 64),
    )


def images_of(count: int, size_hw: tuple[int, int] = (64, 64)) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (count, 3, *size_hw), generator=random, dtype=torch.uint8)
    return images, torch.zeros(count, *size_hw, dtype=torch.bool)


def stirred(model: DFINE) -> DFINE:
    """Give weights that start at zero a value, so that every part has a say."""
    random = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        if not parameter.any():
            parameter.data = torch.randn(parameter.shape, generator=random) * 0.1
    return model


@pytest.mark.parametrize("counts", [(0, 0), (2, 0), (3, 1)])
@pytest.mark.parametrize("num_denoising", [0, 6])
def test_every_weight_gets_a_gradient_whatever_the_objects(counts: tuple[int, ...], num_denoising: int) -> None:
    model = small_dfine(num_denoising=num_denoising).train()
    targets = [target(count, seed=i) for i, count in enumerate(counts)]
    criterion = build_criterion(LossConfig(classification="vfl"), with_edges=True)
    losses = criterion(model(*images_of(2), targets), targets)
    criterion.total(losses).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert ("loss_ce_dn_0" in losses) == (num_denoising > 0 and max(counts) > 0)
    assert {"loss_ce", "loss_ce_1", "loss_ce_enc", "loss_fgl", "loss_ddf"} <= set(losses)


def test_evaluation_gives_the_last_layer_alone() -> None:
    output = small_dfine().eval()(*images_of(2), [target(2), target(0)])
    assert output.pred_logits.shape == (2, 8, NUM_CLASSES)
    assert not output.aux_outputs and output.enc_outputs is None and not output.dn_outputs and output.edges is None


def test_training_says_what_boxes_were_made_from() -> None:
    """The first prediction is the reference of all the others; the mean shifts of its edges give their boxes."""
    model = stirred(small_dfine()).train()
    output = model(*images_of(2), [target(2), target(1)])
    start, *layers = [*output.aux_outputs, output]
    assert start.edges is None and len(layers) == 2
    for layer in layers:
        assert layer.edges is not None
        torch.testing.assert_close(layer.edges.reference_boxes, start.pred_boxes)
        assert not layer.edges.reference_boxes.requires_grad
        mean = layer.edges.logits.softmax(-1) @ layer.edges.shifts
        moved = cxcywh_to_xyxy(layer.pred_boxes) - cxcywh_to_xyxy(start.pred_boxes)
        outwards = moved * torch.tensor([-1, -1, 1, 1]) / start.pred_boxes[..., 2:].repeat(1, 1, 2)
        torch.testing.assert_close(outwards, mean, atol=1e-5, rtol=1e-4)
    assert len(output.dn_outputs) == 3 and output.dn_outputs[0].edges is None


def test_layers_start_where_the_reference_is() -> None:
    """Before anything is learnt, distributions are even and so the mean shift is none."""
    model = small_dfine().train()
    output = model(*images_of(1), [target(0)])
    for layer in output.aux_outputs:
        torch.testing.assert_close(layer.pred_boxes, output.pred_boxes, atol=1e-6, rtol=1e-6)


@given(up=st.floats(0.1, 2), scale=st.floats(0.5, 16))
def test_shifts_are_even_around_none_and_denser_there(up: float, scale: float) -> None:
    decoder = FineDecoder([16], num_classes=1, hidden_dim=16, num_heads=1, num_points=(1,), ffn_dim=4, num_layers=1)
    decoder.up.fill_(up)
    decoder.reg_scale.fill_(scale)
    shifts = decoder.shifts()
    gaps = shifts.diff()
    assert len(shifts) == 33 and (gaps > 0).all()
    torch.testing.assert_close(shifts, -shifts.flip(0))
    assert (gaps[16:31].diff() > 0).all()
    torch.testing.assert_close(shifts[-2:], torch.tensor([up, 2 * up]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size_hw", [(64, 64), (33, 95), (32, 32)])
@torch.no_grad()
def test_any_size_will_do(size_hw: tuple[int, int]) -> None:
    """Sides that 32 does not divide, and fewer cells than queries."""
    output = small_dfine(num_queries=300).eval()(*images_of(1, size_hw))
    assert output.pred_boxes.isfinite().all() and output.pred_logits.shape[1] == output.pred_boxes.shape[1] <= 300


@torch.no_grad()
def test_an_image_does_not_depend_on_its_neighbours() -> None:
    model = stirred(small_dfine()).eval()
    images, padding_mask = images_of(3)
    together, alone = model(images, padding_mask), model(images[1:2], padding_mask[1:2])
    torch.testing.assert_close(together.pred_boxes[1:2], alone.pred_boxes, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together.pred_logits[1:2], alone.pred_logits, atol=1e-5, rtol=1e-5)


def test_boxes_and_references_are_parts_of_the_unpadded_image() -> None:
    model = stirred(small_dfine()).train()
    images, padding_mask = images_of(1)
    padding_mask[:, 48:] = True
    images = images.masked_fill(padding_mask[:, None], 0)
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.eval()
    padded = model(images, padding_mask)
    as_whole = model(images, torch.zeros_like(padding_mask))
    part = torch.tensor([1, 0.75, 1, 0.75])
    torch.testing.assert_close(padded.pred_boxes * part, as_whole.pred_boxes)
    torch.testing.assert_close(padded.edges.reference_boxes * part, as_whole.edges.reference_boxes)
    torch.testing.assert_close(padded.edges.logits, as_whole.edges.logits)


@torch.no_grad()
def test_fused_convolutions_say_the_same() -> None:
    encoder = small_dfine().encoder.eval()
    for norm in (module for module in encoder.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.running_mean.normal_(0, 0.2)  # type: ignore[union-attr]
        norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    fused = copy.deepcopy(encoder)
    fused.fuse()
    assert sum(p.numel() for p in fused.parameters()) < sum(p.numel() for p in encoder.parameters())
    maps = [torch.randn(2, channels, size, size) for channels, size in zip((16, 32, 32), (8, 4, 2), strict=True)]
    for expected, given_map in zip(encoder(maps), fused(maps), strict=True):
        torch.testing.assert_close(given_map, expected, atol=1e-5, rtol=1e-4)


def test_predictions_are_float32_under_autocast() -> None:
    model = small_dfine().train()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(*images_of(2), [target(2), target(1)])
    assert output.edges is not None and output.enc_outputs is not None
    assert output.edges.logits.dtype == torch.float32
    for part in (output, *output.aux_outputs, output.enc_outputs, *output.dn_outputs):
        assert part.pred_logits.dtype == part.pred_boxes.dtype == torch.float32
        assert part.pred_logits.isfinite().all() and part.pred_boxes.isfinite().all()


def test_two_maps_are_the_coarser_ones() -> None:
    config = DFineConfig(
        backbone="hgnetv2_b0",
        backbone_weights="none",
        backbone_norm="trainable",
        encoder_dim=16,
        encoder_ffn_dim=16,
        hidden_dim=16,
        num_heads=2,
        ffn_dim=16,
        num_points=(6, 6),
        num_decoder_layers=1,
    )
    model = build_model(config, 2)
    assert model.backbone.out_channels == (512, 1024) and model.backbone.strides == (16, 32)


def test_learns_a_batch_by_heart() -> None:
    """Through the engine's own step: the loss falls, and the boxes are found with the right class."""
    model = small_dfine(num_queries=12)
    torch.manual_seed(1)
    batch = _two_rectangles()
    step = TrainingStep(
        parallel=Parallel(model, ALONE),
        criterion=build_criterion(LossConfig(classification="vfl", cost_class=2.0), with_edges=True),
        optimizer=build_optimizer(model, lr=3e-3, backbone_lr=3e-3, weight_decay=1e-4, decay_one_dimensional=False),
        schedule=schedules.with_warmup(schedules.constant(), warmup_steps=10),
        guard=StepGuard(model, torch.device("cpu")),
        ema=None,
        sizes=MicroBatchSizes(8),
        clip_norm=1.0,
        precision="fp32",
        device=torch.device("cpu"),
    )
    model.train()
    losses = [float(step(batch, step=i, progress=i / 80).loss) for i in range(80)]
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10]), (losses[:10], losses[-10:])
    model.eval()
    with torch.no_grad():
        (part,) = batch.parts
        output = model(part.images, part.padding_mask)
    for i, truth in enumerate(part.targets):
        best = int(output.pred_logits[i].amax(-1).argmax())
        label = int(output.pred_logits[i, best].argmax())
        assert label in truth.labels
        distance = (truth.boxes_cxcywh - output.pred_boxes[i, best]).abs().amax(-1)
        assert distance[truth.labels == label].min() < 0.12


def _two_rectangles() -> EffectiveBatch:
    """Four images, each with a red and a blue rectangle."""
    random = torch.Generator().manual_seed(3)
    images = torch.full((4, 3, 64, 64), 110, dtype=torch.uint8)
    targets = []
    for i in range(4):
        boxes = []
        for column, colour in enumerate(((220, 40, 40), (40, 60, 220))):
            top = int(torch.randint(0, 30, (1,), generator=random))
            left = column * 32 + int(torch.randint(0, 10, (1,), generator=random))
            images[i, :, top : top + 26, left : left + 20] = torch.tensor(colour, dtype=torch.uint8)[:, None, None]
            boxes.append([(left + 10) / 64, (top + 13) / 64, 20 / 64, 26 / 64])
        targets.append(
            Target(
                boxes_cxcywh=torch.tensor(boxes),
                labels=torch.tensor([0, 1]),
                image_id=i,
                size_hw=(64, 64),
                orig_size_hw=(64, 64),
            )
        )
    mask = torch.zeros(4, 64, 64, dtype=torch.bool)
    return EffectiveBatch((Batch(images=images, padding_mask=mask, targets=tuple(targets)),))

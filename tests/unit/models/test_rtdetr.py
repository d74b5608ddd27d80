"""RT-DETR: sizes, padding, fused convolutions, denoising queries, gradients everywhere, and that it learns."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from detronome.config.presets import preset
from detronome.config.schema import LossConfig, RtDetrConfig
from detronome.engine import schedule as schedules
from detronome.engine.guard import StepGuard
from detronome.engine.micro_batches import MicroBatchSizes
from detronome.engine.optim import build_optimizer
from detronome.engine.parallel import Parallel
from detronome.engine.step import TrainingStep
from detronome.losses.build import build_criterion
from detronome.models.backbones.compact import CompactBackbone
from detronome.models.build import build_model
from detronome.models.rtdetr.denoising import DenoisingQueries, make_denoising_queries
from detronome.models.rtdetr.encoder import HybridEncoder
from detronome.models.rtdetr.model import RTDETR
from detronome.models.rtdetr.transformer import Decoder
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


def small_rtdetr(*, num_denoising: int = 6, num_queries: int = 8) -> RTDETR:
    torch.manual_seed(0)
    backbone = SmallBackbone()
    encoder = HybridEncoder(backbone.out_channels, hidden_dim=32, num_heads=2, ffn_dim=32, expansion=0.5)
    decoder = Decoder(
        [32] * 3,
        num_classes=NUM_CLASSES,
        hidden_dim=16,
        num_heads=2,
        ffn_dim=32,
        num_layers=2,
        has_denoising=num_denoising > 0,
    )
    return RTDETR(backbone, encoder, decoder, num_queries=num_queries, num_denoising=num_denoising)


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


def queries_of(targets: Sequence[Target], **changes: float) -> DenoisingQueries:
    settings = {"num_denoising": 6, "box_noise": 1.0, "label_noise": 0.5} | changes
    embedding = nn.Embedding(NUM_CLASSES + 1, 16, padding_idx=NUM_CLASSES)
    queries = make_denoising_queries(targets, embedding, num_queries=5, **settings)  # type: ignore[arg-type]
    assert queries is not None
    return queries


@pytest.mark.parametrize("counts", [(0, 0), (2, 0), (3, 1)])
@pytest.mark.parametrize("num_denoising", [0, 6])
def test_every_weight_gets_a_gradient_whatever_the_objects(counts: tuple[int, ...], num_denoising: int) -> None:
    model = small_rtdetr(num_denoising=num_denoising).train()
    targets = [target(count, seed=i) for i, count in enumerate(counts)]
    criterion = build_criterion(LossConfig(classification="vfl"))
    output = model(*images_of(2), targets)
    losses = criterion(output, targets)
    criterion.total(losses).backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == []
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert ("loss_ce_dn_0" in losses) == (num_denoising > 0 and max(counts) > 0)
    assert {"loss_ce", "loss_ce_0", "loss_ce_enc"} <= set(losses)


@pytest.mark.parametrize("num_images", [1, 2])
def test_gradients_do_not_depend_on_the_memory_layout(num_images: int) -> None:
    """A single image, channel by channel, meets a fault of BatchNorm's CPU kernel: see `layers.tokens`."""
    model = small_rtdetr(num_denoising=0, num_queries=300).train()
    targets = [target(2, seed=i) for i in range(num_images)]
    criterion = build_criterion(LossConfig(classification="vfl"))
    gradients = []
    for memory_format in (torch.channels_last, torch.contiguous_format):
        changed = copy.deepcopy(model).to(memory_format=memory_format)
        changed.normalizer.memory_format = memory_format
        criterion.total(criterion(changed(*images_of(num_images), targets), targets)).backward()
        gradients.append({name: parameter.grad for name, parameter in changed.named_parameters()})
    for name, gradient in gradients[0].items():
        other = gradients[1][name]
        assert gradient is not None and other is not None
        assert (gradient - other).abs().max() <= 0.02 * gradient.abs().max() + 1e-6, name


def test_evaluation_gives_the_last_layer_alone() -> None:
    model = small_rtdetr().eval()
    output = model(*images_of(2), [target(2), target(0)])
    assert output.pred_logits.shape == (2, 8, NUM_CLASSES)
    assert not output.aux_outputs and output.enc_outputs is None and not output.dn_outputs


@pytest.mark.parametrize("size_hw", [(64, 64), (33, 95), (40, 100), (32, 32)])
@torch.no_grad()
def test_any_size_will_do(size_hw: tuple[int, int]) -> None:
    """Sides that 32 does not divide, and fewer cells than queries."""
    model = small_rtdetr(num_queries=300).eval()
    output = model(*images_of(1, size_hw))
    assert output.pred_boxes.isfinite().all() and output.pred_logits.shape[1] == output.pred_boxes.shape[1] <= 300


@torch.no_grad()
def test_an_image_does_not_depend_on_its_neighbours() -> None:
    model = small_rtdetr().eval()
    images, padding_mask = images_of(3)
    together = model(images, padding_mask)
    alone = model(images[1:2], padding_mask[1:2])
    torch.testing.assert_close(together.pred_boxes[1:2], alone.pred_boxes, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together.pred_logits[1:2], alone.pred_logits, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_boxes_are_parts_of_the_unpadded_image() -> None:
    model = small_rtdetr().eval()
    images, padding_mask = images_of(1)
    whole = model(images, padding_mask).pred_boxes
    padding_mask[:, 48:] = True
    images = images.masked_fill(padding_mask[:, None], 0)
    padded = model(images, padding_mask).pred_boxes
    seen_as_whole = model(images, torch.zeros_like(padding_mask)).pred_boxes
    torch.testing.assert_close(padded * torch.tensor([1, 0.75, 1, 0.75]), seen_as_whole)
    assert not torch.equal(whole, padded)


@torch.no_grad()
def test_fused_convolutions_say_the_same() -> None:
    model = small_rtdetr().eval()
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.running_mean.normal_(0, 0.2)  # type: ignore[union-attr]
        norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.normal_(0, 0.2)
    fused = copy.deepcopy(model)
    fused.fuse()
    fused.fuse()
    assert sum(p.numel() for p in fused.parameters()) < sum(p.numel() for p in model.parameters())
    images, padding_mask = images_of(2)
    expected, output = model(images, padding_mask), fused(images, padding_mask)
    torch.testing.assert_close(output.pred_logits, expected.pred_logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(output.pred_boxes, expected.pred_boxes, atol=1e-4, rtol=1e-4)


def test_predictions_are_float32_under_autocast() -> None:
    model = small_rtdetr().train()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(*images_of(2), [target(2), target(1)])
    assert output.enc_outputs is not None
    for part in (output, *output.aux_outputs, output.enc_outputs, *output.dn_outputs):
        assert part.pred_logits.dtype == part.pred_boxes.dtype == torch.float32
        assert part.pred_logits.isfinite().all() and part.pred_boxes.isfinite().all()


def test_no_denoising_queries_without_objects() -> None:
    embedding = nn.Embedding(NUM_CLASSES + 1, 16)
    settings = {"num_queries": 5, "num_denoising": 6, "box_noise": 1.0, "label_noise": 0.5}
    assert make_denoising_queries([target(0), target(0)], embedding, **settings) is None  # type: ignore[arg-type]


def test_positives_are_near_their_object_and_negatives_farther() -> None:
    """An edge moves by up to half the size, or by half to all of it; those that pass each other change places."""
    truth = replace(target(2), boxes_cxcywh=torch.tensor([[0.4, 0.5, 0.2, 0.1], [0.6, 0.5, 0.1, 0.2]]))
    torch.manual_seed(0)
    queries = queries_of([truth], num_denoising=200)
    groups = queries.reference_boxes.view(100, 2, 2, 4)
    moved = (cxcywh_to_xyxy(groups) - cxcywh_to_xyxy(truth.boxes_cxcywh)).abs()
    positive, negative = (moved / truth.boxes_cxcywh[:, 2:].repeat(1, 2)).unbind(1)
    assert positive.max() <= 0.5 + 1e-5 and negative.max() <= 1 + 1e-5
    low, high = negative.split(2, dim=-1)
    have_passed = (low < 0.5 + 1e-5) & (high < 0.5 + 1e-5)
    assert (have_passed | ((low > 0.5 - 1e-5) & (high > 0.5 - 1e-5))).all()
    assert 0.15 < have_passed.float().mean() < 0.35


@pytest.mark.parametrize("box_noise", [0.5, 1.0])
def test_denoising_boxes_have_no_negative_size(box_noise: float) -> None:
    """Edges of a negative may pass each other: a box with a negative size would give the background away."""
    torch.manual_seed(0)
    boxes = queries_of([target(3), target(1)], num_denoising=300, box_noise=box_noise).reference_boxes
    assert (boxes >= 0).all() and (boxes <= 1).all()


def test_a_box_trains_its_own_step_and_the_one_before() -> None:
    """Look forward twice: no further, and what a layer looks at trains nothing."""
    model = small_rtdetr(num_denoising=0)
    decoder = Decoder([32] * 3, num_classes=NUM_CLASSES, hidden_dim=16, num_heads=2, ffn_dim=32, num_layers=4)
    model.decoder = decoder
    model.train()
    output = model(*images_of(1), [target(1)])
    for layer, expected in ((2, [1, 2]), (1, [0, 1]), (0, [0])):
        decoder.zero_grad()
        output.aux_outputs[layer].pred_boxes.sum().backward(retain_graph=True)
        trained = [i for i, head in enumerate(decoder.dec_bbox_head) if head.layers[-1].bias.grad is not None]
        assert trained == expected


def test_matches_name_the_positives_of_each_group() -> None:
    queries = queries_of([target(3, seed=1), target(0), target(1, seed=2)], box_noise=0.0, label_noise=0.0)
    truths = [target(3, seed=1), target(0), target(1, seed=2)]
    assert queries.reference_boxes.shape[1] == 2 * 2 * 3  # two groups of three positives and three negatives
    for i, ((query, answer), truth) in enumerate(zip(queries.matches, truths, strict=True)):
        assert len(query) == 2 * truth.num_objects
        torch.testing.assert_close(queries.reference_boxes[i, query], truth.boxes_cxcywh[answer])
        assert not queries.padding_mask[i, query].any()


def test_groups_see_themselves_alone_and_nothing_sees_a_query_without_an_object() -> None:
    queries = queries_of([target(3), target(1)])
    weight = queries.attention_mask.softmax(-1)[:, 0]
    group = torch.arange(12) // 6
    assert (weight[:, :12, :12][:, group[:, None] != group] == 0).all()
    assert (weight[:, 12:, :12] == 0).all()
    assert (weight[1][:, :12][:, queries.padding_mask[1]] == 0).all()
    assert queries.padding_mask[1].sum() == 2 * 2 * 2


def test_discrete_sampling_leaves_the_offsets_alone() -> None:
    config = RtDetrConfig(
        backbone="resnet18vd",
        backbone_weights="none",
        sampling="discrete",
        encoder_dim=16,
        hidden_dim=16,
        num_heads=2,
        num_decoder_layers=1,
    )
    model = build_model(config, 2)
    offsets = [p for name, p in model.named_parameters() if "sampling_offsets" in name]
    assert offsets and not any(parameter.requires_grad for parameter in offsets)


@pytest.mark.parametrize(
    ("name", "millions"), [("rtdetr-v2-s", 20), ("rtdetr-v2-m", 31), ("rtdetr-v2-l", 42), ("rtdetr-v2-x", 76)]
)
def test_presets_have_the_published_number_of_parameters(name: str, millions: int) -> None:
    model_config = preset(name).model
    assert isinstance(model_config, RtDetrConfig)
    with torch.device("meta"):
        model = build_model(replace(model_config, backbone_weights="none"), 80)
    assert int(sum(parameter.numel() for parameter in model.parameters()) / 1e6) == millions


def test_learns_a_batch_by_heart() -> None:
    """Through the engine's own step: the loss falls, and the boxes are found with the right class."""
    model = small_rtdetr(num_queries=12)
    torch.manual_seed(1)
    batch = _two_rectangles()
    step = TrainingStep(
        parallel=Parallel(model, ALONE),
        criterion=build_criterion(LossConfig(classification="vfl", cost_class=2.0)),
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
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
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

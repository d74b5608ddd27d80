import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.faults.oom_injection import out_of_memory
from torch import Tensor

from detronome.config.schema import DetrConfig, LossConfig, ModelConfig, NanoConfig
from detronome.engine.evaluator import LossMeter, LossSums, detect_batch, detect_in_pieces, evaluate
from detronome.engine.micro_batches import MicroBatchSizes
from detronome.errors import TrainingError
from detronome.evaluation.detection import DetectionEvaluator
from detronome.losses.build import build_criterion
from detronome.losses.set_criterion import SetCriterion
from detronome.models.build import build_model
from detronome.models.detector import Detector
from detronome.types import Batch, Categories, EffectiveBatch, ModelOutput, Target

CPU = torch.device("cpu")
NUM_QUERIES, NUM_CLASSES = 6, 3
TERMS = {"loss_ce", "loss_bbox", "loss_giou"}
CATEGORIES = Categories((1, 2, 3), ("a", "b", "c"))
SOFTMAX = LossConfig()
QUALITY = LossConfig(classification="quality", cost_class=2.0)


def target(num_objects: int, *, image_id: int) -> Target:
    generator = torch.Generator().manual_seed(image_id)
    return Target(
        boxes_cxcywh=torch.rand(num_objects, 4, generator=generator) * 0.4 + torch.tensor([0.3, 0.3, 0.1, 0.1]),
        labels=torch.randint(0, NUM_CLASSES, (num_objects,), generator=generator),
        image_id=image_id,
        size_hw=(64, 64),
        orig_size_hw=(64, 64),
    )


def output(num_images: int, *, num_logits: int) -> ModelOutput:
    generator = torch.Generator().manual_seed(0)
    return ModelOutput(
        pred_logits=torch.randn(num_images, NUM_QUERIES, num_logits, generator=generator),
        pred_boxes=torch.rand(num_images, NUM_QUERIES, 4, generator=generator) * 0.3 + 0.3,
    )


def part(whole: ModelOutput, images: slice) -> ModelOutput:
    return replace(whole, pred_logits=whole.pred_logits[images], pred_boxes=whole.pred_boxes[images])


def criterion_of(config: LossConfig) -> tuple[SetCriterion, int]:
    return build_criterion(config), NUM_CLASSES + (config.classification == "softmax")


def test_a_split_without_images_has_no_losses() -> None:
    meter = LossMeter(build_criterion(SOFTMAX))
    assert meter.sums.means() == {}
    meter.sums.merge(LossSums())
    assert meter.sums.means() == {}


@pytest.mark.parametrize("config", [SOFTMAX, QUALITY], ids=["softmax", "quality"])
def test_a_split_without_objects_has_losses_without_nan(config: LossConfig) -> None:
    criterion, num_logits = criterion_of(config)
    meter = LossMeter(criterion)
    whole = output(2, num_logits=num_logits)
    for i in range(2):
        meter.add(part(whole, slice(i, i + 1)), [target(0, image_id=i)])
    means = meter.sums.means()
    assert means.keys() == TERMS
    assert means["loss_bbox"] == means["loss_giou"] == 0
    assert math.isfinite(means["loss_ce"]) and means["loss_ce"] > 0


@given(
    counts=st.lists(st.sampled_from([0, 0, 1, 2, 5, NUM_QUERIES, NUM_QUERIES + 3]), min_size=1, max_size=8),
    cuts=st.sets(st.integers(1, 7)),
    config=st.sampled_from([SOFTMAX, QUALITY]),
    progress=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_any_batches_on_any_ranks_give_the_losses_of_the_whole_split(
    counts: list[int], cuts: set[int], config: LossConfig, progress: float
) -> None:
    criterion, num_logits = criterion_of(config)
    targets = [target(count, image_id=i) for i, count in enumerate(counts)]
    whole = output(len(counts), num_logits=num_logits)
    expected = criterion(whole, targets, progress=progress)

    ranks = [LossMeter(criterion, progress=progress) for _ in range(2)]
    edges = [0, *sorted(cut for cut in cuts if cut < len(counts)), len(counts)]
    for i, (start, stop) in enumerate(pairwise(edges)):
        ranks[i % 2].add(part(whole, slice(start, stop)), targets[start:stop])
    total = LossSums()
    for rank in ranks:
        total.merge(rank.sums)
    assert total.means() == pytest.approx({name: loss.item() for name, loss in expected.items()}, rel=1e-5, abs=1e-7)


def test_only_the_last_layer_is_matched() -> None:
    criterion = build_criterion(QUALITY)
    last = output(1, num_logits=NUM_CLASSES)
    with_more = replace(last, aux_outputs=(last,), enc_outputs=last)
    calls = []
    matcher = criterion.matcher

    def counting(stacks: Sequence[Any], targets: Sequence[Target]) -> Any:
        calls.append([stack.logits.shape[0] for stack in stacks])
        return matcher(stacks, targets)

    criterion.matcher = counting  # type: ignore[assignment]
    meter = LossMeter(criterion)
    meter.add(with_more, [target(2, image_id=0)])
    assert calls == [[1]]
    assert meter.sums.means().keys() == TERMS


def test_a_model_that_has_become_nan_has_losses_that_say_so() -> None:
    meter = LossMeter(build_criterion(SOFTMAX))
    bad = output(1, num_logits=NUM_CLASSES + 1)
    meter.add(replace(bad, pred_logits=bad.pred_logits * math.nan), [target(2, image_id=0)])
    assert math.isnan(meter.sums.means()["loss_ce"])


def small_model(config: ModelConfig) -> Detector:
    torch.manual_seed(0)
    return build_model(config, NUM_CLASSES)


SMALL_DETR = DetrConfig(
    backbone="resnet18",
    backbone_weights="none",
    frozen_stages=0,
    hidden_dim=16,
    num_heads=2,
    ffn_dim=16,
    num_encoder_layers=1,
    num_decoder_layers=2,
    num_queries=NUM_QUERIES,
    dropout=0.5,
)
SMALL_RTDETR = NanoConfig(
    widths=(16, 16, 32), depths=(1, 1, 1), hidden_dim=16, num_heads=2, ffn_dim=16, num_queries=NUM_QUERIES
)


def split(counts: Sequence[int]) -> tuple[list[EffectiveBatch], DetectionEvaluator]:
    """Batches of two images each with noise in them, and an evaluator that knows their truth."""
    batches: list[EffectiveBatch] = []
    annotations: list[dict[str, Any]] = []
    for start in range(0, len(counts), 2):
        targets = [target(count, image_id=start + i) for i, count in enumerate(counts[start : start + 2])]
        generator = torch.Generator().manual_seed(start)
        pixels: Tensor = torch.randint(0, 256, (len(targets), 3, 64, 64), generator=generator, dtype=torch.uint8)
        mask = torch.zeros(len(targets), 64, 64, dtype=torch.bool)
        batches.append(EffectiveBatch((Batch(images=pixels, padding_mask=mask, targets=tuple(targets)),)))
        for one in targets:
            for (x, y, w, h), label in zip((one.boxes_cxcywh * 64).tolist(), one.labels.tolist(), strict=True):
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": one.image_id,
                        "category_id": label + 1,
                        "bbox": [x - w / 2, y - h / 2, w, h],
                        "area": w * h,
                        "iscrowd": 0,
                    }
                )
    truth = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 64, "width": 64} for i in range(len(counts))],
        "annotations": annotations,
        "categories": [{"id": i, "name": n} for i, n in zip(CATEGORIES.ids, CATEGORIES.names, strict=True)],
    }
    return batches, DetectionEvaluator(truth)


@pytest.mark.parametrize(
    ("model_config", "loss_config"), [(SMALL_DETR, SOFTMAX), (SMALL_RTDETR, QUALITY)], ids=["detr", "nano"]
)
def test_losses_are_measured_on_the_way_without_dropout_and_denoising(
    model_config: ModelConfig, loss_config: LossConfig
) -> None:
    model, criterion = small_model(model_config).train(), build_criterion(loss_config)
    batches, evaluator = split((2, 0, 1))

    def run(losses: LossMeter | None) -> dict[str, float]:
        metrics = evaluate(
            model,
            batches,
            evaluator,
            categories=CATEGORIES,
            max_detections=100,
            precision="fp32",
            device=CPU,
            losses=losses,
        )
        return metrics.numbers

    first, second = LossMeter(criterion), LossMeter(criterion)
    assert run(None) == pytest.approx(run(first), nan_ok=True)
    run(second)
    assert first.sums.means() == second.sums.means()
    assert first.sums.means().keys() == TERMS
    assert all(math.isfinite(value) and value > 0 for value in first.sums.means().values())
    assert model.training


def detected(model: Detector, batch: EffectiveBatch) -> list[int]:
    """Return the images in whose pieces something was looked for, in turn."""

    def detect(piece: Batch) -> Any:
        return detect_batch(model, piece, categories=CATEGORIES, max_detections=9, precision="fp32", device=CPU)

    found = detect_in_pieces(batch, detect, MicroBatchSizes(2, purpose="evaluation"), device=CPU)
    return [one.image_id for one in found]


@pytest.mark.parametrize("lacks", [{0, 1}, {0, 1, 3}], ids=["the first image", "each image once"])
def test_an_image_that_finds_no_room_for_a_moment_is_tried_again(lacks: set[int]) -> None:
    model = small_model(SMALL_RTDETR).eval()
    (batch,), _ = split((2, 1))
    with out_of_memory(model, max_images=0, calls=lacks) as injection:
        assert detected(model, batch) == [0, 1]
    assert [images for images, _, _ in injection.calls] == [2] + [1] * (len(lacks) + 1)
    assert injection.num_failures == len(lacks)


def test_an_image_that_never_finds_room_was_tried_twice() -> None:
    model = small_model(SMALL_RTDETR).eval()
    (batch,), _ = split((2, 1))
    with out_of_memory(model, max_images=0) as injection, pytest.raises(TrainingError, match="the last twice"):
        detected(model, batch)
    assert [images for images, _, _ in injection.calls] == [2, 1, 1]

"""Evaluating a model: batches in, metrics and losses out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch

from detronome.engine.micro_batches import MicroBatchSizes, OutOfMemoryAt, attempt
from detronome.engine.panoptic_meter import PanopticMeter, panoptic_of
from detronome.evaluation.detection import DetectionEvaluator, DetectionMetrics
from detronome.losses.set_criterion import SetCriterion
from detronome.losses.terms import BatchTotals
from detronome.models.detector import Detector
from detronome.models.postprocess import postprocess
from detronome.runtime.distributed import ALONE, World
from detronome.runtime.precision import Precision, autocast
from detronome.runtime.progress import Progress, Section
from detronome.types import Batch, Categories, Detections, EffectiveBatch, ModelOutput, Target

__all__ = ["LossMeter", "LossSums", "detect_batch", "detect_in_pieces", "evaluate"]


@dataclass
class LossSums:
    """Loss terms added up over batches, not yet divided: the parts of several ranks add up to the whole."""

    sums: dict[str, float] = field(default_factory=dict)
    divisors: dict[str, float] = field(default_factory=dict)

    def merge(self, other: LossSums) -> None:
        """Add what another part of the split came to."""
        for name, value in other.sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.divisors[name] = self.divisors.get(name, 0.0) + other.divisors[name]

    def means(self) -> dict[str, float]:
        """Return each term over the whole split, divided as training divides an effective batch. Empty for no image."""
        return {name: value / (self.divisors[name] or 1.0) for name, value in self.sums.items()}


class LossMeter:
    """Measures the unweighted losses of the last decoder layer over a split, to set beside those of training.

    Costs one call of the matcher for one layer, and two host syncs, a batch.

    Args:
        criterion: the one of training.
        progress: part of the training done, 0-1: a loss whose targets change on the way is measured as training
            measures it at this moment.
    """

    def __init__(self, criterion: SetCriterion, *, progress: float = 1.0) -> None:
        self.sums = LossSums()
        self._criterion = criterion
        self._progress = progress

    def gather(self, world: World) -> None:
        """Take over what all ranks have measured."""
        everywhere = world.gather(self.sums)
        self.sums = LossSums()
        for sums in everywhere:
            self.sums.merge(sums)

    @torch.inference_mode()
    def add(self, output: ModelOutput, targets: Sequence[Target]) -> None:
        """Add one batch."""
        # Families keep earlier layers and proposals in eval mode too: matching them would double the cost.
        last_layer = replace(output, aux_outputs=(), enc_outputs=None, dn_outputs=(), dn_matches=())
        totals = BatchTotals.of(targets, output.pred_logits.shape[1])
        losses = self._criterion(last_layer, targets, totals=totals, progress=self._progress)
        values = dict(zip(losses, torch.stack(list(losses.values())).tolist(), strict=True))
        divisors = {name: float(totals.num_objects) for name in losses}
        if self._criterion.classification == "softmax":
            unmatched = totals.num_images * output.pred_logits.shape[1] - totals.num_matches
            divisors["loss_ce"] = totals.num_matches + self._criterion.no_object_weight * unmatched
        # A batch without objects was divided by 1, and adds nothing to the divisor.
        sums = {name: value * (divisors[name] or 1.0) for name, value in values.items()}
        self.sums.merge(LossSums(sums, divisors))


def detect_batch(
    model: Detector,
    batch: Batch,
    *,
    categories: Categories,
    max_detections: int,
    precision: Precision,
    device: torch.device,
    panoptic_score: float = 0.85,
) -> list[Detections]:
    """Return the detections of one batch in pixels of the original images, with panoptic maps where the model makes
    masks, of the queries above `panoptic_score`. The model must be in eval mode."""
    batch = batch.to(device)
    output = _forward(model, batch, precision, device)
    detections = _detections(model, batch, output, categories, max_detections)
    if output.masks is None:
        return detections
    maps = panoptic_of(output, batch.targets, categories, min_score=panoptic_score)
    return [replace(found, panoptic=panoptic) for found, panoptic in zip(detections, maps, strict=True)]


def evaluate(
    model: Detector,
    batches: Iterable[EffectiveBatch],
    evaluator: DetectionEvaluator,
    *,
    categories: Categories,
    max_detections: int,
    precision: Precision,
    device: torch.device,
    losses: LossMeter | None = None,
    panoptic: PanopticMeter | None = None,
    sizes: MicroBatchSizes | None = None,
    on_split: Callable[[OutOfMemoryAt, int], None] = lambda *_: None,
    world: World = ALONE,
    activity: Progress | None = None,
) -> DetectionMetrics:
    """Return the metrics of a model on a split, on every rank. The model's mode is restored afterwards.

    Args:
        model: on `device`.
        batches: this rank's images of the split; each image is some rank's.
        evaluator: collects the detections, on the main rank.
        categories: what the model's labels mean.
        max_detections: kept of each image.
        precision: of the forward pass.
        device: where the model is.
        losses: measures the losses on the way, if given; holds those of all ranks afterwards.
        panoptic: measures panoptic quality too, if given.
        sizes: how many images go through the model at once; learns where memory runs out.
        on_split: is told of that, see `TrainingStep`.
        world: the ranks.
        activity: is told which images are under way.

    Raises:
        TrainingError: memory has no room for a single image.
    """
    activity = activity or Progress()
    was_training = model.training
    model.eval()
    if panoptic is not None:
        panoptic.reset()
    mine: list[Detections] = []
    try:
        for batch in batches:
            activity.enter(activity.now.section, images=batch.image_ids)
            mine += detect_in_pieces(
                batch,
                lambda piece: _detect(
                    model, piece.to(device), categories, max_detections, precision, device, losses, panoptic
                ),
                sizes or MicroBatchSizes(len(batch), purpose="evaluation"),
                device=device,
                on_split=on_split,
                rank=world.rank,
            )
    finally:
        model.train(was_training)
    with activity.within(Section.EVALUATION_MERGE):
        if losses is not None:
            losses.gather(world)
        everywhere = world.gather(mine)
        quality = panoptic.compute(world) if panoptic is not None else None
    metrics = _metrics(evaluator, everywhere, max_detections) if world.is_main else None
    with activity.within(Section.EVALUATION_MERGE):
        metrics = world.broadcast(metrics)
    assert metrics is not None
    return metrics if quality is None else metrics.with_panoptic(quality)


def detect_in_pieces(
    batch: EffectiveBatch,
    detect: Callable[[Batch], list[Detections]],
    sizes: MicroBatchSizes,
    *,
    device: torch.device,
    on_split: Callable[[OutOfMemoryAt, int], None] = lambda *_: None,
    rank: int = 0,
) -> list[Detections]:
    """Return the detections of a batch, in pieces as small as memory demands.

    A single image that finds no room is tried a second time, since others may have held the memory for a moment only.

    Raises:
        TrainingError: memory has no room for a single image.
    """
    found: list[Detections] = []
    waiting = deque(sizes.cut(batch))
    was_tried_alone = False
    while waiting:
        piece = waiting.popleft()
        failure = attempt(lambda piece=piece: found.extend(detect(piece)), piece, device, rank=rank)  # type: ignore[misc]
        if failure is None:
            was_tried_alone = False
            continue
        for split in sizes.split([failure] if failure.num_images > 1 or was_tried_alone else []):
            on_split(*split)
        was_tried_alone = failure.num_images == 1
        waiting.extendleft(reversed(sizes.cut(EffectiveBatch((piece,)))))
    return found


def _metrics(
    evaluator: DetectionEvaluator, everywhere: Sequence[list[Detections]], max_detections: int
) -> DetectionMetrics:
    evaluator.reset()
    for detections in everywhere:
        evaluator.add(detections)
    return evaluator.compute(max_detections=max_detections)


def _detect(
    model: Detector,
    batch: Batch,
    categories: Categories,
    max_detections: int,
    precision: Precision,
    device: torch.device,
    losses: LossMeter | None,
    panoptic: PanopticMeter | None,
) -> list[Detections]:
    output = _forward(model, batch, precision, device)
    detections = _detections(model, batch, output, categories, max_detections)
    predictions = panoptic.predict(output, batch.targets) if panoptic is not None else []
    if losses is not None:
        losses.add(output, batch.targets)
    if panoptic is not None:
        panoptic.add(predictions)  # last: a batch that ran out of memory comes again
    return detections


@torch.inference_mode()
def _forward(model: Detector, batch: Batch, precision: Precision, device: torch.device) -> ModelOutput:
    with autocast(precision, device):
        output: ModelOutput = model(batch.images, batch.padding_mask)
    return output


@torch.inference_mode()
def _detections(
    model: Detector, batch: Batch, output: ModelOutput, categories: Categories, max_detections: int
) -> list[Detections]:
    return postprocess(
        output,
        [target.orig_size_hw for target in batch.targets],
        batch.image_ids,
        categories,
        activation=model.activation,
        max_detections=max_detections,
    )

"""What a model loses and gains by trimming: accuracy and latency over decoder layers, queries and image sizes.

One forward pass measures all depths, since every decoder layer predicts. Latencies are taken in turn, so that a busy
machine's drift hits all alike, and compared within each turn.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from statistics import median

import numpy as np
import torch
from jaxtyping import UInt8

from detronome.config.convert import from_dict
from detronome.config.schema import RunConfig
from detronome.data.build import build_eval_batches, build_quarantine, resolve_workers
from detronome.data.loader import BatchLoader
from detronome.data.quarantine import Quarantine
from detronome.data.split import DataSplit
from detronome.data.store.decode import decode_image
from detronome.deploy.optimize import optimized
from detronome.deploy.predictor import Predictor, build_predictor
from detronome.deploy.query_use import queries_by_use
from detronome.deploy.trim import Extent, check_extent, detector_of, extent_of, trimmed
from detronome.engine.build import build_panoptic_meter
from detronome.engine.checkpoint import Checkpoint
from detronome.engine.evaluator import detect_in_pieces, evaluate
from detronome.engine.micro_batches import MicroBatchSizes
from detronome.engine.resume import for_another_run
from detronome.errors import DataError, Problem
from detronome.evaluation.detection import DetectionEvaluator
from detronome.models.detector import Detector
from detronome.models.postprocess import postprocess
from detronome.runtime.precision import autocast, resolve_precision
from detronome.runtime.speedup import Speedup, speedup_of
from detronome.types import Batch, Categories, Detections

__all__ = ["Sweep", "SweepPoint", "rank_queries", "sweep", "sweep_extents"]

_WARMUP_ROUNDS = 2
_TIMED_IMAGES = 8
_TURN_S = 0.05
"""A turn is as many images as the whole model needs so long for: single short ones are at the scheduler's mercy."""
_MOST_IN_TURN = 32
_SHARES = (1.0, 0.8, 0.65)
"""Of the image's side: a half to two thirds of the pixels go with each."""
_STEP_PX = 32
_ROUNDING = 1e-9
"""A loss of exactly the tolerance is allowed."""


@dataclass(frozen=True, kw_only=True)
class SweepPoint:
    """One trimmed model, measured."""

    extent: Extent
    metrics: Mapping[str, float]
    """AP, AP50, ..., 0-1, and PQ where the model makes masks."""
    latencies_s: tuple[float, ...]
    """Seconds from one decoded image to its detections, one image at a time: the mean of a turn, one for each round. In
    a round all points had the same images."""
    speedup: Speedup
    """How many times as fast as the whole model, over the rounds."""

    @property
    def latency_s(self) -> float:
        """The median."""
        return median(self.latencies_s)

    @property
    def latency_iqr_s(self) -> tuple[float, float]:
        """The middle half of the latencies lies between these."""
        low, high = np.quantile(self.latencies_s, (0.25, 0.75)).tolist()
        return low, high


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The points of a sweep; the first is the whole model."""

    points: tuple[SweepPoint, ...]
    metric: str
    """Which of the metrics decides; the one that chose the checkpoint."""
    num_images: int
    """Of the split that the metrics come from."""
    notes: tuple[str, ...] = ()

    @property
    def whole(self) -> SweepPoint:
        """The model as it is."""
        return self.points[0]

    def loss(self, point: SweepPoint) -> float:
        """Return how much of the deciding metric a point loses against the whole model; below 0 where it gains."""
        return self.whole.metrics[self.metric] - point.metrics[self.metric]

    def front(self) -> list[SweepPoint]:
        """Return the points that no other is both as accurate and faster, or as fast and more accurate than."""
        return [point for point in self.points if not any(self._is_beaten(point, by=other) for other in self.points)]

    def recommended(self, tolerance: float) -> SweepPoint:
        """Return the fastest of the points that lose no more than `tolerance` of the deciding metric, 0-1, and are
        proven to be faster than the whole model (95 %); where there is none, the whole model."""
        allowed = [p for p in self.points if self.loss(p) <= tolerance + _ROUNDING and p.speedup.low > 1]
        return max(allowed, key=lambda point: point.speedup.ratio, default=self.whole)

    def _is_beaten(self, point: SweepPoint, *, by: SweepPoint) -> bool:
        mine = (point.metrics[self.metric], point.speedup.ratio)
        other = (by.metrics[self.metric], by.speedup.ratio)
        return other != mine and other[0] >= mine[0] and other[1] >= mine[1]


def sweep_extents(
    config: RunConfig,
    *,
    decoder_layers: Sequence[int] = (),
    queries: Sequence[int] = (),
    image_sizes: Sequence[int] = (),
    most_objects: int = 1,
) -> list[Extent]:
    """Return what a sweep measures: the whole model, then every combination.

    Args:
        config: of the whole model, resolved.
        decoder_layers: depths; by default all.
        queries: numbers of queries; by default all, half and a quarter of them, if these are enough.
        image_sizes: short sides, or sides of squares, in pixels; by default about 0.8 and 0.65 of the model's too.
        most_objects: of one image: the least that a default number of queries is enough for.

    Raises:
        ConfigError: a value that the model cannot be trimmed to.
    """
    whole = extent_of(config)
    halves = {whole.num_queries, *(n for n in (whole.num_queries // 2, whole.num_queries // 4) if n >= most_objects)}
    sides = {max(_STEP_PX, round(share * whole.image_size / _STEP_PX) * _STEP_PX) for share in _SHARES[1:]}
    axes = (
        sorted(set(image_sizes) or {whole.image_size, *(side for side in sides if side < whole.image_size)})[::-1],
        sorted(set(queries) or {n for n in halves if n >= 1})[::-1],
        sorted(set(decoder_layers) or set(range(1, whole.decoder_layers + 1)))[::-1],
    )
    extents = [Extent(image_size=size, num_queries=n, decoder_layers=depth) for size, n, depth in product(*axes)]
    for extent in extents:
        check_extent(config, extent)
    return list(dict.fromkeys((whole, *extents)))


def rank_queries(checkpoint: Checkpoint, split: DataSplit, *, device: torch.device) -> list[int]:
    """Return a model's learned queries, those first that found most objects in a split; see `queries_by_use`."""
    config = from_dict(checkpoint.config)
    precision, _ = resolve_precision(config.train.precision, device)
    detector = detector_of(checkpoint).to(device)
    with _batches(config, split, checkpoint.categories, device, build_quarantine(config, split)) as batches:
        return queries_by_use(detector, batches, precision=precision, device=device)


def sweep(
    checkpoint: Checkpoint,
    split: DataSplit,
    extents: Sequence[Extent],
    *,
    device: torch.device,
    best_queries: Sequence[int] = (),
    rounds: int = 30,
    on_progress: Callable[[str], None] = lambda _: None,
) -> Sweep:
    """Measure accuracy and latency of a model trimmed in several ways.

    Args:
        checkpoint: of the whole model.
        split: to measure the accuracy on; some of its images are those of the latencies.
        extents: what to trim to; the whole model first.
        device: where to compute.
        best_queries: see `trimmed`.
        rounds: timed turns of each point.
        on_progress: is told what is measured next.

    Raises:
        DataError: the split has no object to find, or no image that can be read.
    """
    config = from_dict(checkpoint.config)
    if not split.index.used_labels():
        raise DataError(
            "no object is annotated, so there is no accuracy to measure",
            where=str(split.files.annotation_file),
            fix="name another split",
        )
    has_masks = build_panoptic_meter(config, split, checkpoint.categories) is not None
    metric = config.train.metric if has_masks or config.train.metric != "PQ" else "AP"
    base = detector_of(checkpoint).to(device)
    shared = replace(checkpoint, model=base.state_dict())
    metrics: dict[Extent, Mapping[str, float]] = {}
    quarantine = build_quarantine(config, split)
    for size in dict.fromkeys(extent.image_size for extent in extents):
        on_progress(f"{metric} at {size} px")
        same_size = [extent for extent in extents if extent.image_size == size]
        metrics |= _qualities(shared, same_size, split, best_queries=best_queries, device=device, quarantine=quarantine)
    on_progress(f"latency of {len(extents)} models in turn")
    predictors = _predictors(shared, extents, best_queries=best_queries, device=device)
    latencies = _latencies(predictors, _some_images(split), rounds=rounds)
    return Sweep(
        points=tuple(
            SweepPoint(
                extent=extent,
                metrics=metrics[extent],
                latencies_s=tuple(own),
                speedup=speedup_of([a / b for a, b in zip(latencies[0], own, strict=True)]),
            )
            for extent, own in zip(extents, latencies, strict=True)
        ),
        metric=metric,
        num_images=len(split.index),
        notes=tuple(f"image id {image.image_id} was left out: {image.what}" for image in quarantine.drain()),
    )


def _qualities(
    checkpoint: Checkpoint,
    extents: Sequence[Extent],
    split: DataSplit,
    *,
    best_queries: Sequence[int],
    device: torch.device,
    quarantine: Quarantine,
) -> dict[Extent, Mapping[str, float]]:
    """Return the metrics of trimmed models that all see images of one size."""

    def cut(extent: Extent) -> Checkpoint:
        return trimmed(checkpoint, extent, best_queries=best_queries)

    config = from_dict(cut(extents[0]).config)
    evaluator = DetectionEvaluator(split.box_truth(), unknown_categories="drop")
    with _batches(config, split, checkpoint.categories, device, quarantine) as batches:
        if build_panoptic_meter(config, split, checkpoint.categories) is not None:
            # The mask head works on the last layer alone, so each depth is a model of its own.
            return {extent: _panoptic_quality(cut(extent), batches, evaluator, split, device) for extent in extents}
        deepest = {e.num_queries: e for e in sorted(extents, key=lambda extent: extent.decoder_layers)}.values()
        detectors = {extent: detector_of(cut(extent), share=True).to(device) for extent in deepest}
        found = _found_by_layer(detectors, batches, config, checkpoint.categories, device)
    qualities: dict[Extent, Mapping[str, float]] = {}
    for extent in extents:
        evaluator.reset()
        evaluator.add(found.get(extent, []))
        qualities[extent] = evaluator.compute(max_detections=config.eval.max_detections).numbers
    return qualities


def _found_by_layer(
    detectors: Mapping[Extent, Detector],
    batches: BatchLoader,
    config: RunConfig,
    categories: Categories,
    device: torch.device,
) -> dict[Extent, list[Detections]]:
    """Return what each decoder layer of each detector finds, from one pass over the images."""
    found: dict[Extent, list[Detections]] = {}

    def detect(batch: Batch) -> list[Detections]:
        moved = batch.to(device)
        new = {
            replace(extent, decoder_layers=depth): detections
            for extent, detector in detectors.items()
            for depth, detections in enumerate(_detections_by_layer(detector, moved, config, categories, device), 1)
        }
        for extent, detections in new.items():  # last: a batch that ran out of memory comes again
            found.setdefault(extent, []).extend(detections)
        return []

    sizes = MicroBatchSizes(_batch_size(config), purpose="evaluation")
    for batch in batches:
        detect_in_pieces(batch, detect, sizes, device=device)
    return found


@torch.inference_mode()
def _detections_by_layer(
    detector: Detector, batch: Batch, config: RunConfig, categories: Categories, device: torch.device
) -> list[list[Detections]]:
    """Return what each decoder layer finds in a batch, first to last."""
    detector.all_layers = True
    precision, _ = resolve_precision(config.train.precision, device)
    with autocast(precision, device):
        output = detector(batch.images, batch.padding_mask)
    return [
        postprocess(
            layer,
            [target.orig_size_hw for target in batch.targets],
            batch.image_ids,
            categories,
            activation=detector.activation,
            max_detections=config.eval.max_detections,
        )
        for layer in (*output.aux_outputs, output)
    ]


def _panoptic_quality(
    checkpoint: Checkpoint,
    batches: BatchLoader,
    evaluator: DetectionEvaluator,
    split: DataSplit,
    device: torch.device,
) -> Mapping[str, float]:
    config = from_dict(checkpoint.config)
    precision, _ = resolve_precision(config.train.precision, device)
    return evaluate(
        detector_of(checkpoint, share=True).to(device),
        batches,
        evaluator,
        categories=checkpoint.categories,
        max_detections=config.eval.max_detections,
        precision=precision,
        device=device,
        panoptic=build_panoptic_meter(config, split, checkpoint.categories),
    ).numbers


def _predictors(
    checkpoint: Checkpoint, extents: Sequence[Extent], *, best_queries: Sequence[int], device: torch.device
) -> list[Predictor]:
    """Return what predicts for each trimmed model, in the form that `Model.predict` has; sizes share a network."""
    forms: dict[tuple[int, int], Detector] = {}
    predictors = []
    for extent in extents:
        smaller = trimmed(checkpoint, extent, best_queries=best_queries)
        config = from_dict(smaller.config)
        key = (extent.decoder_layers, extent.num_queries)
        if key not in forms:
            detector = detector_of(smaller, share=True).to(device)
            precision, _ = resolve_precision(config.train.precision, device)
            forms[key] = optimized(detector) if device.type == "cpu" and precision == "fp32" else detector
        predictors.append(build_predictor(config, forms[key], checkpoint.categories, device))
    return predictors


def _latencies(
    predictors: Sequence[Predictor], images: Sequence[UInt8[np.ndarray, "H W 3"]], *, rounds: int
) -> list[list[float]]:
    """Return the mean seconds that each predictor takes for one image, one mean for each round.

    All see the same images in a round, each round begins with another predictor, and detections are on the host when a
    prediction ends, so that a GPU has finished its work.
    """
    seconds: list[list[float]] = [[] for _ in predictors]
    count = 1
    gc.collect()
    gc.disable()
    try:
        for number in range(-_WARMUP_ROUNDS, rounds):
            turn = [images[(number * count + n) % len(images)] for n in range(count)]
            first = number % len(predictors)
            for n in [*range(first, len(predictors)), *range(first)]:
                start = time.perf_counter()
                for image in turn:
                    predictors[n].predict([image])
                seconds[n].append((time.perf_counter() - start) / count)
            if number < 0:
                count = min(_MOST_IN_TURN, math.ceil(_TURN_S / seconds[0][-1]))
    finally:
        gc.enable()
    return [own[_WARMUP_ROUNDS:] for own in seconds]


def _some_images(split: DataSplit) -> list[UInt8[np.ndarray, "H W 3"]]:
    """Return images from all over the split."""
    images: list[UInt8[np.ndarray, "H W 3"]] = []
    problems: list[Problem] = []
    step = math.ceil(len(split.index) / _TIMED_IMAGES)
    for i in range(0, len(split.index), step):
        try:
            images.append(decode_image(split.source.read(i), split.source.where(i), split.index.image(i).size_hw))
        except DataError as error:
            problems += error.problems
    if not images:
        raise DataError(problems)
    return images


@contextmanager
def _batches(
    config: RunConfig, split: DataSplit, categories: Categories, device: torch.device, quarantine: Quarantine
) -> Iterator[BatchLoader]:
    workers, _ = resolve_workers(for_another_run(config), device.type, split.index.sizes_hw)
    with build_eval_batches(
        config,
        split,
        categories,
        batch_size=_batch_size(config),
        workers=workers,
        device=device,
        quarantine=quarantine,
    ) as batches:
        yield batches


def _batch_size(config: RunConfig) -> int:
    return 8 if config.eval.batch_size == "auto" else config.eval.batch_size

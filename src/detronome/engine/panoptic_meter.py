"""Panoptic quality of a model, measured image by image while it is evaluated: no map is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from detronome.data.split import DataSplit
from detronome.evaluation.panoptic import PanopticEvaluator, PanopticMetrics
from detronome.models.panoptic.postprocess import panoptic_postprocess
from detronome.runtime.distributed import World
from detronome.types import Categories, ModelOutput, PanopticPrediction, Target

__all__ = ["PanopticMeter", "panoptic_of"]


class PanopticMeter:
    """Compares panoptic predictions with the maps of a split.

    Args:
        split: with panoptic annotations.
        categories: what the model's labels mean; predicted segments of categories that the split does not list become
            void.
        min_score: see `panoptic_postprocess`.
    """

    def __init__(self, split: DataSplit, categories: Categories, *, min_score: float) -> None:
        assert split.maps is not None, "the split has no panoptic maps"
        self._maps = split.maps
        self._places = {split.index.image(i).image_id: i for i in range(len(split.index))}
        self._known = frozenset(split.index.categories.ids)
        self._categories = categories
        self._min_score = min_score
        self._evaluator = PanopticEvaluator(split.index.categories)

    def reset(self) -> None:
        """Forget all images."""
        self._evaluator.reset()

    def predict(self, output: ModelOutput, targets: Sequence[Target]) -> list[PanopticPrediction]:
        """Return the panoptic predictions of one batch."""
        return panoptic_of(output, targets, self._categories, min_score=self._min_score)

    def add(self, predictions: Sequence[PanopticPrediction]) -> None:
        """Compare the predictions of some images with the truth."""
        for prediction in predictions:
            truth = self._maps.truth(self._places[prediction.image_id])
            self._evaluator.add(truth, self._of_known_categories(prediction))

    def compute(self, world: World) -> PanopticMetrics:
        """Return the numbers over the images of all ranks, on every rank."""
        everywhere = world.gather(self._evaluator.to_arrays())
        self._evaluator.reset()
        for arrays in everywhere:
            self._evaluator.add_arrays(arrays)
        return self._evaluator.compute()

    def _of_known_categories(self, prediction: PanopticPrediction) -> PanopticPrediction:
        unknown = [segment.id for segment in prediction.segments if segment.category_id not in self._known]
        if not unknown:
            return prediction
        is_void = np.isin(prediction.segment_ids, unknown)
        return replace(
            prediction,
            segment_ids=np.where(is_void, 0, prediction.segment_ids).astype(np.int32),
            segments=tuple(segment for segment in prediction.segments if segment.id not in unknown),
        )


@torch.inference_mode()
def panoptic_of(
    output: ModelOutput, targets: Sequence[Target], categories: Categories, *, min_score: float
) -> list[PanopticPrediction]:
    """Return the panoptic predictions of one batch, given what is known of its images."""
    return panoptic_postprocess(
        output,
        [target.size_hw for target in targets],
        [target.orig_size_hw for target in targets],
        [target.image_id for target in targets],
        categories,
        min_score=min_score,
    )

"""One image of a split with its truth, decoded and augmented: a pure function of (seed, epoch, index).

Shape letters: `h w` height and width after augmentation, `K` categories of the data set.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from detronome.data.augment.cpu import apply_to_boxes, apply_to_image
from detronome.data.augment.params import AugmentPolicy, draw, evaluation_params
from detronome.data.store.decode import decode_image
from detronome.data.store.index import AnnotationIndex
from detronome.data.store.source import ImageSource
from detronome.errors import DataError, Problem
from detronome.ops.boxes import xyxy_to_cxcywh
from detronome.runtime.seeding import generator
from detronome.types import Target

__all__ = ["DetectionDataset"]


class DetectionDataset(Dataset[tuple[UInt8[Tensor, "3 h w"], Target]]):
    """Images and targets of a split, by (epoch, index).

    Crowd regions and boxes without area inside the image are left out, as in the reference; images without objects
    stay. Holds no annotations itself, only the mapped index: it pickles to a few hundred bytes.

    Args:
        index: the split's annotations.
        source: the encoded images.
        policy: how images are resized and augmented.
        training: draw augmentations; otherwise resize for evaluation, the same in every epoch.
        seed: of the augmentations.
        label_map: the model's label for each label of the data, -1 for none; None where they are the same.
    """

    def __init__(
        self,
        index: AnnotationIndex,
        source: ImageSource,
        policy: AugmentPolicy,
        *,
        training: bool,
        seed: int = 0,
        label_map: Int64[np.ndarray, " K"] | None = None,
    ) -> None:
        self._index = index
        self._source = source
        self._policy = policy
        self._training = training
        self._seed = seed
        self._label_map = label_map

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, key: tuple[int, int]) -> tuple[UInt8[Tensor, "3 h w"], Target]:
        """Return the image and the target of (epoch, index).

        Raises:
            DataError: the image file is missing, damaged or of another size than annotated; names the image id.
        """
        epoch, i = key
        record = self._index.image(i)
        try:
            pixels = decode_image(self._source.read(i), self._source.where(i), record.size_hw)
        except DataError as error:
            raise DataError(
                [
                    Problem(what=problem.what, where=f"{problem.where} (image id {record.image_id})", fix=problem.fix)
                    for problem in error.problems
                ]
            ) from error
        if self._training:
            rng = generator("augment", self._seed, epoch, record.image_id)
            params = draw(self._policy, record.size_hw, rng)
        else:
            params = evaluation_params(self._policy, record.size_hw)

        boxes_xyxy, labels = self._objects(i, record.size_hw)
        boxes_xyxy, keep = apply_to_boxes(boxes_xyxy, record.size_hw, params)
        height, width = params.final_hw
        boxes_cxcywh = xyxy_to_cxcywh(torch.from_numpy(boxes_xyxy / [width, height, width, height]))
        target = Target(
            boxes_cxcywh=boxes_cxcywh.float(),
            labels=torch.from_numpy(labels[keep]),
            image_id=record.image_id,
            size_hw=params.final_hw,
            orig_size_hw=record.size_hw,
        )
        return apply_to_image(pixels, params), target

    def _objects(
        self, i: int, size_hw: tuple[int, int]
    ) -> tuple[np.ndarray[tuple[int, int], np.dtype[np.float64]], Int64[np.ndarray, " T"]]:
        """Return (boxes_xyxy in pixels, clamped to the image; the model's labels) of the objects to learn."""
        boxes, labels, _, iscrowd = self._index.annotations(i)
        boxes[:, 2:] += boxes[:, :2]
        boxes = boxes.clip(0.0, np.array([size_hw[1], size_hw[0]] * 2, np.float64))
        mapped = labels.astype(np.int64) if self._label_map is None else self._label_map[labels]
        keep = ~iscrowd & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]) & (mapped >= 0)
        return boxes[keep], mapped[keep]

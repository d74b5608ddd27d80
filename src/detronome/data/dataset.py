"""One image of a split with its truth, decoded and augmented: a pure function of (seed, epoch, index).

Shape letters: `h w` height and width after augmentation, `K` categories of the data set, `T` objects of the image.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float64, Int32, Int64
from torch.utils.data import Dataset

from detronome.data.augment.cpu import apply_to_boxes, apply_to_image, apply_to_map
from detronome.data.augment.params import AugmentParams, AugmentPolicy, draw, evaluation_params, step_side
from detronome.data.coco.panoptic_map import boxes_of_rows
from detronome.data.collate import Sample
from detronome.data.raw_batch import RawSample
from detronome.data.sampler import StepOfImage
from detronome.data.store.index import AnnotationIndex
from detronome.data.store.maps import PanopticMaps
from detronome.data.store.pixels import PixelReader
from detronome.errors import DataError, Problem
from detronome.ops.boxes import xyxy_to_cxcywh
from detronome.runtime.clock import StageClock
from detronome.runtime.seeding import generator
from detronome.types import Target

__all__ = ["DetectionDataset"]


class DetectionDataset(Dataset[Sample]):
    """Images and targets of a split, by (epoch, index).

    Crowd regions and boxes without area inside the image are left out, as in the reference; images without objects
    stay. Of panoptic annotations every segment is an object, thing, stuff or crowd, as in the reference, with the box
    around its pixels. Holds no annotations itself, only the mapped index: it pickles to a few hundred bytes.

    Args:
        index: the split's annotations.
        pixels: the decoded images.
        policy: how images are resized and augmented.
        training: draw augmentations; otherwise resize for evaluation, the same in every epoch.
        seed: of the augmentations.
        label_map: the model's label for each label of the data, -1 for none; None where they are the same.
        maps: the split's panoptic maps; targets have masks then.
        step_of: says in which step of an epoch an image is: the images of a step then get one size, drawn for it.
    """

    def __init__(
        self,
        index: AnnotationIndex,
        pixels: PixelReader,
        policy: AugmentPolicy,
        *,
        training: bool,
        seed: int = 0,
        label_map: Int64[np.ndarray, " K"] | None = None,
        maps: PanopticMaps | None = None,
        step_of: StepOfImage | None = None,
    ) -> None:
        self._index = index
        self._pixels = pixels
        self._policy = policy
        self._training = training
        self._seed = seed
        self._label_map = label_map
        self._maps = maps
        self._step_of = step_of
        self.clock = StageClock()
        """Seconds spent reading, decoding and augmenting, in this process."""

    def __len__(self) -> int:
        return len(self._index)

    def image_id(self, i: int) -> int:
        """Return the id of image `i` in the annotation file."""
        return self._index.image(i).image_id

    def where(self, i: int) -> str:
        """Return the place of image `i`: a path, or a shard and the member in it."""
        return self._pixels.where(i)

    def params(self, epoch: int, i: int) -> AugmentParams:
        """Return what is done to image `i` in an epoch."""
        record = self._index.image(i)
        if not self._training:
            return evaluation_params(self._policy, record.size_hw)
        side = None
        if self._step_of is not None:
            side = step_side(self._policy, generator("side", self._seed, epoch, self._step_of(epoch, i)))
        return draw(self._policy, record.size_hw, generator("augment", self._seed, epoch, record.image_id), side=side)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        """Return the image and the target of (epoch, index).

        Raises:
            DataError: the image file or its panoptic map is missing, damaged or of another size than annotated; names
                the image id.
        """
        pixels, params, target = self.raw(key)
        with self.clock.stage("augment"):
            return apply_to_image(pixels, params), target

    def raw(self, key: tuple[int, int]) -> RawSample:
        """Return the decoded image of (epoch, index), what is to be done to it, and the target after that.

        Raises:
            DataError: as above.
        """
        epoch, i = key
        params = self.params(epoch, i)
        try:
            pixels = self._pixels.read(i, self.clock, params.enough_hw)
            rows = None
            if self._maps is not None:
                with self.clock.stage("decode"):
                    rows = self._maps.rows(i)
        except DataError as error:
            raise self._with_image_id(error, i) from error
        with self.clock.stage("augment"):
            pixels_hw = (pixels.shape[0], pixels.shape[1])
            if rows is not None:
                return pixels, params, self._target_with_masks(i, params, pixels_hw, rows)
            boxes_xyxy, labels = self._objects(i, params.size_hw)
            boxes_xyxy, keep = apply_to_boxes(boxes_xyxy, params, pixels_hw)
            return pixels, params, self._target(i, params, boxes_xyxy, labels[keep])

    def _target_with_masks(
        self, i: int, params: AugmentParams, pixels_hw: tuple[int, int], rows: Int32[np.ndarray, "H W"]
    ) -> Target:
        _, labels, _, _ = self._index.annotations(i)
        mapped = self._mapped(labels)
        known = np.flatnonzero(mapped >= 0)
        moved, is_inside = apply_to_map(rows, len(labels), params, pixels_hw)
        boxes_xyxy, keep = apply_to_boxes(boxes_of_rows(rows, len(labels))[known], params, pixels_hw)
        has_pixels = is_inside[known[keep]]
        segments = known[keep][has_pixels]
        target = self._target(i, params, boxes_xyxy[has_pixels], mapped[segments])
        small = np.min_scalar_type(len(labels))  # as many pixels are compared at once as fit a register
        masks = moved.astype(small) == (segments + 1).astype(small)[:, None, None]
        return replace(target, masks=torch.from_numpy(masks))

    def _target(
        self, i: int, params: AugmentParams, boxes_xyxy: Float64[np.ndarray, "T 4"], labels: Int64[np.ndarray, " T"]
    ) -> Target:
        height, width = params.final_hw
        boxes_cxcywh = xyxy_to_cxcywh(torch.from_numpy(boxes_xyxy / [width, height, width, height]))
        return Target(
            boxes_cxcywh=boxes_cxcywh.float(),
            labels=torch.from_numpy(labels),
            image_id=self._index.image(i).image_id,
            size_hw=params.final_hw,
            orig_size_hw=params.size_hw,
        )

    def _objects(self, i: int, size_hw: tuple[int, int]) -> tuple[Float64[np.ndarray, "T 4"], Int64[np.ndarray, " T"]]:
        """Return (boxes_xyxy in pixels, clamped to the image; the model's labels) of the objects to learn."""
        boxes, labels, _, iscrowd = self._index.annotations(i)
        boxes[:, 2:] += boxes[:, :2]
        boxes = boxes.clip(0.0, np.array([size_hw[1], size_hw[0]] * 2, np.float64))
        mapped = self._mapped(labels)
        keep = ~iscrowd & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]) & (mapped >= 0)
        return boxes[keep], mapped[keep]

    def _mapped(self, labels: Int32[np.ndarray, " T"]) -> Int64[np.ndarray, " T"]:
        """Return the model's labels, -1 where it has none."""
        return labels.astype(np.int64) if self._label_map is None else self._label_map[labels]

    def _with_image_id(self, error: DataError, i: int) -> DataError:
        suffix = f" (image id {self.image_id(i)})"
        return DataError([Problem(what=p.what, where=p.where + suffix, fix=p.fix) for p in error.problems])

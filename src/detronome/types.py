"""The records that the layers exchange: Target, Batch and EffectiveBatch in, ModelOutput out, Detections and
PanopticPrediction as the result.

Shape letters: `B` batch, `H W` padded image height and width, `h w` those of a mask, `T` targets of one image,
`Q` queries, `C` class logits, `N` detections of one image, `M` chosen queries of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Float32, Int32, Int64, UInt8

if TYPE_CHECKING:  # looking after data needs these records' neighbours, and should not wait for torch
    import torch
    from torch import Tensor

__all__ = [
    "Batch",
    "Categories",
    "Detections",
    "EdgeDistributions",
    "EffectiveBatch",
    "MaskDecoder",
    "ModelOutput",
    "PanopticPrediction",
    "PanopticTruth",
    "Predictor",
    "Segment",
    "Target",
]


@dataclass(frozen=True)
class Categories:
    """What a class index means: label i of a model is the category `ids[i]`, called `names[i]`.

    Training numbers the categories of a data set 0, 1, ... in the order of their ids; official checkpoints
    use the COCO id itself as the label, so they have 91 entries of which 11 name nothing.
    """

    ids: tuple[int, ...]
    names: tuple[str, ...]
    is_thing: tuple[bool, ...] | None = None
    """Whether a category is of countable things, where False is stuff such as sky. None: nobody has said, as in COCO's
    instances, which are all things."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def by_id(self) -> dict[int, str]:
        """Names by category id."""
        return dict(zip(self.ids, self.names, strict=True))


@dataclass(frozen=True, kw_only=True)
class Target:
    """The truth about one image as the loss sees it (crowd regions are not in it)."""

    boxes_cxcywh: Float32[Tensor, "T 4"]
    """Boxes as (centre x, centre y, width, height), 0-1 of the unpadded image."""
    labels: Int64[Tensor, " T"]
    """Index into `Categories` of each box."""
    image_id: int
    """The image's id in the annotation file."""
    size_hw: tuple[int, int]
    """Height and width in pixels after augmentation, before padding."""
    orig_size_hw: tuple[int, int]
    """Height and width in pixels of the image on disk, upright."""
    masks: Bool[Tensor, "T H W"] | None = None
    """The pixels of each object in the augmented image, unpadded: `H W` is `size_hw`. None where the data has none."""

    @property
    def num_objects(self) -> int:
        return self.labels.shape[0]

    def to(self, device: torch.device) -> Target:
        return replace(
            self,
            boxes_cxcywh=self.boxes_cxcywh.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            masks=None if self.masks is None else self.masks.to(device, non_blocking=True),
        )

    def pin_memory(self) -> Target:
        """Move to page-locked memory."""
        return replace(
            self,
            boxes_cxcywh=self.boxes_cxcywh.pin_memory(),
            labels=self.labels.pin_memory(),
            masks=None if self.masks is None else self.masks.pin_memory(),
        )


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Images padded right and bottom to one size, with their targets.

    Images stay uint8 until the model normalises them on the device: a quarter of the bytes to move.
    """

    images: UInt8[Tensor, "B 3 H W"]
    """RGB, 0-255; padding is 0. The colours of a pixel lie side by side in memory (channels last)."""
    padding_mask: Bool[Tensor, "B H W"]
    """True on padding."""
    targets: tuple[Target, ...]

    def __len__(self) -> int:
        return self.images.shape[0]

    @property
    def num_objects(self) -> int:
        return sum(target.num_objects for target in self.targets)

    @property
    def image_ids(self) -> list[int]:
        return [target.image_id for target in self.targets]

    def split(self, micro_batch_size: int) -> list[Batch]:
        """Cut into micro-batches of at most this many images. All keep the padded size, so that the
        gradient of the whole does not depend on the cut."""
        return [
            Batch(
                images=self.images[start : start + micro_batch_size],
                padding_mask=self.padding_mask[start : start + micro_batch_size],
                targets=self.targets[start : start + micro_batch_size],
            )
            for start in range(0, len(self), micro_batch_size)
        ]

    def to(self, device: torch.device) -> Batch:
        return Batch(
            images=self.images.to(device, non_blocking=True),
            padding_mask=self.padding_mask.to(device, non_blocking=True),
            targets=tuple(target.to(device) for target in self.targets),
        )

    def pin_memory(self) -> Batch:
        """Move to page-locked memory; torch's loader calls this by name."""
        return Batch(
            images=self.images.pin_memory(),
            padding_mask=self.padding_mask.pin_memory(),
            targets=tuple(target.pin_memory() for target in self.targets),
        )


@dataclass(frozen=True)
class EffectiveBatch:
    """All images of one optimiser step: one `Batch` for each padded shape among them."""

    parts: tuple[Batch, ...]

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    @property
    def num_objects(self) -> int:
        return sum(part.num_objects for part in self.parts)

    @property
    def targets(self) -> list[Target]:
        return [target for part in self.parts for target in part.targets]

    @property
    def image_ids(self) -> list[int]:
        return [target.image_id for target in self.targets]

    def split(self, micro_batch_size: int) -> list[Batch]:
        """Cut into micro-batches of one shape each and at most this many images."""
        return [micro_batch for part in self.parts for micro_batch in part.split(micro_batch_size)]

    def to(self, device: torch.device) -> EffectiveBatch:
        return EffectiveBatch(tuple(part.to(device) for part in self.parts))

    def pin_memory(self) -> EffectiveBatch:
        return EffectiveBatch(tuple(part.pin_memory() for part in self.parts))


@runtime_checkable
class MaskDecoder(Protocol):
    """Computes masks when they are asked for: a mask costs more than all boxes, and only some queries' are wanted."""

    padded_size_hw: tuple[int, int]
    """Height and width in pixels of the padded images."""

    def of(self, image_index: Int64[Tensor, " M"], query_index: Int64[Tensor, " M"]) -> Float[Tensor, "M h w"]:
        """Return the mask logits of chosen queries, over the padded image at a quarter of its size, rounded up."""
        ...

    def all(self) -> Float[Tensor, "B Q h w"]:
        """Return the mask logits of every query."""
        ...


@dataclass(frozen=True, kw_only=True)
class EdgeDistributions:
    """Where the edges of boxes may lie: probabilities of shifts of a reference box's edges (D-FINE). Shape letter: `S`
    shifts."""

    logits: Float[Tensor, "B Q 4 S"]
    """Of each shift, for the edges left, top, right, bottom."""
    reference_boxes: Float[Tensor, "B Q 4"]
    """The boxes whose edges are shifted, as `ModelOutput.pred_boxes`; without gradient."""
    shifts: Float[Tensor, " S"]
    """How far outwards an edge goes, in parts of the reference box's width (left, right) or height (top, bottom); from
    the smallest, which is inwards, to the largest."""


@dataclass(frozen=True, kw_only=True)
class ModelOutput:
    """What a detector returns: the last decoder layer's prediction and, in training, all the others."""

    pred_logits: Float[Tensor, "B Q C"]
    """Class logits. Softmax families: the last index is no-object. Sigmoid families: one logit a class."""
    pred_boxes: Float[Tensor, "B Q 4"]
    """Boxes (centre x, centre y, width, height), 0-1 of each unpadded image, as in `Target`."""
    edges: EdgeDistributions | None = None
    """What the boxes were made from, in training, in a family that learns it."""
    aux_outputs: tuple[ModelOutput, ...] = ()
    """The earlier decoder layers, first to last."""
    enc_outputs: ModelOutput | None = None
    """Proposals made from the encoder's memory (two-stage families)."""
    dn_outputs: tuple[ModelOutput, ...] = ()
    """Predictions for denoising queries, one per decoder layer, first to last."""
    dn_matches: tuple[tuple[Tensor, Tensor], ...] = field(default=())
    """For each image, (denoising query index, target index), known without matching."""
    masks: MaskDecoder | None = None
    """Gives the masks of the last decoder layer's queries; None where the model makes none."""

    @property
    def pred_masks(self) -> Float[Tensor, "B Q h w"] | None:
        """Mask logits of every query at stride 4 of the padded image, computed at each access."""
        return None if self.masks is None else self.masks.all()


@dataclass(frozen=True, kw_only=True)
class Detections:
    """The objects found in one image, highest score first."""

    boxes_xyxy: Float32[np.ndarray, "N 4"]
    """Corners (left, top, right, bottom) in pixels of the original, upright image."""
    scores: Float32[np.ndarray, " N"]
    """Confidence, 0-1."""
    labels: Int64[np.ndarray, " N"]
    """Category ids as in the annotation file."""
    image_id: int = -1
    panoptic: PanopticPrediction | None = None
    """The panoptic map of the image, where the model makes one."""

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, score: float) -> Detections:
        """Return only the detections with at least this score."""
        return self.take(self.scores >= score)

    def take(self, chosen: Bool[np.ndarray, " N"] | slice) -> Detections:
        """Return only the detections that a mask or a slice chooses."""
        return replace(self, boxes_xyxy=self.boxes_xyxy[chosen], scores=self.scores[chosen], labels=self.labels[chosen])

    def to_coco(self) -> list[dict[str, Any]]:
        """Return COCO results records: `bbox` is [left, top, width, height] in pixels."""
        boxes_xywh = self.boxes_xyxy.astype(np.float64)
        boxes_xywh[:, 2:] -= boxes_xywh[:, :2]
        return [
            {"image_id": self.image_id, "category_id": int(label), "bbox": box.tolist(), "score": float(score)}
            for box, score, label in zip(boxes_xywh, self.scores, self.labels, strict=True)
        ]


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One region of a panoptic prediction: a thing, or all of one kind of stuff in the image."""

    id: int
    """Its number in the map; not 0."""
    category_id: int
    """As in the annotation file."""
    is_thing: bool
    area: int
    """Pixels."""
    score: float = 1.0
    """Confidence, 0-1."""


@dataclass(frozen=True, kw_only=True)
class PanopticPrediction:
    """Every pixel of one image, given to a segment or to none."""

    segment_ids: Int32[np.ndarray, "H W"]
    """The `Segment.id` of each pixel of the original, upright image; 0 is void."""
    segments: tuple[Segment, ...]
    image_id: int = -1

    def to_coco(self, file_name: str) -> dict[str, Any]:
        """Return the entry of `annotations` in a COCO panoptic file.

        Args:
            file_name: of the PNG with the map, made by `ops.segment_ids.colors_of_ids`.
        """
        return {
            "image_id": self.image_id,
            "file_name": file_name,
            "segments_info": [
                {
                    "id": segment.id,
                    "category_id": segment.category_id,
                    "isthing": int(segment.is_thing),
                    "area": segment.area,
                    "score": segment.score,
                }
                for segment in self.segments
            ],
        }


@dataclass(frozen=True, kw_only=True)
class PanopticTruth:
    """The segments of one image as annotated. Shape letter: `S` segments."""

    segment_ids: Int32[np.ndarray, "H W"]
    """The id of each pixel of the original, upright image; 0 is void: unlabelled."""
    ids: Int64[np.ndarray, " S"]
    category_ids: Int64[np.ndarray, " S"]
    """As in the annotation file."""
    areas: Int64[np.ndarray, " S"]
    """Pixels, as the annotation file has them."""
    is_crowd: Bool[np.ndarray, " S"]
    """Regions of many things that nobody told apart."""
    image_id: int


class Predictor(Protocol):
    """Anything that finds objects in images: eager, exported or remote."""

    def predict(self, images: Sequence[UInt8[np.ndarray, "H W 3"]]) -> list[Detections]:
        """Return one Detections per RGB image, in order."""
        ...

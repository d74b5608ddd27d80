"""The records that the layers exchange: Target, Batch and EffectiveBatch in, ModelOutput out, Detections as the result.

Shape letters: `B` batch, `H W` padded image height and width, `T` targets of one image, `Q` queries,
`C` class logits, `N` detections of one image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64, UInt8

if TYPE_CHECKING:  # looking after data needs these records' neighbours, and should not wait for torch
    import torch
    from torch import Tensor

__all__ = ["Batch", "Categories", "Detections", "EffectiveBatch", "ModelOutput", "Predictor", "Target"]


@dataclass(frozen=True)
class Categories:
    """What a class index means: label i of a model is the category `ids[i]`, called `names[i]`.

    Training numbers the categories of a data set 0, 1, ... in the order of their ids; official checkpoints
    use the COCO id itself as the label, so they have 91 entries of which 11 name nothing.
    """

    ids: tuple[int, ...]
    names: tuple[str, ...]

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

    @property
    def num_objects(self) -> int:
        return self.labels.shape[0]

    def to(self, device: torch.device) -> Target:
        return replace(
            self,
            boxes_cxcywh=self.boxes_cxcywh.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
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
            targets=tuple(
                replace(t, boxes_cxcywh=t.boxes_cxcywh.pin_memory(), labels=t.labels.pin_memory()) for t in self.targets
            ),
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


@dataclass(frozen=True, kw_only=True)
class ModelOutput:
    """What a detector returns: the last decoder layer's prediction and, in training, all the others."""

    pred_logits: Float[Tensor, "B Q C"]
    """Class logits. Softmax families: the last index is no-object. Sigmoid families: one logit a class."""
    pred_boxes: Float[Tensor, "B Q 4"]
    """Boxes (centre x, centre y, width, height), 0-1 of each unpadded image, as in `Target`."""
    aux_outputs: tuple[ModelOutput, ...] = ()
    """The earlier decoder layers, first to last."""
    enc_outputs: ModelOutput | None = None
    """Proposals made from the encoder's memory (two-stage families)."""
    dn_outputs: tuple[ModelOutput, ...] = ()
    """Predictions for denoising queries, one per decoder layer, first to last."""
    dn_matches: tuple[tuple[Tensor, Tensor], ...] = field(default=())
    """For each image, (denoising query index, target index), known without matching."""


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

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, score: float) -> Detections:
        """Return only the detections with at least this score."""
        keep = self.scores >= score
        return replace(self, boxes_xyxy=self.boxes_xyxy[keep], scores=self.scores[keep], labels=self.labels[keep])

    def to_coco(self) -> list[dict[str, Any]]:
        """Return COCO results records: `bbox` is [left, top, width, height] in pixels."""
        boxes_xywh = self.boxes_xyxy.astype(np.float64)
        boxes_xywh[:, 2:] -= boxes_xywh[:, :2]
        return [
            {"image_id": self.image_id, "category_id": int(label), "bbox": box.tolist(), "score": float(score)}
            for box, score, label in zip(boxes_xywh, self.scores, self.labels, strict=True)
        ]


class Predictor(Protocol):
    """Anything that finds objects in images: eager, exported or remote."""

    def predict(self, images: Sequence[UInt8[np.ndarray, "H W 3"]]) -> list[Detections]:
        """Return one Detections per RGB image, in order."""
        ...

"""Every export is compared with the model it was made of, before anybody gets to use it.

Shape letters: `B` batch, `H W` padded image height and width, `Q` queries, `C` class logits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, UInt8
from torch import Tensor

from detronome.deploy.benchmark.difference import Difference, difference_of
from detronome.deploy.benchmark.messages import Output
from detronome.errors import Problem
from detronome.models.detector import Detector
from detronome.runtime.seeding import generator
from detronome.types import ModelOutput

__all__ = [
    "Accuracy",
    "SelfCheck",
    "Tolerance",
    "compare_outputs",
    "problems_of",
    "synthetic_batches",
    "tolerance_of",
]

Images = tuple[UInt8[Tensor, "B 3 H W"], Bool[Tensor, "B H W"]]
"""Images and padding mask."""


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """The most that an exported model may differ."""

    median: float
    """Of scores and boxes, 0-1, of half of the most confident queries."""
    largest: float
    """Of any of them."""
    ap_loss: float
    """Of AP, 0-1."""


_TOLERANCES: Mapping[str, Tolerance] = {
    # Rounding. The largest may be more: where queries are chosen from the image, two that are nearly alike may change
    # places, one of them drop out, and all the others see another neighbour.
    "fp32": Tolerance(median=1e-4, largest=2e-2, ap_loss=0.002),
    # What counts is the accuracy: a score that moves a little may move all scores.
    "int8": Tolerance(median=0.2, largest=1.0, ap_loss=0.01),
}


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """AP of both models on the same images."""

    num_images: int
    split: str
    original: float
    exported: float

    @property
    def loss(self) -> float:
        """What was lost; below 0 where AP rose."""
        return self.original - self.exported


@dataclass(frozen=True, kw_only=True)
class SelfCheck:
    """What an exported model was found to differ by."""

    images: Literal["synthetic", "real", "real and synthetic"]
    """What the outputs were compared on; the synthetic in several sizes and batches, with padding and without."""
    difference: Difference
    masks: float | None
    """Largest difference of a mask's probability, where there are masks."""
    accuracy: Accuracy | None
    """None where no data was given."""
    tolerance: Tolerance


def tolerance_of(precision: str) -> Tolerance:
    """Return what a form that computes so may differ by."""
    return _TOLERANCES[precision]


def problems_of(check: SelfCheck) -> list[Problem]:
    """Return what is wrong with an exported model, beyond its tolerance."""
    found, allowed = check.difference, check.tolerance
    problems = []
    # numpy's, which keep nan: it is beyond every bound.
    median = np.max([found.median_score, found.median_box])
    largest = np.max([found.largest_score, found.largest_box])
    if not median <= allowed.median or not largest <= allowed.largest:
        problems.append(
            Problem(
                what=f"its outputs differ from the model's by {median:.2g} (median) and {largest:.2g} (largest), and "
                f"{allowed.median:g} and {allowed.largest:g} are allowed",
                where=f"scores and boxes, 0-1, on {found.num_images} {check.images} images",
            )
        )
    if check.masks is not None and not check.masks <= allowed.largest:
        problems.append(
            Problem(
                what=f"its masks differ from the model's by up to {check.masks:.2g}, and {allowed.largest:g} is allowed"
            )
        )
    accuracy = check.accuracy
    if accuracy is not None and not accuracy.loss <= allowed.ap_loss:
        problems.append(
            Problem(
                what=f"its AP is {accuracy.exported:.4f}, the model's {accuracy.original:.4f}: {accuracy.loss:.4f} is "
                f"lost, and {allowed.ap_loss:g} is allowed",
                where=f"{accuracy.num_images} images of {accuracy.split}",
            )
        )
    return problems


@torch.inference_mode()
def compare_outputs(
    original: Detector, exported: Detector, batches: Iterable[Images]
) -> tuple[Difference, float | None]:
    """Return how far apart two models' outputs are, and their masks' probabilities at most, where they make masks.

    The most confident queries of either are looked for in the other: neither may find what the other does not.

    Args:
        original: in eval mode, on the CPU.
        exported: takes the same images.
        batches: at least one image.
    """
    ours: list[Output] = []
    theirs: list[Output] = []
    masks: list[float] = []
    for images, padding_mask in batches:
        first, second = original(images, padding_mask), exported(images, padding_mask)
        ours += _outputs(first, original.activation)
        theirs += _outputs(second, exported.activation)
        if first.masks is not None:
            # Masks of learned queries, which keep their places.
            apart = first.masks.all().sigmoid() - second.masks.all().sigmoid()
            masks.append(float(apart.abs().max()))
    difference = _worse(difference_of(ours, theirs), difference_of(theirs, ours))
    return difference, float(np.max(masks)) if masks else None


def _worse(there: Difference, back: Difference) -> Difference:
    return Difference(
        num_images=there.num_images,
        median_score=float(np.maximum(there.median_score, back.median_score)),
        largest_score=float(np.maximum(there.largest_score, back.largest_score)),
        median_box=float(np.maximum(there.median_box, back.median_box)),
        largest_box=float(np.maximum(there.largest_box, back.largest_box)),
    )


def _outputs(output: ModelOutput, activation: Literal["softmax", "sigmoid"]) -> Iterator[Output]:
    logits = output.pred_logits.float()
    scores = logits.softmax(-1)[..., :-1] if activation == "softmax" else logits.sigmoid()
    for image_scores, boxes in zip(scores.numpy(), output.pred_boxes.float().numpy(), strict=True):
        yield Output(scores=image_scores.astype(np.float32), boxes_cxcywh=boxes.astype(np.float32))


def synthetic_batches(side: int) -> Iterator[Images]:
    """Yield pictures of coloured patches: one and several at once, odd sizes, with padding and without.

    Args:
        side: about the shorter side, in pixels.
    """
    rng = generator("export", side)
    cases = [
        [(side, side + side // 4)],
        [(side + 5, side - 3), (side // 2 + 1, side - 3)],
        [(side, side), (side - 9, side // 2), (side // 2, side)],
    ]
    for sizes in cases:
        height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
        images = torch.zeros(len(sizes), 3, height, width, dtype=torch.uint8)
        padding_mask = torch.ones(len(sizes), height, width, dtype=torch.bool)
        for b, (h, w) in enumerate(sizes):
            patches = torch.from_numpy(rng.integers(0, 256, (1, 3, 6, 8)).astype(np.float32))
            picture = F.interpolate(patches, (h, w), mode="bilinear") + torch.from_numpy(rng.normal(0, 8, (1, 1, h, w)))
            images[b, :, :h, :w] = picture[0].clamp(0, 255).to(torch.uint8)
            padding_mask[b, :h, :w] = False
        yield images, padding_mask

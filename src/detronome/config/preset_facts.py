"""What is known of each preset's network: its size and work as counted here, its accuracy as its authors published it.

One row a preset. `tests/unit/config/test_preset_facts.py` counts again, and says what a new or changed row must hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["PHOTO_HW", "PRESET_FACTS", "PresetFacts"]

PHOTO_HW = (480, 640)
"""Height and width in pixels of the photo whose work is counted: the most common in COCO."""


@dataclass(frozen=True, kw_only=True)
class PresetFacts:
    """Numbers of a preset's network, with the classes of its published weights (COCO's where there are none)."""

    num_parameters: int
    """Frozen ones included, but not the frozen scales and shifts of a backbone, which are no parameters."""
    gflops: float
    """Thousand million floating-point operations for one photo, in convolutions and matrix products, masks of all
    queries included. A multiplication and an addition are two; DETR's paper counts them as one."""
    image_hw: tuple[int, int]
    """Height and width in pixels of that photo (`PHOTO_HW`) as evaluation resizes it."""
    num_classes: int
    AP: float | None = None
    """Of boxes, on COCO val2017, in percent, as published for the trained weights."""
    PQ: float | None = None
    """Panoptic quality likewise."""
    source: str = ""
    """Who published them, and of which training."""


_DETR = "github.com/facebookresearch/detr, 500 epochs"
_PANOPTIC = "github.com/facebookresearch/detr, AP of things"
_RTDETR = "github.com/lyuwenyu/RT-DETR"
_DFINE = "github.com/Peterande/D-FINE"
_SQUARE = (640, 640)
_SCALED = (800, 1066)

PRESET_FACTS: Mapping[str, PresetFacts] = {
    "nano": PresetFacts(num_parameters=636_588, gflops=0.5, image_hw=(192, 256), num_classes=80),
    "demo": PresetFacts(num_parameters=609_498, gflops=0.1, image_hw=(96, 128), num_classes=10),
    "detr-r18": PresetFacts(num_parameters=28_843_552, gflops=83.8, image_hw=_SCALED, num_classes=91),
    "detr-r18-dc5": PresetFacts(num_parameters=28_843_552, gflops=235.7, image_hw=_SCALED, num_classes=91),
    "detr-r50": PresetFacts(
        num_parameters=41_524_768, gflops=162.3, image_hw=_SCALED, num_classes=91, AP=42.0, source=_DETR
    ),
    "detr-r50-dc5": PresetFacts(
        num_parameters=41_524_768, gflops=346.3, image_hw=_SCALED, num_classes=91, AP=43.3, source=_DETR
    ),
    "detr-r101": PresetFacts(
        num_parameters=60_464_672, gflops=289.2, image_hw=_SCALED, num_classes=91, AP=43.5, source=_DETR
    ),
    "detr-r101-dc5": PresetFacts(
        num_parameters=60_464_672, gflops=473.2, image_hw=_SCALED, num_classes=91, AP=44.9, source=_DETR
    ),
    "detr-r50-panoptic": PresetFacts(
        num_parameters=42_899_288,
        gflops=370.7,
        image_hw=_SCALED,
        num_classes=250,
        AP=38.8,
        PQ=43.4,
        source=_PANOPTIC,
    ),
    "detr-r50-dc5-panoptic": PresetFacts(
        num_parameters=42_899_288,
        gflops=719.7,
        image_hw=_SCALED,
        num_classes=250,
        AP=40.2,
        PQ=44.6,
        source=_PANOPTIC,
    ),
    "detr-r101-panoptic": PresetFacts(
        num_parameters=61_839_192,
        gflops=497.6,
        image_hw=_SCALED,
        num_classes=250,
        AP=40.1,
        PQ=45.1,
        source=_PANOPTIC,
    ),
    "rtdetr-v2-s": PresetFacts(
        num_parameters=20_184_464, gflops=59.3, image_hw=_SQUARE, num_classes=80, AP=48.1, source=_RTDETR
    ),
    "rtdetr-v2-m": PresetFacts(
        num_parameters=31_441_668, gflops=91.5, image_hw=_SQUARE, num_classes=80, AP=49.9, source=_RTDETR
    ),
    "rtdetr-v2-l": PresetFacts(
        num_parameters=42_891_372, gflops=135.6, image_hw=_SQUARE, num_classes=80, AP=53.4, source=_RTDETR
    ),
    "rtdetr-v2-x": PresetFacts(
        num_parameters=76_556_268, gflops=258.4, image_hw=_SQUARE, num_classes=80, AP=54.3, source=_RTDETR
    ),
    "dfine-n": PresetFacts(
        num_parameters=3_782_691, gflops=7.3, image_hw=_SQUARE, num_classes=80, AP=42.8, source=_DFINE
    ),
    "dfine-s": PresetFacts(
        num_parameters=10_321_875, gflops=25.7, image_hw=_SQUARE, num_classes=80, AP=48.5, source=_DFINE
    ),
    "dfine-m": PresetFacts(
        num_parameters=19_590_062, gflops=58.3, image_hw=_SQUARE, num_classes=80, AP=52.3, source=_DFINE
    ),
    "dfine-l": PresetFacts(
        num_parameters=31_244_150, gflops=93.6, image_hw=_SQUARE, num_classes=80, AP=54.0, source=_DFINE
    ),
    "dfine-x": PresetFacts(
        num_parameters=62_621_558, gflops=207.5, image_hw=_SQUARE, num_classes=80, AP=55.8, source=_DFINE
    ),
}
"""By preset."""

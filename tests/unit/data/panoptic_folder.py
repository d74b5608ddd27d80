"""A small panoptic data set, written on the spot: things, stuff, a crowd, void, and files out of order."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from detronome.ops.segment_ids import colors_of_ids

__all__ = ["CATEGORIES", "edit", "segment_ids_of", "segments_of", "write_map", "write_panoptic"]

CATEGORIES = [
    {"id": 200, "name": "sky", "isthing": 0},
    {"id": 1, "name": "cat", "isthing": 1},
    {"id": 17, "name": "dog", "isthing": 1},
]


def segment_ids_of(seed: int, size_hw: tuple[int, int]) -> np.ndarray[Any, Any]:
    """Return a map of at least two segments: rectangles over a ground, and a strip of void below."""
    rng = np.random.default_rng(seed)
    height, width = size_hw
    ids = np.full(size_hw, int(rng.integers(1, 2**24)), np.int32)
    for _ in range(3):
        top, left = int(rng.integers(0, height - 8)), int(rng.integers(0, width - 8))
        ids[top : top + 7, left : left + 5] = rng.integers(1, 2**24)
    ids[-2:] = 0
    return ids


def segments_of(ids: np.ndarray[Any, Any]) -> list[dict[str, Any]]:
    """Return the entries of `segments_info`: categories in turn, the second segment a crowd."""
    segments = []
    for n, id_ in enumerate(i for i in np.unique(ids).tolist() if i):
        y, x = np.nonzero(ids == id_)
        box = [int(x.min()), int(y.min()), int(x.max() - x.min() + 1), int(y.max() - y.min() + 1)]
        category_id = CATEGORIES[n % 3]["id"]
        segments.append({"id": id_, "category_id": category_id, "area": len(x), "bbox": box, "iscrowd": int(n == 1)})
    return segments


def write_map(path: Path, ids: np.ndarray[Any, Any]) -> None:
    """Write segment ids as PNG."""
    Image.fromarray(colors_of_ids(ids)).save(path)


def write_panoptic(folder: Path, num_images: int = 3, split: str = "train") -> Path:
    """Write images, maps and annotation file; annotations come in the reverse order of images. Return the folder."""
    maps_dir = folder / "annotations" / f"panoptic_{split}"
    maps_dir.mkdir(parents=True, exist_ok=True)
    (folder / "images").mkdir(exist_ok=True)
    images, annotations = [], []
    for n in range(num_images):
        size_hw = (30 + n, 41)
        pixels = np.random.default_rng(n).integers(0, 256, (*size_hw, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{split}_{n}.png")
        ids = segment_ids_of(n, size_hw)
        write_map(maps_dir / f"{split}_{n}.png", ids)
        images.append({"id": 70 - n, "file_name": f"{split}_{n}.png", "height": size_hw[0], "width": size_hw[1]})
        annotations.append({"image_id": 70 - n, "file_name": f"{split}_{n}.png", "segments_info": segments_of(ids)})
    content = {"images": images, "annotations": annotations[::-1], "categories": CATEGORIES}
    maps_dir.with_suffix(".json").write_text(json.dumps(content))
    return folder


def edit(json_file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON file in place."""
    content = json.loads(json_file.read_text())
    change(content)
    json_file.write_text(json.dumps(content))

"""Small COCO data sets written on the spot."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

WriteCoco = Callable[..., Path]


@pytest.fixture(scope="session")
def write_coco() -> WriteCoco:
    """A function that writes a data set of noise images with three boxes each and returns its folder."""

    def write(folder: Path, num_images: int = 10, split: str = "train", **changes: Any) -> Path:
        rng = np.random.default_rng(num_images)
        (folder / "images").mkdir(parents=True, exist_ok=True)
        (folder / "annotations").mkdir(exist_ok=True)
        images, annotations = [], []
        for n in range(num_images):
            width, height = int(rng.integers(20, 50)), int(rng.integers(20, 50))
            name = f"{split}_{n}.jpg"
            pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "images" / name)
            images.append({"id": 100 - n, "file_name": name, "height": height, "width": width})
            for k in range(3):
                bbox = [float(k), 1.5, 9.0 + k, 10.25]
                annotations.append(
                    {"id": 3 * n + k + 1, "image_id": 100 - n, "category_id": (2, 7, 90)[k], "bbox": bbox}
                )
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": 90, "name": "owl"}, {"id": 2, "name": "cat"}, {"id": 7, "name": "dog"}],
        }
        content.update(changes)
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
        return folder

    return write

"""Small COCO data sets written on the spot, the shared test data where it is there, and a cache of our own."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

WriteCoco = Callable[..., Path]


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep the indexes that tests compile away from the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETRONOME_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder with real images and annotations; tests that need it are skipped where it is absent."""
    default = Path(__file__).parents[3] / "../shared/data"
    folder = Path(os.environ.get("DETRONOME_TEST_DATA", default)).resolve()
    if not folder.is_dir():
        pytest.skip("no test data; set DETRONOME_TEST_DATA")
    return folder


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

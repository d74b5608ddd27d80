"""A small data set of files that only look like images, and its shards."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from detronome.data.store.shards.write import write_shards

NAMES = ("a.jpg", "sub/b.v2.JPG", "no_extension", "größe.png", "c.json", "weird.e-x t")
SHARD_BYTES = 40_000


def write_data(folder: Path, num_images: int = 40, split: str = "train") -> Path:
    """Write images of random bytes, the first of them empty, some without annotations."""
    rng = np.random.default_rng(num_images)
    images, annotations = [], []
    for i in range(num_images):
        name = NAMES[i] if i < len(NAMES) else f"{split}_{i}.jpg"
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rng.bytes(int(rng.integers(1, 6000)) if i else 0))
        images.append({"id": 1000 - i, "file_name": name, "height": 10, "width": 20, "licence": f"no. {i}"})
    for k in range(3 * num_images // 2):
        owner = int(rng.integers(0, num_images))
        annotations.append(
            {
                "id": k + 1,
                "image_id": 1000 - owner,
                "category_id": 5,
                "bbox": [1, 2, 3.5, 4],
                "segmentation": [[1, 2, 3, 4, 5, 6]],
            }
        )
    record = {"images": images, "annotations": annotations, "categories": [{"id": 5, "name": "ü"}]}
    (folder / "annotations").mkdir(exist_ok=True)
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(record, ensure_ascii=False))
    return folder


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a train split of 40 images; not to be written to."""
    return write_data(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="session")
def sharded(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in shards; not to be written to."""
    out = tmp_path_factory.mktemp("sharded") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETRONOME_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        write_shards(plain, str(out), shard_bytes=SHARD_BYTES)
    return out

"""Shapes are checked in every test; fixtures find the shared data and make small sets."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

# Must run before the first import of these packages: it rewrites them to check their shape annotations.
install_import_hook(["detronome.ops", "detronome.losses", "detronome.models"], "beartype.beartype")

# Shared machines stall for longer than any sensible deadline.
settings.register_profile("detronome", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("detronome")

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_configure(config: pytest.Config) -> None:
    os.environ.setdefault("MPLCONFIGDIR", "/tmp/detronome-test-matplotlib")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if any(item.get_closest_marker("gpu") for item in items):
        import torch

        if not torch.cuda.is_available():
            for item in items:
                if item.get_closest_marker("gpu"):
                    item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep compiled indexes out of the user's cache."""
    monkeypatch.setenv("DETRONOME_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real data sets, or a skip."""
    folder = Path(os.environ.get("DETRONOME_TEST_DATA", REPOSITORY / ".." / "shared" / "data")).resolve()
    if not folder.is_dir():
        pytest.skip("real data not found; set DETRONOME_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data folder: coloured rectangles of two classes, one image without objects, train and val."""
    from PIL import Image

    root = tmp_path_factory.mktemp("blocks")
    rng = np.random.default_rng(0)
    (root / "annotations").mkdir()
    (root / "images").mkdir()
    for split, count in (("train", 24), ("val", 6)):
        images, annotations = [], []
        for i in range(count):
            height, width = 64, 96
            picture = rng.integers(90, 130, (height, width, 3), dtype=np.uint8)
            for _ in range(0 if i == 1 else int(rng.integers(1, 4))):
                w, h = int(rng.integers(14, 32)), int(rng.integers(14, 32))
                x, y = int(rng.integers(0, width - w)), int(rng.integers(0, height - h))
                category = int(rng.integers(0, 2))
                picture[y : y + h, x : x + w] = (220, 40, 40) if category == 0 else (40, 60, 220)
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": 100 + i,
                        "category_id": (3, 7)[category],
                        "bbox": [x, y, w, h],
                        "area": w * h,
                        "iscrowd": 0,
                    }
                )
            name = f"{split}_{i:02d}.png"
            Image.fromarray(picture).save(root / "images" / name)
            images.append({"id": 100 + i, "file_name": name, "height": height, "width": width})
        record = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": 3, "name": "red"}, {"id": 7, "name": "blue"}],
        }
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(record))
    return root

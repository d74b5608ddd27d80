"""Shapes are checked in every test; fixtures find the shared data and make small sets."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

# Must run before the first import of these packages: it rewrites them to check their shape annotations.
if os.environ.get("DETRONOME_SHAPE_CHECKS") != "off":  # a test of torch.compile starts such a process
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


@pytest.fixture(scope="session")
def tiny_settings() -> dict[str, Any]:
    """Settings that make `nano` train in a second: 5 thousand parameters, images of 64 pixels."""
    return {
        "model.widths": [16, 16, 32],
        "model.depths": [1, 1, 1],
        "model.hidden_dim": 16,
        "model.num_heads": 2,
        "model.num_points": 2,
        "model.ffn_dim": 16,
        "augment.sizes": [64],
        "augment.max_size": 96,
        "augment.eval_size": 64,
        "augment.eval_max_size": 96,
        "train.log_steps": 1,
        "train.eval_epochs": 1,
        "train.device": "cpu",
        "data.workers": 0,
    }


@pytest.fixture(scope="session")
def tiny_run(blocks: Path, tiny_settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of one epoch; not to be written to."""
    import detronome as dt

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETRONOME_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        folder = tmp_path_factory.mktemp("tiny") / "run"
        return dt.train(blocks, model="nano", epochs=1, out=folder, settings=tiny_settings).folder

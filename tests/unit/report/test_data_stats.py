from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from PIL import Image

from detronome.data.store.index import AnnotationIndex
from detronome.report.data_stats import write_data_pictures

PANELS = ["overview", "classes", "objects_per_image", "box_sizes", "image_sizes", "box_centres"]


def index(path: Path, annotations: list[dict[str, Any]], names: list[str], size_hw: tuple[int, int] = (10, 20)) -> Any:
    height, width = size_hw
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": height + i % 2, "width": width} for i in range(3)],
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(names)],
    }
    path.write_text(json.dumps(content))
    return AnnotationIndex.open(path)


def box(image: int, category: int, *bbox: float) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": bbox}


def pixels(path: Path) -> Any:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_a_data_set_without_objects_is_drawn(tmp_path: Path) -> None:
    files = write_data_pictures(tmp_path, {"train": index(tmp_path / "a.json", [], ["cat"])}, title="nothing")
    assert [file.stem for file in files] == PANELS
    assert all(pixels(file).shape[0] > 300 for file in files)


def test_hostile_names_and_absurd_boxes_are_drawn(tmp_path: Path) -> None:
    names = ["$x_$", r"\frac{1}", "\x1b[31mred", "猫", "a very long name " * 9, ""]
    boxes = [box(n % 3, n % 6, 0, 0, 10.0 ** (n % 5 - 3), 3) for n in range(700)]
    boxes += [box(0, 0, 1e308, 0, 1e308, 1e308), box(0, 0, -50, -50, 1e-300, 1e300), box(0, 0, 0, 0, 0, 0)]
    splits = {
        "tr$a$in": index(tmp_path / "a.json", boxes, names, (1, 99999)),
        "val": index(tmp_path / "b.json", boxes[:1], names[:2]),
    }
    for file in write_data_pictures(tmp_path / "new" / "folder", splits, title="$\\x$\n"):
        assert pixels(file).std() > 5


def test_many_classes_are_shortened(tmp_path: Path) -> None:
    many = index(tmp_path / "a.json", [box(0, n, 0, 0, 5, 5) for n in range(200)], [f"class {n}" for n in range(200)])
    files = write_data_pictures(tmp_path, {"train": many}, title="many")
    assert pixels(files[1]).shape[0] < 1500


def test_pictures_are_deterministic_and_change_nothing_global(tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    one = {"train": index(tmp_path / "a.json", [box(0, 0, 1, 1, 5, 5)], ["cat"])}
    first = [file.read_bytes() for file in write_data_pictures(tmp_path / "x", one, title="t")]
    second = [file.read_bytes() for file in write_data_pictures(tmp_path / "y", one, title="t")]
    assert first == second
    assert dict(mpl.rcParams) == before


def test_real_data(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "bccd/annotations"
    splits = {name: AnnotationIndex.open(folder / f"instances_{name}.json") for name in ("train", "val", "test")}
    overview = pixels(write_data_pictures(tmp_path, splits, title="bccd")[0])
    colours = {"train": (0x3B, 0x78, 0xD8), "val": (0xE0, 0x7B, 0x28), "test": (0x2A, 0x9D, 0x74)}
    for colour in colours.values():
        assert (overview == colour).all(axis=2).sum() > 100

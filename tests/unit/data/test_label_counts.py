"""Label counts: nothing first, then every object in its bin."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detronome.data.label_counts import label_counts
from detronome.data.store.index import AnnotationIndex


def counts_of(tmp_path: Path, boxes: list[tuple[int, list[float], int]], num_images: int = 3) -> dict[str, Any]:
    """Of annotations (image, bbox, iscrowd)."""
    file = tmp_path / "instances_train.json"
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 400, "height": 300} for i in range(num_images)],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [
            {"id": n, "image_id": i, "category_id": 1, "bbox": box, "area": box[2] * box[3], "iscrowd": crowd}
            for n, (i, box, crowd) in enumerate(boxes, start=1)
        ],
    }
    file.write_text(json.dumps(content))
    record = label_counts(AnnotationIndex.open(file))
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    return record


def test_no_objects(tmp_path: Path) -> None:
    record = counts_of(tmp_path, [])
    assert record["num_images"] == 3 and record["num_objects"] == 0
    assert record["objects_per_image"] == {"bins": [0, 1], "counts": [3]}
    assert record["box_size_px"] == {"bins": [], "counts": []}
    assert record["areas"] == {"small": 0, "medium": 0, "large": 0}
    assert record["classes"][1] == {"name": "dog", "num_objects": 0, "num_images": 0}


def test_every_object_is_in_a_bin(tmp_path: Path) -> None:
    boxes = [(0, [0.0, 0.0, 32.0, 32.0], 0), (0, [0.0, 0.0, 31.9, 31.9], 0), (0, [0.0, 0.0, 200.0, 200.0], 0)]
    record = counts_of(tmp_path, [*boxes, (1, [0.0, 0.0, 100.0, 100.0], 1), (1, [5.0, 5.0, 0.5, 0.5], 0)])
    assert record["num_objects"] == 4
    assert record["objects_per_image"] == {"bins": [0, 1, 2, 3, 4], "counts": [1, 1, 0, 1]}
    assert record["areas"] == {"small": 2, "medium": 1, "large": 1}
    assert record["classes"][0] == {"name": "cat", "num_objects": 4, "num_images": 2}
    sizes = record["box_size_px"]
    assert sum(sizes["counts"]) == 4 and sizes["bins"][0] == 1 and sizes["counts"][0] == 1
    assert sizes["counts"][sizes["bins"].index(32)] == 1 and sizes["counts"][sizes["bins"].index(32) - 1] == 1


@pytest.mark.parametrize("most", [1, 59, 60, 61, 500])
def test_crowded_images_share_bins(tmp_path: Path, most: int) -> None:
    boxes = [(1, [float(k % 90), 0.0, 10.0, 10.0], 0) for k in range(most)]
    histogram = counts_of(tmp_path, boxes)["objects_per_image"]
    assert len(histogram["counts"]) == len(histogram["bins"]) - 1 <= 60
    assert sum(histogram["counts"]) == 3 and histogram["counts"][-1] == 1
    assert histogram["bins"][-1] == most + 1 and all(np.diff(histogram["bins"]) > 0)

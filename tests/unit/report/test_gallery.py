from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from detronome.data.split import open_split
from detronome.report.gallery import write_gallery, write_worst
from detronome.types import Detections

NOTHING = Detections(
    boxes_xyxy=np.zeros((0, 4), np.float32), scores=np.zeros(0, np.float32), labels=np.zeros(0, np.int64)
)


class Blind:
    """Finds nothing."""

    def predict(self, images: Sequence[NDArray[np.uint8]]) -> list[Detections]:
        return [NOTHING for _ in images]


def test_the_longest_names_of_images_have_pictures(blocks: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(blocks, data)
    file = data / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    for number, image in enumerate(content["images"]):
        old = next(data.rglob(image["file_name"]))
        image["file_name"] = f"{number}{'é' * 125}.jpg"  # 255 bytes
        old.rename(old.with_name(image["file_name"]))
    file.write_text(json.dumps(content))
    split = open_split(data, "val")
    files = write_gallery(tmp_path / "pictures", Blind(), split, split.index.categories, num_pictures=3)
    ids = [image["id"] for image in content["images"]]
    worst = write_worst(tmp_path / "pictures", ids, split, lambda _: NOTHING, score=0.5)
    assert len(files) == 3 and list(worst) == ids
    assert len({*files, *worst.values()}) == 3 + len(ids)

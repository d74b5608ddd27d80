"""A sample is a pure function of (seed, epoch, index), and holds what the loss shall learn."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detronome.config.schema import AugmentConfig
from detronome.data.build import augment_policy
from detronome.data.dataset import DetectionDataset
from detronome.data.split import open_split
from detronome.data.store.pixels import PixelReader
from detronome.errors import DataError
from detronome.ops.boxes import cxcywh_to_xyxy

SMALL = augment_policy(
    AugmentConfig(sizes=(32, 40), max_size=64, crop="fraction", crop_probability=0.5, eval_size=32, eval_max_size=64)
)
WriteCoco = Callable[..., Path]


def dataset(folder: Path, training: bool = True, **options: Any) -> DetectionDataset:
    split = open_split(folder, "train")
    return DetectionDataset(split.index, PixelReader(split.index, split.source), SMALL, training=training, **options)


def one_image(boxes: list[list[float]], **fields: Any) -> dict[str, Any]:
    return {
        "images": [{"id": 8, "file_name": "train_0.jpg", "height": 20, "width": 40}],
        "annotations": [{"id": i, "image_id": 8, "category_id": 2, "bbox": b, **fields} for i, b in enumerate(boxes)],
    }


def test_an_image_without_objects_stays(tmp_path: Path, write_coco: WriteCoco) -> None:
    data = dataset(write_coco(tmp_path, 2, annotations=[]))
    assert len(data) == 2
    image, target = data[0, 1]
    assert image.dtype == torch.uint8 and tuple(image.shape) == (3, *target.size_hw)
    assert target.boxes_cxcywh.shape == (0, 4) and target.boxes_cxcywh.dtype == torch.float32
    assert target.labels.shape == (0,) and target.labels.dtype == torch.int64


def test_boxes_are_clamped_and_empty_ones_and_crowds_left_out(tmp_path: Path, write_coco: WriteCoco) -> None:
    boxes: list[list[float]] = [
        [-10, -10, 20, 20],
        [30, 10, 100, 100],
        [5, 5, 0, 5],
        [5, 5, 5, -1],
        [40, 0, 9, 9],
        [-9, 0, 9, 9],
        [0, 0, 40, 20],
    ]
    content = one_image(boxes)
    content["annotations"].append({"id": 99, "image_id": 8, "category_id": 2, "bbox": [0, 0, 9, 9], "iscrowd": 1})
    folder = write_coco(tmp_path, 1, **content)
    Image.fromarray(np.zeros((20, 40, 3), np.uint8)).save(folder / "images/train_0.jpg")
    _, target = dataset(folder, training=False)[0, 0]
    assert target.size_hw == (32, 64) and target.orig_size_hw == (20, 40) and target.image_id == 8
    found = cxcywh_to_xyxy(target.boxes_cxcywh) * torch.tensor([40, 20, 40, 20])
    torch.testing.assert_close(found, torch.tensor([[0, 0, 10, 10], [30, 10, 40, 20], [0, 0, 40, 20]]).float())


def test_labels_follow_the_map(tmp_path: Path, write_coco: WriteCoco) -> None:
    folder = write_coco(tmp_path, 1)
    assert dataset(folder, training=False)[0, 0][1].labels.tolist() == [0, 1, 2]
    mapped = dataset(folder, training=False, label_map=np.array([90, -1, 3]))
    assert mapped[0, 0][1].labels.tolist() == [90, 3]


def test_a_sample_is_a_pure_function_of_its_key(tmp_path: Path, write_coco: WriteCoco) -> None:
    folder = write_coco(tmp_path, 4)
    data, again = dataset(folder, seed=1), dataset(folder, seed=1)
    keys = [(epoch, i) for epoch in range(3) for i in range(4)]
    forwards = {key: data[key] for key in keys}
    torch.manual_seed(123)
    for key in reversed(keys):
        image, target = again[key]
        assert torch.equal(image, forwards[key][0])
        assert torch.equal(target.boxes_cxcywh, forwards[key][1].boxes_cxcywh)
    assert len({bytes(image.contiguous().numpy()) for image, _ in forwards.values()}) == len(keys)
    other = dataset(folder, seed=2)
    assert any(not torch.equal(other[key][0], forwards[key][0]) for key in keys)


def test_evaluation_is_the_same_in_every_epoch(tmp_path: Path, write_coco: WriteCoco) -> None:
    data = dataset(write_coco(tmp_path, 1), training=False)
    assert torch.equal(data[0, 0][0], data[5, 0][0])


def test_boxes_lie_in_the_image_whatever_is_drawn(tmp_path: Path, write_coco: WriteCoco) -> None:
    data = dataset(write_coco(tmp_path, 3))
    for epoch in range(30):
        for i in range(3):
            boxes = cxcywh_to_xyxy(data[epoch, i][1].boxes_cxcywh)
            assert (boxes >= -1e-6).all() and (boxes <= 1 + 1e-6).all()
            assert (boxes[:, 2:] > boxes[:, :2]).all()


def test_a_bad_image_is_named_with_its_id(tmp_path: Path, write_coco: WriteCoco) -> None:
    folder = write_coco(tmp_path, 1)
    (folder / "images/train_0.jpg").write_bytes(b"\xff\xd8\xff broken")
    with pytest.raises(DataError) as caught:
        dataset(folder)[0, 0]
    assert caught.value.problems[0].where == f"{folder}/images/train_0.jpg (image id 100)"


def test_it_pickles_to_its_path(tmp_path: Path, write_coco: WriteCoco) -> None:
    data = dataset(write_coco(tmp_path, 200))
    pickled = pickle.dumps(data)
    assert len(pickled) < 2000
    assert torch.equal(pickle.loads(pickled)[0, 3][0], data[0, 3][0])


def test_grey_crowded_and_empty_images_of_coco(shared_data: Path) -> None:
    split = open_split(shared_data / "coco2017_sample", "train")
    policy = augment_policy(AugmentConfig())
    data = DetectionDataset(split.index, PixelReader(split.index, split.source), policy, training=False)
    targets = [data[0, i] for i in range(len(data))]
    assert sum(target.num_objects for _, target in targets) == 608
    by_id = {target.image_id: (image, target) for image, target in targets}
    assert by_id[508][1].num_objects == 0
    grey = by_id[86][0]
    assert torch.equal(grey[0], grey[2])

"""The demo data set: truthful boxes, disjoint splits, the same bytes every time, no work done twice."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg  # type: ignore[import-untyped, unused-ignore]

from detronome.data import scenes
from detronome.data.scenes import write_scenes
from detronome.errors import ConfigError, DataError, MissingExtraError
from detronome.runtime.seeding import generator

NUM_TRAIN, NUM_VAL = 15, 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out_dir = tmp_path_factory.mktemp("scenes") / "demo"
    write_scenes(out_dir, num_train=NUM_TRAIN, num_val=NUM_VAL, seed=3)
    return out_dir


def read(folder: Path, split: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "annotations" / f"instances_{split}.json").read_text())
    return content


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_folder_is_a_valid_coco_data_set(folder: Path) -> None:
    image_ids: list[int] = []
    for split, count in (("train", NUM_TRAIN), ("val", NUM_VAL)):
        truth = read(folder, split)
        assert [(c["id"], c["name"]) for c in truth["categories"]] == [(k + 1, str(k)) for k in range(10)]
        assert len(truth["images"]) == count
        assert len({a["id"] for a in truth["annotations"]}) == len(truth["annotations"])
        for image in truth["images"]:
            pixels = simplejpeg.decode_jpeg((folder / "images" / image["file_name"]).read_bytes())
            assert pixels.shape == (image["height"], image["width"], 3) == (128, 128, 3)
        own = {image["id"] for image in truth["images"]}
        objects = np.bincount([a["image_id"] for a in truth["annotations"]])
        assert {a["image_id"] for a in truth["annotations"]} == own, "every scene has an object"
        assert objects.max() <= 6
        image_ids += own
    assert len(set(image_ids)) == NUM_TRAIN + NUM_VAL


def test_boxes_lie_inside_the_image(folder: Path) -> None:
    for split in ("train", "val"):
        for annotation in read(folder, split)["annotations"]:
            x, y, w, h = annotation["bbox"]
            assert x >= 0 and y >= 0 and w > 0 and h > 0
            assert x + w <= 128 and y + h <= 128
            assert annotation["area"] == w * h
            assert max(w, h) <= 40


def test_boxes_are_tight_around_ink_that_stands_out() -> None:
    material = scenes._load_materials(0)["train"]
    for index in range(30):
        scene = scenes._draw_scene(generator("test", index), material, 128)
        luma = scene.image.astype(np.float64) @ np.array([0.299, 0.587, 0.114])
        for (x, y, w, h), mask in zip(scene.boxes_xywh, scene.masks, strict=True):
            assert mask.shape == (h, w)
            assert mask[0].any() and mask[-1].any() and mask[:, 0].any() and mask[:, -1].any()
            patch = luma[y : y + h, x : x + w]
            assert abs(patch[mask].mean() - patch[~mask].mean()) > 20 if (~mask).sum() > 5 else True


def test_ink_of_two_digits_never_touches() -> None:
    material = scenes._load_materials(0)["val"]
    for index in range(30):
        scene = scenes._draw_scene(generator("test", index), material, 128)
        covered = np.zeros((128, 128), dtype=int)
        for (x, y, w, h), mask in zip(scene.boxes_xywh, scene.masks, strict=True):
            covered[y : y + h, x : x + w] += mask
        assert covered.max() == 1


def test_splits_share_no_digit_and_no_photo_column() -> None:
    materials = scenes._load_materials(0)
    digits = {split: {d.tobytes() for row in m.digits for d in row} for split, m in materials.items()}
    assert not digits["train"] & digits["val"]
    assert sum(len(row) for m in materials.values() for row in m.digits) == 1797
    assert all(len(row) > 30 for row in materials["val"].digits)
    for train, val in zip(materials["train"].photos, materials["val"].photos, strict=True):
        assert train.width + val.width < 640


def test_same_seed_same_bytes_and_other_seed_other_scenes(folder: Path, tmp_path: Path) -> None:
    write_scenes(tmp_path / "same", num_train=NUM_TRAIN, num_val=NUM_VAL, seed=3)
    assert contents(tmp_path / "same") == contents(folder)
    write_scenes(tmp_path / "other", num_train=1, num_val=1, seed=4)
    assert read(tmp_path / "other", "train")["annotations"] != read(folder, "train")["annotations"][:1]


def test_an_image_does_not_depend_on_how_many_there_are(folder: Path, tmp_path: Path) -> None:
    write_scenes(tmp_path, num_train=2, num_val=1, seed=3)
    for name in ("train_00000.jpg", "train_00001.jpg", "val_00000.jpg"):
        assert (tmp_path / "images" / name).read_bytes() == (folder / "images" / name).read_bytes()


def test_finished_folder_is_reused_and_other_parameters_make_it_again(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []

    def write(num_train: int) -> None:
        calls.clear()
        write_scenes(
            tmp_path, num_train=num_train, num_val=1, on_progress=lambda done, total: calls.append((done, total))
        )

    write(3)
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    write(3)
    assert calls == []
    write(2)
    assert len(calls) == 3
    assert sorted(file.name for file in (tmp_path / "images").iterdir()) == [
        "train_00000.jpg",
        "train_00001.jpg",
        "val_00000.jpg",
    ]


def test_interrupted_write_is_done_again(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_scenes(tmp_path, num_train=3, num_val=2, on_progress=interrupt)
    write_scenes(tmp_path, num_train=3, num_val=2)
    assert len(read(tmp_path, "val")["images"]) == 2
    assert len(list((tmp_path / "images").iterdir())) == 5


def test_foreign_data_is_never_overwritten(tmp_path: Path) -> None:
    mine = tmp_path / "annotations" / "instances_train.json"
    mine.parent.mkdir()
    mine.write_text("precious")
    with pytest.raises(DataError, match="not the demo's") as caught:
        write_scenes(tmp_path, num_train=1, num_val=1)
    assert caught.value.problems[0].where == str(tmp_path)
    assert mine.read_text() == "precious"


def test_all_bad_parameters_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        write_scenes(tmp_path, num_train=0, num_val=-1, image_size=8)
    assert len(caught.value.problems) == 3


def test_unwritable_folder_is_a_data_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write_scenes(tmp_path / "file", num_train=1, num_val=1)


def test_missing_scikit_learn_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtraError, match=r"detronome\[demo\]"):
        write_scenes(tmp_path, num_train=1, num_val=1)

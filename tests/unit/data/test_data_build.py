"""From a folder and a configuration to batches; each mistake on the way is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detronome.config.schema import AugmentConfig, BatchConfig, DataConfig, RunConfig
from detronome.data import build
from detronome.data.build import augment_policy, build_eval_batches, build_train_batches, resolve_workers
from detronome.data.sampler import ALONE, Share
from detronome.data.split import label_map, open_split
from detronome.errors import ConfigError, DataError
from detronome.types import Categories

WriteCoco = Callable[..., Path]
CPU = torch.device("cpu")
SIZES_HW = np.array([[480, 640], [640, 480]], np.int32)
CONFIG = RunConfig(
    augment=AugmentConfig(sizes=(32,), max_size=64, crop="none", eval_size=32, eval_max_size=64),
    batch=BatchConfig(global_batch_size=4),
)


def test_a_folder_becomes_batches(tmp_path: Path, write_coco: WriteCoco) -> None:
    write_coco(tmp_path, 10)
    write_coco(tmp_path, 5, split="val")
    split, val = open_split(tmp_path, "train"), open_split(tmp_path, "val")
    assert split.files.images_dir == tmp_path / "images"
    categories = split.index.categories
    batches = list(build_train_batches(CONFIG, split, categories, 0, 5, workers=0, device=CPU))
    assert [len(batch) for batch in batches] == [4] * 5
    with build_eval_batches(CONFIG, val, categories, batch_size=2, workers=0, device=CPU) as evaluation:
        assert sum(len(batch) for batch in evaluation) == 5
        assert max(len(batch) for batch in evaluation) <= 2


def test_a_rank_gets_its_share_of_a_folder(tmp_path: Path, write_coco: WriteCoco) -> None:
    split = open_split(write_coco(tmp_path, 10), "train")
    categories, share = split.index.categories, Share(1, 3)
    options: dict[str, Any] = {"workers": 0, "device": CPU}
    batches = list(build_train_batches(CONFIG, split, categories, 0, 5, **options, share=share, excluded=[2]))
    assert [len(batch) for batch in batches] == [1] * 4
    evaluation = [build_eval_batches(CONFIG, split, categories, 2, **options, share=Share(r, 3)) for r in range(3)]
    assert sum(len(batch) for batches in evaluation for batch in batches) == 10


def test_missing_images_are_listed_up_to_ten(tmp_path: Path, write_coco: WriteCoco) -> None:
    write_coco(tmp_path, 30)
    for n in range(30):
        if n not in (4, 9):
            (tmp_path / f"images/train_{n}.jpg").unlink()
    with pytest.raises(DataError, match=r"28 of 30 image files are missing: train_0.jpg, .* and 18 more") as caught:
        open_split(tmp_path, "train")
    assert str(tmp_path / "images") in caught.value.problems[0].where
    for path in (tmp_path / "images").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="30 of 30"):
        open_split(tmp_path, "train")


def test_names_in_other_capitals_are_recognised(tmp_path: Path, write_coco: WriteCoco) -> None:
    write_coco(tmp_path, 2)
    (tmp_path / "images/train_1.jpg").rename(tmp_path / "images/train_1.JPG")
    with pytest.raises(DataError, match="1 of 2") as caught:
        open_split(tmp_path, "train")
    assert "capital letters" in caught.value.problems[0].fix


def test_images_in_folders_of_their_own_are_found(tmp_path: Path, write_coco: WriteCoco) -> None:
    images = [{"id": n, "file_name": f"day{n % 2}/{n}.jpg", "height": 9, "width": 9} for n in range(4)]
    write_coco(tmp_path, 1, images=images, annotations=[])
    for n in range(4):
        (tmp_path / f"images/day{n % 2}").mkdir(exist_ok=True)
        (tmp_path / f"images/day{n % 2}/{n}.jpg").touch()
    assert len(open_split(tmp_path, "train").index) == 4
    (tmp_path / "images/day1/3.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of 4 image files are missing: day1/3\.jpg"):
        open_split(tmp_path, "train")


def test_categories_are_matched_by_id(tmp_path: Path, write_coco: WriteCoco) -> None:
    split = open_split(write_coco(tmp_path, 1), "train")
    assert split.index.categories == Categories((2, 7, 90), ("cat", "dog", "owl"))
    assert label_map(split, split.index.categories) is None
    official = Categories(tuple(range(91)), (*(f"class {i}" for i in range(90)), "Owl"))
    mapped = label_map(split, official)
    assert mapped is not None and mapped.tolist() == [2, 7, 90]


def test_categories_the_model_lacks_are_all_named(tmp_path: Path, write_coco: WriteCoco) -> None:
    split = open_split(write_coco(tmp_path, 1), "train")
    with pytest.raises(DataError, match=r"does not know 2 of the data's categories: 'dog' \(id 7\), 'owl' \(id 90\)"):
        label_map(split, Categories((2, 3), ("cat", "cow")))


def test_a_category_without_annotations_may_be_unknown(tmp_path: Path, write_coco: WriteCoco) -> None:
    categories = [{"id": i, "name": n} for i, n in ((0, "root"), (2, "cat"), (7, "dog"), (90, "owl"))]
    split = open_split(write_coco(tmp_path, 1, categories=categories), "train")
    mapped = label_map(split, Categories((2, 7, 90), ("cat", "dog", "owl")))
    assert mapped is not None and mapped.tolist() == [-1, 0, 1, 2]


def test_ids_with_quite_other_meanings_are_refused(tmp_path: Path, write_coco: WriteCoco) -> None:
    split = open_split(write_coco(tmp_path, 1), "train")
    with pytest.raises(DataError, match="ids mean other things to the model: 'cat' is 'bicycle', 'dog' is 'train'"):
        label_map(split, Categories((2, 7, 90), ("bicycle", "train", "toothbrush")))


@pytest.mark.parametrize(
    ("cpus", "device", "workers"),
    [(1, "cpu", 0), (2, "cpu", 0), (16, "cpu", 4), (1, "cuda", 1), (2, "cuda", 1), (64, "cuda", 8)],
)
def test_automatic_workers(monkeypatch: pytest.MonkeyPatch, cpus: int, device: str, workers: int) -> None:
    monkeypatch.setattr(build, "usable_cpus", lambda: cpus)
    monkeypatch.setattr(build, "_free_shared_memory_bytes", lambda: 2**40)
    number, reason = resolve_workers(CONFIG, device, SIZES_HW)
    assert number == workers
    assert str(cpus) in reason


def test_workers_fit_the_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Docker gives 64 MiB; one prefetched batch of the DETR recipe can be 68 MB."""
    monkeypatch.setattr(build, "usable_cpus", lambda: 16)
    monkeypatch.setattr(build, "_free_shared_memory_bytes", lambda: 64 * 2**20)
    none = 0, "/dev/shm has room for the prefetched batches of 0 workers"
    assert resolve_workers(RunConfig(), "cuda", SIZES_HW) == none
    assert resolve_workers(CONFIG, "cuda", SIZES_HW)[0] == 8
    padded = replace(CONFIG, data=DataConfig(buckets=("2000x2000",)))
    assert resolve_workers(padded, "cuda", SIZES_HW) == none
    # Whole photos are sent to be augmented on the device; one batch has one panorama at most.
    raw = replace(CONFIG, data=DataConfig(augment_on="device"))
    panorama = np.array([[480, 640]] * 9 + [[1000, 2000]], np.int32)
    assert [resolve_workers(raw, "cuda", sizes)[0] for sizes in (SIZES_HW, panorama, panorama.repeat(4, 0))] == [
        8,
        3,
        1,
    ]


@pytest.mark.parametrize(
    ("local_size", "device", "workers"), [(2, "cpu", 2), (8, "cpu", 0), (2, "cuda", 7), (8, "cuda", 1), (64, "cuda", 1)]
)
def test_ranks_of_a_machine_divide_its_processors(
    monkeypatch: pytest.MonkeyPatch, local_size: int, device: str, workers: int
) -> None:
    monkeypatch.setattr(build, "usable_cpus", lambda: 16)
    monkeypatch.setattr(build, "_free_shared_memory_bytes", lambda: 2**40)
    number, reason = resolve_workers(CONFIG, device, SIZES_HW, local_size)
    assert number == workers
    assert f"{max(1, 16 // local_size)} for each of {local_size} ranks" in reason.replace(" processors", "")


def test_ranks_of_a_machine_divide_its_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four ranks hold a quarter of a batch each, in a quarter of the room; of two images, each holds one."""
    monkeypatch.setattr(build, "usable_cpus", lambda: 64)
    four_workers = 4 * 2 * 4 * 4 * 32 * 64  # with two batches each, of four images of 32x64 pixels in four bytes
    monkeypatch.setattr(build, "_free_shared_memory_bytes", lambda: four_workers)
    assert resolve_workers(CONFIG, "cuda", SIZES_HW)[0] == 4
    number, reason = resolve_workers(CONFIG, "cuda", SIZES_HW, 4)
    assert number == 4 and reason == "/dev/shm has room for the prefetched batches of 4 workers for each of 4 ranks"
    pair = replace(CONFIG, batch=BatchConfig(global_batch_size=2))
    assert resolve_workers(pair, "cuda", SIZES_HW, 4)[0] == 4


def test_workers_that_were_asked_for() -> None:
    assert resolve_workers(replace(CONFIG, data=DataConfig(workers=3)), "cpu", SIZES_HW) == (3, "set by data.workers")
    with pytest.raises(ConfigError, match="-1 workers"):
        resolve_workers(replace(CONFIG, data=DataConfig(workers=-1)), "cpu", SIZES_HW)


def test_squares_have_no_longest_side() -> None:
    square = AugmentConfig(sizes=(1536,), eval_size=1536, square=True)
    assert augment_policy(square).sizes == (1536,)
    with pytest.raises(ConfigError, match="1333 is out of range"):
        augment_policy(replace(square, square=False))


def test_all_impossible_augmentations_at_once() -> None:
    config = AugmentConfig(sizes=(), horizontal_flip=1.5, crop_px=(600, 384), crop_fraction=(0.0, 2.0), contrast=-1)
    with pytest.raises(ConfigError) as caught:
        augment_policy(config)
    assert [problem.where for problem in caught.value.problems] == [
        f"augment.{name}" for name in ("sizes", "horizontal_flip", "crop_px", "crop_fraction", "contrast")
    ]
    assert "(600, 384) is out of range" in str(caught.value)


def test_squares_of_a_step_have_one_size_whatever_the_ranks(tmp_path: Path, write_coco: WriteCoco) -> None:
    """Nothing is padded; the size changes from step to step, and a resumed run draws the same."""
    split = open_split(write_coco(tmp_path, 13), "train")
    sizes = (16, 24, 32, 40)
    config = replace(CONFIG, augment=AugmentConfig(sizes=sizes, square=True, eval_size=24, crop="none"))
    options: dict[str, Any] = {"workers": 0, "device": CPU}

    def sides(start: int, *, share: Share = ALONE) -> list[tuple[int, ...]]:
        batches = list(build_train_batches(config, split, split.index.categories, start, 12, **options, share=share))
        assert all(not part.padding_mask.any() for batch in batches for part in batch.parts)
        return [tuple(batch.parts[0].images.shape[2:]) for batch in batches]

    whole = sides(0)
    assert set(whole) <= {(side, side) for side in sizes} and len(set(whole)) > 1
    assert sides(5) == whole[5:]
    assert sides(0, share=Share(1, 3)) == whole
    with build_eval_batches(config, split, split.index.categories, batch_size=4, **options) as evaluation:
        assert {tuple(part.images.shape[2:]) for batch in evaluation for part in batch.parts} == {(24, 24)}

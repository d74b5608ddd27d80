"""Masks lie where their pixels are: read, augmented, collated and loaded; bad maps fare as bad images do."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.unit.data.panoptic_folder import edit, segment_ids_of, segments_of, write_map, write_panoptic

from detronome.config.convert import apply_overrides
from detronome.config.presets import preset
from detronome.config.schema import AugmentConfig, RunConfig
from detronome.data.augment.cpu import apply_to_map
from detronome.data.augment.params import AugmentParams
from detronome.data.build import augment_policy, build_eval_batches, build_quarantine, build_train_batches
from detronome.data.collate import collate, pack
from detronome.data.dataset import DetectionDataset
from detronome.data.layout import available_splits, find_split
from detronome.data.raw_batch import pack_raw
from detronome.data.split import DataSplit, open_split
from detronome.data.store.pixels import PixelReader
from detronome.errors import DataError
from detronome.evaluation.detection import DetectionEvaluator
from detronome.ops.boxes import cxcywh_to_xyxy
from detronome.types import Target

AS_IT_IS = AugmentConfig(sizes=(30,), max_size=64, crop="none", horizontal_flip=0, eval_size=30, eval_max_size=64)
WILD = AugmentConfig(
    sizes=(24, 47), max_size=90, horizontal_flip=0.5, vertical_flip=0.5, crop="fraction", crop_probability=0.7
)


def dataset(split: DataSplit, augment: AugmentConfig = AS_IT_IS, **options: Any) -> DetectionDataset:
    pixels = PixelReader(split.index, split.source)
    return DetectionDataset(split.index, pixels, augment_policy(augment), maps=split.maps, **options)


def boxes_of(masks: torch.Tensor) -> torch.Tensor:
    """The corners around each mask, by its projections."""
    corners = []
    for mask in masks:
        y, x = mask.any(1).nonzero().ravel(), mask.any(0).nonzero().ravel()
        corners.append([int(x[0]), int(y[0]), int(x[-1]) + 1, int(y[-1]) + 1])
    return torch.tensor(corners).float().reshape(-1, 4)


def corners_px(target: Target) -> torch.Tensor:
    height, width = target.size_hw
    return cxcywh_to_xyxy(target.boxes_cxcywh) * torch.tensor([width, height, width, height])


def run_config(folder: Path, **settings: Any) -> RunConfig:
    chosen = {
        "data.root": str(folder),
        "data.annotations": "panoptic",
        "augment.sizes": [24],
        "augment.max_size": 40,
        "augment.eval_size": 24,
        "augment.eval_max_size": 40,
        "batch.global_batch_size": 3,
        "data.buckets": [],
        "data.bad_image_budget": 0.5,
    }
    return apply_overrides(preset("nano"), {**chosen, **settings})


def test_an_image_of_void_alone_has_no_masks(tmp_path: Path) -> None:
    folder = write_panoptic(tmp_path, 1)
    edit(folder / "annotations/panoptic_train.json", lambda content: content["annotations"][0]["segments_info"].clear())
    write_map(folder / "annotations/panoptic_train/train_0.png", np.zeros((30, 41), np.int32))
    _, target = dataset(open_split(folder, "train", annotations="panoptic"), training=False)[0, 0]
    assert target.masks is not None and target.masks.shape == (0, *target.size_hw)
    assert target.masks.dtype == torch.bool and target.boxes_cxcywh.shape == (0, 4)


def test_splits_are_found_by_their_panoptic_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        available_splits(tmp_path / "none", "panoptic")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no panoptic annotations"):
        find_split(tmp_path / "empty", "train", "panoptic")
    folder = write_panoptic(tmp_path)
    assert available_splits(folder, "panoptic") == ["train"] and available_splits(folder) == []
    with pytest.raises(DataError, match="no split 'val'"):
        find_split(folder, "val", "panoptic")
    beside = folder / "annotations" / "panoptic_train"
    official = folder / "panoptic_train2017"
    beside.rename(official)
    beside.with_suffix(".json").rename(folder / "annotations" / "panoptic_train2017.json")
    files = find_split(folder, "train", "panoptic")
    assert (files.name, files.maps_dir, files.annotations) == ("train2017", official, "panoptic")
    official.rename(folder / "elsewhere")
    with pytest.raises(DataError, match="the panoptic maps of split 'train2017' were not found"):
        find_split(folder, "train", "panoptic")


def test_missing_maps_are_counted_before_the_run(tmp_path: Path) -> None:
    folder = write_panoptic(tmp_path)
    (folder / "annotations/panoptic_train/train_1.png").unlink()
    with pytest.raises(DataError, match=r"1 of 3 panoptic maps are missing: train_1\.png"):
        open_split(folder, "train", annotations="panoptic")
    split = open_split(folder, "train", annotations="panoptic", missing_budget=0.5)
    with pytest.raises(DataError, match=r"train_1\.png \(image id 69\)"):
        dataset(split, training=False)[0, 1]


def test_masks_hold_every_labelled_pixel_once(tmp_path: Path) -> None:
    split = open_split(write_panoptic(tmp_path, 4), "train", annotations="panoptic")
    data = dataset(split, AugmentConfig(eval_size=30, eval_max_size=64), training=False)
    _, target = data[0, 0]
    assert target.masks is not None and target.size_hw == target.orig_size_hw == (30, 41)
    ids = segment_ids_of(0, (30, 41))
    assert np.array_equal(target.masks.sum(0).numpy(), ids != 0)
    for mask, id_ in zip(target.masks, split.index.annotation_ids(0).tolist(), strict=True):
        assert np.array_equal(mask.numpy(), ids == id_)
    assert torch.equal(corners_px(target).round(), boxes_of(target.masks))
    assert len(pickle.dumps(data)) < 2500


def test_crowds_and_stuff_are_objects(tmp_path: Path) -> None:
    split = open_split(write_panoptic(tmp_path, 1), "train", annotations="panoptic")
    _, labels, _, iscrowd = split.index.annotations(0)
    _, target = dataset(split, training=False)[0, 0]
    assert iscrowd.any() and target.labels.tolist() == labels.tolist()
    _, mapped = dataset(split, training=False, label_map=np.array([5, -1, 6]))[0, 0]
    assert mapped.labels.tolist() == [{0: 5, 2: 6}[label] for label in labels.tolist() if label != 1]
    assert mapped.masks is not None and len(mapped.masks) == len(mapped.labels)


def test_masks_go_where_the_image_goes(tmp_path: Path) -> None:
    """The image is painted with the segments' places in the list, so each pixel says which mask must hold it."""
    folder = write_panoptic(tmp_path, 3)
    for n in range(3):
        ids = segment_ids_of(n, (30 + n, 41))
        rows = np.searchsorted(np.unique(ids), ids).astype(np.uint8) * 50
        Image.fromarray(np.repeat(rows[:, :, None], 3, 2)).save(folder / "images" / f"train_{n}.png")
    data = dataset(open_split(folder, "train", annotations="panoptic"), WILD, training=True)
    num_dropped = 0
    for epoch in range(60):
        image, target = data[epoch, epoch % 3]
        assert target.masks is not None and target.masks.shape[1:] == target.size_hw == image.shape[1:]
        # The image is blurred at edges; where a pixel is like all around it, it names the mask that must hold it.
        values = image[:1].float()
        high, low = (torch.nn.functional.max_pool2d(sign * values, 3, 1, 1)[0] for sign in (1, -1))
        inner = high == -low
        expected = (values[0] / 50).round().long()
        places = torch.zeros_like(expected)
        for box, mask in zip(corners_px(target), target.masks, strict=True):
            named = expected[mask & inner].unique()
            assert len(named) <= 1
            places[mask] = int(named[0]) if len(named) else -1
            if mask.any():  # of one cut by the window, the box is that of what was whole before
                left, top, right, bottom = (boxes_of(mask[None])[0] - box).tolist()
                assert min(left, top) > -1.6 and max(right, bottom) < 1.6
        assert ((places == expected) | ~inner | (places < 0)).all()
        num_dropped += len(np.unique(segment_ids_of(epoch % 3, target.orig_size_hw))) - 1 - len(target.masks)
    assert num_dropped > 0


def test_a_flip_is_a_flip_of_the_masks(tmp_path: Path) -> None:
    split = open_split(write_panoptic(tmp_path, 1), "train", annotations="panoptic")
    plain, flipped = (
        dataset(split, AugmentConfig(sizes=(30,), max_size=64, crop="none", horizontal_flip=p), training=True)[0, 0][1]
        for p in (0.0, 1.0)
    )
    assert plain.masks is not None and flipped.masks is not None
    assert torch.equal(plain.masks.flip(-1), flipped.masks)


def test_what_a_crop_leaves_nothing_of_is_dropped() -> None:
    rows = np.array([[1, 1, 2, 2], [1, 1, 0, 2]], np.int32)
    params = AugmentParams(size_hw=(2, 4), crop=(0, 0, 2, 2), final_hw=(4, 4))
    moved, keep = apply_to_map(rows, 2, params, (2, 4))
    assert moved.tolist() == [[1] * 4] * 4 and keep.tolist() == [True, False]
    small = AugmentParams(size_hw=(2, 4), final_hw=(1, 1))
    _, keep = apply_to_map(rows, 2, small, (2, 4))
    assert keep.all(), "a resize drops nothing"


@given(st.integers(1, 40), st.integers(1, 40))
def test_pixels_are_the_nearest_by_their_centres(size: int, to: int) -> None:
    rows = np.arange(size, dtype=np.int32)[None]
    moved, _ = apply_to_map(rows, size, AugmentParams(size_hw=(1, size), final_hw=(1, to)), (1, size))
    source = (np.arange(to) + 0.5) * size / to  # the centre of each pixel, in pixels of the source
    assert (np.abs(moved[0] + 0.5 - source) <= 0.5 + 1e-9).all()


def test_a_box_whose_pixels_lie_elsewhere_is_dropped_with_its_mask(tmp_path: Path) -> None:
    """Of an L around the window, the box reaches in and no pixel does."""
    folder = write_panoptic(tmp_path, 1)
    ids = np.full((30, 41), 5, np.int32)
    ids[4:, 4:] = 9
    ids[12:22, 15:25] = 12
    write_map(folder / "annotations/panoptic_train/train_0.png", ids)
    edit(
        folder / "annotations/panoptic_train.json",
        lambda content: content["annotations"][0].update(segments_info=segments_of(ids)),
    )
    split = open_split(folder, "train", annotations="panoptic")
    around, ground, square = split.index.annotations(0)[1].tolist()
    data = dataset(split, WILD, training=True)
    kept = set()
    for epoch in range(80):
        _, target = data[epoch, 0]
        assert target.masks is not None and len(target.masks) == target.num_objects
        labels = target.labels.tolist()
        kept.add(tuple(labels))
        if square in labels and target.masks[labels.index(square)].any():
            n = labels.index(square)
            assert ((boxes_of(target.masks[[n]]) - corners_px(target)[[n]]).abs() < 1.6).all()
    assert {(around, ground, square), (ground, square)} <= kept


def test_reduced_pixels_get_the_same_window(tmp_path: Path) -> None:
    """A cached, reduced copy of an image: the map is reduced alike, so window and masks still agree."""
    rows = np.repeat(np.repeat(np.arange(1, 13, dtype=np.int32).reshape(3, 4), 10, 0), 10, 1)
    params = AugmentParams(size_hw=(30, 40), crop=(10, 10, 20, 30), final_hw=(20, 30))
    whole, _ = apply_to_map(rows, 12, params, (30, 40))
    reduced, keep = apply_to_map(rows, 12, params, (15, 20))
    assert np.array_equal(whole, reduced) and keep.sum() == 6


def test_collated_masks_are_those_of_the_samples(tmp_path: Path) -> None:
    split = open_split(write_panoptic(tmp_path, 3), "train", annotations="panoptic")
    data = dataset(split, WILD, training=True)
    samples = [data[0, i] for i in range(3)]
    batch = collate(samples)
    for (_, wanted), target in zip(samples, batch.targets, strict=True):
        assert wanted.masks is not None and target.masks is not None
        assert torch.equal(wanted.masks, target.masks)
        assert torch.equal(wanted.boxes_cxcywh, target.boxes_cxcywh)
    (packed,) = pack(samples)
    num_pixels = sum(target.masks.numel() for _, target in samples if target.masks is not None)
    num_bytes = sum(bits.size for bits in packed.targets.mask_bits if bits is not None)
    assert num_bytes <= num_pixels // 8 + 3


def test_augmenting_on_the_device_gives_the_same_masks(tmp_path: Path) -> None:
    split = open_split(write_panoptic(tmp_path, 3), "train", annotations="panoptic")
    data = dataset(split, WILD, training=True)
    raw = pack_raw([data.raw((2, i)) for i in range(3)])[0].augment(torch.device("cpu"))
    for (_, wanted), target in zip([data[2, i] for i in range(3)], raw.targets, strict=True):
        assert wanted.masks is not None and target.masks is not None and torch.equal(wanted.masks, target.masks)


@pytest.mark.parametrize("workers", [0, 1])
def test_masks_come_through_the_loader(tmp_path: Path, workers: int) -> None:
    folder = write_panoptic(tmp_path)
    config = run_config(folder, **{"data.workers": workers})
    split = open_split(folder, "train", annotations="panoptic")
    cpu = torch.device("cpu")
    stream = build_train_batches(config, split, split.index.categories, 0, 2, workers=workers, device=cpu)
    with stream as batches:
        seen = [target for batch in batches for target in batch.targets]
    assert len(seen) == 6 and len({target.image_id for target in seen}) == 3
    for target in seen:
        assert target.masks is not None and target.masks.shape == (target.num_objects, *target.size_hw)
        assert target.masks.flatten(1).any(1).all()


def test_a_bad_map_is_replaced_and_told(tmp_path: Path) -> None:
    folder = write_panoptic(tmp_path)
    write_map(folder / "annotations/panoptic_train/train_1.png", segment_ids_of(8, (31, 41)))
    (folder / "annotations/panoptic_train/train_2.png").write_bytes(b"\x89PNG")
    split = open_split(folder, "train", annotations="panoptic")
    config = run_config(folder, **{"data.workers": 0, "data.bad_image_budget": 1.0})
    quarantine = build_quarantine(config, split)
    cpu = torch.device("cpu")
    with build_train_batches(
        config, split, split.index.categories, 0, 1, workers=0, device=cpu, quarantine=quarantine
    ) as batches:
        (batch,) = batches
    assert {target.image_id for target in batch.targets} == {70}
    bad = {image.image_id: image for image in quarantine.drain()}
    assert set(bad) == {69, 68}
    assert "does not list" in bad[69].what and "panoptic map cannot be used" in bad[68].what


def test_a_map_of_another_size_is_refused(tmp_path: Path) -> None:
    folder = write_panoptic(tmp_path, 1)
    write_map(folder / "annotations/panoptic_train/train_0.png", np.repeat(segment_ids_of(0, (30, 41)), 2, 0))
    split = open_split(folder, "train", annotations="panoptic")
    with pytest.raises(DataError, match=r"has 41x60 pixels .* says 41x30(.|\n)*train_0\.png \(image id 70\)"):
        dataset(split, training=False)[0, 0]


def test_boxes_are_measured_against_those_of_all_segments(tmp_path: Path) -> None:
    split = open_split(write_panoptic(tmp_path), "train", annotations="panoptic")
    evaluator = DetectionEvaluator(split.box_truth())
    assert evaluator.categories.ids == (1, 17, 200)
    assert evaluator.image_ids.tolist() == [68, 69, 70]
    truth = split.box_truth()
    assert isinstance(truth, dict)
    assert sum(annotation["iscrowd"] for annotation in truth["annotations"]) == 3
    assert len(truth["annotations"]) == split.index.num_objects


def test_evaluation_batches_have_masks_too(tmp_path: Path) -> None:
    folder = write_panoptic(tmp_path)
    config = run_config(folder)
    split = open_split(folder, "train", annotations="panoptic")
    with build_eval_batches(
        config, split, split.index.categories, batch_size=2, workers=0, device=torch.device("cpu")
    ) as batches:
        targets = [target for batch in batches for target in batch.targets]
    assert sorted(target.image_id for target in targets) == [68, 69, 70]
    assert all(target.masks is not None for target in targets)


@pytest.mark.parametrize(("name", "num_images", "num_segments"), [("train", 17, 208), ("val", 9, 77)])
def test_real_maps(shared_data: Path, name: str, num_images: int, num_segments: int) -> None:
    """Official panoptic maps: boxes are those of the masks and of the file, areas are the pixels of the masks."""
    split = open_split(shared_data / "coco2017_sample", name, annotations="panoptic")
    assert (len(split.index), split.index.num_objects) == (num_images, num_segments)
    assert split.maps is not None
    whole = AugmentConfig(eval_size=800, eval_max_size=1333)
    data = dataset(split, whole, training=False)
    for i in range(num_images):
        boxes_xywh, _, area, _ = split.index.annotations(i)
        rows = split.maps.rows(i)
        assert np.bincount(rows.ravel(), minlength=len(area) + 1)[1:].tolist() == area.tolist()
        image, target = data[0, i]
        height, width = target.size_hw
        orig_height, orig_width = target.orig_size_hw
        ratios = torch.tensor([width / orig_width, height / orig_height] * 2)
        corners = torch.from_numpy(boxes_xywh).float()
        corners[:, 2:] += corners[:, :2]
        torch.testing.assert_close(corners_px(target), corners * ratios, atol=1e-2, rtol=0)
        assert target.masks is not None and image.shape[1:] == target.masks.shape[1:]
        assert ((boxes_of(target.masks) - corners_px(target)).abs() <= ratios / 2 + 0.51).all()
        masked = target.masks.flatten(1).sum(1) / (ratios[0] * ratios[1])
        torch.testing.assert_close(masked.double(), torch.from_numpy(area), rtol=0.1, atol=8)

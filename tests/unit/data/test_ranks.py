"""However many ranks divide a run, together they see the same: images, augmentation, and what replaces bad ones."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from detronome.config.schema import AugmentConfig
from detronome.data.build import augment_policy
from detronome.data.dataset import DetectionDataset
from detronome.data.loader import BatchStream, eval_batches, train_batches
from detronome.data.prefetch import DeviceStream
from detronome.data.quarantine import BadImage, BadImagePolicy, Quarantine
from detronome.data.sampler import Share, epoch_order
from detronome.data.split import open_split
from detronome.data.step_dataset import PackedStep, StepDataset
from detronome.data.store.pixels import PixelReader
from detronome.errors import DataError
from detronome.types import EffectiveBatch

SMALL = augment_policy(AugmentConfig(sizes=(32, 40), max_size=64, crop="fraction", eval_size=32, eval_max_size=64))
CPU = torch.device("cpu")
WriteCoco = Callable[..., Path]
Seen = list[tuple[int, str]]
"""The id of each image and a digest of all that the model and the loss see of it, in ascending order."""


@pytest.fixture
def folder(tmp_path: Path, write_coco: WriteCoco) -> Path:
    return write_coco(tmp_path, 10)


def dataset(folder: Path, training: bool = True) -> DetectionDataset:
    split = open_split(folder, "train")
    return DetectionDataset(split.index, PixelReader(split.index, split.source), SMALL, training=training, seed=5)


def train(folder: Path, workers: int = 0, **changes: Any) -> BatchStream:
    options: dict[str, Any] = {"seed": 5, "start_step": 0, "total_steps": 6, "global_batch_size": 4, **changes}
    return train_batches(dataset(folder), epoch_order(5, 10), workers=workers, **options)


def spoil(folder: Path, numbers: Iterable[int]) -> None:
    for n in numbers:
        (folder / f"images/train_{n}.jpg").write_bytes(b"\xff\xd8\xff")


def seen(batches: Iterable[EffectiveBatch]) -> Seen:
    found = []
    for part in (part for batch in batches for part in batch.parts):
        for image, padding_mask, target in zip(part.images, part.padding_mask, part.targets, strict=True):
            height, width = target.size_hw
            assert not padding_mask[:height, :width].any() and padding_mask.logical_not().sum() == height * width
            what = (image[:, :height, :width], target.boxes_cxcywh, target.labels)
            digest = hashlib.sha256(b"".join(tensor.contiguous().numpy().tobytes() for tensor in what))
            digest.update(repr((target.size_hw, target.orig_size_hw)).encode())
            found.append((target.image_id, digest.hexdigest()))
    return sorted(found)


def steps_over_ranks(folder: Path, num_ranks: int, workers: tuple[int, ...] = (0,), **changes: Any) -> list[Seen]:
    """Return what each step shows on all ranks together; rank r has `workers[r % len(workers)]` workers."""
    streams = [
        list(train(folder, workers[rank % len(workers)], share=Share(rank, num_ranks), **changes))
        for rank in range(num_ranks)
    ]
    return [seen(batches) for batches in zip(*streams, strict=True)]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("augment_on", [None, CPU])
def test_a_rank_that_gets_no_image_of_a_step_still_counts_the_step(
    folder: Path, workers: int, augment_on: torch.device | None
) -> None:
    batches = list(train(folder, workers, share=Share(4, 5), augment_on=augment_on))
    assert [batch.parts for batch in batches] == [()] * 6
    assert all(len(batch) == batch.num_objects == len(batch.split(1)) == len(batch.image_ids) == 0 for batch in batches)
    with DeviceStream(train(folder, workers, share=Share(4, 5), augment_on=augment_on), CPU) as stream:
        assert [batch.parts for batch in stream] == [()] * 6
        assert (stream.meter.num_batches, stream.meter.num_images) == (6, 0)
        assert set(stream.meter.image_stage_s) == {"collate"}


def test_any_number_of_ranks_sees_the_same(folder: Path) -> None:
    whole = steps_over_ranks(folder, 1)
    assert [len(step) for step in whole] == [4] * 6
    for num_ranks in (2, 3, 4, 7):
        assert steps_over_ranks(folder, num_ranks) == whole
    assert steps_over_ranks(folder, 3, workers=(0, 2)) == whole


def test_a_resume_with_other_ranks_sees_the_rest(folder: Path) -> None:
    whole = steps_over_ranks(folder, 1)
    for start_step in range(7):
        num_ranks = 1 + start_step % 4
        assert steps_over_ranks(folder, num_ranks, start_step=start_step) == whole[start_step:]
    assert steps_over_ranks(folder, 2, workers=(2, 0), start_step=3) == whole[3:]


def test_excluded_steps_are_not_loaded_and_the_others_stay(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = steps_over_ranks(folder, 1)
    read = DetectionDataset.__getitem__
    keys: list[tuple[int, int]] = []

    def spy(self: DetectionDataset, key: tuple[int, int]) -> Any:
        keys.append(key)
        return read(self, key)

    monkeypatch.setattr(DetectionDataset, "__getitem__", spy)
    kept = steps_over_ranks(folder, 2, excluded=[1, 4])
    assert kept == [whole[step] for step in (0, 2, 3, 5)]
    assert len(keys) == 16
    assert steps_over_ranks(folder, 3, start_step=2, excluded=[1, 4]) == kept[1:]


@pytest.mark.parametrize("policy", ["replace", "skip"])
@pytest.mark.parametrize("num_bad", [2, 7, 10])
def test_any_number_of_ranks_decides_alike_about_bad_images(folder: Path, policy: BadImagePolicy, num_bad: int) -> None:
    spoil(folder, range(num_bad))

    def run(num_ranks: int, workers: tuple[int, ...] = (0,)) -> tuple[list[Seen], set[BadImage]]:
        met = Recorder("train", 10, 1.0)
        return steps_over_ranks(folder, num_ranks, workers, on_bad_image=policy, quarantine=met), met.all_met

    alone = run(1)
    assert len(alone[1]) >= num_bad
    for num_ranks in (2, 3, 4, 5):
        assert run(num_ranks) == alone
    assert run(2, workers=(2, 0)) == alone


class Recorder(Quarantine):
    """Remembers every decision, not only the first about an image."""

    all_met: set[BadImage]

    def admit(self, images: Iterable[BadImage]) -> None:
        self.all_met = getattr(self, "all_met", set()) | set(images)
        super().admit(images)


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_batches_are_divided_and_stay_the_same(folder: Path, workers: int) -> None:
    buckets = ((32, 64), (64, 64))
    data = dataset(folder, training=False)
    whole = [seen([batch]) for batch in eval_batches(data, batch_size=2, workers=0, buckets=buckets)]
    for num_ranks in (1, 2, 3, 7, 12):
        ranks = [
            eval_batches(data, batch_size=2, workers=workers, buckets=buckets, share=Share(rank, num_ranks))
            for rank in range(num_ranks)
        ]
        shown = []
        for batches in ranks:
            with batches:
                shown.append([seen([batch]) for batch in batches])
            assert len(batches) == len(shown[-1])
        assert [shown[n % num_ranks][n // num_ranks] for n in range(len(whole))] == whole
        assert max(map(len, shown)) - min(map(len, shown)) <= 1


def test_the_images_that_are_waited_for_are_known_before_they_are_there(folder: Path) -> None:
    options: dict[str, Any] = {"share": Share(1, 2), "excluded": [2]}
    expected = [batch.image_ids for batch in train(folder, **options)]
    assert len(expected) == 5
    for workers in (0, 1):
        with DeviceStream(train(folder, workers, **options), CPU) as stream:
            for image_ids in expected:
                assert stream.next_image_ids == image_ids
                assert next(stream).image_ids == image_ids
            assert stream.next_image_ids == []
            assert next(stream, None) is None and stream.next_image_ids == []
    evaluation = eval_batches(dataset(folder, training=False), batch_size=3, workers=0, share=Share(1, 2))
    for _ in range(2):
        stream = iter(evaluation)
        for image_ids in [batch.image_ids for batch in evaluation]:
            assert stream.next_image_ids == image_ids
            next(stream)


def test_after_a_failure_the_images_are_still_those_that_failed(folder: Path) -> None:
    spoil(folder, range(10))
    with train(folder) as stream:
        waited_for = stream.next_image_ids
        with pytest.raises(DataError):
            next(stream)
        assert stream.next_image_ids == waited_for


def test_no_images_need_no_page_locked_memory(folder: Path) -> None:
    step = StepDataset(dataset(folder), (), "stop")[[]]
    assert isinstance(step, PackedStep) and step.pin_memory() == step


@pytest.mark.gpu
def test_a_step_without_images_crosses_to_the_gpu(folder: Path) -> None:
    device = torch.device("cuda")
    for share, augment_on in ((Share(4, 5), None), (Share(3, 5), None), (Share(4, 5), device), (Share(3, 5), device)):
        batches = train(folder, 1, share=share, pin_memory=True, augment_on=augment_on)
        with DeviceStream(batches, device) as stream:
            assert [len(batch) for batch in stream] == [int(share.rank < 4)] * 6

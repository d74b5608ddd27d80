"""Batches do not depend on who makes them; errors and signals reach the right process."""

from __future__ import annotations

import os
import pickle
import signal
import time
from collections.abc import Callable
from multiprocessing import active_children
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from detronome.config.schema import AugmentConfig
from detronome.data.buckets import bucket_of
from detronome.data.build import augment_policy
from detronome.data.dataset import DetectionDataset
from detronome.data.loader import BatchStream, _tells_of_a_dead_worker, eval_batches, train_batches
from detronome.data.quarantine import Quarantine
from detronome.data.sampler import epoch_order
from detronome.data.split import open_split
from detronome.data.step_dataset import Failure
from detronome.data.store.pixels import PixelReader
from detronome.errors import DataError, MissingExtraError, TrainingError
from detronome.types import EffectiveBatch

SMALL = augment_policy(AugmentConfig(sizes=(32, 40), max_size=64, crop="fraction", eval_size=32, eval_max_size=64))
WriteCoco = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path, write_coco: WriteCoco) -> Path:
    return write_coco(tmp_path, 10)


def dataset(folder: Path, training: bool = True, kind: type[DetectionDataset] = DetectionDataset) -> DetectionDataset:
    split = open_split(folder, "train")
    pixels = PixelReader(split.index, split.source)
    return kind(split.index, pixels, SMALL, training=training, seed=5)


class Buggy(DetectionDataset):
    def __getitem__(self, key: tuple[int, int]) -> Any:
        return 1 // 0


class WithTwoMistakes(DetectionDataset):
    def __getitem__(self, key: tuple[int, int]) -> Any:
        raise DataError("bad") if key[1] == 2 else MissingExtraError("s3fs", extra="cloud", needed_for="shards")


def train(folder: Path, workers: int, **changes: Any) -> BatchStream:
    data = dataset(folder, kind=changes.pop("kind", DetectionDataset))
    options: dict[str, Any] = {"seed": 5, "start_step": 0, "total_steps": 8, "global_batch_size": 3, **changes}
    return train_batches(data, epoch_order(5, 10), workers=workers, **options)


def assert_same(batches: list[EffectiveBatch], others: list[EffectiveBatch]) -> None:
    for one, other in zip(batches, others, strict=True):
        assert one.image_ids == other.image_ids
        for part, other_part in zip(one.parts, other.parts, strict=True):
            assert torch.equal(part.images, other_part.images)
            assert torch.equal(part.padding_mask, other_part.padding_mask)
        for target, other_target in zip(one.targets, other.targets, strict=True):
            assert torch.equal(target.boxes_cxcywh, other_target.boxes_cxcywh)
            assert torch.equal(target.labels, other_target.labels)


def wait_until_no_children(before: set[Any]) -> None:
    deadline = time.monotonic() + 20
    while set(active_children()) - before:
        assert time.monotonic() < deadline, "workers are still there"
        time.sleep(0.02)


def test_no_steps_are_no_batches(folder: Path) -> None:
    assert list(train(folder, 0, total_steps=0)) == []


def test_batches_do_not_depend_on_workers_nor_on_a_resume(folder: Path) -> None:
    whole = list(train(folder, 0))
    assert [len(batch) for batch in whole] == [3] * 8
    torch.manual_seed(99)
    for workers in (1, 2):
        assert_same(list(train(folder, workers)), whole)
    assert_same(list(train(folder, 0, start_step=5)), whole[5:])
    assert_same(list(train(folder, 2, start_step=2, total_steps=4, prefetch=1)), whole[2:4])


def test_less_than_a_batch_is_a_batch(folder: Path) -> None:
    assert [len(batch) for batch in train(folder, 0, global_batch_size=64, total_steps=2)] == [10, 10]


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_shows_each_image_once_and_unpadded_each_time(folder: Path, workers: int) -> None:
    children = set(active_children())
    with eval_batches(dataset(folder, training=False), batch_size=4, workers=workers) as batches:
        first, pids = list(batches), {child.pid for child in active_children()}
        assert len(first) == len(batches)
        assert sorted(image_id for batch in first for image_id in batch.image_ids) == list(range(91, 101))
        assert not any(part.padding_mask.any() for batch in first for part in batch.parts)
        assert_same(list(batches), first)
        assert {child.pid for child in active_children()} == pids
    wait_until_no_children(children)


def test_torchs_generator_is_left_alone(folder: Path) -> None:
    before = torch.get_rng_state()
    list(train(folder, 0))
    list(train(folder, 1, total_steps=1))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("error", "dead"),
    [
        (RuntimeError("DataLoader worker (pid(s) 12) exited unexpectedly"), True),
        (ConnectionResetError(104, "Connection reset by peer"), True),
        (EOFError(), True),
        (FileNotFoundError("Caught FileNotFoundError in DataLoader worker process 0."), False),
        (RuntimeError("Caught RuntimeError in DataLoader worker process 0."), False),
        (ZeroDivisionError(), False),
    ],
)
def test_a_dead_worker_is_told_from_a_bug(error: Exception, dead: bool) -> None:
    assert _tells_of_a_dead_worker(error) == dead


@pytest.mark.parametrize("workers", [0, 1])
def test_all_bad_images_of_a_batch_reach_the_user(folder: Path, workers: int) -> None:
    children = set(active_children())
    stream = train(folder, workers, global_batch_size=10)
    stream.close()
    for n in (2, 7):
        (folder / f"images/train_{n}.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(DataError) as caught:
        next(train(folder, workers, global_batch_size=10))
    assert type(caught.value) is DataError
    assert len(caught.value.problems) == 2
    assert {problem.where.partition("(")[2] for problem in caught.value.problems} == {"image id 98)", "image id 93)"}
    assert "Traceback" not in str(caught.value)
    wait_until_no_children(children)


def test_errors_with_other_constructors_keep_kind_and_text() -> None:
    original = MissingExtraError("skimage", extra="demo", needed_for="the demo")
    copy = pickle.loads(pickle.dumps(Failure(original))).error
    assert type(copy) is MissingExtraError
    assert (str(copy), copy.problems) == (str(original), original.problems)


@pytest.mark.parametrize("workers", [0, 1])
def test_our_own_bugs_keep_their_traceback(folder: Path, workers: int) -> None:
    with pytest.raises(ZeroDivisionError):
        next(train(folder, workers, kind=Buggy))


@pytest.mark.parametrize(
    ("received", "queued", "ready"), [((), 0, 0), ((8, 9), 0, 0), ((8,), 2, 2), ((7, 8), 0, 2), ((7, 9), 1, 2)]
)
def test_a_batch_that_has_overtaken_the_next_one_is_not_ready(
    folder: Path, received: tuple[int, ...], queued: int, ready: int
) -> None:
    """Waiting for the next one would hold up a GPU that has another batch to work on."""
    items = SimpleNamespace(
        _rcvd_idx=7,
        _task_info={n: (0, "batch") if n in received else (0,) for n in range(7, 11)},
        _data_queue=SimpleNamespace(qsize=lambda: queued),
    )
    with train(folder, 0) as stream:
        stream._items = items  # type: ignore[assignment]
        assert stream.num_ready == ready


def test_closing_in_the_middle_ends_the_workers(folder: Path) -> None:
    children = set(active_children())
    with train(folder, 2, total_steps=1000) as stream:
        next(stream)
        assert len(set(active_children()) - children) == 2
    wait_until_no_children(children)
    assert list(stream) == []


def test_workers_survive_the_signals_that_stop_a_run(folder: Path) -> None:
    """Ctrl-C and a scheduler's SIGTERM go to the whole group; the main process still needs its batches to save."""
    children = set(active_children())
    with train(folder, 1, total_steps=30) as stream:
        next(stream)
        (worker,) = set(active_children()) - children
        assert worker.pid is not None
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            os.kill(worker.pid, number)
        assert len(list(stream)) == 29
    wait_until_no_children(children)


def test_a_killed_worker_is_explained(folder: Path) -> None:
    children = set(active_children())
    stream = train(folder, 1, total_steps=10_000)
    next(stream)
    (worker,) = set(active_children()) - children
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(TrainingError, match="a data worker was killed") as caught:
        for _ in stream:
            pass
    assert "data.workers" in caught.value.problems[0].fix
    wait_until_no_children(children)


def test_a_dead_worker_interrupts_nothing_but_the_wait_for_a_batch(folder: Path) -> None:
    handler = signal.getsignal(signal.SIGCHLD)
    with train(folder, 1) as stream:
        next(stream)
        assert signal.getsignal(signal.SIGCHLD) is handler


def spoil(folder: Path, *numbers: int) -> None:
    for n in numbers:
        (folder / f"images/train_{n}.jpg").write_bytes(b"\xff\xd8\xff")


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_are_replaced_alike_by_whoever_loads_them(folder: Path, workers: int) -> None:
    spoil(folder, 2, 7)
    plain = list(train(folder, 0, on_bad_image="replace", quarantine=Quarantine("train", 10, 1.0)))
    quarantine = Quarantine("train", 10, 0.2)
    assert_same(list(train(folder, workers, on_bad_image="replace", quarantine=quarantine)), plain)
    assert [len(batch) for batch in plain] == [3] * 8
    assert quarantine.image_ids == [93, 98]
    assert not {93, 98} & {image_id for batch in plain for image_id in batch.image_ids}
    told = quarantine.drain()
    assert [image.action.startswith("replaced by image id ") for image in told] == [True, True]
    assert "train_2.jpg" in " ".join(image.where for image in told) and quarantine.drain() == []
    resumed = train(folder, 0, start_step=4, on_bad_image="replace", quarantine=Quarantine("train", 10, 1.0))
    assert_same(list(resumed), plain[4:])


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_images_are_left_out_and_a_step_without_any_image_is_still_a_step(folder: Path, workers: int) -> None:
    spoil(folder, *range(7))
    options: dict[str, Any] = {"on_bad_image": "skip", "quarantine": Quarantine("train", 10, 1.0)}
    batches = list(train(folder, workers, **options))
    assert {image_id for batch in batches for image_id in batch.image_ids} == {91, 92, 93}
    assert len(batches) == 8 and any(batch.parts == () and batch.image_ids == [] for batch in batches)
    assert {image.action for image in options["quarantine"].drain()} == {"left out"}


def test_no_replacement_to_be_found_leaves_the_image_out(folder: Path) -> None:
    spoil(folder, *range(10))
    assert [batch.parts for batch in train(folder, 0, on_bad_image="replace", total_steps=2)] == [(), ()]


def test_a_replacement_is_decoded_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read twice, it might fail the second time, and that would be nobody's to catch."""
    spoil(folder, 2)
    read = DetectionDataset.__getitem__
    decoded: list[tuple[int, int]] = []

    def spy(self: DetectionDataset, key: tuple[int, int]) -> Any:
        sample = read(self, key)
        decoded.append(key)
        return sample

    monkeypatch.setattr(DetectionDataset, "__getitem__", spy)
    options: dict[str, Any] = {"on_bad_image": "replace", "quarantine": Quarantine("train", 10, 1.0)}
    (batch,) = train(folder, 0, global_batch_size=10, total_steps=1, **options)
    assert len(batch) == len(decoded) == 10


@pytest.mark.parametrize("workers", [0, 1])
def test_a_replacement_that_meets_another_mistake_tells_of_it(folder: Path, workers: int) -> None:
    one = epoch_order(5, 1)
    stream = train_batches(
        dataset(folder, kind=WithTwoMistakes),
        lambda epoch: one(epoch) + 2,
        seed=5,
        start_step=0,
        total_steps=1,
        global_batch_size=1,
        workers=workers,
        on_bad_image="replace",
    )
    with pytest.raises(MissingExtraError) as caught:
        next(stream)
    assert "Traceback" not in str(caught.value)


def test_too_many_bad_images_end_the_run(folder: Path) -> None:
    spoil(folder, 2, 7)
    children = set(active_children())
    stream = train(folder, 1, on_bad_image="replace", quarantine=Quarantine("train", 10, 0.1))
    with pytest.raises(DataError, match="2 images of split 'train' cannot be used, more than the 1 of 10") as caught:
        list(stream)
    assert "data.bad_image_budget" in caught.value.problems[0].fix
    wait_until_no_children(children)


def test_evaluation_leaves_bad_images_out(folder: Path) -> None:
    spoil(folder, 0, 1, 2)
    quarantine = Quarantine("train", 10, 1.0)
    data = dataset(folder, training=False)
    batches = eval_batches(data, batch_size=2, workers=0, on_bad_image="replace", quarantine=quarantine)
    for _ in range(2):
        assert sorted(image_id for batch in batches for image_id in batch.image_ids) == list(range(91, 98))
    assert [image.action for image in quarantine.drain()] == ["left out"] * 3
    with pytest.raises(DataError, match="cannot be used"):
        list(eval_batches(data, batch_size=2, workers=0, on_bad_image="stop"))


def test_buckets_give_each_image_a_shape_of_its_own_choice(folder: Path) -> None:
    buckets = ((32, 64), (64, 64))
    batches = list(train(folder, 0, buckets=buckets, global_batch_size=5))
    for batch in batches:
        assert sum(len(part) for part in batch.parts) == len(batch) == 5
        for part in batch.parts:
            shape = (part.images.shape[2], part.images.shape[3])
            assert {bucket_of(target.size_hw, buckets) for target in part.targets} == {shape}
    with eval_batches(dataset(folder, training=False), batch_size=4, workers=0, buckets=buckets) as evaluation:
        shown = list(evaluation)
    assert all(len(batch.parts) == 1 for batch in shown)
    assert sorted(image_id for batch in shown for image_id in batch.image_ids) == list(range(91, 101))


@pytest.mark.parametrize("workers", [0, 1])
def test_the_meter_says_where_time_goes(folder: Path, workers: int) -> None:
    with train(folder, workers, total_steps=6) as stream:
        for _ in range(6):
            next(stream)
            time.sleep(0.02 * workers)
        meter = stream.meter
        assert (meter.num_batches, meter.num_images) == (6, 18)
        assert set(meter.stage_s) == {"read", "decode", "augment", "collate"}
        assert all(seconds > 0 for seconds in meter.stage_s.values())
        assert (meter.num_ready > 0) == (workers > 0)
        meter.reset()
        assert meter.num_batches == 0 and meter.stage_s == {}

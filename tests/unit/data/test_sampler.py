"""The order is a pure function of (seed, step) and covers each epoch once."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detronome.data.sampler import (
    Share,
    StepOfImage,
    StepSampler,
    epoch_order,
    epoch_permutation,
    shard_permutation,
    step_indices,
    steps_per_epoch,
)


@pytest.mark.parametrize(("n", "batch", "steps"), [(1, 16, 1), (15, 16, 1), (16, 16, 1), (31, 16, 1), (32, 16, 2)])
def test_steps_of_an_epoch(n: int, batch: int, steps: int) -> None:
    assert steps_per_epoch(n, batch) == steps


@given(st.integers(0, 5), st.integers(0, 3), st.integers(1, 60), st.integers(1, 20))
def test_an_epoch_shows_each_image_at_most_once(seed: int, epoch: int, n: int, batch: int) -> None:
    steps = steps_per_epoch(n, batch)
    drawn = [step_indices(epoch_order(seed, n), epoch * steps + k, n, batch) for k in range(steps)]
    assert {e for e, _ in drawn} == {epoch}
    indices = [int(i) for _, step in drawn for i in step]
    assert len(set(indices)) == len(indices) == (n if n < batch else steps * batch)
    assert set(indices) <= set(range(n))


def test_epochs_and_seeds_have_their_own_orders() -> None:
    orders = {tuple(epoch_permutation(seed, epoch, 50).tolist()) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9
    assert all(sorted(order) == list(range(50)) for order in orders)


def test_the_order_is_the_same_in_every_version() -> None:
    """Changing it would break the resume of every run there is."""
    assert epoch_permutation(42, 0, 10).tolist() == [6, 9, 8, 3, 0, 4, 5, 2, 1, 7]


def test_orders_cannot_be_changed_by_accident() -> None:
    with pytest.raises(ValueError, match="read-only"):
        epoch_permutation(0, 0, 5)[0] = 1


def test_no_images_have_an_order_by_shards() -> None:
    assert shard_permutation(0, 0, np.empty(0, np.int64), 1).tolist() == []


@given(st.integers(0, 5), st.integers(0, 3), st.lists(st.integers(0, 7), max_size=60), st.integers(1, 10))
def test_an_order_by_shards_shows_each_image_once_and_a_window_at_a_time(
    seed: int, epoch: int, shards: list[int], window: int
) -> None:
    shard_of = np.array(shards, np.int64)
    order = shard_permutation(seed, epoch, shard_of, window)
    assert sorted(order.tolist()) == list(range(len(shards)))
    assert order.tolist() == shard_permutation(seed, epoch, shard_of, window).tolist()
    visited = list(dict.fromkeys(shard_of[order].tolist()))
    reads = shard_of[order].tolist()
    for shard in visited:
        first, last = reads.index(shard), len(reads) - 1 - reads[::-1].index(shard)
        assert len(set(reads[first : last + 1])) <= window


def test_a_window_of_all_shards_is_the_order_of_the_epoch() -> None:
    shard_of = np.repeat(np.arange(5), 4)
    for window in (5, 6, 100):
        assert shard_permutation(3, 1, shard_of, window).tolist() == epoch_permutation(3, 1, 20).tolist()


def test_shards_and_images_have_a_new_order_in_every_epoch() -> None:
    shard_of = np.repeat(np.arange(6), 5)
    for window in (1, 2):
        orders = [shard_permutation(0, epoch, shard_of, window) for epoch in range(4)]
        assert len({tuple(order.tolist()) for order in orders}) == 4
        assert len({tuple(dict.fromkeys(shard_of[order].tolist())) for order in orders}) == 4


def test_the_order_by_shards_is_the_same_in_every_version() -> None:
    assert shard_permutation(42, 0, np.array([0, 0, 0, 1, 1, 1, 2, 2, 3, 3]), 2).tolist() == [
        6,
        3,
        4,
        5,
        7,
        9,
        8,
        0,
        2,
        1,
    ]


def sampler(start_step: int, total_steps: int = 12, **changes: Any) -> StepSampler:
    options: dict[str, Any] = {"num_images": 10, "global_batch_size": 3, **changes}
    return StepSampler(epoch_order(7, 10), start_step=start_step, total_steps=total_steps, **options)


@pytest.mark.parametrize("k", [0, 1, 3, 5, 12])
def test_a_resumed_order_is_the_rest_of_the_whole(k: int) -> None:
    whole = list(sampler(0))
    assert len(whole) == len(sampler(0)) == 12
    assert list(sampler(k)) == whole[k:]
    assert [epoch for epoch, _ in (step[0] for step in whole)] == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3


def test_nothing_is_left_after_the_end() -> None:
    assert list(sampler(20)) == []
    assert len(sampler(20)) == 0


def test_a_share_of_nothing_is_nothing() -> None:
    assert Share(1, 3).of([]) == []
    assert Share().of([1, 2]) == [1, 2]
    with pytest.raises(AssertionError):
        Share(3, 3)


@given(st.integers(1, 7), st.integers(1, 40), st.integers(1, 20), st.integers(0, 30))
def test_the_ranks_shares_make_up_the_step(num_ranks: int, num_images: int, batch: int, start_step: int) -> None:
    """No image is lost, none comes twice, and all ranks count the same steps, also those of which they get nothing."""
    order = epoch_order(3, num_images)

    def steps(share: Share) -> list[list[tuple[int, int]]]:
        end = start_step + 5
        options: dict[str, Any] = {"num_images": num_images, "global_batch_size": batch, "share": share}
        return list(StepSampler(order, start_step=start_step, total_steps=end, **options))

    whole = steps(Share())
    shares = [steps(Share(rank, num_ranks)) for rank in range(num_ranks)]
    for n, keys in enumerate(whole):
        assert sorted(key for share in shares for key in share[n]) == sorted(keys)
        sizes = [len(share[n]) for share in shares]
        assert sum(sizes) == len(keys) and max(sizes) - min(sizes) <= 1
    assert {len(share) for share in shares} == {5}


@given(st.integers(0, 14), st.sets(st.integers(-3, 20)))
def test_excluded_steps_are_passed_over_and_the_others_stay(start_step: int, excluded: set[int]) -> None:
    whole = list(sampler(0))
    kept = sampler(start_step, excluded=excluded)
    expected = [keys for step, keys in enumerate(whole) if step >= start_step and step not in excluded]
    assert list(kept) == [kept[n] for n in range(len(kept))] == expected
    assert len(kept) == len(expected)


def test_a_step_far_into_a_run_is_found_at_once() -> None:
    far = sampler(10**12, 10**12 + 10**9, excluded=[5, 10**12, 10**12 + 2])
    assert len(far) == 10**9 - 2
    assert far[0] == sampler(10**12 + 1, 10**12 + 2)[0]
    assert far[10**9 - 3] == sampler(10**12 + 10**9 - 1, 10**12 + 10**9)[0]


@pytest.mark.parametrize("window", [0, 2])
def test_each_image_knows_its_step(window: int) -> None:
    shard_of = np.arange(11) // 3 if window else None
    options: dict[str, Any] = {"shard_of": shard_of, "window": max(window, 1)}
    step_of = StepOfImage(7, 11, 4, **options)
    order = epoch_order(7, 11, **options)
    for epoch in (0, 3, 1):
        for step in range(2):
            images = order(epoch)[4 * step : 4 * step + 4].tolist()
            assert {step_of(epoch, i) for i in images} == {step}
    assert StepOfImage(7, 3, 8)(0, 2) == 0
    again = pickle.loads(pickle.dumps(step_of))
    assert [again(2, i) for i in range(11)] == [step_of(2, i) for i in range(11)]

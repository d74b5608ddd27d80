"""Bad images are counted once each, told once, and bounded."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detronome.data.quarantine import BadImage, Quarantine
from detronome.errors import DataError


def bad(image_id: int) -> BadImage:
    return BadImage(
        image_id=image_id, where=f"{image_id}.jpg", what="it is cut short", fix="copy it", action="left out"
    )


def test_nothing_bad() -> None:
    quarantine = Quarantine("train", 100, 0.001)
    quarantine.admit([])
    assert quarantine.drain() == [] and quarantine.image_ids == []


@pytest.mark.parametrize(
    ("num_images", "budget", "allowed"), [(100, 0.0, 0), (100, 0.001, 1), (5000, 0.001, 5), (3, 1.0, 3)]
)
def test_the_budget(num_images: int, budget: float, allowed: int) -> None:
    quarantine = Quarantine("val", num_images, budget)
    assert quarantine.allowed == allowed
    quarantine.admit(bad(n) for n in range(allowed))
    with pytest.raises(DataError, match=f"{allowed + 1} images of split 'val' cannot be used") as caught:
        quarantine.admit([bad(allowed)])
    assert f"image id {allowed}, {allowed}.jpg: it is cut short" in str(caught.value)
    # Evaluating takes no settings: there the way out is another annotation file.
    assert "--fix" in caught.value.problems[0].fix and "data.bad_image_budget" in caught.value.problems[0].fix


def test_an_image_met_again_counts_once_also_after_a_resume() -> None:
    quarantine = Quarantine("train", 2000, 0.001)
    quarantine.admit([bad(7)])
    quarantine.admit([bad(7), bad(3)])
    assert [image.image_id for image in quarantine.drain()] == [7, 3]
    resumed = Quarantine("train", 2000, 0.001)
    resumed.restore(quarantine.image_ids)
    resumed.admit([bad(3)])
    assert resumed.drain() == [] and resumed.image_ids == [3, 7]
    with pytest.raises(DataError, match="3 images"):
        resumed.admit([bad(4)])


def merge(ranks: list[Quarantine]) -> None:
    """What the ranks do at a log step."""
    images = list(chain.from_iterable([rank.take_new() for rank in ranks]))
    for rank in ranks:
        rank.merge(images)


def test_ranks_that_have_met_nothing_have_nothing_to_merge() -> None:
    ranks = [Quarantine("train", 100, 0.0) for _ in range(2)]
    merge(ranks)
    assert all(rank.drain() == [] and rank.image_ids == [] for rank in ranks)


@given(st.lists(st.lists(st.lists(st.integers(0, 9), max_size=3), min_size=3, max_size=3), max_size=4))
def test_after_a_merge_all_ranks_know_the_same_and_tell_it_once(rounds: list[list[list[int]]]) -> None:
    ranks = [Quarantine("train", 10, 1.0) for _ in range(3)]
    told: list[list[int]] = [[], [], []]
    for met in rounds:
        for r, (rank, image_ids) in enumerate(zip(ranks, met, strict=True)):
            rank.admit(bad(n) for n in image_ids)
            if r == 1:  # told before the others are asked, as where there are no others
                told[r] += [image.image_id for image in rank.drain()]
        merge(ranks)
        assert ranks[0].image_ids == ranks[1].image_ids == ranks[2].image_ids
        for rank, list_ in zip(ranks, told, strict=True):
            list_ += [image.image_id for image in rank.drain()]
    expected = sorted({n for met in rounds for image_ids in met for n in image_ids})
    assert [sorted(list_) for list_ in told] == [expected] * 3


def test_too_many_over_all_ranks_is_the_same_error_on_each() -> None:
    ranks = [Quarantine("train", 300, 0.01) for _ in range(4)]
    for rank in ranks:
        rank.restore([99])
    for n, rank in enumerate(ranks[:3]):
        rank.admit([bad(30 - n), bad(7)])
    assert [rank.image_ids for rank in ranks] == [[7, 30, 99], [7, 29, 99], [7, 28, 99], [99]]
    images = list(chain.from_iterable([rank.take_new() for rank in ranks]))
    texts = set()
    for rank in ranks:
        with pytest.raises(DataError, match=r"5 images of split 'train' .* more than the 3 of 300") as caught:
            rank.merge(images)
        texts.add(str(caught.value))
    assert len(texts) == 1


def test_what_was_done_with_an_image_is_told_as_the_first_rank_did_it() -> None:
    ranks = [Quarantine("train", 10, 1.0) for _ in range(3)]
    ranks[1].admit([replace(bad(4), action="replaced by image id 8")])
    ranks[2].admit([bad(4)])
    merge(ranks)
    assert [image.action for image in ranks[0].drain()] == ["replaced by image id 8"]


def test_more_than_allowed_before_a_resume_is_no_error_until_another_is_met() -> None:
    quarantine = Quarantine("train", 100, 0.0)
    quarantine.restore([1])
    quarantine.admit([])
    quarantine.admit([bad(1)])
    with pytest.raises(DataError, match="2 images"):
        quarantine.admit([bad(2)])

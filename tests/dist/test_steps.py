"""A step over ranks is the step of one process: same loss, same gradient, same verdict, whoever has which images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.dist.ranks import RankError, on_ranks
from tests.dist.steps import train_steps

pytestmark = [pytest.mark.dist, pytest.mark.alone]

COUNTS = [[3, 0, 1, 4, 0, 2], [0, 0, 0, 0, 0, 1], [1, 2, 3], [0, 0], [2, 1, 0, 0, 5, 1]]
"""The second step leaves all ranks but one without objects; the third and fourth leave some without images."""
POISONED = [COUNTS[0], COUNTS[4], COUNTS[2]]


@pytest.fixture(scope="module")
def alone() -> dict[str, dict[str, Any]]:
    return {
        family: on_ranks(1, train_steps, "ddp", family, COUNTS)[0] for family in ("detr", "nano", "panoptic", "rtdetr")
    }


def farthest(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    assert ours.keys() == theirs.keys()
    return max(float(np.abs(ours[name] - theirs[name]).max(initial=0.0)) for name in ours)


@pytest.mark.parametrize(
    ("kind", "family", "num_ranks"),
    [
        ("ddp", "detr", 2),
        ("ddp", "detr", 3),
        ("ddp", "nano", 4),
        ("ddp", "panoptic", 2),
        ("ddp", "rtdetr", 2),
        ("fsdp", "detr", 2),
        ("fsdp", "nano", 3),
        ("fsdp", "panoptic", 2),
        ("fsdp", "rtdetr", 2),
    ],
)
def test_any_number_of_ranks_trains_the_same_model(
    kind: str, family: str, num_ranks: int, alone: dict[str, dict[str, Any]]
) -> None:
    ranks = on_ranks(num_ranks, train_steps, kind, family, COUNTS)
    for rank in ranks:
        assert farthest(rank["weights"], alone[family]["weights"]) < 1e-5
        assert farthest(rank["average"], alone[family]["average"]) < 1e-5
        assert farthest(rank["optimizer"], alone[family]["optimizer"]) < 1e-5
        assert farthest(rank["weights"], ranks[0]["weights"]) == 0.0
        np.testing.assert_allclose(rank["results"], alone[family]["results"], rtol=2e-5)
    assert all(rank["results"] == ranks[0]["results"] for rank in ranks)


@pytest.mark.parametrize("family", ["detr", "rtdetr"])
def test_shards_are_gathered_again_for_checkpointed_activations(family: str, alone: dict[str, dict[str, Any]]) -> None:
    for rank in on_ranks(2, checkpointed_steps, family):
        assert farthest(rank["weights"], alone[family]["weights"]) < 1e-5
        assert farthest(rank["optimizer"], alone[family]["optimizer"]) < 1e-5


def checkpointed_steps(family: Any) -> dict[str, Any]:
    return train_steps("fsdp", family, COUNTS, micro_batch_size=2, checkpoint_activations=True)


def test_a_bad_gradient_on_one_rank_skips_the_step_on_all_as_if_it_had_not_been() -> None:
    ranks = on_ranks(2, poisoned_steps)
    assert [rank["applied"] for rank in ranks] == [[True, False, True]] * 2
    for rank, without in zip(ranks, on_ranks(2, steps_without_the_second), strict=True):
        for part in ("weights", "average", "optimizer"):
            assert farthest(rank[part], without[part]) == 0.0
        assert [rank["results"][0], rank["results"][2]] == without["results"]


def poisoned_steps() -> dict[str, Any]:
    return train_steps("ddp", "detr", POISONED, poison={1: 1})


def steps_without_the_second() -> dict[str, Any]:
    return train_steps("ddp", "detr", POISONED, excluded=[1])


def test_memory_that_runs_out_on_one_rank_makes_all_cut_smaller_with_the_same_gradient(
    alone: dict[str, dict[str, Any]],
) -> None:
    ranks = on_ranks(3, steps_with_little_room)
    assert all(rank["splits"] == [("64x64", 1, 1)] for rank in ranks)
    for rank in ranks:
        assert farthest(rank["weights"], alone["detr"]["weights"]) < 1e-5
        assert farthest(rank["weights"], ranks[0]["weights"]) == 0.0


def steps_with_little_room() -> dict[str, Any]:
    return train_steps("ddp", "detr", COUNTS, room={1: 1})


def test_memory_that_runs_out_under_fsdp_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(RankError, match=r"(?s)FSDP ranks cannot cut smaller.*micro_batch_size"):
        on_ranks(2, sharded_steps_with_little_room, timeout_s=60)


def sharded_steps_with_little_room() -> dict[str, Any]:
    return train_steps("fsdp", "detr", COUNTS[:1], room={1: 1})


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_denoising_with_ranks_that_have_no_object_or_no_image(kind: str) -> None:
    ranks = on_ranks(2, denoising_steps, kind)
    assert [rank["applied"] for rank in ranks] == [[True] * 4] * 2
    assert farthest(ranks[0]["weights"], ranks[1]["weights"]) == 0.0


def denoising_steps(kind: Any) -> dict[str, Any]:
    return train_steps(kind, "nano", [[1, 0], [2, 1], [1], [0, 0]], denoising_groups=1)


def test_a_frozen_backbone_is_not_summed_and_all_else_is() -> None:
    alone = on_ranks(1, frozen_steps)[0]
    for rank in on_ranks(2, frozen_steps):
        assert farthest(rank["weights"], alone["weights"]) < 1e-5
        np.testing.assert_allclose(rank["results"], alone["results"], rtol=2e-5)


def frozen_steps() -> dict[str, Any]:
    return train_steps("ddp", "detr", COUNTS[:3], is_backbone_frozen=True)


def test_masks_on_a_frozen_detector() -> None:
    """Only masks have a gradient, and a rank or a step may be without objects."""
    alone = on_ranks(1, frozen_detector_steps, "ddp")[0]
    for rank in on_ranks(2, frozen_detector_steps, "ddp"):
        assert all(rank["applied"])
        np.testing.assert_allclose(rank["results"], alone["results"], rtol=2e-5, atol=1e-7)
        assert farthest(rank["weights"], alone["weights"]) < 3e-5  # of up to 4e-4 that they have moved
        for name, value in rank["weights"].items():
            if name.startswith("detr."):
                np.testing.assert_array_equal(value, alone["weights"][name])
                np.testing.assert_array_equal(value, rank["average"][name])


def test_fsdp_refuses_what_it_would_not_sum() -> None:
    with pytest.raises(RankError, match=r"train\.freeze leaves no layer"):
        on_ranks(2, frozen_detector_steps, "fsdp")


def frozen_detector_steps(kind: Any) -> dict[str, Any]:
    return train_steps(kind, "panoptic", COUNTS[:4], frozen=["detr"])

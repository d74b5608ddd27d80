"""A cut never exceeds the budget, keeps the effective batch, and more memory is never slower."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detronome.config.schema import ActivationCheckpointing
from detronome.tempo.batch_fit import Cut, Fit, budget_bytes, cut_sizes, fit, largest_that_fits

ALL: tuple[ActivationCheckpointing, ...] = ("none", "backbone", "transformer", "all")
KEPT = {"none": 1.0, "backbone": 0.6, "transformer": 0.7, "all": 0.3}
"""Part of the activations that is kept, in the made-up model of these tests."""
RECOMPUTED = {"none": 1.0, "backbone": 1.2, "transformer": 1.1, "all": 1.33}

MIB = 2**20


def peak_of(fixed: int, per_image: int) -> Callable[[Cut], int]:
    return lambda cut: fixed + math.ceil(cut.micro_batch_size * per_image * KEPT[cut.checkpointing])


def seconds_of(image_s: float, pass_s: float, share: int) -> Callable[[Cut], float]:
    return lambda cut: RECOMPUTED[cut.checkpointing] * (share * image_s + cut.accumulation * pass_s)


def fitted(
    share: int,
    budget: int,
    *,
    fixed: int = 500 * MIB,
    per_image: int = 1000 * MIB,
    image_s: float = 0.01,
    pass_s: float = 0.001,
    checkpointings: tuple[ActivationCheckpointing, ...] = ALL,
    asked: int | None = None,
) -> Fit:
    return fit(
        share=share,
        budget=budget,
        precisions=["bf16", "fp32"],
        checkpointings=checkpointings,
        peak=peak_of(fixed, per_image),
        step_s=seconds_of(image_s, pass_s, share),
        micro_batch_size=asked,
    )


@pytest.mark.parametrize(
    ("share", "sizes"),
    [(1, [1]), (2, [2, 1]), (8, [8, 4, 3, 2, 1]), (16, [16, 8, 6, 4, 3, 2, 1]), (7, [7, 4, 3, 2, 1])],
)
def test_sizes_are_the_evenest_cut_for_each_number_of_passes(share: int, sizes: list[int]) -> None:
    assert cut_sizes(share) == sizes


@given(st.integers(1, 300), st.integers(1, 200), st.integers(0, 5000), st.integers(0, 40_000))
def test_the_search_finds_what_looking_at_all_finds(share: int, slope: int, fixed: int, budget: int) -> None:
    looked_at: list[int] = []

    def peak(size: int) -> int:
        looked_at.append(size)
        return fixed + slope * size + size * size // 10

    sizes = cut_sizes(share)
    wanted = max((size for size in sizes if fixed + slope * size + size * size // 10 <= budget), default=None)
    assert largest_that_fits(sizes, peak, budget) == wanted


def test_the_search_looks_at_few_where_peaks_are_a_line() -> None:
    looked_at: set[int] = set()

    def peak(size: int) -> int:
        looked_at.add(size)
        return 500 + 100 * size

    assert largest_that_fits(cut_sizes(64), peak, 500 + 100 * 13) == 13
    assert len(looked_at) <= 4


@given(
    share=st.integers(1, 64),
    budget=st.integers(0, 80_000),
    fixed=st.integers(1, 4000),
    per_image=st.integers(1, 4000),
    image_s=st.floats(1e-4, 1.0),
    pass_s=st.floats(1e-5, 1.0),
)
def test_what_is_chosen_fits_and_keeps_the_effective_batch(
    share: int, budget: int, fixed: int, per_image: int, image_s: float, pass_s: float
) -> None:
    found = fitted(share, budget, fixed=fixed, per_image=per_image, image_s=image_s, pass_s=pass_s)
    peak, best = peak_of(fixed, per_image), found.best
    smallest = fixed + math.ceil(per_image * KEPT["all"])
    assert best.fits == (smallest <= budget)
    for one in (best, *found.others):
        cut = one.cut
        assert one.peak_bytes == peak(cut) == budget - one.headroom_bytes
        assert cut.accumulation == math.ceil(share / cut.micro_batch_size)
        assert 1 <= cut.micro_batch_size <= share
        # Cut evenly: no smaller micro-batch takes as few passes.
        assert cut.micro_batch_size == math.ceil(share / cut.accumulation)
        assert one.reason
    assert best.cut.precision == "bf16"
    assert best.cut not in [one.cut for one in found.others]


@given(
    share=st.integers(1, 64),
    budget=st.integers(0, 80_000),
    more=st.integers(0, 80_000),
    image_s=st.floats(1e-4, 1.0),
    pass_s=st.floats(1e-5, 1.0),
)
def test_more_memory_is_never_slower(share: int, budget: int, more: int, image_s: float, pass_s: float) -> None:
    small, large = (
        fitted(share, one, fixed=500, per_image=1000, image_s=image_s, pass_s=pass_s, checkpointings=("none",)).best
        for one in (budget, budget + more)
    )
    if small.fits:
        assert large.fits and small.step_s is not None and large.step_s is not None
        assert large.step_s <= small.step_s
        assert large.cut.accumulation <= small.cut.accumulation


def test_nothing_is_computed_again_where_the_whole_share_fits() -> None:
    found = fitted(8, 20_000 * MIB)
    assert found.best.cut == Cut(micro_batch_size=8, accumulation=1, precision="bf16", checkpointing="none")
    assert {one.cut.checkpointing for one in found.others} == {"none"}
    assert "at once" in found.best.reason


def test_three_of_eight_images_are_accumulated() -> None:
    found = fitted(8, (500 + 3 * 1000) * MIB)
    assert (found.best.cut.micro_batch_size, found.best.cut.accumulation) == (3, 3)
    too_large = next(one for one in found.others if one.cut.micro_batch_size == 4 and one.cut.precision == "bf16")
    assert not too_large.fits and "does not fit: 1000 MiB too much" in too_large.reason


def test_activations_are_computed_again_where_nothing_else_fits() -> None:
    assert fitted(4, 1200 * MIB).best.cut.checkpointing == "transformer", "the fastest of three that fit"
    found = fitted(4, 1000 * MIB)
    assert found.best.fits and found.best.cut.checkpointing == "all"
    assert not any(one.fits for one in found.others if one.cut.checkpointing == "none")


def test_activations_are_computed_again_where_passes_cost_most() -> None:
    found = fitted(16, (500 + 3 * 1000) * MIB, image_s=1e-4, pass_s=0.1)
    assert found.best.cut.checkpointing == "all"
    assert found.best.cut.accumulation < 6


def test_an_asked_micro_batch_is_kept_also_where_it_does_not_fit() -> None:
    found = fitted(8, 3000 * MIB, asked=8)
    assert found.best.cut.micro_batch_size == 8
    assert fitted(8, 3000 * MIB, asked=20).best.cut.micro_batch_size == 8


def test_nothing_fits() -> None:
    found = fitted(8, 0)
    assert not found.best.fits
    assert found.best.cut.micro_batch_size == 1
    assert found.best.cut.checkpointing == "all", "what lacks the least"
    assert "too much" in found.best.reason


def test_without_a_speed_memory_alone_decides() -> None:
    found = fit(
        share=8,
        budget=3600 * MIB,
        precisions=["bf16"],
        checkpointings=ALL,
        peak=peak_of(500 * MIB, 1000 * MIB),
        step_s=lambda cut: None,
    )
    assert (found.best.cut.micro_batch_size, found.best.cut.checkpointing) == (3, "none")
    assert found.best.to_record()["step_s"] is None


def test_a_reserve_is_left_alone() -> None:
    assert budget_bytes(100 * MIB) == 92 * MIB
    assert budget_bytes(100 * MIB, 10 * MIB) == 82 * MIB
    assert budget_bytes(100 * MIB, 200 * MIB) == 0

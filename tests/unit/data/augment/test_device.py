"""The same parameters on any device give the picture that the loader workers give."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detronome.config.presets import preset
from detronome.config.schema import AugmentConfig
from detronome.data.augment.cpu import apply_to_image
from detronome.data.augment.device import apply_on_device
from detronome.data.augment.params import AugmentParams, AugmentPolicy, draw, evaluation_params
from detronome.data.build import augment_policy
from detronome.runtime.seeding import generator

DETR = augment_policy(AugmentConfig())
NANO = augment_policy(preset("nano").augment)
SMALL = augment_policy(
    AugmentConfig(sizes=(32, 48), max_size=80, vertical_flip=0.5, crop_resize=(30, 50), crop_px=(20, 40))
)
POLICIES = (SMALL, replace(SMALL, crop="fraction"), replace(NANO, vertical_flip=0.5))

DEVICES = [
    pytest.param(torch.device("cpu"), id="cpu"),
    pytest.param(torch.device("cuda"), id="cuda", marks=pytest.mark.gpu),
]


def noise(height: int, width: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def largest_difference(image: np.ndarray[Any, Any], params: AugmentParams, device: torch.device) -> int:
    expected = apply_to_image(image, params)
    pixels = torch.from_numpy(image.copy()).to(device)
    result = apply_on_device(pixels, params)
    assert result.dtype == torch.uint8 and result.device.type == device.type
    assert result.shape == expected.shape == (3, *params.final_hw)
    np.testing.assert_array_equal(pixels.cpu().numpy(), image, err_msg="the decoded image was changed")
    return int((result.cpu().int() - expected.int()).abs().max())


@pytest.mark.parametrize("device", DEVICES)
def test_nothing_to_do_copies_nothing(device: torch.device) -> None:
    pixels = torch.from_numpy(noise(20, 30)).to(device)
    result = apply_on_device(pixels, AugmentParams(size_hw=(20, 30), final_hw=(20, 30)))
    assert result.data_ptr() == pixels.data_ptr()
    assert torch.equal(result.permute(1, 2, 0), pixels)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("policy", [DETR, NANO], ids=["detr", "nano"])
def test_the_presets_differ_by_two_levels_at_most(policy: AugmentPolicy, device: torch.device) -> None:
    for seed in range(4):
        size_hw = [(480, 640), (427, 240)][seed % 2]
        params = draw(policy, size_hw, generator("device", seed))
        assert largest_difference(noise(*size_hw, seed), params, device) <= 2
    assert largest_difference(noise(60, 90), evaluation_params(policy, (60, 90)), device) <= 1


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=150)
@given(
    size_hw=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    policy=st.sampled_from(POLICIES),
    part=st.sampled_from([1.0, 0.6]),
    seed=st.integers(0, 10**6),
)
def test_any_size_any_policy(
    device: torch.device, size_hw: tuple[int, int], policy: AugmentPolicy, part: float, seed: int
) -> None:
    """Also on a reduced copy of the image."""
    params = draw(policy, size_hw, generator("device", seed))
    height, width = (max(1, round(side * part)) for side in size_hw)
    assert largest_difference(noise(height, width, seed), params, device) <= 2


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=100)
@given(
    final_hw=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    flips=st.tuples(st.booleans(), st.booleans()),
    factors=st.tuples(*[st.sampled_from([1.0]) | st.floats(0.0, 2.0)] * 3),
    seed=st.integers(0, 10**6),
)
def test_any_parameters(
    device: torch.device,
    final_hw: tuple[int, int],
    flips: tuple[bool, bool],
    factors: tuple[float, float, float],
    seed: int,
) -> None:
    """A level of difference after the resize grows with the colour factors."""
    brightness, contrast, saturation = factors
    params = AugmentParams(
        size_hw=(23, 17),
        horizontal_flip=flips[0],
        vertical_flip=flips[1],
        crop=(3, 2, 15, 11),
        final_hw=final_hw,
        brightness=brightness,
        contrast=contrast,
        saturation=saturation,
    )
    gain = max(1.0, brightness) * max(1.0, contrast) * max(1.0, 2.0 * saturation - 1.0)
    assert largest_difference(noise(23, 17, seed), params, device) <= 1.1 * gain + 1.0


@pytest.mark.parametrize("device", DEVICES)
def test_flips_are_exact(device: torch.device) -> None:
    image = noise(6, 9)
    params = AugmentParams(size_hw=(6, 9), horizontal_flip=True, vertical_flip=True, final_hw=(6, 9))
    result = apply_on_device(torch.from_numpy(image).to(device), params)
    np.testing.assert_array_equal(result.permute(1, 2, 0).cpu().numpy(), image[::-1, ::-1])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("hw", [(1, 1), (1, 40), (40, 1), (200, 3)])
def test_extreme_sizes_are_resized(hw: tuple[int, int], device: torch.device) -> None:
    for size_hw in [(1, 1), (9, 7), (1, 300), (300, 200)]:
        params = AugmentParams(size_hw=size_hw, final_hw=hw)
        assert largest_difference(noise(*size_hw), params, device) <= 1


@pytest.mark.parametrize("device", DEVICES)
def test_halves_are_rounded_up(device: torch.device) -> None:
    image = np.array([[[1, 2, 3]]], np.uint8)
    result = apply_on_device(
        torch.from_numpy(image).to(device), AugmentParams(size_hw=(1, 1), final_hw=(1, 1), brightness=1.5)
    )
    assert result.flatten().tolist() == [2, 3, 5]


@pytest.mark.parametrize("device", DEVICES)
def test_colours_lie_side_by_side_in_memory(device: torch.device) -> None:
    """As in a batch, into which the result is copied."""
    pixels = torch.from_numpy(noise(12, 10)).to(device)
    for factors in ({}, {"contrast": 0.5}, {"brightness": 1.2, "saturation": 0.7}):
        for final_hw in [(12, 10), (30, 20)]:
            params = AugmentParams(size_hw=(12, 10), horizontal_flip=True, final_hw=final_hw, **factors)
            assert apply_on_device(pixels, params).permute(1, 2, 0).is_contiguous()


@pytest.mark.gpu
def test_the_host_never_waits() -> None:
    params = AugmentParams(
        size_hw=(50, 60), horizontal_flip=True, final_hw=(80, 90), brightness=1.1, contrast=0.8, saturation=1.3
    )
    pixels = torch.from_numpy(noise(50, 60)).cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        apply_on_device(pixels, params)
    finally:
        torch.cuda.set_sync_debug_mode("default")

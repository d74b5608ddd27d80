"""Settings of the real-time families that cannot work are refused before anything is built."""

from typing import Any

import pytest

from detronome.config.convert import apply_overrides
from detronome.config.presets import preset
from detronome.engine.resolve import check_consistency
from detronome.errors import ConfigError


@pytest.mark.parametrize("name", ["rtdetr-v2-s", "rtdetr-v2-x", "dfine-n", "dfine-s", "dfine-x"])
def test_presets_are_consistent(name: str) -> None:
    check_consistency(preset(name))


@pytest.mark.parametrize(
    ("name", "changes", "what"),
    [
        ("rtdetr-v2-s", {"model.num_heads": 3}, "no multiple of num_heads = 3"),
        ("rtdetr-v2-s", {"model.encoder_dim": 24}, "multiples of 16"),
        ("rtdetr-v2-s", {"model.encoder_expansion": 0.3}, "76.8"),
        ("rtdetr-v2-s", {"model.num_points": [4, 4]}, "each of the 3 maps"),
        ("rtdetr-v2-s", {"model.num_denoising": -1}, "model.num_denoising = -1 is out of range"),
        ("rtdetr-v2-s", {"loss.classification": "softmax"}, "does not fit the family 'rtdetr'"),
        ("rtdetr-v2-s", {"augment.sizes": [32, 64]}, "a map of a single cell"),
        ("dfine-s", {"augment.sizes": [32]}, "a map of a single cell"),
        ("dfine-s", {"loss.aux_loss": False}, "cannot be trained without loss.aux_loss"),
        ("dfine-s", {"model.num_points": [3, 3, 3, 3, 3]}, "of which there can be 4"),
    ],
)
def test_what_cannot_work_is_refused(name: str, changes: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_consistency(apply_overrides(preset(name), changes))
    assert what in str(caught.value)

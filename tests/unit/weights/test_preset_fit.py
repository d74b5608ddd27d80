"""The preset of a network is seen in names and shapes of its weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from detronome.config.presets import PRESETS
from detronome.config.schema import DetrConfig, NanoConfig
from detronome.errors import CheckpointError
from detronome.models.build import build_model
from detronome.weights.coco import COCO80
from detronome.weights.preset_fit import expected_weights, fitting_preset
from detronome.weights.pretrained import load_pretrained

SIZED = {name: make() for name, make in PRESETS.items() if make().model.family in ("rtdetr", "dfine")}


@pytest.mark.parametrize("name", SIZED)
def test_each_preset_is_told_from_the_others(name: str) -> None:
    config = SIZED[name]
    state = expected_weights(config.model, 17)
    found, num_classes = fitting_preset(
        state, family=config.model.family, base=None, hub_config={"num_queries": 123}, where="x"
    )
    assert found.preset == name and num_classes == 17
    assert not isinstance(found.model, DetrConfig | NanoConfig) and found.model.num_queries == 123


@pytest.mark.parametrize("name", ["rtdetr-v2-s", "dfine-n"])
def test_a_file_of_the_authors(name: str, tmp_path: Path) -> None:
    """Training states hold the average under `ema.module`."""
    model = SIZED[name].model
    assert not isinstance(model, DetrConfig | NanoConfig)
    state = build_model(replace(model, backbone_weights="none"), 80).state_dict()
    without_counters = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    content = {"date": "today", "last_epoch": 3, "model": {}, "ema": {"module": without_counters, "updates": 7}}
    torch.save(content, tmp_path / "a.pth")
    loaded = load_pretrained(tmp_path / "a.pth")
    assert loaded.config == SIZED[name] and loaded.categories == COCO80
    assert set(loaded.state_dict) == set(state)
    for key, value in without_counters.items():
        assert torch.equal(loaded.state_dict[key], value), key
    build_model(replace(model, backbone_weights="none"), 80).load_state_dict(loaded.state_dict)


@pytest.mark.parametrize(
    "config",
    [
        {"num_queries": -1},
        {"num_queries": "many"},
        {"num_queries": 10**9},
        {"decoder_activation_function": "gelu"},
        {"encoder_attention_heads": 4},
        {"normalize_before": True},
        {"learn_initial_query": 1},
    ],
)
def test_settings_of_another_network_are_refused(config: dict[str, object]) -> None:
    with pytest.raises(CheckpointError):
        fitting_preset({}, family="rtdetr", base=None, hub_config=config, where="config.json")

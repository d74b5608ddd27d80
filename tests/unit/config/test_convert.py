"""Configuration: round trips, overrides, and errors that name everything at once."""

from pathlib import Path

import pytest

from detronome.config.convert import apply_overrides, from_dict, parse_override, read_toml, to_dict, to_toml
from detronome.config.presets import PRESETS, preset
from detronome.config.schema import DetrConfig, NanoConfig, RunConfig
from detronome.errors import ConfigError


def test_nothing_given_gives_the_defaults() -> None:
    assert from_dict({}) == RunConfig()


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_toml(name: str, tmp_path: Path) -> None:
    config = preset(name)
    file = tmp_path / "config.toml"
    file.write_text(to_toml(config))
    assert from_dict(read_toml(file)) == config
    assert from_dict(to_dict(config)) == config
    assert config.preset == name


def test_overrides_replace_only_what_they_name() -> None:
    config = apply_overrides(preset("nano"), {"optim.lr": 1, "model.num_queries": 60, "augment.sizes": [64, 96]})
    assert config.optim.lr == 1.0 and isinstance(config.optim.lr, float)
    assert config.optim.clip_norm == preset("nano").optim.clip_norm
    assert isinstance(config.model, NanoConfig) and config.model.num_queries == 60
    assert config.augment.sizes == (64, 96)


def test_a_named_choice_is_no_list_of_one_text() -> None:
    config = apply_overrides(RunConfig(), {"data.buckets": ["64x64"]})
    assert apply_overrides(config, {"data.buckets": "auto"}).data.buckets == "auto"
    assert apply_overrides(config, {"data.buckets": "32x64"}).data.buckets == ("32x64",)


def test_family_switches_the_model_record() -> None:
    config = apply_overrides(preset("nano"), {"model.family": "detr", "model.num_encoder_layers": 2})
    assert isinstance(config.model, DetrConfig) and config.model.num_encoder_layers == 2


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("optim.lrr", 1e-4, "did you mean 'lr'?"),
        ("lr", 1e-4, "did you mean optim.lr?"),
        ("optimm.lr", 1e-4, "did you mean 'optim'?"),
        ("optim.lr", "fast", "give a number"),
        ("optim.lr", True, "give a number"),
        ("train.epochs", 1.5, "give a whole number or 'auto'"),
        ("schedule.kind", "cosin", "'constant' or 'step'"),
        ("augment.crop_px", [1, 2, 3], "a list of 2, each a whole number"),
        ("model.family", "dter", "did you mean 'detr'?"),
    ],
)
def test_mistakes_are_refused_with_a_fix(key: str, value: object, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        apply_overrides(RunConfig(), {key: value})
    assert expected in str(caught.value)


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict({"optim": {"lrr": 1, "lr": "x"}, "modle": {}, "train": 3})
    assert len(caught.value.problems) == 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("optim.lr=2e-4", ("optim.lr", 2e-4)),
        ("train.precision=bf16", ("train.precision", "bf16")),
        ("augment.sizes=[128, 160]", ("augment.sizes", [128, 160])),
        ("data.val_split=''", ("data.val_split", "")),
        ("model.dilation=true", ("model.dilation", True)),
    ],
)
def test_override_texts(text: str, expected: tuple[str, object]) -> None:
    assert parse_override(text) == expected


def test_override_without_equals_is_refused() -> None:
    with pytest.raises(ConfigError, match="is not key=value"):
        parse_override("optim.lr")


def test_bad_toml_names_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "broken.toml"
    file.write_text("[optim]\nlr = = 3\n")
    with pytest.raises(ConfigError, match=r"line 2") as caught:
        read_toml(file)
    assert "broken.toml" in str(caught.value)
    with pytest.raises(ConfigError, match="cannot read"):
        read_toml(tmp_path / "absent.toml")

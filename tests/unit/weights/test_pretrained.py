"""Weights of every form become a whole model: configuration, categories, and what had to be assumed."""

from __future__ import annotations

import argparse
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import detronome as dt
from detronome.config.presets import PRESETS
from detronome.config.schema import DetrConfig
from detronome.errors import CheckpointError, ConfigError
from detronome.models.build import build_model
from detronome.weights import catalog
from detronome.weights.catalog import HUB_IDS, OFFICIAL_FILES, OfficialFile
from detronome.weights.coco import COCO80, NO_NAME, coco_by_id, coco_by_order
from detronome.weights.pretrained import load_pretrained
from detronome.weights.sources import is_pretrained_source

State = dict[str, Tensor]
NAMES_NOTHING = [0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83]


def save(content: Any, path: Path, *, legacy: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def options(**values: Any) -> argparse.Namespace:
    """As the reference's training script keeps its options."""
    return argparse.Namespace(
        **{"lr": 1e-4, "dilation": False, "nheads": 4, "dropout": 0.1, "pre_norm": False, "masks": False} | values
    )


def assert_same(loaded: State, state: State) -> None:
    assert set(loaded) == set(state)
    for key, value in state.items():
        assert torch.equal(loaded[key], value), key


@pytest.mark.parametrize("legacy", [False, True])
def test_an_official_file(legacy: bool, tiny_state: State, tiny_config: DetrConfig, tmp_path: Path) -> None:
    content = {"model": tiny_state, "optimizer": {"state": {}}, "epoch": 3, "args": options()}
    loaded = load_pretrained(save(content, tmp_path / "a.pth", legacy=legacy))
    assert_same(loaded.state_dict, tiny_state)
    assert loaded.config.model == replace(tiny_config, backbone_weights="imagenet")
    assert loaded.config.preset == "detr-r18"
    assert [label for label, name in enumerate(loaded.categories.names) if name == NO_NAME] == NAMES_NOTHING
    assert loaded.categories.by_id[1] == "person" and loaded.categories.by_id[90] == "toothbrush"
    assert any("191 tensors" in line for line in loaded.report)
    assert [line for line in loaded.report if "assumed" in line] == [
        "assumed: its 91 classes are COCO's, which the file does not say"
    ]


def test_what_nothing_says_is_assumed_and_told(tiny_state: State, tmp_path: Path) -> None:
    loaded = load_pretrained(save(tiny_state, tmp_path / "a.pth"))
    assert isinstance(loaded.config.model, DetrConfig)
    assert loaded.config.model.num_heads == 8 and not loaded.config.model.dilation
    told = "\n".join(loaded.report)
    assert "assumed: without a dilated last stage (DC5)" in told and "assumed: 8 heads" in told


@pytest.mark.parametrize(
    ("name", "content", "preset"),
    [
        pytest.param("a.pth", {"args": options(dilation=True)}, None, id="options"),
        pytest.param("my-r18-dc5-run.pth", {}, None, id="name"),
        pytest.param("a.pth", {}, "detr-r18-dc5", id="preset"),
        pytest.param("a.pth", {"args": options(dilation=False)}, "detr-r18-dc5", id="preset-before-options"),
    ],
)
def test_dc5_comes_from(
    name: str, content: dict[str, Any], preset: str | None, tiny_state: State, tmp_path: Path
) -> None:
    loaded = load_pretrained(save({"model": tiny_state, **content}, tmp_path / name), preset=preset)
    assert isinstance(loaded.config.model, DetrConfig) and loaded.config.model.dilation
    assert loaded.config.preset == "detr-r18-dc5"
    assert not any("DC5" in line for line in loaded.report)


def test_an_official_file_is_what_its_name_says(
    tiny_state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save({"model": tiny_state, "args": options(dilation=False)}, tmp_path / "a.pth", legacy=True)
    name = f"detr-r50-dc5-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.pth"
    path = path.rename(tmp_path / name)
    monkeypatch.setattr(catalog, "OFFICIAL_FILES", {"x": OfficialFile(preset="detr-r50-dc5", name=name)})
    loaded = load_pretrained(path)
    assert isinstance(loaded.config.model, DetrConfig) and loaded.config.model.dilation
    assert loaded.config.model.num_heads == 4 and loaded.config.preset == "detr-r50-dc5"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match="SHA-256 does not begin with"):
        load_pretrained(path)


def test_options_of_another_kind_are_passed_over(tiny_state: State, tmp_path: Path) -> None:
    args = options(dilation="yes", nheads=[8], dropout=None)
    loaded = load_pretrained(save({"model": tiny_state, "args": args}, tmp_path / "a.pth"))
    assert any("DC5" in line for line in loaded.report)


def test_the_average_is_preferred(tiny_state: State, tmp_path: Path) -> None:
    raw = {key: value + 1 for key, value in tiny_state.items()}
    content = {"model": raw, "ema": {"module": tiny_state, "updates": 7}}
    loaded = load_pretrained(save(content, tmp_path / "a.pth"))
    assert_same(loaded.state_dict, tiny_state)
    assert "'ema.module'" in loaded.report[0]


@pytest.mark.parametrize("key", ["state_dict", "ema", "model"])
def test_other_places_and_prefixes(key: str, tiny_state: State, tmp_path: Path) -> None:
    wrapped = {f"module.{name}": value for name, value in tiny_state.items()}
    assert_same(load_pretrained(save({key: wrapped}, tmp_path / "a.pth")).state_dict, tiny_state)


def test_masks_are_seen(tmp_path: Path) -> None:
    config = DetrConfig(
        backbone="resnet18", backbone_weights="none", hidden_dim=128, num_heads=8, ffn_dim=16,
        num_encoder_layers=1, num_decoder_layers=1, num_queries=5, mask_head=True,
    )  # fmt: skip
    state = build_model(config, 250).state_dict()
    assert any(key.startswith("detr.transformer.") for key in state)
    loaded = load_pretrained(save({"model": state, "args": options(nheads=8)}, tmp_path / "a.pth"))
    assert_same(loaded.state_dict, state)
    assert loaded.config.model == replace(config, backbone_weights="imagenet")
    assert loaded.config.preset == "detr-r50-panoptic"
    assert loaded.categories.by_id[200] == "rug-merged" and loaded.categories.by_id[250 - 1] == NO_NAME
    assert loaded.categories.is_thing is not None
    assert loaded.categories.is_thing[90] and not loaded.categories.is_thing[92]


def test_safetensors_in_half_precision(tiny_state: State, tmp_path: Path) -> None:
    half = {key: value.half().contiguous() for key, value in tiny_state.items()}
    save_file(half, tmp_path / "a.safetensors")
    loaded = load_pretrained(tmp_path / "a.safetensors")
    assert_same(loaded.state_dict, {key: value.float() for key, value in half.items()})


def hub_folder(folder: Path, state: State, *, num_files: int = 1, suffix: str = "safetensors", **config: Any) -> Path:
    """Write a folder as transformers does, under the authors' names for the weights."""
    folder.mkdir()
    said = {"model_type": "detr", "encoder_attention_heads": 4, "decoder_attention_heads": 4, **config}
    (folder / "config.json").write_text(json.dumps(said))
    base = "model" if suffix == "safetensors" else "pytorch_model"
    keys = sorted(state)
    parts = [keys[i::num_files] for i in range(num_files)]
    weight_map = {}
    for number, part in enumerate(parts, start=1):
        name = f"{base}.{suffix}" if num_files == 1 else f"{base}-{number:05}-of-{num_files:05}.{suffix}"
        tensors = {key: state[key].contiguous() for key in part}
        save_file(tensors, folder / name) if suffix == "safetensors" else torch.save(tensors, folder / name)
        weight_map |= dict.fromkeys(part, name)
    if num_files > 1:
        (folder / f"{base}.{suffix}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("num_files", [1, 3])
def test_hugging_face_folders(num_files: int, suffix: str, tiny_state: State, tmp_path: Path) -> None:
    folder = hub_folder(tmp_path / "hub", tiny_state, num_files=num_files, suffix=suffix)
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": 600, "max_size": 1000}))
    loaded = load_pretrained(folder)
    assert_same(loaded.state_dict, tiny_state)
    assert isinstance(loaded.config.model, DetrConfig) and loaded.config.model.num_heads == 4
    assert (loaded.config.augment.eval_size, loaded.config.augment.eval_max_size) == (600, 1000)


def test_a_file_in_a_folder_has_the_folders_config(tiny_state: State, tmp_path: Path) -> None:
    folder = hub_folder(tmp_path / "hub", tiny_state, dilation=True, id2label={str(i): f"n{i}" for i in range(91)})
    loaded = load_pretrained(folder / "model.safetensors")
    assert isinstance(loaded.config.model, DetrConfig) and loaded.config.model.dilation
    assert loaded.categories.names[3] == "n3"


def test_images_that_are_prepared_otherwise_are_told(tiny_state: State, tmp_path: Path) -> None:
    folder = hub_folder(tmp_path / "hub", tiny_state)
    usual = {"do_normalize": True, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    for said, told in ((usual, 0), ({**usual, "image_mean": [0.5, 0.5, 0.5]}, 1), ({"do_normalize": False}, 1)):
        (folder / "preprocessor_config.json").write_text(json.dumps(said))
        assert sum("prepared otherwise" in line for line in load_pretrained(folder).report) == told


def test_null_is_no_setting(tiny_state: State, tmp_path: Path) -> None:
    """As transformers 4 writes it where the backbone is not timm's."""
    loaded = load_pretrained(hub_folder(tmp_path / "hub", tiny_state, dilation=None, dropout=None))
    assert isinstance(loaded.config.model, DetrConfig) and not loaded.config.model.dilation


def test_names_of_coco_in_other_spellings() -> None:
    old = {"motorcycle": "motorbike", "couch": "sofa", "tv": "tvmonitor", "airplane": "Aeroplane"}
    assert coco_by_order([old.get(name, name) for name in COCO80.names]) == COCO80
    assert coco_by_order(COCO80.names[::-1]) is None
    assert coco_by_order([]) is None
    assert len(COCO80) == 80 and len(coco_by_id(91)) == 91 and coco_by_id(91).is_thing is None


def test_coco_ids_where_config_json_names_coco(tiny_state: State, tmp_path: Path) -> None:
    named = {str(label): name for label, name in enumerate(coco_by_id(91).names)}
    folder = hub_folder(tmp_path / "hub", tiny_state, id2label={**named, "0": "none", "11": "something else"})
    assert load_pretrained(folder).categories == coco_by_id(91)


def test_all_that_is_wrong_at_once(tiny_state: State, tmp_path: Path) -> None:
    state = {**tiny_state, "query_embed.weight": torch.zeros(9, 31), "more": torch.zeros(1)}
    del state["input_proj.bias"], state["bbox_embed.layers.1.weight"]
    with pytest.raises(CheckpointError) as caught:
        load_pretrained(save({"model": state}, tmp_path / "a.pth"))
    text = str(caught.value)
    assert len(caught.value.problems) == 3
    assert "missing, of the model's 191: 2: input_proj.bias, bbox_embed.layers.1.weight" in text
    assert "belong to no part of the model: 1: more" in text
    assert "query_embed.weight is 9x31 and must be 9x32" in text


def test_two_keys_that_become_one_are_told(tiny_state: State, tmp_path: Path) -> None:
    for first, second in (
        ("module.class_embed.bias", "class_embed.bias"),
        ("class_embed.bias", "module.class_embed.bias"),
    ):
        both = {first: tiny_state["class_embed.bias"], second: tiny_state["class_embed.bias"] + 1}
        rest = {key: value for key, value in tiny_state.items() if key not in both}
        with pytest.raises(CheckpointError, match=r"no part of the model: 1: class_embed\.bias \(again\)"):
            load_pretrained(save({**both, **rest}, tmp_path / "a.pth"))


def test_a_run_of_another_family_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no family that is known"):
        load_pretrained(save({"body.stem.weight": torch.zeros(2)}, tmp_path / "a.pth"))


def test_presets(tiny_state: State, tmp_path: Path) -> None:
    path = save(tiny_state, tmp_path / "a.pth")
    with pytest.raises(ConfigError, match="unknown preset 'detr-r81'"):
        load_pretrained(path, preset="detr-r81")
    with pytest.raises(CheckpointError, match="of the family detr, and the preset nano"):
        load_pretrained(path, preset="nano")
    for other in ("detr-r50", "detr-r50-panoptic"):
        with pytest.raises(CheckpointError, match=f"of a resnet18 with no masks, and the preset {other} is another"):
            load_pretrained(path, preset=other)


def test_what_is_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("detr-r50", "detr-r101-dc5-a2e86def.pth", "facebook/detr-resnet-50"):
        assert is_pretrained_source(name)
        assert not is_pretrained_source(Path(name))
    for name in ("nano", "detr-r18", "runs", "", "a/b/c", "../x", "/nowhere/x", "~/x", "http://x/y", "./detr"):
        assert not is_pretrained_source(name), name
    for name in ("a--b/c", "a/b--c", "a/b..c", "ä/b"):  # no ids; the first two would have one folder in the cache
        assert not is_pretrained_source(name), name
    for name in ("weights/a.pth", "weights/a.safetensors"):  # files that are not there
        assert not is_pretrained_source(name), name
    (tmp_path / "runs" / "nano").mkdir(parents=True)
    assert not is_pretrained_source("runs/nano") and not is_pretrained_source("runs/missing")
    (tmp_path / "detr-r50").mkdir()
    assert not is_pretrained_source("detr-r50")
    (tmp_path / "runs" / "nano" / "config.json").touch()
    (tmp_path / "a.pth").touch()
    assert is_pretrained_source(Path("runs/nano")) and is_pretrained_source(Path("a.pth"))


def test_the_catalog() -> None:
    assert len(OFFICIAL_FILES) == 7
    for preset, file in OFFICIAL_FILES.items():
        assert preset in PRESETS, preset
        assert file.url == f"https://dl.fbaipublicfiles.com/detr/{file.name}"
        assert len(file.sha256_digits) == 8 and int(file.sha256_digits, 16)
        assert ("dc5" in file.name, "panoptic" in file.name) == ("dc5" in preset, "panoptic" in preset)
    assert set(HUB_IDS) <= set(PRESETS)


def test_load_gives_a_model_that_says_what_it_assumed(
    tiny_state: State, tiny_config: DetrConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save({"model": tiny_state, "args": options()}, tmp_path / "a.pth")
    model = dt.load(path, device="cpu")
    assert "its 91 classes are COCO's" in capsys.readouterr().err
    assert model.source == path and len(model.categories) == 91 and model.metrics == {}
    assert any("191 tensors of 'model'" in note for note in model.notes)
    ours = build_model(tiny_config, 91).eval()
    ours.load_state_dict(tiny_state)
    images = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    mask = torch.zeros(1, 64, 96, dtype=torch.bool)
    with torch.no_grad():
        assert torch.equal(model.detector(images, mask).pred_boxes, ours(images, mask).pred_boxes)


def test_a_name_that_is_nearly_a_preset_gets_that_preset() -> None:
    with pytest.raises(CheckpointError, match="did you mean 'detr-r50'"):
        dt.load("detr-r5")
    with pytest.raises(CheckpointError, match="name a run folder, a file or folder with weights"):
        dt.load("nowhere.pth")


def test_a_preset_is_only_for_weights_from_elsewhere(tiny_run: Path) -> None:
    with pytest.raises(ConfigError, match="a run knows its own network"):
        dt.load(tiny_run, preset="nano")

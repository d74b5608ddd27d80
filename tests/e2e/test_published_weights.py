"""Published weights in every command that takes a model: evaluate, predict, fine-tune."""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import detronome as dt
from detronome.cli import main
from detronome.config.schema import DetrConfig
from detronome.models.build import build_model

CONFIG = DetrConfig(
    backbone="resnet18",
    backbone_weights="none",
    hidden_dim=16,
    num_heads=2,
    ffn_dim=16,
    num_encoder_layers=1,
    num_decoder_layers=1,
    num_queries=5,
)
NAMES = {str(label): {3: "red", 7: "blue"}.get(label, "N/A") for label in range(8)}
SETTINGS: dict[str, Any] = {
    "augment.sizes": [64],
    "augment.max_size": 96,
    "augment.crop": "none",
    "augment.eval_size": 64,
    "augment.eval_max_size": 96,
    "batch.global_batch_size": 8,
    "train.device": "cpu",
    "data.workers": 0,
    "data.buckets": [],
    "optim.lr": 1e-12,
    "optim.backbone_lr": 0.0,
    "optim.weight_decay": 0.0,
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as transformers writes it, with eight labels of which the data has two."""
    folder = tmp_path_factory.mktemp("hub")
    torch.manual_seed(0)
    state = build_model(CONFIG, 8).state_dict()
    save_file({key: value.contiguous() for key, value in state.items()}, folder / "model.safetensors")
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    (folder / "config.json").write_text(json.dumps({"model_type": "detr", "id2label": NAMES, **heads}))
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": {"shortest_edge": 64, "longest_edge": 96}}))
    return folder


def run_command(*arguments: object) -> int:
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_eval_and_predict(hub: Path, blocks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("eval", hub, blocks, "--device", "cpu", "--json") == 0
    numbers = json.loads(capsys.readouterr().out)
    assert numbers["numbers"]["AP"] == dt.evaluate(hub, blocks, device="cpu").numbers["AP"]
    images = blocks / "images" / "val_00.png"
    assert run_command("predict", hub, images, "--out", tmp_path / "out", "--device", "cpu", "--json") == 0
    results = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert {result["category_id"] for result in results} <= set(range(8)) and len(results) == 5


def test_fine_tuning_starts_from_the_weights(hub: Path, blocks: Path, tmp_path: Path) -> None:
    run = dt.train(blocks, model=str(hub), epochs=1, out=tmp_path / "run", settings=SETTINGS)
    before, after = dt.load(hub, device="cpu"), run.model
    assert len(after.categories) == 8
    for key, value in before.checkpoint.model.items():  # the rate is next to nothing
        torch.testing.assert_close(after.checkpoint.model[key], value, atol=1e-10, rtol=0, msg=key)
    assert after.config.model == replace(CONFIG, backbone_weights="imagenet")
    assert run.metrics["AP"] == dt.evaluate(before, blocks).numbers["AP"]


def test_a_hostile_file_is_one_message(tmp_path: Path, blocks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return open, (str(tmp_path / "marker"), "w")

    path = tmp_path / "a.pth"
    torch.save({"model": {"x": torch.zeros(1)}, "args": argparse.Namespace(x=Code())}, path)
    for command in (("eval", path, blocks), ("predict", path, blocks / "images"), ("train", blocks, "--model", path)):
        assert run_command(*command) == 1
        error = capsys.readouterr().err
        assert "io.open" in error and "nothing of it was run" in error and "Traceback" not in error
    assert not (tmp_path / "marker").exists()


def test_data_with_classes_that_the_weights_lack(hub: Path, blocks: Path, tmp_path: Path) -> None:
    folder = tmp_path / "hub"
    folder.mkdir()
    (folder / "model.safetensors").symlink_to(hub / "model.safetensors")
    config = json.loads((hub / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "id2label": {**NAMES, "7": "green"}}))
    run = dt.train(blocks, model=folder, epochs=1, out=tmp_path / "run", settings=SETTINGS)
    assert run.model.categories.names == ("red", "blue")
    before, after = dt.load(folder, device="cpu").checkpoint.model, run.model.checkpoint.model
    reshaped = {name for name in before if before[name].shape != after[name].shape}
    assert reshaped == {"class_embed.weight", "class_embed.bias"}
    rows = after["class_embed.weight"]
    assert len(rows) == 3  # red, blue, no object
    torch.testing.assert_close(rows[[0, 2]], before["class_embed.weight"][[3, 8]], atol=1e-10, rtol=0)

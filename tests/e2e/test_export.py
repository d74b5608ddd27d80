"""A trained model becomes a file that is measured, shown and refused like any other model."""

import json
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.unit.deploy.export.forms import without_shape_checks
from torch import nn

import detronome as dt
from detronome.api import exporting
from detronome.cli import main
from detronome.config.presets import preset
from detronome.data.augment.params import evaluation_params
from detronome.data.build import augment_policy
from detronome.deploy.export.description import description_of
from detronome.deploy.export.self_check import synthetic_batches
from detronome.models.detector import Detector

Settings = dict[str, Any]


@pytest.fixture(scope="module")
def exported(tiny_run: Path, blocks: Path, tmp_path_factory: pytest.TempPathFactory) -> dt.ExportedModel:
    """The tiny run as ONNX, compared on the data too; not to be written to."""
    out = tmp_path_factory.mktemp("export") / "tiny.onnx"
    told: list[str] = []
    with without_shape_checks(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETRONOME_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        found = dt.export(tiny_run, "onnx", out=out, data=blocks, images=4, on_progress=told.append)
    assert told == ["capturing the graph", "writing onnx", "comparing it with the model"]
    return found


def run_cli(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended, without_shape_checks():
        main([str(one) for one in arguments])
        raise SystemExit(0)
    assert ended.value.code is None or isinstance(ended.value.code, int)
    return ended.value.code or 0


def test_what_is_written(exported: dt.ExportedModel, tiny_run: Path) -> None:
    file = exported.file
    assert sorted(os.listdir(file.parent)) == ["tiny.onnx", "tiny.onnx.json"]
    record = json.loads(description_of(file).read_text())
    model = dt.load(tiny_run)
    assert record["step"] == model.checkpoint.state.step
    assert record["categories"]["names"] == list(model.categories.names)
    check = exported.self_check
    assert check.images == "real and synthetic"
    assert check.difference.num_images == 4 + 6
    assert check.difference.largest_score < 1e-4
    assert check.accuracy is not None
    assert check.accuracy.num_images == 4
    assert check.accuracy.exported == pytest.approx(check.accuracy.original, abs=1e-3)
    assert exported.to_json()["AP"] == check.accuracy.exported


def test_it_is_a_model_like_any_other(exported: dt.ExportedModel, tiny_run: Path, blocks: Path) -> None:
    model, original = dt.load(exported.file), dt.load(tiny_run)
    assert model.categories == original.categories
    assert model.config == replace(original.config, data=replace(original.config.data, root=""))
    assert {name for name, value in model.metrics.items() if not math.isnan(value)} == {
        name for name, value in original.metrics.items() if not math.isnan(value)
    }
    image = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    found, expected = model.predict(image, score=0.0), original.predict(image, score=0.0)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
    ours, theirs = dt.evaluate(model, blocks).numbers, dt.evaluate(original, blocks).numbers
    assert ours["AP"] == pytest.approx(theirs["AP"], abs=1e-3)


def test_commands_take_it(exported: dt.ExportedModel, blocks: Path, tmp_path: Path) -> None:
    assert run_cli("eval", exported.file, blocks) == 0
    assert run_cli("predict", exported.file, blocks / "images", "--out", tmp_path / "found") == 0
    assert (tmp_path / "found" / "detections.json").is_file()


def test_it_cannot_be_trained_or_exported_again(exported: dt.ExportedModel, blocks: Path, tmp_path: Path) -> None:
    with pytest.raises(dt.CheckpointError, match="not be trained"):
        dt.train(blocks, model=exported.file, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(dt.CheckpointError, match="exported again"):
        dt.export(exported.file, "torch", out=tmp_path / "again.pt2")
    assert os.listdir(tmp_path) == []


def test_a_damaged_file_is_told(exported: dt.ExportedModel, tmp_path: Path) -> None:
    content = exported.file.read_bytes()
    (tmp_path / "tiny.onnx").write_bytes(content[:-1])
    (tmp_path / "tiny.onnx.json").write_bytes(description_of(exported.file).read_bytes())
    with pytest.raises(dt.CheckpointError, match="SHA-256"):
        dt.load(tmp_path / "tiny.onnx")


def test_the_command_line(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "folder" / "nano.pt2"
    assert run_cli("export", tiny_run, "--to", "torch", "--out", out, "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["file"] == str(out)
    assert record["bytes"] == out.stat().st_size
    assert record["AP"] is None and record["compared_on"] == "synthetic"
    assert run_cli("export", tiny_run, "--to", "torch", "--out", out) == 2
    assert "it is not overwritten" in capsys.readouterr().err


def test_a_form_that_is_not_the_model_is_refused_and_leaves_nothing(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = exporting.trace

    def trace_another(detector: Detector) -> Any:
        with torch.no_grad():
            for module in detector.modules():
                if isinstance(module, nn.LayerNorm):
                    module.weight += 0.01
        program = trace(detector)
        with torch.no_grad():
            for module in detector.modules():
                if isinstance(module, nn.LayerNorm):
                    module.weight -= 0.01
        return program

    monkeypatch.setattr(exporting, "trace", trace_another)
    with without_shape_checks(), pytest.raises(dt.ConfigError, match="the exported model is not the model") as told:
        dt.export(tiny_run, "torch", out=tmp_path / "other.pt2")
    assert "nothing was written" in str(told.value)
    assert os.listdir(tmp_path) == []


def test_what_appears_meanwhile_is_not_overwritten(tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "tiny.pt2"

    def write(stage: str) -> None:
        if "comparing" in stage:
            out.write_text("another's")

    with without_shape_checks(), pytest.raises(dt.ConfigError, match="it is not overwritten"):
        dt.export(tiny_run, "torch", out=out, on_progress=write)
    assert out.read_text() == "another's"
    assert os.listdir(tmp_path) == ["tiny.pt2"]


def test_of_the_data_only_what_is_looked_at_must_be_there(tiny_run: Path, blocks: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(blocks, data)
    (data / "annotations" / "instances_train.json").unlink()
    with without_shape_checks():
        check = dt.export(tiny_run, "torch", out=tmp_path / "tiny.pt2", data=data, images=6).self_check
    assert check.accuracy is not None and check.accuracy.num_images == 6


def test_images_without_objects_are_told(tiny_run: Path, blocks: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(blocks, data)
    file = data / "annotations" / "instances_val.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"annotations": []}))
    with without_shape_checks(), pytest.raises(dt.DataError, match="AP cannot be compared"):
        dt.export(tiny_run, "torch", out=tmp_path / "tiny.pt2", data=data)
    assert os.listdir(tmp_path) == ["data"]


def test_a_file_that_was_exported_anew_is_told(exported: dt.ExportedModel, tmp_path: Path) -> None:
    for file in (exported.file, description_of(exported.file)):
        shutil.copy(file, tmp_path)
    model = dt.load(tmp_path / "tiny.onnx")
    change = json.loads(description_of(exported.file).read_text()) | {"step": 999}
    (tmp_path / "tiny.onnx.json").write_text(json.dumps(change))
    with pytest.raises(dt.CheckpointError, match="exported anew"):
        _ = model.detector


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"to": "coreml"}, "'coreml' is not known"),
        ({"to": "onnx", "out": "model.pt2"}, r"a file for onnx ends in \.onnx"),
        ({"to": "onnx", "out": "."}, r"a file for onnx ends in \.onnx"),
        ({"to": "torch", "int8": True, "data": "d"}, "no INT8 for torch"),
        ({"to": "onnx", "int8": True}, "INT8 needs images"),
        ({"to": "onnx", "images": 0}, "0 images"),
    ],
)
def test_what_cannot_be_is_told_before_any_work(
    arguments: dict[str, Any], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(dt.ConfigError, match=told):
        dt.export(dt.load(_untrained(tmp_path)) if "out" in arguments else "no model", **arguments)


@pytest.mark.parametrize("name", ["nano", "detr-r50", "rtdetr-v2-s", "demo"])
def test_an_engine_is_built_for_all_that_it_will_see(name: str) -> None:
    """TensorRT itself needs a GPU; what it is asked for does not."""
    config = preset(name)
    (_, *smallest), usual, (most, *largest) = exporting._shapes_of(config)
    side = min(config.augment.eval_size, exporting._SYNTHETIC_SIDE_PX)
    shapes = [tuple(images.shape[:1] + images.shape[2:]) for images, _ in synthetic_batches(side)]
    for count, height, width in (
        *shapes,
        usual,
        (8, *evaluation_params(augment_policy(config.augment), (3, 4)).final_hw),
    ):
        assert 1 <= count <= most
        assert smallest[0] <= height <= largest[0] and smallest[1] <= width <= largest[1], (height, width)


def _untrained(folder: Path) -> Path:
    from tests.unit.deploy.tiny_models import CATEGORIES, config_of, model_of

    from detronome.config.convert import to_dict
    from detronome.engine.checkpoint import Checkpoint, write_checkpoint
    from detronome.engine.state import TrainingState

    checkpoint = Checkpoint(
        config=to_dict(config_of("nano")),
        categories=CATEGORIES,
        state=TrainingState(),
        model=model_of("nano").state_dict(),
    )
    write_checkpoint(checkpoint, folder / "step-00000000")
    return folder / "step-00000000"

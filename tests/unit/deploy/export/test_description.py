"""A description belongs to its file: whatever is missing, damaged, exchanged or from elsewhere is told, and not run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.deploy.tiny_models import CATEGORIES, config_of

from detronome.config.convert import to_dict
from detronome.deploy.export.description import (
    Description,
    Form,
    describe,
    description_of,
    read_description,
    write_description,
)
from detronome.errors import CheckpointError

CONTENT = b"the graph" * 100


def written(folder: Path, form: Form = "onnx", name: str = "model.onnx") -> Path:
    """Write a file and its description; the graph itself is not looked at here."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    files = [file, file.with_suffix(".bin")] if form == "openvino" else [file]
    for one in files:
        one.write_bytes(CONTENT + one.suffix.encode())
    write_description(file, description(files, form))
    return file


def description(files: list[Path], form: Form = "onnx", *, square: bool = False) -> Description:
    config = to_dict(config_of("rtdetr" if square else "detr"))
    return describe(
        files,
        form=form,
        precision="fp32",
        activation="softmax",
        num_queries=6,
        has_masks=True,
        config=config,
        categories=CATEGORIES,
        metrics={"AP": 0.25, "AP_small": float("nan")},
        step=7,
        origin="trimmed",
        self_check=None,
        made_with={"torch": "2"},
    )


def change(file: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    beside = description_of(file)
    record = json.loads(beside.read_text())
    edit(record)
    beside.write_text(json.dumps(record))


def test_it_comes_back_as_it_was(tmp_path: Path) -> None:
    file = written(tmp_path)
    found = read_description(file)
    assert found.categories == CATEGORIES
    assert found.metrics == {"AP": 0.25, "AP_small": None}
    assert (found.step, found.origin, found.num_queries) == (7, "trimmed", 6)
    assert found == msgspec.json.decode(description_of(file).read_bytes(), type=Description)


def test_it_says_how_to_use_the_file(tmp_path: Path) -> None:
    file = written(tmp_path)
    kept, square = read_description(file), description([file], square=True)
    assert (
        "side s = 64 for the shorter one" in kept.preprocessing[1]
        and "round(128 * short / long)" in kept.preprocessing[1]
    )
    assert "64x64" in square.preprocessing[1]
    assert "softmax" in kept.postprocessing[0]
    assert set(kept.inputs) == {"images", "padding_mask"}
    assert set(kept.outputs) == {"pred_logits", "pred_boxes", "pred_masks"}


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda file: file.unlink(), "there is no such file"),
        (lambda file: description_of(file).unlink(), "description of the exported model is missing"),
        (lambda file: description_of(file).write_text("{"), "the description is damaged"),
        (lambda file: description_of(file).write_bytes(b"\xff\x00"), "the description is damaged"),
        (lambda file: description_of(file).write_text('{"a":' + "[" * 100_000), "the description is damaged"),
        (lambda file: description_of(file).write_text('{"format": 99}'), "has format 99"),
        (lambda file: description_of(file).write_text('{"format": 1}'), "the description is damaged"),
        (lambda file: file.write_bytes(CONTENT), "SHA-256"),
        (lambda file: file.write_bytes(b""), "SHA-256"),
        (lambda file: change(file, lambda x: x.update(form="torch")), "is not that of model.onnx"),
        (lambda file: change(file, lambda x: x.update(files={"other.onnx": "0" * 64})), "is not that of model.onnx"),
        (lambda file: change(file, lambda x: x.update(files={})), "is not that of model.onnx"),
        (lambda file: change(file, lambda x: x["categories"].update(names=[])), "is not that of model.onnx"),
    ],
)
def test_what_does_not_belong_together_is_told(harm: Callable[[Path], None], told: str, tmp_path: Path) -> None:
    file = written(tmp_path)
    harm(file)
    with pytest.raises(CheckpointError, match=told):
        read_description(file)


def test_a_file_with_another_name_is_not_described(tmp_path: Path) -> None:
    file = written(tmp_path)
    shutil.copy(file, tmp_path / "mine.onnx")
    shutil.copy(description_of(file), tmp_path / "mine.onnx.json")
    with pytest.raises(CheckpointError, match="keep their names"):
        read_description(tmp_path / "mine.onnx")


def test_both_files_of_openvino_are_compared(tmp_path: Path) -> None:
    file = written(tmp_path, "openvino", "model.xml")
    read_description(file)
    file.with_suffix(".bin").write_bytes(b"other weights")
    with pytest.raises(CheckpointError, match="SHA-256"):
        read_description(file)
    file.with_suffix(".bin").unlink()
    with pytest.raises(CheckpointError, match=r"model\.bin is missing: it holds the weights"):
        read_description(file)


def test_names_that_lead_elsewhere_are_refused(tmp_path: Path) -> None:
    file = written(tmp_path, "openvino", "model.xml")
    (tmp_path / "model").mkdir()
    change(file, lambda x: x.update(files={"model.xml": "0" * 64, "../model.bin": "0" * 64}))
    with pytest.raises(CheckpointError, match="is not that of"):
        read_description(file)


@given(place=st.integers(0, len(CONTENT) + 4), bit=st.integers(0, 7))
def test_any_flipped_bit_is_found(place: int, bit: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = written(tmp_path_factory.mktemp("flipped"))
    content = bytearray(file.read_bytes())
    content[place] ^= 1 << bit
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="SHA-256"):
        read_description(file)

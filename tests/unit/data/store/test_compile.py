"""All splits of a data set are compiled in the order people think of them, and all their problems are said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from detronome.data.store.compile import compile_splits
from detronome.errors import DataError


def test_an_empty_folder_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no COCO annotations"):
        compile_splits(tmp_path)


def test_all_splits_train_first(blocks: Path) -> None:
    compiled = compile_splits(blocks)
    assert [(one.split, len(one.index)) for one in compiled] == [("train", 24), ("val", 6)]
    record = compiled[0].to_json()
    assert (record["images"], record["annotations"]) == (24, compiled[0].index.num_objects)
    assert record["bytes"] == sum(file.stat().st_size for file in Path(record["folder"]).iterdir())
    assert compile_splits(blocks)[0].seconds < 1


def test_chosen_splits_keep_their_order(blocks: Path) -> None:
    assert [one.split for one in compile_splits(blocks, ["val", "train"])] == ["val", "train"]


def test_a_file_is_one_split(blocks: Path) -> None:
    (one,) = compile_splits(blocks / "annotations/instances_val.json")
    assert (one.split, len(one.index)) == ("val", 6)
    with pytest.raises(DataError, match="one split"):
        compile_splits(blocks / "annotations/instances_val.json", ["val"])


def test_the_problems_of_all_splits_are_said_at_once(blocks: Path, tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "images").mkdir()
    for split in ("train", "val"):
        content = json.loads((blocks / f"annotations/instances_{split}.json").read_text())
        content["annotations"][0]["bbox"] = None
        (tmp_path / f"annotations/instances_{split}.json").write_text(json.dumps(content))
    with pytest.raises(DataError) as caught:
        compile_splits(tmp_path, ["train", "val", "test"])
    assert [problem.what for problem in caught.value.problems][:2] == ["annotations have no bbox"] * 2
    assert "no split 'test'" in caught.value.problems[2].what

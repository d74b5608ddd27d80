"""What a program passes to the functions for data: of the wrong kind it is told, and a single name is one name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import detronome as dt
from detronome.errors import ConfigError, DataError

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "check_data": lambda data, **more: dt.check_data(data, images=False, **more),
    "convert_data": lambda data, **more: dt.convert_data(data, "out", to="yolo", **more),
    "shard_data": lambda data, **more: dt.shard_data(data, "out", **more),
    "verify_shards": dt.verify_shards,
    "data_stats": dt.data_stats,
    "index_data": dt.index_data,
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("data", ["", None, 123, b"data", ["a"]])
def test_data_is_a_path(name: str, data: object) -> None:
    with pytest.raises(ConfigError, match="is no path") as caught:
        FUNCTIONS[name](data)
    assert caught.value.problems[0].where == "data"


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("splits", ["", [], [""], ["train", 1], 3])
def test_splits_are_names(blocks: Path, tmp_path: Path, name: str, splits: object) -> None:
    with pytest.raises(ConfigError, match="names nothing") as caught:
        FUNCTIONS[name](blocks, splits=splits)
    assert caught.value.problems[0].where == "splits"
    assert not (tmp_path / "out").exists()


def test_a_single_name_is_that_split(blocks: Path, tmp_path: Path) -> None:
    assert [split.name for split in dt.convert_data(blocks, "yolo", to="yolo", splits="val").splits] == ["val"]
    assert [split.split for split in dt.shard_data(blocks, "shards", splits="val").splits] == ["val"]
    assert dt.verify_shards("shards", splits="val").num_images == 6
    assert [split.split for split in dt.data_stats(blocks, splits="val").splits] == ["val"]
    assert [split.split for split in dt.index_data(blocks, splits="val")] == ["val"]
    assert dt.check_data(blocks, splits="val", images=False).checked["images"] == 6


def test_unknown_words_are_told_with_the_nearest(blocks: Path, tmp_path: Path) -> None:
    arguments: dict[str, Any]
    for arguments, where, fix in (
        ({"to": "csv"}, "to", "known names: coco, roboflow, voc, yolo"),
        ({"to": "yol"}, "to", "did you mean 'yolo'?"),
        ({"to": ["yolo"]}, "to", "did you mean 'yolo'?"),
        ({"to": "yolo", "images": "move"}, "images", "known names: copy, hardlink, none, symlink"),
    ):
        with pytest.raises(ConfigError) as caught:
            dt.convert_data(blocks, "out", **arguments)
        assert (caught.value.problems[0].where, caught.value.problems[0].fix) == (where, fix)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [0, -1, 1.5, "x", None, True])
def test_numbers_are_whole_and_positive(blocks: Path, value: Any) -> None:
    with pytest.raises(ConfigError, match="shards of"):
        dt.shard_data(blocks, "out", shard_mib=value)
    with pytest.raises(ConfigError, match="queries"):
        dt.check_data(blocks, queries=value)
    with pytest.raises(ConfigError, match="connections"):
        dt.download_data("coco2017", "out", connections=value)


@pytest.mark.parametrize("parts", ["", [], ["vall"], "vall", [1]])
def test_parts_to_download_are_names(parts: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        dt.download_data("coco2017", "out", parts=parts)
    assert caught.value.problems[0].where == "parts"


@pytest.mark.parametrize("name", ["check_data", "convert_data", "shard_data"])
def test_an_address_is_told_where_data_has_to_be_here(blocks: Path, tmp_path: Path, name: str) -> None:
    dt.shard_data(blocks, "shards")
    address = (tmp_path / "shards").as_uri()
    with pytest.raises(DataError, match="an address is read here only") as caught:
        FUNCTIONS[name](address)
    assert caught.value.problems[0].where == address


def test_an_address_without_shards() -> None:
    for name in ("check_data", "data_stats", "index_data"):
        with pytest.raises(DataError, match="no sharded data set at this address"):
            FUNCTIONS[name]("memory://nowhere/data")

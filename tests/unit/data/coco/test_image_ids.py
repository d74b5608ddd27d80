"""Image ids by file name, from annotation files of any kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from detronome.data.coco.image_ids import ids_of_inputs, read_image_ids
from detronome.data.inputs import Input
from detronome.errors import ConfigError, DataError


def write(file: Path, names: dict[str, int], **more: Any) -> Path:
    images = [{"id": image_id, "file_name": name, "height": 3, "width": 4} for name, image_id in names.items()]
    file.write_text(json.dumps({"images": images, **more}))
    return file


def test_no_images(tmp_path: Path) -> None:
    assert read_image_ids(write(tmp_path / "a.json", {})).of("a.jpg") is None


def test_whole_names_and_last_parts(tmp_path: Path) -> None:
    names = {"val/a.jpg": 7, "train/a.jpg": 8, "val/b.jpg": 9, "c.jpg": 10}
    ids = read_image_ids(write(tmp_path / "a.json", names, annotations=[{"segments_info": []}], licenses=[]))
    assert [ids.of(name) for name in ("val/a.jpg", "train/a.jpg", "b.jpg", "x/y/c.jpg")] == [7, 8, 9, 10]
    assert ids.of("a.jpg") is None, "two images end so"
    assert ids.of("d.jpg") is None


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"images": 3}', b'{"images": [{"id": "x", "file_name": "a"}]}', b"\xff"]
)
def test_a_file_that_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError, match="lists no images") as caught:
        read_image_ids(tmp_path / "a.json")
    assert caught.value.problems[0].where == str(tmp_path / "a.json")


def test_one_name_twice(tmp_path: Path) -> None:
    record = {"images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "a.jpg"}]}
    (tmp_path / "a.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match=r"two images have the name 'a\.jpg'"):
        read_image_ids(tmp_path / "a.json")


def inputs(*names: str) -> list[Input]:
    return [Input(Path(name), str(Path(name).with_suffix("")), name) for name in names]


def test_ids_of_files(tmp_path: Path) -> None:
    assert ids_of_inputs(inputs("000139.jpg", "7.png"), None) == {"000139": 139, "7": 7}
    for unnumbered in (inputs("1.png", "01.png"), inputs("a.png", "5.png"), inputs("1.png", "2.mp4")):
        assert ids_of_inputs(unnumbered, None) is None
    file = write(tmp_path / "a.json", {"val/a.jpg": 7, "b.jpg": 9})
    assert ids_of_inputs(inputs("b.jpg", "x/a.jpg"), file) == {"b": 9, "x/a": 7}
    with pytest.raises(DataError, match=r"several files are the image with id 7: x/a, y/a"):
        ids_of_inputs(inputs("x/a.jpg", "b.jpg", "y/a.jpg"), file)
    with pytest.raises(DataError, match=r"does not list 2 of 3 images: 1\.jpg, 2\.jpg"):
        ids_of_inputs(inputs("1.jpg", "b.jpg", "2.jpg"), file)
    with pytest.raises(ConfigError, match="frames of a video have no names"):
        ids_of_inputs(inputs("b.jpg", "v.mp4"), file)

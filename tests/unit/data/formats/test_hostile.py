"""Folders from strangers, or with one slip of the pen: an answer, nothing written outside, nothing without end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from detronome.data.formats.convert import convert
from detronome.data.formats.images import list_images, walk_files
from detronome.data.layout import find_split, recognise
from detronome.errors import DataError

Put = Callable[..., Path]
OBJECT = "<object><name>owl</name>{}<bndbox><xmin>{}</xmin><ymin>1</ymin><xmax>4</xmax><ymax>5</ymax></bndbox></object>"


@pytest.fixture
def voc(tmp_path: Path, put_image: Put, put_text: Put) -> Callable[..., list[dict[str, object]]]:
    """A function that reads a VOC folder with one object."""
    put_image(tmp_path / "voc/JPEGImages/a.png")

    def read(inside: str = "", xmin: str = "1") -> list[dict[str, object]]:
        put_text(tmp_path / "voc/Annotations/a.xml", f"<annotation>{OBJECT.format(inside, xmin)}</annotation>")
        document = json.loads(find_split(tmp_path / "voc", "train").annotation_file.read_bytes())
        return list(document["annotations"])

    return read


@pytest.mark.parametrize("name", ["../../../stolen", "/stolen", "a/b", "..", ".", "", "a\0b"])
@pytest.mark.parametrize("layout", ["coco", "roboflow", "voc", "yolo"])
def test_a_sidecar_cannot_have_files_written_elsewhere(
    tmp_path: Path, put_image: Put, put_text: Put, name: str, layout: str
) -> None:
    data = tmp_path / "data"
    put_image(data / "images/train/a.png")
    document = {
        "images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 20}],
        "annotations": [],
        "categories": [{"id": 1, "name": "owl"}],
    }
    put_text(data / "annotations/instances_train.json", json.dumps(document))
    convert(data, tmp_path / "yolo", to="yolo")
    sidecar = json.loads((tmp_path / "yolo/detronome.json").read_text())
    sidecar["splits"]["train"]["name"] = name
    (tmp_path / "yolo/detronome.json").write_text(json.dumps(sidecar))
    with pytest.raises(DataError, match="is no name of a split"):
        convert(tmp_path / "yolo", tmp_path / "deep/down/here/out", to=layout)  # type: ignore[arg-type]
    assert not list(tmp_path.rglob("*stolen*"))


@pytest.mark.parametrize("images", ["symlink", "hardlink", "copy"])
def test_an_image_called_as_the_annotations_does_not_change_the_users_file(
    tmp_path: Path, put_text: Put, images: str
) -> None:
    document = {
        "images": [{"id": 1, "file_name": "_annotations.coco.json", "width": 8, "height": 6}],
        "annotations": [],
        "categories": [{"id": 1, "name": "owl"}],
    }
    file = put_text(tmp_path / "data/train/_annotations.coco.json", json.dumps(document, indent=2))
    before = file.read_bytes()
    with pytest.raises(DataError, match="an image is called _annotations"):
        convert(tmp_path / "data", tmp_path / "out", to="roboflow", images=images)  # type: ignore[arg-type]
    assert file.read_bytes() == before


def test_links_that_lead_back_up_end(tmp_path: Path, put_image: Put) -> None:
    put_image(tmp_path / "a/one.png")
    put_image(tmp_path / "b/two.png")
    (tmp_path / "a" / "self").symlink_to(".")
    (tmp_path / "a" / "other").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "back").symlink_to(tmp_path / "a")
    assert list_images(tmp_path / "a") == ["one.png", "other/two.png"]
    assert list_images(tmp_path) == ["a/one.png", "a/other/two.png", "b/back/one.png", "b/two.png"]
    assert list(walk_files(tmp_path / "nowhere")) == list(walk_files(Path("a\0b"))) == []


def test_a_path_that_no_file_can_have(tmp_path: Path, put_text: Put) -> None:
    put_text(tmp_path / "data.yaml", 'train: "a\\0b"\nnames: [owl]\n')
    with pytest.raises(DataError, match=r"names a\0b for train, which is not there"):
        recognise(tmp_path)


def test_absolute_and_relative_folders_together(
    tmp_path: Path, put_image: Put, put_text: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_image(tmp_path / "data/images/train/a.png")
    put_image(tmp_path / "data/more/images/b.png")
    put_text(tmp_path / "data/labels/train/a.txt")
    put_text(tmp_path / "data/data.yaml", f"train: [images/train, {tmp_path}/data/more/images]\nnames: [owl]\n")
    monkeypatch.chdir(tmp_path)
    files = find_split("data", "train")
    names = [image["file_name"] for image in json.loads(files.annotation_file.read_bytes())["images"]]
    assert names == ["images/train/a.png", "more/images/b.png"]
    assert all((files.images_dir / name).is_file() for name in names)


@pytest.mark.parametrize("number", ["100000", "1000000000", "1e18", "1e300"])
def test_a_class_of_thousands_of_millions_makes_no_list_of_them(
    tmp_path: Path, put_image: Put, put_text: Put, number: str
) -> None:
    put_image(tmp_path / "images/train/a.png")
    put_text(tmp_path / "labels/train/a.txt", f"{number} 0.5 0.5 0.1 0.1\n")
    with pytest.raises(DataError, match="classes are beyond"):
        find_split(tmp_path, "train")


@pytest.mark.parametrize("count", ["1000000000", "1" * 18])
def test_a_number_of_classes_that_is_a_slip_makes_no_list_of_them(
    tmp_path: Path, put_image: Put, put_text: Put, count: str
) -> None:
    put_image(tmp_path / "images/train/a.png")
    put_text(tmp_path / "data.yaml", f"train: images/train\nnc: {count}\n")
    with pytest.raises(DataError, match="no class has a name"):
        find_split(tmp_path, "train")


@pytest.mark.parametrize("count", ["1" * 5000, "many"])
def test_a_number_of_classes_that_is_none_is_no_harm_beside_names(
    tmp_path: Path, put_image: Put, put_text: Put, count: str
) -> None:
    put_image(tmp_path / "images/train/a.png")
    put_text(tmp_path / "labels/train/a.txt")
    put_text(tmp_path / "data.yaml", f"train: images/train\nnc: {count}\nnames: [owl]\n")
    assert find_split(tmp_path, "train").name == "train"


def test_numbers_of_thousands_of_digits(voc: Callable[..., list[dict[str, object]]]) -> None:
    (annotation,) = voc(f"<difficult>{'1' * 5000}</difficult>", "0" * 5000 + "1")
    assert annotation["bbox"] == [1, 1, 3, 4]
    assert annotation["difficult"] == "1" * 5000


def test_an_id_of_thousands_of_digits_in_a_label_map(
    tmp_path: Path, voc: Callable[..., list[dict[str, object]]], put_text: Put
) -> None:
    put_text(tmp_path / "voc/label_map.pbtxt", f'item {{ id: {"1" * 5000} name: "owl" }}')
    with pytest.raises(DataError, match="has no id or name"):
        voc()


def test_a_document_with_a_number_of_thousands_of_digits(tmp_path: Path, put_image: Put, put_text: Put) -> None:
    put_image(tmp_path / "data/images/train/a.png")
    text = '{"id": 1, "file_name": "a.png", "width": 40, "height": 20, "x": %s}' % ("1" * 5000)
    content = f'{{"images": [{text}], "annotations": [], "categories": [{{"id": 1, "name": "owl"}}]}}'
    put_text(tmp_path / "data/annotations/instances_train.json", content)
    assert convert(tmp_path / "data", tmp_path / "out", to="yolo", sidecar=False).splits[0].num_images == 1


def test_elements_in_elements_without_end(voc: Callable[..., list[dict[str, object]]]) -> None:
    assert len(voc("<a>" * 90 + "</a>" * 90)) == 1
    with pytest.raises(DataError, match="nested too deeply"):
        voc("<a>" * 5000 + "</a>" * 5000)


def test_a_killed_conversion_is_no_data_set(tmp_path: Path, put_image: Put, put_text: Put) -> None:
    put_image(tmp_path / ".incomplete/JPEGImages/a.png")
    put_text(tmp_path / ".incomplete/Annotations/a.xml", f"<annotation>{OBJECT.format('', 1)}</annotation>")
    assert recognise(tmp_path) is None

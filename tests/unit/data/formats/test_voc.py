"""VOC folders in all the ways in which they are laid out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from detronome.data.formats.document import Record
from detronome.data.formats.read import read_documents
from detronome.data.formats.voc import VocFolder, find_voc
from detronome.data.layout import find_split
from detronome.errors import DataError

Put = Callable[..., Path]
BOX = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>11</xmax><ymax>12</ymax></bndbox>"


def xml(*names: str, size: tuple[int, int] = (40, 20), filename: str = "") -> str:
    objects = "".join(f"<object><name>{name}</name>{BOX}</object>" for name in names)
    width, height = size
    head = f"<filename>{filename}</filename><size><width>{width}</width><height>{height}</height></size>"
    return f"<annotation>{head}{objects}</annotation>"


def found(root: Path) -> VocFolder:
    folder = find_voc(root)
    assert folder is not None
    return folder


def read(root: Path) -> dict[str, Record]:
    folder = found(root)
    documents = read_documents(folder, keep_text=False)
    return {name: split.document for name, split in zip(folder.split_names(), documents, strict=True)}


def names_of(document: Record) -> list[str]:
    return [image["file_name"] for image in document["images"]]


def test_an_empty_folder_is_none(tmp_path: Path) -> None:
    assert find_voc(tmp_path) is None
    (tmp_path / "Annotations").mkdir()
    assert find_voc(tmp_path) is None


def test_other_xml_files_are_none(tmp_path: Path, put_text: Put) -> None:
    put_text(tmp_path / "Annotations/a.xml", "<html/>")
    assert find_voc(tmp_path) is None


def devkit(root: Path, lists: dict[str, str], put_text: Put) -> None:
    for stem in "1234":
        put_text(root / f"Annotations/{stem}.xml", xml("dog"))
    for name, stems in lists.items():
        put_text(root / f"ImageSets/Main/{name}.txt", "\n".join(stems))


@pytest.mark.parametrize(
    ("lists", "splits"),
    [
        ({"train": "12", "val": "3", "trainval": "312"}, ["train", "val"]),
        ({"train": "12", "val": "3", "test": "4", "trainval": "123"}, ["test", "train", "val"]),
        ({"train": "12", "val": "3", "trainval": "1234"}, ["train", "trainval", "val"]),
        ({"train": "12", "test": "3", "trainval": "12"}, ["test", "train"]),
        ({"test": "3", "trainval": "12"}, ["test", "trainval"]),
        ({"trainval": "12"}, ["trainval"]),
    ],
)
def test_trainval_counts_unless_it_repeats_the_others(
    tmp_path: Path, put_text: Put, lists: dict[str, str], splits: list[str]
) -> None:
    devkit(tmp_path, lists, put_text)
    assert sorted(found(tmp_path).split_names()) == splits
    training = find_split(tmp_path, "train")
    assert training.name == ("train" if "train" in splits else "trainval")
    assert names_of(json.loads(training.annotation_file.read_bytes())) == ["1.jpg", "2.jpg"]


def test_trainval_of_two_years(tmp_path: Path, put_text: Put) -> None:
    devkit(tmp_path / "VOC2007", {"train": "1", "val": "2", "trainval": "12"}, put_text)
    devkit(tmp_path / "VOC2012", {"trainval": "12"}, put_text)
    assert sorted(found(tmp_path).split_names()) == ["train2007", "trainval2012", "val2007"]


@pytest.mark.parametrize(("stems", "told"), [("", "the list of a split is empty"), ("89", "names no image with an")])
def test_a_list_of_a_split_that_names_nothing_is_told(tmp_path: Path, put_text: Put, stems: str, told: str) -> None:
    devkit(tmp_path, {"train": stems, "val": "3", "test": "", "notes": ""}, put_text)
    with pytest.raises(DataError, match=told) as caught:
        found(tmp_path).split_names()
    assert [problem.where for problem in caught.value.problems] == [f"{tmp_path}/ImageSets/Main/train.txt"]


@pytest.mark.parametrize("place", ["", "VOC2012", "VOCdevkit/VOC2007"])
def test_the_devkit(tmp_path: Path, put_image: Put, put_text: Put, place: str) -> None:
    root = tmp_path / place
    for stem, objects in (("1", ("dog", "cat")), ("2", ()), ("3", ("owl",))):
        put_image(root / f"JPEGImages/{stem}.jpg")
        put_text(root / f"Annotations/{stem}.xml", xml(*objects))
    put_image(root / "JPEGImages/unlabelled.jpg")
    put_text(root / "ImageSets/Main/train.txt", "2\n1\n")
    put_text(root / "ImageSets/Main/val.txt", "3\n")
    put_text(root / "ImageSets/Main/dog_train.txt", "2 -1\n1  1\n")
    put_text(root / "ImageSets/Main/test.txt", "9\n")
    documents = read(tmp_path)
    assert list(documents) == ["train", "val"]
    assert "test.txt names images without annotations" in found(tmp_path).missing_split("test")
    assert names_of(documents["train"]) == ["2.jpg", "1.jpg"]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}, {"id": 3, "name": "owl"}]
    assert documents["train"]["categories"] == documents["val"]["categories"] == categories
    assert [annotation["bbox"] for annotation in documents["train"]["annotations"]] == [[1, 2, 10, 10]] * 2


def test_two_years_have_splits_with_the_year(tmp_path: Path, put_image: Put, put_text: Put) -> None:
    for year in ("2007", "2012"):
        root = tmp_path / f"VOCdevkit/VOC{year}"
        put_image(root / f"JPEGImages/{year}.jpg")
        put_text(root / f"Annotations/{year}.xml", xml("cat"))
        put_text(root / "ImageSets/Main/train.txt", f"{year}\n")
    assert {name: names_of(document) for name, document in read(tmp_path).items()} == {
        "train2007": ["2007.jpg"],
        "train2012": ["2012.jpg"],
    }


def test_roboflow_keeps_annotations_beside_images(tmp_path: Path, put_image: Put, put_text: Put) -> None:
    for split in ("train", "valid"):
        put_image(tmp_path / split / "a_jpg.rf.1.jpg")
        put_text(tmp_path / split / "a_jpg.rf.1.xml", xml("cat"))
    documents = read(tmp_path)
    assert list(documents) == ["train", "valid"]
    assert names_of(documents["valid"]) == ["a_jpg.rf.1.jpg"]


def test_one_folder_is_the_training_split(tmp_path: Path, put_image: Put, put_text: Put) -> None:
    put_image(tmp_path / "a 1.jpg")
    put_text(tmp_path / "a 1.xml", xml("cat"))
    assert names_of(read(tmp_path)["train"]) == ["a 1.jpg"]


def test_lists_with_blanks_endings_and_folders(tmp_path: Path, put_image: Put, put_text: Put) -> None:
    for stem in ("photo 1", "sub/b", "x.jpg"):
        put_image(tmp_path / f"JPEGImages/{stem}.jpg")
        put_text(tmp_path / f"Annotations/{stem}.xml", xml("cat"))
    put_text(tmp_path / "ImageSets/Main/train.txt", "photo 1.jpg\r\nsub/b\nx.jpg")
    assert names_of(read(tmp_path)["train"]) == ["photo 1.jpg", "sub/b.jpg", "x.jpg.jpg"]


def test_the_image_may_be_named_in_the_file(tmp_path: Path, put_image: Put, put_text: Put) -> None:
    put_image(tmp_path / "JPEGImages/photo.png")
    put_image(tmp_path / "JPEGImages/b.png")
    put_image(tmp_path / "JPEGImages/b.jpg")
    put_text(tmp_path / "Annotations/a.xml", xml("cat", filename="C:\\pictures\\photo.png"))
    put_text(tmp_path / "Annotations/b.xml", xml("cat", filename="b.png"))
    assert names_of(read(tmp_path)["train"]) == ["photo.png", "b.png"]


def test_two_files_may_name_one_image(tmp_path: Path, put_image: Put, put_text: Put) -> None:
    put_image(tmp_path / "JPEGImages/photo.png")
    put_text(tmp_path / "Annotations/a.xml", xml("cat", filename="photo.png"))
    put_text(tmp_path / "Annotations/b.xml", xml("dog", "dog", filename="photo.png"))
    document = read(tmp_path)["train"]
    assert names_of(document) == ["photo.png", "photo.png"]
    assert [annotation["image_id"] for annotation in document["annotations"]] == [1, 2, 2]


def test_lists_with_impossible_names_are_told(tmp_path: Path, put_text: Put) -> None:
    put_text(tmp_path / "Annotations/a.xml", xml("cat"))
    put_text(tmp_path / "ImageSets/Main/train.txt", f"a\n{'x' * 5000}\n")
    with pytest.raises(DataError, match="annotation files are missing"):
        read(tmp_path)


def test_a_size_that_is_not_the_images_is_replaced_and_noted(tmp_path: Path, put_image: Put, put_text: Put) -> None:
    put_image(tmp_path / "JPEGImages/a.jpg", 40, 20)
    put_text(tmp_path / "Annotations/a.xml", xml("cat", size=(80, 20)))
    (image,) = read(tmp_path)["train"]["images"]
    assert (image["width"], image["height"], image["labelled_size_wh"]) == (40, 20, [80, 20])


def test_a_missing_image_keeps_the_size_of_its_file(tmp_path: Path, put_text: Put) -> None:
    put_text(tmp_path / "Annotations/a.xml", xml("cat", size=(80, 20)))
    (image,) = read(tmp_path)["train"]["images"]
    assert (image["file_name"], image["width"]) == ("a.jpg", 80)
    put_text(tmp_path / "Annotations/b.xml", xml("cat", size=(0, 0), filename="b.png"))
    with pytest.raises(DataError, match=r"size is not known[^$]*b\.png"):
        read(tmp_path)


def test_a_list_may_name_only_annotated_images(tmp_path: Path, put_text: Put) -> None:
    put_text(tmp_path / "Annotations/a.xml", xml("cat"))
    put_text(tmp_path / "ImageSets/Main/train.txt", "a\nb\nc\n")
    with pytest.raises(DataError, match="annotation files are missing") as caught:
        read(tmp_path)
    assert "Annotations/b.xml: listed in split train; Annotations/c.xml" in caught.value.problems[0].where


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("label_map.pbtxt", 'item {\n id: 9\n name: "cat"\n}\nitem { name: \'d}"g\' id: 4 }\n'),
        ("classes.txt", 'cat\n\nd}"g\n'),
        ("labelmap.txt", '# label:color\nbackground:0,0,0::\ncat:1,2,3::\nd}"g:4,5,6::\n'),
    ],
)
def test_label_maps_give_the_ids(tmp_path: Path, put_text: Put, name: str, text: str) -> None:
    put_text(tmp_path / "Annotations/a.xml", xml("cat"))
    put_text(tmp_path / name, text)
    expected = {"cat": 9, 'd}"g': 4} if name == "label_map.pbtxt" else {"cat": 1, 'd}"g': 2}
    document = read(tmp_path)["train"]
    assert {record["name"]: record["id"] for record in document["categories"]} == expected
    assert document["annotations"][0]["category_id"] == expected["cat"]
    put_text(tmp_path / "Annotations/b.xml", xml("owl"))
    with pytest.raises(DataError, match="label map does not have: owl"):
        read(tmp_path)


@pytest.mark.parametrize("text", ["", "item { id: 3 }", 'item { name: "x" }'])
def test_a_wrong_label_map_is_told(tmp_path: Path, put_text: Put, text: str) -> None:
    put_text(tmp_path / "Annotations/a.xml", xml("cat"))
    put_text(tmp_path / "label_map.pbtxt", text)
    with pytest.raises(DataError, match="label map") as caught:
        read(tmp_path)
    assert "label_map.pbtxt" in str(caught.value)


def test_no_object_anywhere_needs_a_list_of_classes(tmp_path: Path, put_text: Put) -> None:
    put_text(tmp_path / "Annotations/a.xml", xml())
    with pytest.raises(DataError, match="classes are not known"):
        read(tmp_path)
    put_text(tmp_path / "classes.txt", "cat\n")
    assert read(tmp_path)["train"]["annotations"] == []

"""YOLO folders in all the ways in which they are laid out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped, unused-ignore]
from hypothesis import example, given
from hypothesis import strategies as st

from detronome.data.formats.document import SplitDocument
from detronome.data.formats.read import read_documents
from detronome.data.formats.yolo import YoloFolder, find_yolo, label_path, yolo_yaml
from detronome.errors import DataError

Put = Callable[..., Path]


def found(root: Path) -> YoloFolder:
    folder = find_yolo(root)
    assert folder is not None
    return folder


def read(root: Path) -> dict[str, SplitDocument]:
    folder = found(root)
    return dict(zip(folder.split_names(), read_documents(folder, keep_text=False), strict=True))


def test_an_empty_folder_is_none(tmp_path: Path) -> None:
    assert find_yolo(tmp_path) is None


def test_images_alone_are_none(tmp_path: Path, put_image: Put) -> None:
    put_image(tmp_path / "images/train/a.png")
    assert find_yolo(tmp_path) is None


@pytest.mark.parametrize(
    ("text", "images", "labels"),
    [
        ("train: images/train\nval: images/val", "images/{}", "labels/{}"),
        ("path: .\ntrain: images/train\nval: images/val\ntest:", "images/{}", "labels/{}"),
        ("path: ../datasets/mine\ntrain: images/train\nval: images/val", "images/{}", "labels/{}"),
        ("train: ../train/images\nval: ../val/images\nnc: 2", "{}/images", "{}/labels"),
        ("train: [images/train]\nvalid: ./images/val/", "images/{}", "labels/{}"),
        ("train: train\nval: val", "{}", "{}"),
        ("train: train.txt\nval: [val.txt]", "images/{}", "labels/{}"),
    ],
)
def test_the_ways_to_write_data_yaml(
    tmp_path: Path, put_image: Put, put_text: Put, text: str, images: str, labels: str
) -> None:
    put_text(tmp_path / "data.yaml", f"{text}\nnames: [cat, no]\n")
    for split in ("train", "val"):
        put_image(tmp_path / images.format(split) / "a.png")
        put_text(tmp_path / labels.format(split) / "a.txt", "1 0.5 0.5 0.5 0.5")
        put_image(tmp_path / images.format(split) / "b.png")
        put_text(tmp_path / f"{split}.txt", f"./{images.format(split)}/b.png\n\n{images.format(split)}/a.png\n")
    splits = read(tmp_path)
    assert list(splits) == ["train", "val"]
    for split in splits.values():
        document = split.document
        assert document["categories"] == [{"id": 0, "name": "cat"}, {"id": 1, "name": "no"}]
        assert {image["file_name"] for image in document["images"]} == {"a.png", "b.png"}
        assert split.images_dir == tmp_path / images.format(split.name)
        (annotation,) = document["annotations"]
        assert annotation["bbox"] == [10.0, 5.0, 20.0, 10.0]
        assert (annotation["category_id"], annotation["area"], annotation["iscrowd"]) == (1, 200.0, 0)


@pytest.mark.parametrize(("images", "labels"), [("images/{}", "labels/{}"), ("{}/images", "{}/labels")])
@pytest.mark.parametrize("names", ["classes.txt", "obj.names", None])
def test_without_data_yaml(
    tmp_path: Path, put_image: Put, put_text: Put, images: str, labels: str, names: str | None
) -> None:
    for split in ("train", "valid"):
        put_image(tmp_path / images.format(split) / "a.png")
        put_text(tmp_path / labels.format(split) / "a.txt", "1 0.5 0.5 0.5 0.5")
    if names:
        put_text(tmp_path / names, "cat\ndog\nowl\n")
    splits = read(tmp_path)
    assert list(splits) == ["train", "valid"]
    expected = ["cat", "dog", "owl"] if names else ["class 0", "class 1"]
    assert [record["name"] for record in splits["valid"].document["categories"]] == expected


def test_one_folder_of_images_is_the_training_split(tmp_path: Path, put_image: Put, put_text: Put) -> None:
    put_image(tmp_path / "images/sub/a.png")
    put_text(tmp_path / "labels/sub/a.txt", "0 0.5 0.5 0.5 0.5")
    put_image(tmp_path / "images/b.png")
    put_text(tmp_path / "labels/b.txt")
    put_text(tmp_path / "labels/classes.txt", "cat")
    (split,) = read(tmp_path).values()
    assert split.name == "train"
    assert [image["file_name"] for image in split.document["images"]] == ["b.png", "sub/a.png"]
    assert split.document["categories"] == [{"id": 0, "name": "cat"}]


def test_several_folders_in_one_split(tmp_path: Path, put_image: Put, put_text: Put) -> None:
    put_text(tmp_path / "coco.yaml", "train: [images/a, images/b]\nnames: {0: cat}\n")
    put_image(tmp_path / "images/b/1.png")
    put_image(tmp_path / "images/a/1.png")
    put_text(tmp_path / "labels/a/1.txt")
    (image, other) = read(tmp_path)["train"].document["images"]
    assert [image["file_name"], other["file_name"]] == ["a/1.png", "b/1.png"]
    assert found(tmp_path).read_split("train").images_dir == tmp_path / "images"


def test_a_test_split_that_is_named_and_not_there_is_no_split(tmp_path: Path, put_image: Put, put_text: Put) -> None:
    put_text(tmp_path / "data.yaml", "train: images/train\ntest: images/test\nnames: [cat]")
    put_image(tmp_path / "images/train/a.png")
    folder = found(tmp_path)
    assert folder.split_names() == ["train"]
    assert "data.yaml names images/test" in folder.missing_split("test")
    assert folder.missing_split("other") == ""


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("images/trian", "images/trian for val, which is not there"),
        ("images/empty", "images/empty for val, where there are no images"),
        ("[images/train, images/trian]", "images/trian for val, which is not there"),
        ("!!python/object/apply:os.system ['touch /tmp/x']", "touch /tmp/x for val, which is not there"),
        ("{a: b}", "{'a': 'b'} for val, which is not there"),
    ],
)
def test_a_split_that_is_named_and_not_there_is_told(
    tmp_path: Path, put_image: Put, put_text: Put, value: str, told: str
) -> None:
    put_text(tmp_path / "data.yaml", f"train: images/train\n# val: this one\nval: {value}\nnames: [cat]")
    put_image(tmp_path / "images/train/a.png")
    (tmp_path / "images/empty").mkdir()
    with pytest.raises(DataError) as caught:
        find_yolo(tmp_path)
    (problem,) = caught.value.problems
    assert problem.what == f"data.yaml names {told}"
    assert problem.where == f"{tmp_path}/data.yaml:3: val"
    assert "correct the path of `val:` in data.yaml" in problem.fix


@pytest.mark.parametrize(("images", "labels"), [("images/{}", "labels/{}"), ("{}/images", "{}/labels")])
def test_label_files_without_their_images_are_told(
    tmp_path: Path, put_image: Put, put_text: Put, images: str, labels: str
) -> None:
    for split in ("train", "val", "test"):
        put_text(tmp_path / labels.format(split) / "a.txt")
    assert find_yolo(tmp_path) is None
    put_image(tmp_path / images.format("train") / "a.png")
    with pytest.raises(DataError, match="a split has label files and no images") as caught:
        find_yolo(tmp_path)
    assert [problem.where for problem in caught.value.problems] == [str(tmp_path / labels.format("val"))]


@pytest.mark.parametrize(
    "train",
    [
        r"images\train",
        r"..\images\train",
        "/home/joe/data/images/train",
        r"C:\Users\joe\data\images\train",
        r"lists\train.txt",
        "/home/joe/lists/train.txt",
    ],
)
def test_paths_of_windows_and_of_another_machine(tmp_path: Path, put_image: Put, put_text: Put, train: str) -> None:
    put_text(tmp_path / "data.yaml", f"train: {train}\nnames: [cat]")
    for name in "abc":
        put_image(tmp_path / f"images/train/{name}.png")
    put_text(tmp_path / "labels/train/a.txt", "0 0.5 0.5 0.5 0.5")
    put_text(
        tmp_path / "lists/train.txt", "..\\images\\train\\a.png\n/joe/images/train/b.png\nD:\\x\\images\\train\\c.png"
    )
    (split,) = read(tmp_path).values()
    assert [image["file_name"] for image in split.document["images"]] == ["a.png", "b.png", "c.png"]
    assert len(split.document["annotations"]) == 1


def test_a_label_file_belongs_to_one_image_or_none(tmp_path: Path, put_image: Put, put_text: Put) -> None:
    put_text(tmp_path / "data.yaml", "train: images/train\nnames: [cat]")
    for name in ("a.png", "b.png", "b.webp"):
        put_image(tmp_path / "images/train" / name)
    for name in ("a", "ghost"):
        put_text(tmp_path / f"labels/train/{name}.txt", "0 0.5 0.5 0.5 0.5")
    assert len(read(tmp_path)["train"].document["annotations"]) == 1
    put_text(tmp_path / "labels/train/b.txt")
    with pytest.raises(DataError, match=r"belong to two images[^$]*b\.png and b\.webp"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["data.yaml", "classes.txt"])
def test_names_in_another_encoding_are_told(tmp_path: Path, put_image: Put, put_text: Put, name: str) -> None:
    put_image(tmp_path / "images/train/a.png")
    put_text(tmp_path / "labels/train/a.txt")
    (tmp_path / name).write_bytes("train: images/train\nnames: [café]".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8 text: byte 0xe9") as caught:
        find_yolo(tmp_path)
    assert (caught.value.problems[0].where, caught.value.problems[0].fix) == (
        f"{tmp_path / name}:2",
        "save it as UTF-8",
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("train: [", "not valid YAML"),
        ("a: &a [x, x]\nb: &b [*a, *a]\ntrain: *b\nnames: [cat]", "used again by its alias"),
        ("- a\n- b", "not a YOLO description"),
        ("\x00", "cannot be read"),
        ("train: images/train\nnames: {0: cat, 2: dog}", "there is no 1"),
        ("train: images/train\nnames: cat", "not a list of names"),
        ("train: images/train\nnc: 3\nnames: [cat]", "nc is 3, but names has 1"),
        ("train: images/train\nnames: [cat]\nkpt_shape: [17, 3]", "key points"),
    ],
)
def test_a_wrong_description_is_told(tmp_path: Path, put_text: Put, text: str, told: str) -> None:
    put_text(tmp_path / "data.yaml", text)
    with pytest.raises(DataError, match=r"data\.yaml") as caught:
        find_yolo(tmp_path)
    assert told in str(caught.value)


def test_two_descriptions_are_one_too_many(tmp_path: Path, put_image: Put, put_text: Put) -> None:
    put_image(tmp_path / "x/a.png")
    put_text(tmp_path / "a.yaml", "train: x\nnames: [cat]")
    put_text(tmp_path / "hyperparameters.yaml", "lr: 0.1")
    put_text(tmp_path / "broken.yaml", "[")
    assert found(tmp_path).names == ["cat"]
    put_text(tmp_path / "b.yaml", "train: y\nnames: [dog]")
    with pytest.raises(DataError, match=r"a\.yaml, b\.yaml"):
        find_yolo(tmp_path)


def test_all_splits_problems_are_told_at_once(tmp_path: Path, put_image: Put, put_text: Put) -> None:
    put_text(tmp_path / "data.yaml", "train: images/train\nval: images/val\nnames: [cat]")
    for split in ("train", "val"):
        put_image(tmp_path / f"images/{split}/a.png")
        put_text(tmp_path / f"labels/{split}/a.txt", "7 0.5 0.5 0.1 0.1")
    put_text(tmp_path / "images/val/b.png", "no image")
    with pytest.raises(DataError) as caught:
        read(tmp_path)
    text = str(caught.value)
    assert "labels/train/a.txt:1: class 7, but names has 1 classes" in text
    assert "labels/val/a.txt:1" in text and "images/val/b.png" in text


def test_a_split_without_any_label_file_is_refused_unless_it_is_the_test_split(
    tmp_path: Path, put_image: Put, put_text: Put
) -> None:
    put_text(tmp_path / "data.yaml", "train: images/train\ntest: images/test\nnames: [cat]")
    for name in ("train/a.png", "train/b.png", "test/a.png"):
        put_image(tmp_path / "images" / name)
    with pytest.raises(DataError, match="splits have no label files") as caught:
        read(tmp_path)
    assert caught.value.problems[0].where.startswith("labels/train/a.txt: and none")
    put_text(tmp_path / "labels/train/b.txt")
    assert len(read(tmp_path)["train"].document["images"]) == 2


def test_an_empty_list_is_told(tmp_path: Path, put_text: Put) -> None:
    put_text(tmp_path / "data.yaml", "train: train.txt\nnames: [cat]")
    put_text(tmp_path / "train.txt", "\n")
    with pytest.raises(DataError, match="splits have no images"):
        read(tmp_path)


def test_a_list_that_names_missing_images_is_told_with_lines(tmp_path: Path, put_image: Put, put_text: Put) -> None:
    put_text(tmp_path / "data.yaml", "train: train.txt\nnames: [cat]")
    put_text(tmp_path / "train.txt", f"images/a.png\nimages/b.png\n{'x' * 5000}\n")
    put_image(tmp_path / "images/a.png")
    with pytest.raises(DataError, match=r"train\.txt:2: images/b\.png"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("image", "labels"),
    [
        ("images/train/a.jpg", "labels/train/a.txt"),
        ("train/images/a.b.jpg", "train/labels/a.b.txt"),
        ("images/x/images/a.jpg", "images/x/labels/a.txt"),
        ("train/a.jpg", "train/a.txt"),
        ("images", "images.txt"),
    ],
)
def test_where_labels_lie(image: str, labels: str) -> None:
    assert label_path(Path(image)) == Path(labels)


@example(names=["\x85", "\u2028", "\ufeff", "é", "no", "1", " a: b #"])
@given(names=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=5))
def test_any_names_are_read_as_they_were_written(names: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("yaml")
    text = yolo_yaml({"test": "images/test"}, names)
    assert yaml.safe_load(text)["names"] == dict(enumerate(names))
    (folder / "data.yaml").write_text(text, newline="")
    assert found(folder).names == names

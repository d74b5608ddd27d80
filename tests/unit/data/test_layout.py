"""Every layout is recognised and its splits found under the names that users say; what is missing is named with what
is there."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from detronome.data.layout import available_splits, find_split, recognise
from detronome.data.store.index import AnnotationIndex
from detronome.errors import DataError

Make = Callable[[Path], object]


def put(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def put_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("1", (40, 20)).save(path, "PNG")


def put_coco(path: Path, names: tuple[str, ...] = ("a.jpg", "b.jpg")) -> Path:
    images = [{"id": i, "file_name": name} for i, name in enumerate(names)]
    return put(path, json.dumps({"annotations": [], "images": images}))


def make_coco(root: Path) -> None:
    for split in ("train", "val"):
        put_coco(root / f"annotations/instances_{split}.json")
        put(root / f"images/{split}/a.jpg")


def make_roboflow(root: Path) -> None:
    for split in ("train", "valid"):
        put_coco(root / split / "_annotations.coco.json")
        put(root / split / "a.jpg")


def make_yolo(root: Path) -> None:
    put(root / "data.yaml", "train: images/train\nval: images/val\ntest: images/test\nnames: [cat, dog]")
    for split in ("train", "val"):
        put_image(root / f"images/{split}/a.png")
        put(root / f"labels/{split}/a.txt", "1 0.5 0.5 0.5 0.5\n")


def make_voc(root: Path) -> None:
    box = "<bndbox><xmin>10</xmin><ymin>5</ymin><xmax>30</xmax><ymax>15</ymax></bndbox>"
    for split in ("train", "val"):
        put_image(root / f"JPEGImages/{split}.png")
        put(root / f"Annotations/{split}.xml", f"<annotation><object><name>dog</name>{box}</object></annotation>")
        put(root / f"ImageSets/Main/{split}.txt", f"{split}\n")


MAKERS = {"coco": make_coco, "roboflow": make_roboflow, "yolo": make_yolo, "voc": make_voc}
LABELS = ("yolo", "voc")


def test_an_empty_folder_says_what_was_looked_for(tmp_path: Path) -> None:
    assert available_splits(tmp_path) == []
    assert recognise(tmp_path) is None
    with pytest.raises(DataError, match="holds no COCO annotations, and no YOLO or Pascal VOC") as caught:
        find_split(tmp_path, "train")
    fix = caught.value.problems[0].fix
    for place in ("annotations/instances_train.json", "train/_annotations.coco.json", "data.yaml", "Annotations/*.xml"):
        assert place in fix


@pytest.mark.parametrize("layout", MAKERS)
@pytest.mark.parametrize("asked", ["val", "valid"])
def test_every_layout_is_recognised(tmp_path: Path, layout: str, asked: str) -> None:
    MAKERS[layout](tmp_path)
    assert recognise(tmp_path) == layout
    assert available_splits(tmp_path) == (["train", "valid"] if layout == "roboflow" else ["train", "val"])
    found = find_split(tmp_path, asked)
    assert found.name in ("val", "valid")
    (name, *_) = json.loads(found.annotation_file.read_text())["images"]
    assert (found.images_dir / name["file_name"]).is_file()


@pytest.mark.parametrize("layout", LABELS)
def test_coco_annotations_count_before_others(tmp_path: Path, layout: str) -> None:
    MAKERS[layout](tmp_path)
    make_coco(tmp_path)
    assert recognise(tmp_path) == "coco"
    assert find_split(tmp_path, "train").annotation_file == tmp_path / "annotations/instances_train.json"


@pytest.mark.parametrize("layout", LABELS)
def test_label_files_are_compiled_into_the_cache_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    monkeypatch.setenv("DETRONOME_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "data"
    MAKERS[layout](data)
    before = sorted((path, path.stat().st_mtime_ns) for path in data.rglob("*"))
    found = find_split(data, "train")
    assert found.annotation_file.is_relative_to(tmp_path / "cache/converted")
    index = AnnotationIndex.open(found.annotation_file)
    boxes_xywh, labels, area, iscrowd = index.annotations(0)
    assert boxes_xywh.tolist() == [[10, 5, 20, 10]]
    assert (area.tolist(), iscrowd.tolist()) == ([200], [False])
    assert [index.categories.names[label] for label in labels] == ["dog"]
    assert index.image(0).size_hw == (20, 40)
    assert sorted((path, path.stat().st_mtime_ns) for path in data.rglob("*")) == before


@pytest.mark.parametrize("layout", LABELS)
def test_a_folder_is_compiled_once_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    MAKERS[layout](tmp_path)
    first = find_split(tmp_path, "train")
    written = first.annotation_file.stat().st_mtime_ns
    assert find_split(tmp_path, "train") == first
    assert find_split(tmp_path, "val").annotation_file.parent == first.annotation_file.parent
    assert first.annotation_file.stat().st_mtime_ns == written
    text = "0 0.5 0.5 0.1 0.1\n" if layout == "yolo" else "<annotation><object/></annotation>"
    put(next(tmp_path.rglob("train.xml"), tmp_path / "labels/train/a.txt"), text)
    if layout == "yolo":
        assert find_split(tmp_path, "train").annotation_file != first.annotation_file
    else:
        with pytest.raises(DataError, match="objects have no name"):
            find_split(tmp_path, "val")


def test_a_damaged_cache_is_made_again(tmp_path: Path) -> None:
    make_yolo(tmp_path)
    first = find_split(tmp_path, "train")
    first.annotation_file.unlink()
    assert find_split(tmp_path, "train") == first
    (first.annotation_file.parent / "meta.json").write_text("[")
    assert find_split(tmp_path, "train") == first
    assert first.annotation_file.is_file()


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_yolo(tmp_path / "data")
    put(tmp_path / "file")
    monkeypatch.setenv("DETRONOME_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "file"))
    with pytest.raises(DataError, match="cannot be written anywhere") as caught:
        find_split(tmp_path / "data", "train")
    assert "DETRONOME_CACHE" in caught.value.problems[0].fix


@pytest.mark.parametrize("year", ["2014", "2017"])
def test_the_official_names_carry_a_year(tmp_path: Path, year: str) -> None:
    put_coco(tmp_path / f"annotations/instances_train{year}.json")
    put_coco(tmp_path / "annotations/instances_train2014_100.json")
    put(tmp_path / f"train{year}/a.jpg")
    found = find_split(tmp_path, "train")
    assert (found.name, found.images_dir) == (f"train{year}", tmp_path / f"train{year}")
    assert find_split(tmp_path, f"train{year}") == found


def test_of_two_years_the_later_is_meant(tmp_path: Path) -> None:
    for year in ("2014", "2017"):
        put_coco(tmp_path / f"annotations/instances_val{year}.json")
        put(tmp_path / f"val{year}/a.jpg")
    assert find_split(tmp_path, "val").name == "val2017"


def test_a_missing_folder_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "dataset").mkdir()
    with pytest.raises(DataError, match="does not exist") as caught:
        find_split(tmp_path / "datasets/coco", "train")
    assert "did you mean 'dataset'?" in caught.value.problems[0].fix
    with pytest.raises(DataError, match="does not exist"):
        available_splits(tmp_path / "xyz")


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the data folder is a file"):
        find_split(put(tmp_path / "x.json"), "train")
    with pytest.raises(DataError, match="the data folder is a file") as caught:
        find_split(put(tmp_path / "data.yaml"), "train")
    assert str(tmp_path) in caught.value.problems[0].fix


@pytest.mark.parametrize("layout", ["coco", "yolo", "voc"])
def test_a_missing_split_lists_those_there(tmp_path: Path, layout: str) -> None:
    MAKERS[layout](tmp_path)
    with pytest.raises(DataError, match="no split 'test'; it has train, val") as caught:
        find_split(tmp_path, "test")
    if layout == "yolo":
        assert "data.yaml names images/test for it" in caught.value.problems[0].fix


def test_a_description_without_images_is_told(tmp_path: Path) -> None:
    put(tmp_path / "data.yaml", "train: ../elsewhere/images\nnames: [cat]")
    for look in (recognise, available_splits, lambda folder: find_split(folder, "train")):
        with pytest.raises(DataError, match=r"data\.yaml names \.\./elsewhere/images for train, which is not there"):
            look(tmp_path)


def refuse(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let the system refuse to list a folder, which it never does to an administrator."""
    scandir = os.scandir

    def denied(path: str | Path = ".") -> object:
        if Path(path) == folder:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)


@pytest.mark.parametrize(
    ("layout", "place"),
    [
        ("coco", ""),
        ("coco", "annotations"),
        ("coco", "images"),
        ("roboflow", "train"),
        ("yolo", "images"),
        ("yolo", "images/train"),
        ("yolo", "labels"),
        ("voc", "Annotations"),
        ("voc", "JPEGImages"),
        ("voc", "ImageSets"),
        ("voc", "ImageSets/Main"),
    ],
)
def test_a_folder_without_permission_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, place: str
) -> None:
    MAKERS[layout](tmp_path)
    refuse(monkeypatch, tmp_path / place)
    for look in (available_splits, lambda folder: find_split(folder, "train")):
        with pytest.raises(DataError) as caught:
            look(tmp_path)
        (problem,) = caught.value.problems
        assert (problem.what, problem.where) == ("cannot be read: Permission denied", str(tmp_path / place))


def test_label_files_without_permission_are_named_by_their_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_yolo(tmp_path)
    refuse(monkeypatch, tmp_path / "labels/val")
    with pytest.raises(DataError, match=r"^cannot be read: Permission denied") as caught:
        find_split(tmp_path, "train")
    assert [problem.where for problem in caught.value.problems] == [str(tmp_path / "labels/val")]


def test_a_description_without_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_yolo(tmp_path)
    read_text = Path.read_text

    def denied(path: Path, *args: str, **kwargs: str) -> str:
        if path.name == "data.yaml":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return read_text(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", denied)
    with pytest.raises(DataError, match=r"^cannot be read: Permission denied") as caught:
        available_splits(tmp_path)
    assert caught.value.problems[0].where == str(tmp_path / "data.yaml")


@pytest.mark.parametrize("layout", LABELS)
def test_an_unreadable_image_does_not_end_a_run(tmp_path: Path, layout: str) -> None:
    MAKERS[layout](tmp_path)
    folder = "images/train" if layout == "yolo" else "JPEGImages"
    for name in ("b", "c"):
        put(tmp_path / folder / f"{name}.png")
        size = "<size><width>40</width><height>20</height></size>" if name == "c" else ""
        put(tmp_path / f"Annotations/{name}.xml", f"<annotation>{size}</annotation>")
    put(tmp_path / "ImageSets/Main/train.txt", "train\nb\nc\n")
    for _ in range(2):  # compiled, and from the cache
        files = find_split(tmp_path, "train")
        assert files.left_out == (("b.png", "c.png") if layout == "yolo" else ("b.png",))
        names = [image["file_name"] for image in json.loads(files.annotation_file.read_bytes())["images"]]
        assert names == (["a.png"] if layout == "yolo" else ["train.png", "c.png"])
        assert find_split(tmp_path, "val").left_out == ()


@pytest.mark.parametrize("layout", LABELS)
def test_a_split_of_unreadable_images_alone_is_refused(tmp_path: Path, layout: str) -> None:
    MAKERS[layout](tmp_path)
    put(next(tmp_path.rglob("train.png"), tmp_path / "images/train/a.png"))
    with pytest.raises(DataError, match="image files cannot be read"):
        find_split(tmp_path, "val")


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (["annotations/train.json"], "annotations/train.json looks like COCO"),
        (["x/y/notes.txt"], "it has text files such as x/y/notes.txt"),
        (["a.json"], "it has JSON files such as a.json"),
        (["manifest.json"], "it has JSON files such as manifest.json"),
        (["photos/a.jpg"], "it has images such as photos/a.jpg and no annotations"),
    ],
)
def test_the_nearest_thing_is_named(tmp_path: Path, files: list[str], told: str) -> None:
    for name in files:
        text = {"train.json": '{"images": [], "annotations": []}', "manifest.json": '{"images": []}'}
        put(tmp_path / "data" / name, text.get(Path(name).name, ""))
    with pytest.raises(DataError) as caught:
        find_split(tmp_path / "data", "train")
    assert told in caught.value.problems[0].what


@pytest.mark.parametrize("layout", MAKERS)
def test_a_data_set_just_inside_or_just_outside_is_named(tmp_path: Path, layout: str) -> None:
    MAKERS[layout](tmp_path / "outer/data")
    part = {"coco": "images/val", "roboflow": "train", "yolo": "images/train", "voc": "JPEGImages"}[layout]
    for wrong in (tmp_path, tmp_path / "outer/data" / part):
        with pytest.raises(DataError) as caught:
            find_split(wrong, "train")
        # Of a single VOC folder the one around it may be given too, as of VOCdevkit/VOC2007.
        named = tmp_path / ("outer" if layout == "voc" and wrong == tmp_path else "outer/data")
        assert f"there is one ({layout}) in {named}: give that folder" in caught.value.problems[0].what


def test_of_other_data_sets_only_those_inside_are_named(tmp_path: Path) -> None:
    make_coco(tmp_path)
    for name in ("a", "b"):
        make_yolo(tmp_path / "models/sets" / name)
    (tmp_path / "models/empty").mkdir()
    with pytest.raises(DataError) as caught:
        find_split(tmp_path / "models/empty", "train")
    assert "there" not in caught.value.problems[0].what
    with pytest.raises(DataError) as caught:
        find_split(tmp_path / "models", "train")
    inside = tmp_path / "models/sets"
    assert f"there are several inside, such as {inside}/a (yolo), {inside}/b (yolo)" in caught.value.problems[0].what
    with pytest.raises(DataError) as caught:
        find_split("/", "train")
    assert caught.value.problems[0].what.endswith("no YOLO or Pascal VOC data set")


def test_an_address_without_shards_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for look in (available_splits, recognise, lambda data: find_split(data, "train")):
        with pytest.raises(DataError, match="no sharded data set at this address") as caught:
            look("memory://nowhere/data")
        assert caught.value.problems[0].where == "memory://nowhere/data"

    def uninstalled(url: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("detronome.data.store.shards.cloud._resolve", uninstalled)
    for address, package in (("s3://a/b", "s3fs"), ("simplecache::gs://a/b", "gcsfs")):
        with pytest.raises(DataError, match="cannot be listed") as caught:
            available_splits(address)
        assert caught.value.problems[0].fix == f"pip install 'detronome[cloud]' {package}"


FILES = {
    "yolo": ["data.yaml", "labels/train/a.txt", "images/train/a.png", "detronome.json"],
    "voc": ["Annotations/train.xml", "ImageSets/Main/train.txt", "label_map.pbtxt", "classes.txt", "detronome.json"],
}
YAML = ["train: ", "names: ", "[", "]", "{0: a}", "\n", "- ", "&a *a", "../"]
LINES = ["0 ", "0.5 ", "1e999 ", "nan ", "x" * 300, "\0", "\ud7ff", "é", "9" * 400, "item {", "id: 1", "name: 'a'", "}"]
XML = ["<annotation>", "<object>", "<name>", "</name>", "<bndbox>", "<xmin>9</xmin>", "&amp;"]
JSON = ['{"detronome_sidecar": 1, "layout": "yolo", "splits": {"train": ']
PIECES = st.sampled_from([*YAML, *LINES, *XML, *JSON])
CONTENTS = st.one_of(st.binary(max_size=40), st.lists(PIECES, max_size=12).map(lambda parts: "".join(parts).encode()))


@pytest.mark.parametrize(("layout", "name"), [(layout, name) for layout in FILES for name in FILES[layout]])
@settings(max_examples=30)
@given(content=CONTENTS)
@example(content=b"")
def test_no_content_of_a_file_ends_in_anything_but_an_explanation(
    tmp_path_factory: pytest.TempPathFactory, layout: str, name: str, content: bytes
) -> None:
    root = tmp_path_factory.mktemp("data")
    MAKERS[layout](root)
    (root / name).write_bytes(content)
    for split in ("train", "val"):
        try:
            AnnotationIndex.open(find_split(root, split).annotation_file)
        except DataError as error:
            assert error.problems[0].where


def test_real_data(shared_data: Path) -> None:
    for name, splits in (("bccd", ["test", "train", "val"]), ("coco2017_sample", ["train", "val"])):
        assert available_splits(shared_data / name) == splits
        assert find_split(shared_data / name, "train").images_dir == shared_data / name / "images"


def test_a_split_that_is_nearly_there_is_named(blocks: Path) -> None:
    with pytest.raises(DataError, match="has no split 'trian'") as caught:
        find_split(blocks, "trian")
    assert caught.value.problems[0].fix.startswith("did you mean 'train'?")

"""Conversions lose nothing there and back, say what only the sidecar holds, and leave no half of a folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from detronome.data.formats import convert as module
from detronome.data.formats.convert import TargetLayout, convert
from detronome.data.layout import available_splits, find_split, recognise
from detronome.data.split import open_split
from detronome.data.store.decode import decode_image
from detronome.data.store.index import AnnotationIndex
from detronome.errors import ConfigError, DataError

Put = Callable[..., Path]
Record = dict[str, Any]
LABELS: tuple[TargetLayout, ...] = ("yolo", "voc")
ALL: tuple[TargetLayout, ...] = ("coco", "roboflow", *LABELS)


def write_coco(root: Path, documents: dict[str, Record], put_image: Put) -> Path:
    (root / "annotations").mkdir(parents=True)
    for split, document in documents.items():
        (root / f"annotations/instances_{split}.json").write_text(json.dumps(document))
        for image in document["images"]:
            put_image(root / "images" / split / image["file_name"], image["width"], image["height"])
    return root


def load(root: Path, split: str) -> Record:
    record: Record = json.loads(find_split(root, split).annotation_file.read_bytes())
    return record


def label_files(root: Path) -> dict[str, bytes]:
    found = [*root.rglob("labels/**/*.txt"), *root.rglob("Annotations/**/*.xml")]
    return {str(path.relative_to(root)): path.read_bytes() for path in found}


def small(file_name: str = "a.png", **changes: Any) -> Record:
    document: Record = {
        "images": [{"id": 5, "file_name": file_name, "width": 40, "height": 20}],
        "annotations": [{"id": 2, "image_id": 5, "category_id": 7, "bbox": [1, 2.5, 3, 4], "area": 9, "iscrowd": 0}],
        "categories": [{"id": 7, "name": "owl"}, {"id": 3, "name": "cat"}],
    }
    return {**document, **changes}


# Documents with every liberty that COCO allows.

PIXELS = st.one_of(st.integers(-50, 150), st.floats(-50, 150), st.sampled_from([1e-300, -3.3e7, 0.1 + 0.2]))
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.text(max_size=5), inner, max_size=2)),
    max_leaves=4,
)
EXTRA = st.dictionaries(
    st.sampled_from(["x", "pose", "difficult", "truncated", "occluded", "yolo_labels", "voc_xml"]), JSON
)
NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=6).filter(str.strip)


@st.composite
def documents(draw: st.DrawFn) -> Record:
    category_ids = draw(st.lists(st.integers(-5, 100), min_size=1, max_size=4, unique=True))
    image_ids = draw(st.lists(st.integers(-5, 10**12), min_size=1, max_size=3, unique=True))
    annotations = [
        {
            **draw(EXTRA),
            **draw(
                st.fixed_dictionaries({}, optional={"id": st.integers(0, 99), "area": PIXELS, "segmentation": JSON})
            ),
            "image_id": draw(st.sampled_from(image_ids)),
            "category_id": draw(st.sampled_from(category_ids)),
            "bbox": draw(st.lists(PIXELS, min_size=4, max_size=4)),
            "iscrowd": draw(st.sampled_from([0, 1])),
        }
        for _ in range(draw(st.integers(0, 5)))
    ]
    return {
        **draw(st.dictionaries(st.sampled_from(["info", "licenses"]), JSON)),
        "images": [
            {
                **draw(EXTRA),
                "id": image_id,
                "file_name": f"{draw(st.sampled_from(['', 'sub/', 'images/', 'é x/']))}{i}.png",
                "width": draw(st.integers(1, 60)),
                "height": draw(st.integers(1, 60)),
            }
            for i, image_id in enumerate(image_ids)
        ],
        "annotations": annotations,
        "categories": [{**draw(EXTRA), "id": i, "name": draw(NAMES)} for i in category_ids],
    }


@pytest.mark.parametrize("layout", ["roboflow", *LABELS])
@settings(max_examples=15)
@given(train=documents(), data=st.data())
def test_coco_there_and_back_gives_every_field(
    layout: TargetLayout,
    train: Record,
    data: st.DataObject,
    put_image: Put,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    val = {**data.draw(documents()), "categories": train["categories"]}
    ids = [category["id"] for category in train["categories"]]
    val["annotations"] = [{**record, "category_id": ids[0]} for record in val["annotations"]]
    root = tmp_path_factory.mktemp("round")
    write_coco(root / "data", {"train2017": train, "val": val}, put_image)
    convert(root / "data", root / "there", to=layout)
    convert(root / "there", root / "back", to="coco")
    for split, document in (("train2017", train), ("val", val)):
        assert json.dumps(load(root / "back", split)) == json.dumps(document)


NUMBERS = st.one_of(
    st.floats(0, 1).map(repr), st.floats(0, 1).map(lambda value: f"{value:.4g}"), st.sampled_from(["0.50", "1", "1e-3"])
)
LINES = st.one_of(
    st.lists(NUMBERS, min_size=4, max_size=4), st.lists(NUMBERS, min_size=3, max_size=5).map(lambda half: half * 2)
)


@settings(max_examples=20)
@given(
    files=st.lists(st.lists(st.tuples(st.integers(0, 2), LINES), max_size=3), min_size=1, max_size=3), data=st.data()
)
def test_yolo_there_and_back_gives_the_same_bytes(
    files: list[list[tuple[int, list[str]]]],
    data: st.DataObject,
    put_image: Put,
    put_text: Put,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    root = tmp_path_factory.mktemp("round")
    for i, objects in enumerate(files):
        put_image(root / f"data/images/train/{i}.png", *data.draw(st.tuples(st.integers(1, 60), st.integers(1, 60))))
        text = "".join(f"{label} {' '.join(numbers)}\n" for label, numbers in objects)
        put_text(root / f"data/labels/train/{i}.txt", text)
    put_text(root / "data/data.yaml", "train: images/train\nnames: [a, b, c]\n")
    for layout in ("coco", "voc"):
        convert(root / "data", root / layout, to=layout)
        convert(root / layout, root / f"{layout}-back", to="yolo")
        assert label_files(root / f"{layout}-back") == label_files(root / "data")


VOC_FILES = [
    "<annotation/>",
    "<annotation>\n  <size><width>40</width><height>20</height></size>\n"
    "  <object><name>cat</name><part>tail</part><bndbox><xmin>1.50</xmin><ymin>2</ymin><xmax>30</xmax><ymax>9</ymax>"
    "</bndbox><difficult>1</difficult><pose>Left</pose></object><!-- checked -->\r\n</annotation>",
    '<?xml version="1.0"?><annotation verified="yes"><object><name> dog </name><bndbox><ymax>9</ymax><xmin>1</xmin>'
    "<ymin>2</ymin><xmax>30</xmax></bndbox></object></annotation>\n\n",
]


@pytest.mark.parametrize("one_based", [False, True])
@pytest.mark.parametrize("layout", ["coco", "roboflow", "yolo"])
def test_voc_there_and_back_gives_the_same_bytes(
    layout: TargetLayout, one_based: bool, put_image: Put, put_text: Put, tmp_path: Path
) -> None:
    for i, text in enumerate(VOC_FILES):
        put_image(tmp_path / f"data/JPEGImages/{i}.jpg")
        put_text(tmp_path / f"data/Annotations/{i}.xml", text)
    convert(tmp_path / "data", tmp_path / "there", to=layout, voc_one_based=one_based)
    convert(tmp_path / "there", tmp_path / "back", to="voc", voc_one_based=one_based)
    assert label_files(tmp_path / "back") == label_files(tmp_path / "data")
    record = load(tmp_path / "there", "train")["annotations"][0]
    assert record["bbox"] == pytest.approx([0.5, 1, 29.5, 8] if one_based else [1.5, 2, 28.5, 7])
    if layout != "yolo":
        assert (record["difficult"], record["pose"], record["iscrowd"]) == (1, "Left", 0)


def test_an_edited_document_keeps_what_was_not_edited(put_image: Put, put_text: Put, tmp_path: Path) -> None:
    put_image(tmp_path / "data/images/train/a.png")
    put_text(tmp_path / "data/labels/train/a.txt", "0 0.50 .5 0.5 0.5\n1 .25 .5 .1 .1\n0 0 0 1 0 1.0 1\n")
    put_text(tmp_path / "data/data.yaml", "train: images/train\nnames: [a, b]")
    convert(tmp_path / "data", tmp_path / "coco", to="coco")
    file = tmp_path / "coco/annotations/instances_train.json"
    document = json.loads(file.read_text())
    document["annotations"][0]["category_id"] = 1
    document["annotations"][1]["bbox"] = [0, 0, 20, 10]
    file.write_text(json.dumps(document))
    convert(tmp_path / "coco", tmp_path / "back", to="yolo")
    lines = "1 0.50 .5 0.5 0.5\n1 0.25 0.25 0.5 0.5\n0 0 0 1 0 1.0 1\n"
    assert label_files(tmp_path / "back") == {"labels/train/a.txt": lines.encode()}


@pytest.mark.parametrize("sidecar", [True, False])
@pytest.mark.parametrize("layout", LABELS)
@pytest.mark.parametrize("name", ["bccd", "coco2017_sample"])
def test_real_data(shared_data: Path, tmp_path: Path, name: str, layout: TargetLayout, sidecar: bool) -> None:
    data = shared_data / name
    result = convert(data, tmp_path / "there", to=layout, sidecar=sidecar)
    assert result.has_sidecar == sidecar
    assert (tmp_path / "there/detronome.json").exists() == sidecar
    assert recognise(tmp_path / "there") == layout
    convert(tmp_path / "there", tmp_path / "back", to="coco")
    for split in available_splits(data):
        ours = AnnotationIndex.open(find_split(data, split).annotation_file)
        theirs = AnnotationIndex.open(find_split(tmp_path / "there", split).annotation_file)
        assert ours.categories.names == theirs.categories.names
        order = {theirs.image(i).file_name: i for i in range(len(theirs))}
        assert len(order) == len(ours)
        for i in range(len(ours)):
            boxes, labels, *_ = ours.annotations(i)
            read_boxes, read_labels, *_ = theirs.annotations(order[ours.image(i).file_name])
            np.testing.assert_allclose(read_boxes, boxes, rtol=0, atol=1e-6)
            np.testing.assert_array_equal(read_labels, labels)
        if sidecar:
            assert load(tmp_path / "back", split) == load(data, split)


def test_what_the_label_files_leave_out_is_counted(shared_data: Path, tmp_path: Path) -> None:
    result = convert(shared_data / "coco2017_sample", tmp_path / "voc", to="voc", images="none", sidecar=False)
    assert (result.unsaid["crowd regions"], result.unsaid["masks"]) == (9, 804)
    assert "category ids" not in result.unsaid  # the label map says them
    assert [(part.num_images, part.num_annotations) for part in result.splits] == [(61, 613), (24, 191)]
    assert convert(shared_data / "bccd", tmp_path / "coco", to="coco").unsaid == {}


def test_a_yolo_folder_is_opened_like_any_other(shared_data: Path, tmp_path: Path) -> None:
    convert(shared_data / "bccd", tmp_path / "yolo", to="yolo", sidecar=False)
    split = open_split(tmp_path / "yolo", "val")
    assert (len(split.index), split.index.num_objects) == (87, 1137)
    assert split.index.categories.ids == (0, 1, 2)
    assert split.source.read(0).startswith(b"\xff\xd8")


@pytest.mark.parametrize("is_square", [False, True])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_stay_on_their_object_whatever_way_a_photo_is_stored(
    tmp_path: Path, orientation: int, is_square: bool
) -> None:
    height, width = (48, 48) if is_square else (32, 48)
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[4:12, 8:32] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "data/images").mkdir(parents=True)
    (tmp_path / "data/annotations").mkdir()
    Image.fromarray(pixels).save(tmp_path / "data/images/a.png", exif=exif)
    document = small(images=[{"id": 5, "file_name": "a.png", "width": width, "height": height}])
    document["annotations"][0]["bbox"] = [8, 4, 24, 8]
    (tmp_path / "data/annotations/instances_train.json").write_text(json.dumps(document))
    convert(tmp_path / "data", tmp_path / "yolo", to="yolo", images="copy", sidecar=False)
    convert(tmp_path / "data", tmp_path / "kept", to="yolo", images="copy")
    assert load(tmp_path / "kept", "train") == document

    upright = decode_image((tmp_path / "data/images/a.png").read_bytes(), "a")
    _, cx, cy, w, h = map(float, label_files(tmp_path / "yolo")["labels/train/a.txt"].split())
    assert upright[int(cy * upright.shape[0]), int(cx * upright.shape[1])].min() == 255
    assert w * h * height * width == pytest.approx(24 * 8)
    split = open_split(tmp_path / "yolo", "train")
    image = split.index.image(0)
    decoded = decode_image(split.source.read(0), "a", image.size_hw)
    x, y, w, h = np.rint(split.index.annotations(0)[0][0]).astype(int)
    assert decoded[y : y + h, x : x + w].min() == 255
    assert (decoded == 255).sum() == 3 * w * h


@pytest.mark.parametrize("layout", ALL)
@pytest.mark.parametrize("how", ["symlink", "copy", "hardlink", "none"])
def test_how_images_get_there(tmp_path: Path, put_image: Put, layout: TargetLayout, how: Any) -> None:
    data = write_coco(tmp_path / "data", {"val": small("sub/a.png")}, put_image)
    before = sorted((path, path.stat().st_mtime_ns) for path in data.rglob("*"))
    result = convert(data, tmp_path / "deep/out", to=layout, images=how)
    found = list((tmp_path / "deep/out").rglob("a.png"))
    assert [path.is_symlink() for path in found] == ([] if how == "none" else [how == "symlink"])
    if how == "hardlink":
        assert found[0].stat().st_nlink == 2
    if how != "none":
        (tmp_path / "deep").rename(tmp_path / "moved")
        assert len(open_split(tmp_path / "moved/out", "val").index) == 1
    assert result.splits[0].written_as == ("valid" if layout == "roboflow" else "val")
    assert sorted((path, path.stat().st_mtime_ns) for path in data.rglob("*")) == before


def test_official_names_become_what_yolo_tools_look_for(tmp_path: Path, put_image: Put) -> None:
    data = write_coco(tmp_path / "data", {"train2017": small(), "val2017": small()}, put_image)
    convert(data, tmp_path / "yolo", to="yolo")
    assert available_splits(tmp_path / "yolo") == ["train", "val"]
    assert (tmp_path / "yolo/labels/val2017/a.txt").is_file()
    convert(tmp_path / "yolo", tmp_path / "roboflow", to="roboflow")
    assert available_splits(tmp_path / "roboflow") == ["train2017", "val2017"]


def test_roboflow_and_coco_have_their_own_word_for_val(tmp_path: Path, put_image: Put) -> None:
    data = write_coco(tmp_path / "data", {"val": small(), "train": small()}, put_image)
    convert(data, tmp_path / "roboflow", to="roboflow", splits=["val"])
    assert available_splits(tmp_path / "roboflow") == ["valid"]
    convert(tmp_path / "roboflow", tmp_path / "coco", to="coco", splits=["val"])
    assert available_splits(tmp_path / "coco") == ["val"]


def test_voc_keeps_images_of_one_name_in_two_splits_apart(tmp_path: Path, put_image: Put) -> None:
    data = write_coco(tmp_path / "data", {"train": small(), "val": small("a.jpg")}, put_image)
    convert(data, tmp_path / "voc", to="voc")
    assert sorted(label_files(tmp_path / "voc")) == ["Annotations/train/a.xml", "Annotations/val/a.xml"]
    convert(tmp_path / "voc", tmp_path / "back", to="coco")
    assert load(tmp_path / "back", "val") == small("a.jpg")


def refused(data: Path, out: Path, **options: Any) -> str:
    with pytest.raises((DataError, ConfigError)) as caught:
        convert(data, out, **options)
    assert not out.exists() or out.is_file() or list(out.iterdir()) == [out / "mine"]
    assert not list(out.parent.glob(f".{out.name}*")) if out.parent.exists() else True
    return str(caught.value)


@pytest.mark.parametrize("layout", ALL)
@pytest.mark.parametrize("name", ["../a.png", "/a.png", "x//a.png", "./a.png"])
def test_file_names_never_lead_outside(tmp_path: Path, put_image: Put, layout: TargetLayout, name: str) -> None:
    data = write_coco(tmp_path / "data", {"train": small()}, put_image)
    file = data / "annotations/instances_train.json"
    file.write_text(json.dumps(small(name)))
    assert "lead outside" in refused(data, tmp_path / "out", to=layout, images="none")


@pytest.mark.parametrize("layout", LABELS)
@pytest.mark.parametrize(
    ("names", "told"),
    [(["a.png", "a.jpg"], "share a label file"), (["a.png", "a.png"], "another image"), (["a", "b"], "recognised as")],
)
def test_images_that_label_files_cannot_tell_apart(
    tmp_path: Path, put_image: Put, layout: TargetLayout, names: list[str], told: str
) -> None:
    images = [{"id": i, "file_name": name, "width": 4, "height": 4} for i, name in enumerate(names)]
    data = write_coco(tmp_path / "data", {"train": small(images=images, annotations=[])}, put_image)
    assert told in refused(data, tmp_path / "out", to=layout)


def test_what_is_refused(tmp_path: Path, put_image: Put, put_text: Put) -> None:
    data = write_coco(tmp_path / "data", {"train": small()}, put_image)
    out = tmp_path / "out"
    assert "neither layout is VOC" in refused(data, out, to="yolo", voc_one_based=True)
    assert "no split 'tset'" in refused(data, out, to="yolo", splits=["tset"])
    assert "inside the data folder" in refused(data, data / "yolo", to="yolo")
    put_text(tmp_path / "file/mine", "x")
    assert "not an empty folder" in refused(data, tmp_path / "file", to="yolo")
    assert "not an empty folder" in refused(data, tmp_path / "file/mine", to="yolo")
    (data / "images/train/a.png").unlink()
    assert "1 image files are missing" in refused(data, out, to="yolo")
    put_text(data / "annotations/instances_val.json", '{"images": []}')
    assert "no list 'annotations'" in refused(data, out, to="yolo")
    (tmp_path / "empty").mkdir()
    assert "holds no COCO annotations" in refused(tmp_path / "empty", out, to="yolo")


def test_splits_that_disagree_about_a_category_are_refused(tmp_path: Path, put_image: Put) -> None:
    other = small(categories=[{"id": 7, "name": "dog"}])
    data = write_coco(tmp_path / "data", {"train": small(), "val": other}, put_image)
    for layout in LABELS:
        assert "id 7 is 'owl' and 'dog'" in refused(data, tmp_path / "out", to=layout)
    convert(data, tmp_path / "out", to="yolo", splits=["val"])


def test_names_that_xml_cannot_hold_are_refused(tmp_path: Path, put_image: Put) -> None:
    data = write_coco(tmp_path / "data", {"train": small(categories=[{"id": 7, "name": "\x01"}])}, put_image)
    assert "XML files cannot hold" in refused(data, tmp_path / "out", to="voc")


@pytest.mark.parametrize("layout", ALL)
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_conversion_that_fails_leaves_nothing(
    tmp_path: Path, put_image: Put, monkeypatch: pytest.MonkeyPatch, layout: TargetLayout, error: BaseException
) -> None:
    data = write_coco(tmp_path / "data", {"train": small(), "val": small()}, put_image)
    out = tmp_path / "out"
    out.mkdir()

    def fail() -> None:
        raise error

    monkeypatch.setattr(os, "sync", fail)
    with pytest.raises(DataError if isinstance(error, OSError) else KeyboardInterrupt):
        module.convert(data, out, to=layout)
    assert sorted(tmp_path.iterdir()) == [data, out] and not list(out.iterdir())

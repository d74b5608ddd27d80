"""Real panoptic files raise no alarm; damaged copies raise the right one; segments are measured as their pixels are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from detronome.data.check.findings import Finding
from detronome.data.check.panoptic import check_panoptic
from detronome.data.check.panoptic_kinds import PANOPTIC_KINDS
from detronome.data.check.panoptic_map import measure_map
from detronome.data.coco.panoptic_files import find_panoptic

Json = dict[str, Any]


def colours(ids: Any) -> np.ndarray[Any, Any]:
    """Return the colours of an array of segment ids."""
    values = np.asarray(ids)
    return np.stack([values % 256, values // 256 % 256, values // 65536], axis=-1).astype(np.uint8)


def check(json_file: Path, images_dir: Path | None = None, png_dir: Path | None = None) -> dict[str, Finding]:
    findings, _ = check_panoptic(json_file, png_dir or json_file.with_suffix(""), images_dir)
    return {finding.code.removeprefix("panoptic_"): finding for finding in findings}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Two images of 4 x 6 pixels with two segments each."""
    folder = tmp_path / "annotations/panoptic_train"
    folder.mkdir(parents=True)
    ids = np.zeros((4, 6), int)
    ids[:2, :3], ids[2:, 1:5] = 70_000, 9
    for name in ("a", "b"):
        Image.fromarray(colours(ids)).save(folder / f"{name}.png")
    segments = [
        {"id": 70_000, "category_id": 1, "area": 6, "bbox": [0, 0, 3, 2], "iscrowd": 0},
        {"id": 9, "category_id": 2, "area": 8, "bbox": [1, 2, 4, 2], "iscrowd": 0},
    ]
    content = {
        "images": [{"id": i, "file_name": f"{n}.jpg", "height": 4, "width": 6} for i, n in ((1, "b"), (2, "a"))],
        "annotations": [
            {"image_id": i, "file_name": f"{n}.png", "segments_info": segments} for i, n in ((2, "a"), (1, "b"))
        ],
        "categories": [
            {"id": 1, "name": "cat", "isthing": 1, "color": [1, 2, 3]},
            {"id": 2, "name": "sky", "isthing": 0, "color": [1, 2, 4]},
        ],
    }
    json_file = folder.with_suffix(".json")
    json_file.write_text(json.dumps(content))
    return json_file


def edit(json_file: Path, change: Callable[[Json], object]) -> None:
    content = json.loads(json_file.read_text())
    change(content)
    json_file.write_text(json.dumps(content))


def test_nothing_is_fine(tmp_path: Path) -> None:
    assert find_panoptic(tmp_path) == []
    assert find_panoptic(tmp_path / "none") == []
    (tmp_path / "panoptic_x").mkdir()
    json_file = tmp_path / "panoptic_x.json"
    json_file.write_text('{"images": [], "annotations": [], "categories": []}')
    assert find_panoptic(tmp_path) == [(json_file, tmp_path / "panoptic_x")]
    assert check(json_file) == {}


def test_an_image_without_segments_is_fine(small: Path) -> None:
    edit(small, lambda file: file["annotations"][0].update(segments_info=[]))
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(small.with_suffix("") / "a.png")
    assert check(small) == {}


def test_sound_annotations_are_not_spoken_of(small: Path) -> None:
    findings, checked = check_panoptic(small, small.with_suffix(""), None)
    assert findings == []
    assert checked == {"panoptic files": 1, "panoptic maps": 2, "panoptic segments": 4}


@pytest.mark.parametrize("name", ["coco2017_sample", "eval_panoptic_sample"])
def test_real_data_raises_no_alarm(shared_data: Path, name: str) -> None:
    pairs = find_panoptic(shared_data / name)
    assert len(pairs) == (2 if name == "coco2017_sample" else 1)
    for json_file, png_dir in pairs:
        images_dir = shared_data / name / "images" if name == "coco2017_sample" else None
        findings, checked = check_panoptic(json_file, png_dir, images_dir)
        assert findings == []
        assert checked["panoptic maps"] == len(list(png_dir.iterdir()))


def test_damage_to_real_data_is_found(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "coco2017_sample/annotations"
    shutil.copytree(source / "panoptic_val", tmp_path / "panoptic_val", copy_function=shutil.copyfile)
    (tmp_path / "panoptic_val").chmod(0o755)
    shutil.copyfile(source / "panoptic_val.json", json_file := tmp_path / "panoptic_val.json")
    record = json.loads(json_file.read_text())["annotations"][0]
    path = tmp_path / "panoptic_val" / record["file_name"]
    pixels = np.array(Image.open(path))
    wanted = colours(record["segments_info"][0]["id"])
    pixels[(pixels == wanted).all(axis=2)] = (1, 2, 3)
    Image.fromarray(pixels).save(path)
    found = check(json_file)
    assert set(found) == {"segment_absent", "segment_unlisted"}
    area = record["segments_info"][0]["area"]
    assert found["segment_unlisted"].cases[0].endswith(f": {area} pixels")
    assert "segment 197121 of image" in found["segment_unlisted"].cases[0]


FILE_DAMAGE: list[tuple[str, Callable[[Json], object]]] = [
    ("field_wrong", lambda file: file["images"][0].update(id="1")),
    ("field_wrong", lambda file: file["images"][0].update(height=0)),
    ("field_wrong", lambda file: file["images"][0].update(width=None)),
    ("field_wrong", lambda file: file["images"][0].pop("file_name")),
    ("field_wrong", lambda file: file["annotations"][0].update(file_name=3)),
    ("field_wrong", lambda file: file["annotations"][0].pop("image_id")),
    ("field_wrong", lambda file: file["categories"][0].update(id=None)),
    ("field_wrong", lambda file: file["categories"][0].pop("name")),
    ("image_twice", lambda file: file["images"].append(file["images"][0])),
    ("category_twice", lambda file: file["categories"].append(file["categories"][0])),
    ("map_twice", lambda file: file["annotations"].append(file["annotations"][0])),
    ("map_twice", lambda file: file["annotations"][0].update(file_name="b.png")),
    ("image_unknown", lambda file: file["annotations"][0].update(image_id=77)),
    ("image_unannotated", lambda file: file["annotations"].pop()),
    ("category_unknown", lambda file: file["annotations"][0]["segments_info"][0].update(category_id=99)),
    ("category_unknown", lambda file: file["annotations"][0]["segments_info"][0].pop("category_id")),
    ("segment_twice", lambda file: file["annotations"][0]["segments_info"].append(segment_of(file))),
    ("segment_id", lambda file: file["annotations"][0]["segments_info"].append(segment_of(file) | {"id": 0})),
    ("segment_id", lambda file: file["annotations"][0]["segments_info"].append(segment_of(file) | {"id": 2**24})),
    ("segment_id", lambda file: file["annotations"][0]["segments_info"].append(segment_of(file) | {"id": 10**400})),
    ("segment_id", lambda file: file["annotations"][0]["segments_info"].append(segment_of(file) | {"id": "9"})),
    ("segment_absent", lambda file: file["annotations"][0]["segments_info"].append(segment_of(file) | {"id": 5})),
    ("segment_unlisted", lambda file: file["annotations"][0]["segments_info"].pop()),
    ("area_differs", lambda file: segment_of(file).update(area=7)),
    ("area_differs", lambda file: segment_of(file).update(area=None)),
    ("area_differs", lambda file: segment_of(file).update(area=10**400)),
    ("bbox_differs", lambda file: segment_of(file).update(bbox=[0, 0, 3, 3])),
    ("bbox_differs", lambda file: segment_of(file).update(bbox=[0, 0, 3])),
    ("bbox_differs", lambda file: segment_of(file).update(bbox="0 0 3 2")),
    ("iscrowd_wrong", lambda file: segment_of(file).update(iscrowd=2)),
    ("iscrowd_wrong", lambda file: segment_of(file).pop("iscrowd")),
    ("isthing_wrong", lambda file: file["categories"][0].pop("isthing")),
    ("isthing_wrong", lambda file: file["categories"][0].update(isthing="yes")),
    ("map_missing", lambda file: file["annotations"][0].update(file_name="sub/a.png")),
    ("name_differs", lambda file: [a.update(image_id=3 - a["image_id"]) for a in file["annotations"]]),
    ("map_size", lambda file: file["images"][0].update(height=6, width=4)),
    ("color_twice", lambda file: file["categories"][0].update(color=[1, 2, 4])),
]


def segment_of(file: Json) -> Json:
    segment: Json = file["annotations"][0]["segments_info"][0]
    return segment


@pytest.mark.parametrize(("kind", "change"), FILE_DAMAGE)
def test_each_defect_of_the_file_is_found(small: Path, kind: str, change: Callable[[Json], object]) -> None:
    edit(small, change)
    found = check(small)
    follow = {"map_unnamed", "image_unannotated", "category_unknown", "name_differs", "image_unknown", "field_wrong"}
    assert kind in found
    assert set(found) - {kind} <= follow
    assert found[kind].count == (2 if kind == "name_differs" else 1)
    assert found[kind].where == str(small)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"images": {}, "annotations": [], "categories": []}',
        '{"images": [3], "annotations": [], "categories": []}',
        '{"images": [], "annotations": [{"segments_info": null}], "categories": []}',
        '{"images": [], "annotations": [], "categories": [',
    ],
)
def test_a_file_of_another_form_is_a_finding(small: Path, content: str) -> None:
    small.write_text(content)
    found = check(small)
    assert set(found) == {"file_unreadable"}
    assert len(found["file_unreadable"].cases[0]) > 20


def test_a_file_that_cannot_be_opened_is_a_finding(small: Path) -> None:
    assert "No such file" in check(small.with_name("panoptic_none.json"))["file_unreadable"].cases[0]


def test_what_python_reads_as_json_is_read(small: Path) -> None:
    edit(small, lambda file: segment_of(file).update(area=float("nan")))
    assert set(check(small)) == {"area_differs"}
    small.write_bytes(b"\xef\xbb\xbf" + small.read_bytes())
    assert set(check(small)) == {"area_differs"}
    edit_float = json.loads(small.read_text(encoding="utf-8-sig").replace("NaN", "6.0"))
    edit_float["annotations"][0]["image_id"] = 2.0
    small.write_text(json.dumps(edit_float))
    assert check(small) == {}


MAP_DAMAGE: list[tuple[str, Callable[[Path], object]]] = [
    ("map_missing", lambda path: path.unlink()),
    ("map_damaged", lambda path: path.write_bytes(path.read_bytes()[:-30])),
    ("map_damaged", lambda path: path.write_bytes(b"")),
    ("map_damaged", lambda path: (path.unlink(), path.mkdir())),
    ("map_mode", lambda path: path.write_text("<html>404</html>")),
    ("map_mode", lambda path: Image.open(path).convert("P").save(path)),
    ("map_mode", lambda path: Image.open(path).convert("L").save(path)),
    ("map_mode", lambda path: Image.open(path).save(path, "JPEG")),
    ("map_size", lambda path: Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path)),
    ("channels_swapped", lambda path: Image.fromarray(np.asarray(Image.open(path))[..., ::-1]).save(path)),
    ("map_unnamed", lambda path: shutil.copy(path, path.with_name("c.png"))),
]


@pytest.mark.parametrize(("kind", "damage"), MAP_DAMAGE)
def test_each_defect_of_a_map_is_found(small: Path, kind: str, damage: Callable[[Path], object]) -> None:
    edit(small, lambda file: file["annotations"][0]["segments_info"].pop())
    ids = np.zeros((4, 6), int)
    ids[:2, :3] = 70_000
    path = small.with_suffix("") / "a.png"
    Image.fromarray(colours(ids)).save(path)
    assert check(small) == {}
    damage(path)
    found = check(small)
    assert set(found) - {"bbox_differs"} == {kind}
    assert found[kind].count == 1


def test_flipped_bits_in_a_map_are_found(small: Path) -> None:
    path = small.with_suffix("") / "a.png"
    content = path.read_bytes()
    for bit in range(8 * content.index(b"IDAT"), 8 * (len(content) - 12), 5):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        assert set(check(small)) == {"map_damaged"}


def test_a_map_with_transparency_is_read(small: Path) -> None:
    path = small.with_suffix("") / "a.png"
    Image.open(path).convert("RGBA").save(path)
    assert check(small) == {}


def test_a_missing_folder_is_told_once(small: Path, tmp_path: Path) -> None:
    found = check(small, png_dir=tmp_path / "none")
    assert set(found) == {"folder_missing"}
    assert found["folder_missing"].cases == (str(tmp_path / "none"),)


def test_image_files_are_looked_for(small: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    assert check(small, tmp_path)["image_missing"].cases == ("image 1 (b.jpg)",)


def test_maps_are_found_beside_the_file_or_in_the_data_folder(small: Path) -> None:
    data = small.parents[1]
    assert find_panoptic(data) == [(small, small.with_suffix(""))]
    small.with_suffix("").rename(data / "panoptic_train")
    assert find_panoptic(data) == [(small, data / "panoptic_train")]
    (data / "panoptic_train").rename(data / "elsewhere")
    assert find_panoptic(data) == [(small, small.with_suffix(""))]


def test_every_kind_is_in_plain_words_and_worst_first() -> None:
    assert all(kind.what and kind.effect and kind.fix for kind in PANOPTIC_KINDS.values())
    severities = [kind.severity for kind in PANOPTIC_KINDS.values()]
    assert severities == sorted(severities, key=("error", "warning", "note").index)


@given(st.data())
def test_segments_are_measured_as_their_pixels_are(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 7)), data.draw(st.integers(1, 7))
    pool = data.draw(st.lists(st.sampled_from([0, 1, 255, 256, 65_536, 2**24 - 1]), min_size=1, max_size=4))
    ids = np.array(data.draw(st.lists(st.sampled_from(pool), min_size=height * width, max_size=height * width)))
    ids = ids.reshape(height, width)
    measured = measure_map(colours(ids))
    assert measured.ids.tolist() == sorted(set(ids.ravel().tolist()) - {0})
    for row, segment_id in enumerate(measured.ids.tolist()):
        y, x = np.nonzero(ids == segment_id)
        assert measured.row_of(segment_id) == row
        assert measured.areas[row] == len(y)
        box = [x.min(), y.min(), x.max() + 1 - x.min(), y.max() + 1 - y.min()]
        assert measured.boxes_xywh[row].tolist() == box
    assert measured.row_of(7) is None

"""Damaged annotation files: each is refused with all that is wrong, or read as an independent reader reads it."""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detronome.data.check.annotations import check_annotations
from detronome.data.check.run import check
from detronome.data.coco.read import CocoAnnotations, read_annotations
from detronome.data.store.index import AnnotationIndex
from detronome.errors import ConfigError, DataError

SOUND: dict[str, Any] = {
    "info": {"year": 2017, "note": "größe"},
    "images": [
        {"id": 9, "file_name": "nine.jpg", "height": 40, "width": 60, "license": 1},
        {"id": 4, "file_name": "sub/four é.jpg", "height": 30, "width": 20},
        {"id": 7, "file_name": "seven.jpg", "height": 10, "width": 10},
    ],
    "annotations": [
        {"id": 1, "image_id": 4, "category_id": 18, "bbox": [1, 2, 3, 4], "area": 11.5, "iscrowd": 0},
        {
            "id": 2,
            "image_id": 9,
            "category_id": 1,
            "bbox": [0.5, 0, 10, 20.25],
            "area": 100,
            "iscrowd": 0,
            "segmentation": [[0.5, 0, 10.5, 0, 10.5, 20.25]],
        },
        {
            "id": 3,
            "image_id": 4,
            "category_id": 90,
            "bbox": [5, 5, 7.125, 1],
            "iscrowd": 1,
            "area": None,
            "segmentation": {"size": [30, 20], "counts": [100, 10, 490]},
        },
        {"id": 4, "image_id": 9, "category_id": 1, "bbox": [20, 10, 5, 5]},
    ],
    "categories": [{"id": 90, "name": "c"}, {"id": 1, "name": "a"}, {"id": 18, "name": "b", "supercategory": "x"}],
}

Spot = tuple[Any, Any]
Operator = Callable[[random.Random, dict[str, Any]], None]
ByteOperator = Callable[[random.Random, bytes], bytes]

_MARKS = {
    "@NaN@": "NaN",
    "@Infinity@": "Infinity",
    "@-Infinity@": "-Infinity",
    "@1e999@": "1e999",
    "@-0@": "-0",
    "@1.0E+2@": "1.0E+2",
    "@007@": "007",
    "@4.0@": "4.0",
    "@0.1e1@": "0.1e1",
    "@long@": "0." + "3" * 40,
    "@huge@": "9" * 400,
    "@endless@": "9" * 5000,
    "@surrogate@": '"\\ud800"',
    "@zero byte@": '"a\\u0000b"',
    "@deep@": "[" * 600 + "]" * 600,
    "@too deep@": "[" * 100_000 + "]" * 100_000,
    "@deep object@": '{"a":' * 600 + "1" + "}" * 600,
}
"""Strings that stand for what `json.dumps` cannot write."""
_VALUES: list[Any] = [
    *_MARKS,
    None, True, False, 0, 1, -1, 0.5, -0.5, 2, 1e300, -1e300, 1e-320, 2**31, 2**53 + 1, 2**63, -(2**63), 2**64, 10**30,
    "", "x", "9", "4.0", " 7 ", "NaN", "1e999", "0x10",
    [], {}, [1], [1, 2, 3, 4], ["1", "2", "3", "4"], [[]], {"id": 1},
]  # fmt: skip


def spots(value: Any) -> list[Spot]:
    """List every (container, key) inside a JSON value."""
    keys = range(len(value)) if isinstance(value, list) else list(value) if isinstance(value, dict) else ()
    return [spot for key in keys for spot in [(value, key), *spots(value[key])]]


def any_spot(rng: random.Random, content: dict[str, Any]) -> Spot:
    return rng.choice(spots(content) or [(content, "images")])


def number_spot(rng: random.Random, content: dict[str, Any]) -> Spot:
    numbers = [(c, k) for c, k in spots(content) if isinstance(c[k], int | float) and not isinstance(c[k], bool)]
    return rng.choice(numbers or [(content, "images")])


def record_of(rng: random.Random, content: dict[str, Any]) -> Any:
    lists = [value for value in content.values() if isinstance(value, list) and value]
    return rng.choice(rng.choice(lists)) if lists else {}


def put(place: Callable[[random.Random, dict[str, Any]], Spot], make: Callable[[random.Random, Any], Any]) -> Operator:
    def operate(rng: random.Random, content: dict[str, Any]) -> None:
        container, key = place(rng, content)
        container[key] = make(rng, container[key] if isinstance(container, list) or key in container else None)

    return operate


def delete(rng: random.Random, content: dict[str, Any]) -> None:
    container, key = any_spot(rng, content)
    container.pop(key) if isinstance(container, list) else container.pop(key, None)


def rename_key(rng: random.Random, content: dict[str, Any]) -> None:
    record = record_of(rng, content)
    if isinstance(record, dict) and record:
        key = rng.choice(list(record))
        record[rng.choice([key.upper(), f" {key}", f"{key}s", "bbox", "id"])] = record.pop(key)


def swap_keys(rng: random.Random, content: dict[str, Any]) -> None:
    record = record_of(rng, content)
    if isinstance(record, dict) and len(record) > 1:
        one, other = rng.sample(list(record), 2)
        record[one], record[other] = record[other], record[one]


def repeat(rng: random.Random, content: dict[str, Any]) -> None:
    lists = [value for value in content.values() if isinstance(value, list) and value]
    if lists:
        chosen = rng.choice(lists)
        chosen.insert(rng.randrange(len(chosen) + 1), copy.deepcopy(rng.choice(chosen)))


def share_id(rng: random.Random, content: dict[str, Any]) -> None:
    first, second = record_of(rng, content), record_of(rng, content)
    if isinstance(first, dict) and isinstance(second, dict) and "id" in second:
        first["id"] = second["id"]


def shuffle(rng: random.Random, content: dict[str, Any]) -> None:
    for value in content.values():
        if isinstance(value, list):
            rng.shuffle(value)


def to_xyxy(rng: random.Random, content: dict[str, Any]) -> None:
    records = content.get("annotations")
    for record in records if isinstance(records, list) else ():
        box = record.get("bbox") if isinstance(record, dict) else None
        if isinstance(box, list) and len(box) == 4 and all(type(value) in (int, float) for value in box):
            record["bbox"] = [box[0], box[1], box[0] + box[2], box[1] + box[3]]


OPERATORS: dict[str, Operator] = {
    "any value": put(any_spot, lambda rng, _: copy.deepcopy(rng.choice(_VALUES))),
    "any value for a number": put(number_spot, lambda rng, _: copy.deepcopy(rng.choice(_VALUES))),
    "another number": put(number_spot, lambda rng, _: rng.choice([-1, 0, 1, 9, 4.5, 1e9, rng.uniform(-9, 99)])),
    "number in quotes": put(number_spot, lambda _, value: str(value)),
    "number in a list": put(number_spot, lambda _, value: [value]),
    "not a number": put(number_spot, lambda rng, _: rng.choice(["@NaN@", "@Infinity@", "@-Infinity@", "@1e999@"])),
    "whole number as float": put(number_spot, lambda _, value: float(value) if type(value) in (int, float) else value),
    "list as object": put(any_spot, lambda _, value: dict(enumerate(value)) if isinstance(value, list) else {}),
    "object as list": put(any_spot, lambda _, value: list(value.values()) if isinstance(value, dict) else [value]),
    "null": put(any_spot, lambda *_: None),
    "delete": delete,
    "rename a key": rename_key,
    "swap two keys": swap_keys,
    "repeat a record": repeat,
    "share an id": share_id,
    "shuffle": shuffle,
    "boxes as corners": to_xyxy,
}


def flip_bits(rng: random.Random, text: bytes) -> bytes:
    changed = bytearray(text)
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def fuzz_bytes(rng: random.Random, text: bytes) -> bytes:
    changed = bytearray(text)
    for _ in range(rng.randrange(1, 6)):
        changed[rng.randrange(len(changed))] = rng.choice([rng.randrange(256), *b'[]{},:"-.eE0189 \\'])
    return bytes(changed)


def cut_out(rng: random.Random, text: bytes) -> bytes:
    start = rng.randrange(len(text))
    return text[:start] + text[start + rng.choice([1, 1, 2, 5, 40]) :]


def double(rng: random.Random, text: bytes) -> bytes:
    start = rng.randrange(len(text))
    return text[: start + rng.randrange(1, 30)] + text[start:]


def duplicate_key(rng: random.Random, text: bytes) -> bytes:
    key = rng.choice([b'"images"', b'"annotations"', b'"bbox"', b'"id"', b'"file_name"', b'"categories"', b'"area"'])
    value = rng.choice([b"1", b"[]", b"null", b'"z"', b"[1, 2, 3, 4]"])
    at = text.find(b"{", rng.randrange(len(text)))
    return text[: at + 1] + key + b": " + value + b", " + text[at + 1 :] if at >= 0 else text


BYTE_OPERATORS: dict[str, ByteOperator] = {
    "cut short": lambda rng, text: text[: rng.randrange(len(text))],
    "byte-order mark": lambda _, text: b"\xef\xbb\xbf" + text,
    "two marks": lambda _, text: b"\xef\xbb\xbf" * 2 + text,
    "UTF-16": lambda rng, text: text.decode(errors="replace").encode(rng.choice(["utf-16", "utf-16-le", "utf-16-be"])),
    "UTF-32": lambda _, text: text.decode(errors="replace").encode("utf-32"),
    "Latin-1": lambda _, text: text.decode(errors="replace").encode("latin-1", "replace"),
    "flipped bits": flip_bits,
    "fuzzed bytes": fuzz_bytes,
    "cut out": cut_out,
    "doubled": double,
    "duplicate key": duplicate_key,
    "something behind": lambda rng, text: text + rng.choice([b"\n\n", b"x", b"{}", b",", b"\0"]),
    "something before": lambda rng, text: rng.choice([b"\n ", b"var x = ", b"\0", b")]}',"]) + text,
}


def damaged(seed: int) -> tuple[str, bytes]:
    """Return the names of the operators and the file that one to three of them made of the sound one."""
    rng = random.Random(seed)
    content = copy.deepcopy(SOUND)
    names = []
    for _ in range(rng.choice([0, 1, 1, 1, 2, 2, 3])):
        name = rng.choice(list(OPERATORS))
        OPERATORS[name](rng, content)
        names.append(name)
    text = json.dumps(content, ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, None, 1]))
    for mark, token in _MARKS.items():
        text = text.replace(f'"{mark}"', token)
    file = text.encode(errors="replace")
    if not names or rng.random() < 0.25:
        name = rng.choice(list(BYTE_OPERATORS))
        file = BYTE_OPERATORS[name](rng, file) if file else file
        names.append(name)
    return " + ".join(names), file


def oracle(file: bytes) -> dict[str, Any] | None:
    """Read a file in the plainest way: what a careful person would say is in it, or None for one that is not sound."""
    try:
        content = json.loads(file, parse_int=lambda digits: int(digits) if len(digits) < 4000 else math.inf)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in SOUND if k != "info"):
        return None
    if not content["images"] or not content["categories"]:
        return None
    if not all(isinstance(r, dict) for k in SOUND if k != "info" for r in content[k]):
        return None
    images = [
        (whole(r.get("id")), r.get("file_name"), whole(r.get("height")), whole(r.get("width")))
        for r in content["images"]
    ]
    for identity, name, height, width in images:
        if identity is None or not isinstance(name, str) or not name or "\0" in name or not encodable(name):
            return None
        if height is None or width is None or not (0 < height < 2**31 and 0 < width < 2**31):
            return None
    names = {whole(r.get("id")): r.get("name") for r in content["categories"]}
    if None in names or not all(isinstance(n, str) and encodable(n) for n in names.values()):
        return None
    if len(names) != len(content["categories"]) or len({image[0] for image in images}) != len(images):
        return None
    boxes: dict[Any, list[Any]] = {image[0]: [] for image in images}
    for r in content["annotations"]:
        box = r.get("bbox")
        if not isinstance(box, list) or len(box) != 4 or not all(finite(v) for v in box):
            return None
        image_id, label = whole(r.get("image_id")), whole(r.get("category_id"))
        if image_id is None or image_id not in boxes or label is None or label not in names:
            return None
        if r.get("id") is not None and whole(r["id"]) is None:
            return None
        area, crowd = r.get("area"), r.get("iscrowd")
        if not (area is None or finite(area)) or not (crowd is None or isinstance(crowd, int | float)):
            return None
        left, top, width, height = (float(v) for v in box)
        boxes[image_id].append(
            ([left, top, width, height], label, width * height if area is None else float(area), bool(crowd))
        )
    return {"images": images, "names": names, "boxes": boxes}


def whole(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or abs(value) == math.inf:
        return None
    return int(value) if value == int(value) and -(2**63) <= value < 2**63 else None


def finite(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(float(value))
    except OverflowError:
        return False


def encodable(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def assert_read_as_the_oracle(columns: CocoAnnotations, index: AnnotationIndex, said: dict[str, Any]) -> None:
    assert columns.categories.by_id == dict(sorted(said["names"].items()))
    assert [*zip(columns.image_ids.tolist(), columns.file_names, columns.heights, columns.widths, strict=True)] == said[
        "images"
    ]
    for i, (image_id, name, height, width) in enumerate(said["images"]):
        record = index.image(i)
        assert (record.image_id, record.file_name, record.size_hw) == (image_id, name, (height, width))
        boxes, labels, area, iscrowd = index.annotations(i)
        expected = said["boxes"][image_id]
        assert boxes.tolist() == [one[0] for one in expected]
        assert [columns.categories.ids[label] for label in labels] == [one[1] for one in expected]
        np.testing.assert_array_equal(area, [one[2] for one in expected])
        assert iscrowd.tolist() == [one[3] for one in expected]


def judge(file: bytes, folder: Path) -> bool:
    """Assert that a file is refused properly or read rightly, and that the doctor agrees; return whether it is read."""
    path = folder / "annotations" / "instances_train.json"
    path.write_bytes(file)
    said = oracle(file)
    try:
        columns = read_annotations(path)
        index = AnnotationIndex.open(path)
    except DataError as error:
        assert said is None, f"refused a sound file: {error}"
        assert error.problems
        assert all(problem.what.strip() and problem.where.strip() for problem in error.problems)
    else:
        assert said is not None, "accepted a file that is not sound"
        assert_read_as_the_oracle(columns, index, said)

    result = check_annotations(path)
    assert result.is_sound == (said is not None)
    assert any(finding.severity == "error" for finding in result.findings) or said is not None
    report = check(folder, images=len(file) % 4 == 0, fix=folder / f"fixed-{id(file)}")
    assert json.dumps(report.to_json())
    for finding in report.findings:
        assert finding.what and finding.where and finding.effect and finding.fix and finding.count > 0
    for copy_of_file in report.fixed:
        left = check_annotations(Path(copy_of_file.path or path)).findings
        assert [f.code for f in left if f.is_fixable] == []
        if copy_of_file.path:
            Path(copy_of_file.path).unlink()
    return said is not None


def run_mutations(folder: Path, seeds: range) -> tuple[int, int]:
    (folder / "annotations").mkdir()
    (folder / "images").mkdir()
    accepted = 0
    for seed in seeds:
        names, file = damaged(seed)
        try:
            accepted += judge(file, folder)
        except (DataError, ConfigError) as error:
            raise AssertionError(f"seed {seed}: {names}: {error}") from error
        except Exception as error:
            raise AssertionError(f"seed {seed}: {names}: {type(error).__name__}: {error}") from error
    return accepted, len(seeds) - accepted


@pytest.fixture(autouse=True)
def _own_cache_without_flushing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of small files: what they take to reach the disk is not the point here."""
    monkeypatch.setenv("DETRONOME_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def test_the_sound_file_is_read_by_both(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "images").mkdir()
    assert judge(json.dumps(SOUND).encode(), tmp_path)


def test_no_damage_is_misread_and_none_ends_in_another_error(tmp_path: Path) -> None:
    accepted, refused = run_mutations(tmp_path, range(600))
    assert accepted > 50 and refused > 200


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_thousand_damaged_files(tmp_path: Path) -> None:
    accepted, refused = run_mutations(tmp_path, range(1000, 11_000))
    print(f"{accepted} read as the oracle reads them, {refused} refused")
    assert accepted > 500 and refused > 5000

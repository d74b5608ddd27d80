"""Everything that is wrong with an annotation file, at once: the slow path behind `read`.

Works on plain JSON values, so it can name each defect by its JSON path and id. Spellings that mean the same (7.0 for
7, null for a missing area, UTF-16) are not defects: the file is returned as the fast path wants it.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from detronome.errors import DataError, Problem

__all__ = [
    "FEWEST_SHIFTED",
    "Defect",
    "ExaminedFile",
    "JsonObject",
    "examine",
    "id_shift",
    "is_finite_number",
    "is_same_record",
    "is_utf8",
    "normalise_json",
    "parse_json",
    "quoted_number",
    "whole_number",
]

JsonObject = dict[str, Any]

_SHOWN = 5
_MIB = 2**20
_MOST_DIGITS = 4000
"""Of a whole number that Python reads as such; its own limit is 4,300."""
_LISTS = ("images", "annotations", "categories")
_SINGULAR = {"images": "image", "annotations": "annotation", "categories": "category"}
FEWEST_SHIFTED = {"image_id": 2, "category_id": 1}
"""How many ids must be known once 1 is added or subtracted; one image alone may well be any other."""
_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)


@dataclass(frozen=True)
class Defect:
    """One kind of structural defect, with every case of it."""

    code: str
    """Short name of the kind, e.g. `image_height_missing`."""
    what: str
    """A sentence in the plural."""
    fix: str
    cases: list[str]
    """JSON path, and id or value, of each case."""
    singular: str = ""
    """The sentence for one case, where it is another."""

    @property
    def sentence(self) -> str:
        """The sentence for as many cases as there are."""
        return self.singular if self.singular and len(self.cases) == 1 else self.what


@dataclass(frozen=True)
class ExaminedFile:
    """What could be read of an annotation file, and everything that could not."""

    records: dict[str, list[JsonObject]]
    """Of `images`, `annotations` and `categories`: the objects as they stand in the file."""
    strict: dict[str, list[JsonObject]]
    """The same objects with only the fields that are read, in strict spelling.

    None where a value is unreadable; NaN for an area, whose None means that it is missing.
    """
    defects: list[Defect]
    """In the order in which the kinds were met; empty for a sound file."""


def normalise_json(content: bytes, annotation_file: Path) -> bytes:
    """Return the file's content in its strict spelling, with only the fields that are read.

    Raises:
        DataError: all problems of the file, one per kind, each with the JSON paths and ids of its first cases.
    """
    examined = examine(parse_json(content, annotation_file))
    if examined.defects:
        raise DataError([_problem(defect, annotation_file) for defect in examined.defects])
    return msgspec.json.encode(examined.strict)


def parse_json(content: bytes, annotation_file: Path) -> JsonObject:
    """Return the JSON object that a file holds.

    Raises:
        DataError: the content is not JSON, or not an object.
    """
    if not content.strip():
        raise DataError("the annotation file is empty", where=str(annotation_file), fix="copy or export it again")
    try:
        root = _load(content)
    except json.JSONDecodeError as error:
        raise DataError(
            f"the annotation file is not valid JSON: {error.msg}",
            where=f"{annotation_file}, line {error.lineno}, column {error.colno}",
            fix="if the file ends there, it was cut short: copy or export it again",
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"the annotation file is not {error.encoding.upper()} text: {error.reason}",
            where=f"{annotation_file}, byte {error.start}",
            fix="save it as UTF-8",
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"the annotation file cannot be read as JSON: {error}", where=str(annotation_file)) from error
    if not isinstance(root, dict):
        raise DataError(
            f"the annotation file holds {_kind(root)} where COCO has an object",
            where=f"{annotation_file}: $",
            fix="give the file with images, annotations and categories (a list alone is the form of results)",
        )
    return root


def is_utf8(content: bytes | memoryview) -> bool:
    """Return whether all of a content is UTF-8, also in parts that nobody reads."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for start in range(0, len(content), _MIB):  # in pieces: the text of a whole file would be four times as large
            decoder.decode(content[start : start + _MIB])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def examine(root: JsonObject) -> ExaminedFile:
    """Return all that can be read of a COCO object, and a defect for each kind of thing that cannot."""
    found = _Defects()
    paths_and_records = {name: list(_records(root, name, found)) for name in _LISTS}
    read_one = {"images": _image, "annotations": _annotation, "categories": _category}
    strict = {
        name: [read_one[name](path, record, found) for path, record in pairs]
        for name, pairs in paths_and_records.items()
    }
    _check_references(paths_and_records, strict, found)
    records = {name: [record for _, record in pairs] for name, pairs in paths_and_records.items()}
    return ExaminedFile(records, strict, found.all())


def quoted_number(value: object) -> int | float | None:
    """Return the finite number that a string spells, or None for anything else."""
    if not isinstance(value, str) or not _NUMBER.fullmatch(value) or len(value) > 400:
        return None
    number = float(value)
    if not math.isfinite(number):
        return None
    return int(value) if value.strip().lstrip("+-").isdigit() else number


def whole_number(value: object) -> int | None:
    """Return the value where it is a whole number of at most 64 bits, also when spelt as 7.0; None otherwise."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if -(2**63) <= value < 2**63 else None


def is_finite_number(value: Any) -> bool:
    """Return whether the value is a number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def is_same_record(first: JsonObject, second: JsonObject) -> bool:
    """Return whether two records say the same."""
    try:
        return first == second
    except RecursionError:
        return False  # nested nearly as deeply as can be read


class _Defects:
    """Defects grouped by kind, in the order in which the kinds were met."""

    def __init__(self) -> None:
        self._cases: dict[tuple[str, str, str], list[str]] = {}

    def add(self, code: str, what: str, where: str, fix: str) -> None:
        """Note one case; `what` is `singular | plural`, or suits both."""
        self._cases.setdefault((code, what, fix), []).append(where)

    def all(self) -> list[Defect]:
        return [
            Defect(code, plural, fix, cases, singular)
            for (code, what, fix), cases in self._cases.items()
            for singular, _, plural in [what.rpartition(" | ")]
        ]


def _load(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise
    except ValueError:  # a whole number of thousands of digits: no harm in a key that nobody reads
        return json.loads(content, parse_int=lambda digits: int(digits) if len(digits) < _MOST_DIGITS else math.inf)


def _problem(defect: Defect, annotation_file: Path) -> Problem:
    shown = ", ".join(defect.cases[:_SHOWN])
    more = f" and {len(defect.cases) - _SHOWN} more" if len(defect.cases) > _SHOWN else ""
    return Problem(what=defect.what, where=f"{annotation_file}: {shown}{more}", fix=defect.fix)


def _records(root: JsonObject, name: str, found: _Defects) -> Iterator[tuple[str, JsonObject]]:
    values = root.get(name)
    path = f"$.{name}"
    if values is None:
        found.add("list_missing", f"there is no list {name!r}", path, "a COCO file has images, annotations, categories")
    elif not isinstance(values, list):
        found.add(
            "list_wrong_type", f"{name!r} is {_kind(values)}, not a list", path, f"write {name} as a list of objects"
        )
    elif not values and name != "annotations":
        found.add("list_empty", f"the list {name!r} is empty", path, "check the export: there is nothing to learn from")
    else:
        for position, record in enumerate(values):
            if isinstance(record, dict):
                yield f"{path}[{position}]", record
            else:
                found.add(
                    "entry_not_object",
                    f"entry of {name!r} is not an object | entries of {name!r} are not objects",
                    f"{path}[{position}]",
                    "remove or repair them",
                )


def _image(path: str, record: JsonObject, found: _Defects) -> JsonObject:
    name = record.get("file_name")
    if not isinstance(name, str) or not name:
        fix = "name the image file, relative to its folder"
        found.add("file_name_missing", "image has no file_name | images have no file_name", _case(path, record), fix)
        name = None
    elif "\0" in name or not _encodable(name):
        what = "file name holds characters that no file can have | file names hold characters that no file can have"
        found.add("file_name_impossible", what, _case(path, record), "rename the files")
        name = None
    return {
        "id": _whole(record, "id", path, found),
        "file_name": name,
        "height": _whole(record, "height", path, found, minimum=1, maximum=2**31 - 1),
        "width": _whole(record, "width", path, found, minimum=1, maximum=2**31 - 1),
    }


def _annotation(path: str, record: JsonObject, found: _Defects) -> JsonObject:
    return {
        "id": None if record.get("id") is None else _whole(record, "id", path, found),
        "image_id": _whole(record, "image_id", path, found),
        "category_id": _whole(record, "category_id", path, found),
        "bbox": _bbox(path, record, found),
        "area": _area(path, record, found),
        "iscrowd": _iscrowd(path, record, found),
    }


def _category(path: str, record: JsonObject, found: _Defects) -> JsonObject:
    name = record.get("name")
    if not isinstance(name, str) or not _encodable(name):
        fix = "give each category a name, as text"
        if name is None:
            found.add(
                "category_name_missing", "category has no name | categories have no name", _case(path, record), fix
            )
        else:
            what = "category's name is not text | categories' names are not text"
            if isinstance(name, str):
                what = "category's name holds what is no text | categories' names hold what is no text"
            found.add("category_name_wrong", what, f"{_case(path, record)} has {_shown(name)}", fix)
        name = None
    return {"id": _whole(record, "id", path, found), "name": name}


def _bbox(path: str, record: JsonObject, found: _Defects) -> list[float] | None:
    bbox = record.get("bbox")
    if bbox is None:
        fix = "write bbox as [left, top, width, height]"
        found.add("bbox_missing", "annotation has no bbox | annotations have no bbox", _case(path, record), fix)
        return None
    if isinstance(bbox, list) and len(bbox) == 4 and all(is_finite_number(value) for value in bbox):
        return [float(value) for value in bbox]
    case = f"{_case(path, record)} has {_shown(bbox)}"
    if (
        isinstance(bbox, list)
        and len(bbox) == 4
        and all(is_finite_number(value) or quoted_number(value) is not None for value in bbox)
    ):
        found.add("number_in_quotes", "bbox holds numbers in quotes", case, "write numbers without quotes")
    else:
        fix = "write bbox as [left, top, width, height] in pixels, as numbers without quotes"
        found.add("bbox_wrong", "bbox is not 4 finite numbers", case, fix)
    return None


def _area(path: str, record: JsonObject, found: _Defects) -> float | None:
    area = record.get("area")
    if area is None:
        return None
    if is_finite_number(area):
        return float(area)
    if quoted_number(area) is not None:
        case = f"{_case(path, record)} has {_shown(area)}"
        found.add("number_in_quotes", "area is in quotes", case, "write numbers without quotes")
    else:
        fix = "write a number, or leave area out"
        found.add("area_wrong", "area is not a finite number", _case(path, record), fix)
    return math.nan


def _iscrowd(path: str, record: JsonObject, found: _Defects) -> int:
    iscrowd = record.get("iscrowd")
    if iscrowd is None or isinstance(iscrowd, int | float):
        return int(bool(iscrowd))
    if quoted_number(iscrowd) is not None:
        case = f"{_case(path, record)} has {_shown(iscrowd)}"
        found.add("number_in_quotes", "iscrowd is in quotes", case, "write numbers without quotes")
    else:
        fix = "write 0 or 1, or leave iscrowd out"
        found.add("iscrowd_wrong", "iscrowd is not 0 or 1", _case(path, record), fix)
    return 0


def _check_references(
    paths_and_records: dict[str, list[tuple[str, JsonObject]]], strict: dict[str, list[JsonObject]], found: _Defects
) -> None:
    known = {
        f"{_SINGULAR[name]}_id": _known_ids(_SINGULAR[name], paths_and_records[name], strict[name], found)
        for name in ("images", "categories")
    }
    shifts = {}
    for key, ids in known.items():
        used = {clean[key] for clean in strict["annotations"]}
        shift = id_shift(ids, used, fewest=FEWEST_SHIFTED[key])
        if shift is not None:
            shifts[key] = shift
            _tell_shift(key, shift, ids, paths_and_records["annotations"], strict["annotations"], found)
    for (path, record), clean in zip(paths_and_records["annotations"], strict["annotations"], strict=True):
        for key, ids in known.items():
            one = key.removesuffix("_id")
            if key in shifts:
                continue
            if ids and clean[key] is not None and clean[key] not in ids:
                found.add(
                    f"{one}_unknown",
                    f"annotation names a {one} id that the file does not have | "
                    f"annotations name {one} ids that the file does not have",
                    f"{_case(path, record)} has {key} {clean[key]}",
                    f"add the missing {one} or remove its annotations",
                )


def id_shift(known: set[int], used: set[int | None], *, fewest: int = 1) -> int | None:
    """Return what to add to all ids in use (1 or -1) so that all are known, where some are not; else None.

    Args:
        known: the ids that records have.
        used: the ids that annotations name; None for unreadable.
        fewest: how many different ones have to be in use.
    """
    readable = {one for one in used if one is not None}
    if not known or readable <= known or len(readable) < fewest:
        return None
    return next((by for by in (-1, 1) if {one + by for one in readable} <= known), None)


def _tell_shift(
    key: str,
    shift: int,
    ids: set[int],
    paths_and_records: list[tuple[str, JsonObject]],
    strict: list[JsonObject],
    found: _Defects,
) -> None:
    one = key.removesuffix("_id")
    plural = f"{one[:-1]}ies" if one.endswith("y") else f"{one}s"
    for (path, record), clean in zip(paths_and_records, strict, strict=True):
        if clean[key] is not None and clean[key] not in ids:
            found.add(
                f"{one}_ids_shifted",
                f"annotations name {one} ids that the file does not have, and all are known once 1 is "
                f"{'subtracted' if shift < 0 else 'added'}",
                f"{_case(path, record)} has {key} {clean[key]}",
                f"the ids of {plural} and the {key} of annotations count from different numbers, so that all objects "
                f"get a wrong {one}: correct one of the two",
            )


def _known_ids(
    one: str, paths_and_records: Sequence[tuple[str, JsonObject]], strict: Sequence[JsonObject], found: _Defects
) -> set[int]:
    """Return the ids that can be read; ids that are used twice are defects, repeated records a mild kind of them."""
    first: dict[int, JsonObject] = {}
    for (path, record), clean in zip(paths_and_records, strict, strict=True):
        if clean["id"] is None:
            continue
        if clean["id"] not in first:
            first[clean["id"]] = record
        elif is_same_record(first[clean["id"]], record):
            found.add(
                f"{one}_record_repeated",
                f"{one} record is repeated | {one} records are repeated",
                _case(path, record),
                "remove the repetitions",
            )
        else:
            fix = f"give each {one} its own id"
            found.add(
                f"{one}_id_duplicate", f"{one} id is used twice | {one} ids are used twice", _case(path, record), fix
            )
    return set(first)


def _whole(
    record: JsonObject,
    key: str,
    path: str,
    found: _Defects,
    *,
    minimum: int = -(2**63),
    maximum: int = 2**63 - 1,
) -> int | None:
    value = record.get(key)
    plural = path.removeprefix("$.").partition("[")[0]
    code = f"{_SINGULAR[plural]}_{key}"
    if value is None:
        fix = f"write {key} as a whole number"
        found.add(
            f"{code}_missing", f"{_SINGULAR[plural]} has no {key} | {plural} have no {key}", _case(path, record), fix
        )
        return None
    number = whole_number(value)
    if number is not None and minimum <= number <= maximum:
        return number
    bound = f" of at least {minimum}" if minimum == 1 else ""
    case = f"{_case(path, record)} has {_shown(value)}"
    quoted = whole_number(quoted_number(value))
    if quoted is not None and minimum <= quoted <= maximum:
        what = f"{key} of {plural} is in quotes, not a whole number{bound}"
        found.add("number_in_quotes", what, case, "write numbers without quotes")
    else:
        what = f"{key} of {plural} is not a whole number{bound}"
        found.add(f"{code}_wrong", what, case, f"write {key} as a whole number{_range(minimum)}")
    return None


def _range(minimum: int) -> str:
    if minimum == 1:
        return " from 1"
    return " of at most 18 digits"


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeError:
        return False
    return True


def _case(path: str, record: JsonObject) -> str:
    """Name one record by JSON path and, where it has a readable one, by id."""
    identity = record.get("id")
    return f"{path} (id {_shown(identity)})" if isinstance(identity, int | str) else path


def _shown(value: Any) -> str:
    try:
        return json.dumps(value)[:80]
    except RecursionError:  # nested nearly as deeply as can be read
        return _kind(value)


def _kind(value: Any) -> str:
    kinds: dict[type, str] = {list: "a list", dict: "an object", str: "a string", type(None): "null", bool: "a boolean"}
    return kinds.get(type(value), "a number")

"""Everything that is wrong with an annotation file, at once: the slow path behind `read`.

Works on plain JSON values, so it can name each defect by its JSON path and id. Spellings that mean the same (7.0 for
7, null for a missing area, UTF-16) are not defects: the file is returned as the fast path wants it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from detronome.errors import DataError, Problem

__all__ = ["normalise_json"]

_Record = dict[str, Any]
_SHOWN = 5
_LISTS = ("images", "annotations", "categories")


def normalise_json(content: bytes, annotation_file: Path) -> bytes:
    """Return the file's content in its strict spelling, with only the fields that are read.

    Raises:
        DataError: all problems of the file, one per kind, each with the JSON paths and ids of its first cases.
    """
    root = _parse(content, annotation_file)
    findings = _Findings(annotation_file)
    lists = {name: list(_records(root, name, findings)) for name in _LISTS}
    strict = {
        "images": [_image(path, record, findings) for path, record in lists["images"]],
        "annotations": [_annotation(path, record, findings) for path, record in lists["annotations"]],
        "categories": [_category(path, record, findings) for path, record in lists["categories"]],
    }
    _check_references(lists, strict, findings)
    findings.raise_if_any()
    return msgspec.json.encode(strict)


class _Findings:
    """Defects grouped by kind, in the order in which the kinds were met."""

    def __init__(self, annotation_file: Path) -> None:
        self._file = annotation_file
        self._cases: dict[tuple[str, str], list[str]] = {}

    def add(self, what: str, where: str, fix: str) -> None:
        self._cases.setdefault((what, fix), []).append(where)

    def raise_if_any(self) -> None:
        problems = []
        for (what, fix), cases in self._cases.items():
            shown = ", ".join(cases[:_SHOWN])
            more = f" and {len(cases) - _SHOWN} more" if len(cases) > _SHOWN else ""
            problems.append(Problem(what=what, where=f"{self._file}: {shown}{more}", fix=fix))
        if problems:
            raise DataError(problems)


def _parse(content: bytes, annotation_file: Path) -> _Record:
    if not content.strip():
        raise DataError("the annotation file is empty", where=str(annotation_file), fix="copy or export it again")
    try:
        root = json.loads(content)
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


def _records(root: _Record, name: str, findings: _Findings) -> Iterator[tuple[str, _Record]]:
    values = root.get(name)
    if values is None:
        findings.add(f"there is no list {name!r}", f"$.{name}", "a COCO file has images, annotations and categories")
    elif not isinstance(values, list):
        findings.add(f"{name!r} is {_kind(values)}, not a list", f"$.{name}", f"write {name} as a list of objects")
    elif not values and name != "annotations":
        findings.add(f"the list {name!r} is empty", f"$.{name}", "check the export: there is nothing to learn from")
    else:
        for position, record in enumerate(values):
            if isinstance(record, dict):
                yield f"$.{name}[{position}]", record
            else:
                findings.add(f"entries of {name!r} are not objects", f"$.{name}[{position}]", "remove or repair them")


def _image(path: str, record: _Record, findings: _Findings) -> _Record:
    name = record.get("file_name")
    if not isinstance(name, str) or not name:
        findings.add("images have no file_name", _case(path, record), "name the image file, relative to its folder")
    elif "\0" in name or not _encodable(name):
        findings.add("file names hold characters that no file can have", _case(path, record), "rename the files")
    return {
        "id": _whole(record, "id", path, findings),
        "file_name": name,
        "height": _whole(record, "height", path, findings, minimum=1, maximum=2**31 - 1),
        "width": _whole(record, "width", path, findings, minimum=1, maximum=2**31 - 1),
    }


def _annotation(path: str, record: _Record, findings: _Findings) -> _Record:
    bbox = record.get("bbox")
    if bbox is None:
        findings.add("annotations have no bbox", _case(path, record), "write bbox as [left, top, width, height]")
    elif not (isinstance(bbox, list) and len(bbox) == 4 and all(_is_finite(value) for value in bbox)):
        findings.add(
            "bbox is not 4 finite numbers",
            f"{_case(path, record)} has {json.dumps(bbox)[:80]}",
            "write bbox as [left, top, width, height] in pixels, as numbers without quotes",
        )
    area = record.get("area")
    if area is not None and not _is_finite(area):
        findings.add("area is not a finite number", _case(path, record), "write a number, or leave area out")
    iscrowd = record.get("iscrowd") or 0
    if not isinstance(iscrowd, int | float):
        findings.add("iscrowd is not 0 or 1", _case(path, record), "write 0 or 1, or leave iscrowd out")
    return {
        "id": None if record.get("id") is None else _whole(record, "id", path, findings),
        "image_id": _whole(record, "image_id", path, findings),
        "category_id": _whole(record, "category_id", path, findings),
        "bbox": bbox,
        "area": area,
        "iscrowd": int(bool(iscrowd)),
    }


def _category(path: str, record: _Record, findings: _Findings) -> _Record:
    name = record.get("name")
    if not isinstance(name, str) or not _encodable(name):
        findings.add("categories have no name", _case(path, record), "give each category a name")
    return {"id": _whole(record, "id", path, findings), "name": name}


def _check_references(lists: dict[str, Any], strict: dict[str, list[_Record]], findings: _Findings) -> None:
    known: dict[str, set[int]] = {}
    for name, one in (("images", "image"), ("categories", "category")):
        ids: set[int] = set()
        for (path, record), clean in zip(lists[name], strict[name], strict=True):
            if clean["id"] in ids:
                findings.add(f"{one} ids are used twice", _case(path, record), f"give each {one} its own id")
            elif clean["id"] is not None:
                ids.add(clean["id"])
        known[f"{one}_id"] = ids
    for (path, record), clean in zip(lists["annotations"], strict["annotations"], strict=True):
        for key, ids in known.items():
            one = key.removesuffix("_id")
            if ids and clean[key] is not None and clean[key] not in ids:
                findings.add(
                    f"annotations name {one} ids that the file does not have",
                    f"{_case(path, record)} has {key} {clean[key]}",
                    f"add the missing {one} or remove its annotations",
                )


def _whole(
    record: _Record,
    key: str,
    path: str,
    findings: _Findings,
    *,
    minimum: int = -(2**63),
    maximum: int = 2**63 - 1,
) -> int | None:
    value = record.get(key)
    plural = path.removeprefix("$.").partition("[")[0]
    if value is None:
        findings.add(f"{plural} have no {key}", _case(path, record), f"write {key} as a whole number")
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
        bound = f" of at least {minimum}" if minimum == 1 else ""
        findings.add(
            f"{key} of {plural} is not a whole number{bound}",
            f"{_case(path, record)} has {json.dumps(value)[:80]}",
            f"write {key} as a number without quotes",
        )
        return None
    return value


def _is_finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeError:
        return False
    return True


def _case(path: str, record: _Record) -> str:
    """Name one record by JSON path and, where it has a readable one, by id."""
    identity = record.get("id")
    return f"{path} (id {identity})" if isinstance(identity, int | str) else path


def _kind(value: Any) -> str:
    kinds: dict[type, str] = {list: "a list", dict: "an object", str: "a string", type(None): "null", bool: "a boolean"}
    return kinds.get(type(value), "a number")

"""`detronome.json`: what a folder of label files was written from, beside the files that cannot say all of it.

    {"detronome_sidecar": 1,                      version
     "layout": "yolo",                            of the folder: yolo or voc
     "voc_one_based": false,                      whether VOC coordinates count from 1
     "splits": {"train": {"name": "train2017",    the split's name before, by its name in the folder
                          "prefix": "",           put before the file names
                          "labels": [[1, "0"]],   label of each category id
                          "document": {...}}}}    the COCO document as it was, every field

The label files lead. A record of the sidecar counts only as long as its label file says what was written into it; an
object that was edited, added or removed in a label file, a class that was renamed and an image that was removed are
taken from the folder. Deleting `detronome.json` leaves an ordinary YOLO or VOC folder.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from detronome.data.formats.document import Record, annotations_by_image
from detronome.data.formats.images import ImageHeader
from detronome.data.formats.label_text import frame_of, label_text
from detronome.data.formats.labels import LabelCodec, LabelLayout, LabelObject
from detronome.data.formats.problems import LabelProblems
from detronome.errors import DataError

__all__ = ["SIDECAR_NAME", "KeptSplit", "ReadImage", "Sidecar", "read_sidecar", "restore", "sidecar_record"]

SIDECAR_NAME = "detronome.json"
_MARK = "detronome_sidecar"
_VERSION = 1


@dataclass(frozen=True)
class KeptSplit:
    """What one split was written from."""

    name: str
    prefix: str
    labels: Mapping[int, str]
    """The label of each category id."""
    document: Record


@dataclass(frozen=True)
class Sidecar:
    """What a folder was written from."""

    layout: LabelLayout
    voc_one_based: bool
    splits: Mapping[str, KeptSplit]


@dataclass(frozen=True)
class ReadImage:
    """An image as the folder has it now."""

    record: Record
    annotations: Sequence[Record]
    """In the order of `objects`."""
    objects: Sequence[LabelObject]
    text: str | None
    """Of its label file; None where that is missing or not UTF-8."""
    header: ImageHeader | None


def sidecar_record(sidecar: Sidecar) -> Record:
    """Return the content of `detronome.json`."""
    splits = {
        name: {"name": kept.name, "prefix": kept.prefix, "labels": [*kept.labels.items()], "document": kept.document}
        for name, kept in sidecar.splits.items()
    }
    return {
        _MARK: _VERSION,
        "layout": sidecar.layout,
        "voc_one_based": sidecar.voc_one_based,
        "splits": splits,
    }


def read_sidecar(root: Path, layout: LabelLayout) -> Sidecar | None:
    """Return the sidecar of a folder; None where there is none, or one of another layout or program.

    Raises:
        DataError: it is damaged, or was written by a newer version.
    """
    file = root / SIDECAR_NAME
    try:
        record = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(file, str(error)) from error
    if not isinstance(record, dict) or _MARK not in record or record.get("layout") != layout:
        return None
    if record[_MARK] != _VERSION:
        raise DataError(
            f"the sidecar has version {record[_MARK]!r}, and this program reads version {_VERSION}",
            where=str(file),
            fix="use the version of detronome that wrote it, or delete the file to use the label files alone",
        )
    try:
        splits = {
            name: KeptSplit(
                str(kept["name"]),
                str(kept["prefix"]),
                {int(category_id): str(label) for category_id, label in kept["labels"]},
                kept["document"],
            )
            for name, kept in record["splits"].items()
        }
        for kept in splits.values():
            _check(kept)
        return Sidecar(layout, bool(record["voc_one_based"]), splits)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(file, f"{type(error).__name__}: {error}") from error


def restore(images: Sequence[ReadImage], kept: KeptSplit, codec: LabelCodec, names: Mapping[str, str]) -> Record:
    """Return the document that a split was written from, with every change that its label files have seen since.

    Args:
        images: the split as the folder has it now.
        kept: what it was written from.
        codec: the format of the label files.
        names: the class name of each label, as the folder has them now.
    """
    document = kept.document
    categories, category_of = _categories(document["categories"], kept.labels, names)
    current = {image.record["file_name"]: image for image in images}
    before = annotations_by_image(document)
    position = {id(annotation): i for i, annotation in enumerate(document["annotations"])}
    ids = _fresh_ids(document["annotations"])

    restored_images: list[Record] = []
    old: list[tuple[int, Record]] = []
    new: list[Record] = []
    for record in document["images"]:
        image = current.pop(kept.prefix + record["file_name"], None)
        if image is None:
            continue
        is_resized = _is_resized(record, image)
        restored_images.append(_with_size_of(image, record) if is_resized else record)
        frame = frame_of(record, image.header)
        expected = label_text(codec, record, before[record["id"]], kept.labels, frame)
        sayable = []
        for annotation in before[record["id"]]:
            if codec.encode(annotation, kept.labels[annotation["category_id"]], frame) is None:
                old.append((position[id(annotation)], annotation))
            else:
                sayable.append(annotation)
        if (image.text or "") == expected and not is_resized:
            old.extend((position[id(annotation)], annotation) for annotation in sayable)
            continue
        nothing = LabelProblems(Path())
        written = codec.parse(expected.encode(), frame, Path(), nothing).objects
        for origin, annotation in _annotations(image, sayable, written, category_of, is_resized):
            if origin is None:
                new.append({**annotation, "id": next(ids), "image_id": record["id"]})
            else:
                old.append((position[id(origin)], annotation))
    image_ids = _fresh_ids(document["images"])
    for image in current.values():
        image_id = next(image_ids)
        file_name = posixpath.relpath(image.record["file_name"], kept.prefix or ".")
        restored_images.append({**image.record, "id": image_id, "file_name": file_name})
        for annotation, item in zip(image.annotations, image.objects, strict=True):
            category_id = category_of[item.label]
            new.append({**annotation, "id": next(ids), "image_id": image_id, "category_id": category_id})
    old.sort(key=lambda pair: pair[0])
    annotations = [annotation for _, annotation in old] + new
    return {**document, "images": restored_images, "annotations": annotations, "categories": categories}


def _annotations(
    image: ReadImage,
    before: Sequence[Record],
    written: Sequence[LabelObject],
    category_of: Mapping[str, int],
    is_resized: bool,
) -> Iterator[tuple[Record | None, Record]]:
    """Yield (record that it was written from, annotation as it is now) of each object of an image."""
    for item, annotation, k in zip(image.objects, image.annotations, _origins(image.objects, written), strict=True):
        current = {**annotation, "category_id": category_of[item.label]}
        if k is None:
            yield None, current
        else:
            yield before[k], _merged(before[k], written[k], item, current, is_resized)


def _origins(objects: Sequence[LabelObject], written: Sequence[LabelObject]) -> list[int | None]:
    """Return which of the written objects each object is: one that says the same, else the one in its place."""
    unmatched = dict(enumerate(written))
    origins: list[int | None] = []
    for i, item in enumerate(objects):
        same = (k for k in (i, *unmatched) if k in unmatched and unmatched[k].identity == item.identity)
        origin = next(same, None)
        if origin is not None:
            del unmatched[origin]
        origins.append(origin)
    if len(written) == len(objects):
        left = iter(unmatched)
        origins = [next(left) if origin is None else origin for origin in origins]
    return origins


def _merged(record: Record, written: LabelObject, item: LabelObject, current: Record, is_resized: bool) -> Record:
    """Return a record with what was changed in its label file since it was written."""
    merged = dict(record)
    if item.label != written.label:
        merged["category_id"] = current["category_id"]
    if item.geometry != written.geometry or is_resized:
        merged.pop("segmentation", None)
        merged.update((name, current[name]) for name in ("bbox", "area", "segmentation") if name in current)
    for name, text in item.attributes.items():
        if written.attributes.get(name) != text:
            merged[name] = item.fields[name]
    return merged


def _is_resized(record: Record, image: ReadImage) -> bool:
    """Return whether another picture has taken the file's place."""
    size_hw = (record["height"], record["width"])
    return image.header is not None and size_hw not in (image.header.stored_hw, image.header.upright_hw)


def _with_size_of(image: ReadImage, record: Record) -> Record:
    return {**record, "height": image.record["height"], "width": image.record["width"]}


def _categories(
    records: Sequence[Record], labels: Mapping[int, str], names: Mapping[str, str]
) -> tuple[list[Record], dict[str, int]]:
    """Return (the categories with their names as they are now, the category id of each label)."""
    categories = []
    category_of: dict[str, int] = {}
    for record in records:
        label = labels[record["id"]]
        category_of.setdefault(label, record["id"])
        name = names.get(label, record["name"])
        categories.append(record if name.strip() == record["name"].strip() else {**record, "name": name})
    fresh = _fresh_ids(records)
    for label, name in names.items():
        if label not in category_of:
            category_of[label] = next(fresh)
            categories.append({"id": category_of[label], "name": name})
    return categories, category_of


def _fresh_ids(records: Sequence[Record]) -> Iterator[int]:
    used = [record["id"] for record in records if isinstance(record.get("id"), int)]
    first = max(used, default=0) + 1
    return iter(range(first, 2**63))


def _check(kept: KeptSplit) -> None:
    """Raise some error unless everything that restoring looks at is there and splits have names of files."""
    if kept.name in ("", ".", "..") or "/" in kept.name or "\0" in kept.name:
        raise ValueError(f"{kept.name!r} is no name of a split")
    for image in kept.document["images"]:
        image["file_name"].strip(), int(image["height"]), int(image["width"])
    for records in annotations_by_image(kept.document).values():
        for annotation in records:
            kept.labels[annotation["category_id"]], [float(value) for value in annotation["bbox"]]
    for category in kept.document["categories"]:
        kept.labels[category["id"]], category["name"].strip()


def _damaged(file: Path, reason: str) -> DataError:
    return DataError(
        f"the sidecar is damaged: {reason}",
        where=str(file),
        fix="restore it from a copy, or delete the file to use the label files alone",
    )

"""Findings about ids, file names, categories, and how many objects the images hold."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Bool

from detronome.data.check.boxes import geometry_of
from detronome.data.check.collector import Collector
from detronome.data.check.table import AnnotationTable

__all__ = ["check_records"]

_EXACT_IN_FLOATS = 2**53


def check_records(table: AnnotationTable, found: Collector, *, queries: int) -> None:
    """Add what is odd about the records of a file; `queries` is how many objects a model finds in one image."""
    _check_ids(table, found)
    _check_file_names(table, found)
    _check_categories(table, found)
    _check_counts(table, found, queries)


def _check_ids(table: AnnotationTable, found: Collector) -> None:
    found.annotations(
        table.lacks_id,
        "annotation_id_missing",
        "note",
        "annotation has no id | annotations have no id",
        effect="they are numbered for training; pycocotools and tools on top of it stop",
        fix="--fix numbers them",
        is_fixable=True,
    )
    found.annotations(
        table.has_id & (table.ids == 0),
        "annotation_id_zero",
        "warning",
        "annotation has the id 0 | annotations have the id 0",
        effect="pycocotools, and whatever evaluates as it does, counts this object as missed even when it is found",
        fix="number annotations from 1; --fix gives it a new id",
        is_fixable=True,
    )
    found.annotations(
        _has_earlier_id(table),
        "annotation_id_duplicate",
        "warning",
        "annotation id is used twice | annotation ids are used twice",
        effect="training uses all of them; pycocotools evaluates only the last one of each id",
        fix="give each annotation its own id; --fix renumbers the later ones",
        is_fixable=True,
    )
    huge = [
        f"{one} {identity}"
        for one, ids in (
            ("image", table.image_ids),
            ("category", table.category_ids),
            ("annotation", table.ids[table.has_id]),
        )
        for identity in ids[(ids > _EXACT_IN_FLOATS) | (ids < -_EXACT_IN_FLOATS)].tolist()
    ]
    found.add(
        "id_huge",
        "note",
        "id is larger than 2^53 | ids are larger than 2^53",
        huge,
        effect="none here; JavaScript tools, and tables that make them floats, mix such ids up",
        fix="use smaller ids if such tools are used",
    )


def _has_earlier_id(table: AnnotationTable) -> Bool[np.ndarray, " A"]:
    """Return which annotations have the id of an earlier one, missing ids aside."""
    rows = np.flatnonzero(table.has_id)
    order = rows[np.argsort(table.ids[rows], kind="stable")]
    is_later = np.zeros(len(table), np.bool_)
    is_later[order[1:][np.diff(table.ids[order]) == 0]] = True
    return is_later


def _check_file_names(table: AnnotationTable, found: Collector) -> None:
    records: dict[Hashable, list[int]] = defaultdict(list)
    for row, name in enumerate(table.file_names):
        if name is not None:
            records[name].append(row)
    ids = table.image_ids
    found.add(
        "file_name_shared",
        "warning",
        "file has several image records | files have several image records",
        [
            f"{name}: images {', '.join(str(ids[row]) for row in rows[:4])}{', ...' if len(rows) > 4 else ''}"
            for name, rows in records.items()
            if len(rows) > 1
        ],
        effect="the picture is learned once per record, each time with the objects of the other as background",
        fix="merge the records: one image id for all annotations of the file",
    )


def _check_categories(table: AnnotationTable, found: Collector) -> None:
    names = table.category_names
    named = [f"{name!r} (id {identity})" for name, identity in zip(names, table.category_ids.tolist(), strict=True)]
    used = np.bincount(table.category[table.category >= 0], minlength=len(names))
    found.add(
        "category_unused",
        "note",
        "category has no annotation in this file | categories have no annotation in this file",
        [name for name, count in zip(named, used.tolist(), strict=True) if count == 0] if used.any() else [],
        effect="the model gets an output for them and cannot learn it; evaluation leaves them out of the mean",
        fix="nothing to do where other splits have them; remove them otherwise",
    )
    found.add(
        "category_name_empty",
        "note",
        "category has an empty name | categories have an empty name",
        [one for one, name in zip(named, names, strict=True) if name is not None and not name.strip()],
        effect="pictures and tables show nothing for them",
        fix="give them names",
    )
    found.add(
        "category_name_duplicate",
        "warning",
        "name is that of several categories | names are those of several categories",
        _alike(named, [name if name and name.strip() else None for name in names]),
        effect="they are learned as different classes that compete for the same objects",
        fix="merge them into one category, or name them apart",
    )
    found.add(
        "category_names_alike",
        "warning",
        "name differs from another category's only in capital letters or spaces | "
        "names differ from other categories' only in capital letters or spaces",
        _alike(named, [_folded(name) for name in names], but_not=names),
        effect="they are learned as different classes, probably of the same objects",
        fix="merge them into one category",
    )


def _folded(name: str | None) -> str | None:
    return "".join(name.casefold().replace("_", " ").replace("-", " ").split()) or None if name else None


def _alike(named: Sequence[str], keys: Sequence[str | None], but_not: Sequence[str | None] = ()) -> list[str]:
    """Return the groups of categories whose keys are equal (but not all their `but_not`), each as words."""
    groups: dict[str, list[int]] = defaultdict(list)
    for row, key in enumerate(keys):
        if key is not None:
            groups[key].append(row)
    return [
        " and ".join(named[row] for row in rows)
        for rows in groups.values()
        if len(rows) > 1 and not (but_not and len({but_not[row] for row in rows}) == 1)
    ]


def _check_counts(table: AnnotationTable, found: Collector, queries: int) -> None:
    if not len(table.image_ids):
        return
    all_counts = np.bincount(table.image[table.image >= 0], minlength=len(table.image_ids))
    if not all_counts.any():
        found.add(
            "no_annotations",
            "warning",
            "no image has an annotation",
            [f"{len(table.image_ids)} images"],
            effect="training learns to find nothing; evaluation has nothing to measure",
            fix="check the export, or the ids that tie annotations to images",
        )
        return
    found.images(
        all_counts == 0,
        "image_without_annotations",
        "note",
        "image has no annotation | images have no annotation",
        effect="they are learned as pure background, which is right if nothing is there; official COCO has 1,021",
        fix="look at some: were they never annotated?",
    )
    geometry = geometry_of(table)
    is_object = (table.image >= 0) & (np.nan_to_num(table.iscrowd) == 0) & geometry.is_solid
    counts = np.bincount(table.image[is_object], minlength=len(table.image_ids))
    found.images(
        counts > queries,
        "more_objects_than_queries",
        "warning",
        f"image holds more objects than a model with {queries} queries can find | "
        f"images hold more objects than a model with {queries} queries can find",
        detail=lambda row: f"{counts[row]} objects",
        effect="there is no query for the others: they are never found",
        fix=f"take a model with more queries, e.g. {_round_up(int(counts.max()))}, or cut the images into tiles",
    )


def _round_up(count: int) -> int:
    return -(-count * 3 // 2 // 50) * 50

"""Findings about the splits of a data set together: categories that differ, classes that only some of them show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from detronome.data.check.findings import SHOWN, Finding, Severity, phrase
from detronome.data.check.table import AnnotationTable

__all__ = ["check_splits"]


def check_splits(
    tables: Sequence[tuple[str, AnnotationTable]], where: str, *, max_cases: int | None = SHOWN
) -> list[Finding]:
    """Return what is wrong between the split that is trained on and each of the others, given by name."""
    train = next((pair for pair in tables if pair[0].startswith("train")), None)
    if train is None:
        return []
    findings = []
    for other in tables:
        if other is not train:
            findings += _compare(train, other, where)
    return [replace(finding, cases=finding.cases[:max_cases]) for finding in findings]


def _compare(train: tuple[str, AnnotationTable], other: tuple[str, AnnotationTable], where: str) -> list[Finding]:
    (train_name, train_table), (other_name, other_table) = train, other
    ours, theirs = _names(train_table), _names(other_table)
    renamed = [
        f"id {identity} is {ours[identity]!r} in {train_name}, {name!r} in {other_name}"
        for identity, name in theirs.items()
        if identity in ours and _folded(ours[identity]) != _folded(name)
    ]
    id_of = {_folded(name): identity for identity, name in ours.items()}
    moved = [
        f"{name!r} is id {id_of[_folded(name)]} in {train_name}, {identity} in {other_name}"
        for identity, name in theirs.items()
        if identity not in ours and _folded(name) in id_of
    ]
    used_here, used_there = _counts(train_table), _counts(other_table)
    unknown = [
        f"{name!r} (id {identity}): {used_there[identity]} objects"
        for identity, name in theirs.items()
        if identity not in ours and _folded(name) not in id_of and identity in used_there
    ]
    unlearned = [
        f"{name!r} (id {identity}): {used_there[identity]} objects"
        for identity, name in theirs.items()
        if identity in ours and identity in used_there and identity not in used_here
    ]
    return [
        *_finding(
            "categories_differ",
            "error",
            f"category id means different things in {train_name} and {other_name} | "
            f"category ids mean different things in {train_name} and {other_name}",
            renamed + moved,
            where=where,
            effect="what the model learns under one id is measured as another class",
            fix="write both files with one list of categories",
        ),
        *_finding(
            "category_unknown_to_train",
            "error",
            f"category of {other_name} is missing from {train_name} | "
            f"categories of {other_name} are missing from {train_name}",
            unknown,
            where=where,
            effect=f"a model trained on {train_name} has no output for them: evaluation on {other_name} stops",
            fix="write both files with one list of categories",
        ),
        *_finding(
            "category_not_learned",
            "warning",
            f"category has objects in {other_name} but none in {train_name} | "
            f"categories have objects in {other_name} but none in {train_name}",
            unlearned,
            where=where,
            effect="their AP is 0 whatever is trained, and pulls the mean down",
            fix=f"annotate some in {train_name}, or split the images anew",
        ),
    ]


def _finding(
    code: str, severity: Severity, what: str, cases: list[str], *, where: str, effect: str, fix: str
) -> list[Finding]:
    if not cases:
        return []
    return [
        Finding(
            code=code,
            severity=severity,
            what=phrase(what, len(cases)),
            count=len(cases),
            cases=tuple(cases),
            where=where,
            effect=effect,
            fix=fix,
        )
    ]


def _names(table: AnnotationTable) -> dict[int, str]:
    pairs = zip(table.category_ids.tolist(), table.category_names, strict=True)
    return {identity: name for identity, name in pairs if name is not None}


def _folded(name: str) -> str:
    return name.strip().lower()


def _counts(table: AnnotationTable) -> dict[int, int]:
    """Return the annotations of each category that has any, by id."""
    rows, counts = np.unique(table.category[table.category >= 0], return_counts=True)
    return dict(zip(table.category_ids[rows].tolist(), counts.tolist(), strict=True))

"""What the data doctor says: findings, and the report that collects them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["SHOWN", "Change", "CheckReport", "Finding", "FixedFile", "Severity", "phrase"]

SHOWN = 5
"""How many cases a finding names, unless all are asked for."""

Severity = Literal["error", "warning", "note"]
"""`error`: training stops or learns something wrong. `warning`: something is lost. `note`: good to know."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One kind of defect in one file or folder, with all its cases counted and the first ones named."""

    code: str
    """Short name of the kind, stable across versions, e.g. `box_outside_image`."""
    severity: Severity
    what: str
    """A sentence without the count, which it agrees with: `boxes reach beyond the image`."""
    count: int
    cases: tuple[str, ...]
    """The first cases, each with the ids or names by which the user finds it."""
    where: str
    """The file or folder."""
    effect: str
    """What it does to training or evaluation."""
    fix: str
    """What to do about it."""
    is_fixable: bool = False
    """Whether `--fix` repairs it in the copy it writes."""
    split: str = ""
    """The split it is about; empty where it is about several, or the whole folder."""


def phrase(what: str, count: int) -> str:
    """Return the singular or the plural of `one file is missing | files are missing`; other text as it is."""
    singular, _, plural = what.rpartition(" | ")
    return singular if singular and count == 1 else plural


@dataclass(frozen=True, kw_only=True)
class Change:
    """One kind of change that a repair made."""

    what: str
    """What was done, in the past tense and without the count: `removed annotations with empty boxes`."""
    count: int
    cases: tuple[str, ...]
    """Every case, by id."""


@dataclass(frozen=True, kw_only=True)
class FixedFile:
    """The repaired copy of an annotation file."""

    source: str
    path: str
    """The copy; empty where nothing could be changed, and none was written."""
    changes: tuple[Change, ...]
    left: tuple[str, ...]
    """Errors that are left, of the images too: what only the owner can decide. Empty for a sound copy."""
    then: str = ""
    """What to do with the copy."""
    split: str = ""


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """Everything the doctor found in a data folder."""

    data: str
    checked: dict[str, int]
    """How many of what were looked at: `annotation files`, `images`, `annotations`, `image files`, ..."""
    findings: Sequence[Finding]
    seconds: float
    fixed: Sequence[FixedFile] = ()
    """The repaired copies that were written."""

    @property
    def worst(self) -> Severity | None:
        """The worst severity that occurs; None for a clean data set."""
        found = {finding.severity for finding in self.findings}
        return next((severity for severity in ("error", "warning", "note") if severity in found), None)

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {**asdict(self), "worst": self.worst}

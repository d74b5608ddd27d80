"""Gathering findings about one annotation file: rows in, counted and named cases out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool

from detronome.data.check.findings import SHOWN, Finding, Severity, phrase
from detronome.data.check.table import AnnotationTable

__all__ = ["Collector"]


class Collector:
    """The findings of one annotation file.

    Args:
        table: the file.
        max_cases: how many cases a finding names; None for all.
    """

    def __init__(self, table: AnnotationTable, max_cases: int | None = SHOWN) -> None:
        self._table = table
        self._max_cases = max_cases
        self.findings: list[Finding] = []

    def add(
        self,
        code: str,
        severity: Severity,
        what: str,
        cases: Sequence[str],
        *,
        effect: str,
        fix: str,
        count: int | None = None,
        is_fixable: bool = False,
    ) -> None:
        """Add a finding where there are cases; `count` where not all are given, `what` as `singular | plural`."""
        count = len(cases) if count is None else count
        if count:
            self.findings.append(
                Finding(
                    code=code,
                    severity=severity,
                    what=phrase(what, count),
                    count=count,
                    cases=tuple(cases[: self._max_cases]),
                    where=str(self._table.annotation_file),
                    effect=effect,
                    fix=fix,
                    is_fixable=is_fixable,
                )
            )

    def annotations(
        self,
        is_case: Bool[np.ndarray, " A"],
        code: str,
        severity: Severity,
        what: str,
        *,
        effect: str,
        fix: str,
        detail: Callable[[int], str] | None = None,
        is_fixable: bool = False,
    ) -> None:
        """Add a finding about the annotations of a mask; `detail` says what is odd about one."""
        self._add_rows(is_case, self._table.name_annotation, code, severity, what, effect, fix, detail, is_fixable)

    def images(
        self,
        is_case: Bool[np.ndarray, " I"],
        code: str,
        severity: Severity,
        what: str,
        *,
        effect: str,
        fix: str,
        detail: Callable[[int], str] | None = None,
        is_fixable: bool = False,
    ) -> None:
        """Add a finding about the images of a mask."""
        self._add_rows(is_case, self._table.name_image, code, severity, what, effect, fix, detail, is_fixable)

    def _add_rows(
        self,
        is_case: Bool[np.ndarray, " N"],
        name: Callable[[int], str],
        code: str,
        severity: Severity,
        what: str,
        effect: str,
        fix: str,
        detail: Callable[[int], str] | None,
        is_fixable: bool,
    ) -> None:
        rows: list[int] = np.flatnonzero(is_case).tolist()
        cases = [f"{name(row)}: {detail(row)}" if detail else name(row) for row in rows[: self._max_cases]]
        self.add(code, severity, what, cases, effect=effect, fix=fix, count=len(rows), is_fixable=is_fixable)

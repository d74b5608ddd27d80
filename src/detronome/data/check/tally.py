"""Counting cases that come one by one, by kind: of each kind the number and the first cases are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from detronome.data.check.findings import SHOWN, Finding, Severity, phrase

__all__ = ["Kind", "Tally"]


@dataclass(frozen=True)
class Kind:
    """What every finding of a kind says; see `Finding`."""

    severity: Severity
    what: str
    """`singular | plural`, or what suits both."""
    effect: str
    fix: str
    is_fixable: bool = False


class Tally:
    """The cases met, by kind.

    Args:
        kinds: by their codes, in the order in which findings are told.
        max_cases: how many cases of each are named; None for all.
    """

    def __init__(self, kinds: Mapping[str, Kind], max_cases: int | None = SHOWN) -> None:
        self._kinds = kinds
        self._max_cases = max_cases
        self._count = dict.fromkeys(kinds, 0)
        self._cases: dict[str, list[str]] = {code: [] for code in kinds}

    def add(self, code: str, case: str) -> None:
        """Count one case."""
        self._count[code] += 1
        if self._max_cases is None or len(self._cases[code]) < self._max_cases:
            self._cases[code].append(case)

    def findings(self, where: str) -> list[Finding]:
        """Return a finding for each kind of which there is a case."""
        return [
            Finding(
                code=code,
                severity=kind.severity,
                what=phrase(kind.what, self._count[code]),
                count=self._count[code],
                cases=tuple(self._cases[code]),
                where=where,
                effect=kind.effect,
                fix=kind.fix,
                is_fixable=kind.is_fixable,
            )
            for code, kind in self._kinds.items()
            if self._count[code]
        ]

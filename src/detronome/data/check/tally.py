"""Counting cases that come one by one, by kind: of each kind the number and the first cases are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from detronome.data.check.collector import SHOWN
from detronome.data.check.findings import Finding, Severity

__all__ = ["Kind", "Tally"]


@dataclass(frozen=True)
class Kind:
    """What every finding of a kind says; see `Finding`."""

    severity: Severity
    what: str
    effect: str
    fix: str


class Tally:
    """The cases met, by kind.

    Args:
        kinds: by their codes, in the order in which findings are told.
    """

    def __init__(self, kinds: Mapping[str, Kind]) -> None:
        self._kinds = kinds
        self._count = dict.fromkeys(kinds, 0)
        self._cases: dict[str, list[str]] = {code: [] for code in kinds}

    def add(self, code: str, case: str) -> None:
        """Count one case."""
        self._count[code] += 1
        if len(self._cases[code]) < SHOWN:
            self._cases[code].append(case)

    def findings(self, where: str) -> list[Finding]:
        """Return a finding for each kind of which there is a case."""
        return [
            Finding(
                code=code,
                severity=kind.severity,
                what=kind.what,
                count=self._count[code],
                cases=tuple(self._cases[code]),
                where=where,
                effect=kind.effect,
                fix=kind.fix,
            )
            for code, kind in self._kinds.items()
            if self._count[code]
        ]

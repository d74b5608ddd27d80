"""What an examination gives: facts from the checks, findings, and the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

__all__ = ["EXIT_CODES", "LEAST_LIMIT_S", "LIMIT_S", "MOST_LIMIT_S", "Examination", "Facts", "Finding", "Severity"]

LIMIT_S = 15.0
"""Of a whole examination, so that the command ends within 20 s on a busy machine too. A quiet one needs five."""

LEAST_LIMIT_S = 2.0
MOST_LIMIT_S = 3600.0

Facts = dict[str, Any]
"""What a probe found out: plain data, as it came through a pipe."""


class Severity(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    """It works, but slowly, unsafely, or not everything does."""
    FAILURE = "failure"
    """Something ends in an error, or must not be used."""


EXIT_CODES = {Severity.OK: 0, Severity.WARNING: 1, Severity.FAILURE: 2}
"""Of a command, by the worst that it has found."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was checked: sound, or with its cause and the command that repairs it."""

    check: str
    """Short name of what was checked, e.g. `pycocotools`."""
    severity: Severity = Severity.OK
    what: str
    """What is so, as a sentence without its full stop."""
    cause: str = ""
    fix: str = ""
    """A command to type; a comment begins with `#`."""
    evidence: str = ""
    """What was seen: versions, paths, the last line of an error."""
    group: str = ""


@dataclass(frozen=True, kw_only=True)
class Examination:
    """All findings, in the order of the groups."""

    version: str
    python: str
    executable: str
    platform: str
    findings: Sequence[Finding]
    seconds: float

    @property
    def worst(self) -> Severity:
        """The severity of the worst finding."""
        return max((finding.severity for finding in self.findings), key=list(Severity).index, default=Severity.OK)

    @property
    def exit_code(self) -> int:
        """0 all is well, 1 there are warnings, 2 there are failures."""
        return EXIT_CODES[self.worst]

    def count(self, severity: Severity) -> int:
        """Return how many findings are so bad."""
        return sum(finding.severity == severity for finding in self.findings)

    def to_record(self) -> dict[str, Any]:
        """Return plain data."""
        record = asdict(self)
        record["findings"] = [asdict(finding) for finding in self.findings]
        return {"verdict": str(self.worst), "exit_code": self.exit_code, **record}

"""The one exception family: every error says what was wrong, where, and how to fix it.

    DetronomeError
    ├── ConfigError        a setting: unknown key, wrong type, impossible combination
    ├── DataError          a data set: folder, annotation file, image
    ├── CheckpointError    a checkpoint: missing, damaged, made for another model
    ├── TrainingError      a run that cannot go on
    └── MissingExtraError  an optional package that is not installed

`assert` is for our own bugs; a mistake of the user always raises one of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DetronomeError",
    "MissingExtraError",
    "Problem",
    "TrainingError",
    "first_few",
    "nearest_name_hint",
]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One defect: what is wrong, where, and how to fix it."""

    what: str
    where: str = ""
    fix: str = ""

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.fix:
            lines.append(f"  fix:   {self.fix}")
        return "\n".join(lines)


class DetronomeError(Exception):
    """Base of all errors that a user's action can cause.

    Args:
        what: what is wrong, as one sentence, or all the problems of one kind at once.
        where: the file, key or option at fault.
        fix: what to do about it.

    Attributes:
        is_told: whether another process tells the user of it; None before the ranks of a run have met: it is the same
            on all of them then, and the main one tells it.
    """

    is_told: bool | None = None

    def __init__(self, what: str | Sequence[Problem], *, where: str = "", fix: str = "") -> None:
        if isinstance(what, str):
            self.problems: tuple[Problem, ...] = (Problem(what=what, where=where, fix=fix),)
        else:
            self.problems = tuple(what)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def __reduce__(self) -> tuple[object, ...]:
        # Errors travel between processes; a subclass's constructor may ask for what went into the text.
        return _from_problems, (type(self), self.problems), self.__dict__


class ConfigError(DetronomeError):
    """A setting is unknown, of the wrong type, or cannot work with the others."""


class DataError(DetronomeError):
    """A data folder, annotation file or image cannot be used as it is."""


class CheckpointError(DetronomeError):
    """A checkpoint is missing, damaged, or belongs to another model."""


class TrainingError(DetronomeError):
    """A run cannot go on."""


class MissingExtraError(DetronomeError):
    """An optional package is needed and not installed."""

    def __init__(self, package: str, *, extra: str, needed_for: str) -> None:
        super().__init__(
            f"{needed_for} needs the package {package!r}, which is not installed",
            fix=f"pip install 'detronome[{extra}]'",
        )


def _from_problems(kind: type[DetronomeError], problems: tuple[Problem, ...]) -> DetronomeError:
    error = kind.__new__(kind)
    DetronomeError.__init__(error, problems)
    return error


def first_few(cases: Sequence[str], *, most: int = 5, separator: str = ", ") -> str:
    """Return the first cases for a message, and how many more there are."""
    more = f" and {len(cases) - most:,} more" if len(cases) > most else ""
    return separator.join(cases[:most]) + more


def nearest_name_hint(name: str, known: Sequence[str]) -> str:
    """Return a fix for an unknown name: the nearest known one, or the whole list when none is near."""
    near = get_close_matches(name, known, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"known names: {', '.join(sorted(known))}" if known else ""

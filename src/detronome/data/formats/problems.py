"""Everything that is wrong with the label files of a folder, collected while they are read."""

from __future__ import annotations

from pathlib import Path

from detronome.errors import DataError, Problem, first_few

__all__ = ["LabelProblems"]


class LabelProblems:
    """Defects grouped by kind, in the order in which the kinds were met."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._cases: dict[tuple[str, str], list[str]] = {}

    def __bool__(self) -> bool:
        return bool(self._cases)

    def add(self, what: str, file: Path, detail: str, *, fix: str, line: int | None = None) -> None:
        """Note one case of a defect.

        Args:
            what: the kind, as a sentence in the plural.
            file: the file at fault.
            detail: what stands there, e.g. `class 80, but names has 80 classes`.
            fix: what to do about the kind.
            line: the line in the file, counted from 1.
        """
        place = self.name_of(file) if line is None else f"{self.name_of(file)}:{line}"
        self._cases.setdefault((what, fix), []).append(f"{place}: {detail}" if detail else place)

    def name_of(self, file: Path) -> str:
        """Return a file's path as messages should name it: relative to the data folder where it lies inside."""
        return str(file.relative_to(self._root)) if file.is_relative_to(self._root) else str(file)

    def raise_if_any(self) -> None:
        """Raise all that was noted.

        Raises:
            DataError: one problem for each kind, with its first cases.
        """
        if self._cases:
            raise DataError(
                [
                    Problem(what=f"{what} (in {self._root})", where=first_few(cases, separator="; "), fix=fix)
                    for (what, fix), cases in self._cases.items()
                ]
            )

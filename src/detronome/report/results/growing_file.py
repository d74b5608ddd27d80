"""A file that grows for as long as the work goes on, and gets its name when it is whole."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

__all__ = ["GrowingFile", "partial_name"]


class GrowingFile:
    """A text file, written under a temporary name in the folder where it is to be.

    Args:
        path: its name when it is whole; the folder is made.

    Raises:
        OSError: the disk refuses; so do `write` and `close`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, self._temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-", suffix=".tmp")
        self._file = os.fdopen(descriptor, "w", encoding="utf-8", newline="")

    def write(self, text: str) -> None:
        """Append text."""
        self._file.write(text)

    def close(self, *, is_complete: bool) -> None:
        """Flush it to the disk and give it its name, in place of what an earlier work that broke off has left; what is
        not complete gets the name with `partial` in it."""
        try:
            with self._file as file:
                file.flush()
                os.fsync(file.fileno())
            os.chmod(self._temporary, 0o644)
            os.replace(self._temporary, self.path if is_complete else partial_name(self.path))
            if is_complete:
                partial_name(self.path).unlink(missing_ok=True)
        finally:
            Path(self._temporary).unlink(missing_ok=True)


def partial_name(path: Path) -> Path:
    """Return `detections.partial.json` for `detections.json`."""
    return path.with_name(f"{path.stem}.partial{path.suffix}")

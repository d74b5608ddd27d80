"""Folders and files that the user may not read: told by their path, never taken for empty."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from detronome.errors import DataError, Problem

__all__ = ["cannot_be_read", "require_readable"]

_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)
_FIX = "change its permissions, or run as a user who may read it"


def cannot_be_read(error: Exception, place: str | Path) -> DataError:
    """Return the error for a file or folder that the system refuses to read.

    Args:
        error: what the system said.
        place: what was to be read, where the error does not name the file itself.
    """
    return DataError([_problem(error, place)])


def require_readable(*folders: Path) -> None:
    """Refuse folders that may not be listed or entered; those that do not exist are left to others.

    Listing functions of the standard library pass over such folders, and what is in them seems not to be there.

    Raises:
        DataError: all those that cannot be read, but not what is in one of them that was given before.
    """
    problems: list[Problem] = []
    for folder in dict.fromkeys(folders):
        if not {problem.where for problem in problems}.isdisjoint(map(str, folder.parents)):
            continue
        try:
            with os.scandir(folder):
                pass
            if not os.access(folder, os.X_OK):
                raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        except ValueError:  # no name that a folder could have
            continue
        except OSError as error:
            if error.errno not in _NOT_THERE:
                problems.append(_problem(error, folder))
    if problems:
        raise DataError(problems)


def _problem(error: Exception, place: str | Path) -> Problem:
    reason = getattr(error, "strerror", None) or str(error)
    where = str(getattr(error, "filename", None) or place)
    return Problem(
        what=f"cannot be read: {reason}", where=where, fix=_FIX if isinstance(error, PermissionError) else ""
    )

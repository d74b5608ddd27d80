"""Putting image files into a new data folder: links, copies, or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Literal

from detronome.data.readable import cannot_be_read
from detronome.errors import DataError

__all__ = ["ImagePlacement", "place_image"]

ImagePlacement = Literal["symlink", "copy", "hardlink", "none"]

_NO_LINKS = (errno.EPERM, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)
"""What file systems without links answer; EINVAL: Windows, to a user who may make none."""


def place_image(source: Path, target: Path, how: ImagePlacement) -> None:
    """Put an image file at a new place, or do nothing for `none`.

    Raises:
        DataError: a file that cannot be read, or a hard link to another file system.
    """
    if how == "none":
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if how == "symlink":
        try:
            target.symlink_to(os.path.realpath(source))
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            raise _cannot_be_linked(error, source, fix="use --images copy, or --images hardlink") from error
    elif how == "copy":
        try:
            shutil.copy2(source, target)
        except PermissionError as error:
            if error.filename == str(source):
                raise cannot_be_read(error, source) from error
            raise
    else:
        try:
            os.link(os.path.realpath(source), target)
        except OSError as error:
            fix = "hard links need one file system that has them: use --images symlink or --images copy"
            raise _cannot_be_linked(error, source, fix=fix) from error


def _cannot_be_linked(error: OSError, source: Path, *, fix: str) -> DataError:
    return DataError(f"the image cannot be linked: {error.strerror or error}", where=str(source), fix=fix)

"""Writing a folder so that it appears whole or not at all, and putting images into it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from detronome.errors import DataError

__all__ = ["ImagePlacement", "place_image", "published_folder"]

ImagePlacement = Literal["symlink", "copy", "hardlink", "none"]


@contextmanager
def published_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `out`; on success everything in it is flushed and it becomes `out`.

    Raises:
        DataError: `out` exists and is not an empty folder, or cannot be written.
    """
    try:
        if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
            raise DataError(
                "the output exists and is not an empty folder", where=str(out), fix="name a new folder, or empty it"
            )
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-", suffix=".tmp"))
        try:
            yield temporary
            os.sync()  # one call for all of perhaps a hundred thousand files
            temporary.chmod(0o755)
            os.rename(temporary, out)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    except OSError as error:
        raise DataError(
            f"the output cannot be written: {error.strerror or error}",
            where=str(error.filename2 or error.filename or out),
            fix="check permissions and free space; nothing was left behind",
        ) from error


def place_image(source: Path, target: Path, how: ImagePlacement) -> None:
    """Put an image file at a new place, or do nothing for `none`.

    Raises:
        DataError: a hard link to another file system.
    """
    if how == "none":
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if how == "symlink":
        target.symlink_to(os.path.realpath(source))
    elif how == "copy":
        shutil.copy2(source, target)
    else:
        try:
            os.link(os.path.realpath(source), target)
        except OSError as error:
            raise DataError(
                f"the image cannot be linked: {error.strerror or error}",
                where=str(source),
                fix="hard links need one file system that has them: use --images symlink or --images copy",
            ) from error

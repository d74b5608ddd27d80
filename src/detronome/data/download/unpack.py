"""Unpacking a zip file without trusting it: plain files only, inside the target only, never more than expected.

Each file appears under its name when it is complete and its CRC-32 is right. A file that is there already is kept if it
is the same, and reported if it is another: nothing that exists is overwritten.
"""

from __future__ import annotations

import errno
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from detronome.data.download.members import Limits, checked_members
from detronome.errors import DataError, first_few
from detronome.runtime.descriptors import BINARY, NO_FOLLOW
from detronome.runtime.files import is_disk_full

__all__ = ["FileRecord", "bytes_to_unpack", "unpack"]

_BLOCK_BYTES = 2**20


class FileRecord(msgspec.Struct, frozen=True, array_like=True):
    """What is known of an unpacked file."""

    size_bytes: int
    crc32: int


def unpack(
    archive: Path,
    target: Path,
    *,
    limits: Limits,
    wanted: Callable[[str], bool] = lambda name: True,
    known_good: Container[str] = (),
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, FileRecord]:
    """Unpack what is not there yet, and return the wanted files of the archive by name.

    Args:
        archive: the zip file.
        target: the folder that gets the content; made if it does not exist.
        limits: the most that may come out.
        wanted: which members to unpack, by name; all are checked.
        known_good: names that need not be looked at.
        on_progress: told the bytes done, and of how many.

    Raises:
        DataError: the archive is damaged or not safe, the disk is full, or other files are in the way. Files that
            were complete stay.
    """
    with _as_data_errors(archive, target), zipfile.ZipFile(archive) as opened:
        members = [member for member in checked_members(opened, archive, limits) if wanted(member.filename)]
        total = sum(member.file_size for member in members)
        done = 0
        in_the_way: list[str] = []
        checked_dirs: set[str] = set()
        target.mkdir(parents=True, exist_ok=True)
        for member in members:
            if member.filename not in known_good:
                _make_dirs(target, member.filename.rpartition("/")[0], checked_dirs)
                path = target / member.filename
                if not os.path.lexists(path):
                    _unpack_member(opened, member, path)
                elif not _is_same(path, member):
                    in_the_way.append(member.filename)
            done += member.file_size
            on_progress(done, total)
    if in_the_way:
        raise DataError(
            f"{len(in_the_way):,} files are not those of the archive, and were left as they are",
            where=f"{target}: {first_few(in_the_way)}",
            fix="delete them, or move them away, and run the same command again: only they will be unpacked",
        )
    return {member.filename: FileRecord(member.file_size, member.CRC) for member in members}


def bytes_to_unpack(archive: Path, target: Path) -> int:
    """Return the size of an archive's files whose names are not in the target yet; the archive is trusted."""
    with _as_data_errors(archive, target), zipfile.ZipFile(archive) as opened:
        members = opened.infolist()
    return sum(member.file_size for member in members if not os.path.lexists(target / member.filename))


@contextmanager
def _as_data_errors(archive: Path, target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.EINVAL and error.filename is None:  # offsets in the archive that cannot be
            raise _damaged(archive, error) from error
        is_full = is_disk_full(error)
        raise DataError(
            "the disk is full" if is_full else f"the archive cannot be unpacked: {error.strerror or error}",
            where=str(error.filename or target),
            fix="make room and run the same command again: what is complete is kept" if is_full else "",
        ) from error
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, ValueError) as error:
        raise _damaged(archive, error) from error


def _damaged(archive: Path, error: Exception) -> DataError:
    return DataError(f"the archive is damaged: {error}", where=str(archive), fix="delete it and download it again")


def _make_dirs(target: Path, relative: str, checked: set[str]) -> None:
    """Make a member's folder, and refuse links in it: what is unpacked through one would land elsewhere."""
    if relative in checked:
        return
    if relative:
        _make_dirs(target, relative.rpartition("/")[0], checked)
        path = target / relative
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise DataError(
                "a link or file is where a folder of the archive should go",
                where=str(path),
                fix="give the folder that it leads to as the place of the data, or move it away",
            )
        path.mkdir(exist_ok=True)
    checked.add(relative)


def _unpack_member(opened: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.unpacking")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | NO_FOLLOW | BINARY, 0o644)
    try:
        with os.fdopen(descriptor, "wb") as file, opened.open(member) as content:
            written = 0
            while block := content.read(_BLOCK_BYTES):
                written += len(block)
                if written > member.file_size:
                    raise zipfile.BadZipFile(f"{member.filename!r} unpacks to more than it says")
                file.write(block)
            if written != member.file_size:
                raise zipfile.BadZipFile(f"{member.filename!r} ends early")
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _is_same(path: Path, member: zipfile.ZipInfo) -> bool:
    if path.is_symlink() or not path.is_file() or path.stat().st_size != member.file_size:
        return False
    crc32 = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            crc32 = zlib.crc32(block, crc32)
    return crc32 == member.CRC

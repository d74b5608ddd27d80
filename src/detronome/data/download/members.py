"""What a zip file's directory says is in it, judged before a byte is unpacked: nothing in it is trusted."""

from __future__ import annotations

import itertools
import stat
import unicodedata
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from detronome.errors import DataError, Problem, first_few

__all__ = ["Limits", "checked_members"]

_MAX_SHOWN_CHARS = 80
_MAX_NAME_BYTES = 200
_MAX_DEPTH = 16
_MAX_PATH_BYTES = 1024
_ENCRYPTED = 0x1 | 0x40 | 0x2000
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_DEBRIS_DIRS = {"__MACOSX"}
_DEBRIS_FILES = {".DS_Store"}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The most that an archive may unpack to."""

    max_members: int
    max_bytes: int
    max_ratio: float = 100.0
    """Of unpacked to packed bytes of one member; photographs have 1, annotations about 4."""


def checked_members(archive: zipfile.ZipFile, path: Path, limits: Limits) -> list[zipfile.ZipInfo]:
    """Return the files of an archive that are to be unpacked, in the order in which they lie in it.

    Folders are made as files need them; what macOS adds to archives is left out.

    Raises:
        DataError: the archive holds anything but plain files with plain, different names, or more than the limits.
    """
    members = archive.infolist()
    problems = list(_limit_problems(members, path, limits))
    cases: dict[str, list[str]] = {}
    for member in members:
        for defect in _defects(member, limits):
            cases.setdefault(defect, []).append(repr(member.orig_filename))
    for first, second in _collisions(members):
        cases.setdefault("names are used twice, upper and lower case apart", []).append(f"{first!r} and {second!r}")
    for first, second in _overlaps(members):
        cases.setdefault("members share bytes of the archive", []).append(f"{first!r} and {second!r}")
    for defect, names in cases.items():
        shown = first_few([name if len(name) < _MAX_SHOWN_CHARS else f"{name[:77]}..." for name in names])
        problems.append(Problem(what=f"the archive is not safe to unpack: {defect}", where=f"{path}: {shown}"))
    if problems:
        raise DataError(problems)
    return [member for member in members if not _is_dir(member) and not _is_debris(member.filename)]


def _limit_problems(members: Sequence[zipfile.ZipInfo], path: Path, limits: Limits) -> Iterator[Problem]:
    if len(members) > limits.max_members:
        what = f"the archive holds {len(members):,} entries where at most {limits.max_members:,} are expected"
        yield Problem(what=what, where=str(path))
    total = sum(member.file_size for member in members)
    if total > limits.max_bytes:
        what = f"the archive unpacks to {total:,} bytes where at most {limits.max_bytes:,} are expected"
        yield Problem(what=what, where=str(path))


def _defects(member: zipfile.ZipInfo, limits: Limits) -> Iterator[str]:
    yield from _name_defects(member)
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR) or (kind == stat.S_IFDIR and not _is_dir(member)):
        yield "members are links, devices or other things that are no files"
    if member.flag_bits & _ENCRYPTED:
        yield "members are encrypted"
    if member.compress_type not in _METHODS:
        yield f"members are packed with method {member.compress_type}, which is not used here"
    if member.file_size > limits.max_ratio * max(member.compress_size, 1):
        yield f"members unpack to more than {limits.max_ratio:.0f} times their size"


def _name_defects(member: zipfile.ZipInfo) -> Iterator[str]:
    # zipfile cuts a name at a null character and turns separators around; only the original tells.
    name = member.orig_filename
    if name != member.filename or "\\" in name or not name.isprintable():
        yield "names hold characters that no file of a data set has"
        return
    parts = name.removesuffix("/").split("/")
    if name.startswith("/") or (len(parts[0]) == 2 and parts[0][1] == ":"):
        yield "names are absolute paths"
    elif any(part in ("", ".", "..") for part in parts):
        yield "names lead out of the folder, or have empty or dotted parts"
    if (
        any(len(part.encode(errors="replace")) > _MAX_NAME_BYTES for part in parts)
        or len(name.encode(errors="replace")) > _MAX_PATH_BYTES
        or len(parts) > _MAX_DEPTH
    ):
        yield "names are too long or too deep"


def _collisions(members: Sequence[zipfile.ZipInfo]) -> Iterator[tuple[str, str]]:
    """Yield pairs of names that would be one file, or a file and a folder, where upper and lower case are the same."""
    dirs: dict[str, str] = {}
    files: dict[str, zipfile.ZipInfo] = {}
    for member in members:
        name = member.filename.removesuffix("/")
        places = [name[:end] for end, char in enumerate(name) if char == "/"]
        if _is_dir(member):
            places.append(name)
        else:
            first = files.setdefault(_folded(name), member)
            if first is not member:
                yield first.filename, name
        for place in places:
            other = dirs.setdefault(_folded(place), place)
            if other != place:
                yield other, place
    for folded in files.keys() & dirs.keys():
        yield files[folded].filename, f"{dirs[folded]}/"


def _is_dir(member: zipfile.ZipInfo) -> bool:
    return member.filename.endswith("/")  # its own method fails for an empty name


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _overlaps(members: Sequence[zipfile.ZipInfo]) -> Iterator[tuple[str, str]]:
    ordered = sorted(members, key=lambda member: member.header_offset)
    for first, second in itertools.pairwise(ordered):
        if first.header_offset + first.compress_size > second.header_offset:
            yield first.filename, second.filename


def _is_debris(name: str) -> bool:
    parts = name.split("/")
    return parts[0] in _DEBRIS_DIRS or parts[-1] in _DEBRIS_FILES

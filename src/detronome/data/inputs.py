"""What a person names to look for objects in: files, folders and patterns become images and videos in a fixed order,
each with a name that no other has."""

from __future__ import annotations

import fnmatch
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from detronome.data.formats.images import is_image_name, walk_files
from detronome.data.readable import require_readable
from detronome.errors import ConfigError, DataError, Problem

__all__ = ["VIDEO_SUFFIXES", "Input", "find_inputs"]

VIDEO_SUFFIXES = frozenset({".mp4", ".mkv", ".avi", ".mov", ".webm"})
_WILD = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Input:
    """An image or a video."""

    path: Path
    name: str
    """Unlike every other input's, upper and lower case being the same; no suffix, with forward slashes."""
    file_name: str
    """Within the folder that was named, with forward slashes; unlike every other input's too."""

    @property
    def is_video(self) -> bool:
        return self.path.suffix.lower() in VIDEO_SUFFIXES


def find_inputs(named: Iterable[str | Path], *, recursive: bool = False, besides: Path | None = None) -> list[Input]:
    """Return the images and videos that are meant, in the order of the names and, within a folder, of its files.

    A file is taken as it is; of a folder and of a pattern (`*`, `?`, `[...]`, `**` for folders of any depth), what ends
    like an image or a video and is not hidden. Nothing is taken twice. Links to folders are followed, never back up.

    Args:
        named: files, folders and patterns.
        recursive: take what is in the folders' subfolders too.
        besides: leave out what lies in this folder: results that would be taken for images.

    Raises:
        ConfigError: nothing is named.
        DataError: there is nothing of a name, or a folder may not be read; all of them at once.
    """
    problems: list[Problem] = []
    found: dict[Path, Input] = {}
    hidden_folder = None if besides is None else os.path.realpath(besides)
    for one in map(Path, named):
        try:
            files = list(_files_of(one, recursive))
        except DataError as error:
            problems += error.problems
            continue
        if not _exists(one) or one.is_dir():
            outside = [(folder, file) for folder, file in files if not _is_within(folder / file, hidden_folder)]
            if not outside:
                problems.append(_only_within(one, besides) if files else _nothing(one, recursive))
            files = outside
        for folder, file in files:
            path = folder / file
            name = PurePosixPath(file)
            found.setdefault(_place(path), Input(path, str(name.with_suffix("")), str(name)))
    if not found and not problems:
        raise ConfigError("no images", fix="name image files, folders of them, or videos")
    if problems:
        raise DataError(problems)
    return _told_apart(list(found.values()))


def _files_of(named: Path, recursive: bool) -> Iterator[tuple[Path, str]]:
    """Yield (folder, path within it, with forward slashes)."""
    if named.is_dir():
        yield from ((named, file) for file in _files_in(named, recursive))
    elif _exists(named):
        yield named.parent, named.name
    elif _WILD.search(str(named)):
        parts = named.parts
        fixed = next(i for i, part in enumerate(parts) if _WILD.search(part))
        pattern = parts[fixed:]
        folder = Path(*parts[:fixed]) if fixed else Path()
        yield from (
            (folder, file)
            for file in _files_in(folder, len(pattern) > 1 or pattern == ("**",))
            if _matches(PurePosixPath(file).parts, pattern)
        )


def _files_in(folder: Path, recursive: bool) -> list[str]:
    require_readable(folder)
    if not folder.is_dir():
        return []
    names = walk_files(folder) if recursive else (entry.name for entry in os.scandir(folder) if entry.is_file())
    return sorted(
        name
        for name in names
        if (is_image_name(name) or PurePosixPath(name).suffix.lower() in VIDEO_SUFFIXES)
        and not any(part.startswith(".") for part in PurePosixPath(name).parts)
    )


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Return whether a path's parts are those of a pattern; `**` stands for any number of folders."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        rest = pattern[1:] or ("*",)
        return any(_matches(parts[i:], rest) for i in range(len(parts)))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _exists(path: Path) -> bool:
    try:
        return os.path.lexists(path)
    except ValueError:  # a name that no file can have
        return False


def _place(path: Path) -> Path:
    """Return the path of a file, whatever leads to its folder; a link to a file stays a file of its own."""
    return path.parent.resolve() / path.name


def _is_within(path: Path, folder: str | None) -> bool:
    return folder is not None and (os.path.realpath(path.parent) + os.sep).startswith(folder + os.sep)


def _nothing(named: Path, recursive: bool) -> Problem:
    if not named.is_dir():
        if not _WILD.search(str(named)):
            return Problem(what="there is no such file or folder", where=str(named), fix="check the name")
        return Problem(what="no image or video matches", where=str(named), fix="check the pattern")
    fix = "name image files or folders of them" + ("" if recursive else "; --recursive looks in subfolders too")
    return Problem(what="no images", where=str(named), fix=fix)


def _only_within(named: Path, besides: Path | None) -> Problem:
    return Problem(
        what=f"all images there lie in the folder for the results, {besides}, where none are looked for",
        where=str(named),
        fix="choose another --out",
    )


def _told_apart(inputs: list[Input]) -> list[Input]:
    """Return the inputs with names of their own: with the folders that tell them apart, their suffixes, or a number."""
    for clashing in _clashes(inputs):
        places = [_place(inputs[i].path) for i in clashing]
        common = os.path.commonpath([place.parent for place in places])
        for i, place in zip(clashing, places, strict=True):
            file_name = place.relative_to(common).as_posix()
            inputs[i] = replace(inputs[i], name=str(PurePosixPath(file_name).with_suffix("")), file_name=file_name)
    for clashing in _clashes(inputs):
        for i in clashing:
            inputs[i] = replace(inputs[i], name=inputs[i].file_name)
    while remaining := _clashes(inputs):
        for clashing in remaining:
            # a video whose frames need a folder of that name gives way, not what lies in the folder
            by_length = sorted(clashing, key=lambda i: -len(inputs[i].name))
            for number, i in enumerate(by_length[1:], start=2):
                file = PurePosixPath(inputs[i].file_name)
                numbered = str(file.with_name(f"{file.stem}-{number}{file.suffix}"))
                inputs[i] = replace(inputs[i], name=f"{inputs[i].name}-{number}", file_name=numbered)
    return inputs


def _clashes(inputs: Sequence[Input]) -> list[list[int]]:
    """Return the positions of inputs that have the same name on a disk that takes `A` for `a`."""
    keys = [one.name.casefold() for one in inputs]
    videos = {key for key, one in zip(keys, inputs, strict=True) if one.is_video}
    if videos:  # their frames are named like files in a folder of the video's name
        above = ([key, *map(str, PurePosixPath(key).parents)] for key in keys)
        keys = [next((folder for folder in reversed(folders) if folder in videos), folders[0]) for folders in above]
    counts = Counter(keys)
    groups: dict[str, list[int]] = {}
    for i, key in enumerate(keys):
        if counts[key] > 1:
            groups.setdefault(key, []).append(i)
    return list(groups.values())

"""YOLO folders as Ultralytics and Roboflow write them: a folder or list of images a split, a text file an image.

    data.yaml               path, train, val, test (a folder, a list file, or several), names (a list or 0: name)
    images/<split>/a.jpg    labels/<split>/a.txt
    <split>/images/a.jpg    <split>/labels/a.txt        Roboflow's export
    classes.txt             one name a line where there is no data.yaml; or obj.names

An empty label file, or none, is an image without objects; a label file without an image is passed over. Category ids
are the class indices, so they count from 0. Paths may be written as on Windows, or be those of another machine, of
which the longest ending that exists in the folder counts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import yaml  # type: ignore[import-untyped, unused-ignore]

from detronome.data.formats.document import Record
from detronome.data.formats.images import is_file, is_image_name, list_images, walk_files
from detronome.data.formats.labels import LabelCodec, LabelFolder, LabelledImage, LabelSplit, is_split_name
from detronome.data.formats.problems import LabelProblems
from detronome.data.formats.yolo_lines import MOST_CLASSES, YoloCodec
from detronome.data.readable import cannot_be_read
from detronome.errors import DataError, Problem, first_few

__all__ = ["YoloFolder", "find_yolo", "label_path", "yolo_yaml"]

_YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_SPLIT_KEYS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""The split that each key of data.yaml stands for; of two keys for one split the first counts."""
_NAME_FILES = ("classes.txt", "obj.names", "classes.names", "labels/classes.txt")
_FLAT_SPLIT = "train"
_OPTIONAL_SPLIT = "test"
_ABSOLUTE = re.compile(r"/|[A-Za-z]:[/\\]|\\\\")


@dataclass(frozen=True)
class YoloFolder(LabelFolder):
    """A YOLO folder whose splits have been found."""

    root: Path
    sources: Mapping[str, Sequence[Path]]
    """The folders and list files of each split."""
    missing: Mapping[str, str]
    """What the yaml file names for a test split that is not there: it is often not given out."""
    names: Sequence[str] | None
    settings: Sequence[Path]
    bases: Sequence[Path]
    """What paths in list files may be relative to."""
    layout = "yolo"

    def split_names(self) -> list[str]:
        return list(self.sources)

    def missing_split(self, split: str) -> str:
        named = self.missing.get(_SPLIT_KEYS.get(split, split))
        return f"{self.settings[0].name} names {named} for it, where there are no images" if named else ""

    def settings_files(self) -> list[Path]:
        lists = [source for sources in self.sources.values() for source in sources if source.suffix == ".txt"]
        return [*self.settings, *lists]

    def codec(self, *, voc_one_based: bool) -> LabelCodec:
        return YoloCodec(None if self.names is None else len(self.names))

    def categories(self, labels: set[str]) -> dict[str, Record]:
        names = self.names
        if names is None:
            names = [f"class {i}" for i in range(max(map(int, labels), default=0) + 1)]
        return {str(i): {"id": i, "name": name} for i, name in enumerate(names)}

    def read_split(self, name: str) -> LabelSplit:
        problems = LabelProblems(self.root)
        files = list(dict.fromkeys(self._image_files(self.sources[name], problems)))
        problems.raise_if_any()
        images_dir = self._images_dir(self.sources[name], files)
        images = [
            LabelledImage(file, Path(os.path.relpath(file, images_dir)).as_posix(), self._label_file(file))
            for file in files
        ]
        _check_own_labels(images, problems)
        problems.raise_if_any()
        return LabelSplit(name, images_dir, images)

    def _image_files(self, sources: Sequence[Path], problems: LabelProblems) -> Iterator[Path]:
        for source in sources:
            if source.is_dir():
                yield from (source / name for name in list_images(source))
            else:
                yield from self._listed_files(source, problems)

    def _listed_files(self, source: Path, problems: LabelProblems) -> Iterator[Path]:
        try:
            text = source.read_text("utf-8-sig", errors="replace")
        except OSError as error:
            fix = "check its permissions"
            problems.add("lists of images cannot be read", source, error.strerror or str(error), fix=fix)
            return
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            bases = (source.parent, *self.bases)
            candidates = (_joined(base, text) for text in _spellings(line.strip()) for base in bases)
            found = next((file for file in candidates if is_file(file)), None)
            if found is not None:
                yield found
            else:
                fix = "write the paths relative to the list, or copy the images there"
                problems.add("lists name images that are not there", source, line.strip()[:200], fix=fix, line=number)

    def _images_dir(self, sources: Sequence[Path], files: Sequence[Path]) -> Path:
        if all(source.is_dir() for source in sources):
            return _common_folder(sources)
        return _common_folder([file.parent for file in files]) if files else self.root

    def _label_file(self, file: Path) -> Path:
        return self.root / label_path(file.relative_to(self.root) if file.is_relative_to(self.root) else file)


def _check_own_labels(images: Sequence[LabelledImage], problems: LabelProblems) -> None:
    """Refuse images that differ in their ending alone: one label file cannot say whose objects it holds."""
    first: dict[Path, LabelledImage] = {}
    for image in images:
        other = first.setdefault(image.label_file, image)
        if other is not image and is_file(image.label_file):
            fix = "rename one of the images and give it a label file, or remove it"
            detail = f"{other.file_name} and {image.file_name}"
            problems.add("label files belong to two images", image.label_file, detail, fix=fix)


def label_path(image: PurePath) -> Path:
    """Return the label file of an image: in `labels` for the last folder called `images`, or else beside it."""
    parts = list(image.parts)
    for i in reversed(range(len(parts) - 1)):
        if parts[i] == "images":
            parts[i] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def yolo_yaml(folders: Mapping[str, str], names: Sequence[str]) -> str:
    """Return the text of a data.yaml.

    Args:
        folders: the image folder of each split, relative to the file.
        names: the classes by index.
    """
    content: dict[str, Any] = {**folders, "nc": len(names), "names": dict(enumerate(names))}
    is_readable = all(name.isprintable() for name in names)  # other characters YAML may take for line breaks
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=is_readable, width=2**20)


def find_yolo(data_dir: Path) -> YoloFolder | None:
    """Return the YOLO data set in a folder, or None where there is none.

    Raises:
        DataError: its yaml file cannot be read or makes no sense.
    """
    found = _yaml_of(data_dir)
    if found is not None:
        return _from_yaml(data_dir, *found)
    sources = _sources_by_structure(data_dir)
    if not sources:
        return None
    file = next((data_dir / name for name in _NAME_FILES if (data_dir / name).is_file()), None)
    names = None if file is None else _read_names(file)
    return YoloFolder(data_dir, sources, {}, names, [] if file is None else [file], [data_dir])


def _sources_by_structure(data_dir: Path) -> dict[str, list[Path]]:
    images, labels = data_dir / "images", data_dir / "labels"
    labelled = {file.stem for file in labels.glob("*.txt")}
    if any(file.stem in labelled and is_image_name(file.name) for file in images.glob("*")):
        return {_FLAT_SPLIT: [images]}
    folders = {folder: images / folder.name for folder in sorted(labels.glob("*/"))}
    sources = {folder.name: [folder] for folder in folders.values() if _has_images(folder)}
    for folder in sorted(data_dir.glob("*/labels")):
        if is_split_name(folder.parent.name):
            folders[folder] = folder.parent / "images"
            if _has_images(folder.parent / "images"):
                sources[folder.parent.name] = [folder.parent / "images"]
    if sources:
        _check_images_of(folders, sources)
    return sources


def _check_images_of(folders: Mapping[Path, Path], sources: Mapping[str, Sequence[Path]]) -> None:
    """Refuse splits of which only the label files are there, beside others that are whole."""
    found = {folder for listed in sources.values() for folder in listed}
    problems = [
        Problem(
            what="a split has label files and no images",
            where=str(labels),
            fix=f"put its images into {images}, or remove the folder",
        )
        for labels, images in folders.items()
        if images not in found and _is_wanted(labels, images) and next(labels.glob("*.txt"), None) is not None
    ]
    if problems:
        raise DataError(problems)


def _is_wanted(labels: Path, images: Path) -> bool:
    name = images.name if images.name != "images" else labels.parent.name
    return is_split_name(name) and not name.startswith(_OPTIONAL_SPLIT)


def _has_images(folder: Path) -> bool:
    return any(map(is_image_name, walk_files(folder)))


def _read_names(file: Path) -> list[str]:
    try:
        names = [line.strip() for line in file.read_text("utf-8-sig").rstrip().split("\n")]
    except UnicodeDecodeError as error:
        raise _not_utf8(file, error) from error
    except OSError as error:
        raise cannot_be_read(error, file) from error
    if "" in names:
        raise DataError(
            "the list of class names has an empty line",
            where=f"{file}:{names.index('') + 1}",
            fix="write one name a line: the line number is the class",
        )
    return names


def _yaml_of(data_dir: Path) -> tuple[Path, dict[str, Any]] | None:
    for name in _YAML_NAMES:
        if (data_dir / name).is_file():
            return data_dir / name, _load_yaml(data_dir / name)
    candidates = []
    for file in sorted([*data_dir.glob("*.yaml"), *data_dir.glob("*.yml")]):
        try:
            content = _load_yaml(file)
        except DataError:  # some other program's
            continue
        if _SPLIT_KEYS.keys() & content.keys() and {"names", "nc"} & content.keys():
            candidates.append((file, content))
    if len(candidates) > 1:
        raise DataError(
            f"{len(candidates)} files describe a YOLO data set: {', '.join(file.name for file, _ in candidates)}",
            where=str(data_dir),
            fix="call the one that counts data.yaml",
        )
    return candidates[0] if candidates else None


class _Loader(yaml.BaseLoader):
    """Plain text, and no aliases of lists and mappings: with them a few lines stand for more than memory holds."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        is_alias, mark = self.check_event(yaml.AliasEvent), self.peek_event().start_mark
        node = super().compose_node(parent, index)
        if is_alias and not isinstance(node, yaml.ScalarNode):
            raise yaml.MarkedYAMLError(None, None, "a list or mapping is used again by its alias", mark)
        return node


def _load_yaml(file: Path) -> dict[str, Any]:
    """Return the file's mapping; scalars stay text, so that a class called `no` is not False."""
    try:
        content = yaml.load(file.read_text("utf-8-sig"), Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{file}:{mark.line + 1}" if mark else str(file)
        fix = "correct the line; indentation is by spaces"
        raise DataError(f"the file is not valid YAML: {error.problem}", where=where, fix=fix) from error
    except UnicodeDecodeError as error:
        raise _not_utf8(file, error) from error
    except OSError as error:
        raise cannot_be_read(error, file) from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise DataError(f"the file cannot be read: {error}", where=str(file)) from error
    if not isinstance(content, dict):
        raise DataError(
            "the file is not a YOLO description", where=str(file), fix="write train, val and names as `key: value`"
        )
    return content


def _from_yaml(data_dir: Path, file: Path, content: dict[str, Any]) -> YoloFolder:
    if "kpt_shape" in content:
        raise DataError(
            "the label files hold key points, which are not read",
            where=f"{file}: kpt_shape",
            fix="export the data set for detection",
        )
    path = content.get("path")
    bases = [_joined(data_dir, path), data_dir] if isinstance(path, str) and path else [data_dir]
    names = _names(file, content)
    sources: dict[str, list[Path]] = {}
    missing: dict[str, str] = {}
    problems: list[Problem] = []
    for key, split in _SPLIT_KEYS.items():
        value = content.get(key)
        if not value or split in sources:
            continue
        listed = value if isinstance(value, list) else [value]
        values = [text for text in listed if isinstance(text, str) and text]
        found = [_resolve(text, bases) for text in values]
        if len(values) == len(listed) and all(found):
            sources[split] = [source for source in found if source is not None]
        elif split == _OPTIONAL_SPLIT:
            missing[split] = ", ".join(map(str, listed))
        else:
            absent = [str(text) for text in listed if not isinstance(text, str) or _resolve(text, bases) is None]
            problems.append(_no_images(file, key, absent, bases))
    if problems:
        raise DataError(problems)
    return YoloFolder(data_dir, sources, missing, names, [file], bases)


def _no_images(file: Path, key: str, absent: Sequence[str], bases: Sequence[Path]) -> Problem:
    is_empty = any(_is_folder(_joined(base, text)) for text in absent for base in bases)
    reason = "where there are no images" if is_empty else "which is not there"
    return Problem(
        what=f"{file.name} names {first_few(absent)} for {key}, {reason}",
        where=f"{file}:{_line_of(file, key)}: {key}",
        fix=f"correct the path of `{key}:` in {file.name}, or put the images there",
    )


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def _line_of(file: Path, key: str) -> int:
    lines = file.read_text("utf-8-sig").splitlines()
    return next((i for i, line in enumerate(lines, 1) if line.partition(":")[0].strip("'\"{ ") == key), 1)


def _not_utf8(file: Path, error: UnicodeDecodeError) -> DataError:
    line = error.object[: error.start].count(b"\n") + 1
    return DataError(
        f"the file is not UTF-8 text: byte 0x{error.object[error.start]:02x}",
        where=f"{file}:{line}",
        fix="save it as UTF-8",
    )


def _resolve(text: str, bases: Sequence[Path]) -> Path | None:
    """Return the folder with images or the list file that a value means."""
    for candidate in _spellings(text):
        for base in bases:
            path = _joined(base, candidate)
            if is_file(path) or _has_images(path):
                return path
    return None


def _spellings(path: str) -> Iterator[str]:
    """Yield what a path may mean: itself; as Roboflow writes it; as on Windows; its endings if it is absolute."""
    yield path
    if path.startswith("../"):
        yield path.removeprefix("../")
    plain = path.replace("\\", "/")
    if plain != path:
        yield plain.removeprefix("../")
    if _ABSOLUTE.match(path):
        parts = plain.split("/")
        for i in range(1, len(parts)):
            if parts[i]:
                yield "/".join(parts[i:])


def _common_folder(folders: Sequence[Path]) -> Path:
    return Path(os.path.commonpath([folder.absolute() for folder in folders]))


def _joined(base: Path, path: str) -> Path:
    return Path(os.path.normpath(base / path))


def _names(file: Path, content: dict[str, Any]) -> list[str] | None:
    names, count = content.get("names"), _whole_number(content.get("nc"))
    if isinstance(names, dict):
        ordered = [names.get(str(i)) for i in range(len(names))]
        if None in ordered:
            raise DataError(
                f"the classes are not numbered from 0 to {len(names) - 1}: there is no {ordered.index(None)}",
                where=f"{file}: names",
                fix="give every class index a name",
            )
        names = ordered
    if not names:
        if count and count > MOST_CLASSES:
            raise DataError(f"nc is {count:,}, and no class has a name", where=f"{file}: nc", fix="list the names")
        return [f"class {i}" for i in range(count)] if count else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError("names is not a list of names", where=f"{file}: names", fix="write `names: [cat, dog]`")
    if count is not None and count != len(names):
        raise DataError(
            f"nc is {count}, but names has {len(names)} classes", where=f"{file}: nc", fix="correct one of them"
        )
    return names


def _whole_number(text: object) -> int | None:
    is_number = isinstance(text, str) and text.isdecimal() and len(text) < 19
    return int(str(text)) if is_number else None

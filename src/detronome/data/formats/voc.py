"""Pascal VOC folders: an XML file for each image.

    Annotations/a.xml    JPEGImages/a.jpg    ImageSets/Main/<split>.txt    the devkit's, also as VOCdevkit/VOC2007/...
    <split>/a.xml        <split>/a.jpg                                     Roboflow's export
    a.xml                a.jpg                                             one split: train; also in images/
    label_map.pbtxt      optional: the ids of the classes; see `label_map` for other files

The size in a file says what its boxes refer to, as in COCO; where it is not the image's, the image's own is taken.
Images without an annotation file are not part of the data set. Category ids are those of the label map, or else
1, 2, ... in the order of the names of all splits. Of several years in one folder each split has the year in its name.
The devkit's trainval.txt is no split of its own where it only repeats the others.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

from detronome.data.formats.document import Record
from detronome.data.formats.images import is_file, is_image_name, list_images, walk_files
from detronome.data.formats.label_map import LABEL_MAP_NAME, read_label_map
from detronome.data.formats.labels import LabelCodec, LabelFolder, LabelledImage, LabelSplit, is_split_name
from detronome.data.formats.problems import LabelProblems
from detronome.data.formats.voc_xml import VocCodec
from detronome.errors import DataError, Problem, first_few

__all__ = ["VocFolder", "find_voc"]

_LABELS = "Annotations"
_ONLY_SPLIT = "train"
_BOTH = "trainval"
_OPTIONAL_SPLIT = "test"
"""Its annotations are often not given out."""
_LABEL_MAPS = (LABEL_MAP_NAME, "classes.txt", "labelmap.txt")
_YEAR = re.compile(r"VOC\d{4}")
_CLASS_LIST_LINE = re.compile(r"\S+\s+-?[01]")


@dataclass(frozen=True)
class _VocRoot:
    """One folder of XML files with the folder of their images."""

    labels_dir: Path
    images_dir: Path
    lists: Mapping[str, Path]
    """A file of names for each split; empty where there is one split with all XML files."""
    only_split: str


@dataclass(frozen=True)
class VocFolder(LabelFolder):
    """A Pascal VOC folder whose splits have been found."""

    root: Path
    roots: Sequence[_VocRoot]
    label_map: Path | None
    layout = "voc"

    def split_names(self) -> list[str]:
        return list(self._splits)

    def missing_split(self, split: str) -> str:
        for root in self.roots:
            if split in root.lists:
                return f"{root.lists[split].relative_to(self.root)} names images without annotations"
        return ""

    def settings_files(self) -> list[Path]:
        lists = [file for root in self.roots for file in root.lists.values()]
        return lists if self.label_map is None else [self.label_map, *lists]

    def codec(self, *, voc_one_based: bool) -> LabelCodec:
        return VocCodec(one_based=voc_one_based)

    def categories(self, labels: set[str]) -> dict[str, Record]:
        if self.label_map is None:
            if not labels:
                raise DataError(
                    "no annotation file has an object, so the classes are not known",
                    where=str(self.root),
                    fix="name them in classes.txt, one a line",
                )
            return {name: {"id": i, "name": name} for i, name in enumerate(sorted(labels), 1)}
        ids = read_label_map(self.label_map)
        unknown = sorted(labels - ids.keys())
        if unknown:
            raise DataError(
                f"objects have {len(unknown)} classes that the label map does not have: {first_few(unknown)}",
                where=str(self.label_map),
                fix="add them, or delete the file to number the classes by name",
            )
        return {name: {"id": category_id, "name": name} for name, category_id in ids.items()}

    def read_split(self, name: str) -> LabelSplit:
        root, stems = self._splits[name]
        problems = LabelProblems(self.root)
        available = _images_by_stem(root.images_dir)
        images = []
        for stem in dict.fromkeys(_list_xml(root.labels_dir) if stems is None else stems):
            label_file = root.labels_dir / f"{stem}.xml"
            if is_file(label_file):
                file_name = _image_name(stem, label_file, available)
                images.append(LabelledImage(root.images_dir / file_name, file_name, label_file))
            else:
                fix = "add the files; an image without objects has one without <object>"
                problems.add("annotation files are missing", label_file, f"listed in split {name}", fix=fix)
        problems.raise_if_any()
        return LabelSplit(name, root.images_dir, images)

    @cached_property
    def _splits(self) -> dict[str, tuple[_VocRoot, list[str] | None]]:
        """The folder of each split that has annotations, and the names its list gives."""
        found: dict[str, tuple[_VocRoot, list[str] | None]] = {}
        problems: list[Problem] = []
        for root in self.roots:
            if not root.lists:
                found[root.only_split] = (root, None)
            stems = {name: [_stem(root.labels_dir, entry) for entry in _lines(f)] for name, f in root.lists.items()}
            for name in sorted(stems, key=lambda name: name.startswith(_BOTH)):
                if any(is_file(root.labels_dir / f"{stem}.xml") for stem in stems[name]):
                    if not _repeats(name, stems):
                        found[name] = (root, stems[name])
                elif is_split_name(name) and not name.startswith(_OPTIONAL_SPLIT):
                    problems.append(_empty_list(root.lists[name], stems[name]))
        if problems:
            raise DataError(problems)
        return found


def _repeats(name: str, stems: Mapping[str, Sequence[str]]) -> bool:
    """Return whether a list is the devkit's `trainval`, and the other lists together say the same."""
    if not name.startswith(_BOTH):
        return False
    others = [stems[other] for other in stems if not other.startswith((_BOTH, _OPTIONAL_SPLIT))]
    return set(stems[name]) == {stem for listed in others for stem in listed}


def _empty_list(file: Path, stems: Sequence[str]) -> Problem:
    return Problem(
        what="the list of a split names no image with an annotation file" if stems else "the list of a split is empty",
        where=str(file),
        fix="name the split's images, one a line, or remove the file",
    )


def find_voc(data_dir: Path) -> VocFolder | None:
    """Return the Pascal VOC data set in a folder, or None where there is none."""
    devkit = _devkit_folders(data_dir)
    roots = [_devkit_root(folder, folder.name if len(devkit) > 1 else "") for folder in devkit]
    if not roots:
        folders = [folder for folder in sorted(data_dir.glob("*/")) if is_split_name(folder.name)]
        roots = [_VocRoot(folder, folder, {}, folder.name) for folder in folders if _has_pairs(folder)]
    if not roots:
        folders = [folder for folder in (data_dir, *_images_dirs(data_dir)) if _has_pairs(folder)]
        roots = [_VocRoot(folder, folder, {}, _ONLY_SPLIT) for folder in folders[:1]]
    if not roots:
        return None
    maps = (data_dir / name for name in _LABEL_MAPS)
    return VocFolder(data_dir, roots, next((file for file in maps if file.is_file()), None))


def _devkit_folders(data_dir: Path) -> list[Path]:
    if (data_dir / _LABELS).is_dir():
        candidates = [data_dir]
    else:
        found = [*data_dir.glob(f"*/{_LABELS}"), *data_dir.glob(f"VOCdevkit/*/{_LABELS}")]
        candidates = sorted(path.parent for path in found if not path.parent.name.startswith("."))
        if len(candidates) > 1:
            candidates = [folder for folder in candidates if _YEAR.fullmatch(folder.name)]
    return [folder for folder in candidates if _has_voc_xml(folder / _LABELS)]


def _devkit_root(folder: Path, of_several: str) -> _VocRoot:
    """Return a folder of the devkit; `of_several` is its name where splits need it to tell years apart."""
    images_dir = next(iter(_images_dirs(folder)), folder)
    ending = of_several.removeprefix("VOC")
    lists: dict[str, Path] = {}
    for place in (folder / "ImageSets", folder / "ImageSets" / "Main"):
        files = sorted(place.glob("*.txt"))
        lists.update((file.stem + ending, file) for file in files if not _is_class_list(file, files))
    return _VocRoot(folder / _LABELS, images_dir, lists, _ONLY_SPLIT + ending)


def _images_dirs(folder: Path) -> list[Path]:
    return [folder / name for name in ("JPEGImages", "images", "Images") if (folder / name).is_dir()]


def _is_class_list(file: Path, files: Sequence[Path]) -> bool:
    """Return whether a list is one of the devkit's lists of a class in a split: yes or no for each image."""
    if not any(file.stem.endswith(f"_{other.stem}") for other in files):
        return False
    return all(_CLASS_LIST_LINE.fullmatch(line) for line in _lines(file))


def _lines(file: Path) -> list[str]:
    text = file.read_text("utf-8-sig", errors="replace")
    return [line.strip() for line in text.split("\n") if line.strip()]


def _stem(labels_dir: Path, entry: str) -> str:
    """Return the name of an annotation file, without its ending, from a line of a list: with or without an ending."""
    is_plain = is_file(labels_dir / f"{entry}.xml") or not (is_image_name(entry) or _is_xml_name(entry))
    return entry if is_plain else str(PurePosixPath(entry).with_suffix(""))


def _has_voc_xml(folder: Path) -> bool:
    """Return whether the first XML file that comes up in a folder is an annotation."""
    first = next(filter(_is_xml_name, walk_files(folder)), None)
    if first is None:
        return False
    with (folder / first).open("rb") as file:
        return b"<annotation" in file.read(4096).replace(b"\0", b"")


def _has_pairs(folder: Path) -> bool:
    """Return whether annotations lie beside their images."""
    names = [PurePosixPath(name) for name in os.listdir(folder)]
    annotated = {name.stem for name in names if _is_xml_name(name.name)}
    is_paired = any(name.stem in annotated for name in names if is_image_name(name.name))
    return is_paired and _has_voc_xml(folder)


def _is_xml_name(name: str) -> bool:
    return name.endswith(".xml") and not name.rpartition("/")[2].startswith(".")


def _list_xml(folder: Path) -> list[str]:
    """Return the XML files in a folder and its subfolders, as sorted paths relative to it without their ending."""
    return sorted(name.removesuffix(".xml") for name in walk_files(folder) if _is_xml_name(name))


def _images_by_stem(images_dir: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in list_images(images_dir):
        found.setdefault(str(PurePosixPath(name).with_suffix("")), []).append(name)
    return found


def _image_name(stem: str, label_file: Path, available: Mapping[str, list[str]]) -> str:
    """Return the image of an annotation file: the one of its name, or else the one that it names itself."""
    candidates = available.get(stem, [])
    if len(candidates) == 1:
        return candidates[0]
    named = _named_file(label_file)
    name = (PurePosixPath(stem).parent / named).as_posix() if named else f"{stem}.jpg"
    if candidates and name not in candidates:
        return candidates[0]
    return name


def _named_file(label_file: Path) -> str:
    try:
        text = ElementTree.parse(label_file).getroot().findtext("filename") or ""
    except (OSError, ValueError, LookupError, ElementTree.ParseError):  # told when the file is read in earnest
        return ""
    return re.split(r"[/\\]", text.strip())[-1]

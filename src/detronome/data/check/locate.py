"""Which annotation files a check is about, and where their images lie. A missing image folder is a finding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from detronome.data.check.findings import Finding
from detronome.data.check.structure import unreadable_findings
from detronome.data.layout import available_splits, find_split
from detronome.data.split_files import SplitFiles
from detronome.errors import ConfigError, DataError

__all__ = ["Located", "fix_targets", "locate"]


_NO_IMAGES = "the split cannot be trained on or evaluated; its annotations were checked all the same"


@dataclass(frozen=True)
class Located:
    """One annotation file, and where its images lie, if that is known."""

    name: str
    annotation_file: Path
    files: SplitFiles | None = None


def locate(data: Path, splits: Sequence[str] | None, *, images: bool) -> tuple[list[Located], list[Finding]]:
    """Return the annotation files of a data folder, or the one file that `data` is, and what is missing.

    Raises:
        DataError: the folder, or a split that was asked for, does not exist.
    """
    if data.is_file():
        return [Located(data.stem, data)], []
    located: list[Located] = []
    findings: list[Finding] = []
    for name in dict.fromkeys(available_splits(data) if splits is None else splits):
        try:
            files = find_split(data, name)
            located.append(Located(files.name, files.annotation_file, files))
        except DataError as error:
            annotation_file = _annotation_file(data, name)
            if annotation_file is None:
                raise
            located.append(Located(name, annotation_file))
            if images:
                findings += unreadable_findings(error, "image_folder_missing", data, effect=_NO_IMAGES)
    return located, findings


def fix_targets(data: Path, located: Sequence[Located], fix: Path) -> dict[str, Path]:
    """Return where the repaired copy of each split goes: the file that was named, or the same place in that folder.

    Raises:
        ConfigError: one file for several splits, or a file that exists.
    """
    if fix.suffix.lower() == ".json":
        if len(located) != 1:
            names = ", ".join(split.name for split in located)
            raise ConfigError(
                f"one file cannot hold the repaired annotations of {len(located)} splits: {names}",
                where=str(fix),
                fix="choose one with --split, or name a folder that gets them all",
            )
        targets = {located[0].name: fix}
    elif data.is_file():
        targets = {located[0].name: fix / data.name}
    else:
        targets = {split.name: fix / _place(split, data) for split in located}
    existing = [str(path) for path in targets.values() if path.exists() or path.is_symlink()]
    if existing:
        raise ConfigError(
            f"files to write exist already: {', '.join(existing)}", where=str(fix), fix="name a new file or folder"
        )
    return targets


def _place(split: Located, data: Path) -> Path:
    """Return where the annotation file lies within the data folder; that of converted data lies in a cache."""
    if split.annotation_file.is_relative_to(data):
        return split.annotation_file.relative_to(data)
    return Path("annotations") / f"instances_{split.name}.json"


def _annotation_file(data: Path, name: str) -> Path | None:
    """Return the annotation file of a split whose images were not found."""
    candidates = (data / "annotations" / f"instances_{name}.json", data / name / "_annotations.coco.json")
    return next((path for path in candidates if path.is_file()), None)

"""Which annotation files a check is about, and where their images lie. A missing image folder is a finding."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from detronome.data.check.findings import Finding, FixedFile
from detronome.data.check.structure import unreadable_findings
from detronome.data.coco.layout import ROBOFLOW_FILE
from detronome.data.layout import available_splits, find_label_folder, find_split, recognise
from detronome.data.split_files import SplitFiles, resolve_name
from detronome.errors import ConfigError, DataError, Problem

__all__ = ["Located", "fix_targets", "locate", "next_step", "with_the_rest"]

_MORE = re.compile(r" and ([\d,]+) more$")

_NO_IMAGES = "the split cannot be trained on or evaluated; its annotations were checked all the same"


@dataclass(frozen=True)
class Located:
    """One annotation file, and where its images lie, if that is known."""

    name: str
    annotation_file: Path
    files: SplitFiles | None = None
    label_folder: Path | None = None
    """Where the label files lie from which the annotation file was compiled."""

    @property
    def shown_file(self) -> str:
        """What messages call the annotations."""
        return str(self.label_folder or self.annotation_file)


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
            located.append(Located(files.name, files.annotation_file, files, _label_folder(data, files)))
        except DataError as error:
            annotation_file = _annotation_file(data, name)
            if annotation_file is None:
                if not _is_label_split(data, name):
                    raise
                if not findings:  # a folder of label files is compiled as a whole
                    findings += [_label_finding(problem, data) for problem in error.problems]
                continue
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
                fix=f"--fix {fix.with_suffix('')} for a folder that gets them all, or choose one with --split",
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


def next_step(split: Located, target: Path, out: Path) -> str:
    """Return what to do with the repaired copy of a split.

    Args:
        split: what was repaired.
        target: the copy.
        out: the file or folder that was named for it.
    """
    steps = []
    if split.label_folder is None and (split.files is None or split.files.shards is None):
        steps.append(f"put it in place of {split.annotation_file}")
    if split.files is not None and split.files.shards is None:
        images = split.files.images_dir.absolute()
        if target.name == ROBOFLOW_FILE:
            steps.append(f"link {images} as {target.parent / 'images'}")
        elif out == target:
            file = f"annotations/instances_{split.name}.json"
            steps.append(f"make a folder with it as {file}, and link {images} as images/{split.name} there")
        else:
            steps.append(f"link {images} as {out / 'images' / split.name} and train on {out}")
    return ", or ".join(steps) or "make shards with it"


def with_the_rest(fixed: list[FixedFile], out: Path) -> list[FixedFile]:
    """Return the copies, whose next step names the files that have none."""
    rest = [copy.source for copy in fixed if not copy.path]
    if not rest or out.suffix.lower() == ".json":
        return fixed
    also = f"; to train on {out}, put {', '.join(rest)} there too"
    return [replace(copy, then=copy.then + also) if copy.path else copy for copy in fixed]


def _place(split: Located, data: Path) -> Path:
    """Return where the annotation file lies within the data folder; that of converted data lies in a cache."""
    if split.annotation_file.is_relative_to(data):
        return split.annotation_file.relative_to(data)
    return Path("annotations") / f"instances_{split.name}.json"


def _label_folder(data: Path, files: SplitFiles) -> Path | None:
    """Return where the label files of a split lie; None for a split that is not compiled from such."""
    if files.shards is not None or files.annotation_file.is_relative_to(data):
        return None
    labels = find_label_folder(data)
    images = labels.read_split(files.name).images if labels is not None else ()
    return images[0].label_file.parent if images else data


def _is_label_split(data: Path, name: str) -> bool:
    labels = find_label_folder(data) if recognise(data) in ("yolo", "voc") else None
    return labels is not None and resolve_name(name, labels.split_names()) is not None


def _label_finding(problem: Problem, data: Path) -> Finding:
    more = _MORE.search(problem.where)
    cases = tuple(_MORE.sub("", problem.where).split("; ")) if problem.where else ()
    return Finding(
        code="labels_unreadable",
        severity="error",
        what=problem.what.removesuffix(f" (in {data})"),
        count=max(1, len(cases)) + (int(more[1].replace(",", "")) if more else 0),
        cases=cases,
        where=str(data),
        effect="nothing of the data set can be used, and nothing else of it was checked",
        fix=problem.fix or "correct these files",
    )


def _annotation_file(data: Path, name: str) -> Path | None:
    """Return the annotation file of a split whose images were not found."""
    candidates = (data / "annotations" / f"instances_{name}.json", data / name / "_annotations.coco.json")
    return next((path for path in candidates if path.is_file()), None)

"""The data doctor: everything that can be checked of a data folder, in one report."""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from detronome.data.check.annotations import DEFAULT_QUERIES, check_table
from detronome.data.check.findings import SHOWN, CheckReport, Finding, FixedFile
from detronome.data.check.fix import fix_annotations
from detronome.data.check.image_repairs import ImageRepairs, plan_image_repairs
from detronome.data.check.images import check_images
from detronome.data.check.leakage import check_leakage
from detronome.data.check.locate import Located, fix_targets, locate, next_step, with_the_rest
from detronome.data.check.manifest import write_manifest
from detronome.data.check.panoptic import check_panoptic
from detronome.data.check.splits import check_splits
from detronome.data.check.structure import unreadable_findings
from detronome.data.check.table import AnnotationTable, read_table
from detronome.data.coco.panoptic_files import find_panoptic
from detronome.data.layout import find_split
from detronome.data.split_files import SplitFiles
from detronome.data.store.index import AnnotationIndex
from detronome.errors import DataError

__all__ = ["Progress", "check"]

Progress = Callable[[str, int, int], None]
"""Is told what is being looked at, how many of it are done, and how many there are (0 where that is unknown)."""


def check(
    data: Path,
    *,
    splits: Sequence[str] | None = None,
    images: bool = True,
    queries: int = DEFAULT_QUERIES,
    fix: Path | None = None,
    assume_xyxy: bool | None = None,
    manifest: Path | None = None,
    workers: int = 0,
    max_cases: int | None = SHOWN,
    on_progress: Progress | None = None,
) -> CheckReport:
    """Return all findings about a data folder, or about one annotation file; write repaired copies if asked to.

    Args:
        data: the folder, or a COCO JSON file, of which then only the annotations are checked.
        splits: names of the splits; None for all.
        images: whether to decode the image files too, and look for images that several splits share.
        queries: how many objects the model to be trained finds in one image at most.
        fix: where to write repaired annotations: a new file for one split, or a folder that gets those of all.
        assume_xyxy: whether boxes are [left, top, right, bottom], or surely are not; None where nobody said.
        manifest: folder with the SHA-256 of each split's image files in `<split>.sha256`: compared with the files where
            there is one, written where there is none.
        workers: processes that decode images; 0 for this one.
        max_cases: how many cases a finding names; None for all.
        on_progress: is told how far it is.

    Raises:
        ConfigError: `fix` is one file for several splits, exists already, or cannot be written.
        DataError: the folder, or a split that was asked for, does not exist; or a manifest is none.
    """
    start = time.monotonic()
    located, findings = locate(data, splits, images=images)
    if not located and not findings and not find_panoptic(data):
        find_split(data, "train")  # says which layouts a data folder may have
    targets = fix_targets(data, located, fix) if fix is not None and located else {}
    doctor = _Doctor(
        queries, assume_xyxy, manifest, workers, max_cases, bool(targets), on_progress or _silent, findings
    )
    fixed: list[FixedFile] = []
    with tempfile.TemporaryDirectory(prefix="detronome-check-") as scratch:
        for split in located:
            doctor.look_at(split, Path(scratch) if images else None)
        doctor.look_across(data, images=images)
        if not data.is_file():
            doctor.look_at_panoptic(data, located, all_splits=splits is None)
        if fix is not None:
            for split in located:
                fixed += doctor.repair(split, targets[split.name], fix)
            fixed = with_the_rest(fixed, fix)
    return CheckReport(
        data=str(data),
        checked=dict(doctor.checked),
        findings=doctor.findings,
        seconds=time.monotonic() - start,
        fixed=tuple(fixed),
    )


@dataclass
class _Doctor:
    """What was looked at so far, and what was found."""

    queries: int
    assume_xyxy: bool | None
    manifest: Path | None
    workers: int
    max_cases: int | None
    is_repairing: bool
    tell: Progress
    findings: list[Finding]
    checked: Counter[str] = field(default_factory=Counter)
    tables: dict[str, AnnotationTable] = field(default_factory=dict)
    """By split; without the files that are not even JSON objects."""
    indexes: dict[str, tuple[SplitFiles, AnnotationIndex]] = field(default_factory=dict)
    """By split; those whose images could be looked at."""
    image_repairs: dict[str, ImageRepairs] = field(default_factory=dict)
    """By split; where they are needed."""

    def look_at(self, split: Located, scratch: Path | None) -> None:
        """Check the annotations of a split, and its images where there is a folder for what that needs."""
        self.tell(f"annotations of {split.name}", 0, 0)
        self.checked["annotation files"] += 1
        try:
            table, defects = read_table(split.annotation_file)
        except DataError as error:
            self._add(split, unreadable_findings(error, "file_unreadable", split.annotation_file))
            return
        if self.assume_xyxy:
            table = table.with_boxes_of_corners()
        self.checked["images"] += len(table.image_ids)
        self.checked["annotations"] += len(table)
        about_images = self._look_at_images(split, table, scratch) if scratch is not None else []
        if split.name in self.image_repairs:
            table = table.with_sizes(self.image_repairs[split.name].sizes_wh)
        self.tables[split.name] = table
        about_annotations = check_table(
            table, defects, queries=self.queries, assume_xyxy=self.assume_xyxy, max_cases=self.max_cases
        )
        self._add(split, [*about_annotations, *about_images], scratch)

    def _add(self, split: Located, findings: list[Finding], scratch: Path | None = None) -> None:
        """Keep findings about a split, in whose texts no file of the cache or of this process's own is named."""
        hidden = [str(split.annotation_file)] if split.label_folder is not None else []
        if scratch is not None:
            hidden.append(str(_scratch_file(scratch, split)))
        self.findings += [_without(hidden, split.shown_file, replace(one, split=split.name)) for one in findings]

    def _look_at_images(self, split: Located, table: AnnotationTable, scratch: Path) -> list[Finding]:
        if split.files is None:
            return []
        try:
            index = _open_index(split, table, scratch)
        except DataError as error:
            return unreadable_findings(
                error, "images_not_checked", split.annotation_file, effect="its image files were not looked at"
            )
        manifest = self.manifest / f"{split.name}.sha256" if self.manifest is not None else None
        is_compared = manifest is not None and manifest.exists()
        found, counts = check_images(
            split.files,
            index,
            workers=self.workers,
            on_progress=partial(self.tell, f"images of {split.name}"),
            manifest=manifest if is_compared else None,
            max_cases=self.max_cases,
        )
        self.checked.update(counts)
        if manifest is not None and not is_compared:
            self.tell(f"digests of {split.name}", 0, 0)
            self.checked["new image digests"] += write_manifest(split.files, index, manifest)
        self.indexes[split.name] = split.files, index
        if not self.is_repairing and all(one.code != "image_size_differs" for one in found):
            return found
        repairs = plan_image_repairs(split.files, index, table)
        self.image_repairs[split.name] = repairs
        return [
            replace(one, is_fixable=True) if one.code == "image_size_differs" and repairs.sizes_wh else one
            for one in found
        ]

    def look_across(self, data: Path, *, images: bool) -> None:
        """Compare the splits."""
        self.findings += check_splits(list(self.tables.items()), str(data), max_cases=self.max_cases)
        if images and len(self.indexes) > 1:
            self.tell("images that splits share", 0, 0)
            found = check_leakage(list(self.indexes.values()), max_cases=self.max_cases)
            self.findings += [replace(finding, where=str(data)) for finding in found]

    def look_at_panoptic(self, data: Path, located: Sequence[Located], *, all_splits: bool) -> None:
        images_dirs = {split.name: split.files.images_dir if split.files else None for split in located}
        for json_file, png_dir in find_panoptic(data):
            name = json_file.stem.removeprefix("panoptic_")
            if all_splits or name in images_dirs:
                tell = partial(self.tell, f"panoptic maps of {name}")
                found, counts = check_panoptic(
                    json_file, png_dir, images_dirs.get(name), on_progress=tell, max_cases=self.max_cases
                )
                self.findings += [replace(finding, split=name) for finding in found]
                self.checked.update(counts)

    def repair(self, split: Located, target: Path, out: Path) -> list[FixedFile]:
        """Return the repaired copy, or nothing where a finding says why it cannot be made."""
        if split.name not in self.tables:
            return []
        self.tell(f"repairing {split.name}", 0, 0)
        try:
            copy = fix_annotations(
                split.annotation_file,
                target,
                assume_xyxy=self.assume_xyxy,
                image_repairs=self.image_repairs.get(split.name),
            )
        except DataError as error:
            self._add(
                split,
                unreadable_findings(error, "not_repaired", split.annotation_file, effect="no copy was written"),
            )
            return []
        then = next_step(split, target, out) if copy.path else ""
        return [replace(copy, source=split.shown_file, then=then, split=split.name)]


def _open_index(split: Located, table: AnnotationTable, scratch: Path) -> AnnotationIndex:
    """Return the index of a split; of a file that is not sound, one of the images that can be read.

    Raises:
        DataError: no image can be read, or the index cannot be written.
    """
    try:
        return AnnotationIndex.open(split.annotation_file)
    except DataError:
        images = {
            identity: {"id": identity, "file_name": name, "width": width, "height": height}
            for identity, name, (width, height) in zip(
                table.image_ids.tolist(), table.file_names, table.sizes_wh.tolist(), strict=True
            )
            if name is not None and math.isfinite(width) and math.isfinite(height)
        }
        copy = _scratch_file(scratch, split)
        categories = [{"id": 1, "name": "any"}]
        content = {"images": list(images.values()), "annotations": [], "categories": categories}
        copy.write_text(json.dumps(content), encoding="utf-8")
        return AnnotationIndex.open(copy)


def _scratch_file(scratch: Path, split: Located) -> Path:
    return scratch / f"{split.name}.json"


def _without(hidden: Sequence[str], shown: str, finding: Finding) -> Finding:
    """Return a finding that calls files by the name that the user knows."""

    def renamed(text: str) -> str:
        for path in hidden:
            text = text.replace(path, shown)
        return text

    return replace(
        finding,
        what=renamed(finding.what),
        where=renamed(finding.where),
        fix=renamed(finding.fix),
        cases=tuple(case for case in map(renamed, finding.cases) if case != shown),
    )


def _silent(what: str, done: int, total: int) -> None:
    """Tell nobody."""

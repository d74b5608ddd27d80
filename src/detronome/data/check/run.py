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

from detronome.data.check.annotations import DEFAULT_QUERIES, check_annotations
from detronome.data.check.findings import CheckReport, Finding, FixedFile
from detronome.data.check.fix import fix_annotations
from detronome.data.check.images import check_images
from detronome.data.check.leakage import check_leakage
from detronome.data.check.locate import Located, fix_targets, locate
from detronome.data.check.manifest import write_manifest
from detronome.data.check.panoptic import check_panoptic, find_panoptic
from detronome.data.check.splits import check_splits
from detronome.data.check.structure import unreadable_findings
from detronome.data.check.table import AnnotationTable
from detronome.data.check.unusable import HOPELESS, unusable_images
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
    on_progress: Progress | None = None,
) -> CheckReport:
    """Return all findings about a data folder, or about one annotation file; write repaired copies if asked to.

    Args:
        data: the folder, or a COCO JSON file, of which then only the annotations are checked.
        splits: names of the splits; None for all.
        images: whether to decode the image files too, and look for images that several splits share.
        queries: how many objects the model to be trained finds in one image at most.
        fix: where to write repaired annotations: a new file for one split, or a folder that gets those of all.
        assume_xyxy: see `fix_annotations`.
        manifest: folder with the SHA-256 of each split's image files in `<split>.sha256`: compared with the files where
            there is one, written where there is none.
        workers: processes that decode images; 0 for this one.
        on_progress: is told how far it is.

    Raises:
        ConfigError: `fix` is one file for several splits, exists already, or cannot be written.
        DataError: the folder, or a split that was asked for, does not exist; or a manifest is none.
    """
    start = time.monotonic()
    located, findings = locate(data, splits, images=images)
    if not located and not find_panoptic(data):
        find_split(data, "train")  # says which layouts a data folder may have
    targets = fix_targets(data, located, fix) if fix is not None else {}
    doctor = _Doctor(queries, manifest, workers, on_progress or _silent, findings)
    fixed: list[FixedFile] = []
    with tempfile.TemporaryDirectory(prefix="detronome-check-") as scratch:
        for split in located:
            table = doctor.look_at_annotations(split)
            if images:
                doctor.look_at_images(split, table, Path(scratch))
        doctor.look_across(str(data), images=images)
        if not data.is_file():
            doctor.look_at_panoptic(data, located, all_splits=splits is None)
        for split in located if targets else ():
            fixed += doctor.repair(split, targets[split.name], assume_xyxy)
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
    manifest: Path | None
    workers: int
    tell: Progress
    findings: list[Finding]
    checked: Counter[str] = field(default_factory=Counter)
    tables: dict[str, AnnotationTable] = field(default_factory=dict)
    """By split; without the files that are not even JSON objects."""
    indexes: dict[str, tuple[SplitFiles, AnnotationIndex]] = field(default_factory=dict)
    """By split; those whose images could be looked at."""

    def look_at_annotations(self, split: Located) -> AnnotationTable | None:
        self.tell(f"annotations of {split.name}", 0, 0)
        result = check_annotations(split.annotation_file, queries=self.queries)
        self.findings += result.findings
        self.checked["annotation files"] += 1
        if result.table is not None:
            self.tables[split.name] = result.table
            self.checked["images"] += len(result.table.image_ids)
            self.checked["annotations"] += len(result.table)
        return result.table

    def look_at_images(self, split: Located, table: AnnotationTable | None, scratch: Path) -> None:
        if split.files is None or table is None:
            return
        try:
            index = _open_index(split, table, scratch)
        except DataError as error:
            self.findings += unreadable_findings(
                error, "images_not_checked", split.annotation_file, effect="its image files were not looked at"
            )
            return
        manifest = self.manifest / f"{split.name}.sha256" if self.manifest is not None else None
        is_compared = manifest is not None and manifest.exists()
        found, counts = check_images(
            split.files,
            index,
            workers=self.workers,
            on_progress=partial(self.tell, f"images of {split.name}"),
            manifest=manifest if is_compared else None,
        )
        self.findings += [_with_repair(finding) for finding in found]
        self.checked.update(counts)
        if manifest is not None and not is_compared:
            self.tell(f"digests of {split.name}", 0, 0)
            self.checked["new image digests"] += write_manifest(split.files, index, manifest)
        self.indexes[split.name] = split.files, index

    def look_across(self, where: str, *, images: bool) -> None:
        self.findings += check_splits(list(self.tables.items()), where)
        if images and len(self.indexes) > 1:
            self.tell("images that splits share", 0, 0)
            self.findings += check_leakage(list(self.indexes.values()))

    def look_at_panoptic(self, data: Path, located: Sequence[Located], *, all_splits: bool) -> None:
        images_dirs = {split.name: split.files.images_dir if split.files else None for split in located}
        for json_file, png_dir in find_panoptic(data):
            name = json_file.stem.removeprefix("panoptic_")
            if all_splits or name in images_dirs:
                tell = partial(self.tell, f"panoptic maps of {name}")
                found, counts = check_panoptic(json_file, png_dir, images_dirs.get(name), on_progress=tell)
                self.findings += found
                self.checked.update(counts)

    def repair(self, split: Located, target: Path, assume_xyxy: bool | None) -> list[FixedFile]:
        """Return the repaired copy, or nothing where a finding says why it cannot be made."""
        if split.name not in self.tables:
            return []
        self.tell(f"repairing {split.name}", 0, 0)
        unusable = unusable_images(*self.indexes[split.name]) if split.name in self.indexes else {}
        try:
            copy = fix_annotations(split.annotation_file, target, assume_xyxy=assume_xyxy, unusable_images=unusable)
        except DataError as error:
            self.findings += unreadable_findings(
                error, "not_repaired", split.annotation_file, effect="no copy was written"
            )
            return []
        return [copy]


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
        copy = scratch / f"{split.name}.json"
        categories = [{"id": 1, "name": "any"}]
        content = {"images": list(images.values()), "annotations": [], "categories": categories}
        copy.write_text(json.dumps(content))
        return AnnotationIndex.open(copy)


def _with_repair(finding: Finding) -> Finding:
    if finding.code.removeprefix("image_") not in HOPELESS:
        return finding
    return replace(finding, is_fixable=True, fix=f"{finding.fix}; --fix removes their records")


def _silent(what: str, done: int, total: int) -> None:
    """Tell nobody."""

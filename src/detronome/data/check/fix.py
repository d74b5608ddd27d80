"""Writing the repaired copy of an annotation file. The user's file is only read."""

from __future__ import annotations

import json
from pathlib import Path

from detronome.data.check.annotations import check_annotations
from detronome.data.check.findings import Finding, FixedFile
from detronome.data.check.image_repairs import ImageRepairs
from detronome.data.check.no_gc import without_collector
from detronome.data.check.repair import MOST_REMOVED, repair
from detronome.data.coco.problems import parse_json
from detronome.errors import ConfigError, DataError
from detronome.runtime.files import write_atomic

__all__ = ["fix_annotations"]

_NAMED = 2


def fix_annotations(
    annotation_file: Path,
    out: Path,
    *,
    assume_xyxy: bool | None = None,
    image_repairs: ImageRepairs | None = None,
    most_removed: float = MOST_REMOVED,
) -> FixedFile:
    """Write a repaired copy of an annotation file, unless nothing in it can be changed.

    Args:
        annotation_file: the file to repair; it is only read.
        out: the file to write; it must not exist.
        assume_xyxy: whether boxes are [left, top, right, bottom] and become [left, top, width, height]; None where
            nobody said, and then a file whose boxes look so, or like another format, is not repaired.
        image_repairs: what to change in image records, from looking at the files.
        most_removed: the share of annotations, from 0 to 1, that may be removed.

    Raises:
        ConfigError: `out` exists, or cannot be written.
        DataError: the file is not a JSON object, its boxes look like another format, or too much would be removed.
    """
    if out.exists() or out.is_symlink():
        raise ConfigError("the file to write exists already", where=str(out), fix="name a new file")
    try:
        content = annotation_file.read_bytes()
    except OSError as error:
        raise DataError(
            f"the annotation file cannot be read: {error.strerror or error}", where=str(annotation_file)
        ) from error
    with without_collector():
        root = parse_json(content, annotation_file)
        del content
        changes = repair(
            root, annotation_file, assume_xyxy=assume_xyxy, image_repairs=image_repairs, most_removed=most_removed
        )
    left = image_repairs.left if image_repairs is not None else ()
    said = None if assume_xyxy is None else False  # corners have become widths and heights
    if not changes:
        return FixedFile(
            source=str(annotation_file), path="", changes=(), left=(*_errors(annotation_file, said), *left)
        )
    try:
        write_atomic(out, json.dumps(root))
    except OSError as error:
        raise ConfigError(f"the repaired file cannot be written: {error.strerror or error}", where=str(out)) from error
    except RecursionError as error:
        raise DataError("the annotation file is nested too deeply to be written", where=str(annotation_file)) from error
    del root
    return FixedFile(
        source=str(annotation_file), path=str(out), changes=tuple(changes), left=(*_errors(out, said), *left)
    )


def _errors(annotation_file: Path, assume_xyxy: bool | None) -> list[str]:
    findings = check_annotations(annotation_file, assume_xyxy=assume_xyxy).findings
    return [_in_words(finding) for finding in findings if finding.severity == "error"]


def _in_words(finding: Finding) -> str:
    hidden = finding.count - _NAMED
    return f"{finding.what}: {', '.join(finding.cases[:_NAMED])}" + (f" and {hidden:,} more" if hidden > 0 else "")

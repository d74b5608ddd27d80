"""Writing the repaired copy of an annotation file. The user's file is only read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from detronome.data.check.annotations import check_annotations
from detronome.data.check.findings import FixedFile
from detronome.data.check.no_gc import without_collector
from detronome.data.check.repair import repair
from detronome.data.coco.problems import parse_json
from detronome.errors import ConfigError, DataError
from detronome.runtime.files import write_atomic

__all__ = ["fix_annotations"]


def fix_annotations(
    annotation_file: Path,
    out: Path,
    *,
    assume_xyxy: bool | None = None,
    unusable_images: Mapping[int, str] | None = None,
) -> FixedFile:
    """Write a repaired copy of an annotation file.

    Args:
        annotation_file: the file to repair; it is only read.
        out: the file to write; it must not exist.
        assume_xyxy: whether boxes are [left, top, right, bottom] and become [left, top, width, height]; None where
            nobody said, and then a file whose boxes look so is not repaired.
        unusable_images: images to remove with their annotations, and why, by id.

    Raises:
        ConfigError: `out` exists, or cannot be written.
        DataError: the file is not a JSON object, or its boxes look like [left, top, right, bottom].
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
        changes = repair(root, annotation_file, assume_xyxy=assume_xyxy, unusable_images=unusable_images or {})
    try:
        write_atomic(out, json.dumps(root))
    except OSError as error:
        raise ConfigError(f"the repaired file cannot be written: {error.strerror or error}", where=str(out)) from error
    except RecursionError as error:
        raise DataError("the annotation file is nested too deeply to be written", where=str(annotation_file)) from error
    del root
    left = sum(finding.severity == "error" for finding in check_annotations(out).findings)
    return FixedFile(source=str(annotation_file), path=str(out), changes=tuple(changes), left=left)

"""A list of the SHA-256 of all image files, in the format of `sha256sum`: what shows a flipped bit that decodes.

`sha256sum -c` reads it too, from within the image folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from detronome.data.check.findings import SHOWN, Finding
from detronome.data.check.tally import Kind, Tally
from detronome.data.split_files import SplitFiles
from detronome.data.store.index import AnnotationIndex
from detronome.errors import DataError
from detronome.runtime.files import sha256_of, write_atomic

__all__ = ["compare_manifest", "write_manifest"]

_LINE = re.compile(r"(\\?)([0-9a-f]{64}) [ *](.+)", re.DOTALL)
_ESCAPES = {"\\": "\\\\", "\n": "\\n", "\r": "\\r"}
_KINDS: Mapping[str, Kind] = {
    "image_changed": Kind(
        "error",
        "image file is not the one that the manifest was written for | "
        "image files are not those that the manifest was written for",
        "training sees other pixels than those that were annotated",
        "restore these files from a copy, or write the manifest again if the change was meant",
    ),
    "image_unlisted": Kind(
        "note",
        "image file is not in the manifest | image files are not in the manifest",
        "changes of them go unnoticed",
        "write the manifest again",
    ),
}


def write_manifest(files: SplitFiles, index: AnnotationIndex, manifest: Path) -> int:
    """Write the SHA-256 of each image file of a split that can be read; return how many there are.

    Args:
        files: where the split lies.
        index: its annotations.
        manifest: the file to write; one of that name is replaced.
    """
    lines = []
    for name, digest in _digests(files, index):
        escaped = "".join(_ESCAPES.get(letter, letter) for letter in name)
        lines.append(f"{'' if escaped == name else chr(92)}{digest}  {escaped}\n")
    write_atomic(manifest, "".join(lines))
    return len(lines)


def compare_manifest(
    files: SplitFiles, index: AnnotationIndex, manifest: Path, *, max_cases: int | None = SHOWN
) -> list[Finding]:
    """Return findings for the image files that are not as the manifest has them; missing ones are left aside.

    Raises:
        DataError: the manifest cannot be read, or is none.
    """
    listed = _read(manifest)
    found = Tally(_KINDS, max_cases)
    for name, digest in _digests(files, index):
        if name not in listed:
            found.add("image_unlisted", name)
        elif listed[name] != digest:
            found.add("image_changed", name)
    return found.findings(str(manifest))


def _digests(files: SplitFiles, index: AnnotationIndex) -> Iterator[tuple[str, str]]:
    """Yield (name, SHA-256) of each file once; those that cannot be read are left to the check of images."""
    for name in dict.fromkeys(index.image(i).file_name for i in range(len(index))):
        try:
            digest = sha256_of(files.images_dir / name)
        except (OSError, ValueError):
            continue
        yield name, digest


def _read(manifest: Path) -> dict[str, str]:
    try:
        lines = manifest.read_bytes().decode().split("\n")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"the manifest cannot be read: {reason}", where=str(manifest)) from error
    listed: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        match = _LINE.fullmatch(line.removesuffix("\r"))
        if match:
            listed[_unescape(match[3]) if match[1] else match[3]] = match[2]
        elif line:
            raise DataError(
                "the manifest has a line that is no SHA-256 with a file name",
                where=f"{manifest}, line {number}",
                fix="write it again, or give the right file",
            )
    return listed


def _unescape(name: str) -> str:
    return re.sub(r"\\([\\nr])", lambda match: {"n": "\n", "r": "\r"}.get(match[1], match[1]), name)

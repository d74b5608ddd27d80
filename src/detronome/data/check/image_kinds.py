"""What each kind of finding about image files is called, what it does, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from detronome.data.check.collector import SHOWN
from detronome.data.check.findings import Finding, Severity

__all__ = ["ImageFindings"]

_REFUSED = (
    "training cannot use these images: another takes the place of each, and the run stops when they are more than "
    "its budget allows"
)
_RESTORE = "copy or download the files again, or remove these images from the annotation file"


@dataclass(frozen=True)
class _Kind:
    severity: Severity
    what: str
    effect: str
    fix: str


_KINDS: Mapping[str, _Kind] = {
    "missing": _Kind("error", "image files are missing", _REFUSED, _RESTORE),
    "other_case": _Kind(
        "error",
        "image files are written with other capital letters on disk",
        "they are found on systems that ignore the case of letters, and missing on all others",
        "rename the files, or write their names in the annotation file as they are on disk",
    ),
    "unreadable": _Kind("error", "image files cannot be read", _REFUSED, "check permissions, links and the disk"),
    "empty": _Kind("error", "image files are empty", _REFUSED, _RESTORE),
    "not_an_image": _Kind("error", "files are not images", _REFUSED, _RESTORE),
    "truncated": _Kind("error", "image files end too early", _REFUSED, _RESTORE),
    "corrupt": _Kind("error", "image files are damaged", _REFUSED, _RESTORE),
    "zero_size": _Kind("error", "images are 0 pixels wide or high", _REFUSED, _RESTORE),
    "too_large": _Kind(
        "error", "images have more pixels or bytes than is allowed", _REFUSED, "cut large images into tiles"
    ),
    "unsupported": _Kind(
        "error", "pixels are numbers without a known range", _REFUSED, "save them with 8 or 16 bits per channel"
    ),
    "size_differs": _Kind(
        "error",
        "images have another size than the annotation file says",
        "their boxes would lie in wrong places, so training refuses them like damaged files",
        "correct width and height (and boxes) in the annotation file, or restore the images that were annotated",
    ),
    "names_differ_in_case": _Kind(
        "warning",
        "file names differ from others in capital letters only",
        "on systems that ignore the case of letters one file overwrites the other",
        "rename one of each",
    ),
    "exif_ignored": _Kind(
        "note",
        "images have an EXIF orientation, and the annotated size is that of the stored pixels",
        "the tag is ignored, as in COCO",
        "look at a few: if boxes were drawn on the turned image, turn the pixels and remove the tag",
    ),
    "exif_turned": _Kind(
        "note",
        "images have an EXIF orientation, and only the turned image has the annotated size",
        "they are turned as the tag says",
        "nothing needs to be done; other tools may not turn them",
    ),
    "no_end_marker": _Kind(
        "note",
        "JPEG files lack their end marker, but all pixels are there",
        "they are used; some tools refuse or rewrite them",
        "nothing needs to be done, but the copy may have been cut short: compare with the source",
    ),
    "wrong_extension": _Kind(
        "note",
        "files are of another format than their extension says",
        "they are decoded by content",
        "rename them if other tools have to read them",
    ),
    "several_frames": _Kind("note", "files hold several frames or pages", "the first one is used", "split them"),
    "greyscale": _Kind("note", "images are greyscale", "their channel is repeated to RGB", "nothing needs to be done"),
    "one_bit": _Kind("note", "images are black and white", "they become RGB", "nothing needs to be done"),
    "palette": _Kind("note", "images have a palette", "they become RGB", "nothing needs to be done"),
    "sixteen_bit": _Kind(
        "note",
        "images have more than 8 bits per channel",
        "they are scaled to 8 bits, 65535 becoming 255",
        "stretch their contrast if they use only part of the range",
    ),
    "cmyk": _Kind("note", "images are CMYK", "they become RGB without a colour profile", "save them as RGB"),
    "transparency": _Kind(
        "note",
        "images have transparency",
        "it is dropped, so that what lies under transparent pixels shows",
        "lay them on a background",
    ),
    "colour_profile": _Kind(
        "note", "images have a colour profile other than sRGB", "it is ignored", "convert them to sRGB"
    ),
    "progressive": _Kind(
        "note", "JPEG files are progressive", "they take several times longer to decode", "save them as baseline JPEG"
    ),
    "arithmetic": _Kind(
        "note",
        "JPEG files are arithmetic-coded",
        "damage in them cannot be noticed, and many tools refuse them",
        "save them with Huffman codes",
    ),
    "unnamed": _Kind(
        "note",
        "image files lie in the folder that no annotation file names",
        "they are not used",
        "add them to the annotation file (without boxes, if there is nothing on them) or remove them",
    ),
    "in_shards": _Kind(
        "note",
        "the images lie in shards",
        "they were not decoded here",
        "check the folder of images that the shards were made from, and verify the shards' checksums",
    ),
}


class ImageFindings:
    """Counts cases by kind and names the first ones."""

    def __init__(self) -> None:
        self._count: dict[str, int] = {}
        self._cases: dict[str, list[str]] = {}

    def add(self, kind: str, case: str) -> None:
        """Count one case."""
        self._count[kind] = self._count.get(kind, 0) + 1
        cases = self._cases.setdefault(kind, [])
        if len(cases) < SHOWN:
            cases.append(case)

    def to_list(self, where: str) -> list[Finding]:
        """Return the findings, the worst kinds first."""
        return [
            Finding(
                code=f"image_{code}",
                severity=kind.severity,
                what=kind.what,
                count=self._count[code],
                cases=tuple(self._cases[code]),
                where=where,
                effect=kind.effect,
                fix=kind.fix,
            )
            for code, kind in _KINDS.items()
            if code in self._count
        ]

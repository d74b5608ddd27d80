"""What is wrong with, or unusual about, one image file: decoded as training decodes it, so that both agree."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec
from PIL import Image

from detronome.data.store.decode import ImageDefect, ImageError, decode_image, exif_orientation, read_image_file
from detronome.data.store.integrity import has_end_marker, jpeg_process

__all__ = ["Trait", "Verdict", "judge_image"]

Trait = Literal[
    "exif_ignored",
    "exif_turned",
    "no_end_marker",
    "wrong_extension",
    "several_frames",
    "greyscale",
    "one_bit",
    "palette",
    "sixteen_bit",
    "cmyk",
    "transparency",
    "colour_profile",
    "progressive",
    "arithmetic",
]
"""What is good to know about an image that can be used."""

_MODES: dict[str, Trait] = {
    "1": "one_bit",
    "L": "greyscale",
    "P": "palette",
    "CMYK": "cmyk",
    "I": "sixteen_bit",
    "I;16": "sixteen_bit",
    "I;16B": "sixteen_bit",
    "I;16L": "sixteen_bit",
    "LA": "transparency",
    "PA": "transparency",
    "RGBA": "transparency",
}
_FORMATS = {
    ".bmp": "BMP",
    ".gif": "GIF",
    ".jfif": "JPEG",
    ".jpe": "JPEG",
    ".jpeg": "JPEG",
    ".jpg": "JPEG",
    ".png": "PNG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
}
_SRGB = (b"sRGB", "sRGB".encode("utf-16-be"))


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """What was found in one image file."""

    defect: ImageDefect | None = None
    """Why training cannot use it; None if it can."""
    detail: str = ""
    """The defect in words."""
    traits: tuple[tuple[Trait, str], ...] = ()
    """What is unusual about a file that can be used, each with a detail, which may be empty."""
    size_hw: tuple[int, int] | None = None
    """The size of a sound file that is of another one than expected, where EXIF leaves no doubt which."""


def judge_image(path: Path, expected_size_hw: tuple[int, int]) -> Verdict:
    """Decode an image file and return what was found.

    Args:
        path: the file.
        expected_size_hw: height and width from the annotation file.
    """
    try:
        content = read_image_file(path)
        decode_image(content, str(path), expected_size_hw)
    except ImageError as error:
        reason = error.problems[0].what.removeprefix("the image cannot be used: ")
        size_hw = _size_hw(content, path) if error.defect == "size_differs" else None
        return Verdict(defect=error.defect, detail=reason, size_hw=size_hw)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(content)) as file:
                return Verdict(traits=tuple(_traits(file, content, path, expected_size_hw)))
        except Exception:  # the pixels are sound; a header that Pillow cannot read tells nothing more
            return Verdict()


def _size_hw(content: bytes, path: Path) -> tuple[int, int] | None:
    """Return the size of an image that can be used and is not to be turned."""
    try:
        height, width = decode_image(content, str(path)).shape[:2]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content)) as file:
                return (height, width) if exif_orientation(file) == 1 else None
    except Exception:  # damaged besides
        return None


def _traits(
    file: Image.Image, content: bytes, path: Path, expected_size_hw: tuple[int, int]
) -> Iterator[tuple[Trait, str]]:
    orientation = exif_orientation(file)
    if orientation != 1:
        is_stored = (file.height, file.width) == expected_size_hw
        yield "exif_ignored" if is_stored else "exif_turned", f"orientation {orientation}"
    file_format = "JPEG" if file.format == "MPO" else file.format or ""
    if _FORMATS.get(path.suffix.lower(), file_format) != file_format:
        yield "wrong_extension", f"a {file_format} file"
    if file.format != "MPO" and getattr(file, "is_animated", False):
        yield "several_frames", ""
    process = jpeg_process(content)
    if process is not None and not has_end_marker(content):
        yield "no_end_marker", ""
    if process == "progressive" or process == "arithmetic":
        yield process, ""
    if mode := _MODES.get(file.mode):
        yield mode, ""
    profile = file.info.get("icc_profile") or b""
    if profile and not any(name in profile for name in _SRGB):
        yield "colour_profile", ""

"""Image files of a folder, and what their headers say: size and EXIF orientation, without decoding a pixel.

A JPEG from a phone is often stored turned, with a tag that says how to show it. Annotations may refer to the stored
pixels (COCO, VOC) or to the upright picture (YOLO, whose tools obey the tag). `decode_image` ignores the tag where the
annotated size is the stored one and obeys it where only the upright size fits, so a box that refers to the upright
picture has to be turned exactly when the recorded size is also the stored one.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image

from detronome.data.formats.problems import LabelProblems
from detronome.data.readable import cannot_be_read, require_readable

__all__ = [
    "IMAGE_SUFFIXES",
    "ImageHeader",
    "is_file",
    "is_image_name",
    "list_images",
    "read_headers",
    "to_stored",
    "to_upright",
    "walk_files",
]

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".mpo", ".avif"})
_ORIENTATION_TAG = 0x0112
_THREADS = 8


@dataclass(frozen=True)
class ImageHeader:
    """Size and orientation of an image file."""

    stored_hw: tuple[int, int]
    """Height and width of the pixels as stored."""
    orientation: int = 1
    """EXIF orientation, 1-8; 1 is upright."""

    @property
    def upright_hw(self) -> tuple[int, int]:
        """Height and width of the picture as it is shown."""
        return self.stored_hw[::-1] if self.orientation >= 5 else self.stored_hw

    def turn(self, size_hw: tuple[int, int]) -> int:
        """Return the orientation between annotations with this recorded size and the upright picture; 1 is none."""
        return self.orientation if size_hw == self.stored_hw else 1


def is_image_name(name: str) -> bool:
    """Return whether a file name ends as one of the image formats does."""
    path = PurePosixPath(name)
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def is_file(path: Path) -> bool:
    """Return whether there is a file; False for names that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def list_images(folder: Path) -> list[str]:
    """Return the images in a folder and its subfolders, as sorted paths relative to it with forward slashes."""
    return sorted(filter(is_image_name, walk_files(folder)))


def walk_files(folder: Path) -> Iterator[str]:
    """Yield the files in a folder and its subfolders, as paths relative to it with forward slashes.

    Links to folders are followed, unless they lead back up: that would never end. No folder has no files.

    Raises:
        DataError: a folder may not be listed.
    """
    try:
        above = {folder: {_identity(folder)}}
    except PermissionError as error:
        raise cannot_be_read(error, folder) from error
    except (OSError, ValueError):
        return
    for directory, subfolders, names in os.walk(folder, followlinks=True, onerror=_raise_if_denied):
        here = Path(directory)
        require_readable(here)  # a folder that may be listed, and not entered
        ancestors = above.pop(here)
        for name in list(subfolders):
            inner = here / name
            try:
                identity = _identity(inner)
            except OSError:  # removed just now
                continue
            if identity in ancestors:
                subfolders.remove(name)
            else:
                above[inner] = ancestors | {identity}
        prefix = here.relative_to(folder).as_posix()
        yield from names if prefix == "." else (f"{prefix}/{name}" for name in names)


def _raise_if_denied(error: OSError) -> None:
    if isinstance(error, PermissionError):
        raise cannot_be_read(error, "") from error


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def read_headers(files: Sequence[Path], problems: LabelProblems) -> dict[Path, ImageHeader]:
    """Return the headers of image files; those that cannot be read are noted as problems and left out."""
    with warnings.catch_warnings(), ThreadPoolExecutor(_THREADS) as pool:
        warnings.simplefilter("ignore")
        results = list(pool.map(_read_header, files))
    headers = {}
    for file, result in zip(files, results, strict=True):
        if isinstance(result, ImageHeader):
            headers[file] = result
        else:
            fix = "replace the files, or remove them with their labels"
            problems.add("image files cannot be read", file, result, fix=fix)
    return headers


def _read_header(file: Path) -> ImageHeader | str:
    try:
        with Image.open(file) as image:
            width, height = image.size
            if width < 1 or height < 1:
                return f"its size is {width}x{height} pixels"
            return ImageHeader((height, width), _orientation_of(image))
    except Exception as error:  # on damaged files Pillow's plugins raise nearly every kind there is
        return getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"


def _orientation_of(image: Image.Image) -> int:
    # Pillow turns TIFF files itself, and looks for a PNG's tag behind all of its pixels unless it came before them.
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return 1
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # EXIF blocks are often malformed, and viewers ignore such blocks
        return 1
    return orientation if orientation in range(1, 9) else 1


def to_upright(box_xywh: Sequence[float], stored_hw: tuple[int, int], orientation: int) -> list[float]:
    """Return where a box of the stored pixels lies in the upright picture; (left, top, width, height) in pixels."""
    x, y, w, h = box_xywh
    if orientation >= 5:
        return _mirrored([y, x, h, w], stored_hw[::-1], orientation)
    return _mirrored([x, y, w, h], stored_hw, orientation)


def to_stored(box_xywh: Sequence[float], stored_hw: tuple[int, int], orientation: int) -> list[float]:
    """Return where a box of the upright picture lies in the stored pixels; the inverse of `to_upright`."""
    if orientation >= 5:
        x, y, w, h = _mirrored(box_xywh, stored_hw[::-1], orientation)
        return [y, x, h, w]
    return _mirrored(box_xywh, stored_hw, orientation)


def _mirrored(box_xywh: Sequence[float], size_hw: tuple[int, int], orientation: int) -> list[float]:
    x, y, w, h = box_xywh
    if orientation in (2, 3, 6, 7):
        x = size_hw[1] - x - w
    if orientation in (3, 4, 7, 8):
        y = size_hw[0] - y - h
    return [x, y, w, h]

"""From an encoded image to RGB pixels, or to an error that names the file and the reason.

JPEG is decoded strictly: a damaged file is refused, where lenient decoders fill the missing part with grey and the
training learns from it. What nothing in the file can tell are flipped bits that leave the codes in step: four fifths of
all single flips in a photo, most of which change a block of 8 x 8 pixels, and a sixth more than that. Only a digest
shows those.

Shape letters: `H W` height and width of the upright image.
"""

from __future__ import annotations

import io
import stat
import warnings
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import simplejpeg  # type: ignore[import-untyped, unused-ignore]
from jaxtyping import Integer, UInt8
from PIL import Image, UnidentifiedImageError

from detronome.data.store import integrity
from detronome.errors import DataError

__all__ = ["ImageDefect", "ImageError", "decode_image", "exif_orientation", "read_image", "read_image_file"]

ImageDefect = Literal[
    "unreadable",
    "empty",
    "not_an_image",
    "truncated",
    "corrupt",
    "too_large",
    "zero_size",
    "unsupported",
    "size_differs",
]
"""Kinds of image files that cannot be used."""

_JPEG_MAGIC = b"\xff\xd8\xff"
_MAGIC = {
    "JPEG": (_JPEG_MAGIC,),
    "PNG": (b"\x89PNG",),
    "GIF": (b"GIF8",),
    "TIFF": (b"II*\0", b"MM\0*"),
    "WebP": (b"RIFF",),
    "BMP": (b"BM",),
}
_MAX_BYTES = 2**30
"""More than the largest image allowed takes without compression, at 16 bits."""
_MAX_PIXELS = 178_956_970
"""Pillow's limit against decompression bombs, held for every decoder."""
_CUT = "cut large images into tiles"
_NO_END = "Premature end of JPEG file"
_UNSUPPORTED_JPEG = ("nsupported", "subsampling", "colorspace", "conversion")
"""In simplejpeg's words: the file may be sound, but of a kind (precision, sampling) that it does not decode."""
_ORIENTATION_TAG = 0x0112


class ImageError(DataError):
    """An image file cannot be used; `defect` is the kind of reason.

    Args:
        what: what is wrong with it, as one sentence.
        defect: the kind.
        where: names the image.
        fix: what to do about it.
    """

    def __init__(self, what: str, *, defect: ImageDefect = "corrupt", where: str = "", fix: str = "") -> None:
        super().__init__(what, where=where, fix=fix)
        self.defect = defect


def read_image(path: Path, expected_size_hw: tuple[int, int] | None = None) -> UInt8[np.ndarray, "H W 3"]:
    """Return the pixels of an image file; see `decode_image`."""
    return decode_image(read_image_file(path), str(path), expected_size_hw)


def read_image_file(path: Path) -> bytes:
    """Return the content of an image file.

    Raises:
        ImageError: the file cannot be read, is no file, or is larger than any image that is allowed.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            raise OSError("it is no file but a pipe or device")
        if status.st_size > _MAX_BYTES:
            reason = (
                f"a file of {status.st_size / 2**30:.1f} GiB is more than the limit of {_MAX_BYTES / 2**30:.0f} GiB"
            )
            raise _error("too_large", str(path), reason, _CUT)
        return path.read_bytes()
    except (OSError, ValueError) as error:
        reason = str(getattr(error, "strerror", None) or error)
        raise _error("unreadable", str(path), reason, "check the file name and the image folder") from error


def decode_image(
    content: bytes,
    where: str,
    expected_size_hw: tuple[int, int] | None = None,
    *,
    fast: bool = False,
    enough_hw: tuple[int, int] | None = None,
) -> UInt8[np.ndarray, "H W 3"]:
    """Return the pixels of an encoded image as RGB, 0-255, writable and contiguous.

    Greyscale and palettes become RGB, CMYK is converted, transparency is dropped, 16-bit grey is scaled to 8 bits, and
    of an animation the first frame is taken.

    EXIF orientation: COCO annotations refer to the pixels as stored, so with a size from the annotation file that
    equals the stored one the tag is ignored; it is obeyed where only the turned image has that size, and always when
    no size is given (a photo to predict on).

    Args:
        content: the file's bytes.
        where: names the image in errors: its path, or its place in a shard.
        expected_size_hw: height and width from the annotation file.
        fast: use libjpeg-turbo's fast transform and upsampling: less time on some processors, values some levels off.
        enough_hw: with `fast`, height and width that are enough: a JPEG of twice that or more is decoded at a fraction
            of its size, which costs a fraction of the time.

    A JPEG that lacks only its end marker is taken as it is: its pixels are complete.

    Raises:
        ImageError: the content is no image, is damaged, is too large (more than 179 megapixels) or has another size
            than the annotation file says.
    """
    if not content:
        raise _error("empty", where, "the file is empty, not an image", "copy or download the file again")
    decoded = None
    if content.startswith(_JPEG_MAGIC):
        decoded = _decode_jpeg(where, content, _JpegOptions(fast, expected_size_hw, enough_hw if fast else None))
    if decoded is None:
        image, orientation = _decode_other(where, content)
        stored_hw = (image.shape[0], image.shape[1])
    else:
        image, stored_hw = decoded
        if stored_hw != image.shape[:2]:  # reduced, and of the size expected
            return image
        orientation = 1 if expected_size_hw == stored_hw else _exif_orientation(content)

    if expected_size_hw is None or (expected_size_hw != stored_hw and expected_size_hw == stored_hw[::-1]):
        image = _upright(image, orientation)
    if expected_size_hw is not None and image.shape[:2] != expected_size_hw:
        raise _error(
            "size_differs",
            where,
            f"it has {stored_hw[1]}x{stored_hw[0]} pixels (width x height), "
            f"but the annotation file says {expected_size_hw[1]}x{expected_size_hw[0]}",
            "correct width and height in the annotation file, or restore the image that was annotated",
        )
    return np.require(image, requirements=["C", "W"])


def _error(
    defect: ImageDefect,
    where: str,
    reason: str,
    fix: str = "replace the file or remove it from the annotation file",
) -> ImageError:
    return ImageError(f"the image cannot be used: {reason}", defect=defect, where=where, fix=fix)


def _check_size(where: str, height: int, width: int) -> None:
    if height < 1 or width < 1:
        raise _error("zero_size", where, f"its size is {width}x{height} pixels")
    if height * width > _MAX_PIXELS:
        limit = f"the limit of {_MAX_PIXELS // 10**6} megapixels"
        raise _error("too_large", where, f"{width}x{height} pixels are more than {limit}", _CUT)


class _JpegOptions(NamedTuple):
    fast: bool
    expected_size_hw: tuple[int, int] | None
    enough_hw: tuple[int, int] | None

    def smallest_hw(self, stored_hw: tuple[int, int]) -> tuple[int, int] | None:
        """Return the least size to decode to, or None for the whole image."""
        if self.enough_hw is None or self.expected_size_hw != stored_hw:
            return None
        is_worth_it = all(stored >= 2 * enough for stored, enough in zip(stored_hw, self.enough_hw, strict=True))
        return self.enough_hw if is_worth_it else None


def _decode_jpeg(
    where: str, content: bytes, options: _JpegOptions
) -> tuple[UInt8[np.ndarray, "H W 3"], tuple[int, int]] | None:
    """Return (pixels, size stored in the file), or None for a kind of JPEG that only Pillow may know."""
    stored_hw = smallest_hw = None
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(content)
        _check_size(where, height, width)
        stored_hw = (height, width)
        smallest_hw = options.smallest_hw(stored_hw)
        image = _decode_strictly(content, options.fast, smallest_hw)
    except KeyError:  # simplejpeg's table of samplings lacks one that libjpeg-turbo knows
        return None
    except ValueError as error:
        reason = str(error)
        if any(word in reason for word in _UNSUPPORTED_JPEG):
            return None
        decoded = _decode_without_end(content, options.fast, smallest_hw) if reason == _NO_END else None
        if decoded is None or stored_hw is None:
            raise _error("truncated" if _is_cut(reason) else "corrupt", where, reason) from error
        image = decoded
    if integrity.has_zeroed_data(content):
        raise _error("corrupt", where, "part of its data was overwritten with zeros")
    return image, stored_hw


def _decode_without_end(
    content: bytes, fast: bool, smallest_hw: tuple[int, int] | None
) -> UInt8[np.ndarray, "H W 3"] | None:
    """Return the pixels of a JPEG if its end marker is all that is missing."""
    completed = integrity.with_end_marker(content)
    try:
        return None if completed is None else _decode_strictly(completed, fast, smallest_hw)
    except ValueError:
        return None


def _decode_strictly(content: bytes, fast: bool, smallest_hw: tuple[int, int] | None) -> UInt8[np.ndarray, "H W 3"]:
    min_height, min_width = smallest_hw or (0, 0)
    image: UInt8[np.ndarray, "H W 3"] = simplejpeg.decode_jpeg(
        content,
        colorspace="RGB",
        fastdct=fast,
        fastupsample=fast,
        min_height=min_height,
        min_width=min_width,
        min_factor=2 if smallest_hw else 1,
        strict=True,
    )
    return image


def _is_cut(reason: str) -> bool:
    return reason == _NO_END or "truncated" in reason.lower()


def _decode_other(where: str, content: bytes) -> tuple[UInt8[np.ndarray, "H W 3"], int]:
    """Return (stored pixels, EXIF orientation) of any file that Pillow reads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(content)) as file:
                _check_size(where, file.height, file.width)
                if file.format == "PNG" and (damage := integrity.png_damage(content)):
                    raise _error("truncated" if _is_cut(damage) else "corrupt", where, damage)
                file.load()
                return _to_rgb(file), exif_orientation(file)
        except DataError:
            raise
        except Image.DecompressionBombError as error:
            limit = f"the limit of {_MAX_PIXELS // 10**6} megapixels"
            raise _error("too_large", where, f"it has more pixels than {limit}", _CUT) from error
        except UnidentifiedImageError as error:
            raise _unidentified(where, content) from error
        except _UnsupportedPixelsError as error:
            raise _error("unsupported", where, str(error), "save it with 8 or 16 bits per channel") from error
        except Exception as error:  # on damaged files Pillow's plugins raise nearly every kind there is
            reason = str(error) or type(error).__name__
            raise _error("truncated" if _is_cut(reason) else "corrupt", where, reason) from error


class _UnsupportedPixelsError(ValueError):
    """The image is sound, but there is no telling what its numbers mean."""


def _unidentified(where: str, content: bytes) -> ImageError:
    height, width = integrity.declared_size_hw(content) or (1, 1)
    if height * width == 0:
        return _error("zero_size", where, f"its size is {width}x{height} pixels")
    for name, starts in _MAGIC.items():
        if content.startswith(starts):
            return _error("corrupt", where, f"it begins like a {name} file, but its header cannot be read")
    return _error("not_an_image", where, "it is not an image, or of a format that Pillow does not read")


def _to_rgb(file: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
    if file.mode in ("F", "I") or file.mode.startswith("I;"):
        values = np.asarray(file)
        if values.dtype.kind == "f" or values.min() < 0 or values.max() > 65535:
            raise _UnsupportedPixelsError("its pixels are 32-bit numbers without a known range")
        return np.repeat(_to_8_bits(values)[:, :, None], 3, axis=2)
    return np.array(file if file.mode == "RGB" else file.convert("RGB"))


def _to_8_bits(values: Integer[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W"]:
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _exif_orientation(content: bytes) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(content)) as file:
                return exif_orientation(file)
        except Exception:  # the pixels were decoded: a broken header field is no reason to refuse them
            return 1


def exif_orientation(file: Image.Image) -> int:
    """Return the EXIF orientation of an open file, 1-8; 1, upright, where there is none that can be read."""
    try:
        orientation = file.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # EXIF blocks are often malformed, and viewers ignore such blocks
        return 1
    return orientation if orientation in range(1, 9) else 1


def _upright(image: UInt8[np.ndarray, "H W 3"], orientation: int) -> UInt8[np.ndarray, "H2 W2 3"]:
    if orientation >= 5:
        image = image.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return image

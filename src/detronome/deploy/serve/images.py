"""From uploaded bytes to pixels: kind and size are judged by the first bytes, before anything is decoded.

Only kinds that are named here reach a decoder: Pillow knows many more, some of which start other programs.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable

import numpy as np
import simplejpeg  # type: ignore[import-untyped, unused-ignore]
from jaxtyping import UInt8
from PIL import Image

from detronome.data.store.decode import ImageError, decode_image
from detronome.deploy.serve.limits import RefusedError

__all__ = ["IMAGE_KINDS", "decode_upload", "image_kind"]

IMAGE_KINDS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""As Pillow calls them."""

_WHERE = "the upload"


def decode_upload(
    content: bytes, *, max_pixels: int, reserve: Callable[[int], None] = lambda size_bytes: None
) -> UInt8[np.ndarray, "H W 3"]:
    """Return the pixels of an uploaded image, upright RGB, as `decode_image` gives them.

    Args:
        content: the image file.
        max_pixels: more are refused by what the header says.
        reserve: is told the size of the decoded image before it is decoded, and may refuse.

    Raises:
        RefusedError: 400 where it is empty, damaged or no image; 413 where it has too many pixels; 415 for other kinds.
    """
    if not content:
        raise RefusedError(400, "bad_image", "there is no image: the body is empty", fix="send an image file")
    kind = image_kind(content)
    if kind is None:
        raise RefusedError(415, "bad_image", "this is no image of a known kind", fix=f"send {', '.join(IMAGE_KINDS)}")
    height, width = _declared_size_hw(content, kind)
    if height * width > max_pixels:
        raise RefusedError(
            413,
            "too_many_pixels",
            f"{width}x{height} pixels are more than the limit of {max_pixels / 1e6:g} megapixels",
            fix="send a smaller image",
        )
    reserve(3 * height * width)
    try:
        return decode_image(content, _WHERE)
    except ImageError as error:
        problem = error.problems[0]
        raise RefusedError(400, "bad_image", problem.what, fix="send a sound image file") from error


def image_kind(content: bytes) -> str | None:
    """Return which of `IMAGE_KINDS` a file begins like, or None."""
    starts = {"JPEG": b"\xff\xd8\xff", "PNG": b"\x89PNG\r\n\x1a\n", "GIF": b"GIF8", "BMP": b"BM"}
    for kind, start in starts.items():
        if content.startswith(start):
            return kind
    if content.startswith((b"II*\0", b"MM\0*")):
        return "TIFF"
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        return "WEBP"
    return "AVIF" if content[4:12] in (b"ftypavif", b"ftypavis") else None


def _declared_size_hw(content: bytes, kind: str) -> tuple[int, int]:
    """Return height and width as the header says them."""
    if kind == "JPEG":
        try:
            height, width, _, _ = simplejpeg.decode_jpeg_header(content)
            return int(height), int(width)
        except (KeyError, ValueError):  # a kind that only Pillow may know
            pass
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(content), formats=[kind, "MPO"] if kind == "JPEG" else [kind]) as file:
                return file.height, file.width
        except Image.DecompressionBombError as error:
            raise RefusedError(413, "too_many_pixels", str(error), fix="send a smaller image") from error
        except Exception as error:  # on damaged files Pillow's plugins raise nearly every kind there is
            raise RefusedError(
                400,
                "bad_image",
                f"it begins like a {kind} file, but its header cannot be read",
                fix="send a sound image file",
            ) from error

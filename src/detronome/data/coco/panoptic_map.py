"""Reading a panoptic map: a PNG whose colours are segment ids, red + 256 green + 65536 blue; 0 is void.

Shape letters: `S` the listed segments of an image.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int32, Int64, UInt8
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from scipy import ndimage

from detronome.data.store.decode import ImageError, read_image_file
from detronome.data.store.integrity import png_damage
from detronome.errors import DataError, Problem, first_few
from detronome.ops.segment_ids import LARGEST_SEGMENT_ID, ids_of_colors

__all__ = ["UnfitMapError", "boxes_of_rows", "read_map", "read_segment_ids", "rows_of_segments"]

_PNG_MAGIC = b"\x89PNG"
_FIX = "`detronome data check` says which maps and annotations disagree; export them again, together"


class UnfitMapError(Exception):
    """A file is no panoptic map; the message is one clause that says why."""


def read_map(path: Path) -> UInt8[np.ndarray, "H W 3"]:
    """Return the colours of a map.

    Raises:
        ImageError: the file cannot be read or is damaged.
        UnfitMapError: it is an image of another kind.
    """
    content = read_image_file(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(content)) as file:
                if file.format != "PNG" or file.mode not in ("RGB", "RGBA"):
                    raise UnfitMapError(f"a {file.format} file of mode {file.mode}")
                if damage := png_damage(content):
                    raise ImageError(damage)
                return np.asarray(file)[:, :, :3]
        except (ImageError, UnfitMapError):
            raise
        except UnidentifiedImageError as error:
            if content and not content.startswith(_PNG_MAGIC):
                raise UnfitMapError("not an image") from error
            raise ImageError("its header cannot be read" if content else "the file is empty") from error
        except Exception as error:  # on damaged files Pillow's plugins raise nearly every kind there is
            raise ImageError(str(error) or type(error).__name__) from error


def read_segment_ids(path: Path) -> Int32[np.ndarray, "H W"]:
    """Return the segment id of each pixel of a map file; 0 is void.

    Raises:
        DataError: the file is missing, damaged, or no map.
    """
    try:
        return ids_of_colors(read_map(path))
    except UnfitMapError as error:
        raise DataError(
            f"the panoptic map cannot be used: it is {error}", where=str(path), fix="write it as PNG with RGB colours"
        ) from error
    except ImageError as error:
        reason = error.problems[0].what.removeprefix("the image cannot be used: ")
        raise DataError(
            f"the panoptic map cannot be used: {reason}", where=str(path), fix="unpack the archive of the maps again"
        ) from error


def rows_of_segments(
    segment_ids: Int32[np.ndarray, "H W"], listed: Int64[np.ndarray, " S"], where: str
) -> Int32[np.ndarray, "H W"]:
    """Return for each pixel 1 + the place of its segment in the list; 0 is void.

    Args:
        segment_ids: the map.
        listed: ids of the image's segments, all different.
        where: names the map in errors.

    Raises:
        DataError: the map has segments that are not listed, or none of a listed one.
    """
    # Zeroed memory comes from the system page by page: only the pages of the listed ids are ever touched.
    row_of = np.zeros(LARGEST_SEGMENT_ID + 1, np.int32)
    row_of[listed] = np.arange(1, len(listed) + 1)
    rows: NDArray[np.int32] = row_of[segment_ids]
    counts = np.bincount(rows.ravel(), minlength=len(listed) + 1)
    unlisted = np.unique(segment_ids[(rows == 0) & (segment_ids != 0)]).tolist()
    absent = listed[counts[1:] == 0].tolist()
    problems = [
        Problem(what=f"the panoptic map {what}: {first_few([str(i) for i in ids])}", where=where, fix=_FIX)
        for what, ids in (
            ("has segments that the annotation file does not list", unlisted),
            ("lacks segments that the annotation file lists", absent),
        )
        if ids
    ]
    if problems:
        raise DataError(problems)
    return rows


def boxes_of_rows(rows: Int32[np.ndarray, "H W"], num_segments: int) -> Float64[np.ndarray, "S 4"]:
    """Return the corners (left, top, right, bottom) in pixels around each segment of `rows_of_segments`.

    Right and bottom are the outer edges of the last pixels, so a segment of one pixel has a box of 1x1; the reference
    takes the pixels' positions, and its boxes are one pixel smaller.
    """
    found = ndimage.find_objects(rows, max_label=num_segments)
    corners = [(x.start, y.start, x.stop, y.stop) for y, x in found]
    return np.array(corners, np.float64).reshape(-1, 4)

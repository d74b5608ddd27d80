"""Reading a panoptic map: a PNG whose colours are segment ids, red + 256 green + 65536 blue; 0 is void.

Shape letters: `S` the listed segments of an image.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int32, Int64, UInt8
from PIL import Image, UnidentifiedImageError

from detronome.data.store.decode import ImageError, read_image_file
from detronome.data.store.integrity import png_damage
from detronome.errors import DataError, Problem, first_few
from detronome.ops.segment_ids import ids_of_colors, run_starts

__all__ = ["UnfitMapError", "boxes_of_rows", "measure_ids", "read_map", "read_segment_ids", "rows_of_segments"]

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
    starts = run_starts(segment_ids)
    run_ids = segment_ids.ravel()[starts]
    known = np.concatenate(([0], listed))  # void is listed first
    order = np.argsort(known)
    run_rows = order[np.searchsorted(known, run_ids, sorter=order).clip(max=len(known) - 1)]
    is_unlisted = known[run_rows] != run_ids
    unlisted = np.unique(run_ids[is_unlisted]).tolist()
    absent = listed[np.bincount(run_rows[~is_unlisted], minlength=len(known))[1:] == 0].tolist()
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
    lengths = np.diff(starts, append=segment_ids.size)
    return np.repeat(run_rows.astype(np.int32), lengths).reshape(segment_ids.shape)


def boxes_of_rows(rows: Int32[np.ndarray, "H W"], num_segments: int) -> Float64[np.ndarray, "S 4"]:
    """Return the corners (left, top, right, bottom) in pixels around each segment of `rows_of_segments`.

    Right and bottom are the outer edges of the last pixels, so a segment of one pixel has a box of 1x1; the reference
    takes the pixels' positions, and its boxes are one pixel smaller.
    """
    found, _, corners = measure_ids(rows)
    boxes_xyxy = np.zeros((num_segments + 1, 4), np.float64)
    boxes_xyxy[found] = corners
    return boxes_xyxy[1:]


def measure_ids(
    ids: Int32[np.ndarray, "H W"],
) -> tuple[Int64[np.ndarray, " S"], Int64[np.ndarray, " S"], Int64[np.ndarray, "S 4"]]:
    """Return (the ids in a map, ascending; their pixels; the corners around them), of void too.

    Works on runs of equal pixels in a row, of which a map has some thousands, where sorting pixels would take ten times
    as long.
    """
    height, width = ids.shape
    flat = ids.ravel()
    is_start = np.ones(height * width, np.bool_)
    np.not_equal(flat[1:], flat[:-1], out=is_start[1:])
    is_start[::width] = True
    starts = np.flatnonzero(is_start)
    lengths = np.diff(starts, append=height * width)
    found, segment = np.unique(flat[starts], return_inverse=True)
    top, left = np.divmod(starts, width)
    low = np.full((len(found), 2), max(height, width))
    high = np.zeros((len(found), 2), np.int64)
    np.minimum.at(low, segment, np.column_stack([left, top]))
    np.maximum.at(high, segment, np.column_stack([left + lengths, top + 1]))
    areas = np.bincount(segment, lengths, len(found)).astype(np.int64)
    return found.astype(np.int64), areas, np.hstack([low, high])

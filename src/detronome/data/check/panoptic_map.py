"""Reading a panoptic map: a PNG whose colours are segment ids, red + 256 green + 65536 blue; 0 is unlabelled.

Shape letters: `S` the ids in a map, `R` runs of equal pixels in a row.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image, UnidentifiedImageError

from detronome.data.store.decode import ImageError, read_image_file
from detronome.data.store.integrity import png_damage

__all__ = ["MapSegments", "UnfitMapError", "measure_map", "read_map"]

_PNG_MAGIC = b"\x89PNG"


class UnfitMapError(Exception):
    """A file is no panoptic map; the message is one clause that says why."""


@dataclass(frozen=True)
class MapSegments:
    """The segments in a map, by ascending id; unlabelled pixels are left out."""

    ids: Int64[np.ndarray, " S"]
    areas: Int64[np.ndarray, " S"]
    """Pixels."""
    boxes_xywh: Int64[np.ndarray, "S 4"]
    """Pixels."""

    def row_of(self, segment_id: int) -> int | None:
        """Return where a segment stands, or None for one without pixels."""
        row = int(np.searchsorted(self.ids, segment_id))
        return row if row < len(self.ids) and self.ids[row] == segment_id else None


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


def measure_map(colours: UInt8[np.ndarray, "H W 3"]) -> MapSegments:
    """Return ids, areas and boxes of a map's segments.

    Works on runs of equal pixels, of which a map has some thousands, where sorting pixels would take ten times as long.
    """
    height, width = colours.shape[:2]
    red, green, blue = np.moveaxis(colours.astype(np.uint32), -1, 0)
    flat = (red + (green << 8) + (blue << 16)).ravel()
    is_start = np.empty(height * width, np.bool_)
    is_start[0] = True
    np.not_equal(flat[1:], flat[:-1], out=is_start[1:])
    is_start[::width] = True
    starts = np.flatnonzero(is_start)
    lengths = np.diff(starts, append=height * width)
    ids, segment = np.unique(flat[starts], return_inverse=True)
    top, left = np.divmod(starts, width)
    low = np.full((len(ids), 2), max(height, width))
    high = np.zeros((len(ids), 2), np.int64)
    np.minimum.at(low, segment, np.column_stack([left, top]))
    np.maximum.at(high, segment, np.column_stack([left + lengths, top + 1]))
    areas = np.bincount(segment, lengths, len(ids)).astype(np.int64)
    labelled = ids != 0
    return MapSegments(ids[labelled].astype(np.int64), areas[labelled], np.hstack([low, high - low])[labelled])

"""Large images in tiles that overlap: where to cut, and how to make one list of objects from what each tile shows.

An object in the overlap is seen by several tiles, whole by some and cut off at the border by others. Two detections of
one class and of different tiles are the same object when they agree within the area that both tiles show. So a whole
object and its cut-off end are recognised as one, and two objects side by side never are, which a comparison of whole
boxes cannot tell: the end of an object has little overlap with the whole.

Shape letters: `N M` boxes, `V` views, `H W` height and width of an image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt8

from detronome.errors import ConfigError
from detronome.types import Detections, Predictor

__all__ = ["TiledPredictor", "View", "merge_views", "tile_windows"]

Window = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels of the image."""

_AGREEMENT = 0.5
"""IoU, within the area that two views share, from which on two boxes are one object."""
_INSIDE = 0.7
"""Share of a cut-off box inside another, from which on it is a piece of that."""
_SURE = 0.5
"""Share of a piece's score that the box around it must have to take it in."""
_BORDER_PX = 2.0
"""A box that ends this near to an inner border of a tile may go on behind it."""
_LEAST_PIECE_PX = 1.0
"""Cut-off pieces that are thinner show nothing."""


class TiledPredictor:
    """Finds the objects of large images tile by tile; small images go to the model as they are.

    Args:
        predictor: finds the objects of a tile.
        tile_hw: height and width of a tile in pixels.
        overlap: of neighbouring tiles, as a share of the tile; objects up to that size are whole in one tile at least.
        with_whole: also look at the whole image, as the model resizes it: objects larger than a tile are seen there.

    Raises:
        ConfigError: tiles without size, or an overlap outside 0 to 0.9.
    """

    def __init__(
        self,
        predictor: Predictor,
        *,
        tile_hw: tuple[int, int],
        overlap: float = 0.2,
        with_whole: bool = True,
    ) -> None:
        if min(tile_hw) < 16:
            raise ConfigError(
                f"tiles of {tile_hw[1]}x{tile_hw[0]} pixels show nothing", where="tile", fix="use 16 or more"
            )
        if not 0 <= overlap <= 0.9:
            raise ConfigError(
                f"an overlap of {overlap:g} makes no tiles", where="overlap", fix="use 0 to 0.9, e.g. 0.2"
            )
        self.predictor = predictor
        self.tile_hw = tile_hw
        self.overlap = overlap
        self.with_whole = with_whole

    def predict(self, images: Sequence[UInt8[np.ndarray, "H W 3"]]) -> list[Detections]:
        """Return one `Detections` per RGB image, in order."""
        return [self._predict_one(image) for image in images]

    def _predict_one(self, image: UInt8[np.ndarray, "H W 3"]) -> Detections:
        size_hw = (image.shape[0], image.shape[1])
        windows = tile_windows(size_hw, self.tile_hw, self.overlap)
        if len(windows) > 1 and self.with_whole:
            windows.append((0, 0, size_hw[1], size_hw[0]))
        found = self.predictor.predict([image[top:bottom, left:right] for left, top, right, bottom in windows])
        if len(windows) == 1:
            return found[0]
        if self.with_whole:
            found[-1] = self._larger_than_the_overlap(found[-1])
        return merge_views([View(*view) for view in zip(windows, found, strict=True)], size_hw)

    def _larger_than_the_overlap(self, detections: Detections) -> Detections:
        """Return what the whole image's view is asked for: smaller objects are seen whole by a tile, and better."""
        sides = detections.boxes_xyxy[:, 2:] - detections.boxes_xyxy[:, :2]
        return detections.take((sides > self.overlap * np.array(self.tile_hw[::-1])).any(axis=1))


@dataclass(frozen=True)
class View:
    """What was found in one part of an image."""

    window: Window
    detections: Detections
    """In pixels of the part."""


def tile_windows(size_hw: tuple[int, int], tile_hw: tuple[int, int], overlap: float) -> list[Window]:
    """Return the fewest tiles that cover an image and overlap by at least this share of a tile, row by row.

    They are spread evenly. Along a side where the image is no longer than a tile, the tile is the image.
    """
    rows, columns = (_spans(length, tile, ceil(tile * overlap)) for length, tile in zip(size_hw, tile_hw, strict=True))
    return [(left, top, right, bottom) for top, bottom in rows for left, right in columns]


def _spans(length: int, tile: int, overlap_px: int) -> list[tuple[int, int]]:
    if length <= tile:
        return [(0, length)]
    count = 1 + ceil((length - tile) / (tile - overlap_px))
    starts = [(length - tile) * i // (count - 1) for i in range(count)]
    return [(start, start + tile) for start in starts]


def merge_views(views: Sequence[View], size_hw: tuple[int, int]) -> Detections:
    """Return the objects of an image from what its overlapping parts show, each once, highest score first.

    Detections of one class that agree, the confident pairs first, become one object. No object takes two detections of
    the same view: what the model tells apart stays apart. Box and score are those of the view that shows the object
    whole: of several, the one with the finest pixels, then the surest. A piece may look like something else, so its
    score counts only where no view shows the whole; then the pieces are joined, with the highest of their scores. A
    piece that agrees with nothing is dropped where it lies in a larger box of its class that its own view did not see.

    Args:
        views: the parts, with detections in their pixels.
        size_hw: height and width of the image; no box reaches beyond.
    """
    pieces = _collect(views, size_hw)
    groups = _groups(pieces, [view.window for view in views])
    objects = [_one_object(pieces, members) for members in groups]
    objects = _without_loose_pieces(objects)
    objects.sort(key=lambda found: (-found.score, *found.box))
    return Detections(
        boxes_xyxy=np.array([found.box for found in objects], np.float32).reshape(-1, 4),
        scores=np.array([found.score for found in objects], np.float32),
        labels=np.array([found.label for found in objects], np.int64),
    )


@dataclass(frozen=True, kw_only=True)
class _Pieces:
    """All detections of all views."""

    boxes: Float64[np.ndarray, "N 4"]
    """Left, top, right, bottom in pixels of the image."""
    scores: Float64[np.ndarray, " N"]
    labels: Int64[np.ndarray, " N"]
    view: Int64[np.ndarray, " N"]
    window_area: Float64[np.ndarray, " N"]
    is_cut: Bool[np.ndarray, " N"]
    """Whether the box ends at an inner border of its view."""


@dataclass(frozen=True, kw_only=True)
class _Object:
    box: tuple[float, ...]
    score: float
    label: int
    views: frozenset[int]
    is_whole: bool

    @property
    def area(self) -> float:
        return (self.box[2] - self.box[0]) * (self.box[3] - self.box[1])


def _collect(views: Sequence[View], size_hw: tuple[int, int]) -> _Pieces:
    counts = [len(view.detections) for view in views]
    windows = np.array([view.window for view in views], np.float64).reshape(-1, 4).repeat(counts, 0)
    offsets = windows[:, [0, 1, 0, 1]]
    boxes = np.concatenate([np.zeros((0, 4)), *(view.detections.boxes_xyxy.astype(np.float64) for view in views)])
    boxes = _clipped(boxes + offsets, windows)
    image = np.array([0, 0, size_hw[1], size_hw[0]], np.float64)
    is_cut = ((windows != image) & (np.abs(boxes - windows) <= _BORDER_PX)).any(axis=1)
    sides = (boxes[:, 2:] - boxes[:, :2]).min(axis=1, initial=np.inf)
    keep = np.where(is_cut, sides >= _LEAST_PIECE_PX, sides > 0)
    return _Pieces(
        boxes=boxes[keep],
        scores=np.concatenate([np.zeros(0), *(view.detections.scores.astype(np.float64) for view in views)])[keep],
        labels=np.concatenate([np.zeros(0, np.int64), *(view.detections.labels for view in views)])[keep],
        view=np.arange(len(views)).repeat(counts)[keep],
        window_area=_areas(windows)[keep],
        is_cut=is_cut[keep],
    )


def _groups(pieces: _Pieces, windows: Sequence[Window]) -> list[list[int]]:
    """Return which detections are one object, as lists of indices."""
    first, second, weight = _agreeing_pairs(pieces, windows)
    group_of = list(range(len(pieces.scores)))
    groups = {i: [i] for i in group_of}
    views = {i: {int(view)} for i, view in enumerate(pieces.view)}
    for pair in np.argsort(-weight, kind="stable"):
        a, b = group_of[first[pair]], group_of[second[pair]]
        if a == b or views[a] & views[b]:
            continue
        for member in groups[b]:
            group_of[member] = a
        groups[a] += groups.pop(b)
        views[a] |= views.pop(b)
    return list(groups.values())


def _agreeing_pairs(
    pieces: _Pieces, windows: Sequence[Window]
) -> tuple[Int64[np.ndarray, " M"], Int64[np.ndarray, " M"], Float64[np.ndarray, " M"]]:
    """Return the pairs of detections that agree, and how much weight that has: the IoU times the lower score."""
    found = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    of_view = [np.flatnonzero(pieces.view == i) for i in range(len(windows))]
    for i, j in _overlapping(windows):
        shared = _clipped(np.array(windows[i], np.float64), np.array(windows[j], np.float64))
        a, b = (of_view[k][_areas(_clipped(pieces.boxes[of_view[k]], shared)) > 0] for k in (i, j))
        iou = _iou(_clipped(pieces.boxes[a], shared), _clipped(pieces.boxes[b], shared))
        iou[pieces.labels[a][:, None] != pieces.labels[b]] = 0
        rows, columns = np.nonzero(iou >= _AGREEMENT)
        rows_of, columns_of = a[rows], b[columns]
        lower_score = np.minimum(pieces.scores[rows_of], pieces.scores[columns_of])
        found.append((rows_of, columns_of, iou[rows, columns] * lower_score))
    first, second, weight = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return first, second, weight


def _overlapping(windows: Sequence[Window]) -> Iterator[tuple[int, int]]:
    corners = np.array(windows, np.float64).reshape(-1, 4)
    for i in range(len(corners)):  # all pairs at once would be gigabytes for ten thousand tiles
        for j in np.flatnonzero(_intersections(corners[i : i + 1], corners[i + 1 :])[0]):
            yield i, i + 1 + int(j)


def _one_object(pieces: _Pieces, members: Sequence[int]) -> _Object:
    boxes, scores = pieces.boxes[members], pieces.scores[members]
    whole = np.flatnonzero(~pieces.is_cut[members])
    if len(whole):
        finest = pieces.window_area[members][whole]
        chosen = whole[np.lexsort((-scores[whole], finest))[0]]
        box, score = boxes[chosen], scores[chosen]
    else:
        box, score = np.concatenate([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)]), scores.max()
    return _Object(
        box=tuple(box.tolist()),
        score=float(score),
        label=int(pieces.labels[members[0]]),
        views=frozenset(pieces.view[members].tolist()),
        is_whole=len(whole) > 0,
    )


def _without_loose_pieces(objects: Sequence[_Object]) -> list[_Object]:
    """Return the objects without pieces that lie in a larger box."""
    ordered = sorted(objects, key=lambda found: (not found.is_whole, -found.area))
    boxes = np.array([found.box for found in ordered]).reshape(-1, 4)
    labels = np.array([found.label for found in ordered])
    scores = np.array([found.score for found in ordered])
    areas = _areas(boxes)
    is_kept = np.ones(len(ordered), np.bool_)
    for i, piece in enumerate(ordered):
        if piece.is_whole:
            continue
        is_sure = (labels[:i] == piece.label) & (scores[:i] >= _SURE * piece.score)
        larger = np.flatnonzero(is_kept[:i] & is_sure & (areas[:i] >= areas[i]))
        share = _intersections(boxes[i : i + 1], boxes[larger])[0] / areas[i]
        is_kept[i] = all(ordered[k].views & piece.views for k in larger[share >= _INSIDE])
    return [found for found, kept in zip(ordered, is_kept, strict=True) if kept]


def _clipped(boxes: Float64[np.ndarray, "*N 4"], window: Float64[np.ndarray, "*#N 4"]) -> Float64[np.ndarray, "*N 4"]:
    """Return boxes cut to a window; one outside it has no area."""
    low, high = window[..., [0, 1, 0, 1]], window[..., [2, 3, 2, 3]]
    return np.clip(boxes, low, high)


def _areas(boxes: Float64[np.ndarray, "N 4"]) -> Float64[np.ndarray, " N"]:
    areas: Float64[np.ndarray, " N"] = (boxes[:, 2:] - boxes[:, :2]).clip(min=0).prod(axis=1)
    return areas


def _intersections(a: Float64[np.ndarray, "N 4"], b: Float64[np.ndarray, "M 4"]) -> Float64[np.ndarray, "N M"]:
    sides = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    areas: Float64[np.ndarray, "N M"] = sides.clip(min=0).prod(axis=2)
    return areas


def _iou(a: Float64[np.ndarray, "N 4"], b: Float64[np.ndarray, "M 4"]) -> Float64[np.ndarray, "N M"]:
    shared = _intersections(a, b)
    iou: Float64[np.ndarray, "N M"] = shared / (_areas(a)[:, None] + _areas(b)[None] - shared).clip(min=1e-12)
    return iou

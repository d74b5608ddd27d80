"""Which detection takes which object: every image of a data set at once, one to one, best scores first.

Shape letters: `I` images, `N` detections, `A` objects or crowd regions, `P` pairs of the two.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64, Int64

__all__ = ["Found", "Objects", "Pairs", "overlapping_pairs", "ranked", "take_by_score"]

_PAIRS_AT_ONCE = 1_000_000
"""Pairs whose overlaps are computed together: 100 MB or so, whatever the size of the data set."""


@dataclass(frozen=True, kw_only=True)
class Objects:
    """The objects, or the crowd regions, of a data set."""

    image_index: Int64[np.ndarray, " A"]
    labels: Int64[np.ndarray, " A"]
    boxes_xywh: Float64[np.ndarray, "A 4"]
    """Left, top, width, height in pixels."""

    def __len__(self) -> int:
        return len(self.labels)

    def where(self, keep: Bool[np.ndarray, " A"]) -> Objects:
        """Return some of them."""
        return Objects(image_index=self.image_index[keep], labels=self.labels[keep], boxes_xywh=self.boxes_xywh[keep])


@dataclass(frozen=True, kw_only=True)
class Found(Objects):
    """The detections of a data set, highest score first: a lower number has the first choice."""

    scores: Float64[np.ndarray, " A"]

    def first(self, count: int) -> Found:
        """Return those of the highest scores."""
        return Found(
            image_index=self.image_index[:count],
            labels=self.labels[:count],
            boxes_xywh=self.boxes_xywh[:count],
            scores=self.scores[:count],
        )


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Detections and objects of one image that overlap: the detections in order, each one's best overlap first."""

    found: Int64[np.ndarray, " P"]
    objects: Int64[np.ndarray, " P"]
    overlaps: Float64[np.ndarray, " P"]
    is_same_class: Bool[np.ndarray, " P"]

    def where(self, keep: Bool[np.ndarray, " P"]) -> Pairs:
        """Return some of them."""
        return Pairs(
            found=self.found[keep],
            objects=self.objects[keep],
            overlaps=self.overlaps[keep],
            is_same_class=self.is_same_class[keep],
        )

    def own_class_first(self) -> Pairs:
        """Return them with each detection's objects of its own class before all others."""
        order = np.lexsort((~self.is_same_class, self.found))
        return Pairs(
            found=self.found[order],
            objects=self.objects[order],
            overlaps=self.overlaps[order],
            is_same_class=self.is_same_class[order],
        )


def ranked(
    image_index: Int64[np.ndarray, " N"],
    labels: Int64[np.ndarray, " N"],
    boxes_xywh: Float64[np.ndarray, "N 4"],
    scores: Float64[np.ndarray, " N"],
    *,
    max_detections: int,
) -> Found:
    """Return the detections by score, at most `max_detections` of an image and class.

    Equal scores stay in the order of images and of rows, as pycocotools has them.
    """
    order = np.lexsort((image_index, -scores))
    groups = image_index[order] * (int(labels.max(initial=0)) + 1) + labels[order]
    by_group = np.argsort(groups, kind="stable")
    places = np.empty(len(order), dtype=np.int64)
    places[by_group] = _count_up(np.unique(groups, return_counts=True)[1])
    order = order[places < max_detections]
    return Found(
        image_index=image_index[order], labels=labels[order], boxes_xywh=boxes_xywh[order], scores=scores[order]
    )


def overlapping_pairs(
    found: Found, objects: Objects, *, least: float, over: Literal["union", "found"] = "union"
) -> Pairs:
    """Return the pairs that overlap by at least this much.

    Equal overlaps of a detection come with the last object first, as pycocotools chooses.

    Args:
        found: the detections.
        objects: what they are compared with.
        least: overlap from which on a pair counts, over 0.
        over: what the intersection is divided by: the union, or (for crowd regions) the detection's own area.
    """
    parts = list(_pairs_by_part(found, objects, least=least, over=over))
    empty = np.zeros(0, dtype=np.int64)
    who = np.concatenate([empty, *(part[0] for part in parts)])
    what = np.concatenate([empty, *(part[1] for part in parts)])
    overlaps = np.concatenate([np.zeros(0), *(part[2] for part in parts)])
    order = np.lexsort((-what, -overlaps, who))
    who, what = who[order], what[order]
    return Pairs(
        found=who, objects=what, overlaps=overlaps[order], is_same_class=found.labels[who] == objects.labels[what]
    )


def take_by_score(pairs: Pairs, num_found: int) -> Int64[np.ndarray, " N"]:
    """Let the detections choose, highest score first, each the first of its pairs that is still free.

    All ask at once for their first choice; an object keeps the best score that has asked, whoever is turned away asks
    for the next. That ends where one after the other would end (Gale and Shapley 1962), in a few rounds for all images.

    Returns:
        The object of each detection, or -1.
    """
    taken = np.full(num_found, -1, dtype=np.int64)
    seekers, choice = np.unique(pairs.found, return_index=True)
    end = np.append(choice[1:], len(pairs.found))
    best = np.full(int(pairs.objects.max(initial=-1)) + 1, num_found, dtype=np.int64)
    while True:
        wanted = pairs.objects[choice]
        np.minimum.at(best, wanted, seekers)
        is_lost = best[wanted] != seekers
        if not is_lost.any():
            taken[seekers] = wanted
            return taken
        choice = choice + is_lost
        has_more = choice < end
        seekers, choice, end = seekers[has_more], choice[has_more], end[has_more]


def _pairs_by_part(
    found: Found, objects: Objects, *, least: float, over: Literal["union", "found"]
) -> Iterator[tuple[Int64[np.ndarray, " P"], Int64[np.ndarray, " P"], Float64[np.ndarray, " P"]]]:
    """Yield (detections, objects, overlaps), in parts that fit memory."""
    by_image = np.argsort(objects.image_index, kind="stable")
    start = np.searchsorted(objects.image_index[by_image], found.image_index, side="left")
    counts = np.searchsorted(objects.image_index[by_image], found.image_index, side="right") - start
    ends = np.cumsum(counts)
    begin = 0
    while begin < len(found):
        before = int(ends[begin - 1]) if begin else 0
        stop = max(begin + 1, int(np.searchsorted(ends, before + _PAIRS_AT_ONCE, side="right")))
        part = counts[begin:stop]
        who = np.repeat(np.arange(begin, stop), part)
        what = by_image[np.repeat(start[begin:stop], part) + _count_up(part)]
        overlaps = _overlaps(found.boxes_xywh[who], objects.boxes_xywh[what], over=over)
        is_pair = overlaps >= least
        yield who[is_pair], what[is_pair], overlaps[is_pair]
        begin = stop


def _overlaps(
    found_xywh: Float64[np.ndarray, "P 4"], object_xywh: Float64[np.ndarray, "P 4"], *, over: Literal["union", "found"]
) -> Float64[np.ndarray, " P"]:
    left_top = np.maximum(found_xywh[:, :2], object_xywh[:, :2])
    right_bottom = np.minimum(found_xywh[:, :2] + found_xywh[:, 2:], object_xywh[:, :2] + object_xywh[:, 2:])
    shared = np.prod(np.clip(right_bottom - left_top, 0, None), axis=1)
    divisor = np.prod(found_xywh[:, 2:], axis=1)
    if over == "union":
        divisor = divisor + np.prod(object_xywh[:, 2:], axis=1) - shared
    return np.divide(shared, divisor, out=np.zeros_like(shared), where=shared > 0)


def _count_up(counts: Int64[np.ndarray, " G"]) -> Int64[np.ndarray, " N"]:
    """Return 0, 1, ... for each group, one group after the other."""
    starts = np.cumsum(counts) - counts
    return np.arange(int(counts.sum())) - np.repeat(starts, counts)

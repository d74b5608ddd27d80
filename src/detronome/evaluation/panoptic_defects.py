"""What keeps a panoptic prediction from being measured: found for one image, told for all of them at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int32, Int64

from detronome.errors import DataError, Problem, first_few
from detronome.ops.segment_ids import run_starts
from detronome.types import PanopticPrediction, PanopticTruth

__all__ = ["Defect", "DefectKind", "DefectivePredictionError", "defects_of", "problems_of"]

DefectKind = Literal[
    "prediction_missing",
    "map_unusable",
    "added_twice",
    "other_image",
    "size_differs",
    "id_unlisted",
    "id_absent",
    "id_twice",
    "category_unknown",
    "truth_category_unknown",
]

_TEXTS: dict[DefectKind, tuple[str, str]] = {
    "prediction_missing": (
        "images have no prediction",
        "predict every image of the annotation file; one where nothing was found has a map of zeros and no segments",
    ),
    "map_unusable": ("maps cannot be used", "write them again, as PNG files of RGB colours"),
    "added_twice": ("images were compared twice", "add each image once, without those that pad a rank's last batch"),
    "other_image": ("predictions are compared with another image than theirs", "pair them by image_id"),
    "size_differs": (
        "predicted maps have another size than the true ones (width x height)",
        "predict at the size of the original images",
    ),
    "id_unlisted": (
        "predicted maps have segment ids that segments_info does not list",
        "list every segment of a map; 0 is void, and ids are red + 256 green + 65536 blue",
    ),
    "id_absent": (
        "predictions list segment ids without a pixel in their map",
        "leave segments that others cover whole out of segments_info",
    ),
    "id_twice": ("predictions list a segment id twice", "give each segment of an image its own id"),
    "category_unknown": (
        "predictions have categories that the annotation file does not list",
        "use the category ids of the annotation file",
    ),
    "truth_category_unknown": (
        "true segments have categories that their file does not list",
        "add the categories, or correct category_id",
    ),
}


class Defect(NamedTuple):
    """One defect of one prediction."""

    kind: DefectKind
    case: str
    """The image, and what of it."""


class DefectivePredictionError(DataError):
    """A prediction cannot be measured; `defects` are the reasons.

    Args:
        defects: at least one.
        where: names what was compared.
    """

    def __init__(self, defects: Iterable[Defect], *, where: str) -> None:
        self.defects = tuple(defects)
        super().__init__(problems_of(self.defects, where=where))


def problems_of(defects: Iterable[Defect], *, where: str) -> list[Problem]:
    """Return one problem for each kind of defect, with the first cases of it."""
    cases: dict[DefectKind, list[str]] = {}
    for kind, case in defects:
        cases.setdefault(kind, []).append(case)
    return [
        Problem(what=f"{len(found)} {_TEXTS[kind][0]}: {first_few(found, separator='; ')}", where=where, fix=fix)
        for kind, (_, fix) in _TEXTS.items()
        if (found := cases.get(kind, []))
    ]


def defects_of(
    truth: PanopticTruth, prediction: PanopticPrediction, category_ids: Int64[np.ndarray, " K"]
) -> Iterator[Defect]:
    """Yield what keeps a prediction from being measured; nothing for a sound one.

    Args:
        truth: of the same image.
        prediction: the map and its segments.
        category_ids: those that the truth's file lists.
    """
    image = f"image {truth.image_id}"
    if prediction.image_id != truth.image_id:
        yield Defect("other_image", f"image {prediction.image_id} with {truth.image_id}")
        return
    if prediction.segment_ids.shape != truth.segment_ids.shape:
        (height, width), (true_height, true_width) = prediction.segment_ids.shape, truth.segment_ids.shape
        yield Defect("size_differs", f"{image}: {width}x{height}, the true one {true_width}x{true_height}")
        return
    known = set(category_ids.tolist())
    listed = [segment.id for segment in prediction.segments]
    in_map = set(_distinct(prediction.segment_ids)) - {0}
    found: tuple[tuple[DefectKind, set[int]], ...] = (
        ("id_unlisted", in_map - set(listed)),
        ("id_absent", set(listed) - in_map),
        ("id_twice", {i for i in listed if listed.count(i) > 1}),
        ("category_unknown", {segment.category_id for segment in prediction.segments} - known),
        ("truth_category_unknown", set(truth.category_ids.tolist()) - known),
    )
    for kind, ids in found:
        if ids:
            yield Defect(kind, f"{image}: {first_few([str(i) for i in sorted(ids)])}")


def _distinct(segment_ids: Int32[np.ndarray, "H W"]) -> list[int]:
    """Return the ids in a map."""
    distinct: list[int] = np.unique(segment_ids.ravel()[run_starts(segment_ids)]).tolist()
    return distinct

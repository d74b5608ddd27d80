"""Panoptic quality of predictions in files, from any tool, against a COCO panoptic annotation file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from detronome.data.coco.panoptic_files import maps_dir_of
from detronome.data.coco.panoptic_map import read_segment_ids
from detronome.data.coco.panoptic_results import PanopticResult, read_results
from detronome.data.store.index import AnnotationIndex
from detronome.data.store.maps import PanopticMaps
from detronome.errors import DataError, Problem
from detronome.evaluation.panoptic import PanopticEvaluator, PanopticMetrics
from detronome.evaluation.panoptic_defects import Defect, DefectivePredictionError, problems_of
from detronome.runtime.processors import usable_cpus
from detronome.types import PanopticPrediction, PanopticTruth, Segment

__all__ = ["evaluate_panoptic_results"]

_Pair = tuple[PanopticTruth, PanopticPrediction]


def evaluate_panoptic_results(detections: str | Path, annotations: str | Path) -> PanopticMetrics:
    """Measure a file of panoptic predictions in COCO's format against a panoptic annotation file.

    The PNG maps lie in folders named like the two files, beside them or one folder up. As in panopticapi, every
    annotated image needs a prediction, and predictions for other images are left aside. A few images are in memory at
    a time.

    Args:
        detections: the file of predictions: `annotations` with image_id, file_name and segments_info.
        annotations: the annotation file.

    Raises:
        DataError: a file or folder is missing or malformed, or predictions cannot be measured; all of them at once.
    """
    results, index, predicted_dir, true_dir = _opened(Path(detections), Path(annotations))
    maps = PanopticMaps(index, true_dir)
    is_thing = dict(zip(index.categories.ids, index.categories.is_thing or (), strict=True))
    evaluator = PanopticEvaluator(index.categories)
    image_ids = [index.image(i).image_id for i in range(len(index))]
    defects = [Defect("prediction_missing", f"image {image_id}") for image_id in image_ids if image_id not in results]

    def read(i: int) -> _Pair | list[Defect]:
        result = results[image_ids[i]]
        failures = []
        try:
            truth = maps.truth(i)
        except DataError as error:
            failures += _unusable(error)
        try:
            prediction = _prediction(result, predicted_dir, is_thing)
        except DataError as error:
            failures += _unusable(error)
        return failures or (truth, prediction)

    with ThreadPoolExecutor(usable_cpus()) as pool:
        for pair in _in_small_groups(pool, read, [i for i, image_id in enumerate(image_ids) if image_id in results]):
            if isinstance(pair, list):
                defects += pair
                continue
            try:
                evaluator.add(*pair)
            except DefectivePredictionError as error:
                defects += error.defects
    if defects:
        raise DataError(problems_of(defects, where=f"{detections}, measured against {annotations}"))
    others = len(results.keys() - set(image_ids))
    notes = [f"{others} predictions are for images without panoptic annotation: they were left aside"] if others else []
    return evaluator.compute(notes=notes)


def _opened(detections: Path, annotations: Path) -> tuple[dict[int, PanopticResult], AnnotationIndex, Path, Path]:
    """Return (results by image id, the truth, the folders of both maps).

    Raises:
        DataError: what is wrong with any of the four.
    """
    problems: list[Problem] = []
    results: dict[int, PanopticResult] = {}
    index: AnnotationIndex | None = None
    try:
        results = read_results(detections)
    except DataError as error:
        problems += error.problems
    try:
        index = AnnotationIndex.open(annotations, "panoptic")
    except DataError as error:
        problems += error.problems
    folders = maps_dir_of(detections), maps_dir_of(annotations)
    problems += [
        Problem(
            what="the folder of the panoptic maps is missing",
            where=str(folder),
            fix=f"put the PNG files that {json_file.name} names into this folder",
        )
        for json_file, folder in zip((detections, annotations), folders, strict=True)
        if json_file.is_file() and not folder.is_dir()
    ]
    if problems or index is None:
        raise DataError(problems)
    return results, index, *folders


def _prediction(result: PanopticResult, folder: Path, is_thing: dict[int, bool]) -> PanopticPrediction:
    return PanopticPrediction(
        segment_ids=read_segment_ids(folder / result.file_name),
        segments=tuple(
            Segment(id=id_, category_id=category_id, is_thing=is_thing.get(category_id, True), area=0)
            for id_, category_id in result.segments
        ),
        image_id=result.image_id,
    )


def _unusable(error: DataError) -> list[Defect]:
    prefix = "the panoptic map cannot be used: "
    return [Defect("map_unusable", f"{p.where}: {p.what.removeprefix(prefix)}") for p in error.problems]


def _in_small_groups(
    pool: ThreadPoolExecutor, read: Callable[[int], _Pair | list[Defect]], images: Sequence[int]
) -> Iterator[_Pair | list[Defect]]:
    """Yield what is read of each image, in order: no more in memory than what the threads read at a time."""
    size = 2 * usable_cpus()
    for start in range(0, len(images), size):
        yield from pool.map(read, images[start : start + size])

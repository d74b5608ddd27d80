"""Finding objects in images, folders of them and videos; writing pictures, COCO results, YOLO labels and CSV."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from detronome.api.arguments import one_of
from detronome.api.prediction_files import Format, PredictionFiles, require_free
from detronome.config.schema import DetrConfig
from detronome.data.coco.image_ids import ids_of_inputs
from detronome.data.inputs import Input, find_inputs
from detronome.deploy.input_stream import in_chunks, read_ahead, read_pictures, require_readable_inputs
from detronome.deploy.predictor import build_predictor
from detronome.deploy.tiling import TiledPredictor
from detronome.deploy.video import VideoReader
from detronome.errors import ConfigError, DataError, Problem, nearest_name_hint
from detronome.model import Model, load
from detronome.types import Categories, Detections, PanopticPrediction, Predictor
from detronome.weights.coco import NO_NAME

__all__ = ["Predictions", "predict"]

OnError = Literal["skip", "stop"]
IfExists = Literal["error", "replace"]

_BATCH_SIZE = 4
_BATCHES_IN_MEMORY = 4
"""So that images of different shapes find others to share a batch with."""


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What `predict` found and wrote.

    Files hold the objects themselves; `Model.predict` gives them in Python.
    """

    out: Path
    results: dict[str, Path]
    """What was written, by kind: `pictures` and `yolo` are folders, `coco`, `panoptic` and `csv` are files."""
    num_objects: dict[str, int]
    """Objects from the asked score on, by image or video."""
    num_images: int
    num_frames: int
    """Of all videos."""
    unreadable: tuple[Problem, ...] = ()
    """Images that were left out, and videos whose rest was."""
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return all of it as a JSON record."""
        return {
            "out": str(self.out),
            "results": {kind: str(path) for kind, path in self.results.items()},
            "num_objects": self.num_objects,
            "num_images": self.num_images,
            "num_frames": self.num_frames,
            "unreadable": [{"what": one.what, "where": one.where, "fix": one.fix} for one in self.unreadable],
            "notes": list(self.notes),
        }


def predict(
    model: str | Path | Model,
    images: str | Path | Iterable[str | Path],
    *,
    out: str | Path,
    formats: Iterable[str] = ("pictures", "coco"),
    score: float = 0.5,
    max_detections: int | None = None,
    classes: Iterable[str] | None = None,
    recursive: bool = False,
    annotations: str | Path | None = None,
    tile: int | str | None = None,
    overlap: float = 0.2,
    tile_whole: bool = True,
    every: int = 1,
    batch_size: int | None = None,
    on_error: OnError = "skip",
    if_exists: IfExists = "error",
    device: str = "auto",
    on_progress: Callable[[int, int], None] | None = None,
) -> Predictions:
    """Find objects in images and videos, and write what was found as it comes.

    Image ids are those of `annotations`; else the numbers in the file names, as COCO's are, where all names are
    numbers and there is no video; else 1, 2, ... in order, a video taking one for each frame.

    Args:
        model: a `Model`, or what `load` takes.
        images: files, folders, patterns (`photos/**/*.jpg`) and videos.
        out: the folder to write to.
        formats: `pictures` (`<name>.jpg`, of a video `<name>.mp4` without sound), `coco` (`detections.json`, and with a
            panoptic model `panoptic.json` and its maps in `panoptic/`), `yolo` (`labels/<name>.txt`, `classes.txt`),
            `csv` (`detections.csv`).
        score: smallest score of objects in pictures, YOLO labels and CSV; COCO results hold all.
        max_detections: the most objects of an image; by default as in the model's evaluation, tiled without limit.
        classes: names of categories; others are left out.
        recursive: look in the folders' subfolders too.
        annotations: a COCO annotation file that gives image ids by file name.
        tile: look at large images in tiles: side in pixels, or `WIDTHxHEIGHT`.
        overlap: of neighbouring tiles, as a share of the tile.
        tile_whole: look at the whole image too.
        every: of a video, each N-th frame only.
        batch_size: the most images, tiles or frames that go through the model at once.
        on_error: `skip` leaves out what cannot be read and says so in the result; `stop` first reads every image and
            opens every video, writes nothing if one cannot be read, and ends where a video proves damaged later.
        if_exists: when `out` holds such results: an error, or `replace` files of the same names.
        device: where to compute, for a model that is not loaded yet.
        on_progress: told of (images and frames done, how many there are as far as known).

    Raises:
        CheckpointError: the model cannot be loaded.
        ConfigError: options make no sense, the results are there already, or cannot be written.
        DataError: nothing is found under a name, nothing can be read, or, with `stop`, something cannot.
        MissingExtraError: there is a video, and PyAV is not installed.
    """
    one_of(on_error, OnError, "on_error")
    one_of(if_exists, IfExists, "if_exists")
    asked = _asked_formats(formats)
    tile_hw = None if tile is None else _tile_hw(tile)
    _require_positive(score=score, max_detections=max_detections, every=every, batch_size=batch_size)
    out_dir = Path(out)
    inputs = find_inputs([images] if isinstance(images, str | Path) else images, recursive=recursive, besides=out_dir)
    ids = ids_of_inputs(inputs, None if annotations is None else Path(annotations))
    loaded = model if isinstance(model, Model) else load(model, device=device)
    categories = _named(loaded.categories)
    wanted = None if classes is None else _category_ids(classes, categories)
    predictor = _predictor(loaded, max_detections, batch_size or _BATCH_SIZE)
    has_masks = _has_masks(loaded)
    if tile_hw is not None:
        if has_masks:
            raise ConfigError(
                "a panoptic model cannot look at tiles: segments of neighbouring tiles would not fit together",
                where="tile",
                fix="leave it out, or use a model without masks",
            )
        predictor = TiledPredictor(predictor, tile_hw=tile_hw, overlap=overlap, with_whole=tile_whole)
    require_free(out_dir, inputs, asked, has_masks, may_replace=if_exists == "replace")
    if on_error == "stop":
        require_readable_inputs(inputs)
    num_expected, notes = _survey(inputs, every, are_drawn="pictures" in asked)

    unreadable: list[Problem] = []

    def leave_out(_: Input, error: DataError) -> None:
        if on_error == "stop":
            raise error
        unreadable.extend(error.problems)

    num_objects: dict[str, int] = {}
    num_done = num_frames = 0
    pictures = read_pictures(inputs, every=every, on_unreadable=leave_out)
    with PredictionFiles(out_dir, asked, categories, has_masks=has_masks) as results:
        for chunk in read_ahead(in_chunks(pictures, _BATCHES_IN_MEMORY * (batch_size or _BATCH_SIZE))):
            found = predictor.predict([picture.pixels for picture in chunk])
            for picture, detections in zip(chunk, found, strict=True):
                num_done += 1
                num_frames += picture.frame is not None
                chosen = _chosen(detections, wanted, max_detections)
                image_id = num_done if ids is None else ids[picture.source.name]
                shown = results.add(picture, replace(chosen, image_id=image_id), score)
                file = str(picture.source.path)
                num_objects[file] = num_objects.get(file, 0) + shown
                if on_progress is not None:
                    on_progress(num_done, max(num_done, num_expected))
    if not num_done:
        raise DataError(unreadable)
    return Predictions(
        out=out_dir,
        results=results.places,
        num_objects=num_objects,
        num_images=num_done - num_frames,
        num_frames=num_frames,
        unreadable=tuple(unreadable),
        notes=notes,
    )


def _predictor(model: Model, max_detections: int | None, batch_size: int) -> Predictor:
    """Return the predictor, which gives at least as many detections as are wanted."""
    config = model.config
    most = max(config.eval.max_detections, max_detections or 0)
    config = replace(config, eval=replace(config.eval, max_detections=most))
    return build_predictor(config, model.form, model.categories, model.device, batch_size=batch_size)


def _chosen(detections: Detections, category_ids: Sequence[int] | None, most: int | None) -> Detections:
    """Return the detections of the wanted categories, the first so many of them."""
    if category_ids is not None:
        panoptic = detections.panoptic
        detections = replace(
            detections.take(np.isin(detections.labels, category_ids)),
            panoptic=None if panoptic is None else _segments_of(panoptic, category_ids),
        )
    return detections if most is None else detections.take(slice(most))


def _segments_of(panoptic: PanopticPrediction, category_ids: Sequence[int]) -> PanopticPrediction:
    """Return the map with the segments of some categories; pixels of others are void."""
    segments = tuple(segment for segment in panoptic.segments if segment.category_id in category_ids)
    is_kept = np.isin(panoptic.segment_ids, [segment.id for segment in segments])
    return replace(panoptic, segments=segments, segment_ids=panoptic.segment_ids * is_kept)


def _survey(inputs: Sequence[Input], every: int, *, are_drawn: bool) -> tuple[int, tuple[str, ...]]:
    """Return how many images and frames there will be, as far as headers say, and what to know about videos."""
    count, notes = 0, []
    for one in inputs:
        if not one.is_video:
            count += 1
            continue
        try:
            with VideoReader(one.path, every=every) as video:
                count += video.num_frames
                if video.has_audio and are_drawn:
                    notes.append(f"{one.path}: the drawn video has no sound")
        except DataError:
            pass  # told when it is its turn
    return count, tuple(notes)


def _asked_formats(formats: Iterable[str]) -> tuple[Format, ...]:
    names = list(dict.fromkeys([formats] if isinstance(formats, str) else formats))
    known: tuple[Format, ...] = get_args(Format)
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        problems = [
            Problem(what=f"{name!r} is no format", where="format", fix=nearest_name_hint(name, known))
            for name in unknown
        ]
        raise ConfigError(problems or "no format is named", where="format", fix=f"use {', '.join(known)}")
    return tuple(name for name in known if name in names)


def _tile_hw(tile: int | str) -> tuple[int, int]:
    """Return height and width of `640` or `WIDTHxHEIGHT`."""
    sides = str(tile).lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise ConfigError(
            f"{tile!r} is no size of a tile", where="tile", fix="give pixels: 640, or 1280x720 for width and height"
        )
    return int(sides[-1]), int(sides[0])


def _require_positive(*, score: float, max_detections: int | None, every: int, batch_size: int | None) -> None:
    counts = {"max-detections": max_detections, "every": every, "batch-size": batch_size}
    problems = [
        Problem(what=f"{name} is {value}", where=name, fix="use 1 or more")
        for name, value in counts.items()
        if value is not None and value < 1
    ]
    if not 0 <= score <= 1:
        problems.append(Problem(what=f"score is {score:g}", where="score", fix="use 0 to 1"))
    if problems:
        raise ConfigError(problems)


def _category_ids(names: Iterable[str], categories: Categories) -> list[int]:
    asked = list(dict.fromkeys([names] if isinstance(names, str) else names))
    problems = [
        Problem(
            what=f"the model knows no class {name!r}", where="classes", fix=nearest_name_hint(name, categories.names)
        )
        for name in asked
        if name not in categories.names
    ]
    if problems or not asked:
        raise ConfigError(problems or "no class is named", where="classes", fix="name classes, or leave it out")
    return [category_id for category_id, name in categories.by_id.items() if name in asked]


def _named(categories: Categories) -> Categories:
    """Return the categories without labels that name nothing: official checkpoints have eleven."""
    kept = [(category_id, name) for category_id, name in categories.by_id.items() if name != NO_NAME]
    return Categories(tuple(category_id for category_id, _ in kept), tuple(name for _, name in kept))


def _has_masks(model: Model) -> bool:
    return isinstance(model.config.model, DetrConfig) and model.config.model.mask_head

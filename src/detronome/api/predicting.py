"""Finding objects in images, folders of them and videos; writing pictures, COCO results, YOLO labels and CSV."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np

from detronome.api.arguments import one_of
from detronome.api.folders import may_write, writing
from detronome.config.schema import DetrConfig
from detronome.data.coco.image_ids import read_image_ids
from detronome.data.inputs import Input, find_inputs
from detronome.deploy.input_stream import Picture, in_chunks, read_ahead, read_pictures, require_readable_inputs
from detronome.deploy.predictor import build_predictor
from detronome.deploy.tiling import TiledPredictor
from detronome.deploy.video import VideoReader, VideoWriter
from detronome.errors import ConfigError, DataError, Problem, first_few, nearest_name_hint
from detronome.model import Model, load
from detronome.report.results.coco import CocoWriter, PanopticWriter
from detronome.report.results.found import Found, ResultWriter
from detronome.report.results.growing_file import partial_name
from detronome.report.results.pictures import PictureWriter, draw_detections
from detronome.report.results.table import CsvWriter
from detronome.report.results.yolo import YoloWriter
from detronome.types import Categories, Detections, PanopticPrediction, Predictor
from detronome.weights.coco import NO_NAME

__all__ = ["Predictions", "predict"]

Format = Literal["pictures", "coco", "yolo", "csv"]
OnError = Literal["skip", "stop"]
IfExists = Literal["error", "replace"]
_T = TypeVar("_T")

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
    ids = _image_ids(inputs, annotations)
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
    _require_free(out_dir, inputs, asked, has_masks, may_replace=if_exists == "replace")
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
    with _Results(out_dir, asked, categories, has_masks=has_masks) as results:
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


class _Results:
    """All that is written, as a context manager that publishes it in the end."""

    def __init__(self, out: Path, formats: Sequence[Format], categories: Categories, *, has_masks: bool) -> None:
        self._out = out
        self._names = categories.by_id
        places = {
            "pictures": out,
            "coco": out / "detections.json",
            "panoptic": out / "panoptic.json",
            "yolo": out / "labels",
            "csv": out / "detections.csv",
        }
        self._makers: dict[str, Callable[[], ResultWriter]] = {
            "pictures": lambda: PictureWriter(out, self._names),
            "coco": lambda: CocoWriter(places["coco"]),
            "panoptic": lambda: PanopticWriter(places["panoptic"]),
            "yolo": lambda: YoloWriter(out, categories),
            "csv": lambda: CsvWriter(places["csv"], self._names),
        }
        kinds = [*formats, *(["panoptic"] if has_masks and "coco" in formats else [])]
        self.places = {kind: place for kind, place in places.items() if kind in kinds}
        self._writers: dict[str, ResultWriter] = {}
        self._video: tuple[Input, VideoWriter] | None = None

    def __enter__(self) -> _Results:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        with writing(self._out):
            try:
                self._end_video(kind, error, trace)
            finally:
                self._close_files(is_complete=kind is None)

    def add(self, picture: Picture, detections: Detections, score: float) -> int:
        """Write what was found in a picture; return how many objects have at least this score."""
        source, frame = picture.source, picture.frame
        found = Found(
            name=source.name if frame is None else f"{source.name}/{frame:06d}",
            # Names need not be Unicode; text in a file must.
            file_name=os.fsencode(source.file_name).decode("utf-8", "backslashreplace"),
            pixels=picture.pixels,
            detections=detections,
            score=score,
            frame=frame,
            time_s=picture.time_s,
        )
        with writing(self._out):
            for kind in self.places:
                if kind not in self._writers:  # at the first picture: without any, nothing is written
                    self._writers[kind] = self._makers[kind]()
            if self._video is not None and self._video[0] != source:
                self._end_video()
            for kind, writer in self._writers.items():
                if kind == "pictures" and frame is not None:
                    self._draw_frame(picture, found)
                else:
                    writer.add(found)
        return len(found.confident)

    def _draw_frame(self, picture: Picture, found: Found) -> None:
        assert picture.fps is not None and picture.time_s is not None, "a frame knows when it is shown"
        if self._video is None:
            file = self._out / f"{picture.source.name}.mp4"
            size_hw = (picture.pixels.shape[0], picture.pixels.shape[1])
            self._video = picture.source, VideoWriter(file, size_hw=size_hw, fps=picture.fps)
        drawn = draw_detections(picture.pixels, found.confident, self._names, may_enlarge=False)
        self._video[1].write(drawn, picture.time_s)

    def _end_video(self, kind: Any = None, error: Any = None, trace: Any = None) -> None:
        video, self._video = self._video, None
        if video is not None:
            video[1].__exit__(kind, error, trace)

    def _close_files(self, *, is_complete: bool) -> None:
        with ExitStack() as all_of_them:
            for writer in self._writers.values():
                all_of_them.callback(writer.close, is_complete=is_complete)


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


def _image_ids(inputs: Sequence[Input], annotations: str | Path | None) -> dict[str, int] | None:
    """Return image ids by name; None numbers pictures and frames as they come."""
    if annotations is not None:
        return _annotated_ids(inputs, Path(annotations))
    stems = [one.path.stem for one in inputs]
    if all(stem.isdecimal() and len(stem) < 19 for stem in stems) and not any(one.is_video for one in inputs):
        ids = {one.name: int(stem) for one, stem in zip(inputs, stems, strict=True)}
        if len(set(ids.values())) == len(inputs):
            return ids
    return None


def _annotated_ids(inputs: Sequence[Input], annotations: Path) -> dict[str, int]:
    if videos := [str(one.path) for one in inputs if one.is_video]:
        raise ConfigError(
            f"frames of a video have no names that an annotation file could give ids to: {first_few(videos)}",
            where=str(annotations),
            fix="leave the annotation file out, or predict images and videos one after the other",
        )
    known = read_image_ids(annotations)
    ids = {one.name: known.of(one.file_name) for one in inputs}
    if unknown := [one.file_name for one in inputs if ids[one.name] is None]:
        raise DataError(
            f"the annotation file does not list {len(unknown):,} of {len(inputs):,} images: {first_few(unknown)}",
            where=str(annotations),
            fix="name the annotation file of these images, or leave out the others",
        )
    found = {name: image_id for name, image_id in ids.items() if image_id is not None}
    if repeated := _repeated(found.values()):
        names = [name for name, image_id in found.items() if image_id == repeated[0]]
        raise DataError(
            f"several files are the image with id {repeated[0]}: {first_few(names)}",
            where=str(annotations),
            fix="give each image once",
        )
    return found


def _require_free(
    out: Path, inputs: Sequence[Input], formats: Sequence[Format], has_masks: bool, *, may_replace: bool
) -> None:
    """Refuse a folder that cannot be written to, or where the user's files or earlier results would be overwritten."""
    may_write(out / "detections.json")
    planned = list(_planned_files(out, inputs, formats, has_masks))
    sources = {one.path.parent.resolve() / one.path.name for one in inputs}
    if clashing := [str(path) for path in planned if path.parent.resolve() / path.name in sources]:
        raise ConfigError(
            f"results would overwrite images that are looked at: {first_few(clashing)}",
            where=str(out),
            fix="choose another folder with --out",
        )
    there = [] if may_replace else [path for path in planned if os.path.lexists(path)]
    if there:
        raise ConfigError(
            f"results are there already: {first_few([str(path.relative_to(out)) for path in there])}",
            where=str(out),
            fix="choose another --out, or replace them: --if-exists replace",
        )


def _planned_files(out: Path, inputs: Sequence[Input], formats: Sequence[Format], has_masks: bool) -> Iterator[Path]:
    growing = [
        *([out / "detections.json"] if "coco" in formats else []),
        *([out / "detections.csv"] if "csv" in formats else []),
        *([out / "panoptic.json"] if has_masks and "coco" in formats else []),
    ]
    yield from growing
    yield from map(partial_name, growing)
    if "yolo" in formats:
        yield out / "classes.txt"
    for one in inputs:
        if "pictures" in formats:
            yield out / (f"{one.name}.mp4" if one.is_video else f"{one.name}.jpg")
        if "yolo" in formats:
            yield out / "labels" / (one.name if one.is_video else f"{one.name}.txt")
        if has_masks and "coco" in formats:
            yield out / "panoptic" / (one.name if one.is_video else f"{one.name}.png")


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


def _repeated(values: Iterable[_T]) -> list[_T]:
    seen: set[_T] = set()
    return [value for value in values if value in seen or seen.add(value)]  # type: ignore[func-returns-value]

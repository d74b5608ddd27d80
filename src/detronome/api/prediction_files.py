"""The files that `predict` writes: pictures and videos, COCO results, YOLO labels, a CSV table."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from detronome.api.folders import may_write, writing
from detronome.data.inputs import Input
from detronome.deploy.input_stream import Picture
from detronome.deploy.video import VideoWriter
from detronome.errors import ConfigError, first_few
from detronome.report.results.coco import CocoWriter, PanopticWriter
from detronome.report.results.found import Found, ResultWriter
from detronome.report.results.growing_file import partial_name
from detronome.report.results.pictures import PictureWriter, draw_detections
from detronome.report.results.table import CsvWriter
from detronome.report.results.yolo import YoloWriter
from detronome.types import Categories, Detections

__all__ = ["Format", "PredictionFiles", "require_free"]

Format = Literal["pictures", "coco", "yolo", "csv"]


class PredictionFiles:
    """All that is written, as a context manager that publishes it in the end.

    Args:
        out: the folder.
        formats: what is wanted.
        categories: of the model.
        has_masks: whether there are panoptic maps, which are written with `coco`.

    Attributes:
        places: where each kind of results is, or will be.

    Raises:
        ConfigError: the disk refuses, in the midst or at the end.
    """

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

    def __enter__(self) -> PredictionFiles:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        with writing(self._out):
            try:
                self._end_video(kind, error, trace)
            finally:
                self._close_files(is_complete=kind is None)

    def add(self, picture: Picture, detections: Detections, score: float) -> int:
        """Write what was found in a picture; return how many objects have at least this score.

        Raises:
            ConfigError: the disk refuses.
        """
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


def require_free(
    out: Path, inputs: Sequence[Input], formats: Sequence[Format], has_masks: bool, *, may_replace: bool
) -> None:
    """Refuse a folder that cannot be written to, or where the user's files or earlier results would be overwritten.

    Raises:
        ConfigError: it is such a folder.
    """
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

"""`detronome predict`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from detronome.cli.options import DATA_GROUP, MACHINE_GROUP, OUTPUT_GROUP, Json
from detronome.cli.progress import show_progress
from detronome.cli.render import print_json, print_line, print_notice

if TYPE_CHECKING:
    from detronome.api import Predictions

__all__ = ["predict"]

_Names = Annotated[list[str] | None, Parameter(negative=(), consume_multiple=True)]


def predict(
    checkpoint: str,
    /,
    *images: Path,
    out: Annotated[Path | None, OUTPUT_GROUP] = None,
    format: Annotated[_Names, OUTPUT_GROUP] = None,  # noqa: A002
    score: float = 0.5,
    max_detections: int | None = None,
    classes: _Names = None,
    recursive: Annotated[bool, DATA_GROUP, Parameter(negative=(), show_default=False)] = False,
    annotations: Annotated[Path | None, DATA_GROUP] = None,
    tile: str | None = None,
    overlap: float = 0.2,
    tile_whole: bool = True,
    every: Annotated[int, DATA_GROUP] = 1,
    batch_size: Annotated[int | None, MACHINE_GROUP] = None,
    on_error: Annotated[Literal["skip", "stop"], DATA_GROUP] = "skip",
    if_exists: Annotated[Literal["error", "replace"], OUTPUT_GROUP] = "error",
    device: Annotated[str, MACHINE_GROUP] = "auto",
    json: Json = False,
) -> None:
    """Find objects in images and videos: drawn pictures, COCO results, YOLO labels, a CSV table.

    Parameters
    ----------
    checkpoint
        Run, checkpoint or exported file; published weights: detr-r50, a .pth or .safetensors file, a Hugging Face
        folder or id.
    images
        Images, folders, patterns in quotes ('photos/**/*.jpg') and videos (.mp4, .mkv, .avi, .mov, .webm; these need
        pip install 'detronome[video]').
    out
        Folder for the results; by default predictions, numbered.
    format
        What to write, several at once: pictures (of a video a video), coco (detections.json; with masks also
        panoptic.json and its maps), yolo (labels/ and classes.txt), csv (detections.csv). By default pictures and coco.
    score
        Smallest score of objects in pictures, YOLO labels and CSV; detections.json holds all.
    max_detections
        The most objects of an image.
    classes
        Names of classes; objects of others are left out.
    recursive
        Look in the folders' subfolders too.
    annotations
        COCO annotation file that gives image ids by file name.
    tile
        Look at large images in tiles: the side in pixels, or WIDTHxHEIGHT.
    overlap
        Of neighbouring tiles, as a share of the tile; objects up to that size are whole in one tile at least.
    tile_whole
        With --tile, look at the whole image too: for objects larger than a tile.
    every
        Of a video, each N-th frame only.
    batch_size
        The most images, tiles or frames that go through the model at once.
    on_error
        What cannot be read is left out and told (skip); or ends the work before anything is written, but for damage
        within a video (stop).
    if_exists
        When --out holds such results: an error, or replace files of the same names.
    device
        auto, cpu, cuda, cuda:N or mps.
    """
    from detronome import api
    from detronome.api.folders import numbered

    with show_progress() as show:
        done = api.predict(
            checkpoint,
            images,
            out=numbered(Path("predictions")) if out is None else out,
            formats=_split(format) if format is not None else ("pictures", "coco"),
            score=score,
            max_detections=max_detections,
            classes=classes,
            recursive=recursive,
            annotations=annotations,
            tile=tile,
            overlap=overlap,
            tile_whole=tile_whole,
            every=every,
            batch_size=batch_size,
            on_error=on_error,
            if_exists=if_exists,
            device=device,
            on_progress=partial(show, "predicting"),
        )
    for problem in done.unreadable:
        print_notice(f"left out: {problem.where}: {problem.what}")
    for note in done.notes:
        print_notice(note)
    if json:
        print_json(done.to_json())
    else:
        _print(done, score)


def _print(done: Predictions, score: float) -> None:
    counts = [
        f"{count:,} {noun}" for count, noun in ((done.num_images, "images"), (done.num_frames, "frames")) if count
    ]
    print_line(f"{sum(done.num_objects.values()):,} objects in {' and '.join(counts)} (score {score:g} and above)")
    for kind, path in done.results.items():
        print_line(f"{kind:<9} {path}")


def _split(texts: Sequence[str]) -> list[str]:
    """Return names that were given apart or with commas."""
    return [name.strip() for text in texts for name in text.split(",") if name.strip()]

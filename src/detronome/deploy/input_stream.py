"""Pixels of images and videos as they are needed: a bounded number at a time, read while the model computes.

Shape letters: `H W` height and width of a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

import numpy as np
from jaxtyping import UInt8

from detronome.data.inputs import Input
from detronome.data.store.decode import read_image
from detronome.deploy.video import VideoReader
from detronome.errors import DataError, Problem

__all__ = ["Picture", "in_chunks", "read_ahead", "read_pictures", "require_readable_inputs"]

T = TypeVar("T")

_CHUNK_PIXELS = 2**26
"""Of the pictures that are in memory together: 192 MiB."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image, or a frame of a video."""

    source: Input
    pixels: UInt8[np.ndarray, "H W 3"]
    """RGB, upright."""
    frame: int | None = None
    """Number of a video's frame, from 0."""
    time_s: float | None = None
    fps: Fraction | None = None
    """Of the video."""


def read_pictures(
    inputs: Sequence[Input], *, every: int = 1, on_unreadable: Callable[[Input, DataError], None]
) -> Iterator[Picture]:
    """Yield the images and the frames of the videos, in order.

    Args:
        inputs: the files.
        every: of a video, take each N-th frame only.
        on_unreadable: told of an image that cannot be read, and of a video whose rest cannot; the next ones follow.

    Raises:
        MissingExtraError: there is a video, and PyAV is not installed.
    """
    for one in inputs:
        try:
            if not one.is_video:
                yield Picture(source=one, pixels=read_image(one.path))
                continue
            with VideoReader(one.path, every=every) as video:
                for frame in video:
                    yield Picture(
                        source=one, pixels=frame.pixels, frame=frame.number, time_s=frame.time_s, fps=video.fps
                    )
        except DataError as error:
            on_unreadable(one, error)


def require_readable_inputs(inputs: Sequence[Input]) -> None:
    """Read every image, and open every video.

    Raises:
        DataError: some cannot be read; all of them.
        MissingExtraError: there is a video, and PyAV is not installed.
    """
    problems: list[Problem] = []
    for one in inputs:
        try:
            if one.is_video:
                with VideoReader(one.path):
                    pass
            else:
                read_image(one.path)
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(problems)


def in_chunks(pictures: Iterator[Picture], most: int) -> Iterator[list[Picture]]:
    """Yield lists of pictures: at most so many, fewer where they are large."""
    chunk: list[Picture] = []
    pixels = 0
    for picture in pictures:
        size = picture.pixels.shape[0] * picture.pixels.shape[1]
        if chunk and (len(chunk) == most or pixels + size > _CHUNK_PIXELS):
            yield chunk
            chunk, pixels = [], 0
        chunk.append(picture)
        pixels += size
    if chunk:
        yield chunk


def read_ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield the items; the next one is made in a thread of its own meanwhile."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead") as pool:
        waiting = pool.submit(next, items, None)
        while (item := waiting.result()) is not None:
            waiting = pool.submit(next, items, None)
            yield item

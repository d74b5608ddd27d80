"""Video files: their frames, upright and in order, and videos that are written. Needs PyAV (the extra `video`).

Shape letters: `H W` height and width of a frame.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from detronome.errors import DataError, MissingExtraError
from detronome.runtime.descriptors import BINARY

if TYPE_CHECKING:
    import av

__all__ = ["Frame", "VideoReader", "VideoWriter"]

_ENCODERS = ("libx264", "mpeg4")
"""The first that this build of FFmpeg has; the second is in all of them."""
_QUALITY = {"libx264": {"crf": "20", "preset": "veryfast"}, "mpeg4": {"q:v": "4"}}
_TICKS = {"libx264": 8, "mpeg4": 1}
"""Of the clock in the time of a frame: some, so that frames at uneven intervals keep their times, and so few that the
rounding of containers that count milliseconds is undone. MPEG-4's clock has 16 bits for a second."""
_DEFAULT_FPS = Fraction(25)
_WHOLE = 0.95
"""Part of the time said by the file's head that its pictures must fill, but for two of them: containers round, and some
tell a wrong time of the last picture."""
_FIX = "play it to see whether it is whole, or convert it: ffmpeg -i VIDEO out.mp4"


@dataclass(frozen=True)
class Frame:
    """A picture of a video."""

    number: int
    """From 0, of all frames in the file."""
    time_s: float
    pixels: UInt8[np.ndarray, "H W 3"]
    """RGB, upright."""


class VideoReader:
    """The frames of a video file, decoded one after the other; one frame is in memory at a time.

    A context manager that closes the file.

    Args:
        file: the video.
        every: yield each N-th frame only.

    Attributes:
        fps: frames per second, on average.
        num_frames: how many frames there will be, as the file says; 0 where it does not.
        has_audio: whether there is sound, which is not read.

    Raises:
        MissingExtraError: PyAV is not installed.
        DataError: the file cannot be opened as a video.
    """

    def __init__(self, file: Path, *, every: int = 1) -> None:
        self.file = file
        self.every = every
        self._av = _import_av()
        try:
            self._container = self._av.open(f"file:{file}")  # what stands before a colon in a name is no protocol
        except (self._av.error.FFmpegError, OSError) as error:
            raise DataError(f"it cannot be read as a video: {_reason(error)}", where=str(file), fix=_FIX) from error
        self.has_audio = bool(self._container.streams.audio)
        if not self._container.streams.video:
            self._container.close()
            what = "there is only sound in it" if self.has_audio else "there are no pictures in it"
            raise DataError(what, where=str(file), fix="leave it out" if self.has_audio else _FIX)
        self._stream: av.VideoStream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"
        self.fps = self._stream.average_rate or self._stream.guessed_rate or _DEFAULT_FPS
        self.num_frames = -(-self._said_frames() // every)

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._container.close()

    def __iter__(self) -> Iterator[Frame]:
        """Yield the frames in the order in which they are shown.

        Raises:
            DataError: the video is damaged or cut, or its pictures change their size; frames before are yielded.
        """
        number, shape, end_s = -1, None, 0.0
        try:
            for number, frame in enumerate(self._container.decode(self._stream)):
                end_s = max(end_s, self._end_s(frame, number))
                if number % self.every:
                    continue
                turned = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
                pixels: UInt8[np.ndarray, "H W 3"] = np.ascontiguousarray(turned)
                if pixels.shape != (shape := shape or pixels.shape):
                    raise DataError(
                        f"the pictures change from {shape[1]}x{shape[0]} to {pixels.shape[1]}x{pixels.shape[0]} "
                        f"pixels at frame {number}",
                        where=str(self.file),
                        fix="cut the video there",
                    )
                time_s = frame.time if frame.time is not None else number / self.fps
                yield Frame(number, float(time_s), pixels)
        except self._av.error.FFmpegError as error:
            after = f"after {number + 1} frames" if number >= 0 else "at its first frame"
            raise DataError(
                f"the video is damaged {after}: {_reason(error)}", where=str(self.file), fix=_FIX
            ) from error
        if number < 0:
            raise DataError("the video has no frame that can be decoded", where=str(self.file), fix=_FIX)
        said_s = 0 if self._container.duration is None else self._container.duration / 1_000_000
        is_alone = len(self._container.streams) == 1  # sound and subtitles may be longer than the pictures
        if is_alone and end_s < _WHOLE * said_s - 2 / self.fps:
            raise DataError(
                f"the video is cut: its pictures end after {end_s:.1f} s, and it says that it has {said_s:.1f} s",
                where=str(self.file),
                fix=_FIX,
            )

    def _end_s(self, frame: av.VideoFrame, number: int) -> float:
        """Return when a frame is over."""
        start_s = frame.time if frame.time is not None else number / self.fps
        lasts_s = frame.duration * frame.time_base if frame.duration and frame.time_base else 1 / self.fps
        return float(start_s + lasts_s)

    def _said_frames(self) -> int:
        if self._stream.frames:
            return self._stream.frames
        if self._stream.duration is not None and self._stream.time_base is not None:
            return round(self._stream.duration * self._stream.time_base * self.fps)
        if self._container.duration is not None:
            return round(self._container.duration / 1_000_000 * self.fps)
        return 0


class VideoWriter:
    """Writes an MP4 file (H.264 where the build of FFmpeg has it) without sound, whole or not at all.

    A context manager: the file appears under its name when all frames have been written.

    Args:
        file: with the suffix .mp4.
        size_hw: height and width of every frame in pixels.
        fps: frames per second.

    Raises:
        MissingExtraError: PyAV is not installed.
        OSError: the file cannot be written.
    """

    def __init__(self, file: Path, *, size_hw: tuple[int, int], fps: Fraction) -> None:
        self.file = file
        self.size_hw = size_hw
        self.fps = fps
        self._av = _import_av()
        self._start_s: float | None = None
        self._last_tick = -1
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor, self._temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}-", suffix=".tmp")
        os.close(descriptor)
        try:
            self._open()
        except BaseException:
            self._discard()
            raise

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._mux(None)
                self._container.close()
                self._publish()
        finally:
            self._discard()

    def write(self, pixels: UInt8[np.ndarray, "H W 3"], time_s: float) -> None:
        """Append a frame, RGB, shown from this time on; the first frame's time is the video's start."""
        assert pixels.shape[:2] == self.size_hw
        start_s = self._start_s = time_s if self._start_s is None else self._start_s
        frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame.pts = self._last_tick = max(self._last_tick + 1, round((time_s - start_s) / self._tick_s))
        frame.time_base = self._tick_s
        self._mux(frame)

    def _open(self) -> None:
        encoder = next(name for name in _ENCODERS if name in self._av.codecs_available)
        # fast start: a page can play the video before it has all of it
        self._container = self._av.open(self._temporary, "w", format="mp4", options={"movflags": "+faststart"})
        self._stream = self._container.add_stream(encoder, rate=self.fps, options=_QUALITY[encoder])
        self._stream.height, self._stream.width = self.size_hw
        # 4:2:0, which all players know, shares colours between neighbours: x264 refuses odd sides of it.
        is_odd = any(side % 2 for side in self.size_hw)
        self._stream.pix_fmt = "yuv444p" if is_odd and encoder == "libx264" else "yuv420p"
        self._tick_s = 1 / (self.fps * _TICKS[encoder])
        self._stream.codec_context.time_base = self._tick_s

    def _mux(self, frame: av.VideoFrame | None) -> None:
        for packet in self._stream.encode(frame):
            self._container.mux(packet)

    def _publish(self) -> None:
        descriptor = os.open(self._temporary, os.O_RDWR | BINARY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.chmod(self._temporary, 0o644)
        os.replace(self._temporary, self.file)

    def _discard(self) -> None:
        with suppress(Exception):  # closing writes the file's end, which may fail for the reason that led here
            self._container.close()
        Path(self._temporary).unlink(missing_ok=True)


def _import_av() -> ModuleType:
    try:
        import av
    except ImportError as error:
        raise MissingExtraError("av", extra="video", needed_for="a video") from error
    return av


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)

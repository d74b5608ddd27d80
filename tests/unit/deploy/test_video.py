"""Videos are read upright and in order, and written with the size and the times that they had."""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from detronome.deploy import video as video_module
from detronome.deploy.video import VideoReader, VideoWriter
from detronome.errors import DataError, MissingExtraError

COLORS = ((220, 30, 30), (30, 200, 40), (40, 60, 230))


def picture(height: int, width: int, number: int) -> np.ndarray:
    """Grey, with a coloured quarter at the top left."""
    pixels = np.full((height, width, 3), 128, np.uint8)
    pixels[: height // 2, : width // 2] = COLORS[number % 3]
    return pixels


def write(
    file: Path, times_s: list[float], *, size_hw: tuple[int, int] = (48, 64), fps: Fraction = Fraction(10)
) -> Path:
    with VideoWriter(file, size_hw=size_hw, fps=fps) as video:
        for i, time_s in enumerate(times_s):
            video.write(picture(*size_hw, i), time_s)
    return file


@pytest.mark.parametrize("size_hw", [(48, 64), (47, 63), (2, 2), (1, 33)])
@pytest.mark.parametrize("fps", [Fraction(10), Fraction(30000, 1001)])
def test_what_is_written_is_read(tmp_path: Path, size_hw: tuple[int, int], fps: Fraction) -> None:
    file = write(tmp_path / "deep" / "v.mp4", [float(i / fps) for i in range(5)], size_hw=size_hw, fps=fps)
    assert [path.name for path in file.parent.iterdir()] == ["v.mp4"]
    with VideoReader(file) as video:
        assert (video.fps, video.num_frames, video.has_audio) == (fps, 5, False)
        frames = list(video)
    assert [frame.number for frame in frames] == [0, 1, 2, 3, 4]
    assert [frame.time_s for frame in frames] == pytest.approx([float(i / fps) for i in range(5)], abs=1e-4)
    for i, frame in enumerate(frames):
        assert frame.pixels.shape == (*size_hw, 3) and frame.pixels.flags.c_contiguous
        if min(size_hw) > 40:
            difference = np.abs(frame.pixels.astype(int) - picture(*size_hw, i))
            assert np.median(difference) < 8


@pytest.mark.parametrize("name", ["12:30.mp4", "concat:a|b.mp4", "ü 日本.mp4", "caf\udce9.mp4", "50%d.mp4"])
def test_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with VideoReader(write(Path(name), [0, 0.1])) as video:
        assert len(list(video)) == 2


def test_every_third_frame(tmp_path: Path) -> None:
    with VideoReader(write(tmp_path / "v.mp4", [i / 10 for i in range(8)]), every=3) as video:
        assert video.num_frames == 3
        assert [frame.number for frame in video] == [0, 3, 6]


def test_times_begin_at_the_first_frame_and_never_stand_still(tmp_path: Path) -> None:
    """As from a container that counts milliseconds, and a camera that hesitates."""
    file = write(tmp_path / "v.mp4", [5.0, 5.101, 5.2, 5.201, 5.9])
    with VideoReader(file) as video:
        assert [frame.time_s for frame in video] == pytest.approx([0, 0.1, 0.2, 0.2125, 0.9])


def test_frames_at_uneven_intervals_keep_their_times(tmp_path: Path) -> None:
    """Two seconds of a smooth movement in a screen recording that is still otherwise."""
    times_s = [*(i / 60 for i in range(120)), *range(2, 10)]
    fps = Fraction(len(times_s), 10)
    with VideoReader(write(tmp_path / "v.mp4", times_s, fps=fps)) as video:
        assert [frame.time_s for frame in video] == pytest.approx(times_s, abs=0.01)


@pytest.mark.parametrize("size_hw", [(48, 64), (47, 63)])
def test_without_x264(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size_hw: tuple[int, int]) -> None:
    monkeypatch.setattr(video_module, "_ENCODERS", ("mpeg4",))
    with VideoReader(write(tmp_path / "v.mp4", [0, 0.1, 0.4], size_hw=size_hw)) as video:
        frames = list(video)
    assert [frame.time_s for frame in frames] == pytest.approx([0, 0.1, 0.4])
    assert frames[0].pixels.shape == (*size_hw, 3)


def test_nothing_is_left_of_a_video_that_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), VideoWriter(tmp_path / "v.mp4", size_hw=(48, 64), fps=Fraction(10)) as video:
        video.write(picture(48, 64, 0), 0)
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("degrees", "turns"), [(90, 3), (180, 2), (270, 1)])
def test_a_video_from_a_turned_phone_is_upright(tmp_path: Path, degrees: int, turns: int) -> None:
    """The track's header says how to turn the pictures clockwise, as phones write it."""
    content = bytearray(write(tmp_path / "v.mp4", [0, 0.1]).read_bytes())
    at = content.index(b"tkhd") + 4 + 40
    a, b = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    matrix = [a, b, 0, -b, a, 0]
    for i, value in enumerate(matrix):
        content[at + 4 * i : at + 4 * i + 4] = (value * 65536).to_bytes(4, "big", signed=True)
    (tmp_path / "turned.mp4").write_bytes(content)
    with VideoReader(tmp_path / "turned.mp4") as video:
        pixels = next(iter(video)).pixels
    upright = np.rot90(picture(48, 64, 0), turns)
    assert pixels.shape == upright.shape
    assert np.median(np.abs(pixels.astype(int) - upright)) < 8


@pytest.mark.parametrize("content", [b"", b"no video", b"\0" * 4000])
def test_a_file_that_is_no_video(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "v.mp4").write_bytes(content)
    with pytest.raises(DataError, match="cannot be read as a video") as caught:
        VideoReader(tmp_path / "v.mp4")
    assert caught.value.problems[0].where == str(tmp_path / "v.mp4")
    with pytest.raises(DataError, match="cannot be read as a video"):
        VideoReader(tmp_path / "none.mp4")


def test_sound_alone(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "v.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), layout="mono")
        frame.sample_rate = 8000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    with pytest.raises(DataError, match="only sound"):
        VideoReader(tmp_path / "v.mkv")


def test_a_damaged_video_gives_the_frames_before(tmp_path: Path) -> None:
    """Cut in the middle of its stream: a container that can be read from the front."""
    file = tmp_path / "v.mkv"
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(40):
            frame = av.VideoFrame.from_ndarray(np.random.default_rng(i).integers(0, 255, (48, 64, 3), np.uint8))
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    content = file.read_bytes()
    (tmp_path / "cut.mkv").write_bytes(content[: len(content) // 2])
    numbers = []
    with VideoReader(tmp_path / "cut.mkv") as video, pytest.raises(DataError, match=r"damaged after|is cut: "):
        for read in video:
            numbers.append(read.number)
    assert 5 < len(numbers) < 40 and numbers == list(range(len(numbers)))


def test_without_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtraError, match="'av'") as caught:
        VideoReader(tmp_path / "v.mp4")
    assert "detronome[video]" in caught.value.problems[0].fix

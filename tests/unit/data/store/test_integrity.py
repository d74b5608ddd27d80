"""Completeness is read from the file itself: cut, zeroed and flipped files are told from sound ones."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detronome.data.store.decode import ImageError, decode_image
from detronome.data.store.integrity import (
    declared_size_hw,
    has_end_marker,
    has_zeroed_data,
    jpeg_process,
    png_damage,
    with_end_marker,
)


def texture(height: int = 64, width: int = 96) -> np.ndarray[Any, Any]:
    """Smooth shapes with noise on them: compresses like a photo."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return (smooth + rng.integers(-12, 13, smooth.shape)).clip(0, 255).astype(np.uint8)


def encode(pixels: np.ndarray[Any, Any], form: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "optimised": {"optimize": True},
    "progressive": {"progressive": True},
    "full chroma": {"subsampling": 0, "quality": 95},
    "restarts": {"restart_marker_rows": 1},
}


@pytest.mark.parametrize(
    "content", [b"", b"\xff", b"\xff\xd8", b"\xff\xd8\xff\xda", b"\xff\xd8\xff\xc0\0\x08\x08\0\x01"]
)
def test_next_to_nothing_is_not_completed(content: bytes) -> None:
    assert with_end_marker(content) is None
    assert not has_end_marker(content)
    assert not has_zeroed_data(content)
    assert declared_size_hw(content) is None
    assert png_damage(content) is None


@pytest.mark.parametrize("kind", KINDS)
def test_cut_anywhere_a_jpeg_is_whole_or_refused(kind: str) -> None:
    content = encode(texture(), **KINDS[kind])
    whole = decode_image(content, "a")
    accepted = []
    for length in range(len(content) // 2, len(content)):
        try:
            pixels = decode_image(content[:length], "a")
        except ImageError as error:
            assert error.defect in ("truncated", "corrupt")
        else:
            accepted.append(len(content) - length)
            np.testing.assert_array_equal(pixels, whole)
    assert accepted[-2:] == [2, 1], "without the end marker, or with half of it, the pixels are complete"


def test_a_missing_scan_is_not_taken_for_a_missing_end_marker() -> None:
    content = encode(texture(), progressive=True)
    last_scan = content.rindex(b"\xff\xda")
    assert with_end_marker(content[:last_scan]) is None
    with pytest.raises(ImageError, match="Premature end"):
        decode_image(content[:last_scan], "a")
    assert with_end_marker(content[:-2]) == content


def test_the_end_marker_may_be_followed_by_anything() -> None:
    content = encode(texture())
    assert has_end_marker(content)
    assert has_end_marker(content + b"more")
    assert not has_end_marker(content[:-2])
    assert not has_end_marker(content[:-2] + b"\0\0")


@pytest.mark.parametrize("kind", ["plain", "full chroma", "restarts"])
def test_zeroed_data_is_found_wherever_it_lies(kind: str) -> None:
    content = encode(texture(160, 160), **KINDS[kind])
    assert not has_zeroed_data(content)
    start = content.index(b"\xff\xda") + 14
    for place in range(start, len(content) - 200, 97):
        damaged = content[:place] + bytes(200) + content[place + 200 :]
        assert has_zeroed_data(damaged)


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("value", [0, 127, 255])
def test_an_even_surface_is_not_taken_for_zeroed_data(options: dict[str, Any], value: int) -> None:
    even = np.full((800, 800, 3), value, np.uint8)
    ramp = np.tile(np.arange(800, dtype=np.uint32) * 255 // 800, (800, 1)).astype(np.uint8)
    for pixels in (even, even[:, :, 0], ramp, np.repeat(ramp[:, :, None], 3, axis=2)):
        content = encode(pixels, **options)
        assert not has_zeroed_data(content)
        decode_image(content, "a")


def test_zeros_before_and_after_the_pixels_do_no_harm() -> None:
    block = b"\xff\xe1" + struct.pack(">H", 502) + bytes(500)
    content = encode(texture())
    assert not has_zeroed_data(content[:2] + block + content[2:] + bytes(500))


def test_the_process_is_named(shared_data: Any) -> None:
    assert jpeg_process(encode(texture())) == "sequential"
    assert jpeg_process(encode(texture(), progressive=True)) == "progressive"
    assert jpeg_process((shared_data / "odd_images/images/testimgari.jpg").read_bytes()) == "arithmetic"
    assert jpeg_process(encode(texture(), "PNG")) is None


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF"])
def test_headers_declare_a_size(form: str) -> None:
    assert declared_size_hw(encode(texture(24, 48), form)) == (24, 48)
    assert declared_size_hw(encode(texture(24, 48), form)[:9]) is None


def test_every_flipped_bit_of_a_png_is_found() -> None:
    content = encode(texture(16, 24), "PNG")
    rng = np.random.default_rng(0)
    assert png_damage(content) is None
    for bit in rng.choice(np.arange(64, 8 * len(content)), 1000, replace=False).tolist():
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ImageError):
            decode_image(bytes(damaged), "a")


def test_a_png_that_ends_early_is_truncated() -> None:
    content = encode(texture(16, 24), "PNG")
    for length in range(60, len(content) - 12):
        with pytest.raises(ImageError) as caught:
            decode_image(content[:length], "a")
        assert caught.value.defect == "truncated", length


def test_a_wrong_checksum_names_the_part() -> None:
    content = bytearray(encode(texture(16, 24), "PNG"))
    content[29:33] = struct.pack(">I", zlib.crc32(b"something else"))
    assert png_damage(bytes(content)) == "the checksum of its part b'IHDR' is wrong"

from __future__ import annotations

import io
import struct
import time
import zlib

import numpy as np
import psutil
import pytest
from fake_model import encoded
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from detronome.data.store.decode import decode_image
from detronome.deploy.serve.images import decode_upload, image_kind
from detronome.deploy.serve.limits import RefusedError

MEGAPIXELS = 50_000_000


def refused(content: bytes, **options: int) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        decode_upload(content, **{"max_pixels": MEGAPIXELS, **options})
    return caught.value


def png_of(width: int, height: int) -> bytes:
    """Return a small PNG file that claims a size."""
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(bytes(10**6)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )


def jpeg_of(width: int, height: int) -> bytes:
    content = bytearray(encoded(9, form="JPEG"))
    at = content.index(b"\xff\xc0")
    content[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(content)


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format=form, **options)
    return file.getvalue()


def test_an_empty_body_is_told() -> None:
    error = refused(b"")
    assert error.status == 400 and "empty" in error.what


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_kinds_are_read_as_files_are(form: str) -> None:
    content = encoded(200, form=form)
    assert image_kind(content) == form
    image = decode_upload(content, max_pixels=600)
    np.testing.assert_array_equal(image, decode_image(content, "there"))
    assert image.shape == (20, 30, 3)
    error = refused(content, max_pixels=599)
    assert error.status == 413 and "30x20" in error.what


def test_animated_cmyk_16_bit_and_turned_images_are_read_as_files_are() -> None:
    frames = [Image.new("RGB", (5, 4), (shade, 0, 0)) for shade in (10, 200)]
    exif = Image.Exif()
    exif[0x0112] = 6
    gray = Image.fromarray((np.arange(20, dtype=np.uint16) * 3000).reshape(4, 5))
    for content in (
        saved(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True),
        saved(Image.new("CMYK", (5, 4), (9, 99, 9, 0)), "JPEG"),
        saved(gray, "PNG"),
        saved(gray, "TIFF"),
        saved(Image.new("RGBA", (5, 4), (1, 2, 3, 4)), "PNG"),
        saved(frames[1], "JPEG", exif=exif),
    ):
        image = decode_upload(content, max_pixels=100)
        np.testing.assert_array_equal(image, decode_image(content, "there"))
    assert image.shape == (5, 4, 3)  # turned


@pytest.mark.parametrize("content", [png_of(60_000, 60_000), jpeg_of(60_000, 60_000)], ids=["PNG", "JPEG"])
def test_a_bomb_is_refused_by_its_header(content: bytes) -> None:
    refused(content)
    before_bytes = psutil.Process().memory_info().rss
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        assert refused(content).status == 413
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.01
    assert psutil.Process().memory_info().rss - before_bytes < 10 * 2**20


def test_memory_is_reserved_before_anything_is_decoded() -> None:
    reserved: list[int] = []
    decode_upload(encoded(1), max_pixels=MEGAPIXELS, reserve=reserved.append)
    assert reserved == [3 * 20 * 30]

    def refuse(size_bytes: int) -> None:
        raise RefusedError(503, "memory", "full")

    with pytest.raises(RefusedError, match="full"):
        decode_upload(png_of(5000, 5000), max_pixels=MEGAPIXELS, reserve=refuse)  # cut: decoding would tell that


@pytest.mark.parametrize(
    "content",
    [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"\xc5\xd0\xd3\xc6" + bytes(99),
        b"hello",
        b"<svg/>",
        b"P6 1 1",
    ],
)
def test_other_kinds_reach_no_decoder(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(Image, "open", never)
    assert refused(content).status == 415


def test_a_cut_photo_is_refused() -> None:
    rng = np.random.default_rng(0)
    content = saved(Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)), "JPEG")
    for end in (len(content) // 2, len(content) - 20, 30):
        assert refused(content[:end]).status == 400


STARTS = [
    b"",
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"GIF89a",
    b"BM",
    b"II*\0",
    b"MM\0*",
    b"RIFF0000WEBP",
    b"0000ftypavif",
]


@given(start=st.sampled_from(STARTS), rest=st.binary(max_size=200))
def test_noise_is_refused_with_4xx(start: bytes, rest: bytes) -> None:
    try:
        decode_upload(start + rest, max_pixels=MEGAPIXELS)
    except RefusedError as error:
        assert 400 <= error.status < 500

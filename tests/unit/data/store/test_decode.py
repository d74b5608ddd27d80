"""Each kind of image file becomes upright RGB, or an error that names the file and the reason; nothing else leaks."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import time
import tracemalloc
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from PIL import __version__ as pillow_version

from detronome.data.store import decode
from detronome.data.store.decode import ImageError, decode_image, read_image
from detronome.errors import DataError

REFUSED = {
    "truncated_image.png": "truncated",
    "broken.png": "begins like a PNG file, but its header cannot be read",
    "zero_width.gif": "its size is 0x32 pixels",
    "decompression_bomb.gif": "more pixels than the limit",
}
WITHOUT_END = {"truncated_jpeg.jpg"}
"""Only the last byte of its end marker is missing."""
SIXTEEN_BIT = {"i_trns.png", "16bit.cropped.tif"}


@pytest.fixture(scope="session")
def odd(shared_data: Path) -> Path:
    return shared_data / "odd_images/images"


@pytest.fixture(scope="session")
def manifest(shared_data: Path) -> list[dict[str, Any]]:
    images: list[dict[str, Any]] = json.loads((shared_data / "odd_images/manifest.json").read_text())["images"]
    return images


@pytest.fixture(autouse=True)
def no_warnings() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def gradient(height: int, width: int) -> np.ndarray[Any, Any]:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], axis=2).astype(np.uint8)


def save(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


def exif(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[0x0112] = orientation
    return block


def test_every_odd_image_is_judged(odd: Path, manifest: list[dict[str, Any]]) -> None:
    assert {image["file_name"] for image in manifest} == {path.name for path in odd.iterdir()}
    for image in manifest:
        path = odd / image["file_name"]
        if path.name in REFUSED:
            assert not (image["opens"] and image["loads"])
            with pytest.raises(DataError, match=REFUSED[path.name]) as caught:
                read_image(path)
            assert caught.value.problems[0].where == str(path)
            assert caught.value.problems[0].fix
            continue
        assert image["opens"] and (image["loads"] or path.name in WITHOUT_END)
        stored_hw = (image["height"], image["width"])
        turned = (image["exif_orientation"] or 1) >= 5
        for expected_hw in (None, stored_hw):
            pixels = read_image(path, expected_hw)
            assert pixels.dtype == np.uint8
            assert pixels.flags.c_contiguous and pixels.flags.writeable
            assert pixels.shape == (*(stored_hw[::-1] if turned and expected_hw is None else stored_hw), 3)
            if path.name not in SIXTEEN_BIT | WITHOUT_END:
                with Image.open(path) as file, warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    wanted = file if expected_hw else ImageOps.exif_transpose(file)
                    difference = np.abs(pixels.astype(int) - np.asarray(wanted.convert("RGB")))
                assert difference.max() <= (2 if image["mode"] == "CMYK" else 0), path.name


def test_sixteen_bits_are_scaled(odd: Path, tmp_path: Path) -> None:
    values = np.array([[0, 128, 129, 257, 32896, 65535]], np.uint16)
    path = save(tmp_path / "a.png", Image.fromarray(values))
    assert read_image(path)[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]
    for name in SIXTEEN_BIT:
        pixels = read_image(odd / name)
        assert (pixels[..., 0] == pixels[..., 2]).all()
        with Image.open(odd / name) as file:
            assert abs(pixels.mean() - np.asarray(file).mean() / 257) < 0.51


@pytest.mark.parametrize("values", [np.ones((2, 2), np.float32), np.full((2, 2), 70_000, np.int32)])
def test_pixels_without_a_known_range_are_refused(tmp_path: Path, values: np.ndarray[Any, Any]) -> None:
    with pytest.raises(DataError, match="32-bit numbers"):
        read_image(save(tmp_path / "a.tif", Image.fromarray(values)))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV"])
@pytest.mark.parametrize("suffix", ["png", "tif", "jpg"])
def test_modes_become_what_pillow_makes_of_them(tmp_path: Path, mode: str, suffix: str) -> None:
    image = Image.fromarray(gradient(20, 30)).convert(mode)
    path = tmp_path / f"a.{suffix}"
    try:
        image.save(path)
    except (OSError, KeyError):
        pytest.skip("the format has no such mode")
    if (mode, suffix) == ("YCbCr", "tif") and int(pillow_version.partition(".")[0]) < 13:
        pytest.skip("Pillow 12 cannot read what it writes")
    with Image.open(path) as file:
        wanted = np.asarray(file.convert("RGB")).astype(int)
    assert np.abs(read_image(path, (20, 30)) - wanted).max() <= 2


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_to_predict_on_is_turned_upright(tmp_path: Path, orientation: int, suffix: str) -> None:
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(gradient(20, 30)), exif=exif(orientation))
    with Image.open(path) as file:
        file.load()
        wanted = np.asarray(ImageOps.exif_transpose(file))
    np.testing.assert_array_equal(read_image(path), wanted)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_annotated_size_decides_on_the_orientation(tmp_path: Path, orientation: int) -> None:
    path = save(tmp_path / "a.jpg", Image.fromarray(gradient(20, 30)), exif=exif(orientation))
    plain = save(tmp_path / "plain.jpg", Image.fromarray(gradient(20, 30)))
    np.testing.assert_array_equal(read_image(path, (20, 30)), read_image(plain))
    if orientation >= 5:
        np.testing.assert_array_equal(read_image(path, (30, 20)), read_image(path))
    else:
        with pytest.raises(DataError):
            read_image(path, (30, 20))


def test_another_size_than_annotated_names_both(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(gradient(20, 30)))
    with pytest.raises(
        DataError, match=r"30x20 pixels \(width x height\), but the annotation file says 31x20"
    ) as caught:
        read_image(path, (20, 31))
    assert caught.value.problems[0].where == str(path)


@pytest.mark.parametrize("value", [0, 9, 77, 65535])
def test_an_orientation_out_of_range_is_ignored(tmp_path: Path, value: int) -> None:
    path = save(tmp_path / "a.jpg", Image.fromarray(gradient(20, 30)), exif=exif(value))
    assert read_image(path).shape == (20, 30, 3)


def test_of_an_animation_the_first_frame_counts(odd: Path) -> None:
    with Image.open(odd / "dispose_bgnd.gif") as file:
        first = np.asarray(file.convert("RGB"))
    np.testing.assert_array_equal(read_image(odd / "dispose_bgnd.gif"), first)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_image(tmp_path / "none.jpg")
    with pytest.raises(DataError, match="Is a directory"):
        read_image(tmp_path)
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(DataError, match="not an image"):
        read_image(tmp_path / "empty.jpg")


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_too_many_pixels_are_refused_before_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr(decode, "_MAX_PIXELS", 599)
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(gradient(20, 30)))
    with pytest.raises(DataError, match="30x20 pixels are more than the limit"):
        read_image(path)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda jpeg: jpeg[: len(jpeg) // 2], "Truncated"),
        (lambda jpeg: jpeg[:-60], "Premature end"),
        (lambda jpeg: jpeg[:-3], "Premature end"),
        (lambda jpeg: jpeg[:4], "begins like a JPEG file"),
        (lambda jpeg: jpeg[:-40] + bytes(30) + jpeg[-10:], "Corrupt JPEG data"),
    ],
    ids=["half", "most", "last byte", "magic alone", "zeroed tail"],
)
def test_a_damaged_jpeg_is_never_used(tmp_path: Path, damage: Any, reason: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(gradient(64, 64)).save(buffer, "JPEG")
    path = tmp_path / "a.jpg"
    path.write_bytes(damage(buffer.getvalue()))
    with pytest.raises(DataError, match=reason):
        read_image(path)


def test_a_jpeg_that_only_pillow_knows_is_left_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.jpg", Image.fromarray(gradient(20, 30)), exif=exif(6))
    wanted = read_image(path)

    def refuse(*args: Any, **options: Any) -> None:
        raise ValueError("Could not determine subsampling level of JPEG image")

    monkeypatch.setattr("simplejpeg.decode_jpeg_header", refuse)
    np.testing.assert_array_equal(read_image(path), wanted)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(suffix=st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"]), data=st.data())
def test_any_damage_is_decoded_or_refused(tmp_path: Path, suffix: str, data: st.DataObject) -> None:
    buffer = io.BytesIO()
    Image.fromarray(gradient(16, 24)).save(buffer, suffix)
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "a.img"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        pixels = read_image(path, data.draw(st.sampled_from([None, (16, 24)])))
    except DataError as error:
        assert str(path) in error.problems[0].where
    else:
        assert pixels.dtype == np.uint8 and pixels.shape[2] == 3


def photo(height: int, width: int, seed: int) -> np.ndarray[Any, Any]:
    """Smooth shapes with noise on them, which compress like a photo."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return (smooth + rng.integers(-9, 10, smooth.shape)).clip(0, 255).astype(np.uint8)


def damage(content: bytes, kind: str, rng: np.random.Generator) -> bytes:
    place = int(rng.integers(0, len(content)))
    if kind == "cut":
        return content[:place]
    if kind == "zeroed":
        return content[:place] + bytes(min(2048, len(content) - place)) + content[place + 2048 :]
    damaged = bytearray(content)
    for bit in rng.integers(0, 8 * len(content), int(rng.integers(1, 21))).tolist():
        damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def judge(originals: list[bytes], kind: str, count: int) -> Counter[str]:
    """Damage files and count what becomes of them: refused, harmless, or silently wrong by half a level on average."""
    rng = np.random.default_rng(count)
    wholes = [decode.decode_image(content, "whole") for content in originals]
    verdicts: Counter[str] = Counter()
    for n in range(count):
        content, whole = originals[n % len(originals)], wholes[n % len(originals)]
        try:
            pixels = decode.decode_image(damage(content, kind, rng), "damaged", (whole.shape[0], whole.shape[1]))
        except ImageError as error:
            verdicts["refused" if error.defect != "unsupported" else "unsupported"] += 1
        else:
            difference = np.abs(pixels.astype(np.int16) - whole).mean()
            verdicts["equal" if difference == 0 else "harmless" if difference < 0.5 else "wrong"] += 1
    return verdicts


@pytest.mark.parametrize("options", [{}, {"quality": 90}, {"subsampling": 0}], ids=["plain", "fine", "full chroma"])
@pytest.mark.parametrize("kind", ["cut", "zeroed", "flipped"])
def test_damage_is_refused_or_does_no_harm(kind: str, options: dict[str, Any]) -> None:
    originals = []
    for seed in range(5):
        buffer = io.BytesIO()
        Image.fromarray(photo(200, 280, seed)).save(buffer, "JPEG", **options)
        originals.append(buffer.getvalue())
    verdicts = judge(originals, kind, 60)
    if kind == "flipped":
        assert verdicts["refused"] >= 30, "flips that leave the codes in step cannot be noticed, most cannot but be"
    else:
        assert verdicts["refused"] + verdicts["equal"] == 60, verdicts


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cut", "zeroed", "flipped"])
def test_damaged_photos_are_refused_or_do_no_harm(shared_data: Path, kind: str) -> None:
    photos = [path.read_bytes() for path in sorted((shared_data / "coco2017_sample/images").iterdir())]
    verdicts = judge(photos, kind, 3334)
    print(kind, dict(verdicts))
    assert verdicts["wrong"] <= (1000 if kind == "flipped" else 0)
    assert kind == "flipped" or verdicts["harmless"] == 0


@pytest.mark.parametrize("sampling", [0x14, 0x31, 0x42])
def test_a_rare_sampling_is_left_to_pillow(sampling: int) -> None:
    buffer = io.BytesIO()
    Image.fromarray(gradient(20, 30)).save(buffer, "JPEG")
    content = bytearray(buffer.getvalue())
    content[content.index(b"\xff\xc0") + 11] = sampling
    assert decode.decode_image(bytes(content), "a").shape == (20, 30, 3)


def png_part(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


@pytest.mark.parametrize(
    ("content", "size"),
    [
        (b"GIF89a\0\0\5\0", "0x5"),
        (b"\x89PNG\r\n\x1a\n" + png_part(b"IHDR", b"\0\0\0\7\0\0\0\0\x08\2\0\0\0"), "7x0"),
        (b"\xff\xd8\xff\xc0\0\x0b\x08\0\0\0\x03\1\1\x11\0", "3x0"),
    ],
)
def test_a_size_of_zero_is_named(content: bytes, size: str) -> None:
    with pytest.raises(ImageError, match=f"its size is {size} pixels") as caught:
        decode.decode_image(content, "a")
    assert caught.value.defect == "zero_size"


def bomb_png() -> bytes:
    """60,000 x 60,000 pixels in 50 KB, with all checksums right."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    parts = (png_part(b"IHDR", header), png_part(b"IDAT", zlib.compress(bytes(50_000_000), 9)), png_part(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def bomb_jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(photo(400, 400, 0)).save(buffer, "JPEG")
    content = bytearray(buffer.getvalue())
    place = content.index(b"\xff\xc0")
    content[place + 5 : place + 9] = struct.pack(">HH", 60_000, 60_000)
    return bytes(content)


@pytest.mark.parametrize("make", [bomb_png, bomb_jpeg])
def test_a_decompression_bomb_costs_nothing(make: Callable[[], bytes]) -> None:
    content = make()
    tracemalloc.start()
    elapsed_s = []
    for _ in range(5):
        start = time.perf_counter()
        with pytest.raises(ImageError) as caught:
            decode.decode_image(content, "a")
        elapsed_s.append(time.perf_counter() - start)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert caught.value.defect == "too_large"
    assert min(elapsed_s) < 0.01
    assert peak_bytes < 10e6


def test_a_huge_file_and_a_pipe_are_not_read(tmp_path: Path) -> None:
    with (tmp_path / "huge.jpg").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ImageError, match=r"1024\.0 GiB") as caught:
        read_image(tmp_path / "huge.jpg")
    assert caught.value.defect == "too_large"
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ImageError, match="pipe") as caught:
        read_image(tmp_path / "pipe.jpg")
    assert caught.value.defect == "unreadable"


def test_errors_travel_between_processes() -> None:
    with pytest.raises(ImageError) as caught:
        decode.decode_image(b"", "a.jpg")
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.defect, copy.problems, str(copy)) == (caught.value.defect, caught.value.problems, str(caught.value))


def test_fast_decoding_of_large_photos_gives_a_smaller_one_that_is_alike(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8))
    path = save(tmp_path / "a.jpg", coarse.resize((640, 480), Image.Resampling.BICUBIC))
    content = path.read_bytes()
    whole = decode_image(content, "a", (480, 640))
    for enough_hw, size_hw in (((100, 120), (120, 160)), ((240, 320), (240, 320)), ((241, 320), (480, 640))):
        image = decode_image(content, "a", (480, 640), fast=True, enough_hw=enough_hw)
        assert image.shape[:2] == size_hw and image.flags.writeable
        expected = np.asarray(Image.fromarray(whole).resize(size_hw[::-1], Image.Resampling.BOX), int)
        assert np.abs(image - expected).mean() < 4
    np.testing.assert_array_equal(decode_image(content, "a", (480, 640), enough_hw=(9, 9)), whole)
    with pytest.raises(DataError, match="640x480 pixels"):
        decode_image(content, "a", (481, 640), fast=True, enough_hw=(9, 9))
    with pytest.raises(DataError, match="cannot be used"):
        decode_image(content[:-2000], "a", (480, 640), fast=True, enough_hw=(9, 9))

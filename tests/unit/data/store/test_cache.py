"""Pixels come back exactly or not at all, whatever happens to the file, the disk, the source and the processes."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detronome.data.store import cache as cache_module
from detronome.data.store.cache import PixelCache, stored_size_hw
from detronome.errors import DataError

Where = Literal["ram", "disk"]
Make = Callable[..., PixelCache]

SIZES = np.array([(5, 7), (64, 96), (1, 1), (40, 33), (200, 120)], np.int32)
SOURCE = (1234, 1_700_000_000_000_000_000)
PLENTY = 10**9
"""All the sizes together take 106,496 bytes in whole pages."""


def picture(i: int, sizes_hw: np.ndarray[Any, Any] = SIZES) -> np.ndarray[Any, Any]:
    return np.random.default_rng(i).integers(0, 256, (*sizes_hw[i], 3), np.uint8)


@pytest.fixture(params=["ram", "disk"])
def where(request: pytest.FixtureRequest) -> Where:
    return request.param


@pytest.fixture
def make(where: Where, tmp_path: Path) -> Iterator[Make]:
    """A function that makes a cache of five images, or of others."""
    made = []

    def create(sizes_hw: np.ndarray[Any, Any] = SIZES, budget_bytes: int = PLENTY, key: str = "key") -> PixelCache:
        made.append(
            PixelCache.create(
                where=where, folder=tmp_path / "cache", key=key, sizes_hw=sizes_hw, budget_bytes=budget_bytes
            )
        )
        return made[-1]

    yield create
    for cache in made:
        cache.close()


def fill(cache: PixelCache, sizes_hw: np.ndarray[Any, Any] = SIZES) -> PixelCache:
    for i in range(len(sizes_hw)):
        cache.put(i, picture(i, sizes_hw), SOURCE)
    return cache


def path_of(cache: PixelCache) -> Path:
    return cache._path


def kept(cache: PixelCache, sizes_hw: np.ndarray[Any, Any] = SIZES) -> list[int]:
    """Return the images that are found, each compared with the original."""
    found = []
    for i in range(len(sizes_hw)):
        pixels = cache.get(i, SOURCE)
        if pixels is not None:
            np.testing.assert_array_equal(pixels, picture(i, sizes_hw))
            found.append(i)
    return found


def test_no_images(make: Make) -> None:
    cache = make(np.zeros((0, 2), np.int32))
    assert (cache.num_admitted, cache.bytes_admitted, cache.num_kept, cache.is_stopped) == (0, 0, 0, False)


@pytest.mark.parametrize("budget_bytes", [0, 4095, -1])
def test_a_budget_below_one_image_keeps_nothing(make: Make, budget_bytes: int) -> None:
    cache = fill(make(budget_bytes=budget_bytes))
    assert (cache.num_admitted, cache.bytes_admitted, cache.num_kept) == (0, 0, 0)
    assert kept(cache) == [] and cache.misses == len(SIZES)
    assert fill(pickle.loads(pickle.dumps(cache))).get(0, SOURCE) is None


def test_pixels_come_back_exactly_as_a_copy(make: Make) -> None:
    cache = make()
    assert kept(cache) == []
    fill(cache)
    assert kept(cache) == list(range(len(SIZES))) and cache.num_kept == cache.num_admitted == len(SIZES)
    assert (cache.hits, cache.misses) == (5, 5)
    pixels = cache.get(1, SOURCE)
    assert pixels is not None and pixels.flags.writeable and pixels.flags.c_contiguous
    pixels[:] = 0
    assert kept(cache) == list(range(len(SIZES)))


def test_pixels_need_not_be_contiguous(make: Make) -> None:
    cache = make()
    cache.put(1, picture(1).transpose(1, 0, 2).copy().transpose(1, 0, 2), SOURCE)
    assert kept(cache) == [1]


@pytest.mark.parametrize("key", ["a", "b", "c"])
def test_the_budget_is_kept_and_used_up(make: Make, key: str) -> None:
    sizes = np.random.default_rng(0).integers(20, 90, (60, 2)).astype(np.int32)
    cache = fill(make(sizes, 400_000, key), sizes)
    admitted = kept(cache, sizes)
    assert len(admitted) == cache.num_admitted == cache.num_kept
    assert 400_000 - 90 * 90 * 3 - 4096 < cache.bytes_admitted <= 400_000
    assert path_of(cache).stat().st_blocks * 512 <= 400_000 + 8192
    # In no order of the data set: some of its last quarter are in, some of its first quarter are not.
    assert max(admitted) >= 45 and not set(range(15)) <= set(admitted)


def test_a_fifth_of_what_is_free_stays_free(make: Make, where: Where, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "_free_memory_bytes" if where == "ram" else "_free_disk_bytes"
    monkeypatch.setattr(cache_module, name, lambda *_: 20_000)
    assert 0 < make(np.full((9, 2), 10, np.int32)).bytes_admitted <= 16_000


def test_free_space_is_known(tmp_path: Path) -> None:
    assert 2**20 < cache_module._free_memory_bytes() < 2**50
    with (tmp_path / "file").open("wb") as file:
        assert 2**20 < cache_module._free_disk_bytes(Path(file.name)) < 2**60


def test_a_changed_source_is_decoded_anew(make: Make) -> None:
    cache = fill(make())
    for changed in [(SOURCE[0] + 1, SOURCE[1]), (SOURCE[0], SOURCE[1] + 1)]:
        assert cache.get(1, changed) is None
        cache.put(1, picture(1) // 2, changed)
        assert cache.get(1, SOURCE) is None
        found = cache.get(1, changed)
        assert found is not None and (found == picture(1) // 2).all()


def test_no_flipped_bit_is_served(make: Make) -> None:
    """In the pixels or in the record: found, and mended by the next `put` unless the record's place is hit."""
    sizes = np.array([(40, 33)], np.int32)
    cache = fill(make(sizes), sizes)
    rng = np.random.default_rng(0)
    record = range(64, 64 + 44)
    pixels = range(4096, 4096 + 40 * 33 * 3)
    with path_of(cache).open("r+b", buffering=0) as file:
        for at in [*record, *rng.choice(pixels, 60)]:
            assert kept(cache, sizes) == [0]
            sound = os.pread(file.fileno(), 1, at)
            os.pwrite(file.fileno(), bytes([sound[0] ^ 1 << int(rng.integers(8))]), at)
            assert cache.get(0, SOURCE) is None
            fill(cache, sizes)
            assert kept(cache, sizes) == ([] if at < 64 + 20 else [0])
            os.pwrite(file.fileno(), sound, at)


def test_killed_between_pixels_and_record(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = make()
    write = cache_module._write

    class Killed(BaseException):
        pass

    def write_the_pixels_alone(descriptor: int, content: memoryview, offset: int) -> None:
        if offset < 4096:
            raise Killed
        write(descriptor, content, offset)

    for content in (picture(1), picture(1) // 2):  # into an empty place, then over an image of the same source
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(cache_module, "_write", write_the_pixels_alone)
            cache.put(1, content, SOURCE)
        assert cache.get(1, SOURCE) is None
        cache.put(1, picture(1), SOURCE)
        assert kept(cache) == [1]


def test_killed_in_the_middle_of_the_pixels(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = fill(make())
    write = cache_module._write

    def write_a_part(descriptor: int, content: memoryview, offset: int) -> None:
        write(descriptor, content[: len(content) // 2], offset)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(cache_module, "_write", write_a_part)
        cache.put(4, 255 - picture(4), SOURCE)
    assert kept(cache) == [0, 1, 2, 3]


def test_a_full_disk_stops_the_cache_and_nothing_else(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = make()
    cache.put(0, picture(0), SOURCE)
    other = pickle.loads(pickle.dumps(cache))
    pwrite, room = os.pwrite, 10_000

    def pwrite_until_full(descriptor: int, content: Any, offset: int) -> int:
        nonlocal room
        if offset < 4096:
            return pwrite(descriptor, content, offset)
        if room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = min(room, len(content))
        room -= taken
        return pwrite(descriptor, content[:taken], offset)

    monkeypatch.setattr(os, "pwrite", pwrite_until_full)
    with caplog.at_level(logging.WARNING):
        fill(cache)
        fill(other)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "No space left on device" in caplog.text and "takes no more images" in caplog.text
    assert cache.is_stopped and other.is_stopped
    assert kept(cache) == kept(other) == [0]


def test_a_failing_disk_reads_as_empty(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = fill(make())

    def fail(*_: Any) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    for name in ("pread", "preadv"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, fail)
            assert kept(cache) == []
            cache.put(0, picture(0), SOURCE)
    monkeypatch.setattr(os, "pread", fail)
    assert cache.is_stopped


@pytest.mark.parametrize("left", [0, 16, 70, 120, 5000, 10_000])
def test_a_file_cut_short_reads_as_empty(make: Make, left: int) -> None:
    cache = fill(make())
    os.truncate(path_of(cache), left)
    assert set(kept(cache)) < set(range(len(SIZES)))
    fill(cache)
    kept(cache)


def test_pickling_keeps_a_path_and_numbers(make: Make) -> None:
    sizes = np.full((20_000, 2), 3, np.int32)
    cache = make(sizes)
    pickled = pickle.dumps(cache)
    assert len(pickled) < 500
    cache.put(17, picture(17, sizes), SOURCE)
    found = pickle.loads(pickled).get(17, SOURCE)
    assert found is not None and (found == picture(17, sizes)).all()


def use_often(cache: PixelCache, seed: int) -> tuple[int, int]:
    """Get and put in some order, sometimes as if the source had changed; return (hits, wrong results)."""
    rng = np.random.default_rng(seed)
    wrong = 0
    for _ in range(300):
        i, state = int(rng.integers(len(SIZES))), int(rng.integers(2))
        expected = picture(i) // (state + 1)
        source = (SOURCE[0] + state, SOURCE[1])
        found = cache.get(i, source)
        if found is None:
            cache.put(i, expected, source)
        else:
            wrong += not (found == expected).all()
    return cache.hits, wrong


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_three_processes_at_once(make: Make, method: str) -> None:
    """Even two versions of each image, written over one another, are never mixed up."""
    cache = make()
    with ProcessPoolExecutor(3, multiprocessing.get_context(method)) as pool:
        results = list(pool.map(use_often, [cache] * 3, range(3)))
    assert all(hits > 0 for hits, _ in results)
    assert sum(wrong for _, wrong in results) == 0
    fill(cache)
    assert kept(cache) == list(range(len(SIZES)))


def test_once_closed_it_is_empty(make: Make, where: Where) -> None:
    cache = fill(make())
    copy = pickle.loads(pickle.dumps(cache))
    assert kept(copy) == list(range(len(SIZES)))
    cache.close()
    cache.close()
    assert kept(fill(cache)) == [] and cache.num_kept == 0 and not cache.is_stopped
    assert kept(copy) == list(range(len(SIZES)))
    copy.close()


PROGRAM = """
import os, sys
from pathlib import Path
import numpy as np
from detronome.data.store.cache import PixelCache
cache = PixelCache.create(where="ram", folder=Path("/none"), key="k", sizes_hw=np.array([[9, 9]]), budget_bytes=10**6)
cache.put(0, np.ones((9, 9, 3), np.uint8), (1, 1))
assert cache.get(0, (1, 1)) is not None
assert "torch" not in sys.modules
print(cache._path, flush=True)
sys.stdin.read()
"""


def test_memory_is_given_back_when_the_process_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        path = Path(process.stdout.readline().decode().strip())
        assert path.exists() and "(deleted)" in str(path.readlink())
        process.kill()
    assert not path.exists()


def test_a_copy_whose_maker_has_gone_finds_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Not even where its path has come to mean another file."""
    sizes = np.array([(9, 9)], np.int32)
    cache = PixelCache.create(where="ram", folder=Path(), key="k", sizes_hw=sizes, budget_bytes=PLENTY)
    copies = [pickle.loads(pickle.dumps(cache)) for _ in range(2)]
    cache.close()
    assert copies[0].get(0, SOURCE) is None
    other = PixelCache.create(where="ram", folder=Path(), key="k", sizes_hw=sizes, budget_bytes=PLENTY)
    fill(other, sizes)
    assert path_of(other) == path_of(cache)
    assert copies[1].get(0, SOURCE) is None and copies[1].get(0, SOURCE) is None
    fill(copies[1], sizes)
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert "another file is in its place" in caplog.text
    other.close()


def on_disk(folder: Path, budget_bytes: int = PLENTY, sizes_hw: np.ndarray[Any, Any] = SIZES) -> PixelCache:
    return PixelCache.create(where="disk", folder=folder, key="key", sizes_hw=sizes_hw, budget_bytes=budget_bytes)


def test_the_next_run_finds_what_is_on_disk(tmp_path: Path) -> None:
    fill(on_disk(tmp_path)).close()
    (file,) = (tmp_path / "key").iterdir()
    assert kept(on_disk(tmp_path)) == list(range(len(SIZES)))
    assert list((tmp_path / "key").iterdir()) == [file]


def test_another_budget_uses_the_same_file(tmp_path: Path) -> None:
    small = fill(on_disk(tmp_path, 106_495))
    some = kept(small)  # all but the last to be admitted
    assert 0 < len(some) < len(SIZES)
    large = on_disk(tmp_path)
    assert kept(large) == some
    fill(large)
    assert kept(large) == list(range(len(SIZES)))
    small = on_disk(tmp_path, 106_495)
    assert kept(small) == some and small.num_kept == len(some)
    assert path_of(small) == path_of(large)


def test_other_sizes_get_a_file_of_their_own(tmp_path: Path) -> None:
    fill(on_disk(tmp_path))
    assert kept(on_disk(tmp_path, sizes_hw=SIZES[::-1])) == []
    assert kept(on_disk(tmp_path)) == list(range(len(SIZES)))


def test_two_runs_share_one_file(tmp_path: Path) -> None:
    one, two = on_disk(tmp_path), on_disk(tmp_path)
    one.put(1, picture(1), SOURCE)
    two.put(3, picture(3), SOURCE)
    assert kept(one) == kept(two) == [1, 3]


def test_a_stopped_cache_starts_again_with_the_next_run(tmp_path: Path) -> None:
    cache = on_disk(tmp_path)
    cache._stop(cache._open() or 0, OSError(errno.EDQUOT, "quota"))
    assert kept(fill(cache)) == []
    assert kept(fill(on_disk(tmp_path))) == list(range(len(SIZES)))


@pytest.mark.parametrize("left", [0, 10, 100])
def test_a_damaged_file_is_made_anew(tmp_path: Path, left: int) -> None:
    path = path_of(fill(on_disk(tmp_path)))
    os.truncate(path, left)
    cache = on_disk(tmp_path)
    assert kept(cache) == []
    assert kept(fill(cache)) == list(range(len(SIZES)))


def test_a_file_that_is_gone_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = on_disk(tmp_path)
    copy = pickle.loads(pickle.dumps(cache))
    path_of(cache).unlink()
    assert kept(fill(copy)) == []
    assert len(caplog.records) == 1 and "cannot be opened" in caplog.text
    assert kept(fill(cache)) == list(range(len(SIZES)))


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(DataError, match="the pixel cache cannot be made") as caught:
        on_disk(tmp_path / "cache")
    assert str(tmp_path / "cache") in caught.value.problems[0].where


@given(size_hw=st.tuples(st.integers(1, 6000), st.integers(1, 6000)), short=st.integers(1, 2000))
def test_stored_size(size_hw: tuple[int, int], short: int) -> None:
    height, width = size_hw
    stored_height, stored_width = stored_size_hw(size_hw, short)
    assert 1 <= stored_height <= height and 1 <= stored_width <= width
    # Large enough: as large as asked for, or as large as the image is.
    assert min(stored_height, stored_width) == min(short, *size_hw)
    # The aspect ratio is kept to within one pixel of the longer side.
    scale = min(stored_height, stored_width) / min(size_hw)
    assert -1e-9 <= max(size_hw) * scale - max(stored_height, stored_width) < 1


def test_stored_size_of_known_images() -> None:
    assert stored_size_hw((480, 640), 800) == (480, 640)
    assert stored_size_hw((3000, 4000), 800) == (800, 1066)
    assert stored_size_hw((100, 9000), 10) == (10, 900)

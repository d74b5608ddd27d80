"""Reading, writing and locking open files, also where the system lacks the calls for it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from detronome.runtime.descriptors import BINARY, flush, flush_data, lock, read_at, read_into_at, unlock, write_at


@pytest.fixture(params=["all calls", "no places"])
def descriptor(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """An empty file, with and without the calls that read and write at a place."""
    if request.param == "no places":
        for name in ("pread", "preadv", "pwrite", "fdatasync"):
            monkeypatch.delattr(os, name)
    opened = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT | BINARY)
    yield opened
    os.close(opened)


def test_an_empty_file_gives_nothing(descriptor: int) -> None:
    assert read_at(descriptor, 5, 0) == b""
    assert read_into_at(descriptor, memoryview(bytearray(5)), 3) == 0
    assert write_at(descriptor, b"", 0) == 0


def test_what_is_written_at_a_place_is_read_there(descriptor: int) -> None:
    assert write_at(descriptor, b"\r\nabc", 4) == 5
    assert write_at(descriptor, memoryview(b"xy"), 0) == 2
    flush_data(descriptor)
    assert read_at(descriptor, 100, 0) == b"xy\0\0\r\nabc"
    content = bytearray(b"......")
    assert read_into_at(descriptor, memoryview(content), 6) == 3
    assert content == b"abc..."


def test_threads_do_not_disturb_each_other(descriptor: int) -> None:
    block = 4096
    for i in range(8):
        write_at(descriptor, bytes([i]) * block, i * block)
    wrong: list[int] = []

    def read_often(i: int) -> None:
        wrong.extend(i for _ in range(300) if read_at(descriptor, block, i * block) != bytes([i]) * block)

    threads = [threading.Thread(target=read_often, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("is_folder", [False, True])
def test_files_and_folders_are_flushed(tmp_path: Path, is_folder: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(os, "fsync", flushed.append)
    path = tmp_path / "thing"
    path.mkdir() if is_folder else path.touch()
    flush(path)
    assert len(flushed) == 1
    with pytest.raises(FileNotFoundError):
        flush(tmp_path / "missing")


def test_a_lock_keeps_another_opening_out_until_it_is_given_back(tmp_path: Path) -> None:
    first, second = (os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT | BINARY) for _ in range(2))
    lock(first)
    with pytest.raises(BlockingIOError):
        lock(second)
    unlock(first)
    lock(second, wait=True)
    os.close(first)
    os.close(second)

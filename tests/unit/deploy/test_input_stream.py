"""Pictures come in order, a bounded number at a time, and what cannot be read does not end them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detronome.data.inputs import find_inputs
from detronome.deploy import input_stream
from detronome.deploy.input_stream import Picture, in_chunks, read_ahead, read_pictures


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(5):
        Image.new("RGB", (10 + i, 8), (i, i, i)).save(tmp_path / f"{i}.png")
    return tmp_path


def test_nothing() -> None:
    assert list(read_ahead(in_chunks(read_pictures([], on_unreadable=lambda *_: None), 3))) == []


def test_order_and_what_cannot_be_read(folder: Path) -> None:
    (folder / "2.png").write_bytes(b"damaged")
    missed: list[str] = []
    pictures = read_pictures(find_inputs([folder]), on_unreadable=lambda one, _: missed.append(one.name))
    chunks = list(read_ahead(in_chunks(pictures, 3)))
    assert [[picture.source.name for picture in chunk] for chunk in chunks] == [["0", "1", "3"], ["4"]]
    assert missed == ["2"]


def test_large_pictures_come_in_smaller_chunks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_stream, "_CHUNK_PIXELS", 200)
    pictures = read_pictures(find_inputs([folder]), on_unreadable=lambda *_: None)
    assert [len(chunk) for chunk in in_chunks(pictures, 9)] == [2, 2, 1]
    monkeypatch.setattr(input_stream, "_CHUNK_PIXELS", 1)
    one = Picture(source=find_inputs([folder])[0], pixels=np.zeros((8, 10, 3), np.uint8))
    assert [len(chunk) for chunk in in_chunks(iter([one, one]), 9)] == [1, 1], "one at least"


def test_only_one_is_read_ahead() -> None:
    made: list[int] = []
    threads: set[int] = set()

    def numbers() -> Iterator[int]:
        for i in range(1, 6):
            made.append(i)
            threads.add(threading.get_ident())
            yield i

    for number in read_ahead(numbers()):
        assert len(made) <= number + 1
    assert made == [1, 2, 3, 4, 5] and threading.get_ident() not in threads


def test_an_error_while_reading_ahead_is_raised_in_its_turn() -> None:
    def numbers() -> Iterator[int]:
        yield 1
        raise ZeroDivisionError

    seen = []
    with pytest.raises(ZeroDivisionError):
        for number in read_ahead(numbers()):
            seen.append(number)
    assert seen == [1]

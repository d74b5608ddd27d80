"""Small folders in foreign layouts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

PutImage = Callable[..., Path]
PutText = Callable[..., Path]


@pytest.fixture(scope="session")
def put_image() -> PutImage:
    """A function that writes an image of a size, without caring for its content."""

    def put(path: Path, width: int = 40, height: int = 20) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("1", (width, height)).save(path, "PNG")
        return path

    return put


@pytest.fixture(scope="session")
def put_text() -> PutText:
    """A function that writes a text file."""

    def put(path: Path, text: str = "") -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
        return path

    return put

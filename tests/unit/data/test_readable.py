"""Folders that may not be read are all told, once each; those that are not there are not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from detronome.data.readable import cannot_be_read, require_readable
from detronome.errors import DataError


def test_nothing_to_read(tmp_path: Path) -> None:
    require_readable()
    (tmp_path / "file").touch()
    require_readable(tmp_path, tmp_path / "nowhere", tmp_path / "file", tmp_path / "file/x", tmp_path / ("x" * 5000))
    require_readable(Path("a\0b"))


def test_what_may_be_listed_and_not_entered_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) == tmp_path)
    for name in ("a/b", "c"):
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(DataError) as caught:
        require_readable(*(tmp_path / name for name in ("", "a", "a/b", "a", "c")))
    told = [(problem.what, problem.where) for problem in caught.value.problems]
    assert told == [("cannot be read: Permission denied", str(tmp_path / name)) for name in "ac"]
    assert all("permissions" in problem.fix for problem in caught.value.problems)


def test_the_error_names_the_file_that_the_system_names() -> None:
    (problem,) = cannot_be_read(OSError(5, "Input/output error", "/a/b"), "/a").problems
    assert (problem.what, problem.where, problem.fix) == ("cannot be read: Input/output error", "/a/b", "")
    (problem,) = cannot_be_read(ValueError("embedded null byte"), "/a").problems
    assert (problem.what, problem.where) == ("cannot be read: embedded null byte", "/a")

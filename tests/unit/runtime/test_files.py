"""What is written is there whole or not at all, and two writers do not meet."""

from __future__ import annotations

import hashlib
import os
from collections import namedtuple
from pathlib import Path

import pytest

from detronome.errors import ConfigError, DataError
from detronome.runtime import files
from detronome.runtime.files import (
    atomic_directory,
    filled_directory,
    format_size,
    locked,
    require_space,
    sha256_of,
)


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("is_there", [False, True])
def test_a_folder_filled_with_nothing(tmp_path: Path, is_there: bool) -> None:
    out = tmp_path / "deep" / "out"
    if is_there:
        out.mkdir(parents=True)
    with filled_directory(out):
        pass
    assert not out.exists() or tree(out) == []


def test_a_folder_is_filled_at_the_end(tmp_path: Path) -> None:
    with filled_directory(tmp_path / "out", last="b") as folder:
        (folder / "b" / "inner").mkdir(parents=True)
        (folder / "b" / "inner" / "file").touch()
        (folder / "c").touch()
        assert not {"b", "c"} & set(os.listdir(tmp_path / "out"))
    assert tree(tmp_path / "out") == ["b", "b/inner", "b/inner/file", "c"]


def test_what_it_is_recognised_by_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[str] = []
    monkeypatch.setattr(os, "rename", lambda old, new: moved.append(new.name))
    with filled_directory(tmp_path / "out", last="b") as folder:
        for name in "abc":
            (folder / name).touch()
    assert moved == ["a", "c", "b"]


@pytest.mark.parametrize("is_there", [False, True])
@pytest.mark.parametrize(
    ("error", "told"), [(OSError(28, "No space left"), DataError), (KeyboardInterrupt(), KeyboardInterrupt)]
)
def test_a_failure_leaves_no_folder_that_was_not_there(
    tmp_path: Path, is_there: bool, error: BaseException, told: type[BaseException]
) -> None:
    if is_there:
        (tmp_path / "out").mkdir()
    with pytest.raises(told), filled_directory(tmp_path / "out") as folder:
        (folder / "sub").mkdir()
        raise error
    assert tree(tmp_path) == (["out"] if is_there else [])


def test_a_folder_with_content_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    for place in ("out", "out/mine", "nowhere"):
        with pytest.raises(ConfigError, match="not an empty folder"), filled_directory(tmp_path / place):
            pass
    assert tree(tmp_path) == ["nowhere", "out", "out/mine"]


def test_a_second_writer_is_kept_out_and_a_killed_one_cleared_away(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / ".incomplete" / "old").mkdir(parents=True)
    with filled_directory(out) as folder:
        assert tree(folder) == []
        (folder / "new").touch()
        with pytest.raises(DataError, match="another process"), filled_directory(out):
            pass
    assert tree(out) == ["new"]


def test_a_failure_in_an_atomic_directory_is_not_hidden_by_its_subfolders(tmp_path: Path) -> None:
    with pytest.raises(KeyError), atomic_directory(tmp_path / "out") as folder:
        (folder / "sub").mkdir()
        raise KeyError
    assert tree(tmp_path) == []


def test_a_lock_is_held_once(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "lock"
    with locked(path) as first, locked(path) as second:
        assert (first, second) == (True, False)
    with locked(path, wait=True) as third:
        assert third


def test_a_lock_that_its_holder_removes_meanwhile_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lock"
    real, calls = files.try_lock, []

    def late(descriptor: int) -> bool:
        calls.append(descriptor)
        if len(calls) == 1:
            path.unlink()
        return real(descriptor)

    monkeypatch.setattr(files, "try_lock", late)
    with locked(path) as first, locked(path) as second:
        assert (first, second) == (True, False)


def test_a_lock_is_no_way_to_write_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    (tmp_path / "lock").symlink_to(tmp_path / "mine")
    with pytest.raises(OSError), locked(tmp_path / "lock"):
        pass
    assert (tmp_path / "mine").read_text() == "precious"


@pytest.mark.parametrize("size", [0, 1, 2**20, 2**20 + 1])
def test_a_digest_is_told_as_it_goes(tmp_path: Path, size: int) -> None:
    (tmp_path / "a").write_bytes(bytes(size))
    told: list[int] = []
    assert (
        sha256_of(tmp_path / "a", told.append) == sha256_of(tmp_path / "a") == hashlib.sha256(bytes(size)).hexdigest()
    )
    assert told == [n for n in (min(size, 2**20), size) if n][: 1 + (size > 2**20)]


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (642, "642 B"), (10 * 1024, "10 KiB"), (2**20 - 1, "1.0 MiB"),
     (512 * 2**20, "512 MiB"), (2**30 - 1, "1.0 GiB"), (10 * 2**30, "10.0 GiB"), (5 * 2**50, "5242880.0 GiB")],
)  # fmt: skip
def test_sizes(num_bytes: int, text: str) -> None:
    assert format_size(num_bytes) == text


def test_room_is_required(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage(0, 0, 1000))
    require_space(tmp_path, 1000, fix="")
    with pytest.raises(DataError, match=r"too little room: up to 2\.0 KiB are needed, 1000 B are free"):
        require_space(tmp_path, 2048, fix="")

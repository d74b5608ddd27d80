"""The cache is listed and cleared by kind; nothing else is ever touched."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from detronome.data.store import cache_folder
from detronome.data.store.cache_folder import cache_folders, list_entries, remove_entries
from detronome.errors import DataError

DAY_S = 86400


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no second one in the folder for temporary files."""
    monkeypatch.setenv("DETRONOME_CACHE", str(tmp_path / "cache"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    return tmp_path / "cache"


def put(path: Path, content: str = "12345", days_old: float = 0.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    changed_s = time.time() - days_old * DAY_S
    for changed in (path, path.parent):
        os.utime(changed, (changed_s, changed_s))
    return path


def test_no_cache_at_all(root: Path) -> None:
    assert list_entries() == []
    assert remove_entries() == []
    assert not root.exists()


def test_files_and_folders_are_listed_with_size_and_age(root: Path) -> None:
    put(root / "index/v2-abc/labels.npy", days_old=3)
    put(root / "checked/verdicts.json", "123")
    first, second = list_entries()
    assert (first.kind, first.path, first.num_bytes, first.made_from) == ("index", root / "index/v2-abc", 5, None)
    assert first.age_days == pytest.approx(3, abs=0.1)
    assert (second.kind, second.num_bytes) == ("checked", 3)
    assert second.to_json()["path"] == str(root / "checked/verdicts.json")


@pytest.mark.parametrize(
    ("meta", "made_from"), [('{"annotation_file": "/data/a.json"}', "/data/a.json"), ("[]", None), ("{", None)]
)
def test_an_index_says_what_it_was_made_from(root: Path, meta: str, made_from: str | None) -> None:
    put(root / "index/v2-abc/meta.json", meta)
    assert [entry.made_from for entry in list_entries()] == [made_from]


def test_clearing_removes_the_known_kinds_and_nothing_else(root: Path) -> None:
    gone = [put(root / "index/v1/a.npy"), put(root / "pixels/deep/er/a.bin"), put(root / "shards/a.tar")]
    kept = [put(root / "photos/a.jpg"), put(root / "thesis.txt")]
    assert {entry.kind for entry in remove_entries()} == {"index", "pixels", "shards"}
    assert not any(path.exists() for path in gone)
    assert all(path.exists() for path in kept)
    assert list_entries() == []


def test_clearing_by_age(root: Path) -> None:
    old, new = put(root / "index/old/a.npy", days_old=31), put(root / "index/new/a.npy", days_old=29)
    assert [entry.path.name for entry in remove_entries(older_than_days=30)] == ["old"]
    assert new.exists() and not old.exists()


def test_links_are_neither_listed_nor_followed(root: Path, tmp_path: Path) -> None:
    precious = put(tmp_path / "precious/data.bin")
    put(root / "index/real/a.npy")
    (root / "index/link").symlink_to(precious.parent)
    (root / "index/real/inside").symlink_to(precious)
    (root / "shards").symlink_to(precious.parent)
    assert [(entry.path.name, entry.num_bytes) for entry in list_entries()] == [("real", 5)]
    remove_entries()
    assert precious.exists() and (root / "shards").is_symlink()


def test_what_is_being_written_is_left_alone(root: Path) -> None:
    put(root / "index/.v2-abc-x.tmp/a.npy", days_old=0.01)
    stale = put(root / "index/.v2-def-y.tmp/a.npy", days_old=2)
    assert [entry.path for entry in remove_entries()] == [stale.parent]


def test_what_cannot_be_removed_is_said_when_the_rest_is_gone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stuck, free = put(root / "index/a/a.npy"), put(root / "index/b/b.npy")
    remove = cache_folder.shutil.rmtree

    def refuse(path: Path) -> None:
        if path.name == "a":
            raise PermissionError(13, "Permission denied")
        remove(path)

    monkeypatch.setattr(cache_folder.shutil, "rmtree", refuse)
    with pytest.raises(DataError, match="Permission denied") as caught:
        remove_entries()
    assert [problem.where for problem in caught.value.problems] == [str(stuck.parent)]
    assert stuck.exists() and not free.exists()


def test_a_folder_that_another_user_put_in_our_place_is_not_used(root: Path, tmp_path: Path) -> None:
    assert len(cache_folders("index")) == 2
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "temporary" / f"detronome-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    assert cache_folders("index") == [root / "index"]

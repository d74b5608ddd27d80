"""Files, folders and patterns become images and videos in a fixed order, with names of their own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detronome.data.inputs import Input, _told_apart, find_inputs
from detronome.errors import ConfigError, DataError


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    places = ("b.jpg", "a.PNG", "clip.MP4", "notes.txt", ".hidden.jpg", "deep/c.jpg", "deep/er/d.jpeg", ".thumbs/t.jpg")
    for place in places:
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).touch()
    return root


def names(inputs: list[Input]) -> list[str]:
    return [one.file_name for one in inputs]


def test_results_are_not_looked_at_and_where_that_leaves_nothing_it_is_told(tree: Path) -> None:
    assert names(find_inputs([tree], recursive=True, besides=tree / "deep")) == ["a.PNG", "b.jpg", "clip.MP4"]
    with pytest.raises(DataError, match="lie in the folder for the results"):
        find_inputs([tree], besides=tree)


def test_nothing_named() -> None:
    with pytest.raises(ConfigError, match="no images"):
        find_inputs([])


def test_a_folder_gives_its_images_and_videos_in_order(tree: Path) -> None:
    found = find_inputs([tree])
    assert names(found) == ["a.PNG", "b.jpg", "clip.MP4"]
    assert [one.is_video for one in found] == [False, False, True]
    assert [one.name for one in found] == ["a", "b", "clip"]
    assert names(find_inputs([str(tree)], recursive=True)) == [
        "a.PNG",
        "b.jpg",
        "clip.MP4",
        "deep/c.jpg",
        "deep/er/d.jpeg",
    ]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jpg", ["b.jpg"]),
        ("*", ["a.PNG", "b.jpg", "clip.MP4"]),
        ("**/*.jp*g", ["b.jpg", "deep/c.jpg", "deep/er/d.jpeg"]),
        ("**", ["a.PNG", "b.jpg", "clip.MP4", "deep/c.jpg", "deep/er/d.jpeg"]),
        ("deep/**/*.jp*g", ["deep/c.jpg", "deep/er/d.jpeg"]),
        ("d*p/?.jpg", ["deep/c.jpg"]),
        ("*/*/[a-d].jpeg", ["deep/er/d.jpeg"]),
    ],
)
def test_patterns(tree: Path, pattern: str, expected: list[str]) -> None:
    found = find_inputs([tree / pattern])
    assert sorted(one.path.relative_to(tree).as_posix() for one in found) == sorted(expected)


def test_a_pattern_below_the_working_folder(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    assert names(find_inputs(["*.jpg"])) == ["b.jpg"]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tree: Path) -> None:
    (tree / "x[1].jpg").touch()
    assert names(find_inputs([tree / "x[1].jpg"])) == ["x[1].jpg"]


def test_a_file_is_taken_whatever_its_name(tree: Path) -> None:
    assert names(find_inputs([tree / "notes.txt", tree / ".hidden.jpg"])) == ["notes.txt", ".hidden.jpg"]


def test_nothing_is_taken_twice(tree: Path) -> None:
    found = find_inputs([tree / "b.jpg", tree, tree / "deep" / ".." / "*.jpg", tree / "b.jpg"])
    assert names(found) == ["b.jpg", "a.PNG", "clip.MP4"]


def test_links_that_lead_back_up_end(tree: Path) -> None:
    (tree / "deep" / "back").symlink_to(tree, target_is_directory=True)
    (tree / "deep" / "twice").symlink_to(tree, target_is_directory=True)
    expected = ["a.PNG", "b.jpg", "clip.MP4", "deep/c.jpg", "deep/er/d.jpeg"]
    assert names(find_inputs([tree], recursive=True)) == expected
    assert len(find_inputs([tree / "**" / "*.jp*g"])) == 3


def test_a_folder_of_results_is_left_out(tree: Path) -> None:
    assert names(find_inputs([tree], recursive=True, besides=tree / "deep")) == ["a.PNG", "b.jpg", "clip.MP4"]
    assert len(find_inputs([tree / "deep" / "c.jpg"], besides=tree / "deep")) == 1, "asked for by its name"


def test_all_that_is_wrong_is_told_at_once(tree: Path) -> None:
    (tree / "empty").mkdir()
    with pytest.raises(DataError) as caught:
        find_inputs([tree / "none.jpg", tree / "*.gif", tree / "empty", tree / "b.jpg", "a\0b"])
    whats = [problem.what for problem in caught.value.problems]
    assert whats == [
        "there is no such file or folder", "no image or video matches", "no images", "there is no such file or folder",
    ]  # fmt: skip


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read(tree: Path) -> None:
    (tree / "deep").chmod(0)
    with pytest.raises(DataError, match="cannot be read"):
        find_inputs([tree], recursive=True)
    (tree / "deep").chmod(0o755)


def test_names_are_told_apart(tmp_path: Path) -> None:
    for place in ("a/x.jpg", "b/x.jpg", "b/x.png", "b/y.jpg", "c/Y.jpg"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).touch()
    found = find_inputs([tmp_path / "a" / "x.jpg", tmp_path / "b", tmp_path / "c"])
    assert [one.name for one in found] == ["a/x", "b/x.jpg", "b/x.png", "b/y", "c/Y"]
    assert names(found) == ["a/x.jpg", "b/x.jpg", "b/x.png", "b/y.jpg", "c/Y.jpg"]


def test_frames_of_a_video_have_room(tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    for place in ("clip.mp4", "clip/000001.jpg"):
        (tmp_path / place).touch()
    assert [one.name for one in find_inputs([tmp_path], recursive=True)] == ["clip.mp4", "clip/000001.jpg"]


_PARTS = st.sampled_from(["a", "A", "b", "a.jpg", "a-2"])


@given(st.lists(st.tuples(_PARTS, _PARTS, _PARTS, st.sampled_from([".jpg", ".png", ".mp4"])), unique=True, max_size=12))
def test_all_names_differ(places: list[tuple[str, str, str, str]]) -> None:
    """Whatever collides: in folders, in suffixes, in upper and lower case, with the folder of a video's frames."""
    inputs = []
    for one, two, three, suffix in places:
        path = Path("/nowhere", one, two, three + suffix)
        inputs.append(
            Input(path, three, three + suffix)
            if one == "a"
            else Input(path, f"{two}/{three}", f"{two}/{three}{suffix}")
        )
    result = _told_apart(inputs)
    keys = [one.name.casefold() for one in result]
    assert len(set(keys)) == len(keys) and [one.path for one in result] == [one.path for one in inputs]
    videos = {key for key, one in zip(keys, result, strict=True) if one.is_video}
    assert not any(key.startswith(f"{video}/") for key in keys for video in videos)

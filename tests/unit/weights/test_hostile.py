"""Damaged and hostile files: each a clear error, nothing run, nothing written, memory bounded."""

from __future__ import annotations

import shutil
from pathlib import Path
from random import Random

import pytest
from hostile_files import KINDS, Sound, write_sound
from torch import Tensor

from detronome.errors import CheckpointError
from detronome.weights.pretrained import load_pretrained

MEMORY_BYTES = 100 * 2**20
"""The most beyond what was in use before a file was read; the largest sound one has 22 MiB."""


@pytest.fixture(scope="module")
def sound(tiny_state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Sound:
    files = write_sound(tiny_state, tmp_path_factory.mktemp("sound") / "files")
    load_pretrained(files.zipped)  # what is imported on first use counts for no case
    return files


@pytest.fixture(autouse=True)
def _work_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What code writes without a path goes to where it is looked for."""
    monkeypatch.chdir(tmp_path)


def test_the_sound_files_load(sound: Sound) -> None:
    for source in (sound.zipped, sound.legacy, sound.safetensors, sound.hub):
        loaded = load_pretrained(source)
        assert set(loaded.state_dict) == set(sound.state)


@pytest.mark.parametrize("kind", KINDS)
def test_few_of_each_kind(kind: str, sound: Sound, tmp_path: Path) -> None:
    for seed in range(6):
        _expect_error(kind, seed, sound, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_thousand(sound: Sound, tmp_path: Path) -> None:
    for number in range(1000):
        _expect_error(list(KINDS)[number % len(KINDS)], number, sound, tmp_path)


def _expect_error(kind: str, seed: int, sound: Sound, tmp_path: Path) -> None:
    folder = tmp_path / f"case-{seed}"
    folder.mkdir()
    source = KINDS[kind](Random(f"{kind} {seed}"), folder, sound)
    before = _content(tmp_path)
    _forget_peak()
    used_before = _memory("VmRSS")
    with pytest.raises(CheckpointError) as caught:
        load_pretrained(source)
    grown = _memory("VmHWM") - used_before
    assert grown < MEMORY_BYTES, (kind, seed, grown)
    assert _content(tmp_path) == before, (kind, seed)
    text = str(caught.value)
    assert len(text) < 5000 and "Traceback" not in text and text.isprintable() is ("\n" not in text), (kind, seed)
    assert all(line.isprintable() for line in text.split("\n")), (kind, seed)
    for problem in caught.value.problems:
        assert problem.what and problem.where and problem.fix, (kind, seed, problem)
    shutil.rmtree(folder)


def _content(folder: Path) -> set[tuple[str, int]]:
    """Return names and sizes of all that is in a folder."""
    return {(str(path), path.stat().st_size if path.is_file() else -1) for path in folder.rglob("*")}


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _memory(name: str) -> int:
    """Return a figure of this process's memory, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))

"""The indexes that are asked are those that pip or uv would ask."""

import os
from pathlib import Path

import pytest

from detronome.doctor.indexes import PYPI, indexes_of_pip, indexes_of_uv, shown


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder; the machine's own files are not read."""
    import detronome.doctor.indexes as module

    home = tmp_path / "home"
    (home / ".config" / "pip").mkdir(parents=True)
    (home / ".config" / "uv").mkdir()
    machine = (Path("/etc/pip.conf"), Path("/etc/uv/uv.toml"))
    monkeypatch.setattr(module.sys, "prefix", str(tmp_path / "env"))
    real_pip, real_read = module._pip_files, module._read
    monkeypatch.setattr(module, "_pip_files", lambda e: [file for file in real_pip(e) if file not in machine])
    monkeypatch.setattr(module, "_read", lambda file: {} if file in machine else real_read(file))
    return home


def pip(home: Path, **environment: str) -> tuple[str, ...]:
    return indexes_of_pip({"HOME": str(home), "XDG_CONFIG_DIRS": "/nowhere", **environment}).urls


def uv(home: Path, folder: Path, **environment: str) -> tuple[str, ...]:
    return indexes_of_uv({"HOME": str(home), **environment}, folder).urls


def test_without_settings_it_is_pypi(home: Path, tmp_path: Path) -> None:
    assert pip(home) == (PYPI,)
    assert uv(home, tmp_path) == (PYPI,)


def test_files_and_variables_of_pip(home: Path) -> None:
    file = home / ".config" / "pip" / "pip.conf"
    file.write_text("[global]\nindex-url = https://a/simple\n[install]\nextra_index_url =\n  https://b\n  https://c\n")
    assert pip(home) == ("https://a/simple", "https://b", "https://c")
    assert pip(home, PIP_INDEX_URL="https://d", PIP_EXTRA_INDEX_URL="https://e https://d") == ("https://d", "https://e")
    file.write_text("[install]\nindex-url = https://i\n[global]\nindex-url = https://a/100%25\nno-index = true\n")
    assert pip(home) == ("https://i",)  # the command's own section counts more
    assert indexes_of_pip({"HOME": str(home)}).is_off
    assert pip(home, PIP_CONFIG_FILE=os.devnull) == (PYPI,)
    other = home / "other.conf"
    other.write_text("[install]\nindex-url = https://o\n")
    assert pip(home, PIP_CONFIG_FILE=str(other)) == ("https://o",)


@pytest.mark.parametrize("text", ["no section", "[global\n", "\x00\x01", "[global]\nindex-url\n"])
def test_a_file_that_cannot_be_read_is_passed_over(text: str, home: Path, tmp_path: Path) -> None:
    (home / ".config" / "pip" / "pip.conf").write_text(text)
    (home / ".config" / "uv" / "uv.toml").write_text(text)
    assert pip(home) == (PYPI,)
    assert uv(home, tmp_path) == (PYPI,)


def test_files_and_variables_of_uv(home: Path, tmp_path: Path) -> None:
    work = tmp_path / "project" / "sub"
    work.mkdir(parents=True)
    (home / ".config" / "uv" / "uv.toml").write_text('index-url = "https://user"\nextra-index-url = ["https://x"]\n')
    assert uv(home, work) == ("https://x", "https://user")
    (work.parent / "pyproject.toml").write_text(
        '[[tool.uv.index]]\nname = "n"\nurl = "https://n"\n'
        '[[tool.uv.index]]\nname = "torch"\nurl = "https://torch"\nexplicit = true\n'
        '[[tool.uv.index]]\nname = "d"\nurl = "https://d"\ndefault = true\n'
    )
    assert uv(home, work) == ("https://n", "https://x", "https://d")
    (work / "uv.toml").write_text('[pip]\nindex-url = "https://p"\n')
    assert uv(home, work) == ("https://x", "https://p")
    named = uv(home, work, UV_INDEX="a=https://a/?b=c https://b", UV_DEFAULT_INDEX="https://v")
    assert named == ("https://a/?b=c", "https://b", "https://x", "https://v")
    assert uv(home, work, UV_NO_CONFIG="1", UV_INDEX_URL="https://old") == ("https://old",)
    assert indexes_of_uv({"HOME": str(home), "UV_OFFLINE": "1"}, work).is_off


@pytest.mark.parametrize(
    "text", ["pip = 3\n", "index = 3\n", "index = [3]\n", "extra-index-url = 3\n", "[pip]\nindex = 'x'\n"]
)
def test_values_of_another_kind_are_passed_over(text: str, home: Path, tmp_path: Path) -> None:
    (tmp_path / "uv.toml").write_text(text)
    assert uv(home, tmp_path) == (PYPI,)
    (tmp_path / "uv.toml").unlink()
    for other in ("tool = 3\n", "[tool]\nuv = 3\n"):
        (tmp_path / "pyproject.toml").write_text(other)
        assert uv(home, tmp_path) == (PYPI,)


def test_names_and_passwords_are_not_shown() -> None:
    assert shown("https://me:secret@host:8080/simple") == "https://host:8080/simple"
    assert shown(PYPI) == PYPI

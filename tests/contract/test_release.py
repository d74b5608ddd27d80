"""What a release is made of: one version, and packages that hold what they should and nothing else."""

import datetime
import email.message
import email.parser
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

import detronome
from detronome.cli import main

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "detronome"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
HEADING = re.compile(r"^## \[(?P<name>[^\]]+)\](?: - (?P<date>\d{4}-\d\d-\d\d))?$", re.MULTILINE)


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.removesuffix(".dev0").split("."))


def disagreement(version: str, changelog: str) -> str:
    """Return why version and headings do not fit each other; empty when they do."""
    headings = [(found["name"], found["date"]) for found in HEADING.finditer(changelog)]
    if len(headings) != changelog.count("\n## "):
        return "a heading is neither [Unreleased] nor [X.Y.Z] - date"
    releases = [name for name, _ in headings if name != "Unreleased"]
    if not headings or [date is None for _, date in headings] != [name == "Unreleased" for name, _ in headings]:
        return "a release needs a date, [Unreleased] none"
    if [numbers(name) for name in releases] != sorted({numbers(name) for name in releases}, reverse=True):
        return "releases are not in order, newest first"
    if re.fullmatch(r"\d+\.\d+\.\d+(\.dev0)?", version) is None:
        return f"{version} is neither X.Y.Z nor X.Y.Z.dev0"
    if version.endswith(".dev0"):
        if headings[0][0] != "Unreleased" or "Unreleased" in [name for name, _ in headings[1:]]:
            return f"{version} is in progress, and the newest heading is not [Unreleased]"
        return "" if not releases or numbers(version) > numbers(releases[0]) else f"{version} follows {releases[0]}"
    return "" if headings[0][0] == version else f"the newest heading is not [{version}]"


def test_every_folder_of_tests_is_collected() -> None:
    ignored = PROJECT["tool"]["pytest"]["ini_options"]["norecursedirs"]  # pytest's own list has the name dist
    files = [file.relative_to(ROOT) for file in (ROOT / "tests").rglob("test_*.py")]
    assert [file for file in files if any(fnmatch(part, name) for part in file.parts for name in ignored)] == []


def test_the_changelog_agrees_with_the_version() -> None:
    assert disagreement(detronome.__version__, (ROOT / "CHANGELOG.md").read_text()) == ""


@pytest.mark.parametrize(
    ("version", "headings", "is_right"),
    [
        ("0.1.0.dev0", ["[Unreleased]"], True),
        ("0.2.0.dev0", ["[Unreleased]", "[0.1.0] - 2026-12-01"], True),
        ("0.1.0", ["[0.1.0] - 2026-12-01"], True),
        ("0.10.0", ["[0.10.0] - 2027-02-01", "[0.9.0] - 2027-01-01"], True),
        ("0.1.0", [], False),
        ("0.1.0", ["[Unreleased]"], False),
        ("0.1.0", ["[Unreleased]", "[0.1.0] - 2026-12-01"], False),
        ("0.1.0", ["[0.1.0]"], False),
        ("0.1.0", ["[0.1.1] - 2026-12-01", "[0.1.0] - 2026-12-02"], False),
        ("0.1.0.dev0", ["[Unreleased]", "[0.1.0] - 2026-12-01"], False),
        ("0.2.0.dev0", ["[0.1.0] - 2026-12-01"], False),
        ("0.2.0.dev0", ["[Unreleased]", "[0.0.9] - 2026-11-01", "[0.1.0] - 2026-12-01"], False),
        ("0.1.0rc1", ["[0.1.0rc1] - 2026-12-01"], False),
        ("0.1.0", ["0.1.0"], False),
    ],
)
def test_a_disagreement_is_found(version: str, headings: list[str], is_right: bool) -> None:
    changelog = "# Changelog\n" + "".join(f"\n## {heading}\n- something\n" for heading in headings)
    try:
        assert (disagreement(version, changelog) == "") == is_right
    except ValueError:  # a heading that is no version
        assert not is_right


def test_a_source_tree_that_nobody_installed_knows_its_version() -> None:
    script = f"import sys; sys.path.insert(0, {str(SOURCE.parent)!r}); import detronome; print(detronome.__version__)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == f"{detronome.__version__}\n"


def test_the_command_line_tells_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["--version"])
    assert capsys.readouterr().out == f"{detronome.__version__}\n"


def test_nothing_asks_the_metadata_for_our_version() -> None:
    # It may be that of another copy, or of the day when a checkout was installed.
    asked = re.compile(r"""version\(['"]detronome['"]\)""")
    assert [path for path in SOURCE.rglob("*.py") if asked.search(path.read_text())] == []


def test_the_citation_agrees_with_the_package() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    version = detronome.__version__
    assert citation["version"] == version
    assert citation["license"] == PROJECT["project"]["license"]
    assert citation["cff-version"] == "1.2.0" and citation["message"] and citation["title"] and citation["authors"]
    released = citation.get("date-released")
    if version.endswith(".dev0"):
        assert released is None
    else:
        newest = HEADING.search((ROOT / "CHANGELOG.md").read_text())
        assert newest is not None and released == datetime.date.fromisoformat(newest["date"])


def test_the_policy_names_tests_that_are_there() -> None:
    named = re.findall(r"`(tests/[^`]+)`", (ROOT / "SECURITY.md").read_text())
    assert len(named) > 5
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> tuple[zipfile.ZipFile, tarfile.TarFile]:
    """The wheel, built from the sdist, and the sdist. Offline: what builds them has built the installed checkout."""
    uv = os.environ.get("UV") or shutil.which("uv")
    if uv is None:
        pytest.skip("needs uv")
    out = tmp_path_factory.mktemp("dist")
    command = [uv, "build", "--offline", "--python", sys.executable, "--out-dir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    stem = f"detronome-{detronome.__version__}"
    assert {file.name for file in out.iterdir()} - {".gitignore"} == {f"{stem}-py3-none-any.whl", f"{stem}.tar.gz"}
    return zipfile.ZipFile(out / f"{stem}-py3-none-any.whl"), tarfile.open(out / f"{stem}.tar.gz")


def in_wheel(wheel: zipfile.ZipFile, name: str) -> str:
    return wheel.read(f"detronome-{detronome.__version__}.dist-info/{name}").decode()


def test_the_wheel_holds_the_package_and_nothing_else(
    packages: tuple[zipfile.ZipFile, tarfile.TarFile],
) -> None:
    wheel, _ = packages
    names = set(wheel.namelist())
    about = {name for name in names if name.partition("/")[0].endswith(".dist-info")}
    files = (path for path in SOURCE.rglob("*") if path.is_file() and path.parent.name != "__pycache__")
    assert names - about == {path.relative_to(SOURCE.parent).as_posix() for path in files}
    assert {name.partition("/")[2] for name in about} == {
        "METADATA",
        "RECORD",
        "WHEEL",
        "entry_points.txt",
        "licenses/LICENSE",
    }
    assert "detronome/py.typed" in names and "detronome/report/page/page.html.j2" in names
    assert in_wheel(wheel, "licenses/LICENSE") == (ROOT / "LICENSE").read_text()
    assert in_wheel(wheel, "entry_points.txt").split() == ["[console_scripts]", "detronome", "=", "detronome.cli:main"]


def test_the_metadata_is_complete(packages: tuple[zipfile.ZipFile, tarfile.TarFile]) -> None:
    wheel, sdist = packages
    metadata: email.message.Message = email.parser.Parser().parsestr(in_wheel(wheel, "METADATA"))
    project = PROJECT["project"]
    assert metadata["Name"] == "detronome" and metadata["Version"] == detronome.__version__
    assert metadata["Summary"] == project["description"]
    assert metadata["License-Expression"] == "Apache-2.0" and metadata["License-File"] == "LICENSE"
    assert metadata["Requires-Python"] == project["requires-python"]
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload() == (ROOT / "README.md").read_text()
    assert set(metadata.get_all("Provides-Extra", [])) == set(project["optional-dependencies"])
    assert len(metadata.get_all("Requires-Dist", [])) >= len(project["dependencies"])
    assert "Operating System :: POSIX :: Linux" in metadata.get_all("Classifier", [])
    built_from = sdist.extractfile(f"detronome-{detronome.__version__}/PKG-INFO")
    assert built_from is not None and built_from.read().decode() == in_wheel(wheel, "METADATA")


def listed_by_git(*options: str) -> set[str]:
    command = ["git", "-C", str(ROOT), "ls-files", "-z", *options]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")) - {""}


def test_the_sdist_holds_the_repository(packages: tuple[zipfile.ZipFile, tarfile.TarFile]) -> None:
    _, sdist = packages
    folder = f"detronome-{detronome.__version__}/"
    assert all(member.isfile() and member.name.startswith(folder) for member in sdist.getmembers())
    held = {member.name.removeprefix(folder) for member in sdist.getmembers()} - {"PKG-INFO"}
    assert {"pyproject.toml", "uv.lock", "tests/conftest.py", ".ci/run", "src/detronome/py.typed"} <= held
    if not (ROOT / ".git").exists():
        return  # of an sdist that was unpacked
    tracked = listed_by_git()
    assert {name for name in tracked if (ROOT / name).is_file()} <= held
    assert held <= tracked | listed_by_git("--others", "--exclude-standard"), "nothing that git ignores"

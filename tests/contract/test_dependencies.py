"""Dependencies are few and reasoned: declared is what is used, recorded, tested at its bound, and locked by hash."""

import ast
import importlib.util
import re
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from detronome.doctor.advisories import ADVISORIES
from detronome.doctor.versions import Version, allows, normal_name

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "docs" / "dependencies.md"
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS: dict[str, list[str]] = PYPROJECT["project"]["optional-dependencies"]
GROUPS = {
    "Needed by every installation": PYPROJECT["project"]["dependencies"],
    "Extras": [requirement for extra in EXTRAS.values() for requirement in extra],
    "Development": [
        requirement
        for requirement in PYPROJECT["dependency-groups"]["dev"]
        if not requirement.startswith(f"{PYPROJECT['project']['name']}[")
    ],
}
"""Requirements by the heading of their table in docs/dependencies.md."""
DIRECT = sorted({requirement for group in GROUPS.values() for requirement in group})
OPTIONAL_PROBES = {"pycocotools"}
"""Looked at by the doctor where it is installed, never asked for."""
BROUGHT_BY = {"markupsafe": "jinja2", "google": "onnx"}
"""Modules of a dependency's own dependency, which is part of its interface: Markup, protobuf messages."""
DISTRIBUTIONS = {
    "PIL": "pillow",
    "mlflow": "mlflow-skinny",
    "pynvml": "nvidia-ml-py",
    "python_multipart": "python-multipart",
    "sklearn": "scikit-learn",
    "tomli_w": "tomli-w",
    "yaml": "pyyaml",
}
USED_BY_OTHERS = {"tensorboard": "torch.utils.tensorboard", "onnxscript": "torch.onnx"}
"""Dependencies that our code reaches only through another one."""


def split(requirement: str) -> tuple[str, str]:
    """Return name and range of a requirement: `torch`, `>=2.11`."""
    found = re.fullmatch(r"([\w.-]+)([^;]*)(;.*)?", requirement)
    assert found, requirement
    return normal_name(found[1]), found[2].strip()


def lower_bound(requirement: str) -> str:
    found = re.search(r">=\s*([\w.]+)", split(requirement)[1])
    assert found, f"{requirement} has no lower bound"
    return found[1]


def rows(heading: str) -> Iterator[list[str]]:
    """Yield the cells of each row of the table under a heading of docs/dependencies.md."""
    _, _, after = RECORD.read_text().partition(f"\n## {heading}\n")
    assert after, f"docs/dependencies.md has no table '{heading}'"
    table = [line for line in after.partition("\n## ")[0].splitlines() if line.startswith("|")]
    for line in table[2:]:
        yield [cell.strip() for cell in line.replace("\\|", "/").strip("|").split("|")]


def imported_modules() -> dict[str, set[str]]:
    """Return the third-party modules that the package imports, at any depth, with the files that do."""
    files: dict[str, set[str]] = defaultdict(set)
    for path in (ROOT / "src" / "detronome").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "import_module":
                names = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
            for name in {name.partition(".")[0] for name in names} - {"detronome"} - sys.stdlib_module_names:
                files[name].add(path.name)
    return files


@pytest.mark.parametrize("heading", GROUPS)
def test_the_record_names_every_dependency_and_no_other(heading: str) -> None:
    recorded = [row[0].strip("`") for row in rows(heading)]
    assert sorted(recorded) == sorted(set(GROUPS[heading]))


@pytest.mark.parametrize("heading", GROUPS)
def test_what_was_tested_begins_at_the_bound(heading: str) -> None:
    for row in rows(heading):
        requirement = row[0].strip("`")
        if "not tested" in row[-2]:
            continue
        lowest, newest = (Version.parse(text) for text in row[-2].split(" to "))
        bound = Version.parse(lower_bound(requirement))
        assert lowest and newest and bound, f"{requirement}: no versions in '{row[-2]}'"
        assert lowest.begins_with(bound.release), f"{requirement}, but the lowest tested is {lowest.text}"
        assert newest >= lowest, requirement


def test_the_record_says_which_extra_asks_for_what() -> None:
    recorded = {row[0].strip("`"): set(re.findall(r"`([\w-]+)`", row[1])) for row in rows("Extras")}
    asked = {requirement: {extra for extra, of in EXTRAS.items() if requirement in of} for requirement in recorded}
    assert recorded == asked


def test_one_package_has_one_range() -> None:
    ranges = defaultdict(set)
    for requirement in DIRECT:
        ranges[split(requirement)[0]].add(split(requirement)[1])
    assert [name for name, different in ranges.items() if len(different) > 1] == []


@pytest.mark.parametrize("requirement", DIRECT)
def test_no_bound_admits_what_the_doctor_warns_of(requirement: str) -> None:
    name = split(requirement)[0]
    bound = lower_bound(requirement)
    for advisory in ADVISORIES:
        if normal_name(advisory.package) == name:
            assert not allows(advisory.affected, bound), f"{advisory.source}: {advisory.what}"


def test_what_is_imported_is_declared_and_what_is_declared_is_imported() -> None:
    imported = {BROUGHT_BY.get(module) or DISTRIBUTIONS.get(module, module) for module in imported_modules()}
    declared = {split(requirement)[0] for requirement in GROUPS["Needed by every installation"] + GROUPS["Extras"]}
    assert imported - declared - OPTIONAL_PROBES == set()
    assert declared - imported - USED_BY_OTHERS.keys() == set()


@pytest.mark.parametrize("name", ["requirements.txt", "environment.yml"])
def test_generated_files_agree_with_pyproject(name: str) -> None:
    spec = importlib.util.spec_from_file_location("dependency_files", ROOT / ".ci" / "dependency_files.py")
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert (ROOT / name).read_text() == script.dependency_files()[name], f"write it again: {script.COMMAND}"


def test_the_lock_holds_a_hash_of_every_file() -> None:
    packages = tomllib.loads((ROOT / "uv.lock").read_text())["package"]
    assert len(packages) > len(DIRECT)
    for package in packages:
        if "editable" in package["source"]:
            continue
        files = package.get("wheels", []) + ([package["sdist"]] if "sdist" in package else [])
        assert files, package["name"]
        for file in files:
            assert re.fullmatch(r"sha256:[0-9a-f]{64}", file["hash"]), file["url"]


def test_the_lock_was_made_from_this_pyproject() -> None:
    packages = tomllib.loads((ROOT / "uv.lock").read_text())["package"]
    own = next(package for package in packages if "editable" in package["source"])
    locked: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for entry in own["metadata"]["requires-dist"]:
        extra = re.search(r"extra == '([\w-]+)'", entry.get("marker", ""))
        locked[extra[1] if extra else ""].add((entry["name"], entry.get("specifier", "")))
    asked = {"": GROUPS["Needed by every installation"], **EXTRAS}
    assert locked == {extra: {split(requirement) for requirement in of} for extra, of in asked.items()}, "run: uv lock"
    versions = defaultdict(list)
    for package in packages:
        versions[package["name"]].append(package.get("version", ""))
    for requirement in DIRECT:
        name, specifier = split(requirement)
        assert versions[name], f"{name} is not locked; run: uv lock"
        assert all(allows(specifier, version) for version in versions[name]), f"{requirement}; run: uv lock"

"""Writes `requirements.txt` and `environment.yml` (conda) from pyproject.toml: `python .ci/dependency_files.py`.

It lives beside `.ci/run` because it serves whoever changes a dependency; the package itself never needs it.
`tests/contract/test_dependencies.py` fails while the files do not agree with pyproject.toml.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

__all__ = ["dependency_files"]

ROOT = Path(__file__).resolve().parents[1]
COMMAND = "python .ci/dependency_files.py"
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base"}
"""conda-forge's name where it is another; the rest are called as on PyPI (conda-forge's name map, August 2026)."""
NOT_ON_CONDA_FORGE = {"hotcoco"}


def dependency_files() -> dict[str, str]:
    """Return the text of each file by its name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    dependencies: list[str] = project["dependencies"]
    return {
        "requirements.txt": _requirements(dependencies),
        "environment.yml": _environment(project["name"], project["requires-python"], dependencies),
    }


def _requirements(dependencies: list[str]) -> str:
    head = f"# What Detronome needs, without its extras. Written from pyproject.toml by: {COMMAND}\n"
    return head + "".join(f"{dependency}\n" for dependency in dependencies)


def _environment(name: str, python: str, dependencies: list[str]) -> str:
    conda = [f"python{python}", "pip"]
    pip = []
    for dependency in dependencies:
        found = re.match(r"[\w.-]+", dependency)
        assert found, f"{dependency}: no name"
        if found[0] in NOT_ON_CONDA_FORGE:
            pip.append(dependency)
        else:
            conda.append(CONDA_NAMES.get(found[0], found[0]) + dependency[found.end() :])
    return "".join(
        [
            f"# conda env create -f environment.yml. Written from pyproject.toml by: {COMMAND}\n",
            f"name: {name}\nchannels:\n  - conda-forge\n  - nodefaults\ndependencies:\n",
            *(f'  - "{spec}"\n' for spec in conda),
            "  - pip:\n",
            *(f'      - "{spec}"\n' for spec in pip),
            "      - --editable .\n",
        ]
    )


if __name__ == "__main__":
    for file, text in dependency_files().items():
        (ROOT / file).write_text(text)

"""The Dockerfiles: without an engine to build them, what a parser and the files beside them can tell."""

import json
import re
import tomllib
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TRAINING, SERVING = ROOT / "Dockerfile", ROOT / "docs" / "serving" / "Dockerfile"
KEYWORDS = {"ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "RUN", "STOPSIGNAL", "USER"}
KEYWORDS |= {"WORKDIR"}


@dataclass(frozen=True, kw_only=True)
class Instruction:
    keyword: str
    value: str


def instructions(text: str) -> list[Instruction]:
    """Return the instructions, with lines that are continued in one, and without comments."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    found = []
    for line in filter(None, map(str.strip, joined.splitlines())):
        keyword, _, value = line.partition(" ")
        found.append(Instruction(keyword=keyword, value=" ".join(value.split())))
    return found


def values(path: Path, keyword: str) -> list[str]:
    return [one.value for one in instructions(path.read_text()) if one.keyword == keyword]


@pytest.mark.parametrize("path", [TRAINING, SERVING], ids=["training", "serving"])
def test_an_image_runs_as_a_user_and_gets_its_signals(path: Path) -> None:
    found = instructions(path.read_text())
    assert found[0].keyword == "FROM" and {one.keyword for one in found} <= KEYWORDS
    last_stage = found[max(i for i, one in enumerate(found) if one.keyword == "FROM") :]
    users = [one.value for one in last_stage if one.keyword == "USER"]
    assert users and users[-1] not in ("root", "0")
    made = " ".join(one.value for one in last_stage if one.keyword == "RUN")
    assert "useradd" in made and users[-1] in made.partition("useradd")[2].split("&&")[0]
    for keyword in ("ENTRYPOINT", "CMD"):  # a shell in between would keep SIGTERM for itself
        (command,) = (one.value for one in last_stage if one.keyword == keyword)
        assert all(isinstance(word, str) for word in json.loads(command))


def test_both_images_have_the_same_python() -> None:
    bases = {value.split()[0] for path in (TRAINING, SERVING) for value in values(path, "FROM")}
    (base,) = bases
    found = re.fullmatch(r"python:(3\.\d+)-slim", base)
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    assert found is not None and f"Programming Language :: Python :: {found[1]}" in classifiers


def test_extras_that_are_installed_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    training = re.findall(r"--extra (\w+)", TRAINING.read_text())
    serving = re.findall(r"detronome\[([\w,]+)\]", SERVING.read_text())
    assert training and serving
    assert {*training, *(extra for text in serving for extra in text.split(","))} <= extras.keys()


def test_the_training_image_has_the_locked_versions() -> None:
    installs = [value for value in values(TRAINING, "RUN") if "uv sync" in value]
    assert len(installs) == 2 and all("--locked" in value and "--no-dev" in value for value in installs)
    assert "--no-install-project" in installs[0] and "--no-editable" in installs[1]


def is_sent(path: str, rules: list[str]) -> bool:
    """Return whether a .dockerignore lets a path through: the last rule that matches it or a folder of it counts."""
    parts = path.split("/")
    above = ["/".join(parts[: i + 1]) for i in range(len(parts))]
    sent = True
    for rule in rules:
        pattern = rule.removeprefix("!")
        if any(fnmatch(one, pattern) or (pattern.startswith("**/") and fnmatch(one, pattern[3:])) for one in above):
            sent = rule.startswith("!")
    return sent


def test_what_is_copied_is_sent_and_nothing_else() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    sources = {
        source.rstrip("/")
        for value in values(TRAINING, "COPY")
        if "--from" not in value
        for source in value.split()[:-1]
    }
    assert sources == {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    for source in sources:
        assert (ROOT / source).exists() and is_sent(source, rules)
    assert is_sent("src/detronome/report/page/page.html.j2", rules)
    for stray in ("runs/nano/checkpoints", ".git/config", "data/train.tar", "tests/conftest.py", ".venv/bin/python"):
        assert not is_sent(stray, rules)
    assert not is_sent("src/detronome/__pycache__/types.cpython-312.pyc", rules)


def test_what_the_build_reads_is_copied() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    copied = {source for value in values(TRAINING, "COPY") for source in value.split()[:-1]}
    assert {"pyproject.toml", "uv.lock", "src/", project["readme"], *project["license-files"]} <= copied

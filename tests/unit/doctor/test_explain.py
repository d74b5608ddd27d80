"""Pasted texts lead to their cause; texts without an error lead to nothing."""

import json
import re
import shlex
import subprocess
from importlib.metadata import requires
from pathlib import Path

import pytest
from cyclopts import CycloptsError
from cyclopts.exceptions import MissingArgumentError
from tests.cpu_time import CpuTime
from tests.unit.doctor.pasted_texts import HEALTHY, PASTED

from detronome.cli.commands import app
from detronome.doctor.explain import explain_error
from detronome.doctor.modules import PACKAGES, package_for
from detronome.doctor.symptoms import SYMPTOMS, Symptom

CASES = [pytest.param(name, text, id=f"{name}-{i}") for name, texts in PASTED.items() for i, text in enumerate(texts)]


def test_every_symptom_has_a_text_and_a_name_of_its_own() -> None:
    names = [symptom.name for symptom in SYMPTOMS]
    assert len(set(names)) == len(names)
    assert set(PASTED) == set(names)


@pytest.mark.parametrize(("name", "text"), CASES)
def test_the_cause_of_a_pasted_text_is_found(name: str, text: str) -> None:
    found = explain_error(text)
    assert found.best is not None and found.best.name == name, found
    assert found.best.cause and found.best.fix
    lines = text.splitlines()
    assert found.best.text.strip(". ")[:60] in lines[found.best.line - 1].strip()
    assert not re.search(r"\{\w+\}", " ".join((found.best.cause, *found.best.fix)))


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in HEALTHY.items()])
def test_a_text_without_an_error_is_not_explained(text: str) -> None:
    found = explain_error(text)
    assert found.best is None and found.others == []


@pytest.mark.parametrize(("name", "text"), CASES)
def test_it_is_found_in_the_middle_of_a_long_log(name: str, text: str) -> None:
    noise = "".join(f"{healthy}\n" for healthy in HEALTHY.values()) * 20
    found = explain_error(noise + text + "\n" + noise)
    assert found.best is not None and found.best.name == name
    assert found.best.line > noise.count("\n")
    assert found.num_lines > 500


def test_the_cause_is_told_and_not_what_followed_from_it() -> None:
    follow = [name for name, text in ((s.name, s) for s in SYMPTOMS) if text.is_consequence]
    assert len(follow) >= 6
    for consequence in follow:
        before_and_after = (
            PASTED[consequence][0] + "\n" + PASTED["GPU memory ran out"][1] + "\n" + PASTED[consequence][0]
        )
        found = explain_error(before_and_after)
        assert found.best is not None and found.best.name == "GPU memory ran out", consequence
        assert consequence in [match.name for match in found.others]


def test_of_two_causes_the_first_is_told() -> None:
    first, second = PASTED["too many open files"][0], PASTED["disk full"][0]
    found = explain_error(f"{first}\n{second}")
    assert found.best is not None and found.best.name == "too many open files"
    assert [(match.name, match.line) for match in found.others] == [("disk full", 2)]


@pytest.mark.parametrize(
    "paint", [lambda t: f"\x1b[31m{t}\x1b[0m", lambda t: t.replace("\n", "\r\n"), lambda t: f"  | {t}"]
)
def test_colours_and_line_ends_of_a_terminal_do_not_matter(paint: object) -> None:
    text = PASTED["shared memory too small"][0]
    found = explain_error(paint(text))  # type: ignore[operator]
    assert found.best is not None and found.best.name == "shared memory too small"
    assert "\x1b" not in found.best.text


def test_what_was_found_is_named_in_cause_and_fix() -> None:
    best = explain_error("ModuleNotFoundError: No module named 'optuna.samplers'").best
    assert best is not None
    assert "optuna.samplers" in best.cause
    assert "'detronome[search]'" in best.fix[0]
    best = explain_error("KeyError: 'iscrowd'").best
    assert best is not None and "'iscrowd'" in best.cause


@pytest.mark.parametrize(
    ("module", "package"),
    [("cv2", "opencv-python-headless"), ("google.protobuf.message", "protobuf"), ("pynvml", "nvidia-ml-py")],
)
def test_a_module_that_is_known_is_installed_by_the_name_of_its_package(module: str, package: str) -> None:
    best = explain_error(f"ModuleNotFoundError: No module named '{module}'").best
    assert best is not None and best.fix[0].startswith(f"python -m pip install {package} ")


@pytest.mark.parametrize("module", ["util.misc", "utils", "datasets_local", "google", "torchx.y"])
def test_the_name_of_an_unknown_module_is_not_proposed_as_a_package(module: str) -> None:
    best = explain_error(f"ModuleNotFoundError: No module named '{module}'").best
    assert best is not None and best.name == "module not found" and module in best.cause
    assert all(step.startswith("#") and "pip" not in step for step in best.fix)


def test_each_of_our_own_requirements_is_known() -> None:
    ours = {re.split(r"[^\w-]", line)[0] for line in requires("detronome") or ()}
    known = {*PACKAGES.values(), *(package_for(module) for module in PACKAGES)}
    of_extras = {module.replace("_", "-") for module, package in PACKAGES.items() if package.startswith("detronome[")}
    assert ours - known - of_extras <= {"mlflow-skinny"}  # its module is mlflow


def test_an_extension_is_built_again_alone() -> None:
    best = explain_error(PASTED["extension built for another torch"][0]).best
    assert best is not None and "--no-deps" in best.fix[0] and ":all:" not in best.fix[0]


@pytest.mark.parametrize(
    "text",
    [
        "FileNotFoundError: [Errno 2] No such file or directory: 'x; touch HACKED; y.onnx'",
        "No such file or directory: '$(touch HACKED).onnx'",
        "Load model it's;touch${IFS}HACKED;'.onnx failed. File doesn't exist",
        "pkg 1.0 requires x'$(touch${IFS}HACKED)'>=1, but you have foo 2 which is incompatible",
        "pkg 1.0 requires x{other}`touch${IFS}HACKED`, but you have foo 2 which is incompatible",
        "pkg 1.0 requires x>HACKED, but you have foo 2 which is incompatible",
    ],
)
def test_words_of_a_log_are_no_commands(text: str, tmp_path: Path) -> None:
    """Run the proposed commands in a shell in which ls and pip do nothing."""
    best = explain_error(text).best
    assert best is not None and any("HACKED" in step for step in best.fix)
    for step in best.fix:
        script = f"ls() {{ :; }}; pip() {{ :; }}; detronome() {{ :; }}\n{step}\n"
        done = subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), step
    assert list(tmp_path.iterdir()) == []


def test_no_option_comes_from_a_log() -> None:
    for text in ("--index-url 1 requires x>=1, but you have foo 2", "a 1 requires --pre, but you have foo 2"):
        assert explain_error(f"{text} which is incompatible").best is None


BUS_ERROR = "RuntimeError: DataLoader worker (pid 4211) is killed by signal: Bus error. "


@pytest.mark.parametrize(
    ("text", "line", "num_lines"),
    [
        (f"\n\n{BUS_ERROR}\n\n", 3, 3),
        (f"start\r\n{BUS_ERROR}\r\nend\r\n", 2, 3),
        (f"10 %\r20 %\r30 %\n{BUS_ERROR}\nend", 2, 3),  # a bar of progress is a line of the file
        (
            '{"log": "start"}\n' + json.dumps({"log": "a\nb\nDataLoader worker (pid 4) is killed\n  by: x\nBus error"}),
            2,
            2,
        ),
        (
            '{"log": "start"}\n'
            + json.dumps({"log": 'a\nKeyError: "x"\nmatrix contains invalid numeric\tentries'}).replace("\\t", " "),
            2,
            2,
        ),
        ("-" * 60 + "\n" + "x" * 60 + "\n" + ("y" * 30 + " received 0 items of ancdata")[:60] + "\n", 3, 3),
        ("-" * 60 + "\n" + "y" * 50 + " received " + "\n0 items of ancdata\n", 2, 3),
    ],
)
def test_lines_are_those_of_the_text_as_it_was_given(text: str, line: int, num_lines: int) -> None:
    found = explain_error(text)
    assert found.best is not None and (found.best.line, found.num_lines) == (line, num_lines)
    assert "\n" not in found.best.text


def test_an_unknown_text_gives_its_last_error() -> None:
    found = explain_error("starting\nValueError: the frobnicator is bent\ndone\n")
    assert found.best is None
    assert found.last_error == "ValueError: the frobnicator is bent"


def test_a_long_line_is_cut_around_what_was_found() -> None:
    best = explain_error("x" * 5000 + " RuntimeError: received 0 items of ancdata " + "y" * 5000).best
    assert best is not None and best.line == 1
    assert "ancdata" in best.text and len(best.text) < 300


def test_a_megabyte_of_log_takes_no_time() -> None:
    text = "".join(HEALTHY.values()) * 700 + PASTED["disk full"][0]
    assert len(text) > 1_000_000
    with CpuTime() as spent:
        assert explain_error(text).best is not None
    assert spent.seconds < 10


def steps() -> list[tuple[str, str]]:
    return [(symptom.name, step) for symptom in SYMPTOMS for step in symptom.fix]


@pytest.mark.parametrize(("name", "step"), [pytest.param(*pair, id=f"{pair[0]}: {pair[1]}") for pair in steps()])
def test_every_command_of_ours_in_a_fix_exists(name: str, step: str) -> None:
    assert step.strip() == step and step
    for command in re.findall(r"(?:^|-m )detronome ([^#|]+)", step):
        try:
            app.parse_args(shlex.split(command), print_error=False, exit_on_error=False)
        except MissingArgumentError:
            pass
        except CycloptsError as error:
            pytest.fail(f"{name}: {error}")


@pytest.mark.parametrize("symptom", SYMPTOMS, ids=lambda symptom: symptom.name)
def test_a_pattern_does_not_match_nothing(symptom: Symptom) -> None:
    assert symptom.pattern.search("") is None
    assert symptom.cause[0] not in " ." and not symptom.cause.endswith(".")


def test_a_shells_single_word_is_known_as_a_line_of_its_own() -> None:
    for text in ("Killed", "epoch 3  loss 2.1\nKilled\n"):
        best = explain_error(text).best
        assert best is not None and best.name == "killed for its memory"
    assert explain_error("Killed bugs in the loader").best is None

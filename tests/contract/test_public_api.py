"""The public face: names that resolve, docstrings, and no torch before it is needed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import detronome

SOURCE = Path(detronome.__file__).parent


def test_every_public_name_resolves() -> None:
    for name in detronome.__all__:
        assert getattr(detronome, name).__name__ == name
    assert dir(detronome) == sorted(detronome.__all__)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        detronome.trian  # noqa: B018


def test_import_and_help_do_not_import_torch() -> None:
    code = """
import sys, detronome
from detronome.cli import app
app(["--help"], result_action="return_value")
app(["train", "--help"], result_action="return_value")
sys.exit("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Train on a data folder" in done.stdout


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_public_things_have_docstrings_and_say_what_is_public(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "the module says what its one idea is"
    for node in tree.body:
        is_public = isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_")
        assert not is_public or ast.get_docstring(node), f"{node.name} has no docstring"


def test_types_are_shipped() -> None:
    assert (SOURCE / "py.typed").is_file()

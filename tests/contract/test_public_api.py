"""What the package promises as a whole: names, docstrings, types, and an import that is cheap."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import detronome

SOURCE = Path(detronome.__file__).parent
MODULES = sorted(SOURCE.rglob("*.py"))


def module_id(path: Path) -> str:
    return str(path.relative_to(SOURCE))


def test_all_names_resolve_and_no_other_name_is_public() -> None:
    assert sorted(detronome.__all__) == dir(detronome)
    for name in detronome.__all__:
        assert getattr(detronome, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        detronome.trian  # noqa: B018


def test_the_names_for_type_checkers_are_those_of_all() -> None:
    tree = ast.parse((SOURCE / "__init__.py").read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    assert isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
    named = {alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert named == set(detronome.__all__)


def test_every_error_is_public() -> None:
    from detronome import errors

    kinds = {name for name in errors.__all__ if name.endswith("Error")}
    assert kinds <= set(detronome.__all__)
    assert all(issubclass(getattr(detronome, name), detronome.DetronomeError) for name in kinds)


def test_neither_the_import_nor_help_imports_torch() -> None:
    script = """
import sys
import detronome
from detronome.cli import main
commands = ["demo", "train", "eval", "predict", "report"]
for arguments in (["--help"], ["--version"], *([command, "--help"] for command in commands)):
    try:
        main(arguments)
    except SystemExit as end:
        assert not end.code, (arguments, end.code)
print(sorted({"torch", "numpy", "matplotlib"} & sys.modules.keys()), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "[]\n"
    assert "--resume" in done.stdout


@pytest.mark.parametrize("path", MODULES, ids=module_id)
def test_public_functions_and_classes_have_docstrings(path: Path) -> None:
    tree = ast.parse(path.read_text())
    is_module = path.name != "__main__.py"
    bare = [] if not is_module or ast.get_docstring(tree) else ["the module"]
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            bare += [] if ast.get_docstring(node) else [node.name]
    assert bare == []


@pytest.mark.parametrize("path", MODULES, ids=module_id)
def test_all_is_there_and_true(path: Path) -> None:
    tree = ast.parse(path.read_text())
    lists = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    bound = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    for node in tree.body:
        if isinstance(node, ast.Assign):
            bound |= {ast.unparse(target) for target in node.targets}
        elif isinstance(node, ast.AnnAssign):
            bound.add(ast.unparse(node.target))
    if path.name not in ("__init__.py", "__main__.py"):
        assert lists and lists[0] and set(lists[0]) <= bound


@pytest.mark.parametrize("path", [p for p in MODULES if "cli" not in p.relative_to(SOURCE).parts], ids=module_id)
def test_the_library_neither_prints_nor_exits(path: Path) -> None:
    calls = [ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    assert {"print", "exit", "quit", "sys.exit"}.isdisjoint(calls)


def test_the_package_is_typed() -> None:
    assert (SOURCE / "py.typed").is_file()

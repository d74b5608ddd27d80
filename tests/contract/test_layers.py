"""Every module imports only from lower layers; packages of layers 1, 2 and 4 do not import each other."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "detronome"
LAYERS = {
    0: {"errors", "types", "version"},
    1: {"config", "ops", "runtime"},
    2: {"data", "models", "losses", "evaluation"},
    3: {"engine"},
    4: {"tempo", "deploy", "report", "doctor", "weights"},
    5: {"model"},
    6: {"api", "__init__"},
    7: {"cli", "__main__"},
}
LAYER_OF = {room: layer for layer, rooms in LAYERS.items() for room in rooms}


def room_of(module: str) -> str:
    """Return the room of a dotted name: `config` for `detronome.config.schema`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imported_rooms(source: str) -> Iterator[tuple[int, str]]:
    """Yield (line, room) of each import of ours, at any depth, by statement or by `import_module`."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative imports hide the layer"
            module = node.module or ""
            # `from detronome import api` names a room, or a public name of the package.
            names = (
                [f"detronome.{alias.name}" if alias.name in LAYER_OF else "detronome" for alias in node.names]
                if module == "detronome"
                else [module]
            )
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "import_module":
            names = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        for name in names:
            if name.partition(".")[0] == "detronome":
                yield node.lineno, room_of(name)


def violations(room: str, source: str) -> list[str]:
    found = []
    for line, imported in imported_rooms(source):
        is_own = imported == room
        is_lower = LAYER_OF[imported] < LAYER_OF[room]
        is_package_face = room == "__init__" and imported == "api"
        is_entry = room == "__main__" and imported == "cli"
        if LAYER_OF[room] == 0:
            found.append(f"line {line}: {room} imports {imported}")
        elif not (is_own or is_lower or is_package_face or is_entry):
            found.append(f"line {line}: {room} (layer {LAYER_OF[room]}) imports {imported} ({LAYER_OF[imported]})")
    return found


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_module_imports_only_from_lower_layers(path: Path) -> None:
    room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    assert room in LAYER_OF, f"{room} has no layer"
    assert violations(room, path.read_text()) == []


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("types", "from detronome.errors import Problem"),
        ("ops", "from detronome.runtime.device import resolve_device"),
        ("data", "def f():\n    from detronome.models.build import build_model"),
        ("losses", "import detronome.models.detector"),
        ("models", "import importlib\nimportlib.import_module('detronome.engine.step')"),
        ("engine", "from detronome.report import html"),
        ("deploy", "from detronome.report.pictures import draw_boxes"),
        ("report", "from detronome import api"),
        ("report", "from detronome import train"),
        ("api", "from detronome.cli.render import print_json"),
    ],
)
def test_a_violating_import_is_found(room: str, source: str) -> None:
    assert len(violations(room, source)) == 1


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("types", "import numpy"),
        ("ops", "from detronome.ops.boxes import cxcywh_to_xyxy"),
        ("engine", "from detronome.losses.terms import BatchTotals"),
        ("deploy", "from detronome.engine.evaluator import detect_batch"),
        ("cli", "from detronome import api"),
        ("__init__", "from detronome.api import train"),
        ("__main__", "from detronome.cli import main"),
    ],
)
def test_an_import_from_below_is_allowed(room: str, source: str) -> None:
    assert violations(room, source) == []

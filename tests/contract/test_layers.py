"""A module imports only from lower layers; rooms of one layer do not know each other."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "detronome"
LAYERS = (
    {"errors", "types"},
    {"config", "ops", "runtime"},
    {"data", "models", "losses", "evaluation"},
    {"engine"},
    {"tempo", "deploy", "report", "doctor"},
    {"api"},
    {"cli"},
)
LAYER_OF = {room: number for number, rooms in enumerate(LAYERS) for room in rooms}
FACE = {"__init__", "__main__"}
"""The package's namespace and entry point stand above everything."""


def imported_rooms(source: str) -> Iterator[str]:
    """Yield the room of every import of ours, also inside functions."""
    for node in ast.walk(ast.parse(source)):
        modules = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [alias.name for alias in node.names] if node.module == "detronome" else [""]
            modules = [f"{node.module}.{name}" for name in names]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        for module in modules:
            parts = module.split(".")
            if parts[0] == "detronome" and len(parts) > 1 and parts[1]:
                yield parts[1]


def violations(room: str, source: str) -> list[str]:
    """Return the rooms that a module of `room` imports and must not."""
    return [other for other in imported_rooms(source) if other != room and LAYER_OF.get(other, 99) >= LAYER_OF[room]]


def modules() -> list[Path]:
    return sorted(
        path for path in SOURCE.rglob("*.py") if path.relative_to(SOURCE).parts[0].removesuffix(".py") not in FACE
    )


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_downwards(path: Path) -> None:
    room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    assert room in LAYER_OF, f"{room} has no layer"
    assert not violations(room, path.read_text())


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("ops", "from detronome.runtime.seeding import generator"),
        ("data", "def f():\n    import detronome.models.build"),
        ("engine", "from detronome import api"),
        ("errors", "from detronome.types import Batch"),
    ],
)
def test_a_violation_would_be_found(room: str, source: str) -> None:
    assert violations(room, source)

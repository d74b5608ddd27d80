"""torch's own form: a program as `torch.export` saves it, run by torch on any device."""

from __future__ import annotations

import ast
import io
import json
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from detronome.deploy.export.graph import quiet_export
from detronome.deploy.export.session import Session
from detronome.errors import CheckpointError

__all__ = ["open_torch_program", "write_torch_program"]


def write_torch_program(program: ExportedProgram, path: Path) -> None:
    """Write a graph as torch's .pt2, without the example that it was traced with, and without the checks of sizes that
    were assumed: those are Python code. The self-check runs the program with many sizes instead."""
    program.example_inputs = None
    program._guards_code = []
    with quiet_export():
        warnings.filterwarnings("ignore", "No complete tensor found in the group")  # it then keeps all of its memory
        torch.export.save(program, path)


def open_torch_program(path: Path, *, device: torch.device, threads: int | None = None) -> Session:
    """Return a session of torch.

    torch itself would unpickle and evaluate what such a file holds. So a file is refused that holds pickles, calls
    anything but torch's operators, or has sizes that are more than arithmetic.

    Args:
        path: the file.
        device: where to compute.
        threads: not used: torch's own setting counts.

    Raises:
        CheckpointError: the file is no program of ours.
    """
    content = path.read_bytes()
    try:
        _require_plain(content)
    except (zipfile.BadZipFile, KeyError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"this is no program that is safe to load: {error}",
            where=str(path),
            fix="use a file as `detronome export --to torch` writes it",
        ) from error
    with quiet_export():
        try:
            program = torch.export.load(io.BytesIO(content))
            if device.type != "cpu":
                from torch.export.passes import move_to_device_pass

                program = move_to_device_pass(program, device)
            module = program.module()
        except Exception as error:  # torch has no one kind of error for this
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise CheckpointError(
                f"torch {torch.__version__} cannot load the program: {reason}",
                where=str(path),
                fix="export the model again with the version of torch installed here",
            ) from error

    def run(images: Tensor, padding_mask: Tensor) -> tuple[Tensor, ...]:
        return tuple(module(images, padding_mask))

    return run


_MEMBERS = re.compile(
    r"\.data/(serialization_id|version)|archive_format|archive_version|byteorder|models/model\.json"
    r"|data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)"
    r"|data/sample_inputs/model\.pt"
)
_TARGETS = re.compile(r"torch\.ops\.(aten|prims|higher_order)\.\w+(\.\w+)?|_operator\.\w+|math\.\w+|torch\.sym_\w+")
_FUNCTIONS = frozenset(
    {
        "Add",
        "CeilDiv",
        "CeilToInt",
        "CleanDiv",
        "FloorDiv",
        "FloorToInt",
        "Integer",
        "Max",
        "Min",
        "Mod",
        "Mul",
        "Pow",
        "PythonMod",
    }
)
"""Of torch's arithmetic with sizes."""
_SIZE = re.compile(r"[a-z]{1,3}\d+")
"""The name of a size in the program."""


def _require_plain(content: bytes) -> None:
    """Raise ValueError if an archive holds anything but tensors, calls of torch's operators and arithmetic."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = archive.namelist()
        if len(set(names)) < len(names):
            raise ValueError("a part is there twice")
        parts = {name.partition("/")[2]: name for name in names}
        if len(parts) < len(names):
            raise ValueError("it has parts in several folders")
        for part in parts:
            if not _MEMBERS.fullmatch(part):
                raise ValueError(f"it holds {part!r}")
        for part, name in parts.items():
            if part.endswith("_config.json"):
                _require_tensors(json.loads(archive.read(name)))
            if part == "data/sample_inputs/model.pt" and archive.getinfo(name).file_size:
                raise ValueError("it holds pickles")
        _require_arithmetic(json.loads(archive.read(parts["models/model.json"])))


def _require_tensors(config: Any) -> None:
    for entry in config["config"].values():
        if entry.get("use_pickle") or not re.fullmatch(r"(weight|tensor)_\d+", entry["path_name"]):
            raise ValueError("it holds pickles")


def _require_arithmetic(model: Any) -> None:
    for key, value in _entries(model):
        if key == "target" and isinstance(value, str) and not _TARGETS.fullmatch(value):
            raise ValueError(f"it calls {value!r}")
        if key == "guards_code" and value:
            raise ValueError("it holds code")
        if key == "expr_str":
            _require_expression(value)
        if key == "range_constraints":
            for name in value:
                _require_expression(name)


def _entries(record: Any) -> Iterator[tuple[str, Any]]:
    """Yield every key of every object in a JSON document, with its value."""
    waiting = [record]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield from value.items()
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


def _require_expression(text: Any) -> None:
    """Raise ValueError unless a text is arithmetic with whole numbers and sizes: torch evaluates it as Python."""
    try:
        is_plain = _is_arithmetic(ast.parse(text, mode="eval").body)
    except (SyntaxError, TypeError):
        is_plain = False
    if not is_plain:
        raise ValueError(f"{str(text)[:80]!r} is no size")


def _is_arithmetic(node: ast.expr) -> bool:
    if isinstance(node, ast.Constant):
        return type(node.value) in (int, float)
    if isinstance(node, ast.Name):
        return _SIZE.fullmatch(node.id) is not None
    if isinstance(node, ast.UnaryOp):
        return _is_arithmetic(node.operand)
    if isinstance(node, ast.BinOp):
        return _is_arithmetic(node.left) and _is_arithmetic(node.right)
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        return False
    if node.func.id == "Symbol":
        (name,) = node.args
        is_size = isinstance(name, ast.Constant) and isinstance(name.value, str) and _SIZE.fullmatch(name.value)
        return bool(is_size) and all(isinstance(keyword.value, ast.Constant) for keyword in node.keywords)
    return node.func.id in _FUNCTIONS and not node.keywords and all(_is_arithmetic(x) for x in node.args)

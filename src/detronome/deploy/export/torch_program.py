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

from detronome.deploy.export.graph import nodes_of, quiet_export
from detronome.deploy.export.reasons import reason_of
from detronome.deploy.export.session import Session
from detronome.errors import CheckpointError

__all__ = ["open_torch_program", "write_torch_program"]


def write_torch_program(program: ExportedProgram, path: Path) -> None:
    """Write a graph as torch's .pt2, without the example that it was traced with, without notes on where each operation
    came from, and without the checks of sizes that were assumed: those are Python code. The self-check runs the program
    with many sizes instead."""
    program.example_inputs = None
    program._guards_code = []
    for node in nodes_of(program):
        for note in ("nn_module_stack", "torch_fn", "source_fn_stack", "from_node", "custom"):
            node.meta.pop(note, None)
    with quiet_export():
        warnings.filterwarnings("ignore", "No complete tensor found in the group")  # it then keeps all of its memory
        content = io.BytesIO()  # where the disk is full, torch's own writer ends the process
        torch.export.save(program, content)
    path.write_bytes(content.getbuffer())


def open_torch_program(path: Path, *, device: torch.device) -> Session:
    """Return a session of torch.

    torch itself would unpickle what such a file holds, import what it names, and run Python that is put together from
    its texts. So a file is refused that holds more than tensors, calls of torch's operators with plain arguments, names
    without any other sign, and sizes that are arithmetic.

    Args:
        path: the file.
        device: where to compute.

    Raises:
        CheckpointError: the file is no program of ours.
    """
    content = path.read_bytes()
    try:
        plain = _plain_copy(content)
    except Exception as error:  # whatever is made of a zip or of JSON
        raise CheckpointError(
            f"this is no program that is safe to load: {error or type(error).__name__}",
            where=str(path),
            fix="use a file as `detronome export --to torch` writes it",
        ) from error
    with quiet_export():
        try:
            program = torch.export.load(plain)
            if device.type != "cpu":
                from torch.export.passes import move_to_device_pass

                program = move_to_device_pass(program, device)
            module = program.module()
        except Exception as error:  # torch has no one kind of error for this
            raise CheckpointError(
                f"torch {torch.__version__} cannot load the program: {reason_of(error)}",
                where=str(path),
                fix="export the model again with the version of torch installed here",
            ) from error

    def run(images: Tensor, padding_mask: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast(images.device.type, enabled=False):  # the graph has its own precision
            return tuple(module(images, padding_mask))

    return run


_MEMBERS = re.compile(
    r"\.data/(serialization_id|version)|archive_format|archive_version|byteorder|models/model\.json"
    r"|data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)"
    r"|data/sample_inputs/model\.pt"
)
_TARGETS = re.compile(
    r"torch\.ops\.(aten|prims)\.\w+(\.\w+)?|torch\.ops\.higher_order\.wrap_with_(autocast|set_grad_enabled)"
    r"|_operator\.\w+|math\.\w+|torch\.sym_\w+"
)
_ARGUMENTS = frozenset(
    {
        *("as_none", "as_name", "as_expr", "as_string", "as_graph", "as_device", "as_layout"),
        *("as_memory_format", "as_scalar_type", "as_tensor", "as_tensors", "as_optional_tensor", "as_optional_tensors"),
        *("as_int", "as_ints", "as_float", "as_floats", "as_bool", "as_bools"),
        *("as_sym_int", "as_sym_ints", "as_sym_float", "as_sym_floats", "as_sym_bool", "as_sym_bools"),
    }
)
"""What an operator may be given: neither functions nor objects."""
_WORDS = frozenset(
    {"cpu", "cuda", "none", "tanh", "floor", "trunc", "constant", "reflect", "replicate", "circular", "ij", "xy"}
)
"""Texts that an operator may be given. Not those of `aten.from_file`, which maps any file and writes to it."""
_NAME = re.compile(r"[\w.+-]*", re.ASCII)
"""What names, versions and infinity are made of: torch writes names into Python code and runs it. Nothing is called by
these signs."""
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


def _plain_copy(content: bytes) -> io.BytesIO:
    """Return an archive written anew from the parts of another, so that torch reads what was looked at: two readers may
    find different parts in one file. Raise an error if it holds anything but tensors, operators and arithmetic."""
    copy = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(copy, "w") as plain:
        members = archive.infolist()
        parts = [member.filename.partition("/")[2] for member in members]
        if len({member.filename for member in members}) < len(members):
            raise ValueError("a part is there twice")
        if len(set(parts)) < len(parts):
            raise ValueError("it has parts in several folders")
        is_packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
        if is_packed or sum(member.file_size for member in members) > len(content):
            raise ValueError("its parts are compressed or overlap")
        if "models/model.json" not in parts:
            raise ValueError("it holds no graph")
        for part, member in zip(parts, members, strict=True):
            if not _MEMBERS.fullmatch(part):
                raise ValueError(f"it holds {part!r}")
            value = archive.read(member)
            if part == "data/sample_inputs/model.pt" and value:
                raise ValueError("it holds pickles")
            if part.endswith(".json"):
                record = json.loads(value.decode())
                _require_plain(record)
                if part.endswith("_config.json"):
                    _require_tensors(record)
            plain.writestr(f"model/{part}", value)
    copy.seek(0)
    return copy


def _require_tensors(config: Any) -> None:
    for entry in config["config"].values():
        if entry.get("use_pickle") or not re.fullmatch(r"(weight|tensor)_\d+", entry["path_name"]):
            raise ValueError("it holds pickles")


def _require_plain(record: Any) -> None:
    """Raise ValueError if a part of a program has texts that are more than names, operators and arithmetic."""
    for key, value in _entries(record):
        if key.startswith("as_") and key not in _ARGUMENTS:
            raise ValueError(f"it gives an operator what is no plain value: {key}")
        if key in ("guards_code", "metadata", "treespec_namedtuple_fields") and value:
            raise ValueError("it holds code")
        if not _NAME.fullmatch(key):
            _require_expression(key)  # a size and its range
        if not isinstance(value, str):
            continue
        if key == "expr_str":
            _require_expression(value)
        elif key in ("in_spec", "out_spec"):
            _require_structure(value)
        elif key == "target" and not _TARGETS.fullmatch(value):
            raise ValueError(f"it calls {value!r}")
        elif key == "as_string" and value not in _WORDS:
            raise ValueError(f"it gives an operator the text {value[:80]!r}")
        elif not _NAME.fullmatch(value):
            raise ValueError(f"{value[:80]!r} is no name")


def _require_structure(text: str) -> None:
    """Raise ValueError unless a text says how tensors lie in tuples and dicts; torch imports what else it names."""
    for key, value in _entries(json.loads(text)):
        is_plain = {
            "": not isinstance(value, str),
            "type": value in (None, "builtins.tuple", "builtins.list", "builtins.dict"),
            "context": value in (None, "null", "[]"),
            "children_spec": not isinstance(value, str),
        }
        if not is_plain.get(key):
            raise ValueError(f"its inputs or outputs lie in {str(value)[:80]!r}")


def _entries(record: Any) -> Iterator[tuple[str, Any]]:
    """Yield every value in a JSON document with its key; what lies in lists, with that of the list."""
    waiting = [("", record)]
    while waiting:
        key, value = waiting.pop()
        yield key, value
        if isinstance(value, dict):
            waiting.extend(value.items())
        elif isinstance(value, list):
            waiting.extend((key, item) for item in value)


def _require_expression(text: str) -> None:
    """Raise ValueError unless a text is arithmetic with whole numbers and sizes: torch evaluates it as Python."""
    try:
        is_plain = _is_arithmetic(ast.parse(text, mode="eval").body)
    except SyntaxError:
        is_plain = False
    if not is_plain:
        raise ValueError(f"{text[:80]!r} is no size")


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

"""Reading files of `torch.save` without running anything that is in them.

torch's weights-only reader builds tensors, containers and `argparse.Namespace` (the official DETR files keep one beside
the weights), and nothing else. Before it is let at a file, the file's form is looked at: parts that are compressed (a
small file could unpack to any size), and the names that its pickles would call, which also tells what was in it.
"""

from __future__ import annotations

import argparse
import io
import mmap
import pickletools
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from detronome.errors import CheckpointError, first_few

__all__ = ["LEGACY_MAGIC", "ZIP_MAGIC", "read_torch_file"]

ZIP_MAGIC = b"PK\x03\x04"
LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""The pickled number that begins files of torch before 1.6, the official DETR files among them."""

_NUM_LEGACY_PICKLES = 5
"""Magic number, protocol, facts about the system, the object, the storages' keys."""
_MAX_PICKLE_BYTES = 2**26
_MAX_TUPLE_PARTS = 1000
"""Of a tuple, those of the tuples in it too: a key is hashed whole, and a few references make it endless."""
_SAFE_NAMES = frozenset(
    {
        "argparse Namespace",
        "collections OrderedDict",
        "collections defaultdict",
        "torch Size",
        "torch device",
        "torch._utils _rebuild_parameter",
        "torch._utils _rebuild_tensor",
        "torch._utils _rebuild_tensor_v2",
        "torch.nn.parameter Parameter",
        "torch.serialization _get_layout",
    }
)
_CALLING_OPCODES = frozenset({"INST", "OBJ", "NEWOBJ_EX", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4", "PERSID"})
"""What names things otherwise than by `GLOBAL`; torch writes none of them."""
_FIX = "get the file again from where it came; or give the weights alone, as .safetensors"


def read_torch_file(path: Path) -> Any:
    """Return what a file of `torch.save` holds: tensors on the CPU, containers and plain values.

    Raises:
        CheckpointError: the file is damaged, or would build anything else.
    """
    try:
        with path.open("rb") as file:
            is_zip = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC
        _check_zip(path) if is_zip else _check_legacy(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # whatever damage makes of a pickle
        raise _damaged(path, error) from error


def _check_zip(path: Path) -> None:
    """Refuse what torch does not write: compressed or repeated parts, code, a pickle that names other things."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        names = [member.filename for member in members]
        if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
            raise CheckpointError(
                "this is a TorchScript program, not a file of weights",
                where=str(path),
                fix="give the state dict of the model that it was made from",
            )
        packed = [member.filename for member in members if member.compress_type != zipfile.ZIP_STORED]
        total_bytes = sum(member.file_size for member in members)
        if packed or total_bytes > path.stat().st_size or len(set(names)) < len(names):
            raise CheckpointError(
                f"the parts of the file are compressed or overlap, and would fill {total_bytes:,} bytes or more",
                where=str(path),
                fix=f"torch.save writes no such file: {_FIX}",
            )
        pickles = [member for member in members if member.filename.endswith("/data.pkl")]
        if len(pickles) != 1 or pickles[0].file_size > _MAX_PICKLE_BYTES:
            raise CheckpointError(
                "a zip file, but not one of torch.save", where=str(path), fix="name the .pth file with the weights"
            )
        _check_pickles(io.BytesIO(archive.read(pickles[0])), 1, path)
        damaged = archive.testzip()  # torch does not compare the sums that it writes
        if damaged is not None:
            raise CheckpointError(
                f"the file is damaged: its part {_shown(damaged)} does not have the sum that it was written with",
                where=str(path),
                fix=_FIX,
            )


def _check_legacy(path: Path) -> None:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        _check_pickles(content, _NUM_LEGACY_PICKLES, path)


def _check_pickles(stream: io.BytesIO | mmap.mmap, num_pickles: int, path: Path) -> None:
    """Walk through pickles without building anything, and refuse names that have no place among weights."""
    strange: dict[str, None] = {}
    for _ in range(num_pickles):
        tuples = _Tuples()
        for opcode, argument, _ in pickletools.genops(stream):  # type: ignore[arg-type]  # it reads alike
            if tuples.parts_after(opcode, argument) > _MAX_TUPLE_PARTS:
                strange["tuples within tuples without end"] = None
                break
            if opcode.name == "GLOBAL" and not _is_safe(str(argument)):
                strange[str(argument).replace(" ", ".", 1)] = None
            elif opcode.name in _CALLING_OPCODES:
                strange[f"the instruction {opcode.name}"] = None
    if strange:
        raise CheckpointError(
            f"the file asks to run or build what is no weight: {first_few([_shown(name) for name in strange])}; "
            "nothing of it was run",
            where=str(path),
            fix="do not trust the file unless you know why; where you do, save its weights alone: "
            "torch.save(model.state_dict(), FILE)",
        )


class _Tuples:
    """The unpickler's stack and memory, of which only the number of parts of each value is kept; None is a mark."""

    def __init__(self) -> None:
        self._stack: list[int | None] = []
        self._memory: dict[object, int | None] = {}

    def parts_after(self, opcode: pickletools.OpcodeInfo, argument: object) -> int:
        """Follow an instruction, and return how many parts the value that it leaves has."""
        if "GET" in opcode.name:
            self._stack.append(self._memory.get(argument, 1))
        elif "PUT" in opcode.name:
            self._memory[argument] = self._stack[-1]
        else:
            parts = self._taken(opcode.stack_before)
            left = 1 + sum(parts) if "TUPLE" in opcode.name else 1
            self._stack += [None if kind is pickletools.markobject else left for kind in opcode.stack_after]
        return (self._stack[-1] if self._stack else None) or 0

    def _taken(self, kinds: Sequence[pickletools.StackObject]) -> list[int]:
        parts = []
        for kind in reversed(kinds):
            if kind is pickletools.stackslice:
                while (top := self._stack[-1]) is not None:
                    parts.append(top)
                    self._stack.pop()
            else:
                parts.append(self._stack.pop() or 0)
        return parts


def _is_safe(name: str) -> bool:
    module, _, attribute = name.partition(" ")
    is_storage = module in ("torch", "torch.storage") and attribute.isidentifier() and attribute.endswith("Storage")
    return name in _SAFE_NAMES or is_storage or (module == "torch" and _is_dtype(attribute))


def _is_dtype(name: str) -> bool:
    return name.isidentifier() and isinstance(getattr(torch, name, None), torch.dtype)


def _shown(name: str) -> str:
    """Return a name from a file that may hold anything, short and printable."""
    return ascii(name)[1:-1][:80]


def _damaged(path: Path, error: Exception) -> CheckpointError:
    if isinstance(error, OSError) and not isinstance(error, struct.error) and error.errno is not None:
        return CheckpointError(f"cannot be read: {error.strerror}", where=str(path), fix="check the path and the disk")
    reason = _shown(str(error).partition("\n")[0].partition(". ")[0]) or type(error).__name__
    return CheckpointError(f"the file is damaged, or no file of torch.save: {reason}", where=str(path), fix=_FIX)

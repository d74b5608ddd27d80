"""One file of weights, whatever wrote it: its tensors, and what stands beside them."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from detronome.errors import CheckpointError, Problem, first_few
from detronome.weights.torch_file import LEGACY_MAGIC, ZIP_MAGIC, read_torch_file

__all__ = ["WeightFile", "read_weight_file"]

_PARTS = (("ema", "module"), ("ema",), ("model",), ("state_dict",), ())
"""Where programs put the weights, the preferred first: published results are those of the average."""
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_SAFETENSORS_LENGTH_BYTES = 8
_MAX_SHARED = 4
"""Times the file's size that its tensors may have together: some programs write the same values under two names."""


@dataclass(frozen=True, kw_only=True)
class WeightFile:
    """What a file holds."""

    tensors: dict[str, Tensor]
    """On the CPU, not larger than the file, values not looked at."""
    part: str = ""
    """Where in the file they were, e.g. `ema.module`; empty where there is nothing else."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """With what the program was called that trained them, where the file says so."""


def read_weight_file(path: Path) -> WeightFile:
    """Read a file of `torch.save` or in safetensors' layout; the content tells which, not the name.

    Raises:
        CheckpointError: it is missing, damaged, holds no weights, or would run code.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(LEGACY_MAGIC))
    except OSError as error:
        raise CheckpointError(
            f"cannot be read: {error.strerror or error}", where=str(path), fix="check the path"
        ) from error
    if start.startswith(ZIP_MAGIC) or start == LEGACY_MAGIC:
        found = _from_torch(read_torch_file(path), path)
    elif start[_SAFETENSORS_LENGTH_BYTES : _SAFETENSORS_LENGTH_BYTES + 1] == b"{":
        found = WeightFile(tensors=_read_safetensors(path))
    else:
        raise CheckpointError(_what_it_is(start), where=str(path), fix="name a .pth or .safetensors file with weights")
    _check_tensors(found.tensors, path)
    return found


def _what_it_is(start: bytes) -> str:
    if not start:
        return "the file is empty"
    if start.startswith((b"version https://git-lfs", b"version htt")):
        return "the file is a pointer of git-lfs: the weights themselves were not fetched (`git lfs pull`)"
    if start.lstrip()[:1] == b"<":
        return "the file is a web page, not weights: the download brought an error or a login"
    return "the file is no checkpoint: neither of torch.save nor of safetensors"


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError, MemoryError) as error:
        reason = ascii(str(error))[1:-1][:160]
        raise CheckpointError(
            f"the file is damaged, or no safetensors file: {reason}",
            where=str(path),
            fix="get the file again from where it came",
        ) from error


def _from_torch(content: Any, path: Path) -> WeightFile:
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"the file holds a {type(content).__name__}, not a state dict",
            where=str(path),
            fix="save the weights: torch.save(model.state_dict(), FILE)",
        )
    for keys in _PARTS:
        part: Any = content
        for key in keys:
            part = part.get(key) if isinstance(part, Mapping) else None
        if isinstance(part, Mapping) and part and all(isinstance(value, Tensor) for value in part.values()):
            return WeightFile(tensors=dict(part), part=".".join(keys), arguments=_arguments(content.get("args")))
    names = first_few([ascii(key)[:40] for key in content]) or "nothing"
    raise CheckpointError(
        f"the file holds no weights where they usually are; it has {names}",
        where=str(path),
        fix="save the state dict alone, or under the key `model`",
    )


def _arguments(namespace: object) -> dict[str, Any]:
    """Return plain values by name; what is none of these is of no use here."""
    if not isinstance(namespace, argparse.Namespace):
        return {}
    return {key: value for key, value in vars(namespace).items() if isinstance(value, bool | int | float | str)}


def _check_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors that are no plain arrays of numbers, or claim more than the file holds."""
    if not tensors:
        raise CheckpointError("the file holds no tensor", where=str(path), fix="name a file with weights")
    file_bytes = path.stat().st_size
    odd = [ascii(key)[:80] for key, tensor in tensors.items() if not isinstance(key, str) or not _is_plain(tensor)]
    huge = [key for key, tensor in tensors.items() if isinstance(key, str) and _is_plain(tensor)]
    huge = [key for key in huge if _claims_more(tensors[key], file_bytes)]
    problems = [
        Problem(what=f"{len(names):,} of its tensors {what}: {first_few(names)}", where=str(path), fix=fix)
        for names, what, fix in (
            (odd, "are not plain numbers under a name", "save dense floating-point weights"),
            (huge, "claim more values than the file holds", "get the file again from where it came"),
        )
        if names
    ]
    total_bytes = sum(tensor.nbytes for tensor in tensors.values()) if not problems else 0
    if total_bytes > _MAX_SHARED * file_bytes:
        problems.append(
            Problem(
                what=f"its tensors share values, and would fill {total_bytes:,} bytes; the file has {file_bytes:,}",
                where=str(path),
                fix="do not trust the file; get it again from where it came",
            )
        )
    if problems:
        raise CheckpointError(problems)


def _is_plain(tensor: Tensor) -> bool:
    is_dense = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    return is_dense and (tensor.dtype in _FLOATS or not (tensor.is_floating_point() or tensor.is_complex()))


def _claims_more(tensor: Tensor, file_bytes: int) -> bool:
    """Return whether values, or the sides of a tensor without values, are more than there can be."""
    sides = math.prod(max(side, 1) for side in tensor.shape)
    return tensor.nbytes > tensor.untyped_storage().nbytes() or sides * tensor.element_size() > file_bytes

"""Tensor files in the safetensors layout, written piece by piece and hashed on the way.

safetensors' own writer would leave the hash to a second reading of the file. Here the hash is that of the values in
memory, so that what the disk changed while writing is found on loading too, and other threads run meanwhile.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from detronome.runtime.descriptors import BINARY

__all__ = ["FileRecord", "write_hashed", "write_tensors"]

_PIECE_BYTES = 2**23
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class FileRecord:
    """What a file must be when it is read."""

    bytes: int
    sha256: str


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> FileRecord:
    """Write host tensors into a new file, flushed to disk.

    Raises:
        OSError: the disk refuses; a part of the file may be there.
    """
    # Widest type first, as safetensors orders them: every tensor then begins at a multiple of its item size.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    return write_hashed(path, _pieces(ordered))


def write_hashed(path: Path, pieces: Iterable[bytes | memoryview]) -> FileRecord:
    """Write bytes into a new file, flushed to disk.

    Raises:
        OSError: the disk refuses; a part of the file may be there.
    """
    digest = hashlib.sha256()
    num_bytes = 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | BINARY, 0o644)
    try:
        for piece in pieces:
            _write_all(descriptor, memoryview(piece))
            digest.update(piece)
            num_bytes += len(piece)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return FileRecord(num_bytes, digest.hexdigest())


def _pieces(tensors: list[tuple[str, Tensor]]) -> Iterator[bytes | memoryview]:
    yield _header(tensors)
    for _, tensor in tensors:
        content = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
        for start in range(0, len(content), _PIECE_BYTES):
            yield content[start : start + _PIECE_BYTES]


def _header(tensors: list[tuple[str, Tensor]]) -> bytes:
    entries = {}
    end = 0
    for name, tensor in tensors:
        begin, end = end, end + tensor.numel() * tensor.element_size()
        entries[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_all(descriptor: int, content: memoryview) -> None:
    while content:
        content = content[os.write(descriptor, content) :]

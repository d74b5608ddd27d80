"""What torch and torchvision do when they are called. The first probe imports torch for all that follow."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from detronome.doctor.findings import Facts

__all__ = ["devices", "import_torch", "nms", "numpy_round_trip", "ranks", "worker_tensor"]

_RANKS = 2
_RANKS_LIMIT_S = 10.0
_WORKER_LIMIT_S = 5.0
_NUM_VALUES = 2**18
"""1 MiB of float32."""


def import_torch() -> Facts:
    """Import torch, and ask it what it was built with."""
    begin = time.monotonic()
    import torch

    return {
        "version": torch.__version__,
        "path": torch.__file__,
        "cuda": torch.version.cuda,
        "hip": getattr(torch.version, "hip", None),
        "threads": torch.get_num_threads(),
        "seconds": time.monotonic() - begin,
    }


def numpy_round_trip() -> Facts:
    """Take an array into torch and back."""
    import numpy as np
    import torch

    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    back = (torch.from_numpy(values) * 2).numpy()
    if back.tolist() != [[0.0, 2.0, 4.0], [6.0, 8.0, 10.0]]:
        raise ValueError(f"torch.from_numpy gave other numbers: {back.tolist()}")
    return {"numpy": np.__version__, "path": np.__file__}


def nms() -> Facts:
    """Call an operator of torchvision's own binary."""
    import torch
    import torchvision
    from torchvision.ops import nms

    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [1.0, 1.0, 10.0, 10.0], [20.0, 20.0, 30.0, 30.0]])
    kept = nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist()
    if kept != [0, 2]:
        raise ValueError(f"torchvision.ops.nms gave {kept} instead of [0, 2]")
    return {"version": torchvision.__version__, "path": torchvision.__file__}


def ranks() -> Facts:
    """Let two processes sum a tensor, over NCCL where there are two GPUs, else over gloo."""
    if not _can_fork():
        return {"is_skipped": True}
    import torch

    distributed = torch.distributed
    if not distributed.is_available():
        return {"is_available": False}
    num_gpus = torch.cuda.device_count() if torch.version.cuda else 0  # asks the driver, and starts no CUDA
    backend = "nccl" if num_gpus >= _RANKS and distributed.is_nccl_available() else "gloo"
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("fork")  # the children have torch already
        pipes = [context.Pipe(duplex=False) for _ in range(_RANKS)]
        processes = [
            context.Process(target=_rank, args=(rank, backend, folder, pipe[1]), daemon=True)
            for rank, pipe in enumerate(pipes)
        ]
        for process in processes:
            process.start()
        told = [_receive(pipe[0], begin + _RANKS_LIMIT_S + 1 - time.monotonic()) for pipe in pipes]
        for process in processes:
            process.kill()
            process.join()
    failed = [text for text in told if text]
    if failed:
        raise RuntimeError(f"{_RANKS} ranks over {backend} did not agree on a sum\n" + "\n".join(failed))
    nccl = torch.cuda.nccl.version() if backend == "nccl" else None
    return {
        "is_available": True,
        "backend": backend,
        "nccl": ".".join(map(str, nccl)) if nccl else None,
        "seconds": time.monotonic() - begin,
    }


def _can_fork() -> bool:
    """Return whether a child can have torch without importing it again; on macOS its libraries do not bear a fork."""
    return sys.platform == "linux" and "fork" in multiprocessing.get_all_start_methods()


def _rank(rank: int, backend: str, folder: str, pipe: Connection) -> None:
    from datetime import timedelta

    import torch
    import torch.distributed as distributed

    try:
        device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
        if backend == "nccl":
            torch.cuda.set_device(device)
        distributed.init_process_group(
            backend,
            init_method=f"file://{Path(folder) / 'meeting'}",
            rank=rank,
            world_size=_RANKS,
            timeout=timedelta(seconds=_RANKS_LIMIT_S),
        )
        values = torch.full((_NUM_VALUES,), float(rank + 1), device=device)
        distributed.all_reduce(values)
        if values.sum().item() != 3.0 * _NUM_VALUES:
            raise ValueError(f"the sum is {values[0].item()} instead of 3")
        pipe.send("")
    except BaseException:
        pipe.send(traceback.format_exc())
    os._exit(0)


def _receive(pipe: Connection, limit_s: float) -> str:
    """Return what a process sent; a sentence where it sent nothing in time."""
    try:
        return str(pipe.recv()) if pipe.poll(max(0.0, limit_s)) else f"no answer within {_RANKS_LIMIT_S:.0f} s"
    except EOFError:
        return "a rank died without a word"


def worker_tensor() -> Facts:
    """Get a tensor from a worker process, as a loader does: through shared memory."""
    if not _can_fork():
        return {"is_skipped": True}
    import torch.multiprocessing as torch_multiprocessing

    begin = time.monotonic()
    context: Any = torch_multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)
    # The worker lives until the tensor has been read: it serves the file descriptor.
    is_read = context.Event()
    process = context.Process(target=_send_tensor, args=(writer, is_read), daemon=True)
    process.start()
    writer.close()  # so that the end of the worker is the end of the pipe
    values = _receive_tensor(reader, process)
    if isinstance(values, str):
        raise RuntimeError(values)
    total = values.sum().item()
    is_read.set()
    process.join(timeout=5)
    if total != _NUM_VALUES:
        raise ValueError(f"a worker's tensor arrived changed: its sum is {total}")
    return {"strategy": torch_multiprocessing.get_sharing_strategy(), "seconds": time.monotonic() - begin}


def _receive_tensor(reader: Connection, process: Any) -> Any:
    """Return the tensor that a worker sends; a sentence where it sends none."""
    if not reader.poll(_WORKER_LIMIT_S):
        process.kill()
        return f"no answer from the worker within {_WORKER_LIMIT_S:.0f} s"
    try:
        return reader.recv()
    except EOFError:
        process.join(timeout=1)
        code = process.exitcode
        if code is None or code >= 0:
            return f"the worker ended with exit code {code}"
        return f"the worker was ended by {signal.Signals(-code).name}"


def _send_tensor(writer: Connection, is_read: Any) -> None:
    import torch

    try:
        writer.send(torch.ones(_NUM_VALUES))
    except BaseException:
        writer.send(traceback.format_exc())
    is_read.wait(timeout=_WORKER_LIMIT_S)


def devices() -> Facts:
    """Ask CUDA for its devices and compute on each of them. The last one: it starts CUDA in this process."""
    import torch

    if not torch.version.cuda and not getattr(torch.version, "hip", None):
        return {"is_available": False, "devices": []}
    if not torch.cuda.is_available():
        return {"is_available": False, "devices": [], "reason": _why_not()}
    found = []
    for index in range(torch.cuda.device_count()):
        ones = torch.ones(64, 64, device=f"cuda:{index}")
        if (ones @ ones).sum().item() != 64.0**3:
            raise ValueError(f"GPU {index} computes wrong numbers")
        free, total = torch.cuda.mem_get_info(index)
        major, minor = torch.cuda.get_device_capability(index)
        found.append(
            {
                "name": torch.cuda.get_device_name(index),
                "capability": f"sm_{major}{minor}",
                "free_bytes": free,
                "total_bytes": total,
            }
        )
    return {"is_available": True, "devices": found, "built_for": torch.cuda.get_arch_list()}


def _why_not() -> str:
    """Return the words with which CUDA refuses to start."""
    import torch

    try:
        torch.cuda.init()
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return ""

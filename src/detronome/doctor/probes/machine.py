"""What the machine and its container grant: processors, memory, shared memory, files, disks, a compiler."""

from __future__ import annotations

import multiprocessing
import os
import platform
import shutil
import sys
import sysconfig
import tempfile
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from detronome.doctor.findings import Facts

__all__ = ["compiler", "disks", "memory", "open_files", "processors", "shared_memory", "start_methods"]

_BLOCK_BYTES = 2**20
_FILE_BLOCKS = 16
"""MiB of the file that is written to measure a disk."""


def processors() -> Facts:
    """Processors as they are and as they may be used."""
    from detronome.runtime.processors import usable_cpus

    facts: Facts = {
        "machine": platform.machine(),
        "present": os.cpu_count() or 1,
        "bound": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "usable": usable_cpus(),
        "omp_threads": os.environ.get("OMP_NUM_THREADS", ""),
    }
    with suppress(OSError):
        text = Path("/proc/cpuinfo").read_text()
        entries = {
            key.strip(): value.strip()
            for key, _, value in (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
        }
        facts |= {"name": entries.get("model name", ""), "flags": entries.get("flags", "").split()}
    return facts


def memory() -> Facts:
    """Main memory within the limits of the control groups."""
    from detronome.runtime.host_memory import host_memory

    found = host_memory()
    return {"total_bytes": found.total_bytes, "available_bytes": found.available_bytes}


def shared_memory() -> Facts:
    """Room in /dev/shm, and a semaphore."""
    multiprocessing.Lock()  # fails where /dev/shm cannot be written
    if not Path("/dev/shm").is_dir():
        return {"is_there": False}
    usage = os.statvfs("/dev/shm")
    return {
        "is_there": True,
        "total_bytes": usage.f_blocks * usage.f_frsize,
        "free_bytes": usage.f_bavail * usage.f_frsize,
    }


def open_files() -> Facts:
    """How many files a process may hold open."""
    if sys.platform == "win32":
        return {"soft": None, "hard": None}
    else:
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        unlimited = resource.RLIM_INFINITY
        return {"soft": None if soft == unlimited else soft, "hard": None if hard == unlimited else hard}


def start_methods() -> Facts:
    """Start a process by the method that is usual here, and by spawn."""
    seconds = {}
    for method in dict.fromkeys((multiprocessing.get_start_method(), "spawn")):
        begin = time.monotonic()
        context: Any = multiprocessing.get_context(method)
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_say_hello, args=(sender,), daemon=True)
        process.start()
        sender.close()
        if not receiver.poll(20) or receiver.recv() != "hello":
            raise RuntimeError(f"a process started by {method} said nothing")
        process.join(timeout=5)
        seconds[method] = time.monotonic() - begin
    return {"default": multiprocessing.get_start_method(), "seconds": seconds}


def _say_hello(sender: Connection) -> None:
    sender.send("hello")


def compiler() -> Facts:
    """Compilers and Python's headers, which torch.compile needs."""
    names = [name for name in (os.environ.get("CXX"), "c++", "g++", "clang++", "cl") if name]
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    return {
        "compiler": next((path for name in names if (path := shutil.which(name))), ""),
        "headers": str(headers) if headers.is_file() else "",
    }


def disks() -> Facts:
    """Write, flush, rename and read a file where runs and the cache lie."""
    from detronome.data.store.cache_folder import cache_roots

    places = {"cache": cache_roots()[0]}
    with suppress(FileNotFoundError):  # it was removed
        places = {"working folder": Path.cwd(), **places}
    return {"disks": [{"use": use, **_disk(path)} for use, path in places.items()]}


def _disk(wanted: Path) -> Facts:
    folder = wanted
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent  # the folder is made when it is needed
    facts: Facts = {"folder": str(wanted), "file_system": _file_system(folder)}
    try:
        usage = shutil.disk_usage(folder)
        facts |= {"free_bytes": usage.free, "total_bytes": usage.total}
        with tempfile.TemporaryDirectory(prefix=".detronome-doctor-", dir=folder) as made:
            facts |= _write_test(Path(made))
    except OSError as error:
        facts |= {"error": f"{type(error).__name__}: {error.strerror or error}", "errno": error.errno}
    return facts


def _write_test(folder: Path) -> Facts:
    from detronome.runtime.descriptors import flush

    block = os.urandom(_BLOCK_BYTES)
    old, new = folder / "published", folder / "temporary"
    old.write_bytes(b"old")
    begin = time.monotonic()
    with new.open("wb") as file:
        for _ in range(_FILE_BLOCKS):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    write_s = time.monotonic() - begin
    os.replace(new, old)
    flush(folder)
    is_whole = old.read_bytes() == block * _FILE_BLOCKS
    return {"write_s": write_s, "write_bytes": _BLOCK_BYTES * _FILE_BLOCKS, "is_whole": is_whole, "locks": _locks(old)}


def _locks(path: Path) -> bool:
    """Return whether a file can be locked; runs hold one lock each."""
    from detronome.runtime.descriptors import lock

    with path.open("r+b") as file:
        try:
            lock(file.fileno())
        except OSError:
            return False
    return True


def _file_system(folder: Path) -> str:
    """Return the kind of file system that holds a folder, e.g. `ext4`, `nfs4` or `overlay`."""
    best, kind = "", ""
    with suppress(OSError, ValueError):
        real = str(folder.resolve())
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            before, _, after = line.partition(" - ")
            mounted = before.split()[4].replace("\\040", " ")
            if len(mounted) >= len(best) and (real + "/").startswith(mounted.rstrip("/") + "/"):
                best, kind = mounted, after.split()[0]
    return kind

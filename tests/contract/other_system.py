"""Makes `detronome` believe, in this process, that it runs on Windows or macOS; the libraries see what there is.

What such a system lacks is hidden from our own modules: parts of `os` and `signal`, modules, `/proc`. On "Windows"
files behave as there besides, for everybody: what is open or mapped can be neither renamed, replaced nor deleted,
`rename` replaces nothing, folders cannot be opened, and a symbolic link takes a right that users lack.

It simulates no more than this: no libraries, no paths with a drive and backslashes, no processes that are started.
"""

from __future__ import annotations

import builtins
import errno
import fcntl
import gc
import hashlib
import importlib
import json
import multiprocessing
import os
import pkgutil
import shutil
import signal
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Literal

import psutil

System = Literal["win32", "darwin"]

NOT_ON_MACOS = """
fdatasync memfd_create posix_fadvise posix_fallocate preadv pwritev sched_getaffinity sched_setaffinity pipe2 getresuid
getresgid setresuid setresgid O_TMPFILE O_DIRECT O_LARGEFILE O_NOATIME eventfd splice copy_file_range getxattr setxattr
"""
NOT_ON_WINDOWS = f"""
{NOT_ON_MACOS}
chown chroot confstr ctermid fchdir fchmod fchown fork forkpty fpathconf fstatvfs statvfs getegid geteuid getgid
getgrouplist getgroups getloadavg getpgid getpgrp getpriority getsid getuid initgroups killpg lchown lockf major minor
makedev mkfifo mknod nice openpty pathconf posix_spawn posix_spawnp pread pwrite readv writev register_at_fork
sched_yield sched_get_priority_max sendfile setegid seteuid setgid setgroups setpgid setpriority setregid setreuid
setsid setuid sync sysconf tcgetpgrp tcsetpgrp ttyname uname wait wait3 wait4 waitid WNOHANG WIFSIGNALED O_CLOEXEC
O_NOFOLLOW O_DIRECTORY O_NONBLOCK O_SYNC O_DSYNC O_NOCTTY F_LOCK F_TLOCK F_ULOCK environb getenvb
"""
SIGNALS_OF_WINDOWS = {"SIGABRT", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM"}
FUNCTIONS_OF_WINDOWS = {"signal", "getsignal", "default_int_handler", "raise_signal", "strsignal", "valid_signals"}
FUNCTIONS_OF_WINDOWS |= {"set_wakeup_fd", "Signals", "Handlers", "SIG_DFL", "SIG_IGN", "NSIG"}
HIDDEN_ON_WINDOWS = {
    "fcntl",
    "resource",
    "pwd",
    "grp",
    "termios",
    "tty",
    "pty",
    "posix",
    "syslog",
    "readline",
    "curses",
}
HIDDEN_ON_MACOS: set[str] = set()
O_BINARY = 1 << 30


class Overlay(ModuleType):
    """A module with some names hidden and others changed."""

    def __init__(self, original: ModuleType, hidden: Collection[str], changed: Mapping[str, Any]) -> None:
        super().__init__(original.__name__)
        self.__dict__.update({"_original": original, "_hidden": frozenset(hidden), "_changed": dict(changed)})

    def __getattr__(self, name: str) -> Any:
        if name in self._changed:
            return self._changed[name]
        if name in self._hidden:
            raise AttributeError(f"this system's {self.__name__} has no {name}", name=name)
        return getattr(self._original, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._original, name, value)


def import_all() -> list[str]:
    """Import every module of ours; return their names."""
    import detronome

    names = [module.name for module in pkgutil.walk_packages(detronome.__path__, "detronome.")]
    names = [name for name in names if not name.endswith("__main__")]
    for name in names:
        importlib.import_module(name)
    return names


def pretend(system: System) -> list[str]:
    """Import all our modules as on another system; return their names.

    They are imported twice: first as they are, so that all libraries are there.
    """
    names = import_all()
    for name in [name for name in sys.modules if name.partition(".")[0] == "detronome"]:
        del sys.modules[name]
    is_windows = system == "win32"
    multiprocessing.set_start_method("spawn")
    overlays: dict[str, ModuleType] = {"sys": Overlay(sys, (), {"platform": system})}
    if is_windows:
        overlays["os"] = Overlay(os, NOT_ON_WINDOWS.split(), _windows_files())
        known = SIGNALS_OF_WINDOWS | FUNCTIONS_OF_WINDOWS
        overlays["signal"] = Overlay(signal, {name for name in dir(signal) if name not in known and name[0] != "_"}, {})
        overlays["msvcrt"] = _msvcrt()
        overlays["psutil"] = Overlay(psutil, (), {"Process": _Process})
    else:
        overlays["os"] = Overlay(os, NOT_ON_MACOS.split(), {})
    hidden = HIDDEN_ON_WINDOWS if is_windows else HIDDEN_ON_MACOS
    _show_us(overlays, hidden)
    _hide_linux_files()
    assert import_all() == names
    return names


def _show_us(overlays: Mapping[str, ModuleType], hidden: Collection[str]) -> None:
    """Give our own modules, and no others, what another system has."""
    real = builtins.__import__

    def see(name: str, importing: Any = None, *others: Any, **named: Any) -> ModuleType:
        if importing is not None and str(importing.get("__name__")).partition(".")[0] == "detronome":
            if name in hidden:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            if name in overlays:
                return overlays[name]
        return real(name, importing, *others, **named)

    builtins.__import__ = see


def _hide_linux_files() -> None:
    """Let our own modules find neither /proc nor /sys."""

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" or not str(arguments[0]).startswith(("/proc", "/sys/", "/dev/shm")):
            return
        frame = sys._getframe(1)
        while frame is not None and _is_of_python(frame.f_code.co_filename):
            frame = frame.f_back
        if frame is not None and str(frame.f_globals.get("__name__")).partition(".")[0] == "detronome":
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(arguments[0]))

    sys.addaudithook(refuse)


def _is_of_python(file: str) -> bool:
    return "pathlib" in file or file.endswith("io.py") or file.startswith("<frozen")


class _Process(psutil.Process):
    """One that tells of its memory as on Windows."""

    def memory_info(self) -> Any:
        now = super().memory_info()
        return SimpleNamespace(rss=now.rss, vms=now.vms, peak_wset=now.rss)


def _msvcrt() -> ModuleType:
    module = ModuleType("msvcrt")
    module.LK_NBLCK, module.LK_UNLCK = 2, 0  # type: ignore[attr-defined]

    def locking(descriptor: int, mode: int, num_bytes: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_UN if mode == 0 else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PermissionError(errno.EACCES, "Permission denied") from None

    module.locking = locking  # type: ignore[attr-defined]
    return module


def _windows_files() -> dict[str, Any]:
    """Change how files behave for everybody; return what our own modules see besides."""
    _patch("rename", lambda call, a, b, **more: call(_closed(a), _absent(b), **more))
    _patch("replace", lambda call, a, b, **more: call(_closed(a), _closed(b), **more))
    for name in ("unlink", "remove", "rmdir"):
        _patch(name, lambda call, path, **more: call(_closed(path), **more))
    _patch("symlink", _refuse_link)
    _patch("fsync", _flush)
    opened = os.open

    def open_file(path: Any, flags: int, mode: int = 0o777) -> int:
        if Path(path).is_dir():
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, flags & ~O_BINARY, mode)

    # Python's own rmtree works through descriptors of folders where the system has them.
    shutil._use_fd_functions = False  # type: ignore[attr-defined]
    return {"O_BINARY": O_BINARY, "open": open_file, "name": "nt", "cpu_count": os.cpu_count}


def _patch(name: str, changed: Callable[..., Any]) -> None:
    call = getattr(os, name)
    setattr(os, name, lambda *arguments, **more: changed(call, *arguments, **more))


def _refuse_link(call: Callable[..., None], *_: Any, **__: Any) -> None:
    raise OSError(errno.EINVAL, "A required privilege is not held by the client")


def _flush(call: Callable[[int], None], descriptor: int) -> None:
    if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    call(descriptor)


def _absent(path: Any) -> Any:
    if os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, "Cannot create a file when that file already exists", str(path))
    return path


def _closed(path: Any) -> Any:
    """Return the path of what nobody in this process has open or mapped."""
    if isinstance(path, int):
        return path
    wanted = os.path.realpath(path)
    for used in _used_files():
        if used == wanted or used.startswith(f"{wanted}/"):
            raise PermissionError(errno.EACCES, "The process cannot access the file: it is being used", str(path))
    return path


def _used_files() -> list[str]:
    used = []
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            used.append(str(descriptor.readlink()))
        except OSError:  # that of the listing itself
            continue
    with open("/proc/self/maps", encoding="utf-8") as maps:
        used += [parts[5].strip() for line in maps if len(parts := line.split(None, 5)) == 6]
    return used


def main(system: System, data: Path, out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Train, go on, evaluate, predict, convert, check and examine on another system; return what came of it."""
    told: dict[str, Any] = {"modules": len(pretend(system))}
    import detronome as dt
    from detronome.data.build import _free_shared_memory_bytes
    from detronome.doctor.probes import machine
    from detronome.runtime.files import locked

    settings = {**settings, "data.cache": "disk"}
    interrupted = dt.train(data, model="nano", epochs=2, out=out / "run", settings=settings, observers=[_interrupt])
    told["interrupted"] = [interrupted.reason, interrupted.signal]
    run = dt.resume(out / "run")
    told["trained"] = [run.reason, sorted(path.name for path in (out / "run").iterdir())]
    try:
        dt.train(data, model="nano", out=out / "in memory", settings={**settings, "data.cache": "ram"})
    except dt.DataError as error:
        told["pixels in memory"] = str(error)
    model = dt.load(out / "run")
    told["weights"] = digest_of(model.detector)
    told["AP"] = [run.metrics["AP"], dt.evaluate(model, data, split="val").numbers["AP"]]
    dt.predict(out / "run", data / "images", out=out / "predictions", formats=["pictures", "coco", "csv"])
    told["predicted"] = len(list((out / "predictions").rglob("*.jpg")))
    dt.convert_data(data, out / "yolo", to="yolo", images="copy")
    told["converted"] = len(list((out / "yolo").rglob("*.txt")))
    dt.shard_data(data, out / "shards")
    told["AP of shards"] = dt.evaluate(model, out / "shards", split="val").numbers["AP"]
    try:
        dt.convert_data(data, out / "linked", to="voc", images="symlink")
    except dt.DataError as error:
        told["linked"] = str(error)
    told["checked"] = dt.check_data(data, workers=0).worst
    told["cleared"] = sorted({entry.kind for entry in _cleared(dt)})
    with locked(out / "lock") as first, locked(out / "lock") as second:
        told["locks"] = [first, second]
    told["shared memory"] = _free_shared_memory_bytes()
    probes = (machine.processors, machine.memory, machine.open_files, machine.disks)
    told["doctor"] = {probe.__name__: probe() for probe in probes}
    return told


def digest_of(detector: Any) -> str:
    """Return what is the same for the same weights alone."""
    digest = hashlib.sha256()
    for name, tensor in sorted(detector.state_dict().items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _cleared(dt: Any) -> list[Any]:
    """Empty the cache; what this process has mapped stays on Windows, and is told."""
    gc.collect()
    return list(dt.clear_caches())


def _interrupt(event: Any) -> None:
    """Press Ctrl-C in the second step."""
    if type(event).__name__ == "StepLogged" and event.step == 2:
        signal.raise_signal(signal.SIGINT)


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    print(json.dumps(main(asked["system"], Path(asked["data"]), Path(asked["out"]), asked["settings"])))

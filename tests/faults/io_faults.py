"""Every system call that touches a folder, counted, so that the n-th can fail or be the process's last.

All calls of the checkpoint writer go through Python's `os` and `io`, also those of pathlib, shutil and tempfile.
"""

from __future__ import annotations

import errno
import io
import os
import signal
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self
from unittest.mock import patch

OS_CALLS = ("open", "write", "fsync", "close", "mkdir", "rename", "replace", "symlink", "unlink", "rmdir", "chmod")
OS_CALLS += ("stat", "lstat", "scandir", "listdir", "statvfs")


@dataclass
class IoFaults:
    """Spoil one call inside the `with` block.

    Which: `fail` raises an error in place of the call (of a write, after half of it; a file is closed all the same);
    `die before` and `die after` kill the process with SIGKILL, `die before` a write after half of it.
    """

    at: int = -1
    """Which call, from 0; -1 for none."""
    action: Literal["fail", "die before", "die after"] = "fail"
    errno: int = errno.ENOSPC
    calls: list[tuple[str, str]] = field(default_factory=list)
    """Name and first argument of every call so far."""

    @property
    def has_happened(self) -> bool:
        return 0 <= self.at < len(self.calls)

    def __enter__(self) -> Self:
        self._patches = ExitStack()
        for module, names in ((os, OS_CALLS), (io, ("open",))):
            for name in names:
                self._patches.enter_context(patch.object(module, name, self._spoilt(name, getattr(module, name))))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._patches.close()

    def _spoilt(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def spoilt(*arguments: Any, **options: Any) -> Any:
            self.calls.append((name, str(arguments[0]) if arguments else ""))
            if len(self.calls) - 1 != self.at:
                return call(*arguments, **options)
            if self.action == "die after":
                with suppress(OSError):  # one that fails on its own, such as making a folder that is there
                    call(*arguments, **options)
            elif name == "write":
                call(arguments[0], arguments[1][: len(arguments[1]) // 2])
            elif name == "close":
                call(*arguments, **options)
            if self.action == "fail":
                raise OSError(self.errno, os.strerror(self.errno))
            os.kill(os.getpid(), signal.SIGKILL)

        return spoilt

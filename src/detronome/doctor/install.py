"""The command that installs into the environment that was examined, and not into another one."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

__all__ = ["Installer"]

_PYTORCH_INDEX = "https://download.pytorch.org/whl/"


@dataclass(frozen=True, kw_only=True)
class Installer:
    """How packages get into an environment: its own pip, or uv where it has none."""

    command: str
    """What stands before `install` and `uninstall`."""
    options: str = ""

    @classmethod
    def of_this_environment(cls) -> Installer:
        """Return the installer of the Python that runs."""
        if find_spec("pip") is None:
            python = shlex.quote(sys.executable)
            if shutil.which("uv") is None:
                return cls(command=f"{python} -m ensurepip && {python} -m pip")
            return cls(command="uv pip", options=f"--python {python} ")
        on_path = shutil.which("python")
        is_first = on_path is not None and Path(on_path).absolute() == Path(sys.executable).absolute()
        return cls(command=f"{'python' if is_first else shlex.quote(sys.executable)} -m pip")

    def install(self, *requirements: str, upgrade: bool = False, again: bool = False, cuda: str = "") -> str:
        """Return the command that installs requirements.

        Args:
            requirements: names with ranges.
            upgrade: also where something that satisfies them is there.
            again: unpack anew, for what is damaged.
            cuda: from PyTorch's own index, e.g. `cu126`.
        """
        words = [shlex.quote(requirement) for requirement in requirements]
        options = (
            ("--upgrade " if upgrade else "")
            + (("--reinstall " if self.command == "uv pip" else "--force-reinstall ") if again else "")
            + (f"--index-url {_PYTORCH_INDEX}{cuda} " if cuda else "")
        )
        return f"{self.command} install {self.options}{options}{' '.join(words)}"

    def uninstall(self, packages: Sequence[str]) -> str:
        """Return the command that removes packages without asking."""
        yes = "" if self.command == "uv pip" else "-y "
        return f"{self.command} uninstall {self.options}{yes}{' '.join(packages)}"

    def translate(self, command: str) -> str:
        """Return a command that is written for pip as one for this environment."""
        _, verb, words = command.split(maxsplit=2)
        if self.command == "uv pip":
            words = words.replace("--force-reinstall", "--reinstall").replace("-y ", "")
        return f"{self.command} {verb} {self.options}{words}"

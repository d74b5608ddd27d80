"""The command that installs into the environment that was examined, and not into another one."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path

__all__ = ["Installer"]

_UV = "uv pip"
_PYTORCH_INDEX = "https://download.pytorch.org/whl/"


@dataclass(frozen=True, kw_only=True)
class Installer:
    """How packages get into an environment: its own pip, or uv where it has none."""

    command: str
    """What stands before `install` and `uninstall`."""
    options: str = ""
    project: str = ""
    """The folder of the project whose `uv.lock` says what is installed; empty where none does."""

    @classmethod
    def of_this_environment(cls) -> Installer:
        """Return the installer of the Python that runs."""
        if PathFinder.find_spec("pip") is None:  # the usual search lets setuptools warn of its distutils
            python = shlex.quote(sys.executable)
            if shutil.which("uv") is None:
                return cls(command=f"{python} -m ensurepip && {python} -m pip")
            folder = Path(sys.prefix).parent  # uv puts a project's environment beside its lock file
            project = str(folder) if (folder / "uv.lock").is_file() else ""
            return cls(command=_UV, options=f"--python {python} ", project=project)
        on_path = shutil.which("python")
        is_first = on_path is not None and Path(on_path).absolute() == Path(sys.executable).absolute()
        return cls(command=f"{'python' if is_first else shlex.quote(sys.executable)} -m pip")

    @property
    def is_uv(self) -> bool:
        """Whether uv installs, which has words of its own for some of pip's options."""
        return self.command == _UV

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
            + (("--reinstall " if self.is_uv else "--force-reinstall ") if again else "")
            + (f"--index-url {_PYTORCH_INDEX}{cuda} " if cuda else "")
        )
        return f"{self.command} install {self.options}{options}{' '.join(words)}"

    def update(self, requirements: Sequence[str], *, build: str = "") -> str:
        """Return the command that brings packages to other releases; in the lock file too, where there is one.

        Args:
            requirements: names, with the release where it matters.
            build: of torch, whose index is then asked, e.g. `cpu` or `cu126`; empty for the package index.
        """
        if not self.project or build:
            return self.install(*requirements, upgrade=True, cuda=build)
        where = f"--project {shlex.quote(self.project)}"
        words = " ".join(f"--upgrade-package {shlex.quote(requirement)}" for requirement in requirements)
        # --inexact: extras that are installed and not named here stay.
        return f"uv lock {where} {words} && uv sync {where} --inexact"

    def uninstall(self, packages: Sequence[str]) -> str:
        """Return the command that removes packages without asking."""
        yes = "" if self.is_uv else "-y "
        return f"{self.command} uninstall {self.options}{yes}{shlex.join(packages)}"

    def first_command(self, steps: Sequence[str], *, package: str = "") -> str:
        """Return the first command of a symptom's fix, for this environment; a comment where there are no commands.

        Args:
            steps: of the fix.
            package: what `PACKAGE` in them stands for; without it, a step that names it is passed over.
        """
        for step in steps:
            command = step.partition("   #")[0].strip().removeprefix("python -m ")
            if command.startswith("#") or ("PACKAGE" in command and not package):
                continue
            command = command.replace("PACKAGE", package)
            if not command.startswith("pip "):
                return command
            return " && ".join(map(self.translate, command.split(" && ")))
        return steps[0] if all(step.startswith("#") for step in steps) else ""

    def translate(self, command: str) -> str:
        """Return a command that is written for pip as one for this environment."""
        _, verb, words = command.split(maxsplit=2)
        if self.is_uv:
            words = words.replace("--force-reinstall", "--reinstall").replace("-y ", "")
        return f"{self.command} {verb} {self.options}{words}"

"""Environments made for the doctor: a fresh virtual environment, real packages linked into it, others re-created.

A re-created package has metadata and a module of a few lines: it behaves as far as the doctor calls it, or fails in the
words in which the real one fails. The doctor runs in such an environment as a user runs it.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import venv
from dataclasses import dataclass, field
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from detronome.doctor.versions import Requirement, normal_name

__all__ = ["CORE", "Environment", "make_environment", "stub_nvml", "stub_torch", "stub_torchvision"]

SOURCE = Path(__file__).resolve().parents[2] / "src"
COMMAND_LINE = ("cyclopts", "rich")
_HEAVY = {"torch", "torchvision"}
_MARKER = {
    "python_version": ".".join(map(str, sys.version_info[:2])),
    "python_full_version": sys.version.split()[0],
    "sys_platform": sys.platform,
    "platform_system": "Linux",
    "platform_machine": os.uname().machine,
    "os_name": os.name,
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
}


def requirements_of(name: str) -> list[str]:
    """Return what an installed distribution needs, without extras."""
    lines = distribution(name).requires or []
    found = [Requirement.parse(line, _MARKER) for line in lines]
    return [one.name for one in found if one is not None and not one.extra]


CORE = tuple(name for name in requirements_of("detronome") if name not in _HEAVY)


@dataclass
class Environment:
    """A virtual environment, and how the doctor is called in it."""

    root: Path
    variables: dict[str, str] = field(default_factory=dict)
    before: str = ""
    """Shell commands that come first, such as `ulimit -n 64;`."""
    in_namespace: bool = False
    """Whether they may mount things, out of sight of everybody else."""
    folder: Path | None = None
    """Working folder; by default an empty one."""

    @property
    def site(self) -> Path:
        """The folder of its packages."""
        return self.root / "lib" / f"python{_MARKER['python_version']}" / "site-packages"

    @property
    def work(self) -> Path:
        """The working folder."""
        folder = self.folder or self.root / "work"
        if self.folder is None:
            folder.mkdir(exist_ok=True)
        return folder

    def link(self, *names: str) -> None:
        """Put real distributions and what they need into it, as links."""
        left, done = [normal_name(name) for name in names], set[str]()
        while left:
            name = left.pop()
            if name in done:
                continue
            done.add(name)
            found = distribution(name)
            tops = {str(file).split("/")[0] for file in found.files or ()} - {"..", "__pycache__"}
            for top in tops:
                target = Path(str(found.locate_file(top)))
                if target.exists() and not (self.site / top).is_symlink():
                    (self.site / top).symlink_to(target)
            left += requirements_of(name)

    def link_detronome(self) -> None:
        """Put this package into it."""
        (self.site / "detronome").symlink_to(SOURCE / "detronome")
        metadata = Path(str(distribution("detronome").locate_file("")))
        (found,) = metadata.glob("detronome-*.dist-info")
        (self.site / found.name).symlink_to(found)

    def stub(self, name: str, version: str, *requires: str, **modules: str) -> None:
        """Make a distribution of modules with the given code; `a__b` is the module a.b."""
        info = self.site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        (info / "METADATA").write_text("\n".join([*lines, *(f"Requires-Dist: {line}" for line in requires)]) + "\n")
        for module, code in modules.items():
            parts = [part for part in module.split("__") if part]
            is_package = len(parts) == 1
            path = self.site / parts[0] / ("__init__.py" if is_package else f"{parts[1]}.py")
            if is_package and path.parent.is_symlink():
                path.parent.unlink()  # in place of the real one
            path.parent.mkdir(exist_ok=True)
            path.write_text(code)

    def replace(self, name: str, version: str, *requires: str, **modules: str) -> None:
        """Make a distribution in place of a linked one."""
        self.remove(name)
        self.stub(name, version, *requires, **modules)

    def remove(self, name: str) -> None:
        """Take a linked distribution out again."""
        found = distribution(name)
        for top in {str(file).split("/")[0] for file in found.files or ()} - {"..", "__pycache__"}:
            if (self.site / top).is_symlink():
                (self.site / top).unlink()

    def replace_metadata(self, name: str, version: str, *requires: str) -> None:
        """Let a linked distribution say that it is another version."""
        for info in self.site.glob(f"{name.replace('-', '_')}-*.dist-info"):
            info.unlink()
        self.stub(name, version, *requires)

    def doctor(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `detronome doctor` in it."""
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
        # -P: as the installed command, it does not search the working folder.
        python = [str(self.root / "bin" / "python"), "-P", "-c", "from detronome.cli import main; main()"]
        command = shlex.join([*python, "doctor", *arguments])
        words = ["bash", "-c", f"{self.before} exec {command}"]
        return subprocess.run(
            ["unshare", "-rm", *words] if self.in_namespace else words,
            cwd=self.work,
            env={**kept, "OMP_NUM_THREADS": "1", "DETRONOME_CACHE": str(self.root / "cache"), **self.variables},
            capture_output=True,
            text=True,
            check=False,
            timeout=280,
        )

    def examine(self) -> dict[str, Any]:
        """Run it and return its JSON; the exit code agrees with it. A busy machine is given its time."""
        done = self.doctor("--json", "--limit-s", "240")
        assert done.stdout, done.stderr
        record: dict[str, Any] = json.loads(done.stdout)
        assert done.returncode == record["exit_code"]
        return record


def make_environment(
    root: Path, *packages: str, torch: str = "", torchvision: str = "", **of_torch: Any
) -> Environment:
    """Return an environment with this package, the command line's packages and those that are named.

    Args:
        root: a folder that does not exist.
        packages: distributions to link.
        torch: version of a re-created torch; none without.
        torchvision: version of a re-created torchvision.
        of_torch: for `stub_torch`.
    """
    venv.create(root, with_pip=False, symlinks=True)
    environment = Environment(root=root)
    environment.link(*COMMAND_LINE, *packages)
    environment.link_detronome()
    if torch:
        stub_torch(environment, torch, **of_torch)
    if torchvision:
        stub_torchvision(environment, torchvision)
    return environment


_TORCH = """
import numpy as _np

__version__ = {version!r}


class version:
    cuda = {cuda!r}
    hip = None


class Tensor:
    def __init__(self, values):
        self.values = _np.asarray(values, dtype=_np.float32)

    def __mul__(self, other):
        return Tensor(self.values * other)

    def sum(self):
        return Tensor(self.values.sum())

    def item(self):
        return self.values.item()

    def numpy(self):
        return self.values

    def tolist(self):
        return [int(value) if float(value).is_integer() else float(value) for value in self.values.tolist()]


def from_numpy(values):
    {from_numpy}
    return Tensor(values)


def tensor(values):
    return Tensor(values)


def ones(*shape):
    return Tensor(_np.ones(shape))


def get_num_threads():
    return {threads}


class distributed:
    is_available = staticmethod(lambda: {is_distributed})
    is_nccl_available = staticmethod(lambda: False)


class cuda:
    is_available = staticmethod(lambda: {devices!r} != [])
    device_count = staticmethod(lambda: len({devices!r}))
    init = staticmethod(lambda: (_ for _ in ()).throw(RuntimeError({no_cuda!r})))


{more}
"""


def stub_torch(
    environment: Environment,
    version: str,
    *,
    cuda: str | None = None,
    threads: int = 1,
    from_numpy: str = "pass",
    is_distributed: bool = False,
    devices: tuple[str, ...] = (),
    built_for: tuple[str, ...] = (),
    no_cuda: str = "No CUDA GPUs are available",
    first: str = "",
    more: str = "",
) -> None:
    """Re-create torch as far as the doctor calls it; `first` is what its import does before all else."""
    if devices:
        more += f"""
class _Square:
    def __matmul__(self, other):
        return self
    def sum(self):
        return Tensor(64.0**3)

_ones = ones
def ones(*shape, device=None):
    return _Square() if device else _ones(*shape)

cuda.mem_get_info = staticmethod(lambda index: (2**34, 2**34))
cuda.get_device_capability = staticmethod(lambda index: divmod(int({list(devices)!r}[index][3:]), 10))
cuda.get_device_name = staticmethod(lambda index: "GPU")
cuda.get_arch_list = staticmethod(lambda: {list(built_for)!r})
"""
    code = first + _TORCH.format(
        version=version,
        cuda=cuda,
        threads=threads,
        from_numpy=from_numpy,
        is_distributed=is_distributed,
        devices=list(devices),
        no_cuda=no_cuda,
        more=more,
    )
    workers = "from multiprocessing import get_context\ndef get_sharing_strategy():\n    return 'file_descriptor'\n"
    environment.stub("torch", version, torch=code, torch__multiprocessing=workers)


_NMS = """
from torch import Tensor

def nms(boxes, scores, threshold):
    return Tensor([0, 2])
"""


def stub_torchvision(environment: Environment, version: str, *, nms: str = _NMS) -> None:
    """Re-create torchvision with one operator; `nms` is the code of torchvision.ops."""
    environment.stub("torchvision", version, torchvision=f"__version__ = {version!r}\n", torchvision__ops=nms)


_NVML = """
class NVMLError(Exception):
    pass

class _Memory:
    total, used = 80 * 2**30, {used}

def nvmlInit():
    {init}
def nvmlShutdown():
    pass
def nvmlSystemGetDriverVersion():
    return {driver!r}
def nvmlSystemGetCudaDriverVersion():
    return {cuda}
def nvmlDeviceGetCount():
    return 1
def nvmlDeviceGetHandleByIndex(index):
    return index
def nvmlDeviceGetName(handle):
    return {name!r}
def nvmlDeviceGetMemoryInfo(handle):
    return _Memory
def nvmlDeviceGetCudaComputeCapability(handle):
    return {capability}
"""


def stub_nvml(
    environment: Environment,
    *,
    driver: str = "580.65.06",
    cuda: int = 13000,
    name: str = "NVIDIA H100 80GB HBM3",
    capability: tuple[int, int] = (9, 0),
    used: int = 2**30,
    init: str = "pass",
) -> None:
    """Let NVML show a GPU."""
    code = _NVML.format(driver=driver, cuda=cuda, name=name, capability=capability, used=used, init=init)
    (environment.site / "pynvml.py").unlink()
    (environment.site / "pynvml.py").write_text(code)

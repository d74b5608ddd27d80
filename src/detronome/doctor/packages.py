"""Judges what is installed: versions that fit, ranges of our own, advisories, twins, files in the way. Calls none."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detronome.doctor.advisories import ADVISORIES, TWINS
from detronome.doctor.findings import Facts, Finding, Severity
from detronome.doctor.install import Installer
from detronome.doctor.releases import (
    GLIBC_FLOOR,
    NEWEST_PYTHON,
    OLDEST_PYTHON,
    STABLE_TORCHVISION,
    TORCH_RELEASES,
    torch_release,
)
from detronome.doctor.versions import Requirement, Version, allows
from detronome.errors import first_few

__all__ = ["Inventory", "judge_packages", "judge_python"]

_OURS = "detronome"
_PAIR = ("torch>=2.11", "torchvision>=0.26")
_BUILD = re.compile(r"cpu|xpu|cu\d+|rocm[\d.]+")


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """What metadata says of an environment."""

    python: Facts
    packages: Facts
    installer: Installer

    @property
    def versions(self) -> Mapping[str, str]:
        """Versions by name."""
        return {name: entry["version"] for name, entry in self._entries.items()}

    @property
    def _entries(self) -> Mapping[str, Mapping[str, Any]]:
        return self.packages["packages"]

    def version(self, name: str) -> Version | None:
        """Return the version of a package; None where it is not installed or says nothing readable."""
        entry = self._entries.get(name)
        return Version.parse(entry["version"]) if entry else None

    @property
    def torch_build(self) -> str:
        """The build of torch that has an index of its own, e.g. `cpu` or `cu126`; empty for the package index's."""
        torch = self.version("torch")
        return torch.local if torch is not None and _BUILD.fullmatch(torch.local) else ""

    def place(self, name: str) -> str:
        """Return the folder that holds a package."""
        return str(self._entries[name]["place"])

    def is_editable(self, name: str) -> bool:
        """Return whether a package is imported from the folder where it is written."""
        return bool(self._entries[name]["is_editable"])

    def requirements(self, name: str) -> list[Requirement]:
        """Return what a package asks for on this system, extras included."""
        marker = self.python["marker"]
        lines = self._entries.get(name, {}).get("requires", [])
        return [found for line in lines if (found := Requirement.parse(line, marker)) is not None]

    def closure(self) -> set[str]:
        """Return what we need, directly or through others, as far as it is installed."""
        found: set[str] = set()
        new = {_OURS, "torch", "torchvision", "numpy"}
        while new:
            found |= new
            needed = {one.name for name in new for one in self.requirements(name) if not one.extra or name == _OURS}
            new = {name for name in needed if name in self._entries} - found
        return found


def judge_python(inventory: Inventory) -> Iterator[Finding]:
    """Judge the interpreter and the C library under it."""
    python = inventory.python
    release = tuple(python["release"][:2])
    span = f"{_dotted(OLDEST_PYTHON)} to {_dotted(NEWEST_PYTHON)}"
    new_environment = "uv venv --python 3.12 && uv pip install detronome"
    problem = ""
    if not OLDEST_PYTHON <= release <= NEWEST_PYTHON:
        problem = f"Python {python['version']} is not supported: torch and we have releases for {span}"
    elif not python["is_final"]:
        problem = f"Python {python['version']} is a pre-release: compiled packages are not made for it"
    elif not python["is_64_bit"]:
        problem = "this Python is a 32 bit program: torch has none but 64 bit releases"
    elif python["implementation"] != "CPython":
        problem = f"this is {python['implementation']}: torch has releases for CPython alone"
    if problem:
        yield Finding(
            check="python",
            severity=Severity.FAILURE,
            what=problem,
            cause="packages with compiled parts are made for each Python",
            fix=new_environment,
            evidence=python["executable"],
        )
    else:
        where = "virtual environment" if python["is_virtual"] else "system Python"
        yield Finding(check="python", what=f"{python['version']}, {where}", evidence=python["executable"])
    if python["is_free_threaded"]:
        yield Finding(
            check="python",
            severity=Severity.WARNING,
            what="this Python runs without its global lock: not all packages with compiled parts are made for that",
            cause="a free-threaded build (3.13t, 3.14t)",
            fix=new_environment,
        )
    yield from _libc(python)


def _libc(python: Facts) -> Iterator[Finding]:
    if python["system"] != "Linux":
        return
    name, text = python["libc"]
    version = Version.parse(text) if text else None
    if name != "glibc":
        yield Finding(
            check="C library",
            severity=Severity.FAILURE,
            what="this Linux has no glibc",
            cause="torch's wheels are made for glibc; Alpine and other systems with musl cannot load them",
            fix="docker run -it python:3.12-slim bash   # Debian instead of Alpine",
            evidence=name or "unknown C library",
        )
    elif version is not None and version.release < GLIBC_FLOOR:
        yield Finding(
            check="C library",
            severity=Severity.FAILURE,
            what=f"glibc {text} is too old: torch's wheels need {_dotted(GLIBC_FLOOR)}",
            cause="an old Linux",
            fix="# use Ubuntu 20.04, Debian 10, RHEL 8 or later, or a container of one",
        )


def judge_packages(inventory: Inventory) -> Iterator[Finding]:
    """Judge the versions that are installed."""
    judges = (
        _torch_pair,
        _torch_and_python,
        _torch_and_numpy,
        _coco_api,
        _advisories,
        _twins,
        _damaged,
        _unread,
        _in_the_way,
    )
    found = [finding for judge in judges for finding in judge(inventory)]
    told = {finding.check for finding in found}
    yield from found
    yield from _our_ranges(inventory, told)
    yield from _other_ranges(inventory, told)


def _torch_pair(inventory: Inventory) -> Iterator[Finding]:
    torch, torchvision = inventory.version("torch"), inventory.version("torchvision")
    if torch is None:
        return
    row = torch_release(torch.release)
    if torchvision is None:
        if "torchvision" not in inventory.versions:
            good = f"torchvision=={_dotted(row.torchvision)}.*" if row and row.torch < (2, 14) else "torchvision>=0.29"
            yield Finding(
                check="torchvision",
                severity=Severity.FAILURE,
                what="torchvision is not installed",
                cause=f"torch {torch.text} is there without its companion",
                fix=inventory.installer.install(good, cuda=inventory.torch_build),
            )
        return
    evidence = f"torch {torch.text}, torchvision {torchvision.text}"
    is_stable = torchvision.release[:2] >= STABLE_TORCHVISION and torch.release[:2] >= (2, 14)
    if row is not None and not is_stable and torchvision.release[:2] != row.torchvision:
        other = next((one for one in TORCH_RELEASES if one.torchvision == torchvision.release[:2]), None)
        made_for = (
            f"torchvision {_dotted(torchvision.release)} was built for torch {_dotted(other.torch)}" if other else ""
        )
        yield Finding(
            check="torchvision",
            severity=Severity.FAILURE,
            what=f"torch {_dotted(torch.release)} and torchvision {_dotted(torchvision.release)} are not a pair",
            cause=made_for or f"torch {_dotted(row.torch)} goes with torchvision {_dotted(row.torchvision)}",
            fix=_pair_fix(inventory, row.torch, row.torchvision),
            evidence=evidence,
        )
    elif _build(torch.local) and _build(torchvision.local) and _build(torch.local) != _build(torchvision.local):
        yield Finding(
            check="torchvision",
            severity=Severity.FAILURE,
            what=f"torch is built for {_build(torch.local)} and torchvision for {_build(torchvision.local)}",
            cause="they come from different indexes: the operators of one cannot be called by the other",
            fix=inventory.installer.install("torch", "torchvision", again=True, cuda=inventory.torch_build),
            evidence=evidence,
        )


def _pair_fix(inventory: Inventory, torch: tuple[int, int], torchvision: tuple[int, int]) -> str:
    """Return the command for a fitting pair: today's, where this torch is below our range."""
    if torch < (2, 11):
        return _todays_pair(inventory)
    pair = (f"torch=={_dotted(torch)}.*", f"torchvision=={_dotted(torchvision)}.*")
    return inventory.installer.install(*pair, cuda=inventory.torch_build)


def _todays_pair(inventory: Inventory, *, again: bool = False) -> str:
    # The index of an old CUDA or ROCm has no releases of today.
    build = inventory.torch_build if inventory.torch_build in ("cpu", "xpu") else ""
    return inventory.installer.install(*_PAIR, upgrade=True, again=again, cuda=build)


def _build(local: str) -> str:
    """Return `cpu`, `xpu` or the major version of CUDA of a build: minor versions go together."""
    return local[:4] if local.startswith("cu") and local[2:4].isdigit() else local if local in ("cpu", "xpu") else ""


def _torch_and_python(inventory: Inventory) -> Iterator[Finding]:
    torch = inventory.version("torch")
    row = torch_release(torch.release) if torch else None
    release = tuple(inventory.python["release"][:2])
    if torch is not None and row is not None and not row.oldest_python <= release <= row.newest_python:
        yield Finding(
            check="torch",
            severity=Severity.FAILURE,
            what=f"torch {_dotted(torch.release)} has no release for Python {_dotted(release)}",
            cause=f"it is made for Python {_dotted(row.oldest_python)} to {_dotted(row.newest_python)}; "
            "this copy came from elsewhere",
            fix=_todays_pair(inventory, again=True),
        )


def _torch_and_numpy(inventory: Inventory) -> Iterator[Finding]:
    torch, numpy = inventory.version("torch"), inventory.version("numpy")
    row = torch_release(torch.release) if torch else None
    if torch is None or numpy is None:
        return
    is_old = row.is_for_numpy_1 if row else torch.release < (2,)
    if is_old and numpy.release[0] >= 2:
        yield Finding(
            check="numpy",
            severity=Severity.FAILURE,
            what=f"torch {_dotted(torch.release)} cannot use NumPy {_dotted(numpy.release)}",
            cause="torch before 2.3 was built for NumPy 1: torch.from_numpy says that Numpy is not available",
            fix=_todays_pair(inventory),
            evidence=f"torch {torch.text}, numpy {numpy.text}",
        )


def _coco_api(inventory: Inventory) -> Iterator[Finding]:
    coco, numpy = inventory.version("pycocotools"), inventory.version("numpy")
    if coco is None:
        return
    release = tuple(inventory.python["release"][:2])
    reason = ""
    if coco.release < (2, 0, 8) and numpy is not None and numpy.release[0] >= 2:
        reason = "pycocotools before 2.0.8 was built for NumPy 1"
    elif coco.release < (2, 0, 11) and release >= (3, 14):
        reason = "pycocotools has releases for Python 3.14 since 2.0.11"
    elif coco.release < (2, 0, 4) and numpy is not None and numpy.release >= (1, 24):
        reason = "pycocotools before 2.0.4 uses np.float, which NumPy 1.24 removed"
    if reason:
        yield Finding(
            check="pycocotools",
            severity=Severity.FAILURE,
            what=f"pycocotools {coco.text} does not work here",
            cause=reason,
            fix=inventory.installer.install("pycocotools>=2.0.11", upgrade=True),
            evidence=f"numpy {numpy.text if numpy else 'missing'}, Python {_dotted(release)}",
        )


def _advisories(inventory: Inventory) -> Iterator[Finding]:
    told = 0
    for advisory in ADVISORIES:
        version = inventory.versions.get(advisory.package)
        if version is None or Version.parse(version) is None or not allows(advisory.affected, version):
            continue
        told += 1
        if advisory.package == "torch":
            fix = _todays_pair(inventory)
        elif advisory.good:
            fix = inventory.installer.install(f"{advisory.package}{advisory.good}", upgrade=True)
        else:
            fix = inventory.installer.uninstall([advisory.package])
        yield Finding(
            check=advisory.package,
            severity=advisory.severity,
            what=f"{advisory.package} {version} should not be used: {advisory.what}",
            cause=advisory.source,
            fix=fix,
        )
    if not told:
        yield Finding(check="advisories", what=f"none of the {len(ADVISORIES)} known bad releases is installed")


def _with_companion(name: str, specifier: str) -> list[str]:
    """Return what to install for a package: torch and torchvision only ever together."""
    return list(_PAIR) if name in ("torch", "torchvision") else [f"{name}{specifier}"]


def _twins(inventory: Inventory) -> Iterator[Finding]:
    for twins in TWINS:
        there = [name for name in twins.packages if name in inventory.versions]
        if len(there) < 2:
            continue
        # Of runtimes the special build stays: it does what the plain one does.
        keep = twins.keep if twins.keep in there else there[0 if twins.keep else -1]
        removal = inventory.installer.uninstall(there)
        yield Finding(
            check=keep,
            severity=Severity.FAILURE if keep == "pillow" else Severity.WARNING,
            what=f"{' and '.join(there)} are installed together",
            cause=twins.what,
            fix=f"{removal} && {inventory.installer.install(keep)}",
            evidence=", ".join(f"{name} {inventory.versions[name]}" for name in there),
        )


def _damaged(inventory: Inventory) -> Iterator[Finding]:
    """Yield packages of which installers know nothing, so that none can repair or remove them."""
    needed = {one.name for name in inventory.closure() for one in inventory.requirements(name)}
    for name, folder in inventory.packages["damaged"].items():
        is_there = name in inventory.versions
        removal = f"rm -r {shlex.quote(folder)}"
        again = inventory.installer.install(*_with_companion(name, ""), again=True)
        yield Finding(
            check=name,
            severity=Severity.FAILURE if name in needed and not is_there else Severity.WARNING,
            what=f"the metadata of {name} cannot be read, {'beside a copy of it' if is_there else 'it is half there'}",
            cause="its installation or its removal was interrupted; installers cannot tell what is there",
            fix=removal if is_there else f"{removal} && {again}",
            evidence=folder,
        )


def _unread(inventory: Inventory) -> Iterator[Finding]:
    """Yield what we need and cannot judge, for it says no version; what others need is theirs to judge."""
    for one in inventory.requirements(_OURS):
        text = inventory.versions.get(one.name)
        if one.extra or text is None or inventory.version(one.name) is not None:
            continue
        yield Finding(
            check=one.name,
            severity=Severity.WARNING,
            what=f"the version of {one.name} cannot be read: {text!r}",
            cause=f"its metadata was written by hand or by another tool; {_OURS} needs {one.name}{one.specifier}",
            fix=inventory.installer.install(*_with_companion(one.name, one.specifier), again=True),
        )


def _in_the_way(inventory: Inventory) -> Iterator[Finding]:
    facts = inventory.packages
    for shadow in facts["shadows"]:
        path = Path(shadow["path"])
        yield Finding(
            check="shadows",
            severity=Severity.WARNING,
            what=f"{path.name} in the working folder hides the package {shadow['module']}",
            cause="Python searches the working folder first for `python -m ...`, torchrun and scripts that lie there",
            fix=f"mv {shlex.quote(str(path))} {shlex.quote(str(path.with_name('my_' + path.name)))}",
            evidence=str(path),
        )
    for name, versions in facts["twice"].items():
        yield Finding(
            check=name,
            severity=Severity.FAILURE if name in inventory.closure() else Severity.WARNING,
            what=f"{name} is installed twice in the same folder: {' and '.join(versions)}",
            cause="an installation was interrupted, or two installers worked side by side: its files are of both",
            fix=f"{inventory.installer.uninstall([name])} && {inventory.installer.install(name, again=True)}",
            evidence=inventory.place(name),
        )
    if facts["leftovers"]:
        yield Finding(
            check="leftovers",
            severity=Severity.WARNING,
            what=f"an interrupted installation has left {first_few([Path(path).name for path in facts['leftovers']])}",
            cause="pip renames a package to ~name before it removes it, and was stopped then",
            fix="rm -r " + " ".join(shlex.quote(path) for path in facts["leftovers"]),
        )
    yield from _strange_origins(inventory)


def _strange_origins(inventory: Inventory) -> Iterator[Finding]:
    """Yield packages that are imported from another folder than the one where they are installed."""
    from detronome.doctor.probes.installed import MODULES

    for module, origin in inventory.packages["origins"].items():
        name = MODULES[module]
        if name not in inventory.versions or module == _OURS or inventory.is_editable(name):
            continue
        place = Path(inventory.place(name)).resolve()
        if not Path(origin).resolve().is_relative_to(place) and not Path(origin).absolute().is_relative_to(place):
            yield Finding(
                check=name,
                severity=Severity.WARNING,
                what=f"{module} is imported from another folder than {name} {inventory.versions[name]} is installed in",
                cause="PYTHONPATH or a .pth file names a folder with a copy of it, such as cocoapi/PythonAPI",
                fix="unset PYTHONPATH",
                evidence=f"{origin} instead of {place}",
            )


def _our_ranges(inventory: Inventory, told: set[str]) -> Iterator[Finding]:
    """Yield what of our own requirements is missing or out of range; extras only where something of them is there."""
    if _OURS not in inventory.versions:
        yield Finding(
            check="requirements",
            what="detronome is not installed as a package (it runs from its source), so its ranges are not compared",
        )
        return
    needed = inventory.requirements(_OURS)
    core = {one.name: one for one in needed if not one.extra}
    missing = sorted(name for name in core if name not in inventory.versions and name not in told)
    for name in missing:
        yield Finding(
            check=name,
            severity=Severity.FAILURE,
            what=f"{name} is not installed",
            cause=f"detronome needs {name}{core[name].specifier}",
            fix=inventory.installer.install(*_with_companion(name, core[name].specifier)),
        )
    wrong = 0
    seen: set[str] = set()
    for one in needed:
        version = inventory.versions.get(one.name)
        if version is None or one.name in seen or allows(one.specifier, version):
            continue
        seen.add(one.name)
        wrong += 1
        if one.name in told:  # its fix brings it into the range
            continue
        asked = f"detronome[{one.extra}]" if one.extra else _OURS
        yield Finding(
            check=one.name,
            severity=Severity.WARNING if one.extra else Severity.FAILURE,
            what=f"{one.name} {version} is outside the range that {asked} is tested with",
            cause=f"{asked} needs {one.name}{one.specifier}",
            fix=inventory.installer.install(*_with_companion(one.name, one.specifier), upgrade=True),
        )
    if not missing and not wrong:
        extras = sorted({one.extra for one in needed if one.extra})
        complete = [
            extra for extra in extras if all(one.name in inventory.versions for one in needed if one.extra == extra)
        ]
        also = f"; extras: {', '.join(complete)}" if complete else ""
        yield Finding(check="requirements", what=f"all {len(core)} packages that we need are there and in range{also}")


def _other_ranges(inventory: Inventory, told: set[str]) -> Iterator[Finding]:
    """Yield what packages that we use ask of each other and do not get."""
    ours = inventory.closure()
    for name in sorted(ours - {_OURS}):
        for one in inventory.requirements(name):
            version = inventory.versions.get(one.name)
            is_fine = one.extra or one.name in told or name in told
            if is_fine or (version is not None and allows(one.specifier, version)):
                continue
            if version is None:
                what = f"{name} needs {one.name}, which is not installed"
                severity = (
                    Severity.FAILURE if name in ("torch", "torchvision") and one.name != "triton" else Severity.WARNING
                )
            else:
                what = f"{name} {inventory.versions[name]} does not go with {one.name} {version}"
                severity = Severity.WARNING
            yield Finding(
                check=name,
                severity=severity,
                what=what,
                cause=f"{name} needs {one.name}{one.specifier}",
                fix=inventory.installer.install(f"{one.name}{one.specifier}"),
            )


def _dotted(release: tuple[int, ...]) -> str:
    return ".".join(map(str, release))

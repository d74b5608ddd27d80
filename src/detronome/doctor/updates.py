"""What of the packages that we ask for is behind the index, what holds it back, and the command that brings it up."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from detronome.doctor.advisories import ADVISORIES
from detronome.doctor.child import Answer, Batch, run_batch
from detronome.doctor.findings import EXIT_CODES, Finding, Severity
from detronome.doctor.install import Installer
from detronome.doctor.packages import Inventory
from detronome.doctor.probes.index import BUDGET_S
from detronome.doctor.versions import Version, allows
from detronome.errors import first_few

__all__ = ["Update", "Updates", "find_updates", "judge_updates"]

_LIMIT_S = BUDGET_S + 4
"""Of the process that asks: its own limit, the start of Python, and the import of the HTTP client."""
_PAIR = ("torch", "torchvision")
"""They are brought up together: a release of one asks for a release of the other."""


@dataclass(frozen=True, kw_only=True)
class Update:
    """A package that is behind, or whose installed release has security holes."""

    package: str
    installed: str
    newest: str
    """Of the final releases that this Python can install."""
    allowed: str
    """The newest that all installed packages allow; empty where that is the installed one."""
    held_by: Sequence[str]
    """Why a newer one is not allowed: ranges that refuse it."""
    holes: Sequence[str]
    """Known security holes of the installed release."""
    severity: Severity
    """OK for what is only behind."""
    fix: str
    """The command for this package alone; empty where nothing newer is allowed."""


@dataclass(frozen=True, kw_only=True)
class Updates:
    """What the index knows, beside what is installed."""

    executable: str
    indexes: Sequence[str]
    num_asked: int
    updates: Sequence[Update]
    findings: Sequence[Finding]
    """What could not be found out."""
    fixes: Sequence[str]
    """The commands for all that is allowed."""
    holes_from: str
    """Where the security holes are from: the index, or this release of Detronome."""
    seconds: float

    @property
    def exit_code(self) -> int:
        """0 for no more than packages that are behind; 1 and 2 for security and for what was not found out."""
        told = [*(update.severity for update in self.updates), *(finding.severity for finding in self.findings)]
        return EXIT_CODES[max(told, key=list(Severity).index, default=Severity.OK)]

    def to_record(self) -> dict[str, Any]:
        """Return plain data."""
        record = asdict(self)
        record["updates"] = [asdict(update) for update in self.updates]
        record["findings"] = [asdict(finding) for finding in self.findings]
        return {"exit_code": self.exit_code, **record}


def find_updates(on_stage: Callable[[str], None] = lambda stage: None) -> Updates:
    """Ask the configured index for newer releases. Takes 20 s at most, without a network too.

    Args:
        on_stage: is told what is being done.
    """
    begin = time.monotonic()
    on_stage("reading what is installed")
    read = run_batch(Batch(probes=("installed.python", "installed.packages")), limit_s=_LIMIT_S)
    if not all(answer.is_answered for answer in read.values()):
        last = next(answer for answer in read.values() if not answer.is_answered)
        return _nothing(
            Finding(
                check="python",
                severity=Severity.FAILURE,
                what="this Python cannot tell what is installed",
                cause="it is damaged, or its folders cannot be read",
                fix="detronome doctor",
                evidence=last.last_line,
            ),
            begin,
        )
    inventory = Inventory(
        python=read["installed.python"].facts,
        packages=read["installed.packages"].facts,
        installer=Installer.of_this_environment(),
    )
    on_stage("asking the package index")
    probe = "index.releases"
    answer = run_batch(Batch(probes=(probe,)), limit_s=begin + _LIMIT_S - time.monotonic())[probe]
    return judge_updates(answer, inventory, seconds=time.monotonic() - begin)


def _nothing(finding: Finding, begin: float) -> Updates:
    return Updates(
        executable="",
        indexes=(),
        num_asked=0,
        updates=(),
        findings=(finding,),
        fixes=(),
        holes_from="",
        seconds=time.monotonic() - begin,
    )


def judge_updates(answer: Answer, inventory: Inventory, *, seconds: float) -> Updates:
    """Return what the answer of an index means for what is installed.

    Args:
        answer: of the probe `index.releases`.
        inventory: what is installed.
        seconds: that it took.
    """
    told: Mapping[str, Any] = answer.facts.get("packages", {})
    # What says no version that can be read is neither behind nor the newest.
    known = {name: facts for name, facts in told.items() if "error" not in facts and inventory.version(name)}
    newest = {name: _newest(facts["releases"], inventory.versions[name]) for name, facts in known.items()}
    behind = {name for name, version in newest.items() if version}
    updates = []
    for name, facts in known.items():
        allowed, held_by = _allowed(name, facts["releases"], inventory, behind)
        holes, severity = _holes(name, facts.get("holes"), inventory.versions[name])
        if newest[name] or holes:
            updates.append(
                Update(
                    package=name,
                    installed=inventory.versions[name],
                    newest=newest[name] or inventory.versions[name],
                    allowed=allowed,
                    held_by=held_by,
                    holes=holes,
                    severity=severity,
                    fix=_command({name: allowed}, inventory) if allowed else "",
                )
            )
    updates.sort(key=lambda update: (-list(Severity).index(update.severity), update.package))
    can_rise = {update.package: update.allowed for update in updates if update.allowed}
    pair = {name: can_rise.pop(name) for name in _PAIR if name in can_rise}
    asks_for_holes = any(facts.get("holes") is not None for facts in known.values())
    return Updates(
        executable=str(inventory.python["executable"]),
        indexes=answer.facts.get("indexes", ()),
        num_asked=len(told),
        updates=updates,
        findings=[*_not_found_out(answer, inventory)],
        fixes=[_command(group, inventory) for group in (can_rise, pair) if group],
        holes_from="the index" if asks_for_holes else "this release of Detronome",
        seconds=seconds,
    )


def _newest(releases: Sequence[str], installed: str) -> str:
    """Return the newest release; empty where it is not newer than the installed one."""
    versions = [version for text in releases if (version := Version.parse(text)) is not None]
    ours = Version.parse(installed)
    best = max(versions, default=None)
    return best.text if best is not None and (ours is None or best > ours) else ""


def _allowed(name: str, releases: Sequence[str], inventory: Inventory, behind: set[str]) -> tuple[str, tuple[str, ...]]:
    """Return the newest release that the installed packages allow, and which ranges refuse the newest of all."""
    ranges = list(_ranges(name, inventory, behind))
    fitting = [text for text in releases if all(allows(specifier, text) for _, specifier in ranges)]
    newest = _newest(releases, inventory.versions[name])
    held_by = tuple(
        f"{holder} needs {name}{specifier}" for holder, specifier in ranges if newest and not allows(specifier, newest)
    )
    return _newest(fitting, inventory.versions[name]), held_by


def _ranges(name: str, inventory: Inventory, behind: set[str]) -> Iterator[tuple[str, str]]:
    """Yield (who asks, range) of all that ask for a package and are installed."""
    for holder, version in inventory.versions.items():
        for one in inventory.requirements(holder):
            is_asked = one.name == name and (not one.extra or holder == "detronome")
            # torchvision pins torch: where both are behind they rise together, and the installer finds the pair.
            if is_asked and not (holder in _PAIR and holder in behind):
                asked = f"{holder}[{one.extra}]" if one.extra else f"{holder} {version}"
                yield asked, one.specifier


def _holes(name: str, holes: Sequence[Mapping[str, Any]] | None, installed: str) -> tuple[list[str], Severity]:
    """Return the known holes of an installed release, ours and the index's, and how bad they are."""
    found, severity = [], Severity.OK
    for advisory in ADVISORIES:
        if advisory.package == name and allows(advisory.affected, installed):
            found.append(f"{advisory.what} ({advisory.source})")
            severity = max(severity, advisory.severity, key=list(Severity).index)
    for hole in holes or ():
        if not any(hole["id"] in text for text in found):
            mended = f", mended in {' or '.join(hole['fixed_in'])}" if hole["fixed_in"] else ""
            found.append(f"{hole['summary'] or 'a security hole'} ({hole['id']}{mended})")
            severity = max(severity, Severity.WARNING, key=list(Severity).index)
    return found, severity


def _command(wanted: Mapping[str, str], inventory: Inventory) -> str:
    """Return the command that installs releases; torch and torchvision together, and from the index of their build."""
    if wanted.keys().isdisjoint(_PAIR):
        return inventory.installer.update([f"{name}=={version}" for name, version in wanted.items()])
    # One of the two is pinned: the installer finds the release of the other that goes with it.
    lead = "torch" if "torch" in wanted else "torchvision"
    rest = [name for name in _PAIR if name != lead and name in inventory.versions]
    return inventory.installer.update([f"{lead}=={wanted[lead]}", *rest], build=inventory.torch_build)


def _not_found_out(answer: Answer, inventory: Inventory) -> Iterator[Finding]:
    facts = answer.facts
    if not answer.is_answered:
        is_missing = "httpx2" in answer.last_line and "ModuleNotFoundError" in answer.last_line
        yield Finding(
            check="index",
            severity=Severity.WARNING,
            what="no package index was asked",
            cause="httpx2 is not installed, with which it is asked"
            if is_missing
            else "the process that asks it has ended, or took too long",
            fix=inventory.installer.install("httpx2") if is_missing else "detronome doctor",
            evidence=answer.last_line,
        )
    elif facts["is_off"]:
        yield Finding(
            check="index",
            severity=Severity.WARNING,
            what="no package index was asked",
            cause="the installer's settings forbid it (no-index, offline)",
            fix="env -u PIP_NO_INDEX -u UV_OFFLINE -u UV_NO_INDEX detronome doctor --updates",
        )
    elif "detronome" not in inventory.versions:
        yield Finding(
            check="requirements",
            severity=Severity.WARNING,
            what="nothing was asked for",
            cause="detronome runs from its source and is not installed as a package, so its requirements are not known",
            fix=inventory.installer.install("detronome"),
        )
    else:
        yield from _without_answer(facts["packages"], facts["indexes"])


def _without_answer(packages: Mapping[str, Any], indexes: Sequence[str]) -> Iterator[Finding]:
    """Yield a finding for each reason why packages are not known, with their names."""
    names: dict[str, list[str]] = {}
    for name, facts in packages.items():
        if "error" in facts:
            names.setdefault(facts["error"], []).append(name)
    for reason, without in names.items():
        page = shlex.quote(f"{indexes[0]}/")
        is_all = len(without) == len(packages)
        yield Finding(
            check="index",
            severity=Severity.WARNING,
            what="the package index could not be asked" if is_all else f"not known: {first_few(without)}",
            cause=reason,
            fix=f"curl -sSI {page}   # a proxy: export HTTPS_PROXY=http://HOST:PORT SSL_CERT_FILE=ITS.pem",
            evidence=", ".join(without) if len(without) < len(packages) else "",
        )

"""Judges the disks where runs and the cache lie."""

from __future__ import annotations

import errno
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from detronome.doctor.findings import Facts, Finding, Severity
from detronome.runtime.files import format_size, is_disk_full

__all__ = ["judge_disks"]

_GIB = 2**30
_MIB = 2**20
_LEAST_FREE_BYTES = 5 * _GIB
_SLOW_DISK_BYTES_PER_S = 10 * _MIB
_NETWORK_DISKS = {"nfs", "nfs4", "cifs", "smb3", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "fuse.sshfs", "9p"}
_WHY_NOT = {
    errno.ENOSPC: "other files take all of its room",
    errno.EDQUOT: "other files of yours take all of your share of it (quota)",
    errno.EROFS: "it is mounted read-only",
}


def judge_disks(facts: Facts, usable: int) -> Iterator[Finding]:
    """Judge the disks of the working folder and of the cache by what was written to them and read back."""
    for disk in facts["disks"]:
        yield from _disk(disk)
    if "working folder" not in {disk["use"] for disk in facts["disks"]}:
        yield Finding(
            check="working folder",
            severity=Severity.FAILURE,
            what="the working folder is gone: commands cannot tell where they are",
            cause="it was removed, or removed and made anew, while this shell was in it",
            fix="cd ~   # or another folder; where it was made anew: cd .",
        )


def _disk(disk: Mapping[str, Any]) -> Iterator[Finding]:
    use, folder = disk["use"], disk["folder"]
    where = f"{folder} ({disk['file_system'] or 'unknown file system'})"
    other = (
        "export DETRONOME_CACHE=/a/folder/of/yours"
        if use == "cache"
        else "detronome train DATA --out /a/folder/of/yours/run"
    )
    if "error" in disk:
        is_full = is_disk_full(OSError(disk["errno"], disk["error"]))
        yield Finding(
            check=use,
            severity=Severity.FAILURE if is_full or use != "cache" else Severity.WARNING,
            what=f"the {use} cannot be written: {'the disk is full' if is_full else disk['error']}",
            cause=_WHY_NOT.get(disk["errno"], "its owner, its rights, or how it is mounted"),
            fix="detronome data cache --clear" if is_full else other,
            evidence=where,
        )
        return
    if not disk["is_whole"]:
        yield Finding(
            check=use,
            severity=Severity.FAILURE,
            what=f"the disk of the {use} does not keep what is written: a file read after its rename is another",
            cause="a network disk without consistent caches, or a failing one",
            fix=other,
            evidence=where,
        )
        return
    rate = disk["write_bytes"] / max(1e-9, disk["write_s"])
    free = format_size(disk["free_bytes"])
    if disk["free_bytes"] < _LEAST_FREE_BYTES:
        yield Finding(
            check=use,
            severity=Severity.WARNING,
            what=f"the disk of the {use} has {free} free",
            cause="a run keeps several checkpoints of up to a gigabyte, the cache compiled annotations",
            fix=f"du -xh --max-depth=1 {shlex.quote(folder)} | sort -h | tail"
            if use != "cache"
            else "detronome data cache --clear",
            evidence=where,
        )
    elif rate < _SLOW_DISK_BYTES_PER_S:
        yield Finding(
            check=use,
            severity=Severity.WARNING,
            what=f"the disk of the {use} writes {rate / _MIB:.1f} MiB/s",
            cause="a slow or busy disk, or a network disk: checkpoints and caches take their time",
            fix=other,
            evidence=where,
        )
    elif not disk["locks"]:
        yield Finding(
            check=use,
            severity=Severity.WARNING,
            what=f"the disk of the {use} has no locks: two runs could write the same folder",
            cause="a network disk mounted without locking (nolock)",
            fix=other,
            evidence=where,
        )
    else:
        network = ", a network disk" if disk["file_system"] in _NETWORK_DISKS else ""
        yield Finding(
            check=use,
            what=f"writes {rate / _MIB:,.0f} MiB/s, renames in one step, {free} free{network}",
            evidence=where,
        )

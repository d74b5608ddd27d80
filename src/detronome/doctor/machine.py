"""Judges what the machine and its container grant, its disks, its GPU and its speed."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from detronome.doctor.child import Answer
from detronome.doctor.findings import Facts, Finding, Severity
from detronome.doctor.install import Installer
from detronome.doctor.releases import DRIVER_OF_CUDA, LAST_WITH_CUDA_12

__all__ = ["judge_gpu", "judge_machine", "judge_speed"]

_GIB = 2**30
_MIB = 2**20
_LEAST_FILES = 1024
_LEAST_MEMORY_BYTES = 2 * _GIB
_LEAST_FREE_BYTES = 5 * _GIB
_BATCH_BYTES = 16 * 1333 * 800 * 3
"""16 images of DETR's largest size, as bytes."""
_BATCHES_A_WORKER = 2
"""That a loader worker has ready."""
_SLOW_DISK_BYTES_PER_S = 10 * _MIB
_SLOW_DECODING_PER_S = 40.0
"""A core of any server of the last ten years decodes some hundred such pictures in a second."""
_NETWORK_DISKS = {"nfs", "nfs4", "cifs", "smb3", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "fuse.sshfs", "9p"}
_NO_SPACE = 28
_WHY_NOT = {_NO_SPACE: "other files take all of its room", 30: "it is mounted read-only"}
"""By error number."""


def judge_machine(answers: Mapping[str, Answer]) -> Iterator[Finding]:
    """Judge processors, memory, shared memory, open files, disks and the compiler."""
    judges = (
        ("machine.processors", "processors", _processors),
        ("machine.memory", "memory", _memory),
        ("machine.shared_memory", "shared memory", _shared_memory),
        ("machine.open_files", "open files", _open_files),
        ("machine.disks", "disks", _disks),
        ("machine.compiler", "compiler", _compiler),
    )
    facts = {name: answers[name].facts for name, _, _ in judges if answers[name].is_answered}
    usable = int(facts.get("machine.processors", {}).get("usable", 1))
    for name, check, judge in judges:
        answer = answers[name]
        if answer.is_answered:
            yield from judge(answer.facts, usable)
        elif answer.end != "not run" and not answer.last_line.startswith("ModuleNotFoundError"):
            yield _not_seen(answer, check)
    torch = answers["torch_calls.import_torch"]
    if torch.is_answered and "machine.processors" in facts:
        yield from _threads(torch.facts, facts["machine.processors"])


def _not_seen(answer: Answer, check: str) -> Finding:
    if check == "shared memory":
        return Finding(
            check=check,
            severity=Severity.FAILURE,
            what="no semaphore can be made in /dev/shm: loader workers cannot start",
            cause="the container has no /dev/shm, or it cannot be written",
            fix="docker run --shm-size=8g ...",
            evidence=answer.last_line,
        )
    hang = answer.end == "timed out"
    return Finding(
        check=check,
        severity=Severity.WARNING,
        what=f"{check}: {'no answer in time' if hang else 'cannot be looked at'}",
        cause="a disk hangs, such as a network disk whose server is away" if hang and check == "disks" else "",
        fix="df -h" if check == "disks" else "",
        evidence=answer.last_line,
    )


def _processors(facts: Facts, usable: int) -> Iterator[Finding]:
    name = facts.get("name") or facts["machine"]
    flags = facts.get("flags", [])
    if flags and facts["machine"] in ("x86_64", "AMD64") and "avx2" not in flags:
        yield Finding(
            check="processors",
            severity=Severity.WARNING,
            what=f"{name} has no AVX2: torch computes several times slower, and some packages do not load",
            cause="an old processor, or a virtual machine whose CPU type hides it",
            fix="# choose the CPU type `host` for the virtual machine",
        )
        return
    of = f" of {facts['present']}" if usable != facts["present"] else ""
    grant = ""
    if usable < facts["bound"]:
        grant = ": the control group grants no more (Detronome counts these, most tools count all)"
    elif facts["bound"] < facts["present"]:
        grant = ": this process is bound to them"
    plural = "s" if usable != 1 else ""
    yield Finding(check="processors", what=f"{usable}{of} processor{plural} may be used, {name}{grant}")


def _threads(torch: Facts, processors: Facts) -> Iterator[Finding]:
    """Yield a warning where torch starts more threads than there are processors to run them."""
    usable, threads = processors["usable"], torch["threads"]
    if threads > 2 * usable:
        yield Finding(
            check="threads",
            severity=Severity.WARNING,
            what=f"torch starts {threads} threads where {usable} processors may be used: they wait for each other",
            cause="torch counts the machine's processors, not those that the container is granted",
            fix=f"export OMP_NUM_THREADS={usable}",
            evidence=f"OMP_NUM_THREADS={processors['omp_threads'] or 'not set'}",
        )


def _memory(facts: Facts, usable: int) -> Iterator[Finding]:
    free, total = facts["available_bytes"], facts["total_bytes"]
    if free < _LEAST_MEMORY_BYTES:
        yield Finding(
            check="memory",
            severity=Severity.WARNING,
            what=f"{_size(free)} of {_size(total)} main memory are left: torch alone takes about one",
            cause="other programs hold it, or the container's limit is low",
            fix="ps aux --sort=-rss | head   # in Docker: --memory=16g",
        )
    else:
        yield Finding(check="memory", what=f"{_size(free)} of {_size(total)} main memory are free")


def _shared_memory(facts: Facts, usable: int) -> Iterator[Finding]:
    if not facts["is_there"]:
        return  # not on this system
    needed = usable * _BATCHES_A_WORKER * _BATCH_BYTES
    if facts["free_bytes"] < needed:
        yield Finding(
            check="shared memory",
            severity=Severity.WARNING,
            what=f"/dev/shm has {_size(facts['free_bytes'])} free; {usable} loader workers fill up to {_size(needed)}",
            cause="containers have 64 MB by default; a worker that finds it full dies with a bus error",
            fix="docker run --shm-size=8g ...   # or --ipc=host; meanwhile: --set data.workers=0",
            evidence=f"{_size(facts['total_bytes'])} in all",
        )
    else:
        yield Finding(check="shared memory", what=f"{_size(facts['free_bytes'])} free in /dev/shm")


def _open_files(facts: Facts, usable: int) -> Iterator[Finding]:
    soft, hard = facts["soft"], facts["hard"]
    if soft is not None and soft < _LEAST_FILES:
        can_rise = hard is None or hard >= _LEAST_FILES
        yield Finding(
            check="open files",
            severity=Severity.WARNING,
            what=f"a process may hold {soft:,} files open: too few for the tensors of loader workers",
            cause="a low limit (ulimit -n) of the shell, the service or the container",
            fix=f"ulimit -n {min(hard or 65536, 65536)}" if can_rise else "docker run --ulimit nofile=65536 ...",
            evidence=f"soft {soft:,}, hard {'unlimited' if hard is None else format(hard, ',')}",
        )
    else:
        shown = "any number of" if soft is None else f"{soft:,}"
        more = f" ({hard:,} after ulimit -n)" if soft is not None and hard is not None and hard > soft else ""
        yield Finding(check="open files", what=f"a process may hold {shown} files open{more}")


def _disks(facts: Facts, usable: int) -> Iterator[Finding]:
    for disk in facts["disks"]:
        yield from _disk(disk)


def _disk(disk: Mapping[str, Any]) -> Iterator[Finding]:
    use, folder = disk["use"], disk["folder"]
    where = f"{folder} ({disk['file_system'] or 'unknown file system'})"
    other = (
        "export DETRONOME_CACHE=/a/folder/of/yours"
        if use == "cache"
        else "detronome train DATA --out /a/folder/of/yours/run"
    )
    if "error" in disk:
        is_full = disk.get("errno") == _NO_SPACE
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
    if disk["free_bytes"] < _LEAST_FREE_BYTES:
        yield Finding(
            check=use,
            severity=Severity.WARNING,
            what=f"the disk of the {use} has {_size(disk['free_bytes'])} free",
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
            what=f"writes {rate / _MIB:,.0f} MiB/s, renames in one step, {_size(disk['free_bytes'])} free{network}",
            evidence=where,
        )


def _compiler(facts: Facts, usable: int) -> Iterator[Finding]:
    if facts["compiler"] and facts["headers"]:
        yield Finding(check="compiler", what=f"{facts['compiler']}, and Python's headers", evidence=facts["headers"])
    else:
        lacking = "no C++ compiler" if not facts["compiler"] else "Python's headers are missing"
        yield Finding(
            check="compiler",
            what=f"{lacking}: only train.compile would need it",
            fix="sudo apt-get install -y build-essential python3-dev",
        )


def judge_gpu(answers: Mapping[str, Answer], installer: Installer) -> Iterator[Finding]:
    """Judge driver and GPUs, and whether this torch can use them."""
    driver, torch, devices = (
        answers[name] for name in ("gpu.driver", "torch_calls.import_torch", "torch_calls.devices")
    )
    if torch.facts.get("hip") and not driver.facts.get("devices"):
        yield _rocm(torch, devices)
        return
    if not driver.is_answered:
        yield Finding(
            check="GPU",
            severity=Severity.WARNING,
            what="the driver cannot be asked",
            cause="nvidia-ml-py or the driver's library fails",
            fix="nvidia-smi",
            evidence=driver.last_line,
        )
        return
    facts = driver.facts
    gpus = facts.get("devices", [])
    if not gpus:
        yield from _no_gpu(facts)
        return
    listed = ", ".join(f"{gpu['name']} ({_size(gpu['total_bytes'])})" for gpu in gpus)
    problem = _torch_problem(facts, torch, devices, installer)
    if problem is None:
        yield Finding(check="GPU", what=f"{listed}; driver {facts['driver']}, up to CUDA {facts['cuda']}")
    else:
        yield problem
    full = [gpu for gpu in gpus if gpu["used_bytes"] > 0.5 * gpu["total_bytes"]]
    if full:
        yield Finding(
            check="GPU memory",
            severity=Severity.WARNING,
            what=f"{len(full)} of {len(gpus)} GPUs: more than half of the memory is held by other programs",
            cause="another run, or an earlier one whose processes live on",
            fix="nvidia-smi   # which processes hold it",
            evidence=", ".join(f"{_size(gpu['used_bytes'])} of {_size(gpu['total_bytes'])}" for gpu in full),
        )


def _rocm(torch: Answer, devices: Answer) -> Finding:
    """Judge AMD's GPUs by what torch sees of them: no driver of theirs is asked."""
    gpus = devices.facts.get("devices", [])
    build = f"ROCm {torch.facts['hip']}"
    if gpus:
        listed = ", ".join(f"{gpu['name']} ({_size(gpu['total_bytes'])})" for gpu in gpus)
        return Finding(check="GPU", what=f"{listed}; {build}")
    return Finding(
        check="GPU",
        severity=Severity.WARNING,
        what=f"torch is built for {build} and uses no GPU: models run on the processor",
        cause="there is no AMD GPU, its driver fails, or this user or container may not open /dev/kfd",
        fix="rocminfo && ls -l /dev/kfd /dev/dri",
        evidence=devices.facts.get("reason", "") if devices.is_answered else devices.last_line,
    )


def _no_gpu(facts: Facts) -> Iterator[Finding]:
    error = facts.get("error", "")
    is_mismatch = "mismatch" in error.lower() or "LibRmVersionMismatch" in error
    if is_mismatch:
        yield Finding(
            check="GPU",
            severity=Severity.FAILURE,
            what="the NVIDIA driver was updated, and its old kernel module is still loaded",
            cause="driver and kernel module are of different versions until the next start",
            fix="sudo reboot",
            evidence=error,
        )
    elif facts["device_files"] or facts["kernel_module"]:
        no_nvml = not facts["is_nvml_there"]
        yield Finding(
            check="GPU",
            severity=Severity.WARNING,
            what="there is an NVIDIA GPU, but its driver does not answer",
            cause="nvidia-ml-py is missing"
            if no_nvml
            else "the container has the device without the driver's libraries",
            fix="docker run --gpus all ...   # with the NVIDIA container toolkit",
            evidence=error or facts["kernel_module"],
        )
    else:
        yield Finding(check="GPU", what="no NVIDIA GPU: models run on the processor")


def _torch_problem(facts: Facts, torch: Answer, devices: Answer, installer: Installer) -> Finding | None:
    """Return why torch cannot use the GPUs that are there; None where it can."""
    if not torch.is_answered:
        return None
    cuda = torch.facts["cuda"]
    gpus = facts["devices"]
    if not cuda and not torch.facts["hip"]:
        return Finding(
            check="GPU",
            severity=Severity.WARNING,
            what=f"{gpus[0]['name']} is there, but torch {torch.facts['version']} is a CPU build: nothing would use it",
            cause="torch was installed from the index for CPUs, or by a tool that prefers it",
            fix=f"{installer.uninstall(['torch', 'torchvision'])} && {installer.install('torch', 'torchvision')}",
        )
    if facts["visible"] is not None and facts["visible"].strip() in ("", "-1"):
        return Finding(
            check="GPU",
            severity=Severity.WARNING,
            what="CUDA_VISIBLE_DEVICES hides all GPUs",
            cause="it is set to nothing, or to -1",
            fix="unset CUDA_VISIBLE_DEVICES",
            evidence=f"CUDA_VISIBLE_DEVICES={facts['visible']!r}",
        )
    major = int(cuda.split(".")[0]) if cuda else 0
    needed = DRIVER_OF_CUDA.get(major, 0)
    installed = facts["driver"].split(".")[0]
    if installed.isdigit() and int(installed) < needed:
        older = _cuda_12(installer) if int(installed) >= DRIVER_OF_CUDA[12] else ""
        return Finding(
            check="GPU",
            severity=Severity.FAILURE,
            what=f"driver {facts['driver']} is too old for this torch: CUDA {cuda} needs {needed} or later",
            cause=f"this torch was built for CUDA {cuda}; the driver goes up to CUDA {facts['cuda']}",
            fix=older or f"sudo apt-get install -y nvidia-driver-{needed}",
            evidence=devices.facts.get("reason") or devices.last_line,
        )
    built_for = devices.facts.get("built_for", [])
    for gpu in gpus:
        capability = gpu.get("capability", "")
        if built_for and capability and not _has_code(capability, built_for):
            return Finding(
                check="GPU",
                severity=Severity.FAILURE,
                what=f"this torch holds no code for {gpu['name']} ({capability})",
                cause=f"torch {torch.facts['version']} was built for {', '.join(built_for)}",
                fix=_cuda_12(installer)
                if _number(capability) < 75
                else installer.install("torch", "torchvision", upgrade=True),
            )
    if devices.end in ("raised", "died", "timed out"):
        from detronome.doctor.explain import explain_error

        match = explain_error(devices.error).best
        return Finding(
            check="GPU",
            severity=Severity.FAILURE,
            what="a small computation on the GPU fails"
            if devices.end != "timed out"
            else "the GPU does not answer in time",
            cause=match.cause if match else "driver, GPU or CUDA's libraries",
            fix=match.fix[0] if match else "nvidia-smi && sudo dmesg | grep -i xid",
            evidence=devices.last_line,
        )
    if devices.is_answered and not devices.facts["is_available"]:
        return Finding(
            check="GPU",
            severity=Severity.FAILURE,
            what="torch cannot start CUDA",
            cause="the driver answers, CUDA does not: its libraries of another version, or the driver needs a restart",
            fix="unset LD_LIBRARY_PATH" if "cuda" in facts["library_path"].lower() else "sudo reboot",
            evidence=devices.facts.get("reason", ""),
        )
    return None


def _cuda_12(installer: Installer) -> str:
    beyond = f"{LAST_WITH_CUDA_12[0]}.{LAST_WITH_CUDA_12[1] + 1}"
    return installer.install(f"torch>=2.11,<{beyond}", "torchvision", again=True, cuda="cu126")


def _has_code(capability: str, built_for: list[str]) -> bool:
    """Return whether a binary runs on a GPU: code of the same generation, not newer than it, or portable code (PTX)."""
    number = _number(capability)
    for built in built_for:
        kind, _, text = built.partition("_")
        digits = "".join(letter for letter in text if letter.isdigit())
        if not digits:
            continue
        is_portable = kind == "compute" and int(digits) <= number
        if is_portable or (int(digits) // 10 == number // 10 and int(digits) <= number):
            return True
    return False


def _number(capability: str) -> int:
    return int("".join(letter for letter in capability if letter.isdigit()) or 0)


def judge_speed(answers: Mapping[str, Answer], usable: int) -> Iterator[Finding]:
    """Judge how fast a core decodes pictures, and say how fast it computes."""
    decoding, matrices = answers["speed.decoding"], answers["speed.matrices"]
    if decoding.is_answered:
        facts = decoding.facts
        rate = facts["per_cpu_s"]
        gain = f", {rate / facts['pillow_per_s']:.1f}x Pillow" if facts.get("pillow_per_s") else ""
        if rate < _SLOW_DECODING_PER_S:
            yield Finding(
                check="decoding",
                severity=Severity.WARNING,
                what=f"a core decodes {rate:.0f} photos a second (640 x 480): loading data will set the pace",
                cause="a slow or throttled processor, or a decoder without its fast code (SIMD)",
                fix="detronome data shard DATA OUT && detronome train OUT --set data.decode=fast",
            )
        else:
            yield Finding(
                check="decoding",
                what=f"a core decodes {rate:.0f} photos a second (640 x 480){gain}; all {usable}: {usable * rate:,.0f}",
            )
    if matrices.is_answered:
        yield Finding(
            check="computing", what=f"a core multiplies matrices at {matrices.facts['gflops']:.0f} GFLOP/s (float32)"
        )


def _size(num_bytes: float) -> str:
    if num_bytes >= _GIB:
        return f"{num_bytes / _GIB:.1f} GiB"
    return f"{num_bytes / _MIB:.0f} MiB"

"""Judges the GPUs: driver against torch's CUDA, code for them, a small computation, and who holds their memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from detronome.doctor.child import Answer
from detronome.doctor.explain import explain_error
from detronome.doctor.findings import Facts, Finding, Severity
from detronome.doctor.install import Installer
from detronome.doctor.releases import DRIVER_OF_CUDA, LAST_WITH_CUDA_12
from detronome.runtime.files import format_size

__all__ = ["judge_gpu"]

_FAILED = ("raised", "died", "timed out")


def judge_gpu(answers: Mapping[str, Answer], installer: Installer) -> Iterator[Finding]:
    """Judge driver and GPUs, and whether this torch can use them."""
    driver, torch, devices = (
        answers[name] for name in ("gpu.driver", "torch_calls.import_torch", "torch_calls.devices")
    )
    if torch.facts.get("hip") and not driver.facts.get("devices"):
        yield _rocm(torch, devices, installer)
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
        yield from _no_gpu(facts, installer)
        return
    listed = ", ".join(f"{gpu['name']} ({format_size(gpu['total_bytes'])})" for gpu in gpus)
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
            evidence=", ".join(
                f"{format_size(gpu['used_bytes'])} of {format_size(gpu['total_bytes'])}" for gpu in full
            ),
        )


def _rocm(torch: Answer, devices: Answer, installer: Installer) -> Finding:
    """Judge AMD's GPUs by what torch sees of them: no driver of theirs is asked."""
    gpus = devices.facts.get("devices", [])
    build = f"ROCm {torch.facts['hip']}"
    if gpus:
        listed = ", ".join(f"{gpu['name']} ({format_size(gpu['total_bytes'])})" for gpu in gpus)
        return Finding(check="GPU", what=f"{listed}; {build}")
    if devices.end in _FAILED:
        return _failing_gpu(devices, installer)
    return Finding(
        check="GPU",
        severity=Severity.WARNING,
        what=f"torch is built for {build} and uses no GPU: models run on the processor",
        cause="there is no AMD GPU, its driver fails, or this user or container may not open /dev/kfd",
        fix="rocminfo && ls -l /dev/kfd /dev/dri",
        evidence=devices.facts.get("reason", ""),
    )


def _failing_gpu(devices: Answer, installer: Installer) -> Finding:
    match = explain_error(devices.error).best
    return Finding(
        check="GPU",
        severity=Severity.FAILURE,
        what="a small computation on the GPU fails"
        if devices.end != "timed out"
        else "the GPU does not answer in time",
        cause=match.cause if match else "driver, GPU or its libraries",
        fix=(installer.first_command(match.fix, package="torch") if match else "") or "sudo dmesg | tail -50",
        evidence=devices.last_line,
    )


def _no_gpu(facts: Facts, installer: Installer) -> Iterator[Finding]:
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
        cause, fix = _why_silent(error, facts["is_nvml_there"], installer)
        yield Finding(
            check="GPU",
            severity=Severity.WARNING,
            what="there is an NVIDIA GPU, but its driver does not answer",
            cause=cause,
            fix=fix,
            evidence=error or facts["kernel_module"],
        )
    else:
        yield Finding(check="GPU", what="no NVIDIA GPU: models run on the processor")


def _why_silent(error: str, is_nvml_there: bool, installer: Installer) -> tuple[str, str]:
    """Return why a driver does not answer, and the command."""
    if not is_nvml_there:
        return "nvidia-ml-py is missing", installer.install("nvidia-ml-py")
    if "LibraryNotFound" in error or "Library Not Found" in error:
        cause = "the driver's libraries are not there: a container that got the device alone, or half an installation"
        return cause, "docker run --gpus all ...   # in a container, with the NVIDIA container toolkit"
    match = explain_error(error).best
    if match is None:
        return "the driver, its kernel module or the GPU fails", "nvidia-smi"
    return match.cause, installer.first_command(match.fix) or "nvidia-smi"


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
    # The libraries of a newer driver (CUDA's forward compatibility) let an older one do.
    has_computed = devices.is_answered and devices.facts["is_available"]
    if installed.isdigit() and int(installed) < needed and not has_computed:
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
    if devices.end in _FAILED:
        return _failing_gpu(devices, installer)
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

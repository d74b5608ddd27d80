"""Judges what the packages did when they were called; an error is looked up among the symptoms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from detronome.doctor.child import Answer
from detronome.doctor.explain import explain_error
from detronome.doctor.findings import Finding, Severity
from detronome.doctor.install import Installer
from detronome.doctor.packages import Inventory
from detronome.doctor.versions import allows

__all__ = ["judge_calls"]

_BAD_NCCL = ">=2.28.3,<2.28.9"
"""NVIDIA's own resiliency tools warn of these: a communicator that is torn down and made anew can hang."""


@dataclass(frozen=True, kw_only=True)
class _Call:
    """A probe of one package."""

    probe: str
    check: str
    package: str = ""
    """The distribution that is installed again where the symptoms say no better."""
    is_optional: bool = False
    """Whether we work without it."""


_CALLS = (
    _Call(probe="torch_calls.numpy_round_trip", check="torch with numpy", package="numpy"),
    _Call(probe="torch_calls.nms", check="torchvision", package="torchvision"),
    _Call(probe="compiled.simplejpeg", check="simplejpeg", package="simplejpeg"),
    _Call(probe="compiled.pillow", check="pillow", package="pillow"),
    _Call(probe="compiled.scipy", check="scipy", package="scipy"),
    _Call(probe="compiled.safetensors", check="safetensors", package="safetensors"),
    _Call(probe="compiled.hotcoco", check="hotcoco", package="hotcoco"),
    _Call(probe="compiled.core_imports", check="other packages"),
    _Call(probe="compiled.coco_api", check="pycocotools", package="pycocotools", is_optional=True),
    _Call(probe="compiled.opencv", check="opencv", package="opencv-python-headless", is_optional=True),
    _Call(probe="compiled.onnx", check="onnx", package="onnx", is_optional=True),
    _Call(probe="compiled.onnxruntime", check="onnxruntime", package="onnxruntime", is_optional=True),
    _Call(probe="compiled.openvino", check="openvino", package="openvino", is_optional=True),
    _Call(probe="compiled.tensorrt", check="tensorrt", package="tensorrt", is_optional=True),
    _Call(probe="compiled.av", check="av", package="av", is_optional=True),
    _Call(probe="compiled.serving", check="serving", package="starlette", is_optional=True),
)
_DISTRIBUTIONS = {"torch with numpy": "numpy", "opencv": "opencv-python-headless"}


def judge_calls(answers: Mapping[str, Answer], inventory: Inventory, found: Sequence[Finding]) -> Iterator[Finding]:
    """Judge the calls.

    Args:
        answers: by probe.
        inventory: what is installed.
        found: what metadata has shown already; its cause stands where a call only confirms it.
    """
    blamed = {finding.check: finding for finding in found if finding.severity is Severity.FAILURE}
    yield from _torch(answers["torch_calls.import_torch"], inventory, blamed)
    fine: list[str] = []
    for call in _CALLS:
        answer = answers[call.probe]
        is_absent = call.package in _absent(inventory) and not call.is_optional
        if answer.end == "not run" or is_absent or answer.facts.get("is_there") is False:
            continue  # why is told elsewhere, or it is not there and need not be
        if answer.is_answered:
            fine.append(call.check)
        elif _missing_module(answer) not in blamed and not _is_told(call.check, blamed):
            yield _failed(answer, call.check, call.package, inventory.installer, is_optional=call.is_optional)
    if fine:
        yield Finding(check="calls", what=f"these answer: {', '.join(fine)}")
    yield from _processes(answers, inventory)


def _absent(inventory: Inventory) -> set[str]:
    return {call.package for call in _CALLS if call.package and call.package not in inventory.versions}


def _is_told(check: str, blamed: Mapping[str, Finding]) -> bool:
    """Return whether metadata has named the cause: a pair that does not fit fails in more than one call."""
    names = {check, _DISTRIBUTIONS.get(check, check)}
    return bool(names & blamed.keys())


def _missing_module(answer: Answer) -> str:
    """Return the package whose absence is the whole error; it is told as a missing requirement."""
    from detronome.doctor.probes.installed import MODULES

    line = answer.last_line
    if not line.startswith("ModuleNotFoundError: No module named '"):
        return ""
    module = line.split("'")[1].split(".")[0]
    return MODULES.get(module, module.replace("_", "-"))


def _torch(answer: Answer, inventory: Inventory, blamed: Mapping[str, Finding]) -> Iterator[Finding]:
    if "torch" not in inventory.versions and not answer.is_answered:
        if "torch" not in blamed:
            yield Finding(
                check="torch",
                severity=Severity.FAILURE,
                what="torch is not installed",
                cause="nothing but the commands about data works without it",
                fix=inventory.installer.install("torch>=2.11", "torchvision>=0.26"),
            )
    elif not answer.is_answered:
        yield _failed(answer, "torch", "torch", inventory.installer)
    else:
        facts = answer.facts
        build = f"CUDA {facts['cuda']}" if facts["cuda"] else f"ROCm {facts['hip']}" if facts["hip"] else "CPU build"
        vision = inventory.versions.get("torchvision", "")
        numpy = inventory.versions.get("numpy", "")
        beside = "".join(
            f", {name} {version}" for name, version in (("torchvision", vision), ("NumPy", numpy)) if version
        )
        yield Finding(
            check="torch",
            what=f"torch {facts['version']} ({build}){beside}; loaded in {facts['seconds']:.1f} s",
            evidence=facts["path"],
        )


def _failed(answer: Answer, check: str, package: str, installer: Installer, *, is_optional: bool = False) -> Finding:
    """Return the finding of a call that raised, died or hung; with the cause that its words tell."""
    severity = Severity.WARNING if is_optional else Severity.FAILURE
    match = explain_error(answer.error).best
    again = installer.install(package, upgrade=True, again=True) if package else ""
    if answer.end == "timed out":
        return Finding(
            check=check,
            severity=Severity.WARNING,
            what=f"{check}: no answer in time",
            cause="the call hangs, or the machine and its disks are very busy",
            fix=f"detronome doctor --limit-s 120   # is it slow, or does it hang?{f' then: {again}' if again else ''}",
            evidence=answer.last_line,
        )
    how = "crashes" if answer.end == "died" else "fails"
    if match is not None and not match.is_consequence:
        return Finding(
            check=check,
            severity=severity,
            what=f"{check} {how} when it is called: {match.name}",
            cause=match.cause,
            fix=_first_command(match.fix, package, installer) or again,
            evidence=answer.last_line if answer.end == "raised" else match.text,
        )
    return Finding(
        check=check,
        severity=severity,
        what=f"{check} {how} when it is called",
        cause="its files are damaged, or were built for other versions of what it uses",
        fix=again,
        evidence=answer.last_line,
    )


def _first_command(fix: Sequence[str], package: str, installer: Installer) -> str:
    """Return the first step of a symptom's fix that is a command, for this environment's installer."""
    for step in fix:
        command = step.partition("   #")[0].strip().removeprefix("python -m ")
        if not command or command.startswith("#"):
            continue
        if command.startswith("pip ") and "&&" not in command and " -m " not in command:
            command = command.replace("PACKAGE", package)
            return installer.translate(command)
        return command.replace("PACKAGE", package)
    return ""


def _processes(answers: Mapping[str, Answer], inventory: Inventory) -> Iterator[Finding]:
    """Judge ranks, tensors from workers, and how processes are started."""
    ranks = answers["torch_calls.ranks"]
    if ranks.facts.get("is_skipped"):
        pass  # this system cannot fork
    elif ranks.is_answered and not ranks.facts["is_available"]:
        yield Finding(check="ranks", what="this torch has no torch.distributed: one process is all it can")
    elif ranks.is_answered:
        facts = ranks.facts
        version = f" {facts['nccl']}" if facts["nccl"] else ""
        if facts["nccl"] and allows(_BAD_NCCL, facts["nccl"]):
            yield Finding(
                check="ranks",
                severity=Severity.WARNING,
                what=f"NCCL {facts['nccl']} can hang when ranks are restarted within a process",
                cause="a fault of NCCL 2.28.3 to 2.28.8",
                fix=inventory.installer.install("torch", "torchvision", upgrade=True),
            )
        else:
            yield Finding(
                check="ranks",
                what=f"two processes summed 1 MiB over {facts['backend']}{version} in {facts['seconds']:.1f} s",
            )
    elif ranks.end != "not run":
        yield _ranks_failed(ranks)
    worker = answers["torch_calls.worker_tensor"]
    if worker.end not in ("answered", "not run"):
        yield _failed(worker, "loader workers", "", inventory.installer)
    elif worker.is_answered and not worker.facts.get("is_skipped"):
        yield Finding(check="loader workers", what=f"a tensor came from a worker ({worker.facts['strategy']})")
    starts = answers["machine.start_methods"]
    if starts.is_answered:
        shown = ", ".join(f"{method} {seconds:.2f} s" for method, seconds in starts.facts["seconds"].items())
        yield Finding(check="start methods", what=f"processes start: {shown}; {starts.facts['default']} is usual here")
    elif starts.end != "not run":
        yield _failed(starts, "start methods", "", inventory.installer)


def _ranks_failed(answer: Answer) -> Finding:
    cause = "a network interface, a firewall, or the way in which the GPUs are connected"
    fix = "NCCL_DEBUG=INFO GLOO_SOCKET_IFNAME=lo NCCL_SOCKET_IFNAME=lo detronome doctor   # over loopback"
    match = explain_error(answer.error).best
    if match is not None and not match.is_consequence:
        cause, fix = match.cause, match.fix[0]
    return Finding(
        check="ranks",
        severity=Severity.WARNING,
        what="two processes on this machine cannot sum a tensor: training on several GPUs would fail or hang",
        cause=cause,
        fix=fix,
        evidence=answer.last_line,
    )

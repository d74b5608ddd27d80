"""Judges what the packages did when they were called; an error is looked up among the symptoms."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from detronome.doctor.advisories import TWINS
from detronome.doctor.child import Answer
from detronome.doctor.explain import explain_error
from detronome.doctor.findings import Finding, Severity
from detronome.doctor.install import Installer
from detronome.doctor.packages import Inventory
from detronome.doctor.probes.compiled import CORE, SERVING
from detronome.doctor.probes.installed import MODULES
from detronome.doctor.versions import allows

__all__ = ["judge_calls"]

_OURS = "detronome"
_BAD_NCCL = ">=2.28.3,<2.28.9"
"""NVIDIA's own resiliency tools warn of these: a communicator that is torn down and made anew can hang."""


@dataclass(frozen=True, kw_only=True)
class _Call:
    """A probe of one package."""

    probe: str
    check: str
    package: str = ""
    """The distribution that is installed again where the symptoms say no better, or a twin of it that is there."""
    modules: Sequence[str] = ()
    """Of a call of several packages; the error tells which one failed."""
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
    _Call(probe="compiled.core_imports", check="other packages", modules=CORE),
    _Call(probe="compiled.coco_api", check="pycocotools", package="pycocotools", is_optional=True),
    _Call(probe="compiled.opencv", check="opencv", package="opencv-python-headless", is_optional=True),
    _Call(probe="compiled.onnx", check="onnx", package="onnx", is_optional=True),
    _Call(probe="compiled.onnxruntime", check="onnxruntime", package="onnxruntime", is_optional=True),
    _Call(probe="compiled.openvino", check="openvino", package="openvino", is_optional=True),
    _Call(probe="compiled.tensorrt", check="tensorrt", package="tensorrt", is_optional=True),
    _Call(probe="compiled.av", check="av", package="av", is_optional=True),
    _Call(probe="compiled.serving", check="serving", modules=SERVING, is_optional=True),
)


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
        package = _package(call, answer, inventory)
        is_told = not call.is_optional and package not in ("", *inventory.versions) and _OURS in inventory.versions
        if answer.end == "not run" or is_told or answer.facts.get("is_there") is False:
            continue  # why is told elsewhere, or it is not there and need not be
        if answer.is_answered:
            fine.append(call.check)
            yield from _missing(answer, inventory)
        elif blamed.keys().isdisjoint({_missing_module(answer), call.check, package}):
            yield _failed(answer, call.check, package, inventory.installer, is_optional=call.is_optional)
    if fine:
        yield Finding(check="calls", what=f"these answer: {', '.join(fine)}")
    yield from _processes(answers, inventory)


def _package(call: _Call, answer: Answer, inventory: Inventory) -> str:
    """Return the distribution to blame for a call that fails; empty where the error does not tell."""
    if call.modules:
        names = "|".join(call.modules)
        frames = re.findall(rf'File "[^"\n]*?[/\\]({names})(?:[/\\][^"\n]*|\.py)"', answer.error)
        return _distribution(frames[-1]) if frames else ""
    twins = next((twins.packages for twins in TWINS if call.package in twins.packages), ())
    return next((name for name in (call.package, *twins) if name in inventory.versions), call.package)


def _missing(answer: Answer, inventory: Inventory) -> Iterator[Finding]:
    """Yield what is missing in a source tree, whose requirements are not known: else it is told as one of them."""
    if _OURS in inventory.versions:
        return
    for module in answer.facts.get("missing", ()):
        name = _distribution(module)
        yield Finding(
            check=name,
            severity=Severity.FAILURE,
            what=f"{name} is not installed",
            cause=f"{_OURS} imports {module}",
            fix=inventory.installer.install(name),
        )


def _distribution(module: str) -> str:
    return MODULES.get(module, module.replace("_", "-"))


def _missing_module(answer: Answer) -> str:
    """Return the package whose absence is the whole error; it is told as a missing requirement."""
    line = answer.last_line
    if not line.startswith("ModuleNotFoundError: No module named '"):
        return ""
    return _distribution(line.split("'")[1].split(".")[0])


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
        fix = installer.first_command(match.fix, package=package)
        return Finding(
            check=check,
            severity=severity,
            what=f"{check} {how} when it is called: {match.name}",
            cause=match.cause,
            fix=again if again and fix.startswith("#") else fix or again,
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
        yield _ranks_failed(ranks, inventory.installer)
    worker = answers["torch_calls.worker_tensor"]
    if worker.end not in ("answered", "not run"):
        yield _failed(worker, "loader workers", "", inventory.installer)
    elif worker.is_answered and not worker.facts.get("is_skipped"):
        yield Finding(check="loader workers", what=f"a tensor came from a worker ({worker.facts['strategy']})")
    starts = answers["machine.start_methods"]
    if starts.is_answered:
        shown = ", ".join(f"{method} {seconds:.2f} s" for method, seconds in starts.facts["seconds"].items())
        yield Finding(check="start methods", what=f"processes start: {shown}; {starts.facts['default']} is usual here")
    elif starts.end != "not run" and "os.getcwd()" not in starts.error:  # a working folder that is gone is told
        yield _failed(starts, "start methods", "", inventory.installer)


def _ranks_failed(answer: Answer, installer: Installer) -> Finding:
    cause = "a network interface, a firewall, or the way in which the GPUs are connected"
    fix = "NCCL_DEBUG=INFO GLOO_SOCKET_IFNAME=lo NCCL_SOCKET_IFNAME=lo detronome doctor   # over loopback"
    match = explain_error(answer.error).best
    if match is not None and not match.is_consequence:
        cause, fix = match.cause, installer.first_command(match.fix, package="torch")
    return Finding(
        check="ranks",
        severity=Severity.WARNING,
        what="two processes on this machine cannot sum a tensor: training on several GPUs would fail or hang",
        cause=cause,
        fix=fix,
        evidence=answer.last_line,
    )

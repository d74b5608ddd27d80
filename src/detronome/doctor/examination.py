"""The examination: probes in child processes, all side by side, then the judgements."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Event

from detronome.doctor.calls import judge_calls
from detronome.doctor.child import Answer, Batch, run_batch
from detronome.doctor.findings import LEAST_LIMIT_S, LIMIT_S, MOST_LIMIT_S, Examination, Finding, Severity
from detronome.doctor.gpu import judge_gpu
from detronome.doctor.install import Installer
from detronome.doctor.machine import judge_machine, judge_speed
from detronome.doctor.packages import Inventory, judge_packages, judge_python
from detronome.errors import ConfigError
from detronome.version import __version__

__all__ = ["GROUPS", "examine_environment"]

GROUPS = ("packages", "calls", "machine", "GPU", "speed", "time")
_NO_TIME = ("timed out", "not run")
_METADATA = Batch(probes=("installed.python", "installed.packages"))
_BATCHES = (
    _METADATA,
    Batch(
        probes=tuple(
            f"torch_calls.{name}"
            for name in ("import_torch", "numpy_round_trip", "ranks", "worker_tensor", "nms", "devices")
        ),
        is_first_needed=True,
        environment={"PYTORCH_NVML_BASED_CUDA_CHECK": "1"},
    ),
    Batch(
        probes=(
            *(
                f"compiled.{name}"
                for name in (
                    "simplejpeg",
                    "pillow",
                    "scipy",
                    "safetensors",
                    "hotcoco",
                    "core_imports",
                    "coco_api",
                    "opencv",
                    "onnx",
                    "onnxruntime",
                    "openvino",
                    "tensorrt",
                    "av",
                    "serving",
                )
            ),
            "speed.decoding",
            "speed.matrices",
        ),
        environment={"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
    ),
    Batch(
        probes=(
            "machine.processors",
            "machine.memory",
            "machine.shared_memory",
            "machine.open_files",
            "machine.compiler",
            "machine.start_methods",
            "gpu.driver",
        ),
    ),
    Batch(probes=("machine.disks",)),
)


def examine_environment(
    on_stage: Callable[[str], None] = lambda stage: None, *, limit_s: float = LIMIT_S
) -> Examination:
    """Examine the Python that runs, the packages that it finds, and this machine.

    Nothing that could be broken is imported here.

    Args:
        on_stage: is told what is being done.
        limit_s: of the whole, 2 to 3600; what has not answered then is ended, and named in a finding.

    Raises:
        ConfigError: for another limit.
    """
    if not LEAST_LIMIT_S <= limit_s <= MOST_LIMIT_S:
        raise ConfigError(
            f"the limit is {limit_s:g} s; an examination takes some seconds and ends within the hour",
            where="limit_s (--limit-s)",
            fix=f"give {LEAST_LIMIT_S:g} to {MOST_LIMIT_S:g}",
        )
    begin = time.monotonic()
    on_stage("calling the packages")
    answers: dict[str, Answer] = {}
    stop = Event()

    with ThreadPoolExecutor(max_workers=len(_BATCHES)) as pool:
        try:
            for told in pool.map(lambda batch: run_batch(batch, limit_s=limit_s, stop=stop), _BATCHES):
                answers |= told
        except BaseException:
            stop.set()  # Ctrl-C: the pool waits for its threads, and they for their children
            raise
    on_stage("judging")
    findings = _judge(answers, limit_s)
    python = answers["installed.python"].facts
    return Examination(
        version=__version__,
        python=sys.version.split()[0],
        executable=sys.executable,
        platform=python.get("platform", sys.platform),
        findings=findings,
        seconds=time.monotonic() - begin,
    )


def _judge(answers: dict[str, Answer], limit_s: float) -> list[Finding]:
    unread = [answers[probe] for probe in _METADATA.probes if not answers[probe].is_answered]
    if any(answer.end in _NO_TIME for answer in unread):
        return [*_unfinished(answers, limit_s)]
    if unread:
        return [
            Finding(
                group="packages",
                check="python",
                severity=Severity.FAILURE,
                what="this Python cannot tell what is installed",
                cause="it is damaged, or its folders cannot be read",
                fix="uv venv --python 3.12 && uv pip install detronome",
                evidence=unread[0].last_line,
            )
        ]
    inventory = Inventory(
        python=answers["installed.python"].facts,
        packages=answers["installed.packages"].facts,
        installer=Installer.of_this_environment(),
    )
    packages = [*judge_python(inventory), *judge_packages(inventory)]
    usable = int(answers["machine.processors"].facts.get("usable", 1))
    judged: tuple[Iterable[Finding], ...] = (
        packages,
        judge_calls(answers, inventory, packages),
        judge_machine(answers),
        judge_gpu(answers, inventory.installer),
        judge_speed(answers, usable),
        _unfinished(answers, limit_s),
    )
    return [replace(finding, group=group) for group, found in zip(GROUPS, judged, strict=True) for finding in found]


def _unfinished(answers: dict[str, Answer], limit_s: float) -> Iterator[Finding]:
    """Yield which checks did not finish in time, so that nobody takes silence for health."""
    names: list[str] = []
    for batch in _BATCHES:
        ends = {probe: answers[probe].end for probe in batch.probes}
        if batch.is_first_needed and ends[batch.probes[0]] in ("raised", "died"):
            continue  # the others are in vain
        names += [_name(probe) for probe, end in ends.items() if end in _NO_TIME]
    if names:
        yield Finding(
            check="time",
            severity=Severity.WARNING,
            what=f"not finished within {limit_s:g} s: {', '.join(names)}",
            cause="the machine is busy or its disks are slow, or a call hangs and those behind it waited",
            fix=f"detronome doctor --limit-s {min(max(120, 4 * limit_s), MOST_LIMIT_S):g}",
        )


def _name(probe: str) -> str:
    return probe.rpartition(".")[2].replace("_", " ")

"""Judges what the machine and its container grant, and its speed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from detronome.doctor.child import Answer
from detronome.doctor.disks import judge_disks
from detronome.doctor.findings import Facts, Finding, Severity
from detronome.runtime.files import format_size

__all__ = ["judge_machine", "judge_speed"]

_GIB = 2**30
_LEAST_FILES = 1024
_LEAST_MEMORY_BYTES = 2 * _GIB
_BATCH_BYTES = 16 * 1333 * 800 * 3
"""16 images of DETR's largest size, as bytes."""
_BATCHES_A_WORKER = 2
"""That a loader worker has ready."""
_SLOW_DECODING_PER_S = 40.0
"""A core of any server of the last ten years decodes some hundred such pictures in a second."""


def judge_machine(answers: Mapping[str, Answer]) -> Iterator[Finding]:
    """Judge processors, memory, shared memory, open files, disks and the compiler."""
    judges = (
        ("machine.processors", "processors", _processors),
        ("machine.memory", "memory", _memory),
        ("machine.shared_memory", "shared memory", _shared_memory),
        ("machine.open_files", "open files", _open_files),
        ("machine.disks", "disks", judge_disks),
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
            what=f"{format_size(free)} of {format_size(total)} main memory are left: torch alone takes about one",
            cause="other programs hold it, or the container's limit is low",
            fix="ps aux --sort=-rss | head   # in Docker: --memory=16g",
        )
    else:
        yield Finding(check="memory", what=f"{format_size(free)} of {format_size(total)} main memory are free")


def _shared_memory(facts: Facts, usable: int) -> Iterator[Finding]:
    if not facts["is_there"]:
        return  # not on this system
    needed = usable * _BATCHES_A_WORKER * _BATCH_BYTES
    free = format_size(facts["free_bytes"])
    if facts["free_bytes"] < needed:
        yield Finding(
            check="shared memory",
            severity=Severity.WARNING,
            what=f"/dev/shm has {free} free; {usable} loader workers fill up to {format_size(needed)}",
            cause="containers have 64 MB by default; a worker that finds it full dies with a bus error",
            fix="docker run --shm-size=8g ...   # or --ipc=host; meanwhile: --set data.workers=0",
            evidence=f"{format_size(facts['total_bytes'])} in all",
        )
    else:
        yield Finding(check="shared memory", what=f"{free} free in /dev/shm")


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

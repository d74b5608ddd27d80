"""Trainers that are killed and resumed until they have finished, and the proof that nobody can tell.

A *run* is a folder that becomes a finished training. It takes several *lives*: processes, each the leader of a group of
its own, forked from a server that has imported torch already. A *blow* says when and with which signal a life ends.
Every life appends to the run's *trace* what its training steps were given, so that the lives together can be held
against the one life of a run that nothing struck.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import functools
import hashlib
import json
import multiprocessing
import os
import random
import re
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors import safe_open

__all__ = [
    "FINISHED",
    "INTERRUPTED",
    "Blow",
    "Campaign",
    "Life",
    "LifeEnd",
    "RunUnderFire",
    "Variant",
    "differences",
    "fork_server",
    "read_trace",
]

FINISHED, INTERRUPTED = 0, 10
LIFE_TIMEOUT_S = 180.0
PARTS_OF_A_RUN = (
    "detronome.api.runs",
    "detronome.engine.build",
    "detronome.model",
    "detronome.report.gallery",
    "detronome.report.html",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
    "torch._dynamo",
)
"""What a training imports on its way; imported once, in the server."""
CLOCKS = frozenset(
    (
        *("time", "training_s", "eval_s", "wall_s", "step_s", "data_wait_s", "images_per_s"),
        *("data_stages_s", "sections_s", "device_s", "system"),
        *("batches_ready", "memory_bytes", "seconds", "goodput", "saved_at", "serial", "sha256"),
        *("workers", "num_ranks"),
    )
)
"""Entries of records that a clock or the machine decides, what each life may choose, and the digest over them all."""
FILE_EVENTS = frozenset(
    ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.symlink", "os.chmod", "os.truncate", "os.link")
)
"""Audit events of what a write consists of, as seen from Python."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One kind of training."""

    name: str
    model: str
    epochs: int
    settings: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Blow:
    """When a life is struck, and with what.

    Attributes:
        moment: `time`: `delay_s` after the fork. `write`: `delay_s` after the n-th temporary folder of a checkpoint has
            appeared. `file`: just before the n-th file operation in `folder`. `evaluation`: in the n-th evaluation.
        number: the n, from 1.
        folder: part of the run folder whose files count; all of it when empty.
        to_group: strike the whole process group, or only its leader.
    """

    moment: Literal["time", "write", "file", "evaluation"]
    number: int = 1
    delay_s: float = 0.0
    folder: str = ""
    signal: signal.Signals = signal.SIGKILL
    to_group: bool = True


@dataclass(frozen=True, kw_only=True)
class Life:
    """All that a forked trainer needs to know."""

    number: int
    variant: Variant
    data: Path
    run: Path
    cache: Path
    workers: int
    blow: Blow | None
    trace: Path
    output: Path


@dataclass(frozen=True, kw_only=True)
class LifeEnd:
    """How a life ended."""

    exit_code: int
    struck_at: float | None
    """Monotonic time of the blow; None when the life was over before."""
    is_in_write: bool
    """Whether a checkpoint was being written at that moment."""

    @property
    def is_killed(self) -> bool:
        return self.exit_code == -signal.SIGKILL


@dataclass(frozen=True)
class TracedStep:
    """A training step that was completed, in whichever life."""

    life: int
    step: int
    digest: str
    at: float


# ---------------------------------------------------------------------------------------------------- the forked side


def live(life: Life) -> None:
    """Start or resume the run, in a fork; exit with FINISHED or INTERRUPTED."""
    os.setsid()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: no trainer outlives the tests
    output = os.open(life.output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    faulthandler.dump_traceback_later(LIFE_TIMEOUT_S - 10)
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # loader workers start as fast as the trainers do
    os.environ["DETRONOME_CACHE"] = str(life.cache)
    _trace_steps(life)
    if life.blow is not None and life.blow.moment == "file":
        _strike_at_file_event(life.run / life.blow.folder, life.blow.number)
    if life.blow is not None and life.blow.moment == "evaluation":
        _strike_in_evaluation(life.blow.number)
    try:
        sys.exit({"finished": FINISHED, "interrupted": INTERRUPTED}[_start_or_resume(life)])
    except KeyboardInterrupt:  # before the training heeds signals: end as a program does, not as a traceback
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)


def _start_or_resume(life: Life) -> str:
    """Do what a user does who finds the folder: resume it, and where there is nothing to resume, start it again."""
    import detronome as dt

    workers = {"data.workers": life.workers}
    try:
        return dt.resume(life.run, settings=workers).reason
    except dt.CheckpointError as error:
        if "no checkpoint" not in str(error) and "does not exist" not in str(error):
            raise
    variant = life.variant
    settings = {**variant.settings, **workers}
    return dt.train(life.data, model=variant.model, epochs=variant.epochs, out=life.run, settings=settings).reason


def _trace_steps(life: Life) -> None:
    from detronome.engine.step import TrainingStep

    original = TrainingStep.__call__
    trace = os.open(life.trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    @functools.wraps(original)
    def traced(self: Any, batch: Any, *arguments: Any, step: int, **options: Any) -> Any:
        digest = digest_of_batch(batch)
        result = original(self, batch, *arguments, step=step, **options)
        os.write(trace, f"{life.number} {step} {digest} {time.monotonic()}\n".encode())
        return result

    TrainingStep.__call__ = traced  # type: ignore[method-assign]


def digest_of_batch(batch: Any) -> str:
    """Return the SHA-256 of all that a training step is given: ids, labels, boxes, sizes, pixels, padding."""
    digest = hashlib.sha256()
    for part in batch.parts:
        for target in part.targets:
            digest.update(repr((target.image_id, target.size_hw, target.orig_size_hw)).encode())
            digest.update(target.labels.numpy().tobytes())
            digest.update(target.boxes_cxcywh.numpy().tobytes())
        digest.update(repr(tuple(part.images.shape)).encode())
        digest.update(part.images.contiguous().numpy().tobytes())
        digest.update(part.padding_mask.numpy().tobytes())
    return digest.hexdigest()


def _strike_at_file_event(folder: Path, number: int) -> None:
    prefix, seen = str(folder), 0

    def on_audit(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if event in FILE_EVENTS and any(
            os.fsdecode(argument).startswith(prefix)
            for argument in arguments
            if isinstance(argument, str | bytes | os.PathLike)
        ):
            seen += 1
            if seen == number:
                os.killpg(0, signal.SIGKILL)

    sys.addaudithook(on_audit)


def _strike_in_evaluation(number: int) -> None:
    """Kill in the n-th evaluation; every other time when all detections are in and AP is about to be computed."""
    from detronome.evaluation.detection import DetectionEvaluator

    num_computed = 0
    add, compute = DetectionEvaluator.add, DetectionEvaluator.compute
    is_early = number % 2 == 1

    def add_or_die(*arguments: Any, **options: Any) -> Any:
        if is_early and num_computed == number - 1:
            os.killpg(0, signal.SIGKILL)
        return add(*arguments, **options)

    def compute_or_die(*arguments: Any, **options: Any) -> Any:
        nonlocal num_computed
        num_computed += 1
        if num_computed == number:
            os.killpg(0, signal.SIGKILL)
        return compute(*arguments, **options)

    DetectionEvaluator.add = add_or_die  # type: ignore[method-assign]
    DetectionEvaluator.compute = compute_or_die  # type: ignore[method-assign]


# --------------------------------------------------------------------------------------------------- the striking side


@contextlib.contextmanager
def fork_server() -> Iterator[None]:
    """Have a server that has imported all that a training needs, runs no thread, and forks each life."""
    multiprocessing.set_forkserver_preload([*PARTS_OF_A_RUN, __name__])
    with pytest.MonkeyPatch.context() as patch:
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            patch.setenv(name, "1")
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]), prepend=os.pathsep)
        process = multiprocessing.get_context("forkserver").Process(target=int)
        process.start()
        process.join()
    yield


class RunUnderFire:
    """One run folder, life after life.

    Args:
        variant: what is trained.
        data: the data folder.
        folder: holds the run, its trace and the lives' output.
    """

    def __init__(self, variant: Variant, data: Path, folder: Path) -> None:
        self.variant = variant
        self.data = data
        self.folder = folder
        self.run = folder / "run"
        self.trace = folder / "trace.txt"
        self.ends: list[LifeEnd] = []
        folder.mkdir(parents=True)

    def live(self, blow: Blow | None = None, *, workers: int = 0) -> LifeEnd:
        """Train until the blow or the end.

        Raises:
            AssertionError: the life ended with an error of its own, or not at all.
        """
        number = len(self.ends)
        life = Life(
            number=number,
            variant=self.variant,
            data=self.data,
            run=self.run,
            cache=self.folder.parent / "cache",
            workers=workers,
            blow=blow,
            trace=self.trace,
            output=self.folder / f"life-{number}.txt",
        )
        process = multiprocessing.get_context("forkserver").Process(target=live, args=(life,))
        known = self._temporary_folders()
        process.start()
        started = time.monotonic()
        try:
            is_struck = blow is not None and self._strike(process, blow, known)
            process.join(max(0.0, LIFE_TIMEOUT_S - (time.monotonic() - started)))
            is_hung = process.exitcode is None
        finally:
            # What a leader that was killed alone leaves behind stays, as it would for the next start.
            if blow is None or blow.to_group or process.exitcode != -signal.SIGKILL:
                _signal(process, signal.SIGKILL, to_group=True)
            process.join()
        assert not is_hung, f"life {number} of {self.folder} hung:\n{self.output()}"
        assert process.exitcode is not None
        is_own_blow = process.exitcode == -signal.SIGKILL and not is_struck
        end = LifeEnd(
            exit_code=process.exitcode,
            struck_at=self._struck_at if is_struck else time.monotonic() if is_own_blow else None,
            is_in_write=process.exitcode == -signal.SIGKILL and self._is_in_write(blow, known),
        )
        expected = {FINISHED, INTERRUPTED, -signal.SIGKILL, *([-blow.signal] if blow else [])}
        assert end.exit_code in expected, f"life {number} of {self.folder} failed:\n{self.output()}"
        self.ends.append(end)
        return end

    @property
    def is_finished(self) -> bool:
        return bool(self.ends) and self.ends[-1].exit_code == FINISHED

    def output(self) -> str:
        """Return the end of what the last life has printed."""
        files = sorted(self.folder.glob("life-*.txt"), key=lambda file: file.stat().st_mtime)
        return files[-1].read_text()[-4000:] if files else ""

    @property
    def recoveries_s(self) -> list[float]:
        """Seconds from each blow to the end of the first step that was trained after it."""
        firsts: dict[int, float] = {}
        for step in read_trace(self.trace):
            firsts.setdefault(step.life, step.at)
        return [
            firsts[number + 1] - end.struck_at
            for number, end in enumerate(self.ends)
            if end.struck_at is not None and number + 1 in firsts
        ]

    def _strike(self, process: BaseProcess, blow: Blow, known: set[str]) -> bool:
        """Wait for the moment and strike; return False where the child does so itself, or is gone before."""
        if blow.moment in ("file", "evaluation"):
            return False
        if blow.moment == "write" and not self._wait_for_write(process, blow.number, known):
            return False
        process.join(blow.delay_s)
        if process.exitcode is not None:
            return False
        self._struck_at = time.monotonic()
        _signal(process, blow.signal, to_group=blow.to_group)
        return True

    def _wait_for_write(self, process: BaseProcess, number: int, known: set[str]) -> bool:
        seen = set(known)
        while process.exitcode is None:
            seen |= self._temporary_folders()
            if len(seen - known) >= number:
                return True
            time.sleep(0.0005)
        return False

    def _is_in_write(self, blow: Blow | None, known: set[str]) -> bool:
        is_in_protocol = blow is not None and blow.moment == "file" and blow.folder == "checkpoints"
        return is_in_protocol or bool(self._temporary_folders() - known)

    def _temporary_folders(self) -> set[str]:
        try:
            return {name for name in os.listdir(self.run / "checkpoints") if name.startswith(".")}
        except OSError:
            return set()


def _signal(process: BaseProcess, number: signal.Signals, *, to_group: bool) -> None:
    """Signal a life. Before its first instruction it has no group yet; afterwards, perhaps none any more."""
    assert process.pid is not None
    if to_group:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
            return
    if process.exitcode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)


# ------------------------------------------------------------------------------------------------------------ the proof


def read_trace(path: Path) -> list[TracedStep]:
    """Return the completed steps of all lives, in the order in which they were completed."""
    if not path.exists():
        return []
    rows = (line.split() for line in path.read_text().splitlines())
    return [TracedStep(int(life), int(step), digest, float(at)) for life, step, digest, at in rows]


def differences(run: RunUnderFire, reference: RunUnderFire) -> list[str]:
    """Return all in which a finished run differs from one that was never struck; nothing, if the promise holds."""
    return [*_trace_problems(run, reference), *_differing(fingerprint(run.run), fingerprint(reference.run))]


def num_redone(run: RunUnderFire) -> int:
    """Return the number of completed steps that were lost and done again."""
    steps = [step.step for step in read_trace(run.trace)]
    return len(steps) - len(set(steps))


def _trace_problems(run: RunUnderFire, reference: RunUnderFire) -> Iterator[str]:
    expected = {step.step: step.digest for step in read_trace(reference.trace)}
    seen: set[int] = set()
    life, previous = -1, -1
    for traced in read_trace(run.trace):
        if traced.life == life and traced.step != previous + 1:
            yield f"trace: life {life} went from step {previous} to step {traced.step}"
        if traced.life != life and traced.step > max(seen, default=-1) + 1:
            yield f"trace: life {traced.life} began at step {traced.step}, but {max(seen, default=-1)} was the last"
        if traced.digest != expected.get(traced.step):
            yield f"trace: step {traced.step} in life {traced.life} was given other samples"
        life, previous = traced.life, traced.step
        seen.add(traced.step)
    if seen != set(expected):
        yield f"trace: steps {sorted(seen ^ set(expected))} are missing or too many"


def _differing(ours: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    return [
        f"{name}: {ours.get(name, 'absent')[:200]} instead of {theirs.get(name, 'absent')[:200]}"
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    ]


def fingerprint(run: Path) -> dict[str, str]:
    """Return all that a run has learned and told, by name, without clocks: tensors as digests, records as JSON."""
    from detronome.engine.checkpoint import find_checkpoint

    prints: dict[str, str] = {}
    for name in ("last", "best"):
        checkpoint = find_checkpoint(run, prefer=name)
        prints[name] = _step_of(checkpoint)
        link = run / "checkpoints" / name
        prints[f"link {name}"] = _step_of(link.readlink()) if link.is_symlink() else "absent"
        for file in sorted(checkpoint.glob("*.safetensors")):
            with safe_open(file, "pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118 - it is no mapping
                    tensor = tensors.get_tensor(key)
                    content = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
                    described = f"{tensor.dtype} {tuple(tensor.shape)} {hashlib.sha256(content).hexdigest()}"
                    prints[f"{name}/{file.stem}/{key}"] = described
        for key, value in json.loads((checkpoint / "state.json").read_text()).items():
            if key not in CLOCKS:
                prints[f"{name}/state/{key}"] = json.dumps(_without_clocks(value), sort_keys=True)
    prints["checkpoints"] = ", ".join(sorted(map(_step_of, (run / "checkpoints").iterdir())))
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    told = [_without_clocks(record) for record in records if record["kind"] != "start"]
    for number, record in enumerate(told):
        prints[f"log/{number}"] = json.dumps(record, sort_keys=True)
    # A run that is started again puts the log of its first start aside, and a resume the settings that it changed.
    names = {path.name for path in run.iterdir()} - {"log.jsonl.previous"}
    prints["files"] = ", ".join(sorted(name for name in names if not name.startswith("config-until-step-")))
    return prints


def _step_of(checkpoint: Path) -> str:
    """Return a checkpoint's name without its count: a stop in an evaluation saves the step, and the resume again."""
    return re.sub(r"^(step-\d+)-\d+$", r"\1", checkpoint.name)


def _without_clocks(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_clocks(item) for key, item in value.items() if key not in CLOCKS}
    return [_without_clocks(item) for item in value] if isinstance(value, list) else value


# ---------------------------------------------------------------------------------------------------------- a campaign


@dataclass
class Campaign:
    """Many kills over many runs, two trainers side by side, and what came of it.

    Args:
        data: the data folder.
        folder: for the runs.
        seed: of the moments of the blows.
        worker_counts: one is drawn for each life.
    """

    data: Path
    folder: Path
    seed: int
    worker_counts: Sequence[int] = (0, 2, 4)
    num_kills: int = 0
    num_in_write: int = 0
    num_runs: int = 0
    num_redone: int = 0
    recoveries_s: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def fire(self, variants: Iterable[Variant], *, kills: int, in_write: int) -> None:
        """Train each variant undisturbed, then under so many kills, of which so many while a checkpoint is written."""
        with ThreadPoolExecutor(2) as pool:
            for future in [pool.submit(self._fire_on, v, kills, in_write) for v in variants]:
                future.result()

    def _fire_on(self, variant: Variant, kills: int, in_write: int) -> None:
        draw = random.Random(f"{self.seed} {variant.name}")
        reference = RunUnderFire(variant, self.data, self.folder / f"{variant.name} undisturbed")
        started = time.monotonic()
        assert reference.live().exit_code == FINISHED, reference.output()
        length_s = time.monotonic() - started
        # On average the blows are spread over one length; what is left of a blow that comes too late hits another run.
        blows = [Blow(moment="time", delay_s=draw.uniform(0, 1.5 * length_s / kills)) for _ in range(kills - in_write)]
        blows += [_blow_in_write(draw) for _ in range(in_write)]
        draw.shuffle(blows)
        attempt = 0
        while blows:
            run = RunUnderFire(variant, self.data, self.folder / f"{variant.name} {attempt}")
            self._strike_until_finished(run, blows, draw)
            with self._lock:
                self.num_runs += 1
                self.num_redone += num_redone(run)
                self.recoveries_s += run.recoveries_s
                self.problems += [f"{run.folder.name}: {what}" for what in differences(run, reference)]
            attempt += 1

    def _strike_until_finished(self, run: RunUnderFire, blows: list[Blow], draw: random.Random) -> None:
        while not run.is_finished:
            blow = blows.pop() if blows else None
            end = run.live(blow, workers=draw.choice(self.worker_counts))
            with self._lock:
                self.num_kills += end.is_killed
                self.num_in_write += end.is_in_write
            is_missed = blow is not None and not end.is_killed
            is_beside = blow is not None and blow.moment in ("write", "file") and not end.is_in_write
            if is_missed or is_beside:
                blows.insert(0, _blow_in_write(draw) if is_beside else blow)  # type: ignore[arg-type]


def _blow_in_write(draw: random.Random) -> Blow:
    """Return a blow from outside at any moment of a write, or exactly before one of its file operations."""
    if draw.random() < 0.5:
        return Blow(moment="write", number=draw.randint(1, 3), delay_s=draw.choice((0.0, 0.002, 0.02)) * draw.random())
    return Blow(moment="file", folder="checkpoints", number=draw.randint(1, 80))

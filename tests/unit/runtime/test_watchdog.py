"""Real processes, forked from this one, that hang in each way; all scenes play at the same time."""

import ctypes
import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from detronome.errors import TrainingError
from detronome.runtime.distributed import World, joined_world
from detronome.runtime.hang import HangReport
from detronome.runtime.progress import Progress, Section
from detronome.runtime.watchdog import EXIT_HANG, Watchdog

TIMEOUT_S = 2.0
SIZE = 3
FORK = multiprocessing.get_context("fork")

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

Play = Callable[[Progress, World], None]


# --- how ranks hang ----------------------------------------------------------------------------------------------


def wait_for_the_others(progress: Progress) -> None:
    progress.enter(Section.AGREE, step=12)
    time.sleep(60)


def hang_in_data_wait(progress: Progress, world: World) -> None:
    if world.rank == 1:
        progress.enter(Section.DATA_WAIT, step=12, images=[17, 23])
        time.sleep(60)
    wait_for_the_others(progress)


def stop_rank_2(progress: Progress, world: World) -> None:
    if world.rank == 2:
        progress.enter(Section.FORWARD, step=12, images=[5])
        time.sleep(1.3)
        os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(60)
    wait_for_the_others(progress)


def stop_rank_0(progress: Progress, world: World) -> None:
    if world.rank == 0:
        progress.enter(Section.CHECKPOINT, step=12)
        time.sleep(1.3)
        os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(60)
    wait_for_the_others(progress)


def hold_the_interpreter(progress: Progress, world: World) -> None:
    if world.rank == 1:
        progress.enter(Section.UPDATE, step=12)
        time.sleep(1.3)
        ctypes.PyDLL(None).usleep(4_500_000)
        time.sleep(60)
    wait_for_the_others(progress)


def leave_the_others(progress: Progress, world: World) -> None:
    if world.rank != 1:
        wait_for_the_others(progress)


def never_reach_the_sum(progress: Progress, world: World) -> None:
    if world.rank == 1:
        progress.enter(Section.LOG, step=12)
        time.sleep(60)
    progress.enter(Section.AGREE, step=12)
    world.sum([1])


def work_slowly(progress: Progress, world: World) -> None:
    for step in range(8):
        progress.enter(Section.FORWARD, step=step)
        time.sleep(0.4)
        progress.enter(Section.AGREE)
    with progress.within(Section.CHECKPOINT):
        time.sleep(TIMEOUT_S + 0.5)


def hang_alone_with_a_worker(progress: Progress, world: World) -> None:
    worker = FORK.Process(target=time.sleep, args=(60,))
    worker.start()
    Path("worker").write_text(str(worker.pid))
    hang_in_data_wait(progress, World(rank=1))


# --- the scenes --------------------------------------------------------------------------------------------------


@dataclass
class Scene:
    """Ranks that play a hang, and what became of them."""

    play: Play
    size: int = SIZE
    keeper: int | None = None
    meets: bool = False
    loses_store: bool = False
    """The process that keeps the store, which is no rank, is killed."""
    resumes: int | None = None
    """The rank that is continued once the others are gone."""
    folder: Path = Path()
    processes: list[BaseProcess] = field(default_factory=list)
    exit_codes: dict[int, int | None] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def stderr(self) -> str:
        return "".join((self.folder / f"stderr{rank}").read_text() for rank in range(self.size))

    @property
    def said(self) -> list[str]:
        return [line for line in self.stderr.splitlines() if line.startswith("The run hangs")]

    @property
    def report(self) -> dict[str, Any]:
        (path,) = (self.folder / "hangs").glob("hang-12-rank*.json")
        report: dict[str, Any] = json.loads(path.read_text())
        return report

    def stacks_of(self, rank: int) -> str:
        path = self.folder / "hangs" / f"hang-12-rank{rank}.txt"
        return path.read_text() if path.exists() else ""


SCENES = {
    "data_wait": Scene(hang_in_data_wait),
    "stopped": Scene(stop_rank_2, resumes=2),
    "rank_0_stopped": Scene(stop_rank_0),
    "keeper_stopped": Scene(stop_rank_0, keeper=0),
    "held": Scene(hold_the_interpreter),
    "left": Scene(leave_the_others),
    "collective": Scene(never_reach_the_sum, keeper=0, meets=True),
    "slow": Scene(work_slowly),
    "storeless_hang": Scene(hang_in_data_wait, loses_store=True),
    "storeless": Scene(work_slowly, loses_store=True),
    "alone": Scene(hang_alone_with_a_worker, size=1),
}


def play_rank(name: str, rank: int, port: int) -> None:
    scene = SCENES[name]
    os.chdir(scene.folder)
    stderr = os.open(f"stderr{rank}", os.O_WRONLY | os.O_CREAT)
    os.dup2(stderr, 2)
    sys.stderr = sys.__stderr__ = open(2, "w", closefd=False)  # noqa: SIM115
    progress = Progress()
    watch = {"timeout_s": TIMEOUT_S, "folder": scene.folder / "hangs"}
    if scene.meets:
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(SIZE), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(SIZE))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        with joined_world("cpu", timeout_s=60) as world, Watchdog(progress, world, **watch):  # type: ignore[arg-type]
            scene.play(progress, world)
        return
    world = World(rank=rank, size=scene.size)
    store = None
    if scene.size > 1:
        server = dist.TCPStore("127.0.0.1", port, is_master=rank == scene.keeper, wait_for_workers=False)
        store = dist.PrefixStore(name, server)
    with Watchdog(
        progress,
        world,
        store=store,
        store_keeper=scene.keeper,
        **watch,  # type: ignore[arg-type]
    ):
        scene.play(progress, world)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Scene]]:
    # Stores have threads, and what forks should have none: they are kept by processes of their own.
    store_port, doomed_port = free_port(), free_port()
    store, doomed_store = (FORK.Process(target=keep_store, args=(port,)) for port in (store_port, doomed_port))
    store.start()
    doomed_store.start()
    for name, scene in SCENES.items():
        scene.folder = tmp_path_factory.mktemp(name)
        port = doomed_port if scene.loses_store else store_port if scene.keeper is None else free_port()
        scene.processes = [FORK.Process(target=play_rank, args=(name, rank, port)) for rank in range(scene.size)]
        for process in scene.processes:
            process.start()
    started = time.monotonic()
    try:
        time.sleep(1)
        doomed_store.kill()
        await_ends(started, limit_s=18)
        yield SCENES
    finally:
        for process in [store, doomed_store, *(p for scene in SCENES.values() for p in scene.processes)]:
            process.kill()
            process.join()


def keep_store(port: int) -> None:
    store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    time.sleep(60)
    del store


def await_ends(started: float, *, limit_s: float) -> None:
    pending = set(SCENES)
    while pending and time.monotonic() - started < limit_s:
        for name in sorted(pending):
            scene = SCENES[name]
            alive = [rank for rank, process in enumerate(scene.processes) if process.is_alive()]
            scene.exit_codes = {rank: process.exitcode for rank, process in enumerate(scene.processes)}
            scene.seconds = time.monotonic() - started
            if alive == [scene.resumes]:
                os.kill(scene.processes[alive[0]].pid or 0, signal.SIGCONT)
            elif not alive or (alive == [0] and scene.play is stop_rank_0):
                pending.discard(name)
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


# --- what is seen of them ----------------------------------------------------------------------------------------


@pytest.mark.dist
def test_slow_ranks_are_left_alone_and_leave_nothing_behind(scenes: dict[str, Scene]) -> None:
    scene = scenes["slow"]
    assert scene.exit_codes == {0: 0, 1: 0, 2: 0}
    assert scene.said == []
    assert not (scene.folder / "hangs").exists()


@pytest.mark.dist
def test_a_run_without_the_store_goes_on(scenes: dict[str, Scene]) -> None:
    scene = scenes["storeless"]
    assert scene.exit_codes == {0: 0, 1: 0, 2: 0}
    assert scene.said == []


@pytest.mark.dist
def test_a_hang_without_the_store_is_told_by_each_rank_of_itself(scenes: dict[str, Scene]) -> None:
    scene = scenes["storeless_hang"]
    assert scene.exit_codes == {0: EXIT_HANG, 1: EXIT_HANG, 2: EXIT_HANG}
    assert ["data_wait" in line for line in scene.said] == [False, True, False]
    assert all("what the other ranks do is not known" in line for line in scene.said)


@pytest.mark.dist
def test_a_rank_that_waits_for_data_is_named_with_its_images(scenes: dict[str, Scene]) -> None:
    scene = scenes["data_wait"]
    assert scene.exit_codes == {0: EXIT_HANG, 1: EXIT_HANG, 2: EXIT_HANG}
    assert scene.seconds < TIMEOUT_S + 6
    (line,) = scene.said
    assert "rank 1 of 3" in line
    assert "has been in data_wait for" in line
    assert "at step 12, image ids 17, 23; ranks 0, 2 wait for it in agree" in line
    assert (scene.report["kind"], scene.report["culprits"]) == ("overdue", [1])
    assert len(scene.report["records"]) == 3
    assert "hang_in_data_wait" in scene.stacks_of(1)
    assert all("wait_for_the_others" in scene.stacks_of(rank) for rank in (0, 2))


@pytest.mark.dist
def test_a_stopped_rank_is_named_and_ends_once_it_goes_on(scenes: dict[str, Scene]) -> None:
    scene = scenes["stopped"]
    assert scene.exit_codes == {0: EXIT_HANG, 1: EXIT_HANG, 2: EXIT_HANG}
    (line,) = scene.said
    assert "rank 2 of 3" in line
    assert "has not been heard of" in line
    assert "it was in forward at step 12, image ids 5; ranks 0, 1 wait for it in agree" in line
    assert scene.report["reporter"] != 2


@pytest.mark.dist
@pytest.mark.parametrize("name", ["rank_0_stopped", "keeper_stopped"])
def test_rank_0_is_named_too_also_where_it_keeps_the_store(scenes: dict[str, Scene], name: str) -> None:
    scene = scenes[name]
    assert scene.exit_codes == {0: None, 1: EXIT_HANG, 2: EXIT_HANG}
    (line,) = scene.said
    assert "rank 0 of 3" in line
    assert "it was in checkpoint at step 12; ranks 1, 2 wait for it in agree" in line
    assert (scene.report["kind"], scene.report["culprits"]) == ("silent", [0])
    assert all("wait_for_the_others" in scene.stacks_of(rank) for rank in (1, 2))


@pytest.mark.dist
def test_a_rank_whose_interpreter_is_held_is_named_and_tells_by_what(scenes: dict[str, Scene]) -> None:
    scene = scenes["held"]
    assert scene.exit_codes == {0: EXIT_HANG, 1: EXIT_HANG, 2: EXIT_HANG}
    (line,) = scene.said
    assert "rank 1 of 3" in line
    assert "it was in update at step 12" in line
    assert "hold_the_interpreter" in (scene.folder / "hangs" / "held-rank1.txt").read_text()


@pytest.mark.dist
def test_a_rank_that_left_is_named(scenes: dict[str, Scene]) -> None:
    scene = scenes["left"]
    assert scene.exit_codes == {0: EXIT_HANG, 1: 0, 2: EXIT_HANG}
    (line,) = scene.said
    assert "has ended its part; ranks 0, 2 wait for it in agree" in line


@pytest.mark.dist
def test_ranks_that_met_as_torchrun_lets_them_share_a_store_and_leave_a_collective(scenes: dict[str, Scene]) -> None:
    scene = scenes["collective"]
    assert scene.exit_codes == {0: EXIT_HANG, 1: EXIT_HANG, 2: EXIT_HANG}
    (line,) = scene.said
    assert "rank 1 of 3" in line
    assert "has been in log for" in line
    assert "in _reduce" in scene.stacks_of(0)


@pytest.mark.dist
def test_a_lone_process_ends_its_workers_too(scenes: dict[str, Scene]) -> None:
    scene = scenes["alone"]
    assert scene.exit_codes == {0: EXIT_HANG}
    (line,) = scene.said
    assert "has been in data_wait" in line
    worker = int((scene.folder / "worker").read_text())
    deadline = time.monotonic() + 2
    while is_running(worker) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_running(worker)


def is_running(pid: int) -> bool:
    """A process that was orphaned may wait for its collection as a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_report_alone_lets_the_run_go_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    progress, reports = Progress(), list[HangReport]()
    with Watchdog(progress, World(), timeout_s=0.6, folder=tmp_path, action="report", on_report=reports.append):
        progress.enter(Section.UPDATE, step=3)
        time.sleep(2.2)  # long enough for two, but it is told once
    assert [(report.kind, report.step) for report in reports] == [("overdue", 3)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hang-3-rank0.json", "hang-3-rank0.txt"]


def test_without_a_timeout_there_is_no_watch(tmp_path: Path) -> None:
    folder = tmp_path / "none"
    with Watchdog(Progress(), World(size=2), timeout_s=0, folder=folder):
        assert not folder.exists()


def test_ranks_that_met_nowhere_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_PORT", raising=False)
    monkeypatch.setattr(World, "broadcast", lambda self, item: item)
    with (
        pytest.raises(TrainingError, match="cannot reach the store"),
        Watchdog(Progress(), World(size=2), timeout_s=5, folder=tmp_path),
    ):
        pass

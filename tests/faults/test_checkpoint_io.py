"""Bits that flip, disks that refuse, processes that die: after each of them a whole, verified checkpoint loads."""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.faults.io_faults import IoFaults
from tests.unit.engine.checkpoints import assert_same, checkpoint_of

from detronome.engine.checkpoint import (
    Checkpoint,
    CheckpointFolder,
    find_checkpoint,
    load_checkpoint,
    load_last_good,
)
from detronome.engine.checkpoint_writer import CheckpointWriter
from detronome.errors import CheckpointError

Report = Callable[[str, str], None]
COUNTS = pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.slow)])


@pytest.fixture(autouse=True)
def _no_flushing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is called, counted and may fail, but takes no time: it makes no difference to a process that dies."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


# --- damage on the disk ----------------------------------------------------------------------------------------------


@COUNTS
def test_flipped_bits_are_found_and_the_file_is_named(tmp_path: Path, report_figure: Report, count: int) -> None:
    path = CheckpointFolder(tmp_path).save(checkpoint_of(3), is_best=True)
    contents = {file: file.read_bytes() for file in sorted(path.iterdir())}
    places = [(file, bit) for file, content in contents.items() for bit in range(8 * len(content))]
    num_found = 0
    for file, bit in random.Random(0).sample(places, count):
        damaged = bytearray(contents[file])
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError) as error:
            load_checkpoint(path, with_training=True)
        num_found += [problem.where for problem in error.value.problems] == [str(file)]
        file.write_bytes(contents[file])
    assert_same(load_checkpoint(path, with_training=True), checkpoint_of(3))
    report_figure(f"one of {count:,} bits flipped, over all files of a checkpoint", f"{num_found:,} found, file named")
    assert num_found == count


@COUNTS
def test_truncated_and_grown_files_are_found(tmp_path: Path, report_figure: Report, count: int) -> None:
    path = CheckpointFolder(tmp_path).save(checkpoint_of(3), is_best=True)
    contents = {file: file.read_bytes() for file in sorted(path.iterdir())}
    generator = random.Random(0)
    for _ in range(count):
        file = generator.choice(list(contents))
        length = generator.randrange(len(contents[file]))
        file.write_bytes(generator.choice((contents[file][:length], contents[file] + b"\n" * (length + 1))))
        with pytest.raises(CheckpointError) as error:
            load_checkpoint(path, with_training=True)
        assert [problem.where for problem in error.value.problems] == [str(file)]
        file.write_bytes(contents[file])
    report_figure(f"{count:,} files of a checkpoint cut short or grown", f"{count:,} found, file named")


# --- system calls that fail ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where the best is that of step 1 and the newest that of step 2."""
    folder = CheckpointFolder(tmp_path_factory.mktemp("checkpoints"))
    folder.save(checkpoint_of(1), is_best=True)
    folder.save(checkpoint_of(2), is_best=False)
    return folder.path


def copy_of(checkpoints: Path, target: Path) -> CheckpointWriter:
    shutil.copytree(checkpoints, target, symlinks=True)
    return CheckpointWriter(CheckpointFolder(target), parameters=["a.weight"])


def assert_nothing_is_lost(folder: Path) -> int:
    """Check what loads after step 3 was written, or was not; return the newest step."""
    newest, problems = load_last_good(folder)
    best = load_checkpoint(find_checkpoint(folder), with_training=True)
    assert newest.state.step in (2, 3) and best.state.step in (1, 3) and not problems
    assert_same(newest, checkpoint_of(newest.state.step))
    assert_same(best, checkpoint_of(best.state.step))
    return newest.state.step


def assert_the_next_one_tidies_up(writer: CheckpointWriter) -> None:
    best = find_checkpoint(writer.folder.path)
    writer.save(checkpoint_of(4), is_best=False)
    writer.close(raise_last=True)
    names = {path.name for path in writer.folder.path.iterdir()}
    assert names - {"best"} == {best.name, "step-00000004", "last"}  # a link that could not be renewed is left out
    assert_same(writer.load_last(), checkpoint_of(4))


def num_calls(two_checkpoints: Path, target: Path) -> int:
    writer = copy_of(two_checkpoints, target)
    with IoFaults() as faults:
        writer.save(checkpoint_of(3), is_best=True)
        writer.close(raise_last=True)
    return len(faults.calls)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=["ENOSPC", "EIO"])
def test_any_system_call_may_fail(two_checkpoints: Path, tmp_path: Path, report_figure: Report, code: int) -> None:
    count, num_told = num_calls(two_checkpoints, tmp_path / "all well"), 0
    for at in range(count):
        writer = copy_of(two_checkpoints, tmp_path / str(at))
        training = checkpoint_of(3)
        with IoFaults(at=at, errno=code) as faults:
            writer.save(training, is_best=True)
            writer.settle()
            writer.wait()
        failures = writer.drain_failures()
        assert faults.has_happened, "the same calls every time"
        newest = assert_nothing_is_lost(writer.folder.path)
        assert failures or newest == 3, f"call {at}, {faults.calls[at]}: lost without a word"
        assert all(failure.step == 3 and os.strerror(code) in failure.reason for failure in failures)
        num_told += len(failures)
        assert_same(training, checkpoint_of(3))
        assert_the_next_one_tidies_up(writer)
        shutil.rmtree(writer.folder.path)
    report_figure(
        f"{errno.errorcode[code]} at each of the {count} system calls of a checkpoint",
        f"{count} times a verified checkpoint loads; {num_told} told as failed, the others written all the same",
    )


def test_what_counts_is_on_the_disk_before_what_refers_to_it(two_checkpoints: Path, tmp_path: Path) -> None:
    """So that also a machine that loses its power keeps a whole checkpoint."""
    folder = copy_of(two_checkpoints, tmp_path / "checkpoints").folder
    with IoFaults() as faults:
        folder.save(checkpoint_of(3), is_best=True)
    calls = faults.calls
    (publishing,) = (i for i, (name, path) in enumerate(calls) if name == "rename" and "step-00000003" in path)
    deleting = next(i for i, (name, path) in enumerate(calls) if name == "rename" and "step-00000003" not in path)
    last_write = max(i for i, (name, _) in enumerate(calls) if name == "write")
    flushed_files = sum(name == "fsync" for name, _ in calls[:last_write])
    assert flushed_files == 3  # tensors first; the record that vouches for them is the last file
    assert last_write < publishing < deleting
    assert sum(name == "fsync" for name, _ in calls[last_write:publishing]) >= 2  # the record and the folder
    assert "fsync" in [name for name, _ in calls[publishing:deleting]]  # the name, before the older one goes
    assert all(
        path.rpartition("/")[2].startswith(".") for name, path in calls if name in ("unlink", "rmdir") and "/" in path
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real disk of 4 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    command = [mount or "", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if mount is None or subprocess.run(command, capture_output=True, timeout=30).returncode:
        pytest.skip("no right to mount a disk")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True, timeout=30)


@pytest.mark.parametrize("is_foreseen", [True, False])
def test_a_real_disk_that_is_full(small_disk: Path, monkeypatch: pytest.MonkeyPatch, is_foreseen: bool) -> None:
    def big(step: int) -> Checkpoint:
        return replace(checkpoint_of(step), model={"a.weight": torch.full((375, 1024), float(step))})  # 1.5 MiB

    if not is_foreseen:
        monkeypatch.setattr(CheckpointFolder, "_require_space", lambda folder, checkpoint: None)
    writer = CheckpointWriter(CheckpointFolder(small_disk, keep_last=2), parameters=["a.weight"])
    for step in (1, 2, 3):
        writer.save(big(step), is_best=False)
        writer.wait()
    (failure,) = writer.drain_failures()
    assert failure.step == 3
    assert "No space left on device: 1.5 MiB are needed" in failure.reason and failure.reason.endswith("are free")
    assert sorted(path.name for path in small_disk.iterdir()) == ["last", "step-00000001", "step-00000002"]
    assert_same(writer.load_last(), big(2))
    shutil.rmtree(small_disk / "step-00000001")
    writer.save(big(3), is_best=False)
    writer.close(raise_last=True)
    assert_same(writer.load_last(), big(3))


# --- processes that die ----------------------------------------------------------------------------------------------


def die_while_writing(writer: CheckpointWriter, faults: IoFaults) -> int:
    """Write step 3 in a child process; return how that ended, as `waitpid` says it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking beside threads: the child uses none of theirs
        child = os.fork()
    if child == 0:
        try:
            with faults:
                writer.save(checkpoint_of(3), is_best=True)
                writer.settle()
                writer.close(raise_last=True)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError("the child hangs")


@pytest.mark.parametrize("count", [25, pytest.param(None, marks=pytest.mark.slow, id="everywhere")])
def test_a_process_may_die_at_any_point(
    two_checkpoints: Path, tmp_path: Path, report_figure: Report, count: int | None
) -> None:
    num = num_calls(two_checkpoints, tmp_path / "all well")
    points = [(at, action) for at in range(num) for action in ("die before", "die after")]
    if count is not None:
        points = random.Random(0).sample(points, count)
    num_newest = 0
    for at, action in points:
        writer = copy_of(two_checkpoints, tmp_path / f"{at} {action}")
        status = die_while_writing(writer, IoFaults(at=at, action=action))
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, f"{at} of {num}, {action}"
        num_newest += assert_nothing_is_lost(writer.folder.path) == 3
        assert_the_next_one_tidies_up(writer)
        shutil.rmtree(writer.folder.path)
    assert count is not None or len(points) >= 200
    report_figure(
        f"kill -9 at {len(points)} points of writing a checkpoint",
        f"{len(points)} times the newest whole one loads: {num_newest} the new one, {len(points) - num_newest} the old",
    )


_EXIT_WHILE_WRITING = """
import sys, time
from pathlib import Path
from detronome.engine import checkpoint
from detronome.engine.checkpoint_writer import CheckpointWriter
from tests.unit.engine.checkpoints import checkpoint_of

def write_for_ever(path, pieces):
    path.write_bytes(b"half")
    print("writing", flush=True)
    while True:
        time.sleep(0.001)

checkpoint.write_hashed = write_for_ever
writer = CheckpointWriter(checkpoint.CheckpointFolder(Path(sys.argv[1])), parameters=[])
writer.save(checkpoint_of(1), is_best=False)
time.sleep(1)
raise SystemExit("a user's mistake")
"""


@pytest.mark.slow
def test_a_process_that_ends_with_an_error_does_not_wait_for_the_disk(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _EXIT_WHILE_WRITING, str(tmp_path)]
    root = Path(__file__).resolve().parents[2]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=root)
    assert (result.returncode, result.stdout, result.stderr) == (1, "writing\n", "a user's mistake\n")
    assert not list(tmp_path.glob("step-*"))
    folder = CheckpointFolder(tmp_path)
    folder.save(checkpoint_of(2), is_best=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last", "step-00000002"]

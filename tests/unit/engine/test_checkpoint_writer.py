"""The training goes on beside the writing, what is written is the state at `save`, and no failed write ends a run."""

import threading
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.unit.engine.checkpoints import assert_same, checkpoint_of

from detronome.engine.checkpoint import Checkpoint, CheckpointFolder, load_checkpoint
from detronome.engine.checkpoint_writer import CheckpointFailure, CheckpointWriter
from detronome.engine.snapshot import HostBuffers, Snapshot
from detronome.errors import CheckpointError

WAIT_S = 0.05


class Gates:
    """Hold the writer's thread before it copies and before it writes, which it tells when it has come so far."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.copying, self.writing = threading.Event(), threading.Event()
        self.has_copied = threading.Event()
        copy, save = HostBuffers.copy, CheckpointFolder.save

        def copy_behind_a_gate(buffers: HostBuffers, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            if threading.current_thread() is not threading.main_thread():
                assert self.copying.wait(30)
            return copy(buffers, tensors)

        def save_behind_a_gate(folder: CheckpointFolder, checkpoint: Checkpoint, *, is_best: bool) -> Path:
            self.has_copied.set()
            assert self.writing.wait(30)
            return save(folder, checkpoint, is_best=is_best)

        monkeypatch.setattr(HostBuffers, "copy", copy_behind_a_gate)
        monkeypatch.setattr(CheckpointFolder, "save", save_behind_a_gate)

    def open(self) -> None:
        self.copying.set()
        self.writing.set()


@pytest.fixture
def gates(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gates]:
    gates = Gates(monkeypatch)
    yield gates
    gates.open()


@pytest.fixture
def writer(tmp_path: Path) -> CheckpointWriter:
    return CheckpointWriter(CheckpointFolder(tmp_path), parameters=["a.weight"])


def assert_blocks_until(gate: threading.Event, call: threading.Thread) -> None:
    call.start()
    call.join(WAIT_S)
    assert call.is_alive()
    gate.set()
    call.join(30)
    assert not call.is_alive()


def test_nothing_to_do(writer: CheckpointWriter) -> None:
    writer.settle()
    writer.wait()
    assert writer.drain_failures() == []
    writer.close(raise_last=True)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        writer.load_last()


@pytest.mark.parametrize("with_training", [True, False])
def test_what_is_written_in_the_background_is_what_is_written_at_once(
    tmp_path: Path, writer: CheckpointWriter, with_training: bool
) -> None:
    for step in (1, 2, 3):  # the buffers are used again
        writer.save(checkpoint_of(step, with_training=with_training), is_best=False)
        assert_same(writer.load_last(), checkpoint_of(step, with_training=with_training))
    writer.close(raise_last=True)


def test_the_first_checkpoint_tells_whether_the_disk_takes_any(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="could not be written"):
        CheckpointWriter(CheckpointFolder(tmp_path / "file"), parameters=[]).save_now(checkpoint_of(0), is_best=False)


def test_save_returns_before_the_copies_and_settle_does_not(
    tmp_path: Path, writer: CheckpointWriter, gates: Gates
) -> None:
    checkpoint = checkpoint_of(1)
    writer.save(checkpoint, is_best=False)
    assert_blocks_until(gates.copying, threading.Thread(target=writer.settle, daemon=True))
    for tensors in checkpoint.parts().values():  # the update, while the file is not yet written
        for tensor in tensors.values():
            tensor.zero_()
    gates.open()
    assert_same(writer.load_last(), checkpoint_of(1))


def test_what_the_forward_pass_changes_was_copied_at_once(writer: CheckpointWriter, gates: Gates) -> None:
    checkpoint = checkpoint_of(1)
    checkpoint.state.excluded.append(7)
    writer.save(checkpoint, is_best=False)
    checkpoint.model["a.count"].fill_(99)
    checkpoint.training["a.count"].fill_(99)
    checkpoint.state.excluded.append(8)
    checkpoint.state.seconds["backward"] = 1.0
    gates.open()
    expected = checkpoint_of(1)
    assert_same(writer.load_last(), replace(expected, state=replace(expected.state, excluded=[7])))


def test_tensors_gathered_for_the_checkpoint_are_freed_before_the_disk_is_done(
    writer: CheckpointWriter, gates: Gates
) -> None:
    checkpoint = checkpoint_of(1)
    gathered = [weakref.ref(tensor) for named in checkpoint.parts().values() for tensor in named.values()]
    writer.save(checkpoint, is_best=False)
    del checkpoint
    gates.copying.set()
    writer.settle()
    assert gates.has_copied.wait(30)
    assert gathered and not any(reference() is not None for reference in gathered)
    gates.open()
    assert_same(writer.load_last(), checkpoint_of(1))


def test_a_second_save_waits_for_the_first(tmp_path: Path, writer: CheckpointWriter, gates: Gates) -> None:
    gates.copying.set()
    writer.save(checkpoint_of(1), is_best=True)
    second = threading.Thread(target=writer.save, args=(checkpoint_of(2),), kwargs={"is_best": False}, daemon=True)
    assert_blocks_until(gates.writing, second)
    writer.close(raise_last=True)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00000001", "step-00000002"]


def poisoned(step: int) -> Checkpoint:
    checkpoint = checkpoint_of(step)
    checkpoint.optimizer["a.weight.exp_avg"][1, 2] = torch.nan
    return checkpoint


def test_a_failed_write_is_told_and_the_run_goes_on(tmp_path: Path, writer: CheckpointWriter) -> None:
    writer.save_now(checkpoint_of(0), is_best=False)
    writer.save(poisoned(1), is_best=True)
    writer.wait()
    (failure,) = writer.drain_failures()
    assert failure == CheckpointFailure(step=1, is_best=True, reason=failure.reason)
    assert failure.reason.endswith("not finite: optimizer/a.weight.exp_avg")
    assert writer.drain_failures() == []
    assert_same(writer.load_last(), checkpoint_of(0))
    writer.save(checkpoint_of(2), is_best=False)
    writer.close(raise_last=True)
    assert_same(writer.load_last(), checkpoint_of(2))


def test_at_the_end_the_last_checkpoint_must_be_there(writer: CheckpointWriter) -> None:
    writer.save(poisoned(1), is_best=False)
    with pytest.raises(CheckpointError, match="step 1 was not written"):
        writer.close(raise_last=True)
    writer.close(raise_last=False)
    assert [failure.step for failure in writer.drain_failures()] == [1]


def test_a_bug_of_ours_is_not_silent_and_the_training_does_not_hang(
    writer: CheckpointWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(buffers: HostBuffers, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if threading.current_thread() is threading.main_thread():
            return {}
        raise ZeroDivisionError

    monkeypatch.setattr(HostBuffers, "copy", fail)
    writer.save(checkpoint_of(1), is_best=False)
    writer.settle()
    with pytest.raises(ZeroDivisionError):
        writer.wait()


TENSORS = {
    "channels last": torch.randn(4, 3, 3, 2).contiguous(memory_format=torch.channels_last),
    "slice": torch.randn(6, 4)[1:3],
    "transposed": torch.randn(5, 4).T,
    "with gaps": torch.randn(6, 4)[:, ::2],
    "expanded": torch.randn(1, 4).expand(3, 4),
    "scalar": torch.tensor(3.5),
    "none": torch.zeros(0, 3),
    "half": torch.randn(3).to(torch.bfloat16),
    "bool": torch.tensor([True, False]),
    "gradient": torch.nn.Parameter(torch.randn(3)),
}


@pytest.mark.parametrize("steady", [frozenset(), frozenset(TENSORS)])
def test_copies_of_any_layout(steady: frozenset[str]) -> None:
    buffers = HostBuffers()
    first = Snapshot(TENSORS, steady=steady, buffers=buffers).finish()
    memory = {name: copy.data_ptr() for name, copy in first.items()}
    second = Snapshot(TENSORS, steady=steady, buffers=buffers).finish()
    for name, tensor in TENSORS.items():
        assert torch.equal(second[name], tensor) and second[name].dtype == tensor.dtype
        assert second[name].data_ptr() == memory[name]
        assert tensor.numel() == 0 or second[name].data_ptr() != tensor.data_ptr()
        assert not second[name].requires_grad
    assert second["channels last"].is_contiguous(memory_format=torch.channels_last)


def test_a_tensor_that_changed_its_shape_gets_new_memory() -> None:
    buffers = HostBuffers()
    for tensor in (torch.ones(3), torch.ones(4), torch.ones(4, dtype=torch.float64)):
        copies = Snapshot({"a": tensor}, steady=["a"], buffers=buffers).finish()
        assert torch.equal(copies["a"], tensor)


@pytest.mark.gpu
def test_copies_from_a_gpu_are_taken_before_the_update(tmp_path: Path) -> None:
    weight = torch.randn(4096, 4096, device="cuda")
    count = torch.zeros(3, device="cuda")
    original = weight.cpu()
    checkpoint = replace(checkpoint_of(1), model={"a.weight": weight, "count": count}, training=None)
    writer = CheckpointWriter(CheckpointFolder(tmp_path), parameters=["a.weight"])
    for _ in range(3):
        writer.save(checkpoint, is_best=False)
        count += 1
        torch.cuda._sleep(10**8)
        writer.settle()
        weight.zero_()
        writer.close(raise_last=True)
        written = load_checkpoint(tmp_path / "last")
        assert torch.equal(written.model["a.weight"], original) and torch.equal(written.model["count"], count.cpu() - 1)
        weight.copy_(original)

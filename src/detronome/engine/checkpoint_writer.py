"""Checkpoints written in the background: the training waits for no disk, and no failed write ends it."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

from detronome.engine.checkpoint import Checkpoint, CheckpointFolder, load_last_good
from detronome.engine.snapshot import HostBuffers, Snapshot
from detronome.errors import CheckpointError

__all__ = ["CheckpointFailure", "CheckpointWriter"]

_NOTHING = torch.empty(0)


@dataclass(frozen=True, kw_only=True)
class CheckpointFailure:
    """A checkpoint that was not written; those before it are as they were."""

    step: int
    is_best: bool
    """The best weights so far are not on disk then."""
    reason: str


class CheckpointWriter:
    """Copies a checkpoint beside the next step's computation, then checks, hashes and publishes it in a thread.

    The thread is a daemon: a process that ends with an error does not wait for it, and what it had not published is
    a hidden folder that the next write removes. The copies take as much host memory as a checkpoint, for good.

    Args:
        folder: where checkpoints go.
        parameters: names of the model's parameters. These tensors of `Checkpoint.model` and `.training`, and the
            optimiser's, are steady: they change in an update alone. All others, such as BatchNorm's statistics, are
            copied before `save` returns.
    """

    def __init__(self, folder: CheckpointFolder, *, parameters: Iterable[str]) -> None:
        self.folder = folder
        self._parameters = frozenset(parameters)
        self._buffers = HostBuffers()
        self._snapshot: Snapshot | None = None
        self._thread: threading.Thread | None = None
        self._failures: list[CheckpointFailure] = []
        self._last_error: CheckpointError | None = None
        self._bug: BaseException | None = None

    def save(self, checkpoint: Checkpoint, *, is_best: bool) -> None:
        """Begin to write; waits for the checkpoint before, if that is still under way.

        The steady tensors must keep their values until `settle` has returned.
        """
        self.wait()
        self._last_error = None
        tensors = {f"{part}/{name}": t for part, named in checkpoint.parts().items() for name, t in named.items()}
        steady = {name for name in tensors if _is_steady(name, self._parameters)}
        self._snapshot = Snapshot(tensors, steady=steady, buffers=self._buffers)
        # A tensor that the thread held would be kept until the disk is done: gathered from its parts, a GPU's copy.
        without_tensors = checkpoint.mapped(lambda *_: _NOTHING)
        # Lists and dictionaries of the state may go on changing too.
        described = replace(without_tensors, state=copy.deepcopy(checkpoint.state))
        self._thread = threading.Thread(
            target=self._write,
            args=(described, self._snapshot, is_best),
            name="checkpoint",
            daemon=True,
        )
        self._thread.start()

    def save_now(self, checkpoint: Checkpoint, *, is_best: bool) -> None:
        """Write and return when it is published: for a run's first checkpoint, which tells whether the disk takes any.

        Raises:
            CheckpointError: it could not be written.
        """
        self.wait()
        self._last_error = None
        self.folder.save(checkpoint, is_best=is_best)

    def settle(self) -> None:
        """Return when weights and moments may change; call it before every update and before loading weights.

        Waits for the copies of the last `save` on a CPU; on CUDA the current stream waits for them, and not the host.
        """
        if self._snapshot is not None:
            self._snapshot.settle()
            self._snapshot = None

    def wait(self) -> None:
        """Return when nothing is under way any more: published, or failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._bug is not None:
            bug, self._bug = self._bug, None
            raise bug

    def load_last(self, *, until: int | None = None) -> Checkpoint:
        """Read the newest checkpoint that is not damaged, when nothing is under way any more.

        Args:
            until: the newest of at most so many steps, where there is one.

        Raises:
            CheckpointError: there is none.
        """
        self.wait()
        checkpoint, _ = load_last_good(self.folder.path, until=until)
        return checkpoint

    def drain_failures(self) -> list[CheckpointFailure]:
        """Return what could not be written since the last call, oldest first. Does not wait."""
        failures = self._failures[:]
        del self._failures[: len(failures)]
        return failures

    def close(self, *, raise_last: bool) -> None:
        """Wait for what is under way.

        Args:
            raise_last: raise the error of the last checkpoint, if that failed.

        Raises:
            CheckpointError: the last checkpoint could not be written.
        """
        self.wait()
        if raise_last and self._last_error is not None:
            raise self._last_error

    def _write(self, described: Checkpoint, snapshot: Snapshot, is_best: bool) -> None:
        try:
            copies = snapshot.finish()
            self.folder.save(described.mapped(lambda name, _: copies[name]), is_best=is_best)
        except CheckpointError as error:
            self._last_error = error
            reason = "; ".join(problem.what for problem in error.problems)
            self._failures.append(CheckpointFailure(step=described.state.step, is_best=is_best, reason=reason))
        except BaseException as error:  # ours: it is raised by the next call of the training thread
            self._bug = error


def _is_steady(full_name: str, parameters: frozenset[str]) -> bool:
    part, name = full_name.split("/", 1)
    return part == "optimizer" or name in parameters

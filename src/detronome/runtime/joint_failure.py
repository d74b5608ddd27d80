"""One error for all ranks: the first rank that fails says why; those it leaves alone in a collective end with it too.

with staying_for_others(...):  # who keeps the store
    with failing_together(...):  # while the ranks are connected
        ...
    # disconnected: the others' collectives fail, and they ask the store why
"""

from __future__ import annotations

import base64
import pickle
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch.distributed as dist
from torch._C._distributed_c10d import Store

from detronome.errors import DetronomeError, TrainingError

__all__ = ["failing_together"]

_FAILURE = "failure"


@contextmanager
def failing_together(store: Store, *, rank: int, num_ranks: int) -> Iterator[None]:
    """Share the first error of any rank while active; it must end before the connections between the ranks do.

    Args:
        store: at which the ranks have met.
        rank: this one.
        num_ranks: how many there are.

    Raises:
        DetronomeError: this rank's, or the one that made another rank leave a collective; told by the first alone.
        TrainingError: another rank has gone without a word.
    """
    try:
        yield
    except DetronomeError as error:
        if not error.is_told:
            error.is_told = not _is_first(store, rank, error)
        raise
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        raise _first_failure(store) or _lost(error, rank, num_ranks) from error


def _is_first(store: Store, rank: int, error: DetronomeError) -> bool:
    mine = f"{rank} {base64.b64encode(pickle.dumps(error)).decode()}"
    try:
        return store.compare_set(_FAILURE, "", mine).decode() == mine
    except RuntimeError:  # who kept the store is gone
        return True


def _first_failure(store: Store) -> DetronomeError | None:
    with suppress(RuntimeError):
        if store.check([_FAILURE]):
            error: DetronomeError = pickle.loads(base64.b64decode(store.get(_FAILURE).split()[1]))
            error.is_told = True
            return error
    return None


def _lost(error: RuntimeError, rank: int, num_ranks: int) -> TrainingError:
    lost = TrainingError(
        f"another rank is gone, or the network to it: {str(error).splitlines()[0]}",
        where=f"rank {rank} of {num_ranks}",
        fix="what ended it stands in its own output, or in the system's log (dmesg) if it was killed; start again to "
        "go on from the last checkpoint, or let torchrun do so: --max-restarts",
    )
    lost.is_told = False  # of several ranks that see it, each sees another end of it
    return lost

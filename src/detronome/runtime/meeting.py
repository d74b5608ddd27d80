"""How the ranks of one start agree on a name that no earlier start of the job has used.

torchrun keeps one store for all restarts of a job, with the addresses of processes that are gone. It numbers restarts,
but each node counts those alone that were its own fault, so the number may differ between nodes. It starts no rank
before all of the start before have ended: whoever answers here is of the same start.
"""

from __future__ import annotations

import secrets
import time
from datetime import timedelta

from torch._C._distributed_c10d import Store

__all__ = ["agree_on_name"]

_POLL_S = 0.02


def agree_on_name(store: Store, *, rank: int, num_ranks: int, timeout_s: float) -> str:
    """Return the same new name on every rank.

    Args:
        store: of the job; all ranks reach it.
        rank: this one.
        num_ranks: how many there are.
        timeout_s: to wait for the others.

    Raises:
        RuntimeError: not all ranks came in time, or the store cannot be reached.
    """
    if rank == 0:
        return _invite(store, num_ranks, time.monotonic() + timeout_s)
    mark = secrets.token_hex(8)
    store.set(f"guest/{rank}", mark)
    store.wait([f"welcome/{mark}"], timedelta(seconds=timeout_s))
    name = store.get(f"welcome/{mark}").decode()
    store.set(f"{name}/arrived/{rank}", "1")
    return name


def _invite(store: Store, num_ranks: int, deadline: float) -> str:
    name = secrets.token_hex(8)
    missing = set(range(1, num_ranks))
    while missing:
        # A mark may be that of a process that is gone: its place is asked for again until a living one has arrived.
        for rank in sorted(missing):
            if store.check([f"guest/{rank}"]):
                store.set(f"welcome/{store.get(f'guest/{rank}').decode()}", name)
        missing -= {rank for rank in missing if store.check([f"{name}/arrived/{rank}"])}
        if missing and time.monotonic() > deadline:
            raise RuntimeError(f"these ranks have not come: {', '.join(map(str, sorted(missing)))}")
        time.sleep(_POLL_S)
    return name

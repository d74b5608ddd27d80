"""The processes of a run, as torchrun starts them, and what they tell each other on the host.

Tensors of the model travel by the engine's own collectives (NCCL on GPUs); what is here goes over gloo between host
processes, costs a fraction of a millisecond, and never waits for a GPU. Alone, every call is an identity.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from detronome.errors import DetronomeError, TrainingError
from detronome.runtime.joint_failure import failing_together
from detronome.runtime.meeting import agree_on_name

__all__ = ["ALONE", "World", "joined_world", "world_of_environment"]

T = TypeVar("T")

_MEETING_S = 300.0


@dataclass(frozen=True, kw_only=True)
class World:
    """The ranks of a run, and this one's place among them."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Place among the ranks of this machine: the number of its GPU."""
    local_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this rank writes checkpoints and tells how the run goes."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Add up each value over the ranks; whole numbers stay exact up to 2**53."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def max(self, values: Sequence[float]) -> list[float]:
        """Return the largest of each value over the ranks."""
        return self._reduce(values, dist.ReduceOp.MAX)

    def gather(self, item: T) -> list[T]:
        """Return every rank's item, by rank, on all ranks. Items are pickled."""
        if self.size == 1:
            return [item]
        items: list[T] = [item] * self.size
        dist.all_gather_object(items, item)
        return items

    def broadcast(self, item: T) -> T:
        """Return rank 0's item on all ranks; the others' is ignored. Items are pickled."""
        if self.size == 1:
            return item
        items = [item]
        dist.broadcast_object_list(items, src=0, device=torch.device("cpu"))
        return items[0]

    def on_main(self, work: Callable[[], T]) -> T:
        """Do something on the main rank alone; return its result on all ranks.

        Raises:
            DetronomeError: what the work raised, on all ranks; told by the main one.
        """
        if self.size == 1:
            return work()
        outcome: tuple[T | None, DetronomeError | None] = None, None
        if self.is_main:
            try:
                outcome = work(), None
            except DetronomeError as error:
                outcome = None, error
        result, failure = self.broadcast(outcome)
        if failure is not None:
            failure.is_told = not self.is_main
            raise failure
        return result  # type: ignore[return-value]

    def _reduce(self, values: Sequence[float], operation: dist.ReduceOp.RedOpType) -> list[float]:
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, op=operation)
        return tensor.tolist()


ALONE = World()
"""The world of a run in one process."""


def world_of_environment(environment: Mapping[str, str] = os.environ) -> World:
    """Return the ranks that torchrun announces in the environment; alone where it announces none.

    Raises:
        TrainingError: the variables contradict each other or are incomplete.
    """
    if "RANK" not in environment or "WORLD_SIZE" not in environment:
        return World()
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    try:
        rank, size, local_rank, local_size = (int(environment.get(name, "-1")) for name in names)
    except ValueError:
        rank = size = local_rank = local_size = -1
    if not (0 <= rank < size and 0 <= local_rank < local_size <= size):
        given = ", ".join(f"{name}={environment.get(name, '(not set)')}" for name in names)
        raise _of_this_rank(
            "the environment announces ranks that make no sense",
            where=given,
            fix="start with torchrun, or unset RANK and WORLD_SIZE to train in one process",
        )
    return World(rank=rank, size=size, local_rank=local_rank, local_size=local_size)


@contextmanager
def joined_world(device_type: str, *, timeout_s: float) -> Iterator[World]:
    """Join the ranks that torchrun has started, and leave them again; alone without it.

    An error on one rank ends all of them with this error, and one of them tells it. A process group that exists already
    is used and left as it is.

    Args:
        device_type: `cuda` adds NCCL for tensors on GPUs.
        timeout_s: after which a collective that some rank never joins is given up.

    Raises:
        TrainingError: the environment is contradictory, the ranks cannot reach each other, or one has gone.
    """
    world = world_of_environment()
    if world.size == 1 or dist.is_initialized():
        yield world
        return
    if device_type == "cuda":
        if world.local_rank >= torch.cuda.device_count():
            raise _of_this_rank(
                f"this machine has {torch.cuda.device_count()} GPUs for {world.local_size} ranks",
                where=f"rank {world.rank}",
                fix="start no more ranks than GPUs: torchrun --nproc-per-node=N",
            )
        torch.cuda.set_device(world.local_rank)
    backend = "cpu:gloo,cuda:nccl" if device_type == "cuda" else "cpu:gloo"
    timeout = timedelta(seconds=timeout_s)
    try:
        store = _store(world)
        dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.size, timeout=timeout)
    except (RuntimeError, ValueError) as error:
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise _of_this_rank(
            f"the ranks cannot reach each other: {error}",
            where=f"rank {world.rank} of {world.size}, rendezvous at {address}",
            fix="check that this address can be reached from every node, and name the network interface with "
            "GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME",
        ) from error
    try:
        with failing_together(store, rank=world.rank, num_ranks=world.size):
            yield world
    finally:
        dist.destroy_process_group()


def _store(world: World) -> Store:
    """Return where the ranks meet: a part of the job's store in which no earlier start has left anything."""
    address, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    is_keeper = world.is_main and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    store = TCPStore(address, int(port), is_master=is_keeper, wait_for_workers=False)
    name = agree_on_name(store, rank=world.rank, num_ranks=world.size, timeout_s=_MEETING_S)
    return PrefixStore(name, store)


def _of_this_rank(what: str, *, where: str, fix: str) -> TrainingError:
    """Return an error that every rank tells by itself: they have not met."""
    error = TrainingError(what, where=where, fix=fix)
    error.is_told = False
    return error

"""A ledger of every storage that comes and goes while a step runs on tensors without data, and of every kernel's work.

torch's `meta` tensors have a shape and no values: a step on them does all its bookkeeping, autograd's saved tensors
included, and no arithmetic. Whatever keeps a storage alive there would keep it alive on a device.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

from detronome.tempo.memory.account import Cause, OpCost

__all__ = ["Ledger", "Stage"]

Stage = Literal["forward", "matcher", "loss", "backward", "update"]

_CAUSES = tuple(Cause)
_OF_STAGE: Mapping[Stage, Cause] = {
    "forward": Cause.OTHER_MODEL,
    "matcher": Cause.LOSS,
    "loss": Cause.LOSS,
    "backward": Cause.BACKWARD,
    "update": Cause.UPDATE,
}


@dataclass
class _Entry:
    number: int
    size: int
    cause: int
    ref: object
    """Calls the ledger when the storage goes."""


class Ledger(TorchDispatchMode):
    """Counts storages by cause while it is entered, and kernels.

    Args:
        granularity: bytes that the allocator rounds up to.
    """

    def __init__(self, granularity: int) -> None:
        super().__init__()
        self.stage: Stage = "forward"
        self.parts: list[Cause] = []
        """The parts of the model that are being run, the innermost last: what is made is booked to it."""
        self.movements: list[tuple[int, int]] = []
        """What came and went since `begin`, in order: a storage's number, and its bytes, negative when it goes."""
        self._granularity = granularity
        self._entries: dict[int, _Entry] = {}
        self._num_entries = 0
        self._held = [0] * len(_CAUSES)
        self._total = 0
        self._ops: dict[tuple[str, Stage, str], list[int]] = {}
        self.begin()

    def begin(self) -> None:
        """Forget what has happened so far, not what is held."""
        self.stage = "forward"
        self.parts.clear()
        self.movements = []
        self._ops.clear()
        self._note_peak()

    def rebook(self, tensors: Iterable[Tensor], cause: Cause) -> None:
        """Book tensors that are there already to a cause."""
        index = _CAUSES.index(cause)
        for tensor in tensors:
            entry = self._entries.get(tensor.untyped_storage()._cdata)
            if entry is not None:
                self._held[entry.cause] -= entry.size
                self._held[index] += entry.size
                entry.cause = index

    @property
    def peak(self) -> tuple[Stage, dict[Cause, int]]:
        """When most was held since `begin`, and how many bytes for each cause."""
        stage, held = self._peak
        return stage, {cause: size for cause, size in zip(_CAUSES, held, strict=True) if size}

    def ops(self) -> list[OpCost]:
        """Return the work of the kernels since `begin`, costliest first."""
        costs = [
            OpCost(name=name, section=stage, count=count, flops=flops, bytes=moved, dtype=dtype)
            for (name, stage, dtype), (count, flops, moved) in self._ops.items()
        ]
        return sorted(costs, key=lambda cost: (cost.flops, cost.bytes), reverse=True)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # Without autograd, kernels that are made of others come here whole, and what these make would not be seen.
        with self:
            out = func.decompose(*args, **kwargs)
        if out is not NotImplemented:
            return out
        out = func(*args, **kwargs)
        results = [leaf for leaf in tree_iter(out) if isinstance(leaf, Tensor)]
        if not func.is_view:  # a view makes nothing, and costs nothing
            for result in results:
                self._book(result)
            self._count(func, args, kwargs, out, results)
        return out

    def _book(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._entries:
            return
        size = -(-storage.nbytes() // self._granularity) * self._granularity
        cause = _CAUSES.index(self.parts[-1] if self.parts else _OF_STAGE[self.stage])
        self._num_entries += 1
        self._entries[key] = _Entry(self._num_entries, size, cause, weakref.ref(storage, self._forget(key)))
        self.movements.append((self._num_entries, size))
        self._held[cause] += size
        self._total += size
        if self._total > self._most:
            self._note_peak()

    def _forget(self, key: int) -> Callable[[object], None]:
        def forget(_: object) -> None:
            entry = self._entries.pop(key)
            self.movements.append((entry.number, -entry.size))
            self._held[entry.cause] -= entry.size
            self._total -= entry.size

        return forget

    def _note_peak(self) -> None:
        self._most = self._total
        self._peak = (self.stage, tuple(self._held))

    def _count(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, results: Sequence[Tensor]
    ) -> None:
        if not results:  # kernels that work on lists in place return nothing
            results = _written(func, args, kwargs)
        if not results:
            return
        packet = func._overloadpacket
        formula = flop_registry.get(packet)
        flops = int(formula(*args, **kwargs, out_val=out)) if formula is not None else 0
        read = sum(_num_bytes(leaf) for leaf in tree_iter((args, kwargs)) if isinstance(leaf, Tensor))
        largest = max(results, key=Tensor.numel)
        work = self._ops.setdefault((str(packet), self.stage, str(largest.dtype).removeprefix("torch.")), [0, 0, 0])
        work[0] += 1
        work[1] += flops
        work[2] += read + sum(map(_num_bytes, results))


def _written(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Return the tensors among a kernel's arguments that it changes."""
    values = []
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            values.append(args[place] if place < len(args) else kwargs.get(argument.name))
    return [leaf for leaf in tree_iter(values) if isinstance(leaf, Tensor)]


def _num_bytes(tensor: Tensor) -> int:
    """Return the bytes that a kernel must touch: of an expanded tensor, those that there are."""
    distinct = math.prod(size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride != 0)
    return distinct * tensor.element_size()

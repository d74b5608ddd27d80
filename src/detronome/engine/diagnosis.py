"""Say where a number that is not finite was born: run the bad step once more, watching every module and gradient.

In forward, the module is to blame whose output is not finite though all it was given was. In backward it is the module
to which the first operation belongs that turned a finite gradient into one that is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from detronome.engine.compilation import without_compilation
from detronome.errors import first_few
from detronome.losses.set_criterion import SetCriterion
from detronome.losses.terms import BatchTotals
from detronome.models.detector import Detector
from detronome.models.layers.activation_checkpointing import is_computed_again
from detronome.runtime.precision import Precision, autocast
from detronome.types import Batch

__all__ = ["WHOLE_MODEL", "Diagnosis", "diagnose"]

WHOLE_MODEL = "model"
"""Stands for the model itself where no part of it, but an operation between its parts, is to blame."""
TOTAL = "total"
"""Stands for the weighted sum where every loss term is finite and their sum is not."""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """Where the first number that is not finite came from. Plain data: ranks can send it to each other."""

    where: Literal["weights", "input", "forward", "loss", "backward", ""] = ""
    """The phase it was born in; empty when the step was finite this time."""
    module: str = ""
    """Dotted path of the module to blame in forward or backward, or `WHOLE_MODEL`; else empty."""
    parameter: str = ""
    """Name of the weight or buffer that is not finite itself."""
    dtype: str = ""
    """Number format of the output, gradient or weight, e.g. `bfloat16`."""
    loss_term: str = ""
    """First loss term that was not finite, e.g. `loss_giou_2`, or `total`. With `where` backward and no module: the
    term whose gradient was not; decoder layers cannot be told apart there."""
    image_ids: list[int] = field(default_factory=list)
    """Images to blame, as narrowly as can be told: one row of a micro-batch, or all of it. Empty where no image is."""
    is_reproducible: bool = True
    """Whether it happened again. If not, the data and the model are not to blame, but hardware or a race."""
    is_finite_in_fp32: bool | None = None
    """Whether the same step is finite in full precision; None where that was not tried."""
    is_loss_scale: bool = False
    """Whether only the gradients overflow, and only because the loss was scaled up: a lower scale is the cure."""

    def describe(self) -> str:
        """Return one sentence for the log."""
        images = ""
        if self.image_ids:
            images = f", image{'s' * (len(self.image_ids) > 1)} {first_few([str(i) for i in self.image_ids])}"
        term = f"; {self.loss_term} was not finite" if self.loss_term else ""
        subject = self.module if self.module != WHOLE_MODEL else "the model, between its modules"
        match self.where:
            case "":
                return f"finite when run again, so hardware or a race is to blame, not the data or the model{term}"
            case "weights":
                return f"the weight {self.parameter} is itself not finite ({self.dtype}){term}"
            case "input":
                return f"the truth has a box that is not finite{images}{term}"
            case "forward":
                born = f"{subject} gave a value that is not finite ({self.dtype}{images}){term}"
            case "loss":
                born = f"{self.loss_term} is not finite ({self.dtype}{images}), the model's output is"
            case "backward" if self.module:
                born = f"{subject} gave a gradient that is not finite ({self.dtype}{images})"
            case "backward":
                born = f"the gradient of {self.loss_term} is not finite ({self.dtype}{images})"
        if self.is_loss_scale:
            return f"{born}; it is finite with a loss scale of 1"
        if self.is_finite_in_fp32 is None:
            return born
        return f"{born}; in fp32 the step is {'finite' if self.is_finite_in_fp32 else 'not finite either'}"


def diagnose(
    model: Detector,
    criterion: SetCriterion,
    micro_batches: Sequence[Batch],
    *,
    totals: BatchTotals,
    progress: float,
    precision: Precision,
    device: torch.device,
    loss_scale: float,
    reseed: Callable[[], None],
    seen_losses: Mapping[str, float] | None = None,
) -> Diagnosis:
    """Run forward and backward of a bad step again and say where its first non-finite number was born.

    Weights, gradients (the same tensors), buffers, hooks, mode and random state are left as they were found. Costs one
    to three steps, a host sync for every module and operation, and memory for one more set of gradients: those of the
    interrupted step are set aside. Every rank runs its own images, without a collective; weights must not be sharded.

    Args:
        model: with the weights of the bad step, in training mode.
        criterion: the losses.
        micro_batches: of the bad step, cut as they were.
        totals: of the whole effective batch over all ranks.
        progress: of the bad step, 0-1.
        precision: it ran in.
        device: where the model is.
        loss_scale: by which its loss was multiplied, 1 without scaling.
        reseed: seeds torch as for the bad step.
        seen_losses: its loss terms, as read by the caller; name the term where running it again does not.

    Returns:
        What was found on this rank. A rank whose own share of the step was finite finds nothing to reproduce.
    """
    found = _bad_weight(model) or _bad_boxes(micro_batches)
    if found is None:
        rerun = _Rerun(model, criterion, micro_batches, totals, progress, device, reseed)
        found = _find(rerun, precision, loss_scale)
    return replace(found, loss_term=found.loss_term or _first_bad_term(seen_losses or {}))


def _find(rerun: _Rerun, precision: Precision, loss_scale: float) -> Diagnosis:
    birth = rerun.run(precision, loss_scale)
    if birth is None:
        return Diagnosis(is_reproducible=False)
    if birth.where == "backward" and loss_scale != 1:
        unscaled = rerun.run(precision, 1.0)
        if unscaled is None:
            return replace(birth, is_loss_scale=True)
        birth = unscaled
    if precision == "fp32":
        return birth
    return replace(birth, is_finite_in_fp32=rerun.run("fp32", 1.0) is None)


def _bad_weight(model: nn.Module) -> Diagnosis | None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not _is_finite(tensor):
            return Diagnosis(where="weights", parameter=name, dtype=_dtype(tensor))
    return None


def _bad_boxes(micro_batches: Sequence[Batch]) -> Diagnosis | None:
    targets = [target for batch in micro_batches for target in batch.targets]
    bad = [target for target in targets if not _is_finite(target.boxes_cxcywh)]
    if not bad:
        return None
    return Diagnosis(where="input", dtype=_dtype(bad[0].boxes_cxcywh), image_ids=[target.image_id for target in bad])


@dataclass(frozen=True)
class _Rerun:
    """The bad step, to be run as often as it takes; mirrors `TrainingStep`'s accumulation."""

    model: Detector
    criterion: SetCriterion
    micro_batches: Sequence[Batch]
    totals: BatchTotals
    progress: float
    device: torch.device
    reseed: Callable[[], None]

    def run(self, precision: Precision, loss_scale: float) -> Diagnosis | None:
        """Return where the first non-finite number was born, None when loss, gradients and their norm are finite."""
        # Hooks inside compiled parts would not be called.
        with without_compilation(), _left_as_found(self.model, self.device):
            self.reseed()
            loss = torch.zeros((), device=self.device)
            for micro_batch in self.micro_batches:
                with _watched(self.model, micro_batch.image_ids) as watch:
                    birth = self._accumulate(micro_batch.to(self.device), precision, loss_scale, loss, watch)
                if birth is not None:
                    return replace(birth, image_ids=birth.image_ids or micro_batch.image_ids)
            return self._overflow_of_norm(loss_scale)

    def _accumulate(
        self, batch: Batch, precision: Precision, loss_scale: float, loss: Tensor, watch: _Watch
    ) -> Diagnosis | None:
        with autocast(precision, self.device):
            output = self.model(batch.images, batch.padding_mask, batch.targets)
        terms = self.criterion(output, batch.targets, totals=self.totals, progress=self.progress)
        micro_loss = self.criterion.total(terms)
        loss += micro_loss.detach()
        bad_term = _first_bad_term({**terms, TOTAL: loss})
        if bad_term:
            birth = watch.birth or Diagnosis(where="loss", dtype=_dtype(terms.get(bad_term, loss)))
            return replace(birth, loss_term=bad_term)
        scaled = micro_loss * loss_scale
        watch.follow_loss(terms, scaled)
        scaled.backward()
        for name, gradient in self._gradients():
            if not _is_finite(gradient):
                # Finite gradients of several micro-batches can have a sum that is not.
                return watch.birth or Diagnosis(where="backward", module=_owner(name), dtype=_dtype(gradient))
        return None

    def _overflow_of_norm(self, loss_scale: float) -> Diagnosis | None:
        """Blame the largest gradient when all are finite and their norm, which the guard judges, is not."""
        gradients = {name: gradient / loss_scale for name, gradient in self._gradients()}
        if _is_finite(torch.nn.utils.get_total_norm(list(gradients.values()))):
            return None
        largest = max(gradients, key=lambda name: gradients[name].double().norm().item())
        return Diagnosis(
            where="backward",
            module=_owner(largest),
            dtype=_dtype(gradients[largest]),
            image_ids=[i for batch in self.micro_batches for i in batch.image_ids],
        )

    def _gradients(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, p.grad) for name, p in self.model.named_parameters() if p.grad is not None)


class _Watch:
    """Follows one micro-batch through modules and gradients and keeps the first birth.

    Every node of autograd's graph belongs to the innermost module whose forward made it: when a module begins, what
    its inputs were made by and nobody owns is the enclosing module's; when it ends, what is left is its own.
    """

    def __init__(self, names: Mapping[nn.Module, str], image_ids: Sequence[int]) -> None:
        self.birth: Diagnosis | None = None
        self._names = names
        self._image_ids = image_ids
        self._running: list[str] = []
        """Modules whose forward is under way, outermost first."""
        self._owned: set[Node] = set()

    def enter(self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        """Judge what the enclosing module has computed so far: a forward pre-hook."""
        if is_computed_again():  # the same numbers, and a graph that is not kept
            return
        if self._running:
            self._judge_values((args, kwargs), self._running[-1])
        self._running.append(self._names[module])

    def leave(self, module: nn.Module, args: tuple[object, ...], output: object) -> None:
        """Judge what a module returns: a forward hook."""
        if is_computed_again():
            return
        self._judge_values(output, self._running.pop())
        if not self._running and self.birth is not None and not self.birth.image_ids:
            # Born where rows are not images: the model's output says which images came to harm.
            self.birth = replace(self.birth, image_ids=self._images(_tensors(output)))

    def follow_loss(self, terms: Mapping[str, Tensor], scaled: Tensor) -> None:
        """Watch the gradients of the loss too; call before backward."""
        for name, value in {**terms, TOTAL: scaled}.items():
            self._follow(value, Diagnosis(where="backward", loss_term=name))

    def forget_graph(self) -> None:
        """Break the circle of graph, hooks and this watch, which Python cannot see."""
        self._owned.clear()

    def _judge_values(self, values: object, module: str) -> None:
        for tensor in _tensors(values):
            self._follow(tensor, Diagnosis(where="backward", module=module))
            if self.birth is None and not _is_finite(tensor):
                images = self._images([tensor])
                self.birth = Diagnosis(where="forward", module=module, dtype=_dtype(tensor), image_ids=images)

    def _follow(self, tensor: Tensor, owner: Diagnosis) -> None:
        """Give the owner all operations behind a tensor that have none yet."""
        waiting = [tensor.grad_fn]
        while waiting:
            node = waiting.pop()
            # Nodes that add to a parameter's gradient outlive the graph, and hooks on them would stay.
            if node is None or node in self._owned or _is_accumulation(node):
                continue
            self._owned.add(node)
            leads_to_parameter = [_leads_to_parameter(following) for following, _ in node.next_functions]
            node.register_hook(partial(self._judge_gradients, owner, leads_to_parameter))
            waiting.extend(following for following, _ in node.next_functions)

    def _judge_gradients(
        self,
        owner: Diagnosis,
        leads_to_parameter: Sequence[bool],
        outgoing: Sequence[Tensor | None],
        incoming: Sequence[Tensor | None],
    ) -> None:
        """Judge an operation's gradients: `incoming` of its results, `outgoing` of its operands."""
        if self.birth is not None:
            return
        bad = [gradient for gradient in (*incoming, *outgoing) if gradient is not None and not _is_finite(gradient)]
        if bad:
            of_values = [
                *incoming,
                *(g for g, is_weight in zip(outgoing, leads_to_parameter, strict=True) if not is_weight),
            ]
            # Rows of a loss term's gradient are decoder layers or matches.
            images = self._images(g for g in of_values if g is not None) if owner.module else []
            self.birth = replace(owner, dtype=_dtype(bad[0]), image_ids=images)

    def _images(self, tensors: Iterable[Tensor]) -> list[int]:
        """Return the images whose rows are not finite; none where the rows are not images."""
        count = len(self._image_ids)
        bad_rows: set[int] = set()
        for tensor in tensors:
            # Decoder layers come before images in some tensors: as many of both cannot be told apart.
            if tensor.shape[:1] == (count,) and tensor.shape[1:2] != (count,) and tensor.numel():
                is_bad = ~tensor.detach().reshape(count, -1).isfinite().all(1)
                bad_rows.update(is_bad.nonzero().flatten().tolist())
        return [image_id for row, image_id in enumerate(self._image_ids) if row in bad_rows]


@contextmanager
def _watched(model: nn.Module, image_ids: Sequence[int]) -> Iterator[_Watch]:
    names = {module: name or WHOLE_MODEL for name, module in model.named_modules()}
    watch = _Watch(names, image_ids)
    handles = []
    try:
        for module in names:
            handles.append(module.register_forward_pre_hook(watch.enter, with_kwargs=True))
            handles.append(module.register_forward_hook(watch.leave))
        yield watch
    finally:
        for handle in handles:
            handle.remove()
        watch.forget_graph()


@contextmanager
def _left_as_found(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Begin without gradients; then put back gradients, buffers and random state."""
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            for parameter, _ in gradients:
                parameter.grad = None
            yield
        finally:
            for parameter, gradient in gradients:
                parameter.grad = gradient
            for buffer, value in buffers:
                buffer.copy_(value)


def _tensors(value: object) -> Iterator[Tensor]:
    """Yield the tensors in nested sequences, mappings and records."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif is_dataclass(value):
        for attribute in fields(value):
            yield from _tensors(getattr(value, attribute.name))


def _is_finite(tensor: Tensor) -> bool:
    return bool(tensor.detach().isfinite().all())


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _owner(parameter: str) -> str:
    return parameter.rpartition(".")[0] or WHOLE_MODEL


def _first_bad_term(terms: Mapping[str, Tensor] | Mapping[str, float]) -> str:
    return next((name for name, value in terms.items() if not _is_finite(torch.as_tensor(value))), "")


def _is_accumulation(node: Node) -> bool:
    return node.name() == "torch::autograd::AccumulateGrad"


def _leads_to_parameter(node: Node | None) -> bool:
    """Return whether a gradient that goes there is a weight's, perhaps cast or transposed: its rows are no images."""
    while node is not None and len(node.next_functions) == 1:
        node = node.next_functions[0][0]
    return node is not None and _is_accumulation(node)

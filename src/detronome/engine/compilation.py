"""torch.compile of a detector, part by part and in place.

Backbone and transformer layers are compiled; matching, denoising and the choice of queries depend on the data and stay
as they are. Names in the state dict, copies of the model and exports do not notice; hooks on modules inside a compiled
part are called only `without_compilation`. Shapes are dynamic from the beginning, so few graphs are made, and what a
graph computes follows from the shape, not from the shapes that came before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx

from detronome.engine.events import RunWarned
from detronome.engine.micro_batches import is_out_of_memory
from detronome.models.detector import Detector

__all__ = ["compile_detectors", "compiler_warning", "without_compilation"]

_MOST_GRAPHS = 64
"""Of one kind of layer: with and without padding, gradients, autocast, one image or several. torch's own limit is 8."""

CompiledGraph = Callable[..., Any]


def compile_detectors(
    models: Iterable[Detector], *, on_failure: Callable[[str], None], backend: str = "inductor"
) -> None:
    """Let models run compiled from their next forward pass on, in training and evaluation.

    Where the compiler fails, the graphs run operation by operation: the result is the same, only slower.

    Args:
        models: changed in place; a copy made of one later is not compiled.
        on_failure: is told the reason, once.
        backend: of torch.compile.
    """
    # Imported here: it takes seconds, and most runs do not compile.
    from torch._dynamo import config

    # For the whole process: torch.compile's own argument for it came after torch 2.11.
    config.recompile_limit = max(config.recompile_limit, _MOST_GRAPHS)
    told = _ToldBackend(backend, on_failure)
    for model in models:
        for part in model.parts_to_compile():
            part.compile(backend=told, dynamic=True)


def compiler_warning(reason: str, *, step: int, epoch: float) -> RunWarned:
    """Return what tells a run's observers that the compiler failed."""
    return RunWarned(
        step=step,
        epoch=epoch,
        subject="compiler_failed",
        what=f"torch could not compile the model, so it runs uncompiled, and slower: {reason}",
        fix="install what the reason names (on a CPU a C++ compiler, on a GPU Triton too), or turn train.compile off",
    )


@contextmanager
def without_compilation() -> Iterator[None]:
    """Let compiled models run as they are, so that hooks on all their modules are called."""
    with torch.compiler.set_stance("force_eager"):
        yield


class _ToldBackend:
    """A backend of torch.compile whose failures are told instead of ending the run."""

    def __init__(self, name: str, on_failure: Callable[[str], None]) -> None:
        self._name = name
        self._on_failure = on_failure
        self._has_failed = False

    def __call__(self, graph: fx.GraphModule, inputs: list[Tensor]) -> CompiledGraph:
        from torch._dynamo import lookup_backend
        from torch._dynamo.exc import RestartAnalysis
        from torch._functorch import config as autograd_config

        compiled: CompiledGraph
        if not self._has_failed:  # a compiler that is not there takes its time to say so
            try:
                # The backward graph too, now: later its failure would end the backward pass.
                with autograd_config.patch(force_non_lazy_backward_lowering=True):
                    compiled = lookup_backend(self._name)(graph, inputs)
                return compiled
            except RestartAnalysis:  # no failure: the compiler wants to see the code again
                raise
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            self._has_failed = True
            self._on_failure(reason)
        # Not the graph itself: it would update BatchNorm's statistics again where activations are checkpointed.
        compiled = lookup_backend("aot_eager")(graph, inputs)
        return compiled

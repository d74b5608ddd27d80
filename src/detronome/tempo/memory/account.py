"""What memory is held for at the fullest moment of a step or an evaluation, and the work of the kernels in between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

__all__ = ["Cause", "MemoryAccount", "OpCost", "Phase", "StepTrace"]

Phase = Literal["training", "evaluation"]


class Cause(StrEnum):
    """What memory is held for, in the order of a report."""

    CONTEXT = "device context"
    """CUDA's own: the driver's context, the libraries' kernels and workspaces. Nothing on a CPU."""
    WEIGHTS = "weights"
    """Parameters and buffers of the model that is trained."""
    GRADIENTS = "gradients"
    OPTIMIZER = "optimizer"
    """The moments."""
    AVERAGE = "average"
    """The moving average of the weights."""
    GUARD = "guard"
    """Copies of BatchNorm's statistics, running means and the last verdict."""
    BATCH = "batch"
    """Images, masks and targets."""
    BACKBONE = "backbone"
    """This and the next three: what these parts compute in the forward pass and keep for the backward pass."""
    ENCODER = "encoder"
    DECODER = "decoder"
    HEADS = "heads"
    OTHER_MODEL = "rest of the model"
    LOSS = "matcher and loss"
    BACKWARD = "backward workspace"
    """What the backward pass makes, gradients of the weights apart."""
    UPDATE = "update workspace"
    """What clipping, the update, the average and sums over ranks make for a moment."""
    SLACK = "allocator slack"
    """Memory that CUDA's caching allocator holds and nobody uses: an estimate. Nothing on a CPU."""


@dataclass(frozen=True, kw_only=True)
class MemoryAccount:
    """The fullest moment of a training step or of an evaluation batch."""

    phase: Phase
    shape: str
    """Padded `HEIGHTxWIDTH` in pixels."""
    num_images: int
    """That go through the model at once."""
    num_objects: int
    """In these images."""
    bytes_by_cause: Mapping[Cause, int]
    """At that moment; the sum is `peak_bytes`. Causes that hold nothing may be missing."""
    moment: str
    """The section of the step it falls into: forward, matcher, loss, backward or update."""

    @property
    def peak_bytes(self) -> int:
        """Memory in use at that moment."""
        return sum(self.bytes_by_cause.values())

    def to_record(self) -> dict[str, Any]:
        """Return the account as plain data."""
        return {
            "phase": self.phase,
            "shape": self.shape,
            "num_images": self.num_images,
            "num_objects": self.num_objects,
            "moment": self.moment,
            "peak_bytes": self.peak_bytes,
            "bytes_by_cause": {
                str(cause): self.bytes_by_cause[cause] for cause in Cause if cause in self.bytes_by_cause
            },
        }


@dataclass(frozen=True, kw_only=True)
class OpCost:
    """The work of one kernel of a training step, summed over calls of the same name, section and format."""

    name: str
    """ATen's, e.g. `aten.convolution`."""
    section: Literal["forward", "matcher", "loss", "backward", "update"]
    count: int
    flops: int
    """Of matrix products, convolutions and attention; two for a multiplication with an addition. Other kernels are
    bound by their bytes, and have 0."""
    bytes: int
    """Read and written: all inputs and outputs, each once."""
    dtype: str
    """Of the largest output, e.g. `float32`."""


@dataclass(frozen=True, kw_only=True)
class StepTrace:
    """One training step as it was traced."""

    account: MemoryAccount
    ops: Sequence[OpCost]
    """Of one micro-batch, but for the section `update`, which a step has once."""

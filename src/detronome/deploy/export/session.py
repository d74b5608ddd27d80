"""What runs an exported graph: the four forms look alike from here on."""

from __future__ import annotations

from typing import Protocol

from jaxtyping import Bool, UInt8
from torch import Tensor

__all__ = ["Session"]


class Session(Protocol):
    """An exported graph, ready to run. May be called from several threads, one after another or at once."""

    def __call__(self, images: UInt8[Tensor, "B 3 H W"], padding_mask: Bool[Tensor, "B H W"]) -> tuple[Tensor, ...]:
        """Return the graph's outputs, on the device of the inputs."""
        ...

"""What every family's model offers to the training run and to prediction."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

from jaxtyping import Bool, UInt8
from torch import Tensor, nn

from detronome.types import ModelOutput, Target

__all__ = ["Detector"]


class Detector(nn.Module):
    """A detection transformer."""

    activation: ClassVar[Literal["softmax", "sigmoid"]]
    """How logits become scores: `softmax` with a no-object class, or a `sigmoid` for each class."""
    num_queries: int
    """The most objects that an image can have."""

    @abstractmethod
    def parts_to_compile(self) -> list[nn.Module]:
        """Return the parts whose work follows from shapes alone and is worth compiling; equal layers one by one."""

    @abstractmethod
    def forward(
        self,
        images: UInt8[Tensor, "B 3 H W"],
        padding_mask: Bool[Tensor, "B H W"],
        targets: Sequence[Target] | None = None,
    ) -> ModelOutput:
        """Detect objects.

        Args:
            images: RGB, 0-255.
            padding_mask: True on padding.
            targets: the truth, for families that train on noised truth; the others do not read it.
        """

"""What every family's model offers to the training run and to prediction."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from difflib import get_close_matches
from typing import ClassVar, Literal

from jaxtyping import Bool, UInt8
from torch import Tensor, nn

from detronome.errors import ConfigError, Problem, first_few, nearest_name_hint
from detronome.types import ModelOutput, Target

__all__ = ["Detector"]


class Detector(nn.Module):
    """A detection transformer."""

    activation: ClassVar[Literal["softmax", "sigmoid"]]
    """How logits become scores: `softmax` with a no-object class, or a `sigmoid` for each class."""
    num_queries: int
    """The most objects that an image can have."""
    all_layers: bool = False
    """Return the earlier decoder layers in `aux_outputs` in eval mode too, as in training; `nano` always does."""
    frozen_parts: tuple[str, ...] = ()
    """Names of submodules that stay as they are; see `freeze`."""

    def freeze(self, parts: Sequence[str]) -> None:
        """Keep submodules as they are: their weights and statistics, and without dropout.

        Args:
            parts: names of submodules with all that is in them, e.g. `backbone` or `transformer.encoder`.

        Raises:
            ConfigError: there is no submodule of such a name; all of them at once. Or nothing is left to train.
        """
        names = [name for name, _ in self.named_modules() if name]
        problems = [
            Problem(
                what=f"the model has no part {part!r} to freeze",
                where="train.freeze",
                fix=self._nearest_part(part, names),
            )
            for part in parts
            if part not in names
        ]
        if problems:
            raise ConfigError(problems)
        self.frozen_parts = tuple(parts)
        for part in parts:
            self.get_submodule(part).requires_grad_(False)
        if parts and not any(parameter.requires_grad for parameter in self.parameters()):
            raise ConfigError(
                f"nothing is left to train without {first_few(parts)}",
                where="train.freeze",
                fix="freeze fewer parts",
            )
        self.train(self.training)

    def _nearest_part(self, part: str, names: Sequence[str]) -> str:
        inside = [name for name in names if name.endswith(f".{part}")]
        near = inside[:1] or get_close_matches(part, names, n=1)
        if near:
            return f"did you mean {near[0]!r}?"
        return nearest_name_hint(part, [name for name, _ in self.named_children()])

    def train(self, mode: bool = True) -> Detector:
        super().train(mode)
        for part in self.frozen_parts:
            self.get_submodule(part).eval()
        return self

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

"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from cyclopts import Parameter

from detronome.config.convert import parse_override

__all__ = ["Json", "Settings", "parse_settings"]

Settings = Annotated[
    list[str] | None,
    Parameter(
        name="--set",
        negative=(),
        consume_multiple=True,
        help="Settings as section.name=value, e.g. --set optim.lr=2e-4 train.precision=bf16.",
    ),
]
Json = Annotated[bool, Parameter(name="--json", negative=(), show_default=False, help="Print the result as JSON.")]


def parse_settings(texts: Sequence[str] | None) -> dict[str, Any]:
    """Return dotted settings from `key=value` texts."""
    return dict(parse_override(text) for text in texts or ())

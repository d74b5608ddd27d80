"""Options that several commands share, and the groups that `--help` shows options in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter

from detronome.config.convert import parse_override

if TYPE_CHECKING:
    from cyclopts.completion import CompletionContext

__all__ = ["DATA_GROUP", "MACHINE_GROUP", "MODEL_GROUP", "OUTPUT_GROUP", "Json", "Model", "Settings", "parse_settings"]

DATA_GROUP = Parameter(group=Group("Data", sort_key=2))
MODEL_GROUP = Parameter(group=Group("Model and settings", sort_key=3))
MACHINE_GROUP = Parameter(group=Group("Machine", sort_key=4))
OUTPUT_GROUP = Parameter(group=Group("Output", sort_key=5))
"""What is in none of these is of the command alone, and comes first."""


def _preset_names(context: CompletionContext) -> list[str]:
    from detronome.config.presets import PRESETS

    return list(PRESETS)


def _setting_names(context: CompletionContext) -> list[str]:
    """Return section.name= of what the model on the command line can be set to."""
    from detronome.config.convert import to_dict
    from detronome.config.presets import PRESETS, preset

    model = context.get("--model")
    name = model.value if model is not None and model.value in PRESETS else "detr-r50"
    sections = {section: values for section, values in to_dict(preset(name)).items() if isinstance(values, dict)}
    return [f"{section}.{name}=" for section, values in sections.items() for name in values]


Model = Annotated[str, MODEL_GROUP, Parameter(completer=_preset_names)]
Settings = Annotated[
    list[str] | None,
    MODEL_GROUP,
    Parameter(
        name="--set",
        negative=(),
        consume_multiple=True,
        metavar="NAME=VALUE...",
        completer=_setting_names,
        help="Settings as section.name=value, e.g. --set optim.lr=2e-4 train.precision=bf16.",
    ),
]
Json = Annotated[
    bool,
    OUTPUT_GROUP,
    Parameter(name="--json", negative=(), show_default=False, help="Print the result as JSON."),
]


def parse_settings(texts: Sequence[str] | None) -> dict[str, Any]:
    """Return dotted settings from `key=value` texts."""
    return dict(parse_override(text) for text in texts or ())

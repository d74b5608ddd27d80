"""A TOML file of settings that a person can read: only what was chosen, each with the reason for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tomli_w

from detronome.config.convert import to_dict
from detronome.config.schema import RunConfig

__all__ = ["differing_settings", "settings_toml"]


def differing_settings(config: RunConfig, base: RunConfig) -> dict[str, Any]:
    """Return the settings, by dotted name, that differ from another configuration's; the data folder does not count."""
    held = to_dict(base)
    return {
        f"{section}.{name}": value
        for section, values in to_dict(config).items()
        if isinstance(values, dict)
        for name, value in values.items()
        if (section, name) != ("data", "root") and held[section].get(name) != value
    }


def settings_toml(
    settings: Mapping[str, Any], *, header: Sequence[str] = (), reasons: Mapping[str, Sequence[str]] | None = None
) -> str:
    """Return dotted settings as TOML, valid as `--config`.

    Args:
        settings: plain data by dotted name.
        header: lines of text at the top.
        reasons: lines of text above a setting, by its dotted name.
    """
    lines = [_comment(text) for text in header]
    sections: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = value
    for section, values in sections.items():
        lines += ["", f"[{section}]"]
        for name, value in values.items():
            lines += [_comment(text) for text in (reasons or {}).get(f"{section}.{name}", ())]
            lines.append(f"{name} = {_inline(value)}")
    return "\n".join(lines) + "\n"


def _inline(value: Any) -> str:
    """Return a value on one line, lists too."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_inline, value))}]"
    return tomli_w.dumps({"v": value}).removeprefix("v = ").rstrip("\n")


def _comment(text: str) -> str:
    # Control characters are not allowed in TOML's comments, and a line break would end one.
    return "# " + "".join(char if char.isprintable() else " " for char in text) if text else "#"

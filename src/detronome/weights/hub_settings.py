"""What a config.json may say that changes what a network computes, and not the shapes of its weights."""

from __future__ import annotations

from collections.abc import Mapping

from detronome.errors import Problem

__all__ = ["other_settings"]


def other_settings(config: Mapping[str, object], ours: Mapping[str, object], *, where: str) -> list[Problem]:
    """Return the settings that have another value than our network computes with; one that is not there has ours.

    Args:
        config: from a config.json.
        ours: by name; a dot leads into a section.
        where: the file, for messages.
    """
    problems = []
    for name, wanted in ours.items():
        section, _, key = name.rpartition(".")
        settings = config.get(section) if section else config
        value = settings.get(key, wanted) if isinstance(settings, Mapping) else wanted
        if type(value) is not type(wanted) or value != wanted:
            problems.append(
                Problem(
                    what=f"{name} is {ascii(value)[:80]}, and this version computes with {wanted!r}",
                    where=where,
                    fix="these weights need another network",
                )
            )
    return problems

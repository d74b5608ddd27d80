"""Where the wall time of a run went: the sections by name and colour, and the parts of its bar."""

from __future__ import annotations

from collections.abc import Mapping

from detronome.report.stacked_bar import Look, Part, parts_of

__all__ = ["SECTION_LOOKS", "time_parts"]

SECTION_LOOKS: Mapping[str, Look] = {
    "forward": Look(name="forward", color=0),
    "matcher": Look(name="matcher", color=3),
    "loss": Look(name="losses", color=4),
    "backward": Look(name="backward", color=2),
    "copy": Look(name="copies to the device", color=5),
    "reduce": Look(name="adding up gradients", color=5, fill="striped"),
    "update": Look(name="updates", color=6),
    "data_wait": Look(name="waiting for data", color=1),
    "agree": Look(name="waiting for other ranks", color=5, fill="dotted"),
    "log": Look(name="logging", color=7),
    "evaluation": Look(name="evaluation", color=3, fill="striped"),
    "evaluation_merge": Look(name="merging evaluations", color=3, fill="dotted"),
    "checkpoint": Look(name="checkpoints", color=6, fill="striped"),
    "start": Look(name="start", color=7, fill="striped"),
    "recovery": Look(name="diagnosis and rollbacks", color=4, fill="striped"),
    "skipped": Look(name="skipped steps", color=4, fill="dotted"),
    "redone": Look(name="steps undone by a rollback", color=1, fill="striped"),
    "stopped": Look(name="stopped or lost", color=7, fill="dotted"),
}
"""Each section, in the order of the bar: first what counts, then what does not."""

_SMALLEST = 0.001
"""Smaller parts of the whole are shown together."""


def time_parts(seconds: Mapping[str, float]) -> list[Part]:
    """Return the parts of a run's wall time in a fixed order, tiny ones as `other`; empty where no time is known.

    Args:
        seconds: by section, as the `end` record has it; sections of other versions keep their names.
    """
    return parts_of(seconds, SECTION_LOOKS, smallest=_SMALLEST)

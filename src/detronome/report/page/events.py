"""What happened: the guard's and the run's events, as a table and as counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from detronome.report.happenings import Happening
from detronome.report.page.words import plural

__all__ = ["MAX_ROWS_OF_A_KIND", "EventRow", "EventsView", "events_of"]

MAX_ROWS_OF_A_KIND = 20
_KINDS = {
    "skip": ("skipped step", "skipped steps"),
    "rollback": ("rollback", "rollbacks"),
    "split": ("memory split", "memory splits"),
    "checkpoint_failed": ("failed checkpoint", "failed checkpoints"),
    "bad_image": ("bad image", "bad images"),
    "warning": ("warning", "warnings"),
}
"""What happens to a run, one and several, in the order of the summary."""


@dataclass(frozen=True, kw_only=True)
class EventRow:
    """One row of what happened."""

    kind: str
    label: str
    steps: str
    what: str
    where: str
    action: str


@dataclass(frozen=True, kw_only=True)
class EventsView:
    """All of it: `counts` are kind and number in words."""

    rows: Sequence[EventRow]
    counts: Sequence[tuple[str, str]]
    has_hidden: bool


def events_of(happened: Sequence[Happening]) -> EventsView:
    """Return the table of what happened, in the order of the log; of each kind the last ones."""
    rows: list[EventRow] = []
    shown: Counter[str] = Counter()
    for one in reversed(happened):
        shown[one.kind] += 1
        if shown[one.kind] > MAX_ROWS_OF_A_KIND:
            continue
        steps = f"{one.step:,}" if one.count == 1 else f"{one.step:,}-{one.last_step:,}"
        label = _KINDS[one.kind][0] if one.count == 1 else f"{one.count:,} {_KINDS[one.kind][1]}"
        where = one.where if one.count == 1 else ", ".join(filter(None, (one.where, "told of the first of them")))
        rows.append(EventRow(kind=one.kind, label=label, steps=steps, what=one.what, where=where, action=one.action))
    return EventsView(rows=rows[::-1], counts=_counts(happened), has_hidden=len(rows) < len(happened))


def _counts(happened: Sequence[Happening]) -> list[tuple[str, str]]:
    """Return each kind that occurred, and how often, in words."""
    counts: Counter[str] = Counter()
    for one in happened:
        counts[one.kind] += one.count
    return [(kind, plural(counts[kind], *names)) for kind, names in _KINDS.items() if counts[kind]]

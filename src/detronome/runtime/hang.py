"""Who is to blame when a run hangs: the rank that keeps the others waiting, from what each rank says of itself."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from detronome.errors import first_few
from detronome.runtime.progress import Section

__all__ = ["HangReport", "Heard", "Limits", "RankRecord", "judge"]

_WAITING = frozenset({Section.AGREE, Section.REDUCE, Section.EVALUATION_MERGE})
_PASS = (Section.COPY, Section.FORWARD, Section.MATCHER, Section.LOSS, Section.BACKWARD)
"""Come again with each micro-batch: of two ranks in them, nobody knows which one is behind."""
_PLACE = {section: place for place, section in enumerate(Section)} | dict.fromkeys(_PASS, list(Section).index(_PASS[0]))


@dataclass(frozen=True, kw_only=True)
class RankRecord:
    """What a rank says of itself."""

    rank: int
    host: str
    pid: int
    section: Section
    step: int
    images: tuple[int, ...] = ()
    in_section_s: float = 0.0
    """Seconds since the section began, those left out in which the process was stopped."""
    written_at: float = 0.0
    """Seconds since 1970."""
    has_ended: bool = False


@dataclass(frozen=True)
class Heard:
    """The last that was heard of a rank."""

    record: RankRecord
    at: float
    """When it was heard here, on the listener's clock: clocks of other machines may differ."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How long a rank may be in one section, and how long it may be silent, before it counts as hanging.

    Silence has no patience: only a process that is stopped, dead, or holds its interpreter falls silent.
    """

    timeout_s: float
    patience: Mapping[Section, float] = field(
        default_factory=lambda: {Section.START: 6, Section.RECOVERY: 6, Section.CHECKPOINT: 3, Section.EVALUATION: 2}
    )
    """Multiples of the time for sections that take long by nature; 1 for the others."""

    def of(self, section: Section) -> float:
        """Return the limit of a section in seconds."""
        return self.timeout_s * self.patience.get(section, 1)


@dataclass(frozen=True, kw_only=True)
class HangReport:
    """Why a run cannot go on, as all its ranks tell it."""

    kind: Literal["silent", "overdue", "ended"]
    """`silent`: no sign of life. `overdue`: too long in one section. `ended`: left while the others wait."""
    culprits: tuple[int, ...]
    what: str
    """One line: who, where, since when, with which images, and who waits."""
    step: int
    """Of the first culprit."""
    records: tuple[RankRecord, ...]
    """The last of every rank, by rank."""
    reporter: int = 0
    """The rank that writes the report."""
    written_at: float = 0.0
    """Seconds since 1970."""


def judge(heard: Mapping[int, Heard], *, now: float, limits: Limits, num_ranks: int) -> HangReport | None:
    """Return who keeps the run from going on, or None while nobody has used up its time.

    A rank that waits for others is never to blame while one that does not wait is behind. Silent ranks come first;
    then, of the ranks at work, those that are furthest behind, once they are overdue; then, where all wait for one
    another, those that have left, or those at the earliest step and section.

    Args:
        heard: the last of each rank that has been heard of.
        now: on the clock of `Heard.at`.
        limits: the times allowed.
        num_ranks: how many ranks the run has.
    """
    running = {rank: h.record for rank, h in heard.items() if not h.record.has_ended}
    silent = [rank for rank in running if now - heard[rank].at > limits.timeout_s]
    if silent:
        return _report("silent", silent, heard, now, num_ranks)
    overdue = {rank for rank, record in running.items() if record.in_section_s > limits.of(record.section)}
    at_work = [record for record in running.values() if record.section not in _WAITING]
    if at_work:
        # While the one that is behind has time left, those before it may be waiting for it on a device.
        culprits = overdue & _furthest_behind(at_work)
    elif len(overdue) == len(running):
        left = heard.keys() - running.keys()
        if left and running:
            return _report("ended", left, heard, now, num_ranks)
        culprits = _furthest_behind(running.values())
    else:
        culprits = set()
    return _report("overdue", culprits, heard, now, num_ranks) if culprits else None


def _furthest_behind(records: Collection[RankRecord]) -> set[int]:
    places = {record.rank: (record.step, _PLACE[record.section]) for record in records}
    return {rank for rank, place in places.items() if place == min(places.values())}


def _report(
    kind: Literal["silent", "overdue", "ended"],
    culprits: Collection[int],
    heard: Mapping[int, Heard],
    now: float,
    num_ranks: int,
) -> HangReport:
    blamed = sorted(culprits)
    sentences = [_accusation(kind, heard[rank], now, num_ranks) for rank in blamed]
    records = tuple(heard[rank].record for rank in sorted(heard))
    waiting = [r for r in records if r.section in _WAITING and r.rank not in culprits and not r.has_ended]
    for section in sorted({record.section for record in waiting}):
        ranks = [record.rank for record in waiting if record.section == section]
        sentences.append(f"{_ranks(ranks)} {'waits' if len(ranks) == 1 else 'wait'} for it in {section}")
    if len(heard) < num_ranks:
        sentences.append("what the other ranks do is not known")
    elif kind == "overdue" and not waiting and all(r.section in _WAITING for r in records):
        sentences.append("no rank is behind: the network or a device does not answer")
    return HangReport(
        kind=kind, culprits=tuple(blamed), what="; ".join(sentences), step=heard[blamed[0]].record.step, records=records
    )


def _accusation(kind: str, heard: Heard, now: float, num_ranks: int) -> str:
    record = heard.record
    process = f"{record.host}, pid {record.pid}"
    who = f"rank {record.rank} of {num_ranks} ({process})" if num_ranks > 1 else f"the process ({process})"
    step = f" at step {record.step}" if record.step >= 0 else ""
    images = f", image ids {first_few([str(i) for i in record.images], most=8)}" if record.images else ""
    match kind:
        case "silent":
            silence = f"has not been heard of for {now - heard.at:.0f} s (stopped, killed, starved or cut off)"
            return f"{who} {silence}; it was in {record.section}{step}{images}"
        case "ended":
            return f"{who} has ended its part"
        case _:
            return f"{who} has been in {record.section} for {record.in_section_s:.0f} s{step}{images}"


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {first_few([str(rank) for rank in ranks], most=16)}"

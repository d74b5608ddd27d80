"""What happened to a run besides training, in words: skips, rollbacks, splits, failed writes, warnings, bad images.

The console, the report and the trackers say the same of the same record. Records of older logs lack fields; nothing
here needs more than `kind` and `step`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from detronome.report.formats import clean_text, format_count, format_significant

__all__ = ["Happening", "happening", "happenings", "images_in_words"]

Record = Mapping[str, Any]

_MAX_IMAGES = 8


@dataclass(frozen=True, kw_only=True)
class Happening:
    """One thing that happened, or several alike in a row. Texts are clean, on one line."""

    kind: str
    """As in the log: `skip`, `rollback`, `split`, `checkpoint_failed`, `warning`, `bad_image`."""
    step: int
    last_step: int
    """Later than `step` where several are counted as one."""
    count: int = 1
    what: str
    where: str = ""
    """Which images, or which rank."""
    action: str = ""
    """What the run did about it, or, for a warning, what to do."""
    cause: str = ""
    """Equal for skips that have the same cause, whatever the numbers in their reasons."""

    @property
    def sentence(self) -> str:
        """The happening on one line; a warning without its fix."""
        if self.kind == "skip":
            done = "" if self.action in ("", "skipped") else f"; {self.action}"
            return f"step {self.step:,} skipped: {self.what}{_in_brackets(self.where)}{done}"
        if self.kind in ("rollback", "checkpoint_failed"):
            return f"{self.what}; {self.action}"
        if self.kind == "bad_image":
            return f"{self.where}: {self.what}; {self.action}"
        if self.kind == "warning":
            return self.what
        return f"{self.what}{_in_brackets(self.where)}: {self.action}"

    @property
    def fix(self) -> str:
        """What a warning advises; empty for all else."""
        return self.action if self.kind == "warning" else ""


def happening(record: Record) -> Happening | None:
    """Return what a log record tells, or None where it tells of training as it should be."""
    describe = _KINDS.get(str(record.get("kind")))
    return describe(record) if describe else None


def happenings(records: Iterable[Record]) -> list[Happening]:
    """Return all that happened, in the order of the log; skips in a row that have one cause are counted as one.

    An image that a resumed run meets again is named once.
    """
    found: list[Happening] = []
    bad_images: set[tuple[object, object]] = set()
    for record in records:
        new = happening(record)
        if new is None:
            continue
        if new.kind == "bad_image":
            image = (record.get("split"), record.get("image_id"))
            if image in bad_images:
                continue
            bad_images.add(image)
        last = found[-1] if found else None
        if last and last.kind == new.kind == "skip" and last.cause == new.cause and new.step == last.last_step + 1:
            found[-1] = replace(last, last_step=new.step, count=last.count + 1)
        else:
            found.append(new)
    return found


def images_in_words(image_ids: Sequence[object]) -> str:
    """Return the ids, the first few of many; empty for none."""
    shown = ", ".join(clean_text(image_id) for image_id in image_ids[:_MAX_IMAGES])
    more = len(image_ids) - _MAX_IMAGES
    return shown + (f" and {more} more" if more > 0 else "")


def _skip(record: Record) -> Happening:
    reason = _text(record, "reason")
    images = images_in_words(record.get("image_ids") or [])
    place = [] if not images or " image" in reason else [f"images {images}"]
    if record.get("rank"):
        place.append(f"rank {record['rank']}")
    facts = [_text(record, name) for name in ("module", "dtype", "loss_term", "is_reproducible", "action")]
    cause = " ".join(facts) if any(facts[:3]) else f"{_without_numbers(reason)} {facts[-1]}"
    return _at(record, what=reason, where=", ".join(place), action=_text(record, "action") or "skipped", cause=cause)


def _rollback(record: Record) -> Happening:
    actions = []
    if record.get("lr_scale", 1.0) != 1.0:
        actions.append(f"rates x {format_significant(record['lr_scale'])}")
    if excluded := record.get("excluded"):
        steps = "step is" if len(excluded) == 1 else "steps are"
        actions.append(f"{format_count(len(excluded))} {steps} passed over")
    return _at(
        record,
        what=f"went back from step {_count(record.get('from_step'))} to {_count(record['step'])}: "
        f"{_text(record, 'reason')}",
        action="; ".join(actions) or "training goes on from there",
    )


def _split(record: Record) -> Happening:
    return _at(
        record,
        what=f"memory ran out at {_text(record, 'shape')}",
        where=f"rank {record['rank']}" if record.get("rank") else "",
        action=f"{_text(record, 'old_size')} -> {_text(record, 'new_size')} images at once from now on, same gradient",
    )


def _checkpoint_failed(record: Record) -> Happening:
    return _at(
        record,
        what=_text(record, "reason"),
        action="training goes on, older checkpoints are intact",
    )


def _warning(record: Record) -> Happening:
    return _at(record, what=_text(record, "what"), action=_text(record, "fix"), cause=_text(record, "subject"))


def _bad_image(record: Record) -> Happening:
    return _at(
        record,
        what=f"{_text(record, 'file')}: {_text(record, 'reason')}",
        where=f"image {_text(record, 'image_id')} of {_text(record, 'split')}",
        action=_text(record, "action"),
    )


def _at(record: Record, *, what: str, where: str = "", action: str = "", cause: str = "") -> Happening:
    step = int(record.get("step") or 0)
    return Happening(
        kind=str(record["kind"]), step=step, last_step=step, what=what, where=where, action=action, cause=cause
    )


def _text(record: Record, name: str) -> str:
    value = record.get(name)
    return "" if value is None else clean_text(value)


def _count(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else "?"


def _in_brackets(text: str) -> str:
    return f" ({text})" if text else ""


def _without_numbers(reason: str) -> str:
    return re.sub(r"(#[, ]*)+", "#", re.sub(r"\d[\d.,]*(e[+-]?\d+)?", "#", reason))


_KINDS: Mapping[str, Callable[[Record], Happening]] = {
    "skip": _skip,
    "rollback": _rollback,
    "split": _split,
    "checkpoint_failed": _checkpoint_failed,
    "warning": _warning,
    "bad_image": _bad_image,
}

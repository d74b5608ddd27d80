"""Fine-tuning on other classes: which ones the model has from then on, and what becomes of its classification head."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from detronome.errors import first_few
from detronome.types import Categories

__all__ = ["fine_tuned_categories", "head_change", "new_classes", "with_new_head"]


def fine_tuned_categories(held: Categories, data: Categories) -> Categories:
    """Return what the labels mean after fine-tuning: what they meant before where that covers the data (same ids and
    names; official weights know more classes than most data has), otherwise the data's categories."""
    return held if data.by_id.items() <= held.by_id.items() else data


def head_change(held: Categories, data: Categories) -> str | None:
    """Return in words what becomes of the classification head, as the reason of a setting; None if it stays."""
    if fine_tuned_categories(held, data) is held:
        return None
    kept, new = _kept(held, data), new_classes(held, data)
    if not new:
        return f"{len(data)} (the weights know them by name, under other ids: the classification head keeps them all)"
    begins = f"new to the weights, which know {len(held)}: {first_few(new)}"
    remains = f"; kept by name: {first_few([data.names[label] for label in kept])}" if kept else ""
    return f"{len(data)} (the classification head begins anew, and nothing else; {begins}{remains})"


def new_classes(held: Categories, data: Categories) -> list[str]:
    """Return the names of the data's classes that the weights do not know: their rows of the head begin anew."""
    kept = _kept(held, data)
    return [name for label, name in enumerate(data.names) if label not in kept]


def with_new_head(
    weights: Mapping[str, Tensor],
    fresh: Mapping[str, Tensor],
    *,
    head: frozenset[str],
    held: Categories,
    data: Categories,
) -> dict[str, Tensor]:
    """Return weights for the data's classes: everything as it was, but a new head.

    The rows of classes that the weights know by name are kept, and so is what comes after the classes (no-object).

    Args:
        weights: of the model as it was.
        fresh: of a model that was newly made for the data's classes, by the same names.
        head: which of them have a row for each class, first.
        held: what the labels of `weights` mean.
        data: what those of the result mean.
    """
    kept = _kept(held, data)
    refitted = dict(weights)
    for name in head & weights.keys():
        rows = fresh[name].clone()
        rows[len(data) :] = weights[name][len(held) :]
        for label, held_label in kept.items():
            rows[label] = weights[name][held_label]
        refitted[name] = rows
    return refitted


def _kept(held: Categories, data: Categories) -> dict[int, int]:
    """Return the held label of each of the data's labels that has a class of the same name."""
    by_name = {name: label for label, name in reversed(list(enumerate(held.names)))}
    return {label: by_name[name] for label, name in enumerate(data.names) if name in by_name}

"""What the labels of published weights mean: config.json names them, or they are known to be COCO's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detronome.errors import CheckpointError
from detronome.types import Categories
from detronome.weights.coco import COCO80, NO_NAME, coco_by_id, coco_by_order

__all__ = ["MAX_CLASSES", "categories_of"]

MAX_CLASSES = 100_000
"""More is no detector, but a damaged file."""


def categories_of(
    hub_config: Mapping[str, Any] | None, num_classes: int, *, family: str, where: str
) -> tuple[Categories, list[str]]:
    """Return (what the labels mean, what to say about it).

    Args:
        hub_config: the config.json beside the weights, if any.
        num_classes: that the weights have.
        family: DETR numbers COCO's classes by their ids, the others in order.
        where: the config.json, for messages.

    Raises:
        CheckpointError: config.json names other labels than the weights have.
    """
    if hub_config is not None and "id2label" in hub_config:
        return _named(_names(hub_config["id2label"], num_classes, where=where), family), []
    by_id = coco_by_id(num_classes) if family == "detr" and num_classes in (91, 250) else None
    known = by_id or (COCO80 if num_classes == len(COCO80) else None)
    if known is not None:
        return known, [f"assumed: its {num_classes} classes are COCO's, which the file does not say"]
    numbered = Categories(tuple(range(num_classes)), tuple(f"class {label}" for label in range(num_classes)))
    return numbered, [f"its {num_classes} classes are numbered, since the file does not name them"]


def _named(names: list[str], family: str) -> Categories:
    by_order = coco_by_order(names)
    if by_order is not None:
        return by_order
    by_id = coco_by_id(len(names))
    if family == "detr" and len(names) in (91, 250):
        # What stands at labels that are no category differs from file to file.
        pairs = [pair for pair in zip(names, by_id.names, strict=True) if pair[1] != NO_NAME]
        if sum(name == known for name, known in pairs) > len(pairs) // 2:
            return by_id
    return Categories(tuple(range(len(names))), tuple(names))


def _names(id2label: object, num_classes: int, *, where: str) -> list[str]:
    """Return the names of labels 0, 1, ... from a config.json."""
    table = id2label if isinstance(id2label, Mapping) else {}
    names = [table.get(str(label)) for label in range(num_classes)] if num_classes <= MAX_CLASSES else []
    if len(table) != num_classes or not all(isinstance(name, str) for name in names):
        raise CheckpointError(
            f"id2label does not name the {num_classes:,} classes that the weights have",
            where=where,
            fix="give it the labels 0, 1, ... as keys and a name for each, or leave it out",
        )
    return [str(name) for name in names]

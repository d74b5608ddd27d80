"""What a prediction's address and headers ask for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from detronome.deploy.serve.limits import Limits, RefusedError
from detronome.errors import nearest_name_hint

__all__ = ["Asked", "parse_request"]

_FORMS = ("json", "jpeg", "png")
_MEDIA_TYPES = {
    "application/json": "json",
    "image/jpeg": "jpeg",
    "image/png": "png",
    "image/*": "jpeg",
    "application/*": "json",
    "*/*": "json",
}
_NAMES = ("score", "max_detections", "format", "timeout")
_MAX_PARAMETERS = 16
"""More are a mistake, and an error that named them all would be longer than the request."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """How a prediction is to be answered."""

    score: float = 0.5
    """Least score, 0-1."""
    max_detections: int | None = None
    """Most detections; None for all of the model's."""
    form: str = "json"
    """json, jpeg or png."""
    timeout_s: float


def parse_request(query: Sequence[tuple[str, str]], accept: str, limits: Limits) -> Asked:
    """Return what is asked for.

    Args:
        query: names and values in the address.
        accept: the header, empty where there is none.
        limits: of the server.

    Raises:
        RefusedError: 400, with all that is wrong.
    """
    if len(query) > _MAX_PARAMETERS:
        raise RefusedError(400, "bad_parameter", "there are too many parameters", fix="see /openapi.json")
    wrong: list[str] = []
    values: dict[str, str] = {}
    for name, value in query:
        if name not in _NAMES:
            wrong.append(f"unknown parameter {name[:40]!r} ({nearest_name_hint(name[:40], _NAMES)})")
        elif name in values:
            wrong.append(f"{name} is given twice")
        values[name] = value
    score = _number(values, "score", 0.5)
    if not 0 <= score <= 1:
        wrong.append("score must be a number from 0 to 1")
    count = values.get("max_detections")
    if count is not None and not (count.isascii() and count.isdecimal() and len(count) < 10 and int(count) > 0):
        wrong.append("max_detections must be a whole number above 0")
        count = None
    timeout_s = _number(values, "timeout", limits.timeout_s)
    if not 0 < timeout_s <= limits.timeout_s:
        wrong.append(f"timeout must be a number above 0 and at most {limits.timeout_s:g} (seconds)")
    form = values.get("format", _preferred(accept))
    if form not in _FORMS:
        wrong.append(f"format must be {', '.join(_FORMS[:-1])} or {_FORMS[-1]}")
    if wrong:
        raise RefusedError(400, "bad_parameter", "; ".join(wrong), fix="see /openapi.json")
    return Asked(score=score, max_detections=None if count is None else int(count), form=form, timeout_s=timeout_s)


def _number(values: Mapping[str, str], name: str, default: float) -> float:
    """Return a number, or NaN, which is in no range, for what is none."""
    if name not in values:
        return default
    try:
        return float(values[name])
    except ValueError:
        return math.nan


def _preferred(accept: str) -> str:
    """Return the form that the Accept header prefers; JSON where it names none that there is (RFC 9110, 12.5.1)."""
    best, best_weight = "json", 0.0
    for item in accept[:1000].split(","):
        name, *parameters = (part.strip().lower() for part in item.split(";"))
        form = _MEDIA_TYPES.get(name)
        weights = [_number({"q": text[2:]}, "q", 1.0) for text in parameters if text.startswith("q=")]
        weight = weights[0] if weights else 1.0
        if form is not None and weight > best_weight:
            best, best_weight = form, weight
    return best

"""Versions, ranges of versions and conditions of requirements, as PEP 440 and PEP 508 have them.

An own reader of some hundred lines: the `packaging` project may be missing or broken where the doctor is needed.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import total_ordering

__all__ = ["Requirement", "Version", "allows", "normal_name"]

_VERSION = re.compile(
    r"v?(?:(?P<epoch>\d{1,18})!)?(?P<release>\d{1,18}(?:\.\d{1,18}){0,20})"
    r"(?:[-_.]?(?P<pre>a|b|c|rc|alpha|beta|pre|preview)[-_.]?(?P<pre_n>\d{0,18}))?"
    r"(?:-(?P<post_bare>\d{1,18})|[-_.]?(?:post|rev|r)[-_.]?(?P<post>\d{0,18}))?"
    r"(?:[-_.]?dev[-_.]?(?P<dev>\d{0,18}))?"
    r"(?:\+(?P<local>[a-z0-9]+(?:[-_.][a-z0-9]+)*))?",
    re.IGNORECASE | re.ASCII,
)
_STAGES = {"a": 0, "alpha": 0, "b": 1, "beta": 1, "c": 2, "rc": 2, "pre": 2, "preview": 2}
_FINAL = 3


@total_ordering
@dataclass(frozen=True)
class Version:
    """A version, ordered as PEP 440 says; the local part (`+cu130`) counts in neither order nor equality."""

    text: str = field(compare=False)
    release: tuple[int, ...] = field(compare=False)
    key: tuple[object, ...] = field(repr=False)
    local: str = field(default="", compare=False)
    is_final: bool = field(default=True, compare=False)

    @classmethod
    def parse(cls, text: str) -> Version | None:
        """Return the version that a text says, or None where it says none."""
        found = _VERSION.fullmatch(text.strip())
        if found is None:
            return None
        release = tuple(int(part) for part in found["release"].split("."))
        trimmed = list(release)
        while trimmed and trimmed[-1] == 0:
            trimmed.pop()
        dev = found["dev"]
        is_dev, is_pre = dev is not None, found["pre"] is not None
        post = found["post_bare"] if found["post_bare"] is not None else found["post"]
        stage = _STAGES[found["pre"].lower()] if is_pre else (-1 if is_dev and post is None else _FINAL)
        key = (
            int(found["epoch"] or 0),
            tuple(trimmed),
            stage,
            int(found["pre_n"] or 0) if is_pre else 0,
            -1 if post is None else int(post or 0),
            int(dev or 0) if is_dev else float("inf"),
        )
        return cls(text.strip(), release, key, found["local"] or "", not (is_dev or is_pre))

    def __lt__(self, other: Version) -> bool:
        return self.key < other.key

    def begins_with(self, release: tuple[int, ...]) -> bool:
        """Return whether this is such a release: 2.15.1 begins with 2.15."""
        padded = self.release + (0,) * max(0, len(release) - len(self.release))
        return padded[: len(release)] == release


_COMPARISONS: dict[str, Callable[[Version, Version], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_CLAUSE = re.compile(r"(===|~=|==|!=|>=|<=|>|<)\s*([^\s,]+)")


def allows(specifier: str, version: str) -> bool:
    """Return whether a range such as `>=2.11,<3,!=2.12.0` holds a version; what cannot be read is allowed.

    A pre-release counts as the number it precedes in `<` alone: `<3` refuses 3.0rc1, as installers do.
    """
    found = Version.parse(version)
    return found is None or all(_allows(sign, bound, found) for sign, bound in _CLAUSE.findall(specifier))


def _allows(sign: str, bound: str, version: Version) -> bool:
    if sign == "===":
        return version.text == bound
    limit = Version.parse(bound.removesuffix(".*"))
    if limit is None:
        return True
    if sign in ("==", "!="):
        is_same = version.begins_with(limit.release) if bound.endswith(".*") else version == limit
        if limit.local and not bound.endswith(".*"):
            is_same = is_same and version.local == limit.local
        return is_same == (sign == "==")
    if sign == "~=":
        return version >= limit and version.begins_with(limit.release[:-1])
    if sign == "<" and limit.is_final and not version.is_final and version.begins_with(limit.release):
        return False
    return _COMPARISONS[sign](version, limit)


def normal_name(name: str) -> str:
    """Return a distribution's name as indexes compare it: `Nvidia_ML.py` is `nvidia-ml-py`."""
    return re.sub(r"[-_.]+", "-", name).lower()


_REQUIREMENT = re.compile(
    r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[[^\]]*\])?\s*(?:@[^;]*|\(?([^;()]*)\)?)\s*(?:;(.*))?"
)


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """What a distribution asks of another: a name, a range, and the extra that asks for it."""

    name: str
    specifier: str
    extra: str = ""

    @classmethod
    def parse(cls, text: str, environment: Mapping[str, str]) -> Requirement | None:
        """Return a line of `Requires-Dist`, or None where it does not hold here or cannot be read."""
        found = _REQUIREMENT.fullmatch(text)
        if found is None:
            return None
        marker = found[3] or ""
        extras = re.findall(r"extra\s*==\s*['\"]([^'\"]+)['\"]", marker)
        extra = extras[0] if extras else ""
        try:
            holds = not marker.strip() or _Marker(marker, {**environment, "extra": extra}).holds()
        except ValueError:
            return None
        if not holds:
            return None
        return cls(name=normal_name(found[1]), specifier=(found[2] or "").strip(), extra=extra)


_MARKER_TOKEN = re.compile(r"\s*(\(|\)|'[^']*'|\"[^\"]*\"|===|~=|==|!=|>=|<=|>|<|\bnot\s+in\b|[A-Za-z_.]+)")


class _Marker:
    """A condition such as `python_version < "3.12" and sys_platform == "linux"`, read by descent."""

    def __init__(self, text: str, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._tokens: list[str] = []
        place = 0
        while text[place:].strip():
            found = _MARKER_TOKEN.match(text, place)
            if found is None:
                raise ValueError(text)
            self._tokens.append(" ".join(found[1].split()))
            place = found.end()

    def holds(self) -> bool:
        result = self._either()
        if self._tokens:
            raise ValueError(self._tokens[0])
        return result

    def _either(self) -> bool:
        result = self._both()
        while self._next_is("or"):
            result = self._both() or result  # the right side is read in any case
        return result

    def _both(self) -> bool:
        result = self._one()
        while self._next_is("and"):
            result = self._one() and result
        return result

    def _one(self) -> bool:
        if self._next_is("("):
            result = self._either()
            if not self._next_is(")"):
                raise ValueError("a bracket is not closed")
            return result
        left, sign, right = self._value(), self._take(), self._value()
        if sign in ("in", "not in"):
            return (left in right) == (sign == "in")
        if sign in ("==", "!=") and not (Version.parse(left) and Version.parse(right.removesuffix(".*"))):
            return (left == right) == (sign == "==")
        return allows(f"{sign}{right}", left)

    def _value(self) -> str:
        token = self._take()
        if token[0] in "'\"":
            return token[1:-1]
        if token not in self._environment:
            raise ValueError(token)
        return self._environment[token]

    def _take(self) -> str:
        if not self._tokens:
            raise ValueError("the condition ends too early")
        return self._tokens.pop(0)

    def _next_is(self, token: str) -> bool:
        if self._tokens and self._tokens[0] == token:
            self._tokens.pop(0)
            return True
        return False

"""What a search may vary: settings with a range or a choice of values, as texts and as records.

optim.lr=1e-4..1e-2:log           every number between, on a logarithmic scale
model.num_decoder_layers=2..6     whole numbers, because the setting is one
model.num_queries=25|50|100       one of these
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from detronome.config.convert import apply_overrides, to_dict
from detronome.config.schema import RunConfig
from detronome.engine.resolve import check_consistency
from detronome.errors import ConfigError, Problem, nearest_name_hint

__all__ = ["Choice", "Dimension", "Range", "parse_space"]

_WHERE = "--space"
_EXAMPLES = "write e.g. optim.lr=1e-4..1e-2:log or model.num_queries=25|50|100"
_SCALES = ("linear", "log")

_NOT_SEARCHED = {
    "data.root": "AP on other data cannot be compared",
    "data.val_split": "AP on other images cannot be compared",
    "eval.max_detections": "AP of another number of detections cannot be compared",
    "train.metric": "trials are compared by one metric",
    "train.epochs": "trials are compared, and ended early, after the same number of epochs (--epochs)",
    "train.eval_epochs": "trials are compared after the same epochs",
    "train.device": "it changes nothing in the result",
}


@dataclass(frozen=True, kw_only=True)
class Range:
    """Every number between two."""

    setting: str
    low: float
    high: float
    is_whole: bool
    is_log: bool

    def __str__(self) -> str:
        return f"{self.setting}={self.low}..{self.high}{':log' if self.is_log else ''}"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One of several values."""

    setting: str
    values: tuple[Any, ...]
    """Plain data, as `--set` takes it."""

    def __str__(self) -> str:
        return f"{self.setting}={'|'.join(map(str, self.values))}"


Dimension = Range | Choice


def parse_space(texts: Sequence[str], config: RunConfig) -> list[Dimension]:
    """Return what the texts describe; values have the types of the settings.

    Args:
        texts: `setting=low..high`, with `:log` for a logarithmic scale, or `setting=value|value|...`.
        config: what the settings belong to; every end and every value must be possible in it.

    Raises:
        ConfigError: unknown settings, values that are not allowed, ranges that hold nothing; all of them at once.
    """
    problems: list[Problem] = []
    dimensions: list[Dimension] = []
    for text in texts:
        try:
            dimensions.append(_dimension(text, config))
        except ConfigError as error:
            problems += error.problems
    names = [dimension.setting for dimension in dimensions]
    for name in sorted({name for name in names if names.count(name) > 1}):
        problems.append(Problem(what=f"{name} is given twice", where=_WHERE, fix="give each setting once"))
    if not texts:
        problems.append(Problem(what="nothing to search", where=_WHERE, fix=_EXAMPLES))
    if problems:
        raise ConfigError(problems)
    return dimensions


def _dimension(text: str, config: RunConfig) -> Dimension:
    setting, equals, values = (part.strip() for part in text.partition("="))
    if not equals or not setting or not values:
        raise ConfigError(f"{text!r} says not what to search", where=_WHERE, fix=_EXAMPLES)
    if setting in _NOT_SEARCHED:
        raise ConfigError(f"{setting} cannot be searched: {_NOT_SEARCHED[setting]}", where=_WHERE, fix="leave it out")
    if ".." in values and "|" not in values:
        return _range(setting, values, config)
    listed = [_value(part.strip()) for part in values.split("|")]
    checked = [_checked(setting, value, config) for value in listed]
    if len(set(map(repr, checked))) < 2:
        raise ConfigError(
            f"{setting} has one value, so there is nothing to choose", where=_WHERE, fix=f"--set {setting}={values}"
        )
    return Choice(setting=setting, values=tuple(dict.fromkeys(_hashable(value) for value in checked)))


def _range(setting: str, text: str, config: RunConfig) -> Range:
    ends, colon, scale = (part.strip() for part in text.partition(":"))
    if colon and scale not in _SCALES:
        raise ConfigError(f"{text!r}: unknown scale {scale!r}", where=_WHERE, fix=nearest_name_hint(scale, _SCALES))
    ends_checked = [_checked(setting, _value(part.strip()), config) for part in ends.split("..", 1)]
    low, high = ends_checked
    if not all(isinstance(end, int | float) and not isinstance(end, bool) for end in ends_checked):
        raise ConfigError(
            f"{setting} is no number, so there is nothing between {low!r} and {high!r}",
            where=_WHERE,
            fix=f"name the values: {setting}=A|B",
        )
    if not low < high:
        raise ConfigError(f"{setting}={text}: nothing lies between", where=_WHERE, fix="give the smaller number first")
    is_log = scale == "log"
    if is_log and low <= 0:
        raise ConfigError(f"{setting}={text}: a logarithmic scale has no 0", where=_WHERE, fix="begin above 0")
    is_whole = isinstance(low, int) and isinstance(high, int)
    return Range(setting=setting, low=low, high=high, is_whole=is_whole, is_log=is_log)


def _value(text: str) -> Any:
    """Return a value as `--set` reads it."""
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text


def _checked(setting: str, value: Any, config: RunConfig) -> Any:
    """Return a value as the setting's type.

    Raises:
        ConfigError: there is no such setting, it cannot have this value, or not with the others.
    """
    changed = apply_overrides(config, {setting: value}, where=_WHERE)
    try:
        check_consistency(changed)
    except ConfigError as error:
        where = f"{_WHERE} {setting}={value}"
        raise ConfigError([replace(problem, where=where) for problem in error.problems]) from error
    section, _, name = setting.partition(".")
    converted = to_dict(changed)[section][name]
    assert not isinstance(converted, float) or math.isfinite(converted)
    return converted


def _hashable(value: Any) -> Any:
    return tuple(_hashable(item) for item in value) if isinstance(value, list) else value

"""Between configuration records and plain data: checked conversion, overrides, TOML.

Unknown keys and wrong types are all reported at once, each with the nearest name.
"""

from __future__ import annotations

import dataclasses
import tomllib
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from detronome.config.schema import TIMM_PREFIX, RunConfig, TimmName
from detronome.errors import ConfigError, Problem, nearest_name_hint

__all__ = ["apply_overrides", "from_dict", "parse_override", "read_toml", "to_dict", "to_toml"]


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Return the configuration as nested plain data, tuples as lists."""
    plain: dict[str, Any] = _plain(dataclasses.asdict(config))
    return plain


def from_dict(data: Mapping[str, Any], *, base: RunConfig | None = None, where: str = "configuration") -> RunConfig:
    """Return the configuration that nested plain data describes.

    Args:
        data: sections and settings; missing ones keep the value of `base`.
        base: by default, the defaults.
        where: names the source in errors.

    Raises:
        ConfigError: unknown sections or keys, wrong types, values not allowed; all of them at once.
    """
    problems: list[Problem] = []
    config = _build(RunConfig, data, base or RunConfig(), "", where, problems)
    if problems:
        raise ConfigError(problems)
    assert isinstance(config, RunConfig)
    return config


def apply_overrides(config: RunConfig, overrides: Mapping[str, Any], *, where: str = "--set") -> RunConfig:
    """Return the configuration with dotted keys replaced, e.g. `{"optim.lr": 2e-4}`.

    Raises:
        ConfigError: as `from_dict`, or a key that is no `section.name`.
    """
    nested: dict[str, Any] = {}
    problems = []
    for key, value in overrides.items():
        section, dot, name = key.partition(".")
        if not dot:
            problems.append(_missing_section(key, where))
            continue
        nested.setdefault(section, {})[name] = value
    if problems:
        raise ConfigError(problems)
    return from_dict(nested, base=config, where=where)


def parse_override(text: str) -> tuple[str, Any]:
    """Return key and value of `key=value`; the value is read as TOML, and as a plain string where it is none.

    Raises:
        ConfigError: there is no `=`.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(
            f"{text!r} is not key=value", where="--set", fix="write e.g. --set optim.lr=2e-4; DATA stands before --set"
        )
    try:
        return key.strip(), tomllib.loads(f"v = {value.strip()}")["v"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        ConfigError: it does not exist or is no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the file: {error.strerror}", where=str(path), fix="check the path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"not valid TOML: {error}", where=str(path), fix="correct that line") from error


def to_toml(config: RunConfig) -> str:
    """Return the configuration as TOML; `from_dict(read_toml(...))` gives it back."""
    import tomli_w

    return tomli_w.dumps(to_dict(config))


def _build(record_type: type, data: Any, base: Any, prefix: str, where: str, problems: list[Problem]) -> Any:
    """Return a record of `record_type` from plain data on top of `base`, collecting problems."""
    if not isinstance(data, Mapping):
        section = prefix.rstrip(".")
        problems.append(
            Problem(
                what=f"{section} must be a section of settings, not {data!r}",
                where=where,
                fix=f"write [{section}] and below it one name = value a line",
            )
        )
        return base
    hints = get_type_hints(record_type)
    values = {}
    for key, value in data.items():
        path = f"{prefix}{key}"
        if key not in hints:
            problems.append(
                Problem(what=f"unknown setting {path!r}", where=where, fix=_unknown_fix(prefix, key, list(hints)))
            )
            continue
        current = getattr(base, key)
        records = _record_types(hints[key])
        if records:
            chosen = _choose_record(records, value, current, path, where, problems)
            start = current if isinstance(current, chosen) else chosen()
            values[key] = _build(chosen, value, start, f"{path}.", where, problems)
            continue
        converted = _convert(value, hints[key])
        if converted is _REFUSED:
            problems.append(
                Problem(what=f"{path} = {value!r} is not allowed", where=where, fix=f"give {_describe(hints[key])}")
            )
        else:
            values[key] = converted
    return dataclasses.replace(base, **values)


def _choose_record(
    records: Sequence[type], value: Any, current: Any, path: str, where: str, problems: list[Problem]
) -> type:
    """Return the record type that `family` names, or the current one."""
    by_family = {getattr(record, "family", record.__name__): record for record in records}
    family = value.get("family") if isinstance(value, Mapping) else None
    if family is None or len(records) == 1:
        return type(current)
    if not isinstance(family, str) or family not in by_family:
        problems.append(
            Problem(
                what=f"unknown {path}.family {family!r}",
                where=where,
                fix=nearest_name_hint(str(family), list(by_family)),
            )
        )
        return type(current)
    return by_family[family]


_REFUSED = object()
_LARGEST = 1e300
"""Beyond are inf, nan and whole numbers that are no float."""


def _convert(value: Any, hint: Any) -> Any:
    """Return the value as the hint's type, or `_REFUSED`. Only lossless conversions: int to float, list to tuple."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value if value in args else _REFUSED
    if origin in (Union, types.UnionType):
        # A named choice before all else: "auto" is not a list of one text.
        converted = (_convert(value, arg) for arg in sorted(args, key=_is_choice, reverse=True))
        return next((c for c in converted if c is not _REFUSED), _REFUSED)
    if origin is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        variable = len(args) == 2 and args[1] is Ellipsis
        if not variable and len(items) != len(args):
            return _REFUSED
        kinds = [args[0]] * len(items) if variable else args
        result = tuple(_convert(item, kind) for item, kind in zip(items, kinds, strict=True))
        return _REFUSED if _REFUSED in result else result
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) if abs(value) < _LARGEST else _REFUSED
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if hint is TimmName:
        return value if isinstance(value, str) and value.startswith(TIMM_PREFIX) else _REFUSED
    if isinstance(value, bool) is not (hint is bool):
        return _REFUSED
    return value if isinstance(value, hint) else _REFUSED


def _is_choice(hint: Any) -> bool:
    origin: Any = get_origin(hint)
    return origin is Literal


def _describe(hint: Any) -> str:
    """Return a hint in words for an error."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(repr(arg) for arg in args)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(arg) for arg in args)
    if origin is tuple:
        variable = args[1] is Ellipsis
        return f"a list, each {_describe(args[0])}" if variable else f"a list of {len(args)}, each {_describe(args[0])}"
    if hint is TimmName:
        return f"{TIMM_PREFIX}NAME of a network in timm"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[hint]


def _record_types(hint: Any) -> list[type]:
    members: tuple[type, ...] = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return [member for member in members if dataclasses.is_dataclass(member)]


def _unknown_fix(prefix: str, key: str, known: Sequence[str]) -> str:
    if not prefix and (section := _section_of(key)):
        return f"did you mean {section}.{key}?"
    return nearest_name_hint(key, known)


def _missing_section(key: str, where: str) -> Problem:
    section = _section_of(key)
    fix = f"did you mean {section}.{key}?" if section else "settings are called section.name, e.g. optim.lr"
    return Problem(what=f"unknown setting {key!r}", where=where, fix=fix)


def _section_of(name: str) -> str | None:
    """Return the section that has a setting of this name, if any."""
    for section, hint in get_type_hints(RunConfig).items():
        for record in _record_types(hint):
            if name in get_type_hints(record):
                return section
    return None


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value

"""What name tables are made of: patterns applied one after another, and three projections that become one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

__all__ = ["Renames", "compiled", "joined_projections", "renamed"]

Renames = Sequence[tuple[re.Pattern[str], str]]

_PROJECTION = re.compile(r"^(.*_attn\.)([qkv])_proj\.(weight|bias)$")


def compiled(*pairs: tuple[str, str]) -> Renames:
    """Return pairs of a pattern and what takes its place."""
    return tuple((re.compile(pattern), replacement) for pattern, replacement in pairs)


def renamed(state: Mapping[str, Tensor], renames: Renames) -> dict[str, Tensor]:
    """Apply all patterns to each key, in their order; where two keys would meet, the second gets a name of no model."""
    result: dict[str, Tensor] = {}
    for key, value in state.items():
        new = key
        for pattern, replacement in renames:
            new = pattern.sub(replacement, new)
        while new in result:
            new += " (again)"
        result[new] = value
    return result


def joined_projections(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Join the projections of queries, keys and values of each attention, as torch's own attention has them.

    Those that do not fit together stay as they are, for whoever reports what cannot be loaded.
    """
    joined = dict(state)
    for key in state:
        match = _PROJECTION.match(key)
        if match is None or match[2] != "q":
            continue
        names = [f"{match[1]}{part}_proj.{match[3]}" for part in "qkv"]
        parts = [state[name] for name in names if name in state]
        if len(parts) == 3 and all(part.dim() > 0 and part.shape[1:] == parts[0].shape[1:] for part in parts):
            for name in names:
                del joined[name]
            joined[f"{match[1]}in_proj_{match[3]}"] = torch.cat(parts)
    return joined

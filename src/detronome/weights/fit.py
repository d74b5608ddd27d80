"""Whether weights are those of a model, whole: everything that is not so is told at once."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from detronome.errors import CheckpointError, Problem, first_few

__all__ = ["fitted", "misfits"]

_SHOWN = 6
_MAX_CHARS = 160
_COUNTER = ".num_batches_tracked"


def misfits(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Return what keeps weights from being all that a model needs and nothing else, by kind.

    Args:
        state: the weights under our keys.
        expected: the model's, of which only names, shapes and kinds are looked at; may be on `meta`.
    """
    common = [key for key in expected if key in state]
    kinds = {
        f"tensors that are missing, of the model's {len(expected):,}": [
            key for key in expected if key not in state and not key.endswith(_COUNTER)
        ],
        "tensors that belong to no part of the model": [key for key in state if key not in expected],
        "tensors of another shape than the model's": [
            f"{key} is {_shown(state[key])} and must be {_shown(expected[key])}"
            for key in common
            if state[key].shape != expected[key].shape
        ],
        "tensors of another kind than the model's": [
            f"{key} holds {str(state[key].dtype).removeprefix('torch.')}"
            for key in common
            if state[key].is_floating_point() != expected[key].is_floating_point()
        ],
    }
    return {kind: cases for kind, cases in kinds.items() if cases}


def fitted(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, where: str, fix: str = ""
) -> dict[str, Tensor]:
    """Return the weights in the model's own types and order.

    Args:
        state: the weights under our keys.
        expected: the model's, of which only names, shapes and types are looked at; may be on `meta`.
        where: the file, for messages.
        fix: what to do about weights that are not the model's.

    Raises:
        CheckpointError: they are not the model's, whole; or hold values that are not finite.
    """
    wrong = misfits(state, expected)
    if wrong:
        raise CheckpointError([Problem(what=_told(kind, cases), where=where, fix=fix) for kind, cases in wrong.items()])
    weights = {
        # What a counter counts would be read by nothing, and most files leave it out.
        key: state[key].to(like.dtype).contiguous() if key in state else torch.zeros(like.shape, dtype=like.dtype)
        for key, like in expected.items()
    }
    bad = [key for key, tensor in weights.items() if tensor.is_floating_point() and not _is_finite(tensor)]
    if bad:
        raise CheckpointError(
            _told("tensors with values that are not finite", bad),
            where=where,
            fix="the training that wrote them had failed, or the file is damaged: use another file",
        )
    return weights


def _is_finite(tensor: Tensor) -> bool:
    """Look at the extremes, which need no memory and are nan if a value is."""
    if tensor.numel() == 0:
        return True
    low, high = torch.aminmax(tensor)
    return bool(low.isfinite() & high.isfinite())


def _shown(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "one number"


def _told(kind: str, cases: list[str]) -> str:
    return f"{kind}: {len(cases):,}: {first_few([ascii(case)[1:-1][:_MAX_CHARS] for case in cases], most=_SHOWN)}"

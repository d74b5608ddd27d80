"""Minimum-cost one-to-one assignment of targets to queries, by scipy's exact solver.

Measured at DETR's shapes scipy beats every packaged alternative on a CPU, and solvers on the device were slower
in training; see `docs/decisions.md`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int64
from scipy.optimize import linear_sum_assignment

__all__ = ["assign"]


def assign(
    cost: Float[np.ndarray, "P T Q"], num_targets: Sequence[int]
) -> list[tuple[Int64[np.ndarray, " M"], Int64[np.ndarray, " M"]]]:
    """Solve `P` assignment problems.

    Args:
        cost: finite costs; rows beyond a problem's number of targets are ignored. float64 spares a conversion.
        num_targets: how many rows of each problem are real, one number a problem.

    Returns:
        For each problem the chosen (target, query) indices, ascending by target; `M` = min(targets, queries).
    """
    solved = []
    for problem, count in zip(cost, num_targets, strict=True):
        target, query = linear_sum_assignment(problem[:count])
        solved.append((target.astype(np.int64, copy=False), query.astype(np.int64, copy=False)))
    return solved

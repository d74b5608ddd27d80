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
    costs: Sequence[Float[np.ndarray, "_ _"]],
) -> tuple[list[Int64[np.ndarray, " _"]], list[Int64[np.ndarray, " _"]]]:
    """Solve assignment problems of any sizes.

    Args:
        costs: one matrix of finite costs a problem.

    Returns:
        For each problem the chosen targets, ascending, and for each problem their queries;
        `M` = min(targets, queries).
    """
    solved = [linear_sum_assignment(cost) for cost in costs]
    return [target for target, _ in solved], [query for _, query in solved]

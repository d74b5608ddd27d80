"""What goes with what: the releases of torch, and which CUDA asks for which driver.

Read from the wheels' metadata and by resolving each pair on Linux x86-64 in November 2026. Builds for CUDA 12.6 end
with torch 2.14 (pytorch/pytorch#190385), and with them GPUs older than Turing.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "DRIVER_OF_CUDA",
    "GLIBC_FLOOR",
    "LAST_WITH_CUDA_12",
    "NEWEST_PYTHON",
    "OLDEST_PYTHON",
    "STABLE_TORCHVISION",
    "TORCH_RELEASES",
    "TorchRelease",
    "torch_release",
]

OLDEST_PYTHON = (3, 11)
NEWEST_PYTHON = (3, 14)
"""For 3.15 no set of our dependencies can be solved yet."""
GLIBC_FLOOR = (2, 28)
"""Of the wheels of torch since 2.6 (manylinux_2_28)."""
LAST_WITH_CUDA_12 = (2, 14)
STABLE_TORCHVISION = (0, 29)
"""From here on torchvision's binary is not bound to one torch: it asks for torch >= 2.14."""
DRIVER_OF_CUDA = {11: 450, 12: 525, 13: 580}
"""Oldest Linux driver by major version of CUDA, minor-version compatibility counted in."""


@dataclass(frozen=True, kw_only=True)
class TorchRelease:
    """One minor release of torch."""

    torch: tuple[int, int]
    torchvision: tuple[int, int]
    oldest_python: tuple[int, int]
    newest_python: tuple[int, int]
    is_for_numpy_1: bool = False
    """Its binary was built for NumPy 1 and fails under NumPy 2."""


def _row(
    torch: tuple[int, int], torchvision: int, python: tuple[int, int], *, is_for_numpy_1: bool = False
) -> TorchRelease:
    return TorchRelease(
        torch=torch,
        torchvision=(0, torchvision),
        oldest_python=(3, python[0]),
        newest_python=(3, python[1]),
        is_for_numpy_1=is_for_numpy_1,
    )


TORCH_RELEASES = (
    _row((2, 0), 15, (8, 11), is_for_numpy_1=True),
    _row((2, 1), 16, (8, 11), is_for_numpy_1=True),
    _row((2, 2), 17, (8, 12), is_for_numpy_1=True),
    _row((2, 3), 18, (8, 12)),
    _row((2, 4), 19, (8, 12)),
    _row((2, 5), 20, (9, 12)),
    _row((2, 6), 21, (9, 13)),
    _row((2, 7), 22, (9, 13)),
    _row((2, 8), 23, (9, 13)),
    _row((2, 9), 24, (10, 14)),
    _row((2, 10), 25, (10, 14)),
    _row((2, 11), 26, (10, 14)),
    _row((2, 12), 27, (10, 14)),
    _row((2, 13), 28, (10, 14)),
    _row((2, 14), 29, (10, 14)),
    _row((2, 15), 29, (11, 14)),
)


def torch_release(release: tuple[int, ...]) -> TorchRelease | None:
    """Return the row of a torch version; None for one that is newer or older than the table."""
    return next((row for row in TORCH_RELEASES if row.torch == release[:2]), None)

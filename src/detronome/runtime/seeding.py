"""Counter-based randomness: a draw depends on what it is for, never on what was drawn before.

No RNG state decides the data, so resuming is a matter of numbers, and the number of workers changes nothing.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch

__all__ = ["generator", "seed_torch"]


def generator(*key: int | str) -> np.random.Generator:
    """Return a numpy generator that is a pure function of the key, e.g. `("augment", seed, epoch, image_id)`."""
    return np.random.Generator(np.random.Philox(key=_digest(key)))


def seed_torch(*key: int | str) -> None:
    """Seed torch's generators (dropout, denoising noise) as a pure function of the key, e.g. (seed, step)."""
    torch.manual_seed(_digest(key) & (2**63 - 1))


def _digest(key: tuple[int | str, ...]) -> int:
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=16).digest(), "little")

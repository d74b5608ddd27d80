"""Which images are measured together: real ones, in their own shapes, in batches of one padded shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from detronome.data.augment.params import AugmentPolicy, evaluation_params
from detronome.data.buckets import Bucket, bucket_of

__all__ = ["Call", "calls_of", "padded_shape"]


@dataclass(frozen=True)
class Call:
    """Images that go through a detector at once."""

    images: tuple[int, ...]
    """Positions in the split."""
    shape_hw: Bucket
    """What all of them are padded to, in pixels."""


def padded_shape(size_hw: tuple[int, int], policy: AugmentPolicy, buckets: tuple[Bucket, ...]) -> Bucket:
    """Return the height and width in pixels that an image has when it enters the network."""
    final_hw = evaluation_params(policy, size_hw).final_hw
    return bucket_of(final_hw, buckets) if buckets else final_hw


def calls_of(shapes: Sequence[tuple[int, Bucket]], batch_size: int, *, most: int) -> list[Call]:
    """Return calls of exactly `batch_size` images each, shapes as frequent as they are among the images.

    Where no shape has so many images, those of the most frequent one are repeated.

    Args:
        shapes: (position, padded shape) of each image, in the order in which they are to be used.
        batch_size: images of a call.
        most: calls wanted, at most.
    """
    waiting: dict[Bucket, list[int]] = {}
    calls: list[Call] = []
    for position, shape in shapes:
        group = waiting.setdefault(shape, [])
        group.append(position)
        if len(group) == batch_size:
            calls.append(Call(tuple(group), shape))
            waiting[shape] = []
        if len(calls) == most:
            return calls
    if not calls and waiting:
        shape, group = max(waiting.items(), key=lambda item: len(item[1]))
        calls.append(Call(tuple(group[n % len(group)] for n in range(batch_size)), shape))
    return calls

"""Images that cannot be used: what takes their place, how many are too many, and who is told.

What happens to a bad image is decided where it is read, from (seed, epoch, image) alone: every rank, every worker and
every resumed run decides alike. What was met is counted in the main process of each rank, image by image, and from time
to time the ranks tell each other:

    quarantine.merge(chain.from_iterable(world.gather(quarantine.take_new())))
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from detronome.errors import DataError

__all__ = ["BadImage", "BadImagePolicy", "Quarantine", "num_allowed"]

BadImagePolicy = Literal["replace", "skip", "stop"]
"""`replace`: another image takes its place. `skip`: it is left out; a step of such images alone is without any.
`stop`: the run ends."""
_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class BadImage:
    """An image that could not be read or decoded."""

    image_id: int
    where: str
    """The file."""
    what: str
    """What is wrong with it."""
    fix: str
    action: str
    """What was done instead, e.g. `replaced by image 17`."""


def num_allowed(budget: float, num_images: int) -> int:
    """Return how many of a split's images may be bad: a part of them, 0-1, and one in any case but with 0."""
    return max(1, int(budget * num_images)) if budget > 0 else 0


class Quarantine:
    """The bad images that a run has met, each counted once.

    Args:
        split: name of the split, for messages.
        num_images: in the split.
        budget: part of them that may be bad, 0-1; one image may always be.
    """

    def __init__(self, split: str, num_images: int, budget: float) -> None:
        self.split = split
        self._num_images = num_images
        self.allowed = num_allowed(budget, num_images)
        self._met: dict[int, BadImage | None] = {}
        self._untold: list[BadImage] = []
        self._unmerged: list[BadImage] = []

    def admit(self, images: Iterable[BadImage]) -> None:
        """Count the images of a batch that was handed out to this rank.

        Raises:
            DataError: more images are bad than allowed, by this rank's count alone.
        """
        new = self._take_up(images)
        self._unmerged += new
        self._check(new)

    def take_new(self) -> list[BadImage]:
        """Return what this rank has met since the last call, for `merge` on all ranks."""
        unmerged, self._unmerged = self._unmerged, []
        return unmerged

    def merge(self, images: Iterable[BadImage]) -> None:
        """Count what all ranks have met, this one's included; then all of them know the same.

        Args:
            images: by rank, the same list on every rank.

        Raises:
            DataError: more images are bad than allowed; every rank raises the same.
        """
        self._check(self._take_up(images))

    def drain(self) -> list[BadImage]:
        """Return the images met or merged since the last call: each comes once in a run."""
        untold, self._untold = self._untold, []
        return untold

    @property
    def image_ids(self) -> list[int]:
        """The ids of all images met, ascending."""
        return sorted(self._met)

    def restore(self, image_ids: Iterable[int]) -> None:
        """Take over what an interrupted run has met."""
        self._met = dict.fromkeys(image_ids)

    def _take_up(self, images: Iterable[BadImage]) -> list[BadImage]:
        """Return those that were not known yet, each once."""
        new: list[BadImage] = []
        for image in images:
            if image.image_id not in self._met:
                self._met[image.image_id] = image
                new.append(image)
        self._untold += new
        return new

    def _check(self, new: list[BadImage]) -> None:
        if new and len(self._met) > self.allowed:
            raise self._too_many()

    def _too_many(self) -> DataError:
        # By id: ranks meet them in orders of their own, and say the same.
        known = [image for _, image in sorted(self._met.items()) if image is not None]
        listed = "".join(f"\n    image id {image.image_id}, {image.where}: {image.what}" for image in known[:_SHOWN])
        enough = min(1.0, 2 * len(self._met) / self._num_images)
        return DataError(
            f"{len(self._met)} images of split {self.split!r} cannot be used, more than the {self.allowed} of "
            f"{self._num_images} that data.bad_image_budget allows, among them:{listed}",
            where=known[0].where,
            fix="see all of them with: detronome data check DATA --all; mend the files, write annotations without them "
            f"(--fix), or train anew with a larger budget: --set data.bad_image_budget={enough:.2g}",
        )

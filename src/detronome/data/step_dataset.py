"""One step's images, from the files to padded batches, in whichever process does it; and what becomes of bad ones.

What becomes of a bad image follows from (seed, epoch, image) alone, never from the images that share its step with it:
these differ with the number of ranks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch.utils.data import Dataset

from detronome.data.buckets import Bucket
from detronome.data.collate import PackedBatch, Sample, pack
from detronome.data.dataset import DetectionDataset
from detronome.data.quarantine import BadImage, BadImagePolicy
from detronome.data.raw_batch import RawBatch, RawSample, pack_raw
from detronome.data.sampler import Key, Keys
from detronome.errors import DataError, DetronomeError, Problem
from detronome.runtime.seeding import generator
from detronome.types import Batch

__all__ = ["Failure", "PackedStep", "StepDataset"]

_REPLACEMENT_TRIES = 20


@dataclass(frozen=True, kw_only=True)
class PackedStep:
    """All that a worker sends for one step."""

    parts: tuple[PackedBatch | RawBatch | Batch, ...]
    """None where the rank has no image of the step, or none that can be used."""
    bad_images: tuple[BadImage, ...]
    stage_s: dict[str, float]

    def pin_memory(self) -> PackedStep:
        """Return the step in page-locked memory; torch's loader calls this by name, in a thread of its own."""
        parts = (part.unpack() if isinstance(part, PackedBatch) else part for part in self.parts)
        return replace(self, parts=tuple(part.pin_memory() for part in parts))


@dataclass(frozen=True)
class Failure:
    """An error on its way out of a worker. Torch would send the type and a printed traceback, and lose the rest."""

    error: DetronomeError


class StepDataset(Dataset["PackedStep | Failure"]):
    """Whole batches by their list of (epoch, index).

    Args:
        dataset: the images.
        buckets: padded shapes.
        on_bad_image: what to do with an image that cannot be used.
        seed: of the replacements.
        is_raw: only decode, and leave the rest to the main process.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        buckets: tuple[Bucket, ...],
        on_bad_image: BadImagePolicy,
        *,
        seed: int = 0,
        is_raw: bool = False,
    ) -> None:
        self._dataset = dataset
        self._buckets = buckets
        self._on_bad_image = on_bad_image
        self._seed = seed
        self._is_raw = is_raw

    def image_ids(self, keys: Keys) -> list[int]:
        """Return the ids of the images of a step, before any is replaced."""
        return [self._dataset.image_id(i) for _, i in keys]

    def __getitem__(self, keys: Keys) -> PackedStep | Failure:
        try:
            return self._step(keys)
        except DetronomeError as error:
            return Failure(error)

    def _step(self, keys: Keys) -> PackedStep:
        clock = self._dataset.clock
        clock.seconds.clear()
        samples: list[Any] = []
        bad_images: list[BadImage] = []
        problems: list[Problem] = []
        for key in keys:
            try:
                samples.append(self._read(key))
            except DataError as error:
                other, replacements = self._replacement(key) if self._on_bad_image == "replace" else (None, [])
                samples += replacements
                bad_images.append(self._bad_image(key, error, other))
                problems += error.problems
        if problems and self._on_bad_image == "stop":
            raise DataError(problems)
        with clock.stage("collate"):
            parts = (pack_raw if self._is_raw else pack)(samples, self._buckets)
        return PackedStep(parts=parts, bad_images=tuple(bad_images), stage_s=dict(clock.seconds))

    def _read(self, key: Key) -> Sample | RawSample:
        return self._dataset.raw(key) if self._is_raw else self._dataset[key]

    def _replacement(self, key: Key) -> tuple[int | None, list[Sample | RawSample]]:
        """Return the index of another image of the split, chosen by (seed, epoch, index) alone, and that image.

        None and no image when it would take too long to find one that can be used.
        """
        epoch, i = key
        rng = generator("replacement", self._seed, epoch, i)
        for other in rng.integers(len(self._dataset), size=_REPLACEMENT_TRIES).tolist():
            try:
                return other, [self._read((epoch, other))]
            except DataError:
                continue
        return None, []

    def _bad_image(self, key: Key, error: DataError, other: int | None) -> BadImage:
        _, i = key
        problem = error.problems[0]
        action = "left out" if other is None else f"replaced by image id {self._dataset.image_id(other)}"
        return BadImage(
            image_id=self._dataset.image_id(i),
            where=self._dataset.where(i),
            what=problem.what,
            fix=problem.fix,
            action=action,
        )

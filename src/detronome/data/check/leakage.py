"""Finding images that occur in several splits, or several times in one: files of the same bytes, whatever their names.

Only files of equal size are opened, and only those with the same last bytes are read whole.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path

from detronome.data.check.findings import SHOWN, Finding
from detronome.data.check.tally import Kind, Tally
from detronome.data.split_files import SplitFiles
from detronome.data.store.index import AnnotationIndex
from detronome.runtime.files import sha256_of

__all__ = ["check_leakage"]

_TAIL_BYTES = 4096
_KINDS: Mapping[str, Kind] = {
    "split_leakage": Kind(
        "error",
        "image is in several splits | images are in several splits",
        "the evaluation rewards what was learned by heart, so its numbers are too high",
        "remove it from all splits but one",
    ),
    "image_repeated": Kind(
        "warning",
        "image is several times in one split | images are several times in one split",
        "it counts several times in training and evaluation, perhaps with different boxes",
        "keep one of the records, with all objects",
    ),
    "leakage_unchecked": Kind(
        "note",
        "split lies in shards | splits lie in shards",
        "their images were not compared with those of other splits",
        "check the folder of images that the shards were made from",
    ),
}

_Splits = Sequence[tuple[SplitFiles, AnnotationIndex]]
_Place = tuple[int, int]
"""Number of the split, and of the image in its index."""


def check_leakage(splits: _Splits, *, max_cases: int | None = SHOWN) -> list[Finding]:
    """Return a finding for images that are in several splits, and one for images that are repeated within one.

    Files are compared byte by byte (in effect: SHA-256); the same picture saved twice is not noticed. Files that are
    missing, empty or unreadable are left to the check of images.

    Args:
        splits: where each lies, and its annotations.
        max_cases: how many cases a finding names; None for all.
    """
    found = Tally(_KINDS, max_cases)
    for files, _ in splits:
        if files.shards is not None:
            found.add("leakage_unchecked", f"{files.name} ({files.shards})")
    for places in _equal_files(splits):
        names = [_name(splits, place) for place in places]
        by_split: dict[int, list[str]] = defaultdict(list)
        for (split, _), name in zip(places, names, strict=True):
            by_split[split].append(name)
        if len(by_split) > 1:
            found.add("split_leakage", " = ".join(names))
        for repeated in by_split.values():
            if len(repeated) > 1:
                found.add("image_repeated", " = ".join(repeated))
    return found.findings(", ".join(str(files.annotation_file) for files, _ in splits))


def _equal_files(splits: _Splits) -> Iterable[list[_Place]]:
    """Return groups of two or more images with the same bytes, by their first member."""
    everything = [(s, i) for s, (files, index) in enumerate(splits) if files.shards is None for i in range(len(index))]
    groups = [everything]
    for fingerprint in (_size, _tail, sha256_of):
        groups = [part for group in groups for part in _split_group(splits, group, fingerprint)]
    return sorted(groups)


def _split_group(
    splits: _Splits, group: list[_Place], fingerprint: Callable[[Path], Hashable]
) -> Iterable[list[_Place]]:
    """Return the parts of a group that have a fingerprint in common; what is alone or cannot be read drops out."""
    parts: dict[Hashable, list[_Place]] = defaultdict(list)
    for place in group:
        split, image = place
        files, index = splits[split]
        try:
            value = fingerprint(files.images_dir / index.image(image).file_name)
        except (OSError, ValueError):
            continue
        if value:
            parts[value].append(place)
    return [part for part in parts.values() if len(part) > 1]


def _size(path: Path) -> int:
    return path.stat().st_size


def _tail(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-min(_TAIL_BYTES, path.stat().st_size), os.SEEK_END)
        return hashlib.blake2b(file.read(), digest_size=16).digest()


def _name(splits: _Splits, place: _Place) -> str:
    files, index = splits[place[0]]
    image = index.image(place[1])
    return f"{files.name} image {image.image_id} ({image.file_name})"

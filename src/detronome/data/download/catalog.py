"""The official archives of COCO 2017: where they are, and by what they are known.

COCO publishes no checksums. Sizes and SHA-256 are those of TensorFlow Datasets (`url_checksums/coco.txt`); ParlAI
(train and val) and several people who downloaded and tested the four archives in 2026 publish the same. File counts are
COCO's. The room is our own: a round number above what is in the archive.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from detronome.errors import ConfigError, Problem, nearest_name_hint

__all__ = ["COCO2017", "DEFAULT_PARTS", "OFFICIAL_URL", "Archive", "NestedArchive", "archive_urls", "select_archives"]

OFFICIAL_URL = "http://images.cocodataset.org"
"""The server that COCO names; it has no certificate for this name, so the SHA-256 is what makes a file trusted."""

DEFAULT_PARTS = ("train", "val", "annotations")


@dataclass(frozen=True, kw_only=True)
class NestedArchive:
    """A zip inside an archive, to be unpacked in its turn."""

    member: str
    """Its name in the outer archive."""
    folder: str
    """Where its content goes, relative to the data folder."""
    num_files: int
    room_bytes: int


@dataclass(frozen=True, kw_only=True)
class Archive:
    """One official zip file."""

    part: str
    path: str
    """Its path on the server."""
    size_bytes: int
    sha256: str
    num_files: int
    """Files in it, nested archives counted as one each."""
    room_bytes: int
    """Disk space for the unpacked files, rounded up; unpacking stops there."""
    nested: tuple[NestedArchive, ...] = ()

    @property
    def name(self) -> str:
        """The file name."""
        return self.path.rpartition("/")[2]

    @property
    def total_room_bytes(self) -> int:
        """Disk space for everything that unpacking leaves, nested archives included."""
        return self.room_bytes + sum(nested.room_bytes for nested in self.nested)


COCO2017 = {
    archive.part: archive
    for archive in (
        Archive(
            part="train",
            path="/zips/train2017.zip",
            size_bytes=19_336_861_798,
            sha256="69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
            num_files=118_287,
            room_bytes=20_000_000_000,
        ),
        Archive(
            part="val",
            path="/zips/val2017.zip",
            size_bytes=815_585_330,
            sha256="4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
            num_files=5_000,
            room_bytes=900_000_000,
        ),
        Archive(
            part="annotations",
            path="/annotations/annotations_trainval2017.zip",
            size_bytes=252_907_541,
            sha256="113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
            num_files=6,
            room_bytes=1_000_000_000,
        ),
        Archive(
            part="panoptic",
            path="/annotations/panoptic_annotations_trainval2017.zip",
            size_bytes=860_725_834,
            sha256="c05f76d2129b6b561eb70efe16e7006df62f73fb92889132d373b9d90e31a370",
            num_files=4,
            room_bytes=2_000_000_000,
            nested=(
                NestedArchive(
                    member="annotations/panoptic_train2017.zip",
                    folder="annotations",
                    num_files=118_287,
                    room_bytes=2_000_000_000,
                ),
                NestedArchive(
                    member="annotations/panoptic_val2017.zip",
                    folder="annotations",
                    num_files=5_000,
                    room_bytes=200_000_000,
                ),
            ),
        ),
    )
}
"""The archives by part."""


def select_archives(dataset: str, parts: Sequence[str] | None) -> list[Archive]:
    """Return the archives of a data set's parts.

    Raises:
        ConfigError: the data set or a part is unknown, or no part is named.
    """
    if dataset != "coco2017":
        raise ConfigError(f"unknown data set {dataset!r}", where="dataset", fix="known data sets: coco2017")
    names = list(dict.fromkeys(DEFAULT_PARTS if parts is None else parts))
    problems = [
        Problem(what=f"coco2017 has no part {name!r}", where="parts", fix=nearest_name_hint(name, list(COCO2017)))
        for name in names
        if name not in COCO2017
    ]
    if not names:
        problems = [Problem(what="no part is named", where="parts", fix=nearest_name_hint("", list(COCO2017)))]
    if problems:
        raise ConfigError(problems)
    return [COCO2017[name] for name in names]


def archive_urls(archive: Archive, mirror: str | None) -> tuple[str, ...]:
    """Return the addresses of an archive, the preferred first.

    Args:
        archive: which one.
        mirror: base address that has the archives at the official paths or all in one folder; None is the official
            server.

    Raises:
        ConfigError: the mirror is not an address.
    """
    if mirror is None:
        return (OFFICIAL_URL + archive.path,)
    try:
        address = urlsplit(mirror)
    except ValueError:
        address = urlsplit("")
    if address.scheme not in ("http", "https") or not address.hostname or address.query or address.fragment:
        fix = "give a base address such as https://mirror.example.org/coco"
        raise ConfigError("the mirror is not an address of a server", where=mirror, fix=fix)
    base = mirror.rstrip("/")
    return (base + archive.path, f"{base}/{archive.name}")

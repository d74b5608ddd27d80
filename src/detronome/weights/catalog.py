"""Which published weights there are, and what is known of them.

The official DETR files are named after their contents: what follows the last dash are the first digits of the SHA-256.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["HUB_IDS", "OFFICIAL_FILES", "OFFICIAL_URL", "OfficialFile", "digits_in_name", "official_file"]

OFFICIAL_URL = "https://dl.fbaipublicfiles.com/detr"

_NAMED_DIGITS = re.compile(r"detr-r\d+[a-z0-9-]*-([0-9a-f]{8})\.pth")


@dataclass(frozen=True, kw_only=True)
class OfficialFile:
    """A file of the DETR authors (github.com/facebookresearch/detr)."""

    preset: str
    name: str

    @property
    def url(self) -> str:
        """Where it can be downloaded."""
        return f"{OFFICIAL_URL}/{self.name}"

    @property
    def sha256_digits(self) -> str:
        """The first digits of its SHA-256."""
        return Path(self.name).stem.rpartition("-")[2]


OFFICIAL_FILES: Mapping[str, OfficialFile] = {
    preset: OfficialFile(preset=preset, name=name)
    for preset, name in (
        ("detr-r50", "detr-r50-e632da11.pth"),
        ("detr-r50-dc5", "detr-r50-dc5-f0fb7ef5.pth"),
        ("detr-r101", "detr-r101-2c7b67e5.pth"),
        ("detr-r101-dc5", "detr-r101-dc5-a2e86def.pth"),
        ("detr-r50-panoptic", "detr-r50-panoptic-00ce5173.pth"),
        ("detr-r50-dc5-panoptic", "detr-r50-dc5-panoptic-da08f1b1.pth"),
        ("detr-r101-panoptic", "detr-r101-panoptic-40021d53.pth"),
    )
}
"""By preset."""

HUB_IDS: Mapping[str, str] = {
    "rtdetr-v2-s": "PekingU/rtdetr_v2_r18vd",
    "rtdetr-v2-m": "PekingU/rtdetr_v2_r34vd",
    "rtdetr-v2-l": "PekingU/rtdetr_v2_r50vd",
    "rtdetr-v2-x": "PekingU/rtdetr_v2_r101vd",
    "dfine-n": "ustc-community/dfine-nano-coco",
    "dfine-s": "ustc-community/dfine-small-coco",
    "dfine-m": "ustc-community/dfine-medium-coco",
    "dfine-l": "ustc-community/dfine-large-coco",
    "dfine-x": "ustc-community/dfine-xlarge-coco",
}
"""Models on huggingface.co, by preset."""


def official_file(name: str) -> OfficialFile | None:
    """Return the official file of a preset's name or of its own file name."""
    by_name = {file.name: file for file in OFFICIAL_FILES.values()}
    return OFFICIAL_FILES.get(name) or by_name.get(name)


def digits_in_name(path: Path) -> str | None:
    """Return the digits of the SHA-256 that a file's name promises, where it is named as the official files are."""
    match = _NAMED_DIGITS.fullmatch(path.name)
    return match[1] if match else None

"""Label files, one for each image: what a format and a folder of them have to offer.

Boxes in documents are (left, top, width, height) in pixels.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from detronome.data.formats.document import Record
from detronome.data.formats.problems import LabelProblems

__all__ = [
    "Frame",
    "LabelCodec",
    "LabelFile",
    "LabelFolder",
    "LabelLayout",
    "LabelObject",
    "LabelSplit",
    "LabelledImage",
    "is_split_name",
]

LabelLayout = Literal["yolo", "voc"]
_SPLIT_NAME = re.compile(r"(train|val|valid|validation|test|dev|minival|trainval)(\W|_|\d|$).*", re.IGNORECASE)


@dataclass(frozen=True)
class Frame:
    """What boxes of a document refer to."""

    size_hw: tuple[int, int]
    """Height and width as recorded with the image."""
    turn: int = 1
    """EXIF orientation between these pixels and the upright picture."""


@dataclass(frozen=True)
class LabelObject:
    """One object of a label file."""

    label: str
    """Its class as the file has it: an index or a name."""
    geometry: str
    """Its coordinates as the file has them."""
    attributes: Mapping[str, str] = field(default_factory=dict)
    """Whatever else the file says of it, as text."""
    fields: Record = field(default_factory=dict)
    """The same as fields of a COCO annotation: `bbox` and others."""
    source: str = ""
    """The object's whole text, where it may hold more than the above."""

    @property
    def identity(self) -> tuple[str, str, tuple[tuple[str, str], ...]]:
        """Equal for objects of which two files say the same in the same words."""
        return self.label, self.geometry, tuple(sorted(self.attributes.items()))


@dataclass(frozen=True)
class LabelFile:
    """The content of one label file."""

    objects: Sequence[LabelObject]
    size_hw: tuple[int, int] | None = None
    """Height and width of the image in pixels, where the file says them."""


class LabelCodec(ABC):
    """How a format writes objects."""

    key: str
    """Under this name, images of a document keep their label file's text."""
    held: tuple[str, ...]
    """The fields of an annotation that the format can say."""
    is_upright: bool
    """Whether boxes refer to the picture as EXIF orientation shows it, where the label file gives no size."""

    @abstractmethod
    def parse(self, content: bytes, frame: Frame, file: Path, problems: LabelProblems) -> LabelFile:
        """Return what a label file says; defects are noted as problems, and the objects that have them left out."""

    @abstractmethod
    def encode(self, annotation: Record, label: str, frame: Frame) -> LabelObject | None:
        """Return an annotation as the format says it, without `fields`; None where the format has no way to say it."""

    @abstractmethod
    def write(self, image: Record, objects: Sequence[LabelObject], kept: str | None) -> str:
        """Return the text of a label file; `kept` is its text before objects were changed."""


@dataclass(frozen=True)
class LabelledImage:
    """An image and the file with its labels."""

    image_file: Path
    file_name: str
    """Relative to the split's image folder, with forward slashes."""
    label_file: Path


@dataclass(frozen=True)
class LabelSplit:
    """The images of one split, in a fixed order."""

    name: str
    images_dir: Path
    images: Sequence[LabelledImage]


class LabelFolder(ABC):
    """A data folder with label files."""

    layout: LabelLayout
    root: Path

    @abstractmethod
    def split_names(self) -> list[str]:
        """Return the splits that are there, without reading label files."""

    @abstractmethod
    def missing_split(self, split: str) -> str:
        """Return why a split that is not there is not there, as far as the folder tells; empty otherwise."""

    @abstractmethod
    def read_split(self, name: str) -> LabelSplit:
        """Return the images of a split.

        Raises:
            DataError: lists of the split name images that are not there.
        """

    @abstractmethod
    def settings_files(self) -> list[Path]:
        """Return the files, label files aside, on which the content depends."""

    @abstractmethod
    def codec(self, *, voc_one_based: bool) -> LabelCodec:
        """Return the format of the label files; `voc_one_based` says how VOC coordinates count."""

    @abstractmethod
    def categories(self, labels: set[str]) -> dict[str, Record]:
        """Return the COCO category of each label: the classes that the folder lists, or else the labels in use."""


def is_split_name(name: str) -> bool:
    """Return whether a folder of this name holds a split, and is not some other folder or a data set of its own."""
    return _SPLIT_NAME.fullmatch(name) is not None

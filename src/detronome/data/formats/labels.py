"""Label files, one for each image: what a format has to offer, and how a file's text is written from annotations.

A document read from label files keeps the text of each with its image, under the codec's key. Where the document is
written in that format again, the text is used as it was if it still says what the annotations say; otherwise every
object that is unchanged keeps its numbers as they were written.

Boxes in documents are (left, top, width, height) in pixels.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from detronome.data.formats.document import Record
from detronome.data.formats.images import ImageHeader
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
    "frame_of",
    "is_split_name",
    "label_text",
]

LabelLayout = Literal["yolo", "voc"]
_NOWHERE = Path()
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


def frame_of(image: Record, header: ImageHeader | None) -> Frame:
    """Return what the boxes of a document's image refer to."""
    size_hw = (int(image["height"]), int(image["width"]))
    return Frame(size_hw, 1 if header is None else header.turn(size_hw))


def label_text(
    codec: LabelCodec, image: Record, annotations: Sequence[Record], labels: Mapping[int, str], frame: Frame
) -> str:
    """Return the label file's text for an image; annotations that the format has no way to say are left out.

    Args:
        codec: the format.
        image: the image's record in the document.
        annotations: the image's annotations.
        labels: the format's label of each category id.
        frame: what the boxes refer to.
    """
    encodings = ((a, codec.encode(a, labels[a["category_id"]], frame)) for a in annotations)
    sayable = [(annotation, item) for annotation, item in encodings if item is not None]
    annotations = [annotation for annotation, _ in sayable]
    encoded = [item for _, item in sayable]
    kept = image.get(codec.key)
    known = _parse_kept(codec, kept, frame)
    if known is None:
        return codec.write(image, encoded, None)
    pairs = _pair(codec, known, annotations)
    is_same = len(known) == len(encoded) and all(
        old is known[i] and _says(codec, old, annotations[i]) and old.label == encoded[i].label
        for i, old in enumerate(pairs)
    )
    if is_same:
        return str(kept)
    objects = [
        new if old is None else _updated(codec, new, old, annotation)
        for new, old, annotation in zip(encoded, pairs, annotations, strict=True)
    ]
    return codec.write(image, objects, kept)


def _parse_kept(codec: LabelCodec, kept: object, frame: Frame) -> Sequence[LabelObject] | None:
    if not isinstance(kept, str):
        return None
    problems = LabelProblems(_NOWHERE)
    try:
        file = codec.parse(kept.encode(), frame, _NOWHERE, problems)
    except UnicodeEncodeError:
        return None
    if problems or file.size_hw not in (None, frame.size_hw):
        return None
    return file.objects


def _pair(codec: LabelCodec, known: Sequence[LabelObject], annotations: Sequence[Record]) -> list[LabelObject | None]:
    """Return the known object that each annotation came from: one that says the same, else the one in its place."""
    pairs: list[LabelObject | None] = [None] * len(annotations)
    free = dict(enumerate(known))
    for i, annotation in enumerate(annotations):
        for k in (i, *free):
            if k in free and _says(codec, free[k], annotation):
                pairs[i] = free.pop(k)
                break
    if len(known) == len(annotations):
        left = iter(free.values())
        pairs = [next(left) if pair is None else pair for pair in pairs]
    return pairs


def _says(codec: LabelCodec, known: LabelObject, annotation: Record) -> bool:
    """Return whether an object of a label file says of its annotation what the annotation says, the class aside."""
    return all(
        annotation.get(name) == known.fields.get(name)
        for name in codec.held
        if name != "segmentation" or name in known.fields
    )


def _updated(codec: LabelCodec, new: LabelObject, old: LabelObject, annotation: Record) -> LabelObject:
    geometry = ("bbox", "segmentation")
    is_moved = any(name in old.fields and annotation.get(name) != old.fields[name] for name in geometry)
    return replace(new, geometry=new.geometry if is_moved else old.geometry, source=old.source)

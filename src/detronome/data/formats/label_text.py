"""The text of an image's label file, written from its annotations.

A document read from label files keeps the text of each with its image, under the codec's key. Where the document is
written in that format again, the text is used as it was if it still says what the annotations say; otherwise every
object that is unchanged keeps its numbers as they were written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from detronome.data.formats.document import Record
from detronome.data.formats.images import ImageHeader
from detronome.data.formats.labels import Frame, LabelCodec, LabelObject
from detronome.data.formats.problems import LabelProblems

__all__ = ["frame_of", "label_text"]

_NOWHERE = Path()


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

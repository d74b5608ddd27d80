"""What a document has and label files cannot say: counted, so that nobody loses it unknowingly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from detronome.data.formats.document import Record, SplitDocument, annotations_by_image
from detronome.data.formats.labels import Frame, LabelCodec, frame_of
from detronome.data.formats.write import LabelTarget

__all__ = ["unsaid"]

_ANNOTATION_FIELDS = {"id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation"}
_IMAGE_FIELDS = {"id", "file_name", "width", "height"}
_CATEGORY_FIELDS = {"id", "name"}
_DOCUMENT_FIELDS = {"images", "annotations", "categories"}


def unsaid(documents: Sequence[SplitDocument], target: LabelTarget) -> dict[str, int]:
    """Return how much of each kind only the sidecar can hold; kinds without a case are left out."""
    counts: Counter[str] = Counter()
    for split in documents:
        _count(split.document, target, counts)
    return {kind: count for kind, count in counts.items() if count}

"""What a document has and label files cannot say: counted, so that nobody loses it unknowingly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from detronome.data.formats.document import Record, SplitDocument
from detronome.data.formats.labels import LabelCodec
from detronome.data.formats.write import LabelTarget

__all__ = ["unsaid"]

_AREA_TOLERANCE = 1e-6
_ANNOTATION_FIELDS = {"id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation"}
_IMAGE_FIELDS = {"id", "file_name", "width", "height"}
_CATEGORY_FIELDS = {"id", "name"}
_DOCUMENT_FIELDS = {"images", "annotations", "categories"}


def unsaid(documents: Sequence[SplitDocument], target: LabelTarget) -> dict[str, int]:
    """Return how much of each kind the label files leave out; kinds without a case are not in it."""
    counts: Counter[str] = Counter()
    for split in documents:
        _count(split.document, target.codec, counts)
    if target.layout == "yolo":
        counts["category ids"] = sum(str(category_id) != label for category_id, label in target.labels.items())
    return {kind: count for kind, count in counts.items() if count}


def _count(document: Record, codec: LabelCodec, counts: Counter[str]) -> None:
    images, annotations, categories = document["images"], document["annotations"], document["categories"]
    with_text = {image["id"] for image in images if codec.key in image}
    for annotation in annotations:
        is_read_from_labels = annotation["image_id"] in with_text
        counts["crowd regions"] += bool(annotation.get("iscrowd"))
        if not (is_read_from_labels and "segmentation" in codec.held):
            counts["masks"] += bool(annotation.get("segmentation"))
            counts["areas other than width x height"] += _has_own_area(annotation)
        known = _ANNOTATION_FIELDS.union(codec.held)
        counts["annotations with other fields"] += not known.issuperset(annotation)
    counts["annotation ids"] += sum(annotation.get("id") != i for i, annotation in enumerate(annotations, 1))
    counts["image ids"] += sum(image["id"] != i for i, image in enumerate(images, 1))
    counts["images with other fields"] += sum(not {*_IMAGE_FIELDS, codec.key}.issuperset(image) for image in images)
    counts["categories with other fields"] += sum(not _CATEGORY_FIELDS.issuperset(record) for record in categories)
    counts["fields of the whole (info, licenses, ...)"] += len(document.keys() - _DOCUMENT_FIELDS)


def _has_own_area(annotation: Record) -> bool:
    area = annotation.get("area")
    product = annotation["bbox"][2] * annotation["bbox"][3]
    return area is not None and abs(area - product) > _AREA_TOLERANCE * max(1.0, abs(product))

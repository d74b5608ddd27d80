"""What a request is answered with: detections as JSON or as a picture, and errors."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from detronome.deploy.serve.limits import RefusedError
from detronome.ops.segment_ids import colors_of_ids
from detronome.types import Categories, Detections, PanopticPrediction

__all__ = ["MEDIA_TYPES", "best_of", "encode_picture", "error_record", "json_bytes", "prediction_record", "retry_after"]

MEDIA_TYPES = {"json": "application/json", "jpeg": "image/jpeg", "png": "image/png"}
"""Forms of an answer."""


def best_of(detections: Detections, *, score: float, max_detections: int | None) -> Detections:
    """Return the detections of at least this score, and of those the best."""
    return detections.above(score).take(slice(max_detections))


def prediction_record(
    detections: Detections,
    categories: Categories,
    *,
    size_hw: tuple[int, int],
    timing_ms: Mapping[str, float],
) -> dict[str, Any]:
    """Return an answer as JSON has it: boxes (left, top, right, bottom) in pixels of the upright image."""
    names = categories.by_id
    record: dict[str, Any] = {
        "image": {"width": size_hw[1], "height": size_hw[0]},
        "detections": [
            {
                "category_id": int(label),
                "name": names.get(int(label), str(label)),
                "score": round(float(score), 5),
                "box_xyxy": [round(float(edge), 2) for edge in box],
            }
            for box, score, label in zip(detections.boxes_xyxy, detections.scores, detections.labels, strict=True)
        ],
        "timing_ms": {name: round(value, 2) for name, value in timing_ms.items()},
    }
    if detections.panoptic is not None:
        record["panoptic"] = _panoptic_record(detections.panoptic, names)
    return record


def _panoptic_record(panoptic: PanopticPrediction, names: Mapping[int, str]) -> dict[str, Any]:
    file = io.BytesIO()
    Image.fromarray(colors_of_ids(panoptic.segment_ids)).save(file, format="PNG", compress_level=1)
    return {
        "segments": [
            {
                "id": segment.id,
                "category_id": segment.category_id,
                "name": names.get(segment.category_id, str(segment.category_id)),
                "is_thing": segment.is_thing,
                "area": segment.area,
                "score": round(segment.score, 5),
            }
            for segment in panoptic.segments
        ],
        "map_png": base64.b64encode(file.getvalue()).decode("ascii"),
    }


def encode_picture(picture: UInt8[np.ndarray, "H W 3"], form: str) -> bytes:
    """Return a picture as a JPEG or PNG file."""
    file = io.BytesIO()
    if form == "jpeg":
        Image.fromarray(picture).save(file, format="JPEG", quality=90)
    else:
        Image.fromarray(picture).save(file, format="PNG", compress_level=3)
    return file.getvalue()


def error_record(what: str, fix: str = "") -> dict[str, Any]:
    """Return an error as JSON has it."""
    return {"error": {"what": what, "fix": fix}}


def json_bytes(record: Mapping[str, Any]) -> bytes:
    """Return a record as JSON."""
    return msgspec.json.encode(record)


def retry_after(error: RefusedError) -> dict[str, str]:
    """Return the header that says when to ask again, in whole seconds, where there is a time."""
    if error.retry_after_s is None:
        return {}
    return {"Retry-After": str(max(1, math.ceil(error.retry_after_s)))}

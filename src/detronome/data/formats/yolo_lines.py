"""Lines of YOLO label files.

A line is `class cx cy w h`, 0-1 of the width and height of the upright picture; more coordinates are a polygon, and its
bounds are the box.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from detronome.data.formats.document import Record
from detronome.data.formats.images import to_stored, to_upright
from detronome.data.formats.labels import Frame, LabelCodec, LabelFile, LabelObject
from detronome.data.formats.problems import LabelProblems

__all__ = ["MOST_CLASSES", "YoloCodec"]

MOST_CLASSES = 100_000
"""Of a folder without a list of names: a slip of the pen must not make a list of a thousand million."""

_LIMIT = 2.0
"""Of normalised coordinates: boxes that reach beyond the border stay far below it, pixels do not."""
_SHAPE_FIX = "write `class cx cy w h`, or `class x1 y1 x2 y2 x3 y3 ...` for a polygon"


class YoloCodec(LabelCodec):
    """Lines of a label file.

    Args:
        num_classes: how many classes the folder lists; None where it has no list.
    """

    key = "yolo_labels"
    held = ("bbox", "segmentation")
    is_upright = True

    def __init__(self, num_classes: int | None) -> None:
        self._num_classes = num_classes

    def parse(self, content: bytes, frame: Frame, file: Path, problems: LabelProblems) -> LabelFile:
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            problems.add("label files are not text", file, f"byte {error.start}", fix="save them as UTF-8")
            return LabelFile(())
        objects = []
        for number, line in enumerate(text.split("\n"), 1):
            tokens = line.split()
            if not tokens:
                continue
            item = self._parse_line(tokens, frame)
            if isinstance(item, LabelObject):
                objects.append(item)
            else:
                what, detail, fix = item
                problems.add(what, file, detail, fix=fix, line=number)
        return LabelFile(objects)

    def _parse_line(self, tokens: list[str], frame: Frame) -> LabelObject | tuple[str, str, str]:
        """Return the object, or (what is wrong, the case, the fix)."""
        if len(tokens) < 5 or len(tokens) % 2 == 0:
            detail = f"{len(tokens)} numbers"
            if len(tokens) == 6:
                detail += ": the sixth looks like the confidence of a detection"
            return "lines of label files have the wrong number of values", detail, _SHAPE_FIX
        try:
            label, *values = map(float, tokens)
        except ValueError:
            return "lines of label files hold text", " ".join(tokens)[:60], _SHAPE_FIX
        if not all(map(math.isfinite, values)):
            return "coordinates are not finite", " ".join(tokens)[:60], "remove the lines or write numbers"
        if not label.is_integer() or label < 0:
            return "classes are not whole numbers from 0", f"class {tokens[0]}", "write the index of the class"
        if self._num_classes is not None and label >= self._num_classes:
            detail = f"class {int(label)}, but names has {self._num_classes} classes"
            return "classes are beyond the list of names", detail, "add the names, or correct the classes"
        if label >= MOST_CLASSES:
            return "classes are beyond all reason", f"class {tokens[0][:60]}", "correct them, or list the names"
        if max(values) > _LIMIT or min(values) < -_LIMIT:
            detail = " ".join(tokens[1:])[:60]
            fix = "divide x by the width and y by the height of the image"
            return "coordinates look like pixels, where 0-1 of the image are wanted", detail, fix
        if len(values) == 4 and (values[2] < 0 or values[3] < 0):
            return "boxes have a negative size", " ".join(tokens[1:]), "write `class cx cy w h` with w and h from 0"
        fields = _box_fields(values, frame) if len(values) == 4 else _polygon_fields(values, frame)
        return LabelObject(str(int(label)), " ".join(tokens[1:]), fields=fields)

    def encode(self, annotation: Record, label: str, frame: Frame) -> LabelObject | None:
        height, width = frame.size_hw if frame.turn < 5 else frame.size_hw[::-1]
        x, y, w, h = to_upright(annotation["bbox"], frame.size_hw, frame.turn)
        values = [(x + w / 2) / width, (y + h / 2) / height, w / width, h / height]
        if min(values[2:]) < 0 or max(map(abs, values)) > _LIMIT:
            return None
        return LabelObject(label, " ".join(map(repr, values)))

    def write(self, image: Record, objects: Sequence[LabelObject], kept: str | None) -> str:
        return "".join(f"{item.label} {item.geometry}\n" for item in objects)


def _box_fields(values: list[float], frame: Frame) -> Record:
    height, width = frame.size_hw if frame.turn < 5 else frame.size_hw[::-1]
    cx, cy, w, h = values[0] * width, values[1] * height, values[2] * width, values[3] * height
    return {"bbox": to_stored([cx - w / 2, cy - h / 2, w, h], frame.size_hw, frame.turn)}


def _polygon_fields(values: list[float], frame: Frame) -> Record:
    height, width = frame.size_hw if frame.turn < 5 else frame.size_hw[::-1]
    points = [
        to_stored([x * width, y * height, 0.0, 0.0], frame.size_hw, frame.turn)[:2]
        for x, y in zip(values[::2], values[1::2], strict=True)
    ]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    left, top = min(xs), min(ys)
    doubled = sum(xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(points)))
    return {
        "bbox": [left, top, max(xs) - left, max(ys) - top],
        "area": abs(doubled) / 2,
        "segmentation": [[value for point in points for value in point]],
    }

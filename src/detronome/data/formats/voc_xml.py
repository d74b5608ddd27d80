"""Pascal VOC annotation files: one XML document an image.

A box is xmin, ymin, xmax, ymax in pixels. As most programs write them, the box is `xmax - xmin` wide and begins at
`xmin`; the original devkit counts pixels from 1 and includes the last (`one_based`). Fractions are read and written.

`difficult` is not `iscrowd`: COCO's evaluation ignores what is found in a crowd region, however much of it is covered,
and VOC's own counts a difficult object neither found nor missed. So `difficult`, like `pose`, `truncated` and
`occluded`, is kept as a field of the annotation and changes nothing else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from detronome.data.formats.document import Record
from detronome.data.formats.labels import Frame, LabelCodec, LabelFile, LabelObject
from detronome.data.formats.problems import LabelProblems

__all__ = ["VocCodec", "is_voc_name"]

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_ATTRIBUTES = {"pose": "Unspecified", "truncated": "0", "occluded": None, "difficult": "0"}
"""What an object may have besides name and box, and what is written where an annotation has none of it."""
_ROUNDING_PX = 1e-6
"""A box without width may get this much less than none where coordinates are fractions."""
_NOT_XML = re.compile(r"[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_WHOLE = re.compile(r"[+-]?\d{1,18}")
_MOST_LEVELS = 100
"""Of elements in each other, which Python's XML writer follows by recursion; annotations have 4."""
_BOX_FIX = "write xmin, ymin, xmax, ymax in pixels, with xmax and ymax not below xmin and ymin"


class VocCodec(LabelCodec):
    """XML files.

    Args:
        one_based: coordinates count pixels from 1 and include the last, as in the original devkit.
    """

    key = "voc_xml"
    held = ("bbox", *_ATTRIBUTES)
    is_upright = False

    def __init__(self, *, one_based: bool = False) -> None:
        self._first = 1 if one_based else 0

    def parse(self, content: bytes, frame: Frame, file: Path, problems: LabelProblems) -> LabelFile:
        try:
            root = ElementTree.fromstring(content)
        except ElementTree.ParseError as error:
            fix = "export the files again"
            problems.add("label files are not valid XML", file, str(error), fix=fix, line=error.position[0])
            return LabelFile(())
        except (ValueError, LookupError) as error:  # an encoding that Python does not know
            problems.add("label files are not valid XML", file, str(error), fix="save them as UTF-8")
            return LabelFile(())
        if _has_more_levels(root, _MOST_LEVELS):
            fix = "export the files again"
            problems.add("label files have elements nested too deeply", file, f"{_MOST_LEVELS} levels", fix=fix)
            return LabelFile(())
        objects = []
        for number, element in enumerate(root.findall("object")):
            item = self._parse_object(element)
            if isinstance(item, LabelObject):
                objects.append(item)
            else:
                what, detail, fix = item
                problems.add(what, file, detail, fix=fix, line=_line_of_object(content, number))
        return LabelFile(objects, _size_hw(root))

    def _parse_object(self, element: Element) -> LabelObject | tuple[str, str, str]:
        """Return the object, or (what is wrong, the case, the fix)."""
        name = _text(element, "name")
        if not name:
            return "objects have no name", "", "write the class as <name>"
        box = element.find("bndbox")
        texts = [] if box is None else [_text(box, corner) or "" for corner in _CORNERS]
        if "" in texts or box is None:
            missing = [corner for corner, text in zip(_CORNERS, texts, strict=False) if not text]
            return "objects have no complete bndbox", f"{name}: no {', '.join(missing or ['bndbox'])}", _BOX_FIX
        values = [_number(text) for text in texts]
        shown = f"{name}: {', '.join(map(' '.join, zip(_CORNERS, texts, strict=True)))}"
        if any(value is None for value in values):
            return "coordinates are not finite numbers", shown, _BOX_FIX
        xmin, ymin, xmax, ymax = (value for value in values if value is not None)
        width, height = xmax - xmin + self._first, ymax - ymin + self._first
        if min(width, height) < -_ROUNDING_PX:
            return "boxes have a negative size", shown, _BOX_FIX
        attributes = {tag: text for tag in _ATTRIBUTES if (text := _text(element, tag)) is not None}
        return LabelObject(
            name,
            " ".join(texts),
            attributes,
            {
                "bbox": [xmin - self._first, ymin - self._first, max(width, 0), max(height, 0)],
                **{tag: _field(text) for tag, text in attributes.items()},
            },
            ElementTree.tostring(element, "unicode"),
        )

    def encode(self, annotation: Record, label: str, frame: Frame) -> LabelObject | None:
        x, y, w, h = annotation["bbox"]
        if w < 0 or h < 0 or not math.isfinite(x + w) or not math.isfinite(y + h):
            return None
        corners = [x + self._first, y + self._first, x + w, y + h]
        attributes = {}
        for tag, default in _ATTRIBUTES.items():
            value = annotation.get(tag)
            text = str(int(value)) if isinstance(value, bool | int) else value
            if not isinstance(text, str) or not _is_xml(text):
                text = default
            if text is not None:
                attributes[tag] = text
        return LabelObject(label.strip(), " ".join(map(_written, corners)), attributes)

    def write(self, image: Record, objects: Sequence[LabelObject], kept: str | None) -> str:
        root = _header(image) if kept is None else ElementTree.fromstring(kept.encode())
        for old in root.findall("object"):
            root.remove(old)
        for item in objects:
            root.append(_object_element(item))
        ElementTree.indent(root, "\t")
        return ElementTree.tostring(root, "unicode") + "\n"


def _header(image: Record) -> Element:
    root = Element("annotation")
    _add(root, "filename", _NOT_XML.sub("?", image["file_name"].rpartition("/")[2]))
    size = ElementTree.SubElement(root, "size")
    for tag, value in (("width", image["width"]), ("height", image["height"]), ("depth", 3)):
        _add(size, tag, str(int(value)))
    _add(root, "segmented", "0")
    return root


def _object_element(item: LabelObject) -> Element:
    element = ElementTree.fromstring(item.source) if item.source else Element("object")
    _set(element, "name", item.label)
    for tag, text in item.attributes.items():
        _set(element, tag, text)
    box = element.find("bndbox")
    if box is None:
        box = ElementTree.SubElement(element, "bndbox")
    for corner, text in zip(_CORNERS, item.geometry.split(" "), strict=True):
        _set(box, corner, text)
    return element


def _add(parent: Element, tag: str, text: str) -> None:
    ElementTree.SubElement(parent, tag).text = text


def _set(parent: Element, tag: str, text: str) -> None:
    child = parent.find(tag)
    if child is None:
        child = ElementTree.SubElement(parent, tag)
    child.text = text


def _text(parent: Element, tag: str) -> str | None:
    child = parent.find(tag)
    return None if child is None else (child.text or "").strip()


def _number(text: str) -> int | float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    if not math.isfinite(value):
        return None
    return int(text) if _WHOLE.fullmatch(text) else value


def _field(text: str) -> int | str:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else text


def _written(value: float) -> str:
    return str(int(value)) if isinstance(value, int) or value.is_integer() else repr(value)


def _is_xml(text: str) -> bool:
    return text == text.strip() and not _NOT_XML.search(text)


def is_voc_name(name: str) -> bool:
    """Return whether a class name can stand in an XML file."""
    return bool(name.strip()) and not _NOT_XML.search(name)


def _has_more_levels(root: Element, most: int) -> bool:
    level = [root]
    for _ in range(most):
        level = [child for element in level for child in element]
    return bool(level)


def _size_hw(root: Element) -> tuple[int, int] | None:
    size = root.find("size")
    if size is None:
        return None
    height, width = _number(_text(size, "height") or ""), _number(_text(size, "width") or "")
    if height is None or width is None or min(height, width) < 1:
        return None
    return int(height), int(width)


def _line_of_object(content: bytes, number: int) -> int | None:
    places = [match.start() for match in re.finditer(rb"<object[\s>]", content)]
    return content.count(b"\n", 0, places[number]) + 1 if number < len(places) else None

"""Lists of class names with their ids, for layouts whose label files give names alone.

label_map.pbtxt    item { id: 1 name: "cat" } ..., TensorFlow's
classes.txt        one name a line, ids from 1
labelmap.txt       name:colour:parts:actions a line, CVAT's; ids from 1, the background aside
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from detronome.errors import DataError

__all__ = ["LABEL_MAP_NAME", "label_map_text", "read_label_map"]

LABEL_MAP_NAME = "label_map.pbtxt"
_ITEM = re.compile(r"item\s*\{((?:\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'|[^}\"'])*)\}")
_ID = re.compile(r"\bid\s*:\s*(-?\d{1,18})(?!\d)")
_NAME = re.compile(r"""\bname\s*:\s*(?:"((?:[^"\\]|\\.)*)"|'((?:[^'\\]|\\.)*)')""")


def label_map_text(categories: Mapping[int, str]) -> str:
    """Return the text of a label_map.pbtxt: the name of each category id."""
    items = []
    for category_id, name in categories.items():
        escaped = name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        items.append(f'item {{\n  id: {category_id}\n  name: "{escaped}"\n}}\n')
    return "".join(items)


def read_label_map(file: Path) -> dict[str, int]:
    """Return the id of each class name, by id.

    Raises:
        DataError: the file cannot be read, or says nothing.
    """
    try:
        text = file.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the label map cannot be read: {error}", where=str(file)) from error
    ids = _items(file, text) if file.name == LABEL_MAP_NAME else _lines(file, text)
    if not ids:
        raise DataError("the label map is empty", where=str(file), fix="name the classes in it, or delete it")
    return dict(sorted(ids.items(), key=lambda item: item[1]))


def _items(file: Path, text: str) -> dict[str, int]:
    ids: dict[str, int] = {}
    for item in _ITEM.findall(text):
        name = _NAME.search(item)
        number = _ID.search(_NAME.sub("", item))
        if number is None or name is None:
            raise DataError(
                f"an item of the label map has no id or name: {item.strip()[:60]}",
                where=str(file),
                fix='write item { id: 1 name: "cat" }',
            )
        ids.setdefault(_unescaped(name[1] if name[1] is not None else name[2]).strip(), int(number[1]))
    return ids


def _lines(file: Path, text: str) -> dict[str, int]:
    names = [line.strip() for line in text.split("\n") if line.strip() and not line.startswith("#")]
    if file.name == "labelmap.txt":
        names = [name for line in names if (name := line.partition(":")[0]) != "background"]
    return {name: i for i, name in reversed(list(enumerate(names, 1)))}


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", lambda match: "\n" if match[1] == "n" else match[1], text, flags=re.DOTALL)

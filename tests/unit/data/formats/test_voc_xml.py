"""VOC files: what they say, both ways to count pixels, and every way to get one wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detronome.data.formats.labels import Frame, LabelFile
from detronome.data.formats.problems import LabelProblems
from detronome.data.formats.voc_xml import VocCodec, is_voc_name
from detronome.errors import DataError

FRAME = Frame((20, 40))
FILE = Path("/data/Annotations/a.xml")


def one(box: str, rest: str = "", name: str = "<name>cat</name>") -> str:
    return f"<object>{name}{rest}<bndbox>{box}</bndbox></object>"


def corners(*values: object) -> str:
    tags = ("xmin", "ymin", "xmax", "ymax")
    return "".join(f"<{tag}>{value}</{tag}>" for tag, value in zip(tags, values, strict=True))


def parse(text: str | bytes, *, one_based: bool = False) -> LabelFile:
    problems = LabelProblems(Path("/data"))
    content = text.encode() if isinstance(text, str) else text
    file = VocCodec(one_based=one_based).parse(content, FRAME, FILE, problems)
    problems.raise_if_any()
    return file


def bbox(text: str, **options: bool) -> list[float]:
    (item,) = parse(f"<annotation>{text}</annotation>", **options).objects
    box: list[float] = item.fields["bbox"]
    return box


def test_a_file_without_objects() -> None:
    assert parse("<annotation/>") == LabelFile([])


def test_a_box_begins_at_xmin_unless_pixels_count_from_one() -> None:
    text = one(corners(10, 5, 30, 15))
    assert bbox(text) == [10, 5, 20, 10]
    assert bbox(text, one_based=True) == [9, 4, 21, 11]


def test_fractions_and_empty_boxes_are_read() -> None:
    assert bbox(one(corners(1.5, "2.25 ", "\n3", 4))) == [1.5, 2.25, 1.5, 1.75]
    assert bbox(one(corners(3, 3, 3, 3))) == [3, 3, 0, 0]


def test_attributes_are_fields_and_difficult_is_no_crowd() -> None:
    rest = "<pose>Left</pose><truncated>1</truncated><difficult>1</difficult>"
    (item,) = parse(f"<annotation>{one(corners(1, 1, 2, 2), rest)}</annotation>").objects
    assert item.fields == {"bbox": [1, 1, 1, 1], "pose": "Left", "truncated": 1, "difficult": 1}


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("<size><width>40</width><height>20</height></size>", (20, 40)),
        ("<size><width>0</width><height>0</height></size>", None),
        ("<size><width>x</width></size>", None),
        ("", None),
    ],
)
def test_the_size(size: str, expected: tuple[int, int] | None) -> None:
    assert parse(f"<annotation>{size}</annotation>").size_hw == expected


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (one(corners(1, 1, 2, 2), name=""), "objects have no name"),
        (one(corners(1, 1, 2, 2), name="<name> </name>"), "objects have no name"),
        ("<object><name>cat</name></object>", "cat: no bndbox"),
        (one("<xmin>1</xmin><ymin>1</ymin><ymax>2</ymax>"), "cat: no xmax"),
        (one(corners(1, 1, "nan", 2)), "not finite"),
        (one(corners(1, 1, "two", 2)), "xmax two"),
        (one(corners(1, 1, "9" * 400, 2)), "not finite"),
        (one(corners(5, 1, 2, 2)), "negative size"),
    ],
)
def test_a_wrong_object_is_told_with_file_and_line(text: str, told: str) -> None:
    with pytest.raises(DataError) as caught:
        parse(f"<annotation>\n{one(corners(1, 1, 2, 2))}\n\n{text}</annotation>")
    assert told in str(caught.value)
    assert "Annotations/a.xml:4" in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"<annotation>", b"<a>\n\n<b></a>", b'<?xml version="1.0" encoding="x"?><a/>']
)
def test_broken_xml_is_told(content: bytes) -> None:
    with pytest.raises(DataError, match="not valid XML"):
        parse(content)


def test_other_encodings_are_read() -> None:
    text = f'<?xml version="1.0" encoding="ISO-8859-1"?><annotation>{one(corners(1, 1, 2, 2), name="<name>é</name>")}'
    (item,) = parse((text + "</annotation>").encode("latin-1")).objects
    assert item.label == "é"


FINITE = st.one_of(st.integers(-(10**6), 10**6), st.floats(-1e6, 1e6))
SIZES = st.one_of(st.integers(0, 10**6), st.floats(0, 1e6))


@given(box=st.tuples(FINITE, FINITE, SIZES, SIZES), name=st.text(min_size=1), one_based=st.booleans())
def test_an_object_that_was_written_is_read_again(box: tuple[float, ...], name: str, one_based: bool) -> None:
    if not is_voc_name(name):
        return
    codec = VocCodec(one_based=one_based)
    annotation: dict[str, Any] = {"bbox": list(box), "difficult": 1, "pose": 'a<b>&"'}
    item = codec.encode(annotation, name, FRAME)
    assert item is not None
    image = {"file_name": "a&b.jpg", "width": 40, "height": 20}
    file = parse(codec.write(image, [item, item], None), one_based=one_based)
    assert file.size_hw == (20, 40)
    for read in file.objects:
        assert read.label == name.strip()
        assert read.fields["bbox"] == pytest.approx(box, rel=1e-9, abs=1e-6)
        assert (read.fields["difficult"], read.fields["pose"]) == (1, 'a<b>&"')
        assert read.identity == item.identity


@pytest.mark.parametrize("box", [[0, 0, -1, 1], [0, 0, 1, -1], [1e308, 0, 1e308, 1]])
def test_what_no_file_can_say(box: list[float]) -> None:
    assert VocCodec().encode({"bbox": box}, "cat", FRAME) is None


@pytest.mark.parametrize("name", ["", " ", "a\0", "a\rb", "\ud800"])
def test_names_that_xml_has_no_way_to_hold(name: str) -> None:
    assert not is_voc_name(name)

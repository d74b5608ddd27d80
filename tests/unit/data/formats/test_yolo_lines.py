"""Lines of YOLO label files: what they say, and every way to get one wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detronome.data.formats.labels import Frame, LabelObject
from detronome.data.formats.problems import LabelProblems
from detronome.data.formats.yolo_lines import YoloCodec
from detronome.errors import DataError

FRAME = Frame((20, 40))
FILE = Path("/data/labels/train/a.txt")


def parse(text: str | bytes, num_classes: int | None = 3, frame: Frame = FRAME) -> list[LabelObject]:
    problems = LabelProblems(Path("/data"))
    content = text.encode() if isinstance(text, str) else text
    objects = list(YoloCodec(num_classes).parse(content, frame, FILE, problems).objects)
    problems.raise_if_any()
    return objects


@pytest.mark.parametrize("text", ["", "\n", " \r\n\t\n", "\ufeff"])
def test_an_empty_file_is_an_image_without_objects(text: str) -> None:
    assert parse(text) == []


def test_a_box() -> None:
    (item,) = parse("2 0.5 0.5 0.25 0.5\r\n")
    assert (item.label, item.geometry) == ("2", "0.5 0.5 0.25 0.5")
    assert item.fields == {"bbox": [15.0, 5.0, 10.0, 10.0]}


def test_a_polygon_gives_its_bounds() -> None:
    (item,) = parse("0 0.25 0.5 0.75 0.5 0.5 1.0")
    assert item.fields["bbox"] == [10.0, 10.0, 20.0, 10.0]
    assert item.fields["segmentation"] == [[10.0, 10.0, 30.0, 10.0, 20.0, 20.0]]
    assert item.fields["area"] == 100.0


def test_boxes_beyond_the_border_and_without_size_are_kept_as_they_are() -> None:
    texts = ["0 0.0 0.5 0.3 0.2", "0 1.0005 0.5 0.1 0.1", "0 0.5 0.5 0 0", "0.0 -0.1 0.5 0.1 0.1"]
    assert [item.geometry for item in parse("\n".join(texts))] == [text.split(" ", 1)[1] for text in texts]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("3 0.5 0.5 0.1 0.1", "class 3, but names has 3 classes"),
        ("-1 0.5 0.5 0.1 0.1", "class -1"),
        ("1.5 0.5 0.5 0.1 0.1", "class 1.5"),
        ("nan 0.5 0.5 0.1 0.1", "class nan"),
        ("cat 0.5 0.5 0.1 0.1", "cat 0.5"),
        ("0 0.5 0.5 0.1", "4 numbers"),
        ("0 0.5 0.5 0.1 0.1 0.9", "the sixth looks like the confidence"),
        ("0", "1 numbers"),
        ("0 nan 0.5 0.1 0.1", "not finite"),
        ("0 0.5 inf 0.1 0.1", "not finite"),
        ("0 0.5 0.5 -0.1 0.1", "negative size"),
        ("0 12 14 3 4", "look like pixels"),
        ("0 0.5 0.5 0.1 0.1 0.2 400", "look like pixels"),
        ("0,0.5,0.5,0.1,0.1", "1 numbers"),
    ],
)
def test_a_wrong_line_is_told_with_file_and_line(line: str, told: str) -> None:
    with pytest.raises(DataError) as caught:
        parse(f"0 0.5 0.5 0.1 0.1\n\n{line}\n")
    text = str(caught.value)
    assert told in text
    assert "labels/train/a.txt:3: " in text


def test_all_wrong_lines_are_told_at_once() -> None:
    with pytest.raises(DataError) as caught:
        parse("9 0 0 0 0\n0 a b c d\n8 0 0 0 0\n" + "7 0 0 0 0\n" * 6)
    classes, text = caught.value.problems
    assert "a.txt:1: class 9" in classes.where and "a.txt:3: class 8" in classes.where
    assert classes.where.endswith("and 3 more")
    assert "a.txt:2" in text.where


def test_a_binary_file_is_told() -> None:
    with pytest.raises(DataError, match="not text"):
        parse(b"\xff\xfe0\x00")


def test_any_class_is_fine_without_a_list_of_names() -> None:
    assert parse("799 0.5 0.5 0.1 0.1", None)[0].label == "799"


PIXELS = st.floats(-1e3, 1e3)


@given(
    box=st.tuples(PIXELS, PIXELS, st.floats(0, 1e3), st.floats(0, 1e3)),
    size_hw=st.tuples(st.integers(1, 1000), st.integers(1, 1000)),
    turn=st.integers(1, 8),
)
def test_a_box_that_was_written_is_read_again(
    box: tuple[float, float, float, float], size_hw: tuple[int, int], turn: int
) -> None:
    frame = Frame(size_hw, turn)
    item = YoloCodec(1).encode({"bbox": list(box)}, "0", frame)
    if item is not None:
        (read,) = parse(f"0 {item.geometry}", 1, frame)
        assert read.fields["bbox"] == pytest.approx(box, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("bbox", [[0, 0, -1, 2], [0, 0, 2, -1], [500, 0, 1, 1], [0, 0, 1e300, 1]])
def test_what_no_line_can_say(bbox: list[float]) -> None:
    assert YoloCodec(1).encode({"bbox": bbox}, "0", FRAME) is None

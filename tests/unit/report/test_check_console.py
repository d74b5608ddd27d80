"""The report reads well on wide and narrow terminals, in pipes, and with names that try to steer the terminal."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from detronome.data.check.findings import Change, CheckReport, Finding, FixedFile
from detronome.report.check_console import print_check


def finding(**changes: Any) -> Finding:
    fields: dict[str, Any] = {
        "code": "box_zero_size",
        "severity": "warning",
        "what": "boxes have no width or no height",
        "count": 1207,
        "cases": ("annotation 918 of image 200365: [1, 2, 0, 3]",) * 5,
        "where": "data/annotations/instances_train.json",
        "effect": "training leaves these objects out and learns them as background",
        "fix": "remove them",
        "is_fixable": True,
    }
    return Finding(**fields | changes)


def shown(
    *findings: Finding, width: int | None = None, fixed: tuple[FixedFile, ...] = (), all_cases: bool = False
) -> str:
    report = CheckReport(
        data="data", checked={"images": 1, "annotations": 1234}, findings=findings, seconds=0.26, fixed=fixed
    )
    file = io.StringIO()
    console = Console(
        file=file, width=width, force_terminal=width is not None, color_system=None, highlight=False, markup=False
    )
    print_check(report, console, all_cases=all_cases)
    return file.getvalue()


def test_nothing_found() -> None:
    assert shown() == "data\n1 image, 1,234 annotations checked in 0.3 s\n\nclean: nothing was found\n"


def test_a_pipe_has_one_line_a_field() -> None:
    text = shown(finding(), finding(severity="error", code="x", count=1, cases=("$.images",), where="data"))
    assert text.splitlines()[3:] == [
        "error",
        "      1  boxes have no width or no height  x",
        "         which   $.images",
        "         effect  training leaves these objects out and learns them as background",
        "         fix     remove them",
        "",
        "warning",
        "  1,207  boxes have no width or no height  box_zero_size",
        "         in      annotations/instances_train.json",
        "         which   " + "annotation 918 of image 200365: [1, 2, 0, 3]; " * 5 + "and 1,202 more",
        "         effect  training leaves these objects out and learns them as background",
        "         fix     remove them",
        "",
        "1 error, 1 warning: this data stops training, or teaches it something wrong; "
        "--fix OUT writes a copy in which 2 are repaired",
    ]


@pytest.mark.parametrize("width", [1, 20, 40, 79, 200])
def test_a_terminal_breaks_lines_at_its_width(width: int) -> None:
    text = shown(finding(), finding(severity="note"), width=width)
    assert all(len(line) <= max(width, 37) for line in text.splitlines())
    assert " ".join(["remove", "them"]) in " ".join(text.split())


def test_notes_alone_are_no_loss() -> None:
    assert shown(finding(severity="note", is_fixable=False)).endswith("1 note: this data is sound\n")


def test_a_repaired_copy_names_what_was_changed() -> None:
    cases = tuple(f"annotation {i}" for i in range(12))
    copy = FixedFile(
        source="a.json",
        path="b.json",
        changes=(Change(what="removed", count=12, cases=cases),),
        left=("1 image is CMYK",),
    )
    text = shown(finding(), fixed=(copy,))
    assert "repaired copy  b.json\n" in text
    assert "     12  removed: annotation 0, annotation 1, " in text
    assert "annotation 9 and 2 more (--all names them)\n" in text
    assert "left    1 image is CMYK" in text
    assert "with the copy: errors are left that only you can decide, in 1 of 1 file (see above)" in text
    assert "--fix OUT" not in text


def test_the_copies_are_judged_too() -> None:
    change = Change(what="removed", count=1, cases=("annotation 1",))
    copy = FixedFile(source="a.json", path="b.json", changes=(change,), left=(), then="put it in place of a.json")
    text = shown(finding(split="train"), fixed=(copy,))
    assert "it was checked again: no error is left\n" in text and "next    put it in place of a.json\n" in text
    assert text.endswith("with the copy: no error is left\n")
    text = shown(finding(severity="error", code="split_leakage"), fixed=(copy,))
    assert text.endswith("errors are left that only you can decide; outside of them: split_leakage\n")
    text = shown(fixed=(FixedFile(source="a.json", path="", changes=(), left=()),))
    assert "nothing in it could be changed, so no copy was written" in text and "no copy was written: " in text


def test_images_in_shards_are_not_called_sound() -> None:
    text = shown(finding(severity="note", code="image_in_shards", is_fixable=False))
    assert "this data is sound" not in text
    assert text.endswith("its images were not looked at: detronome data shard --verify data\n")


def test_long_cases_lose_their_middle_unless_all_are_asked_for() -> None:
    case = "image 1 (" + "n" * 300 + ".jpg)"
    text = shown(finding(cases=(case, "image 2"), count=2))
    (line,) = [line for line in text.splitlines() if "which   " in line]
    assert len(line) < 160 and line.endswith("n.jpg); image 2")
    assert case in shown(finding(cases=(case, "image 2"), count=2), all_cases=True)


def test_places_are_named_so_that_they_can_be_found() -> None:
    assert "in      /elsewhere/x.json\n" in shown(finding(where="/elsewhere/x.json"))
    assert "in      data2/x.json\n" in shown(finding(where="data2/x.json"))
    assert "in      images (split val)\n" in shown(finding(where="data/images", split="val"))


def test_names_cannot_steer_the_terminal() -> None:
    text = shown(finding(cases=("image 1 (\x1b[2J[bold]x.jpg)",), what="a\nb"))
    assert "\x1b" not in text and "[bold]x.jpg" in text and "a b" in text

from __future__ import annotations

import math

import pytest

from detronome.report import formats


@pytest.mark.parametrize("write", [
    formats.format_bytes, formats.format_count, formats.format_duration, formats.format_fixed,
    formats.format_significant,
])  # fmt: skip
@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_a_missing_number_is_a_dash(write, value: float | None) -> None:  # type: ignore[no-untyped-def]
    assert write(value) == "-"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (2e-4, "2e-4"), (0.012345, "0.0123"), (9.999, "10"), (19.61, "19.6"), (1234.5, "1,234"), (-0.5, "-0.5"),
     (3.1e9, "3.1e9"), (0.001, "0.001"), (100, "100")],
)  # fmt: skip
def test_significant_digits(value: float, text: str) -> None:
    assert formats.format_significant(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (725, "12:05"), (11232, "3:07:12"), (180_000, "2d 02:00")]
)
def test_durations(seconds: float, text: str) -> None:
    assert formats.format_duration(seconds) == text


def test_counts_and_bytes() -> None:
    assert [formats.format_count(value) for value in (87, 9999, 118_287, 41_501_895)] == [
        "87",
        "9,999",
        "118k",
        "41.5M",
    ]
    assert [formats.format_bytes(value) for value in (642, 512 * 2**20, 10 * 2**30)] == [
        "642 B",
        "512 MiB",
        "10.0 GiB",
    ]


def test_text_is_one_line_without_control_characters() -> None:
    assert formats.clean_text("a\n\x1b[31mb\tc\u202e") == "a [31mb c"

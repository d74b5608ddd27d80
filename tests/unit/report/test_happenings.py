from __future__ import annotations

from run_events import HOSTILE, bad_image, diagnosed, eventful_run, logged, skipped, started

from detronome.report.happenings import happening, happenings, images_in_words


def test_nothing_happened() -> None:
    assert happenings([]) == []
    assert happenings([started().to_record(), logged(1).to_record(), {"kind": "of tomorrow", "step": 1}]) == []
    assert images_in_words([]) == ""


def test_all_that_happened_is_told_in_the_order_of_the_log() -> None:
    found = happenings(event.to_record() for event in eventful_run())
    assert [(one.kind, one.step) for one in found] == [
        ("warning", 0),
        ("split", 11),
        ("bad_image", 15),
        ("checkpoint_failed", 10),
        ("skip", 21),
        ("skip", 32),
        ("bad_image", 38),
        ("skip", 44),
        ("skip", 45),
        ("rollback", 40),
        ("checkpoint_failed", 60),
        ("warning", 80),
    ]
    for one in found:
        assert one.sentence and "\x1b" not in one.sentence
        assert bool(one.fix) is (one.kind == "warning")


def test_skips_in_a_row_with_one_cause_are_counted_as_one() -> None:
    row = [skipped(step, f"loss {step}.5e+12, gradient norm nan").to_record() for step in range(5, 9)]
    (one,) = happenings(row)
    assert (one.step, one.last_step, one.count) == (5, 8, 4)
    assert [one.count for one in happenings([row[0], row[2]])] == [1, 1]  # not in a row
    assert [one.count for one in happenings([row[0], diagnosed(6).to_record()])] == [1, 1]
    assert [one.count for one in happenings([diagnosed(6).to_record(), diagnosed(7).to_record()])] == [2]


def test_an_image_met_again_is_named_once() -> None:
    records = [bad_image(3).to_record(), bad_image(9).to_record(), bad_image(9, image_id=18).to_record()]
    assert [one.where for one in happenings(records)] == ["image 17 of train", "image 18 of train"]


def test_images_are_named_once_and_the_first_few_of_many() -> None:
    many = happening(skipped(1).to_record())
    assert many is not None and many.where == "images 0, 1, 2, 3, 4, 5, 6, 7 and 4 more"
    blamed = happening(diagnosed(1).to_record())  # its reason names them
    assert blamed is not None and blamed.where == "rank 3"


def test_records_without_fields_are_told() -> None:
    for kind in ("skip", "rollback", "split", "checkpoint_failed", "warning", "bad_image"):
        one = happening({"kind": kind, "step": 7})
        assert one is not None and one.step == 7
        one.sentence  # noqa: B018
    hostile = happening({"kind": "skip", "step": 7, "reason": HOSTILE, "image_ids": [HOSTILE], "module": HOSTILE})
    assert hostile is not None and "\x1b" not in hostile.sentence

from __future__ import annotations

import math
from dataclasses import replace

from run_events import HOSTILE, bad_image, ended, evaluated, eventful_run, logged, started

from detronome.report.trackers.scalars import scalars


def test_what_is_no_measurement_contributes_nothing() -> None:
    assert scalars(started()) == {}
    assert scalars(bad_image(3)) == {}
    assert scalars(replace(ended(), seconds={})) == {}


def test_every_number_is_finite_and_has_a_group() -> None:
    for event in eventful_run():
        for name, value in scalars(event).items():
            assert math.isfinite(value), name
            assert "/" in name or name == "epoch"


def test_a_step_tells_its_sections_and_the_machine() -> None:
    event = replace(logged(3), sections_s={"forward": 0.1}, device_s={"forward": 0.09}, system={"cpu_percent": 50.0})
    numbers = scalars(event)
    assert numbers["step_s/forward"] == 0.1
    assert numbers["device_step_s/forward"] == 0.09
    assert numbers["system/cpu_percent"] == 50.0
    assert numbers["speed/data_wait_share"] == 0.25
    assert "loss/loss_giou" not in numbers  # it was nan


def test_only_the_best_evaluation_sets_the_best_numbers() -> None:
    assert scalars(evaluated(10, 0.4))["best/AP"] == 0.4
    assert scalars(evaluated(10, 0.4))["best/step"] == 10
    assert not any(name.startswith("best/") for name in scalars(evaluated(20, 0.3, is_best=False)))
    assert f"class_AP/{HOSTILE}" not in scalars(evaluated(10, 0.4))  # nan

"""What a log record tells of the time between two records."""

from __future__ import annotations

import time
from statistics import fmean

import pytest
import torch

from detronome.data.loader import LoaderMeter
from detronome.engine.events import StepLogged
from detronome.engine.log_window import LogWindow
from detronome.engine.step import StepResult
from detronome.runtime.monitor import SystemMonitor
from detronome.runtime.progress import Progress, Section

CPU = torch.device("cpu")
ONE = torch.ones(())


class Sampled(SystemMonitor):
    """A monitor of which a test says what it has sampled."""

    def __init__(self) -> None:
        super().__init__(CPU)
        self.busy_percent: list[float] = []

    def take(self) -> dict[str, float]:
        taken, self.busy_percent = self.busy_percent, []
        return {"gpu_percent": fmean(taken)} if taken else {}


def closed(window: LogWindow, num_steps: int) -> StepLogged:
    for _ in range(num_steps):
        window.add(StepResult(ONE, {}, ONE, ONE), num_images=3, wait_s=0.0)
    record = window.close(LoaderMeter(), step=1, epoch=0.1, learning_rates={}, training_s=5.0, skipped_steps=0)
    assert record is not None
    return record


def test_the_sections_of_a_step_add_up_to_it() -> None:
    activity = Progress({"forward": 1e6, "evaluation": 1e6})
    window = LogWindow(CPU, activity)
    activity.enter(Section.FORWARD)
    time.sleep(0.02)
    activity.enter(Section.LOG)
    record = closed(window, 2)
    assert record.sections_s[Section.FORWARD] >= 0.01
    assert Section.EVALUATION not in record.sections_s
    assert sum(record.sections_s.values()) == pytest.approx(record.step_s, rel=1e-6)
    assert record.images_per_s == pytest.approx(3 / record.step_s)
    assert record.training_s == pytest.approx(5 + 2 * record.step_s)


def test_what_the_machine_did_before_the_window_is_not_told() -> None:
    monitor = Sampled()
    window = LogWindow(CPU, Progress(), monitor=monitor)
    monitor.busy_percent += [10.0, 20.0]  # during an evaluation
    window.restart()
    monitor.busy_percent += [80.0, 100.0]
    assert closed(window, 1).system == {"gpu_percent": 90.0}

"""Forms measured in turn: every round runs each of them once on the same images, starting with another one each time.

A machine that others use changes its speed by tens of percent within minutes. Within a round its mood is nearly one, so
forms are compared there; absolute times are medians over all rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from detronome.deploy.benchmark.calls import Call
from detronome.deploy.benchmark.messages import CallTimes, Measure, Measured, Opened
from detronome.deploy.benchmark.process import FormFailedError, FormProcess

__all__ = ["MOST_ROUNDS", "Runner", "measure_in_turn", "plan_rounds"]

MOST_ROUNDS = 15
_FEWEST_ROUNDS = 6
"""Fewer have no 95 % interval."""
_WARM_UPS = 2
"""Of each shape: some compilers look at the first two before they make code for all."""


@dataclass
class Runner:
    """A form that is open, and what was measured of it."""

    name: str
    process: FormProcess
    opened: Opened
    rounds: dict[int, list[tuple[CallTimes, ...]]] = field(default_factory=dict)
    """Times of the calls by batch size and round."""
    peak_bytes: dict[int, int] = field(default_factory=dict)
    """By batch size."""
    failure: FormFailedError | None = None

    def run(self, calls: Sequence[Call], *, from_now: bool = False) -> Measured | None:
        """Time calls; None where that fails, and from then on."""
        if self.failure is not None:
            return None
        request = Measure(calls=tuple(call.images for call in calls), from_now=from_now)
        try:
            return self.process.ask(request, Measured)
        except FormFailedError as error:
            self.failure = error
            return None


def measure_in_turn(
    runners: Sequence[Runner],
    calls: Sequence[Call],
    *,
    batch_size: int,
    seconds: float,
    on_plan: Callable[[int, int], None] = lambda *_: None,
) -> None:
    """Measure forms at one batch size; what is found, and what fails, is noted in the runners.

    Args:
        runners: the forms; the first is what the others are compared with.
        calls: what is run, over and over; at least one.
        batch_size: images of each call.
        seconds: about how long the first form is measured.
        on_plan: is told (rounds, calls of each) once the pace of the first form is known.
    """
    distinct = list({call.shape_hw: call for call in calls}.values())
    first_s = 0.0
    for runner in runners:
        warm = runner.run(distinct * _WARM_UPS)
        if warm is not None and not first_s:
            # The fastest: what others on the machine take away for a moment is no reason to measure less.
            first_s = min(call.whole_s for call in warm.times)
    if not first_s:
        return  # none of them runs
    num_rounds, num_calls = plan_rounds(seconds, first_s)
    on_plan(num_rounds, num_calls)
    for number in range(num_rounds):
        chosen = [calls[(number * num_calls + n) % len(calls)] for n in range(num_calls)]
        turn = number % len(runners)
        for runner in (*runners[turn:], *runners[:turn]):
            measured = runner.run(chosen, from_now=number == 0)
            if measured is not None:
                runner.rounds.setdefault(batch_size, []).append(measured.times)
                runner.peak_bytes[batch_size] = measured.peak_bytes


def plan_rounds(seconds: float, call_s: float) -> tuple[int, int]:
    """Return (rounds, calls of each): at least six rounds, however slow a call is.

    Args:
        seconds: to spend on the form whose call takes `call_s`.
        call_s: seconds of a call.
    """
    calls = max(1, round(seconds / max(call_s, 1e-6)))
    rounds = min(MOST_ROUNDS, max(_FEWEST_ROUNDS, calls))
    return rounds, max(1, round(calls / rounds))

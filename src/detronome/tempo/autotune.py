"""Making a run faster by measurement: changes are tried one at a time, and kept only where a gain is proven.

Greedy: what was proven is built on. At the end the result is measured against the configuration that was asked for; if
that does not prove it faster, the latter stays.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

from detronome.config.convert import apply_overrides, to_dict
from detronome.config.schema import RunConfig
from detronome.tempo.comparison import Comparison, Outcome, Trial, compare
from detronome.tempo.proposals import Effect, Part, Proposal
from detronome.tempo.rates import StepRates

__all__ = ["MIN_GAIN", "Measure", "Propose", "Tried", "Tuner", "TuningResult"]

MIN_GAIN = 1.02
"""A change is kept when the lower end of its interval is above this: below, a machine's moods could be meant."""

_LONGEST_BLOCK_S = 2.0
_BLOCKS_IN_BUDGET = 300
_RESERVED = 0.2
"""Part of the time that is left for the final comparison."""
_FIRST_STEPS = 5

Measure = Callable[[RunConfig, Part], AbstractContextManager[Trial]]
"""Opens a configuration for measuring."""
Propose = Callable[[RunConfig, StepRates], Sequence[Proposal]]
"""The changes to try on a configuration, given what its steps take; the most promising first."""
Reason = Literal["finished", "out of time", "interrupted"]


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A change that was tried."""

    proposal: Proposal
    before: Any
    """The setting's value until then, as plain data."""
    comparison: Comparison | None
    """None where it failed."""
    failure: str = ""
    """Why it could not be measured to the end."""

    @property
    def is_kept(self) -> bool:
        """Whether it was proven to help, and built on."""
        return self.comparison is not None and self.comparison.outcome == Outcome.FASTER


@dataclass(frozen=True, kw_only=True)
class TuningResult:
    """How a session ended."""

    reason: Reason
    settings: Mapping[str, Any]
    """What is proven to help, by dotted name; empty where nothing is."""
    tried: Sequence[Tried]
    not_tried: Sequence[Proposal]
    """Changes that were left out because they change more than rounding."""
    first: StepRates
    """Of the configuration that was asked for, before anything was tried."""
    final: Mapping[Part, Comparison]
    """All that was kept against the configuration that was asked for, by the part that it was measured on; empty where
    nothing was kept, or somebody ended the session before."""
    failure: str
    """Why a final comparison could not be made; empty where nothing went wrong."""
    seconds: float

    @property
    def taken_back(self) -> Sequence[Part]:
        """Parts of which the final comparison did not confirm what the single ones had found."""
        lost = (tried for tried in self.tried if tried.is_kept and tried.proposal.setting not in self.settings)
        return tuple(dict.fromkeys(tried.proposal.part for tried in lost))


class Tuner:
    """A session that looks for faster settings.

    Args:
        config: as asked for.
        measure: opens a configuration for measuring.
        propose: the changes to try.
        budget_s: about how long the session may take.
        allow_inexact: also try what changes more than rounding.
        min_gain: the lower end of a change's interval must be above this ratio.
        on_begin: is told what is measured next.
        on_tried: is told of each change that was tried.
        clock: seconds.
    """

    def __init__(
        self,
        config: RunConfig,
        measure: Measure,
        propose: Propose,
        *,
        budget_s: float,
        allow_inexact: bool = False,
        min_gain: float = MIN_GAIN,
        on_begin: Callable[[str], None] = lambda _: None,
        on_tried: Callable[[Tried], None] = lambda _: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._config = config
        self._measure = measure
        self._propose = propose
        self._budget_s = budget_s
        self._allow_inexact = allow_inexact
        self._min_gain = min_gain
        self._on_begin = on_begin
        self._on_tried = on_tried
        self._clock = clock
        self._began = clock()
        self._block_s = min(_LONGEST_BLOCK_S, budget_s / _BLOCKS_IN_BUDGET)
        self._settings: dict[str, Any] = {}
        self._tried: list[Tried] = []
        self._not_tried: dict[str, Proposal] = {}
        self._seen: set[str] = set()
        self._final: dict[Part, Comparison] = {}
        self._failure = ""
        self._baselines: dict[Part, tuple[AbstractContextManager[Trial], Trial]] = {}

    def run(self) -> TuningResult:
        """Try changes until there is none left or time is over; Ctrl-C ends it and keeps what is proven by then.

        Raises:
            DetronomeError: the configuration that was asked for cannot be measured.
        """
        reason: Reason = "finished"
        try:
            self._on_begin("as it is")
            baseline = self._baseline("training")
            first = baseline.steps(_FIRST_STEPS * baseline.round_steps, warmup=baseline.num_ahead + 1)
            baseline.settle()
            try:
                while (proposal := self._next(first)) is not None:
                    if self._is_time_over():
                        reason = "out of time"
                        break
                    self._try(proposal)
                self._close_baselines()
                self._confirm()
            except KeyboardInterrupt:
                reason = "interrupted"
        finally:
            self._close_baselines()
        return TuningResult(
            reason=reason,
            settings=dict(self._settings),
            tried=tuple(self._tried),
            not_tried=tuple(self._not_tried.values()),
            first=first,
            final=dict(self._final),
            failure=self._failure,
            seconds=self._clock() - self._began,
        )

    @property
    def _current(self) -> RunConfig:
        return apply_overrides(self._config, self._settings)

    def _next(self, first: StepRates) -> Proposal | None:
        """Return the next change that was not tried yet: what was kept may have made new ones possible."""
        for proposal in self._propose(self._current, first):
            name = f"{proposal.setting}={proposal.value}"
            if proposal.effect == Effect.INEXACT and not self._allow_inexact:
                self._not_tried[name] = proposal
            elif name not in self._seen:
                self._seen.add(name)
                return proposal
        return None

    def _try(self, proposal: Proposal) -> None:
        value = str(proposal.value).lower() if isinstance(proposal.value, bool) else proposal.value
        self._on_begin(f"{proposal.setting}={value}")
        before = _value(self._current, proposal.setting)
        comparison, failure = self._compare(proposal)
        tried = Tried(proposal=proposal, before=before, comparison=comparison, failure=failure)
        self._tried.append(tried)
        if tried.is_kept:
            self._settings[proposal.setting] = proposal.value
            self._seen.add(f"{proposal.setting}={before}")
            self._close_baselines()
        self._on_tried(tried)

    def _compare(self, proposal: Proposal) -> tuple[Comparison | None, str]:
        """Return the comparison, or why there is none: whatever a change breaks, the session goes on."""
        try:
            return self._against(
                self._baseline(proposal.part),
                apply_overrides(self._current, {proposal.setting: proposal.value}),
                proposal.part,
                min_gain=self._min_gain,
                is_time_over=self._is_time_over,
            )
        except Exception as error:
            self._close_baselines()  # perhaps it was one of them that broke
            return None, _in_a_line(error)

    def _against(
        self,
        baseline: Trial,
        config: RunConfig,
        part: Part,
        *,
        min_gain: float,
        is_time_over: Callable[[], bool] = lambda: False,
    ) -> tuple[Comparison | None, str]:
        """Measure a configuration against one that is open already; return the comparison, or why it cannot count."""
        splits = dict(baseline.memory_splits)
        with self._measure(config, part) as candidate:
            comparison = compare(
                baseline, candidate, min_gain=min_gain, block_s=self._block_s, is_time_over=is_time_over
            )
            # A baseline that lacked memory only beside the candidate was slower than it is.
            if baseline.memory_splits != splits or (candidate.memory_splits and not splits):
                return None, "memory ran out"
            return comparison, ""

    def _confirm(self) -> None:
        """Take back what is not faster as a whole."""
        parts: dict[Part, list[str]] = {}
        for tried in self._tried:
            if tried.is_kept:
                parts.setdefault(tried.proposal.part, []).append(tried.proposal.setting)
        for part, names in parts.items():
            self._on_begin("all that was kept, against the configuration as it was")
            comparison, failure = self._compare_whole(part)
            if comparison is not None:
                self._final[part] = comparison
            if failure:
                self._failure = f"{part}: {failure}"
            if comparison is None or comparison.outcome != Outcome.FASTER:
                self._settings = {name: value for name, value in self._settings.items() if name not in names}

    def _compare_whole(self, part: Part) -> tuple[Comparison | None, str]:
        """Measure all that was kept against what was asked for; return the comparison, or why there is none."""
        try:
            with self._measure(self._config, part) as before:
                before.steps(before.round_steps, warmup=before.num_ahead + 1)  # what it lacks memory for alone
                return self._against(before, self._current, part, min_gain=1.0)
        except Exception as error:
            return None, _in_a_line(error)

    def _baseline(self, part: Part) -> Trial:
        if part not in self._baselines:
            context = self._measure(self._current, part)
            self._baselines[part] = (context, context.__enter__())
        return self._baselines[part][1]

    def _close_baselines(self) -> None:
        while self._baselines:
            context, _ = self._baselines.popitem()[1]
            context.__exit__(None, None, None)

    def _is_time_over(self) -> bool:
        return self._clock() - self._began > (1 - _RESERVED) * self._budget_s


def _value(config: RunConfig, setting: str) -> Any:
    section, _, name = setting.partition(".")
    return to_dict(config)[section][name]


def _in_a_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__

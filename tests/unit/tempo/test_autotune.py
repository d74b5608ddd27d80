"""The decision what to keep, over made-up machines: noisy, drifting, running out of memory, interrupted."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detronome.config.presets import nano
from detronome.config.schema import RunConfig
from detronome.errors import DataError
from detronome.tempo.autotune import Tried, Tuner, TuningResult
from detronome.tempo.comparison import Outcome, compare
from detronome.tempo.proposals import Effect, Part, Proposal
from detronome.tempo.rates import StepRates

IMAGES = 8


class Machine:
    """Seconds of a step by setting, with noise; its clock moves as it works.

    Args:
        gains: by "setting=value", how many times as fast a run is with it.
        noise: largest relative error of a block.
        drift: the machine becomes slower by this part in a second.
        broken: changes whose measurement raises.
        too_large: changes for which memory runs out.
        interrupted_after_s: when somebody presses Ctrl-C.
    """

    def __init__(
        self,
        gains: Mapping[str, float],
        *,
        noise: float = 0.0,
        drift: float = 0.0,
        seed: int = 0,
        broken: Mapping[str, Exception] | None = None,
        too_large: Sequence[str] = (),
        interrupted_after_s: float = float("inf"),
        step_s: float = 0.1,
    ) -> None:
        self.gains, self.noise, self.drift, self.step_s = gains, noise, drift, step_s
        self.broken, self.too_large = broken or {}, too_large
        self.interrupted_after_s = interrupted_after_s
        self.random = random.Random(seed)
        self.now = 0.0
        self.num_open = 0
        self.most_open = 0

    def measure(self, config: RunConfig, part: Part) -> FakeTrial:
        return FakeTrial(self, config)

    def tuner(self, changes: Sequence[Proposal] | None = None, **options: Any) -> Tuner:
        listed = [proposal(name) for name in self.gains] if changes is None else changes
        options = {"budget_s": 3600.0, "clock": lambda: self.now, **options}
        return Tuner(base_config(), self.measure, lambda config, first: not_in_force(config, listed), **options)


class FakeTrial:
    """A configuration on a made-up machine."""

    num_ahead = 0
    round_steps = 1

    def __init__(self, machine: Machine, config: RunConfig) -> None:
        self.machine, self.config = machine, config
        self.in_force = [name for name in {*machine.gains, *machine.broken, *machine.too_large} if has(config, name)]
        self.memory_splits: dict[str, int] = {}

    def steps(self, count: int, *, warmup: int) -> StepRates:
        machine = self.machine
        for name in self.in_force:
            if name in machine.broken:
                raise machine.broken[name]
            if name in machine.too_large:
                self.memory_splits = {"64x64": 1}
        seconds = machine.step_s * (1 + machine.drift * machine.now)
        for name in self.in_force:
            seconds /= machine.gains.get(name, 1.0)
        machine.now += (count + warmup) * seconds
        if machine.now > machine.interrupted_after_s:
            machine.interrupted_after_s = float("inf")
            raise KeyboardInterrupt
        return StepRates(
            step_s=[seconds * (1 + machine.random.uniform(-machine.noise, machine.noise)) for _ in range(1)] * count,
            images_per_step=IMAGES,
        )

    def settle(self) -> None:
        pass

    def __enter__(self) -> Self:
        self.machine.num_open += 1
        self.machine.most_open = max(self.machine.most_open, self.machine.num_open)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.machine.num_open -= 1


def base_config() -> RunConfig:
    from detronome.config.convert import apply_overrides

    return apply_overrides(nano(), {"data.workers": 0, "batch.micro_batch_size": 8, "eval.batch_size": 8})


def proposal(name: str, effect: Effect = Effect.NONE) -> Proposal:
    setting, _, text = name.partition("=")
    value = int(text) if text.isdecimal() else {"true": True, "false": False}.get(text, text)
    return Proposal(setting=setting, value=value, effect=effect, changes="nothing", why="made up")


def has(config: RunConfig, name: str) -> bool:
    wanted = proposal(name)
    section, _, key = wanted.setting.partition(".")
    return getattr(getattr(config, section), key) == wanted.value


def not_in_force(config: RunConfig, changes: Sequence[Proposal]) -> list[Proposal]:
    return [change for change in changes if not has(config, f"{change.setting}={str(change.value).lower()}")]


NAMES = ("data.workers=2", "data.prefetch=4", "data.cache=ram", "train.channels_last=false", "train.compile=true")


def test_nothing_to_try_leaves_the_run_as_it_is() -> None:
    result = Machine({}).tuner().run()
    assert (result.reason, result.settings, result.tried, result.final) == ("finished", {}, (), {})
    assert result.first.images_per_s == pytest.approx(80)


def test_what_is_proven_is_kept_built_on_and_confirmed() -> None:
    machine = Machine({"data.workers=2": 1.5, "data.prefetch=4": 1.0, "train.compile=true": 1.2}, noise=0.03)
    result = machine.tuner().run()
    assert result.settings == {"data.workers": 2, "train.compile": True}
    assert [(tried.proposal.setting, tried.is_kept) for tried in result.tried] == [
        ("data.workers", True),
        ("data.prefetch", False),
        ("train.compile", True),
    ]
    final = result.final["training"].speedup
    assert final is not None and final.low > 1.5 and final.ratio == pytest.approx(1.8, rel=0.05)
    assert machine.num_open == 0 and machine.most_open == 2


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), gains=st.lists(st.floats(0.3, 1.0), min_size=1, max_size=5))
def test_no_slower_change_is_ever_kept(seed: int, gains: list[float]) -> None:
    # Within the noise of +-0.9 % no ratio of a change without a gain can exceed 1.02.
    machine = Machine(dict(zip(NAMES, gains, strict=False)), noise=0.009, seed=seed, drift=0.001)
    result = machine.tuner().run()
    assert result.settings == {} and not any(tried.is_kept for tried in result.tried)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), drift=st.floats(0, 0.001))
def test_a_gain_of_thirty_percent_is_kept_under_ten_percent_of_noise(seed: int, drift: float) -> None:
    machine = Machine({"data.workers=2": 1.3}, noise=0.1, seed=seed, drift=drift)
    result = machine.tuner().run()
    assert result.settings == {"data.workers": 2}
    speedup = result.final["training"].speedup
    assert speedup is not None and speedup.low > 1


def test_false_gains_are_rare_where_noise_is_ten_times_the_smallest_gain() -> None:
    kept = sum(bool(Machine({"data.workers=2": 1.0}, noise=0.1, seed=s).tuner().run().settings) for s in range(200))
    assert kept <= 4  # they do not matter either: nothing is slower


def test_a_run_that_became_slower_by_what_was_kept_is_what_it_was() -> None:
    class Moody(Machine):
        """Shows gains until the final comparison, and then that there is none."""

        def measure(self, config: RunConfig, part: Part) -> FakeTrial:
            if self.num_open == 0 and has(config, "data.workers=0") and self.now > 1:
                self.gains = {"data.workers=2": 0.9}
            return super().measure(config, part)

    result = Moody({"data.workers=2": 1.5}).tuner().run()
    assert [tried.is_kept for tried in result.tried] == [True]
    assert result.settings == {} and result.taken_back == ("training",)
    assert result.final["training"].outcome != Outcome.FASTER


@pytest.mark.parametrize(
    "error",
    [RuntimeError("CUDA out of memory\nTried to allocate"), DataError("no"), MemoryError(), OSError(28, "full")],
)
def test_a_change_that_fails_is_told_and_survived(error: Exception) -> None:
    machine = Machine({"data.workers=2": 1.5, "data.cache=ram": 1.4}, broken={"data.workers=2": error})
    told: list[Tried] = []
    result = machine.tuner(on_tried=told.append).run()
    assert result.settings == {"data.cache": "ram"}
    assert told == list(result.tried)
    assert told[0].comparison is None and told[0].failure and "\n" not in told[0].failure
    assert machine.num_open == 0


def test_a_change_that_memory_has_no_room_for_is_dropped_although_it_is_faster() -> None:
    machine = Machine({"batch.micro_batch_size=4": 2.0}, too_large=["batch.micro_batch_size=4"])
    result = machine.tuner().run()
    assert result.settings == {} and result.tried[0].failure == "memory ran out"


@pytest.mark.parametrize("num_open", [1, 2])
def test_a_baseline_that_lacks_memory_only_beside_the_candidate_is_not_slower(num_open: int) -> None:
    class Full(Machine):
        """Two configurations at once do not fit: the larger one is cut, and as slow as nobody will see it alone."""

        def measure(self, config: RunConfig, part: Part) -> FakeTrial:
            return Cut(self, config)

    class Cut(FakeTrial):
        def steps(self, count: int, *, warmup: int) -> StepRates:
            if not self.in_force and self.machine.num_open >= num_open:
                self.memory_splits = {"64x64": 1}
            rates = super().steps(count, warmup=warmup)
            return replace(rates, step_s=[2 * s for s in rates.step_s]) if self.memory_splits else rates

    result = Full({"batch.micro_batch_size=4": 0.8}).tuner().run()
    if num_open == 2:
        assert result.settings == {} and [tried.failure for tried in result.tried] == ["memory ran out"]
    else:  # it is cut alone too: the gain is real
        assert result.settings == {"batch.micro_batch_size": 4} and not result.failure


def test_a_baseline_that_breaks_is_opened_anew() -> None:
    class Fragile(Machine):
        """Its loader dies once, while a change is measured."""

        dies = True

        def measure(self, config: RunConfig, part: Part) -> FakeTrial:
            return Dying(self, config)

    class Dying(FakeTrial):
        is_dead = False

        def steps(self, count: int, *, warmup: int) -> StepRates:
            machine = self.machine
            assert isinstance(machine, Fragile)
            if not self.in_force and machine.num_open == 2 and machine.dies:
                machine.dies, self.is_dead = False, True
            if self.is_dead:
                raise DataError("a loader process has ended")
            return super().steps(count, warmup=warmup)

    machine = Fragile({"data.prefetch=4": 1.0, "data.workers=2": 1.5})
    result = machine.tuner().run()
    assert result.settings == {"data.workers": 2}
    assert [tried.failure for tried in result.tried] == ["a loader process has ended", ""]
    assert machine.num_open == 0


def test_only_the_part_that_is_not_confirmed_is_taken_back() -> None:
    class Moody(Machine):
        def measure(self, config: RunConfig, part: Part) -> FakeTrial:
            if part == "evaluation" and self.num_open == 0 and has(config, "eval.batch_size=8") and self.is_settled:
                self.gains = {**self.gains, "eval.batch_size=16": 0.5}
            return super().measure(config, part)

        @property
        def is_settled(self) -> bool:
            return bool(tried) and tried[-1].proposal.part == "evaluation"

    tried: list[Tried] = []
    changes = [proposal("data.workers=2"), replace(proposal("eval.batch_size=16"), part="evaluation")]
    machine = Moody({"data.workers=2": 1.5, "eval.batch_size=16": 1.5})
    result = machine.tuner(changes, on_tried=tried.append).run()
    assert [one.is_kept for one in result.tried] == [True, True]
    assert result.settings == {"data.workers": 2} and result.taken_back == ("evaluation",)


def test_a_configuration_that_cannot_be_measured_at_all_is_an_error() -> None:
    machine = Machine({}, broken={"data.workers=0": DataError("no images")})
    with pytest.raises(DataError, match="no images"):
        machine.tuner().run()
    assert machine.num_open == 0


def test_inexact_changes_are_tried_only_when_asked_for() -> None:
    changes = [proposal("data.decode=fast", Effect.INEXACT), proposal("train.compile=true", Effect.ROUNDING)]
    machine = Machine({"data.decode=fast": 2.0, "train.compile=true": 1.5})
    result = machine.tuner(changes).run()
    assert result.settings == {"train.compile": True}
    assert [left.setting for left in result.not_tried] == ["data.decode"]
    result = machine.tuner(changes, allow_inexact=True).run()
    assert result.settings == {"data.decode": "fast", "train.compile": True} and not result.not_tried


@settings(max_examples=30, deadline=None)
@given(budget_s=st.floats(5, 300), step_s=st.floats(0.01, 0.5))
def test_the_time_is_kept_but_for_the_last_comparison(budget_s: float, step_s: float) -> None:
    machine = Machine(dict.fromkeys(NAMES, 1.05), noise=0.01, step_s=step_s)
    result = machine.tuner(budget_s=budget_s).run()
    block_s = max(3 * step_s, min(2.0, budget_s / 300)) + 2 * step_s
    assert result.seconds < budget_s + 15 * 2 * block_s + 10 * step_s
    assert machine.num_open == 0


def test_what_is_proven_survives_ctrl_c() -> None:
    gains = {"data.workers=2": 1.5, "data.prefetch=4": 1.0, "train.compile=true": 1.5}
    whole = Machine(gains).tuner().run()
    assert len(whole.settings) == 2
    for part in (0.02, 0.3, 0.5, 0.9):
        machine = Machine(gains, interrupted_after_s=part * whole.seconds)
        try:
            result = machine.tuner().run()
        except KeyboardInterrupt:  # before anything was measured
            assert part == 0.02
            continue
        finally:
            assert machine.num_open == 0
        assert result.reason == "interrupted"
        assert set(result.settings) == {tried.proposal.setting for tried in result.tried if tried.is_kept}


def test_a_kept_change_is_not_turned_back_and_makes_new_ones_possible() -> None:
    machine = Machine({"data.workers=1": 1.5, "data.workers=2": 2.0, "data.workers=4": 1.9})

    def changes(config: RunConfig, first: StepRates) -> list[Proposal]:
        now = config.data.workers
        assert now != "auto"
        return [proposal(f"data.workers={max(1, 2 * now)}"), proposal(f"data.workers={now // 2}")]

    tuner = Tuner(base_config(), machine.measure, changes, budget_s=3600, clock=lambda: machine.now)
    result: TuningResult = tuner.run()
    assert result.settings == {"data.workers": 2}
    assert [tried.proposal.value for tried in result.tried] == [1, 2, 4]


def test_a_clearly_slower_candidate_is_given_up_early() -> None:
    machine = Machine({"data.workers=2": 0.3})
    result = machine.tuner().run()
    (tried,) = result.tried
    assert tried.comparison is not None and tried.comparison.speedup is not None
    assert tried.comparison.speedup.num_pairs == 1 and tried.comparison.outcome == Outcome.NO_GAIN


def test_each_goes_first_in_turn_so_that_a_drift_cancels() -> None:
    machine = Machine({}, drift=0.01)
    compared = compare(FakeTrial(machine, base_config()), FakeTrial(machine, base_config()), min_gain=1.02, block_s=1.0)
    assert compared.outcome == Outcome.NO_GAIN
    assert compared.speedup is not None and compared.speedup.ratio == pytest.approx(1.0, abs=0.02)


def test_blocks_are_whole_rounds_and_what_was_prepared_ahead_is_not_counted() -> None:
    asked: list[tuple[str, int, int]] = []

    class Recording(FakeTrial):
        def __init__(self, name: str, num_ahead: int, round_steps: int) -> None:
            super().__init__(Machine({}), base_config())
            self.name, self.num_ahead, self.round_steps = name, num_ahead, round_steps

        def steps(self, count: int, *, warmup: int) -> StepRates:
            asked.append((self.name, count, warmup))
            return super().steps(count, warmup=warmup)

        def settle(self) -> None:
            asked.append((f"{self.name} settles", 0, 0))

    compare(Recording("a", 4, 2), Recording("b", 9, 3), min_gain=1.02, block_s=0.1)
    steps = [entry for entry in asked if "settles" not in entry[0]]
    assert all(warmup > 9 for _, _, warmup in steps)
    assert all(count % 6 == 0 for _, count, _ in steps[2:])
    assert [name for name, _, _ in steps[2:]] == ["a", "b", "b", "a"] * 2 + ["a", "b"]
    assert all(asked[i + 1][0] == f"{name} settles" for i, (name, _, _) in enumerate(asked) if "settles" not in name)


def test_the_callbacks_are_told_what_is_measured() -> None:
    told: list[str] = []
    on_begin: Callable[[str], None] = told.append
    Machine({"data.workers=2": 1.5}).tuner(on_begin=on_begin).run()
    assert told == ["as it is", "data.workers=2", "all that was kept, against the configuration as it was"]

"""A run by script, which tells its events in the trainer's order, and can be killed and resumed anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from run_events import (
    bad_image,
    checkpoint_failed,
    ended,
    evaluated,
    logged,
    rolled_back,
    skipped,
    split,
    started,
    warned,
)

from detronome.engine.events import Event

NUM_STEPS = 24


@dataclass(frozen=True, kw_only=True)
class Script:
    """What happens at which step."""

    log_steps: int
    eval_steps: int
    checkpoints: frozenset[int]
    """Beside those after evaluations."""
    failing: frozenset[int]
    """Checkpoints that cannot be written."""
    skips: frozenset[tuple[int, int]]
    """Step, and how often the run has gone back by then."""
    rollbacks: frozenset[int]
    """Skips that make the run go back to its last checkpoint."""
    splits: frozenset[int]
    eval_splits: frozenset[int]
    bad_images: frozenset[int]
    warnings: frozenset[int]


@dataclass(frozen=True)
class _State:
    """What a checkpoint holds."""

    step: int = 0
    num_rollbacks: int = 0
    split: frozenset[str] = frozenset()
    bad: frozenset[int] = frozenset()
    warned: frozenset[int] = frozenset()


class Killed(Exception):  # noqa: N818
    """The process has died."""


@dataclass
class ScriptedRun:
    """Runs a script; `tell` may raise `Killed`, after which `run` goes on from the last checkpoint."""

    script: Script
    tell: Callable[[Event], None]
    checkpoint: _State = field(default_factory=_State)

    def run(self) -> None:
        """Train from the last checkpoint to the end."""
        self.state, self.pending = self.checkpoint, None
        self.tell(started(self.state.step))
        while self.state.step < NUM_STEPS:
            try:
                self._step()
            except _GoBack:
                self._go_back()
        self.tell(ended(NUM_STEPS))

    def _step(self) -> None:
        script, step = self.script, self.state.step
        if step in script.splits:
            self._split(f"train {step}")
        self._examine()
        is_skipped = (step, self.state.num_rollbacks) in script.skips
        self.pending: int | None = step if is_skipped else None
        step += 1
        self._set(step=step)
        is_evaluated = step % script.eval_steps == 0 or step == NUM_STEPS
        is_saved = is_evaluated or step in script.checkpoints
        if is_saved or step % script.log_steps == 0:
            self._examine()
            if step in script.bad_images and step not in self.state.bad:
                self._set(bad=self.state.bad | {step})
                self.tell(bad_image(step, image_id=step))
            self.tell(logged(step))
            self._warn(2 * step)
        if is_evaluated:
            if step in script.eval_splits:
                self._split(f"eval {step}")
            self.tell(evaluated(step, step / 100))
            self._warn(2 * step + 1)
        if is_saved and step not in script.failing:
            self.checkpoint = self.state
        elif is_saved:
            self.tell(checkpoint_failed(step))

    def _examine(self) -> None:
        step, self.pending = self.pending, None
        if step is None:
            return
        self.tell(skipped(step))
        if step in self.script.rollbacks and self.state.num_rollbacks < 2:
            raise _GoBack

    def _go_back(self) -> None:
        from_step = self.state.step
        self._set(step=self.checkpoint.step, num_rollbacks=self.state.num_rollbacks + 1)
        self.tell(rolled_back(self.state.step, from_step))
        self.checkpoint = self.state

    def _split(self, name: str) -> None:
        if name not in self.state.split:
            self._set(split=self.state.split | {name})
            self.tell(split(self.state.step))

    def _warn(self, number: int) -> None:
        if number in self.script.warnings and number not in self.state.warned:
            self._set(warned=self.state.warned | {number})
            self.tell(warned(self.state.step))

    def _set(self, **changes: object) -> None:
        self.state = replace(self.state, **changes)  # type: ignore[arg-type]


class _GoBack(Exception):  # noqa: N818
    pass


def killing(tell: Callable[[Event], None], lives: Iterator[int]) -> Callable[[Event], None]:
    """Return `tell` that dies after so many events, then after so many more, and so on."""
    left = next(lives, None)

    def tell_or_die(event: Event) -> None:
        nonlocal left
        if left == 0:
            left = next(lives, None)
            raise Killed
        left = None if left is None else left - 1
        tell(event)

    return tell_or_die

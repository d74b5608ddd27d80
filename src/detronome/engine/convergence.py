"""Watching whether a run converges, and saying early, with a reason, when it does not.

Reads only what is logged and evaluated anyway. Every bound leaves room for healthy runs: a detection transformer's AP
stays at 0 for hundreds of steps and then jumps, losses are noisy, rates rise and drop.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from detronome.engine.early_stop import NO_AP
from detronome.engine.events import Evaluated, StepLogged
from detronome.engine.history import History
from detronome.engine.prospects import USUAL_LR, Concern, RunFacts, named, prospects

__all__ = ["ConvergenceWatch"]

_WORSE = 2.0
"""A subject is told again when its severity has grown by this factor."""

_TINY = 1e-9
"""Instead of a loss of 0 where something is divided by it."""

_RISE_STEPS, _RISE_SHARE = 300, 0.002
"""How long the loss must stay high, in steps and as a part of the plan: after a spike, or a restart of the schedule, it
comes down again."""
_NORM_GREW, _NORM_VANISHED = 5.0, 0.02
"""Times its start beyond which the gradient tells of steps that were too large; vanished, the model is dead."""
_SKIPPED, _SKIPPED_STEPS = 0.2, 100
"""Part of the recent steps skipped that is no accident, once so many steps are known."""
_HIGH_RATE, _LOW_RATE = 5.0, 0.1
"""Times the recipe's rate beyond which the rate is the first suspect."""

_DUE_STEPS = {
    "detr": (5_000, 0.5, 20_000),
    "nano": (1_000, 0.2, 3_000),
    "rtdetr": (2_000, 0.3, 8_000),
    "dfine": (2_000, 0.3, 8_000),
}
"""When AP must have moved: so many steps at least, a part of the plan, so many steps at most. The fast family's moves
after 200 to 300 steps; classic DETR's within three epochs of COCO, later where data is scarce; RT-DETR's within the
first, about 7,000 steps."""
_CROWDED = 0.5
"""Part of the images with more objects than queries that explains an AP of 0."""
_UNSEEN = 1.5
"""Times the training loss that the validation loss must be to say that nothing carries over."""

_AGREEING, _AGREEING_SHARE = 3, 0.1
"""Evaluations in a row that must tell of overfitting: so many, and all of this last part of the plan, where they are
frequent or the rate goes up and down."""
_VALIDATION_ROSE, _TRAINING_FELL = 1.1, 0.98
"""Factors since the lowest validation loss; a small split's loss moves by some per cent from chance."""
_GAP = 2.0
"""Times the training loss, at which a validation loss that falls no more need not rise: a model that has five images by
heart is three times worse on others, and its validation loss rises by 10 % over 600 steps."""
_AP_GAIN = 0.005
"""An AP that grew by this has improved."""

_DECENT_AP = 0.2
"""The model works, so that a class at 0 has a cause of its own."""
_ENOUGH_OBJECTS = 50


@dataclass(frozen=True)
class _Sign:
    concern: Concern
    severity: float


class ConvergenceWatch:
    """Follows a run's logs and evaluations; names each concern once, and again only when it got clearly worse.

    Args:
        facts: what is known before the run.
    """

    def __init__(self, facts: RunFacts) -> None:
        self.facts = facts
        self.history = History(loss_weights=facts.loss_weights, class_names=list(facts.data.class_objects))
        self._told: dict[str, float] = {}

    def before(self) -> list[Concern]:
        """Return what speaks against the run before its first step; nothing when asked again or resumed."""
        if "before" in self._told:
            return []
        self._told["before"] = 1.0
        return prospects(self.facts)

    def add_log(self, log: StepLogged) -> list[Concern]:
        """Take a log record into account; return what is new."""
        self.history.add_log(log)
        return self._new(_many_skipped(self.history), _rising_loss(self.facts, self.history))

    def add_evaluation(self, evaluated: Evaluated) -> list[Concern]:
        """Take an evaluation into account; return what is new."""
        self.history.add_evaluation(evaluated)
        return self._new(
            _flat_ap(self.facts, self.history, evaluated),
            _overfitting(self.facts, self.history),
            _classes_never_found(self.facts, self.history, evaluated),
        )

    def state(self) -> dict[str, list[float]]:
        """Return what a resume needs, ready for JSON."""
        told = {f"told.{subject}": [value] for subject, value in self._told.items()}
        return self.history.state() | {"is_fine_tuned": [float(self.facts.is_fine_tuned)]} | told

    def restore(self, state: Mapping[str, Sequence[float]]) -> None:
        """Go on from a saved state; an empty one is that of a run that was not watched yet.

        Whether the run is a fine-tuning is taken from the state: a later process does not know what it started from.
        """
        if not state:
            return
        self.history.restore(state)
        if "is_fine_tuned" in state:
            self.facts = replace(self.facts, is_fine_tuned=bool(state["is_fine_tuned"][0]))
        self._told = {name.removeprefix("told."): value[0] for name, value in state.items() if name.startswith("told.")}

    def rewind(self, state: Mapping[str, Sequence[float]], *, num_skipped: int) -> None:
        """Go back to a state that this run saved, in the same process: what was told stays told.

        Args:
            state: as for `restore`.
            num_skipped: the run's count of skipped steps, which goes on from here and does not go back.
        """
        told = self._told
        self.restore(state)
        self._told = told
        self.history.count_skipped_from(num_skipped)

    def _new(self, *signs: _Sign | None) -> list[Concern]:
        new = []
        for sign in signs:
            if sign is None:
                continue
            subject = sign.concern.subject
            if subject not in self._told or sign.severity >= _WORSE * self._told[subject]:
                self._told[subject] = sign.severity
                new.append(sign.concern)
        return new


def _many_skipped(history: History) -> _Sign | None:
    skipped = history.curve("skipped")
    if skipped.num_steps < _SKIPPED_STEPS or skipped.now < _SKIPPED:
        return None
    return _Sign(
        Concern(
            subject="rate_too_high",
            what=f"{skipped.now:.0%} of the recent steps were skipped: the model is losing its balance",
            fix="lower optim.lr, or train in fp32 (--set train.precision=fp32)",
        ),
        severity=skipped.now / _SKIPPED,
    )


def _rising_loss(facts: RunFacts, history: History) -> _Sign | None:
    loss = history.curve("loss")
    patience = max(_RISE_STEPS, _RISE_SHARE * facts.total_steps)
    if history.risen_since is None or history.step - history.risen_since < patience:
        return None
    low = min(loss.start, loss.lowest)
    severity = loss.now / max(low, _TINY)
    what = (
        f"the training loss has risen from {low:.3g} to {loss.now:.3g} and has not come down since step "
        f"{history.risen_since:,.0f}"
    )
    rate = _signs_of_a_high_rate(facts, history)
    if not rate:
        return _Sign(
            Concern(
                subject="diverging",
                what=what,
                fix="train the best checkpoint on at a lower rate (--model RUN --set optim.lr=...) and with a longer "
                "schedule.warmup_steps",
            ),
            severity=severity,
        )
    return _Sign(
        Concern(
            subject="rate_too_high",
            what=f"{what}; {', '.join(rate)}: optim.lr = {facts.lr:g} is too high",
            fix=f"start again with --set optim.lr={_lower(facts):g}, or a longer schedule.warmup_steps",
        ),
        severity=severity,
    )


def _signs_of_a_high_rate(facts: RunFacts, history: History) -> list[str]:
    loss, norm = history.curve("loss"), history.curve("grad_norm")
    signs = []
    if loss.is_above_start:
        signs.append("the loss is above that of the untrained model")
    if norm.now > _NORM_GREW * norm.start:
        signs.append(f"the gradient has grown from {norm.start:.3g} to {norm.now:.3g}")
    if loss.is_above_start and norm.now < _NORM_VANISHED * norm.start:
        signs.append("the gradient has vanished, so the model will not recover")
    if facts.lr >= _HIGH_RATE * USUAL_LR[facts.family]:
        signs.append(f"the rate is {facts.lr / USUAL_LR[facts.family]:,.0f} times that of the family's recipe")
    return signs


def _lower(facts: RunFacts) -> float:
    """Return a rate to try: the recipe's, or a quarter where the rate is below that already."""
    return min(USUAL_LR[facts.family], facts.lr / 4)


def _flat_ap(facts: RunFacts, history: History, evaluated: Evaluated) -> _Sign | None:
    at_least, share, at_most = _DUE_STEPS["nano" if facts.is_fine_tuned else facts.family]
    due = max(at_least, min(share * facts.total_steps, at_most))
    ap = evaluated.metrics["AP"]
    has_moved = any(evaluation.ap > NO_AP for evaluation in history.evaluations)
    if evaluated.step < due or has_moved or not ap <= NO_AP:
        return None
    reason, fix = _why_flat(facts, history, evaluated)
    return _Sign(
        Concern(subject="flat_ap", what=f"AP is still {ap:.3f} after {evaluated.step:,} steps: {reason}", fix=fix),
        severity=evaluated.step,
    )


def _why_flat(facts: RunFacts, history: History, evaluated: Evaluated) -> tuple[str, str]:
    """Return the likeliest reason and what to do; the surest signs come first."""
    check = "look at the annotations: detronome data check DATA"
    data, objects = facts.data, facts.data.class_objects
    usual = USUAL_LR[facts.family]
    measured = [name for name, ap in evaluated.per_class_ap.items() if math.isfinite(ap)]
    if measured and not any(objects.get(name) for name in measured):
        return f"the classes evaluated ({named(measured)}) have no object in the training data", check
    if data.num_crowded > _CROWDED * data.num_images:
        return (
            f"{data.num_crowded:,} of {data.num_images:,} training images have more objects than the model has queries "
            f"({facts.num_queries})",
            "start again with a larger model.num_queries",
        )
    loss = history.curve("loss")
    if rate := _signs_of_a_high_rate(facts, history) if loss.has_risen or not loss.has_fallen else []:
        return f"the rate is too high ({', '.join(rate)})", f"start again with --set optim.lr={_lower(facts):g}"
    has_fallen = {name: history.curve(name).has_fallen for name in ("last_layer", "loss_ce", "loss_giou")}
    if not has_fallen["last_layer"] and facts.lr <= _LOW_RATE * usual:
        return (
            f"the loss hardly falls, and optim.lr = {facts.lr:g} is low",
            f"start again with --set optim.lr={usual:g}",
        )
    if not any(has_fallen.values()):
        return "the loss does not fall: images and boxes may not belong together", check
    if has_fallen["loss_giou"] and not has_fallen["loss_ce"]:
        return (
            "boxes are learnt, but classes are not (loss_ce does not fall): labels may be wrong, or mean other "
            "categories than they should",
            check,
        )
    if has_fallen["loss_ce"] and not has_fallen["loss_giou"]:
        return "classes are learnt, but boxes are not (loss_giou does not fall): their format may be another one", check
    last = history.evaluations[-1] if history.evaluations else None
    if last is not None and last.loss > _UNSEEN * last.training_loss:
        return (
            f"the training loss falls, but on the validation split it is {last.loss:.3g} instead of "
            f"{last.training_loss:.3g}: too few images to learn from, or the splits differ",
            f"use more images, or fine-tune a trained detector (--model RUN); {check}",
        )
    return (
        "the losses do fall, but slowly",
        "train for more epochs, or fine-tune a trained detector (--model RUN)"
        + (", or take --model nano" if facts.family == "detr" else ""),
    )


def _overfitting(facts: RunFacts, history: History) -> _Sign | None:
    every = history.evaluations
    window = max(_AGREEING, sum(e.step > history.step - _AGREEING_SHARE * facts.total_steps for e in every))
    earlier, recent = every[:-window], every[-window:]
    if not earlier:
        return None
    lowest = min(earlier, key=lambda evaluation: evaluation.loss)
    best = max(every, key=lambda evaluation: evaluation.ap)
    last = recent[-1]
    rise = min(evaluation.loss for evaluation in recent) / max(lowest.loss, _TINY)
    gap = last.loss / max(last.training_loss, _TINY)
    has_risen = rise >= _VALIDATION_ROSE
    has_fallen = last.training_loss < _TRAINING_FELL * lowest.training_loss
    is_stuck = max(e.ap for e in recent) <= max(e.ap for e in earlier) + _AP_GAIN
    if not (has_risen or (rise >= 1 and gap >= _GAP)) or not has_fallen or not is_stuck:
        return None
    course = f"risen from {lowest.loss:.3g} to {last.loss:.3g}" if has_risen else f"not fallen below {lowest.loss:.3g}"
    return _Sign(
        Concern(
            subject="overfitting",
            what=f"since step {lowest.step:,.0f} the validation loss has {course}, while the training loss fell from "
            f"{lowest.training_loss:.3g} to {last.training_loss:.3g}; the best AP, {best.ap:.3f}, is that of step "
            f"{best.step:,.0f}",
            fix="use the best checkpoint, which is kept; next time, stop early (--set "
            f"train.early_stop_patience={max(5, window)}) or plan fewer epochs, and use more images, more augmentation "
            "or a smaller model",
        ),
        severity=gap,
    )


def _classes_never_found(facts: RunFacts, history: History, evaluated: Evaluated) -> _Sign | None:
    recent = history.evaluations[-_AGREEING:]
    is_late = evaluated.step >= facts.total_steps / 2
    if not is_late or len(recent) < _AGREEING or any(evaluation.ap < _DECENT_AP for evaluation in recent):
        return None
    lost = [
        name
        for name, ap in evaluated.per_class_ap.items()
        if ap == history.class_ap.get(name) == 0 and facts.data.class_objects[name] >= _ENOUGH_OBJECTS
    ]
    if not lost:
        return None
    return _Sign(
        Concern(
            subject="classes_never_found",
            what=f"AP is {recent[-1].ap:.3f}, but {named(lost)} was never found, with "
            f"{sum(facts.data.class_objects[name] for name in lost):,} training objects",
            fix="see whether both splits mean the same by it: detronome data check DATA",
        ),
        severity=len(lost),
    )

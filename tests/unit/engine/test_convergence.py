"""Healthy runs are never warned of, each disease is named; on measured and on made-up curves."""

import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from detronome.engine.convergence import ConvergenceWatch
from detronome.engine.events import Evaluated, StepLogged
from detronome.engine.prospects import Concern, DataFacts, RunFacts

MEASURED: dict[str, Any] = json.loads(Path(__file__).with_name("measured_curves.json").read_text())
"""Runs of `nano` on the blood cells, log records of 50 steps."""
WEIGHTS = {"loss_ce": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0}
CELLS = {"RBC": 2381, "WBC": 214, "Platelets": 209}
NANO = RunFacts(
    data=DataFacts(num_images=205, max_objects=28, num_crowded=0, class_objects=CELLS),
    family="nano",
    is_fine_tuned=False,
    is_backbone_pretrained=False,
    is_backbone_fixed=False,
    num_queries=60,
    total_steps=2500,
    warmup_steps=0,
    lr=2e-3,
    loss_weights=WEIGHTS,
)
DETR = replace(
    NANO,
    data=replace(NANO.data, num_images=118_287),
    family="detr",
    is_backbone_pretrained=True,
    total_steps=400_000,
    lr=1e-4,
)
Record = StepLogged | Evaluated
Told = list[tuple[int, Concern]]


def logged(step: int, losses: dict[str, float], *, loss: float, grad_norm: float, skipped_steps: int = 0) -> StepLogged:
    return StepLogged(
        step=step,
        epoch=step / 25,
        loss=loss,
        losses=losses,
        grad_norm=grad_norm,
        learning_rates={"model": 1e-4},
        images_per_s=1.0,
        step_s=1.0,
        data_wait_s=0.0,
        memory_bytes=0,
        training_s=0.0,
        skipped_steps=skipped_steps,
    )


def follow(watch: ConvergenceWatch, records: Sequence[Record]) -> Told:
    told = []
    for record in records:
        new = watch.add_log(record) if isinstance(record, StepLogged) else watch.add_evaluation(record)
        told += [(record.step, concern) for concern in new]
    return told


def subjects(told: Told) -> list[str]:
    return [concern.subject for _, concern in told]


# Measured runs.


def measured(name: str) -> tuple[RunFacts, list[Record]]:
    run = MEASURED[name]
    data = DataFacts(**run["data"])
    facts = replace(NANO, data=data, num_queries=run["num_queries"], total_steps=run["total_steps"], lr=run["lr"])
    terms = list(WEIGHTS)
    logs: list[Record] = [
        logged(step, dict(zip(terms, losses, strict=True)), loss=loss, grad_norm=norm)
        for step, loss, norm, *losses in run["logs"]
    ]
    evaluations: list[Record] = [
        Evaluated(
            step=step,
            epoch=step / 25,
            metrics={"AP": ap},
            per_class_ap=dict(zip(data.class_objects, class_ap, strict=True)),
            losses=dict(zip(terms, losses, strict=True)),
        )
        for step, ap, losses, class_ap in run["evaluations"]
    ]
    return facts, sorted(logs + evaluations, key=lambda record: (record.step, isinstance(record, Evaluated)))


def test_a_measured_healthy_run_is_never_warned_of() -> None:
    facts, records = measured("healthy")
    watch = ConvergenceWatch(facts)
    assert watch.before() == []
    assert follow(watch, records) == []


def test_a_measured_run_at_a_hundred_times_the_rate() -> None:
    facts, records = measured("rate_times_100")
    watch = ConvergenceWatch(facts)
    assert [concern.subject for concern in watch.before()] == ["rate_too_high"]
    told = follow(watch, records)
    assert subjects(told) == ["rate_too_high", "flat_ap"]
    (first, rate), (_, flat) = told
    assert first <= 450
    assert "has not come down since step" in rate.what and "optim.lr=0.002" in rate.fix
    assert "the rate is too high" in flat.what and "the gradient has vanished" in flat.what


def test_a_measured_run_on_five_images() -> None:
    facts, records = measured("five_images")
    watch = ConvergenceWatch(facts)
    assert [concern.subject for concern in watch.before()] == ["too_few_images", "too_short"]
    ((step, concern),) = follow(watch, records)
    assert concern.subject == "overfitting" and step <= 520
    assert "the best AP, 0.265, is that of step 360" in concern.what


def test_a_measured_run_with_three_queries() -> None:
    facts, records = measured("three_queries")
    watch = ConvergenceWatch(facts)
    assert [concern.subject for concern in watch.before()] == ["too_few_queries", "too_short"]
    assert follow(watch, records) == []


# Made-up runs.


@dataclass
class Point:
    """What a made-up run does at one step; a disease bends it."""

    step: int
    progress: float
    loss: float
    """Multiplies all terms: 1 at the start."""
    ce: float
    giou: float
    grad_norm: float
    skipped: float
    ap: float
    class_ap: dict[str, float]
    validation: float
    """Factor of the validation loss over the training loss."""


Disease = Callable[[Point], Point]


def made_up(facts: RunFacts, seed: int, disease: Disease | None = None) -> Iterator[Record]:
    """Yield a run like healthy ones: noise, warm-up, rate drops, spikes, restarts, and an AP that is 0 and jumps."""
    noise = random.Random(seed)
    total, num_logs = facts.total_steps, 250
    steps = sorted({*range(10, 210, 10), *(round(i * total / num_logs) for i in range(1, num_logs + 1))})
    step_sigma = noise.uniform(0.03, 0.8)
    pace = 1 if facts.family == "nano" else 15
    floor, decay, jump = (
        noise.uniform(0.15, 0.6),
        pace * noise.uniform(50, 600) / total,
        pace * noise.uniform(60, 600) / total,
    )
    best_ap, swing = noise.uniform(0.08, 0.7), noise.choice([0.0, 0.1])
    drop = noise.uniform(0.5, 0.8)
    mild_overfitting, gap = noise.uniform(0.0, 0.05), noise.uniform(0.85, 1.4)
    norm, norm_growth = noise.lognormvariate(1, 1), noise.uniform(0.4, 2.5)
    every = noise.choice([6, 12, 25])
    num_skipped = 0.0
    for i, (last_step, step) in enumerate(pairwise([0, *steps]), start=1):
        window, progress = step - last_step, step / total
        sigma = step_sigma / math.sqrt(window)
        loss = floor + (1 - floor) * math.exp(-progress / decay)
        loss *= (0.85 if progress > drop else 1.0) * (1 + swing * math.sin(progress * 40))
        seen = max(0.0, progress - jump)
        ap = 0.0 if seen == 0 else best_ap * (1 - math.exp(-seen / 0.2)) * noise.uniform(0.95, 1.0)
        point = Point(
            step=step,
            progress=progress,
            loss=loss,
            ce=1.0,
            giou=1.0,
            grad_norm=norm * (1 + (norm_growth - 1) * progress) * noise.lognormvariate(0, 2 * sigma),
            skipped=0.01 * noise.random(),
            ap=ap,
            class_ap={name: ap * noise.uniform(0.3, 1.5) for name in facts.data.class_objects},
            validation=gap * (1 + mild_overfitting * progress) * noise.uniform(0.98, 1.02),
        )
        point = disease(point) if disease else point
        spike = noise.lognormvariate(0, sigma) + (
            noise.uniform(2, 9) * 10 / window if noise.random() < 0.01 and i > 10 else 0
        )
        num_skipped += point.skipped * window
        terms = {
            "loss_ce": point.loss * point.ce * spike,
            "loss_bbox": 0.2 * point.loss * point.giou * spike,
            "loss_giou": 0.8 * point.loss * point.giou * spike,
        }
        is_nan = noise.random() < 0.01
        yield logged(
            step,
            dict.fromkeys(terms, math.nan) if is_nan else terms,
            loss=math.nan if is_nan else 8 * point.loss * spike,
            grad_norm=math.nan if is_nan else point.grad_norm,
            skipped_steps=round(num_skipped),
        )
        if i % every == 0 or step == total:
            yield Evaluated(
                step=step,
                epoch=step / 25,
                metrics={"AP": point.ap},
                per_class_ap=point.class_ap,
                losses={name: value / spike * point.validation for name, value in terms.items()},
            )


@pytest.mark.parametrize("facts", [NANO, DETR, replace(NANO, total_steps=20_000)], ids=["nano", "detr", "long nano"])
def test_healthy_runs_are_never_warned_of(facts: RunFacts) -> None:
    for seed in range(200):
        watch = ConvergenceWatch(facts)
        assert watch.before() == []
        assert follow(watch, list(made_up(facts, seed))) == [], seed


def diverges(point: Point) -> Point:
    """Goes well for a while, and then ever worse, though not as bad as untrained."""
    if point.progress > 0.4:
        point.loss = max(point.loss, min(1.0, point.loss + 3 * (point.progress - 0.4)))
        point.ap *= 0.5
    return point


def explodes(point: Point) -> Point:
    point.loss, point.grad_norm, point.ap = 1 + 20 * point.progress, 3 * (1 + 200 * point.progress), 0.0
    return point


def skips(point: Point) -> Point:
    point.skipped = 0.4
    return point


def stays_flat(point: Point) -> Point:
    point.ap, point.class_ap = 0.0, dict.fromkeys(point.class_ap, 0.0)
    return point


def learns_nothing(point: Point) -> Point:
    point.loss = 1.0
    return stays_flat(point)


def learns_boxes_only(point: Point) -> Point:
    point.ce = 1 / point.loss
    return stays_flat(point)


def learns_classes_only(point: Point) -> Point:
    point.giou = 1 / point.loss
    return stays_flat(point)


def carries_nothing_over(point: Point) -> Point:
    point.validation = 1 / point.loss * 1.2
    return stays_flat(point)


def has_other_classes(point: Point) -> Point:
    point = stays_flat(point)
    point.class_ap["cell"] = math.nan
    return point


def overfits(point: Point) -> Point:
    """The training loss goes on falling; from a third of the run on, validation gets worse."""
    point.loss = max(0.02, 0.6 - 0.55 * point.progress)
    validation = 0.65 - 0.3 * min(point.progress, 0.33) + 0.6 * max(0.0, point.progress - 0.33)
    point.validation = validation / point.loss
    point.ap = 0.4 * min(1.0, point.progress / 0.33) - 0.05 * max(0.0, point.progress - 0.33)
    return point


def loses_a_class(point: Point) -> Point:
    point.class_ap["WBC"] = 0.0
    point.ap = max(point.ap, 0.3) if point.progress > 0.1 else point.ap
    return point


DISEASES: dict[str, tuple[Disease, RunFacts, str, str]] = {
    "diverging": (diverges, NANO, "diverging", "the training loss has risen from"),
    "exploding": (explodes, NANO, "rate_too_high", "the gradient has grown"),
    "skipping": (skips, NANO, "rate_too_high", "of the recent steps were skipped"),
    "overfitting": (overfits, NANO, "overfitting", "the validation loss has"),
    "lost class": (loses_a_class, NANO, "classes_never_found", "'WBC' was never found, with 214 training objects"),
    "slow": (stays_flat, NANO, "flat_ap", "the losses do fall, but slowly"),
    "slow classic": (stays_flat, DETR, "flat_ap", "the losses do fall, but slowly"),
    "no learning": (learns_nothing, NANO, "flat_ap", "the loss does not fall"),
    "low rate": (learns_nothing, replace(NANO, lr=1e-4), "flat_ap", "optim.lr = 0.0001 is low"),
    "high rate": (learns_nothing, replace(NANO, lr=2e-2), "flat_ap", "10 times that of the family's recipe"),
    "labels": (learns_boxes_only, NANO, "flat_ap", "boxes are learnt, but classes are not"),
    "boxes": (learns_classes_only, NANO, "flat_ap", "classes are learnt, but boxes are not"),
    "splits": (carries_nothing_over, NANO, "flat_ap", "on the validation split it is"),
    "crowded": (
        stays_flat,
        replace(NANO, data=replace(NANO.data, num_crowded=150)),
        "flat_ap",
        "150 of 205 training images have more objects than the model has queries (60)",
    ),
    "other classes": (
        has_other_classes,
        replace(NANO, data=replace(NANO.data, class_objects={**dict.fromkeys(CELLS, 0), "cell": 2000})),
        "flat_ap",
        "have no object in the training data",
    ),
}


@pytest.mark.parametrize("name", DISEASES)
def test_each_disease_is_named_with_its_reason(name: str) -> None:
    disease, facts, subject, reason = DISEASES[name]
    for seed in range(20):
        told = follow(ConvergenceWatch(facts), list(made_up(facts, seed, disease)))
        found = [concern for _, concern in told if concern.subject == subject]
        assert found, (seed, subjects(told))
        assert reason in found[0].what, (seed, found[0].what)
        assert found[0].fix
        assert 1 <= len(found) <= 4, "told again only when it got clearly worse"


@pytest.mark.parametrize("name", DISEASES)
@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9])
def test_a_resumed_run_warns_as_one_that_never_stopped(name: str, part: float) -> None:
    disease, facts, _, _ = DISEASES[name]
    records = list(made_up(facts, 1, disease))
    whole = ConvergenceWatch(facts)
    expected = follow(whole, records)

    cut = round(part * len(records))
    first, second = ConvergenceWatch(facts), ConvergenceWatch(facts)
    told = follow(first, records[:cut])
    second.restore(json.loads(json.dumps(first.state(), allow_nan=False)))
    told += follow(second, records[cut:])
    assert told == expected
    assert second.state() == whole.state()


def test_what_is_known_before_is_told_once() -> None:
    watch = ConvergenceWatch(replace(NANO, total_steps=100))
    assert [concern.subject for concern in watch.before()] == ["too_short"]
    assert watch.before() == []
    resumed = ConvergenceWatch(watch.facts)
    resumed.restore(watch.state())
    assert resumed.before() == []
    new = ConvergenceWatch(watch.facts)
    new.restore({})
    assert len(new.before()) == 1


def test_a_run_that_goes_back_warns_of_nothing_twice() -> None:
    records = list(made_up(NANO, 1, diverges))
    watch = ConvergenceWatch(NANO)
    middle = len(records) // 2
    follow(watch, records[:middle])
    state = watch.state()
    told = subjects(follow(watch, records[middle:]))
    assert "diverging" in told
    rewound = ConvergenceWatch(NANO)
    rewound.restore(state)
    assert "diverging" in subjects(follow(rewound, records[middle:]))
    watch.rewind(state, num_skipped=0)
    assert follow(watch, records[middle:]) == []


def test_the_skips_that_made_a_run_go_back_are_not_counted_among_the_steps_done_again() -> None:
    def log(step: int, skipped_steps: int) -> StepLogged:
        return logged(step, dict.fromkeys(WEIGHTS, 1.0), loss=8.0, grad_norm=1.0, skipped_steps=skipped_steps)

    watch = ConvergenceWatch(NANO)
    follow(watch, [log(step, 0) for step in range(10, 210, 10)])
    state = watch.state()
    follow(watch, [log(210, 8)])
    watch.rewind(state, num_skipped=30)
    saved = json.loads(json.dumps(watch.state()))
    assert follow(watch, [log(210, 30), log(220, 31)]) == []
    assert 0 < watch.history.curve("skipped").now < 0.1
    resumed = ConvergenceWatch(NANO)
    resumed.restore(saved)
    follow(resumed, [log(210, 30), log(220, 31)])
    assert resumed.state() == watch.state()


def test_a_resumed_fine_tuning_is_still_one() -> None:
    watch = ConvergenceWatch(replace(DETR, is_fine_tuned=True))
    resumed = ConvergenceWatch(DETR)
    resumed.restore(json.loads(json.dumps(watch.state())))
    assert resumed.facts == watch.facts
    assert resumed.state() == watch.state()
    records = list(made_up(DETR, 0, stays_flat))
    assert follow(resumed, records) == follow(watch, records) != follow(ConvergenceWatch(DETR), records)


def test_a_state_that_does_not_tell_of_fine_tuning_leaves_the_facts() -> None:
    watch = ConvergenceWatch(replace(DETR, is_fine_tuned=True))
    state = watch.state()
    del state["is_fine_tuned"]
    watch.restore(state)
    assert watch.facts.is_fine_tuned


def test_flat_ap_is_never_told_before_a_thousand_steps_or_a_fifth_of_the_plan() -> None:
    def first_step(facts: RunFacts) -> int:
        told = follow(ConvergenceWatch(facts), list(made_up(facts, 0, stays_flat)))
        return next(step for step, concern in told if concern.subject == "flat_ap")

    assert 1_000 <= first_step(NANO) <= 1_300
    assert 2_000 <= first_step(replace(NANO, total_steps=10_000)) <= 3_000
    assert 20_000 <= first_step(DETR) <= 60_000


def test_a_model_that_falls_back_to_zero_is_not_flat() -> None:
    def collapses(point: Point) -> Point:
        return stays_flat(point) if point.progress > 0.5 else point

    assert "flat_ap" not in subjects(follow(ConvergenceWatch(NANO), list(made_up(NANO, 0, collapses))))


def test_evaluations_without_truth_or_logs_are_no_reason_to_worry() -> None:
    watch = ConvergenceWatch(NANO)
    for step in range(1000, 5000, 500):
        assert watch.add_evaluation(Evaluated(step=step, epoch=1, metrics={"AP": math.nan})) == []


def test_a_history_of_one_does_not_overfit() -> None:
    watch = ConvergenceWatch(NANO)
    losses = dict.fromkeys(WEIGHTS, 1.0)
    assert watch.add_evaluation(Evaluated(step=10, epoch=1, metrics={"AP": 0.3}, losses=losses)) == []


def test_losses_of_zero_break_nothing() -> None:
    watch = ConvergenceWatch(NANO)
    zero = dict.fromkeys(WEIGHTS, 0.0)
    records: list[Record] = []
    for step in range(10, 2500, 10):
        grown = 1.0 if step > 1000 else 0.0
        records.append(logged(step, zero, loss=grown, grad_norm=0.0))
        records.append(Evaluated(step=step, epoch=1, metrics={"AP": 0.3}, losses=zero))
    assert subjects(follow(watch, records)) == ["rate_too_high"]


def test_the_state_stays_small() -> None:
    watch = ConvergenceWatch(DETR)
    follow(watch, list(made_up(DETR, 0)))
    assert len(json.dumps(watch.state())) < 10_000

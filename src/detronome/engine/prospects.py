"""What can be known before the first step about whether a run will get anywhere: facts in, concerns out.

A detection transformer fails silently: too few images or steps give an AP of 0 after days, and an object more than
there are queries is never found. All of that can be told from the plan and the annotations.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from detronome.data.store.index import AnnotationIndex

__all__ = ["USUAL_LR", "Concern", "DataFacts", "RunFacts", "named", "prospects"]

USUAL_LR = {"detr": 1e-4, "nano": 2e-3, "rtdetr": 1e-4, "dfine": 4e-4}
"""The rate of each family's own recipes; those of a family differ by a factor of two from it at most."""
_FAR_LR = 30.0
"""A rate this many times above or below the recipe's is a slip: batch sizes ask for much smaller factors."""
_FEWEST_IMAGES = {"detr": 10_000, "nano": 100, "rtdetr": 1_000, "dfine": 1_000}
"""Classic DETR is reported to stay at an AP of 0 on 2,000 images and to need 10,000 to 15,000; the fast family has
learnt from 205. RT-DETR lies between: its queries come from the image too, but it is large."""
_FEWEST_IMAGES_FROM_NOTHING = 35_000
"""Below this a random backbone falls behind a pretrained one whatever the schedule (arXiv 1811.08883)."""
_STEPS_TO_LEARN = {"detr": 300_000, "nano": 2_500, "rtdetr": 30_000, "dfine": 30_000}
"""Classic DETR: 500 epochs in the paper, 300,000 updates in its authors' advice. Fast: where small sets level off.
RT-DETR: four epochs of COCO; its recipes take 72 to 120."""
_TOO_SHORT = 1 / 3
"""Part of these steps below which the result will be far from what the family can do."""
_FEW_OBJECTS = 5
"""Objects of a class below which its AP is chance."""
_NAMED = 5


@dataclass(frozen=True, kw_only=True)
class Concern:
    """Something that will spoil the result, or is spoiling it."""

    subject: str
    """A short name: `overfitting`, `flat_ap`, ..."""
    what: str
    fix: str


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """What matters of the training annotations; crowd regions do not count."""

    num_images: int
    max_objects: int
    """Of one image."""
    num_crowded: int
    """Images with more objects than the model has queries."""
    class_objects: Mapping[str, int]
    """Objects of each class by name."""

    @classmethod
    def of(cls, index: AnnotationIndex, *, num_queries: int) -> DataFacts:
        """Count; a few milliseconds for a million annotations."""
        counts = np.bincount(index.labels[index.is_object], minlength=len(index.categories)).tolist()
        class_objects: Counter[str] = Counter()
        for name, count in zip(index.categories.names, counts, strict=True):
            class_objects[name] += count
        return cls(
            num_images=len(index),
            max_objects=index.max_objects_per_image,
            num_crowded=int((index.num_objects_per_image > num_queries).sum()),
            class_objects=class_objects,
        )


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What is known of a run before its first step."""

    data: DataFacts
    family: Literal["detr", "nano", "rtdetr", "dfine"]
    is_fine_tuned: bool
    """The run starts from a trained detector."""
    is_backbone_pretrained: bool
    is_backbone_fixed: bool
    """Its norms or its first stages stay as they are."""
    num_queries: int
    total_steps: int
    warmup_steps: int
    lr: float
    """`optim.lr`: the highest rate, of the main parameter group."""
    loss_weights: Mapping[str, float]
    """Of the last decoder layer's terms that training and evaluation both have, in what is minimised."""


def prospects(facts: RunFacts) -> list[Concern]:
    """Return all that speaks against the run as it is planned."""
    checks = (
        _too_few_queries,
        _too_few_images,
        _too_short,
        _fixed_at_random,
        _rare_classes,
        _unusual_rate,
        _endless_warmup,
    )
    return [concern for check in checks if (concern := check(facts)) is not None]


def named(names: Iterable[str]) -> str:
    """Return the first few names, quoted, and how many more there are."""
    quoted = [repr(name) for name in names]
    more = len(quoted) - _NAMED
    return ", ".join(quoted[:_NAMED]) + (f" and {more:,} more" if more > 0 else "")


def _too_few_queries(facts: RunFacts) -> Concern | None:
    data = facts.data
    if data.num_crowded == 0:
        return None
    have = "has" if data.num_crowded == 1 else "have"
    wanted = "auto" if facts.family == "nano" else str(-(-data.max_objects // 10) * 10)
    more = f"start a new run with --set model.num_queries={wanted}"
    if facts.is_fine_tuned and facts.family == "detr":
        more = f"train a preset with --set model.num_queries={wanted}: these weights have learnt theirs"
    return Concern(
        subject="too_few_queries",
        what=f"{data.num_crowded:,} of {data.num_images:,} training images {have} more than {facts.num_queries} "
        f"objects, up to {data.max_objects:,}; a model with {facts.num_queries} queries can never find more than that "
        "in an image",
        fix=f"{more}, or cut the images into tiles",
    )


def _too_few_images(facts: RunFacts) -> Concern | None:
    if facts.is_fine_tuned:
        return None
    is_from_nothing = facts.family == "detr" and not facts.is_backbone_pretrained
    fewest = _FEWEST_IMAGES_FROM_NOTHING if is_from_nothing else _FEWEST_IMAGES[facts.family]
    if facts.data.num_images >= fewest:
        return None
    are = "1 training image is" if facts.data.num_images == 1 else f"{facts.data.num_images:,} training images are"
    if facts.family == "nano":
        return Concern(
            subject="too_few_images",
            what=f"{are} few: the model will learn them by heart before it finds objects in others",
            fix="label more images, a hundred at least, or fine-tune a trained detector (--model RUN)",
        )
    kind = {"detr": "a classic DETR", "rtdetr": "an RT-DETR", "dfine": "a D-FINE"}[facts.family]
    start = "random weights" if not facts.is_backbone_pretrained else "a backbone that has not learnt boxes"
    return Concern(
        subject="too_few_images",
        what=f"{are} few for {kind} that starts from {start}: with fewer than about {fewest:,} its AP may stay at 0",
        fix="fine-tune a trained detector (--model RUN), or take --model nano, which learns from a few hundred images",
    )


def _too_short(facts: RunFacts) -> Concern | None:
    needed = _STEPS_TO_LEARN[facts.family]
    if facts.is_fine_tuned or facts.total_steps >= needed * _TOO_SHORT:
        return None
    kind = "a classic DETR" if facts.family == "detr" else "this model"
    instead = "" if facts.family == "nano" else ", fine-tune a trained detector (--model RUN), or take --model nano"
    return Concern(
        subject="too_short",
        what=f"{facts.total_steps:,} steps are planned, {kind} needs about {needed:,} to learn from scratch",
        fix=f"train for more epochs: --epochs N{instead}",
    )


def _fixed_at_random(facts: RunFacts) -> Concern | None:
    if facts.is_fine_tuned or facts.is_backbone_pretrained or not facts.is_backbone_fixed:
        return None
    return Concern(
        subject="fixed_at_random",
        what="the backbone starts from random weights, and its norms or first stages are fixed: they will never learn",
        fix="start again with --set model.backbone_norm=trainable model.frozen_stages=0",
    )


def _rare_classes(facts: RunFacts) -> Concern | None:
    counts = facts.data.class_objects
    none = [name for name, count in counts.items() if count == 0]
    few = [name for name, count in counts.items() if 0 < count < _FEW_OBJECTS]
    parts = [f"no training object is a {named(none)}"] if none else []
    if few:
        parts.append(f"fewer than {_FEW_OBJECTS} training objects are a {named(few)}")
    if not parts:
        return None
    return Concern(
        subject="rare_classes",
        what="; ".join(parts) + ": such classes will not be found",
        fix="label more of them, or take them out of the annotation file's categories",
    )


def _unusual_rate(facts: RunFacts) -> Concern | None:
    usual = USUAL_LR[facts.family]
    factor = facts.lr / usual
    if factor >= _FAR_LR:
        return Concern(
            subject="rate_too_high",
            what=f"optim.lr = {facts.lr:g} is {factor:,.0f} times the rate of this family's recipe: training will "
            "probably diverge",
            fix=f"start again with --set optim.lr={usual:g}",
        )
    if factor <= 1 / _FAR_LR and not facts.is_fine_tuned:
        return Concern(
            subject="rate_too_low",
            what=f"optim.lr = {facts.lr:g} is {1 / factor:,.0f} times below the rate of this family's recipe: from "
            "scratch, the model will hardly move",
            fix=f"start again with --set optim.lr={usual:g}",
        )
    return None


def _endless_warmup(facts: RunFacts) -> Concern | None:
    if facts.warmup_steps <= facts.total_steps:
        return None
    return Concern(
        subject="endless_warmup",
        what=f"the warm-up takes {facts.warmup_steps:,} steps and the run has {facts.total_steps:,}: the rate never "
        f"rises to optim.lr = {facts.lr:g}",
        fix=f"start again with --set schedule.warmup_steps={facts.total_steps // 10}, or train for more epochs: "
        "--epochs N",
    )

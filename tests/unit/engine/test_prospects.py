from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from detronome.config.presets import PRESETS
from detronome.data.store.index import AnnotationIndex
from detronome.engine.prospects import USUAL_LR, DataFacts, RunFacts, named, prospects

COCO = DataFacts(num_images=118_287, max_objects=93, num_crowded=0, class_objects={"person": 262_465, "toaster": 225})
SMALL = DataFacts(num_images=205, max_objects=28, num_crowded=0, class_objects={"RBC": 2381, "WBC": 214})
WEIGHTS = {"loss_ce": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0}
CLASSIC = RunFacts(
    data=COCO,
    family="detr",
    is_fine_tuned=False,
    is_backbone_pretrained=True,
    is_backbone_fixed=False,
    num_queries=100,
    total_steps=2_218_000,
    warmup_steps=0,
    lr=1e-4,
    loss_weights=WEIGHTS,
)
NANO = replace(CLASSIC, data=SMALL, family="nano", num_queries=60, total_steps=2500, lr=2e-3)


def subjects(facts: RunFacts) -> list[str]:
    return [concern.subject for concern in prospects(facts)]


def test_the_recipes_have_nothing_against_them() -> None:
    assert subjects(CLASSIC) == subjects(NANO) == []
    assert subjects(replace(CLASSIC, is_backbone_pretrained=False)) == []


def test_the_usual_rates_are_those_of_the_presets() -> None:
    for preset in PRESETS.values():
        config = preset()
        assert 0.5 <= config.optim.lr / USUAL_LR[config.model.family] <= 2


def test_facts_are_counted_in_the_index(blocks: Path) -> None:
    index = AnnotationIndex.open(blocks / "annotations" / "instances_train.json")
    facts = DataFacts.of(index, num_queries=2)
    counts = index.num_objects_per_image
    assert (facts.num_images, facts.max_objects, facts.num_crowded) == (24, 3, int((counts > 2).sum()))
    assert list(facts.class_objects) == ["red", "blue"]
    assert sum(facts.class_objects.values()) == index.num_objects
    assert DataFacts.of(index, num_queries=3).num_crowded == 0


@pytest.mark.parametrize("family", ["detr", "nano"])
def test_more_objects_than_queries(family: str) -> None:
    crowded = replace(SMALL, num_crowded=199)
    facts = replace(NANO if family == "nano" else CLASSIC, data=crowded, num_queries=3, is_fine_tuned=True)
    (concern,) = prospects(facts)
    assert concern.subject == "too_few_queries"
    assert "199 of 205 training images have more than 3 objects, up to 28" in concern.what
    assert f"model.num_queries={'auto' if family == 'nano' else 30}" in concern.fix


def test_one_crowded_image_is_told_in_the_singular() -> None:
    (concern,) = prospects(replace(NANO, data=replace(SMALL, num_crowded=1), num_queries=27))
    assert "1 of 205 training images has more than 27 objects" in concern.what


def test_classic_detr_needs_more_than_a_few_images_and_steps() -> None:
    facts = replace(CLASSIC, data=replace(SMALL, num_images=2000), total_steps=37_500)
    assert subjects(facts) == ["too_few_images", "too_short"]
    assert subjects(replace(facts, is_fine_tuned=True)) == []
    assert all("nano" in concern.fix for concern in prospects(facts))


def test_a_random_backbone_needs_more_images() -> None:
    facts = replace(CLASSIC, data=replace(COCO, num_images=20_000))
    assert subjects(facts) == []
    (concern,) = prospects(replace(facts, is_backbone_pretrained=False))
    assert concern.subject == "too_few_images" and "random weights" in concern.what


@pytest.mark.parametrize(("num_images", "words"), [(1, "1 training image is few"), (5, "5 training images are few")])
def test_the_fast_family_needs_some_images_too(num_images: int, words: str) -> None:
    (concern,) = prospects(replace(NANO, data=replace(SMALL, num_images=num_images)))
    assert concern.subject == "too_few_images" and concern.what.startswith(words)


def test_a_run_of_a_few_steps_is_too_short() -> None:
    assert subjects(replace(NANO, total_steps=500)) == ["too_short"]
    assert subjects(replace(NANO, total_steps=1000)) == []


def test_classes_with_no_or_few_objects_are_named() -> None:
    counts = {"RBC": 100, "ghost": 0, "rare": 4, "enough": 5}
    (concern,) = prospects(replace(NANO, data=replace(SMALL, class_objects=counts)))
    assert concern.subject == "rare_classes"
    assert concern.what.startswith("no training object is a 'ghost'; fewer than 5 training objects are a 'rare': such")


@pytest.mark.parametrize(
    ("factor", "is_fine_tuned", "expected"),
    [
        (100, False, ["rate_too_high"]),
        (100, True, ["rate_too_high"]),
        (16, False, []),
        (0.1, False, []),
        (0.001, False, ["rate_too_low"]),
        (0.001, True, []),
    ],
)
def test_rates_far_from_the_recipe(factor: float, is_fine_tuned: bool, expected: list[str]) -> None:
    assert subjects(replace(NANO, lr=factor * USUAL_LR["nano"], is_fine_tuned=is_fine_tuned)) == expected


def test_many_names_are_cut_short() -> None:
    assert named([]) == ""
    assert named("abc") == "'a', 'b', 'c'"
    assert named("abcdefg") == "'a', 'b', 'c', 'd', 'e' and 2 more"


@pytest.mark.parametrize("is_fine_tuned", [True, False])
def test_a_warmup_that_outlasts_the_run(is_fine_tuned: bool) -> None:
    facts = replace(NANO, warmup_steps=2500, is_fine_tuned=is_fine_tuned)
    assert subjects(facts) == []
    (concern,) = prospects(replace(facts, warmup_steps=2501))
    assert concern.what == (
        "the warm-up takes 2,501 steps and the run has 2,500: the rate never rises to optim.lr = 0.002"
    )
    assert "schedule.warmup_steps=250" in concern.fix


@pytest.mark.parametrize(
    ("family", "kind"), [("detr", "a classic DETR"), ("rtdetr", "an RT-DETR"), ("dfine", "a D-FINE")]
)
def test_few_images_name_the_family(family: Literal["detr", "rtdetr", "dfine"], kind: str) -> None:
    few = replace(CLASSIC, data=SMALL, family=family, lr=USUAL_LR[family])
    (concern,) = prospects(few)
    assert f"few for {kind} that" in concern.what


def test_a_random_backbone_that_is_fixed() -> None:
    facts = replace(CLASSIC, is_backbone_fixed=True)
    assert subjects(facts) == []
    assert subjects(replace(facts, is_backbone_pretrained=False)) == ["fixed_at_random"]
    assert subjects(replace(facts, is_backbone_pretrained=False, is_fine_tuned=True)) == []

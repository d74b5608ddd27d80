"""Fine-tuning on other classes: which classes remain, and which rows of the head are kept."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from detronome.config.presets import PRESETS
from detronome.config.schema import NanoConfig
from detronome.engine.fine_tune import fine_tuned_categories, head_change, with_new_head
from detronome.models.build import build_model
from detronome.types import Categories


def categories(*names: str, ids: tuple[int, ...] | None = None) -> Categories:
    return Categories(ids or tuple(range(1, len(names) + 1)), names)


def head_of(num_classes: int, *, seed: int, tail: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "class_embed.weight": torch.randn(num_classes + tail, 4, generator=generator),
        "class_embed.bias": torch.randn(num_classes + tail, generator=generator),
        "bbox_embed.weight": torch.randn(5, 4, generator=generator),
    }


HEAD = frozenset({"class_embed.weight", "class_embed.bias"})


def test_data_whose_classes_are_all_known_changes_nothing() -> None:
    held = categories("a", "b", "c")
    for data in (held, categories("b", ids=(2,)), Categories((), ())):
        assert fine_tuned_categories(held, data) is held
        assert head_change(held, data) is None


def test_other_classes_are_told_with_what_remains() -> None:
    held, data = categories("person", "car"), categories("car", "tram", "bus")
    assert fine_tuned_categories(held, data) is data
    told = head_change(held, data)
    assert told is not None and told.startswith("3 (the classification head begins anew, and nothing else")
    assert "new to the weights, which know 2: tram, bus" in told and "kept by name: car" in told
    assert "kept" not in str(head_change(held, categories("x", "y")))


def test_the_same_names_under_other_ids_keep_all() -> None:
    held, data = categories("a", "b"), categories("b", "a", ids=(10, 20))
    assert fine_tuned_categories(held, data) is data
    assert "keeps them all" in str(head_change(held, data))
    before = head_of(2, seed=1)
    after = with_new_head(before, head_of(2, seed=2), head=HEAD, held=held, data=data)
    assert torch.equal(after["class_embed.bias"], before["class_embed.bias"][[1, 0, 2]])


@pytest.mark.parametrize("tail", [0, 1])
@given(
    names=st.lists(st.sampled_from("abcdefgh"), min_size=1),
    held_names=st.lists(st.sampled_from("abcdefgh"), min_size=1),
)
def test_every_row_is_a_kept_or_a_fresh_one(tail: int, names: list[str], held_names: list[str]) -> None:
    held, data = categories(*held_names), categories(*names)
    before, fresh = head_of(len(held), seed=1, tail=tail), head_of(len(data), seed=2, tail=tail)
    after = with_new_head(before, fresh, head=HEAD, held=held, data=data)
    assert after["bbox_embed.weight"] is before["bbox_embed.weight"]
    for name in HEAD:
        assert after[name].shape == fresh[name].shape
        for label, class_name in enumerate(names):
            source = before[name][held_names.index(class_name)] if class_name in held_names else fresh[name][label]
            assert torch.equal(after[name][label], source)
        assert torch.equal(after[name][len(names) :], before[name][len(held_names) :])


@pytest.mark.parametrize("name", ["nano", "detr-r18", "detr-r50-panoptic", "rtdetr-v2-s", "dfine-n"])
def test_in_every_family_what_depends_on_the_classes_has_a_row_for_each_first(name: str) -> None:
    config = PRESETS[name]().model
    config = (
        replace(config, num_queries=25, denoising_groups=1)
        if isinstance(config, NanoConfig)
        else replace(config, backbone_weights="none")
    )
    with torch.device("meta"):
        few, many = (build_model(config, num_classes).state_dict() for num_classes in (3, 10))
    head = {key for key in few if few[key].shape != many[key].shape}
    assert head
    for key in head:
        assert few[key].shape[1:] == many[key].shape[1:]
        assert len(few[key]) - 3 == len(many[key]) - 10 in (0, 1)


def test_neither_side_is_changed() -> None:
    before, fresh = head_of(2, seed=1), head_of(3, seed=2)
    copies: list[Any] = [{name: value.clone() for name, value in state.items()} for state in (before, fresh)]
    with_new_head(before, fresh, head=HEAD, held=categories("a", "b"), data=categories("b", "c", "d"))
    for state, copy in zip((before, fresh), copies, strict=True):
        assert all(torch.equal(value, copy[name]) for name, value in state.items())

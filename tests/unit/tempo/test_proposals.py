"""What is proposed: never the same again, never the recipe, and marked where it changes the numbers."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detronome.config.convert import apply_overrides, from_dict, to_dict
from detronome.config.presets import PRESETS, nano, preset
from detronome.config.schema import RunConfig
from detronome.engine.resolve import check_consistency
from detronome.tempo.proposals import Effect, TuningFacts, propose
from detronome.tempo.settings_file import differing_settings, settings_toml

FACTS = TuningFacts(
    device_type="cuda",
    num_processors=16,
    likely_workers=8,
    cache_bytes=2**30,
    free_ram_bytes=2**36,
    data_wait=0.5,
)
RECIPE = {"model", "loss", "augment", "optim", "schedule", "guard"}


def resolved(name: str = "detr-r50", **settings: Any) -> RunConfig:
    fixed = {
        "data.workers": 2,
        "data.buckets": ["800x1088"],
        "batch.micro_batch_size": 4,
        "eval.batch_size": 4,
        "train.precision": "fp32",
    }
    return apply_overrides(preset(name), {**fixed, **{key.replace("__", "."): v for key, v in settings.items()}})


@given(
    name=st.sampled_from(sorted(PRESETS)),
    workers=st.integers(0, 20),
    micro=st.integers(1, 16),
    processors=st.integers(1, 64),
    device=st.sampled_from(["cpu", "cuda"]),
    wait=st.floats(0, 1),
)
def test_every_proposal_is_possible_new_and_no_matter_of_the_recipe(
    name: str, workers: int, micro: int, processors: int, device: str, wait: float
) -> None:
    config = resolved(name, data__workers=workers, batch__micro_batch_size=micro)
    facts = replace(FACTS, num_processors=processors, likely_workers=min(8, processors), device_type=device)
    proposals = propose(config, replace(facts, data_wait=wait))
    assert proposals
    for proposal in proposals:
        changed = apply_overrides(config, {proposal.setting: proposal.value})
        check_consistency(changed)
        assert changed != config
        assert proposal.setting.partition(".")[0] not in RECIPE
        assert changed.batch.global_batch_size == config.batch.global_batch_size
        assert proposal.changes and proposal.why
    names = [f"{proposal.setting}={proposal.value}" for proposal in proposals]
    assert len(set(names)) == len(names)


def test_what_changes_more_than_rounding_is_marked() -> None:
    effects = {f"{p.setting}={p.value}": p.effect for p in propose(resolved(), FACTS)}
    inexact = {name for name, effect in effects.items() if effect == Effect.INEXACT}
    assert inexact == {"data.decode=fast", "data.augment_on=device", "train.precision=bf16"}
    assert effects["data.workers=8"] == effects["data.cache=ram"] == Effect.NONE
    assert effects["batch.micro_batch_size=16"] == effects["train.compile=True"] == Effect.ROUNDING


def test_images_at_once_are_no_matter_of_rounding_where_batch_norm_learns() -> None:
    config = resolved("nano", batch__micro_batch_size=1, data__buckets=[])
    effects = {proposal.setting: proposal.effect for proposal in propose(config, FACTS)}
    assert effects["batch.micro_batch_size"] == Effect.INEXACT
    assert "data.buckets" not in effects


def test_the_data_comes_first_only_where_a_step_waits_for_it() -> None:
    waiting = [proposal.setting for proposal in propose(resolved(), FACTS)]
    assert waiting[0] == "data.workers" and waiting[-1] == "eval.batch_size"
    computing = [proposal.setting for proposal in propose(resolved(), replace(FACTS, data_wait=0.01))]
    assert computing[0] == "batch.micro_batch_size"
    assert computing.index("data.cache") > computing.index("data.prefetch")
    told = [proposal.setting for proposal in propose(resolved(), FACTS, first=["train.compile", "data.decode"])]
    assert told[:2] == ["train.compile", "data.decode"] and sorted(told) == sorted(waiting)


@pytest.mark.parametrize(
    ("facts", "caches"),
    [
        ({}, ["ram", "disk"]),
        ({"free_ram_bytes": 2 * 2**30}, ["disk"]),  # two caches exist while one is measured
        ({"cache_bytes": 9 * 2**30}, []),
    ],
)
def test_a_cache_is_proposed_only_where_it_fits(facts: dict[str, int], caches: list[str]) -> None:
    proposals = propose(resolved(), replace(FACTS, **facts))  # type: ignore[arg-type]
    assert [proposal.value for proposal in proposals if proposal.setting == "data.cache"] == caches


def test_no_more_workers_than_processors() -> None:
    facts = replace(FACTS, num_processors=2, likely_workers=0, device_type="cpu")
    values = [p.value for p in propose(resolved(data__workers=2), facts) if p.setting == "data.workers"]
    assert values == [0, 1]


# --- the file that is written ----------------------------------------------------------------------------------------


def test_a_settings_file_gives_the_settings_again() -> None:
    config = apply_overrides(
        nano(),
        {"model.widths": [16, 32, 48], "data.workers": 3, "train.device": 'a "name"', "data.buckets": ["64x64"]},
    )
    settings = differing_settings(config, nano())
    assert list(settings) == ["model.widths", "data.workers", "data.buckets", "train.device"]
    text = settings_toml(settings, header=["why\nnot"], reasons={"data.workers": ["x 1.3", ""], "unused": ["?"]})
    assert from_dict(tomllib.loads(text), base=nano()) == config
    assert text.startswith("# why not\n") and "# x 1.3\n#\nworkers = 3\n" in text
    assert "widths = [16, 32, 48]\n" in text


def test_nothing_that_differs_is_a_file_with_the_header_alone() -> None:
    assert differing_settings(nano(), nano()) == {}
    text = settings_toml({}, header=["nothing was proven"])
    assert text == "# nothing was proven\n" and tomllib.loads(text) == {}


def test_the_data_folder_is_never_written_down() -> None:
    config = apply_overrides(nano(), {"data.root": "/data"})
    assert differing_settings(config, nano()) == {} and to_dict(config)["data"]["root"] == "/data"

"""From measurements to a verdict: without measuring anything."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detronome.config.convert import apply_overrides
from detronome.config.presets import preset
from detronome.config.schema import RunConfig
from detronome.engine.resolve import check_consistency
from detronome.tempo.bottleneck import Bottleneck, LargerPasses, Measurements, Verdict, judge, verdict_of_log
from detronome.tempo.rates import StepRates
from detronome.tempo.remedies import Situation

HERE = Situation(
    device_type="cpu",
    cpus=8,
    threads=8,
    world_size=1,
    workers=0,
    micro_batch_size=16,
    cache_bytes=10**9,
    free_ram_bytes=10**10,
)
GPU = replace(HERE, device_type="cuda", workers=4, has_bf16=True)
STAGES_S = {"read": 0.010, "decode": 0.004, "augment": 0.002, "collate": 0.0001}
COMPUTING = {"forward": 0.03, "matcher": 0.005, "loss": 0.005, "backward": 0.05, "update": 0.01}


def config(**settings: Any) -> RunConfig:
    resolved = {"data.workers": 0, "batch.micro_batch_size": 16, "train.device": "cpu", "train.precision": "fp32"}
    return apply_overrides(preset("detr-r50"), {**resolved, **{k.replace("__", "."): v for k, v in settings.items()}})


def rates(*, system: dict[str, float] | None = None, images: float = 16, **sections_s: float) -> StepRates:
    sections = {**COMPUTING, **sections_s}
    return StepRates(
        step_s=[sum(sections.values())] * 4,
        images_per_step=images,
        sections_s=sections,
        data_stages_s=STAGES_S,
        system=system or {},
    )


def verdict(measured: Measurements, situation: Situation = HERE, **settings: Any) -> Verdict:
    return judge(measured, config(**settings), situation)


def settings_of(found: Verdict) -> list[str]:
    return [change.setting for change in found.changes]


def test_no_record_no_verdict() -> None:
    assert verdict_of_log([], config()) is None
    assert verdict_of_log([{"kind": "start"}, {"kind": "step", "step_s": 1.0, "images_per_s": 1.0}], config()) is None


def test_a_step_that_waits_for_images_is_data_bound_and_reading_is_to_be_avoided() -> None:
    found = verdict(Measurements(run=[rates(data_wait=0.4)]))
    assert found.bottleneck is Bottleneck.DATA
    assert "80 %" in found.sentence and "read takes 10" in found.sentence
    assert found.best_gain == pytest.approx(5.0)
    assert settings_of(found)[:2] == ["data.workers", "data.cache"]
    cache = found.changes[settings_of(found).index("data.cache")]
    assert cache.value == "ram" and cache.best_gain is not None and cache.best_gain <= 5.0001


def test_workers_proposed_keep_up_with_the_rest_of_the_run() -> None:
    found = verdict(Measurements(run=[rates(data_wait=0.4)]))
    # Without the wait 16 images take 0.1 s, and one takes a worker 16.1 ms: 2.6 workers.
    assert found.changes[0].value == 3


def test_a_loader_that_works_beside_the_model_is_the_bottleneck_with_a_small_wait_too() -> None:
    run = rates(data_wait=0.025)
    assert verdict(Measurements(run=[run]), GPU).bottleneck is Bottleneck.DATA
    assert verdict(Measurements(run=[run]), HERE).bottleneck is Bottleneck.DEVICE


def test_a_cache_larger_than_memory_goes_to_the_disk() -> None:
    found = verdict(Measurements(run=[rates(data_wait=0.4)]), replace(HERE, free_ram_bytes=10**8))
    assert {change.setting: change.value for change in found.changes}["data.cache"] == "disk"


def test_a_gpu_that_computes_little_of_a_step_waits_for_the_host() -> None:
    run = rates(data_wait=0.0)
    found = verdict(Measurements(run=[run], device=run, busy_s=0.02, busy_of=run, num_ops=9000), GPU)
    assert found.bottleneck is Bottleneck.HOST
    assert "9,000 operations" in found.sentence
    assert {"train.compile", "batch.global_batch_size"} <= set(settings_of(found))


def test_a_host_that_mostly_matches_should_have_fewer_queries() -> None:
    run = rates(matcher=0.5)
    found = verdict(Measurements(run=[run], device=run, busy_s=0.08, busy_of=run), GPU, model__num_queries=900)
    assert found.bottleneck is Bottleneck.HOST
    assert settings_of(found)[0] in ("model.num_queries", "loss.aux_loss")
    assert "matcher" in found.sentence


def test_a_busy_gpu_is_the_bottleneck_and_bf16_is_proposed() -> None:
    run = rates()
    found = verdict(Measurements(run=[run], device=run, busy_s=0.097, busy_of=run), GPU)
    assert found.bottleneck is Bottleneck.DEVICE
    assert "train.precision" in settings_of(found)


def test_the_loader_bounds_what_a_faster_device_would_gain() -> None:
    run = rates()
    loader = replace(run, step_s=[0.05] * 4)
    found = verdict(Measurements(run=[run], device=run, loader=loader, busy_s=0.097, busy_of=run), GPU)
    assert found.best_gain == pytest.approx(2.0)


def test_images_that_take_longer_one_by_one_show_small_passes() -> None:
    run = rates()
    faster = replace(run, step_s=[0.02] * 4)
    larger = LargerPasses(micro_batch_size=4, rates=faster)
    found = verdict(Measurements(run=[run], device=run, larger=larger), replace(HERE, micro_batch_size=1))
    assert found.bottleneck is Bottleneck.MEMORY
    assert (found.changes[0].setting, found.changes[0].value) == ("batch.micro_batch_size", 4)
    assert found.best_gain == pytest.approx(5.0)


@pytest.mark.parametrize(
    "system",
    [{"swap_bytes_s": 1e8}, {"allocator_retries": 2.0}, {"ram_percent": 99.0, "process_cpus": 0.1}],
)
def test_memory_that_is_full_comes_before_all_else(system: dict[str, float]) -> None:
    found = verdict(Measurements(run=[rates(data_wait=0.4, system=system)]))
    assert found.bottleneck is Bottleneck.MEMORY
    assert found.best_gain is None
    assert "batch.micro_batch_size" in settings_of(found)


def test_a_slow_sum_is_the_network() -> None:
    found = verdict(Measurements(run=[rates(reduce=0.5), rates(reduce=0.5)]), replace(GPU, world_size=2))
    assert found.bottleneck is Bottleneck.NETWORK
    assert "NCCL_SOCKET_IFNAME" in settings_of(found)


def test_ranks_that_wait_for_one_are_told_which() -> None:
    ranks = [rates(agree=0.5), rates(agree=0.5), rates(forward=0.53)]
    found = verdict(Measurements(run=ranks), replace(GPU, world_size=3))
    assert found.bottleneck is Bottleneck.NETWORK
    assert "rank 2" in found.sentence


def test_a_rank_that_waits_for_its_data_keeps_the_others_waiting() -> None:
    ranks = [rates(agree=0.5), rates(data_wait=0.5)]
    found = verdict(Measurements(run=ranks), replace(GPU, world_size=2))
    assert found.bottleneck is Bottleneck.DATA
    assert "of rank 1" in found.sentence


def test_nothing_that_stands_out_is_balanced() -> None:
    run = rates(data_wait=0.08)
    found = verdict(Measurements(run=[run], device=run, busy_s=0.05, busy_of=run))
    assert found.bottleneck is Bottleneck.BALANCED
    assert not found.changes


def record(**values: Any) -> dict[str, Any]:
    sections = {**COMPUTING, "data_wait": 0.4}
    step_s = sum(sections.values())
    return {
        "kind": "step",
        "step_s": step_s,
        "images_per_s": 16 / step_s,
        "sections_s": sections,
        "data_stages_s": STAGES_S,
        "batches_ready": 0.0,
        "system": {"process_cpus": 1.0},
        "memory_bytes": 10**9,
        **values,
    }


def test_a_log_tells_too_and_says_that_it_is_a_log() -> None:
    found = verdict_of_log([{"kind": "start"}, record(), record(system=None), record(data_stages_s={})], config())
    assert found is not None
    assert (found.bottleneck, found.source) == (Bottleneck.DATA, "log")
    written = json.loads(json.dumps(found.to_record()))
    assert {"format", "verdict", "sentence", "proof", "best_gain", "changes", "source"} <= written.keys()
    assert {"setting", "value", "why"} <= written["changes"][0].keys()


def test_a_log_of_an_idle_gpu_shows_the_host() -> None:
    steps = [record(sections_s=COMPUTING, system={"gpu_percent": 20.0}) for _ in range(3)]
    found = verdict_of_log(steps, config(train__device="cuda"))
    assert found is not None
    assert found.bottleneck is Bottleneck.HOST


def test_a_processor_that_was_not_yet_sampled_is_not_idle() -> None:
    gauges = [{}, None, {}, {"process_cpus": 1.9, "ram_percent": 50.0}]
    found = verdict_of_log([record(sections_s={**COMPUTING, "data_wait": 0.0}, system=g) for g in gauges], config())
    assert found is not None
    assert found.bottleneck is Bottleneck.DEVICE


@pytest.mark.parametrize(("ranks", "share"), [(1, 0.0), (2, 0.5)])
def test_a_run_alone_waits_for_no_network(ranks: int, share: float) -> None:
    steps = [record(sections_s={"forward": 1.0, "reduce": 0.75, "agree": 0.25}) for _ in range(3)]
    found = verdict_of_log([{"kind": "start", "num_ranks": 4}, {"kind": "start", "num_ranks": ranks}, *steps], config())
    assert found is not None
    assert found.shares["network"] == pytest.approx(share)


@pytest.mark.parametrize(("queries", "fewer", "gain"), [(300, 100, 3.0), (120, 100, 1.2)])
def test_fewer_queries_gain_no_more_than_they_are_fewer(queries: int, fewer: int, gain: float) -> None:
    found = judge(Measurements(run=[rates(matcher=1.0)]), config(model__num_queries=queries), HERE)
    change = found.changes[settings_of(found).index("model.num_queries")]
    assert (change.value, change.best_gain) == (fewer, pytest.approx(gain))


@pytest.mark.parametrize(
    ("machine", "bottleneck", "told"),
    [(25.0, Bottleneck.HOST, "stands still"), (100.0, Bottleneck.DEVICE, "Other programs keep the processors busy")],
)
def test_processors_that_others_keep_busy_do_not_stand_still(machine: float, bottleneck: Bottleneck, told: str) -> None:
    sections = {**COMPUTING, "data_wait": 0.005}
    steps = [record(sections_s=sections, system={"process_cpus": 0.3, "cpu_percent": machine}) for _ in range(3)]
    found = verdict_of_log(steps, config())
    assert found is not None
    assert found.bottleneck is bottleneck and told in found.sentence


def test_the_start_of_a_log_does_not_decide() -> None:
    slow_start = record(sections_s={**COMPUTING, "data_wait": 60.0}, step_s=60.1)
    found = verdict_of_log([slow_start, *(record(sections_s=COMPUTING) for _ in range(5))], config())
    assert found is not None
    assert found.bottleneck is Bottleneck.DEVICE


SECONDS = st.just(0.0) | st.floats(1e-9, 10)
SECTIONS = st.dictionaries(
    st.sampled_from(
        ["data_wait", "copy", "forward", "matcher", "loss", "backward", "agree", "reduce", "update", "log"]
    ),
    SECONDS,
)


@given(
    ranks=st.lists(SECTIONS, min_size=1, max_size=3),
    stages=st.dictionaries(st.sampled_from(["cache", "read", "decode", "augment", "collate"]), SECONDS),
    busy_s=st.none() | SECONDS,
    system=st.dictionaries(
        st.sampled_from(["ram_percent", "process_cpus", "gpu_percent", "swap_bytes_s"]), st.floats(0, 100)
    ),
    workers=st.integers(0, 8),
    device_type=st.sampled_from(["cpu", "cuda"]),
)
def test_any_numbers_get_a_verdict_with_settings_that_exist(
    ranks: list[dict[str, float]],
    stages: dict[str, float],
    busy_s: float | None,
    system: dict[str, float],
    workers: int,
    device_type: str,
) -> None:
    run = [
        StepRates(
            step_s=[sum(sections.values())],
            images_per_step=16,
            sections_s=sections,
            data_stages_s=stages,
            system=system,
        )
        for sections in ranks
    ]
    situation = replace(HERE, workers=workers, device_type=device_type, world_size=len(run))
    found = verdict(Measurements(run=run, device=run[0], loader=run[0], busy_s=busy_s, busy_of=run[0]), situation)
    assert found.sentence.endswith(".")
    assert found.best_gain is None or found.best_gain >= 1
    assert all(0 <= share <= 1 + 1e-9 for share in found.shares.values())
    json.dumps(found.to_record(), allow_nan=False)
    for change in found.changes:
        if "." in change.setting:
            check_consistency(apply_overrides(config(), {change.setting: change.value}))

"""A plan end to end on a small data folder, and the batch sizes it gives to a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import detronome as dt
from detronome.api import planning
from detronome.api.asked import asked_config, open_splits
from detronome.api.planning import Plan, RunPlanner, plan
from detronome.engine.build import build_plan, build_step, build_stream
from detronome.engine.resolve import Resolved, resolve
from detronome.errors import ConfigError, DataError
from detronome.losses.terms import BatchTotals
from detronome.model import load
from detronome.runtime.distributed import World
from detronome.runtime.host_memory import HostMemory
from detronome.tempo.hardware import Device
from detronome.tempo.memory.account import Cause, MemoryAccount

SMALL: dict[str, Any] = {
    "augment.sizes": [64],
    "augment.max_size": 96,
    "augment.eval_size": 64,
    "augment.eval_max_size": 96,
    "batch.global_batch_size": 8,
    "train.epochs": 1,
    "train.checkpoint_minutes": 0,
    "model.num_queries": 25,
    "data.workers": 0,
}


@pytest.fixture(scope="module")
def on_h200(blocks: Path) -> Plan:
    return plan(blocks, model="nano", gpu="h200", gpus=1, price=3.0, settings=SMALL)


def test_memory_is_told_by_cause(on_h200: Plan) -> None:
    assert on_h200.fits
    assert sum(on_h200.training.bytes_by_cause.values()) == on_h200.training.peak_bytes == on_h200.choice.peak_bytes
    assert on_h200.choice.cut.micro_batch_size == on_h200.training.num_images == 8
    assert on_h200.evaluation is not None and on_h200.evaluation.num_images == on_h200.eval_batch_size


def test_time_and_price_are_those_of_the_run(on_h200: Plan) -> None:
    time = on_h200.time
    assert time is not None and on_h200.price is not None
    assert time.data_s is not None, "the images are here"
    assert time.epoch_s == pytest.approx(3 * time.step_s)  # 24 images
    assert on_h200.price == pytest.approx(3.0 * time.total_s / 3600)


def test_the_choice_stands_as_settings_that_a_run_takes(on_h200: Plan, blocks: Path) -> None:
    assert on_h200.settings["train.precision"] == "bf16"
    config, _ = asked_config(blocks, model="nano", settings={**SMALL, **on_h200.settings})
    assert config.batch.micro_batch_size == 8 and config.batch.global_batch_size == 8


def test_the_record_is_json_with_what_a_run_folder_holds(on_h200: Plan) -> None:
    record = json.loads(json.dumps(on_h200.to_record(), allow_nan=False))
    assert record["format"] == 1
    assert record["device"]["name"] == "H200" and record["device"]["memory_bytes"] > 0
    for phase in ("training", "evaluation"):
        assert record[phase]["peak_bytes"] == sum(record[phase]["bytes_by_cause"].values())
        assert {"shape", "num_images", "num_objects", "moment"} <= record[phase].keys()
    assert record["micro_batch_size"] * record["accumulation"] >= 8
    assert record["step_s"] > 0 and record["epoch_s"] > 0 and record["total_s"] > 0
    assert record["precision"] == "bf16" and record["checkpointing"] == "none"


def test_memory_alone_gives_no_time(blocks: Path) -> None:
    found = plan(blocks, model="nano", gpu="24GiB", gpus=2, price=1.0, settings=SMALL)
    assert found.fits and found.time is None and found.price is None
    assert found.choice.cut.micro_batch_size == 4, "the part of one of two"
    assert len(found.notes) == 2


def test_too_little_memory_is_told_with_what_would_fit(blocks: Path) -> None:
    found = plan(blocks, model="nano", gpu="0.4", settings=SMALL)
    assert not found.fits and not found.choice.fits
    assert found.choice.cut.micro_batch_size == 1
    assert any("a GPU with more memory" in way for way in found.would_fit)


def test_what_is_asked_for_is_kept(blocks: Path) -> None:
    asked = {**SMALL, "batch.micro_batch_size": 3, "eval.batch_size": 2, "train.precision": "fp16"}
    found = plan(blocks, model="nano", gpu="24", settings=asked)
    assert found.settings["batch.micro_batch_size"] == 3 and found.eval_batch_size == 2
    assert found.choice.cut.precision == "fp16" and found.choice.cut.accumulation == 3


def test_without_validation_there_is_no_evaluation(blocks: Path) -> None:
    found = plan(blocks, model="nano", gpu="24", settings={**SMALL, "data.val_split": ""})
    assert found.evaluation is None and found.to_record()["evaluation"] is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"gpu": "h2000"}, "H200"),
        ({"gpu": "h200", "gpus": 0}, "0 GPUs"),
        ({"gpu": "h200", "gpus": True}, "True GPUs"),
        ({"gpu": "cpu", "gpus": 2}, "the plan is for a CPU"),
        ({"gpu": "h200", "price": -1.0}, "price"),
        ({"gpu": "h200", "price": float("nan")}, "price"),
        ({"gpu": "h200", "model": "nanno"}, "nano"),
        ({"gpu": "h200", "settings": {"optim.rate": 1}}, "optim"),
    ],
)
def test_mistakes_are_told(blocks: Path, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        plan(blocks, **{"model": "nano", **arguments})


def test_missing_data_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        plan(tmp_path / "nowhere", model="nano", gpu="h200")


@pytest.fixture
def few_bytes(blocks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A made-up device whose memory holds three of the eight images of a step."""
    config, _ = asked_config(blocks, model="nano", settings={**SMALL, "train.device": "cpu", "train.precision": "fp32"})
    split, _ = open_splits(config)
    resolved = resolve(config, split).config
    memory = planning.MemoryPlanner(resolved, split, None, device_type="cpu")
    room = (memory.training(3).peak_bytes + memory.training(4).peak_bytes) // 2
    device = Device(name="made up", type="cpu", memory_bytes=10 * room, precision="fp32")
    monkeypatch.setattr(planning, "local_device", lambda kind=None: device)
    monkeypatch.setattr(planning, "budget_bytes", lambda memory_bytes, taken_bytes=0: room)
    monkeypatch.setattr(planning, "host_memory", lambda: HostMemory(total_bytes=10 * room, available_bytes=1))


def test_a_run_whose_batch_memory_holds_in_part_is_the_run_that_was_asked_to_accumulate(
    blocks: Path, tmp_path: Path, few_bytes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**SMALL, "train.device": "cpu", "data.val_split": ""}
    cut = dt.train(blocks, model="nano", out=tmp_path / "cut", settings=settings)
    record = json.loads((cut.folder / "plan.json").read_text())
    assert (record["micro_batch_size"], record["accumulation"], record["global_batch_size"]) == (3, 3, 8)
    config = load(cut.folder).config
    assert config.batch.micro_batch_size == 3 and config.batch.global_batch_size == 8
    assert config.optim.lr == 2e-3, "the rate is as it was"
    monkeypatch.undo()
    monkeypatch.setenv("DETRONOME_CACHE", str(tmp_path / "cache"))
    (tmp_path / "asked").mkdir()
    (tmp_path / "asked" / "plan.json").write_text("{}")  # of a start that failed
    asked = dt.train(blocks, model="nano", out=tmp_path / "asked", settings={**settings, "batch.micro_batch_size": 3})
    assert not (asked.folder / "plan.json").exists()
    ours, theirs = load(cut.folder).checkpoint.model, load(asked.folder).checkpoint.model
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


class HundredBytesAnImage:
    """Predicts so much: the real peaks of so small a model are those of its weights, however many images there are."""

    def __init__(self, *arguments: object, **keywords: object) -> None: ...

    def training(self, micro_batch_size: int, **keywords: object) -> MemoryAccount:
        return MemoryAccount(
            phase="training",
            shape="64x96",
            num_images=micro_batch_size,
            num_objects=0,
            bytes_by_cause={Cause.BACKBONE: 100 * micro_batch_size},
            moment="forward",
        )

    def evaluation(self, batch_size: int, **keywords: object) -> None:
        return None


def test_the_gradient_of_a_planned_cut_is_that_of_the_whole(blocks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = SMALL | {
        "train.device": "cpu",
        "train.precision": "fp32",
        "model.backbone": "resnet18",
        "model.backbone_weights": "none",
        "model.hidden_dim": 32,
        "model.ffn_dim": 32,
        "model.num_encoder_layers": 1,
        "model.num_decoder_layers": 1,
        "model.dropout": 0.0,
    }
    config, _ = asked_config(blocks, model="detr-r18", settings=tiny)
    split, _ = open_splits(config)
    whole = resolve(config, split)
    device = Device(name="made up", type="cpu", memory_bytes=350, precision="fp32")
    monkeypatch.setattr(planning, "MemoryPlanner", HundredBytesAnImage)
    monkeypatch.setattr(planning, "local_device", lambda kind=None: device)
    monkeypatch.setattr(planning, "host_memory", lambda: HostMemory(total_bytes=1, available_bytes=1))
    cut = resolve(config, split, planner=RunPlanner(split, None))
    assert cut.reasons["batch.micro_batch_size"].startswith("3 (the whole effective batch in 3 passes: planned to take")
    assert (whole.config.batch.micro_batch_size, cut.config.batch.micro_batch_size) == (8, 3)

    def gradients(resolved: Resolved) -> dict[str, torch.Tensor]:
        run_plan = build_plan(resolved.config, len(split.index))
        step = build_step(resolved, split.index.categories, run_plan)
        step.model.train()
        with build_stream(resolved, split, split.index.categories, start_step=0, total_steps=1) as stream:
            batch = next(stream)
        totals = BatchTotals.of(batch.targets, step.model.num_queries)
        kept = step.gradients(batch, totals=totals, step=0, progress=0.0)
        assert max(len(micro_batch) for micro_batch in kept.micro_batches) <= (8 if resolved is whole else 3)
        return {name: p.grad for name, p in step.model.named_parameters() if p.grad is not None}

    ours, theirs = gradients(cut), gradients(whole)
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-5 + 1e-4 * float(gradient.abs().max()))


def test_a_small_run_on_a_cpu_is_not_planned(blocks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "MemoryPlanner", None)
    config, _ = asked_config(blocks, model="nano", settings={**SMALL, "train.device": "cpu"})
    split, _ = open_splits(config)
    planner = RunPlanner(split, None)
    resolved = resolve(config, split, planner=planner)
    assert resolved.config.batch.micro_batch_size == 8 and planner.made is None


def test_a_run_is_not_stopped_by_a_plan_that_fails(blocks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object, **keywords: object) -> None:
        raise RuntimeError("an operator without a shape\nmore")

    monkeypatch.setattr(planning, "MemoryPlanner", fails)
    monkeypatch.setattr(planning, "host_memory", lambda: HostMemory(total_bytes=1, available_bytes=1))
    config, _ = asked_config(blocks, model="nano", settings={**SMALL, "train.device": "cpu"})
    split, _ = open_splits(config)
    resolved = resolve(config, split, planner=RunPlanner(split, None))
    assert resolved.config.batch.micro_batch_size == 8
    assert "RuntimeError an operator without a shape" in resolved.reasons["batch.micro_batch_size"]
    assert "more" not in resolved.reasons["batch.micro_batch_size"]


def test_ranks_of_one_machine_share_its_memory(blocks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = HostMemory(total_bytes=2**30, available_bytes=2**29)
    monkeypatch.setattr(planning, "host_memory", lambda: free)
    device = Device(name="made up", type="cpu", memory_bytes=2**30, taken_bytes=2**29, precision="fp32")
    monkeypatch.setattr(planning, "local_device", lambda kind=None: device)
    monkeypatch.setattr(planning, "_BYTES_PER_PIXEL", {"nano": 2**20})
    config, _ = asked_config(blocks, model="nano", settings={**SMALL, "train.device": "cpu"})
    split, _ = open_splits(config)
    budgets = []
    for ranks in (1, 2):
        planner = RunPlanner(split, None, world=World(size=2, local_size=ranks))
        resolve(config, split, World(size=2, local_size=ranks), planner=planner)
        assert planner.made is not None
        budgets.append(planner.made.budget_bytes)
    assert budgets[1] == budgets[0] // 2


def test_gpus_without_an_image_are_told(blocks: Path) -> None:
    found = plan(blocks, model="nano", gpu="24", gpus=10, settings=SMALL)
    assert any("2 of 10 GPUs have no image in a step" in note for note in found.notes)


def test_one_image_that_does_not_fit_is_tried_all_the_same(
    blocks: Path, few_bytes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "budget_bytes", lambda memory_bytes, taken_bytes=0: 1)
    config, _ = asked_config(blocks, model="nano", settings={**SMALL, "train.device": "cpu"})
    split, val = open_splits(config)
    planner = RunPlanner(split, val)
    resolved = resolve(config, split, planner=planner)
    assert resolved.config.batch.micro_batch_size == resolved.config.eval.batch_size == 1
    assert "tried all the same" in resolved.reasons["batch.micro_batch_size"]
    assert planner.made is not None and not planner.made.fits

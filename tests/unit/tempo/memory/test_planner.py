from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.unit.tempo.memory.measured import allocated_peak_bytes, annotated_split, evaluation_run, training_run
from torch.utils import _foreach_utils, checkpoint
from torch.utils.checkpoint import _allowed_determinism_checks_to_fns

from detronome.config.presets import preset
from detronome.config.schema import DetrConfig, NanoConfig, RunConfig
from detronome.data.split import DataSplit
from detronome.errors import ConfigError
from detronome.models.detr.model import DETR
from detronome.tempo.memory.account import Cause
from detronome.tempo.memory.planner import CONTEXT_BYTES, MemoryPlanner
from detronome.tempo.memory.stand_in import StandIn
from detronome.types import Categories

SHAPE = (96, 128)
OBJECTS = [0, 1, 7, 3, 12, 5, 2, 9]
TOLERANCE = 0.10


def small(family: str, **train: object) -> RunConfig:
    """Return a run of a model small enough to be run for real in a test, with images of one shape."""
    config = preset("nano")
    model: DetrConfig | NanoConfig = replace(config.model, num_queries=25)  # type: ignore[arg-type]
    if family == "detr":
        config = preset("detr-r18")
        model = DetrConfig(
            backbone="resnet18",
            backbone_weights="none",
            hidden_dim=64,
            num_heads=4,
            ffn_dim=128,
            num_encoder_layers=2,
            num_decoder_layers=2,
            num_queries=20,
        )
    height, width = SHAPE
    return replace(
        config,
        model=model,
        augment=replace(config.augment, sizes=(height,), max_size=width, crop="none", eval_size=height),
        data=replace(config.data, buckets=(f"{height}x{width}",)),
        batch=replace(config.batch, global_batch_size=4, micro_batch_size=4),
        train=replace(config.train, precision="fp32", epochs=2, eval_epochs=1, **train),  # type: ignore[arg-type]
    )


@pytest.fixture
def split(tmp_path: Path) -> DataSplit:
    return annotated_split(tmp_path, size_hw=SHAPE, objects=OBJECTS, num_classes=3)


def planner(config: RunConfig, split: DataSplit, *, device_type: str = "cpu", world_size: int = 1) -> MemoryPlanner:
    return MemoryPlanner(config, split, split, device_type=device_type, world_size=world_size)  # type: ignore[arg-type]


def with_batch(config: RunConfig, global_batch_size: int, micro_batch_size: int) -> RunConfig:
    return replace(
        config, batch=replace(config.batch, global_batch_size=global_batch_size, micro_batch_size=micro_batch_size)
    )


class NoImages:
    """The index of a split without images, which the reader of annotations would refuse."""

    sizes_hw = np.zeros((0, 2), np.int32)
    num_objects_per_image = np.zeros(0, np.int64)
    categories = Categories((1, 2, 3), ("a", "b", "c"))

    def __len__(self) -> int:
        return 0


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
@pytest.mark.parametrize("family", ["nano", "detr"])
def test_a_data_set_without_images_needs_the_model_and_no_evaluation(
    family: str, device_type: str, split: DataSplit
) -> None:
    plan = planner(small(family), replace(split, index=NoImages()), device_type=device_type)  # type: ignore[arg-type]
    for shape in ("worst", "mean"):
        account = plan.trace(2, shape=shape).account  # type: ignore[arg-type]
        assert account.num_objects == 0
        assert account.bytes_by_cause[Cause.WEIGHTS] > 0
    assert plan.evaluation(2) is None


@pytest.mark.parametrize("family", ["nano", "detr"])
def test_images_without_objects_are_planned_for(family: str, tmp_path: Path) -> None:
    split = annotated_split(tmp_path, size_hw=SHAPE, objects=[0, 0, 0, 0], num_classes=3)
    assert planner(small(family), split).training(4).num_objects == 0


@pytest.mark.parametrize(
    ("family", "settings", "micro_batch_size"),
    [
        ("nano", {}, 4),
        ("nano", {"ema_decay": 0.0}, 2),
        ("nano", {"precision": "bf16"}, 4),
        ("detr", {}, 4),
        ("detr", {}, 2),
        ("detr", {"ema_decay": 0.99, "precision": "bf16"}, 4),
        ("detr", {"checkpoint_activations": "all"}, 4),
    ],
)
def test_the_peak_is_what_the_allocator_measures(
    family: str, settings: dict[str, object], micro_batch_size: int, split: DataSplit
) -> None:
    config = with_batch(small(family), 4, micro_batch_size)
    config = replace(config, train=replace(config.train, **settings))  # type: ignore[arg-type]
    predicted = planner(config, split).training(micro_batch_size).peak_bytes
    measured = allocated_peak_bytes(training_run(config, split, SHAPE))
    assert abs(predicted / measured - 1) < TOLERANCE, (predicted, measured)


@pytest.mark.parametrize("family", ["nano", "detr"])
def test_the_peak_of_an_evaluation_is_what_the_allocator_measures(family: str, split: DataSplit) -> None:
    config = small(family)
    account = planner(config, split).evaluation(4)
    assert account is not None
    measured = allocated_peak_bytes(evaluation_run(config, split, SHAPE, 4), since_mark=True)
    assert abs(account.peak_bytes / measured - 1) < TOLERANCE, (account.peak_bytes, measured)


def test_the_causes_that_stay_are_as_large_as_their_tensors(split: DataSplit) -> None:
    config = with_batch(small("nano", ema_decay=0.99), 8, 4)
    held = planner(config, split).training(4).bytes_by_cause
    step = training_run(config, split, SHAPE)()
    parameters = sum(p.nbytes for p in step.model.parameters())  # type: ignore[attr-defined]
    assert held[Cause.WEIGHTS] == pytest.approx(parameters, rel=0.03)
    assert held[Cause.AVERAGE] == held[Cause.WEIGHTS]
    assert held[Cause.OPTIMIZER] == pytest.approx(2 * parameters, rel=0.03)
    assert held[Cause.GRADIENTS] == pytest.approx(parameters, rel=0.03)  # of the micro-batch before
    height, width = SHAPE
    objects = sum(OBJECTS)
    assert held[Cause.BATCH] == 2 * (8 * 4 * height * width + 24 * objects)


@pytest.mark.parametrize("family", ["nano", "detr"])
def test_memory_grows_with_images_and_objects(family: str, split: DataSplit, tmp_path: Path) -> None:
    config = with_batch(small(family), 8, 8)
    plan = planner(config, split)
    accounts = [plan.training(size) for size in (1, 2, 4, 7)]
    peaks = [account.peak_bytes for account in accounts]
    assert peaks == sorted(set(peaks))
    assert [account.num_images for account in accounts] == [1, 2, 4, 7]
    assert [account.num_objects for account in accounts] == [12, 21, 33, 39]
    crowded = annotated_split(tmp_path / "crowded", size_hw=SHAPE, objects=[20] * 8, num_classes=3)
    assert planner(config, crowded).training(4).peak_bytes > peaks[2]


def test_each_image_adds_as_much_as_the_one_before(split: DataSplit) -> None:
    plan = planner(with_batch(small("detr"), 64, 8), replace(split))
    # Fewer images than asked for: a data set smaller than a batch has one step, with all its images.
    assert plan.training(64).num_images == len(OBJECTS)
    two, four, six = (plan.training(size).peak_bytes for size in (2, 4, 6))
    assert six - four == pytest.approx(four - two, rel=0.02)


def test_micro_batches_beside_gradients_need_more_than_the_same_images_alone(split: DataSplit) -> None:
    alone = planner(with_batch(small("detr"), 2, 2), split).training(2)
    one_of_many = planner(with_batch(small("detr"), 8, 2), split).training(2)
    gradients = one_of_many.bytes_by_cause[Cause.GRADIENTS]
    assert gradients > 4e6
    assert one_of_many.peak_bytes > alone.peak_bytes + gradients / 2


def test_a_frozen_backbone_has_no_gradients_and_keeps_nothing_for_them(split: DataSplit) -> None:
    config = small("detr")
    trained = planner(config, split).training(4)
    frozen = planner(replace(config, optim=replace(config.optim, backbone_lr=0.0)), split).training(4)
    assert frozen.bytes_by_cause[Cause.OPTIMIZER] < trained.bytes_by_cause[Cause.OPTIMIZER] / 10
    assert frozen.bytes_by_cause[Cause.WEIGHTS] == trained.bytes_by_cause[Cause.WEIGHTS]
    assert frozen.peak_bytes < trained.peak_bytes


def many_tokens() -> RunConfig:
    """Return a run in which activations are most of the memory: 1,024 tokens an image."""
    config = small("detr")
    return replace(
        config,
        model=replace(config.model, dilation=True),  # type: ignore[arg-type]
        augment=replace(config.augment, sizes=(512,), max_size=512),
        data=replace(config.data, buckets=("512x512",)),
    )


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
def test_recomputing_and_low_precision_save_memory(device_type: str, split: DataSplit) -> None:
    plan = planner(many_tokens(), split, device_type=device_type)
    plain = plan.training(4)
    assert plan.training(4, checkpointing="all").peak_bytes < plain.peak_bytes
    assert plan.training(4, checkpointing="backbone").peak_bytes <= plain.peak_bytes
    assert plan.training(4, checkpointing="transformer").peak_bytes <= plain.peak_bytes
    assert plan.training(4, precision="bf16").peak_bytes < plain.peak_bytes


def test_a_gpu_keeps_no_attention_weights(split: DataSplit) -> None:
    config = many_tokens()
    config = replace(config, optim=replace(config.optim, backbone_lr=0.0))  # so that the transformer holds the most
    on_cpu = planner(config, split).training(4)
    on_gpu = planner(config, split, device_type="cuda").training(4)
    layers, images, heads, tokens = 2, 4, 4, 32 * 32
    assert on_cpu.bytes_by_cause[Cause.ENCODER] > layers * images * heads * tokens**2 * 4
    assert on_gpu.bytes_by_cause.get(Cause.ENCODER, 0) < images * heads * tokens**2 * 4
    assert on_gpu.bytes_by_cause[Cause.CONTEXT] == CONTEXT_BYTES
    assert on_gpu.bytes_by_cause[Cause.SLACK] > 0
    assert Cause.CONTEXT not in on_cpu.bytes_by_cause


def test_ranks_hold_buckets_for_their_sums(split: DataSplit) -> None:
    config = small("detr")
    alone = planner(with_batch(config, 2, 2), split).training(2)
    one_of_two = planner(with_batch(config, 4, 2), split, world_size=2).training(2)
    assert one_of_two.num_images == alone.num_images
    buckets = one_of_two.peak_bytes - alone.peak_bytes
    assert buckets == pytest.approx(alone.bytes_by_cause[Cause.OPTIMIZER] / 2, rel=0.02)


def test_a_sharded_run_is_refused(split: DataSplit) -> None:
    config = small("detr", parallel="fsdp")
    planner(config, split)  # alone there is nothing to shard
    with pytest.raises(ConfigError, match="sharded"):
        planner(config, split, world_size=2)


def test_planning_leaves_no_trace(split: DataSplit) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    plan = planner(small("nano"), split, device_type="cuda")
    plan.training(2, precision="bf16")
    plan.evaluation(2)
    assert torch.equal(torch.rand(3), expected)
    assert not torch.is_autocast_enabled("xpu")
    assert torch.zeros(2).device.type == "cpu"


@pytest.mark.parametrize("at", ["forward", "backward"])
def test_a_trace_that_fails_leaves_torch_as_it_was(at: str, split: DataSplit, monkeypatch: pytest.MonkeyPatch) -> None:
    supported, checks = _foreach_utils._get_foreach_kernels_supported_devices, dict(_allowed_determinism_checks_to_fns)

    def fail(*_: object, **__: object) -> None:
        raise KeyError(at)

    monkeypatch.setattr(*{"forward": (DETR, "forward"), "backward": (StandIn, "_backward")}[at], fail)
    plan = planner(small("detr"), split, device_type="cuda")
    with pytest.raises(KeyError, match=at):
        plan.training(2, precision="bf16")
    assert _foreach_utils._get_foreach_kernels_supported_devices is supported
    assert checks == _allowed_determinism_checks_to_fns
    assert torch.zeros(2).add(1).sum() == 2 and torch.zeros(2).device.type == "cpu"
    assert not torch.is_autocast_enabled("xpu")
    monkeypatch.undo()
    assert plan.training(2, precision="bf16") == planner(small("detr"), split, device_type="cuda").training(
        2, precision="bf16"
    )


@pytest.mark.parametrize(
    ("holder", "name"),
    [(_foreach_utils, "_get_foreach_kernels_supported_devices"), (checkpoint, "_allowed_determinism_checks_to_fns")],
)
def test_a_torch_that_cannot_be_traced_is_told(
    holder: object, name: str, split: DataSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(holder, name)
    with pytest.raises(ConfigError, match=rf"torch {torch.__version__.split('+')[0]}.*{name}"):
        planner(small("nano"), split).training(2)


def test_nothing_is_downloaded(split: DataSplit, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("weights were asked for")

    monkeypatch.setattr("detronome.models.backbones.resnet._download", refuse)
    config = small("detr")
    config = replace(config, model=replace(config.model, backbone_weights="imagenet"))  # type: ignore[arg-type]
    assert planner(config, split).training(1).peak_bytes > 0


def test_a_record_holds_the_causes_and_their_sum(split: DataSplit) -> None:
    record = planner(small("nano"), split).training(2).to_record()
    assert sum(record["bytes_by_cause"].values()) == record["peak_bytes"]
    assert set(record["bytes_by_cause"]) <= {cause.value for cause in Cause}
    assert record["shape"] == "96x128"
    assert record["moment"] in ("forward", "matcher", "loss", "backward", "update")


def test_the_kernels_of_a_step_are_counted(split: DataSplit) -> None:
    plan = planner(small("detr"), split)
    ops = plan.trace(2).ops
    convolutions = {op.section: op for op in ops if op.name.startswith("aten.convolution")}
    assert convolutions["backward"].flops > convolutions["forward"].flops > 1e8
    assert {op.section for op in ops} == {"forward", "matcher", "loss", "backward", "update"}
    assert any("adamw" in op.name and op.section == "update" for op in ops)
    twice = {(op.name, op.section): op.flops for op in plan.trace(4).ops}
    assert twice["aten.convolution", "forward"] == 2 * convolutions["forward"].flops
    assert all(op.dtype == "bfloat16" for op in plan.trace(2, precision="bf16").ops if op.name == "aten.convolution")


def test_the_usual_step_is_no_larger_than_the_worst(split: DataSplit) -> None:
    plan = planner(small("nano"), split)
    worst, usual = plan.trace(4).account, plan.trace(4, shape="mean").account
    assert usual.num_objects < worst.num_objects
    assert usual.peak_bytes <= worst.peak_bytes
    assert usual.num_objects == pytest.approx(np.mean(OBJECTS) * 4, rel=0.5)

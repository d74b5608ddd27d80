import gc
import math
import pickle
import re
import weakref
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.faults.oom_injection import MESSAGE, out_of_memory
from torch import Tensor, nn

from detronome.config.schema import DetrConfig, LossConfig, NanoConfig
from detronome.engine.micro_batches import (
    MicroBatchSizes,
    OutOfMemoryAt,
    attempt,
    is_out_of_memory,
    release_memory,
    shape_of,
    until_it_fits,
)
from detronome.errors import TrainingError
from detronome.losses.build import build_criterion
from detronome.losses.set_criterion import SetCriterion
from detronome.losses.terms import BatchTotals
from detronome.models.build import build_model
from detronome.models.detector import Detector
from detronome.types import Batch, EffectiveBatch, Target

CPU = torch.device("cpu")


def batch_of(count: int, size_hw: tuple[int, int] = (64, 64), *, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    height, width = size_hw
    targets = tuple(
        Target(
            boxes_cxcywh=torch.rand(n % 3, 4, generator=generator) * 0.3 + 0.3,
            labels=torch.randint(0, 3, (n % 3,), generator=generator),
            image_id=n,
            size_hw=size_hw,
            orig_size_hw=size_hw,
        )
        for n in range(count)
    )
    return Batch(
        images=torch.randint(0, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8),
        padding_mask=torch.zeros(count, height, width, dtype=torch.bool),
        targets=targets,
    )


def failure(shape: str, num_images: int, rank: int = 0) -> OutOfMemoryAt:
    return OutOfMemoryAt(shape=shape, num_images=num_images, rank=rank, message=MESSAGE)


# --- sizes


def test_a_batch_without_images_is_cut_into_nothing() -> None:
    assert MicroBatchSizes(4).cut(EffectiveBatch(())) == []
    assert MicroBatchSizes(4).state() == {}


def test_a_limit_holds_for_its_shape_and_larger_ones() -> None:
    sizes = MicroBatchSizes(8)
    assert sizes.split([failure("64x96", 8)]) == [(failure("64x96", 8), 4)]
    shapes = ("64x64", "64x95", "64x96", "96x64", "48x128", "65x96", "800x1344")
    assert [sizes.of(shape) for shape in shapes] == [8, 8, 4, 4, 4, 4, 4]
    cut = sizes.cut(EffectiveBatch((batch_of(7, (64, 64)), batch_of(7, (96, 64)))))
    assert [(len(m), shape_of(m)) for m in cut] == [(7, "64x64"), (4, "96x64"), (3, "96x64")]
    assert [i for m in cut for i in m.image_ids] == [*range(7), *range(7)]


def test_what_failed_is_halved_not_what_was_allowed() -> None:
    sizes = MicroBatchSizes(16)
    sizes.split([failure("64x64", 5)])
    assert sizes.of("64x64") == 2


def test_ranks_that_fail_together_halve_once() -> None:
    sizes = MicroBatchSizes(8)
    failures = [failure("64x64", 8, rank) for rank in range(8)] + [failure("32x32", 8, 8), failure("96x96", 3, 9)]
    lowered = sizes.split(failures)
    assert [(f.shape, f.rank, new) for f, new in lowered] == [("64x64", 0, 4), ("32x32", 8, 4), ("96x96", 9, 1)]
    assert sizes.state() == {"32x32": 4, "96x96": 1}


def test_a_single_image_without_room_ends_the_run_with_all_shapes_and_their_fixes() -> None:
    sizes = MicroBatchSizes(8, {"64x64": 1})
    with pytest.raises(TrainingError) as caught:
        sizes.split([failure("64x64", 1), failure("96x96", 1, 3), failure("96x96", 1, 4), failure("32x32", 8)])
    first, second = caught.value.problems
    assert "one image of 64x64 pixels in training" in first.what and "96x96" in second.what
    assert "8 images at once, then fewer down to 1, the last twice" in first.what and MESSAGE in first.what
    assert "rank 3" in second.where or "rank 4" in second.where
    assert all(word in first.fix for word in ("augment.max_size", "bf16", "smaller model"))
    assert sizes.of("32x32") == 8, "an error teaches nothing"


def test_evaluation_names_its_own_settings() -> None:
    with pytest.raises(TrainingError, match=r"(?s)in evaluation; tried: 1 image at once.*augment\.eval_size"):
        MicroBatchSizes(1, purpose="evaluation").split([failure("64x64", 1)])


SHAPES = st.builds("{}x{}".format, st.integers(1, 20), st.integers(1, 20))
FAILURES = st.lists(st.builds(failure, SHAPES, st.integers(2, 64), st.integers(0, 3)), max_size=12)


def pixels(shape: str) -> int:
    return math.prod(map(int, shape.split("x")))


@given(FAILURES, SHAPES)
def test_a_larger_shape_never_takes_more_images_and_a_failure_never_comes_again(
    failures: list[OutOfMemoryAt], shape: str
) -> None:
    sizes = MicroBatchSizes(64)
    for f in failures:
        sizes.split([f])
    expected = min([64, *(f.num_images // 2 for f in failures if pixels(f.shape) <= pixels(shape))])
    assert sizes.of(shape) == expected >= 1
    assert len(sizes.state()) <= 6, "no entry that another one implies"


@given(FAILURES, st.randoms(use_true_random=False))
def test_limits_do_not_depend_on_the_order_and_survive_a_checkpoint(failures: list[OutOfMemoryAt], random) -> None:  # type: ignore[no-untyped-def]
    together, shuffled = MicroBatchSizes(64), MicroBatchSizes(64)
    together.split(failures)
    random.shuffle(failures)
    shuffled.split(failures)
    restored = MicroBatchSizes(64, together.state())
    for f in failures:
        assert together.of(f.shape) == shuffled.of(f.shape) == restored.of(f.shape)
    assert restored.state() == together.state()
    restored.restore({})
    assert restored.of("20x20") == 64


def test_a_failure_travels_between_ranks() -> None:
    assert pickle.loads(pickle.dumps(failure("1x2", 3))) == failure("1x2", 3)


# --- what is a lack of memory

OURS = [
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.15 GiB",
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
    "MPS backend out of memory (MPS allocated: 17.81 GB)",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
    "Unable to find a valid cuDNN algorithm to run convolution",
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "400000000000000 bytes. Error code 12 (Cannot allocate memory)",
    "[enforce fail at ..\\c10\\core\\impl\\alloc_cpu.cpp:81] data. DefaultCPUAllocator: not enough memory: you tried",
    "std::bad_alloc",
]
NOT_OURS = [
    "",
    "CUDA error: an illegal memory access was encountered",
    "CUDA error: device-side assert triggered",
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`",
    "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a non-contiguous input.",
    "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    "unable to mmap 1024 bytes from file </torch_1_2>: Cannot allocate memory (12)",
    "Storage size calculation overflowed with sizes=[2500000000000000000]",
    "mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)",
    "could not create a memory object",
    "No space left on device",
    "the loader ran out of memoryless workers",
]


@pytest.mark.parametrize("text", OURS)
def test_a_lack_of_memory_is_known_by_its_text(text: str) -> None:
    assert is_out_of_memory(RuntimeError(text))


def test_a_lack_of_memory_is_known_by_its_type() -> None:
    for error in (torch.OutOfMemoryError("x"), torch.cuda.OutOfMemoryError(), MemoryError()):
        assert is_out_of_memory(error)
    with pytest.raises(MemoryError) as caught:
        np.empty(2**62, np.uint8)
    assert is_out_of_memory(caught.value)


def test_the_cpus_own_complaint_is_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize("text", NOT_OURS)
def test_other_errors_are_not_taken_for_it(text: str) -> None:
    assert not is_out_of_memory(RuntimeError(text))


def test_nor_those_that_only_speak_of_it_or_have_broken_the_ranks_connection() -> None:
    for error in (
        ValueError(OURS[0]),
        OSError(12, "Cannot allocate memory"),
        TrainingError("a data worker was killed, most often because memory was full: out of memory"),
        KeyboardInterrupt(),
        dist.DistBackendError("NCCL error: unhandled cuda error, Cuda failure 2 'out of memory'"),
    ):
        assert not is_out_of_memory(error)


@given(st.text(max_size=60))
@example("out  of memory")
@example("OUT OF MEMORY")
def test_no_other_text_is_taken_for_it(text: str) -> None:
    known = re.search(r"out of memory|ALLOC|DefaultCPUAllocator|cuDNN algorithm|bad_alloc", text)
    assert known or not is_out_of_memory(RuntimeError(text))


# --- the loop


def small_model() -> Detector:
    torch.manual_seed(0)
    config = NanoConfig(
        widths=(16, 16, 32), depths=(1, 1, 1), hidden_dim=16, num_heads=2, ffn_dim=16, num_queries=6, denoising_groups=0
    )
    model = build_model(config, 3).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # whole batches apart, the cut is of no consequence
    return model


def small_detr() -> Detector:
    torch.manual_seed(0)
    config = DetrConfig(
        backbone="resnet18",
        backbone_weights="none",
        frozen_stages=0,
        hidden_dim=16,
        num_heads=2,
        ffn_dim=32,
        num_encoder_layers=1,
        num_decoder_layers=1,
        num_queries=6,
        dropout=0.0,
    )
    return build_model(config, 3).train()


@dataclass
class Step:
    """The gradient of an effective batch, as a training step adds it up."""

    model: Detector
    criterion: SetCriterion
    sizes: MicroBatchSizes
    splits: list[tuple[str, int, int]] = field(default_factory=list)
    num_restarts: int = 0

    def __call__(self, batch: EffectiveBatch) -> Tensor:
        return until_it_fits(
            lambda: self.run(batch),
            self.sizes,
            restart=self.restart,
            on_split=lambda f, new: self.splits.append((f.shape, f.num_images, new)),
        )

    def run(self, batch: EffectiveBatch) -> Tensor | OutOfMemoryAt:
        totals = BatchTotals.of(batch.targets, self.model.num_queries)
        loss = torch.zeros(())
        for micro_batch in self.sizes.cut(batch):
            failed = attempt(lambda m=micro_batch: loss.add_(self.add(m, totals)), micro_batch, CPU)
            if failed is not None:
                return failed
        return loss

    def add(self, micro_batch: Batch, totals: BatchTotals) -> Tensor:
        output = self.model(micro_batch.images, micro_batch.padding_mask, micro_batch.targets)
        terms = self.criterion(output, micro_batch.targets, totals=totals, progress=0.5)
        loss = self.criterion.total(terms)
        loss.backward()
        return loss.detach()

    def restart(self) -> None:
        self.num_restarts += 1
        self.model.zero_grad(set_to_none=True)

    @property
    def gradients(self) -> dict[str, Tensor]:
        return {n: p.grad.clone() for n, p in self.model.named_parameters() if p.grad is not None}


def step_of(model: Detector) -> Step:
    model.zero_grad(set_to_none=True)
    kind: Literal["softmax", "quality"] = "softmax" if model.activation == "softmax" else "quality"
    return Step(model, build_criterion(LossConfig(classification=kind)), MicroBatchSizes(8))


@pytest.fixture(scope="module")
def model() -> Detector:
    return small_model()


@pytest.fixture
def step(model: Detector) -> Step:
    return step_of(model)


BATCH = EffectiveBatch((batch_of(8, (32, 32)), batch_of(5, (32, 48), seed=1)))


@pytest.fixture(scope="module")
def unsplit(model: Detector) -> tuple[Tensor, dict[str, Tensor]]:
    step = step_of(model)
    loss = step(BATCH)
    return loss, step.gradients


def relative_difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    total = torch.stack([grad.norm() for grad in theirs.values()]).norm()
    return float(torch.stack([(ours[name] - grad).norm() for name, grad in theirs.items()]).norm() / total)


CASES: dict[str, tuple[dict[str, Any], list[tuple[str, int, int]] | None, int]] = {
    "first micro-batch": ({"max_images": 7, "calls": {0}}, [("32x32", 8, 4)], 1),
    "last micro-batch": ({"max_images": 4, "calls": {1}}, [("32x48", 5, 2)], 1),
    "twice in a row": ({"max_images": 2, "calls": {0, 1}}, [("32x32", 8, 4), ("32x32", 4, 2)], 2),
    "lasting": ({"max_images": 3}, [("32x32", 8, 4), ("32x32", 4, 2)], 2),
    "lasting, larger shape only": ({"max_pixels": 8 * 32 * 32 - 1}, [("32x32", 8, 4)], 1),
    "down to 1": ({"max_images": 1}, [("32x32", 8, 4), ("32x32", 4, 2), ("32x32", 2, 1)], 3),
    "a moment's lack for one image": ({"max_images": 0, "calls": {0, 1, 2, 3}}, None, 4),
}


@pytest.mark.parametrize("during", ["forward", "backward"])
@pytest.mark.parametrize("case", CASES)
def test_the_gradient_is_that_of_the_step_that_had_room(
    case: str, during: Any, step: Step, unsplit: tuple[Tensor, dict[str, Tensor]]
) -> None:
    limits, splits, num_failures = CASES[case]
    with out_of_memory(step.model, during=during, **limits) as injection:
        loss = step(BATCH)
    assert injection.num_failures == step.num_restarts == num_failures
    assert splits is None or step.splits == splits
    torch.testing.assert_close(loss, unsplit[0], rtol=1e-6, atol=0)
    assert relative_difference(step.gradients, unsplit[1]) <= 5e-6


def test_the_gradient_of_the_classic_family_is_too() -> None:
    step = step_of(small_detr())
    step(BATCH)
    gradients = step.gradients
    step.restart()
    with out_of_memory(step.model, max_images=3, during="backward") as injection:
        step(BATCH)
    assert injection.num_failures == 2
    assert relative_difference(step.gradients, gradients) <= 5e-6


def test_without_a_lack_nothing_is_begun_again(step: Step, unsplit: tuple[Tensor, dict[str, Tensor]]) -> None:
    loss = step(BATCH)
    assert step.num_restarts == 0 and step.splits == []
    assert torch.equal(loss, unsplit[0])
    assert all(torch.equal(grad, unsplit[1][name]) for name, grad in step.gradients.items())


def test_a_batch_without_images_runs(step: Step) -> None:
    assert step(EffectiveBatch(())) == 0


def test_a_restarted_step_is_bit_for_bit_the_step_that_knew_the_sizes(step: Step) -> None:
    with out_of_memory(step.model, max_images=3, during="backward"):
        step(BATCH)
    gradients = step.gradients
    step.restart()
    knowing = Step(step.model, step.criterion, MicroBatchSizes(8, step.sizes.state()))
    with out_of_memory(step.model, max_images=3) as injection:
        knowing(BATCH)
    assert injection.num_failures == 0, "the size is remembered"
    assert all(torch.equal(grad, gradients[name]) for name, grad in knowing.gradients.items())


@settings(max_examples=6)
@given(st.sets(st.integers(0, 8), max_size=4), st.sampled_from(["forward", "backward"]), st.integers(1, 6))
def test_any_sequence_of_failures_gives_the_same_gradient(
    model: Detector, unsplit: tuple[Tensor, dict[str, Tensor]], calls: set[int], during: Any, max_images: int
) -> None:
    step = step_of(model)
    with out_of_memory(model, max_images=max_images, calls=calls, during=during):
        step(BATCH)
    assert relative_difference(step.gradients, unsplit[1]) <= 5e-6


def test_a_single_image_is_tried_twice_before_the_run_ends(step: Step) -> None:
    step.sizes = MicroBatchSizes(2)
    with out_of_memory(step.model, max_images=0) as injection, pytest.raises(TrainingError, match="one image of 32x32"):
        step(BATCH)
    assert [images for images, _, _ in injection.calls] == [2, 1, 1]
    assert step.splits == [("32x32", 2, 1)]


def test_other_errors_pass_through(step: Step) -> None:
    with (
        out_of_memory(step.model, max_images=0, error=RuntimeError, message="shapes do not fit") as injection,
        pytest.raises(RuntimeError, match="shapes do not fit"),
    ):
        step(BATCH)
    assert injection.num_failures == 1 and step.num_restarts == 0


def test_ranks_begin_again_together_and_learn_the_same() -> None:
    """Two ranks, taken in turn: rank 1 has no room for 4 images, rank 0 has."""
    rooms, learnt = (8, 3), []
    elsewhere = [[[failure("32x32", 4, 1)], []], [[], []]]
    for rank, room in enumerate(rooms):
        sizes, others, restarts = MicroBatchSizes(4), iter(elsewhere[rank]), []

        def run(sizes: MicroBatchSizes = sizes, room: int = room, rank: int = rank) -> int | OutOfMemoryAt:
            size = sizes.of("32x32")
            return size if size <= room else failure("32x32", size, rank)

        result = until_it_fits(
            run,
            sizes,
            restart=lambda restarts=restarts: restarts.append(1),
            on_split=lambda f, new: learnt.append((f.rank, f.num_images, new)),
            agree=lambda mine, others=others: mine + next(others),
        )
        assert result == 2 and len(restarts) == 1
        assert sizes.state() == {"32x32": 2}
    assert learnt == [(1, 4, 2), (1, 4, 2)]


def test_nothing_of_a_failed_attempt_stays_in_memory() -> None:
    held: list[weakref.ref[Tensor]] = []

    def work() -> None:
        activations = torch.zeros(1000)
        held.append(weakref.ref(activations))
        raise torch.OutOfMemoryError(MESSAGE)

    gc.disable()
    try:
        failed = attempt(work, batch_of(3, (32, 48)), CPU, rank=2)
    finally:
        gc.enable()
    assert failed == OutOfMemoryAt(shape="32x48", num_images=3, rank=2, message=MESSAGE)
    assert held[0]() is None


def test_memory_in_cycles_is_released_too() -> None:
    class Node:
        def __init__(self) -> None:
            self.me, self.tensor = self, torch.zeros(10)

    node = weakref.ref(Node())
    release_memory(CPU)
    assert node() is None


@pytest.mark.gpu
def test_a_real_lack_of_memory_is_answered() -> None:
    device = torch.device("cuda", 0)
    free, total = torch.cuda.mem_get_info(device)
    release_memory(device)
    torch.cuda.set_per_process_memory_fraction(min(2**30, free // 2) / total, device)
    try:
        sizes = MicroBatchSizes(64)

        def work(count: int) -> None:
            torch.empty(count, 2**26, dtype=torch.uint8, device=device)

        def run() -> int | OutOfMemoryAt:
            for micro_batch in sizes.cut(EffectiveBatch((batch_of(64, (8, 8)),))):
                failed = attempt(lambda m=micro_batch: work(len(m)), micro_batch, device)
                if failed is not None:
                    return failed
            return sizes.of("8x8")

        found: list[OutOfMemoryAt] = []
        assert until_it_fits(run, sizes, restart=lambda: None, on_split=lambda f, _: found.append(f)) <= 16
        assert "GiB in all" in found[0].memory
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)

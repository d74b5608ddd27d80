from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.faults.oom_injection import out_of_memory
from torch import Tensor, nn

from detronome.config.schema import LossConfig, NanoConfig
from detronome.engine.ema import ModelEma
from detronome.engine.micro_batches import MicroBatchSizes, OutOfMemoryAt, attempt, until_it_fits
from detronome.engine.optim import build_optimizer, materialise_state, optimizer_tensors
from detronome.engine.worst_case import (
    WorstCase,
    resolve_worst_case_first,
    try_worst_cases,
    worst_eval_batch,
    worst_training_batch,
)
from detronome.errors import TrainingError
from detronome.losses.build import build_criterion
from detronome.models.build import build_model
from detronome.models.detector import Detector
from detronome.types import Batch, EffectiveBatch

CPU = torch.device("cpu")
CONFIG = NanoConfig(
    widths=(16, 16, 32), depths=(1, 1, 1), hidden_dim=16, num_heads=2, ffn_dim=16, num_queries=6, denoising_groups=1
)


def small_model() -> Detector:
    """With trainable BatchNorm and denoising noise: both leave traces unless care is taken."""
    torch.manual_seed(0)
    return build_model(replace(CONFIG), 3).train()


def adamw(model: nn.Module) -> torch.optim.AdamW:
    return build_optimizer(model, lr=1e-3, backbone_lr=1e-3, weight_decay=1e-4, decay_one_dimensional=False)


def training_batch(num_images: int = 4, counts: tuple[int, ...] = (0, 3, 1, 9, 2, 0)) -> EffectiveBatch:
    return worst_training_batch(
        shape_hw=(32, 48), num_images=num_images, objects_per_image=np.array(counts, np.int64), num_classes=3
    )


def test_a_split_without_objects_has_a_worst_batch_too() -> None:
    batch = training_batch(3, (0, 0))
    assert (len(batch), batch.num_objects) == (3, 0)
    assert all(target.boxes_cxcywh.shape == (0, 4) for target in batch.targets)


def test_the_fullest_images_come_last() -> None:
    assert [target.num_objects for target in training_batch().targets] == [1, 2, 3, 9]
    assert [target.num_objects for target in training_batch(3, (5, 1)).targets] == [1, 5, 5]
    assert [target.num_objects for target in training_batch(1).targets] == [9]


def test_the_batch_is_sound_and_always_the_same() -> None:
    (part,) = training_batch().parts
    assert part.images.shape == (4, 3, 32, 48) and part.images.dtype == torch.uint8
    assert part.images.permute(0, 2, 3, 1).is_contiguous(), "laid out as the loader's batches are"
    assert not part.padding_mask.any() and part.padding_mask.shape == (4, 32, 48)
    for target in part.targets:
        centres, sides = target.boxes_cxcywh[:, :2], target.boxes_cxcywh[:, 2:]
        assert (sides > 0).all() and (centres - sides / 2 >= -1e-6).all() and (centres + sides / 2 <= 1 + 1e-6).all()
        assert target.labels.dtype == torch.int64 and ((target.labels >= 0) & (target.labels < 3)).all()
        assert target.size_hw == target.orig_size_hw == (32, 48)
    (again,) = training_batch().parts
    assert torch.equal(part.images, again.images)
    assert all(torch.equal(a.boxes_cxcywh, b.boxes_cxcywh) for a, b in zip(part.targets, again.targets, strict=True))


def test_an_evaluation_batch_has_no_objects() -> None:
    batch = worst_eval_batch(shape_hw=(20, 30), num_images=2)
    assert (len(batch), batch.num_objects) == (2, 0)
    assert batch.parts[0].images.shape == (2, 3, 20, 30)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_moments_made_beforehand_are_those_of_the_first_update(memory_format: torch.memory_format) -> None:
    def make() -> tuple[nn.Module, torch.optim.AdamW]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)).to(memory_format=memory_format)
        return model, adamw(model)

    def update(model: nn.Module, optimizer: torch.optim.AdamW) -> dict[str, Tensor]:
        torch.manual_seed(1)
        model(torch.randn(2, 3, 8, 8)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        return optimizer_tensors(optimizer, model)

    (lazy, lazy_optimizer), (early, early_optimizer) = make(), make()
    materialise_state(early_optimizer)
    made = {name: value.clone() for name, value in optimizer_tensors(early_optimizer, early).items()}
    assert len(made) == 12 and not any(value.any() for value in made.values())
    theirs, ours = update(lazy, lazy_optimizer), update(early, early_optimizer)
    assert list(ours) == list(theirs) == list(made)
    for name, value in theirs.items():
        assert (value.dtype, value.device, value.shape) == (made[name].dtype, made[name].device, made[name].shape)
        assert value.stride() == made[name].stride()
        assert torch.equal(ours[name], value)
    assert all(torch.equal(a, b) for a, b in zip(early.parameters(), lazy.parameters(), strict=True))
    materialise_state(early_optimizer)
    assert all(torch.equal(optimizer_tensors(early_optimizer, early)[name], value) for name, value in theirs.items())


class Run:
    """A model with all that a run has, and the code through which its steps and evaluations go."""

    def __init__(self, micro_batch_size: int = 4) -> None:
        self.model = small_model()
        self.ema = ModelEma(self.model, decay=0.9)
        self.optimizer = adamw(self.model)
        self.criterion = build_criterion(LossConfig(classification="quality"))
        self.sizes = MicroBatchSizes(micro_batch_size)
        self.eval_sizes = MicroBatchSizes(micro_batch_size, purpose="evaluation")
        self.splits: list[tuple[str, int, int]] = []

    def try_worst(self) -> list[tuple[str, str, int, int]]:
        cases = [
            WorstCase(phase="training", model=self.model, batch=training_batch(), run=self.gradients),
            WorstCase(
                phase="evaluation",
                model=self.ema.model,
                batch=worst_eval_batch(shape_hw=(48, 48), num_images=4),
                run=self.detect,
            ),
        ]
        found = try_worst_cases(cases, optimizer=self.optimizer, device=CPU)
        assert all(f.seconds > 0 and f.peak_memory_bytes > 0 for f in found)
        return [(f.phase, f.shape, f.num_images, f.num_objects) for f in found]

    def gradients(self, batch: EffectiveBatch) -> None:
        def work(part: Batch) -> None:
            assert self.model.training
            output = self.model(part.images, part.padding_mask, part.targets)
            self.criterion.total(self.criterion(output, part.targets, progress=0.5)).backward()

        self._all(batch, self.sizes, work, restart=self.model.zero_grad)

    def detect(self, batch: EffectiveBatch) -> None:
        def work(part: Batch) -> None:
            assert not self.ema.model.training
            with torch.inference_mode():
                self.ema.model(part.images, part.padding_mask)

        self._all(batch, self.eval_sizes, work, restart=lambda: None)

    def _all(
        self, batch: EffectiveBatch, sizes: MicroBatchSizes, work: Callable[[Batch], None], restart: Callable[[], None]
    ) -> None:
        def run() -> OutOfMemoryAt | None:
            failures = (attempt(lambda p=part: work(p), part, CPU) for part in sizes.cut(batch))
            return next((failure for failure in failures if failure is not None), None)

        until_it_fits(
            run, sizes, restart=restart, on_split=lambda f, new: self.splits.append((f.shape, f.num_images, new))
        )

    def everything(self) -> dict[str, Tensor]:
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"ema.{name}": value for name, value in self.ema.model.state_dict().items()}
        tensors |= {f"optim.{n}": value for n, value in optimizer_tensors(self.optimizer, self.model).items()}
        return {name: value.clone() for name, value in tensors.items()} | {"rng": torch.get_rng_state()}

    def train(self, num_steps: int) -> dict[str, Tensor]:
        for _ in range(num_steps):
            self.gradients(training_batch(4, (1, 2, 0, 3)))
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return self.everything()


def test_the_worst_case_leaves_no_trace() -> None:
    run = Run()
    before = run.everything()
    modes = [module.training for module in run.model.modules()]
    assert run.try_worst() == [("training", "32x48", 4, 15), ("evaluation", "48x48", 4, 0)]
    after = run.everything()
    made = after.keys() - before.keys()
    assert made and all(name.startswith("optim.") and not after[name].any() for name in made)
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(parameter.grad is None for parameter in run.model.parameters())
    assert [module.training for module in run.model.modules()] == modes
    assert not any(module.training for module in run.ema.model.modules())
    assert run.splits == [] and run.sizes.state() == {}


@pytest.mark.parametrize("max_images", [None, 1])
def test_a_run_with_it_is_the_run_without_it(max_images: int | None) -> None:
    with_it, without = Run(), Run(micro_batch_size=max_images or 4)
    with_it_model = with_it.model
    with out_of_memory(with_it_model, max_images=max_images, during="backward"):
        with_it.try_worst()
    assert with_it.sizes.state() == ({} if max_images is None else {"32x48": 1})
    results = []
    for run in (without, with_it):
        torch.manual_seed(3)
        results.append(run.train(2))
    assert results[0].keys() == results[1].keys()
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())


def test_it_finds_sizes_that_fit_for_training_and_evaluation() -> None:
    run = Run()
    with out_of_memory(run.model, max_images=2), out_of_memory(run.ema.model, max_images=1):
        run.try_worst()
    assert run.splits == [("32x48", 4, 2), ("48x48", 4, 2), ("48x48", 2, 1)]
    assert (run.sizes.state(), run.eval_sizes.state()) == ({"32x48": 2}, {"48x48": 1})


def test_a_model_that_never_fits_ends_the_run_before_its_first_step_and_leaves_no_trace_either() -> None:
    run = Run()
    before = run.everything()
    with out_of_memory(run.model, max_images=0), pytest.raises(TrainingError, match="one image of 32x48 pixels"):
        run.try_worst()
    after = run.everything()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(parameter.grad is None for parameter in run.model.parameters())


def test_gpus_try_and_cpus_do_not() -> None:
    assert resolve_worst_case_first(CPU)[0] is False
    assert resolve_worst_case_first(torch.device("cuda"))[0] is True


@pytest.mark.parametrize(("name", "devices"), [("cpu", []), ("cuda", ["cuda"]), ("cuda:1", ["cuda:1"])])
def test_the_generator_kept_is_that_of_the_device_in_use(
    monkeypatch: pytest.MonkeyPatch, name: str, devices: list[str]
) -> None:
    """Without an index it is the current device, which is another one on each rank."""
    kept = []

    def fork_rng(devices: list[torch.device]) -> AbstractContextManager[None]:
        kept.append(devices)
        return nullcontext()

    monkeypatch.setattr(torch.random, "fork_rng", fork_rng)
    for function in ("reset_peak_memory_stats", "synchronize", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, function, lambda _: 1)
    model = small_model()
    case = WorstCase(phase="training", model=model, batch=training_batch(), run=lambda _: None)
    try_worst_cases([case], optimizer=adamw(model), device=torch.device(name))
    assert kept == [[torch.device(device) for device in devices]]


@pytest.mark.gpu
def test_on_a_gpu_the_generator_and_the_peak_are_as_before() -> None:
    device = torch.device("cuda", 0)
    model = small_model().to(device)
    before = torch.cuda.get_rng_state(device)

    def run(batch: EffectiveBatch) -> None:
        (part,) = batch.to(device).parts
        model(part.images, part.padding_mask, part.targets).pred_boxes.sum().backward()

    case = WorstCase(phase="training", model=model, batch=training_batch(), run=run)
    (found,) = try_worst_cases([case], optimizer=adamw(model), device=device)
    assert found.peak_memory_bytes > torch.cuda.max_memory_allocated(device)
    assert torch.equal(torch.cuda.get_rng_state(device), before)

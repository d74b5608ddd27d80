"""Bugs that other trainers had when a run was resumed, each tried on ours.

One run goes through; another is stopped four times: at the end of an epoch, twice within the next, and in the last.
"""

import math
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import detronome as dt
from detronome.api import training
from detronome.data.dataset import DetectionDataset
from detronome.data.sampler import epoch_order, step_indices
from detronome.engine.checkpoint import Checkpoint, find_checkpoint, load_checkpoint, load_last_good
from detronome.engine.optim import build_optimizer, load_optimizer_tensors, optimizer_tensors
from detronome.engine.step import TrainingStep
from detronome.errors import Problem
from detronome.evaluation.detection import DetectionEvaluator
from detronome.report.run_log import read_run_log

Settings = dict[str, Any]
NUM_IMAGES, BATCH, STEPS_PER_EPOCH, EPOCHS = 24, 8, 3, 3
STEPS = STEPS_PER_EPOCH * EPOCHS
STOPS = (3, 4, 5, 7)
"""Steps done when the run is told to stop; 3 is the end of the first epoch."""


@dataclass
class Recorded:
    """What one run has trained on."""

    folder: Path
    images: list[tuple[int, list[int]]] = field(default_factory=list)
    """(step, ids of its images), in the order in which they were trained on."""
    ends: list[str] = field(default_factory=list)

    @property
    def last(self) -> Checkpoint:
        return load_checkpoint(find_checkpoint(self.folder, prefer="last"), with_training=True)

    def rates(self) -> list[tuple[int, dict[str, float]]]:
        records = read_run_log(self.folder / "log.jsonl")
        return [(record["step"], record["learning_rates"]) for record in records if record["kind"] == "step"]


@contextmanager
def recording(run: Recorded, *, stop_at: int | None = None) -> Iterator[None]:
    """Note each step's images; the run is told to stop while the step before `stop_at` is under way."""
    train = TrainingStep.__call__

    def observed(self: TrainingStep, batch: Any, *, step: int, **others: Any) -> Any:
        run.images.append((step, batch.image_ids))
        if stop_at is not None and step == stop_at - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return train(self, batch, step=step, **others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingStep, "__call__", observed)
        # Nobody looks at the pages.
        patch.setattr(training, "write_gallery", lambda *_: None)
        patch.setattr(training, "write_run_details", lambda *_, **__: None)
        patch.setattr(training, "write_report", lambda folders: folders[0] / "report.html")
        yield


def trained(data: Path, folder: Path, settings: Settings, *, stops: tuple[int, ...]) -> Recorded:
    """Train, and stop and resume at each of the stops."""
    run = Recorded(folder)
    for number, stop_at in enumerate((*stops, None)):
        with recording(run, stop_at=stop_at):
            if number == 0:
                result = dt.train(data, model="nano", epochs=EPOCHS, out=folder, settings=settings)
            else:
                result = dt.resume(folder)
        run.ends.append(result.reason)
    return run


@pytest.fixture(scope="module")
def settings(tiny_settings: Settings) -> Settings:
    schedule = {"schedule.kind": "multistep", "schedule.drop_epochs": [1, 2], "schedule.warmup_steps": 5}
    return {**tiny_settings, **schedule, "train.ema_decay": 0.9}


@pytest.fixture(scope="module")
def both(blocks: Path, settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recorded, Recorded]:
    """The run that never stopped, and the one that did."""
    root = tmp_path_factory.mktemp("peers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETRONOME_CACHE", str(root / "cache"))
        whole = trained(blocks, root / "whole", settings, stops=())
        stopped = trained(blocks, root / "stopped", settings, stops=STOPS)
    assert whole.ends == ["finished"] and stopped.ends == ["interrupted"] * len(STOPS) + ["finished"]
    return whole, stopped


def assert_same_tensors(ours: dict[str, torch.Tensor] | None, theirs: dict[str, torch.Tensor] | None) -> None:
    assert ours and theirs and ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_rf_detr_969_the_best_score_is_not_forgotten(
    blocks: Path, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best score began at zero again on resume, and the best file was overwritten by a worse one."""
    scores = iter((0.9, 0.5, 0.6))
    compute = DetectionEvaluator.compute

    def scored(self: DetectionEvaluator, *arguments: Any, **options: Any) -> Any:
        metrics = compute(self, *arguments, **options)
        return replace(metrics, numbers={**metrics.numbers, "AP": next(scores)})

    monkeypatch.setattr(DetectionEvaluator, "compute", scored)
    run = trained(blocks, tmp_path / "run", settings, stops=(4,))
    best = load_checkpoint(find_checkpoint(run.folder, prefer="best"))
    assert (best.state.step, best.state.best_metrics["AP"]) == (STEPS_PER_EPOCH, 0.9)
    assert run.last.state.best_metrics["AP"] == 0.9
    assert [r["is_best"] for r in read_run_log(run.folder / "log.jsonl") if r["kind"] == "eval"] == [True, False, False]


@pytest.mark.parametrize("stop_at", [1, STEPS])
def test_rf_detr_84_a_resume_works_from_the_first_step_to_the_last(
    stop_at: int, blocks: Path, settings: Settings, tmp_path: Path, both: tuple[Recorded, Recorded]
) -> None:
    """Resuming ended with an error."""
    whole, _ = both
    run = trained(blocks, tmp_path / "run", settings, stops=(stop_at,))
    assert run.ends[-1] == "finished"
    assert_same_tensors(run.last.training, whole.last.training)
    evaluated = [record["step"] for record in read_run_log(run.folder / "log.jsonl") if record["kind"] == "eval"]
    assert sorted(set(evaluated)) == [3, 6, 9]


def test_rf_detr_1028_the_fused_optimiser_goes_on_with_its_state() -> None:
    """The fused AdamW refused the state that was loaded into it."""

    def model_and_optimizer() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 3)
        rates = {"lr": 0.1, "backbone_lr": 0.1, "weight_decay": 0.01}
        return model, build_optimizer(model, **rates, decay_one_dimensional=True)

    def update(model: torch.nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
        torch.manual_seed(number)
        model(torch.randn(2, 4)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    model, optimizer = model_and_optimizer()
    for number in range(3):
        update(model, optimizer, number)
    other, restored = model_and_optimizer()
    other.load_state_dict(model.state_dict())
    load_optimizer_tensors(restored, other, optimizer_tensors(optimizer, model))
    update(model, optimizer, 3)
    update(other, restored, 3)
    assert all(group["fused"] for group in restored.param_groups)
    assert_same_tensors(other.state_dict(), model.state_dict())
    assert_same_tensors(optimizer_tensors(restored, other), optimizer_tensors(optimizer, model))


def test_libreyolo_215_average_and_optimiser_are_restored(both: tuple[Recorded, Recorded]) -> None:
    """Average and optimiser were silently begun anew."""
    whole, stopped = both
    assert_same_tensors(stopped.last.model, whole.last.model)
    assert_same_tensors(stopped.last.training, whole.last.training)
    assert_same_tensors(stopped.last.optimizer, whole.last.optimizer)


def test_libreyolo_215_what_happens_at_an_epoch_happens_when_resumed_after_it(both: tuple[Recorded, Recorded]) -> None:
    """A change that was due at an epoch was missed by a run resumed after that epoch: here, drops of the rate."""
    whole, stopped = both
    assert stopped.rates() == whole.rates()
    rate_of = {step: rates["model"] for step, rates in stopped.rates()}
    assert rate_of[8] == pytest.approx(0.1 * rate_of[6])


def test_yolov5_292_the_warm_up_is_not_replayed(both: tuple[Recorded, Recorded]) -> None:
    """A resumed run went through the warm-up once more."""
    whole, stopped = both
    rising = [rates["model"] for step, rates in stopped.rates() if step <= 3]
    assert rising == sorted(rising) and rising[0] < rising[-1]
    assert [rates for step, rates in stopped.rates() if step > 3] == [rates for s, rates in whole.rates() if s > 3]


def test_ultralytics_weights_average_and_moments_are_kept_apart_and_in_full_precision(
    both: tuple[Recorded, Recorded],
) -> None:
    """Only the average was kept, in half precision, and a resumed run began from it."""
    _, stopped = both
    last = stopped.last
    assert last.training is not None and last.optimizer is not None
    for tensors in (last.model, last.training, last.optimizer):
        assert {t.dtype for t in tensors.values() if t.is_floating_point()} == {torch.float32}
    learnt = [name for name, tensor in last.training.items() if tensor.is_floating_point() and "running" not in name]
    assert any(not torch.equal(last.training[name], last.model[name]) for name in learnt)


def test_prime_rl_3332_the_data_do_not_begin_anew(both: tuple[Recorded, Recorded]) -> None:
    """The loader's iterator was made before its state was loaded, and the data silently began at the first image."""
    whole, stopped = both
    assert stopped.images == whole.images
    assert [step for step, _ in stopped.images] == list(range(STEPS))


def test_torchdata_1437_and_1439_a_stop_at_the_end_of_an_epoch_loses_and_repeats_nothing(
    both: tuple[Recorded, Recorded],
) -> None:
    """The state at the end of an epoch was that of its beginning, or of an epoch that yields nothing."""
    _, stopped = both
    for epoch in range(EPOCHS):
        seen = [i for step, ids in stopped.images if step // STEPS_PER_EPOCH == epoch for i in ids]
        assert sorted(seen) == list(range(100, 100 + NUM_IMAGES))


def test_kempnerforge_57_a_second_resume_in_one_epoch_keeps_the_order(both: tuple[Recorded, Recorded]) -> None:
    """The images skipped by the first resume were counted again by the second, and the order shifted."""
    whole, stopped = both
    assert {stop // STEPS_PER_EPOCH for stop in STOPS[:3]} == {1}, "three stops in the second epoch"
    assert dict(stopped.images)[5] == dict(whole.images)[5]


def test_hf_datasets_7447_epochs_keep_their_length_after_a_resume_with_workers(
    blocks: Path, settings: Settings, tmp_path: Path, both: tuple[Recorded, Recorded]
) -> None:
    """With persistent workers, every epoch after the resumed one was as short as that one."""
    whole, _ = both
    run = trained(blocks, tmp_path / "run", {**settings, "data.workers": 2}, stops=(2,))
    assert run.images == whole.images
    assert_same_tensors(run.last.training, whole.last.training)


def test_torchft_309_a_step_and_its_batch_stay_together(both: tuple[Recorded, Recorded], settings: Settings) -> None:
    """After a recovery the loader was a batch behind the steps."""
    _, stopped = both
    order = epoch_order(stopped.last.config["train"]["seed"], NUM_IMAGES)
    for step, ids in stopped.images:
        _, indices = step_indices(order, step, NUM_IMAGES, BATCH)
        assert ids == [100 + i for i in indices.tolist()]


def test_hf_transformers_a_resume_late_in_a_run_costs_what_an_early_one_does(
    both: tuple[Recorded, Recorded], tmp_path: Path
) -> None:
    """The batches of all the steps done were read again, only to be dropped."""
    _, stopped = both
    early = cost_of_resume_at(10, stopped.folder, tmp_path / "early")
    late = cost_of_resume_at(90_001, stopped.folder, tmp_path / "late")
    assert late[0] == early[0] == BATCH
    assert late[1] < early[1] + 1.0


def cost_of_resume_at(step: int, run: Path, copy: Path) -> tuple[int, float]:
    """Return (images read, seconds) until the first step of a run that is resumed at a step."""
    shutil.copytree(run, copy, symlinks=True)
    images_read, first_step_at = 0, math.nan

    def at_step(path: Path) -> tuple[Checkpoint, list[Problem]]:
        checkpoint, problems = load_last_good(path)
        config = {**checkpoint.config, "train": {**checkpoint.config["train"], "epochs": 40_000}}
        return replace(checkpoint, config=config, state=replace(checkpoint.state, step=step)), problems

    read = DetectionDataset.raw

    def counted(self: DetectionDataset, key: tuple[int, int]) -> Any:
        nonlocal images_read
        images_read += self._training
        return read(self, key)

    def stop(*_: object, **__: object) -> None:
        nonlocal first_step_at
        first_step_at = time.perf_counter()
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "load_last_good", at_step)
        patch.setattr(DetectionDataset, "raw", counted)
        patch.setattr(TrainingStep, "__call__", stop)
        started = time.perf_counter()
        with pytest.raises(KeyboardInterrupt):
            dt.resume(copy)
    return images_read, first_step_at - started

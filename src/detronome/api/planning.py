"""A plan of a run: the memory it takes and by what, how to cut its batches, the time and the price. Trains nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from detronome.api.arguments import whole_number
from detronome.api.asked import asked_config, open_splits
from detronome.config.schema import ActivationCheckpointing, DetrConfig, RunConfig
from detronome.data.augment.params import AugmentPolicy
from detronome.data.build import augment_policy, padded_shapes
from detronome.data.largest_shapes import largest_training_shape
from detronome.data.split import DataSplit
from detronome.engine.build import build_plan
from detronome.engine.resolve import resolve
from detronome.errors import ConfigError, DetronomeError
from detronome.model import Model
from detronome.runtime.distributed import ALONE, World
from detronome.runtime.host_memory import host_memory
from detronome.runtime.precision import Precision
from detronome.tempo.batch_fit import Cut, Fit, FittedCut, budget_bytes, fit
from detronome.tempo.cost import PassTime, RunTime, assignment_seconds, pass_time, run_time
from detronome.tempo.hardware import GPUS, Device, find_device, local_device
from detronome.tempo.memory.account import Cause, MemoryAccount, StepTrace
from detronome.tempo.memory.planner import MemoryPlanner
from detronome.tempo.workload import ShapeSample, Workload, loader_images_s, sample_shapes

__all__ = ["Plan", "RunPlanner", "plan"]

_GIB = 2**30
_LARGEST_EVAL_BATCH = 8
_GPU_WORKERS = 8
"""Loader processes that a machine with a GPU is taken to start for each."""
_CHECKPOINTINGS: tuple[ActivationCheckpointing, ...] = ("none", "backbone", "transformer", "all")
_TRACED_IMAGES = 2
_BYTES_PER_PIXEL = {"detr": 10_000, "nano": 3_000, "rtdetr": 5_000, "dfine": 16_000}
"""More than any preset of the family keeps for backward in fp32, measured on its largest images."""
_SAFE_PART = 0.5
"""Of the free memory of a CPU: a run that surely takes less is not planned."""
_PARTS_OF_MODEL = (Cause.WEIGHTS, Cause.GRADIENTS, Cause.OPTIMIZER, Cause.AVERAGE, Cause.GUARD, Cause.CONTEXT)
"""What does not depend on the images."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run will take, and the settings that fit it to a device."""

    preset: str
    device: Device
    gpus: int
    global_batch_size: int
    epochs: int
    budget_bytes: int
    """What the run may take of a device: its memory but for a reserve and what others hold."""
    choice: FittedCut
    """Where nothing fits, what lacks the least."""
    training: MemoryAccount
    evaluation: MemoryAccount | None
    eval_batch_size: int
    alternatives: tuple[FittedCut, ...]
    time: RunTime | None
    """None where the device's speed is not known."""
    price: float | None
    """Of the whole run, in the unit of what was given for a GPU-hour."""
    settings: Mapping[str, str | int]
    """To train so, as `--set` takes them."""
    would_fit: tuple[str, ...]
    """Where it does not fit: what would."""
    notes: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether training and evaluation fit."""
        eval_bytes = self.evaluation.peak_bytes if self.evaluation else 0
        return max(self.choice.peak_bytes, eval_bytes) <= self.budget_bytes

    def to_record(self) -> dict[str, Any]:
        """Return the plan as plain data, as `plan.json` in a run's folder holds it."""
        cut, time = self.choice.cut, self.time
        return {
            "format": 1,
            "preset": self.preset,
            "fits": self.fits,
            "device": self.device.to_record(),
            "gpus": self.gpus,
            "global_batch_size": self.global_batch_size,
            "micro_batch_size": cut.micro_batch_size,
            "accumulation": cut.accumulation,
            "precision": cut.precision,
            "checkpointing": cut.checkpointing,
            "eval_batch_size": self.eval_batch_size,
            "budget_bytes": self.budget_bytes,
            "training": self.training.to_record(),
            "evaluation": self.evaluation.to_record() if self.evaluation else None,
            "epochs": self.epochs,
            "step_s": time.step_s if time else None,
            "epoch_s": time.epoch_s if time else None,
            "total_s": time.total_s if time else None,
            "time": time.to_record() if time else None,
            "price": self.price,
            "settings": dict(self.settings),
            "alternatives": [self.choice.to_record(), *(other.to_record() for other in self.alternatives)],
            "would_fit": list(self.would_fit),
            "notes": list(self.notes),
        }


def plan(
    data: str | Path,
    *,
    model: str | Path | Model = "detr-r50",
    gpu: str | None = None,
    gpus: int = 1,
    price: float | None = None,
    config: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Plan:
    """Predict what a run takes of memory, time and money, and how its batches are best cut; needs no GPU.

    The model is traced without computing it, on the largest images with the most objects that this data can give.

    Args:
        data: data folder or address, as for `train`.
        model: a preset's name, or a run, checkpoint or `Model` to fine-tune.
        gpu: a GPU's name (`h200`, `RTX 4090`), its memory (`24GiB`), `cpu` for this machine; the GPU or CPU that is
            here when None.
        gpus: how many of them share each effective batch.
        price: of one GPU for an hour, in any currency.
        config: a TOML file on top of the preset.
        settings: dotted settings on top of both. What is `auto` in them is chosen.

    Raises:
        ConfigError: settings that cannot work, an unknown GPU, no GPU at all, or a price below 0.
        DataError: the data cannot be used.
    """
    whole_number(gpus, "gpus", least=1, of_what="{} GPUs")
    if price is not None and not (isinstance(price, int | float) and 0 <= price < math.inf):
        raise ConfigError(f"a price of {price!r}", where="price", fix="give what a GPU costs for an hour, e.g. 2.5")
    device = local_device() if gpu is None else find_device(gpu)
    if device.type == "cpu" and gpus > 1:
        raise ConfigError(f"{gpus} GPUs, and the plan is for a CPU", where="gpus", fix="name the GPU: --gpu h200")
    asked, _ = asked_config(data, model=model, config=config, settings=settings)
    train, val = open_splits(asked)
    if len(train.index) == 0:
        raise ConfigError("the training split has no images", where=str(data), fix="add images, then plan")
    precisions: list[Precision] = [device.precision if asked.train.precision == "auto" else asked.train.precision]
    if device.type == "cuda" and precisions[0] != "fp32":
        precisions.append("fp32")
    planner = _Planner(_without_autos(asked, train, device, gpus), train, val, device=device, world_size=gpus)
    fitted = planner.fit(
        precisions=precisions,
        checkpointings=_CHECKPOINTINGS
        if asked.train.checkpoint_activations == "none"
        else (asked.train.checkpoint_activations,),
        micro_batch_size=None if asked.batch.micro_batch_size == "auto" else asked.batch.micro_batch_size,
    )
    return planner.plan(
        fitted,
        eval_batch_size=None if asked.eval.batch_size == "auto" else asked.eval.batch_size,
        images_s_worker=loader_images_s(planner.config, train) if device.has_speed else None,
        workers=asked.data.workers,
        price=price,
    )


class RunPlanner:
    """Decides the batch sizes of a run that is about to start, for `engine.resolve`.

    On a GPU by a plan. On a CPU the effective batch goes through whole, unless a crude bound says that memory may be
    short: only then does a plan say more.

    Args:
        train: the training split.
        val: the split to evaluate on.
        world: the ranks that share each effective batch.

    Attributes:
        made: the plan, when there is one.
    """

    def __init__(self, train: DataSplit, val: DataSplit | None, *, world: World = ALONE) -> None:
        self._train = train
        self._val = val
        self._world_size = world.size
        self._local_size = world.local_size
        self.made: Plan | None = None

    def training(self, config: RunConfig, device: torch.device) -> tuple[int, str] | None:
        """Return the micro-batch size and the reason for it, or None where nothing has to be planned."""
        if not self._has_to_plan(config, device):
            return None
        try:
            self.made = self._plan(config, device)
        except Exception as error:  # a run that could go on without a plan is not stopped by the lack of one
            share = math.ceil(config.batch.global_batch_size / self._world_size)
            why = str(error).partition("\n")[0]
            told = why if isinstance(error, DetronomeError) else f"{type(error).__name__} {why}"
            return share, f"all of it, since no plan could be made: {told}"
        return self.made.choice.cut.micro_batch_size, self._training_reason(self.made)

    def evaluation(self, config: RunConfig, device: torch.device) -> tuple[int, str] | None:
        """Return the batch size of an evaluation and the reason for it, where training was planned."""
        if self.made is None or self.made.evaluation is None:
            return None
        needs = self.made.evaluation.peak_bytes / _GIB
        return self.made.eval_batch_size, f"planned to take {needs:.1f} of {self.made.budget_bytes / _GIB:.1f} GiB"

    def _plan(self, config: RunConfig, device: torch.device) -> Plan:
        assert config.train.precision != "auto"
        target = local_device("cpu" if device.type == "cpu" else "local")
        if target.type == "cpu":  # its ranks share one memory
            target = replace(
                target,
                memory_bytes=target.memory_bytes // self._local_size,
                taken_bytes=target.taken_bytes // self._local_size,
            )
        planner = _Planner(config, self._train, self._val, device=target, world_size=self._world_size)
        fitted = planner.fit(precisions=[config.train.precision], checkpointings=[config.train.checkpoint_activations])
        return planner.plan(
            fitted,
            eval_batch_size=None if config.eval.batch_size == "auto" else config.eval.batch_size,
            workers=config.data.workers,
        )

    def _has_to_plan(self, config: RunConfig, device: torch.device) -> bool:
        if len(self._train.index) == 0 or device.type not in ("cuda", "cpu"):
            return False
        return device.type == "cuda" or _crude_bytes(config, self._train, self._world_size) > (
            _SAFE_PART * host_memory().available_bytes / self._local_size
        )

    def _training_reason(self, made: Plan) -> str:
        needs, budget = made.choice.peak_bytes / _GIB, made.budget_bytes / _GIB
        if not made.choice.fits:
            return f"one image is planned to take {needs:.1f} GiB, and there are {budget:.1f}; it is tried all the same"
        passes = made.choice.cut.accumulation
        how = "at once" if passes == 1 else f"in {passes} passes"
        whole = "the whole effective batch" if self._world_size == 1 else f"the part of one of {self._world_size} ranks"
        return f"{whole} {how}: planned to take {needs:.1f} of {budget:.1f} GiB"


class _Planner:
    """Traces each way to cut a batch once, and puts memory, time and choice together."""

    def __init__(
        self, config: RunConfig, train: DataSplit, val: DataSplit | None, *, device: Device, world_size: int
    ) -> None:
        self.config = config
        self._train = train
        self._val = val
        self._device = device
        self._world_size = world_size
        self._share = math.ceil(config.batch.global_batch_size / world_size)
        self._memory = MemoryPlanner(config, train, val, device_type=device.type, world_size=world_size)
        self._budget = budget_bytes(device.memory_bytes, device.taken_bytes)
        self._accounts: dict[Cut, MemoryAccount] = {}
        self._traces: dict[tuple[Precision, ActivationCheckpointing], StepTrace] = {}

    def fit(
        self,
        *,
        precisions: Sequence[Precision],
        checkpointings: Sequence[ActivationCheckpointing],
        micro_batch_size: int | None = None,
    ) -> Fit:
        """Choose how an effective batch goes through the model."""
        return fit(
            share=self._share,
            budget=self._budget,
            precisions=precisions,
            checkpointings=checkpointings,
            peak=lambda cut: self._account(cut).peak_bytes,
            step_s=self._device_seconds,
            micro_batch_size=micro_batch_size,
        )

    def plan(
        self,
        fitted: Fit,
        *,
        eval_batch_size: int | None = None,
        images_s_worker: float | None = None,
        workers: int | str = 0,
        price: float | None = None,
    ) -> Plan:
        """Return the plan for a fit."""
        cut = fitted.best.cut
        training = self._account(cut)
        eval_batch_size, evaluation = self._evaluation(eval_batch_size, cut.precision)
        time = None
        if self._device.has_speed:
            workers = self._workers(workers)
            time = run_time(self._pass_time(cut), self._workload(cut, images_s_worker, workers))
        plan = build_plan(self.config, len(self._train.index))
        epochs = plan.total_steps // plan.steps_per_epoch
        does_fit = fitted.best.fits and (evaluation is None or evaluation.peak_bytes <= self._budget)
        return Plan(
            preset=self.config.preset,
            device=self._device,
            gpus=self._world_size,
            global_batch_size=self.config.batch.global_batch_size,
            epochs=epochs,
            budget_bytes=self._budget,
            choice=fitted.best,
            training=training,
            evaluation=evaluation,
            eval_batch_size=eval_batch_size,
            alternatives=fitted.others,
            time=time,
            price=None if price is None or time is None else time.price(price, self._world_size),
            settings=_settings(cut, eval_batch_size),
            would_fit=() if does_fit else self._would_fit(training, evaluation),
            notes=tuple(self._notes(time, images_s_worker, price)),
        )

    def _account(self, cut: Cut) -> MemoryAccount:
        if cut not in self._accounts:
            self._accounts[cut] = self._memory.training(
                cut.micro_batch_size, precision=cut.precision, checkpointing=cut.checkpointing
            )
        return self._accounts[cut]

    def _evaluation(self, asked: int | None, precision: Precision) -> tuple[int, MemoryAccount | None]:
        """Return (batch size, what it takes) of the largest evaluation batch that fits."""
        largest = asked or min(self.config.batch.global_batch_size, _LARGEST_EVAL_BATCH)
        accounts: dict[int, MemoryAccount] = {}
        for size in [asked] if asked else [largest >> n for n in range(largest.bit_length())]:
            account = self._memory.evaluation(size, precision=precision)
            if account is None:
                return largest, None
            accounts[size] = account
            if account.peak_bytes <= self._budget:
                break
        return size, account

    def _device_seconds(self, cut: Cut) -> float | None:
        if not self._device.has_speed:
            return None
        return run_time(self._pass_time(cut), self._workload(cut, None, 1)).device_s

    def _pass_time(self, cut: Cut) -> PassTime:
        key = cut.precision, cut.checkpointing
        if key not in self._traces:
            self._traces[key] = self._memory.trace(
                min(_TRACED_IMAGES, self._share),
                precision=cut.precision,
                checkpointing=cut.checkpointing,
                shape="mean",
            )
        num_images = self._share / self._shapes.passes(self._share, cut.micro_batch_size)
        return pass_time(
            self._traces[key], self._device, num_images=num_images, assignment_s=num_images * self._assignment_s
        )

    @cached_property
    def _shapes(self) -> ShapeSample:
        return sample_shapes(self.config, self._train)

    @cached_property
    def _assignment_s(self) -> float:
        """Seconds of the matcher's assignment for an average image."""
        model, index = self.config.model, self._train.index
        assert model.num_queries != "auto"
        layers = model.num_decoder_layers if self.config.loss.aux_loss else 1
        return assignment_seconds(
            num_queries=model.num_queries,
            num_objects=float(index.num_objects_per_image.mean()),
            num_layers=layers + (not isinstance(model, DetrConfig)),  # proposals of the encoder are matched too
            num_images=1,
        )

    def _workload(self, cut: Cut, images_s_worker: float | None, workers: int) -> Workload:
        plan = build_plan(self.config, len(self._train.index))
        epochs = plan.total_steps // plan.steps_per_epoch
        return Workload(
            global_batch_size=self.config.batch.global_batch_size,
            world_size=self._world_size,
            passes=self._shapes.passes(self._share, cut.micro_batch_size),
            steps_per_epoch=plan.steps_per_epoch,
            epochs=epochs,
            evaluations=math.ceil(plan.total_steps / plan.eval_steps) if self._val else 0,
            num_val_images=len(self._val.index) if self._val else 0,
            eval_pixels=self._shapes.eval_pixels,
            gradient_bytes=self._account(cut).bytes_by_cause.get(Cause.GRADIENTS, 0),
            images_s_worker=images_s_worker,
            workers=workers,
        )

    def _workers(self, asked: int | str) -> int:
        if isinstance(asked, int):
            return asked
        if self._device.type == "cuda":
            return _GPU_WORKERS
        return self.config.data.workers if isinstance(self.config.data.workers, int) else 0

    def _would_fit(self, training: MemoryAccount, evaluation: MemoryAccount | None) -> tuple[str, ...]:
        """Return what would make room, cheapest first."""
        found = []
        worst = max([training, *([evaluation] if evaluation else [])], key=lambda account: account.peak_bytes)
        if training.num_images > 1 and training is worst:
            found.append("a smaller micro-batch: --set batch.micro_batch_size=auto")
        fixed = sum(worst.bytes_by_cause.get(cause, 0) for cause in _PARTS_OF_MODEL)
        part = (self._budget - fixed) / max(1, worst.peak_bytes - fixed)
        sides = self.config.augment
        if 0.04 < part < 1:
            short = "sizes" if worst.phase == "training" else "eval_size"
            square = max(sides.sizes) if worst.phase == "training" else sides.eval_size
            longest = sides.max_size if worst.phase == "training" else sides.eval_max_size
            name = "max_size" if worst.phase == "training" else "eval_max_size"
            if sides.square:
                wanted = f"{math.floor(square * part**0.5 / 32) * 32} pixels for augment.{short}"
            else:
                pixels = math.floor(longest * part**0.5 / 32) * 32
                wanted = f"{pixels} pixels for augment.{name}, and augment.{short} in proportion"
            found.append(f"smaller images: about {wanted}")
        larger = sorted(
            (gpu for gpu in GPUS if budget_bytes(gpu.memory_bytes) >= worst.peak_bytes),
            key=lambda gpu: gpu.memory_bytes,
        )
        if larger and self._device.type == "cuda":
            found.append(f"a GPU with more memory, e.g. {', '.join(gpu.name for gpu in larger[:3])}")
        return tuple(found) or ("a smaller model",)

    def _notes(self, time: RunTime | None, images_s_worker: float | None, price: float | None) -> list[str]:
        notes = []
        if self._world_size > self.config.batch.global_batch_size:
            idle = self._world_size - self.config.batch.global_batch_size
            notes.append(f"{idle} of {self._world_size} GPUs have no image in a step, and are paid all the same")
        if self._device.type == "cuda" and not self._device.has_speed:
            notes.append("time is predicted only for a GPU that is named: its speed is not known here")
        if price is not None and time is None:
            notes.append("without a time there is no price")
        if time is not None and images_s_worker is None:
            notes.append("the images are not here to be read, so the time is that of the model alone")
        return notes


def _without_autos(asked: RunConfig, train: DataSplit, device: Device, gpus: int) -> RunConfig:
    """Return the configuration as a run on the device would have it, but for the batches, which are whole."""
    share = math.ceil(asked.batch.global_batch_size / gpus)
    here = replace(
        asked,
        train=replace(asked.train, device="cpu", precision="fp32"),  # of this machine only; the plan has its own
        batch=replace(asked.batch, micro_batch_size=share),
    )
    config = resolve(here, train).config
    precision = device.precision if asked.train.precision == "auto" else asked.train.precision
    return replace(config, train=replace(config.train, device=device.type, precision=precision))


def _crude_bytes(config: RunConfig, train: DataSplit, world_size: int) -> float:
    """Return more than an effective batch can take on this machine; costs milliseconds."""
    share = math.ceil(config.batch.global_batch_size / world_size)
    policy: AugmentPolicy = augment_policy(config.augment)
    shape = largest_training_shape(policy, train.index.sizes_hw, padded_shapes(config), num_images=share)
    assert shape is not None
    return share * shape[0] * shape[1] * _BYTES_PER_PIXEL[config.model.family]


def _settings(cut: Cut, eval_batch_size: int) -> dict[str, str | int]:
    """Return the choice as settings; what is a default is left out."""
    found: dict[str, str | int] = {
        "batch.micro_batch_size": cut.micro_batch_size,
        "eval.batch_size": eval_batch_size,
        "train.precision": cut.precision,
    }
    if cut.checkpointing != "none":
        found["train.checkpoint_activations"] = cut.checkpointing
    return found

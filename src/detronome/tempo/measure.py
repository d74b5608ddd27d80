"""A run's parts without the run: measures what steps take, and what loader, device, copies and sums take alone.

Nothing is written: no checkpoint, no log, no file. The parts are those of `engine/build.py`, so what is measured is
what trains; the model learns as it goes, and is forgotten.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from detronome.config.schema import RunConfig, WithPretrainedBackbone
from detronome.data.build import build_quarantine
from detronome.data.prefetch import DeviceStream
from detronome.data.split import DataSplit
from detronome.engine.build import build_plan, build_step, build_stream
from detronome.engine.fine_tune import fine_tuned_categories
from detronome.engine.micro_batches import MicroBatchSizes
from detronome.engine.resolve import Resolved, resolve
from detronome.losses.terms import BatchTotals
from detronome.runtime.device_clock import DeviceClock
from detronome.runtime.distributed import ALONE, World
from detronome.runtime.memory import peak_memory_bytes
from detronome.runtime.monitor import SystemMonitor
from detronome.runtime.progress import Progress, Section
from detronome.tempo.rates import StepRates
from detronome.types import Categories, EffectiveBatch

__all__ = ["TrialRun"]

_ENDLESS = 2**40
"""Steps that a trial's loader could go on for."""
_KEPT_BATCHES = 4
"""Batches that are trained on again and again to measure the device alone: shapes differ from batch to batch."""
_SAMPLED_EVERY_S = 0.5
_SETTLED_AFTER_S = 30.0
_VMSTAT = Path("/proc/vmstat")


class TrialRun:
    """A run that is only measured. A context manager: it ends the loader's workers.

    Over several ranks every method is a collective: all ranks call the same ones with the same arguments.

    Args:
        config: settings; what is `auto` is resolved as for a run.
        train: the split to learn from.
        world: the ranks.
        categories: of the model that the run would start from; by default those of the split.

    Attributes:
        resolved: the configuration without any `auto`.
        training_step: the step that is measured.

    Raises:
        ConfigError, DataError: what a run would refuse.
    """

    def __init__(
        self, config: RunConfig, train: DataSplit, *, world: World = ALONE, categories: Categories | None = None
    ) -> None:
        # Weights do not change the pace: nothing is downloaded.
        if isinstance(config.model, WithPretrainedBackbone):
            config = replace(config, model=replace(config.model, backbone_weights="none"))
        self.resolved: Resolved = resolve(config, train, world)
        self.world = world
        self._split = train
        own = train.index.categories
        self._categories = own if categories is None else fine_tuned_categories(categories, own)
        self._plan = build_plan(self.resolved.config, len(train.index))
        self._device = self.resolved.device
        self._device_clock = DeviceClock(self._device) if self._device.type == "cuda" else None
        self.activity = Progress(marker=self._mark)
        self.training_step = build_step(
            self.resolved, self._categories, self._plan, world=world, activity=self.activity
        )
        self.training_step.model.train()
        self._on_section: Callable[[Section], None] = lambda _: None
        self._quarantine = build_quarantine(self.resolved.config, train)
        self._stream: DeviceStream | None = None
        self._kept: deque[EffectiveBatch] = deque(maxlen=_KEPT_BATCHES)
        self._step = 0

    def steps(self, count: int, *, warmup: int = 2) -> StepRates:
        """Do steps as the run does them, each with a batch from the loader.

        Args:
            count: steps that are measured.
            warmup: steps before that; more are done where batches are ready that an idle loader has prepared.
        """
        stream = self._open()
        for _ in range(max(warmup, 1, self._num_ahead)):
            self._train_next(stream)
        stream.meter.reset()
        with self._measuring() as measured:
            for _ in range(count):
                measured.begin()
                measured.end(self._train_next(stream))
        return measured.rates(
            data_stages_s=stream.meter.image_stage_s,
            batches_ready=stream.meter.batches_ready,
            steps_per_round=max(1, min(self._workers, count)),
        )

    def loader_alone(self, num_batches: int) -> StepRates:
        """Take batches and do nothing with them."""
        stream = self._open()
        for _ in range(max(1, self._num_ahead)):
            self._kept.append(next(stream))
        stream.meter.reset()
        with self._measuring() as measured:
            for _ in range(num_batches):
                measured.begin()
                with self.activity.within(Section.DATA_WAIT):
                    batch = next(stream)
                measured.end(len(batch))
        # A rank that waits for nobody loads at its own pace; together they load what the slowest allows.
        return measured.rates(
            num_shares=self.world.size,
            data_stages_s=stream.meter.image_stage_s,
            batches_ready=stream.meter.batches_ready,
            steps_per_round=max(1, min(self._workers, num_batches)),
        )

    def device_alone(self, num_steps: int, *, warmup: int = 1, micro_batch_size: int | None = None) -> StepRates | None:
        """Do steps on batches that are on the device already, the same few again and again.

        Args:
            num_steps: steps that are measured.
            warmup: steps before that.
            micro_batch_size: another number of images at once; None is the configuration's.

        Returns:
            None where memory had no room for so many at once.
        """
        step, sizes = self.training_step, self.training_step.sizes
        step.sizes = MicroBatchSizes(micro_batch_size) if micro_batch_size else sizes
        try:
            batches = self._batches()
            for n in range(warmup):
                self._train(batches[n % len(batches)])
            with self._measuring() as measured:
                for n in range(num_steps):
                    measured.begin()
                    measured.end(self._train(batches[n % len(batches)]))
            had_room = not micro_batch_size or not step.sizes.state()
        finally:
            step.sizes = sizes
        return measured.rates() if had_room else None

    def copy_alone(self, num_batches: int) -> StepRates | None:
        """Copy batches from page-locked memory to the device; None on a CPU, which needs no copy."""
        if self._device.type != "cuda":
            return None
        host = torch.device("cpu")
        pinned = [EffectiveBatch(tuple(p.to(host).pin_memory() for p in b.parts)) for b in self._batches()]
        with self._measuring() as measured:
            for n in range(num_batches):
                measured.begin()
                with self.activity.within(Section.COPY):
                    batch = pinned[n % len(pinned)].to(self._device)
                    self._synchronize()
                measured.end(len(batch))
        return measured.rates(num_shares=self.world.size)

    def reduce_alone(self, num_sums: int) -> StepRates | None:
        """Add up gradients over the ranks, and nothing else; None where there is one rank."""
        if self.world.size == 1:
            return None
        parallel, step = self.training_step.parallel, self.training_step
        parameters = sum(p.numel() for group in step.optimizer.param_groups for p in group["params"])
        # FSDP adds up within backward: a sum of as many numbers stands for it.
        gradients = None if parallel.can_run_alone else torch.zeros(parameters, device=self._device)
        num_images = self._totals(self._batches()[0]).num_images
        with self._measuring() as measured:
            for _ in range(num_sums):
                self.world.max([0.0])  # all ranks begin at once: this is the network's time, not the wait for a rank
                measured.begin()
                with self.activity.within(Section.REDUCE):
                    parallel.sum_gradients() if gradients is None else parallel.sum(gradients)
                    self._synchronize()
                measured.end(num_images)
        step.drop_gradients()
        return measured.rates()

    @property
    def round_steps(self) -> int:
        """Batches come in rounds, one of each worker: only whole rounds can be compared."""
        return max(1, self._workers)

    @property
    def memory_splits(self) -> Mapping[str, int]:
        """Images at once by padded shape, where memory had no room for as many as the configuration asks for."""
        return self.training_step.sizes.state()

    @property
    def num_ahead(self) -> int:
        """Batches that the loader's workers prepare while nobody asks for one."""
        return self._workers * self.resolved.config.data.prefetch

    def settle(self) -> None:
        """Wait until the loader's workers have done all they may do ahead, and leave the processors to others."""
        deadline = time.perf_counter() + _SETTLED_AFTER_S
        while self._stream is not None and self._stream.num_ready < self.num_ahead and time.perf_counter() < deadline:
            time.sleep(0.005)

    @contextmanager
    def telling_sections(self, listener: Callable[[Section], None]) -> Iterator[None]:
        """Tell a listener of each section of a step that begins."""
        self._on_section = listener
        try:
            yield
        finally:
            self._on_section = lambda _: None

    def close(self) -> None:
        """End the loader's workers."""
        if self._stream is not None:
            self._stream.close()
        self._stream = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- one step ----------------------------------------------------------------------------------------------------

    def _train_next(self, stream: DeviceStream) -> int:
        self.activity.enter(Section.DATA_WAIT, step=self._step)
        batch = next(stream)
        self._kept.append(batch)
        return self._train(batch)

    def _train(self, batch: EffectiveBatch) -> int:
        """Do one step as the trainer does it; return the images of all ranks."""
        totals = self._totals(batch)
        if totals.num_images > 0:
            self.training_step(batch, step=self._step, progress=0.5, totals=totals, before_update=self._before_update)
        self.activity.enter(Section.AGREE)
        self.world.max([0.0, 0.0])
        self.activity.enter(Section.LOG)
        self._step += 1
        return totals.num_images

    def _totals(self, batch: EffectiveBatch) -> BatchTotals:
        mine = BatchTotals.of(batch.targets, self.training_step.model.num_queries)
        self.activity.enter(Section.AGREE)
        return BatchTotals(*map(int, self.world.sum([mine.num_images, mine.num_objects, mine.num_matches])))

    def _before_update(self) -> bool:
        self.training_step.guard.read()  # as the trainer does, at what it costs
        return False

    # --- loader and clocks -------------------------------------------------------------------------------------------

    @property
    def _workers(self) -> int:
        workers = self.resolved.config.data.workers
        assert workers != "auto"
        return workers

    def _open(self) -> DeviceStream:
        if self._stream is None:
            self._num_ahead = self._workers  # the first batches of all workers come at once
            self._stream = build_stream(
                self.resolved,
                self._split,
                self._categories,
                start_step=0,
                total_steps=_ENDLESS,
                world=self.world,
                quarantine=self._quarantine,
            )
        else:  # its workers have worked ahead while nobody asked
            self._num_ahead = self.num_ahead
        return self._stream

    def _batches(self) -> Sequence[EffectiveBatch]:
        if not self._kept:
            self._kept.append(next(self._open()))
        return list(self._kept)

    def _mark(self, section: Section) -> None:
        if self._device_clock is not None:
            self._device_clock.mark(section)
        self._on_section(section)

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    @contextmanager
    def _measuring(self) -> Iterator[_Window]:
        self._synchronize()
        with SystemMonitor(self._device, interval_s=_SAMPLED_EVERY_S) as monitor:
            window = _Window(self._device, self.activity, self._device_clock, monitor)
            yield window
            self._synchronize()
            window.close()


class _Window:
    """Clocks and counters from one moment to another."""

    def __init__(
        self, device: torch.device, activity: Progress, device_clock: DeviceClock | None, monitor: SystemMonitor
    ) -> None:
        self._device = device
        self._activity = activity
        self._device_clock = device_clock
        self._monitor = monitor
        self._step_s: list[float] = []
        self._num_images = 0
        self._counters = _counters(device)
        if device_clock is not None:
            device_clock.read()
        activity.enter(Section.START)
        self._before = activity.seconds
        self._opened = self._began = time.perf_counter()

    def begin(self) -> None:
        """A step begins."""
        self._began = time.perf_counter()

    def end(self, num_images: int) -> None:
        """The step is over, so far as the host can tell."""
        self._step_s.append(time.perf_counter() - self._began)
        self._num_images += num_images

    def close(self) -> None:
        """All is done, on the device too."""
        now = time.perf_counter()
        if self._step_s:
            self._step_s[-1] = now - self._began
        n, seconds = max(1, len(self._step_s)), self._activity.seconds
        spent = {section: value - self._before.get(section, 0.0) for section, value in seconds.items()}
        self._sections_s = {str(section): value / n for section, value in spent.items() if value > 0}
        on_device = self._device_clock.read() if self._device_clock is not None else {}
        self._device_s = {section: value / n for section, value in on_device.items()}
        counted = {name: value - self._counters[name] for name, value in _counters(self._device).items()}
        self._system = self._monitor.take()
        if "swapped_bytes" in counted:
            self._system["swap_bytes_s"] = counted["swapped_bytes"] / (now - self._opened)
        if "allocator_retries" in counted:
            self._system["allocator_retries"] = counted["allocator_retries"] / n

    def rates(
        self,
        *,
        num_shares: int = 1,
        data_stages_s: Mapping[str, float] | None = None,
        batches_ready: float = 0.0,
        steps_per_round: int = 1,
    ) -> StepRates:
        """Return what was measured; the images of one rank count `num_shares` times."""
        return StepRates(
            step_s=tuple(self._step_s),
            images_per_step=num_shares * self._num_images / max(1, len(self._step_s)),
            sections_s=self._sections_s,
            device_s=self._device_s,
            data_stages_s=data_stages_s or {},
            batches_ready=batches_ready,
            system=self._system,
            memory_bytes=peak_memory_bytes(self._device),
            steps_per_round=steps_per_round,
        )


def _counters(device: torch.device) -> dict[str, float]:
    """Return counters that only grow: bytes that the machine has swapped, allocations that had to be tried again."""
    counters: dict[str, float] = {}
    with suppress(OSError, ValueError, KeyError):
        pages = dict(line.split() for line in _VMSTAT.read_text().splitlines())
        counters["swapped_bytes"] = os.sysconf("SC_PAGE_SIZE") * (int(pages["pswpin"]) + int(pages["pswpout"]))
    if device.type == "cuda":
        counters["allocator_retries"] = torch.cuda.memory_stats(device).get("num_alloc_retries", 0)
    return counters

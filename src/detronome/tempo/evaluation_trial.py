"""An evaluation that is only measured: some batches of the validation split at a time, round and round."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

import torch

from detronome.config.schema import RunConfig
from detronome.data.build import build_eval_batches, build_quarantine
from detronome.data.loader import BatchStream
from detronome.data.split import DataSplit
from detronome.engine.build import build_plan, build_step
from detronome.engine.evaluator import detect_batch, detect_in_pieces
from detronome.engine.micro_batches import MicroBatchSizes
from detronome.engine.resolve import resolve
from detronome.runtime.precision import Precision
from detronome.tempo.rates import StepRates
from detronome.types import EffectiveBatch

__all__ = ["EvaluationTrial"]

_SETTLED_AFTER_S = 30.0


class EvaluationTrial:
    """An evaluation with new weights. A context manager: it ends the loader's workers.

    Args:
        config: settings; what is `auto` is resolved as for a run.
        train: the split that the model would learn from, which decides its size.
        val: the split to evaluate on.

    Raises:
        ConfigError, DataError: what a run would refuse.
    """

    def __init__(self, config: RunConfig, train: DataSplit, val: DataSplit) -> None:
        resolved = resolve(config, train)
        self.config, self._device = resolved.config, resolved.device
        assert self.config.eval.batch_size != "auto" and self.config.data.workers != "auto"
        self._workers = self.config.data.workers
        self._categories = train.index.categories
        plan = build_plan(self.config, len(train.index))
        step = build_step(resolved, self._categories, plan)
        self._model = (step.model if step.ema is None else step.ema.model).eval()
        self._precision: Precision = step.precision
        self._sizes = MicroBatchSizes(self.config.eval.batch_size, purpose="evaluation")
        self._batches = build_eval_batches(
            self.config,
            val,
            self._categories,
            batch_size=self.config.eval.batch_size,
            workers=self._workers,
            device=self._device,
            quarantine=build_quarantine(self.config, val),
        )
        self._stream: BatchStream | None = None
        self._num_taken = 0

    @property
    def num_ahead(self) -> int:
        """Batches that the loader's workers prepare while nobody asks for one."""
        return self._workers * self.config.data.prefetch

    @property
    def round_steps(self) -> int:
        """Batches come in rounds, one of each worker."""
        return max(1, self._workers)

    @property
    def memory_splits(self) -> Mapping[str, int]:
        """Images at once by padded shape, where memory had no room for a whole batch."""
        return self._sizes.state()

    def steps(self, count: int, *, warmup: int) -> StepRates:
        """Evaluate so many batches after the warm-up; a step is a batch."""
        for _ in range(warmup):
            self._evaluate(self._next())
        step_s, num_images = [], 0
        for _ in range(count):
            began = time.perf_counter()
            num_images += self._evaluate(self._next())
            step_s.append(time.perf_counter() - began)
        return StepRates(step_s=step_s, images_per_step=num_images / count, steps_per_round=self.round_steps)

    def settle(self) -> None:
        """Wait until the loader's workers have done all they may do ahead."""
        wanted = min(self.num_ahead, len(self._batches) - self._num_taken)
        deadline = time.perf_counter() + _SETTLED_AFTER_S
        while self._stream is not None and self._stream.num_ready < wanted and time.perf_counter() < deadline:
            time.sleep(0.005)

    def close(self) -> None:
        """End the loader's workers."""
        self._stream = None
        self._batches.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _next(self) -> EffectiveBatch:
        if self._stream is None or self._num_taken == len(self._batches):
            self._stream, self._num_taken = iter(self._batches), 0
        self._num_taken += 1
        return next(self._stream)

    def _evaluate(self, batch: EffectiveBatch) -> int:
        detect_in_pieces(
            batch,
            lambda piece: detect_batch(
                self._model,
                piece,
                categories=self._categories,
                max_detections=self.config.eval.max_detections,
                precision=self._precision,
                device=self._device,
            ),
            self._sizes,
            device=self._device,
        )
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return len(batch)

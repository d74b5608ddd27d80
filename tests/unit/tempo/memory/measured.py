"""The memory that a real step takes on this processor, by instruments that know nothing of the planner.

The allocator's own events, which torch's profiler records, see kernels' workspaces too; the process's resident memory
sees everything.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from detronome.config.schema import RunConfig
from detronome.data.split import DataSplit
from detronome.data.split_files import SplitFiles
from detronome.data.store.index import AnnotationIndex
from detronome.data.store.source import FolderSource
from detronome.engine.build import build_plan, build_step
from detronome.engine.evaluator import detect_batch
from detronome.engine.resolve import Resolved
from detronome.engine.step import TrainingStep
from detronome.engine.worst_case import worst_eval_batch, worst_training_batch
from detronome.types import Batch, EffectiveBatch

CPU = torch.device("cpu")


def annotated_split(
    folder: Path, *, size_hw: tuple[int, int], objects: list[int], num_classes: int, name: str = "train"
) -> DataSplit:
    """Return a split of images of one size that are not there, with so many objects each."""
    height, width = size_hw
    images = [{"id": i, "file_name": f"{i}.jpg", "height": height, "width": width} for i in range(len(objects))]
    annotations = []
    for image, count in enumerate(objects):
        for j in range(count):
            box = [1 + j % (width // 2), 1, width // 3, height // 3]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": j % num_classes,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
            )
    categories = [{"id": i, "name": f"class {i}"} for i in range(num_classes)]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"instances_{name}.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    index = AnnotationIndex.open(path)
    files = SplitFiles(name=name, annotation_file=path, images_dir=folder)
    return DataSplit(files, index, FolderSource(index, folder))


def training_run(
    config: RunConfig, split: DataSplit, shape_hw: tuple[int, int], device: torch.device = CPU
) -> Callable[[], TrainingStep]:
    """Return what builds a training step and runs it twice, so that the second one finds everything in place."""

    def run() -> TrainingStep:
        step = _step(config, split, device)
        step.model.train()
        for number in range(2):
            batch = worst_training_batch(
                shape_hw=shape_hw,
                num_images=config.batch.global_batch_size,
                objects_per_image=split.index.num_objects_per_image,
                num_classes=len(split.index.categories),
            )
            step(EffectiveBatch((_padded(batch.parts[0], device),)), step=number, progress=0.5)
            del batch
        return step

    return run


def evaluation_run(
    config: RunConfig, split: DataSplit, shape_hw: tuple[int, int], batch_size: int, device: torch.device = CPU
) -> Callable[[], TrainingStep]:
    """Return what builds a training step, with moments and the last batch that it keeps, and detects in one batch."""
    train = training_run(config, split, shape_hw, device)

    def run() -> TrainingStep:
        step = train()
        gc.collect()
        torch.empty(0).untyped_storage().resize_(_MARK_BYTES)
        if device.type == "cuda":
            torch.cuda.empty_cache()  # of what training took and no longer holds
            torch.cuda.reset_peak_memory_stats(device)
        model = step.model if step.ema is None else step.ema.model
        batch = _padded(worst_eval_batch(shape_hw=shape_hw, num_images=batch_size).parts[0], device)
        detect_batch(
            model.eval(),
            batch,
            categories=split.index.categories,
            max_detections=config.eval.max_detections,
            precision=step.precision,
            device=device,
        )
        return step

    return run


def allocated_peak_bytes(run: Callable[[], object], *, since_mark: bool = False) -> int:
    """Return the most that torch's CPU allocator held at once while something ran that began with nothing.

    Args:
        run: what to measure.
        since_mark: count only what came after the last mark, but all that was held then.
    """
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        run()
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    sizes = np.array([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    held = sizes.cumsum()
    begin = np.flatnonzero(sizes == _MARK_BYTES)[-1] + 2 if since_mark else 0
    return int(held[begin:].max())


_MARK_BYTES = 123_456_789
"""An allocation that nothing else asks for, freed at once."""


def resident_peak_bytes(run: Callable[[], object]) -> int:
    """Return by how much the process's resident memory grew at most while something ran; Linux."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_bytes("VmRSS")
    run()
    return _status_bytes("VmHWM") - before


def gpu_peak_bytes(run: Callable[[], object]) -> tuple[int, int]:
    """Return the most that tensors held on the GPU while something ran, and what the allocator had taken for them."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()


def _status_bytes(field: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def _step(config: RunConfig, split: DataSplit, device: torch.device) -> TrainingStep:
    resolved = Resolved(config)
    resolved.device = device
    return build_step(resolved, split.index.categories, build_plan(config, len(split.index)))


def _padded(batch: Batch, device: torch.device) -> Batch:
    """Return the batch in torch's own memory, with a row of padding, as most batches have."""
    mask = batch.padding_mask.clone()
    mask[:, -1] = True
    return Batch(
        images=batch.images.to(device, copy=True),
        padding_mask=mask.to(device),
        targets=tuple(
            replace(
                target,
                boxes_cxcywh=target.boxes_cxcywh.to(device, copy=True),
                labels=target.labels.to(device, copy=True),
            )
            for target in batch.targets
        ),
    )

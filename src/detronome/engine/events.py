"""What a run tells its observers. The engine emits these; consoles, logs and trackers listen.

An observer is any callable that takes an event. It must not raise and must not touch the training state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = [
    "CheckpointFailed",
    "Evaluated",
    "Event",
    "ImageQuarantined",
    "MemorySplit",
    "Observer",
    "RolledBack",
    "RunEnded",
    "RunStarted",
    "RunWarned",
    "StepLogged",
    "StepSkipped",
]


@dataclass(frozen=True, kw_only=True)
class Event:
    """Base of all events."""

    step: int
    """Optimiser updates done so far."""
    epoch: float
    """Epochs done so far, with the fraction."""

    def to_record(self) -> dict[str, Any]:
        """Return a JSON-ready record; `kind` names the event."""
        return {"kind": _KINDS[type(self)], **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class RunStarted(Event):
    """The run begins, or goes on from a checkpoint (then `step` > 0)."""

    preset: str
    total_steps: int
    total_epochs: int
    steps_per_epoch: int
    global_batch_size: int
    num_train_images: int
    num_val_images: int
    num_parameters: int
    num_trainable_parameters: int
    resolved: Mapping[str, str]
    """Each `auto` setting with the value it got and the reason, ready to print."""
    environment: Mapping[str, str]
    """Versions and machine."""
    num_ranks: int = 1
    """Processes that share each effective batch, this time."""


@dataclass(frozen=True, kw_only=True)
class StepLogged(Event):
    """Means over the steps since the last log record."""

    loss: float
    losses: Mapping[str, float]
    """Unweighted loss terms of the last decoder layer, e.g. `loss_bbox`."""
    grad_norm: float
    """Total norm before clipping."""
    learning_rates: Mapping[str, float]
    """By parameter group, e.g. `model`, `backbone`."""
    images_per_s: float
    step_s: float
    """Seconds of one step, data wait included."""
    data_wait_s: float
    """Seconds of one step spent waiting for the loader."""
    memory_bytes: int
    """Peak device memory, or resident host memory on a CPU run."""
    training_s: float
    """Seconds spent training so far, evaluation left out, over all resumes."""
    skipped_steps: int
    """Steps skipped so far for a non-finite loss or gradient."""
    data_stages_s: Mapping[str, float] = field(default_factory=dict)
    """Seconds for one image by stage (cache, read, decode, augment, collate), in the process that did it; empty where
    the only batches were fetched before the last log record."""
    batches_ready: float = 0.0
    """Batches found ready when one was asked for; 0 without workers."""
    sections_s: Mapping[str, float] = field(default_factory=dict)
    """Seconds of one step by section, on the host's clock; the sum is `step_s`."""
    device_s: Mapping[str, float] = field(default_factory=dict)
    """The same on the device's clock, of the steps that it has finished; empty on a CPU."""
    system: Mapping[str, float] = field(default_factory=dict)
    """What the machine did, see `runtime.monitor`."""


@dataclass(frozen=True, kw_only=True)
class StepSkipped(Event):
    """A step was not applied: its loss or gradient was not finite, or far above what is usual in this run."""

    reason: str
    image_ids: list[int]
    """The images of the step on the rank at fault; only those to blame where the diagnosis could tell."""
    rank: int = 0
    module: str = ""
    """First module whose output, or gradient, was not finite; empty where there is none."""
    dtype: str = ""
    loss_term: str = ""
    """First loss term that was not finite."""
    is_reproducible: bool | None = None
    """Whether running the step again gave the same: if not, hardware or a race is at fault; None if it was not run."""
    action: str = "skipped"
    """What was done: `skipped`, `loss scale lowered`, `model.encoder.layers.3 computes in fp32 from now on`, ..."""


@dataclass(frozen=True, kw_only=True)
class RolledBack(Event):
    """The run went back to its last good checkpoint. `step` is where it goes on from."""

    from_step: int
    reason: str
    lr_scale: float
    """Factor on every rate from now on."""
    excluded: list[int]
    """Steps that will be passed over."""


@dataclass(frozen=True, kw_only=True)
class MemorySplit(Event):
    """Memory ran out; images of this shape go through the model in smaller micro-batches from now on."""

    shape: str
    """Padded `HEIGHTxWIDTH` in pixels."""
    old_size: int
    new_size: int
    rank: int = 0
    """Where memory ran out. In training all ranks cut alike from then on; in evaluation each cuts its own images."""


@dataclass(frozen=True, kw_only=True)
class CheckpointFailed(Event):
    """A checkpoint could not be written; older ones are intact and the run goes on."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class RunWarned(Event):
    """Something that will spoil the result unless it is changed, e.g. overfitting."""

    subject: str
    """A short name: `overfitting`, `flat_ap`, `too_few_queries`, ..."""
    what: str
    fix: str


@dataclass(frozen=True, kw_only=True)
class ImageQuarantined(Event):
    """An image could not be used; told once for each image."""

    split: str
    image_id: int
    file: str
    reason: str
    action: str
    """What was done instead: `replaced by image id 17`, `left out`."""


@dataclass(frozen=True, kw_only=True)
class Evaluated(Event):
    """Metrics on the validation split."""

    metrics: Mapping[str, float]
    """The twelve COCO numbers by name: AP AP50 AP75 AP_small ... ; nan where the data has none."""
    per_class_ap: Mapping[str, float] = field(default_factory=dict)
    """AP by category name."""
    is_best: bool = False
    losses: Mapping[str, float] = field(default_factory=dict)
    """Unweighted loss terms of the last decoder layer on the validation split, to set beside those of training."""
    eval_s: float = 0.0
    training_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class RunEnded(Event):
    """The run is over, or was interrupted."""

    reason: str
    """`finished`, `early_stop`, or `interrupted`."""
    best_step: int
    best_metrics: Mapping[str, float]
    training_s: float
    eval_s: float
    wall_s: float
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Wall time of the whole run by section, all restarts included; the sum is `wall_s`."""
    goodput: float = 0.0
    """Part of the wall time spent on steps that count, 0-1."""


Observer = Callable[[Event], None]

_KINDS: dict[type[Event], str] = {
    RunStarted: "start",
    StepLogged: "step",
    StepSkipped: "skip",
    RolledBack: "rollback",
    MemorySplit: "split",
    CheckpointFailed: "checkpoint_failed",
    RunWarned: "warning",
    ImageQuarantined: "bad_image",
    Evaluated: "eval",
    RunEnded: "end",
}

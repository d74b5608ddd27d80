"""What a run tells its observers. The engine emits these; consoles, logs and trackers listen.

An observer is any callable that takes an event. It must not raise and must not touch the training state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = [
    "Evaluated",
    "Event",
    "ImageQuarantined",
    "Observer",
    "RunEnded",
    "RunStarted",
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


@dataclass(frozen=True, kw_only=True)
class StepSkipped(Event):
    """A step was not applied because its loss or gradient was not finite."""

    reason: str
    image_ids: list[int]


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


Observer = Callable[[Event], None]

_KINDS: dict[type[Event], str] = {
    RunStarted: "start",
    StepLogged: "step",
    StepSkipped: "skip",
    ImageQuarantined: "bad_image",
    Evaluated: "eval",
    RunEnded: "end",
}

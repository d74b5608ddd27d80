"""All that a resume needs beside tensors, in one record: order and randomness follow from the seed and the step."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["TrainingState"]


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """Where a run stands. Plain data: it is written as JSON, and every field has a default."""

    step: int = 0
    """Steps passed, with the skipped and the excluded ones."""
    evaluated_step: int = -1
    """The step after which the last evaluation was completed."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time so far by section, see `runtime.progress`."""
    saved_at: float = 0.0
    """Seconds since 1970 when the state was taken: what lies between it and a resume was lost."""
    training_s: float = 0.0
    eval_s: float = 0.0
    num_skipped: int = 0
    num_consecutive_skips: int = 0
    excluded: list[int] = field(default_factory=list)
    """Steps that are passed over without loading their data, ascending."""
    guard: dict[str, float] = field(default_factory=dict)
    """The running means by which the step guard knows a spike."""
    lr_scale: float = 1.0
    """Factor on every rate; below 1 after the run has been rolled back."""
    num_rollbacks: int = 0
    last_rewind: int = -1
    rewinds_in_row: int = 0
    fp32_modules: list[str] = field(default_factory=list)
    """Modules that overflowed in bf16 or fp16 and compute in fp32 since."""
    micro_batch_sizes: dict[str, int] = field(default_factory=dict)
    """Images in one forward pass by padded shape (`HEIGHTxWIDTH`), where memory had room for fewer than asked."""
    eval_batch_sizes: dict[str, int] = field(default_factory=dict)
    """The same for evaluation."""
    scaler: dict[str, float] = field(default_factory=dict)
    best: dict[str, float | None] = field(default_factory=dict)
    best_metrics: dict[str, float | None] = field(default_factory=dict)
    """Metrics of the best evaluation; None stands for nan."""
    convergence: dict[str, list[float]] = field(default_factory=dict)
    """What the convergence watch has seen."""
    data_fingerprint: str = ""
    quarantined: list[int] = field(default_factory=list)
    """Ids of the training images that could not be used so far."""
    val_quarantined: list[int] = field(default_factory=list)
    """The same of the validation images."""

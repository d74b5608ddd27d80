"""The names that trackers are asked for by; light, for the command line."""

from __future__ import annotations

from typing import Literal

__all__ = ["TrackerName"]

TrackerName = Literal["tensorboard", "wandb", "mlflow"]

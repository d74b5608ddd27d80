"""Weights & Biases: a run of the project `detronome`, or of the one that `WANDB_PROJECT` names."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detronome.engine.events import RunEnded, RunStarted
from detronome.errors import ConfigError, MissingExtraError
from detronome.report.happenings import Happening
from detronome.report.trackers.remembered import recall, remember
from detronome.report.trackers.tracker import Results

if TYPE_CHECKING:
    import wandb

__all__ = ["WandbTracker"]

_ALERTS = ("skip", "rollback", "checkpoint_failed", "warning")
_SECONDS_BETWEEN_ALERTS = 600
"""Of one kind: alerts may be mails."""
_MOST_PICTURES = 24


class WandbTracker:
    """Writes a run to Weights & Biases, or, with `WANDB_MODE=offline`, to `RUN/wandb`, which `wandb sync` uploads.

    Numbers are drawn over `step`, so that a run that went back to a checkpoint can go on; the points of the steps
    undone stay. Without an API key the tracker fails, and says so; it is never asked for.

    Args:
        run_dir: the run folder; it names the run.
        config: all settings of the run.

    Raises:
        MissingExtraError: the package `wandb` is not installed.
    """

    label = "Weights & Biases"

    def __init__(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        try:
            import wandb  # noqa: F401
        except ImportError as error:
            raise MissingExtraError("wandb", extra="wandb", needed_for="Weights & Biases") from error
        self._run_dir = run_dir
        self._config = config
        self._id = secrets.token_hex(4)
        self._run: wandb.Run | None = None
        self._events: list[Happening] = []

    def open(self, start: RunStarted) -> None:
        import wandb

        # Asking for a key would take over the terminal that the run is shown on, and wait there for ever.
        if wandb.setup().settings.mode == "online" and not wandb.login(prompt=False, verify=False):
            raise ConfigError("it knows no API key; 'wandb login' stores one, WANDB_MODE=offline does without")
        known = recall(self._run_dir, "wandb") if start.step > 0 else {}
        self._id = known.get("id", self._id)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "detronome",
            id=self._id,
            name=os.environ.get("WANDB_NAME") or self._run_dir.resolve().name,
            dir=str(self._run_dir),
            resume="allow",
            reinit="create_new",  # a run of the caller's own is left alone
            config={**self._config, "resolved": dict(start.resolved), "environment": dict(start.environment)},
            allow_val_change=True,
            settings=wandb.Settings(console="off", silent=True),
        )
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")
        url = "" if self._run.offline else self._run.url or ""  # asked offline, it warns
        remember(self._run_dir, "wandb", {"id": self._id, "url": url})

    def write(self, numbers: Mapping[str, float], step: int) -> None:
        self._opened.log({**numbers, "step": step})

    def tell(self, happened: Happening) -> None:
        self._events.append(happened)
        if happened.kind in _ALERTS:
            text = f"{happened.sentence}\n{happened.fix}".strip()
            title = f"{self._run_dir.resolve().name}: {happened.kind.replace('_', ' ')}"
            self._opened.alert(title, text, level="WARN", wait_duration=_SECONDS_BETWEEN_ALERTS)

    def go_back(self, step: int) -> None:
        """Nothing is undone: points that were drawn stay."""

    def close(self, end: RunEnded | None, results: Results) -> None:
        try:
            if shown := self._shown(results):
                self._opened.log({**shown, "step": end.step if end else 0})
        finally:  # where a picture cannot be read, the run has ended all the same
            self._opened.finish(exit_code=0 if end is not None and end.reason != "interrupted" else 1)

    def _shown(self, results: Results) -> dict[str, Any]:
        import wandb

        shown: dict[str, Any] = {}
        if self._events:
            rows = [[event.step, event.kind, event.sentence, event.fix] for event in self._events]
            shown["events"] = wandb.Table(columns=["step", "kind", "what", "fix"], data=rows)
        if results.report is not None:
            shown["report"] = wandb.Html(str(results.report), inject=False)
        for picture in results.pictures[:_MOST_PICTURES]:  # one by one: a list is shown in the size of its first
            shown[f"pictures/{picture.path.stem}"] = wandb.Image(str(picture.path), caption=picture.caption)
        return shown

    @property
    def _opened(self) -> wandb.Run:
        assert self._run is not None, "open() comes first"
        return self._run

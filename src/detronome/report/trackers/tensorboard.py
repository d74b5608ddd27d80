"""TensorBoard: event files in the run folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from detronome.engine.events import RunEnded, RunStarted
from detronome.errors import MissingExtraError
from detronome.report.happenings import Happening
from detronome.report.trackers.tracker import Results
from detronome.runtime.progress import explain

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["TensorBoardTracker"]

_FLUSH_S = 20
_MOST_PICTURES = 24


class TensorBoardTracker:
    """Writes a run to `RUN/tensorboard`.

    A run that is resumed, or goes back by itself, continues its curves: what lies after the step that it goes on from
    is hidden (`purge_step`).

    Args:
        run_dir: the run folder.
        config: all settings of the run.

    Raises:
        MissingExtraError: the package `tensorboard` is not installed.
    """

    label = "TensorBoard"

    def __init__(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        try:
            import torch.utils.tensorboard  # noqa: F401
        except ImportError as error:
            raise MissingExtraError("tensorboard", extra="tensorboard", needed_for="the TensorBoard log") from error
        self._folder = run_dir / "tensorboard"
        self._config = config
        self._writer: SummaryWriter | None = None

    def open(self, start: RunStarted) -> None:
        self._open(purge_step=start.step + 1 if start.step > 0 else None)
        facts = {"preset": start.preset, **start.resolved, **start.environment}
        self._add_text("run", _table(facts), start.step)
        self._add_text("settings", _table(dict(_flat(self._config))), start.step)

    def write(self, numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            self._opened.add_scalar(name, value, step)

    def tell(self, happened: Happening) -> None:
        fix = f"  \n**fix:** {happened.fix}" if happened.fix else ""
        self._add_text(f"events/{happened.kind}", f"{happened.sentence}{fix}", happened.step)

    def go_back(self, step: int) -> None:
        self._opened.close()
        self._open(purge_step=step + 1)

    def close(self, end: RunEnded | None, results: Results) -> None:
        try:
            if end is not None and end.seconds:
                self._add_text("goodput", explain(end.seconds), end.step)
            for picture in results.pictures[:_MOST_PICTURES]:
                with Image.open(picture.path) as image:
                    pixels = np.asarray(image.convert("RGB"))
                name = f"pictures/{picture.path.stem}"
                self._opened.add_image(name, pixels, end.step if end else 0, dataformats="HWC")
        finally:  # a picture that cannot be read must not cost the numbers that are not on disk yet
            self._opened.close()

    @property
    def _opened(self) -> SummaryWriter:
        assert self._writer is not None, "open() comes first"
        return self._writer

    def _open(self, *, purge_step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self._folder), purge_step=purge_step, flush_secs=_FLUSH_S)

    def _add_text(self, name: str, text: str, step: int) -> None:
        self._opened.add_text(name, text, step)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in tree.items():
        rows += _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", str(value))]
    return rows


def _table(facts: Mapping[str, str]) -> str:
    return "\n".join(f"- **{key}**: {value}" for key, value in facts.items())

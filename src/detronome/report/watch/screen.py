"""Where a live view is shown: on a whole terminal, drawn again and again, or in a pipe as plain lines."""

from __future__ import annotations

import math
import sys
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.live import Live

from detronome.report.formats import clean_text
from detronome.report.terminal import is_live, speaks_unicode
from detronome.report.watch.state import RunState
from detronome.report.watch.terminal_view import draw_state
from detronome.report.watch.words import evaluation_line, progress_line, status_words

__all__ = ["WatchScreen", "print_state"]

_PIPE_WIDTH = 100
_PLAIN_INTERVAL_S = 10.0


class WatchScreen:
    """Shows one state after the other, and leaves the last one behind.

    A terminal is given back in every case. In a pipe a line comes at most every ten seconds, beside
    one for each evaluation and each thing that happened, all without control characters.

    Args:
        file: where to write; None is stdout.
    """

    def __init__(self, file: TextIO | None = None) -> None:
        self._file = file if file is not None else sys.stdout
        self._console = Console(file=self._file, highlight=False, markup=False, emoji=False)
        self._live: Live | None = None
        self._last: RunState | None = None
        self._told_at = -math.inf

    def __enter__(self) -> Self:
        if is_live(self._console, self._file):
            self._live = Live(console=self._console, screen=True, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is None:
            return
        self._live.stop()
        if self._last is not None:
            print_state(self._last, self._file)

    def show(self, state: RunState) -> None:
        """Show a state in place of the one before."""
        if self._live is None:
            self._tell(state)
        else:
            width, height = self._console.size
            view = draw_state(state, width=width, height=height, is_unicode=speaks_unicode(self._file))
            self._live.update(view, refresh=True)
        self._last = state

    def _tell(self, state: RunState) -> None:
        last = self._last
        is_same_run = last is not None and last.folder == state.folder
        told = last.num_evaluations if last is not None and is_same_run else 0
        missing = min(state.num_evaluations - told, len(state.evaluations))
        for evaluation in state.evaluations[len(state.evaluations) - max(missing, 0) :]:
            self._write(evaluation_line(evaluation))
        for happened in state.happenings:
            if last is None or not is_same_run or happened not in last.happenings:
                self._write(happened.sentence)
        has_changed = last is None or (last.status, last.folder) != (state.status, state.folder)
        if has_changed or (state.time - self._told_at >= _PLAIN_INTERVAL_S and last and last.step != state.step):
            self._told_at = state.time
            if state.status == "waiting" or not is_same_run:
                self._write(f"{clean_text(state.folder)}: {status_words(state)}")
            if state.status != "waiting":
                self._write(progress_line(state))

    def _write(self, text: str) -> None:
        encoding = getattr(self._file, "encoding", None) or "utf-8"
        self._file.write(text.encode(encoding, "replace").decode(encoding) + "\n")
        self._file.flush()


def print_state(state: RunState, file: TextIO | None = None) -> None:
    """Print all of a state once; in a pipe without control characters."""
    file = file if file is not None else sys.stdout
    console = Console(file=file, highlight=False, markup=False, emoji=False)
    width = console.width if is_live(console, file) else _PIPE_WIDTH
    view = draw_state(state, width=width, height=None, is_unicode=speaks_unicode(file))
    for line in view.renderables:
        console.print(line, soft_wrap=True)

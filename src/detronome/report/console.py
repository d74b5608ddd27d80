"""A run on the console: a header, one live line, a table row per evaluation, and how it ended.

In a pipe or a CI log the same facts come as plain lines, at most one per ten seconds beside the evaluations,
without a control character. All goes to stderr: stdout belongs to results.
"""

from __future__ import annotations

import atexit
import logging
import math
import sys
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from detronome.engine.events import Evaluated, Event, RunEnded, RunStarted, StepLogged
from detronome.report.formats import (
    clean_text,
    format_bytes,
    format_count,
    format_duration,
    format_fixed,
    format_significant,
)
from detronome.report.happenings import Happening, happening
from detronome.report.terminal import is_live, speaks_unicode
from detronome.runtime.progress import explain

__all__ = ["ConsoleProgress"]

_logger = logging.getLogger(__name__)

_ROWS_PER_TABLE_HEAD = 25
_SKIPS_SHOWN = 3
"""Skips of one cause that are shown one by one until something else happens; the rest are counted, the log has all."""
_METRICS_NARROW = ("AP", "AP50", "AP75")
_METRICS_WIDE = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
_WIDE_COLUMNS = 100
_REASONS = {"finished": "finished", "early_stop": "stopped early", "interrupted": "interrupted"}

_Segment = tuple[int, str, str]
"""Importance (0 first), style, text: a part of the live line."""


class ConsoleProgress:
    """An observer that shows a run on stderr. It never raises, whatever the order of the events.

    Colours follow the terminal and `NO_COLOR`. Call `close()` when a run may end without a `RunEnded` event;
    the terminal's cursor is given back at interpreter exit in any case.

    Args:
        file: where to write; None is stderr.
        plain_interval_s: seconds between plain lines where the output is no terminal.
        clock: seconds from any origin; given in tests.
    """

    def __init__(
        self,
        file: TextIO | None = None,
        *,
        plain_interval_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._file = file if file is not None else sys.stderr
        self._interval_s = plain_interval_s
        self._clock = clock
        console = Console(file=self._file, highlight=False, markup=False, emoji=False)
        self._console = console if is_live(console, self._file) else None
        self._live: Live | None = None
        self._is_unicode = speaks_unicode(self._file)
        self._start: RunStarted | None = None
        self._step: StepLogged | None = None
        self._shown_step: StepLogged | None = None
        self._eval_s = 0.0
        self._step_s: float | None = None
        self._shown_at = -math.inf
        self._num_rows = 0
        self._skips: list[Happening] = []

    def __call__(self, event: Event) -> None:
        try:
            if isinstance(event, RunStarted):
                self._on_start(event)
            elif isinstance(event, StepLogged):
                self._on_step(event)
            elif isinstance(event, Evaluated):
                self._on_evaluation(event)
            elif isinstance(event, RunEnded):
                self._on_end(event)
            elif (happened := happening(event.to_record())) is not None:
                self._on_happening(happened)
        except Exception:  # a closed pipe or an odd terminal must not cost a run of days
            _logger.debug("the console could not show %r", event, exc_info=True)

    def close(self) -> None:
        """Take the live line away and give the terminal back; more events may follow."""
        with suppress(Exception):
            self._count_hidden_skips()
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def _on_start(self, event: RunStarted) -> None:
        self._start = event
        self._num_rows, self._shown_at = 0, -math.inf
        dot, times = ("·", "×") if self._is_unicode else ("-", "x")
        self._write(
            ("bold", clean_text(event.preset)),
            ("", f" {dot} {format_count(event.num_parameters)} parameters"),
            ("dim", f", {format_count(event.num_trainable_parameters)} trainable"),
        )
        self._write(
            ("", f"{event.num_train_images:,} train images, {event.num_val_images:,} validation images {dot} "),
            ("", f"{event.total_epochs} epochs {times} {event.steps_per_epoch:,} steps {times} "),
            ("", f"{event.global_batch_size} images"),
        )
        width = max((len(clean_text(name)) for name in event.resolved), default=0)
        for name, reason in event.resolved.items():
            self._write(("dim", f"  {clean_text(name):<{width}}  "), ("", clean_text(reason)))
        if event.step > 0:
            self._write(("cyan", f"resumed at step {event.step:,}, epoch {format_significant(event.epoch)}"))
        self._refresh()

    def _on_step(self, event: StepLogged) -> None:
        self._step = event
        if math.isfinite(event.step_s) and event.step_s > 0:
            last = self._step_s
            self._step_s = event.step_s if last is None else 0.8 * last + 0.2 * event.step_s
        if self._console is not None:
            self._refresh()
        elif self._clock() - self._shown_at >= self._interval_s:
            self._shown_at, self._shown_step = self._clock(), event
            self._write(*self._join(self._segments(), width=None))

    def _on_happening(self, happened: Happening) -> None:
        if happened.kind == "skip":
            if self._skips and self._skips[-1].cause != happened.cause:
                self._count_hidden_skips()
            self._skips.append(happened)
            if len(self._skips) > _SKIPS_SHOWN:
                return
        else:
            self._count_hidden_skips()
        self._write(("yellow", f"warning: {happened.sentence}"))
        if happened.fix:
            self._write(("", f"  fix: {happened.fix}"))

    def _count_hidden_skips(self) -> None:
        """End a row of skips: say how many more there were."""
        hidden, self._skips = self._skips[_SKIPS_SHOWN:], []
        if hidden:
            steps = f"{len(hidden):,} more steps" if len(hidden) > 1 else "1 more step"
            first, last = hidden[0].step, hidden[-1].step
            place = f"up to step {last:,}" if last > first else f"step {last:,}"
            self._write(("yellow", f"warning: {steps} skipped for the same reason, {place}; the run log names each"))

    def _on_evaluation(self, event: Evaluated) -> None:
        self._count_hidden_skips()
        if math.isfinite(event.eval_s):
            self._eval_s += max(event.eval_s, 0.0)
        is_wide = self._console is not None and self._console.width >= _WIDE_COLUMNS
        panoptic = ("PQ",) if "PQ" in event.metrics else ()
        names = (*panoptic, *(_METRICS_WIDE if is_wide else _METRICS_NARROW))
        if self._console is None:
            metrics = "  ".join(f"{name} {format_fixed(event.metrics.get(name))}" for name in names)
            best = "  best" if event.is_best else ""
            self._write(
                ("", f"evaluated  epoch {_decimal(event.epoch)}  step {event.step:,}  {metrics}{best}"),
                ("", f"  in {format_duration(event.eval_s)}"),
            )
            return
        if self._num_rows % _ROWS_PER_TABLE_HEAD == 0:
            heads = "".join(f"{name.removeprefix('AP_') if name != 'AP' else name:>8}" for name in names)
            self._write(("dim", f"{'epoch':>7}{'step':>10}{heads}{'eval':>8}{'trained':>11}"))
        self._num_rows += 1
        star = "★" if self._is_unicode else "*"
        first, *others = (f"{format_fixed(event.metrics.get(name)):>8}" for name in names)
        self._write(
            ("", f"{_decimal(event.epoch):>7}{event.step:>10,}"),
            ("bold green" if event.is_best else "bold", first),
            ("", "".join(others)),
            ("dim", f"{format_duration(event.eval_s):>8}{format_duration(event.training_s):>11}"),
            ("green", f"  {star} best" if event.is_best else ""),
        )
        self._refresh()

    def _on_end(self, event: RunEnded) -> None:
        self._count_hidden_skips()
        if self._console is None and self._step is not self._shown_step:
            self._write(*self._join(self._segments(), width=None))
        self.close()
        reason = _REASONS.get(event.reason, clean_text(event.reason))
        ap = event.best_metrics.get("AP")
        style = "bold yellow" if event.reason == "interrupted" else "bold green"
        self._write((style, reason), ("", f" at step {event.step:,}, epoch {_decimal(event.epoch)}"))
        if ap is None:
            self._write(("", "no evaluation, so no AP"))
        else:
            pq = f", PQ {format_fixed(event.best_metrics['PQ'])}" if "PQ" in event.best_metrics else ""
            self._write(("", f"best at step {event.best_step:,}: AP "), ("bold", format_fixed(ap)), ("", pq))
        self._write(
            ("", f"training {format_duration(event.training_s)}, evaluation {format_duration(event.eval_s)}, "),
            ("", f"in all {format_duration(event.wall_s)}"),
        )
        if event.seconds:  # none in a log of an earlier version
            self._write(("", explain(event.seconds)))

    def _segments(self) -> list[_Segment]:
        """Return the parts of the progress line in their order, each with its importance."""
        start, step = self._start, self._step
        if step is None:
            return [(0, "dim", "waiting for the first steps")]
        total = f"/{start.total_epochs}" if start is not None else ""
        segments: list[_Segment] = [(1, "", f"epoch {_decimal(step.epoch)}{total}")]
        total = f"/{start.total_steps:,}" if start is not None else ""
        segments.append((8, "dim", f"step {step.step:,}{total}"))
        segments.append((0, "bold", f"loss {format_significant(step.loss)}"))
        terms = " ".join(
            f"{clean_text(name).removeprefix('loss_')} {format_significant(value)}"
            for name, value in step.losses.items()
        )
        segments.append((6, "dim", terms))
        rates = list(step.learning_rates.values())
        segments.append((7, "", f"lr {format_significant(max(rates))}" if rates else ""))
        segments.append((2, "cyan", f"{format_significant(step.images_per_s)} img/s"))
        wait = step.data_wait_s / step.step_s if step.step_s > 0 else math.nan
        is_high = math.isfinite(wait) and wait > 0.2
        segments.append((4, "yellow" if is_high else "", f"wait {_percent(wait)}"))
        gpu = step.system.get("gpu_percent")
        segments.append((5, "", "" if gpu is None else f"gpu {_percent(gpu / 100)}"))
        segments.append((9, "", format_bytes(step.memory_bytes)))
        if step.skipped_steps:
            segments.append((5, "yellow", f"{step.skipped_steps} skipped"))
        segments.append((3, "", f"ETA {format_duration(self._eta_s())}"))
        return [segment for segment in segments if segment[2]]

    def _eta_s(self) -> float | None:
        """Return the seconds left, evaluations at their present share of the time included."""
        start, step = self._start, self._step
        if start is None or step is None or self._step_s is None:
            return None
        left_s = max(start.total_steps - step.step, 0) * self._step_s
        spent_s = (step.step - start.step) * self._step_s
        return left_s * (1 + self._eval_s / spent_s) if spent_s > 0 else left_s

    def _join(self, segments: Sequence[_Segment], *, width: int | None) -> list[tuple[str, str]]:
        """Return styled texts: as many of the segments, most important first, as fit in the width."""
        gap = "  "
        kept: set[int] = set()
        left = math.inf if width is None else width
        for index in sorted(range(len(segments)), key=lambda i: segments[i][0]):
            if len(segments[index][2]) + len(gap) <= left:
                kept.add(index)
                left -= len(segments[index][2]) + len(gap)
        parts: list[tuple[str, str]] = []
        for index in sorted(kept):
            parts += [("", gap), segments[index][1:]] if parts else [segments[index][1:]]
        return parts

    def _refresh(self) -> None:
        """Draw the live line anew; does nothing in plain mode."""
        if self._console is None:
            return
        if self._live is None:
            # stdout is left alone: results may be piped from it while stderr is a terminal.
            self._live = Live(
                console=self._console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=True
            )
            self._live.start()
            atexit.register(_close_if_alive, weakref.ref(self))
        self._live.update(self._live_line(self._console.width - 1), refresh=True)

    def _live_line(self, width: int) -> Text:
        start, step = self._start, self._step
        done = step.step if step is not None else (start.step if start is not None else 0)
        line = Text(no_wrap=True, overflow="ellipsis")
        used = 0
        if start is not None and start.total_steps > 0:
            share = min(max(done / start.total_steps, 0.0), 1.0)
            cells = 12 if width < 100 else 20
            full, empty = ("━", "━") if self._is_unicode else ("#", "-")
            filled = round(share * cells)
            line.append(full * filled, style="green")
            line.append(empty * (cells - filled), style="bright_black")
            if self._console is not None and self._console.no_color:  # colour alone would tell the parts apart
                line = Text(full * filled + " " * (cells - filled), no_wrap=True, overflow="ellipsis")
            line.append(f" {100 * share:3.0f}%  ", style="green")
            used = cells + 7
        for style, text in self._join(self._segments(), width=width - used):
            line.append(text, style=style)
        return line

    def _write(self, *parts: tuple[str, str]) -> None:
        """Write one line of (style, text) parts, above the live line where there is one."""
        if self._console is not None:
            line = Text()
            for style, text in parts:
                line.append(text, style=style)
            self._console.print(line, soft_wrap=True)
            return
        text = "".join(text for _, text in parts)
        encoding = getattr(self._file, "encoding", None) or "utf-8"
        self._file.write(text.encode(encoding, "replace").decode(encoding) + "\n")
        self._file.flush()


def _close_if_alive(reference: weakref.ref[ConsoleProgress]) -> None:
    progress = reference()
    if progress is not None:
        progress.close()


def _decimal(epoch: float) -> str:
    return format_fixed(epoch, 1)


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%" if math.isfinite(share) else "-"

"""The live view in a terminal: as much of a run's state as fits, the most important first."""

from __future__ import annotations

import math
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Group
from rich.text import Text

from detronome.report.formats import clean_text, format_bytes, format_duration, format_fixed, format_significant
from detronome.report.stacked_bar import Part
from detronome.report.watch.history import Series
from detronome.report.watch.state import RunState
from detronome.report.watch.text_chart import text_chart
from detronome.report.watch.words import change_lines, status_words, system_words

__all__ = ["draw_state"]

_COLORS = ("blue", "dark_orange", "green", "magenta", "red", "cyan", "yellow", "bright_black")
_TONES = {
    "waiting": "bright_black",
    "starting": "cyan",
    "running": "green",
    "silent": "bold red",
    "finished": "green",
    "early_stop": "green",
    "interrupted": "yellow",
}
_FILLS = {"solid": "█", "striped": "▓", "dotted": "░"}
_ASCII_FILLS = {"solid": "#", "striped": "=", "dotted": "."}
_TWO_COLUMNS = 76
_GAP = 3
_TALL = 38
_HAPPENING_STYLES = {"skip": "red", "rollback": "red", "warning": "yellow", "checkpoint_failed": "dark_orange"}


@dataclass(frozen=True)
class _Curve:
    """How a curve is shown."""

    title: str
    color: str
    write: Callable[[float], str]


_CURVES = {
    "loss": _Curve("loss", "dark_orange", format_significant),
    "AP": _Curve("AP", "blue", format_fixed),
    "images_per_s": _Curve("images/s", "green", format_significant),
    "memory_bytes": _Curve("peak memory", "cyan", format_bytes),
}


@dataclass(frozen=True)
class _Block:
    """Some lines that belong together; small numbers are the last to be left out."""

    importance: int
    lines: Sequence[Text]


def draw_state(state: RunState, *, width: int, height: int | None, is_unicode: bool = True) -> Group:
    """Return the state as lines that fit in a terminal of this size.

    Args:
        state: what to show.
        width: in characters.
        height: in lines; None shows everything, and texts whole.
        is_unicode: whether more than ASCII can be shown.
    """
    draw = _Drawing(state, width, is_unicode)
    is_tall = height is None or height >= _TALL
    blocks = [
        _Block(0, draw.header()),
        _Block(1, draw.alarms()),
        _Block(2, draw.charts("loss", "AP", height=6 if is_tall else 4)),
        _Block(4, draw.charts("images_per_s", "memory_bytes", height=3)),
        _Block(3, draw.bar("one step", state.step_parts)),
        _Block(8, draw.bar("on the device", state.device_parts)),
        _Block(5, draw.verdict()),
        _Block(9, draw.machine()),
        _Block(6, draw.evaluations(5 if is_tall else 3)),
        _Block(7, draw.happenings(5 if is_tall else 3)),
        _Block(10, draw.links()),
    ]
    kept = {id(block) for block in _fitting([block for block in blocks if block.lines], height)}
    lines: list[Text] = []
    for block in blocks:
        if id(block) in kept:
            lines += [Text(), *block.lines] if lines else block.lines
    if height is not None:
        for line in lines:
            line.truncate(width, overflow="ellipsis" if is_unicode else "crop")
    return Group(*lines[:height])


def _fitting(blocks: Sequence[_Block], height: int | None) -> list[_Block]:
    kept: list[_Block] = []
    left = math.inf if height is None else height
    for block in sorted(blocks, key=lambda block: block.importance):
        needed = len(block.lines) + bool(kept)
        if needed <= left or not kept:
            kept.append(block)
            left -= needed
    return kept


class _Drawing:
    """Draws the blocks of one state."""

    def __init__(self, state: RunState, width: int, is_unicode: bool) -> None:
        self._state = state
        self._width = width
        self._is_unicode = is_unicode
        self._dot = "·" if is_unicode else "-"
        self._fills = _FILLS if is_unicode else _ASCII_FILLS

    def header(self) -> list[Text]:
        state = self._state
        title = Text.assemble((state.name, "bold"), (f" {self._dot} {state.preset}" if state.preset else "", "dim"))
        mark = "● " if self._is_unicode else ""
        lines = [self._ends(title, Text(f"{mark}{status_words(state)}", style=_TONES[state.status]))]
        if not state.total_steps:
            return [*lines, Text(clean_text(state.folder), style="dim")]
        share = min(max(state.step / state.total_steps, 0.0), 1.0)
        place = f"epoch {format_fixed(state.epoch, 1)}/{state.total_epochs}  step {state.step:,}/{state.total_steps:,}"
        bar_width = max(10, self._width - len(place) - 8)
        filled = round(share * bar_width)
        full, empty = ("━", "─") if self._is_unicode else ("#", "-")
        bar = Text.assemble((full * filled, "green"), (empty * (bar_width - filled), "bright_black"))
        lines.append(bar + Text(f" {100 * share:3.0f}%  ", style="green") + Text(place))
        numbers = state.step_numbers
        rates = [format_significant(rate) for rate in sorted(set(state.learning_rates.values()), reverse=True)[:2]]
        facts = [
            ("ETA", f"{format_duration(state.eta_s)} ({_clock(state.time + state.eta_s)})" if state.eta_s else ""),
            ("trained", format_duration(numbers["training_s"]) if "training_s" in numbers else ""),
            ("lr", ", ".join(rates)),
            ("gradient", format_significant(numbers["grad_norm"]) if "grad_norm" in numbers else ""),
            ("skipped", f"{numbers['skipped_steps']:.0f}" if numbers.get("skipped_steps") else ""),
            ("resumed", f"{state.num_resumes}x" if state.num_resumes else ""),
            ("heard", f"{format_duration(state.silent_s)} ago" if state.silent_s and not state.has_ended else ""),
        ]
        lines.append(_facts([fact for fact in facts if fact[1]]))
        if state.losses:
            terms = [(name.removeprefix("loss_"), format_significant(value)) for name, value in state.losses.items()]
            lines.append(_facts(terms))
        return lines

    def alarms(self) -> list[Text]:
        if self._state.has_ended:
            return []
        return [Text(f"it hung: {what}", style="bold red") for what in self._state.hangs[:2]]

    def charts(self, *names: str, height: int) -> list[Text]:
        """Draw curves beside each other, or below where the terminal is narrow."""
        drawn = [(name, self._state.series[name]) for name in names if name in self._state.series]
        if not drawn:
            return []
        columns = len(drawn) if self._width >= _TWO_COLUMNS else 1
        width = (self._width - _GAP * (columns - 1)) // columns
        panels = [self._chart(name, series, width, height) for name, series in drawn]
        if columns == 1:
            return [line for panel in panels for line in panel]
        return [Text(" " * _GAP).join(row) for row in zip(*panels, strict=True)]

    def _chart(self, name: str, series: Series, width: int, height: int) -> list[Text]:
        look, note = _CURVES[name], self._note(name)
        value = (look.write(series["y"][-1]), f"bold {look.color}")
        head = Text.assemble((look.title, "bold"), "  ", value, (f"  {note}" if note else "", "dim"))
        head.truncate(width, pad=True)
        x, y = series.get("smooth_x", series["x"]), series.get("smooth_y", series["y"])
        low = None if name == "loss" else 0.0
        top, bottom = look.write(max(y)), look.write(min(y) if low is None else min(low, *y))
        margin = max(cell_len(top), cell_len(bottom)) + 1
        rows = text_chart(x, y, width=max(1, width - margin), height=height, low=low, is_unicode=self._is_unicode)
        labels = [top, *[""] * (height - 2), bottom]
        return [
            head,
            *(
                Text.assemble((f"{label:>{margin - 1}} ", "dim"), (row, look.color))
                for label, row in zip(labels, rows, strict=True)
            ),
        ]

    def _note(self, name: str) -> str:
        state = self._state
        if name == "AP" and state.best is not None:
            return f"best {format_fixed(state.best.metrics['AP'])} at step {state.best.step:,}"
        if name == "memory_bytes" and state.planned_bytes is not None:
            return f"of {format_bytes(state.planned_bytes)} planned"
        return ""

    def bar(self, title: str, parts: Sequence[Part]) -> list[Text]:
        """Draw parts of a whole as a bar with its legend."""
        parts = [part for part in parts if part.tenths]
        if not parts:
            return []
        total = sum(part.value for part in parts)
        head = Text.assemble((title, "bold"), f"  {_milliseconds(total)}")
        bar, legend = Text(), Text()
        ends = [round(self._width * sum(p.tenths for p in parts[: i + 1]) / 1000) for i in range(len(parts))]
        lines = [legend]
        for part, start, end in zip(parts, [0, *ends], ends, strict=False):
            color = _COLORS[part.color % len(_COLORS)]
            bar.append(self._fills[part.fill] * (end - start), style=color)
            key = Text.assemble(
                (self._fills[part.fill], color), f" {clean_text(part.name)} ", (part.percent, "bold"), "  "
            )
            if len(lines[-1]) + len(key) > self._width and len(lines[-1]):
                lines.append(Text())
            lines[-1].append_text(key)
        return [head, bar, *lines]

    def verdict(self) -> list[Text]:
        verdict = self._state.verdict
        if verdict is None:
            return []
        gain = f"  up to {verdict.best_gain:.2f}x faster" if verdict.best_gain and verdict.best_gain > 1.01 else ""
        tone = "green" if verdict.verdict == "BALANCED" else "yellow"
        head = Text.assemble(("verdict  ", "bold"), (clean_text(verdict.verdict), f"bold {tone}"), (gain, "dim"))
        told = [Text(line) for line in textwrap.wrap(clean_text(verdict.sentence), self._width)]
        arrow = "→" if self._is_unicode else "->"
        return [head, *told, *(Text(f"  {arrow} {line}", style="dim") for line in change_lines(verdict)[:3])]

    def machine(self) -> list[Text]:
        facts = system_words(self._state)
        return [Text("machine", style="bold"), _facts(facts)] if facts else []

    def evaluations(self, count: int) -> list[Text]:
        shown = self._state.evaluations[-count:]
        if not shown:
            return []
        names = list(shown[-1].metrics) if self._width >= _TWO_COLUMNS else ["AP", "AP50", "AP75"]
        heads = "".join(f"{name if name == 'AP' else name.removeprefix('AP_'):>8}" for name in names)
        lines = [Text(f"{'epoch':>7}{'step':>10}{heads}{'took':>9}", style="dim")]
        star = "★" if self._is_unicode else "*"
        for one in shown:
            values = "".join(f"{format_fixed(one.metrics[name]):>8}" for name in names)
            line = Text(f"{format_fixed(one.epoch, 1):>7}{one.step:>10,}{values}{format_duration(one.eval_s):>9}")
            lines.append(line.append(f"  {star} best" if one == self._state.best else "", style="green"))
        return lines

    def happenings(self, count: int) -> list[Text]:
        shown = self._state.happenings[-count:]
        if not shown:
            return []
        total = sum(self._state.counts.values())
        lines = [Text.assemble(("what happened", "bold"), (f"  {total:,} in all", "dim"))]
        for one in shown:
            style = _HAPPENING_STYLES.get(one.kind, "")
            lines.append(Text.assemble((f"{one.last_step:>9,}  ", "dim"), (one.sentence, style)))
            if one.fix:
                lines.append(Text(f"{'':11}fix: {one.fix}", style="dim"))
        return lines

    def links(self) -> list[Text]:
        return [Text(f"{name}  {clean_text(url)}", style="dim") for name, url in self._state.links.items()]

    def _ends(self, left: Text, right: Text) -> Text:
        """Write one text at each end of a line."""
        left.truncate(max(1, self._width - right.cell_len - 1))
        return left + Text(" " * max(1, self._width - left.cell_len - right.cell_len)) + right


def _facts(facts: Sequence[tuple[str, str]]) -> Text:
    line = Text()
    for name, value in facts:
        line.append(f"{name} ", style="dim").append(f"{value}   ")
    return line


def _milliseconds(seconds: float) -> str:
    return f"{format_significant(seconds)} s" if seconds >= 1 else f"{format_significant(1000 * seconds)} ms"


def _clock(seconds: float) -> str:
    at = time.localtime(seconds)
    is_today = at[:3] == time.localtime()[:3]
    return time.strftime("%H:%M" if is_today else "%d %b %H:%M", at)

"""A run's state in words, the same for the terminal and for plain lines."""

from __future__ import annotations

from detronome.report.formats import (
    clean_text,
    format_bytes,
    format_duration,
    format_fixed,
    format_significant,
)
from detronome.report.run_files import VerdictFile
from detronome.report.watch.state import Evaluation, RunState

__all__ = ["change_lines", "evaluation_line", "progress_line", "status_words", "system_words"]

_STATUS = {
    "waiting": "waiting for its first word",
    "starting": "starting",
    "running": "running",
    "finished": "finished",
    "early_stop": "stopped early",
    "interrupted": "interrupted",
}
_MACHINE = (
    ("gpu_percent", "GPU", lambda value: f"{value:.0f}%"),
    ("gpu_memory_bytes", "GPU memory", format_bytes),
    ("gpu_power_w", "GPU power", lambda value: f"{value:.0f} W"),
    ("gpu_temperature_c", "GPU", lambda value: f"{value:.0f} °C"),
    ("cpu_percent", "CPU", lambda value: f"{value:.0f}%"),
    ("process_cpus", "processors of the run", lambda value: f"{value:.1f}"),
    ("ram_percent", "RAM", lambda value: f"{value:.0f}%"),
    ("rss_bytes", "RAM of the run", format_bytes),
    ("disk_read_bytes_s", "disk read", lambda value: f"{format_bytes(value)}/s"),
    ("disk_write_bytes_s", "disk write", lambda value: f"{format_bytes(value)}/s"),
)


def status_words(state: RunState) -> str:
    """Return the status, e.g. `running` or `silent for 12 min`."""
    if state.status != "silent":
        return _STATUS[state.status]
    return f"silent for {(state.silent_s or 0.0) / 60:.0f} min"


def progress_line(state: RunState) -> str:
    """Return one line on how the run is doing."""
    numbers = state.step_numbers
    of_epochs = f"/{state.total_epochs}" if state.total_epochs else ""
    of_steps = f"/{state.total_steps:,}" if state.total_steps else ""
    wait = state.data_wait_share
    parts = [
        status_words(state),
        f"epoch {format_fixed(state.epoch, 1)}{of_epochs}" if state.epoch is not None else "",
        f"step {state.step:,}{of_steps}" if state.total_steps else "",
        f"loss {format_significant(numbers['loss'])}" if "loss" in numbers else "",
        f"AP {format_fixed(state.evaluations[-1].metrics['AP'])}" if state.evaluations else "",
        f"{format_significant(numbers['images_per_s'])} img/s" if "images_per_s" in numbers else "",
        f"wait {100 * wait:.0f}%" if wait is not None else "",
        format_bytes(numbers["memory_bytes"]) if "memory_bytes" in numbers else "",
        f"ETA {format_duration(state.eta_s)}" if state.eta_s is not None else "",
    ]
    return "  ".join(part for part in parts if part)


def evaluation_line(evaluation: Evaluation) -> str:
    """Return one line on an evaluation."""
    metrics = "  ".join(f"{name} {format_fixed(evaluation.metrics[name])}" for name in ("AP", "AP50", "AP75"))
    best = "  best" if evaluation.is_best else ""
    return f"evaluated  epoch {format_fixed(evaluation.epoch, 1)}  step {evaluation.step:,}  {metrics}{best}"


def system_words(state: RunState) -> list[tuple[str, str]]:
    """Return what the machine does: name and value."""
    return [(name, write(state.system[key])) for key, name, write in _MACHINE if key in state.system]


def change_lines(verdict: VerdictFile) -> list[str]:
    """Return the changes that a verdict proposes, one a line."""
    return [": ".join(filter(None, (change.assignment, clean_text(change.why)))) for change in verdict.changes]

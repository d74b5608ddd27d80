"""Memory by cause: what was planned, beside what was measured, under the limit of the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from detronome.report.formats import clean_text, format_bytes, format_duration
from detronome.report.run_files import MemoryPeak, PlanFile
from detronome.report.run_folder import RunFolder
from detronome.report.stacked_bar import Look, Part, parts_of

__all__ = ["CAUSE_LOOKS", "MemoryBar", "MemoryView", "memory_of", "peaks_of"]

CAUSE_LOOKS = {
    "device context": Look(name="device context", color=7),
    "weights": Look(name="weights", color=0),
    "gradients": Look(name="gradients", color=0, fill="striped"),
    "optimizer": Look(name="optimizer", color=0, fill="dotted"),
    "average": Look(name="average", color=6),
    "guard": Look(name="guard", color=6, fill="striped"),
    "batch": Look(name="batch", color=1),
    "backbone": Look(name="backbone", color=2),
    "encoder": Look(name="encoder", color=2, fill="striped"),
    "decoder": Look(name="decoder", color=5),
    "heads": Look(name="heads", color=5, fill="striped"),
    "rest of the model": Look(name="rest of the model", color=5, fill="dotted"),
    "matcher and loss": Look(name="matcher and loss", color=3),
    "backward workspace": Look(name="backward workspace", color=4),
    "update workspace": Look(name="update workspace", color=4, fill="striped"),
    "allocator slack": Look(name="allocator slack", color=7, fill="striped"),
}
"""Blue: what grows with the parameters; green and teal: activations; red: workspaces."""

_WORTH_DRAWING = 2.5
"""A device of more than this many times the memory used is named instead of drawn: the bars would be slivers."""


@dataclass(frozen=True, kw_only=True)
class MemoryBar:
    """One bar: its length as a share of the scale, and its parts."""

    name: str
    note: str
    total: str
    percent: float
    """Length, 0-100 of the scale."""
    parts: Sequence[Part]
    """Empty for a measurement, whose causes nobody knows."""


@dataclass(frozen=True, kw_only=True)
class MemoryView:
    """The bars, and where the device's limit is."""

    bars: Sequence[MemoryBar]
    limit_percent: float | None
    causes: Sequence[tuple[Part, str]]
    """The parts of training's peak, each with its size in words."""
    summary: str
    facts: Sequence[str]
    """The device's limit first, which the mark in the bars means."""


def memory_of(run: RunFolder) -> MemoryView | None:
    """Return the plan's memory beside the measured peak; None where there was no plan."""
    plan = run.plan
    if plan is None:
        return None
    measured = run.peak_memory_bytes
    peaks = [plan.training.peak_bytes, plan.evaluation.peak_bytes if plan.evaluation else 0.0, float(measured or 0)]
    limit = plan.budget_bytes or plan.device.memory_bytes
    is_drawn = limit is not None and 0 < limit <= _WORTH_DRAWING * max(peaks)
    scale = max([*peaks, limit if is_drawn and limit else 0.0, 1.0]) * 1.02
    bars = [_bar("planned, training", plan.training, scale)]
    if plan.evaluation:
        bars.append(_bar("planned, evaluation", plan.evaluation, scale))
    if measured:
        bars.append(
            MemoryBar(
                name="measured",
                note="the process at its peak" if plan.device.type == "cpu" else "tensors alone, at their peak",
                total=format_bytes(measured),
                percent=100 * measured / scale,
                parts=[],
            )
        )
    parts = parts_of(plan.training.bytes_by_cause, CAUSE_LOOKS, smallest=0.001)
    return MemoryView(
        bars=bars,
        limit_percent=100 * limit / scale if is_drawn and limit else None,
        causes=[(part, format_bytes(part.value)) for part in parts],
        summary=_summary(plan.tensor_bytes, measured),
        facts=list(filter(None, [_limit(plan), *_facts(plan)])),
    )


def peaks_of(run: RunFolder) -> tuple[float, Sequence[Part]]:
    """Return the bytes to compare runs by: training's planned peak with its causes, or, without a plan, what was
    measured."""
    if run.plan is not None:
        peak = run.plan.training
        return peak.peak_bytes, parts_of(peak.bytes_by_cause, CAUSE_LOOKS, smallest=0.001)
    return float(run.peak_memory_bytes or 0), []


def _bar(name: str, peak: MemoryPeak, scale: float) -> MemoryBar:
    facts = [
        f"{peak.num_images} at {clean_text(peak.shape)}" if peak.num_images and peak.shape else clean_text(peak.shape),
        f"{peak.num_objects:,} objects" if peak.num_objects else "",
        f"in {clean_text(peak.moment)}" if peak.moment else "",
    ]
    return MemoryBar(
        name=name,
        note=", ".join(fact for fact in facts if fact),
        total=format_bytes(peak.peak_bytes),
        percent=100 * peak.peak_bytes / scale,
        parts=parts_of(peak.bytes_by_cause, CAUSE_LOOKS, smallest=0.001),
    )


def _limit(plan: PlanFile) -> str:
    device, memory, budget = clean_text(plan.device.name), plan.device.memory_bytes, plan.budget_bytes
    sizes = [f"{format_bytes(budget)} may be used" if budget else "", f"of {format_bytes(memory)}" if memory else ""]
    size = " ".join(filter(None, sizes)) if budget else format_bytes(memory) if memory else ""
    return ": ".join(filter(None, (device, size)))


def _summary(planned: float | None, measured: int | None) -> str:
    if not measured or not planned:
        return ""
    error = (planned - measured) / measured
    side = "above" if error >= 0 else "below"
    return f"the tensors were planned {abs(100 * error):.1f}% {side} what was measured"


def _facts(plan: PlanFile) -> list[str]:
    facts = []
    if plan.micro_batch_size:
        times = f" × {plan.accumulation}" if plan.accumulation and plan.accumulation > 1 else ""
        facts.append(f"micro-batch {plan.micro_batch_size}{times}")
    if plan.precision:
        facts.append(clean_text(plan.precision))
    if plan.checkpointing and plan.checkpointing != "none":
        facts.append(f"{clean_text(plan.checkpointing)} computed again in backward")
    if plan.step_s:
        facts.append(f"{1e3 * plan.step_s:,.0f} ms a step predicted")
    if plan.total_s:
        facts.append(f"{format_duration(plan.total_s)} in all predicted")
    return facts

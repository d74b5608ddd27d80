"""What a benchmark found, form by form."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from detronome.deploy.benchmark.difference import Difference
from detronome.deploy.benchmark.forms import LeftOut
from detronome.deploy.benchmark.messages import CallTimes
from detronome.runtime.speedup import Speedup, speedup_of

__all__ = ["BatchRecord", "FormRecord", "Latency", "Stages", "latency_of", "summarize", "to_json"]

_CALLS_FOR = {50: 1, 95: 20, 99: 100}
"""By percentile: calls without which it would be the slowest one and nothing else."""


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Milliseconds of a call; a percentile that so few calls cannot tell is None."""

    p50_ms: float
    p95_ms: float | None
    p99_ms: float | None
    quartiles_ms: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Stages:
    """Median milliseconds of a call by stage: from files to detections."""

    decode_ms: float
    before_ms: float
    network_ms: float
    after_ms: float


@dataclass(frozen=True, kw_only=True)
class BatchRecord:
    """One form at one batch size."""

    batch_size: int
    num_calls: int
    network: Latency
    """Pixels to logits and boxes."""
    whole: Latency
    """Files to detections."""
    stages: Stages
    images_per_s: float
    """Of the whole path, by the median call."""
    network_images_per_s: float
    network_speedup: Speedup | None
    """How many times as fast as the first form, on the same images in the same round. None for that form itself."""
    whole_speedup: Speedup | None
    network_cpu_ms: float
    """Median processor time of the network, all threads together."""
    network_cpu_speedup: Speedup | None
    """By processor time: steadier on a machine that others use, and blind to threads that wait."""
    peak_bytes: int
    """Highest use of memory while these calls ran: of the process on a CPU, of torch's allocator on a GPU."""


@dataclass(frozen=True, kw_only=True)
class FormRecord:
    """One form: what it did, or why it did not."""

    form: str
    backend: str
    precision: str
    what: str
    open_s: float | None = None
    """To load it, and to compile what is compiled then; None where it never opened."""
    file_bytes: int | None = None
    """Of an exported form, weights included."""
    batches: tuple[BatchRecord, ...] = ()
    difference: Difference | None = None
    """From the first form; None of that form itself, and where the categories are others."""
    metrics: Mapping[str, float] | None = None
    """AP, AP50, ... where they were measured."""
    failure: str = ""
    """Why it went no further; empty where it came to its end."""
    fix: str = ""


def latency_of(seconds: Sequence[float]) -> Latency:
    """Return the percentiles of the calls' times, by nearest rank.

    Args:
        seconds: of each call, at least one.
    """
    ordered = sorted(seconds)

    def percentile(q: float) -> float:
        return 1e3 * ordered[max(0, math.ceil(q / 100 * len(ordered)) - 1)]

    p50, p95, p99 = (percentile(q) if len(ordered) >= least else None for q, least in _CALLS_FOR.items())
    assert p50 is not None
    return Latency(p50_ms=p50, p95_ms=p95, p99_ms=p99, quartiles_ms=(percentile(25), percentile(75)))


def summarize(
    rounds: Sequence[Sequence[CallTimes]],
    first: Sequence[Sequence[CallTimes]] | None,
    *,
    batch_size: int,
    peak_bytes: int,
) -> BatchRecord:
    """Return the record of one form at one batch size.

    Args:
        rounds: the calls' times, by round; at least one.
        first: those of the form that it is compared with, on the same images; None for that form itself.
        batch_size: images of a call.
        peak_bytes: of memory.
    """
    calls = [call for round_ in rounds for call in round_]
    pairs = list(zip(first or (), rounds, strict=False))

    def speedup(seconds: Callable[[CallTimes], float]) -> Speedup | None:
        # Medians: a call that somebody else interrupted says nothing about either form.
        ratios = [median(map(seconds, one)) / max(median(map(seconds, other)), 1e-9) for one, other in pairs]
        return speedup_of(ratios) if ratios else None

    return BatchRecord(
        batch_size=batch_size,
        num_calls=len(calls),
        network=latency_of([call.network_s for call in calls]),
        whole=latency_of([call.whole_s for call in calls]),
        stages=Stages(
            decode_ms=1e3 * median(call.decode_s for call in calls),
            before_ms=1e3 * median(call.before_s for call in calls),
            network_ms=1e3 * median(call.network_s for call in calls),
            after_ms=1e3 * median(call.after_s for call in calls),
        ),
        images_per_s=batch_size / median(call.whole_s for call in calls),
        network_images_per_s=batch_size / median(call.network_s for call in calls),
        network_speedup=speedup(lambda call: call.network_s),
        whole_speedup=speedup(lambda call: call.whole_s),
        network_cpu_ms=1e3 * median(call.network_cpu_s for call in calls),
        network_cpu_speedup=speedup(lambda call: call.network_cpu_s),
        peak_bytes=peak_bytes,
    )


def to_json(records: Sequence[FormRecord], left_out: Sequence[LeftOut]) -> dict[str, Any]:
    """Return plain values for JSON; a number that is not defined becomes None."""
    return {
        "forms": [_plain(asdict(record)) for record in records],
        "left_out": [asdict(one) for one in left_out],
    }


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value

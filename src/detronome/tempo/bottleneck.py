"""What holds a run back: measurements in, verdict out. Nothing is measured here.

A step's seconds are shared out among five causes, and the largest share is the verdict. A loader with workers works
beside the model, so whatever is waited for there is the slowest part of all, however small the wait.

Over several ranks all wait for the slowest: its time is shared out, and what the others wait for it is the network's,
unless it has waited for its own data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import fmean, median
from typing import Any, Literal

from detronome.config.schema import RunConfig
from detronome.runtime.files import format_size
from detronome.tempo.rates import StepRates
from detronome.tempo.remedies import Change, Situation, changes_for

__all__ = [
    "Bottleneck",
    "LargerPasses",
    "Measurements",
    "Proof",
    "Verdict",
    "judge",
    "slowest_rank",
    "verdict_of_log",
]


class Bottleneck(StrEnum):
    """What holds a run back."""

    DATA = "DATA"
    """The loader: reading, decoding, augmenting, or too few processes that do it."""
    HOST = "HOST"
    """Python, launching kernels, the matcher's assignment: the device waits for them."""
    DEVICE = "DEVICE"
    """The model's computation: on a CPU, that of the processors."""
    MEMORY = "MEMORY"
    """Too little of it: small micro-batches, swapping, allocations that must be tried again."""
    NETWORK = "NETWORK"
    """Sums over ranks, or waiting for a slower rank."""
    BALANCED = "BALANCED"
    """Nothing stands out."""


_COMPUTING = ("copy", "forward", "matcher", "loss", "backward", "reduce", "update", "log")
_OF_RANKS = ("agree", "reduce")
_DOMINATES = 0.5
"""Share of a step from which on one cause is the verdict."""
_WAITS = 0.12
"""Share of a step spent waiting for a loader that works beside the model, from which on the loader is what is slow."""
_WAITS_FOR_RANK = 0.3
_SWAPS_BYTES_S = 20e6
_FULL_PERCENT = 97.0
_IDLE_CPUS = 0.5
"""Processors kept busy, below which a run on a CPU mostly waits."""
_CROWDED_PERCENT = 90.0
"""Of all processors: then a run that gets few of them waits for other programs, and not for itself."""
_RETRIES = 0.5
_IDLE_GPU_PERCENT = 60.0
_MOST_GAIN = 100.0
_TINY = 1e-9
_RECENT = 20
"""Log records that say how a run is doing: those of its end."""

Cause = Literal["data", "host", "device", "memory", "network"]


@dataclass(frozen=True, kw_only=True)
class LargerPasses:
    """The device alone with more images at once."""

    micro_batch_size: int
    rates: StepRates


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """What is known of a run's pace; of the ceilings, those that were measured."""

    run: Sequence[StepRates]
    """The run as it is, by rank."""
    loader: StepRates | None = None
    """The loader alone."""
    device: StepRates | None = None
    """The device alone, with batches that are there already."""
    copy: StepRates | None = None
    """Copies to the device alone."""
    network: StepRates | None = None
    """Sums of gradients over the ranks alone."""
    larger: LargerPasses | None = None
    busy_s: float | None = None
    """Seconds of a step in which the device computed, but for the matcher on a CPU; None where that is not known."""
    busy_of: StepRates | None = None
    """The steps that `busy_s` is a part of, without a loader."""
    num_ops: float = 0.0
    """Operations that the device was given in a step."""


@dataclass(frozen=True, kw_only=True)
class Proof:
    """A number that shows why."""

    what: str
    value: float
    unit: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What holds a run back, why, and what to change."""

    bottleneck: Bottleneck
    sentence: str
    proof: Sequence[Proof]
    best_gain: float | None = None
    """How many times faster the run could be if what holds it back took no time; None where that cannot be said."""
    changes: Sequence[Change] = ()
    """The most promising first."""
    source: Literal["profile", "log"] = "profile"
    shares: Mapping[str, float] = field(default_factory=dict)
    """Parts of a step by cause, 0-1."""

    def to_record(self) -> dict[str, Any]:
        """Return what `verdict.json` holds."""
        return {
            "format": 1,
            "verdict": str(self.bottleneck),
            "sentence": self.sentence,
            "proof": [{"what": one.what, "value": one.value, "unit": one.unit} for one in self.proof],
            "best_gain": self.best_gain,
            "changes": [change.to_record() for change in self.changes],
            "shares": dict(self.shares),
            "source": self.source,
        }


def judge(
    measured: Measurements, config: RunConfig, situation: Situation, *, source: Literal["profile", "log"] = "profile"
) -> Verdict:
    """Return what holds a run back.

    Args:
        measured: the run, and the ceilings that are known.
        config: resolved.
        situation: machine and data, which decide the changes that make sense.
        source: what the numbers come from.
    """
    slowest, lag_s = slowest_rank(measured.run)
    run = measured.run[slowest]
    step_s = sum(run.sections_s.values()) or fmean(run.step_s) or _TINY
    causes_s = _causes(measured, run, step_s, situation)
    lag = min(1.0, lag_s / step_s)
    shares = {cause: seconds / step_s for cause, seconds in causes_s.items()}
    bottleneck, reason = _decide(measured, run, shares, slowest, lag, situation)
    if bottleneck is Bottleneck.NETWORK:
        shares["network"] = max(shares["network"], lag)
    gain = _best_gain(bottleneck, measured, shares, situation)
    changes = changes_for(
        str(bottleneck), run, config, situation, reason=reason, gain=gain, larger=_larger_size(measured)
    )
    proof = [Proof(what="a step", value=1e3 * run.typical_step_s, unit="ms"), *_ceilings(measured)]
    proof += [
        Proof(what=f"{cause} of a step", value=100 * share, unit="%")
        for cause, share in shares.items()
        if share >= 0.005
    ]
    proof += _evidence(bottleneck, measured, run, lag)
    return Verdict(
        bottleneck=bottleneck,
        sentence=_sentence(bottleneck, reason, measured, run, shares, slowest, lag, situation),
        proof=proof,
        best_gain=gain,
        changes=changes,
        source=source,
        shares={str(cause): share for cause, share in shares.items()},
    )


def verdict_of_log(records: Sequence[Mapping[str, Any]], config: RunConfig) -> Verdict | None:
    """Return what held a run back, from the records of its log; None where no step was logged.

    Weaker than a profile: no ceiling is known, so the host's share is the matcher's, and what stands still beside it.

    Args:
        records: as `read_run_log` returns them.
        config: of the run, resolved.
    """
    steps = [record for record in records if record.get("kind") == "step" and record.get("sections_s")][-_RECENT:]
    if len(steps) > 1:
        steps = steps[1:] if len(steps) < _RECENT else steps  # the first has what happens once
    if not steps:
        return None
    seconds = [float(record["step_s"]) for record in steps]
    images_per_s = median(float(record["images_per_s"]) for record in steps)
    run = StepRates(
        step_s=seconds,
        images_per_step=images_per_s * median(seconds),
        sections_s=_means(record["sections_s"] for record in steps),
        device_s=_means(record.get("device_s") or {} for record in steps),
        data_stages_s=_means(record.get("data_stages_s") or {} for record in steps),
        batches_ready=fmean(float(record.get("batches_ready") or 0.0) for record in steps),
        system=_mean_gauges(record.get("system") or {} for record in steps),
        memory_bytes=int(steps[-1].get("memory_bytes") or 0),
    )
    starts = [int(record.get("num_ranks") or 0) for record in records if record.get("kind") == "start"]
    situation = Situation.of_log(config, world_size=starts[-1] if starts else 0)
    return judge(Measurements(run=[run]), config, situation, source="log")


def slowest_rank(ranks: Sequence[StepRates]) -> tuple[int, float]:
    """Return (the rank that waits least for others, mean seconds of a step that the others wait longer than it)."""
    waits = [sum(rank.sections_s.get(section, 0.0) for section in _OF_RANKS) for rank in ranks]
    slowest = waits.index(min(waits))
    others = [wait - waits[slowest] for rank, wait in enumerate(waits) if rank != slowest]
    return slowest, fmean(others) if others else 0.0


def _causes(measured: Measurements, run: StepRates, step_s: float, situation: Situation) -> dict[Cause, float]:
    """Share the seconds of the slowest rank's step out among the causes."""
    sections = run.sections_s
    data = sections.get("data_wait", 0.0)
    network = sum(sections.get(section, 0.0) for section in _OF_RANKS) if situation.world_size != 1 else 0.0
    rest = max(0.0, step_s - data - network)
    memory = _saved_by_larger_passes(measured) * rest
    rest -= memory
    host = _host_share(measured, run, situation) * rest
    return {"data": data, "host": host, "device": rest - host, "memory": memory, "network": network}


def _saved_by_larger_passes(measured: Measurements) -> float:
    """Return which part of the device-alone step more images at once would save, 0-1."""
    if measured.larger is None or measured.device is None or not measured.device.images_per_s:
        return 0.0
    faster = measured.larger.rates.images_per_s / measured.device.images_per_s
    return max(0.0, 1 - 1 / faster) if faster > 0 else 0.0


def _host_share(measured: Measurements, run: StepRates, situation: Situation) -> float:
    """Return which part of the time that neither loader nor network takes is the host's, 0-1."""
    alone = measured.busy_of
    if measured.busy_s is not None and alone is not None:
        other = sum(alone.sections_s.get(section, 0.0) for section in _OF_RANKS) if situation.world_size != 1 else 0.0
        computing_s = fmean(alone.step_s) - other
        return min(1.0, max(0.0, 1 - measured.busy_s / computing_s)) if computing_s > 0 else 0.0
    computing = {name: s for name, s in run.sections_s.items() if name in _COMPUTING}
    computing_s = sum(computing.values())
    if computing_s <= 0:
        return 0.0
    if situation.device_type == "cpu":
        idle = 0.0
        if (cpus := run.system.get("process_cpus")) is not None and "data_wait" in run.sections_s:
            waiting = run.sections_s["data_wait"] / sum(run.sections_s.values())
            idle = max(0.0, 1 - cpus - waiting) if cpus < _IDLE_CPUS and not _is_crowded_out(run) else 0.0
        return min(1.0, max(idle, computing.get("matcher", 0.0) / computing_s))
    busy = run.system.get("gpu_percent")
    return 1 - busy / 100 if busy is not None and busy < _IDLE_GPU_PERCENT else 0.0


def _is_crowded_out(run: StepRates) -> bool:
    """Whether other programs keep the processors busy that a run on a CPU would need."""
    system = run.system
    return system.get("process_cpus", 1.0) < _IDLE_CPUS and system.get("cpu_percent", 0.0) >= _CROWDED_PERCENT


def _decide(
    measured: Measurements,
    run: StepRates,
    shares: Mapping[Cause, float],
    slowest: int,
    lag: float,
    situation: Situation,
) -> tuple[Bottleneck, str]:
    """Return the verdict and the reason for it in a word, which the changes depend on."""
    system = run.system
    if system.get("swap_bytes_s", 0.0) >= _SWAPS_BYTES_S:
        return Bottleneck.MEMORY, "swap"
    if system.get("allocator_retries", 0.0) >= _RETRIES:
        return Bottleneck.MEMORY, "retries"
    is_idle = system.get("process_cpus", 1.0) < _IDLE_CPUS
    if system.get("ram_percent", 0.0) >= _FULL_PERCENT and is_idle:
        return Bottleneck.MEMORY, "swap"
    if lag >= _WAITS_FOR_RANK:
        others = [rank.sections_s.get("data_wait", 0.0) for n, rank in enumerate(measured.run) if n != slowest]
        own = run.sections_s.get("data_wait", 0.0) - fmean(others)
        if own / (sum(run.sections_s.values()) or _TINY) >= lag / 2:
            return Bottleneck.DATA, "data"
        return Bottleneck.NETWORK, "straggler"
    if situation.workers > 0 and shares["data"] >= _WAITS and shares["network"] < _DOMINATES:
        return Bottleneck.DATA, "data"
    top = max(shares, key=lambda cause: shares[cause])
    if shares[top] < _DOMINATES:
        return Bottleneck.BALANCED, top
    if top == "memory":
        return Bottleneck.MEMORY, "passes"
    if top == "host":
        return Bottleneck.HOST, "matcher" if _is_the_matcher(measured, run) else "launches"
    return Bottleneck[top.upper()], top


def _is_the_matcher(measured: Measurements, run: StepRates) -> bool:
    sections = (measured.device or run).sections_s
    computing = sum(sections.get(section, 0.0) for section in _COMPUTING)
    return sections.get("matcher", 0.0) >= 0.4 * computing


def _best_gain(
    bottleneck: Bottleneck, measured: Measurements, shares: Mapping[Cause, float], situation: Situation
) -> float | None:
    """Return how many times faster the run would be without what holds it back: as fast as the next ceiling."""
    if bottleneck is Bottleneck.BALANCED:
        return None
    rate = measured.run[0].images_per_s
    if bottleneck is Bottleneck.DEVICE:
        # No change lets a model compute in no time. Known is only where the loader would be the slowest instead.
        is_known = situation.workers > 0 and measured.loader is not None and rate > 0
        return max(1.0, measured.loader.images_per_s / rate) if is_known and measured.loader else None
    share = shares[bottleneck.value.lower()]  # type: ignore[index]
    if bottleneck is Bottleneck.MEMORY and not share:
        return None  # how fast the run would be with memory enough, nobody has measured
    gain = min(_MOST_GAIN, 1 / max(_TINY, 1 - share))
    if bottleneck is not Bottleneck.DATA and situation.workers > 0 and measured.loader is not None and rate > 0:
        gain = min(gain, max(1.0, measured.loader.images_per_s / rate))  # then the loader would be the slowest
    return gain


def _larger_size(measured: Measurements) -> int | None:
    return measured.larger.micro_batch_size if measured.larger is not None else None


def _ceilings(measured: Measurements) -> list[Proof]:
    ceilings = {
        "the run": measured.run[0],
        "loader alone": measured.loader,
        "device alone": measured.device,
        "copies alone": measured.copy,
        "network alone": measured.network,
    }
    return [
        Proof(what=what, value=rates.images_per_s, unit="images/s")
        for what, rates in ceilings.items()
        if rates is not None
    ]


def _evidence(bottleneck: Bottleneck, measured: Measurements, run: StepRates, lag: float) -> list[Proof]:
    """Return the numbers that belong to one verdict."""
    proof = []
    if bottleneck is Bottleneck.DATA:
        proof += [
            Proof(what=f"{stage} of an image", value=1e3 * seconds, unit="ms")
            for stage, seconds in sorted(run.data_stages_s.items(), key=lambda item: -item[1])
        ]
        proof.append(Proof(what="batches ready when one is asked for", value=run.batches_ready, unit="batches"))
    if bottleneck in (Bottleneck.HOST, Bottleneck.DEVICE) and measured.busy_s is not None:
        of_s = fmean(measured.busy_of.step_s) if measured.busy_of is not None else 0.0
        proof.append(Proof(what="computing on the device", value=1e3 * measured.busy_s, unit="ms"))
        proof.append(Proof(what="of a step without a loader", value=1e3 * of_s, unit="ms"))
        proof.append(Proof(what="operations of a step", value=measured.num_ops, unit="operations"))
    if bottleneck is Bottleneck.HOST and "matcher" in (measured.device or run).sections_s:
        matcher_s = (measured.device or run).sections_s["matcher"]
        proof.append(Proof(what="matcher", value=1e3 * matcher_s, unit="ms"))
    if bottleneck is Bottleneck.MEMORY:
        system = {"swap_bytes_s": "bytes/s", "ram_percent": "%", "allocator_retries": "a step"}
        proof += [
            Proof(what=name, value=run.system[name], unit=unit) for name, unit in system.items() if name in run.system
        ]
        if measured.larger is not None:
            what = f"device alone, {measured.larger.micro_batch_size} images at once"
            proof.append(Proof(what=what, value=measured.larger.rates.images_per_s, unit="images/s"))
    if bottleneck is Bottleneck.NETWORK and lag:
        proof.append(Proof(what="the other ranks' wait for the slowest", value=100 * lag, unit="%"))
    return proof


def _sentence(
    bottleneck: Bottleneck,
    reason: str,
    measured: Measurements,
    run: StepRates,
    shares: Mapping[Cause, float],
    slowest: int,
    lag: float,
    situation: Situation,
) -> str:
    device = "processors compute" if situation.device_type == "cpu" else "GPU computes"
    of_rank = f" of rank {slowest}" if len(measured.run) > 1 else ""
    match bottleneck:
        case Bottleneck.DATA:
            stages = run.data_stages_s
            slow = max(stages, key=lambda stage: stages[stage]) if stages else ""
            where = (
                f"; of {1e3 * sum(stages.values()):.3g} ms an image, {slow} takes {1e3 * stages[slow]:.3g}"
                if slow
                else ""
            )
            return f"{_percent(shares['data'])} of each step{of_rank} waits for the loader{where}."
        case Bottleneck.HOST if reason == "matcher":
            return "The matcher takes most of a step: the host solves the assignment while the device waits."
        case Bottleneck.HOST:
            if measured.busy_s is not None:
                return (
                    f"The {device} only {_percent(shares['device'])} of a step: the host takes "
                    f"{_percent(shares['host'])} for Python and for launching {measured.num_ops:,.0f} operations."
                )
            return f"The device stands still for {_percent(shares['host'])} of a step, and it does not wait for data."
        case Bottleneck.DEVICE if situation.device_type == "cpu" and _is_crowded_out(run):
            cpus = run.system["process_cpus"]
            return f"Other programs keep the processors busy: the run gets {cpus:.1f} of them for its model."
        case Bottleneck.DEVICE:
            return (
                f"The {device} the model for {_percent(shares['device'])} of a step: nothing else holds the run back."
            )
        case Bottleneck.MEMORY if reason == "passes":
            assert measured.larger is not None
            return (
                f"Micro-batches of {situation.micro_batch_size} cost {_percent(shares['memory'])} of a step: "
                f"{measured.larger.micro_batch_size} images at once take less time each."
            )
        case Bottleneck.MEMORY if reason == "retries":
            return "The device's memory is so full that allocations are tried again after all caches are emptied."
        case Bottleneck.MEMORY:
            rate = run.system.get("swap_bytes_s", 0.0)
            moved = f"{format_size(rate)} a second go to and from swap" if rate else "its memory is full"
            return f"The machine has too little memory: {moved}, and everything waits for the disk."
        case Bottleneck.NETWORK if reason == "straggler":
            return f"The other ranks wait for rank {slowest} in {_percent(lag)} of each step: it is the slowest."
        case Bottleneck.NETWORK:
            return f"{_percent(shares['network'])} of each step goes into adding up gradients over the ranks."
        case _:
            listed = ", ".join(
                f"{cause} {_percent(s)}" for cause, s in sorted(shares.items(), key=lambda i: -i[1]) if s >= 0.05
            )
            return f"Nothing stands out: {listed} of a step."


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _means(records: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Return the mean of each number over the records; one that is missing counts as nothing where others have it."""
    listed = list(records)
    names = dict.fromkeys(name for record in listed for name in record)
    return {name: fmean(float(record.get(name) or 0.0) for record in listed) for name in names}


def _mean_gauges(records: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Return the mean of each gauge over the records that have it: the first seconds of a run have no sample."""
    read: dict[str, list[float]] = {}
    for record in records:
        for name, value in record.items():
            if value is not None:
                read.setdefault(name, []).append(float(value))
    return {name: fmean(values) for name, values in read.items()}

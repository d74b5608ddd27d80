"""Which settings to change for a verdict, with what each could gain at best."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from detronome.config.schema import DetrConfig, RunConfig
from detronome.runtime.processors import usable_cpus
from detronome.tempo.rates import StepRates

__all__ = ["Change", "Situation", "changes_for"]

_MOST_CHANGES = 5
_MOST_WORKERS = 16
_LEAST_GAIN = 1.03
_LARGER_BATCH = 2
_FAST_DECODE = 0.5
"""Part of the decoding that the fast way may save, for photos of about the size that training uses."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """A setting with another value, or a variable of the environment."""

    setting: str
    value: Any
    why: str
    best_gain: float | None = None
    """How many times faster the run becomes at best; None where only trying tells."""

    def to_record(self) -> dict[str, Any]:
        """Return what `verdict.json` holds."""
        return {"setting": self.setting, "value": self.value, "why": self.why, "best_gain": self.best_gain}


@dataclass(frozen=True, kw_only=True)
class Situation:
    """Machine and data, so far as they decide which changes make sense."""

    device_type: str
    cpus: int
    """Processors that this rank may use."""
    threads: int
    """Those that torch uses."""
    world_size: int
    """0 where it is not known."""
    workers: int
    micro_batch_size: int
    cache_bytes: int | None = None
    """Size of all training images, decoded."""
    free_ram_bytes: int | None = None
    has_bf16: bool = False
    """Whether the device computes faster in it."""

    @classmethod
    def of_log(cls, config: RunConfig, *, world_size: int) -> Situation:
        """Return what a resolved configuration alone tells; `world_size` 0 where the log does not say it."""
        workers, micro_batch_size = config.data.workers, config.batch.micro_batch_size
        device_type = config.train.device.partition(":")[0]
        whole = config.batch.global_batch_size
        return cls(
            device_type=device_type,
            cpus=usable_cpus(),
            threads=usable_cpus(),
            world_size=world_size,
            workers=0 if workers == "auto" else workers,
            micro_batch_size=whole if micro_batch_size == "auto" else micro_batch_size,
            has_bf16=device_type == "cuda",
        )


def changes_for(
    verdict: str,
    run: StepRates,
    config: RunConfig,
    situation: Situation,
    *,
    reason: str,
    gain: float | None,
    larger: int | None,
) -> list[Change]:
    """Return the changes to try, the most promising first.

    Args:
        verdict: the name of the bottleneck.
        run: the slowest rank's steps.
        config: resolved.
        situation: machine and data.
        reason: what in particular is slow.
        gain: of the run without its bottleneck: no change can gain more.
        larger: images at once that were measured to be faster, if any.
    """
    match verdict:
        case "DATA":
            changes = list(_for_data(run, config, situation, gain or 1.0))
        case "HOST":
            changes = list(_for_host(config, situation, gain, is_matcher=reason == "matcher"))
        case "DEVICE":
            changes = list(_for_device(config, situation, gain))
        case "MEMORY":
            changes = list(_for_memory(config, situation, gain, reason=reason, larger=larger))
        case "NETWORK":
            changes = list(_for_network(config, gain, is_straggler=reason == "straggler"))
        case _:
            changes = []
    worthwhile = [change for change in changes if change.best_gain is None or change.best_gain >= _LEAST_GAIN]
    return sorted(worthwhile, key=lambda change: -(change.best_gain or 1.0))[:_MOST_CHANGES]


def _for_data(run: StepRates, config: RunConfig, situation: Situation, gain: float) -> Iterator[Change]:
    stages = run.data_stages_s
    image_s = sum(stages.values())
    read_s, decode_s, augment_s = (stages.get(stage, 0.0) for stage in ("read", "decode", "augment"))
    is_reading = image_s > 0 and read_s >= 0.5 * image_s

    def without(seconds: float) -> float:
        """Gain if so much less is done for each image by the same processes."""
        return min(gain, image_s / max(1e-9, image_s - seconds)) if image_s else gain

    # Reading waits for the disk, and can be waited for by more processes than there are processors.
    most = _MOST_WORKERS if is_reading else min(_MOST_WORKERS, max(situation.cpus, 1))
    needed = _workers_needed(run, situation, gain, image_s)
    workers = min(most, max(needed, 1))
    if workers > situation.workers:
        share = workers / situation.workers if situation.workers else gain
        yield Change(
            setting="data.workers",
            value=workers,
            why=f"{workers} processes prepare batches beside the model"
            + ("; they wait for the disk, so they may be more than processors" if is_reading else ""),
            best_gain=min(gain, share),
        )
    fits_cache = situation.cache_bytes is None or situation.cache_bytes <= config.data.cache_gib * 2**30
    if config.data.cache == "none" and read_s + decode_s > 0.1 * image_s:
        has_ram = situation.cache_bytes is not None and (situation.free_ram_bytes or 0) > 1.25 * situation.cache_bytes
        yield Change(
            setting="data.cache",
            value="ram" if fits_cache and has_ram else "disk",
            why="images are read and decoded once, not in every epoch; the first epoch gains nothing"
            + ("" if fits_cache else f"; data.cache_gib={config.data.cache_gib:g} holds a part of them"),
            best_gain=without(read_s + decode_s),
        )
    if config.data.decode == "exact" and decode_s > 0.1 * image_s:
        yield Change(
            setting="data.decode",
            value="fast",
            why="large photos are decoded at a fraction of their size, some levels off",
            best_gain=without(_FAST_DECODE * decode_s if not _is_large(decode_s, image_s) else decode_s),
        )
    if config.data.augment_on == "cpu" and situation.device_type == "cuda" and augment_s > 0.2 * image_s:
        yield Change(
            setting="data.augment_on",
            value="device",
            why="the GPU resizes and changes colours; the workers only decode",
            best_gain=without(augment_s),
        )
    jitter = max(config.augment.brightness, config.augment.contrast, config.augment.saturation)
    if situation.device_type == "cpu" and jitter > 0 and augment_s > 0.4 * image_s:
        yield Change(
            setting="augment.saturation",
            value=0.0,
            why="colour jitter is the dearest part of augmentation; this changes the recipe",
        )
    if situation.workers > 0 and run.batches_ready >= 0.5 and config.data.prefetch < 4:
        yield Change(setting="data.prefetch", value=4, why="a slow batch is made up for by those prepared earlier")


def _is_large(decode_s: float, image_s: float) -> bool:
    return decode_s >= 0.7 * image_s


def _workers_needed(run: StepRates, situation: Situation, gain: float, image_s: float) -> int:
    """Return the processes that keep up with the run as fast as it could be."""
    rate = gain * run.images_per_s / max(1, situation.world_size)
    return math.ceil(rate * image_s) if image_s > 0 else situation.workers + 1


def _for_host(config: RunConfig, situation: Situation, gain: float | None, *, is_matcher: bool) -> Iterator[Change]:
    queries = config.model.num_queries
    if is_matcher:
        if isinstance(queries, int) and queries > 100:
            fewer = max(100, queries // 3)
            yield Change(
                setting="model.num_queries",
                value=fewer,
                why="the matcher's work grows with the queries, and twice the objects of the fullest image are enough; "
                "this is another model",
                best_gain=min(queries / fewer, gain or math.inf),
            )
        if config.loss.aux_loss and config.model.num_decoder_layers > 1:
            yield Change(
                setting="loss.aux_loss",
                value=False,
                why="only the last decoder layer is matched; this changes the recipe, and mostly costs accuracy",
                best_gain=min(float(config.model.num_decoder_layers), gain or math.inf),
            )
        return
    whole = -(-config.batch.global_batch_size // max(1, situation.world_size))
    if situation.micro_batch_size < whole:
        yield Change(
            setting="batch.micro_batch_size",
            value=whole,
            why="fewer passes, so fewer launches; the gradient stays the same",
            best_gain=min(whole / situation.micro_batch_size, gain or math.inf),
        )
    if not config.train.compile:
        yield Change(setting="train.compile", value=True, why="fewer and larger kernels, after minutes at the start")
    if situation.workers >= situation.cpus > 1:
        yield Change(
            setting="data.workers",
            value=situation.cpus - 1,
            why="the loader's processes leave a processor to the one that launches the work",
        )
    yield Change(
        setting="batch.global_batch_size",
        value=_LARGER_BATCH * config.batch.global_batch_size,
        why="more work for each launch; this changes the recipe: the rate must be found anew",
        best_gain=min(float(_LARGER_BATCH), gain or math.inf),
    )


def _for_device(config: RunConfig, situation: Situation, gain: float | None) -> Iterator[Change]:
    train = config.train
    if train.checkpoint_activations != "none":
        yield Change(
            setting="train.checkpoint_activations",
            value="none",
            why="nothing is computed twice, if memory has room",
            best_gain=min(4 / 3, gain or math.inf),  # forward again is a quarter of the work
        )
    if train.precision == "fp32" and situation.has_bf16:
        yield Change(
            setting="train.precision",
            value="bf16",
            why="matrix units compute several times faster in bf16, with three digits",
        )
    if not train.channels_last and config.train.parallel != "fsdp":
        yield Change(setting="train.channels_last", value=True, why="the convolutions' faster memory layout")
    if not train.compile:
        yield Change(setting="train.compile", value=True, why="fused kernels, after minutes at the start")
    if situation.device_type == "cpu" and situation.threads < situation.cpus:
        yield Change(
            setting="OMP_NUM_THREADS",
            value=situation.cpus,
            why=f"torch uses {situation.threads} of {situation.cpus} processors",
            best_gain=min(situation.cpus / situation.threads, gain or math.inf),
        )
    if config.data.augment_on == "device" and situation.device_type != "cpu":
        yield Change(setting="data.augment_on", value="cpu", why="the workers augment, the device only trains")
    if isinstance(config.model, DetrConfig) and not config.data.buckets:
        yield Change(setting="data.buckets", value="auto", why="less padding is computed")


def _for_memory(
    config: RunConfig, situation: Situation, gain: float | None, *, reason: str, larger: int | None
) -> Iterator[Change]:
    if reason == "passes":
        if larger is not None:
            yield Change(
                setting="batch.micro_batch_size",
                value=larger,
                why="measured to be faster; the gradient stays the same (BatchNorm apart)",
                best_gain=gain,
            )
        return
    if situation.micro_batch_size > 1:
        yield Change(
            setting="batch.micro_batch_size",
            value=max(1, situation.micro_batch_size // 2),
            why="half the activations; the gradient stays the same (BatchNorm apart)",
        )
    if config.train.checkpoint_activations == "none":
        yield Change(
            setting="train.checkpoint_activations",
            value="backbone",
            why="the backbone is computed again in backward instead of kept",
        )
    if reason == "swap":
        if situation.workers > 1:
            yield Change(setting="data.workers", value=situation.workers // 2, why="each holds prefetched batches")
        if config.data.cache == "ram":
            yield Change(setting="data.cache", value="disk", why="the cache no longer lies in memory")
    elif config.train.precision == "fp32":
        yield Change(setting="train.precision", value="bf16", why="activations take half the memory")


def _for_network(config: RunConfig, gain: float | None, *, is_straggler: bool) -> Iterator[Change]:
    if is_straggler:
        yield Change(
            setting="the slowest rank's machine",
            value="look for other programs, a slower or hotter device, a slower disk",
            why="all ranks go at its pace",
            best_gain=gain,
        )
        return
    if config.train.parallel == "fsdp":
        yield Change(
            setting="train.parallel",
            value="ddp",
            why="one sum a step instead of gathering every layer, if memory has room for the whole model",
        )
    yield Change(
        setting="NCCL_SOCKET_IFNAME",
        value="the fastest interface",
        why="between machines, the one chosen by default may be the slow one (on CPUs: GLOO_SOCKET_IFNAME)",
        best_gain=gain,
    )
    yield Change(
        setting="batch.global_batch_size",
        value=_LARGER_BATCH * config.batch.global_batch_size,
        why="one sum for twice the images; this changes the recipe: the rate must be found anew",
        best_gain=min(float(_LARGER_BATCH), gain or math.inf),
    )

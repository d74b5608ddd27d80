"""Making a run faster: `tune` measures, and writes settings that can be read."""

from __future__ import annotations

import datetime
import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from detronome.api.arguments import one_process
from detronome.api.asked import asked_config, open_splits
from detronome.api.folders import may_write, writing
from detronome.api.planning import RunPlanner
from detronome.config.convert import apply_overrides
from detronome.config.schema import RunConfig
from detronome.data.build import cached_bytes, resolve_workers
from detronome.data.sampler import steps_per_epoch
from detronome.engine.resolve import resolve
from detronome.errors import ConfigError
from detronome.model import Model
from detronome.runtime.device import describe_environment
from detronome.runtime.files import write_atomic
from detronome.runtime.host_memory import host_memory
from detronome.runtime.processors import usable_cpus
from detronome.tempo.autotune import Tried, Tuner, TuningResult
from detronome.tempo.bottleneck import Verdict, judge
from detronome.tempo.ceilings import measure_ceilings, situation_of
from detronome.tempo.comparison import Trial
from detronome.tempo.evaluation_trial import EvaluationTrial
from detronome.tempo.measure import TrialRun
from detronome.tempo.proposals import Part, Proposal, TuningFacts, propose
from detronome.tempo.rates import StepRates
from detronome.tempo.settings_file import differing_settings, settings_toml

__all__ = ["Tuning", "tune"]

_CACHE_SHARE = 0.2
"""A cache is tried where filling it takes no more than this part of the time that there is."""

_LEFT_TO_TRY = 0.5
"""On a slow machine the verdict may take long: so much of the time is left to try changes in any case."""


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What a tuning session found, and where it was written."""

    file: Path
    """The settings, valid as `--config`."""
    result: TuningResult
    verdict: Verdict
    """What the steps waited for before anything was changed, which decided what was tried first."""
    environment: Mapping[str, str]
    """Machine and versions."""


def tune(
    data: str | Path,
    *,
    model: str | Path | Model = "detr-r50",
    config: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    out: str | Path = "tuned.toml",
    budget_minutes: float = 10.0,
    allow_inexact: bool = False,
    on_begin: Callable[[str], None] = lambda _: None,
    on_tried: Callable[[Tried], None] = lambda _: None,
) -> Tuning:
    """Find out by measurement which settings make a run faster, and write those that are proven to.

    Changes are tried one at a time, in turn with the configuration as it is. Nothing is trained that stays. The
    effective batch, the rates and the recipe are not touched. Ctrl-C ends the session and keeps what is proven.

    Args:
        data: as for `train`.
        model: as for `train`.
        config: a TOML file on top of the preset.
        settings: dotted settings on top of both.
        out: the file that is written: what differs from the preset, valid as `--config`. It must not exist.
        budget_minutes: about how long to look.
        allow_inexact: also try what changes the numbers by more than rounding (`data.decode=fast`, bf16, ...).
        on_begin: is told what is measured next.
        on_tried: is told of each change that was tried.

    Raises:
        ConfigError: settings that cannot work, or `out` exists or cannot be written.
        DataError: the data cannot be used.
    """
    one_process("tune")
    path = Path(out)
    if path.exists():
        raise ConfigError("the file exists, and may be of use to you", where=str(path), fix="choose another --out")
    if not (math.isfinite(budget_minutes) and budget_minutes > 0):
        raise ConfigError(f"a budget of {budget_minutes:g} minutes", where="budget_minutes", fix="give e.g. 10")
    asked, start_from = asked_config(data, model=model, config=config, settings=settings)
    preset_alone, _ = asked_config(data, model=start_from or model)
    train, val = open_splits(asked)
    resolved = resolve(asked, train, planner=RunPlanner(train, val))
    epoch_steps = steps_per_epoch(len(train.index), asked.batch.global_batch_size)

    categories = start_from.categories if start_from else None
    may_write(path)
    began = time.perf_counter()
    on_begin("what a step waits for")
    with TrialRun(resolved.config, train, categories=categories) as trial:
        verdict = judge(measure_ceilings(trial), resolved.config, situation_of(trial, train))
    first_of_all = [change.setting for change in verdict.changes]
    wanted_workers = next((change.value for change in verdict.changes if change.setting == "data.workers"), None)

    def measure(config: RunConfig, part: Part) -> AbstractContextManager[Trial]:
        if part == "evaluation":
            assert val is not None
            return EvaluationTrial(config, train, val)
        trial = TrialRun(config, train, categories=categories)
        if config.data.cache != "none":
            try:
                trial.steps(1, warmup=epoch_steps)  # what a run gains after its first epoch
            except BaseException:
                trial.close()
                raise
        return trial

    def changes(config: RunConfig, first: StepRates) -> list[Proposal]:
        facts = TuningFacts(
            device_type=resolved.device.type,
            num_processors=usable_cpus(),
            likely_workers=wanted_workers or _auto_workers(config, resolved.device, train.index.sizes_hw),
            cache_bytes=cached_bytes(config, train),
            free_ram_bytes=host_memory().available_bytes,
            data_wait=first.sections_s.get("data_wait", 0.0) / max(1e-9, sum(first.sections_s.values())),
        )
        fill_s = epoch_steps * first.typical_step_s
        return [
            proposal
            for proposal in propose(config, facts, first=first_of_all)
            if (val is not None or proposal.part != "evaluation")
            and (proposal.setting != "data.cache" or fill_s < _CACHE_SHARE * 60 * budget_minutes)
        ]

    tuner = Tuner(
        resolved.config,
        measure,
        changes,
        budget_s=max(_LEFT_TO_TRY * 60 * budget_minutes, 60 * budget_minutes - (time.perf_counter() - began)),
        allow_inexact=allow_inexact,
        on_begin=on_begin,
        on_tried=on_tried,
    )
    result = tuner.run()
    environment = describe_environment(resolved.device)
    with writing(path):
        write_atomic(path, _tuned_toml(asked, preset_alone, result, environment))
    return Tuning(file=path, result=result, verdict=verdict, environment=environment)


def _auto_workers(config: RunConfig, device: torch.device, sizes_hw: Any) -> int:
    free = apply_overrides(config, {"data.workers": "auto"})
    return resolve_workers(free, device.type, sizes_hw)[0]


def _tuned_toml(asked: RunConfig, preset_alone: RunConfig, result: TuningResult, environment: Mapping[str, str]) -> str:
    """Return what differs from the preset: what was asked for, and what was found, with its proof."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    machine = ", ".join(f"{name} {value}" for name, value in environment.items())
    header = [f"detronome tune, {today}: {machine}"]
    for part, final in result.final.items():
        gain = final.speedup
        if gain is not None and part not in result.taken_back:
            header.append(
                f"{part}: {final.baseline_images_per_s:.3g} -> {final.candidate_images_per_s:.3g} images/s, "
                f"x {gain.ratio:.2f} ({gain.low:.2f}-{gain.high:.2f}), measured in turn"
            )
    if not result.settings:
        header.append("nothing was proven to make the run faster: it stays as it was asked for")
    reasons: dict[str, list[str]] = {}
    for tried in result.tried:
        name = tried.proposal.setting
        if tried.is_kept and name in result.settings:
            assert tried.comparison is not None and tried.comparison.speedup is not None
            gain = tried.comparison.speedup
            reasons[name] = [
                f"was {tried.before}: x {gain.ratio:.2f} ({gain.low:.2f}-{gain.high:.2f}, {gain.num_pairs} pairs)",
                f"changes in the numbers: {tried.proposal.changes}",
            ]
    settings = differing_settings(apply_overrides(asked, result.settings), preset_alone)
    if len(settings) > len(reasons):
        header.append("settings without a note are as they were given")
    return settings_toml(settings, header=header, reasons=reasons)

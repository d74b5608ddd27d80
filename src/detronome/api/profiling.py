"""What a run waits for: measured for a while without training anything that stays, or read from the log of a run."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from detronome.api.arguments import whole_number
from detronome.api.asked import asked_config, open_a_split
from detronome.api.folders import writing
from detronome.api.planning import RunPlanner
from detronome.config.convert import apply_overrides, from_dict, read_toml
from detronome.config.schema import RunConfig
from detronome.data.store.shards.cloud import is_url
from detronome.engine.resolve import resolve
from detronome.errors import ConfigError, DataError
from detronome.model import Model
from detronome.report.run_log import read_run_log
from detronome.runtime.device import describe_environment, resolve_device
from detronome.runtime.distributed import World, joined_world
from detronome.runtime.files import write_atomic
from detronome.tempo.bottleneck import Measurements, Verdict, judge, verdict_of_log
from detronome.tempo.ceilings import measure_ceilings, situation_of
from detronome.tempo.measure import TrialRun
from detronome.types import Categories

__all__ = ["Profile", "profile", "write_verdict"]

_VERDICT_FILE = "verdict.json"
_TIMEOUT_S = 1800.0
_MOST_ALLOCATIONS = 200_000
_STEPS_IN_SNAPSHOT = 2


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What was measured of a run, and what holds it back."""

    name: str
    """The data folder or the run that was profiled."""
    verdict: Verdict
    measured: Measurements
    config: RunConfig
    """Without any `auto`."""
    environment: Mapping[str, str]
    """Machine and versions."""
    is_main: bool = True
    """Whether this rank is the one that tells."""

    def to_json(self) -> dict[str, Any]:
        """Return verdict and ceilings as plain data."""
        run = self.measured.run[0]
        ceilings = {
            "run": run,
            "loader": self.measured.loader,
            "device": self.measured.device,
            "copy": self.measured.copy,
            "network": self.measured.network,
        }
        return {
            "profiled": self.name,
            "preset": self.config.preset,
            **self.verdict.to_record(),
            "images_per_s": {name: rates.images_per_s for name, rates in ceilings.items() if rates is not None},
            "step_s": run.typical_step_s,
            "sections_s": dict(run.sections_s),
            "device_s": dict(run.device_s),
            "data_stages_s": dict(run.data_stages_s),
            "system": dict(run.system),
            "ranks": [{"sections_s": dict(rank.sections_s)} for rank in self.measured.run],
            "environment": dict(self.environment),
        }


def profile(
    data_or_run: str | Path,
    *,
    model: str | Path | Model = "detr-r50",
    steps: int | None = None,
    settings: Mapping[str, Any] | None = None,
    config: str | Path | None = None,
    trace: str | Path | None = None,
    memory_snapshot: str | Path | None = None,
) -> Profile:
    """Measure what a training run's steps wait for: the run as it is, and loader, device, copies and network alone.

    Nothing is trained that stays, and a run's folder is only read. Under torchrun all ranks take part.

    Args:
        data_or_run: a data folder, as for `train`; or a run, whose configuration is taken.
        model: as for `train`; a run brings its own.
        steps: how many steps to measure; by default as many as take some seconds.
        settings: dotted settings on top.
        config: a TOML file on top of the preset, below `settings`.
        trace: write a profiler's trace of two steps there (JSON, for Perfetto or chrome://tracing).
        memory_snapshot: write the allocations of two steps there, for pytorch.org/memory_viz; needs a CUDA device.

    Raises:
        ConfigError: settings that cannot work, or a file that cannot be written.
        DataError: the data cannot be used.
    """
    if steps is not None:
        whole_number(steps, "steps", least=2, of_what="{!r} steps cannot be measured")
    asked, categories = _asked(Path(data_or_run), data_or_run, model, settings, config)
    with joined_world("cuda" if torch.cuda.is_available() else "cpu", timeout_s=_TIMEOUT_S) as world:
        device, _ = resolve_device(asked.train.device)
        if memory_snapshot is not None and device.type != "cuda":
            raise ConfigError(
                f"a memory snapshot shows what CUDA's allocator holds, and this run computes on {device.type}",
                where="--memory-snapshot",
                fix="leave it out, or profile where a CUDA device is",
            )
        train = open_a_split(asked.data.root, asked.data.train_split, asked)
        planner = RunPlanner(train, None, world=world)
        fitted = world.on_main(lambda: resolve(asked, train, world, planner=planner).config)
        with TrialRun(fitted, train, world=world, categories=categories) as trial:
            measured = _measure(trial, steps, trace, memory_snapshot, world)
            return Profile(
                name=str(data_or_run),
                verdict=judge(measured, trial.resolved.config, situation_of(trial, train)),
                measured=measured,
                config=trial.resolved.config,
                environment=describe_environment(trial.resolved.device),
                is_main=world.is_main,
            )


def write_verdict(run_dir: Path, config: RunConfig) -> Path | None:
    """Write what held a run back into its folder, from its log; None where the log does not tell.

    Args:
        run_dir: the run.
        config: of the run, resolved.
    """
    try:
        verdict = verdict_of_log(read_run_log(run_dir / "log.jsonl"), config)
    except DataError:
        return None
    if verdict is None:
        return None
    with writing(run_dir):
        write_atomic(run_dir / _VERDICT_FILE, json.dumps(verdict.to_record(), indent=1) + "\n")
    return run_dir / _VERDICT_FILE


def _asked(
    path: Path,
    data_or_run: str | Path,
    model: str | Path | Model,
    settings: Mapping[str, Any] | None,
    config: str | Path | None,
) -> tuple[RunConfig, Categories | None]:
    """Return the configuration that is asked for, and the classes of the model that it goes on from, if any."""
    held = path / "config.toml"
    if not held.is_file():
        asked, start_from = asked_config(data_or_run, model=model, config=config, settings=settings)
        return asked, start_from.categories if start_from is not None else None
    asked = from_dict(read_toml(held), where=str(held))
    if config is not None:
        asked = from_dict(read_toml(Path(config)), base=asked, where=str(config))
    asked = apply_overrides(asked, settings or {})
    if not is_url(asked.data.root) and not Path(asked.data.root).is_dir():
        raise DataError(
            "the data of the run are not there any more", where=asked.data.root, fix="say where: --set data.root=FOLDER"
        )
    return asked, None


def _measure(
    trial: TrialRun, steps: int | None, trace: str | Path | None, memory_snapshot: str | Path | None, world: World
) -> Measurements:
    for option, path in (("--trace", trace), ("--memory-snapshot", memory_snapshot)):
        if path is not None and world.is_main:
            with writing(Path(path), option=option):
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                Path(path).open("ab").close()  # a refusal comes now, not after a minute of measuring
    measured = measure_ceilings(trial, steps=steps, trace=Path(trace) if trace is not None else None)
    if memory_snapshot is not None:
        _write_snapshot(trial, Path(memory_snapshot), world)
    return measured


def _write_snapshot(trial: TrialRun, path: Path, world: World) -> None:
    """Write who holds which memory of the device while two steps are done."""
    torch.cuda.memory._record_memory_history(max_entries=_MOST_ALLOCATIONS)
    try:
        trial.device_alone(_STEPS_IN_SNAPSHOT, warmup=0)
        snapshot = torch.cuda.memory._snapshot()
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)
    if world.is_main:
        with writing(path, option="--memory-snapshot"):
            write_atomic(path, pickle.dumps(snapshot))

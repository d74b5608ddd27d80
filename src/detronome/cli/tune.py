"""`detronome tune`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from detronome.cli.options import MODEL_GROUP, OUTPUT_GROUP, Json, Model, Settings, parse_settings
from detronome.cli.render import print_json, print_line, print_notice, print_table

if TYPE_CHECKING:
    from detronome.api.tuning import Tuning
    from detronome.tempo.autotune import Tried
    from detronome.tempo.comparison import Comparison

__all__ = ["tune"]


def tune(
    data: str,
    /,
    *,
    model: Model = "detr-r50",
    config: Annotated[Path | None, MODEL_GROUP] = None,
    settings: Settings = None,
    out: Annotated[Path, OUTPUT_GROUP] = Path("tuned.toml"),
    budget_minutes: float = 10.0,
    allow_inexact: Annotated[bool, Parameter(negative=())] = False,
    json: Json = False,
) -> None:
    """Try changes one at a time, each in turn with the run as it is, and keep those that are proven to make it faster.

    Parameters
    ----------
    data
        As for train.
    model
        As for train.
    config
        TOML file with settings, on top of the preset.
    out
        File for what was found, valid as --config; it must not exist.
    budget_minutes
        About how long to look.
    allow_inexact
        Also try what changes the numbers by more than rounding: fast decoding, bf16, other padding.
    """
    from detronome import api

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    tuning = api.tune(
        data,
        model=model,
        config=config,
        settings=parse_settings(settings),
        out=out,
        budget_minutes=budget_minutes,
        allow_inexact=allow_inexact,
        on_begin=lambda what: console.print(Text(f"measuring {what}", style="dim")),
        on_tried=lambda tried: console.print(Text("  ") + _verdict(tried) + Text(f"  {_gain(tried)}".rstrip())),
    )
    print_json(_record(tuning)) if json else _print(tuning, train_command=_train_command(data, model, out))


def _print(tuning: Tuning, *, train_command: str) -> None:
    result = tuning.result
    print_line(f"{tuning.verdict.bottleneck}: {tuning.verdict.sentence}")
    if result.tried:
        table = Table(box=None, pad_edge=False)
        for heading in ("setting", "from", "to", "speed", "95 %", "verdict", "changes in the numbers"):
            table.add_column(heading, justify="right" if heading == "speed" else "left")
        for tried in result.tried:
            gain = tried.comparison.speedup if tried.comparison else None
            table.add_row(
                tried.proposal.setting,
                _shown(tried.before),
                _shown(tried.proposal.value),
                f"x {gain.ratio:.2f}" if gain else "-",
                f"{gain.low:.2f}-{gain.high:.2f}" if gain else "-",
                _verdict(tried),
                Text(tried.proposal.changes),
            )
        print_table(table)
    for part, final in result.final.items():
        print_line(f"{part}: {_before_and_after(final)}")
    if result.not_tried:
        names = dict.fromkeys(f"{proposal.setting}={_shown(proposal.value)}" for proposal in result.not_tried)
        print_notice(f"not tried, for they change more than rounding (--allow-inexact): {', '.join(names)}")
    if result.reason == "interrupted":
        print_notice("interrupted: what was proven until then is kept, and was not measured as a whole")
    elif result.reason == "out of time":
        print_notice("time was over before all was tried (--budget-minutes)")
    if result.failure:
        print_notice(f"a final comparison failed: {result.failure}")
    for part in result.taken_back:
        print_notice(f"{part}: together the changes are not proven to be faster, so they were taken back")
    if result.settings:
        print_line(f"settings  {tuning.file}\nnext      {train_command}")
    else:
        print_line(f"nothing was proven to make the run faster: it stays as it is ({tuning.file} says so)")


def _verdict(tried: Tried) -> Text:
    if tried.comparison is None:
        return Text(f"failed: {tried.failure}", style="red")
    verdict = "kept" if tried.is_kept else str(tried.comparison.outcome)
    return Text(verdict, style="bold green" if tried.is_kept else "dim")


def _gain(tried: Tried) -> str:
    gain = tried.comparison.speedup if tried.comparison else None
    return f"x {gain.ratio:.2f} ({gain.low:.2f}-{gain.high:.2f})" if gain else ""


def _before_and_after(final: Comparison) -> str:
    gain = final.speedup
    told = f", x {gain.ratio:.2f} (95 %: {gain.low:.2f}-{gain.high:.2f}, measured in turn)" if gain else ""
    return f"{final.baseline_images_per_s:.3g} -> {final.candidate_images_per_s:.3g} images/s{told}"


def _train_command(data: str, model: str, out: Path) -> str:
    return f"detronome train {shlex.quote(data)} --model {shlex.quote(model)} --config {shlex.quote(str(out))}"


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _record(tuning: Tuning) -> dict[str, Any]:
    result = tuning.result
    return {
        "file": str(tuning.file),
        "reason": result.reason,
        "verdict": tuning.verdict.to_record(),
        "settings": dict(result.settings),
        "before_images_per_s": result.first.images_per_s,
        "sections_s": dict(result.first.sections_s),
        "tried": [
            {
                "setting": tried.proposal.setting,
                "from": tried.before,
                "to": tried.proposal.value,
                "effect": str(tried.proposal.effect),
                "changes": tried.proposal.changes,
                "is_kept": tried.is_kept,
                "failure": tried.failure or None,
                "comparison": _comparison(tried.comparison),
            }
            for tried in result.tried
        ],
        "not_tried": [f"{proposal.setting}={_shown(proposal.value)}" for proposal in result.not_tried],
        "final": {part: _comparison(comparison) for part, comparison in result.final.items()},
        "taken_back": list(result.taken_back),
        "failure": result.failure or None,
        "seconds": result.seconds,
        "environment": dict(tuning.environment),
    }


def _comparison(comparison: Comparison | None) -> dict[str, Any] | None:
    if comparison is None:
        return None
    gain = comparison.speedup
    return {
        "outcome": str(comparison.outcome),
        "speedup": gain.ratio if gain else None,
        "low": gain.low if gain else None,
        "high": gain.high if gain else None,
        "num_pairs": gain.num_pairs if gain else 0,
        "before_images_per_s": comparison.baseline_images_per_s,
        "after_images_per_s": comparison.candidate_images_per_s,
    }

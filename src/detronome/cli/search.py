"""`detronome search`."""

from __future__ import annotations

import json as json_module
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from detronome.cli.options import MACHINE_GROUP, MODEL_GROUP, OUTPUT_GROUP, Json, Model, Settings, parse_settings
from detronome.cli.render import print_json, print_line, print_notice, print_table
from detronome.runtime.signals import exit_code

if TYPE_CHECKING:
    from detronome.api.searching import Search
    from detronome.tempo.search import Evaluation, FinishedTrial, TrialInfo

__all__ = ["search"]

_STYLES = {"done": "", "pruned": "dim", "failed": "red", "running": "cyan", "interrupted": "yellow"}

Space = Annotated[
    list[str],
    Parameter(
        negative=(),
        consume_multiple=True,
        help="What to vary: optim.lr=1e-4..1e-2:log model.num_queries=25|50|100 model.num_decoder_layers=2..6 ...",
    ),
]


def search(
    data: str,
    /,
    *,
    space: Space,
    epochs: Annotated[int, MODEL_GROUP],
    out: Annotated[Path, OUTPUT_GROUP],
    model: Model = "detr-r50",
    config: Annotated[Path | None, MODEL_GROUP] = None,
    settings: Settings = None,
    trials: int = 20,
    jobs: Annotated[int, MACHINE_GROUP] = 1,
    pruner: Literal["median", "halving", "none"] = "median",
    seed: int = 0,
    json: Json = False,
) -> int:
    """Train again and again with other settings, and find those with the highest AP; the same command goes on.

    Parameters
    ----------
    data
        As for train.
    epochs
        Length of a trial.
    out
        Folder for the study and its runs.
    model
        As for train.
    config
        TOML file with settings, on top of the preset.
    trials
        How many the folder is to hold in the end.
    jobs
        Processes that train at the same time; or start the same command several times.
    pruner
        Who is ended early: below the median of the others, all but the best quarter again and again (ASHA), or nobody.
    seed
        Of what is tried.
    """
    from detronome import api

    progress = _Progress()
    found = api.search(
        data,
        space=space,
        epochs=epochs,
        out=out,
        model=model,
        config=config,
        settings=parse_settings(settings),
        trials=trials,
        jobs=jobs,
        pruner=pruner,
        seed=seed,
        on_begin=progress.begin,
        on_evaluation=progress.evaluate,
        on_end=progress.end,
    )
    if found.result.interrupted_by:
        print_notice("interrupted: the same command goes on")
    if json:
        print_json(_record(found))
    else:
        _print(found, data=data, model=model)
    return exit_code(found.result.interrupted_by) if found.result.interrupted_by else 0


class _Progress:
    """Tells on stderr what becomes of the trials."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)

    def begin(self, trial: TrialInfo) -> None:
        settings = " ".join(f"{name}={_shown(value)}" for name, value in trial.settings.items())
        self._console.print(Text(f"trial {trial.number}  {settings}"))

    def evaluate(self, evaluation: Evaluation) -> None:
        self._console.print(Text(f"  epoch {evaluation.epoch:4d}  {evaluation.value:.4f}", style="dim"))

    def end(self, trial: FinishedTrial) -> None:
        value = "" if trial.value is None else f" {trial.value:.4f}"
        told = f"{trial.state}{value}" + (f": {trial.failure}" if trial.failure else "")
        self._console.print(Text(f"trial {trial.number}  {told}", style=_STYLES[trial.state]))


def _print(found: Search, *, data: str, model: str) -> None:
    result = found.result
    names = list(dict.fromkeys(name for trial in result.trials for name in trial.settings))
    if result.trials:
        table = Table(box=None, pad_edge=False)
        table.add_column("trial", justify="right")
        table.add_column("state")
        table.add_column(found.metric, justify="right")
        table.add_column("epochs", justify="right")
        for name in names:
            table.add_column(name, justify="right")
        ranked = sorted(result.trials, key=lambda t: (t.state == "done", t.value or 0.0), reverse=True)
        for trial in ranked:
            table.add_row(
                str(trial.number),
                trial.state,
                "-" if trial.value is None else f"{trial.value:.4f}",
                str(trial.epochs),
                *(_shown(trial.settings.get(name, "-")) for name in names),
                style="bold green" if result.best is not None and trial.number == result.best.number else None,
            )
        print_table(table)
    if result.importances:
        shares = "  ".join(f"{name} {100 * share:.0f} %" for name, share in result.importances.items())
        print_line(f"what made the difference: {shares}")
    if found.report is not None:
        print_line(f"compared  {found.report}")
    if found.best is not None:
        words = ["detronome", "train", data, "--model", model, "--config", str(found.best)]
        print_line(f"best      {found.best}\nnext      {shlex.join(words)}")


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json_module.dumps(value)


def _record(found: Search) -> dict[str, Any]:
    result = found.result
    return {
        "folder": str(found.folder),
        "metric": found.metric,
        "best": None if result.best is None else result.best.number,
        "best_settings": str(found.best) if found.best else None,
        "report": str(found.report) if found.report else None,
        "interrupted_by": result.interrupted_by or None,
        "importances": dict(result.importances),
        "trials": [
            {
                "number": trial.number,
                "run": str(trial.folder),
                "state": trial.state,
                "value": trial.value,
                "epochs": trial.epochs,
                "settings": dict(trial.settings),
                "failure": trial.failure or None,
            }
            for trial in result.trials
        ],
    }

"""`detronome train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from detronome.cli.options import MODEL_GROUP, OUTPUT_GROUP, Json, Model, Settings, parse_settings
from detronome.cli.render import print_outcome
from detronome.errors import ConfigError
from detronome.report.trackers.names import TrackerName

__all__ = ["train"]

_DEFAULT_MODEL = "detr-r50"


def train(
    data: str | None = None,
    /,
    *,
    model: Model = _DEFAULT_MODEL,
    epochs: Annotated[int | None, MODEL_GROUP] = None,
    out: Annotated[Path | None, OUTPUT_GROUP] = None,
    config: Annotated[Path | None, MODEL_GROUP] = None,
    settings: Settings = None,
    if_exists: Annotated[Literal["error", "resume"], OUTPUT_GROUP] = "error",
    resume: Path | None = None,
    track: Annotated[list[TrackerName] | None, OUTPUT_GROUP, Parameter(negative=(), consume_multiple=True)] = None,
    json: Json = False,
) -> int:
    """Train a detector; Ctrl-C saves and leaves a run that --resume continues.

    Parameters
    ----------
    data
        Folder in COCO, Roboflow, YOLO or Pascal VOC layout; or shards, also at an address (s3://...).
    model
        A preset (see `detronome models`), or what to fine-tune: a run, a
        checkpoint, a .pth or .safetensors file, a Hugging Face folder or id.
    epochs
        Shortcut for --set train.epochs=N.
    out
        Run folder; by default runs/PRESET, numbered.
    config
        TOML file with settings, on top of the preset.
    if_exists
        When --out holds a run: an error, or go on with it, so that one command line serves the first start and every
        later one (SLURM's requeue, Kubernetes, torchrun's restarts).
    resume
        An interrupted run to go on with; takes data and settings from it. --set and --config may change what does not
        make it another run.
    track
        Also write to tensorboard, wandb or mlflow, several at once; they never hold up or stop the run.
    """
    from detronome import api
    from detronome.report.console import ConsoleProgress

    progress = ConsoleProgress()
    try:
        if track == []:
            raise ConfigError("no tracker is named", where="--track", fix="name one: --track tensorboard")
        if resume is not None:
            given = {"DATA": data, "--epochs": epochs, "--out": out}
            extra = [name for name, value in given.items() if value is not None]
            if model != _DEFAULT_MODEL:
                extra.append("--model")
            if if_exists != "error":
                extra.append("--if-exists")
            if extra:
                raise ConfigError(
                    f"a resumed run keeps its data and model: {', '.join(extra)} cannot be given with --resume",
                    where=str(resume),
                    fix="leave them out, or start a new run from this one: detronome train DATA --model RUN",
                )
            run = api.resume(
                resume,
                config=config,
                settings=parse_settings(settings),
                observers=[progress],
                trackers=track or (),
            )
        elif data is None:
            raise ConfigError("no data folder", where="detronome train", fix="detronome train DATA --model nano")
        else:
            run = api.train(
                data,
                model=model,
                epochs=epochs,
                out=out,
                config=config,
                settings=parse_settings(settings),
                if_exists=if_exists,
                observers=[progress],
                trackers=track or (),
            )
    finally:
        progress.close()
    return print_outcome(run, as_json=json)

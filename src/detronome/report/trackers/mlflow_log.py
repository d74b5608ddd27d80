"""MLflow: a run on the server that `MLFLOW_TRACKING_URI` names, or in files under the run folder."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from detronome.engine.events import RunEnded, RunStarted
from detronome.errors import MissingExtraError
from detronome.report.happenings import Happening
from detronome.report.trackers.remembered import recall, remember
from detronome.report.trackers.tracker import Results

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

__all__ = ["MlflowTracker"]

_Item = TypeVar("_Item")

_MOST_PARAMS = 100
_LONGEST_VALUE = 500
"""Limits of one request, and of a value on the oldest servers."""
_MOST_PICTURES = 24
_UNWANTED = re.compile(r"[^\w .:-]|^\.+", re.ASCII)
"""What a name may not hold, or begin with: it may become a file."""


class MlflowTracker:
    """Writes a run to MLflow's experiment `detronome`, or to the one that `MLFLOW_EXPERIMENT_NAME` names.

    Without `MLFLOW_TRACKING_URI` it goes to `RUN/mlruns`; `MLFLOW_ALLOW_FILE_STORE=true mlflow ui
    --backend-store-uri RUN/mlruns` shows it. MLflow's own usage reports are off unless `MLFLOW_DISABLE_TELEMETRY` says
    otherwise.

    Args:
        run_dir: the run folder; it names the run.
        config: all settings of the run.

    Raises:
        MissingExtraError: neither `mlflow` nor `mlflow-skinny` is installed.
    """

    label = "MLflow"

    def __init__(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        try:
            import mlflow.tracking  # noqa: F401
        except ImportError as error:
            raise MissingExtraError("mlflow", extra="mlflow", needed_for="MLflow") from error
        self._run_dir = run_dir
        self._config = config
        self._client: MlflowClient | None = None
        self._run_id = ""
        self._events: list[Happening] = []

    def open(self, start: RunStarted) -> None:
        from mlflow.tracking import MlflowClient

        uri = os.environ.get("MLFLOW_TRACKING_URI") or (self._run_dir.resolve() / "mlruns").as_uri()
        if uri.startswith("file:"):
            # MLflow refuses files unless it is told that they are wanted; a database would need much more installed.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        self._client = MlflowClient(tracking_uri=uri)
        known = recall(self._run_dir, "mlflow") if start.step > 0 else {}
        if known.get("tracking_uri") == uri:
            self._run_id = known["run_id"]
            self._client.update_run(self._run_id, status="RUNNING")
        elif not self._run_id:
            name = self._run_dir.resolve().name
            self._run_id = self._client.create_run(self._experiment(), run_name=name).info.run_id
            remember(self._run_dir, "mlflow", {"run_id": self._run_id, "tracking_uri": uri})
        self._write_params({**_flat(self._config), **_flat(start.environment, "environment.")})

    def write(self, numbers: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        named = {_clean(name): value for name, value in numbers.items()}
        metrics = [Metric(name, value, now_ms, step) for name, value in named.items()]
        for start in range(0, len(metrics), 1000):
            self._opened.log_batch(self._run_id, metrics=metrics[start : start + 1000])

    def tell(self, happened: Happening) -> None:
        self._events.append(happened)
        self._opened.set_tag(self._run_id, f"last_{happened.kind}", happened.sentence[:_LONGEST_VALUE])

    def go_back(self, step: int) -> None:
        """Nothing is undone: MLflow keeps both values of a step."""

    def close(self, end: RunEnded | None, results: Results) -> None:
        status = "FAILED" if end is None else "KILLED" if end.reason == "interrupted" else "FINISHED"
        try:
            if self._events:
                lines = [f"{event.step}\t{event.kind}\t{event.sentence}\t{event.fix}\n" for event in self._events]
                self._opened.log_text(self._run_id, "step\tkind\twhat\tfix\n" + "".join(lines), "events.tsv")
            if results.report is not None:
                self._opened.log_artifact(self._run_id, str(results.report))
            for picture in results.pictures[:_MOST_PICTURES]:
                self._opened.log_artifact(self._run_id, str(picture.path), "pictures")
        finally:  # where artifacts cannot be written, the run has ended all the same
            self._opened.set_terminated(self._run_id, status=status)

    @property
    def _opened(self) -> MlflowClient:
        assert self._client is not None, "open() comes first"
        return self._client

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "detronome"
        found = self._opened.get_experiment_by_name(name)
        return found.experiment_id if found is not None else self._opened.create_experiment(name)

    def _write_params(self, params: Mapping[str, str]) -> None:
        """Write settings; what a resumed run has changed becomes a tag, because MLflow keeps the first value."""
        from mlflow.entities import Param, RunTag

        params = {key: value[:_LONGEST_VALUE] for key, value in params.items()}
        written = self._opened.get_run(self._run_id).data.params
        new = [Param(key, value) for key, value in params.items() if key not in written]
        for batch in _batches(new):
            self._opened.log_batch(self._run_id, params=batch)
        changed = {key: value for key, value in params.items() if written.get(key, value) != value}
        for tags in _batches([RunTag(f"resumed_with.{key}", value) for key, value in changed.items()]):
            self._opened.log_batch(self._run_id, tags=tags)


def _clean(name: str) -> str:
    group, slash, rest = name.partition("/")
    return group + slash + (_UNWANTED.sub("_", rest) or "_") if slash else group


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{_UNWANTED.sub('_', str(key))}"] = str(value)
    return flat


def _batches(items: Sequence[_Item]) -> list[Sequence[_Item]]:
    return [items[start : start + _MOST_PARAMS] for start in range(0, len(items), _MOST_PARAMS)]

"""What else a run folder holds beside its log: the plan, the verdict, the details of its evaluation, its data.

Each file is JSON with `"format": 1`, and each may be missing: older runs have none of them. A file that is there but is
not what it should be is left out, and said to be so.

Shape letter: `C` classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import msgspec

from detronome.report.formats import clean_text

__all__ = [
    "AreaCounts",
    "ClassCount",
    "ClassCurve",
    "Confused",
    "DataFile",
    "EvaluationFile",
    "Histogram",
    "MemoryPeak",
    "PlanFile",
    "PlannedDevice",
    "ProposedChange",
    "ProvingNumber",
    "SplitCounts",
    "VerdictFile",
    "WorstImage",
    "read_run_file",
]

_FORMAT = 1
_NO_TENSORS = ("device context", "allocator slack")
"""Causes that a plan counts, for they take a GPU's memory, and that torch does not count among its tensors."""


class PlannedDevice(msgspec.Struct, frozen=True, kw_only=True):
    """What a plan was made for."""

    name: str = ""
    type: str = ""
    memory_bytes: float | None = None


class MemoryPeak(msgspec.Struct, frozen=True, kw_only=True):
    """The memory of one phase at its peak."""

    bytes_by_cause: Mapping[str, float]
    peak_bytes: float
    shape: str = ""
    num_images: int = 0
    num_objects: int = 0
    moment: str = ""


class PlanFile(msgspec.Struct, frozen=True, kw_only=True):
    """`plan.json`: what memory and time were predicted."""

    training: MemoryPeak
    evaluation: MemoryPeak | None = None
    device: PlannedDevice = PlannedDevice()
    micro_batch_size: int | None = None
    accumulation: int | None = None
    precision: str = ""
    checkpointing: str = ""
    step_s: float | None = None
    epoch_s: float | None = None
    total_s: float | None = None
    budget_bytes: float | None = None
    """What the run may take of the device's memory."""

    @property
    def tensor_bytes(self) -> float | None:
        """The planned peak of what a run measures on a GPU: its tensors alone. None on a CPU, where a run measures the
        whole process, which no plan counts."""
        if self.device.type == "cpu":
            return None
        peaks = filter(None, (self.training, self.evaluation))
        return max(
            peak.peak_bytes - sum(peak.bytes_by_cause.get(cause, 0.0) for cause in _NO_TENSORS) for peak in peaks
        )


class ProvingNumber(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement that a verdict rests on."""

    what: str
    value: float | str | None
    unit: str = ""


class ProposedChange(msgspec.Struct, frozen=True, kw_only=True):
    """A setting to change, and why."""

    setting: str
    value: str | int | float | bool | None
    why: str = ""

    @property
    def assignment(self) -> str:
        """The change as `--set` or a shell takes it; in words where it is neither a setting nor a variable."""
        value = str(self.value).lower() if isinstance(self.value, bool) else self.value
        is_assigned = "." in self.setting or self.setting.isupper()
        return clean_text(f"{self.setting}{'=' if is_assigned else ': '}{value}")


class VerdictFile(msgspec.Struct, frozen=True, kw_only=True):
    """`verdict.json`: what a step waits for."""

    verdict: str
    sentence: str
    proof: Sequence[ProvingNumber] = ()
    best_gain: float | None = None
    """How many times faster the run could be at best."""
    changes: Sequence[ProposedChange] = ()
    source: str = ""


class ClassCurve(msgspec.Struct, frozen=True, kw_only=True, rename={"name": "class"}):
    """Precision at evenly spaced recalls from 0 to 1, of one class or of `all`."""

    name: str
    precision: Sequence[float | None] = ()
    num_objects: int | None = None
    ap50: float | None = None
    best_f1: float | None = None
    best_score: float | None = None
    """The score threshold of the best F1."""


class WorstImage(msgspec.Struct, frozen=True, kw_only=True):
    """One image that the model got wrong."""

    image_id: int | str
    file: str = ""
    picture: str | None = None
    """Its file: in the run folder, or in `pictures` there."""
    f1: float | None = None
    missed: int = 0
    background: int = 0
    class_: int = msgspec.field(default=0, name="class")
    location: int = 0
    duplicate: int = 0


class Confused(msgspec.Struct, frozen=True, kw_only=True):
    """How often objects of one class were taken for another."""

    truth: str
    predicted: str
    count: int


class EvaluationFile(msgspec.Struct, frozen=True, kw_only=True):
    """`evaluation.json`: where the best checkpoint is right and wrong."""

    classes: Sequence[str]
    confusion: Sequence[Sequence[int]] | None = None
    """Rows are the truth, columns the prediction, `[C+1, C+1]`: the last row is "no object", the last column "missed".
    None where there are too many classes."""
    top_confusions: Sequence[Confused] = ()
    """Most frequent first."""
    curves: Sequence[ClassCurve] = ()
    overall: ClassCurve | None = None
    errors: Mapping[str, int] = {}
    worst_images: Sequence[WorstImage] = ()
    split: str | None = None
    step: int | None = None
    iou_threshold: float | None = None
    score_threshold: float | None = None
    num_images: int | None = None

    def __post_init__(self) -> None:
        size = len(self.classes) + 1
        if self.confusion and {size} != {len(self.confusion), *map(len, self.confusion)}:
            raise ValueError(f"the confusion matrix is not {size} by {size}")


class Histogram(msgspec.Struct, frozen=True, kw_only=True):
    """Counts between the edges `bins`, or one for each value in `bins`."""

    bins: Sequence[float | None] = ()
    counts: Sequence[int] = ()

    def __post_init__(self) -> None:
        if len(self.bins) - len(self.counts) not in (0, 1):
            raise ValueError(f"{len(self.bins)} bins do not fit {len(self.counts)} counts")
        edges = [math.inf if value is None else value for value in self.bins]
        if any(a >= b for a, b in pairwise(edges)):
            raise ValueError("bins are not in ascending order")


class ClassCount(msgspec.Struct, frozen=True, kw_only=True):
    """How often one class occurs."""

    name: str
    num_objects: int
    num_images: int = 0


class AreaCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Objects by COCO's areas."""

    small: int = 0
    medium: int = 0
    large: int = 0


class SplitCounts(msgspec.Struct, frozen=True, kw_only=True):
    """What one split holds."""

    num_images: int
    num_objects: int
    classes: Sequence[ClassCount] = ()
    objects_per_image: Histogram = Histogram()
    box_size_px: Histogram = Histogram()
    areas: AreaCounts = AreaCounts()


class DataFile(msgspec.Struct, frozen=True, kw_only=True):
    """`data.json`: label statistics, by split."""

    splits: Mapping[str, SplitCounts]


class _Header(msgspec.Struct, frozen=True):
    format: int


_File = TypeVar("_File", PlanFile, VerdictFile, EvaluationFile, DataFile)


def read_run_file(path: Path, kind: type[_File], gaps: list[str]) -> _File | None:
    """Return the file, or None where it is missing; what is wrong with one that is there is added to `gaps`."""
    try:
        content = path.read_bytes()
        header = msgspec.json.decode(content, type=_Header)
        if header.format != _FORMAT:
            gaps.append(
                f"{path.name} is of format {header.format}, this version reads format {_FORMAT}; it is left out."
            )
            return None
        return msgspec.json.decode(content, type=kind)
    except FileNotFoundError:
        return None
    except OSError as error:
        gaps.append(f"{path.name} cannot be read: {error.strerror}.")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        gaps.append(f"{path.name} is not what it should be and is left out: {error}.")
    return None

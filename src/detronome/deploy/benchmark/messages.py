"""What is said between the process that measures and the one in which a form runs.

Shape letters: `Q` queries, `C` class logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from detronome.deploy.benchmark.forms import Form
from detronome.types import Categories

__all__ = [
    "CallTimes",
    "Evaluate",
    "Evaluated",
    "Export",
    "Exported",
    "Failed",
    "Measure",
    "Measured",
    "Open",
    "Opened",
    "Output",
    "Outputs",
    "Subject",
]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is measured, and where."""

    source: str
    """As `load` takes it: a checkpoint, published weights, or an exported file."""
    form: Form | None
    """None: the source as it is."""
    data: str
    split: str
    device: str
    threads: int
    image_size: int | None


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write the exported form of the subject to `file`."""

    subject: Subject
    file: Path


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The form was exported."""

    seconds: float


@dataclass(frozen=True, kw_only=True)
class Open:
    """Make the form ready to run."""

    subject: Subject
    file: Path | None
    """Of an exported form."""
    batch_size: int
    """The most images that it will be given at once."""


@dataclass(frozen=True, kw_only=True)
class Opened:
    """The form is ready."""

    seconds: float
    backend: str
    precision: str
    categories: Categories
    resident_bytes: int
    """Memory of the process, in which the form waits for images."""
    available_bytes: int
    """Left on the device."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """Time some calls, one after the other."""

    calls: tuple[tuple[int, ...], ...]
    """Positions of the images of each."""
    from_now: bool
    """Begin to watch the peak of memory anew."""


@dataclass(frozen=True)
class CallTimes:
    """Where the seconds of one call went, from files to detections."""

    decode_s: float
    """Reading and decoding the files."""
    before_s: float
    """Resizing, padding, moving to the device."""
    network_s: float
    """The network alone: pixels to logits and boxes."""
    after_s: float
    """From logits to detections in pixels, masks included where the model makes them."""
    network_cpu_s: float
    """Processor time of the network, all threads together: what other programs take away is not in it."""

    @property
    def whole_s(self) -> float:
        return self.decode_s + self.before_s + self.network_s + self.after_s


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The calls' times, in order, and the highest use of memory."""

    times: tuple[CallTimes, ...]
    peak_bytes: int


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Give the network's outputs for some images, each alone."""

    images: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Output:
    """What the network says of one image."""

    scores: Float32[np.ndarray, "Q C"]
    """Probability of each class, without no-object."""
    boxes_cxcywh: Float32[np.ndarray, "Q 4"]
    """0-1 of the image."""


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Measure the accuracy on some images."""

    images: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """The accuracy."""

    numbers: Mapping[str, float]
    """As `DetectionMetrics.numbers`."""


@dataclass(frozen=True, kw_only=True)
class Failed:
    """What was asked for could not be done."""

    why: str
    fix: str = ""

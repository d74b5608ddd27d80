"""A service whose model runs in this process. Makes `fake_model` importable: no test folder is on a path."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detronome.deploy.serve.limits import Limits
from detronome.deploy.serve.service import Service
from detronome.types import Categories, Detections

sys.path.insert(0, str(Path(__file__).parent))

from fake_model import FakeProcess


@pytest.fixture
def process() -> FakeProcess:
    return FakeProcess()


@pytest.fixture
def make_service(process: FakeProcess) -> Iterator[Callable[..., Service]]:
    made: list[Service] = []

    def make(**limits: Any) -> Service:
        def draw(image: np.ndarray, detections: Detections, categories: Categories) -> np.ndarray:
            return np.full_like(image, len(detections))

        made.append(Service(process, draw=draw, limits=Limits(**limits)))
        made[-1].open()
        return made[-1]

    yield make
    for service in made:
        process.may_go_on.set()
        service.stop()

"""Each bottleneck, made on purpose and large: `detronome profile` names it, and proposes what to change.

The faults sit in the parts that a run uses, so what is measured is what a run would wait for. By default half of them
are made; `pytest -m "slow or not slow" tests/e2e/test_verdicts.py` makes all, and prints how many verdicts were right.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.dist.profiles import delayed, profile_on_rank
from tests.dist.ranks import on_ranks

import detronome as dt
from detronome.data import dataset, step_dataset
from detronome.data.store.source import FolderSource
from detronome.engine.ema import ModelEma
from detronome.engine.guard import StepGuard
from detronome.engine.step import TrainingStep
from detronome.losses.set_criterion import SetCriterion
from detronome.runtime.monitor import SystemMonitor
from detronome.tempo import measure

pytestmark = pytest.mark.alone

Patch = pytest.MonkeyPatch
STEPS = 3


@dataclass(frozen=True, kw_only=True)
class Case:
    """A run with something wrong, and what is to be said of it."""

    verdict: str
    changes: str
    """One of the settings that are proposed; empty where none has to be."""
    fault: Callable[[Patch], None] = lambda _: None
    data: str = "blocks"
    settings: Mapping[str, Any] = field(default_factory=dict)
    model: str = "nano"
    is_tiny: bool = True
    ranks: str = ""
    """The fault on ranks, see `tests.dist.profiles`."""
    says: str = ""
    is_slow: bool = True
    """Left out by default."""

    @property
    def marks(self) -> list[pytest.MarkDecorator]:
        slow = [pytest.mark.slow] if self.is_slow else []
        return [*slow, pytest.mark.dist] if self.ranks else slow


def slow_disk(patch: Patch) -> None:
    patch.setattr(FolderSource, "read", delayed(FolderSource.read, 0.04))


def very_slow_disk(patch: Patch) -> None:
    patch.setattr(FolderSource, "read", delayed(FolderSource.read, 0.15))


def stalling_disk(patch: Patch) -> None:
    """One image in four takes long, as from a network that retries."""
    read = FolderSource.read

    def sometimes(self: FolderSource, i: int) -> bytes:
        time.sleep(0.3 if i % 4 == 0 else 0.0)
        return read(self, i)

    patch.setattr(FolderSource, "read", sometimes)


def heavy_augmentation(patch: Patch) -> None:
    apply = dataset.apply_to_image

    def many_times(*args: Any) -> Any:
        until = time.perf_counter() + 0.15
        while time.perf_counter() < until:
            apply(*args)
        return apply(*args)

    patch.setattr(dataset, "apply_to_image", many_times)


def slow_collate(patch: Patch) -> None:
    patch.setattr(step_dataset, "pack", delayed(step_dataset.pack, 0.4))


def slow_criterion(patch: Patch) -> None:
    patch.setattr(SetCriterion, "forward", delayed(SetCriterion.forward, 0.3))


def busy_python(patch: Patch) -> None:
    """As many objects are made and thrown away as a careless transform of the targets does."""
    patch.setattr(TrainingStep, "reseed", busy(TrainingStep.reseed))


def slow_average(patch: Patch) -> None:
    patch.setattr(ModelEma, "update", busy(ModelEma.update))


def host_sync(patch: Patch) -> None:
    patch.setattr(StepGuard, "read", delayed(StepGuard.read, 0.3))


def slow_passes(patch: Patch) -> None:
    patch.setattr(TrainingStep, "_add_gradients", delayed(TrainingStep._add_gradients, 0.08))


def swapping(patch: Patch) -> None:
    swapped = iter(range(0, 10**15, 10**12))
    patch.setattr(measure, "_counters", lambda _: {"swapped_bytes": next(swapped)})


def full_memory(patch: Patch) -> None:
    patch.setattr(SystemMonitor, "take", lambda _: {"ram_percent": 99.4, "process_cpus": 0.08})


def busy(function: Any, seconds: float = 0.3) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            dict.fromkeys(map(str, range(100)))
        return function(*args, **kwargs)

    return call


LARGE = {"model.widths": [64, 96, 128], "model.hidden_dim": 96, "augment.sizes": [224], "augment.max_size": 320}
CASES = {
    "slow disk, no workers": Case(verdict="DATA", changes="data.workers", fault=slow_disk, says="read", is_slow=False),
    "slow disk, two workers": Case(
        verdict="DATA",
        changes="data.workers",
        fault=very_slow_disk,
        settings={"data.workers": 2},
        says="read",
        is_slow=False,
    ),
    "disk that stalls": Case(verdict="DATA", changes="data.cache", fault=stalling_disk, says="read"),
    "huge JPEGs": Case(verdict="DATA", changes="data.decode", data="huge_photos", says="decode"),
    "huge PNGs on a little model, one worker": Case(
        verdict="DATA", changes="data.cache", data="huge_pictures", settings={"data.workers": 1}, says="decode"
    ),
    "heavy augmentation": Case(
        verdict="DATA", changes="data.workers", fault=heavy_augmentation, says="augment", is_slow=False
    ),
    "slow collate": Case(verdict="DATA", changes="data.workers", fault=slow_collate, says="collate"),
    "too few workers": Case(
        verdict="DATA", changes="data.workers", fault=heavy_augmentation, settings={"data.workers": 1}, says="augment"
    ),
    "sleep in the criterion": Case(verdict="HOST", changes="train.compile", fault=slow_criterion, is_slow=False),
    "Python that keeps the host busy": Case(verdict="HOST", changes="train.compile", fault=busy_python),
    "average in Python": Case(verdict="HOST", changes="batch.global_batch_size", fault=slow_average),
    "host sync in every step": Case(verdict="HOST", changes="train.compile", fault=host_sync),
    "huge matcher": Case(
        verdict="HOST",
        changes="model.num_queries",
        data="crowds",
        settings={
            "model.num_queries": 900,
            "model.denoising_groups": 0,
            "augment.sizes": [256],
            "augment.max_size": 256,
            "augment.crop": "none",
            "batch.global_batch_size": 4,
        },
        says="matcher",
        is_slow=False,
    ),
    "large model": Case(verdict="DEVICE", changes="train.compile", settings=LARGE, is_slow=False),
    "classic DETR on small images": Case(
        verdict="DEVICE",
        changes="train.compile",
        model="detr-r18",
        is_tiny=False,
        settings={
            "augment.sizes": [128],
            "augment.max_size": 192,
            "augment.crop": "none",
            "data.workers": 0,
            "train.device": "cpu",
            "batch.global_batch_size": 4,
        },
    ),
    "small passes of a large batch": Case(
        verdict="MEMORY",
        changes="batch.micro_batch_size",
        fault=slow_passes,
        settings={"batch.micro_batch_size": 1, "batch.global_batch_size": 4},
        is_slow=False,
    ),
    "swapping": Case(verdict="MEMORY", changes="batch.micro_batch_size", fault=swapping, says="swap", is_slow=False),
    "memory full, processors idle": Case(
        verdict="MEMORY", changes="train.checkpoint_activations", fault=full_memory, is_slow=False
    ),
    "slow collective": Case(verdict="NETWORK", changes="NCCL_SOCKET_IFNAME", ranks="collective", says="adding up"),
    "one slow rank": Case(verdict="NETWORK", changes="", ranks="compute", says="rank 1", is_slow=False),
}
assert len(CASES) == 20


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", [pytest.param(n, marks=c.marks) for n, c in CASES.items()])
def test_a_bottleneck_made_on_purpose_is_named(
    name: str,
    request: pytest.FixtureRequest,
    tiny_settings: dict[str, Any],
    monkeypatch: Patch,
    tally: dict[str, bool],
) -> None:
    case = CASES[name]
    tally[name] = False
    data = str(request.getfixturevalue(case.data))
    settings = {**(tiny_settings if case.is_tiny else {}), **case.settings}
    case.fault(monkeypatch)
    if case.ranks:
        main, other = on_ranks(2, profile_on_rank, data, settings, case.ranks)
        assert (main["is_main"], other["is_main"]) == (True, False)
        assert main["verdict"] == other["verdict"]
        found = main
    else:
        found = dt.profile(data, model=case.model, steps=STEPS, settings=settings).to_json()
    assert found["verdict"] == case.verdict, json.dumps(found, indent=1)
    assert case.says in found["sentence"], found["sentence"]
    settings_proposed = [change["setting"] for change in found["changes"]]
    assert not case.changes or case.changes in settings_proposed, settings_proposed
    assert found["best_gain"] is None or found["best_gain"] > 1.3
    tally[name] = True


@pytest.mark.dist
def test_a_slow_disk_of_one_rank_is_the_data_and_not_the_network(blocks: Path, tiny_settings: dict[str, Any]) -> None:
    main, _ = on_ranks(2, profile_on_rank, str(blocks), tiny_settings, "disk")
    assert main["verdict"] == "DATA", main
    assert "rank 1" in main["sentence"]


@pytest.fixture(scope="module")
def tally(pytestconfig: pytest.Config) -> Iterator[dict[str, bool]]:
    """Whether the verdict was right, by case; counted and printed at the end."""
    was_right: dict[str, bool] = {}
    yield was_right
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print(f"\nverdicts: {sum(was_right.values())} of {len(was_right)} right")


@pytest.fixture(scope="module")
def huge_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("photos"), size_hw=(2400, 3200), suffix="jpg", num_objects=2)


@pytest.fixture(scope="module")
def huge_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("pictures"), size_hw=(1500, 2000), suffix="png", num_objects=2)


@pytest.fixture(scope="module")
def crowds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("crowds"), size_hw=(256, 256), suffix="png", num_objects=700)


def pictures(root: Path, *, size_hw: tuple[int, int], suffix: str, num_objects: int) -> Path:
    """A data folder of eight pictures alike, with noise that takes time to decode."""
    rng = np.random.default_rng(0)
    height, width = size_hw
    (root / "annotations").mkdir()
    (root / "images").mkdir()
    pixels = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
    images, annotations = [], []
    for i in range(8):
        name = f"{i}.{suffix}"
        if i == 0:
            Image.fromarray(pixels).save(root / "images" / name, quality=95)
        else:
            (root / "images" / name).write_bytes((root / "images" / f"0.{suffix}").read_bytes())
        images.append({"id": i + 1, "file_name": name, "height": height, "width": width})
        for _ in range(num_objects):
            w, h = (int(n) for n in rng.integers(8, 24, 2))
            x, y = int(rng.integers(0, width - w)), int(rng.integers(0, height - h))
            box = {"bbox": [x, y, w, h], "area": w * h, "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, "image_id": i + 1, "category_id": 1, **box})
    record = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    for split in ("train", "val"):
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(record))
    return root

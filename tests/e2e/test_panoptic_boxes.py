"""A detector of boxes learns from panoptic annotations: things, stuff and crowds, measured against their boxes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.unit.data.panoptic_folder import write_panoptic

import detronome as dt


def test_a_run_on_panoptic_annotations(tmp_path: Path, tiny_settings: dict[str, Any]) -> None:
    folder = tmp_path / "data"
    write_panoptic(folder, 6)
    write_panoptic(folder, 3, "val")
    settings = {
        **tiny_settings,
        "data.annotations": "panoptic",
        "batch.global_batch_size": 3,
        "augment.sizes": [32],
        "augment.max_size": 48,
        "augment.eval_size": 32,
        "augment.eval_max_size": 48,
        "data.cache": "ram",
        "data.cache_reduced": True,
    }
    run = dt.train(folder, model="nano", epochs=1, out=tmp_path / "run", settings=settings)
    assert run.reason == "finished" and "AP" in run.metrics
    model = dt.load(run.folder)
    assert model.categories.ids == (1, 17, 200) and model.categories.is_thing == (True, True, False)
    again = dt.evaluate(model, folder, split="val")
    assert again.num_images == 3 and set(again.per_class_ap) == {"cat", "dog", "sky"}
    with pytest.raises(dt.ConfigError, match=r"data\.annotations is panoptic in the checkpoint"):
        dt.resume(run.folder, settings={"data.annotations": "instances"})


def test_panoptic_annotations_that_are_not_there(tmp_path: Path, blocks: Path, tiny_settings: dict[str, Any]) -> None:
    settings = {**tiny_settings, "data.annotations": "panoptic"}
    with pytest.raises(dt.DataError, match="the data folder holds no panoptic annotations"):
        dt.train(blocks, model="nano", epochs=1, out=tmp_path / "run", settings=settings)
    assert not (tmp_path / "run").exists()

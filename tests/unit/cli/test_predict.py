"""`detronome predict` says what it found, and where everything is that it wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from detronome import api
from detronome.cli.predict import predict
from detronome.errors import Problem


def predictions(**changes: Any) -> api.Predictions:
    fields: dict[str, Any] = {
        "out": Path("out"),
        "results": {"pictures": Path("out"), "panoptic": Path("out/panoptic.json")},
        "num_objects": {"a.jpg": 2, "b.jpg": 0, "c.mp4": 1200},
        "num_images": 2,
        "num_frames": 300,
        "unreadable": (Problem(what="the image is damaged", where="bad.jpg"),),
        "notes": ("c.mp4: the drawn video has no sound",),
    }
    return api.Predictions(**{**fields, **changes})


def test_what_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked: dict[str, Any] = {}

    def stand_in(*_: object, **options: Any) -> api.Predictions:
        asked.update(options)
        return predictions()

    monkeypatch.setattr(api, "predict", stand_in)
    predict("model", Path("a.jpg"), out=Path("out"), format=["yolo,csv", "coco"], score=0.25)
    told = capsys.readouterr()
    assert told.out.splitlines() == [
        "1,202 objects in 2 images and 300 frames (score 0.25 and above)",
        "pictures  out",
        "panoptic  out/panoptic.json",
    ]
    assert told.err.splitlines() == ["left out: bad.jpg: the image is damaged", "c.mp4: the drawn video has no sound"]
    assert asked["formats"] == ["yolo", "csv", "coco"] and asked["out"] == Path("out")

    predict("model", Path("a.jpg"), json=True)
    record = json.loads(capsys.readouterr().out)
    assert record["results"]["panoptic"] == "out/panoptic.json" and record["num_objects"]["c.mp4"] == 1200


def test_the_default_folder_is_a_new_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outs: list[Path] = []

    def stand_in(*_: object, out: Path, **__: object) -> api.Predictions:
        outs.append(out)
        out.mkdir()
        return predictions(out=out)

    monkeypatch.setattr(api, "predict", stand_in)
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        predict("model", Path("a.jpg"))
    assert outs == [Path("predictions"), Path("predictions-2")]

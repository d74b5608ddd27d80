"""`detronome predict` says where everything is that it wrote."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from detronome import api
from detronome.cli.predict import predict
from detronome.model import Prediction
from detronome.types import Categories, Detections, PanopticPrediction


@pytest.mark.parametrize("has_map", [True, False])
def test_the_panoptic_file_is_named_where_there_is_one(
    has_map: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = Prediction(
        detections=Detections(
            boxes_xyxy=np.zeros((0, 4), np.float32),
            scores=np.zeros(0, np.float32),
            labels=np.zeros(0, np.int64),
            panoptic=PanopticPrediction(segment_ids=np.zeros((2, 3), np.int32), segments=()) if has_map else None,
        ),
        image=np.zeros((2, 3, 3), np.uint8),
        categories=Categories((1,), ("red",)),
        file=Path("a.jpg"),
    )
    monkeypatch.setattr(api, "predict", lambda *_, **__: [found])
    predict("model", Path("a.jpg"), out=Path("out"), json=True)
    told = json.loads(capsys.readouterr().out)
    assert told.get("panoptic") == ("out/panoptic.json" if has_map else None)
    predict("model", Path("a.jpg"), out=Path("out"))
    assert ("out/panoptic.json" in capsys.readouterr().out) is has_map

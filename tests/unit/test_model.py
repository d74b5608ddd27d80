"""A loaded model predicts in its fastest form, whatever the list, and is evaluated and trained as it is."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.unit.deploy.tiny_models import CATEGORIES, assert_close, config_of, model_of, picture

from detronome.config.convert import to_dict
from detronome.deploy.optimize import OptimizedDetector
from detronome.engine.checkpoint import Checkpoint
from detronome.engine.state import TrainingState
from detronome.errors import ConfigError, DataError
from detronome.model import Model, Prediction
from detronome.types import Detections


def model(family: str = "detr", *, precision: str = "auto") -> Model:
    config = to_dict(config_of(family))
    config["train"]["precision"] = precision
    weights = {name: tensor.clone() for name, tensor in model_of(family).state_dict().items()}
    checkpoint = Checkpoint(config=config, categories=CATEGORIES, state=TrainingState(), model=weights)
    return Model(checkpoint, source=Path("nowhere"), device="cpu")


IMAGES = [picture(*size, seed) for seed, size in enumerate([(64, 90), (120, 64), (64, 90), (30, 30)])]


def test_no_images_give_no_predictions() -> None:
    assert model().predict([]) == []


def test_a_list_is_predicted_as_its_images_are_in_its_order() -> None:
    loaded = model()
    together = loaded.predict(IMAGES, score=0.0)
    for image, found in zip(IMAGES, together, strict=True):
        assert found.image is not None and found.image.shape == image.shape
        np.testing.assert_array_equal(found.image, image)
        assert_close(found.detections, loaded.predict(image, score=0.0).detections)


@pytest.mark.parametrize("family", ["detr", "nano"])
def test_it_predicts_in_an_optimised_form_and_keeps_the_detector(family: str) -> None:
    loaded = model(family)
    (found,) = loaded.predict(IMAGES[:1], score=0.0)
    assert isinstance(loaded.form, OptimizedDetector)
    plain = model(family)
    plain.form = plain.detector
    assert_close(found.detections, plain.predict(IMAGES[0], score=0.0).detections)
    state, trained = loaded.detector.state_dict(), loaded.checkpoint.model
    assert state.keys() == trained.keys()
    assert all(torch.equal(state[name], trained[name]) for name in state)


def test_a_run_in_bf16_predicts_as_it_was_evaluated() -> None:
    loaded = model(precision="bf16")
    assert loaded.form is loaded.detector


def test_full_precision_is_full_for_a_run_in_bf16_too() -> None:
    loaded = model(precision="bf16")
    loaded.optimize(precision="fp32")
    found, expected = (one.predict(IMAGES[0], score=0.0).detections for one in (loaded, model()))
    assert_close(found, expected)


def test_another_precision_is_used_from_then_on() -> None:
    loaded = model()
    before = loaded.predict(IMAGES[0], score=0.0)
    loaded.optimize(precision="bf16")
    after = loaded.predict(IMAGES[0], score=0.0)
    assert isinstance(loaded.form, OptimizedDetector) and loaded.form.precision == "bf16"
    assert not np.array_equal(before.scores, after.scores)
    np.testing.assert_allclose(before.scores, after.scores, atol=0.1)


@pytest.mark.parametrize("optimised", [False, True])
def test_a_copy_predicts_the_same(optimised: bool) -> None:
    """Also one for another process, after a first prediction and in the form that was asked for."""
    loaded = model()
    if optimised:
        loaded.optimize(precision="bf16")
    found = loaded.predict(IMAGES[0], score=0.0)
    for copied in (copy.deepcopy(loaded), pickle.loads(pickle.dumps(loaded))):
        assert_close(copied.predict(IMAGES[0], score=0.0).detections, found.detections)
        assert isinstance(copied.form, OptimizedDetector) and copied.form.precision == ("bf16" if optimised else "fp32")


def test_any_iterable_is_a_list_of_images() -> None:
    loaded = model()
    assert len(loaded.predict(image for image in IMAGES[:2])) == 2  # type: ignore[call-overload]
    assert loaded.predict(()) == []


@pytest.mark.parametrize("what", [b"\xff\xd8\xff", io.BytesIO(b"x"), None, 3, torch.zeros(3, 8, 8, dtype=torch.uint8)])
def test_what_is_no_image_is_refused(what: object) -> None:
    name = type(what).__name__
    for images in (what, [what]):
        with pytest.raises(DataError, match=rf"an RGB uint8 array \[height, width, 3\], not {name}"):
            model().predict(images)  # type: ignore[call-overload]


@pytest.mark.parametrize("score", [float("nan"), 2, -1, "x", None])
def test_a_score_that_is_none_is_refused(score: object) -> None:
    with pytest.raises(ConfigError, match="a score of"):
        model().predict(Image.new("RGB", (40, 40)), score=score)  # type: ignore[call-overload]


def test_a_precision_that_there_is_not_is_refused() -> None:
    with pytest.raises(ConfigError, match="no precision 'int8'"):
        model().optimize(precision="int8")  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [0, 2])
def test_detections_become_those_of_supervision(count: int) -> None:
    supervision = pytest.importorskip("supervision")
    image = np.zeros((40, 60, 3), dtype=np.uint8)
    boxes_xyxy = np.array([[1, 2, 30, 20], [5, 5, 9, 9]], dtype=np.float32)[:count]
    scores = np.array([0.9, 0.4], dtype=np.float32)[:count]
    labels = np.array(CATEGORIES.ids[:2], dtype=np.int64)[:count]
    found = Detections(boxes_xyxy=boxes_xyxy, scores=scores, labels=labels)
    made = Prediction(detections=found, image=image, categories=CATEGORIES).to_supervision()
    assert isinstance(made, supervision.Detections)
    assert len(made) == count
    np.testing.assert_array_equal(made.xyxy, boxes_xyxy)
    np.testing.assert_array_equal(made.class_id, labels)
    assert list(made.data["class_name"]) == list(CATEGORIES.names[:2])[:count]

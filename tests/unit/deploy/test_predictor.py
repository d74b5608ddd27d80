"""A prediction follows from its image alone: neither from the other images of a call nor from a batch's padding."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from detronome.config.presets import preset
from detronome.config.schema import DetrConfig, NanoConfig, RunConfig
from detronome.data.build import build_eval_batches
from detronome.data.split import open_split
from detronome.deploy.predictor import EagerPredictor, build_predictor
from detronome.engine.evaluator import detect_batch
from detronome.models.build import build_model
from detronome.types import Categories, Detections

CATEGORIES = Categories((1, 2, 3), ("a", "b", "c"))
CPU = torch.device("cpu")
CLASSIC = DetrConfig(
    backbone="resnet18",
    backbone_weights="none",
    backbone_norm="trainable",
    frozen_stages=0,
    hidden_dim=16,
    num_heads=2,
    ffn_dim=16,
    num_encoder_layers=1,
    num_decoder_layers=1,
    num_queries=6,
)
NANO = NanoConfig(
    widths=(16, 16, 32),
    depths=(1, 1, 1),
    hidden_dim=16,
    num_heads=2,
    num_points=2,
    ffn_dim=16,
    num_queries=6,
    denoising_groups=0,
)


def config_of(family: str, buckets: tuple[str, ...]) -> RunConfig:
    config = preset("nano" if family == "nano" else "detr-r18")
    return replace(
        config,
        model=NANO if family == "nano" else CLASSIC,
        augment=replace(config.augment, sizes=(48,), max_size=96, eval_size=48, eval_max_size=96),
        data=replace(config.data, buckets=buckets),
    )


@cache
def predictor(family: str, buckets: tuple[str, ...]) -> EagerPredictor:
    torch.manual_seed(0)
    config = config_of(family, buckets)
    return build_predictor(config, build_model(config.model, len(CATEGORIES)), CATEGORIES, CPU)


def picture(height: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def assert_same(a: Detections, b: Detections) -> None:
    np.testing.assert_array_equal(a.boxes_xyxy, b.boxes_xyxy)
    np.testing.assert_array_equal(a.scores, b.scores)
    np.testing.assert_array_equal(a.labels, b.labels)


FAMILIES = [("detr", ("64x64", "96x96")), ("detr", ()), ("nano", ())]
side = st.integers(1, 120)


def test_no_images_give_no_predictions() -> None:
    assert predictor("detr", ()).predict([]) == []


@pytest.mark.parametrize(("family", "buckets"), FAMILIES)
@settings(max_examples=8)
@given(sizes=st.lists(st.tuples(side, side), min_size=2, max_size=4), data=st.data())
def test_a_prediction_never_depends_on_its_neighbours(
    family: str, buckets: tuple[str, ...], sizes: Sequence[tuple[int, int]], data: st.DataObject
) -> None:
    model = predictor(family, buckets)
    images = [picture(height, width, seed) for seed, (height, width) in enumerate(sizes)]
    order = data.draw(st.permutations(range(len(images))))
    together = model.predict([images[n] for n in order])
    for n, found in zip(order, together, strict=True):
        (alone,) = model.predict([images[n]])
        assert_same(found, alone)


@pytest.mark.parametrize(("family", "buckets"), FAMILIES)
@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_evaluation_in_batches_sees_what_the_predictor_sees(
    family: str, buckets: tuple[str, ...], batch_size: int, tmp_path: Path
) -> None:
    sizes = [(48, 64), (64, 48), (48, 64), (40, 90), (96, 50), (48, 60), (48, 64)]
    write_folder(tmp_path, sizes)
    split = open_split(tmp_path, "val")
    model = predictor(family, buckets)
    with build_eval_batches(
        config_of(family, buckets), split, CATEGORIES, batch_size=batch_size, workers=0, device=CPU
    ) as batches:
        found = [
            detections
            for effective in batches
            for part in effective.parts
            for detections in detect_batch(
                model.model, part, categories=CATEGORIES, max_detections=100, precision="fp32", device=CPU
            )
        ]
    assert sorted(detections.image_id for detections in found) == list(range(len(sizes)))
    for detections in found:
        height, width = sizes[detections.image_id]
        (alone,) = model.predict([picture(height, width, detections.image_id)])
        np.testing.assert_allclose(detections.scores, alone.scores, atol=1e-4)
        np.testing.assert_allclose(detections.boxes_xyxy, alone.boxes_xyxy, atol=1e-2)  # pixels


def write_folder(root: Path, sizes: Sequence[tuple[int, int]]) -> None:
    (root / "annotations").mkdir()
    (root / "images").mkdir()
    images = []
    for n, (height, width) in enumerate(sizes):
        Image.fromarray(picture(height, width, n)).save(root / "images" / f"{n}.png")
        images.append({"id": n, "file_name": f"{n}.png", "height": height, "width": width})
    categories = [{"id": id_, "name": name} for id_, name in CATEGORIES.by_id.items()]
    record = {"images": images, "annotations": [], "categories": categories}
    (root / "annotations" / "instances_val.json").write_text(json.dumps(record))

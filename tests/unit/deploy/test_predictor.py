"""A prediction follows from its image alone: neither from the other images of a call nor from a batch's padding."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.unit.deploy.tiny_models import CATEGORIES, assert_close, config_of, model_of, picture

from detronome.data.build import build_eval_batches
from detronome.data.split import open_split
from detronome.deploy.predictor import Predictor, build_predictor
from detronome.engine.evaluator import detect_batch
from detronome.errors import TrainingError
from detronome.models.detector import Detector
from detronome.types import ModelOutput

CPU = torch.device("cpu")


@cache
def predictor(family: str, buckets: tuple[str, ...], batch_size: int = 4) -> Predictor:
    config = config_of(family, side=48, buckets=buckets)
    return build_predictor(config, model_of(family), CATEGORIES, CPU, batch_size=batch_size)


CASES = [
    ("detr", ("64x64", "96x96")),
    ("detr", ()),
    ("detr-dc5", ("64x96", "96x64")),
    ("panoptic", ("64x64", "96x96")),
    ("nano", ()),
    ("nano", ("64x96", "96x64")),
    ("rtdetr", ()),
    ("dfine", ()),
]
size = st.sampled_from([(1, 1), (48, 64), (48, 64), (64, 48), (48, 66), (40, 90), (96, 50), (120, 120), (3, 70)])


def test_no_images_give_no_predictions() -> None:
    assert predictor("detr", ()).predict([]) == []


@pytest.mark.parametrize(("family", "buckets"), CASES)
@settings(max_examples=8)
@given(sizes=st.lists(size, min_size=1, max_size=6), batch_size=st.integers(1, 4), data=st.data())
def test_a_prediction_never_depends_on_its_neighbours(
    family: str,
    buckets: tuple[str, ...],
    sizes: Sequence[tuple[int, int]],
    batch_size: int,
    data: st.DataObject,
) -> None:
    images = [picture(height, width, seed) for seed, (height, width) in enumerate(sizes)]
    order = data.draw(st.permutations(range(len(images))))
    together = predictor(family, buckets, batch_size).predict([images[n] for n in order])
    for n, found in zip(order, together, strict=True):
        (alone,) = predictor(family, buckets, 1).predict([images[n]])
        assert found.panoptic is None or found.panoptic.segment_ids.shape == images[n].shape[:2]
        assert_close(found, alone)


class Watched(Detector):
    """A detector that remembers what it was given, and has room for so many images."""

    activation = "softmax"

    def __init__(self, inner: Detector, *, room: int) -> None:
        super().__init__()
        self.inner = inner
        self.num_queries = inner.num_queries
        self.room = room
        self.shapes: list[tuple[int, ...]] = []

    def parts_to_compile(self) -> list[torch.nn.Module]:
        return []

    def forward(self, images: Any, padding_mask: Any, targets: Any = None) -> ModelOutput:
        if len(images) > self.room:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:1] . DefaultCPUAllocator: can't allocate memory")
        self.shapes.append(tuple(images.shape))
        output: ModelOutput = self.inner(images, padding_mask)
        return output


def watched(*, room: int, batch_size: int) -> tuple[Watched, Predictor]:
    model = Watched(model_of("detr"), room=room)
    return model, build_predictor(config_of("detr", side=48), model, CATEGORIES, CPU, batch_size=batch_size)


def test_images_of_one_shape_go_through_the_model_together_and_others_apart() -> None:
    model, together = watched(room=9, batch_size=2)
    sizes = [(48, 64), (64, 48), (48, 64), (96, 128), (48, 64)]
    together.predict([picture(height, width, 0) for height, width in sizes])
    assert model.shapes == [(2, 3, 48, 64), (2, 3, 48, 64), (1, 3, 64, 48)]


def test_a_batch_without_room_in_memory_is_cut() -> None:
    images = [picture(48, 64, seed) for seed in range(5)]
    model, cut = watched(room=2, batch_size=4)
    for found, image in zip(cut.predict(images), images, strict=True):
        assert_close(found, predictor("detr", (), 1).predict([image])[0])
    assert [shape[0] for shape in model.shapes] == [2, 2, 1]


def test_an_image_without_room_in_memory_is_an_error_that_says_so() -> None:
    _, cut = watched(room=0, batch_size=1)
    with pytest.raises(TrainingError, match="no room for one image of 48x64"):
        cut.predict([picture(48, 64, 0)])


@pytest.mark.parametrize(("family", "buckets"), CASES[:2] + CASES[4:5])
@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_evaluation_in_batches_sees_what_the_predictor_sees(
    family: str, buckets: tuple[str, ...], batch_size: int, tmp_path: Path
) -> None:
    sizes = [(48, 64), (64, 48), (48, 64), (40, 90), (96, 50), (48, 60), (48, 64)]
    write_folder(tmp_path, sizes)
    split = open_split(tmp_path, "val")
    model = predictor(family, buckets)
    with build_eval_batches(
        config_of(family, side=48, buckets=buckets), split, CATEGORIES, batch_size=batch_size, workers=0, device=CPU
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
        assert_close(detections, alone)


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

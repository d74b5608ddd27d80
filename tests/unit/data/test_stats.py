"""The numbers are those that counting one by one gives."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detronome.data.stats import DataStats, SplitStats, count_data, relative_boxes, split_stats
from detronome.data.store.compile import compile_splits
from detronome.data.store.index import AnnotationIndex

NAMES = {3: "cat", 5: "dog", 9: "owl"}


def write(
    path: Path, images: list[tuple[int, int]], annotations: list[dict[str, Any]], names: dict[int, str] = NAMES
) -> Path:
    """Write images of (height, width), with ids from 0."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": h, "width": w} for i, (h, w) in enumerate(images)],
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in names.items()],
    }
    path.write_text(json.dumps(content))
    return path


def count(
    folder: Path, images: list[tuple[int, int]], annotations: list[dict[str, Any]], names: dict[int, str] = NAMES
) -> SplitStats:
    return split_stats("train", AnnotationIndex.open(write(folder / "a.json", images, annotations, names)))


def box(image: int = 0, category: int = 3, bbox: tuple[float, ...] = (0, 0, 4, 2), **more: Any) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": bbox, **more}


def count_splits(folder: Path, **splits: tuple[list[dict[str, Any]], dict[int, str]]) -> DataStats:
    (folder / "images").mkdir()
    for name, (objects, names) in splits.items():
        write(folder / f"annotations/instances_{name}.json", [(10, 10)], objects, names)
    return count_data("data", compile_splits(folder))


def test_no_objects(tmp_path: Path) -> None:
    stats = count(tmp_path, [(10, 20), (10, 20)], [])
    assert (stats.images, stats.images_without_objects, stats.objects, stats.used_classes) == (2, 2, 0, 0)
    assert [one.objects for one in stats.classes] == [0, 0, 0]
    assert stats.objects_per_image.max == 0
    assert math.isnan(stats.relative_size.median) and math.isnan(stats.imbalance)
    assert stats.frequent_sizes == ((10, 20, 2),)


def test_only_a_crowd(tmp_path: Path) -> None:
    stats = count(tmp_path, [(10, 20)], [box(iscrowd=1)])
    assert (stats.annotations, stats.objects, stats.crowd_regions, stats.images_without_objects) == (1, 0, 1, 1)


def test_sizes_are_cocos_and_by_the_area_of_the_file(tmp_path: Path) -> None:
    areas = [0, 1023.9, 1024, 9215.9, 9216, 1e9]
    stats = count(tmp_path, [(10, 20)], [box(area=area) for area in areas])
    assert (stats.small, stats.medium, stats.large) == (2, 2, 2)


def test_empty_boxes_are_counted_and_left_out_of_the_shapes(tmp_path: Path) -> None:
    stats = count(tmp_path, [(10, 20)], [box(bbox=(0, 0, 0, 5)), box(bbox=(0, 0, 5, -1)), box(bbox=(4, 4, 10, 5))])
    assert (stats.objects, stats.empty_boxes) == (3, 2)
    assert (stats.relative_size.median, stats.box_aspect.median) == (0.5, 2.0)


def test_boxes_of_absurd_size_do_no_harm(tmp_path: Path) -> None:
    stats = count(tmp_path, [(1, 1)], [box(bbox=(1e308, 0, 1e308, 1e308)), box(bbox=(0, 0, 1e308, 1e-308))])
    assert (stats.objects, stats.large) == (2, 1)


def test_relative_boxes_are_centres_and_sizes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", [(10, 20), (100, 50)], [box(1, bbox=(5, 10, 10, 20)), box(0, bbox=(0, 0, 20, 5))])
    assert relative_boxes(AnnotationIndex.open(path)).tolist() == [[0.5, 0.25, 1.0, 0.5], [0.2, 0.2, 0.2, 0.2]]


def test_frequent_sizes_and_aspect(tmp_path: Path) -> None:
    stats = count(tmp_path, [(10, 20)] * 2 + [(20, 10)] * 3 + [(n, n) for n in range(1, 8)], [])
    assert stats.num_image_sizes == 9
    assert stats.frequent_sizes[:2] == ((20, 10, 3), (10, 20, 2))
    assert len(stats.frequent_sizes) == 5
    assert (stats.image_aspect.min, stats.image_aspect.max) == (0.5, 2.0)


@pytest.fixture(scope="module", autouse=True)
def _not_flushed() -> Iterator[None]:
    """Waiting for the disk would take most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        yield


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(1, 99), st.integers(1, 99)), min_size=1, max_size=5),
    st.lists(
        st.tuples(
            st.integers(0, 4),
            st.sampled_from(list(NAMES)),
            st.tuples(*[st.floats(1e-3, 99) | st.integers(-1, 0).map(float)] * 4),
            st.booleans(),
        ),
        max_size=30,
    ),
)
def test_counting_one_by_one_gives_the_same(
    tmp_path: Path, images: list[tuple[int, int]], drawn: list[tuple[int, int, tuple[float, ...], bool]]
) -> None:
    annotations = [box(i % len(images), category, bbox, iscrowd=int(crowd)) for i, category, bbox, crowd in drawn]
    stats = count(tmp_path, images, annotations)
    objects = [one for one in annotations if not one["iscrowd"]]
    per_image = [sum(one["image_id"] == i for one in objects) for i in range(len(images))]
    by_class = Counter(one["category_id"] for one in objects)
    assert (stats.objects, stats.crowd_regions) == (len(objects), len(annotations) - len(objects))
    assert stats.images_without_objects == per_image.count(0)
    assert stats.objects_per_image.max == max(per_image)
    assert stats.objects_per_image.median == statistics.median(per_image)
    for one in stats.classes:
        assert (one.name, one.objects) == (NAMES[one.category_id], by_class[one.category_id])
        assert one.images == len({o["image_id"] for o in objects if o["category_id"] == one.category_id})
        assert one.share == pytest.approx(one.objects / max(1, len(objects)))
    if objects:
        assert stats.imbalance == max(by_class.values()) / min(by_class.values())
    drawable = [one for one in objects if one["bbox"][2] > 0 and one["bbox"][3] > 0]
    assert stats.empty_boxes == len(objects) - len(drawable)
    if drawable:
        assert stats.box_aspect.max == max(one["bbox"][2] / one["bbox"][3] for one in drawable)


def test_more_objects_than_queries_are_noted(tmp_path: Path) -> None:
    stats = count_splits(tmp_path, train=([box()] * 101, {3: "cat"}))
    assert stats.splits[0].images_over == {100: 1, 300: 0}
    assert stats.notes == (
        "train: 1 image has more than 100 objects (at most 101); a model with 100 queries cannot find them all",
    )


def test_classes_that_cannot_be_learnt_are_noted(tmp_path: Path) -> None:
    stats = count_splits(tmp_path, train=([box()], {3: "cat", 5: "dog"}), val=([box(category=5)], {3: "cat", 5: "dog"}))
    assert stats.notes == ("train: no object of 'dog'", "val: has objects of 'dog', train has none")


def test_different_lists_of_classes_are_noted(tmp_path: Path) -> None:
    stats = count_splits(tmp_path, train=([box()], {3: "cat"}), val=([box()], {3: "kitten"}))
    assert "val: its list of classes is not that of train" in stats.notes


def test_many_names_are_shortened(tmp_path: Path) -> None:
    stats = count_splits(tmp_path, train=([box()], {3: "cat"} | {10 + n: f"c{n}" for n in range(7)}))
    assert stats.notes == ("train: no object of 'c0', 'c1', 'c2', 'c3', 'c4' and 2 more",)


def test_plain_data_is_json(tmp_path: Path) -> None:
    record = count_splits(tmp_path, train=([box()], {3: "cat"})).to_json()
    assert json.loads(json.dumps(record))["splits"][0]["classes"][0]["name"] == "cat"


def test_real_data(shared_data: Path) -> None:
    train, val, test = count_data("bccd", compile_splits(shared_data / "bccd")).splits
    assert [(s.images, s.objects, s.small, s.medium, s.large) for s in (train, val, test)] == [
        (205, 2804, 23, 855, 1926),
        (87, 1137, 9, 374, 754),
        (72, 945, 7, 295, 643),
    ]
    assert {one.name: one.objects for one in train.classes} == {"RBC": 2381, "WBC": 214, "Platelets": 209}
    assert train.frequent_sizes == ((480, 640, 205),)
    coco = count_data("coco", compile_splits(shared_data / "coco2017_sample", ["train"])).splits[0]
    assert (coco.annotations, coco.crowd_regions, coco.images_without_objects, coco.used_classes) == (613, 5, 1, 61)

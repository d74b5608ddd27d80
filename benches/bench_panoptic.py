"""Panoptic quality of real maps: ours against the reference's way, re-created from panopticapi's published behaviour.

Truth are the panoptic maps of both splits of DATA, copied until there are `--images`; predictions are the same maps,
moved by some pixels, with a tenth of the segments of another category. `files`: from PNG files to the numbers.
`comparison`: the maps are in memory already, as they are while a model is evaluated. PQ, SQ and RQ of both ways must
agree to 1e-9 before anything is reported. Bind the process to one processor for a fair comparison (panopticapi starts
processes, ours threads).

    taskset -c 0 python benches/bench_panoptic.py DATA --threads 1 --out benches/results
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from detronome.api import evaluate_panoptic_results
from detronome.data.split import open_split
from detronome.evaluation.panoptic import PanopticEvaluator
from detronome.ops.segment_ids import colors_of_ids
from detronome.types import Categories, PanopticPrediction, PanopticTruth, Segment
from harness import arguments, compare, report

Json = dict[str, Any]
Counts = dict[int, list[float]]
_OFFSET = 256**3


def main() -> None:
    """Check that both give the same numbers, time them, report."""
    parser = arguments(__doc__, repeats=5)
    parser.add_argument("data", type=Path, help="folder in COCO layout with panoptic annotations")
    parser.add_argument("--images", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    with tempfile.TemporaryDirectory() as folder:
        truth_json, predicted_json, pairs, categories = write_set(options.data, Path(folder), options.images)
        last: dict[str, list[float]] = {}

        def ours_from_files() -> None:
            last["ours"] = list(evaluate_panoptic_results(predicted_json, truth_json).numbers.values())

        def theirs_from_files() -> None:
            last["theirs"] = reference_from_files(predicted_json, truth_json)

        def ours() -> None:
            evaluator = PanopticEvaluator(categories)
            for truth, prediction in pairs:
                evaluator.add(truth, prediction)
            last["ours, compared"] = list(evaluator.compute().numbers.values())

        def theirs() -> None:
            counts: Counts = defaultdict(lambda: [0.0] * 4)
            for truth, prediction in pairs:
                reference_compare(
                    truth.segment_ids, segments_of(truth), prediction.segment_ids, segments_of(prediction), counts
                )
            last["theirs, compared"] = reference_means(counts, categories.ids, categories.is_thing or ())

        contenders = {"reference": theirs_from_files, "detronome": ours_from_files}
        files = compare(contenders, repeats=options.repeats, warmup=options.warmup)
        contenders = {"reference": theirs, "detronome": ours}
        comparison = compare(contenders, repeats=options.repeats, warmup=options.warmup)

    difference = max(abs(a - b) for numbers in last.values() for a, b in zip(numbers, last["theirs"], strict=True))
    assert difference < 1e-9, f"the numbers differ by {difference}"
    print(f"PQ {last['ours'][0]:.4f}; largest difference of the nine numbers {difference:.1e}", file=sys.stderr)
    report(
        "panoptic",
        {"files": files, "comparison": comparison},
        baseline="reference",
        settings={"images": options.images, "PQ": last["ours"][0], "largest_difference": difference},
        out=options.out,
    )


def write_set(
    data: Path, folder: Path, num_images: int
) -> tuple[Path, Path, list[tuple[PanopticTruth, PanopticPrediction]], Categories]:
    """Write truth and prediction; return both files, the same in memory, and the categories."""
    rng = np.random.default_rng(0)
    splits = [open_split(data, name, annotations="panoptic") for name in ("train", "val")]
    real = [split.maps.truth(i) for split in splits if split.maps for i in range(len(split.index))]
    categories = splits[0].index.categories
    is_thing = dict(zip(categories.ids, categories.is_thing or (), strict=True))
    for name in ("truth", "predicted"):
        (folder / name).mkdir()
    pairs, true_records, predicted_records, images = [], [], [], []
    for image_id in range(1, num_images + 1):
        source = real[image_id % len(real)]
        truth = PanopticTruth(**{**vars(source), "image_id": image_id})
        moved = np.roll(source.segment_ids, tuple(rng.integers(-9, 10, 2).tolist()), (0, 1))
        category_of = dict(zip(source.ids.tolist(), source.category_ids.tolist(), strict=True))
        segments = tuple(
            Segment(id=id_, category_id=category_id, is_thing=is_thing[category_id], area=0)
            for id_, category_id in category_of.items()
        )
        segments = tuple(
            Segment(**{**vars(s), "category_id": int(rng.choice(categories.ids))}) if rng.random() < 0.1 else s
            for s in segments
        )
        prediction = PanopticPrediction(segment_ids=moved, segments=segments, image_id=image_id)
        pairs.append((truth, prediction))
        name = f"{image_id:012d}.png"
        Image.fromarray(colors_of_ids(truth.segment_ids)).save(folder / "truth" / name)
        Image.fromarray(colors_of_ids(moved)).save(folder / "predicted" / name)
        height, width = moved.shape
        images.append({"id": image_id, "file_name": f"{image_id:012d}.jpg", "height": height, "width": width})
        record = {"image_id": image_id, "file_name": name}
        true_records.append({**record, "segments_info": list(segments_of(truth).values())})
        predicted_records.append({**record, "segments_info": list(segments_of(prediction).values())})
    named = [{"id": i, "name": n, "isthing": int(is_thing[i])} for i, n in categories.by_id.items()]
    contents = {
        "truth": {"images": images, "annotations": true_records, "categories": named},
        "predicted": {"annotations": predicted_records},
    }
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder / "truth.json", folder / "predicted.json", pairs, categories


def segments_of(side: PanopticTruth | PanopticPrediction) -> dict[int, Json]:
    """Return entries of `segments_info` by segment id."""
    if isinstance(side, PanopticPrediction):
        return {s.id: {"id": s.id, "category_id": s.category_id} for s in side.segments}
    columns = (side.ids.tolist(), side.category_ids.tolist(), side.areas.tolist(), side.is_crowd.tolist())
    return {
        id_: {"id": id_, "category_id": category_id, "area": area, "iscrowd": int(crowd), "bbox": [0, 0, 1, 1]}
        for id_, category_id, area, crowd in zip(*columns, strict=True)
    }


def reference_from_files(predicted_json: Path, truth_json: Path) -> list[float]:
    """Return the nine numbers: every image's two maps are read, then compared."""
    truth, predicted = json.loads(truth_json.read_text()), json.loads(predicted_json.read_text())
    by_image = {record["image_id"]: record for record in predicted["annotations"]}
    counts: Counts = defaultdict(lambda: [0.0] * 4)
    for record in truth["annotations"]:
        other = by_image[record["image_id"]]
        reference_compare(
            _read(truth_json.with_suffix("") / record["file_name"]),
            {segment["id"]: segment for segment in record["segments_info"]},
            _read(predicted_json.with_suffix("") / other["file_name"]),
            {segment["id"]: segment for segment in other["segments_info"]},
            counts,
        )
    categories = truth["categories"]
    return reference_means(counts, [c["id"] for c in categories], [bool(c["isthing"]) for c in categories])


def reference_compare(
    true_map: NDArray[Any], true: dict[int, Json], predicted_map: NDArray[Any], found: dict[int, Json], counts: Counts
) -> None:
    """Add one image: sorted pixels give areas and overlaps, dictionaries the matches."""
    ids, areas = np.unique(predicted_map, return_counts=True)
    area_of = dict(zip(ids.tolist(), areas.tolist(), strict=True))
    both = true_map.astype(np.uint64) * _OFFSET + predicted_map.astype(np.uint64)
    keys, sizes = np.unique(both, return_counts=True)
    overlap = {(int(k) // _OFFSET, int(k) % _OFFSET): int(n) for k, n in zip(keys, sizes, strict=True)}
    matched_true, matched = set(), set()
    for (true_id, id_), shared in overlap.items():
        segment, other = true.get(true_id), found.get(id_)
        if not segment or not other or segment["iscrowd"] or segment["category_id"] != other["category_id"]:
            continue
        iou = shared / (area_of[id_] + segment["area"] - shared - overlap.get((0, id_), 0))
        if iou > 0.5:
            counts[segment["category_id"]][0] += iou
            counts[segment["category_id"]][1] += 1
            matched_true.add(true_id)
            matched.add(id_)
    crowd_of = {}
    for true_id, segment in true.items():
        if segment["iscrowd"]:
            crowd_of[segment["category_id"]] = true_id
        elif true_id not in matched_true:
            counts[segment["category_id"]][3] += 1
    for id_, segment in found.items():
        category_id = segment["category_id"]
        if id_ not in matched:
            excused = overlap.get((0, id_), 0) + overlap.get((crowd_of.get(category_id, -1), id_), 0)
            counts[category_id][2] += excused / area_of[id_] <= 0.5


def reference_means(counts: Counts, category_ids: Sequence[int], is_thing: Sequence[bool]) -> list[float]:
    """Return PQ, SQ and RQ of all categories, of things and of stuff."""
    rows = []
    for category_id, thing in zip(category_ids, is_thing, strict=True):
        iou, right, wrong, missed = counts[category_id]
        weight = right + wrong / 2 + missed / 2
        if weight:
            rows.append((thing, iou / weight, iou / right if right else 0.0, right / weight))
    groups = (rows, [row for row in rows if row[0]], [row for row in rows if not row[0]])
    return [float(np.mean([row[k] for row in group])) for group in groups for k in (1, 2, 3)]


def _read(path: Path) -> NDArray[np.uint32]:
    colors = np.array(Image.open(path), np.uint32)
    return colors[..., 0] + 256 * colors[..., 1] + 256**2 * colors[..., 2]


if __name__ == "__main__":
    main()

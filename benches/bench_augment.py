"""Flip, crop and resize of decoded COCO photos with their boxes: ours against the reference's way (Pillow).

    python benches/bench_augment.py DATA [--split train] [--threads 1]

The training recipe, drawn once for each photo; the photos with a crop are also timed apart from the others: ours
resizes a window of the photo once, where the reference resizes, crops and resizes again. The reference's result is a
normalised float image, ours bytes that the model normalises.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from detronome.config.schema import AugmentConfig
from detronome.data.augment.cpu import apply_to_boxes, apply_to_image
from detronome.data.augment.params import AugmentPolicy, draw
from detronome.data.split import open_split
from detronome.data.store.decode import decode_image
from detronome.runtime.seeding import generator
from harness import arguments, compare, report
from reference_data import reference_transform


def main() -> None:
    parser = arguments(__doc__, repeats=9)
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("--split", default="train")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    split = open_split(options.data, options.split)
    policy = AugmentPolicy(**asdict(AugmentConfig()))

    work = []
    for i in range(len(split.index)):
        record = split.index.image(i)
        pixels = decode_image(split.source.read(i), split.source.where(i), record.size_hw)
        boxes = split.index.annotations(i)[0]
        boxes[:, 2:] += boxes[:, :2]
        target = {
            "boxes": torch.from_numpy(boxes).float(),
            "labels": torch.zeros(len(boxes)),
            "area": torch.ones(len(boxes)),
        }
        params = draw(policy, record.size_hw, generator("bench", i))
        work.append((pixels, Image.fromarray(pixels), boxes, target, params))

    def contenders(chosen: list[Any]) -> dict[str, Any]:
        return {
            "reference": lambda: [reference_transform(image, target, params) for _, image, _, target, params in chosen],
            "ours": lambda: [
                (apply_to_image(pixels, params), apply_to_boxes(boxes, params))
                for pixels, _, boxes, _, params in chosen
            ],
        }

    groups = {
        f"all {len(work)} photos": work,
        "with a crop": [item for item in work if item[-1].crop is not None],
        "without": [item for item in work if item[-1].crop is None],
    }
    cases = {
        name: compare(contenders(chosen), repeats=options.repeats, warmup=options.warmup)
        for name, chosen in groups.items()
    }
    settings = {name: len(chosen) for name, chosen in groups.items()}
    report("augment", cases, baseline="reference", settings=settings, out=options.out)


if __name__ == "__main__":
    main()

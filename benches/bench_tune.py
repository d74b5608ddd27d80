"""A deliberately bad configuration, made faster by `detronome tune`: large JPEGs, no worker, images one by one.

    python benches/bench_tune.py FOLDER              # writes the data and the configuration, then tunes
    detronome tune FOLDER/data --config FOLDER/bad.toml --model nano --out FOLDER/tuned.toml --allow-inexact

The data are random scenes as JPEGs of 2048 x 1536 pixels, of which `nano` sees 192 x 256. The configuration decodes
them exactly, in the training process, and puts one image at a time through the model. Afterwards the tuned settings are
tuned again: nothing, or little, must be left. The last line of stdout is one JSON document.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import detronome as dt
from detronome.tempo.settings_file import settings_toml
from harness import new_document, publish

SIZE_HW = (1536, 2048)
BAD: dict[str, Any] = {
    "data.workers": 0,
    "data.decode": "exact",
    "batch.micro_batch_size": 1,
    "eval.batch_size": 1,
    "train.device": "cpu",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--budget-minutes", type=float, default=6.0)
    parser.add_argument("--exact", action="store_true", help="only what changes no more than rounding")
    parser.add_argument("--out", type=Path, help="file or folder for the JSON document")
    options = parser.parse_args()
    data, bad = options.folder / "data", options.folder / "bad.toml"
    if not data.exists():
        write_scenes(data, options.images)
    bad.write_text(settings_toml(BAD, header=["bad on purpose"]))
    document = new_document("tune", {"images": options.images, "size_hw": SIZE_HW, "bad": BAD})
    for name, config in (("bad", bad), ("tuned", options.folder / "tuned.toml")):
        out = options.folder / ("tuned.toml" if name == "bad" else "tuned-again.toml")
        out.unlink(missing_ok=True)
        tuning = dt.tune(
            data,
            model="nano",
            config=config,
            out=out,
            budget_minutes=options.budget_minutes,
            allow_inexact=not options.exact,
            on_begin=lambda what: print(f"measuring {what}", flush=True),
        )
        print(out.read_text())
        document["cases"][name] = {
            part: {
                "before_images_per_s": final.baseline_images_per_s,
                "after_images_per_s": final.candidate_images_per_s,
                "speedup": final.speedup.ratio if final.speedup else None,
                "interval": [final.speedup.low, final.speedup.high] if final.speedup else None,
            }
            for part, final in tuning.result.final.items()
        } | {"settings": dict(tuning.result.settings)}
    publish(document, options.out)


def write_scenes(root: Path, num_images: int) -> None:
    """Write a COCO folder of large noisy JPEGs with coloured rectangles; an eighth of them for validation."""
    rng = np.random.default_rng(0)
    (root / "annotations").mkdir(parents=True)
    (root / "images").mkdir()
    height, width = SIZE_HW
    for split, count in (("train", num_images), ("val", max(1, num_images // 8))):
        images, annotations = [], []
        for i in range(count):
            coarse = rng.integers(60, 200, (height // 8, width // 8, 3), dtype=np.uint8)
            picture = np.asarray(Image.fromarray(coarse).resize((width, height))).copy()
            for _ in range(int(rng.integers(1, 6))):
                h, w = int(rng.integers(200, 600)), int(rng.integers(200, 600))
                y, x = int(rng.integers(0, height - h)), int(rng.integers(0, width - w))
                category = int(rng.integers(0, 2))
                picture[y : y + h, x : x + w] = ((220, 40, 40), (40, 60, 220))[category]
                box = {"bbox": [x, y, w, h], "area": w * h, "iscrowd": 0}
                annotations.append({"id": len(annotations) + 1, "image_id": i, "category_id": category + 1, **box})
            name = f"{split}_{i:04d}.jpg"
            Image.fromarray(picture).save(root / "images" / name, quality=92)
            images.append({"id": i, "file_name": name, "height": height, "width": width})
        categories = [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}]
        record = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(record))


if __name__ == "__main__":
    main()

"""From JPEG files to a batch that is ready for the model: ours against the reference's way, on real COCO photos.

    python benches/bench_loader.py DATA [--split train] [--threads 1]

DATA is a COCO folder, e.g. a sample of COCO 2017. Both ways read the same files and do the same to each image (the
training recipe's flip, crop and sizes, drawn once); the batch of ours holds bytes that the model normalises, that of
the reference normalised floats, as each model takes them. Pixels are compared where no crop is drawn, so that both
resample once: they may differ by 2 of 255 levels, and by less than 0.1 on average. `--workers` also times whole passes
with loader processes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from detronome.config.schema import AugmentConfig
from detronome.data.augment.params import AugmentPolicy
from detronome.data.collate import collate
from detronome.data.dataset import DetectionDataset
from detronome.data.loader import train_batches
from detronome.data.sampler import epoch_order
from detronome.data.split import open_split
from detronome.data.store.pixels import PixelReader
from detronome.models.layers.image_normalizer import IMAGENET_MEAN, IMAGENET_STD
from harness import arguments, compare, report
from reference_data import reference_batch, reference_sample

EPOCH = 0


class ReferenceDataset:
    """The split's images and targets in the reference's form."""

    def __init__(self, ours: DetectionDataset, folder: Path, split: str) -> None:
        self.ours = ours
        self.split = open_split(folder, split)

    def __len__(self) -> int:
        return len(self.ours)

    def __getitem__(self, i: int) -> Any:
        path = self.split.files.images_dir / self.split.index.image(i).file_name
        return reference_sample(path, self.split.index.annotations(i), self.ours.params(EPOCH, i))


def main() -> None:
    parser = arguments(__doc__, repeats=9)
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("--split", default="train")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--workers", type=int, default=0, help="also time whole passes with this many processes")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    split = open_split(options.data, options.split)
    policy = AugmentPolicy(**asdict(AugmentConfig()))

    def dataset(*, fast: bool) -> DetectionDataset:
        pixels = PixelReader(split.index, split.source, fast=fast)
        return DetectionDataset(split.index, pixels, policy, training=True, seed=0)

    exact, fast = dataset(fast=False), dataset(fast=True)
    reference = ReferenceDataset(exact, options.data, options.split)
    groups = [range(start, min(start + options.batch, len(exact))) for start in range(0, len(exact), options.batch)]
    differences = {name: pixel_difference(data, reference) for name, data in (("ours", exact), ("ours fast", fast))}
    assert differences["ours"]["max"] <= 2 and differences["ours"]["mean"] < 0.1, differences

    def one_by_one(make_batch: Callable[[range], object]) -> Callable[[], None]:
        def run() -> None:
            for group in groups:
                make_batch(group)  # and let go of it, as a training loop does

        return run

    contenders = {
        "reference": one_by_one(lambda group: reference_batch([reference[i] for i in group])),
        "ours": one_by_one(lambda group: collate([exact[EPOCH, i] for i in group])),
        "ours fast": one_by_one(lambda group: collate([fast[EPOCH, i] for i in group])),
    }
    cases = {f"{len(exact)} photos, one process": compare(contenders, repeats=options.repeats, warmup=options.warmup)}
    if options.workers:
        with_workers = {
            "reference": lambda: reference_pass(reference, options.batch, options.workers),
            "ours": lambda: our_pass(exact, options.batch, options.workers),
            "ours fast": lambda: our_pass(fast, options.batch, options.workers),
        }
        case = f"{20 * len(exact)} photos, {options.workers} worker processes, with their start"
        cases[case] = compare(with_workers, repeats=3, warmup=0)
    for name, difference in differences.items():
        print(f"{name}: at most {difference['max']} levels from the reference, {difference['mean']:.4f} on average")
    for case, samples in cases.items():
        images = len(exact) * (20 if "worker" in case else 1)
        speeds = {name: images / np.median(values["wall_s"]) for name, values in samples.items()}
        print(case, "images/s:", {name: round(float(speed), 1) for name, speed in speeds.items()})
    settings = {"photos": len(exact), "batch": options.batch, "pixel_difference_without_crop": differences}
    report("loader", cases, baseline="reference", settings=settings, out=options.out)


def pixel_difference(data: DetectionDataset, reference: ReferenceDataset) -> dict[str, float]:
    """Return the largest and mean difference in levels of 255 over all images that are not cropped."""
    mean, std = (np.array(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    largest, total, count = 0.0, 0.0, 0
    for i in range(len(data)):
        if data.params(EPOCH, i).crop is not None:
            continue
        levels = np.rint((reference[i][0].numpy() * std + mean) * 255)
        difference = np.abs(data[EPOCH, i][0].numpy().astype(int) - levels)
        largest = max(largest, float(difference.max()))
        total, count = total + float(difference.sum()), count + difference.size
    return {"max": largest, "mean": total / count, "pixels": count // 3}


def our_pass(data: DetectionDataset, batch: int, workers: int) -> None:
    order, steps = epoch_order(0, len(data)), 20 * len(data) // batch
    with train_batches(
        data, order, seed=0, start_step=0, total_steps=steps, global_batch_size=batch, workers=workers
    ) as batches:
        for _ in batches:
            pass


def reference_pass(data: ReferenceDataset, batch: int, workers: int) -> None:
    order = [i for _ in range(20) for i in range(len(data))]
    loader: DataLoader[Any] = DataLoader(data, batch, sampler=order, num_workers=workers, collate_fn=reference_batch)  # type: ignore[arg-type]
    for _ in loader:
        pass


if __name__ == "__main__":
    main()

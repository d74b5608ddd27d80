"""A run folder that holds everything a page can show, written as plain files: log, plan, verdict, evaluation, data.

The numbers follow from formulas and a fixed seed, so that the pages of two calls are equal.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

__all__ = ["CLASSES", "write_full_run"]

CLASSES = ("car", "truck", "bus", "pedestrian", "cyclist", "traffic light", "stop sign", "dog")

_MIB = 2**20
_SECTIONS_S = {
    "data_wait": 0.02,
    "copy": 0.006,
    "forward": 0.085,
    "matcher": 0.021,
    "loss": 0.012,
    "backward": 0.16,
    "reduce": 0.004,
    "update": 0.018,
    "log": 0.001,
}
_CAUSES = {
    "device context": 480,
    "weights": 158,
    "gradients": 158,
    "optimizer": 316,
    "average": 158,
    "batch": 88,
    "backbone": 4120,
    "encoder": 2310,
    "decoder": 890,
    "heads": 70,
    "matcher and loss": 310,
    "backward workspace": 940,
    "update workspace": 40,
    "allocator slack": 620,
}


def write_full_run(
    folder: Path,
    *,
    classes: tuple[str, ...] = CLASSES,
    epochs: int = 24,
    lr: float = 1e-4,
    wait: float = 1.0,
    verdict: str = "DEVICE",
) -> Path:
    """Write a finished run and return its folder.

    Args:
        folder: is made.
        classes: names, of any content.
        epochs: of 20 steps each.
        lr: is in the configuration, and decides how well it learns.
        wait: factor on the time that a step waits for data.
        verdict: of `verdict.json`.
    """
    rng = np.random.default_rng(7)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.toml").write_text(
        f'preset = "detr-r50"\nseed = 0\n\n[model]\nnum_queries = 100\n\n[optim]\nlr = {lr}\nlr_backbone = {lr / 10}\n'
        "weight_decay = 1e-4\n\n[augment]\nsizes = [480, 512, 544, 576, 608]\n\n[data]\n"
        f"workers = {2 if wait > 1 else 8}\n",
        encoding="utf-8",
    )
    records = _records(rng, classes, epochs=epochs, lr=lr, wait=wait)
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    for name, content in (
        ("plan.json", _plan()),
        ("verdict.json", _verdict(verdict)),
        ("evaluation.json", _evaluation(rng, classes)),
        ("data.json", _data(rng, classes)),
    ):
        (folder / name).write_text(json.dumps({"format": 1, **content}), encoding="utf-8")
    _pictures(folder / "pictures", rng)
    return folder


def _records(
    rng: np.random.Generator, classes: tuple[str, ...], *, epochs: int, lr: float, wait: float
) -> list[dict[str, Any]]:
    total = 20 * epochs
    start = {
        "kind": "start",
        "step": 0,
        "epoch": 0.0,
        "preset": "detr-r50",
        "total_steps": total,
        "total_epochs": epochs,
        "steps_per_epoch": 20,
        "global_batch_size": 16,
        "num_train_images": 3200,
        "num_val_images": 400,
        "num_parameters": 41_501_895,
        "num_trainable_parameters": 41_279_495,
        "resolved": {
            "batch.micro_batch_size": "4 (planned peak 10.4 GiB of 24.0 GiB)",
            "data.workers": "8 (eight processors, loader faster than the step)",
            "train.precision": "bf16 (the device computes it fast)",
        },
        "environment": {"python": "3.11.9", "torch": "2.15", "device": "a GPU of 24 GiB"},
    }
    records: list[dict[str, Any]] = [start]
    speed = lr / 1e-4
    for step in range(1, total + 1):
        epoch, noise = step / 20, float(rng.normal())
        progress = 1 - math.exp(-3.2 * speed * step / total)
        sections = {name: s * (1 + 0.04 * float(rng.normal())) for name, s in _SECTIONS_S.items()}
        sections["data_wait"] *= wait * (3.0 if step < 4 else 1.0)
        step_s = sum(sections.values())
        if step % 97 == 0:
            records.append(
                {
                    "kind": "skip",
                    "step": step,
                    "epoch": epoch,
                    "reason": "gradient norm 812, usual is 4.1",
                    "image_ids": [1200 + step, 1300 + step],
                    "rank": 0,
                    "action": "skipped",
                }
            )
        records.append(
            {
                "kind": "step",
                "step": step,
                "epoch": epoch,
                "loss": 22 * (1 - 0.75 * progress) + 0.7 * noise,
                "losses": {
                    "loss_ce": 1.9 * (1 - 0.8 * progress) + 0.06 * noise,
                    "loss_bbox": 0.21 * (1 - 0.78 * progress) + 0.005 * noise,
                    "loss_giou": 1.1 * (1 - 0.6 * progress) + 0.03 * noise,
                },
                "grad_norm": 4.0 * math.exp(0.25 * noise),
                "learning_rates": _rates(step, total, lr),
                "images_per_s": 16 / step_s,
                "step_s": step_s,
                "data_wait_s": sections["data_wait"],
                "memory_bytes": 9_300 * _MIB,
                "training_s": step * step_s,
                "skipped_steps": step // 97,
                "sections_s": sections,
                "device_s": {k: 0.9 * v for k, v in sections.items() if k in _ON_DEVICE},
                "system": {
                    "cpu_percent": 58 + 6 * noise,
                    "process_cpus": 5.1 + 0.4 * noise,
                    "rss_bytes": 4.1e9 + 2e6 * step,
                    "ram_percent": 41 + 0.01 * step,
                    "disk_read_bytes_s": 6e7 * (1 + 0.2 * noise),
                    "disk_write_bytes_s": 3e6,
                    "gpu_percent": 93 + noise,
                    "gpu_memory_bytes": 11_200 * _MIB,
                    "gpu_power_w": 310 + 8 * noise,
                    "gpu_temperature_c": 71 + 0.5 * noise,
                },
            }
        )
        if step % 20 == 0:
            records.append(_evaluated(classes, step, 0.46 * progress))
    seconds = {name: total * s for name, s in _SECTIONS_S.items()}
    seconds |= {"evaluation": 21.0, "evaluation_merge": 0.8, "checkpoint": 6.0, "start": 11.0, "skipped": 1.3}
    seconds["data_wait"] *= wait
    useful = sum(seconds[name] for name in (*_ON_DEVICE, "reduce"))
    records.append(
        {
            "kind": "end",
            "step": total,
            "epoch": float(epochs),
            "reason": "finished",
            "best_step": total,
            "best_metrics": {"AP": 0.44},
            "training_s": 160.0,
            "eval_s": 21.0,
            "wall_s": sum(seconds.values()),
            "seconds": seconds,
            "goodput": useful / sum(seconds.values()),
        }
    )
    return records


_ON_DEVICE = ("copy", "forward", "matcher", "loss", "backward", "update")


def _rates(step: int, total: int, lr: float) -> dict[str, float]:
    scale = min(1.0, step / 40) * (1.0 if step < 0.8 * total else 0.1)
    return {"model": lr * scale, "backbone": 0.1 * lr * scale}


def _evaluated(classes: tuple[str, ...], step: int, ap: float) -> dict[str, Any]:
    per_class = {name: ap * (1.25 - 0.5 * i / max(len(classes) - 1, 1)) for i, name in enumerate(classes)}
    return {
        "kind": "eval",
        "step": step,
        "epoch": step / 20,
        "is_best": True,
        "metrics": {
            "AP": ap,
            "AP50": min(1.0, 1.5 * ap),
            "AP75": 1.05 * ap,
            "AP_small": 0.5 * ap,
            "AP_medium": ap,
            "AP_large": 1.3 * ap,
        },
        "per_class_ap": per_class,
        "losses": {"loss_ce": 2 - 3 * ap, "loss_bbox": 0.2 - 0.3 * ap},
        "eval_s": 1.0,
    }


def _plan() -> dict[str, Any]:
    training = {name: size * _MIB for name, size in _CAUSES.items()}
    evaluation = {
        name: size * _MIB
        for name, size in {
            "device context": 480,
            "weights": 158,
            "average": 158,
            "backbone": 3100,
            "encoder": 900,
        }.items()
    }
    return {
        "device": {"name": "RTX 4090", "memory_bytes": 24_000 * _MIB},
        "budget_bytes": 23_000 * _MIB,
        "micro_batch_size": 4,
        "accumulation": 4,
        "precision": "bf16",
        "checkpointing": "none",
        "training": {
            "bytes_by_cause": training,
            "peak_bytes": sum(training.values()),
            "shape": "800x1344",
            "num_images": 4,
            "num_objects": 252,
            "moment": "backward",
        },
        "evaluation": {
            "bytes_by_cause": evaluation,
            "peak_bytes": sum(evaluation.values()),
            "shape": "800x1344",
            "num_images": 8,
            "num_objects": 0,
            "moment": "forward",
        },
        "step_s": 0.31,
        "epoch_s": 62.0,
        "total_s": 1488.0,
    }


def _verdict(verdict: str) -> dict[str, Any]:
    if verdict == "DATA":
        return {
            "verdict": "DATA",
            "best_gain": 1.62,
            "source": "log",
            "sentence": "A step waits 38 % of its time for data: the loader gives 31 images/s, of 52.",
            "proof": [
                {"what": "waiting for data", "value": 38.2, "unit": "%"},
                {"what": "loader alone", "value": 31.0, "unit": "images/s"},
                {"what": "device alone", "value": 52.4, "unit": "images/s"},
            ],
            "changes": [
                {"setting": "data.workers", "value": 8, "why": "two of eight processors decode images"},
                {"setting": "data.cache", "value": "memory", "why": "the decoded images fit into memory"},
            ],
        }
    return {
        "verdict": verdict,
        "best_gain": 1.12,
        "source": "profile",
        "sentence": "The device is busy 93 % of a step: what is left to gain is arithmetic.",
        "proof": [
            {"what": "device busy", "value": 93.1, "unit": "%"},
            {"what": "device alone", "value": 52.4, "unit": "images/s"},
            {"what": "the run", "value": 48.9, "unit": "images/s"},
        ],
        "changes": [
            {"setting": "train.compile", "value": True, "why": "fewer and larger kernels: forward took 27 % of a step"}
        ],
    }


def _evaluation(rng: np.random.Generator, classes: tuple[str, ...]) -> dict[str, Any]:
    size = len(classes)
    matrix = rng.poisson(0.6, (size + 1, size + 1))
    for i in range(size):
        matrix[i, i] = 160 - 140 * i // max(size, 1)
        matrix[i, (i + 1) % size] += (40 - 3 * i) if i % 3 == 0 and size > 1 else 0
        matrix[i, size] += 12 + i
        matrix[size, i] += 7 + i
    matrix[size, size] = 0
    recall = np.linspace(0, 1, 101)
    curves = []
    for i, name in enumerate(classes):
        reach = 0.95 - 0.5 * i / max(size, 1)
        precision = np.where(recall <= reach, 1 - (0.3 + 0.03 * i) * (recall / reach) ** 3, 0.0).clip(0)
        curves.append(
            {
                "class": name,
                "num_objects": int(matrix[i].sum()),
                "ap50": float(precision.mean()),
                "precision": precision.round(4).tolist(),
                "best_f1": round(0.88 - 0.3 * i / max(size, 1), 3),
                "best_score": 0.41,
            }
        )
    every = np.mean([curve["precision"] for curve in curves], axis=0) if curves else np.zeros(101)
    overall = {
        "class": "all",
        "num_objects": int(matrix[:-1].sum()),
        "ap50": float(every.mean()),
        "precision": every.round(4).tolist(),
        "best_f1": 0.71,
        "best_score": 0.38,
    }
    worst = [
        {
            "image_id": 900 + i,
            "file": f"val/{i:06d}.jpg",
            "picture": f"pictures/worst-{i}.jpg",
            "f1": 0.08 * i,
            "missed": 5 - i,
            "background": 1 + i,
            "class": i % 2,
            "location": 1,
            "duplicate": 0,
        }
        for i in range(4)
    ]
    return {
        "split": "val",
        "step": 480,
        "iou_threshold": 0.5,
        "score_threshold": 0.38,
        "num_images": 400,
        "classes": list(classes),
        "confusion": matrix.tolist(),
        "curves": curves,
        "overall": overall,
        "errors": {"missed": 260, "background": 148, "class": 71, "location": 122, "duplicate": 18},
        "worst_images": worst,
    }


def _data(rng: np.random.Generator, classes: tuple[str, ...]) -> dict[str, Any]:
    splits = {}
    for name, num_images in (("train", 3200), ("val", 400)):
        counts = [int(num_images * 3 / (i + 1) ** 1.1) for i in range(len(classes))]
        if name == "val" and len(counts) > 1:
            counts[-1] = 0
        edges = [0, 1, 2, 4, 8, 16, 32, 64, 128]
        spread = rng.dirichlet(np.arange(1, len(edges))[::-1] + 2.0) * num_images
        sizes = [0, 8, 16, 32, 64, 96, 128, 256, 512]
        splits[name] = {
            "num_images": num_images,
            "num_objects": sum(counts),
            "objects_per_image": {"bins": edges, "counts": spread.astype(int).tolist()},
            "classes": [
                {"name": one, "num_objects": count, "num_images": count // 2}
                for one, count in zip(classes, counts, strict=True)
            ],
            "box_size_px": {
                "bins": sizes,
                "counts": (rng.dirichlet(np.arange(8) + 1.0) * 9000).astype(int).tolist(),
            },
            "areas": {"small": sum(counts) // 3, "medium": sum(counts) // 2, "large": sum(counts) // 6},
        }
    return {"splits": splits}


def _pictures(folder: Path, rng: np.random.Generator) -> None:
    folder.mkdir(exist_ok=True)
    index = []
    for i in range(4):
        _picture(rng, i).save(folder / f"{i:02d}.jpg", quality=85)
        _picture(rng, i + 4).save(folder / f"worst-{i}.jpg", quality=85)
        index.append({"file": f"{i:02d}.jpg", "image_id": 700 + i, "caption": f"val/{700 + i:06d}.jpg"})
    (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")


def _picture(rng: np.random.Generator, number: int) -> Image.Image:
    """Return rectangles before a gradient, twice side by side, boxed as truth and as prediction."""
    ramp = np.linspace(60, 190, 480, dtype=np.uint8)
    pixels = np.stack(
        [np.tile(ramp, (360, 1)), np.full((360, 480), 90 + 12 * number, np.uint8), np.tile(ramp[::-1], (360, 1))], -1
    )
    half = Image.fromarray(pixels)
    boxes = [
        (int(x), int(y), int(x + w), int(y + h))
        for x, y, w, h in rng.integers((10, 10, 40, 40), (380, 260, 90, 90), (4, 4))
    ]
    sides = []
    for count, color in ((4, "#3fd07f"), (3, "#ffb347")):
        side = half.copy()
        draw = ImageDraw.Draw(side)
        for box in boxes:
            draw.rectangle(box, fill="#e8e4da")
        for box in boxes[:count]:
            draw.rectangle(box, outline=color, width=4)
        sides.append(np.asarray(side))
    return Image.fromarray(np.concatenate(sides, axis=1))

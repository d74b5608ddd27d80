"""Decoding real COCO photos: ours (strict, EXIF, size check) against the usual decoders, bytes in memory to RGB pixels.

    python benches/bench_decode.py DATA [--split train] [--threads 1]

Speed is half of it: each decoder is also given the photos with 1-20 flipped bits each, and what it does is counted.
`wrong` is a picture that differs from the undamaged one by more than 2 levels somewhere and comes without an error.
"""

from __future__ import annotations

import io
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg

from detronome.data.split import open_split
from detronome.data.store.decode import decode_image
from harness import arguments, compare, report

Decoder = Callable[[bytes], NDArray[np.uint8]]


def pillow(content: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def torchvision(content: bytes) -> NDArray[np.uint8]:
    array = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    return decode_jpeg(array, mode=ImageReadMode.RGB).permute(1, 2, 0).numpy()


def ours(content: bytes) -> NDArray[np.uint8]:
    return decode_image(content, "photo")


def ours_fast(content: bytes) -> NDArray[np.uint8]:
    return decode_image(content, "photo", fast=True)


DECODERS: dict[str, Decoder] = {"pillow": pillow, "torchvision": torchvision, "ours": ours, "ours fast": ours_fast}


def main() -> None:
    parser = arguments(__doc__, repeats=9)
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("--split", default="train")
    parser.add_argument("--damaged", type=int, default=300, help="photos with flipped bits")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")

    split = open_split(options.data, options.split)
    photos = [split.source.read(i) for i in range(len(split.index))]
    verdicts = damage_test([photo for photo in photos if photo.startswith(b"\xff\xd8")], options.damaged)
    print(f"{options.damaged} photos with flipped bits:", verdicts)

    contenders = {name: lambda decode=decode: [decode(photo) for photo in photos] for name, decode in DECODERS.items()}
    cases = {f"{len(photos)} photos": compare(contenders, repeats=options.repeats, warmup=options.warmup)}
    report("decode", cases, baseline="pillow", settings={"photos": len(photos), "damaged": verdicts}, out=options.out)


def damage_test(photos: list[bytes], count: int) -> dict[str, dict[str, int]]:
    """Return how often each decoder refused a damaged photo, decoded it unharmed, or gave a wrong picture."""
    verdicts: dict[str, dict[str, int]] = {name: {"refused": 0, "unharmed": 0, "wrong": 0} for name in DECODERS}
    rng = random.Random(0)
    for n in range(count):
        photo = photos[n % len(photos)]
        damaged = bytearray(photo)
        for _ in range(rng.randint(1, 20)):
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        for name, decode in DECODERS.items():
            verdicts[name][_verdict(decode, photo, bytes(damaged))] += 1
    return verdicts


def _verdict(decode: Decoder, photo: bytes, damaged: bytes) -> str:
    try:
        got: Any = decode(damaged)
    except Exception:
        return "refused"
    wanted = decode(photo)
    is_same = got.shape == wanted.shape and np.abs(got.astype(int) - wanted).max() <= 2
    return "unharmed" if is_same else "wrong"


if __name__ == "__main__":
    main()

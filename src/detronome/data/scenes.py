"""The embedded demo data set: scenes of real handwritten digits, made offline in seconds.

scikit-learn ships 1,797 handwritten digits (8x8 pixels) and two photos. A scene is one to six of those digits,
enlarged, tilted and inked in a colour that stands out, on a photo crop, gradient, cloud or pattern. Training and
validation share no digit and no background. Every image is a pure function of (seed, split, index).

Shape letters: `S` side of a scene in pixels, `h w` height and width of one digit's ink in pixels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import simplejpeg  # type: ignore[import-untyped, unused-ignore]
from jaxtyping import Bool, Float32, UInt8
from numpy.typing import NDArray
from PIL import Image

from detronome.errors import ConfigError, DataError, MissingExtraError, Problem
from detronome.runtime.files import write_atomic
from detronome.runtime.seeding import generator

__all__ = ["write_scenes"]

Split = Literal["train", "val"]

_RECIPE = 1
"""Raised whenever the pictures change, so that folders made by an older recipe are made again."""
_MARKER = "scenes.json"
_NAMES = tuple("0123456789")
_JPEG_QUALITY = 90
_MAX_OBJECTS = 6
_SIZE_RANGE = (9 / 128, 37 / 128)
"""Longer side of a digit's ink relative to the scene's side, drawn log-uniformly."""
_MAX_OVERLAP = 0.1
"""Largest part of a box that another box may cover; the ink itself never touches."""
_VAL_FRACTION = 0.2
_PHOTO_CUTS = (0.6, 0.52)
"""Where each photo (temple, dahlia) is cut, relative to its width: left of it for training, right of it for
validation. Either side of the dahlia has petals; the temple is on the left only."""
_PHOTO_GAP = 0.01
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


@dataclass(frozen=True, kw_only=True)
class _Material:
    """What the scenes of one split are made of."""

    digits: tuple[tuple[Image.Image, ...], ...]
    """For each of the ten classes, its digits as 12x12 images of ink (8x8 with a margin of 2), 0-1."""
    photos: tuple[Image.Image, ...]
    """The regions of the photos that this split may crop, RGB."""


@dataclass(frozen=True, kw_only=True)
class _Stamp:
    """One digit ready to be placed, cropped to its ink."""

    ink: Float32[np.ndarray, "h w"]
    """Opacity of the ink, 0-1."""
    halo: Float32[np.ndarray, "h w"]
    """Opacity of a soft edge around the ink that sets it off a busy background, 0-1."""
    mask: Bool[np.ndarray, "h w"]
    """True where there is ink; touches all four sides."""


@dataclass(frozen=True, kw_only=True)
class _Scene:
    """One image with its truth."""

    image: UInt8[np.ndarray, "S S 3"]
    labels: list[int]
    boxes_xywh: list[tuple[int, int, int, int]]
    """Boxes as (left, top, width, height) in pixels, tight around the ink."""
    masks: list[Bool[np.ndarray, "h w"]]
    """The ink of each object within its box."""


def write_scenes(
    out_dir: Path,
    *,
    num_train: int = 4000,
    num_val: int = 300,
    image_size: int = 128,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the demo data set as a COCO folder, or keep the finished one that is already there.

    The folder holds `annotations/instances_train.json`, `annotations/instances_val.json` and JPEG files in
    `images/`; ten categories named "0" to "9" with ids 1 to 10; boxes tight around the ink, `area` width times
    height. `scenes.json` says with which parameters the folder was made; an interrupted write is done again.

    Args:
        out_dir: folder to write, created where missing. A folder with other data is never touched.
        num_train: training images.
        num_val: validation images, of other digits and other backgrounds than the training images.
        image_size: side of the square images in pixels; the digits grow with it.
        seed: another seed gives other scenes and another split of the digits.
        on_progress: called after each image with (images written, images in all).

    Raises:
        ConfigError: a count or the size is out of range.
        DataError: `out_dir` holds data that is not a demo data set, or cannot be written.
        MissingExtraError: scikit-learn is not installed.
    """
    _check_parameters(num_train=num_train, num_val=num_val, image_size=image_size)
    parameters = {
        "recipe": _RECIPE,
        "num_train": num_train,
        "num_val": num_val,
        "image_size": image_size,
        "seed": seed,
    }
    try:
        if _is_finished(out_dir, parameters):
            return
        materials = _load_materials(seed)
        _prepare_folder(out_dir, parameters)
        counts: dict[Split, int] = {"train": num_train, "val": num_val}
        first_id = 1
        for split, count in counts.items():
            _write_split(
                out_dir,
                split,
                material=materials[split],
                count=count,
                first_id=first_id,
                image_size=image_size,
                seed=seed,
                on_progress=None if on_progress is None else _offset(on_progress, first_id - 1, num_train + num_val),
            )
            first_id += count
        _write_json(out_dir / _MARKER, {**parameters, "finished": True})
    except OSError as error:
        raise DataError(
            f"the demo data set cannot be written: {error}", where=str(out_dir), fix="choose a writable folder"
        ) from error


def _check_parameters(*, num_train: int, num_val: int, image_size: int) -> None:
    problems = [
        Problem(what=f"{name} is {value}; it must be at least 1", fix=f"set {name} to 1 or more")
        for name, value in (("num_train", num_train), ("num_val", num_val))
        if value < 1
    ]
    if not 64 <= image_size <= 4096:
        problems.append(Problem(what=f"image_size is {image_size}; it must be 64 to 4096", fix="128 trains fastest"))
    if problems:
        raise ConfigError(problems)


def _offset(on_progress: Callable[[int, int], None], done_before: int, total: int) -> Callable[[int], None]:
    return lambda done: on_progress(done_before + done, total)


# --- the folder ---------------------------------------------------------------------------------------------------


def _is_finished(out_dir: Path, parameters: dict[str, int]) -> bool:
    try:
        marker = json.loads((out_dir / _MARKER).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    files = [_annotation_path(out_dir, "train"), _annotation_path(out_dir, "val")]
    return bool(marker == {**parameters, "finished": True}) and all(file.is_file() for file in files)


def _prepare_folder(out_dir: Path, parameters: dict[str, int]) -> None:
    """Empty a demo folder made with other parameters or left half written, and mark it as being written."""
    images = out_dir / "images"
    if not (out_dir / _MARKER).exists() and (images.exists() or (out_dir / "annotations").exists()):
        raise DataError(
            "the folder already holds a data set that is not the demo's",
            where=str(out_dir),
            fix="choose a new or empty folder",
        )
    images.mkdir(parents=True, exist_ok=True)
    (out_dir / "annotations").mkdir(exist_ok=True)
    _write_json(out_dir / _MARKER, {**parameters, "finished": False})
    for split in ("train", "val"):
        _annotation_path(out_dir, split).unlink(missing_ok=True)
        for file in images.glob(f"{split}_*.jpg"):
            file.unlink()


def _write_split(
    out_dir: Path,
    split: Split,
    *,
    material: _Material,
    count: int,
    first_id: int,
    image_size: int,
    seed: int,
    on_progress: Callable[[int], None] | None,
) -> None:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i in range(count):
        scene = _draw_scene(generator("scenes", seed, split, i), material, image_size)
        name = f"{split}_{i:05d}.jpg"
        jpeg = simplejpeg.encode_jpeg(scene.image, quality=_JPEG_QUALITY, colorsubsampling="444", fastdct=False)
        (out_dir / "images" / name).write_bytes(jpeg)
        image_id = first_id + i
        images.append({"id": image_id, "file_name": name, "width": image_size, "height": image_size})
        for label, (x, y, w, h) in zip(scene.labels, scene.boxes_xywh, strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": label + 1,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                }
            )
        if on_progress is not None:
            on_progress(i + 1)
    _write_json(
        _annotation_path(out_dir, split),
        {
            "info": {"description": "Detronome demo: handwritten digits (scikit-learn) on varied backgrounds"},
            "images": images,
            "annotations": annotations,
            "categories": [{"id": k + 1, "name": name, "supercategory": "digit"} for k, name in enumerate(_NAMES)],
        },
    )


def _annotation_path(out_dir: Path, split: str) -> Path:
    return out_dir / "annotations" / f"instances_{split}.json"


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_atomic(path, json.dumps(content))


# --- what scenes are made of --------------------------------------------------------------------------------------


def _load_materials(seed: int) -> dict[Split, _Material]:
    try:
        from sklearn.datasets import load_digits, load_sample_images  # type: ignore[import-untyped, unused-ignore]
    except ImportError as error:
        raise MissingExtraError("scikit-learn", extra="demo", needed_for="the demo data set") from error
    bunch = load_digits()
    bitmaps = np.pad(bunch.images.astype(np.float32) / 16.0, ((0, 0), (2, 2), (2, 2)))
    rows_of: dict[Split, list[NDArray[np.intp]]] = {"train": [], "val": []}
    rng = generator("scenes", seed, "digits")
    for label in range(10):
        rows = rng.permutation(np.flatnonzero(bunch.target == label))
        cut = round(len(rows) * _VAL_FRACTION)
        rows_of["val"].append(rows[:cut])
        rows_of["train"].append(rows[cut:])

    photos_of: dict[Split, list[Image.Image]] = {"train": [], "val": []}
    for pixels, cut_at in zip(load_sample_images().images, _PHOTO_CUTS, strict=True):
        width = pixels.shape[1]
        photos_of["train"].append(Image.fromarray(pixels[:, : round((cut_at - _PHOTO_GAP) * width)]))
        photos_of["val"].append(Image.fromarray(pixels[:, round((cut_at + _PHOTO_GAP) * width) :]))
    return {
        split: _Material(
            digits=tuple(tuple(Image.fromarray(bitmaps[row]) for row in rows) for rows in rows_of[split]),
            photos=tuple(photos_of[split]),
        )
        for split in rows_of
    }


# --- one scene ----------------------------------------------------------------------------------------------------


def _draw_scene(rng: np.random.Generator, material: _Material, size: int) -> _Scene:
    canvas = _background(rng, material.photos, size)
    occupied = np.zeros((size, size), dtype=bool)
    labels: list[int] = []
    boxes: list[tuple[int, int, int, int]] = []
    masks: list[NDArray[np.bool_]] = []
    for _ in range(int(rng.integers(1, _MAX_OBJECTS + 1))):
        label = int(rng.integers(10))
        stamp = _draw_digit(rng, material.digits[label], size)
        place = _find_place(rng, stamp, boxes, occupied)
        if place is None:
            continue
        x, y = place
        h, w = stamp.mask.shape
        window = (slice(y, y + h), slice(x, x + w))
        occupied[window] |= stamp.mask
        canvas[window] = _ink(rng, canvas[window], stamp)
        labels.append(label)
        boxes.append((x, y, w, h))
        masks.append(stamp.mask)
    image = (np.clip(canvas, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8, order="C")
    return _Scene(image=image, labels=labels, boxes_xywh=boxes, masks=masks)


def _draw_digit(rng: np.random.Generator, digits: tuple[Image.Image, ...], size: int) -> _Stamp:
    """Enlarge and tilt one digit, and cut it to its ink."""
    bitmap = digits[int(rng.integers(len(digits)))]
    low, high = math.log(_SIZE_RANGE[0] * size), math.log(_SIZE_RANGE[1] * size)
    longest = math.exp(rng.uniform(low, high))
    angle, stretch = math.radians(rng.normal(0.0, 6.0)), math.exp(rng.normal(0.0, 0.08))
    # Strokes reach the border of the 8x8 bitmap in one direction only, so its side is the ink's longer side.
    scale = longest / 8.3
    side = math.ceil(12 * scale)
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    a, b, d, e = cos * stretch, sin * stretch, -sin, cos
    half = side / 2
    field = bitmap.transform(
        (side, side),
        Image.Transform.AFFINE,
        (a, b, 6 - half * (a + b), d, e, 6 - half * (d + e)),
        resample=Image.Resampling.BICUBIC,
    )
    strength = np.asarray(field)
    ink = _smoothstep(strength, 0.28, 0.68)
    mask = ink > 0.4
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    window = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    return _Stamp(ink=ink[window], halo=_smoothstep(strength[window], 0.0, 0.25), mask=mask[window])


def _find_place(
    rng: np.random.Generator,
    stamp: _Stamp,
    boxes_xywh: list[tuple[int, int, int, int]],
    occupied: Bool[np.ndarray, "S S"],
) -> tuple[int, int] | None:
    """Return left and top of a free place, or None where thirty draws found none."""
    h, w = stamp.mask.shape
    size = occupied.shape[0]
    for x, y in rng.integers(0, (size - w + 1, size - h + 1), size=(30, 2)).tolist():
        hidden = 0.0
        for left, top, width, height in boxes_xywh:
            overlap_w = min(x + w, left + width) - max(x, left)
            overlap_h = min(y + h, top + height) - max(y, top)
            if overlap_w > 0 and overlap_h > 0:
                hidden = max(hidden, overlap_w * overlap_h / min(w * h, width * height))
        if hidden <= _MAX_OVERLAP and not (occupied[y : y + h, x : x + w] & (stamp.ink > 0.0)).any():
            return x, y
    return None


def _ink(rng: np.random.Generator, patch: Float32[np.ndarray, "h w 3"], stamp: _Stamp) -> Float32[np.ndarray, "h w 3"]:
    """Paint a digit on its background: light ink where that is dark, dark ink where it is light."""
    luma = patch @ _LUMA
    ground, busy = float(luma.mean()), float(luma.std())
    is_light = ground < rng.uniform(0.42, 0.52)
    target = rng.uniform(max(0.78, ground + 0.45), 1.0) if is_light else rng.uniform(0.0, min(0.2, ground - 0.4))
    colour = _with_luma(_colour(rng), target)
    edge = np.float32(0.06 if is_light else 0.96)
    halo = (stamp.halo * np.float32(min(0.55, 0.12 + 2.5 * busy)))[..., None]
    ink = (stamp.ink * np.float32(rng.uniform(0.9, 1.0)))[..., None]
    shaded = patch + (edge - patch) * halo
    return np.asarray(shaded + (colour - shaded) * ink)


# --- backgrounds --------------------------------------------------------------------------------------------------


def _background(rng: np.random.Generator, photos: tuple[Image.Image, ...], size: int) -> Float32[np.ndarray, "S S 3"]:
    """Return a background, RGB 0-1."""
    kind = rng.random()
    if kind < 0.5:
        canvas = _photo(rng, photos, size)
    else:
        if kind < 0.65:
            weight = _gradient(rng, size)
        elif kind < 0.82:
            weight = _clouds(rng, size)
        else:
            weight = _pattern(rng, size)
        first = _with_luma(_colour(rng), rng.uniform(0.08, 0.92))
        distance = rng.uniform(0.1, 0.35)
        luma = float(first @ _LUMA)
        second = _with_luma(_colour(rng), luma + distance if luma < 0.5 else luma - distance)
        canvas = first + (second - first) * weight[..., None]
    grain = rng.standard_normal((size, size, 1), dtype=np.float32)
    return np.asarray(canvas + grain * np.float32(rng.uniform(0.0, 0.014)))


def _photo(rng: np.random.Generator, photos: tuple[Image.Image, ...], size: int) -> Float32[np.ndarray, "S S 3"]:
    photo = photos[int(rng.integers(len(photos)))]
    side = math.exp(rng.uniform(math.log(72), math.log(min(photo.size))))
    x, y = rng.uniform(0, photo.width - side), rng.uniform(0, photo.height - side)
    crop = photo.resize((size, size), Image.Resampling.BILINEAR, box=(x, y, x + side, y + side))
    pixels = np.asarray(crop, dtype=np.float32) / np.float32(255.0)
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    if rng.random() < 0.3:
        pixels = pixels[..., rng.permutation(3)]
    # Compressed towards a tone of its own: a digit can stand out from a calm photo, not from a harsh one.
    tone = np.float32(rng.uniform(0.1, 0.9))
    return np.asarray(tone + (pixels - tone) * np.float32(rng.uniform(0.45, 0.9)))


def _gradient(rng: np.random.Generator, size: int) -> Float32[np.ndarray, "S S"]:
    x, y = _axes(size)
    if rng.random() < 0.35:
        centre_x, centre_y = rng.uniform(-1.0, 1.0, size=2).astype(np.float32)
        distance = np.hypot(x - centre_x, y - centre_y)
        return np.asarray(_smoothstep(distance, 0.0, float(rng.uniform(0.8, 2.0))))
    angle = rng.uniform(0, 2 * math.pi)
    direction = np.array([math.cos(angle), math.sin(angle)], dtype=np.float32)
    return np.asarray(_smoothstep(x * direction[0] + y * direction[1], -1.2, 1.2))


def _clouds(rng: np.random.Generator, size: int) -> Float32[np.ndarray, "S S"]:
    """Return noise of several grain sizes, smooth to coarse."""
    total = np.zeros((size, size), dtype=np.float32)
    cells, amplitude = int(rng.integers(3, 7)), 1.0
    roughness = rng.uniform(0.35, 0.6)
    for _ in range(4):
        noise = Image.fromarray(rng.random((cells, cells), dtype=np.float32))
        total += np.asarray(noise.resize((size, size), Image.Resampling.BICUBIC)) * np.float32(amplitude)
        cells, amplitude = cells * 2, amplitude * roughness
    low, high = total.min(), total.max()
    return np.asarray((total - low) / (high - low))


def _pattern(rng: np.random.Generator, size: int) -> Float32[np.ndarray, "S S"]:
    """Return soft stripes, checks, dots, rings or waves."""
    x, y = _axes(size)
    angle = rng.uniform(0, math.pi)
    cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    u, v = x * cos + y * sin, y * cos - x * sin
    frequency = np.float32(rng.uniform(6.0, 26.0))
    kind = int(rng.integers(5))
    if kind == 0:
        wave = np.sin(u * frequency)
    elif kind == 1:
        wave = np.sin(u * frequency) * np.sin(v * frequency) * np.float32(1.5)
    elif kind == 2:
        wave = (np.cos(u * frequency) + np.cos(v * frequency)) - np.float32(0.9)
    elif kind == 3:
        centre_x, centre_y = rng.uniform(-1.0, 1.0, size=2).astype(np.float32)
        wave = np.sin(np.hypot(x - centre_x, y - centre_y) * frequency)
    else:
        wave = np.sin(u * frequency + np.float32(rng.uniform(0.5, 2.5)) * np.sin(v * frequency * np.float32(0.5)))
    return np.asarray(_smoothstep(wave, -float(rng.uniform(0.3, 1.0)), float(rng.uniform(0.3, 1.0))))


def _axes(size: int) -> tuple[Float32[np.ndarray, "1 S"], Float32[np.ndarray, "S 1"]]:
    axis = np.linspace(-1.0, 1.0, size, dtype=np.float32)
    return axis[None, :], axis[:, None]


def _smoothstep(x: NDArray[np.float32], low: float, high: float) -> NDArray[np.float32]:
    t = np.clip((x - np.float32(low)) * np.float32(1.0 / (high - low)), 0.0, 1.0, dtype=np.float32)
    return np.asarray(t * t * (np.float32(3.0) - np.float32(2.0) * t))


def _colour(rng: np.random.Generator) -> Float32[np.ndarray, "rgb=3"]:
    """Return a colour of any hue, from nearly grey to vivid, RGB 0-1."""
    hue = rng.uniform(0.0, 6.0)
    vividness = np.float32(rng.uniform(0.15, 0.95))
    pure = np.clip(np.abs((hue + np.array([0.0, 4.0, 2.0])) % 6.0 - 3.0) - 1.0, 0.0, 1.0).astype(np.float32)
    return np.asarray(np.float32(1.0) + (pure - np.float32(1.0)) * vividness)


def _with_luma(colour: Float32[np.ndarray, "rgb=3"], luma: float) -> Float32[np.ndarray, "rgb=3"]:
    """Mix a colour with black or white until it has this luma."""
    own = float(colour @ _LUMA)
    if own >= luma:
        return np.asarray(colour * np.float32(luma / own))
    return np.asarray(colour + (np.float32(1.0) - colour) * np.float32((luma - own) / (1.0 - own)))

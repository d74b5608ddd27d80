"""What an installation without extras must do: train, predict, and say for the rest what to install.

Run in an empty folder by the Python of such an installation, which has no test tools either.
"""

import contextlib
import io
import json
import sys
from collections.abc import Callable
from importlib.metadata import metadata
from pathlib import Path

from PIL import Image, ImageDraw

import detronome as dt
from detronome.cli import main

EXPORT = ["export", "run", "--to"]
SEARCH = ["search", "data", "--model", "nano", "--space", "optim.lr=1e-4..1e-2", "--epochs", "1", "--out", "search"]
TRAIN = ["train", "data", "--model", "nano", "--epochs", "1", "--out"]
NEEDS: dict[str, list[str]] = {
    "demo": ["demo", "--out", "demo"],
    "tensorboard": [*TRAIN, "tracked", "--track", "tensorboard"],
    "wandb": [*TRAIN, "tracked", "--track", "wandb"],
    "mlflow": [*TRAIN, "tracked", "--track", "mlflow"],
    "search": SEARCH,
    "serve": ["serve", "run"],
    "timm": ["train", "data", "--model", "detr-r18", "--out", "timm", "--set", "model.backbone=timm:resnet18"],
    "cloud": ["train", "s3://bucket/data", "--model", "nano", "--out", "cloud"],
    "onnx": [*EXPORT, "onnx"],
    "openvino": [*EXPORT, "openvino"],
    "int8": [*EXPORT, "openvino", "--int8", "--data", "data"],
    "tensorrt": [*EXPORT, "tensorrt"],
    "video": ["predict", "run", "film.mp4"],
}
"""For each extra, a command that cannot do without it. `supervision` is of Python alone."""


def write_data(folder: Path) -> None:
    """Write squares on grey: eight images to train on, four to evaluate."""
    for split, count in (("train", 8), ("val", 4)):
        images, annotations = [], []
        for i in range(count):
            name, left = f"{split}_{i}.png", 4 + 5 * i
            picture = Image.new("RGB", (64, 64), (110, 110, 110))
            ImageDraw.Draw(picture).rectangle((left, 20, left + 15, 35), fill=(220, 40, 40))
            (folder / "images").mkdir(parents=True, exist_ok=True)
            picture.save(folder / "images" / name)
            images.append({"id": i, "file_name": name, "height": 64, "width": 64})
            box = {"bbox": [left, 20, 16, 16], "area": 256, "iscrowd": 0}
            annotations.append({"id": i + 1, "image_id": i, "category_id": 1, **box})
        record = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "square"}]}
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(record))


def run(*arguments: str) -> tuple[int, str]:
    """Run a command; return its exit code and what it wrote."""
    written = io.StringIO()
    with contextlib.redirect_stdout(written), contextlib.redirect_stderr(written):
        try:
            main(arguments)
        except SystemExit as end:
            return int(end.code or 0), written.getvalue()
    return 0, written.getvalue()


def failure_of(call: Callable[[], object]) -> tuple[int, str]:
    """Return the same for a call in Python."""
    try:
        call()
    except dt.MissingExtraError as error:
        return 1, str(error)
    return 0, ""


if not Path(dt.__file__).is_relative_to(sys.prefix):
    sys.exit(f"{dt.__file__} is not what was installed in {sys.prefix}")
write_data(Path("data"))
for arguments in ([*TRAIN, "run"], ["predict", "run", "data/images/val_0.png", "--format", "coco", "--out", "found"]):
    code, said = run(*arguments)
    if code:
        sys.exit(f"{' '.join(arguments)} ends with {code}:\n{said}")
Path("film.mp4").write_bytes(b"\0\0\0\x18ftypmp42")
photo = dt.load("run").predict("data/images/val_0.png")

answers = {extra: run(*command) for extra, command in NEEDS.items()}
answers["supervision"] = failure_of(photo.to_supervision)
silent = {
    extra: answer
    for extra, answer in answers.items()
    if answer[0] != 1 or f"pip install 'detronome[{extra}]'" not in answer[1] or "Traceback" in answer[1]
}
for extra, (code, said) in silent.items():
    print(f"without [{extra}] it ends with {code}:\n{said}\n")
unknown = set(metadata("detronome").get_all("Provides-Extra") or ()) ^ answers.keys()
if unknown:
    print(f"extras and commands differ: {sorted(unknown)}")
sys.exit(bool(silent or unknown))

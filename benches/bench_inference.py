"""One image through DETR-R50: every form of ours against transformers' eager model.

All have the same random weights and see the same image of 480x640 (one image at a time, classes of COCO). transformers
gets an image that is already normalised; ours normalise bytes. Before timing, the outputs of every fp32 form must agree
with transformers'; how far the others are off is printed, and says little on random weights: `detronome benchmark`
measures accuracy on data. INT8 is calibrated on four random images, which does not change its speed. The trimmed
forms have the first decoder layers alone, as `detronome trim` leaves them.

The forms of fp32 are bound by convolutions (62 GFLOP an image). What they gain is kernels that use all of the
processor: see `ops.onednn`.

    OMP_WAIT_POLICY=PASSIVE python benches/bench_inference.py --threads 1 --out benches/results
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from detronome.config.convert import apply_overrides, to_dict
from detronome.config.presets import preset
from detronome.config.schema import DetrConfig
from detronome.deploy.export.description import SUFFIXES, Form, Precision, describe, write_description
from detronome.deploy.export.graph import trace
from detronome.deploy.export.int8 import quantize_onnx, quantize_openvino
from detronome.deploy.export.onnx import write_onnx
from detronome.deploy.export.openvino import write_openvino
from detronome.deploy.exported import open_exported
from detronome.deploy.optimize import optimized
from detronome.deploy.trim import Extent, detector_of, trimmed
from detronome.engine.checkpoint import Checkpoint
from detronome.engine.state import TrainingState
from detronome.models.build import build_model
from detronome.models.detector import Detector
from detronome.models.detr.model import DETR
from detronome.types import Categories
from harness import arguments, compare, report

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests" / "parity"))

CPU = torch.device("cpu")
BASELINE = "transformers"
CONFIG = apply_overrides(preset("detr-r50"), {"model.backbone_weights": "none"})
CATEGORIES = Categories(tuple(range(91)), tuple(map(str, range(91))))
CALIBRATION_IMAGES = 4
FP32_TOLERANCE = 1e-3
Outputs = tuple[Tensor, Tensor]
"""Logits and boxes."""


def main() -> None:
    """Build the forms, compare what they say, time them, report."""
    options = parse()
    torch.set_num_threads(options.threads)
    images, padding_mask = synthetic_image(tuple(options.size))
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        forms = Forms(Path(folder), decoder_layers=options.decoder_layers, size_hw=tuple(options.size))
        runs = {name: partial(forms.runner(name, images, padding_mask)) for name in options.only}
        differences = check({name: run() for name, run in runs.items()})
        samples = compare(runs, repeats=options.repeats, warmup=options.warmup)
    settings = vars(options) | {"out": str(options.out), "largest_logit_difference": differences}
    case = f"batch 1, {options.size[0]}x{options.size[1]}"
    report("inference", {case: samples}, baseline=BASELINE, settings=settings, out=options.out)


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = arguments(__doc__, repeats=15, warmup=2)
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), metavar=("H", "W"))
    parser.add_argument("--decoder-layers", type=int, default=2, help="of the trimmed forms")
    parser.add_argument("--only", nargs="+", choices=Forms.NAMES, default=list(Forms.NAMES), help="forms to time")
    options = parser.parse_args()
    options.only = [BASELINE, *(name for name in options.only if name != BASELINE)]
    return options


def synthetic_image(size_hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return a batch of one image of noise, without padding."""
    images = torch.randint(0, 256, (1, 3, *size_hw), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return images, torch.zeros(1, *size_hw, dtype=torch.bool)


class Forms:
    """The contenders, each made when it is asked for.

    Args:
        folder: for exported files.
        decoder_layers: of the trimmed forms.
        size_hw: of the images that INT8 is calibrated on.
    """

    NAMES = (
        BASELINE,
        "eager",
        "optimized",
        "optimized-bf16",
        "compiled",
        "onnx",
        "onnx-int8",
        "openvino",
        "openvino-int8",
        "openvino-int8-trimmed",
    )

    def __init__(self, folder: Path, *, decoder_layers: int, size_hw: tuple[int, int]) -> None:
        self.folder = folder
        self.size_hw = size_hw
        self.whole = initial_checkpoint()
        extent = Extent(decoder_layers=decoder_layers, num_queries=100, image_size=CONFIG.augment.eval_size)
        self.trimmed = trimmed(self.whole, extent)
        self._traced = cache(self._trace)

    def runner(self, name: str, images: Tensor, padding_mask: Tensor) -> Callable[[], Outputs]:
        """Return what does one forward pass."""
        print(f"preparing {name}", file=sys.stderr)
        if name == BASELINE:
            return transformers_runner(detector_of(self.whole), images, padding_mask)
        model = self._detector(name)

        def run() -> Outputs:
            output = model(images, padding_mask)
            return output.pred_logits, output.pred_boxes

        return run

    def _detector(self, name: str) -> Detector:
        eager = detector_of(self.whole)
        match name.split("-"):
            case ["eager"]:
                return eager
            case ["optimized"]:
                return optimized(eager)
            case ["optimized", "bf16"]:
                return optimized(eager, precision="bf16")
            case ["compiled"]:
                return optimized(eager, compiled=True)
            case [("onnx" | "openvino") as form, *rest]:
                precision: Precision = "int8" if "int8" in rest else "fp32"
                return self._exported(form, precision, is_trimmed="trimmed" in rest)
        raise AssertionError(name)

    def _exported(self, form: Form, precision: Precision, *, is_trimmed: bool) -> Detector:
        file = self._traced(is_trimmed)
        if form == "openvino":
            write_openvino(file, file := file.with_suffix(SUFFIXES[form]))
        if precision == "int8":
            quantize = quantize_onnx if form == "onnx" else quantize_openvino
            quantize(file, file := file.with_stem(f"{file.stem}-int8"), self._calibration())
        checkpoint = self.trimmed if is_trimmed else self.whole
        description = describe(
            [file, *([file.with_suffix(".bin")] if form == "openvino" else [])],
            form=form,
            precision=precision,
            activation="softmax",
            num_queries=100,
            has_masks=False,
            config=checkpoint.config,
            categories=CATEGORIES,
            metrics={},
            step=0,
            origin="random weights",
            self_check=None,
            made_with={},
        )
        write_description(file, description)
        return open_exported(file, device=CPU)

    def _trace(self, is_trimmed: bool) -> Path:
        file = self.folder / f"{'trimmed' if is_trimmed else 'whole'}.onnx"
        with torch.inference_mode(False):
            write_onnx(trace(detector_of(self.trimmed if is_trimmed else self.whole)), file)
        return file

    def _calibration(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        rng = np.random.default_rng(0)
        for _ in range(CALIBRATION_IMAGES):
            image = rng.integers(0, 256, (1, 3, *self.size_hw), dtype=np.uint8)
            yield image, np.zeros((1, *self.size_hw), np.bool_)


def initial_checkpoint() -> Checkpoint:
    """Return seeded weights; the norms shrink the activations as trained ones do."""
    torch.manual_seed(0)
    empty = Checkpoint(config=to_dict(CONFIG), categories=CATEGORIES, state=TrainingState(), model={})
    model = build_model(CONFIG.model, len(CATEGORIES))
    for name, buffer in model.named_buffers():
        if name.endswith(("bn2.running_var", "bn3.running_var", "downsample.1.running_var")):
            buffer.fill_(4.0)
    empty.model.update(model.state_dict())
    return empty


def transformers_runner(model: Detector, images: Tensor, padding_mask: Tensor) -> Callable[[], Outputs]:
    """Return what does one forward pass of transformers' model, with attention operation by operation."""
    from transformers_detr import build_transformers_detr

    assert isinstance(model, DETR) and isinstance(CONFIG.model, DetrConfig)
    peer = build_transformers_detr(model, CONFIG.model).eval()
    peer.set_attn_implementation("eager")
    pixels = model.normalizer(images, padding_mask).contiguous()
    valid = (~padding_mask).long()

    def run() -> Outputs:
        output = peer(pixel_values=pixels, pixel_mask=valid)
        return output.logits, output.pred_boxes

    return run


def check(outputs: dict[str, Outputs]) -> dict[str, float]:
    """Return the largest difference of any logit from transformers'.

    Raises:
        AssertionError: a form of fp32 computes something else.
    """
    expected = outputs[BASELINE]
    differences = {}
    for name, ours in outputs.items():
        differences[name] = float((ours[0] - expected[0]).abs().max())
        boxes = float((ours[1] - expected[1]).abs().max())
        print(f"{name:24} largest difference: logits {differences[name]:.1e}, boxes {boxes:.1e}", file=sys.stderr)
        is_fp32 = not any(word in name for word in ("bf16", "int8", "trimmed"))
        assert not is_fp32 or max(differences[name], boxes) < FP32_TOLERANCE, name
    return differences


if __name__ == "__main__":
    main()

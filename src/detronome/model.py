"""A trained detector in Python's hands: load it, predict, look at what it found."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard, get_args, overload

import numpy as np
from jaxtyping import Float32, Int64, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from detronome.config.convert import apply_overrides, from_dict, to_dict
from detronome.config.presets import PRESETS
from detronome.config.schema import RunConfig, WithPretrainedBackbone
from detronome.data.download.events import Listener, Noticed, ignore
from detronome.data.store.decode import read_image
from detronome.deploy.export.description import Description, read_description
from detronome.deploy.exported import default_device, is_exported, open_exported
from detronome.deploy.optimize import optimized
from detronome.deploy.predictor import build_predictor
from detronome.engine.checkpoint import Checkpoint, find_checkpoint, load_checkpoint
from detronome.engine.state import TrainingState
from detronome.errors import CheckpointError, ConfigError, DataError, MissingExtraError
from detronome.models.build import build_model
from detronome.models.detector import Detector
from detronome.report.download_console import DownloadConsole
from detronome.report.pictures import save_picture
from detronome.report.results.pictures import draw_detections
from detronome.runtime.device import resolve_device
from detronome.runtime.precision import Precision
from detronome.types import Categories, Detections, PanopticPrediction
from detronome.weights.pretrained import load_pretrained
from detronome.weights.sources import has_published_weights, is_pretrained_source

if TYPE_CHECKING:
    import supervision

__all__ = ["ImageSource", "Model", "Prediction", "load"]

ImageSource = str | Path | Image.Image | UInt8[np.ndarray, "H W 3"]
_SINGLE = (str, bytes, bytearray, Path, Image.Image, np.ndarray, Tensor, io.IOBase)
"""What is one image, or no image at all, although one can iterate over some."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The objects found in one image, highest score first, with what is needed to show them."""

    detections: Detections
    image: UInt8[np.ndarray, "H W 3"]
    """The image, RGB, upright."""
    categories: Categories
    file: Path | None = None

    def __len__(self) -> int:
        return len(self.detections)

    @property
    def boxes_xyxy(self) -> Float32[np.ndarray, "N 4"]:
        """Corners (left, top, right, bottom) in pixels."""
        return self.detections.boxes_xyxy

    @property
    def scores(self) -> Float32[np.ndarray, " N"]:
        """Confidence, 0-1."""
        return self.detections.scores

    @property
    def labels(self) -> Int64[np.ndarray, " N"]:
        """Category ids."""
        return self.detections.labels

    @property
    def names(self) -> list[str]:
        """Category names."""
        by_id = self.categories.by_id
        return [by_id[int(label)] for label in self.labels]

    @property
    def panoptic(self) -> PanopticPrediction | None:
        """The panoptic map with its segments, where the model makes one; `score` does not act on it."""
        return self.detections.panoptic

    def draw(self) -> UInt8[np.ndarray, "H2 W2 3"]:
        """Return the picture with names and scores: of boxes, or of segments where there is a panoptic map.

        Small images are enlarged.
        """
        return draw_detections(self.image, self.detections, self.categories.by_id)

    def show(self) -> None:
        """Open the picture in the system's viewer."""
        Image.fromarray(self.draw()).show()

    def save(self, path: str | Path) -> Path:
        """Write the picture; the suffix (.jpg, .png) decides the format."""
        save_picture(self.draw(), Path(path))
        return Path(path)

    def to_supervision(self) -> supervision.Detections:
        """Return `supervision.Detections`; class ids are category ids, names are in `data["class_name"]`.

        Raises:
            MissingExtraError: supervision is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise MissingExtraError(
                "supervision", extra="supervision", needed_for="Prediction.to_supervision"
            ) from error
        return supervision.Detections(
            xyxy=self.boxes_xyxy,
            confidence=self.scores,
            class_id=self.labels.astype(int),
            data={"class_name": np.array(self.names)},
        )


class Model:
    """A trained detector with what its labels mean: the object that predicts and, unless exported, can be trained.

    Args:
        trained: what the file or folder holds: a checkpoint, or the description of an exported model.
        source: where it was loaded from.
        device: auto, cpu, cuda, cuda:N or mps; `auto` is the CPU for an exported form that runs nowhere else here.
        notes: of weights from elsewhere: what was read, and what was assumed because nothing says it.

    Attributes:
        config: the resolved configuration it was trained with.
        categories: what its labels mean.
        metrics: of the evaluation that chose it; empty where there was none.
        step: training steps it has seen.
        source: where it was loaded from.
        notes: as given.
    """

    def __init__(
        self, trained: Checkpoint | Description, *, source: Path, device: str = "auto", notes: Sequence[str] = ()
    ) -> None:
        self._trained = trained
        self._asked_form: tuple[Precision, bool] | None = None
        self.source = source
        self.notes = tuple(notes)
        self.config = from_dict(trained.config, where=str(source))
        self.categories = trained.categories
        metrics = trained.state.best_metrics if isinstance(trained, Checkpoint) else trained.metrics
        self.metrics = {n: float("nan") if v is None else v for n, v in metrics.items()}
        self.step = trained.state.step if isinstance(trained, Checkpoint) else trained.step
        if device == "auto" and isinstance(trained, Description):
            self.device = default_device(trained.form)
        else:
            self.device, _ = resolve_device(device)

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint it was loaded from.

        Raises:
            CheckpointError: it was loaded from an exported file.
        """
        if not isinstance(self._trained, Checkpoint):
            raise CheckpointError(
                "an exported model can predict and be measured, but not be trained, changed or exported again",
                where=str(self.source),
                fix="use the run or checkpoint that it was exported from",
            )
        return self._trained

    @cached_property
    def detector(self) -> Detector:
        """The network, in eval mode on the model's device."""
        if isinstance(self._trained, Description):
            exported = open_exported(self.source, device=self.device)
            if exported.description != self._trained:
                raise CheckpointError(
                    "the file was exported anew after this model was loaded",
                    where=str(self.source),
                    fix="load it again",
                )
            return exported
        detector = build_model(_without_pretrained(self.config).model, len(self.categories))
        _load_weights(detector, self._trained, self.source)
        return detector.to(self.device).eval()

    @cached_property
    def form(self) -> Detector:
        """The network in the form that predicts: on a CPU an optimised copy, which differs by rounding; as exported; or
        as `optimize` made it."""
        if self._asked_form is not None:
            precision, compiled = self._asked_form
            return optimized(self.detector, precision=precision, compiled=compiled)
        is_ours = isinstance(self._trained, Checkpoint)
        computes_in_fp32 = self.device.type == "cpu" and self.config.train.precision in ("auto", "fp32")
        return optimized(self.detector) if is_ours and computes_in_fp32 else self.detector

    def optimize(self, *, precision: Precision = "fp32", compiled: bool = False) -> None:
        """Predict in another precision or through torch.compile from now on. Evaluation stays as it is.

        Args:
            precision: of backbone and transformer: fp32, bf16 or fp16.
            compiled: use torch.compile: the first images take longer, on a CPU minutes.

        Raises:
            ConfigError: there is no such precision.
            CheckpointError: it was loaded from an exported file, which has its own form.
        """
        if precision not in get_args(Precision):
            raise ConfigError(
                f"there is no precision {precision!r} here",
                where="precision",
                fix=f"use one of {', '.join(get_args(Precision))}; for INT8, export the model",
            )
        _ = self.checkpoint
        form = optimized(self.detector, precision=precision, compiled=compiled)
        self._asked_form = (precision, compiled)
        self.__dict__.pop("_predictor", None)
        self.form = form

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy needs, also in another process: forms are made again, since oneDNN's layouts and runtimes
        cannot be copied."""
        made_again = ["form", "_predictor"] + ([] if isinstance(self._trained, Checkpoint) else ["detector"])
        return {name: value for name, value in self.__dict__.items() if name not in made_again}

    # A str is both an image and a sequence of str; the first signature is meant, and wins.
    @overload
    def predict(self, images: ImageSource, *, score: float = ...) -> Prediction: ...  # type: ignore[overload-overlap]
    @overload
    def predict(self, images: Sequence[ImageSource], *, score: float = ...) -> list[Prediction]: ...
    def predict(
        self, images: ImageSource | Sequence[ImageSource], *, score: float = 0.5
    ) -> Prediction | list[Prediction]:
        """Find objects.

        Args:
            images: a path, a Pillow image or an RGB uint8 array, or a list of them.
            score: detections below this score are left out.

        Returns:
            One `Prediction` for one image, a list for a list.

        Raises:
            DataError: an image cannot be read, or is none.
            ConfigError: the score is no number from 0 to 1.
        """
        _require_score(score)
        if _are_several(images):
            return self._predict_all(list(images), score)
        one: list[Any] = [images]
        return self._predict_all(one, score)[0]

    @cached_property
    def _predictor(self) -> Any:
        return build_predictor(self.config, self.form, self.categories, self.device)

    def _predict_all(self, sources: Sequence[ImageSource], score: float) -> list[Prediction]:
        images = [_read_image(source) for source in sources]
        return [
            Prediction(
                detections=detections.above(score),
                image=image,
                categories=self.categories,
                file=Path(source) if isinstance(source, str | Path) else None,
            )
            for source, image, detections in zip(sources, images, self._predictor.predict(images), strict=True)
        ]


def load(
    source: str | Path, *, preset: str | None = None, device: str = "auto", on_event: Listener | None = None
) -> Model:
    """Load a trained model: one of ours, or published weights.

    Nothing in a file is run, and weights that are not the model's, whole, are refused. What is downloaded goes to the
    cache and is used from there afterwards.

    Args:
        source: a run folder (its best checkpoint) or a checkpoint folder; a preset with published weights, e.g.
            `detr-r50`; a .pth or .safetensors file; a folder as transformers saves it; or a model's id on
            huggingface.co, e.g. `facebook/detr-resnet-50`; or an exported file: .onnx, .xml, .pt2 or .engine.
        preset: for weights from elsewhere, the network they belong to, where the file does not show it: DC5.
        device: auto, cpu, cuda, cuda:N or mps.
        on_event: told of a download's progress and of what had to be assumed; by default both are shown on stderr.

    Raises:
        CheckpointError: there is no such model, it cannot be downloaded, is damaged or not safe to read.
        ConfigError: the name of a preset that has no published weights.
    """
    path = Path(source)
    if is_exported(path) and preset is None and not path.is_dir():
        return Model(read_description(path), source=path, device=device)
    if is_pretrained_source(source):
        return _load_published(source, preset, device, on_event)
    if preset is not None:
        raise ConfigError(
            "a preset can be given for weights from elsewhere; a run knows its own network",
            where="preset",
            fix="leave it out",
        )
    if str(source) in PRESETS and not Path(source).exists():
        raise ConfigError(
            f"{str(source)!r} is a preset: it has no trained weights yet",
            where="load",
            fix=f"train it: dt.train(DATA, model={str(source)!r}), or load a run folder",
        )
    if not os.path.lexists(source):
        near = get_close_matches(str(source), filter(has_published_weights, PRESETS), n=1)
        known = "a run folder, a file or folder with weights, a model's id on huggingface.co, or a preset with weights"
        raise CheckpointError(
            f"{str(source)!r} does not exist",
            where=str(source),
            fix=f"did you mean {near[0]!r}?" if near else f"name {known} (detronome models)",
        )
    folder = find_checkpoint(Path(source))
    checkpoint = load_checkpoint(folder)
    return Model(checkpoint, source=folder, device=device, notes=[checkpoint.origin] if checkpoint.origin else ())


def _load_published(source: str | Path, preset: str | None, device: str, on_event: Listener | None) -> Model:
    """Return published weights as the checkpoint of a run of no steps."""
    is_main = os.environ.get("RANK", "0") == "0"  # as torchrun sets it: one of the ranks tells
    with DownloadConsole() as console:
        tell = on_event or (console if is_main else ignore)
        pretrained = load_pretrained(source, preset=preset, on_event=tell)
        for note in pretrained.report[1:]:
            tell(Noticed(name=pretrained.file.name, text=note))
    checkpoint = Checkpoint(
        config=to_dict(pretrained.config),
        categories=pretrained.categories,
        state=TrainingState(),
        model=pretrained.state_dict,
    )
    return Model(checkpoint, source=pretrained.file, device=device, notes=pretrained.report)


def _load_weights(detector: Detector, checkpoint: Checkpoint, source: Path) -> None:
    try:
        detector.load_state_dict(checkpoint.model)
    except RuntimeError as error:
        raise CheckpointError(
            f"the weights do not fit the configuration beside them: {error}",
            where=str(source),
            fix="use another checkpoint of the run",
        ) from error


def _without_pretrained(config: RunConfig) -> RunConfig:
    """Return the configuration with nothing to download: the checkpoint holds all the weights."""
    if isinstance(config.model, WithPretrainedBackbone):
        return apply_overrides(config, {"model.backbone_weights": "none"})
    return config


def _are_several(images: object) -> TypeGuard[Iterable[ImageSource]]:
    return isinstance(images, Iterable) and not isinstance(images, _SINGLE)


def _require_score(score: object) -> None:
    if not isinstance(score, int | float | np.number) or not 0 <= score <= 1:
        raise ConfigError(f"a score of {score!r}", where="score", fix="give a number from 0 to 1")


def _read_image(source: ImageSource) -> UInt8[np.ndarray, "H W 3"]:
    if isinstance(source, str | Path):
        return read_image(Path(source))
    if isinstance(source, Image.Image):
        return np.array(ImageOps.exif_transpose(source).convert("RGB"))
    if not isinstance(source, np.ndarray):
        raise DataError(
            f"an image is a path, a Pillow image or an RGB uint8 array [height, width, 3], not {type(source).__name__}",
            fix="open a file's bytes with PIL.Image.open; of a tensor [3, height, width] of bytes: "
            "tensor.permute(1, 2, 0).numpy()",
        )
    if source.ndim != 3 or source.shape[2] != 3 or source.dtype != np.uint8 or source.size == 0:
        raise DataError(
            f"an image array must be uint8 [height, width, 3], this is {source.dtype} {list(source.shape)}",
            fix="convert it to 8-bit RGB",
        )
    return np.require(source, requirements=["C", "W"])

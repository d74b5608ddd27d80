"""What lies beside an exported file, as JSON: everything that is needed to use it, also without Detronome.

`model.onnx` is described by `model.onnx.json`. The description holds the digests of the files it belongs to, so that a
file that was damaged, exchanged or cut short is not run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from detronome.deploy.export.self_check import SelfCheck
from detronome.errors import CheckpointError
from detronome.runtime.files import sha256_of, write_atomic
from detronome.types import Categories

__all__ = ["FORMS", "SUFFIXES", "Activation", "Description", "Form", "describe", "description_of", "read_description"]

Form = Literal["onnx", "openvino", "torch", "tensorrt"]
Precision = Literal["fp32", "int8"]
Activation = Literal["softmax", "sigmoid"]

FORMAT_VERSION = 1
SUFFIXES: Mapping[Form, str] = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2", "tensorrt": ".engine"}
FORMS: Mapping[str, Form] = {suffix: form for form, suffix in SUFFIXES.items()}
"""By the suffix of the file."""
_MOST_BYTES = 2**26


@dataclass(frozen=True, kw_only=True)
class Description:
    """What an exported file is."""

    format: int
    """Version of this record."""
    form: Form
    precision: Precision
    activation: Activation
    """How logits become scores: `softmax` with a no-object class, the last, or a `sigmoid` for each class."""
    num_queries: int
    has_masks: bool
    config: dict[str, Any]
    """The resolved configuration of the training."""
    categories: Categories
    """What class index i means: the id and the name at place i."""
    metrics: dict[str, float | None]
    """Of the checkpoint, where it was evaluated."""
    step: int
    """Training steps of the checkpoint."""
    origin: str
    """In words, what the weights were made of, where that was not by training alone."""
    self_check: SelfCheck | None
    """What the form was found to differ by from the model it was made of."""
    inputs: dict[str, str]
    outputs: dict[str, str]
    preprocessing: tuple[str, ...]
    """What to do with an image before, in words."""
    postprocessing: tuple[str, ...]
    """What to do with the outputs, in words."""
    made_with: dict[str, str]
    """Versions of what wrote the file."""
    files: dict[str, str]
    """SHA-256 of the files, by name; the first is the one to open."""


def description_of(path: Path) -> Path:
    """Return where the description of an exported file lies."""
    return path.with_name(f"{path.name}.json")


def write_description(path: Path, description: Description) -> None:
    """Write the description of an exported file beside it."""
    text = msgspec.json.format(msgspec.json.encode(description), indent=1)
    write_atomic(description_of(path), text + b"\n")


def read_description(path: Path) -> Description:
    """Return the description of an exported file, after comparing the file with it.

    Raises:
        CheckpointError: the file or its description is missing or damaged, or they do not belong together.
    """
    if not path.is_file():
        raise CheckpointError("there is no such file", where=str(path), fix="check the path")
    beside = description_of(path)
    again = "export the model again: detronome export CHECKPOINT --to " + FORMS.get(path.suffix, "onnx")
    try:
        if beside.stat().st_size > _MOST_BYTES:
            raise CheckpointError("this is no description of an exported model", where=str(beside), fix=again)
        content = beside.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(
            "the description of the exported model is missing",
            where=str(beside),
            fix=f"copy it from where {path.name} was exported to: the two belong together; or {again}",
        ) from error
    except OSError as error:
        raise CheckpointError(
            f"cannot be read: {error.strerror or error}", where=str(beside), fix="check the rights"
        ) from error
    try:
        version = msgspec.json.decode(content, type=_Versioned).format
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"the description is damaged: {error}", where=str(beside), fix=again) from error
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"the description has format {version}, and this version of Detronome reads format {FORMAT_VERSION}",
            where=str(beside),
            fix=again,
        )
    try:
        description = msgspec.json.decode(content, type=Description)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"the description is damaged: {error}", where=str(beside), fix=again) from error
    _compare(path, description, again)
    return description


def _compare(path: Path, description: Description, again: str) -> None:
    """Refuse files that are not those which the description was written for."""
    form = FORMS.get(path.suffix)
    num_files = 2 if form == "openvino" else 1
    names = list(description.files)
    is_consistent = (
        form == description.form
        and len(names) == num_files
        and names[0] == path.name
        and all(name == Path(name).name and Path(name).stem == path.stem for name in names)
        and len(description.categories.ids) == len(description.categories.names)
    )
    if not is_consistent:
        raise CheckpointError(
            f"the description beside it is not that of {path.name}",
            where=str(description_of(path)),
            fix=f"exported files keep their names, since the description names them; or {again}",
        )
    for name, digest in description.files.items():
        file = path.with_name(name)
        if not file.is_file():
            raise CheckpointError(
                f"{name} is missing: it holds the weights", where=str(file), fix=f"copy it here too; or {again}"
            )
        if sha256_of(file) != digest:
            raise CheckpointError(
                "the file is damaged or was changed after it was exported: its SHA-256 is not the description's",
                where=str(file),
                fix=f"copy it again; or {again}",
            )


@dataclass(frozen=True)
class _Versioned:
    format: int


def describe(
    files: Sequence[Path],
    *,
    form: Form,
    precision: Precision,
    activation: Activation,
    num_queries: int,
    has_masks: bool,
    config: dict[str, Any],
    categories: Categories,
    metrics: Mapping[str, float],
    step: int,
    origin: str,
    self_check: SelfCheck | None,
    made_with: Mapping[str, str],
) -> Description:
    """Return the description of exported files.

    Args:
        files: as they are; the first is the one to open.
        form: of them.
        precision: that they compute in.
        activation: see `Description`, as for the others.
        num_queries: the most objects of an image.
        has_masks: there is a third output.
        config: the resolved configuration as plain data.
        categories: what class indices mean.
        metrics: of the checkpoint; nan where one could not be measured.
        step: of the checkpoint.
        origin: of the weights.
        self_check: what was measured.
        made_with: versions by package.
    """
    return Description(
        format=FORMAT_VERSION,
        form=form,
        precision=precision,
        activation=activation,
        num_queries=num_queries,
        has_masks=has_masks,
        config=config,
        categories=categories,
        metrics={name: None if value != value else value for name, value in metrics.items()},
        step=step,
        origin=origin,
        self_check=self_check,
        inputs=_inputs(),
        outputs=_outputs(activation, has_masks),
        preprocessing=_preprocessing(config),
        postprocessing=_postprocessing(activation, has_masks),
        made_with=dict(made_with),
        files={file.name: sha256_of(file) for file in files},
    )


def _inputs() -> dict[str, str]:
    return {
        "images": "uint8 [batch, 3, height, width]: RGB, 0-255, not normalised: the graph does that; padding is 0",
        "padding_mask": "bool [batch, height, width]: true on padding, which is at the right and at the bottom",
    }


def _outputs(activation: Activation, has_masks: bool) -> dict[str, str]:
    classes = "classes + 1, the last being no-object" if activation == "softmax" else "classes"
    outputs = {
        "pred_logits": f"float32 [batch, queries, {classes}]: before the {activation}",
        "pred_boxes": "float32 [batch, queries, 4]: centre x, centre y, width, height; 0-1 of the unpadded image",
    }
    if has_masks:
        outputs["pred_masks"] = (
            "float32 [batch, queries, h, w]: mask logits of every query, over the padded image at a quarter of its "
            "size, rounded up"
        )
    return outputs


def _preprocessing(config: Mapping[str, Any]) -> tuple[str, ...]:
    augment = config["augment"]
    size, longest = augment["eval_size"], augment["eval_max_size"]
    resize = (
        f"resize to {size}x{size} pixels without keeping the aspect"
        if augment["square"]
        else f"resize to side s = {size} for the shorter one; where long / short * s > {longest}, "
        f"s = max(1, round({longest} * short / long)); the longer one gets int(s * long / short) pixels; an image "
        "whose shorter side is s stays as it is"
    )
    return (
        "turn the image upright (EXIF) and to RGB",
        f"{resize}; bilinear, with antialiasing, on 8-bit values",
        "to put images of several sizes into one batch, pad at the right and at the bottom with 0 and say so in "
        "padding_mask; without padding it is all false",
    )


def _postprocessing(activation: Activation, has_masks: bool) -> tuple[str, ...]:
    scores = (
        "scores are the softmax of pred_logits without its last entry; each query gives its best class"
        if activation == "softmax"
        else "scores are the sigmoid of pred_logits; take the best pairs of query and class"
    )
    steps = (
        f"{scores}; there is no suppression of overlaps",
        "corners in pixels: (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), times width and height of the original "
        "image",
    )
    if not has_masks:
        return steps
    enlarge = "masks: enlarge to the padded image (bilinear), cut to the unpadded one, enlarge to the original"
    return (*steps, f"{enlarge}; above 0 is inside")

"""A smaller, faster model out of a trained one, without training: fewer decoder layers, queries, pixels.

Every decoder layer was trained to predict, not only the last one (the auxiliary losses), so a model is complete after
any of them. In families that choose their queries from the image, the best are a part of more; of learned queries,
those stay that found most. Which tensors the smaller model has follows from building it, so no family keeps a list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from detronome.config.convert import apply_overrides, from_dict, to_dict
from detronome.config.schema import DetrConfig, ModelConfig, RunConfig, WithPretrainedBackbone
from detronome.data.build import padded_shapes
from detronome.engine.checkpoint import Checkpoint
from detronome.engine.state import TrainingState
from detronome.errors import CheckpointError, ConfigError, Problem, first_few
from detronome.models.build import build_model
from detronome.models.detector import Detector

__all__ = ["Extent", "check_extent", "detector_of", "extent_of", "has_learned_queries", "trimmed", "trimmed_config"]

_STEP_PX = 32
"""The coarsest stride of the networks: fewer pixels than this make a map of less than a cell."""


@dataclass(frozen=True, kw_only=True)
class Extent:
    """How much of a model there is: what trimming makes smaller."""

    decoder_layers: int
    num_queries: int
    image_size: int
    """Short side in pixels at evaluation and prediction, or side of the squares; `augment.eval_size`."""

    def __str__(self) -> str:
        layers = "1 decoder layer" if self.decoder_layers == 1 else f"{self.decoder_layers} decoder layers"
        return f"{layers}, {self.num_queries} queries, {self.image_size} px"


def extent_of(config: RunConfig) -> Extent:
    """Return the extent of the model that a resolved configuration describes."""
    num_queries = config.model.num_queries
    assert num_queries != "auto", "resolved from the data before a model is built"
    return Extent(
        decoder_layers=config.model.num_decoder_layers,
        num_queries=num_queries,
        image_size=config.augment.eval_size,
    )


def has_learned_queries(config: ModelConfig) -> bool:
    """Return whether the model's queries are weights, so that it matters which ones stay; the other families choose
    theirs from each image."""
    return isinstance(config, DetrConfig)


def check_extent(config: RunConfig, extent: Extent) -> None:
    """Refuse what a model cannot be trimmed to.

    Raises:
        ConfigError: it is larger than the model in some way, or too small; all problems at once.
    """
    whole = extent_of(config)
    checks = [
        ("--decoder-layers", extent.decoder_layers, 1, whole.decoder_layers, "decoder layers"),
        ("--queries", extent.num_queries, 1, whole.num_queries, "queries"),
        ("--image-size", extent.image_size, min(_STEP_PX, whole.image_size), whole.image_size, "pixels"),
    ]
    problems = [
        Problem(
            what=f"{wanted} {unit}: the model has {most}, and trimming makes it smaller"
            if wanted > most
            else f"{wanted} {unit} are too few",
            where=option,
            fix=f"give a whole number from {least} to {most}",
        )
        for option, wanted, least, most, unit in checks
        if not least <= wanted <= most
    ]
    if extent.decoder_layers < whole.decoder_layers and not config.loss.aux_loss:
        problems.append(
            Problem(
                what="the model was trained without auxiliary losses, so its earlier decoder layers predict nothing",
                where="--decoder-layers",
                fix="keep all of them, or train with loss.aux_loss=true",
            )
        )
    if problems:
        raise ConfigError(problems)


def trimmed_config(config: RunConfig, extent: Extent) -> RunConfig:
    """Return the configuration of the trimmed model; sizes of training images stay as they are."""
    whole = extent_of(config)
    changes: dict[str, object] = {
        "model.num_decoder_layers": extent.decoder_layers,
        "model.num_queries": extent.num_queries,
    }
    if extent.image_size != whole.image_size:
        scale = extent.image_size / whole.image_size
        changes |= {
            "augment.eval_size": extent.image_size,
            "augment.eval_max_size": max(extent.image_size, round(config.augment.eval_max_size * scale)),
        }
        # The shapes that images are padded to: a small image in a large one would cost as much as before.
        shapes = [tuple(-(-round(side * scale) // _STEP_PX) * _STEP_PX for side in hw) for hw in padded_shapes(config)]
        if shapes:
            changes["data.buckets"] = [f"{height}x{width}" for height, width in sorted(set(shapes))]
    return apply_overrides(config, changes, where="trim")


def trimmed(
    checkpoint: Checkpoint, extent: Extent, *, best_queries: Sequence[int] = (), source: str = ""
) -> Checkpoint:
    """Return a checkpoint of a smaller model: the same weights, fewer of them, and no metrics.

    Its predictions are those that the whole model's decoder layer of this number makes.

    Args:
        checkpoint: of the whole model.
        extent: what to keep.
        best_queries: places of learned queries, those to keep first; see `query_use`. Not needed by families that
            choose their queries from the image, nor where all are kept.
        source: where the whole model lies, for the record.

    Raises:
        ConfigError: the model cannot be trimmed to that.
        CheckpointError: the weights are not those of the configuration.
    """
    config = from_dict(checkpoint.config)
    check_extent(config, extent)
    smaller = trimmed_config(config, extent)
    kept = sorted(best_queries[: extent.num_queries])
    return Checkpoint(
        config=to_dict(smaller),
        categories=checkpoint.categories,
        state=TrainingState(step=checkpoint.state.step, training_s=checkpoint.state.training_s),
        model=_trimmed_weights(checkpoint.model, smaller.model, len(checkpoint.categories), kept),
        origin=f"trimmed from {source or 'a model'} ({extent_of(config)}) to {extent}",
    )


def detector_of(checkpoint: Checkpoint, *, share: bool = False) -> Detector:
    """Return the network of a checkpoint, in eval mode on the CPU.

    Args:
        checkpoint: with weights that fit its configuration.
        share: use the checkpoint's tensors themselves, in their memory layout, instead of copies.
    """
    detector = build_model(_without_pretrained(from_dict(checkpoint.config).model), len(checkpoint.categories))
    # A plain dictionary: in the metadata of torch's own, `assign` would stay for whoever loads it next.
    detector.load_state_dict(dict(checkpoint.model), assign=share)
    return detector.eval()


def _trimmed_weights(
    weights: Mapping[str, Tensor], config: ModelConfig, num_classes: int, kept_queries: Sequence[int]
) -> dict[str, Tensor]:
    with torch.device("meta"):
        wanted = build_model(_without_pretrained(config), num_classes).state_dict()
    missing = [name for name in wanted if name not in weights]
    if missing:
        raise CheckpointError(
            f"the weights do not fit the configuration beside them: {first_few(missing)} are missing",
            where="model",
            fix="use another checkpoint of the run",
        )
    result = {}
    for name, tensor in wanted.items():
        # Nothing but a row for each learned query has another shape in a model with fewer layers and queries.
        result[name] = weights[name] if weights[name].shape == tensor.shape else weights[name][list(kept_queries)]
        assert result[name].shape == tensor.shape, name
    return result


def _without_pretrained(config: ModelConfig) -> ModelConfig:
    """Return the configuration with nothing to download: the checkpoint holds all the weights."""
    return replace(config, backbone_weights="none") if isinstance(config, WithPretrainedBackbone) else config

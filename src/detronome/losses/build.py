"""Build the criterion from the configuration."""

from __future__ import annotations

from detronome.config.schema import LossConfig
from detronome.losses.fine_criterion import FineCriterion
from detronome.losses.matcher import HungarianMatcher
from detronome.losses.set_criterion import SetCriterion

__all__ = ["build_criterion"]


def build_criterion(config: LossConfig, *, with_masks: bool = False, with_edges: bool = False) -> SetCriterion:
    """Return the matcher and losses that the configuration asks for; those of masks, or of the distributions
    of edges, for models that make them."""
    matcher = HungarianMatcher(
        cost_class=config.cost_class,
        cost_bbox=config.cost_bbox,
        cost_giou=config.cost_giou,
        class_cost="softmax" if config.classification == "softmax" else "focal",
    )
    if with_edges:
        return FineCriterion(
            matcher=matcher,
            weight_class=config.weight_class,
            weight_bbox=config.weight_bbox,
            weight_giou=config.weight_giou,
            weight_fgl=config.weight_fgl,
            weight_ddf=config.weight_ddf,
        )
    return SetCriterion(
        matcher=matcher,
        classification=config.classification,
        weight_class=config.weight_class,
        weight_bbox=config.weight_bbox,
        weight_giou=config.weight_giou,
        no_object_weight=config.no_object_weight,
        quality_exponent=config.quality_exponent,
        quality_ramp=config.quality_ramp,
        aux_loss=config.aux_loss,
        weight_mask=config.weight_mask if with_masks else None,
        weight_dice=config.weight_dice if with_masks else None,
    )

"""D-FINE's keys: ours are the authors'; transformers' are those of its RT-DETR but for what D-FINE has of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from detronome.weights.names import rtdetr
from detronome.weights.names.renaming import compiled, renamed

__all__ = ["from_official", "from_transformers"]

_SECOND = re.compile(r"^(module\.)?decoder\.decoder\.(up|reg_scale|project)$")
"""Constants of the authors' decoder that the part around it holds too."""

_OFFICIAL = compiled((r"^module\.", ""))

_TRANSFORMERS = compiled(
    (r"^model\.decoder\.(up|reg_scale|pre_bbox_head\.)", r"decoder.\1"),
    (r"^model\.decoder\.lqe_layers\.", "decoder.decoder.lqe_layers."),
    # Layers of the feed-forward blocks, which are numbered in a list in 5.x.
    (r"(layers\.\d+\.)mlp\.layers\.0\.", r"\1linear1."),
    (r"(layers\.\d+\.)mlp\.layers\.1\.", r"\1linear2."),
    # The encoder's fusing blocks.
    (r"^(model\.encoder\.(?:fpn|pan)_blocks\.\d+\.)conv1\.", r"\1cv1."),
    (r"^(model\.encoder\.(?:fpn|pan)_blocks\.\d+\.)conv4\.", r"\1cv4."),
    (r"^(model\.encoder\.(?:fpn|pan)_blocks\.\d+\.)csp_rep1\.", r"\1cv2.0."),
    (r"^(model\.encoder\.(?:fpn|pan)_blocks\.\d+\.)conv2\.", r"\1cv2.1."),
    (r"^(model\.encoder\.(?:fpn|pan)_blocks\.\d+\.)csp_rep2\.", r"\1cv3.0."),
    (r"^(model\.encoder\.(?:fpn|pan)_blocks\.\d+\.)conv3\.", r"\1cv3.1."),
    (r"^(model\.encoder\.downsample_convs\.\d+\.)conv([12])\.", r"\g<1>0.cv\2."),
)


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict of the authors under our keys."""
    once = {key: value for key, value in state.items() if not _SECOND.match(key)}
    return rtdetr.from_official(renamed(once, _OFFICIAL))


def from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict of `DFineForObjectDetection` under our keys.

    Projections of queries, keys and values become one; keys that are not known stay as they are, for the report.
    """
    return rtdetr.from_transformers(renamed(state, _TRANSFORMERS))

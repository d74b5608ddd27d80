"""RT-DETR's and RT-DETRv2's keys: ours are those of the authors' second version.

HGNetv2 has D-FINE's names here, which are the authors' too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from detronome.weights.names.renaming import compiled, joined_projections, renamed

__all__ = ["from_official", "from_transformers"]

_UNUSED = re.compile(r"(^|\.)(anchors|valid_mask|num_points_scale|n_points_scale|pos_embed\d+|num_batches_tracked)$")
"""Constants that follow from the configuration, and counters of batches that nothing reads."""

_OFFICIAL = compiled(
    # What DistributedDataParallel and the authors' average put before everything.
    (r"^module\.", ""),
    # The first version numbers what the second one names.
    (r"^((en|de)coder\.input_proj\.\d+)\.0\.", r"\1.conv."),
    (r"^((en|de)coder\.input_proj\.\d+)\.1\.", r"\1.norm."),
    (r"^decoder\.enc_output\.0\.", "decoder.enc_output.proj."),
    (r"^decoder\.enc_output\.1\.", "decoder.enc_output.norm."),
)

_TRANSFORMERS = compiled(
    # The parts. Heads are there twice: beside the model and within its decoder.
    (r"^model\.backbone\.model\.", "backbone."),
    (r"^model\.encoder_input_proj\.", "encoder.input_proj."),
    (r"^model\.decoder_input_proj\.", "decoder.input_proj."),
    (r"^model\.encoder\.(aifi|encoder)\.", "encoder.encoder."),
    (r"^model\.encoder\.", "encoder."),
    (r"^(model\.decoder\.)?class_embed\.", "decoder.dec_score_head."),
    (r"^(model\.decoder\.)?bbox_embed\.", "decoder.dec_bbox_head."),
    (r"^model\.decoder\.layers\.", "decoder.decoder.layers."),
    (r"^model\.decoder\.query_pos_head\.", "decoder.query_pos_head."),
    (r"^model\.(denoising_class_embed|enc_output|enc_score_head|enc_bbox_head)\.", r"decoder.\1."),
    *((pattern.pattern, replacement) for pattern, replacement in _OFFICIAL[1:]),
    # Transformer layers, of 4.x and 5.x.
    (r"(layers\.\d+\.self_attn\.)o_proj\.", r"\1out_proj."),
    (r"(layers\.\d+\.)encoder_attn\.", r"\1cross_attn."),
    (r"(layers\.\d+\.)(mlp\.)?fc([12])\.", r"\1linear\3."),
    (r"(layers\.\d+\.)self_attn_layer_norm\.", r"\1norm1."),
    (r"(layers\.\d+\.)encoder_attn_layer_norm\.", r"\1norm2."),
    (r"^(encoder\..*layers\.\d+\.)final_layer_norm\.", r"\1norm2."),
    (r"^(decoder\..*layers\.\d+\.)final_layer_norm\.", r"\1norm3."),
    # ResNet-vd.
    (r"^backbone\.embedder\.embedder\.0\.", "backbone.conv1.conv1_1."),
    (r"^backbone\.embedder\.embedder\.1\.", "backbone.conv1.conv1_2."),
    (r"^backbone\.embedder\.embedder\.2\.", "backbone.conv1.conv1_3."),
    (r"^backbone\.encoder\.stages\.(\d+)\.layers\.(\d+)\.layer\.0\.", r"backbone.res_layers.\1.blocks.\2.branch2a."),
    (r"^backbone\.encoder\.stages\.(\d+)\.layers\.(\d+)\.layer\.1\.", r"backbone.res_layers.\1.blocks.\2.branch2b."),
    (r"^backbone\.encoder\.stages\.(\d+)\.layers\.(\d+)\.layer\.2\.", r"backbone.res_layers.\1.blocks.\2.branch2c."),
    (
        r"^backbone\.encoder\.stages\.(\d+)\.layers\.(\d+)\.shortcut\.1\.",
        r"backbone.res_layers.\1.blocks.\2.short.conv.",
    ),
    (r"^backbone\.encoder\.stages\.(\d+)\.layers\.(\d+)\.shortcut\.", r"backbone.res_layers.\1.blocks.\2.short."),
    # HGNetv2.
    (r"^backbone\.embedder\.", "backbone.stem."),
    (r"^backbone\.encoder\.stages\.", "backbone.stages."),
    (r"^(backbone\.(conv1|res_layers)\..*)\.convolution\.", r"\1.conv."),
    (r"^(backbone\.(conv1|res_layers)\..*)\.normalization\.", r"\1.norm."),
    (r"^(backbone\.(stem|stages)\..*)\.convolution\.", r"\1.conv."),
    (r"^(backbone\.(stem|stages)\..*)\.normalization\.", r"\1.bn."),
)


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict of the authors' first or second version under our keys."""
    return renamed(_used(state), _OFFICIAL)


def from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict of `RTDetrForObjectDetection` or `RTDetrV2ForObjectDetection` under our keys.

    Projections of queries, keys and values become one; keys that are not known stay as they are, for the report.
    """
    return joined_projections(renamed(_without_second_heads(_used(state)), _TRANSFORMERS))


def _used(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not _UNUSED.search(key)}


def _without_second_heads(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out the heads beside the model where they are within its decoder too, which is the copy that is used."""
    return {key: value for key, value in state.items() if f"model.decoder.{key}" not in state}

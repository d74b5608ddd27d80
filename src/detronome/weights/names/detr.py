"""Classic DETR's keys: ours are the official ones, with masks too; what remains is transformers' of 4.x and 5.x.

A detector with masks has `detr.` before what belongs to the detector, here and there.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from detronome.weights.names.renaming import compiled, joined_projections, renamed

__all__ = ["from_official", "from_transformers"]

_OFFICIAL = compiled((r"^module\.", ""))  # DistributedDataParallel's

_TRANSFORMERS = compiled(
    # 4.x has a module `conv_encoder` between, timm's wrapper one called `_backbone`.
    (r"^(detr\.)?model\.backbone\.(conv_encoder\.)?model\.(_backbone\.)?", r"\1backbone.0.body."),
    (r"^(detr\.)?model\.input_projection\.", r"\1input_proj."),
    (r"^(detr\.)?model\.query_position_embeddings\.", r"\1query_embed."),
    (r"^(detr\.)?class_labels_classifier\.", r"\1class_embed."),
    (r"^(detr\.)?bbox_predictor\.", r"\1bbox_embed."),
    (r"^(detr\.)?model\.(encoder|decoder)\.layernorm\.", r"\1transformer.\2.norm."),
    (r"^(detr\.)?model\.(encoder|decoder)\.layers\.", r"\1transformer.\2.layers."),
    # Transformer layers.
    (r"(\.layers\.\d+\.)encoder_attn\.", r"\1multihead_attn."),
    (r"(\.layers\.\d+\.\w+_attn\.)o_proj\.", r"\1out_proj."),
    (r"(\.layers\.\d+\.)(mlp\.)?fc([12])\.", r"\1linear\3."),
    (r"(\.layers\.\d+\.)self_attn_layer_norm\.", r"\1norm1."),
    (r"(\.layers\.\d+\.)encoder_attn_layer_norm\.", r"\1norm2."),
    (r"(\.encoder\.layers\.\d+\.)final_layer_norm\.", r"\1norm2."),
    (r"(\.decoder\.layers\.\d+\.)final_layer_norm\.", r"\1norm3."),
    # transformers' own ResNet; timm's has torchvision's names.
    (r"\.body\.embedder\.embedder\.convolution\.", ".body.conv1."),
    (r"\.body\.embedder\.embedder\.normalization\.", ".body.bn1."),
    *((rf"\.body\.encoder\.stages\.{stage}\.layers\.", f".body.layer{stage + 1}.") for stage in range(4)),
    *((rf"(\.body\.layer\d\.\d+\.)layer\.{i}\.convolution\.", rf"\1conv{i + 1}.") for i in range(3)),
    *((rf"(\.body\.layer\d\.\d+\.)layer\.{i}\.normalization\.", rf"\1bn{i + 1}.") for i in range(3)),
    (r"(\.body\.layer\d\.\d+\.)shortcut\.convolution\.", r"\1downsample.0."),
    (r"(\.body\.layer\d\.\d+\.)shortcut\.normalization\.", r"\1downsample.1."),
    # The masks' part in 5.x; 4.x has the official names.
    (r"^bbox_attention\.([qk])_proj\.", r"bbox_attention.\1_linear."),
    (r"^mask_head\.conv([12])\.conv\.", r"mask_head.lay\1."),
    (r"^mask_head\.conv([12])\.norm\.", r"mask_head.gn\1."),
    *((rf"^mask_head\.fpn_stages\.{i}\.fpn_adapter\.", f"mask_head.adapter{i + 1}.") for i in range(3)),
    *((rf"^mask_head\.fpn_stages\.{i}\.refine\.conv\.", f"mask_head.lay{i + 3}.") for i in range(3)),
    *((rf"^mask_head\.fpn_stages\.{i}\.refine\.norm\.", f"mask_head.gn{i + 3}.") for i in range(3)),
    (r"^mask_head\.output_conv\.", "mask_head.out_lay."),
)


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return an official state dict under our keys."""
    return renamed(_used(state), _OFFICIAL)


def from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict of `DetrForObjectDetection` or `DetrForSegmentation` under our keys.

    Projections of queries, keys and values become one; keys that are not known stay as they are, for the report.
    """
    return joined_projections(renamed(_used(state), _TRANSFORMERS))


def _used(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out counters of batches, which nothing reads."""
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}

"""transformers' DETR with the weights of ours: the bridge for the parity tests and the benches.

What has to be undone on its side, as of transformers 5.23: with its own ResNet (the one that needs no timm) it freezes
the whole backbone, so the later stages are thawed here; it has no DC5 there, so the last stage's convolutions are
changed by hand; and with `auxiliary_loss` it feeds the *normalised* output of a decoder layer to the next one, which
is harmless only while `decoder.norm` has its initial weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DetrConfig as HfDetrConfig
from transformers import DetrForObjectDetection, DetrForSegmentation, ResNetConfig

from detronome.config.schema import DetrConfig
from detronome.models.detr.model import DETR
from detronome.models.panoptic.model import PanopticDETR
from detronome.types import Target

__all__ = [
    "build_transformers_detr",
    "build_transformers_segmentation",
    "transformers_state_dict",
    "transformers_targets",
]

_DEPTHS = {"resnet18": [2, 2, 2, 2], "resnet34": [3, 4, 6, 3], "resnet50": [3, 4, 6, 3], "resnet101": [3, 4, 23, 3]}


def build_transformers_detr(
    model: DETR, config: DetrConfig, *, auxiliary_loss: bool = False, **overrides: Any
) -> DetrForObjectDetection:
    """Return transformers' model with the same shape, weights and frozen parts as ours."""
    peer = DetrForObjectDetection(_transformers_config(model, config, auxiliary_loss=auxiliary_loss, **overrides))
    if config.dilation:
        _dilate_last_stage(peer)
    missing, unexpected = peer.load_state_dict(transformers_state_dict(model.state_dict()), strict=False)
    assert not unexpected and all("num_batches_tracked" in key for key in missing), (missing, unexpected)
    frozen = ("embedder.", "encoder.stages.0.", "encoder.stages.1.", "encoder.stages.2.", "encoder.stages.3.")
    for name, parameter in peer.model.backbone.model.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen[: config.frozen_stages]))
    return peer


def build_transformers_segmentation(model: PanopticDETR, config: DetrConfig) -> DetrForSegmentation:
    """Return transformers' panoptic model with the same shape and weights as ours."""
    stages = ["stage1", "stage2", "stage3", "stage4"]
    peer = DetrForSegmentation(_transformers_config(model.detr, config, auxiliary_loss=False, out_features=stages))
    if config.dilation:
        _dilate_last_stage(peer.detr)
    state = {f"detr.{key}": value for key, value in transformers_state_dict(model.detr.state_dict()).items()}
    for key, value in model.state_dict().items():
        if key.startswith("detr."):
            continue
        for ours, theirs in _MASK_RENAMES:
            key = key.replace(ours, theirs)
        state[key] = value
    missing, unexpected = peer.load_state_dict(state, strict=False)
    assert not unexpected and all("num_batches_tracked" in key for key in missing), (missing, unexpected)
    return peer


def _transformers_config(
    model: DETR,
    config: DetrConfig,
    *,
    auxiliary_loss: bool,
    out_features: Sequence[str] = ("stage4",),
    **overrides: Any,
) -> HfDetrConfig:
    is_bottleneck = config.backbone in ("resnet50", "resnet101")
    return HfDetrConfig(
        use_timm_backbone=False,
        backbone_config=ResNetConfig(
            depths=_DEPTHS[config.backbone],
            hidden_sizes=list(model.backbone[0].out_channels),
            layer_type="bottleneck" if is_bottleneck else "basic",
            out_features=list(out_features),
        ),
        num_labels=model.num_classes,
        num_queries=config.num_queries,
        d_model=config.hidden_dim,
        encoder_layers=config.num_encoder_layers,
        decoder_layers=config.num_decoder_layers,
        encoder_attention_heads=config.num_heads,
        decoder_attention_heads=config.num_heads,
        encoder_ffn_dim=config.ffn_dim,
        decoder_ffn_dim=config.ffn_dim,
        dropout=config.dropout,
        auxiliary_loss=auxiliary_loss,
        **overrides,
    )


def transformers_targets(targets: tuple[Target, ...]) -> list[dict[str, Tensor]]:
    """Return the labels that transformers' loss takes."""
    return [{"class_labels": target.labels, "boxes": target.boxes_cxcywh} for target in targets]


def transformers_state_dict(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the keys of our state dict, and split each `in_proj` into query, key and value."""
    renamed = {}
    for key, value in state.items():
        if key.startswith("backbone.0.body."):
            renamed["model.backbone.model." + _backbone_key(key.removeprefix("backbone.0.body."))] = value
            continue
        for ours, theirs in _RENAMES:
            key = key.replace(ours, theirs)
        key = key.replace("norm2.", "encoder_attn_layer_norm." if ".decoder." in key else "final_layer_norm.")
        if "in_proj_" in key:
            stem, kind = key.split("in_proj_")
            for part, chunk in zip("qkv", value.chunk(3), strict=True):
                renamed[f"{stem}{part}_proj.{kind}"] = chunk
        else:
            renamed[key] = value
    return renamed


_RENAMES = (
    ("transformer.", "model."),
    ("input_proj.", "model.input_projection."),
    ("query_embed.", "model.query_position_embeddings."),
    ("class_embed.", "class_labels_classifier."),
    ("bbox_embed.", "bbox_predictor."),
    ("multihead_attn.", "encoder_attn."),
    ("out_proj.", "o_proj."),
    ("linear1.", "mlp.fc1."),
    ("linear2.", "mlp.fc2."),
    ("model.decoder.norm.", "model.decoder.layernorm."),
    ("norm1.", "self_attn_layer_norm."),
    ("norm3.", "final_layer_norm."),
)


_MASK_RENAMES = (
    ("q_linear", "q_proj"),
    ("k_linear", "k_proj"),
    ("lay1.", "conv1.conv."),
    ("gn1.", "conv1.norm."),
    ("lay2.", "conv2.conv."),
    ("gn2.", "conv2.norm."),
    *((f"adapter{i}.", f"fpn_stages.{i - 1}.fpn_adapter.") for i in (1, 2, 3)),
    *((f"lay{i}.", f"fpn_stages.{i - 3}.refine.conv.") for i in (3, 4, 5)),
    *((f"gn{i}.", f"fpn_stages.{i - 3}.refine.norm.") for i in (3, 4, 5)),
    ("out_lay.", "output_conv."),
)


def _backbone_key(key: str) -> str:
    parts = key.split(".")
    kind = {"conv": "convolution", "bn": "normalization"}
    if parts[0] in ("conv1", "bn1"):
        return f"embedder.embedder.{kind[parts[0][:-1]]}.{parts[1]}"
    stage, block, leaf = int(parts[0][-1]) - 1, parts[1], parts[-1]
    prefix = f"encoder.stages.{stage}.layers.{block}."
    if parts[2] == "downsample":
        return f"{prefix}shortcut.{kind['conv'] if parts[3] == '0' else kind['bn']}.{leaf}"
    return f"{prefix}layer.{int(parts[2][-1]) - 1}.{kind[parts[2][:-1]]}.{leaf}"


def _dilate_last_stage(peer: DetrForObjectDetection) -> None:
    for index, block in enumerate(peer.model.backbone.model.encoder.stages[3].layers):
        for conv in (module for module in block.modules() if isinstance(module, torch.nn.Conv2d)):
            conv.stride = (1, 1)
            if index > 0 and conv.kernel_size == (3, 3):
                conv.dilation = conv.padding = (2, 2)

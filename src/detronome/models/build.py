"""From a configuration to a model: the only place in `models` that reads one."""

from __future__ import annotations

import torch

from detronome.config.schema import (
    TIMM_PREFIX,
    ActivationCheckpointing,
    DetrConfig,
    DFineConfig,
    ModelConfig,
    NanoConfig,
    RtDetrConfig,
)
from detronome.errors import ConfigError
from detronome.models.backbones.hgnet import HGNetV2Backbone, load_hgnetv2_weights
from detronome.models.backbones.resnet import ResNetBackbone, load_resnet_weights
from detronome.models.backbones.resnet_vd import ResNetVdBackbone, load_resnet_vd_weights
from detronome.models.backbones.timm_backbone import TimmBackbone
from detronome.models.detector import Detector
from detronome.models.detr.model import DETR
from detronome.models.dfine.encoder import FineEncoder
from detronome.models.dfine.model import DFINE
from detronome.models.dfine.transformer import FineDecoder
from detronome.models.layers.image_normalizer import IMAGENET_MEAN, IMAGENET_STD
from detronome.models.nano.model import NanoDETR
from detronome.models.panoptic.model import PanopticDETR
from detronome.models.rtdetr.encoder import HybridEncoder
from detronome.models.rtdetr.model import RTDETR
from detronome.models.rtdetr.transformer import Decoder

__all__ = ["build_model"]


def build_model(
    config: ModelConfig,
    num_classes: int,
    *,
    checkpoint_activations: ActivationCheckpointing = "none",
    channels_last: bool = True,
) -> Detector:
    """Return a new model on the CPU.

    Args:
        config: which family, and its sizes.
        num_classes: classes of the data, without no-object.
        checkpoint_activations: which part is computed again in backward instead of kept; see `TrainConfig`.
        channels_last: memory layout of images and of convolutions' weights.

    Raises:
        CheckpointError: the backbone's weights cannot be had.
    """
    backbone, transformer = (checkpoint_activations in (part, "all") for part in ("backbone", "transformer"))
    if isinstance(config, DetrConfig):
        return _build_detr(
            config,
            num_classes,
            channels_last=channels_last,
            checkpoint_backbone=backbone,
            checkpoint_transformer=transformer,
        )
    if isinstance(config, RtDetrConfig):
        return _build_rtdetr(
            config,
            num_classes,
            channels_last=channels_last,
            checkpoint_backbone=backbone,
            checkpoint_transformer=transformer,
        )
    if isinstance(config, DFineConfig):
        return _build_dfine(
            config,
            num_classes,
            channels_last=channels_last,
            checkpoint_backbone=backbone,
            checkpoint_transformer=transformer,
        )
    return _build_nano(
        config,
        num_classes,
        channels_last=channels_last,
        checkpoint_backbone=backbone,
        checkpoint_decoder=transformer,
    )


def _build_detr(
    config: DetrConfig,
    num_classes: int,
    *,
    channels_last: bool,
    checkpoint_backbone: bool,
    checkpoint_transformer: bool,
) -> DETR | PanopticDETR:
    backbone: ResNetBackbone | TimmBackbone
    image_mean, image_std = IMAGENET_MEAN, IMAGENET_STD
    if config.backbone.startswith(TIMM_PREFIX):
        if config.mask_head:
            raise ConfigError(
                f"a mask head needs the map of stride 4, which {config.backbone} does not give here",
                where="model.mask_head",
                fix="take one of the ResNets without a prefix, e.g. --set model.backbone=resnet50",
            )
        backbone = _build_timm(config, channels_last=channels_last, checkpoint_activations=checkpoint_backbone)
        image_mean, image_std = backbone.mean, backbone.std
    else:
        backbone = ResNetBackbone(
            config.backbone,
            dilation=config.dilation,
            norm=config.backbone_norm,
            frozen_stages=config.frozen_stages,
            channels_last=channels_last,
            checkpoint_activations=checkpoint_backbone,
        )
        load_resnet_weights(backbone, config.backbone, config.backbone_weights)
    detr = DETR(
        backbone,
        num_classes=num_classes,
        hidden_dim=config.hidden_dim,
        num_heads=config.num_heads,
        ffn_dim=config.ffn_dim,
        num_encoder_layers=config.num_encoder_layers,
        num_decoder_layers=config.num_decoder_layers,
        num_queries=config.num_queries,
        dropout=config.dropout,
        pre_norm=config.pre_norm,
        image_mean=image_mean,
        image_std=image_std,
        channels_last=channels_last,
        checkpoint_transformer=checkpoint_transformer,
    )
    return PanopticDETR(detr) if config.mask_head else detr


def _build_timm(
    config: DetrConfig | RtDetrConfig, *, channels_last: bool, checkpoint_activations: bool
) -> TimmBackbone:
    return TimmBackbone(
        config.backbone.removeprefix(TIMM_PREFIX),
        weights=config.backbone_weights,
        dilation=isinstance(config, DetrConfig) and config.dilation,
        norm=config.backbone_norm,
        frozen_stages=config.frozen_stages,
        channels_last=channels_last,
        checkpoint_activations=checkpoint_activations,
    )


def _build_nano(
    config: NanoConfig,
    num_classes: int,
    *,
    channels_last: bool,
    checkpoint_backbone: bool,
    checkpoint_decoder: bool,
) -> NanoDETR:
    assert config.num_queries != "auto", "resolved from the data before a model is built"
    return NanoDETR(
        num_classes=num_classes,
        widths=config.widths,
        depths=config.depths,
        hidden_dim=config.hidden_dim,
        num_heads=config.num_heads,
        num_points=config.num_points,
        ffn_dim=config.ffn_dim,
        num_decoder_layers=config.num_decoder_layers,
        num_queries=config.num_queries,
        query_size_prior=config.query_size_prior,
        denoising_groups=config.denoising_groups,
        denoising_box_noise=config.denoising_box_noise,
        denoising_label_noise=config.denoising_label_noise,
        channels_last=channels_last,
        checkpoint_backbone=checkpoint_backbone,
        checkpoint_decoder=checkpoint_decoder,
    )


def _build_rtdetr(
    config: RtDetrConfig,
    num_classes: int,
    *,
    channels_last: bool,
    checkpoint_backbone: bool,
    checkpoint_transformer: bool,
) -> RTDETR:
    backbone: ResNetVdBackbone | HGNetV2Backbone | TimmBackbone
    image_mean, image_std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if config.backbone.startswith(TIMM_PREFIX):
        backbone = _build_timm(config, channels_last=channels_last, checkpoint_activations=checkpoint_backbone)
        image_mean, image_std = backbone.mean, backbone.std
    elif config.backbone.startswith("hgnetv2"):
        backbone = HGNetV2Backbone(
            config.backbone,
            norm=config.backbone_norm,
            frozen_stages=config.frozen_stages,
            channels_last=channels_last,
            checkpoint_activations=checkpoint_backbone,
        )
        load_hgnetv2_weights(backbone, config.backbone, config.backbone_weights)
    else:
        backbone = ResNetVdBackbone(
            config.backbone,
            norm=config.backbone_norm,
            frozen_stages=config.frozen_stages,
            channels_last=channels_last,
            checkpoint_activations=checkpoint_backbone,
        )
        load_resnet_vd_weights(backbone, config.backbone, config.backbone_weights)
    encoder = HybridEncoder(
        backbone.out_channels,
        hidden_dim=config.encoder_dim,
        num_heads=config.num_heads,
        ffn_dim=config.encoder_ffn_dim,
        num_layers=config.num_encoder_layers,
        expansion=config.encoder_expansion,
        checkpoint_activations=checkpoint_transformer,
    )
    decoder = Decoder(
        [config.encoder_dim] * len(backbone.out_channels),
        num_classes=num_classes,
        hidden_dim=config.hidden_dim,
        num_heads=config.num_heads,
        num_points=config.num_points,
        sampling=config.sampling,
        ffn_dim=config.ffn_dim,
        num_layers=config.num_decoder_layers,
        has_denoising=config.num_denoising > 0,
        checkpoint_activations=checkpoint_transformer,
    )
    if channels_last:
        encoder.to(memory_format=torch.channels_last)
        decoder.to(memory_format=torch.channels_last)
    return RTDETR(
        backbone,
        encoder,
        decoder,
        num_queries=config.num_queries,
        num_denoising=config.num_denoising,
        denoising_box_noise=config.denoising_box_noise,
        denoising_label_noise=config.denoising_label_noise,
        image_mean=image_mean,
        image_std=image_std,
        channels_last=channels_last,
    )


def _build_dfine(
    config: DFineConfig,
    num_classes: int,
    *,
    channels_last: bool,
    checkpoint_backbone: bool,
    checkpoint_transformer: bool,
) -> DFINE:
    backbone = HGNetV2Backbone(
        config.backbone,
        norm=config.backbone_norm,
        frozen_stages=config.frozen_stages,
        num_maps=len(config.num_points),
        has_affine=config.backbone_affine,
        channels_last=channels_last,
        checkpoint_activations=checkpoint_backbone,
    )
    load_hgnetv2_weights(backbone, config.backbone, config.backbone_weights)
    encoder = FineEncoder(
        backbone.out_channels,
        hidden_dim=config.encoder_dim,
        num_heads=config.num_heads,
        ffn_dim=config.encoder_ffn_dim,
        num_layers=config.num_encoder_layers,
        expansion=config.encoder_expansion,
        depth=config.encoder_depth,
        checkpoint_activations=checkpoint_transformer,
    )
    decoder = FineDecoder(
        [config.encoder_dim] * len(backbone.out_channels),
        num_classes=num_classes,
        hidden_dim=config.hidden_dim,
        num_heads=config.num_heads,
        num_points=config.num_points,
        sampling=config.sampling,
        ffn_dim=config.ffn_dim,
        num_layers=config.num_decoder_layers,
        reg_scale=config.reg_scale,
        has_denoising=config.num_denoising > 0,
        checkpoint_activations=checkpoint_transformer,
    )
    if channels_last:
        encoder.to(memory_format=torch.channels_last)
    return DFINE(
        backbone,
        encoder,
        decoder,
        num_queries=config.num_queries,
        num_denoising=config.num_denoising,
        denoising_box_noise=config.denoising_box_noise,
        denoising_label_noise=config.denoising_label_noise,
        channels_last=channels_last,
    )

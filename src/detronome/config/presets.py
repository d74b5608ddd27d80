"""Whole-run presets: each is a function that returns a complete `RunConfig`.

`detr-*` are the reference's recipes (arXiv 2005.12872): 300 epochs, batch 16, AdamW 1e-4 (backbone 1e-5), drop at 200.
`nano` learns from scratch in minutes on a CPU; `demo` is `nano` for the embedded digits.

Each says what its network is: parameters, operations for a photo of 480 x 640 pixels (a multiplication and an addition
are two), accuracy on COCO val2017 as published. The same numbers stand in `preset_facts.py`: a new preset needs a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from detronome.config.schema import (
    AugmentConfig,
    BatchConfig,
    DetrConfig,
    DFineConfig,
    LossConfig,
    NanoConfig,
    OptimConfig,
    RtDetrConfig,
    RunConfig,
    ScheduleConfig,
    TrainConfig,
)
from detronome.errors import ConfigError, nearest_name_hint

__all__ = ["PRESETS", "preset"]


def preset(name: str) -> RunConfig:
    """Return the preset of this name.

    Raises:
        ConfigError: there is none.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown model {name!r}", where="--model", fix=nearest_name_hint(name, list(PRESETS)))
    return PRESETS[name]()


def _detr(
    name: str, backbone: Literal["resnet18", "resnet34", "resnet50", "resnet101"], *, dilation: bool
) -> RunConfig:
    return RunConfig(preset=name, model=DetrConfig(backbone=backbone, dilation=dilation))


def detr_r18() -> RunConfig:
    """DETR with ResNet-18, for small machines: 28.8 M parameters, 83.8 GFLOPs; nothing is published."""
    return _detr("detr-r18", "resnet18", dilation=False)


def detr_r18_dc5() -> RunConfig:
    """DETR-DC5 with ResNet-18: 28.8 M parameters, 235.7 GFLOPs; nothing is published."""
    return _detr("detr-r18-dc5", "resnet18", dilation=True)


def detr_r50() -> RunConfig:
    """DETR with ResNet-50: 41.5 M parameters, 162.3 GFLOPs; published 42.0 AP after 500 epochs, 40.6 after 300.

    The reference's README (github.com/facebookresearch/detr) counts 86 GFLOPs over its images, multiply-adds as one.
    """
    return _detr("detr-r50", "resnet50", dilation=False)


def detr_r50_dc5() -> RunConfig:
    """DETR-DC5 with ResNet-50: 41.5 M parameters, 346.3 GFLOPs; published 43.3 AP after 500 epochs (its README)."""
    return _detr("detr-r50-dc5", "resnet50", dilation=True)


def detr_r101() -> RunConfig:
    """DETR with ResNet-101: 60.5 M parameters, 289.2 GFLOPs; published 43.5 AP after 500 epochs (its README)."""
    return _detr("detr-r101", "resnet101", dilation=False)


def detr_r101_dc5() -> RunConfig:
    """DETR-DC5 with ResNet-101: 60.5 M parameters, 473.2 GFLOPs; published 44.9 AP after 500 epochs (its README)."""
    return _detr("detr-r101-dc5", "resnet101", dilation=True)


def nano() -> RunConfig:
    """The small fast learner, from scratch: 0.6 M parameters, 0.5 GFLOPs, images of 192 x 256 pixels."""
    return RunConfig(
        preset="nano",
        model=NanoConfig(denoising_groups=1),
        loss=LossConfig(classification="quality", cost_class=2.0, weight_class=1.0, weight_bbox=5.0, weight_giou=2.0),
        augment=AugmentConfig(
            sizes=(192,),
            max_size=256,
            crop="fraction",
            brightness=0.2,
            contrast=0.2,
            saturation=0.2,
            eval_size=192,
            eval_max_size=256,
        ),
        batch=BatchConfig(global_batch_size=8),
        optim=OptimConfig(lr=2e-3, backbone_lr=2e-3, weight_decay=1e-4, decay_one_dimensional=False, clip_norm=1.0),
        schedule=ScheduleConfig(kind="cosine", warmup_steps=30, min_factor=0.01),
        train=TrainConfig(epochs="auto", eval_epochs="auto", ema_decay=0.997),
    )


def demo() -> RunConfig:
    """`nano` for the embedded digits: 0.6 M parameters, 0.1 GFLOPs, 128 x 128 pixels; digits must not be mirrored."""
    config = nano()
    return replace(
        config,
        preset="demo",
        model=NanoConfig(num_queries=25, denoising_groups=2),
        augment=AugmentConfig(
            sizes=(128,),
            max_size=128,
            horizontal_flip=0.0,
            crop="none",
            brightness=0.2,
            contrast=0.2,
            saturation=0.2,
            eval_size=128,
            eval_max_size=128,
        ),
        batch=BatchConfig(global_batch_size=16),
        optim=replace(config.optim, lr=3e-3, backbone_lr=3e-3),
        train=replace(config.train, epochs=8, eval_epochs=1),
    )


def _panoptic(name: str, boxes: RunConfig) -> RunConfig:
    """Return a model of boxes with masks, all learnt at once. The reference's two stages, boxes first and then the mask
    head alone, are two runs: docs/panoptic.md."""
    assert isinstance(boxes.model, DetrConfig)
    return replace(
        boxes,
        preset=name,
        model=replace(boxes.model, mask_head=True),
        data=replace(boxes.data, annotations="panoptic"),
        train=replace(boxes.train, metric="PQ"),
    )


def detr_r50_panoptic() -> RunConfig:
    """DETR with ResNet-50 and masks: 42.9 M parameters, 370.7 GFLOPs; published PQ 43.4, box AP 38.8, mask AP 31.1
    (the reference's README), after boxes and then 25 epochs of masks."""
    return _panoptic("detr-r50-panoptic", detr_r50())


def detr_r50_dc5_panoptic() -> RunConfig:
    """DETR-DC5 with ResNet-50 and masks: 42.9 M parameters, 719.7 GFLOPs; published PQ 44.6, box AP 40.2, mask AP 31.9
    (the reference's README)."""
    return _panoptic("detr-r50-dc5-panoptic", detr_r50_dc5())


def detr_r101_panoptic() -> RunConfig:
    """DETR with ResNet-101 and masks: 61.8 M parameters, 497.6 GFLOPs; published PQ 45.1, box AP 40.1, mask AP 33 (the
    reference's README)."""
    return _panoptic("detr-r101-panoptic", detr_r101())


def _squares(repeat: int) -> tuple[int, ...]:
    """Return the sides that are drawn from, the middle one so many times as often as each other."""
    return (480, 512, 544, 576, 608, *[640] * repeat, 672, 704, 736, 768, 800)


def _rtdetr_augment(sizes: tuple[int, ...]) -> AugmentConfig:
    return AugmentConfig(
        sizes=sizes,
        square=True,
        crop="fraction",
        crop_probability=0.5,
        crop_fraction=(0.5, 1.0),
        brightness=0.125,
        contrast=0.5,
        saturation=0.5,
        eval_size=640,
    )


def _rtdetr(
    name: str, model: RtDetrConfig, *, epochs: int, backbone_lr: float, sizes: tuple[int, ...] = _squares(3)
) -> RunConfig:
    """The authors' recipe as far as our settings carry it: squares, batch 16, AdamW 1e-4, an average of the weights.

    Flips and colours are theirs in range; their IoU crop is a `fraction` crop here, and zooming out is missing.
    """
    return RunConfig(
        preset=name,
        model=model,
        loss=LossConfig(classification="vfl", cost_class=2.0, weight_class=1.0, weight_bbox=5.0, weight_giou=2.0),
        augment=_rtdetr_augment(sizes),
        optim=OptimConfig(lr=1e-4, backbone_lr=backbone_lr, weight_decay=1e-4, decay_one_dimensional=False),
        schedule=ScheduleConfig(kind="constant", warmup_steps=2000),
        train=TrainConfig(epochs=epochs, ema_decay=0.9999),
    )


def rtdetr_v2_s() -> RunConfig:
    """RT-DETRv2-S, ResNet-18-vd: 20.2 M parameters, 59.3 GFLOPs at 640 x 640; published 48.1 AP (its README)."""
    model = RtDetrConfig(
        backbone="resnet18vd",
        backbone_norm="trainable",
        frozen_stages=0,
        encoder_expansion=0.5,
        num_decoder_layers=3,
    )
    return _rtdetr("rtdetr-v2-s", model, epochs=120, backbone_lr=1e-4, sizes=(640,))


def rtdetr_v2_m() -> RunConfig:
    """RT-DETRv2-M with ResNet-34-vd: 31.4 M parameters, 91.5 GFLOPs at 640 x 640; published 49.9 AP."""
    model = RtDetrConfig(
        backbone="resnet34vd",
        backbone_norm="trainable",
        frozen_stages=0,
        encoder_expansion=0.5,
        num_decoder_layers=4,
    )
    return _rtdetr("rtdetr-v2-m", model, epochs=120, backbone_lr=5e-5)


def rtdetr_v2_l() -> RunConfig:
    """RT-DETRv2-L, ResNet-50-vd: 42.9 M parameters, 135.6 GFLOPs at 640 x 640; published 53.4 AP."""
    return _rtdetr("rtdetr-v2-l", RtDetrConfig(backbone="resnet50vd"), epochs=72, backbone_lr=1e-5)


def rtdetr_v2_x() -> RunConfig:
    """RT-DETRv2-X, ResNet-101-vd: 76.6 M parameters, 258.4 GFLOPs at 640 x 640; published 54.3 AP."""
    model = RtDetrConfig(backbone="resnet101vd", encoder_dim=384, encoder_ffn_dim=2048)
    return _rtdetr("rtdetr-v2-x", model, epochs=72, backbone_lr=1e-6)


def _dfine(
    name: str,
    model: DFineConfig,
    *,
    epochs: int,
    batch: int = 32,
    lr: float,
    backbone_lr: float,
    weight_decay: float = 1e-4,
    sizes: tuple[int, ...] = _squares(3),
) -> RunConfig:
    """The authors' recipe as far as our settings carry it: squares, AdamW, a warm-up, an average of the weights.

    As with RT-DETR, their IoU crop is a `fraction` crop, and zooming out is missing; so is an end of all these before
    the last epochs.
    """
    return RunConfig(
        preset=name,
        model=model,
        loss=LossConfig(classification="vfl", cost_class=2.0, weight_class=1.0, weight_bbox=5.0, weight_giou=2.0),
        augment=_rtdetr_augment(sizes),
        batch=BatchConfig(global_batch_size=batch),
        optim=OptimConfig(lr=lr, backbone_lr=backbone_lr, weight_decay=weight_decay, decay_one_dimensional=False),
        schedule=ScheduleConfig(kind="constant", warmup_steps=500),
        train=TrainConfig(epochs=epochs, ema_decay=0.9999),
    )


_AFFINE = DFineConfig(backbone_affine=True, backbone_norm="trainable", frozen_stages=0)
"""The smaller sizes: all of the backbone learns."""


def dfine_n() -> RunConfig:
    """D-FINE-N, HGNetv2-B0, maps of two strides: 3.8 M parameters, 7.3 GFLOPs at 640 x 640; published 42.8 AP."""
    model = replace(
        _AFFINE,
        backbone="hgnetv2_b0",
        encoder_dim=128,
        encoder_ffn_dim=512,
        encoder_expansion=0.34,
        encoder_depth=0.5,
        hidden_dim=128,
        ffn_dim=512,
        num_points=(6, 6),
        num_decoder_layers=3,
    )
    return _dfine("dfine-n", model, epochs=160, batch=128, lr=8e-4, backbone_lr=4e-4, sizes=(640,))


def dfine_s() -> RunConfig:
    """D-FINE-S with HGNetv2-B0: 10.3 M parameters, 25.7 GFLOPs at 640 x 640; published 48.5 AP."""
    model = replace(_AFFINE, backbone="hgnetv2_b0", encoder_expansion=0.5, encoder_depth=0.34, num_decoder_layers=3)
    return _dfine("dfine-s", model, epochs=132, lr=2e-4, backbone_lr=1e-4, sizes=_squares(20))


def dfine_m() -> RunConfig:
    """D-FINE-M with HGNetv2-B2: 19.6 M parameters, 58.3 GFLOPs at 640 x 640; published 52.3 AP."""
    model = replace(_AFFINE, backbone="hgnetv2_b2", encoder_depth=0.67, num_decoder_layers=4)
    return _dfine("dfine-m", model, epochs=132, lr=2e-4, backbone_lr=2e-5, sizes=_squares(6))


def dfine_l() -> RunConfig:
    """D-FINE-L with HGNetv2-B4: 31.2 M parameters, 93.6 GFLOPs at 640 x 640; published 54.0 AP."""
    model = DFineConfig(backbone="hgnetv2_b4")
    return _dfine("dfine-l", model, epochs=80, lr=2.5e-4, backbone_lr=1.25e-5, weight_decay=1.25e-4, sizes=_squares(4))


def dfine_x() -> RunConfig:
    """D-FINE-X with HGNetv2-B5: 62.6 M parameters, 207.5 GFLOPs at 640 x 640; published 55.8 AP."""
    model = DFineConfig(backbone="hgnetv2_b5", encoder_dim=384, encoder_ffn_dim=2048, reg_scale=8.0)
    return _dfine("dfine-x", model, epochs=80, lr=2.5e-4, backbone_lr=2.5e-6, weight_decay=1.25e-4)


PRESETS: dict[str, Callable[[], RunConfig]] = {
    "nano": nano,
    "demo": demo,
    "detr-r18": detr_r18,
    "detr-r18-dc5": detr_r18_dc5,
    "detr-r50": detr_r50,
    "detr-r50-dc5": detr_r50_dc5,
    "detr-r101": detr_r101,
    "detr-r101-dc5": detr_r101_dc5,
    "rtdetr-v2-s": rtdetr_v2_s,
    "rtdetr-v2-m": rtdetr_v2_m,
    "rtdetr-v2-l": rtdetr_v2_l,
    "rtdetr-v2-x": rtdetr_v2_x,
    "dfine-n": dfine_n,
    "dfine-s": dfine_s,
    "dfine-m": dfine_m,
    "dfine-l": dfine_l,
    "dfine-x": dfine_x,
    "detr-r50-panoptic": detr_r50_panoptic,
    "detr-r50-dc5-panoptic": detr_r50_dc5_panoptic,
    "detr-r101-panoptic": detr_r101_panoptic,
}

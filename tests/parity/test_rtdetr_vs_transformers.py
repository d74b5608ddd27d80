"""Our RT-DETRv2 gives what transformers' gives, with its weights moved across by our name table."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from detronome.config.presets import preset
from detronome.config.schema import LossConfig, RtDetrConfig
from detronome.losses.build import build_criterion
from detronome.models.build import build_model
from detronome.models.rtdetr.model import RTDETR
from detronome.types import ModelOutput, Target
from detronome.weights.names.rtdetr import from_transformers

NUM_CLASSES = 7
TINY: dict[str, Any] = {
    "encoder_dim": 32,
    "encoder_ffn_dim": 48,
    "hidden_dim": 16,
    "num_heads": 2,
    "ffn_dim": 40,
    "num_decoder_layers": 3,
    "num_queries": 9,
    "backbone_weights": "none",
}
_DEPTHS = {
    "resnet18vd": [2, 2, 2, 2],
    "resnet34vd": [3, 4, 6, 3],
    "resnet50vd": [3, 4, 6, 3],
    "resnet101vd": [3, 4, 23, 3],
}


@pytest.mark.parametrize(
    ("config", "size_hw"),
    [
        pytest.param(RtDetrConfig(backbone="resnet18vd", encoder_expansion=0.5, **TINY), (96, 96), id="r18"),
        pytest.param(RtDetrConfig(backbone="resnet50vd", **TINY), (64, 128), id="r50-not-square"),
        pytest.param(RtDetrConfig(backbone="resnet18vd", sampling="discrete", **TINY), (96, 64), id="discrete"),
        pytest.param(RtDetrConfig(backbone="hgnetv2_b4", **TINY), (64, 96), id="hgnetv2"),
    ],
)
@torch.no_grad()
def test_same_predictions(config: RtDetrConfig, size_hw: tuple[int, int]) -> None:
    """On a batch with padding, which both see as black picture; ours then speaks of the unpadded image."""
    transformers = pytest.importorskip("transformers")
    peer = _peer(transformers, config).eval()
    model = _ours(config, peer).eval()
    images = torch.randint(0, 256, (2, 3, *size_hw), dtype=torch.uint8)
    padding_mask = torch.zeros(2, *size_hw, dtype=torch.bool)
    padding_mask[1, size_hw[0] // 2 :] = True
    padding_mask[1, :, size_hw[1] * 3 // 4 :] = True
    images[padding_mask[:, None].expand_as(images)] = 0

    output = model(images, padding_mask)
    expected = peer(pixel_values=images / 255, pixel_mask=(~padding_mask).long())

    torch.testing.assert_close(output.pred_logits, expected.logits, atol=1e-4, rtol=1e-4)
    boxes = expected.pred_boxes
    boxes[1] /= torch.tensor([0.75, 0.5, 0.75, 0.5])
    torch.testing.assert_close(output.pred_boxes, boxes, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_first_version_is_the_same_network() -> None:
    transformers = pytest.importorskip("transformers")
    config = RtDetrConfig(backbone="resnet18vd", **TINY)
    peer = _peer(transformers, config, version=1).eval()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    padding_mask = torch.zeros(2, 64, 64, dtype=torch.bool)
    output = _ours(config, peer).eval()(images, padding_mask)
    expected = peer(pixel_values=images / 255)
    torch.testing.assert_close(output.pred_logits, expected.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(output.pred_boxes, expected.pred_boxes, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["rtdetr-v2-s", "rtdetr-v2-m", "rtdetr-v2-l", "rtdetr-v2-x"])
def test_presets_have_the_tensors_of_the_published_sizes(name: str) -> None:
    """As the authors' configurations, converted by transformers, make them: nothing missing, nothing left."""
    transformers = pytest.importorskip("transformers")
    config = preset(name).model
    assert isinstance(config, RtDetrConfig)
    with torch.device("meta"):
        model = build_model(replace(config, backbone_weights="none"), 80)
        theirs = from_transformers(_peer(transformers, config, num_classes=80).state_dict())
    ours = {key: value for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}


@torch.no_grad()
def test_same_losses() -> None:
    """Of the last layer, the earlier ones, the proposals and the denoising queries, by the same matches."""
    pytest.importorskip("transformers")
    from transformers import RTDetrV2Config
    from transformers.loss.loss_rt_detr import RTDetrLoss

    torch.manual_seed(0)
    config = LossConfig(classification="vfl", cost_class=2.0, weight_class=1.0)
    criterion = build_criterion(config)
    peer = RTDetrLoss(RTDetrV2Config(num_labels=NUM_CLASSES))
    targets = [_target(3), _target(0), _target(2)]
    last, first, proposals, denoising = (_random_output(3, queries) for queries in (11, 11, 11, 12))
    # Two groups of three positives and three negatives each.
    matches = tuple(
        (torch.cat([torch.arange(count), torch.arange(count) + 6]), torch.arange(count).repeat(2))
        for count in (3, 0, 2)
    )
    output = ModelOutput(
        pred_logits=last.pred_logits,
        pred_boxes=last.pred_boxes,
        aux_outputs=(first,),
        enc_outputs=proposals,
        dn_outputs=(denoising,),
        dn_matches=matches,
    )
    losses = criterion(output, targets)
    expected = peer(
        {
            "logits": last.pred_logits,
            "pred_boxes": last.pred_boxes,
            "auxiliary_outputs": [_as_dict(first), _as_dict(proposals)],
            "dn_auxiliary_outputs": [_as_dict(denoising)],
            "denoising_meta_values": {"dn_positive_idx": [query for query, _ in matches], "dn_num_group": 2},
        },
        [{"class_labels": target.labels, "boxes": target.boxes_cxcywh} for target in targets],
    )
    suffixes = {"": "", "_0": "_aux_0", "_enc": "_aux_1", "_dn_0": "_dn_0"}
    names = {"loss_ce": "loss_vfl", "loss_bbox": "loss_bbox", "loss_giou": "loss_giou"}
    assert len(losses) == len(expected) == 12
    for ours, theirs in names.items():
        for suffix, their_suffix in suffixes.items():
            weighted = losses[ours + suffix] * criterion.weights[ours]
            torch.testing.assert_close(weighted, expected[theirs + their_suffix], atol=1e-5, rtol=1e-5)


def _peer(transformers: Any, config: RtDetrConfig, *, version: int = 2, num_classes: int = NUM_CLASSES) -> Any:
    """Return transformers' model with random weights and statistics."""
    torch.manual_seed(0)
    if config.backbone.startswith("hgnetv2"):
        backbone = transformers.HGNetV2Config(
            stem_channels=[3, 32, 48],
            stage_in_channels=[48, 128, 512, 1024],
            stage_mid_channels=[48, 96, 192, 384],
            stage_out_channels=[128, 512, 1024, 2048],
            stage_num_blocks=[1, 1, 3, 1],
            stage_numb_of_layers=[6, 6, 6, 6],
            out_features=["stage2", "stage3", "stage4"],
        )
        channels = [512, 1024, 2048]
    else:
        is_bottleneck = config.backbone in ("resnet50vd", "resnet101vd")
        sizes = [256, 512, 1024, 2048] if is_bottleneck else [64, 128, 256, 512]
        backbone = transformers.RTDetrResNetConfig(
            depths=_DEPTHS[config.backbone],
            hidden_sizes=sizes,
            layer_type="bottleneck" if is_bottleneck else "basic",
            out_features=["stage2", "stage3", "stage4"],
        )
        channels = sizes[1:]
    only_second = {"decoder_method": config.sampling} if version == 2 else {}
    model_type, config_type = (
        (transformers.RTDetrForObjectDetection, transformers.RTDetrConfig)
        if version == 1
        else (transformers.RTDetrV2ForObjectDetection, transformers.RTDetrV2Config)
    )
    peer = model_type(
        config_type(
            backbone_config=backbone,
            num_labels=num_classes,
            encoder_in_channels=channels,
            encoder_hidden_dim=config.encoder_dim,
            encoder_ffn_dim=config.encoder_ffn_dim,
            encoder_attention_heads=config.num_heads,
            hidden_expansion=config.encoder_expansion,
            d_model=config.hidden_dim,
            decoder_in_channels=[config.encoder_dim] * 3,
            decoder_ffn_dim=config.ffn_dim,
            decoder_attention_heads=config.num_heads,
            decoder_layers=config.num_decoder_layers,
            num_queries=config.num_queries,
            **only_second,
        )
    )
    # With this transformers, a new model shares one head among all layers; published ones have their own.
    heads = peer.model.decoder
    heads.class_embed, heads.bbox_embed = (
        torch.nn.ModuleList(copy.deepcopy(head) for head in kind) for kind in (heads.class_embed, heads.bbox_embed)
    )
    for name, value in peer.state_dict().items():
        if value.dtype == torch.float32 and not name.endswith("n_points_scale"):
            if name.endswith("running_var"):
                value.uniform_(0.5, 2.0)
            elif value.dim() > 1:
                value.normal_(0, value[0].numel() ** -0.5)
            else:
                value.normal_(0, 0.1)
                if "norm" in name and name.endswith("weight"):
                    value.add_(1)
    return peer


def _ours(config: RtDetrConfig, peer: Any) -> RTDETR:
    model = build_model(config, NUM_CLASSES)
    assert isinstance(model, RTDETR)
    missing, unexpected = model.load_state_dict(from_transformers(peer.state_dict()), strict=False)
    assert not unexpected and all("num_batches_tracked" in key for key in missing), (missing, unexpected)
    return model


def _target(num_objects: int) -> Target:
    return Target(
        boxes_cxcywh=torch.rand(num_objects, 4) * 0.4 + 0.2,
        labels=torch.randint(0, NUM_CLASSES, (num_objects,)),
        image_id=1,
        size_hw=(64, 64),
        orig_size_hw=(64, 64),
    )


def _random_output(num_images: int, num_queries: int) -> ModelOutput:
    return ModelOutput(
        pred_logits=torch.randn(num_images, num_queries, NUM_CLASSES),
        pred_boxes=torch.rand(num_images, num_queries, 4) * 0.4 + 0.2,
    )


def _as_dict(output: ModelOutput) -> dict[str, torch.Tensor]:
    return {"logits": output.pred_logits, "pred_boxes": output.pred_boxes}

"""timm's networks as backbones: maps, freezing, norms, dilation, weights, and errors that name the nearest."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from detronome.config.convert import apply_overrides, from_dict, to_dict
from detronome.config.presets import preset
from detronome.config.schema import DetrConfig, RtDetrConfig, TimmName
from detronome.errors import CheckpointError, ConfigError, MissingExtraError
from detronome.models.backbones.timm_backbone import TimmBackbone
from detronome.models.build import build_model

timm = pytest.importorskip("timm")

SMALL = "mobilenetv3_small_050"
CONVNEXT = "convnext_atto"


def backbone(name: str = "resnet10t", **settings: object) -> TimmBackbone:
    torch.manual_seed(0)
    free = {"weights": "none", "norm": "trainable", "frozen_stages": 0}
    return TimmBackbone(name, **{**free, **settings})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["resnet10t", SMALL, CONVNEXT, "regnetx_002", "vgg11"])
def test_three_maps_of_strides_8_16_and_32(name: str) -> None:
    maps = backbone(name)(torch.randn(2, 3, 64, 96))
    assert [x.shape[-2:] for x in maps] == [(8, 12), (4, 6), (2, 3)]
    assert tuple(x.shape[1] for x in maps) == backbone(name).out_channels


@pytest.mark.parametrize("name", ["resnet10t", SMALL, CONVNEXT])
def test_the_last_stage_is_dilated_where_timm_can(name: str) -> None:
    plain, dilated = backbone(name), backbone(name, dilation=True)
    maps = dilated(torch.randn(1, 3, 64, 96))
    assert [x.shape[-2:] for x in maps] == [(8, 12), (4, 6), (4, 6)]
    assert {n: v.shape for n, v in dilated.state_dict().items()} == {n: v.shape for n, v in plain.state_dict().items()}
    with pytest.raises(ConfigError, match="cannot dilate") as caught:
        backbone("hgnetv2_b0", dilation=True)
    assert caught.value.problems[0].where == "model.dilation"


@pytest.mark.parametrize(
    ("name", "frozen_stages", "first_trained"),
    [
        ("resnet10t", 0, "conv1.0.weight"),
        ("resnet10t", 1, "layer1.0.conv1.weight"),
        ("resnet10t", 2, "layer2.0.conv1.weight"),
        ("resnet10t", 4, "layer4.0.conv1.weight"),
        ("resnet10t", 5, None),
        (CONVNEXT, 1, "stem_0.weight"),  # its first map is of stride 4
        (CONVNEXT, 2, "stages_1.downsample.0.weight"),
        (SMALL, 1, "blocks.0.0.conv_dw.weight"),
        (SMALL, 3, "blocks.2.0.conv_pw.weight"),
    ],
)
def test_parts_stay_fixed_from_the_image_on(name: str, frozen_stages: int, first_trained: str | None) -> None:
    body = backbone(name, frozen_stages=frozen_stages).body
    trained = [n for n, p in body.named_parameters() if p.requires_grad]
    assert (trained[0] if trained else None) == first_trained
    names = [n for n, _ in body.named_parameters()]
    assert trained == (names[names.index(first_trained) :] if first_trained else [])


@pytest.mark.parametrize(("norm", "frozen_stages"), [("frozen", 0), ("trainable", 5)])
def test_fixed_statistics_do_not_move(norm: str, frozen_stages: int) -> None:
    model = backbone(norm=norm, frozen_stages=frozen_stages).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(torch.randn(2, 3, 64, 64))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    learns = backbone().train()
    before = {name: value.clone() for name, value in learns.state_dict().items()}
    learns(torch.randn(2, 3, 64, 64))
    assert not torch.equal(learns.state_dict()["body.bn1.running_mean"], before["body.bn1.running_mean"])


def test_checkpointed_activations_give_the_same_gradients_and_statistics() -> None:
    images = torch.randn(2, 3, 64, 64)
    plain, again = backbone().train(), backbone(checkpoint_activations=True).train()
    for model in (plain, again):
        sum(x.square().mean() for x in model(images)).backward()
    for (name, a), b in zip(plain.named_parameters(), again.parameters(), strict=True):
        assert a.grad is not None and torch.equal(a.grad, b.grad), name
    assert all(torch.equal(a, b) for a, b in zip(plain.buffers(), again.buffers(), strict=True))


@pytest.mark.parametrize(
    ("name", "what", "fix"),
    [
        ("resnet51", "no network 'resnet51'", "did you mean timm:resnet5"),
        ("resnet50.a1_in2k", "no network 'resnet50.a1_in2k'", "did you mean timm:resnet50.a1_in1k"),
        ("hf-hub:somebody/something", "no network", "timm.list_models()"),
        ("", "no network ''", "timm.list_models()"),
        ("vit_tiny_patch16_224", "maps of stride 16, 16, 16", "timm:convnext_tiny"),
        ("swin_tiny_patch4_window7_224", "does not take images of every size", "timm:convnext_tiny"),
        ("inception_v4", "gives maps of", "timm:convnext_tiny"),
    ],
)
def test_networks_that_do_not_fit_are_refused(name: str, what: str, fix: str) -> None:
    with pytest.raises(ConfigError, match=what) as caught:
        backbone(name)
    assert caught.value.problems[0].where == "model.backbone"
    assert fix in caught.value.problems[0].fix


def test_frozen_stages_out_of_range() -> None:
    with pytest.raises(ConfigError, match="not 0 to 5"):
        backbone(frozen_stages=6)


def test_without_timm_the_install_line_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'detronome\[timm\]'"):
        backbone()


def test_weights_from_a_file_are_those_of_timm(tmp_path: Path) -> None:
    torch.manual_seed(1)
    whole = timm.create_model("resnet10t")
    torch.save(whole.state_dict(), tmp_path / "resnet10t.pth")
    filled = backbone(weights=str(tmp_path / "resnet10t.pth"))
    assert torch.equal(filled.body.layer4[0].conv1.weight, whole.layer4[0].conv1.weight)
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(filled.eval()(images)[-1], whole.eval().forward_features(images))
    with pytest.raises(CheckpointError, match="cannot be used"):
        backbone("resnet14t", weights=str(tmp_path / "resnet10t.pth"))
    with pytest.raises(CheckpointError, match="does not exist"):
        backbone(weights=str(tmp_path / "none.pth"))


def test_weights_that_cannot_be_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    create = timm.create_model

    def offline(name: str, *, pretrained: bool = False, **settings: object) -> nn.Module:
        if pretrained:
            raise OSError("no route to host")
        return create(name, **settings)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(CheckpointError, match="no route to host") as caught:
        backbone(weights="imagenet")
    assert caught.value.problems[0].where == "https://huggingface.co/timm/resnet10t.c3_in1k"
    assert "model.backbone_weights=FILE" in caught.value.problems[0].fix


def test_a_detr_normalises_as_the_network_was_trained() -> None:
    config = DetrConfig(
        backbone=TimmName("timm:test_resnet"),  # trained on colours of -1 to 1
        backbone_weights="none",
        backbone_norm="trainable",
        frozen_stages=0,
        dilation=True,
        hidden_dim=16,
        num_heads=2,
        ffn_dim=16,
        num_encoder_layers=1,
        num_decoder_layers=1,
        num_queries=5,
    )
    cfg = timm.get_pretrained_cfg("test_resnet")
    torch.manual_seed(0)
    model = build_model(config, 3).eval()
    assert tuple(cfg.mean) == (0.5, 0.5, 0.5)
    torch.testing.assert_close(model.normalizer.scale, 1 / (255 * torch.tensor(cfg.std).view(3, 1, 1)))
    torch.testing.assert_close(model.normalizer.shift, -torch.tensor(cfg.mean).div(torch.tensor(cfg.std)).view(3, 1, 1))
    output = model(torch.zeros(1, 3, 64, 96, dtype=torch.uint8), torch.zeros(1, 64, 96, dtype=torch.bool))
    assert output.pred_logits.shape == (1, 5, 4) and output.pred_boxes.isfinite().all()


def test_an_rtdetr_takes_three_maps() -> None:
    config = RtDetrConfig(
        backbone=TimmName("timm:test_resnet"),
        backbone_weights="none",
        backbone_norm="trainable",
        frozen_stages=0,
        encoder_dim=16,
        encoder_ffn_dim=16,
        hidden_dim=16,
        num_heads=2,
        ffn_dim=16,
        num_decoder_layers=1,
        num_queries=5,
        num_denoising=0,
    )
    torch.manual_seed(0)
    model = build_model(config, 3).eval()
    output = model(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), torch.zeros(1, 64, 64, dtype=torch.bool))
    assert output.pred_logits.shape == (1, 5, 3)
    assert model.normalizer.shift.abs().sum() > 0


def test_a_mask_head_is_refused() -> None:
    config = DetrConfig(backbone=TimmName("timm:test_resnet"), backbone_weights="none", mask_head=True)
    with pytest.raises(ConfigError, match="stride 4"):
        build_model(config, 3)


def test_the_setting_is_read_and_written() -> None:
    config = apply_overrides(preset("detr-r50"), {"model.backbone": "timm:convnext_tiny"})
    assert isinstance(config.model, DetrConfig) and config.model.backbone == "timm:convnext_tiny"
    assert from_dict(to_dict(config)) == config
    with pytest.raises(ConfigError, match="resnet51") as caught:
        apply_overrides(preset("detr-r50"), {"model.backbone": "resnet51"})
    assert "'resnet50' or 'resnet101' or timm:NAME of a network in timm" in caught.value.problems[0].fix

"""ResNet-vd and HGNetv2 as backbones: sizes, frozen parts, weights from files, mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from detronome.errors import CheckpointError, ConfigError
from detronome.models.backbones.hgnet import HGNetV2Backbone, load_hgnetv2_weights
from detronome.models.backbones.resnet_vd import ResNetVdBackbone, load_resnet_vd_weights


@pytest.mark.parametrize(("height", "width"), [(64, 64), (33, 95), (1, 40)])
@torch.no_grad()
def test_sides_are_rounded_up(height: int, width: int) -> None:
    for backbone in (ResNetVdBackbone("resnet18vd"), HGNetV2Backbone("hgnetv2_b0")):
        maps = backbone.eval()(torch.randn(1, 3, height, width))
        sizes = [tuple(x.shape[2:]) for x in maps]
        assert sizes == [(-(-height // stride), -(-width // stride)) for stride in (8, 16, 32)]
        assert tuple(x.shape[1] for x in maps) == backbone.out_channels


@pytest.mark.parametrize("frozen_stages", [0, 1, 3, 5])
def test_frozen_parts_stay_as_they_are(frozen_stages: int) -> None:
    for backbone in (
        ResNetVdBackbone("resnet18vd", norm="trainable", frozen_stages=frozen_stages),
        HGNetV2Backbone("hgnetv2_b0", norm="trainable", frozen_stages=frozen_stages),
    ):
        backbone.train()
        parts = list(backbone.children())
        stages = [parts[0], *parts[1]]
        for index, part in enumerate(stages):
            is_frozen = index < frozen_stages
            assert all(parameter.requires_grad is not is_frozen for parameter in part.parameters())
            norms = [module for module in part.modules() if isinstance(module, nn.BatchNorm2d)]
            assert norms and all(norm.training is not is_frozen for norm in norms)


def test_learned_affine_parts_begin_by_doing_nothing() -> None:
    torch.manual_seed(0)
    plain = HGNetV2Backbone("hgnetv2_b0")
    affine = HGNetV2Backbone("hgnetv2_b0", has_affine=True)
    load_hgnetv2_weights(affine, "hgnetv2_b0", "none")
    missing, unexpected = affine.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected and missing and all(".lab." in name for name in missing)
    images = torch.randn(1, 3, 32, 32)
    for ours, theirs in zip(affine(images), plain(images), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_weights_of_a_file_whatever_else_is_in_it(tmp_path: Path) -> None:
    source, backbone = ResNetVdBackbone("resnet18vd", norm="trainable"), ResNetVdBackbone("resnet18vd")
    torch.save(source.state_dict() | {"fc.weight": torch.zeros(3)}, tmp_path / "weights.pth")
    load_resnet_vd_weights(backbone, "resnet18vd", str(tmp_path / "weights.pth"))
    state = source.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in backbone.state_dict().items())


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save(ResNetVdBackbone("resnet18vd").state_dict(), tmp_path / "r18.pth")
    with pytest.raises(CheckpointError, match="not weights for resnet34vd"):
        load_resnet_vd_weights(ResNetVdBackbone("resnet34vd"), "resnet34vd", str(tmp_path / "r18.pth"))
    with pytest.raises(CheckpointError, match="does not exist"):
        load_resnet_vd_weights(ResNetVdBackbone("resnet18vd"), "resnet18vd", str(tmp_path / "none.pth"))


@pytest.mark.parametrize("kind", [ResNetVdBackbone, HGNetV2Backbone])
def test_mistakes_are_named(kind: type[ResNetVdBackbone] | type[HGNetV2Backbone]) -> None:
    with pytest.raises(ConfigError, match="no backbone 'resnet51vd'"):
        kind("resnet51vd")
    name = "resnet18vd" if kind is ResNetVdBackbone else "hgnetv2_b0"
    with pytest.raises(ConfigError, match="not 0 to 5"):
        kind(name, frozen_stages=6)

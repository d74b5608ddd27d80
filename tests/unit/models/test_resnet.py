"""The ResNet backbone against torchvision's, and its weights."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from detronome.errors import CheckpointError, ConfigError
from detronome.models.backbones.resnet import ResNetBackbone, load_resnet_weights

NAMES = ["resnet18", "resnet50"]


@pytest.mark.parametrize("name", [*NAMES, "resnet34", "resnet101"])
def test_has_torchvisions_parameters(name: str) -> None:
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        expected = {key: value.shape for key, value in models.get_model(name).state_dict().items() if key[:2] != "fc"}
        ours = ResNetBackbone(name, norm="trainable").body.state_dict()
    assert {key: value.shape for key, value in ours.items()} == expected


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("norm", ["frozen", "trainable"])
@torch.no_grad()
def test_equals_torchvision(name: str, norm: str) -> None:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    reference = models.get_model(name).eval()
    _randomize(reference)
    backbone = ResNetBackbone(name, norm=norm).eval()
    state = {key: value for key, value in reference.state_dict().items() if not key.startswith("fc.")}
    backbone.body.load_state_dict(state)
    x = images = torch.randn(1, 3, 64, 96)
    for module in (reference.conv1, reference.bn1, reference.relu, reference.maxpool):
        x = module(x)
    for stage, ours in zip((1, 2, 3, 4), backbone(images), strict=True):
        x = getattr(reference, f"layer{stage}")(x)
        torch.testing.assert_close(ours, x, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_dilation_equals_torchvision() -> None:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    reference = models.resnet50(replace_stride_with_dilation=[False, False, True]).eval()
    _randomize(reference)
    backbone = ResNetBackbone("resnet50", dilation=True).eval()
    backbone.body.load_state_dict(reference.state_dict(), strict=False)
    x = images = torch.randn(1, 3, 64, 64)
    for module in list(reference.children())[:-2]:
        x = module(x)
    assert x.shape[-2:] == (4, 4)
    torch.testing.assert_close(backbone(images)[-1], x, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dilation", [True, False])
@torch.no_grad()
def test_shapes_and_strides(name: str, dilation: bool) -> None:
    backbone = ResNetBackbone(name, dilation=dilation)
    strides = (4, 8, 16, 16 if dilation else 32)
    for channels, stride, features in zip(
        backbone.out_channels, strides, backbone(torch.randn(2, 3, 64, 96)), strict=True
    ):
        assert features.shape == (2, channels, 64 // stride, 96 // stride)
        assert features.is_contiguous(memory_format=torch.channels_last)


def test_the_memory_layout_changes_no_number_but_by_rounding() -> None:
    images, outputs = torch.randn(2, 3, 64, 96), []
    for channels_last in (True, False):
        torch.manual_seed(0)
        backbone = ResNetBackbone("resnet18", channels_last=channels_last)
        assert backbone.body.get_parameter("layer2.0.conv1.weight").is_contiguous() != channels_last
        layout = torch.channels_last if channels_last else torch.contiguous_format
        features = backbone(images.contiguous(memory_format=layout))[-1]
        assert features.is_contiguous(memory_format=layout)
        outputs.append(features)
    torch.testing.assert_close(*outputs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("frozen_stages", range(6))
def test_frozen_stages_counts_from_the_image(frozen_stages: int) -> None:
    backbone = ResNetBackbone("resnet18", norm="trainable", frozen_stages=frozen_stages).train()
    parts = [("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",)]
    for i, names in enumerate(parts):
        for name in names:
            module = backbone.body.get_submodule(name)
            assert all(p.requires_grad == (i >= frozen_stages) for p in module.parameters())
            norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
            assert all(m.training == (i >= frozen_stages) for m in norms)


def test_frozen_norm_has_no_parameters_and_folds_without_changing_the_gradient() -> None:
    torch.manual_seed(0)
    folded = ResNetBackbone("resnet18", frozen_stages=0)
    separate = ResNetBackbone("resnet18", norm="trainable", frozen_stages=0)
    _randomize(separate)
    folded.body.load_state_dict(separate.body.state_dict())
    images = torch.randn(1, 3, 64, 64)
    for backbone in (folded, separate.eval()):
        backbone(images)[-1].square().mean().backward()
    expected = {name: p.grad for name, p in separate.named_parameters() if p.ndim == 4}
    actual = {name: p.grad for name, p in folded.named_parameters()}
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, atol=1e-5, rtol=1e-3)


def test_bfloat16_autocast_keeps_bfloat16() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(
            features.dtype == torch.bfloat16 for features in ResNetBackbone("resnet18")(torch.randn(1, 3, 64, 64))
        )


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'resnet50'"):
        ResNetBackbone("resnet-50")


def test_frozen_stages_out_of_range() -> None:
    with pytest.raises(ConfigError, match="not 0 to 5"):
        ResNetBackbone("resnet18", frozen_stages=6)


class TestWeights:
    @pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
    def test_from_a_file_with_a_classifier(self, tmp_path: Path, suffix: str) -> None:
        source = ResNetBackbone("resnet18", norm="trainable")
        state = {key: value.contiguous() for key, value in source.body.state_dict().items()}
        state |= {"fc.weight": torch.zeros(10, 512), "fc.bias": torch.zeros(10)}
        path = tmp_path / f"weights{suffix}"
        save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
        backbone = ResNetBackbone("resnet18")
        load_resnet_weights(backbone, "resnet18", str(path))
        torch.testing.assert_close(backbone.body.conv1.weight, source.body.conv1.weight)

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"does not exist[\s\S]*nowhere.pth[\s\S]*backbone_weights"):
            load_resnet_weights(ResNetBackbone("resnet18"), "resnet18", str(tmp_path / "nowhere.pth"))

    def test_damaged_file(self, tmp_path: Path) -> None:
        path = tmp_path / "damaged.pth"
        path.write_bytes(b"not a checkpoint")
        with pytest.raises(CheckpointError, match="cannot be read"):
            load_resnet_weights(ResNetBackbone("resnet18"), "resnet18", str(path))

    def test_a_pickle_that_is_no_state_dict(self, tmp_path: Path) -> None:
        path = tmp_path / "nested.pth"
        torch.save({"model": {}, "epoch": 1}, path)
        with pytest.raises(CheckpointError, match="not a plain state dict"):
            load_resnet_weights(ResNetBackbone("resnet18"), "resnet18", str(path))

    def test_of_another_network(self, tmp_path: Path) -> None:
        path = tmp_path / "r18.pth"
        torch.save(ResNetBackbone("resnet18").body.state_dict(), path)
        with pytest.raises(CheckpointError, match="not weights for resnet34") as error:
            load_resnet_weights(ResNetBackbone("resnet34"), "resnet34", str(path))
        assert len(error.value.problems) == 5

    def test_without_a_network(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))

        def refuse(*_: object, **__: object) -> None:
            raise URLError("no route to host")

        monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
        with pytest.raises(CheckpointError, match=r"no route to host[\s\S]*download.pytorch.org[\s\S]*weights=none"):
            load_resnet_weights(ResNetBackbone("resnet18"), "resnet18", "imagenet")

    def test_none_leaves_the_backbone_alone(self) -> None:
        backbone = ResNetBackbone("resnet18")
        before = backbone.body.conv1.weight.clone()
        load_resnet_weights(backbone, "resnet18", "none")
        assert torch.equal(backbone.body.conv1.weight, before)


@torch.no_grad()
def _randomize(module: nn.Module) -> None:
    """Give BatchNorms values that a mistake would show."""
    for norm in (m for m in module.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.weight.uniform_(0.3, 0.9)
        norm.bias.normal_(0, 0.1)
        norm.running_mean.normal_(0, 0.1)
        norm.running_var.uniform_(0.5, 2.0)

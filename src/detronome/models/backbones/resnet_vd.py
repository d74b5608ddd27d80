"""ResNet-vd (arXiv 1812.01187): three small convolutions as stem, and average pooling in the strided shortcuts.

Parameter names are those of RT-DETR's authors, so that their backbones and detectors load.

Shape letters: `B` batch, `C D` channels, `H W` and `h w` height and width.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from detronome.errors import ConfigError, nearest_name_hint
from detronome.models.backbones.pretrained import download_weights, fill_backbone, read_weights
from detronome.models.layers.activation_checkpointing import CheckpointedSequential, checkpointed
from detronome.models.layers.conv_norm import ConvNorm
from detronome.models.layers.frozen_batch_norm import FrozenBatchNorm2d

__all__ = ["ResNetVdBackbone", "load_resnet_vd_weights"]

_BLOCKS: dict[str, tuple[int, int, int, int]] = {
    "resnet18vd": (2, 2, 2, 2),
    "resnet34vd": (3, 4, 6, 3),
    "resnet50vd": (3, 4, 6, 3),
    "resnet101vd": (3, 4, 23, 3),
}
_BOTTLENECK = ("resnet50vd", "resnet101vd")
_WIDTHS = (64, 128, 256, 512)

_RELEASE = "https://github.com/lyuwenyu/storage/releases/download/v0.1/"
_URLS: dict[str, str] = {
    "resnet18vd": _RELEASE + "ResNet18_vd_pretrained_from_paddle.pth",
    "resnet34vd": _RELEASE + "ResNet34_vd_pretrained_from_paddle.pth",
    "resnet50vd": _RELEASE + "ResNet50_vd_ssld_v2_pretrained_from_paddle.pth",
    "resnet101vd": _RELEASE + "ResNet101_vd_ssld_pretrained_from_paddle.pth",
}
"""ImageNet weights as RT-DETR's authors publish them."""


class ResNetVdBackbone(nn.Module):
    """The convolutional part of a ResNet-vd, giving the maps of strides 8, 16 and 32.

    Args:
        name: resnet18vd, resnet34vd, resnet50vd or resnet101vd.
        norm: `frozen` uses fixed scale and shift; `trainable`, BatchNorm.
        frozen_stages: parts that stay fixed, from the image on: 0 none, 1 the stem, 2 stem and first stage, ... 5 all.
            BatchNorm in them uses its running statistics in training too.
        channels_last: keep the weights in the memory layout in which convolutions of channels-last images are fastest.
        checkpoint_activations: compute stem and stages again in backward instead of keeping what they compute.

    Raises:
        ConfigError: the name is unknown or `frozen_stages` is not 0 to 5.
    """

    strides = (8, 16, 32)
    """Of the returned maps, in pixels."""

    def __init__(
        self,
        name: str = "resnet50vd",
        *,
        norm: Literal["frozen", "trainable"] = "frozen",
        frozen_stages: int = 1,
        channels_last: bool = True,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        if name not in _BLOCKS:
            raise ConfigError(
                f"there is no backbone {name!r}", where="model.backbone", fix=nearest_name_hint(name, list(_BLOCKS))
            )
        if not 0 <= frozen_stages <= 5:
            raise ConfigError(
                f"frozen_stages is {frozen_stages}, which is not 0 to 5",
                where="model.frozen_stages",
                fix="use 0 to train everything, 1 to fix the stem",
            )
        self.checkpoint_activations = checkpoint_activations
        self.frozen_stages = frozen_stages
        norm_type: type[nn.Module] = FrozenBatchNorm2d if norm == "frozen" else nn.BatchNorm2d
        block = _Bottleneck if name in _BOTTLENECK else _BasicBlock
        self.conv1 = nn.Sequential(
            OrderedDict(
                conv1_1=ConvNorm(3, 32, 3, stride=2, activation="relu", norm=norm_type),
                conv1_2=ConvNorm(32, 32, 3, activation="relu", norm=norm_type),
                conv1_3=ConvNorm(32, 64, 3, activation="relu", norm=norm_type),
            )
        )
        channels = 64
        stages = []
        for index, (width, depth) in enumerate(zip(_WIDTHS, _BLOCKS[name], strict=True)):
            first = block(channels, width, stride=1 if index == 0 else 2, is_first=True, norm=norm_type)
            channels = width * block.expansion
            others = [block(channels, width, stride=1, is_first=False, norm=norm_type) for _ in range(depth - 1)]
            stages.append(_Stage(first, *others, checkpoint_activations=checkpoint_activations))
        self.res_layers = nn.ModuleList(stages)
        self.out_channels = tuple(width * block.expansion for width in _WIDTHS[1:])
        """Channels of each returned map."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if channels_last:
            self.to(memory_format=torch.channels_last)
        for part in self._frozen_parts():
            part.requires_grad_(False)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, "B _ _ _"], ...]:
        """Return the maps of strides 8, 16 and 32; sides that no stride divides are rounded up."""
        x = checkpointed(self._stem, images, enabled=self.checkpoint_activations, norms_in=[self.conv1])
        maps = []
        for stage in self.res_layers:
            x = stage(x)
            maps.append(x)
        return tuple(maps[1:])

    def train(self, mode: bool = True) -> ResNetVdBackbone:
        super().train(mode)
        for part in self._frozen_parts():
            part.eval()
        return self

    def _stem(self, x: Tensor) -> Tensor:
        return F.max_pool2d(self.conv1(x), kernel_size=3, stride=2, padding=1)

    def _frozen_parts(self) -> list[nn.Module]:
        return [self.conv1, *self.res_layers][: self.frozen_stages]


class _Stage(nn.Module):
    """Blocks that follow each other, under the authors' names."""

    def __init__(self, *blocks: nn.Module, checkpoint_activations: bool) -> None:
        super().__init__()
        self.blocks = CheckpointedSequential(*blocks, checkpoint_activations=checkpoint_activations)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class _Block(nn.Module):
    """A residual block: convolutions named branch2a, branch2b, ... beside a shortcut, which only a first block has."""

    expansion: int
    branches: tuple[str, ...]
    short: nn.Module

    def __init__(self, in_channels: int, width: int, *, stride: int, is_first: bool, norm: type[nn.Module]) -> None:
        super().__init__()
        self._add_branches(in_channels, width, stride, norm)
        self.short = nn.Identity()
        if is_first:
            shortcut = ConvNorm(in_channels, width * self.expansion, 1, norm=norm)
            pool = nn.AvgPool2d(2, 2, ceil_mode=True)
            self.short = shortcut if stride == 1 else nn.Sequential(OrderedDict(pool=pool, conv=shortcut))

    def _add_branches(self, in_channels: int, width: int, stride: int, norm: type[nn.Module]) -> None:
        raise NotImplementedError

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        shortcut = self.short(x)
        for branch in self.branches[:-1]:
            x = getattr(self, branch)(x)
        added: Tensor = getattr(self, self.branches[-1])(x, shortcut)
        return added


class _BasicBlock(_Block):
    expansion = 1
    branches = ("branch2a", "branch2b")

    def _add_branches(self, in_channels: int, width: int, stride: int, norm: type[nn.Module]) -> None:
        self.branch2a = ConvNorm(in_channels, width, 3, stride=stride, activation="relu", norm=norm)
        self.branch2b = ConvNorm(width, width, 3, activation="relu", norm=norm)


class _Bottleneck(_Block):
    expansion = 4
    branches = ("branch2a", "branch2b", "branch2c")

    def _add_branches(self, in_channels: int, width: int, stride: int, norm: type[nn.Module]) -> None:
        self.branch2a = ConvNorm(in_channels, width, 1, activation="relu", norm=norm)
        self.branch2b = ConvNorm(width, width, 3, stride=stride, activation="relu", norm=norm)
        self.branch2c = ConvNorm(width, width * self.expansion, 1, activation="relu", norm=norm)


def load_resnet_vd_weights(backbone: ResNetVdBackbone, name: str, weights: str) -> None:
    """Fill a backbone with trained weights.

    Args:
        backbone: changed in place.
        name: which ResNet-vd the weights are for.
        weights: `imagenet` (as RT-DETR's authors publish them; downloaded once), `none` (nothing is done), or a file
            with a state dict under their names, .pth or .safetensors.

    Raises:
        CheckpointError: the weights cannot be had, cannot be read safely, or belong to another network.
    """
    if weights == "none":
        return
    state = _download(name) if weights == "imagenet" else read_weights(Path(weights))
    fill_backbone(backbone, state, name=name, where=weights)


def _download(name: str) -> dict[str, Tensor]:
    url = _URLS[name]
    return download_weights(
        lambda: torch.hub.load_state_dict_from_url(url, map_location="cpu", progress=False, weights_only=True),
        name=name,
        url=url,
    )

"""ResNet (arXiv 1512.03385) under torchvision's parameter names, with the last stage dilated on request (DC5).

Shape letters: `B` batch, `C` channels, `H W` height and width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from detronome.errors import ConfigError, nearest_name_hint
from detronome.models.backbones.pretrained import download_weights, fill_backbone, read_weights
from detronome.models.layers.activation_checkpointing import CheckpointedSequential, checkpointed
from detronome.models.layers.conv_norm import conv_norm
from detronome.models.layers.frozen_batch_norm import FrozenBatchNorm2d

__all__ = ["ResNetBackbone", "load_resnet_weights"]

_BLOCKS: dict[str, tuple[int, int, int, int]] = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
}
_BOTTLENECK = ("resnet50", "resnet101")


class ResNetBackbone(nn.Module):
    """The convolutional part of a ResNet, giving the feature map of each stage.

    Args:
        name: resnet18, resnet34, resnet50 or resnet101.
        dilation: dilate the last stage instead of striding it: its map has stride 16, not 32, and the same weights.
        norm: `frozen` uses fixed scale and shift; `trainable`, BatchNorm.
        frozen_stages: parts that stay fixed, from the image on: 0 none, 1 the stem, 2 stem and layer1, ... 5 all.
            BatchNorm in them uses its running statistics in training too.
        channels_last: keep the weights in the memory layout in which convolutions of channels-last images are fastest.
        checkpoint_activations: compute stem and stages again in backward instead of keeping what they compute.

    Raises:
        ConfigError: the name is unknown or `frozen_stages` is not 0 to 5.
    """

    def __init__(
        self,
        name: str = "resnet50",
        *,
        dilation: bool = False,
        norm: Literal["frozen", "trainable"] = "frozen",
        frozen_stages: int = 2,
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
                fix="use 2 to fix the stem and layer1 as the reference does, 0 to train everything",
            )
        self.body = _Body(
            name,
            dilation=dilation,
            norm=FrozenBatchNorm2d if norm == "frozen" else nn.BatchNorm2d,
            checkpoint_activations=checkpoint_activations,
        )
        if channels_last:
            self.body.to(memory_format=torch.channels_last)
        self.out_channels = tuple(width * (4 if name in _BOTTLENECK else 1) for width in (64, 128, 256, 512))
        """Channels of each returned map."""
        self.frozen_stages = frozen_stages
        for part in self._frozen_parts():
            part.requires_grad_(False)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, "B _ _ _"], ...]:
        """Return the maps after layer1 to layer4, of strides 4, 8, 16 and 32 (16 if dilated)."""
        return self.body(images)

    def train(self, mode: bool = True) -> ResNetBackbone:
        super().train(mode)
        for part in self._frozen_parts():
            part.eval()
        return self

    def _frozen_parts(self) -> list[nn.Module]:
        body = self.body
        parts: list[list[nn.Module]] = [[body.conv1, body.bn1], *([stage] for stage in body.stages())]
        return [module for part in parts[: self.frozen_stages] for module in part]


class _Body(nn.Module):
    def __init__(self, name: str, *, dilation: bool, norm: type[nn.Module], checkpoint_activations: bool) -> None:
        super().__init__()
        self.checkpoint_activations = checkpoint_activations
        block = _Bottleneck if name in _BOTTLENECK else _BasicBlock
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = norm(64)
        channels = 64
        for stage, (width, depth) in enumerate(zip((64, 128, 256, 512), _BLOCKS[name], strict=True)):
            stride, spread = (1 if stage == 0 else 2), 1
            if dilation and stage == 3:
                stride, spread = 1, 2
            blocks: list[nn.Module] = []
            for index in range(depth):
                # The first block of a dilated stage still sees undilated input, as in torchvision.
                blocks.append(
                    block(
                        channels,
                        width,
                        stride=stride if index == 0 else 1,
                        dilation=1 if index == 0 else spread,
                        norm=norm,
                    )
                )
                channels = width * block.expansion
            self.add_module(
                f"layer{stage + 1}", CheckpointedSequential(*blocks, checkpoint_activations=checkpoint_activations)
            )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def stages(self) -> list[nn.Module]:
        return [self.get_submodule(f"layer{stage}") for stage in (1, 2, 3, 4)]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = checkpointed(self._stem, x, enabled=self.checkpoint_activations, norms_in=[self.bn1])
        maps = []
        for stage in self.stages():
            x = stage(x)
            maps.append(x)
        return tuple(maps)

    def _stem(self, x: Tensor) -> Tensor:
        x = conv_norm(x, self.conv1, self.bn1, "relu")
        return F.max_pool2d(x, kernel_size=3, stride=2, padding=1)


def _shortcut(in_channels: int, out_channels: int, stride: int, norm: type[nn.Module]) -> nn.Sequential | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), norm(out_channels))


class _Block(nn.Module):
    """A residual block: `num_convs` convolutions named conv1, bn1, conv2, ... beside a shortcut."""

    expansion: int
    num_convs: int
    downsample: nn.Sequential | None

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        if self.downsample is not None:
            conv, norm = self.downsample
            shortcut = conv_norm(x, conv, norm)
        for index in range(1, self.num_convs + 1):
            added = shortcut if index == self.num_convs else None
            x = conv_norm(x, getattr(self, f"conv{index}"), getattr(self, f"bn{index}"), "relu", added)
        return x


class _BasicBlock(_Block):
    expansion = 1
    num_convs = 2

    def __init__(self, in_channels: int, width: int, *, stride: int, dilation: int, norm: type[nn.Module]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = norm(width)
        self.downsample = _shortcut(in_channels, width, stride, norm)


class _Bottleneck(_Block):
    expansion = 4
    num_convs = 3

    def __init__(self, in_channels: int, width: int, *, stride: int, dilation: int, norm: type[nn.Module]) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = norm(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = norm(out_channels)
        self.downsample = _shortcut(in_channels, out_channels, stride, norm)


def load_resnet_weights(backbone: ResNetBackbone, name: str, weights: str) -> None:
    """Fill a backbone with trained weights.

    Args:
        backbone: changed in place.
        name: which ResNet the weights are for.
        weights: `imagenet` (torchvision's first version, the reference's; downloaded once), `none` (nothing is done),
            or a file with a torchvision state dict, .pth or .safetensors. The classifier in it is ignored.

    Raises:
        CheckpointError: the weights cannot be had, cannot be read safely, or belong to another network.
    """
    if weights == "none":
        return
    state = _download(name) if weights == "imagenet" else read_weights(Path(weights))
    fill_backbone(backbone.body, state, name=name, where=weights)


def _download(name: str) -> dict[str, Tensor]:
    from torchvision.models import get_model_weights

    entry = get_model_weights(name)["IMAGENET1K_V1"]
    return download_weights(
        lambda: entry.get_state_dict(progress=False, check_hash=True), name=name, url=str(entry.url)
    )

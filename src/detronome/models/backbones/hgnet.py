"""HGNetv2, PaddlePaddle's convolutional backbone: a block keeps all its layers' outputs and squeezes them at its end.

RT-DETR and D-FINE use it; parameter names are those of D-FINE's authors, so that their backbones and detectors load.

Shape letters: `B` batch, `C D` channels, `H W` and `h w` height and width.
"""

from __future__ import annotations

from dataclasses import dataclass
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

__all__ = ["HGNetV2Backbone", "load_hgnetv2_weights"]


@dataclass(frozen=True)
class _StagePlan:
    """What one stage is made of."""

    mid_channels: int
    """Of each layer in a block."""
    out_channels: int
    num_blocks: int
    num_layers: int
    """Of each block."""
    is_light: bool
    """Layers are a 1x1 and a depthwise convolution instead of one convolution."""
    kernel_size: int


@dataclass(frozen=True)
class _Plan:
    stem: tuple[int, int]
    """Channels within the stem, and after it."""
    stages: tuple[_StagePlan, _StagePlan, _StagePlan, _StagePlan]
    """Of strides 4, 8, 16 and 32."""


def _plan(
    stem: tuple[int, int], *, mid: tuple[int, ...], out: tuple[int, ...], blocks: tuple[int, ...], layers: int
) -> _Plan:
    """Return a network whose two coarser stages are light, with large kernels, as they all are."""
    first, second, third, fourth = (
        _StagePlan(mid[i], out[i], blocks[i], layers, is_light=i >= 2, kernel_size=5 if i >= 2 else 3) for i in range(4)
    )
    return _Plan(stem, (first, second, third, fourth))


_PLANS: dict[str, _Plan] = {
    "hgnetv2_b0": _plan((16, 16), mid=(16, 32, 64, 128), out=(64, 256, 512, 1024), blocks=(1, 1, 2, 1), layers=3),
    "hgnetv2_b1": _plan((24, 32), mid=(32, 48, 96, 192), out=(64, 256, 512, 1024), blocks=(1, 1, 2, 1), layers=3),
    "hgnetv2_b2": _plan((24, 32), mid=(32, 64, 128, 256), out=(96, 384, 768, 1536), blocks=(1, 1, 3, 1), layers=4),
    "hgnetv2_b3": _plan((24, 32), mid=(32, 64, 128, 256), out=(128, 512, 1024, 2048), blocks=(1, 1, 3, 1), layers=5),
    "hgnetv2_b4": _plan((32, 48), mid=(48, 96, 192, 384), out=(128, 512, 1024, 2048), blocks=(1, 1, 3, 1), layers=6),
    "hgnetv2_b5": _plan((32, 64), mid=(64, 128, 256, 512), out=(128, 512, 1024, 2048), blocks=(1, 2, 5, 2), layers=6),
    "hgnetv2_b6": _plan((48, 96), mid=(96, 192, 384, 768), out=(192, 512, 1024, 2048), blocks=(2, 3, 6, 3), layers=6),
}
"""By name. RT-DETR-L has b4, -X b5; D-FINE-N and -S b0, -M b2, -L b4, -X b5."""

_RELEASE = "https://github.com/Peterande/storage/releases/download/dfinev1.0/"


class HGNetV2Backbone(nn.Module):
    """The convolutional part of an HGNetv2, giving the maps of the coarsest stages.

    Args:
        name: hgnetv2_b0 ... hgnetv2_b6.
        norm: `frozen` uses fixed scale and shift; `trainable`, BatchNorm.
        frozen_stages: parts that stay fixed, from the image on: 0 none, 1 the stem, 2 stem and first stage, ... 5 all.
        num_maps: maps returned: 3 are those of strides 8, 16 and 32.
        has_affine: scale and shift by a learned number after each activation (D-FINE-N, -S and -M).
        channels_last: keep the weights in the memory layout in which convolutions of channels-last images are fastest.
        checkpoint_activations: compute stem and stages again in backward instead of keeping what they compute.

    Raises:
        ConfigError: the name is unknown or `frozen_stages` is not 0 to 5.
    """

    def __init__(
        self,
        name: str,
        *,
        norm: Literal["frozen", "trainable"] = "frozen",
        frozen_stages: int = 1,
        num_maps: int = 3,
        has_affine: bool = False,
        channels_last: bool = True,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        if name not in _PLANS:
            raise ConfigError(
                f"there is no backbone {name!r}", where="model.backbone", fix=nearest_name_hint(name, list(_PLANS))
            )
        if not 0 <= frozen_stages <= 5:
            raise ConfigError(
                f"frozen_stages is {frozen_stages}, which is not 0 to 5",
                where="model.frozen_stages",
                fix="use 0 to train everything, 1 to fix the stem",
            )
        plan = _PLANS[name]
        make = _Maker(FrozenBatchNorm2d if norm == "frozen" else nn.BatchNorm2d, has_affine)
        self.num_maps = num_maps
        self.frozen_stages = frozen_stages
        self.checkpoint_activations = checkpoint_activations
        self.stem = _Stem(make, *plan.stem)
        channels = plan.stem[1]
        stages = []
        for index, stage in enumerate(plan.stages):
            stages.append(_Stage(make, channels, stage, has_downsample=index > 0, checkpoint=checkpoint_activations))
            channels = stage.out_channels
        self.stages = nn.ModuleList(stages)
        self.out_channels = tuple(stage.out_channels for stage in plan.stages[-num_maps:])
        """Channels of each returned map."""
        self.strides = (4, 8, 16, 32)[-num_maps:]
        """Of the returned maps, in pixels."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if channels_last:
            self.to(memory_format=torch.channels_last)
        for part in self._frozen_parts():
            part.requires_grad_(False)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, "B _ _ _"], ...]:
        """Return the maps, finest first; sides that no stride divides are rounded up."""
        x = checkpointed(self.stem, images, enabled=self.checkpoint_activations, norms_in=[self.stem])
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return tuple(maps[-self.num_maps :])

    def train(self, mode: bool = True) -> HGNetV2Backbone:
        super().train(mode)
        for part in self._frozen_parts():
            part.eval()
        return self

    def _frozen_parts(self) -> list[nn.Module]:
        return [self.stem, *self.stages][: self.frozen_stages]


@dataclass(frozen=True)
class _Maker:
    """Makes the convolutions of one network."""

    norm: type[nn.Module]
    has_affine: bool

    def conv(self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, groups: int = 1) -> _Conv:
        return _Conv(in_channels, out_channels, kernel_size, stride, groups, self.norm, _Affine(self.has_affine))

    def linear_conv(
        self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, groups: int = 1
    ) -> _Conv:
        """Make one without activation."""
        return _Conv(in_channels, out_channels, kernel_size, stride, groups, self.norm, None)


class _Conv(nn.Module):
    """Convolution, norm, and, with an affine part, ReLU and that part."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        groups: int,
        norm: type[nn.Module],
        affine: _Affine | None,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, (kernel_size - 1) // 2, groups=groups, bias=False
        )
        self.bn = norm(out_channels)
        self.lab = affine

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        x = conv_norm(x, self.conv, self.bn, "none" if self.lab is None else "relu")
        return x if self.lab is None else self.lab(x)


class _Affine(nn.Module):
    """One learned scale and one shift for the whole map, or nothing."""

    def __init__(self, is_learned: bool) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1)) if is_learned else None
        self.bias = nn.Parameter(torch.zeros(1)) if is_learned else None

    def forward(self, x: Tensor) -> Tensor:
        return x if self.scale is None or self.bias is None else self.scale * x + self.bias


class _Stem(nn.Module):
    """To stride 4, through a branch of two 2x2 convolutions beside a pool."""

    def __init__(self, make: _Maker, width: int, out_channels: int) -> None:
        super().__init__()
        self.stem1 = make.conv(3, width, 3, stride=2)
        self.stem2a = make.conv(width, width // 2, 2)
        self.stem2b = make.conv(width // 2, width, 2)
        self.stem3 = make.conv(2 * width, width, 3, stride=2)
        self.stem4 = make.conv(width, out_channels, 1)

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D h w"]:
        # A 2x2 kernel shrinks the map by one: it is padded right and bottom before each.
        x = F.pad(self.stem1(x), (0, 1, 0, 1))
        branch = self.stem2b(F.pad(self.stem2a(x), (0, 1, 0, 1)))
        pooled = F.max_pool2d(x, kernel_size=2, stride=1, ceil_mode=True)
        return self.stem4(self.stem3(torch.cat((pooled, branch), dim=1)))


class _Stage(nn.Module):
    def __init__(
        self, make: _Maker, in_channels: int, stage: _StagePlan, *, has_downsample: bool, checkpoint: bool
    ) -> None:
        super().__init__()
        self.downsample: nn.Module = nn.Identity()
        if has_downsample:
            self.downsample = make.linear_conv(in_channels, in_channels, 3, stride=2, groups=in_channels)
        self.blocks = CheckpointedSequential(
            _Block(make, in_channels, stage, is_residual=False),
            *(_Block(make, stage.out_channels, stage, is_residual=True) for _ in range(stage.num_blocks - 1)),
            checkpoint_activations=checkpoint,
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.downsample(x))


class _Block(nn.Module):
    """Layers in a row; input and all their outputs are squeezed together."""

    def __init__(self, make: _Maker, in_channels: int, stage: _StagePlan, *, is_residual: bool) -> None:
        super().__init__()
        self.is_residual = is_residual
        mid, out = stage.mid_channels, stage.out_channels
        layers: list[nn.Module] = []
        for index in range(stage.num_layers):
            channels = in_channels if index == 0 else mid
            light = _LightConv(make, channels, mid, stage.kernel_size) if stage.is_light else None
            layers.append(light or make.conv(channels, mid, stage.kernel_size))
        self.layers = nn.ModuleList(layers)
        total = in_channels + stage.num_layers * mid
        self.aggregation = nn.Sequential(make.conv(total, out // 2, 1), make.conv(out // 2, out, 1))

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D H W"]:
        outputs = [x]
        for layer in self.layers:
            outputs.append(layer(outputs[-1]))
        squeezed = self.aggregation(torch.cat(outputs, dim=1))
        return squeezed + x if self.is_residual else squeezed


class _LightConv(nn.Module):
    """A 1x1 convolution without activation, then a depthwise one."""

    def __init__(self, make: _Maker, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.conv1 = make.linear_conv(in_channels, out_channels, 1)
        self.conv2 = make.conv(out_channels, out_channels, kernel_size, groups=out_channels)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D H W"]:
        return self.conv2(self.conv1(x))


def load_hgnetv2_weights(backbone: HGNetV2Backbone, name: str, weights: str) -> None:
    """Fill a backbone with trained weights.

    Args:
        backbone: changed in place; what it has beyond the file (affine parts) keeps its values.
        name: which HGNetv2 the weights are for.
        weights: `imagenet` (as D-FINE's authors publish them; downloaded once), `none` (nothing is done), or a file
            with a state dict under their names, .pth or .safetensors.

    Raises:
        CheckpointError: the weights cannot be had, cannot be read safely, or belong to another network.
    """
    if weights == "none":
        return
    state = _download(name) if weights == "imagenet" else read_weights(Path(weights))
    own = {key: value for key, value in backbone.state_dict().items() if ".lab." in key and key not in state}
    fill_backbone(backbone, own | state, name=name, where=weights)


def _download(name: str) -> dict[str, Tensor]:
    url = f"{_RELEASE}PPHGNetV2_{name.removeprefix('hgnetv2_').upper()}_stage1.pth"
    return download_weights(
        lambda: torch.hub.load_state_dict_from_url(url, map_location="cpu", progress=False, weights_only=True),
        name=name,
        url=url,
    )

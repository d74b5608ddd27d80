"""Any convolutional or hierarchical network of timm (huggingface.co/docs/timm) as a backbone: `timm:NAME`.

Shape letters: `B` batch, `H W` height and width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from detronome.errors import CheckpointError, ConfigError, MissingExtraError
from detronome.models.backbones.pretrained import read_weights
from detronome.models.layers.activation_checkpointing import checkpointed

__all__ = ["STRIDES", "TimmBackbone"]

STRIDES = (8, 16, 32)
"""Of the returned maps, in pixels, where nothing is dilated."""
_WHERE = "model.backbone"
_OTHER = "name a convolutional network, e.g. timm:convnext_tiny"
_PROBE_HW = (96, 160)
"""Multiples of all strides, and no square: networks for one size of images refuse it."""


class TimmBackbone(nn.Module):
    """A network of timm, giving the maps of strides 8, 16 and 32.

    Args:
        name: as timm calls it, e.g. `convnext_tiny` or, with a set of weights, `resnet50.a1_in1k`.
        weights: `imagenet` (those of the name, downloaded by timm once), `none` (random), or a file with a state dict
            of timm, .pth or .safetensors.
        dilation: dilate the last stage instead of striding it, where timm can: its map has stride 16, not 32.
        norm: `frozen` keeps what BatchNorm layers have learnt as it is; other norms always learn.
        frozen_stages: parts that stay fixed, from the image on: 0 none, 1 what is of stride 2, 2 also of stride 4,
            ... 5 all.
        channels_last: keep the weights in the memory layout in which convolutions of channels-last images are fastest.
        checkpoint_activations: compute the whole network again in backward instead of keeping what it computes.

    Raises:
        ConfigError: there is no such network, it does not give these maps at every image size, or cannot be dilated.
        CheckpointError: the weights cannot be had or belong to another network.
        MissingExtraError: timm is not installed.
    """

    def __init__(
        self,
        name: str,
        *,
        weights: str = "imagenet",
        dilation: bool = False,
        norm: Literal["frozen", "trainable"] = "frozen",
        frozen_stages: int = 2,
        channels_last: bool = True,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= frozen_stages <= 5:
            raise ConfigError(
                f"frozen_stages is {frozen_stages}, which is not 0 to 5",
                where="model.frozen_stages",
                fix="use 0 to train everything, 2 to fix what is of stride 2 and 4",
            )
        timm = _timm()
        _check_name(timm, name)
        published = timm.get_pretrained_cfg(name)
        self.mean: tuple[float, float, float] = tuple(published.mean)
        """Of the RGB values 0-1 that the network was trained on."""
        self.std: tuple[float, float, float] = tuple(published.std)
        self.checkpoint_activations = checkpoint_activations
        levels = _levels(timm, name)
        self.body = _network(
            timm, name, weights, [level.index for level in levels if level.stride in STRIDES], dilation
        )
        self.out_channels: tuple[int, ...] = tuple(self.body.feature_info.channels())
        """Channels of each returned map."""
        self._check_maps(name, (*STRIDES[:-1], STRIDES[-2]) if dilation else STRIDES)
        if channels_last:
            self.body.to(memory_format=torch.channels_last)
        self._fixed = _first_modules(self.body, levels, frozen_stages, name)
        if norm == "frozen":
            self._fixed += [module for module in self.body.modules() if isinstance(module, _BatchNorm)]
        for module in self._fixed:
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, "B _ _ _"], ...]:
        """Return the maps of strides 8, 16 and 32 (16 if dilated)."""
        return tuple(checkpointed(self.body, images, enabled=self.checkpoint_activations, norms_in=[self.body]))

    def train(self, mode: bool = True) -> TimmBackbone:
        super().train(mode)
        for module in self._fixed:
            module.training = False
        return self

    @torch.no_grad()
    def _check_maps(self, name: str, strides: Sequence[int]) -> None:
        """Refuse networks that are for one size of images, or whose maps do not lie on the strides' grid."""
        height, width = _PROBE_HW
        weight = next(self.body.parameters())
        wanted = [
            (1, channels, height // stride, width // stride)
            for channels, stride in zip(self.out_channels, strides, strict=True)
        ]
        self.body.eval()
        try:
            given = [tuple(maps.shape) for maps in self.body(weight.new_zeros(1, 3, height, width))]
        except (AssertionError, RuntimeError) as error:
            raise ConfigError(
                f"timm's {name} does not take images of every size: {error}", where=_WHERE, fix=_OTHER
            ) from error
        finally:
            self.body.train()
        if given != wanted:
            raise ConfigError(
                f"timm's {name} gives maps of {given} for an image of {height}x{width}, not of {wanted}",
                where=_WHERE,
                fix=_OTHER,
            )


@dataclass(frozen=True, kw_only=True)
class _Level:
    """A map that a network can give."""

    index: int
    stride: int
    module: str
    """The last module before it, in the network as a whole."""


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise MissingExtraError("timm", extra="timm", needed_for=f"{_WHERE} = timm:NAME") from error
    return timm


def _check_name(timm: Any, name: str) -> None:
    known = timm.list_pretrained() if "." in name else timm.list_models()
    if name not in known:
        near = get_close_matches(name, known, n=1)
        fix = f"did you mean timm:{near[0]}?" if near else "timm.list_models() lists them"
        raise ConfigError(f"timm has no network {name!r}", where=_WHERE, fix=fix)


def _levels(timm: Any, name: str) -> list[_Level]:
    """Return all maps that a network gives, undilated; nothing is allocated."""
    try:
        with torch.device("meta"):
            info = timm.create_model(name, features_only=True).feature_info
    except (AttributeError, AssertionError, RuntimeError, TypeError) as error:
        raise ConfigError(f"timm's {name} gives no feature maps: {error}", where=_WHERE, fix=_OTHER) from error
    levels = [
        _Level(index=index, stride=level["reduction"], module=level["module"])
        for index, level in zip(info.out_indices, info.get_dicts(), strict=True)
    ]
    strides = [level.stride for level in levels]
    if [stride for stride in strides if stride in STRIDES] != list(STRIDES):
        raise ConfigError(
            f"timm's {name} gives maps of stride {', '.join(map(str, strides))}, not one each of 8, 16 and 32",
            where=_WHERE,
            fix=_OTHER,
        )
    return levels


def _network(timm: Any, name: str, weights: str, indices: list[int], dilation: bool) -> Any:
    """Return the network with its weights."""
    asked: dict[str, Any] = {"features_only": True, "out_indices": indices}
    if dilation:
        asked["output_stride"] = STRIDES[-2]
    if weights == "none":
        return _created(timm, name, asked)
    if weights != "imagenet":
        state = read_weights(Path(weights))
        asked["pretrained_cfg_overlay"] = {"state_dict": state, "custom_load": False}
    try:
        return _created(timm, name, {**asked, "pretrained": True})
    except ConfigError:
        raise
    except Exception as error:  # timm and the hub have no family of errors
        where = (
            weights if weights != "imagenet" else f"https://huggingface.co/{timm.get_pretrained_cfg(name).hf_hub_id}"
        )
        raise CheckpointError(
            f"the weights of timm's {name} cannot be used: {error}",
            where=where,
            fix="give a file with its state dict: `--set model.backbone_weights=FILE`; or start from random weights: "
            "`--set model.backbone_weights=none model.backbone_norm=trainable model.frozen_stages=0`",
        ) from error


def _created(timm: Any, name: str, asked: Mapping[str, Any]) -> Any:
    try:
        return timm.create_model(name, **asked)
    except (AssertionError, NotImplementedError, TypeError) as error:
        if "output_stride" not in asked:
            raise
        raise ConfigError(
            f"timm cannot dilate {name}",
            where="model.dilation",
            fix="leave it out, or name a network that can be, e.g. timm:resnet50d or timm:convnext_tiny",
        ) from error


def _first_modules(body: nn.Module, levels: Sequence[_Level], count: int, name: str) -> list[nn.Module]:
    """Return the modules of the first parts, in the order in which timm registers and uses them."""
    modules = list(body.named_modules())
    last = [level.module for level in levels if level.stride <= 2**count][-1:]
    if count == len(STRIDES) + 2:
        return [module for _, module in modules]
    if count == 0 or not last:
        return []
    # In a network that is rebuilt for its maps, `stages.0` is called `stages_0`.
    names = {last[0], last[0].replace(".", "_")}
    ends = [i for i, (key, _) in enumerate(modules) if any(key == n or key.startswith(f"{n}.") for n in names)]
    if not ends:
        raise ConfigError(
            f"the parts of timm's {name} cannot be told apart",
            where="model.frozen_stages",
            fix="use 0 to train everything or 5 to fix everything",
        )
    return [module for key, module in modules[: ends[-1] + 1] if key]

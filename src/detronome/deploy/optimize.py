"""A trained detector made faster for prediction: the same network, in a form that can be neither trained nor saved."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor, nn

from detronome.engine.compilation import compile_detectors
from detronome.models.backbones.timm_backbone import TimmBackbone
from detronome.models.detector import Detector
from detronome.models.layers.attention import MultiHeadAttention
from detronome.models.layers.conv_norm import folded
from detronome.models.layers.frozen_batch_norm import FrozenBatchNorm2d
from detronome.models.layers.packed import PackedAttention, PackedConv2d, PackedLinear
from detronome.models.panoptic.mask_head import MaskHead
from detronome.models.rtdetr.encoder import FusingEncoder
from detronome.ops import onednn
from detronome.runtime.precision import Precision, autocast, dtype_of
from detronome.types import ModelOutput, Target

__all__ = ["OptimizedDetector", "merged", "optimized"]

_HEADS = ("class_embed", "bbox_embed", "score_head", "bbox_head", "lqe_layers")
"""Ends of the names of what gives logits and boxes: little work, and bfloat16 would place an edge to a pixel only."""


class OptimizedDetector(Detector):
    """A network for prediction alone, in eval mode for good.

    Args:
        network: see `optimized`.
        precision: what it computes in; its heads keep float32.
        device: where it is.
    """

    def __init__(self, network: Detector, *, precision: Precision, device: torch.device) -> None:
        super().__init__()
        self.network = network
        self.activation = network.activation  # type: ignore[misc]
        self.num_queries = network.num_queries
        self.precision: Precision = precision
        self._device = device

    def train(self, mode: bool = True) -> OptimizedDetector:
        assert not mode, "an optimised detector cannot be trained"
        super().train(mode)
        return self

    def parts_to_compile(self) -> list[nn.Module]:
        return []

    @torch.no_grad()
    def forward(
        self,
        images: UInt8[Tensor, "B 3 H W"],
        padding_mask: Bool[Tensor, "B H W"],
        targets: Sequence[Target] | None = None,
    ) -> ModelOutput:
        """Detect objects.

        Args:
            images: RGB, 0-255.
            padding_mask: True on padding.
            targets: not used.
        """
        # Of its own precision alone: a predictor may be in that of the run.
        with torch.autocast(self._device.type, enabled=False), autocast(self.precision, self._device):
            output: ModelOutput = self.network(images, padding_mask)
        return output


def optimized(
    detector: Detector,
    *,
    precision: Precision = "fp32",
    compiled: bool = False,
    on_failure: Callable[[str], None] = warnings.warn,
) -> OptimizedDetector:
    """Return a copy of a detector that predicts the same, faster. The detector itself stays as it is.

    Norms are folded into the convolutions before them, RepVGG branches merged, weights cast once; on a CPU all
    convolutions and linear layers get oneDNN's own layout, with activations and shortcuts applied in place (see
    `ops.onednn`). In fp32 the result differs by rounding (1e-5). In bf16 and fp16 it is that of autocast.

    Args:
        detector: of any family, on its device; its weights are copied.
        precision: of backbone and transformer.
        compiled: use torch.compile, in place of oneDNN's layouts. The first images of each kind take minutes on a CPU.
        on_failure: is told, once, why torch.compile cannot do it, which shows with the first images; the copy then runs
            uncompiled.
    """
    device = next(detector.parameters()).device
    network = merged(detector)
    with torch.no_grad():
        _cast(network, dtype_of(precision))
        if compiled:
            compile_detectors([network], on_failure=on_failure)
        elif device.type == "cpu" and onednn.is_available(dtype_of(precision)):
            _pack(network)
    return OptimizedDetector(network, precision=precision, device=device).eval()


def merged(detector: Detector) -> Detector:
    """Return a copy for prediction alone, with norms folded into convolutions and RepVGG branches merged: plain torch,
    which can be exported too.

    Args:
        detector: of any family, on its device.
    """
    network = copy.deepcopy(detector).eval().requires_grad_(False)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, FusingEncoder):
                module.fuse()
        _fold_norms(network)
    return network


def _fold_norms(part: nn.Module) -> None:
    """Fold each norm into the convolution that its module has just before it; in this project one follows the other."""
    if isinstance(part, TimmBackbone):
        return  # there it need not
    children = list(part.named_children())
    for (_, conv), (name, norm) in pairwise(children):
        if isinstance(conv, nn.Conv2d) and type(norm) in (nn.BatchNorm2d, FrozenBatchNorm2d):
            weight, bias = folded(conv, norm)
            conv.weight, conv.bias = nn.Parameter(weight, requires_grad=False), nn.Parameter(bias, requires_grad=False)
            setattr(part, name, nn.Identity())
    for _, child in children:
        _fold_norms(child)


def _cast(part: nn.Module, dtype: torch.dtype) -> None:
    """Cast what autocast would cast anew for each batch."""
    if isinstance(part, TimmBackbone):
        return  # some compute their weights from others
    if isinstance(part, nn.Conv2d | nn.Linear | MultiHeadAttention):
        for parameter in part.parameters():
            parameter.data = parameter.data.to(dtype)
        return
    for name, child in part.named_children():
        if not name.endswith(_HEADS):
            _cast(child, dtype)


def _pack(part: nn.Module) -> None:
    """Put packed layers in place of convolutions, linear layers and attentions."""
    if isinstance(part, TimmBackbone | MaskHead):
        return  # these look into their layers' weights
    for name, child in part.named_children():
        if isinstance(child, MultiHeadAttention):
            setattr(part, name, PackedAttention(child))
        elif isinstance(child, nn.Linear):
            setattr(part, name, PackedLinear(child.weight, child.bias))
        elif isinstance(child, nn.Conv2d):
            setattr(part, name, PackedConv2d(child))
        else:
            _pack(child)

"""DETR with masks: a detector, and the two parts that make a mask for each query, under the reference's names.

Shape letters: `B` batch, `H W` padded image height and width, `Q` queries, `N` heads, `M` chosen queries of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn

from detronome.models.backbones.resnet import ResNetBackbone
from detronome.models.detector import Detector
from detronome.models.detr.model import DETR, DetrStates
from detronome.models.panoptic.mask_head import BoxAttention, MaskHead
from detronome.types import ModelOutput, Target

__all__ = ["PanopticDETR"]


class PanopticDETR(Detector):
    """Predicts a class, a box and a mask for each query of a DETR (arXiv 2005.12872, section 5).

    Args:
        detr: the detector, trained before or trained along; its hidden dimension is a multiple of 128, its heads of 8.
    """

    activation = "softmax"

    def __init__(self, detr: DETR) -> None:
        super().__init__()
        self.detr = detr
        self.num_queries = detr.num_queries
        self.bbox_attention = BoxAttention(detr.hidden_dim, detr.num_heads)
        backbone = detr.backbone[0]
        assert isinstance(backbone, ResNetBackbone)
        self.mask_head = MaskHead(detr.hidden_dim, detr.num_heads, backbone.out_channels[:3])

    def forward(
        self,
        images: UInt8[Tensor, "B 3 H W"],
        padding_mask: Bool[Tensor, "B H W"],
        targets: Sequence[Target] | None = None,
    ) -> ModelOutput:
        """Detect objects and stuff.

        Args:
            images: RGB, 0-255.
            padding_mask: True on padding.
            targets: not used.

        Returns:
            What `DETR` returns, and `masks` beside it.
        """
        *maps, last_map = self.detr.feature_maps(images, padding_mask)
        output, states = self.detr.detect(last_map, padding_mask)
        attention = self.bbox_attention(states.decoded, states.memory, states.padding_mask)
        return replace(
            output, masks=_Masks(self.mask_head, states, attention, maps, (images.shape[2], images.shape[3]))
        )

    def parts_to_compile(self) -> list[nn.Module]:
        return self.detr.parts_to_compile()


class _Masks:
    """The masks of a batch, computed as the model was: under the same autocast."""

    def __init__(
        self,
        head: MaskHead,
        states: DetrStates,
        attention: Float[Tensor, "B Q N _ _"],
        maps: Sequence[Tensor],
        padded_size_hw: tuple[int, int],
    ) -> None:
        self.padded_size_hw = padded_size_hw
        self._head = head
        self._projected = states.projected
        self._attention = attention
        self._maps = maps
        device_type = attention.device.type
        self._autocast = torch.autocast(
            device_type,
            dtype=torch.get_autocast_dtype(device_type),
            enabled=torch.is_autocast_enabled(device_type),
        )

    def of(self, image_index: Int64[Tensor, " M"], query_index: Int64[Tensor, " M"]) -> Float[Tensor, "M _ _"]:
        with self._autocast:
            chosen = self._attention[image_index, query_index]
            masks: Tensor = self._head(self._projected, chosen, self._maps, image_index)
        return masks

    def all(self) -> Float[Tensor, "B Q _ _"]:
        batch_size, num_queries = self._attention.shape[:2]
        every = torch.arange(batch_size * num_queries, device=self._attention.device)
        return self.of(every // num_queries, every % num_queries).unflatten(0, (batch_size, num_queries))

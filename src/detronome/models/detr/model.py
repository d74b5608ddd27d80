"""Classic DETR: a backbone, a transformer and two heads, with the reference's state-dict keys (arXiv 2005.12872).

Shape letters: `B` batch, `H W` padded image height and width, `h w` those of the last feature map, `Q` queries,
`D` hidden dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from detronome.models.backbones.resnet import ResNetBackbone
from detronome.models.backbones.timm_backbone import TimmBackbone
from detronome.models.detector import Detector
from detronome.models.detr.transformer import Transformer
from detronome.models.layers.image_normalizer import IMAGENET_MEAN, IMAGENET_STD, ImageNormalizer
from detronome.models.layers.mlp import MLP
from detronome.models.layers.position_encoding import SinePositionEncoding
from detronome.types import ModelOutput, Target

__all__ = ["DETR", "DetrStates"]


@dataclass(frozen=True, kw_only=True)
class DetrStates:
    """What DETR has computed on the way to its predictions, for heads that build on it."""

    projected: Float[Tensor, "B D h w"]
    """The feature map as the encoder was given it."""
    padding_mask: Bool[Tensor, "B h w"]
    """True on the feature map's padding."""
    memory: Float[Tensor, "B D h w"]
    """The encoder's output."""
    decoded: Float[Tensor, "B Q D"]
    """The last decoder layer's output."""


class DETR(Detector):
    """Predicts a class and a box for each of a fixed number of learned queries.

    Args:
        backbone: gives the feature maps; the last one is used.
        num_classes: classes without no-object, which becomes one more logit, the last. 91 for official COCO weights.
        hidden_dim: width of the transformer's tokens, a multiple of 4 and of `num_heads`.
        num_heads: heads of each attention.
        ffn_dim: width inside the feed-forward blocks.
        num_encoder_layers: encoder depth.
        num_decoder_layers: decoder depth.
        num_queries: the most objects that can be found in an image.
        dropout: probability, in the transformer.
        pre_norm: normalise before each block of the transformer instead of after.
        image_mean: of the RGB values 0-1 that the backbone was trained on.
        image_std: likewise.
        channels_last: memory layout of the images; the backbone has its own setting.
        checkpoint_transformer: compute each layer again in backward instead of keeping what it computes.
    """

    activation = "softmax"

    def __init__(
        self,
        backbone: ResNetBackbone | TimmBackbone,
        *,
        num_classes: int,
        hidden_dim: int = 256,
        num_heads: int = 8,
        ffn_dim: int = 2048,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        num_queries: int = 100,
        dropout: float = 0.1,
        pre_norm: bool = False,
        image_mean: Sequence[float] = IMAGENET_MEAN,
        image_std: Sequence[float] = IMAGENET_STD,
        channels_last: bool = True,
        checkpoint_transformer: bool = False,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_queries = num_queries
        self.hidden_dim = hidden_dim
        self.num_heads = num_heads
        self.normalizer = ImageNormalizer(mean=image_mean, std=image_std, channels_last=channels_last)
        self.backbone = nn.ModuleList([backbone, SinePositionEncoding(hidden_dim)])
        self.input_proj = nn.Conv2d(backbone.out_channels[-1], hidden_dim, kernel_size=1)
        self.transformer = Transformer(
            hidden_dim=hidden_dim,
            num_heads=num_heads,
            ffn_dim=ffn_dim,
            num_encoder_layers=num_encoder_layers,
            num_decoder_layers=num_decoder_layers,
            dropout=dropout,
            pre_norm=pre_norm,
            checkpoint_activations=checkpoint_transformer,
        )
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.class_embed = nn.Linear(hidden_dim, num_classes + 1)
        self.bbox_embed = MLP(hidden_dim, hidden_dim, hidden_dim, 4)

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
            targets: not used; families that train on noised truth boxes read them.

        Returns:
            float32 logits and boxes, under autocast too; `aux_outputs` holds the earlier decoder layers in training
            and is empty in evaluation, without `all_layers`.
        """
        return self.detect(self.feature_maps(images, padding_mask)[-1], padding_mask)[0]

    def feature_maps(
        self, images: UInt8[Tensor, "B 3 H W"], padding_mask: Bool[Tensor, "B H W"]
    ) -> tuple[Float[Tensor, "B _ _ _"], ...]:
        """Return the backbone's maps of strides 4, 8, 16 and 32 (16 if dilated)."""
        maps: tuple[Tensor, ...] = self.backbone[0](self.normalizer(images, padding_mask))
        return maps

    def detect(
        self, feature_map: Float[Tensor, "B _ h w"], padding_mask: Bool[Tensor, "B H W"]
    ) -> tuple[ModelOutput, DetrStates]:
        """Return what `forward` does, given the backbone's last map, and what was computed on the way."""
        mask = _shrink(padding_mask, (feature_map.shape[-2], feature_map.shape[-1]))
        projected = self.input_proj(feature_map)
        tokens = projected.flatten(2).transpose(1, 2)
        decoded, memory = self.transformer(
            tokens,
            mask.flatten(1),
            self.backbone[1](mask).flatten(1, 2).to(tokens.dtype),
            self.query_embed.weight,
            all_layers=self.training or self.all_layers,
        )
        logits, boxes = self._heads(decoded)
        *earlier, last = (
            ModelOutput(pred_logits=layer_logits, pred_boxes=layer_boxes)
            for layer_logits, layer_boxes in zip(logits.unbind(0), boxes.unbind(0), strict=True)
        )
        output = ModelOutput(pred_logits=last.pred_logits, pred_boxes=last.pred_boxes, aux_outputs=tuple(earlier))
        return output, DetrStates(
            projected=projected,
            padding_mask=mask,
            memory=memory.transpose(1, 2).unflatten(2, mask.shape[1:]),
            decoded=decoded[-1],
        )

    def parts_to_compile(self) -> list[nn.Module]:
        return [self.backbone[0], *self.transformer.encoder.layers, *self.transformer.decoder.layers]

    def _heads(self, decoded: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the heads to all decoder layers at once, without autocast: they are small, and bfloat16 would place a
        box's edge only to about a pixel."""
        with torch.autocast(decoded.device.type, enabled=False):
            decoded = decoded.to(self.query_embed.weight.dtype)
            return self.class_embed(decoded).float(), self.bbox_embed(decoded).float().sigmoid()


def _shrink(padding_mask: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Sample the mask at the nearest pixel for each cell of a feature map."""
    return F.interpolate(padding_mask[:, None].float(), size=size_hw)[:, 0].bool()

"""The decoder of the fast family: self-attention, deformable cross-attention, box refinement layer by layer.

Shape letters: `B` batch, `Q` queries (denoising ones first), `D` hidden dimension, `C` classes, `h w` feature map.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from detronome.models.layers.activation_checkpointing import checkpointed
from detronome.models.layers.mlp import MLP
from detronome.ops.deformable import deformable_sample

__all__ = ["Decoder", "DecoderLayer", "DeformableAttention", "LayerPrediction"]


@dataclass(frozen=True)
class LayerPrediction:
    """What one decoder layer says."""

    logits: Float[Tensor, "B Q C"]
    boxes_cxcywh: Float[Tensor, "B Q 4"]


class DeformableAttention(nn.Module):
    """Attention to a few learned points around a reference box (arXiv 2010.04159) on one feature level."""

    def __init__(self, *, hidden_dim: int, num_heads: int, num_points: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.num_points = num_points
        self.sampling_offsets = nn.Linear(hidden_dim, num_heads * num_points * 2)
        self.attention_weights = nn.Linear(hidden_dim, num_heads * num_points)
        self.value_proj = nn.Conv2d(hidden_dim, hidden_dim, 1)
        self.output_proj = nn.Linear(hidden_dim, hidden_dim)
        self._spread_heads()

    def _spread_heads(self) -> None:
        """Start with each head looking in its own direction, each point one step further."""
        angle = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        direction = torch.stack((angle.cos(), angle.sin()), dim=-1)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.num_points + 1)
        nn.init.zeros_(self.sampling_offsets.weight)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_((direction[:, None] * steps[None, :, None]).flatten())

    def forward(
        self,
        query: Float[Tensor, "B Q D"],
        reference_boxes: Float[Tensor, "B Q 4"],
        feature_map: Float[Tensor, "B D h w"],
    ) -> Float[Tensor, "B Q D"]:
        """Attend.

        Args:
            query: content plus position.
            reference_boxes: cxcywh, 0-1 of the padded map; offsets are in units of half the box.
            feature_map: what is read.
        """
        batch, num_queries, _ = query.shape
        split = (batch, num_queries, self.num_heads, self.num_points)
        offsets = self.sampling_offsets(query).view(*split, 2).transpose(1, 2)
        weights = self.attention_weights(query).view(split).softmax(-1).transpose(1, 2)
        centre = reference_boxes[:, None, :, None, :2]
        half_size = reference_boxes[:, None, :, None, 2:] * 0.5
        locations = centre + offsets / self.num_points * half_size
        value = self.value_proj(feature_map)
        value = value.view(batch, self.num_heads, -1, *value.shape[-2:])
        sampled = deformable_sample([value], locations, weights, [self.num_points])
        return self.output_proj(sampled)


class DecoderLayer(nn.Module):
    """Self-attention among queries, deformable attention to the image, feed-forward; post-norm."""

    def __init__(self, *, hidden_dim: int, num_heads: int, num_points: int, ffn_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query_key = nn.Linear(hidden_dim, 2 * hidden_dim)
        self.value = nn.Linear(hidden_dim, hidden_dim)
        self.out_proj = nn.Linear(hidden_dim, hidden_dim)
        self.cross_attn = DeformableAttention(hidden_dim=hidden_dim, num_heads=num_heads, num_points=num_points)
        self.linear1 = nn.Linear(hidden_dim, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, hidden_dim)
        self.norm1 = nn.LayerNorm(hidden_dim)
        self.norm2 = nn.LayerNorm(hidden_dim)
        self.norm3 = nn.LayerNorm(hidden_dim)

    def forward(
        self,
        content: Float[Tensor, "B Q D"],
        position: Float[Tensor, "B Q D"],
        reference_boxes: Float[Tensor, "B Q 4"],
        feature_map: Float[Tensor, "B D h w"],
        attention_mask: Bool[Tensor, "B Q Q"] | None,
    ) -> Float[Tensor, "B Q D"]:
        content = self.norm1(content + self._self_attention(content, position, attention_mask))
        content = self.norm2(content + self.cross_attn(content + position, reference_boxes, feature_map))
        return self.norm3(content + self.linear2(F.relu(self.linear1(content))))

    def _self_attention(self, content: Tensor, position: Tensor, attention_mask: Tensor | None) -> Tensor:
        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

        query, key = self.query_key(content + position).chunk(2, dim=-1)
        allowed = None if attention_mask is None else ~attention_mask.unsqueeze(1)
        attended = F.scaled_dot_product_attention(heads(query), heads(key), heads(self.value(content)), allowed)
        return self.out_proj(attended.transpose(1, 2).flatten(-2))


class Decoder(nn.Module):
    """Decoder layers, each with its own heads, each refining the box of the one before.

    With `checkpoint_activations`, each layer is computed again in backward instead of keeping what it computes.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        hidden_dim: int,
        num_heads: int,
        num_points: int,
        ffn_dim: int,
        num_layers: int,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        self.checkpoint_activations = checkpoint_activations
        self.query_position = MLP(4, hidden_dim, hidden_dim)
        self.layers = nn.ModuleList(
            DecoderLayer(hidden_dim=hidden_dim, num_heads=num_heads, num_points=num_points, ffn_dim=ffn_dim)
            for _ in range(num_layers)
        )
        self.class_embed = nn.ModuleList(nn.Linear(hidden_dim, num_classes) for _ in range(num_layers))
        self.bbox_embed = nn.ModuleList(MLP(hidden_dim, hidden_dim, hidden_dim, 4) for _ in range(num_layers))

    def forward(
        self,
        content: Float[Tensor, "B Q D"],
        reference_boxes: Float[Tensor, "B Q 4"],
        feature_map: Float[Tensor, "B D h w"],
        valid_ratio: Float[Tensor, "B 2"],
        attention_mask: Bool[Tensor, "B Q Q"] | None = None,
    ) -> list[LayerPrediction]:
        """Return the predictions of every layer.

        Args:
            content: queries.
            reference_boxes: where they start, cxcywh, 0-1 of the unpadded image.
            feature_map: the image's features.
            valid_ratio: unpadded part of width and height, turns image units into map units.
            attention_mask: True where self-attention is forbidden.
        """
        to_map = valid_ratio.repeat(1, 2).unsqueeze(1)
        predictions = []
        for layer, class_embed, bbox_embed in zip(self.layers, self.class_embed, self.bbox_embed, strict=True):
            position = self.query_position(reference_boxes)
            content = checkpointed(
                layer,
                content,
                position,
                reference_boxes * to_map,
                feature_map,
                attention_mask,
                enabled=self.checkpoint_activations,
            )
            boxes = (bbox_embed(content) + reference_boxes.logit(eps=1e-5)).sigmoid()
            predictions.append(LayerPrediction(class_embed(content), boxes))
            # The next layer starts from this box but does not train it: each layer learns its own step.
            reference_boxes = boxes.detach()
        return predictions

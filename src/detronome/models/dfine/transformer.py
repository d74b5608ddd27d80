"""D-FINE's decoder: each layer refines where the edges of a box may lie (arXiv 2410.13842, 4.1).

The first layer's box is the reference. Each of its edges has a distribution over shifts, which the layers refine by
adding to its logits; a box is the reference with the expected shifts. Boxes are cxcywh, 0-1 of the padded image, all
through this file. Parameter names are the authors'.

Shape letters: `B` batch, `N` cells of all maps, `Q` queries (denoising ones first), `D` hidden dimension, `C` classes,
`S` shifts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from detronome.models.layers.attention import MultiHeadAttention
from detronome.models.layers.deformable_attention import MultiScaleDeformableAttention
from detronome.models.layers.mlp import MLP
from detronome.models.rtdetr.transformer import DecoderLayers, Memory, Prediction, TwoStageDecoder, start_heads
from detronome.ops.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from detronome.ops.deformable import Sampling
from detronome.types import EdgeDistributions

__all__ = ["FineDecoder", "FineDecoderLayer"]

_NUM_SHIFTS = 33
_UP = 0.5
"""The largest shift but one, in parts of the reference box."""
_TOP_PROBABILITIES = 4
"""Of each edge, from which a box's quality is estimated."""
_QUALITY_DIM = 64
_POSITION_LIMIT = 10.0


class FineDecoder(TwoStageDecoder):
    """Refines distributions over the shifts of edges, each layer with heads of its own.

    Args:
        in_channels: see `TwoStageDecoder`, as for the others that are there.
        num_classes: classes.
        hidden_dim: channels of the queries.
        num_heads: attention heads.
        num_points: points of a head on each map.
        sampling: how maps are read between their cells.
        ffn_dim: width of the feed-forward blocks.
        num_layers: decoder layers.
        reg_scale: the larger, the finer are small shifts beside large ones.
        has_denoising: there are denoising queries in training.
        checkpoint_activations: whether to.
    """

    up: Tensor
    reg_scale: Tensor

    def __init__(
        self,
        in_channels: Sequence[int],
        *,
        num_classes: int,
        hidden_dim: int = 256,
        num_heads: int = 8,
        num_points: Sequence[int] = (3, 6, 3),
        sampling: Sampling = "default",
        ffn_dim: int = 1024,
        num_layers: int = 6,
        reg_scale: float = 4.0,
        has_denoising: bool = True,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__(
            in_channels,
            num_classes=num_classes,
            hidden_dim=hidden_dim,
            has_denoising=has_denoising,
            projects_all=False,
            checkpoint_activations=checkpoint_activations,
        )
        # In the state dict: published weights differ in them, and mean nothing without.
        self.register_buffer("up", torch.tensor([_UP]))
        self.register_buffer("reg_scale", torch.tensor([reg_scale]))
        self.decoder: _JudgedLayers = _JudgedLayers(
            [
                FineDecoderLayer(hidden_dim, num_heads, num_points=num_points, sampling=sampling, ffn_dim=ffn_dim)
                for _ in range(num_layers)
            ]
        )
        self.pre_bbox_head = MLP(hidden_dim, hidden_dim, hidden_dim, 4)
        self.dec_score_head = nn.ModuleList(nn.Linear(hidden_dim, num_classes) for _ in range(num_layers))
        self.dec_bbox_head = nn.ModuleList(
            MLP(hidden_dim, hidden_dim, hidden_dim, 4 * _NUM_SHIFTS) for _ in range(num_layers)
        )
        start_heads(self.dec_score_head, [self.pre_bbox_head, *self.dec_bbox_head])

    def shifts(self) -> Float[Tensor, " S"]:
        """Return the shifts that an edge can have, in parts of the reference box, outwards positive.

        They lie closer to each other the smaller they are (equation 3); the outermost two are twice `up`.
        """
        scale = self.reg_scale.abs()
        base = (self.up.abs() * scale + 1) ** (2 / (_NUM_SHIFTS - 3))
        outwards = base ** torch.arange(1, _NUM_SHIFTS // 2, device=scale.device) - 1
        outwards = torch.cat((outwards / scale, 2 * self.up.abs()))
        return torch.cat((-outwards.flip(0), torch.zeros_like(scale), outwards))

    def forward(
        self,
        content: Float[Tensor, "B Q D"],
        reference_boxes: Float[Tensor, "B Q 4"],
        memory: Memory,
        attention_mask: Float[Tensor, "#B 1 Q Q"] | None = None,
        *,
        all_layers: bool = False,
    ) -> list[Prediction]:
        """Return predictions; see `TwoStageDecoder.forward`. In training there is one more, before all others: the
        reference boxes with the first layer's logits, without distributions."""
        predictions = []
        shifts = self.shifts()
        boxes = reference_boxes
        last = len(self.dec_score_head) - 1
        for i, layer in enumerate(self.decoder.layers):
            position = self.query_pos_head(boxes).clamp(-_POSITION_LIMIT, _POSITION_LIMIT)
            earlier = content.detach() if i > 0 else torch.zeros_like(content)
            content = self.run_layer(layer, content, position, boxes, memory, attention_mask)
            with torch.autocast(content.device.type, enabled=False):
                features = content.float()
                step = self.dec_bbox_head[i](features + earlier.float()).unflatten(-1, (4, _NUM_SHIFTS))
                if i == 0:
                    first = (self.pre_bbox_head(features) + boxes.float().logit(eps=1e-5)).sigmoid()
                    reference = first.detach()
                    edge_logits = step
                else:
                    edge_logits = edge_logits + step
                trained_boxes = _shifted(reference, edge_logits.softmax(-1) @ shifts)
                if self.training or all_layers or i == last:
                    logits = self.dec_score_head[i](features)
                    if self.training and i == 0:
                        predictions.append(Prediction(logits, first))
                    logits = logits + self.decoder.lqe_layers[i](edge_logits)
                    edges = EdgeDistributions(logits=edge_logits, reference_boxes=reference, shifts=shifts)
                    predictions.append(Prediction(logits, trained_boxes, edges if self.training else None))
            boxes = trained_boxes.detach()
        return predictions


class _JudgedLayers(DecoderLayers):
    """The layers, and what judges their boxes, under the authors' names."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__(layers)
        self.lqe_layers = nn.ModuleList(_LocationQuality() for _ in layers)


class FineDecoderLayer(nn.Module):
    """Self-attention among queries, deformable attention to the maps through a gate, feed-forward; post-norm."""

    def __init__(
        self, hidden_dim: int, num_heads: int, *, num_points: Sequence[int], sampling: Sampling, ffn_dim: int
    ) -> None:
        super().__init__()
        self.self_attn = MultiHeadAttention(hidden_dim, num_heads)
        self.cross_attn = MultiScaleDeformableAttention(
            hidden_dim, num_heads, num_points=num_points, sampling=sampling, has_projections=False
        )
        self.gateway = _Gate(hidden_dim)
        self.linear1 = nn.Linear(hidden_dim, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, hidden_dim)
        self.norm1 = nn.LayerNorm(hidden_dim)
        self.norm3 = nn.LayerNorm(hidden_dim)
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(
        self,
        content: Float[Tensor, "B Q D"],
        position: Float[Tensor, "B Q D"],
        reference_boxes: Float[Tensor, "B Q 4"],
        memory: Float[Tensor, "B N D"],
        spatial_shapes: Sequence[tuple[int, int]],
        attention_mask: Float[Tensor, "#B 1 Q Q"] | None,
    ) -> Float[Tensor, "B Q D"]:
        query = content + position
        content = self.norm1(content + self.self_attn(query, query, content, attention_mask))
        seen = self.cross_attn(content + position, reference_boxes, memory, spatial_shapes)
        content = self.gateway(content, seen)
        return self.norm3(content + self.linear2(F.relu(self.linear1(content))))


class _Gate(nn.Module):
    """Adds two inputs, each weighed by what both are (target gating layer, appendix A.1.1)."""

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        self.gate = nn.Linear(2 * hidden_dim, 2 * hidden_dim)
        self.norm = nn.LayerNorm(hidden_dim)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def forward(self, kept: Float[Tensor, "B Q D"], new: Float[Tensor, "B Q D"]) -> Float[Tensor, "B Q D"]:
        keep, take = self.gate(torch.cat((kept, new), dim=-1)).sigmoid().chunk(2, dim=-1)
        return self.norm(keep * kept + take * new)


class _LocationQuality(nn.Module):
    """Says by how much a box's score should change, from how sharp the distributions of its edges are."""

    def __init__(self) -> None:
        super().__init__()
        self.reg_conf = MLP(4 * (_TOP_PROBABILITIES + 1), _QUALITY_DIM, 1)
        self.reg_conf.start_at_zero()

    def forward(self, edge_logits: Float[Tensor, "B Q 4 S"]) -> Float[Tensor, "B Q 1"]:
        top = edge_logits.softmax(-1).topk(_TOP_PROBABILITIES, dim=-1).values
        return self.reg_conf(torch.cat((top, top.mean(-1, keepdim=True)), dim=-1).flatten(-2))


def _shifted(boxes: Float[Tensor, "B Q 4"], shifts: Float[Tensor, "B Q 4"]) -> Float[Tensor, "B Q 4"]:
    """Return boxes whose edges (left, top, right, bottom) went outwards by parts of the boxes' sizes."""
    outwards = shifts * boxes[..., 2:].repeat(1, 1, 2)
    left_top, right_bottom = outwards.split(2, dim=-1)
    return xyxy_to_cxcywh(cxcywh_to_xyxy(boxes) + torch.cat((-left_top, right_bottom), dim=-1))

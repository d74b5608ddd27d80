"""RT-DETR's decoder: proposals chosen from the encoder's cells, then refined layer by layer (arXiv 2304.08069, 4.3).

Boxes are cxcywh, 0-1 of the padded image, all through this file. Parameter names are the authors'.

Shape letters: `B` batch, `N` cells of all maps, `Q` queries (denoising ones first), `D` hidden dimension, `C` classes.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from detronome.models.layers.activation_checkpointing import checkpointed
from detronome.models.layers.attention import MultiHeadAttention
from detronome.models.layers.deformable_attention import MultiScaleDeformableAttention
from detronome.models.layers.mlp import MLP
from detronome.models.layers.tokens import tokens_of
from detronome.models.rtdetr.encoder import projected
from detronome.ops.deformable import Sampling
from detronome.types import EdgeDistributions

__all__ = ["Decoder", "DecoderLayers", "Memory", "Prediction", "Proposals", "TwoStageDecoder", "start_heads"]

_ANCHOR_SIZE = 0.05
"""Width and height from which a proposal on the finest map starts; twice as large on each coarser one."""
_ANCHOR_MARGIN = 0.01
"""Anchors that come closer than this to 0 or 1 are never proposed."""
_PRIOR_PROBABILITY = 0.01


@dataclass(frozen=True)
class Memory:
    """The encoder's maps as the decoder reads them."""

    tokens: Float[Tensor, "B N D"]
    """Finest map first, row by row."""
    spatial_shapes: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Prediction:
    """What one decoder layer, or the encoder, says."""

    logits: Float[Tensor, "B Q C"]
    boxes: Float[Tensor, "B Q 4"]
    edges: EdgeDistributions | None = None
    """Where the boxes come from, in D-FINE."""


@dataclass(frozen=True)
class Proposals:
    """The best cells of the encoder, as queries and as predictions of their own."""

    content: Float[Tensor, "B Q D"]
    """Detached: the decoder does not train the choice."""
    prediction: Prediction


class TwoStageDecoder(nn.Module):
    """Chooses queries from the maps; what refines them is the subclass's.

    Args:
        in_channels: of each map.
        num_classes: each class has its own sigmoid.
        hidden_dim: channels of the queries.
        has_denoising: there are denoising queries in training.
        projects_all: project maps of `hidden_dim` channels too.
        checkpoint_activations: compute each layer again in backward instead of keeping what it computes.
    """

    decoder: DecoderLayers

    def __init__(
        self,
        in_channels: Sequence[int],
        *,
        num_classes: int,
        hidden_dim: int,
        has_denoising: bool,
        projects_all: bool,
        checkpoint_activations: bool,
    ) -> None:
        super().__init__()
        self.checkpoint_activations = checkpoint_activations
        self.input_proj = nn.ModuleList(
            projected(channels, hidden_dim) if projects_all or channels != hidden_dim else nn.Identity()
            for channels in in_channels
        )
        self.denoising_class_embed: nn.Embedding | None = None
        if has_denoising:
            self.denoising_class_embed = nn.Embedding(num_classes + 1, hidden_dim, padding_idx=num_classes)
        self.query_pos_head = MLP(4, 2 * hidden_dim, hidden_dim)
        self.enc_output = nn.Sequential(
            OrderedDict(proj=nn.Linear(hidden_dim, hidden_dim), norm=nn.LayerNorm(hidden_dim))
        )
        self.enc_score_head = nn.Linear(hidden_dim, num_classes)
        self.enc_bbox_head = MLP(hidden_dim, hidden_dim, hidden_dim, 4)
        start_heads([self.enc_score_head], [self.enc_bbox_head])
        for linear in (self.enc_output[0], *self.query_pos_head.layers):
            nn.init.xavier_uniform_(linear.weight)

    @abstractmethod
    def forward(
        self,
        content: Float[Tensor, "B Q D"],
        reference_boxes: Float[Tensor, "B Q 4"],
        memory: Memory,
        attention_mask: Float[Tensor, "#B 1 Q Q"] | None = None,
        *,
        all_layers: bool = False,
    ) -> list[Prediction]:
        """Return the predictions of all layers in training, of the last one otherwise.

        Args:
            content: queries.
            reference_boxes: where they start.
            memory: what they look at.
            attention_mask: added to the scores of the queries' attention to each other.
            all_layers: return those of all layers in any case.
        """

    def read(self, maps: Sequence[Float[Tensor, "B _ _ _"]]) -> Memory:
        """Return the encoder's maps, projected, as one row of cells."""
        maps = [project(x) for project, x in zip(self.input_proj, maps, strict=True)]
        tokens = torch.cat([tokens_of(x) for x in maps], dim=1)
        return Memory(tokens, tuple((x.shape[-2], x.shape[-1]) for x in maps))

    def propose(self, memory: Memory, num_queries: int) -> Proposals:
        """Return the cells with the best score of any class, at most `num_queries`."""
        anchors, is_valid = _anchors(memory.spatial_shapes, memory.tokens.device)
        tokens = self.enc_output(is_valid * memory.tokens)
        with torch.autocast(tokens.device.type, enabled=False):
            logits = self.enc_score_head(tokens.float())
            best = logits.amax(-1).topk(min(num_queries, tokens.shape[1]), dim=1).indices.unsqueeze(-1)
            content = tokens.float().gather(1, best.expand(-1, -1, tokens.shape[-1]))
            # Only for the chosen cells: the box head costs as much as a decoder layer.
            anchors = anchors.expand(best.shape[0], -1, -1).gather(1, best.expand(-1, -1, 4))
            boxes = (self.enc_bbox_head(content) + anchors).sigmoid()
        chosen_logits = logits.gather(1, best.expand(-1, -1, logits.shape[-1]))
        return Proposals(content.detach(), Prediction(chosen_logits, boxes))

    def run_layer(
        self,
        layer: nn.Module,
        content: Tensor,
        position: Tensor,
        reference_boxes: Tensor,
        memory: Memory,
        attention_mask: Tensor | None,
    ) -> Tensor:
        """Apply one layer, checkpointed if that is asked for."""

        def run(content: Tensor, position: Tensor, boxes: Tensor, tokens: Tensor, mask: Tensor | None) -> Tensor:
            return layer(content, position, boxes, tokens, memory.spatial_shapes, mask)

        return checkpointed(
            run,
            content,
            position,
            reference_boxes,
            memory.tokens,
            attention_mask,
            enabled=self.checkpoint_activations,
        )


class Decoder(TwoStageDecoder):
    """Moves boxes step by step, each layer with heads of its own.

    Args:
        in_channels: see `TwoStageDecoder`, as for the others that are there.
        num_classes: classes.
        hidden_dim: channels of the queries.
        num_heads: attention heads.
        num_points: points of a head on each map.
        sampling: how maps are read between their cells.
        ffn_dim: width of the feed-forward blocks.
        num_layers: decoder layers.
        has_denoising: there are denoising queries in training.
        checkpoint_activations: whether to.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        *,
        num_classes: int,
        hidden_dim: int = 256,
        num_heads: int = 8,
        num_points: Sequence[int] = (4, 4, 4),
        sampling: Sampling = "default",
        ffn_dim: int = 1024,
        num_layers: int = 6,
        has_denoising: bool = True,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__(
            in_channels,
            num_classes=num_classes,
            hidden_dim=hidden_dim,
            has_denoising=has_denoising,
            projects_all=True,
            checkpoint_activations=checkpoint_activations,
        )
        self.decoder = DecoderLayers(
            [
                DecoderLayer(hidden_dim, num_heads, num_points=num_points, sampling=sampling, ffn_dim=ffn_dim)
                for _ in range(num_layers)
            ]
        )
        self.dec_score_head = nn.ModuleList(nn.Linear(hidden_dim, num_classes) for _ in range(num_layers))
        self.dec_bbox_head = nn.ModuleList(MLP(hidden_dim, hidden_dim, hidden_dim, 4) for _ in range(num_layers))
        start_heads(self.dec_score_head, self.dec_bbox_head)

    def forward(
        self,
        content: Float[Tensor, "B Q D"],
        reference_boxes: Float[Tensor, "B Q 4"],
        memory: Memory,
        attention_mask: Float[Tensor, "#B 1 Q Q"] | None = None,
        *,
        all_layers: bool = False,
    ) -> list[Prediction]:
        """Return predictions; see `TwoStageDecoder.forward`."""
        predictions = []
        trained_boxes = reference_boxes
        last = len(self.dec_score_head) - 1
        for i, layer in enumerate(self.decoder.layers):
            position = self.query_pos_head(reference_boxes)
            content = self.run_layer(layer, content, position, reference_boxes, memory, attention_mask)
            with torch.autocast(content.device.type, enabled=False):
                step = self.dec_bbox_head[i](content.float())
                if self.training or all_layers or i == last:
                    predictions.append(Prediction(self.dec_score_head[i](content.float()), _moved(trained_boxes, step)))
                # The next layer looks at where this one ended but does not train it. Its box does train this step, and
                # none before ("look forward twice", arXiv 2203.03605).
                trained_boxes = _moved(reference_boxes, step)
                reference_boxes = trained_boxes.detach()
        return predictions


def _moved(boxes: Float[Tensor, "B Q 4"], step: Float[Tensor, "B Q 4"]) -> Float[Tensor, "B Q 4"]:
    return (boxes.float().logit(eps=1e-5) + step).sigmoid()


def start_heads(score_heads: Iterable[nn.Module], box_heads: Iterable[nn.Module]) -> None:
    """Let heads say at first that hardly anything is there, and that boxes stay where they are."""
    for score_head in score_heads:
        assert isinstance(score_head, nn.Linear)
        nn.init.constant_(score_head.bias, -math.log((1 - _PRIOR_PROBABILITY) / _PRIOR_PROBABILITY))
    for box_head in box_heads:
        assert isinstance(box_head, MLP)
        box_head.start_at_zero()


class DecoderLayers(nn.Module):
    """The layers under the authors' names."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


class DecoderLayer(nn.Module):
    """Self-attention among queries, deformable attention to the maps, feed-forward; post-norm."""

    def __init__(
        self, hidden_dim: int, num_heads: int, *, num_points: Sequence[int], sampling: Sampling, ffn_dim: int
    ) -> None:
        super().__init__()
        self.self_attn = MultiHeadAttention(hidden_dim, num_heads)
        self.cross_attn = MultiScaleDeformableAttention(hidden_dim, num_heads, num_points=num_points, sampling=sampling)
        self.linear1 = nn.Linear(hidden_dim, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, hidden_dim)
        self.norm1 = nn.LayerNorm(hidden_dim)
        self.norm2 = nn.LayerNorm(hidden_dim)
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
        content = self.norm2(content + self.cross_attn(content + position, reference_boxes, memory, spatial_shapes))
        return self.norm3(content + self.linear2(F.relu(self.linear1(content))))


def _anchors(
    spatial_shapes: Sequence[tuple[int, int]], device: torch.device
) -> tuple[Float[Tensor, "1 N 4"], Bool[Tensor, "1 N 1"]]:
    """Return a start box for each cell, as logits, and where it may be used."""
    levels = []
    for level, (height, width) in enumerate(spatial_shapes):
        y = (torch.arange(height, device=device) + 0.5) / height
        x = (torch.arange(width, device=device) + 0.5) / width
        centre = torch.stack((x.expand(height, -1), y.unsqueeze(-1).expand(-1, width)), dim=-1).flatten(0, 1)
        levels.append(torch.cat((centre, torch.full_like(centre, _ANCHOR_SIZE * 2**level)), dim=-1))
    anchors = torch.cat(levels).unsqueeze(0)
    is_valid = ((anchors > _ANCHOR_MARGIN) & (anchors < 1 - _ANCHOR_MARGIN)).all(-1, keepdim=True)
    # An unusable cell that is chosen all the same stays at (1, 1, 1, 1), without a gradient towards its box.
    return anchors.logit().masked_fill(~is_valid, torch.finfo(torch.float32).max), is_valid

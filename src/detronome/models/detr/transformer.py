"""DETR's transformer: an encoder over the feature map and a decoder over learned queries (arXiv 2005.12872, A.3).

Batch first throughout. Shape letters: `B` batch, `S` cells of the feature map, `Q` queries, `D` hidden dimension,
`L` decoder layers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from detronome.models.layers.activation_checkpointing import checkpointed
from detronome.models.layers.attention import MultiHeadAttention, additive_mask
from detronome.models.layers.dropout import Dropout

__all__ = ["Transformer"]


class Transformer(nn.Module):
    """Encoder and decoder with the reference's parameter names.

    Args:
        hidden_dim: width of every token.
        num_heads: heads of each attention.
        ffn_dim: width inside the feed-forward blocks.
        num_encoder_layers: encoder depth, 0 or more.
        num_decoder_layers: decoder depth.
        dropout: probability, in attention weights and in each block.
        pre_norm: normalise before each block instead of after its sum.
        checkpoint_activations: compute each layer again in backward instead of keeping what it computes.
    """

    def __init__(
        self,
        *,
        hidden_dim: int = 256,
        num_heads: int = 8,
        ffn_dim: int = 2048,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        dropout: float = 0.1,
        pre_norm: bool = False,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = _Encoder(
            [_EncoderLayer(hidden_dim, num_heads, ffn_dim, dropout, pre_norm) for _ in range(num_encoder_layers)],
            norm=nn.LayerNorm(hidden_dim) if pre_norm else None,
            checkpoint_activations=checkpoint_activations,
        )
        self.decoder = _Decoder(
            [_DecoderLayer(hidden_dim, num_heads, ffn_dim, dropout, pre_norm) for _ in range(num_decoder_layers)],
            norm=nn.LayerNorm(hidden_dim),
            checkpoint_activations=checkpoint_activations,
        )
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(
        self,
        features: Float[Tensor, "B S D"],
        padding_mask: Bool[Tensor, "B S"],
        positions: Float[Tensor, "B S D"],
        queries: Float[Tensor, "Q D"],
        *,
        all_layers: bool = True,
    ) -> tuple[Float[Tensor, "L B Q D"], Float[Tensor, "B S D"]]:
        """Return the normalised output of the decoder layers, first to last, and the memory.

        Args:
            features: the feature map's cells.
            padding_mask: True on padding; those cells are never attended to.
            positions: added to queries and keys of the encoder and to keys of the decoder.
            queries: the learned query embeddings.
            all_layers: False returns the last decoder layer alone (`L` = 1).
        """
        mask = additive_mask(padding_mask)
        memory = self.encoder(features, positions, mask)
        return self.decoder(memory, positions, queries, mask, all_layers=all_layers), memory


class _Encoder(nn.Module):
    def __init__(self, layers: list[_EncoderLayer], *, norm: nn.LayerNorm | None, checkpoint_activations: bool) -> None:
        super().__init__()
        self.checkpoint_activations = checkpoint_activations
        self.layers = nn.ModuleList(layers)
        self.norm = norm

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        for layer in self.layers:
            x = checkpointed(layer, x, positions, mask, enabled=self.checkpoint_activations)
        return x if self.norm is None else self.norm(x)


class _Decoder(nn.Module):
    def __init__(self, layers: list[_DecoderLayer], *, norm: nn.LayerNorm, checkpoint_activations: bool) -> None:
        super().__init__()
        self.checkpoint_activations = checkpoint_activations
        self.layers = nn.ModuleList(layers)
        self.norm = norm

    def forward(
        self, memory: Tensor, positions: Tensor, queries: Tensor, mask: Tensor | None, *, all_layers: bool
    ) -> Tensor:
        queries = queries.expand(memory.shape[0], -1, -1)
        keys = memory + positions
        x = torch.zeros_like(queries)
        outputs = []
        for layer in self.layers:
            x = checkpointed(layer, x, queries, keys, memory, mask, enabled=self.checkpoint_activations)
            outputs.append(x)
        return self.norm(torch.stack(outputs if all_layers else outputs[-1:]))


class _EncoderLayer(nn.Module):
    def __init__(self, hidden_dim: int, num_heads: int, ffn_dim: int, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        self.self_attn = MultiHeadAttention(hidden_dim, num_heads, dropout=dropout)
        self.linear1 = nn.Linear(hidden_dim, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, hidden_dim)
        self.norm1 = nn.LayerNorm(hidden_dim)
        self.norm2 = nn.LayerNorm(hidden_dim)
        self.dropout = Dropout(dropout)
        self.pre_norm = pre_norm

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        if self.pre_norm:
            x = x + self._attend(self.norm1(x), positions, mask)
            return x + self._feed_forward(self.norm2(x))
        x = self.norm1(x + self._attend(x, positions, mask))
        return self.norm2(x + self._feed_forward(x))

    def _attend(self, x: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        query = x + positions
        return self.dropout(self.self_attn(query, query, x, mask))

    def _feed_forward(self, x: Tensor) -> Tensor:
        x = self.dropout(F.relu(self.linear1(x), inplace=True))
        return self.dropout(self.linear2(x))


class _DecoderLayer(nn.Module):
    def __init__(self, hidden_dim: int, num_heads: int, ffn_dim: int, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        self.self_attn = MultiHeadAttention(hidden_dim, num_heads, dropout=dropout)
        self.multihead_attn = MultiHeadAttention(hidden_dim, num_heads, dropout=dropout)
        self.linear1 = nn.Linear(hidden_dim, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, hidden_dim)
        self.norm1 = nn.LayerNorm(hidden_dim)
        self.norm2 = nn.LayerNorm(hidden_dim)
        self.norm3 = nn.LayerNorm(hidden_dim)
        self.dropout = Dropout(dropout)
        self.pre_norm = pre_norm

    def forward(self, x: Tensor, queries: Tensor, keys: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        if self.pre_norm:
            x = x + self._attend_queries(self.norm1(x), queries)
            x = x + self._attend_memory(self.norm2(x), queries, keys, memory, mask)
            return x + self._feed_forward(self.norm3(x))
        x = self.norm1(x + self._attend_queries(x, queries))
        x = self.norm2(x + self._attend_memory(x, queries, keys, memory, mask))
        return self.norm3(x + self._feed_forward(x))

    def _attend_queries(self, x: Tensor, queries: Tensor) -> Tensor:
        query = x + queries
        return self.dropout(self.self_attn(query, query, x))

    def _attend_memory(self, x: Tensor, queries: Tensor, keys: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        return self.dropout(self.multihead_attn(x + queries, keys, memory, mask))

    def _feed_forward(self, x: Tensor) -> Tensor:
        x = self.dropout(F.relu(self.linear1(x), inplace=True))
        return self.dropout(self.linear2(x))

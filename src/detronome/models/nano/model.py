"""The fast detector: compact backbone, query selection, deformable decoder (after RT-DETR, arXiv 2304.08069).

Shape letters: `B` batch, `H W` padded image, `h w` feature map, `N` = h x w tokens, `Q` queries, `C` classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from detronome.models.backbones.compact import CompactBackbone
from detronome.models.detector import Detector
from detronome.models.layers.image_normalizer import ImageNormalizer
from detronome.models.layers.mlp import MLP
from detronome.models.nano.denoising import DenoisingQueries, make_denoising_queries
from detronome.models.nano.transformer import Decoder, LayerPrediction
from detronome.types import ModelOutput, Target

__all__ = ["NanoDETR"]

_NO_PROPOSAL = -30.0
"""Logit of a token on padding, or a query without an object: never selected, and its loss is 0."""


class NanoDETR(Detector):
    """Detects objects with queries chosen from the feature map.

    Args:
        num_classes: classes; there is no no-object logit, each class has its own sigmoid.
        widths: backbone channels at strides 4, 8, 16.
        depths: residual blocks of each stage.
        hidden_dim: channels of the feature map and of the queries.
        num_heads: attention heads.
        num_points: sampling points per head.
        ffn_dim: hidden width of the feed-forward layers.
        num_decoder_layers: decoder layers.
        num_queries: proposals kept, and so the most objects an image can have.
        query_size_prior: width and height every proposal starts from, 0-1 of the image.
        denoising_groups: groups of denoising queries in training, 0 for none.
        denoising_box_noise: see `denoising`.
        denoising_label_noise: see `denoising`.
        channels_last: memory layout of the images.
        checkpoint_backbone: compute it again in backward instead of keeping what it computes.
        checkpoint_decoder: likewise, layer by layer.
    """

    activation = "sigmoid"

    def __init__(
        self,
        *,
        num_classes: int,
        widths: Sequence[int],
        depths: Sequence[int],
        hidden_dim: int,
        num_heads: int,
        num_points: int,
        ffn_dim: int,
        num_decoder_layers: int,
        num_queries: int,
        query_size_prior: float,
        denoising_groups: int,
        denoising_box_noise: float,
        denoising_label_noise: float,
        channels_last: bool = True,
        checkpoint_backbone: bool = False,
        checkpoint_decoder: bool = False,
    ) -> None:
        super().__init__()
        self.num_queries = num_queries
        self.denoising_groups = denoising_groups
        self.denoising_box_noise = denoising_box_noise
        self.denoising_label_noise = denoising_label_noise
        self.prior_logit = math.log(query_size_prior / (1 - query_size_prior))

        self.normalizer = ImageNormalizer(channels_last=channels_last)
        self.backbone = CompactBackbone(widths=widths, depths=depths, checkpoint_activations=checkpoint_backbone)
        self.fine_proj = nn.Conv2d(widths[-2], hidden_dim, 1, bias=False)
        self.coarse_proj = nn.Conv2d(widths[-1], hidden_dim, 1, bias=False)
        self.fuse = nn.Sequential(
            nn.BatchNorm2d(hidden_dim),
            nn.ReLU(),
            nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1, bias=False),
            nn.BatchNorm2d(hidden_dim),
            nn.ReLU(),
        )
        self.enc_output = nn.Sequential(nn.Linear(hidden_dim, hidden_dim), nn.LayerNorm(hidden_dim))
        self.enc_class_embed = nn.Linear(hidden_dim, num_classes)
        self.enc_bbox_embed = MLP(hidden_dim, hidden_dim, hidden_dim, 4)
        self.decoder = Decoder(
            num_classes=num_classes,
            hidden_dim=hidden_dim,
            num_heads=num_heads,
            num_points=num_points,
            ffn_dim=ffn_dim,
            num_layers=num_decoder_layers,
            checkpoint_activations=checkpoint_decoder,
        )
        self.denoising_label_embed = nn.Embedding(num_classes, hidden_dim) if denoising_groups else None
        self._initialise()

    def _initialise(self) -> None:
        for class_embed in (self.enc_class_embed, *self.decoder.class_embed):
            nn.init.constant_(class_embed.bias, -math.log((1 - 0.01) / 0.01))
        for bbox_embed in (self.enc_bbox_embed, *self.decoder.bbox_embed):
            nn.init.zeros_(bbox_embed.layers[-1].weight)
            nn.init.zeros_(bbox_embed.layers[-1].bias)

    def forward(
        self,
        images: UInt8[Tensor, "B 3 H W"],
        padding_mask: Bool[Tensor, "B H W"],
        targets: Sequence[Target] | None = None,
    ) -> ModelOutput:
        """Detect.

        Args:
            images: RGB, 0-255.
            padding_mask: True on padding.
            targets: the truth; makes denoising queries in training mode and is unused otherwise.
        """
        feature_map = self._features(self.normalizer(images, padding_mask))
        valid_ratio = _valid_ratio(padding_mask)
        tokens = self.enc_output(feature_map.flatten(2).transpose(1, 2))
        proposals = self._propose(tokens, _token_mask(padding_mask, feature_map), feature_map, valid_ratio)
        content, reference_boxes = self._select(tokens, proposals)

        denoising = None
        if self.training and targets is not None and self.denoising_label_embed is not None:
            denoising = make_denoising_queries(
                targets,
                self.denoising_label_embed,
                num_queries=content.shape[1],
                num_groups=self.denoising_groups,
                box_noise=self.denoising_box_noise,
                label_noise=self.denoising_label_noise,
            )
            if denoising is None:
                # Every rank must have a gradient of every weight, also one without any object.
                content = content + 0 * self.denoising_label_embed.weight.sum()
        if denoising is None:
            layers = self.decoder(content, reference_boxes, feature_map, valid_ratio)
            num_denoising = 0
        else:
            num_denoising = denoising.content.shape[1]
            layers = self.decoder(
                torch.cat((denoising.content, content), dim=1),
                torch.cat((denoising.reference_boxes, reference_boxes), dim=1),
                feature_map,
                valid_ratio,
                denoising.attention_mask,
            )
        ordinary = [
            ModelOutput(pred_logits=p.logits[:, num_denoising:], pred_boxes=p.boxes_cxcywh[:, num_denoising:])
            for p in layers
        ]
        return ModelOutput(
            pred_logits=ordinary[-1].pred_logits,
            pred_boxes=ordinary[-1].pred_boxes,
            aux_outputs=tuple(ordinary[:-1]),
            enc_outputs=proposals,
            dn_outputs=_denoising_outputs(layers, denoising) if denoising is not None else (),
            dn_matches=denoising.matches if denoising is not None else (),
        )

    def parts_to_compile(self) -> list[nn.Module]:
        return [self.backbone, *self.decoder.layers]

    def _features(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D h w"]:
        """Return the stride-8 map with the stride-16 map's wider view added."""
        *_, fine, coarse = self.backbone(images)
        fine = self.fine_proj(fine)
        fused: Tensor = self.fuse(fine + F.interpolate(self.coarse_proj(coarse), size=fine.shape[-2:]))
        return fused

    def _propose(
        self,
        tokens: Float[Tensor, "B N D"],
        token_mask: Bool[Tensor, "B N"],
        feature_map: Float[Tensor, "B D h w"],
        valid_ratio: Float[Tensor, "B 2"],
    ) -> ModelOutput:
        """Return class logits and a box for every token of the map."""
        logits = self.enc_class_embed(tokens).masked_fill(token_mask.unsqueeze(-1), _NO_PROPOSAL)
        centre = _token_centres(feature_map) / valid_ratio.unsqueeze(1)
        size = torch.full_like(centre, self.prior_logit)
        anchor = torch.cat((centre.logit(eps=1e-4), size), dim=-1)
        return ModelOutput(pred_logits=logits, pred_boxes=(self.enc_bbox_embed(tokens) + anchor).sigmoid())

    def _select(
        self, tokens: Float[Tensor, "B N D"], proposals: ModelOutput
    ) -> tuple[Float[Tensor, "B Q D"], Float[Tensor, "B Q 4"]]:
        """Return content and start box of the best-scored tokens, detached: the decoder does not train them."""
        best = proposals.pred_logits.amax(-1).topk(min(self.num_queries, tokens.shape[1]), dim=1).indices
        index = best.unsqueeze(-1)
        content = tokens.gather(1, index.expand(-1, -1, tokens.shape[-1]))
        boxes = proposals.pred_boxes.gather(1, index.expand(-1, -1, 4))
        return content.detach(), boxes.detach()


def _denoising_outputs(layers: Sequence[LayerPrediction], denoising: DenoisingQueries) -> tuple[ModelOutput, ...]:
    """Return what each layer says of the denoising queries; those without an object predict nothing."""
    count, without_object = denoising.padding_mask.shape[1], denoising.padding_mask.unsqueeze(-1)
    return tuple(
        ModelOutput(
            pred_logits=layer.logits[:, :count].masked_fill(without_object, _NO_PROPOSAL),
            pred_boxes=layer.boxes_cxcywh[:, :count],
        )
        for layer in layers
    )


def _valid_ratio(padding_mask: Tensor) -> Tensor:
    """Return the unpadded part of (width, height) of each image, `[B, 2]`."""
    valid = ~padding_mask
    return torch.stack((valid[:, 0].float().mean(-1), valid[:, :, 0].float().mean(-1)), dim=-1)


def _token_mask(padding_mask: Tensor, feature_map: Tensor) -> Tensor:
    """Return True for tokens on padding, `[B, N]`."""
    small = F.interpolate(padding_mask.unsqueeze(1).float(), size=feature_map.shape[-2:])
    return small.flatten(1) > 0.5


def _token_centres(feature_map: Tensor) -> Tensor:
    """Return (x, y) of every token, 0-1 of the padded map, `[1, N, 2]`."""
    height, width = feature_map.shape[-2:]
    y = (torch.arange(height, device=feature_map.device) + 0.5) / height
    x = (torch.arange(width, device=feature_map.device) + 0.5) / width
    return torch.stack((x.expand(height, -1), y.unsqueeze(-1).expand(-1, width)), dim=-1).view(1, -1, 2)

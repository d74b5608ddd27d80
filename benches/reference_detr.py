"""The reference's training step as its users run it, written anew from its published behaviour (arXiv 2005.12872).

The yardstick of the benches, not a model to use. Everything that makes it slow is kept on purpose: frozen norms as a
multiplication and an addition in float32, attention that returns its weights, sequence-first NCHW tensors, one matcher
call and one transfer for each decoder layer with the costs of every prediction of the batch against every target of the
batch, generalised IoU as a full matrix whose diagonal is used, default AdamW. Its state dict has the reference's keys,
so our weights load into it, and `bench_step.py` checks that both give the same losses.

Shape letters: `B` batch, `H W` height and width, `S` cells of the feature map, `Q` queries, `D` hidden dimension.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torchvision.models import resnet50

from detronome.types import Target

__all__ = ["ReferenceCriterion", "ReferenceDETR", "ReferenceStep", "reference_matcher"]

Indices = list[tuple[Tensor, Tensor]]


class FrozenNorm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias, mean, var = (
            buffer.reshape(1, -1, 1, 1) for buffer in (self.weight, self.bias, self.running_mean, self.running_var)
        )
        scale = weight * (var + 1e-5).rsqrt()
        return x * scale + (bias - mean * scale)


class Backbone(nn.Module):
    def __init__(self, *, dilation: bool) -> None:
        super().__init__()
        body = resnet50(weights=None, norm_layer=FrozenNorm, replace_stride_with_dilation=[False, False, dilation])
        del body.fc, body.avgpool
        self.body = body
        for name, parameter in body.named_parameters():
            parameter.requires_grad_(name.startswith(("layer2", "layer3", "layer4")))

    def forward(self, x: Tensor) -> Tensor:
        for module in self.body.children():
            x = module(x)
        return x


class SinePositions(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim // 2

    def forward(self, padding_mask: Tensor) -> Tensor:
        y = (~padding_mask).cumsum(1, dtype=torch.float32)
        x = (~padding_mask).cumsum(2, dtype=torch.float32)
        y = y / (y[:, -1:, :] + 1e-6) * 2 * math.pi
        x = x / (x[:, :, -1:] + 1e-6) * 2 * math.pi
        channel = torch.arange(self.dim, dtype=torch.float32, device=x.device)
        period = 10000 ** (2 * channel.div(2, rounding_mode="floor") / self.dim)
        halves = []
        for axis in (y, x):
            angle = axis[..., None] / period
            halves.append(torch.stack((angle[..., 0::2].sin(), angle[..., 1::2].cos()), dim=4).flatten(3))
        return torch.cat(halves, dim=3).permute(0, 3, 1, 2)


class EncoderLayer(nn.Module):
    def __init__(self, dim: int, heads: int, ffn: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(dim, heads, dropout=dropout)
        self.linear1, self.linear2 = nn.Linear(dim, ffn), nn.Linear(ffn, dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.dropout, self.dropout1, self.dropout2 = (nn.Dropout(dropout) for _ in range(3))

    def forward(self, x: Tensor, padding_mask: Tensor, positions: Tensor) -> Tensor:
        query = x + positions
        x = self.norm1(x + self.dropout1(self.self_attn(query, query, x, key_padding_mask=padding_mask)[0]))
        return self.norm2(x + self.dropout2(self.linear2(self.dropout(F.relu(self.linear1(x))))))


class DecoderLayer(nn.Module):
    def __init__(self, dim: int, heads: int, ffn: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(dim, heads, dropout=dropout)
        self.multihead_attn = nn.MultiheadAttention(dim, heads, dropout=dropout)
        self.linear1, self.linear2 = nn.Linear(dim, ffn), nn.Linear(ffn, dim)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.dropout, self.dropout1, self.dropout2, self.dropout3 = (nn.Dropout(dropout) for _ in range(4))

    def forward(self, x: Tensor, memory: Tensor, padding_mask: Tensor, positions: Tensor, queries: Tensor) -> Tensor:
        query = x + queries
        x = self.norm1(x + self.dropout1(self.self_attn(query, query, x)[0]))
        attended = self.multihead_attn(x + queries, memory + positions, memory, key_padding_mask=padding_mask)[0]
        x = self.norm2(x + self.dropout2(attended))
        return self.norm3(x + self.dropout3(self.linear2(self.dropout(F.relu(self.linear1(x))))))


class Stack(nn.Module):
    def __init__(self, layers: Sequence[nn.Module], norm: nn.Module | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm


class Transformer(nn.Module):
    def __init__(self, dim: int, heads: int, ffn: int, depth: int, dropout: float) -> None:
        super().__init__()
        self.encoder = Stack([EncoderLayer(dim, heads, ffn, dropout) for _ in range(depth)])
        self.decoder = Stack([DecoderLayer(dim, heads, ffn, dropout) for _ in range(depth)], nn.LayerNorm(dim))

    def forward(self, features: Tensor, padding_mask: Tensor, query_embed: Tensor, positions: Tensor) -> Tensor:
        x = features.flatten(2).permute(2, 0, 1)
        positions = positions.flatten(2).permute(2, 0, 1)
        queries = query_embed.unsqueeze(1).repeat(1, x.shape[1], 1)
        padding_mask = padding_mask.flatten(1)
        for layer in self.encoder.layers:
            x = layer(x, padding_mask, positions)
        memory, x = x, torch.zeros_like(queries)
        outputs = []
        for layer in self.decoder.layers:
            x = layer(x, memory, padding_mask, positions, queries)
            outputs.append(self.decoder.norm(x))
        return torch.stack(outputs).transpose(1, 2)


class BoxHead(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, 4)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class ReferenceDETR(nn.Module):
    """DETR-R50; takes normalised float images in NCHW, as its loader makes them."""

    def __init__(self, *, num_classes: int = 91, dropout: float = 0.1, dilation: bool = False) -> None:
        super().__init__()
        dim = 256
        self.transformer = Transformer(dim, heads=8, ffn=2048, depth=6, dropout=dropout)
        self.class_embed = nn.Linear(dim, num_classes + 1)
        self.bbox_embed = BoxHead(dim)
        self.query_embed = nn.Embedding(100, dim)
        self.input_proj = nn.Conv2d(2048, dim, kernel_size=1)
        self.backbone = nn.ModuleList([Backbone(dilation=dilation), SinePositions(dim)])

    def forward(self, pixels: Tensor, padding_mask: Tensor) -> list[dict[str, Tensor]]:
        """Return logits and boxes of every decoder layer, first to last."""
        features = self.backbone[0](pixels)
        mask = F.interpolate(padding_mask[None].float(), size=features.shape[-2:]).to(torch.bool)[0]
        decoded = self.transformer(
            self.input_proj(features), mask, self.query_embed.weight, self.backbone[1](mask).to(features.dtype)
        )
        logits, boxes = self.class_embed(decoded), self.bbox_embed(decoded).sigmoid()
        return [{"pred_logits": a, "pred_boxes": b} for a, b in zip(logits, boxes, strict=True)]


def corners(boxes: Tensor) -> Tensor:
    cx, cy, w, h = boxes.unbind(-1)
    return torch.stack([cx - 0.5 * w, cy - 0.5 * h, cx + 0.5 * w, cy + 0.5 * h], dim=-1)


def giou_matrix(a: Tensor, b: Tensor) -> Tensor:
    assert (a[:, 2:] >= a[:, :2]).all()
    assert (b[:, 2:] >= b[:, :2]).all()
    area_a, area_b = ((box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]) for box in (a, b))
    size = (torch.min(a[:, None, 2:], b[:, 2:]) - torch.max(a[:, None, :2], b[:, :2])).clamp(min=0)
    overlap = size[..., 0] * size[..., 1]
    union = area_a[:, None] + area_b - overlap
    hull = (torch.max(a[:, None, 2:], b[:, 2:]) - torch.min(a[:, None, :2], b[:, :2])).clamp(min=0)
    hull_area = hull[..., 0] * hull[..., 1]
    return overlap / union - (hull_area - union) / hull_area


@torch.no_grad()
def reference_matcher(prediction: dict[str, Tensor], targets: Sequence[Target]) -> Indices:
    """Return (query, target) indices of each image for one decoder layer."""
    batch, queries = prediction["pred_logits"].shape[:2]
    probability = prediction["pred_logits"].flatten(0, 1).softmax(-1)
    boxes = prediction["pred_boxes"].flatten(0, 1)
    labels = torch.cat([target.labels for target in targets])
    truth = torch.cat([target.boxes_cxcywh for target in targets])
    cost = 5 * torch.cdist(boxes, truth, p=1) - probability[:, labels] - 2 * giou_matrix(corners(boxes), corners(truth))
    blocks = cost.view(batch, queries, -1).cpu().split([target.num_objects for target in targets], -1)
    solved = [linear_sum_assignment(block[i]) for i, block in enumerate(blocks)]
    return [(torch.as_tensor(q, dtype=torch.int64), torch.as_tensor(t, dtype=torch.int64)) for q, t in solved]


class ReferenceCriterion(nn.Module):
    def __init__(self, num_classes: int = 91) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.register_buffer("class_weight", torch.cat([torch.ones(num_classes), torch.tensor([0.1])]))

    def forward(self, predictions: Sequence[dict[str, Tensor]], targets: Sequence[Target]) -> Tensor:
        """Return the weighted total over all decoder layers."""
        count = torch.as_tensor([float(sum(target.num_objects for target in targets))]).clamp(min=1).item()
        *earlier, last = predictions
        total = torch.zeros(())
        for prediction in (last, *earlier):
            total = total + self._layer(prediction, targets, reference_matcher(prediction, targets), count)
        return total

    def _layer(
        self, prediction: dict[str, Tensor], targets: Sequence[Target], indices: Indices, count: float
    ) -> Tensor:
        logits = prediction["pred_logits"]
        image = torch.cat([torch.full_like(query, i) for i, (query, _) in enumerate(indices)])
        query = torch.cat([query for query, _ in indices])
        matched = torch.cat([target.labels[index] for target, (_, index) in zip(targets, indices, strict=True)])
        classes = torch.full(logits.shape[:2], self.num_classes, dtype=torch.int64, device=logits.device)
        classes[image, query] = matched
        loss_ce = F.cross_entropy(logits.transpose(1, 2), classes, self.class_weight)
        with torch.no_grad():
            found = (logits.argmax(-1) != logits.shape[-1] - 1).sum(1)
            lengths = torch.as_tensor([target.num_objects for target in targets], device=logits.device)
            F.l1_loss(found.float(), lengths.float())
        boxes = prediction["pred_boxes"][image, query]
        truth = torch.cat([target.boxes_cxcywh[index] for target, (_, index) in zip(targets, indices, strict=True)])
        loss_bbox = F.l1_loss(boxes, truth, reduction="none").sum() / count
        loss_giou = (1 - torch.diag(giou_matrix(corners(boxes), corners(truth)))).sum() / count
        return loss_ce + 5 * loss_bbox + 2 * loss_giou


class ReferenceStep:
    """Forward, losses, backward, clip at 0.1, AdamW as torch configures it; the backbone at a tenth of the rate."""

    def __init__(self, model: ReferenceDETR, criterion: ReferenceCriterion) -> None:
        self.model, self.criterion = model, criterion
        trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        groups = [
            {"params": [p for name, p in trainable if "backbone" not in name]},
            {"params": [p for name, p in trainable if "backbone" in name], "lr": 1e-5},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-4, weight_decay=1e-4)

    def __call__(self, pixels: Tensor, padding_mask: Tensor, targets: Sequence[Target]) -> float:
        """Do one update; return the loss."""
        total = self.criterion(self.model(pixels, padding_mask), targets)
        value = total.item()
        if not math.isfinite(value):
            raise SystemExit(f"loss is {value}")
        self.optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 0.1)
        self.optimizer.step()
        return value

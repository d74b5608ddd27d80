"""RT-DETRv2: backbone, hybrid encoder, selected queries, deformable decoder (arXiv 2304.08069, 2407.17140).

Images are meant to be resized to a square without keeping their aspect, so that there is no padding. Where there is
some, the network sees it as black picture, as the authors' does, and boxes are turned into parts of the unpadded image.

Shape letters: `B` batch, `H W` padded image height and width, `Q` queries, `*S` any shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from detronome.models.detector import Detector
from detronome.models.layers.image_normalizer import ImageNormalizer
from detronome.models.rtdetr.denoising import DenoisingQueries, make_denoising_queries
from detronome.models.rtdetr.encoder import FusingEncoder
from detronome.models.rtdetr.transformer import Memory, Prediction, Proposals, TwoStageDecoder
from detronome.types import ModelOutput, Target

__all__ = ["RTDETR"]

_NO_OBJECT = -30.0
"""Logit of a denoising query without an object: its loss is 0."""


class RTDETR(Detector):
    """Detects objects with queries chosen from three feature maps.

    Args:
        backbone: gives maps of strides 8, 16 and 32.
        encoder: mixes them.
        decoder: chooses queries from them and refines these.
        num_queries: proposals kept, and so the most objects an image can have.
        num_denoising: denoising queries in training, about; 0 for none. See `denoising`, also for the others.
        denoising_box_noise: how far boxes are moved.
        denoising_label_noise: how often labels are changed.
        image_mean: of the RGB values 0-1 that the backbone was trained on; the authors leave them as they are.
        image_std: likewise.
        channels_last: memory layout of the images.
    """

    activation = "sigmoid"

    def __init__(
        self,
        backbone: nn.Module,
        encoder: FusingEncoder,
        decoder: TwoStageDecoder,
        *,
        num_queries: int = 300,
        num_denoising: int = 100,
        denoising_box_noise: float = 1.0,
        denoising_label_noise: float = 0.5,
        image_mean: Sequence[float] = (0.0, 0.0, 0.0),
        image_std: Sequence[float] = (1.0, 1.0, 1.0),
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        self.num_queries = num_queries
        self.num_denoising = num_denoising
        self.denoising_box_noise = denoising_box_noise
        self.denoising_label_noise = denoising_label_noise
        self.normalizer = ImageNormalizer(mean=image_mean, std=image_std, channels_last=channels_last)
        self.backbone = backbone
        self.encoder = encoder
        self.decoder = decoder

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
            targets: the truth; makes denoising queries in training mode and is unused otherwise.

        Returns:
            float32 logits and boxes, under autocast too; `enc_outputs` and `dn_outputs` only in training, and so
            `aux_outputs` without `all_layers`.
        """
        valid = _valid_part(padding_mask)
        memory = self.decoder.read(self.encoder(self.backbone(self.normalizer(images, padding_mask))))
        proposals = self.decoder.propose(memory, self.num_queries)
        if not self.training:
            layers = self.decoder(proposals.content, proposals.prediction.boxes, memory, all_layers=self.all_layers)
            *earlier, last = (_output(layer, valid) for layer in layers)
            return replace(last, aux_outputs=tuple(earlier))
        return self._train_output(memory, proposals, valid, targets)

    def fuse(self) -> None:
        """Merge convolutions for prediction; see `FusingEncoder.fuse`."""
        self.encoder.fuse()

    def parts_to_compile(self) -> list[nn.Module]:
        return [self.backbone, self.encoder, *self.decoder.decoder.layers]

    def _train_output(
        self, memory: Memory, proposals: Proposals, valid: Tensor, targets: Sequence[Target] | None
    ) -> ModelOutput:
        content, boxes = proposals.content, proposals.prediction.boxes.detach()
        denoising = self._denoising(targets, num_queries=content.shape[1])
        num_denoising = 0
        mask = None
        if denoising is not None:
            num_denoising = denoising.content.shape[1]
            content = torch.cat((denoising.content, content), dim=1)
            boxes = torch.cat((denoising.reference_boxes * valid, boxes), dim=1)
            mask = denoising.attention_mask
        elif self.decoder.denoising_class_embed is not None:
            # Every rank must have a gradient of every weight, also one without any object.
            content = content + 0 * self.decoder.denoising_class_embed.weight.sum()
        layers = [_output(layer, valid) for layer in self.decoder(content, boxes, memory, mask)]
        *earlier, last = [_part(layer, slice(num_denoising, None)) for layer in layers]
        return ModelOutput(
            pred_logits=last.pred_logits,
            pred_boxes=last.pred_boxes,
            edges=last.edges,
            aux_outputs=tuple(earlier),
            enc_outputs=_output(proposals.prediction, valid),
            dn_outputs=_denoising_outputs(layers, denoising) if denoising is not None else (),
            dn_matches=denoising.matches if denoising is not None else (),
        )

    def _denoising(self, targets: Sequence[Target] | None, *, num_queries: int) -> DenoisingQueries | None:
        if targets is None or self.decoder.denoising_class_embed is None:
            return None
        return make_denoising_queries(
            targets,
            self.decoder.denoising_class_embed,
            num_queries=num_queries,
            num_denoising=self.num_denoising,
            box_noise=self.denoising_box_noise,
            label_noise=self.denoising_label_noise,
        )


def _valid_part(padding_mask: Bool[Tensor, "B H W"]) -> Float[Tensor, "B 1 4"]:
    """Return what turns boxes of the unpadded image into boxes of the padded one: a factor of 1 where nothing is."""
    is_image = ~padding_mask
    width, height = is_image[:, 0].float().mean(-1), is_image[:, :, 0].float().mean(-1)
    return torch.stack((width, height, width, height), dim=-1).unsqueeze(1)


def _output(prediction: Prediction, valid: Float[Tensor, "B 1 4"]) -> ModelOutput:
    edges = prediction.edges
    if edges is not None:
        edges = replace(edges, reference_boxes=edges.reference_boxes / valid)
    return ModelOutput(pred_logits=prediction.logits, pred_boxes=prediction.boxes / valid, edges=edges)


def _part(output: ModelOutput, queries: slice) -> ModelOutput:
    edges = output.edges
    if edges is not None:
        edges = replace(edges, logits=edges.logits[:, queries], reference_boxes=edges.reference_boxes[:, queries])
    return ModelOutput(
        pred_logits=output.pred_logits[:, queries], pred_boxes=output.pred_boxes[:, queries], edges=edges
    )


def _denoising_outputs(layers: Sequence[ModelOutput], denoising: DenoisingQueries) -> tuple[ModelOutput, ...]:
    """Return what each layer says of the denoising queries; those without an object predict nothing."""
    count, without_object = denoising.padding_mask.shape[1], denoising.padding_mask.unsqueeze(-1)
    parts = [_part(layer, slice(0, count)) for layer in layers]
    return tuple(replace(part, pred_logits=part.pred_logits.masked_fill(without_object, _NO_OBJECT)) for part in parts)

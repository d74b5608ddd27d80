"""D-FINE: RT-DETR with another encoder and decoder (arXiv 2410.13842).

What a run sees of it differs in one thing: in training, each layer says what its boxes were made from
(`ModelOutput.edges`), and the first of `aux_outputs` and `dn_outputs` are the boxes from which all layers start.
"""

from __future__ import annotations

from torch import nn

from detronome.models.dfine.encoder import FineEncoder
from detronome.models.dfine.transformer import FineDecoder
from detronome.models.rtdetr.model import RTDETR

__all__ = ["DFINE"]


class DFINE(RTDETR):
    """Detects objects with queries chosen from the maps, and boxes read from distributions over their edges.

    Args:
        backbone: gives maps, each half the size of the one before.
        encoder: mixes them.
        decoder: chooses queries from them and refines these.
        num_queries: see `RTDETR`, as for the others.
        num_denoising: denoising queries in training, about.
        denoising_box_noise: how far boxes are moved.
        denoising_label_noise: how often labels are changed.
        channels_last: memory layout of the images.
    """

    def __init__(
        self,
        backbone: nn.Module,
        encoder: FineEncoder,
        decoder: FineDecoder,
        *,
        num_queries: int = 300,
        num_denoising: int = 100,
        denoising_box_noise: float = 1.0,
        denoising_label_noise: float = 0.5,
        channels_last: bool = True,
    ) -> None:
        super().__init__(
            backbone,
            encoder,
            decoder,
            num_queries=num_queries,
            num_denoising=num_denoising,
            denoising_box_noise=denoising_box_noise,
            denoising_label_noise=denoising_label_noise,
            channels_last=channels_last,
        )

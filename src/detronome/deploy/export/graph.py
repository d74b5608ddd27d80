"""A detector as a graph of tensors: bytes and padding in; logits, boxes and perhaps masks out.

Normalisation is inside. What depends on the original image stays outside: resizing and padding before, and the choice
of detections after; `description` says how.

Shape letters: `B` batch, `H W` padded image height and width, `Q` queries, `C` class logits, `h w` those of a mask.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from detronome.deploy.export.reasons import reason_of
from detronome.deploy.optimize import merged
from detronome.errors import ConfigError
from detronome.models.detector import Detector

__all__ = ["INPUT_NAMES", "OUTPUT_NAMES", "DetectorGraph", "nodes_of", "trace"]

INPUT_NAMES = ("images", "padding_mask")
OUTPUT_NAMES = ("pred_logits", "pred_boxes", "pred_masks")
"""Masks where the model makes them."""

_TRACED_SHAPE = (2, 640, 704)
"""Batch, height and width, all different and none of them 1, which tracing would take for fixed. No pixel is computed:
the size only has to have more cells than there are queries."""


class DetectorGraph(nn.Module):
    """A detector whose output is a tuple of tensors.

    Args:
        detector: in eval mode.
    """

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(
        self, images: UInt8[Tensor, "B 3 H W"], padding_mask: Bool[Tensor, "B H W"]
    ) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]:
        """Return `pred_logits [B, Q, C]`, `pred_boxes [B, Q, 4]` (cxcywh, 0-1 of the unpadded image) and, where the
        model makes masks, `pred_masks [B, Q, h, w]` of all queries."""
        output = self.detector(images, padding_mask)
        if output.masks is None:
            return output.pred_logits, output.pred_boxes
        return output.pred_logits, output.pred_boxes, output.masks.all()


def trace(detector: Detector) -> ExportedProgram:
    """Return a detector as torch's graph, for any batch, height and width; norms are folded into convolutions.

    Args:
        detector: on the CPU.

    Raises:
        ConfigError: a part of the network cannot be captured.
    """
    batch, height, width = _TRACED_SHAPE
    example = (
        torch.zeros(batch, 3, height, width, dtype=torch.uint8),
        torch.zeros(batch, height, width, dtype=torch.bool),
    )
    shapes = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}, {0: Dim.DYNAMIC, 1: Dim.DYNAMIC, 2: Dim.DYNAMIC})
    graph = DetectorGraph(merged(detector)).eval()
    with torch.no_grad(), quiet_export():
        try:
            program = torch.export.export(graph, example, dynamic_shapes=shapes, strict=False)
        except Exception as error:  # torch has no one kind of error for this
            raise ConfigError(
                f"torch cannot capture this network as a graph: {reason_of(error)}",
                where=type(detector).__name__,
                fix="export a model of one of the presets' families; a timm backbone may hold what cannot be captured",
            ) from error
    for node in nodes_of(program):
        node.meta.pop("stack_trace", None)  # paths of this machine, which the files would tell to everybody
    return program


def nodes_of(program: ExportedProgram) -> Iterator[fx.Node]:
    """Yield the operations of a graph, and of the graphs inside it."""
    for module in program.graph_module.modules():
        if isinstance(module, fx.GraphModule):
            yield from module.graph.nodes


@contextmanager
def quiet_export() -> Iterator[None]:
    """Keep to itself what torch's exporter says of its own insides."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", "The given buffer is not writable")  # torch 2.11, of a file that is only read
        yield

"""A detector from an exported file: evaluated, served and measured like any other, but not trained.

Shape letters: `B` batch, `H W` padded image height and width, `M` chosen queries of the batch, `Q` queries,
`h w` height and width of a mask.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn

from detronome.deploy.export.description import FORMS, Description, Form, read_description
from detronome.deploy.export.onnx import onnx_runs_on, open_onnx
from detronome.deploy.export.openvino import open_openvino
from detronome.deploy.export.reasons import reason_of
from detronome.deploy.export.session import Session
from detronome.deploy.export.tensorrt import open_tensorrt
from detronome.deploy.export.torch_program import open_torch_program
from detronome.engine.micro_batches import is_out_of_memory
from detronome.errors import CheckpointError, DetronomeError
from detronome.models.detector import Detector
from detronome.runtime.device import resolve_device
from detronome.types import ModelOutput, Target

__all__ = ["ExportedDetector", "default_device", "is_exported", "open_exported"]

_OPENERS: dict[Form, Callable[..., Session]] = {
    "onnx": open_onnx,
    "openvino": open_openvino,
    "torch": open_torch_program,
    "tensorrt": open_tensorrt,
}
_NO_ROOM = re.compile(r"\bFailed to allocate memory\b|\bstd::bad_alloc\b")
"""What ONNX Runtime and OpenVINO say where memory runs out."""


class ExportedDetector(Detector):
    """Runs an exported graph.

    Args:
        session: what runs it.
        description: of the file.
        path: of the file.
    """

    def __init__(self, session: Session, description: Description, path: Path) -> None:
        super().__init__()
        self.activation = description.activation  # type: ignore[misc]  # that of this one detector
        self.num_queries = description.num_queries
        self.description = description
        self.path = path
        self._session = session
        self.eval()

    def train(self, mode: bool = True) -> ExportedDetector:
        """Stay in eval mode.

        Raises:
            CheckpointError: training is asked for.
        """
        if mode:
            raise CheckpointError(
                "an exported model cannot be trained", where=str(self.path), fix="train the checkpoint it was made of"
            )
        super().train(False)
        return self

    def forward(
        self,
        images: UInt8[Tensor, "B 3 H W"],
        padding_mask: Bool[Tensor, "B H W"],
        targets: Sequence[Target] | None = None,
    ) -> ModelOutput:
        """Detect objects; see `Detector.forward`.

        Raises:
            CheckpointError: the runtime cannot run the graph on images of this size.
            MemoryError, RuntimeError: memory has no room for so many.
        """
        try:
            logits, boxes, *masks = self._session(images, padding_mask)
        except DetronomeError:
            raise
        except Exception as error:  # each runtime has its own kinds
            if is_out_of_memory(error):
                raise
            reason = reason_of(error)
            if _NO_ROOM.search(str(error)):
                raise MemoryError(reason) from error
            batch, _, height, width = images.shape
            raise CheckpointError(
                f"the exported graph cannot run on {batch} images of {height}x{width} pixels: {reason}",
                where=str(self.path),
                fix=f"give larger images: those of the model's evaluation have room for its {self.num_queries} queries",
            ) from error
        decoder = _Masks(masks[0], (images.shape[2], images.shape[3])) if masks else None
        return ModelOutput(pred_logits=logits, pred_boxes=boxes, masks=decoder)

    def parts_to_compile(self) -> list[nn.Module]:
        return []


@dataclass
class _Masks:
    """The masks of all queries, which the graph has computed already."""

    masks: Float[Tensor, "B Q h w"]
    padded_size_hw: tuple[int, int]

    def of(self, image_index: Int64[Tensor, " M"], query_index: Int64[Tensor, " M"]) -> Float[Tensor, "M h w"]:
        return self.masks[image_index, query_index]

    def all(self) -> Float[Tensor, "B Q h w"]:
        return self.masks


def is_exported(path: Path) -> bool:
    """Return whether a file's name is that of an exported model."""
    return path.suffix in FORMS


def default_device(form: Form) -> torch.device:
    """Return where a form runs if no device is named: a GPU only where what is installed for the form can use it."""
    device, _ = resolve_device("auto")
    runs_there = {"onnx": onnx_runs_on, "openvino": lambda device: False}.get(form, lambda device: True)
    return device if runs_there(device) else torch.device("cpu")


def open_exported(path: Path, *, device: torch.device) -> ExportedDetector:
    """Return the detector in an exported file.

    Args:
        path: the file; its description lies beside it, and both must belong together.
        device: where to compute.

    Raises:
        CheckpointError: the file or its description is missing, damaged, or not safe to run.
        MissingExtraError: what runs this form is not installed.
        ConfigError: this form cannot run on the device.
    """
    description = read_description(path)
    session = _OPENERS[description.form](path, device=device)
    return ExportedDetector(session, description, path)

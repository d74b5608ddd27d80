"""`detronome export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from rich.console import Console

from detronome.cli.options import DATA_GROUP, OUTPUT_GROUP, Json
from detronome.cli.render import print_json, print_notice

if TYPE_CHECKING:
    from detronome.api import ExportedModel

__all__ = ["export"]


def export(
    checkpoint: str,
    /,
    *,
    to: Literal["onnx", "openvino", "torch", "tensorrt"] = "onnx",
    out: Annotated[Path | None, OUTPUT_GROUP] = None,
    int8: bool = False,
    data: Annotated[str | None, DATA_GROUP] = None,
    images: Annotated[int, DATA_GROUP] = 100,
    calibration_images: Annotated[int, DATA_GROUP] = 200,
    json: Json = False,
) -> None:
    """Write a model in a form that runs without this library, compared with the original.

    Parameters
    ----------
    checkpoint
        Run or checkpoint folder; published weights: detr-r50, a .pth or .safetensors file, a Hugging Face folder or id.
    to
        onnx (one file), openvino (.xml and .bin), torch (torch.export's .pt2), tensorrt (on the GPU that will run it).
    out
        The file; by default exports/NAME with the form's suffix. What exists is not overwritten.
    int8
        Compute in 8 bits, calibrated on DATA's train split; onnx and openvino. Refused where AP falls by over 0.01.
    data
        A data folder, or an address: compare AP on its validation split too.
    images
        To compare AP on.
    calibration_images
        To calibrate INT8 on.
    """
    from detronome import api

    exported = api.export(
        checkpoint,
        to,
        out=out,
        int8=int8,
        data=data,
        images=images,
        calibration_images=calibration_images,
        on_progress=print_notice,
    )
    if json:
        print_json(exported.to_json())
    else:
        _print(exported)


def _print(exported: ExportedModel) -> None:
    from detronome.runtime.files import format_size

    record = exported.to_json()
    console = Console(highlight=False, soft_wrap=True)
    check = exported.self_check
    size = format_size(record["bytes"])
    console.print(f"{record['form']} {record['precision']}  {record['file']}  {size}", markup=False)
    console.print(f"description  {record['description']}", markup=False)
    median, largest = record["median_difference"], record["largest_difference"]
    console.print(f"difference   {median:.1e} median, {largest:.1e} largest: scores and boxes, {check.images} images")
    if check.accuracy is None:
        console.print("AP           not compared: name a data folder with --data DATA")
        return
    ap, before = check.accuracy.exported, check.accuracy.original
    where = f"{check.accuracy.num_images} images of {check.accuracy.split}"
    console.print(f"AP           {ap:.4f}, and {before:.4f} of the original, on {where}")

"""`detronome predict`."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from detronome.cli.options import Json
from detronome.cli.render import print_json

__all__ = ["predict"]


def predict(
    checkpoint: str,
    /,
    *images: Path,
    out: Path = Path("predictions"),
    score: float = 0.5,
    device: str = "auto",
    json: Json = False,
) -> None:
    """Draw the objects found in images and write them as COCO results.

    Parameters
    ----------
    checkpoint
        Run or checkpoint folder; published weights: detr-r50, a .pth or .safetensors file, a Hugging Face folder or id.
    images
        Image files, or folders of them.
    out
        Folder for the pictures and detections.json; with masks, also panoptic.json and its maps in panoptic/.
    score
        Smallest score of a drawn object; detections.json holds all.
    device
        auto, cpu, cuda, cuda:N or mps.
    """
    from detronome import api

    predictions = api.predict(checkpoint, images, out=out, score=score, device=device)
    results = out / "detections.json"
    has_maps = any(p.panoptic is not None for p in predictions)
    if json:
        found = {str(p.file): len(p) for p in predictions}
        panoptic = {"panoptic": str(out / "panoptic.json")} if has_maps else {}
        print_json({"out": str(out), "results": str(results), **panoptic, "num_objects": found})
        return
    total = sum(len(prediction) for prediction in predictions)
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{total} objects in {len(predictions)} images (score {score:g} and above)")
    console.print(f"pictures  {out}\nresults   {results}", markup=False)
    if has_maps:
        console.print(f"panoptic  {out / 'panoptic.json'}", markup=False)

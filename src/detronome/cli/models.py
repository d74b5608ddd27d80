"""`detronome models`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from detronome.cli.options import Json
from detronome.cli.render import print_json, print_line, print_table

if TYPE_CHECKING:
    from detronome.api import PresetInfo

__all__ = ["models"]

_COLUMNS = ("parameters", "GFLOPs", "at", "AP", "PQ", "weights")


def models(*, json: Json = False) -> None:
    """List the presets: size, work, and the accuracy that their authors published."""
    from detronome import api

    presets = api.list_models()
    if json:
        print_json({"models": [preset.to_json() for preset in presets]})
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("preset")
    table.add_column("family")
    for heading in _COLUMNS:
        table.add_column(heading, justify="right")
    for preset in presets:
        table.add_row(*_row(preset))
    print_table(table)
    print_line("")
    print_line("GFLOPs: of a photo of 480x640, resized to what `at` says; multiply-add is 2.")
    print_line("AP of boxes, and PQ: on COCO val2017, of the published weights, as told by")
    for source, names in _by_source(presets).items():
        print_line(f"  {names[0]}{' ...' if len(names) > 1 else ''}: {source}")
    print_line("weights: eval, predict and dt.load, given the preset, download and keep them.")


def _by_source(presets: Sequence[PresetInfo]) -> dict[str, list[str]]:
    """Return names of presets by who published their numbers."""
    names: dict[str, list[str]] = {}
    for preset in presets:
        if preset.source:
            names.setdefault(preset.source, []).append(preset.name)
    return names


def _row(preset: PresetInfo) -> tuple[str, ...]:
    height, width = preset.image_hw
    return (
        preset.name,
        preset.family,
        f"{preset.num_parameters / 1e6:.1f} M",
        f"{preset.gflops:.1f}",
        f"{height}x{width}",
        "-" if preset.AP is None else f"{preset.AP:.1f}",
        "-" if preset.PQ is None else f"{preset.PQ:.1f}",
        "yes" if preset.weights else "-",
    )

"""The models that there are: each preset with its size, its work, and what its authors published."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from detronome.config.preset_facts import PRESET_FACTS
from detronome.config.presets import PRESETS
from detronome.weights.catalog import HUB_IDS, OFFICIAL_FILES

__all__ = ["PresetInfo", "list_models"]


@dataclass(frozen=True, kw_only=True)
class PresetInfo:
    """A preset, and what is known of its network."""

    name: str
    """What `train`, `plan` and others take as model."""
    family: str
    summary: str
    """The first sentence about it."""
    num_parameters: int
    """With the classes of the published weights."""
    gflops: float
    """Thousand million floating-point operations for a photo of 480 x 640 pixels, a multiplication and an addition
    counted as two."""
    image_hw: tuple[int, int]
    """Height and width in pixels of that photo at evaluation."""
    AP: float | None
    """Of boxes on COCO val2017 in percent, as published; None where nothing is."""
    PQ: float | None
    """Panoptic quality likewise."""
    source: str
    """Who published them."""
    weights: str
    """Where the published weights are, which `load(name)` brings; empty where there are none."""

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def list_models() -> list[PresetInfo]:
    """Return all presets, families together. Nothing is built or downloaded."""
    infos = [_info(name) for name in PRESETS]
    families = list(dict.fromkeys(info.family for info in infos))
    return sorted(infos, key=lambda info: families.index(info.family))


def _info(name: str) -> PresetInfo:
    facts = PRESET_FACTS[name]
    return PresetInfo(
        name=name,
        family=PRESETS[name]().model.family,
        summary=_first_sentence(PRESETS[name].__doc__ or ""),
        num_parameters=facts.num_parameters,
        gflops=facts.gflops,
        image_hw=facts.image_hw,
        AP=facts.AP,
        PQ=facts.PQ,
        source=facts.source,
        weights=_weights(name),
    )


def _first_sentence(docstring: str) -> str:
    """Return what a docstring says before its numbers begin, on one line."""
    return " ".join(docstring.split()).partition(":")[0].partition(";")[0].removesuffix(".")


def _weights(name: str) -> str:
    if name in OFFICIAL_FILES:
        return OFFICIAL_FILES[name].url
    return f"https://huggingface.co/{HUB_IDS[name]}" if name in HUB_IDS else ""

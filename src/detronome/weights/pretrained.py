"""Published weights as a model of ours: configuration, categories, state dict, and what had to be assumed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from detronome.config.presets import PRESETS
from detronome.config.schema import DetrConfig, RunConfig
from detronome.data.download.events import Listener, ignore
from detronome.errors import CheckpointError, ConfigError, first_few, nearest_name_hint
from detronome.types import Categories
from detronome.weights.detr_config import detr_config
from detronome.weights.detr_sayings import sayings_of_arguments, sayings_of_hub
from detronome.weights.families import MODEL_TYPES, Origin, origin_of_keys, renamed
from detronome.weights.fit import fitted
from detronome.weights.hub_folder import CONFIG, read_hub_folder
from detronome.weights.hub_settings import other_settings
from detronome.weights.labels import categories_of
from detronome.weights.preset_fit import expected_weights, fitting_preset
from detronome.weights.sources import bring
from detronome.weights.weight_file import read_weight_file

__all__ = ["Pretrained", "load_pretrained"]


_MAX_SIDE = 2**14
_IMAGENET: Mapping[str, object] = {
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
"""How DETR's images are normalised; those of the other families are not."""


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """Weights that were trained elsewhere, complete and checked."""

    config: RunConfig
    categories: Categories
    state_dict: dict[str, Tensor]
    """Under our keys, in the model's types, finite."""
    file: Path
    """Where they were read from."""
    report: tuple[str, ...]
    """What was read, and what was assumed because nothing says it: lines for people."""


@dataclass(frozen=True, kw_only=True)
class _Found:
    """Weights as they were found, before anything is decided."""

    tensors: Mapping[str, Tensor]
    file: Path
    part: str = ""
    arguments: Mapping[str, Any] | None = None
    """With what the program was called that trained them."""
    hub_config: Mapping[str, Any] | None = None
    """The config.json beside them."""
    preprocessor: Mapping[str, Any] | None = None


def load_pretrained(source: str | Path, *, preset: str | None = None, on_event: Listener = ignore) -> Pretrained:
    """Read weights that were trained elsewhere, downloading them where that is asked for.

    Nothing in a file is run, and weights that are not the model's, whole, are refused.

    Args:
        source: a preset with published weights, the name of an official file, a .pth or .safetensors file, a folder as
            transformers saves it, or a model's id on huggingface.co.
        preset: the network, for what a file does not show (DC5); its other settings are taken too. By default that of
            the official file of this name, or the nearest.
        on_event: told of a download's progress.

    Raises:
        CheckpointError: they cannot be had, are damaged, not safe to read, or no model's that is known.
        ConfigError: there is no preset of this name.
    """
    if preset is not None and preset not in PRESETS:
        raise ConfigError(f"unknown preset {preset!r}", where="preset", fix=nearest_name_hint(preset, list(PRESETS)))
    path, known = bring(source, on_event)
    named = preset or known
    found = _read(path)
    origin = _origin(found)
    state = renamed(found.tensors, origin)
    base = PRESETS[named]() if named in PRESETS else None
    if base is not None and base.model.family != origin.family:
        raise CheckpointError(
            f"these are weights of the family {origin.family}, and the preset {named} is of {base.model.family}",
            where=str(found.file),
            fix=f"name a preset of {origin.family}, or none",
        )
    if origin.family == "detr":
        config, num_classes, assumed = _detr(state, found, base)
        if preset is not None:
            _require_same_network(config, PRESETS[preset](), where=str(found.file))
    else:
        config, num_classes = fitting_preset(
            state, family=origin.family, base=base, hub_config=found.hub_config or {}, where=str(found.file)
        )
        assumed = []
    categories, of_names = categories_of(
        found.hub_config, num_classes, family=origin.family, where=str(found.file.parent / CONFIG)
    )
    weights = fitted(state, expected_weights(config.model, num_classes), where=str(found.file), fix=_fix(config.preset))
    read = f"{len(weights):,} tensors{f' of {found.part!r}' if found.part else ''} from {found.file}"
    config = _with_sizes(config, found)
    report = (read, *of_names, *(f"assumed: {what}" for what in assumed), *_other_preparation(config, found))
    return Pretrained(
        config=config,
        categories=categories,
        state_dict=weights,
        file=found.file,
        report=report,
    )


def _read(path: Path) -> _Found:
    """Read a file or a folder; a file beside a config.json is taken as a part of that folder."""
    if path.is_file() and not (path.parent / CONFIG).is_file():
        file = read_weight_file(path)
        return _Found(tensors=file.tensors, file=path, part=file.part, arguments=file.arguments)
    folder = path.parent if path.is_file() else path
    content = read_hub_folder(folder, weights=path if path.is_file() else None)
    return _Found(
        tensors=content.tensors, file=content.file, hub_config=content.config, preprocessor=content.preprocessor
    )


def _origin(found: _Found) -> Origin:
    if found.hub_config is None or "model_type" not in found.hub_config:
        origin = origin_of_keys(found.tensors)
        if origin is None:
            raise CheckpointError(
                f"these are weights of no family that is known: {first_few([ascii(k)[:80] for k in found.tensors])}",
                where=str(found.file),
                fix="files of DETR, RT-DETRv2 and D-FINE can be read; for a run of this program, name its folder",
            )
        return origin
    model_type = found.hub_config["model_type"]
    if not isinstance(model_type, str) or model_type not in MODEL_TYPES:
        raise CheckpointError(
            f"config.json says model_type {ascii(model_type)[:80]}, which is none that is known",
            where=str(found.file.parent / CONFIG),
            fix=f"models of these types can be read: {', '.join(MODEL_TYPES)}",
        )
    by_keys = origin_of_keys(found.tensors)
    if by_keys is not None and by_keys.family != MODEL_TYPES[model_type]:
        raise CheckpointError(
            f"config.json is of a {model_type}, and the weights beside it are of the family {by_keys.family}",
            where=str(found.file.parent / CONFIG),
            fix="bring together what belongs together, or move the weights to a folder of their own",
        )
    return by_keys or Origin(MODEL_TYPES[model_type], "transformers")


def _detr(state: Mapping[str, Tensor], found: _Found, base: RunConfig | None) -> tuple[RunConfig, int, list[str]]:
    """Return (configuration, classes, assumptions) of a classic DETR: shapes decide, then what the file says."""
    start = base.model if base is not None and isinstance(base.model, DetrConfig) else DetrConfig()
    if found.hub_config is not None:
        sayings = sayings_of_hub(found.hub_config, where=str(found.file.parent / CONFIG))
    else:
        sayings = sayings_of_arguments(found.arguments or {})
        if sayings.dilation is None and "dc5" in found.file.stem.lower():
            sayings = replace(sayings, dilation=True)
    if base is not None:  # published files are what their name says, and a preset is the caller's word
        sayings = replace(sayings, dilation=start.dilation, num_heads=sayings.num_heads or start.num_heads)
    model, num_classes, assumed = detr_config(state, sayings, base=start, where=str(found.file))
    name = base.preset if base is not None else _nearest_preset(model)
    return replace(PRESETS[name](), model=model), num_classes, assumed


def _require_same_network(found: RunConfig, named: RunConfig, *, where: str) -> None:
    """Refuse the name of a preset with another backbone than the weights', or with masks that these do not make."""
    ours, theirs = found.model, named.model
    assert isinstance(ours, DetrConfig) and isinstance(theirs, DetrConfig)
    if (ours.backbone, ours.mask_head) != (theirs.backbone, theirs.mask_head):
        masks = "masks" if ours.mask_head else "no masks"
        raise CheckpointError(
            f"these are weights of a {ours.backbone} with {masks}, and the preset {named.preset} is another network",
            where=where,
            fix=f"name the preset {_nearest_preset(ours)}, or none",
        )


def _nearest_preset(model: DetrConfig) -> str:
    """Return the classic preset that is most like a network; image sizes are the same for all of them."""

    def likeness(name: str) -> tuple[bool, bool, bool]:
        known = PRESETS[name]().model
        assert isinstance(known, DetrConfig)
        return (
            known.mask_head == model.mask_head,
            known.backbone == model.backbone,
            known.dilation == model.dilation,
        )

    return max((name for name, make in PRESETS.items() if make().model.family == "detr"), key=likeness)


def _fix(preset: str) -> str:
    return f"the nearest network is {preset}: name another with preset=..., or get the file again"


def _with_sizes(config: RunConfig, found: _Found) -> RunConfig:
    """Return the configuration with the image sizes of a preprocessor_config.json that has DETR's two."""
    preprocessor = found.preprocessor or {}
    size = preprocessor.get("size")
    short, long = preprocessor.get("size"), preprocessor.get("max_size")
    if config.model.family != "detr":  # the others have one size for all images, which is the preset's
        return config
    if isinstance(size, Mapping):
        short, long = size.get("shortest_edge"), size.get("longest_edge")
    if type(short) is not int or type(long) is not int or not 1 <= short <= long <= _MAX_SIDE:
        return config
    return replace(config, augment=replace(config.augment, eval_size=short, eval_max_size=long))


def _other_preparation(config: RunConfig, found: _Found) -> list[str]:
    """Return what to say where a preprocessor_config.json prepares images otherwise than is done here."""
    if config.model.family == "detr":
        ours = _IMAGENET
    else:
        side = config.augment.eval_size
        ours = {"do_normalize": False, "size.height": side, "size.width": side}
    others = other_settings(found.preprocessor or {}, ours, where="")
    return [f"images are prepared otherwise than these weights' own program does: {other.what}" for other in others]

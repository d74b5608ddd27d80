"""What a name stands for: a file or folder here, an official file, or a model on huggingface.co."""

from __future__ import annotations

import re
from pathlib import Path

from detronome.data.download.events import Listener
from detronome.errors import CheckpointError, nearest_name_hint
from detronome.weights.catalog import HUB_IDS, OFFICIAL_FILES, digits_in_name, official_file
from detronome.weights.download import bring_hub_model, bring_official_file, require_digits
from detronome.weights.hub_folder import CONFIG

__all__ = ["bring", "has_published_weights", "is_pretrained_source"]

_HUB_ID = re.compile(r"(?!.*(--|\.\.|\.(pth|pt|bin|safetensors)$))[a-z0-9][\w.-]*/\w[\w.-]*", re.ASCII | re.IGNORECASE)
"""Of two parts, without `--`: that stands between them in the name of a folder of the cache. A file of weights that is
not there is no id."""


def has_published_weights(preset: str) -> bool:
    """Return whether a preset's name stands for weights too."""
    return preset in OFFICIAL_FILES or preset in HUB_IDS


def is_pretrained_source(source: str | Path) -> bool:
    """Return whether this names weights from elsewhere, and not a run or a checkpoint of ours.

    A `Path` is always something on this machine; a text may also be a preset's name, an official file's, or an id on
    huggingface.co, unless its first part is a folder here.
    """
    path = Path(source)
    if path.exists():
        return path.is_file() or (path / CONFIG).is_file()
    if not isinstance(source, str):
        return False
    if has_published_weights(source) or official_file(source):
        return True
    return _HUB_ID.fullmatch(source) is not None and not path.parent.exists()


def bring(source: str | Path, on_event: Listener) -> tuple[Path, str | None]:
    """Return (the file or folder that a source stands for, the preset that it is known to be of).

    What is not here is downloaded; a file that is named as an official one is compared with the digits in its name.

    Raises:
        CheckpointError: it cannot be had, or is not what its name says.
    """
    path, name = Path(source), str(source)
    if path.exists():
        digits = digits_in_name(path)
        if digits is not None and path.is_file():
            require_digits(path, digits)
        official = official_file(path.name)
        return path, official.preset if official is not None and path.is_file() else None
    official = official_file(name)
    if official is not None:
        return bring_official_file(official, on_event), official.preset
    if name in HUB_IDS:
        return bring_hub_model(HUB_IDS[name], on_event, preset=name), name
    if isinstance(source, str) and _HUB_ID.fullmatch(name):
        return bring_hub_model(name, on_event), None
    known = [*OFFICIAL_FILES, *HUB_IDS, *(file.name for file in OFFICIAL_FILES.values())]
    raise CheckpointError(
        "there is no such file or folder, and no published weights have this name",
        where=name,
        fix=nearest_name_hint(name, known),
    )

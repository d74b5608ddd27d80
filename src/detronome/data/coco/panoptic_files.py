"""Where the panoptic annotation files and their maps lie in a data folder.

    data/annotations/panoptic_<split>.json      maps in data/annotations/panoptic_<split>/ or data/panoptic_<split>/
    data/panoptic_<split>.json                  maps in data/panoptic_<split>/

The official release has `annotations/panoptic_train2017.json` and unpacks the maps beside it.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["find_panoptic", "maps_dir_of", "panoptic_splits"]

_PREFIX = "panoptic_"


def find_panoptic(data_dir: Path) -> list[tuple[Path, Path]]:
    """Return (annotation file, folder of maps) of each panoptic split in a data folder, sorted.

    A file directly in `data_dir` counts if its folder lies beside it; the folder of another need not exist.
    """
    beside = [path for path in data_dir.glob(f"{_PREFIX}*.json") if path.with_suffix("").is_dir()]
    files = sorted([*data_dir.glob(f"annotations/{_PREFIX}*.json"), *beside])
    return [(json_file, maps_dir_of(json_file)) for json_file in files]


def panoptic_splits(data_dir: Path) -> dict[str, tuple[Path, Path]]:
    """Return (annotation file, folder of maps) of each panoptic split, by the split's name on disk."""
    return {files[0].stem.removeprefix(_PREFIX): files for files in find_panoptic(data_dir)}


def maps_dir_of(json_file: Path) -> Path:
    """Return the folder of a file's maps: named like it, beside it or one folder up. It need not exist."""
    candidates = [json_file.with_suffix(""), json_file.absolute().parent.parent / json_file.stem]
    return next((folder for folder in candidates if folder.is_dir()), candidates[0])

"""One split of a data set, opened: its annotations, its images, and what its categories are to a model."""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from detronome.data.layout import find_split
from detronome.data.quarantine import num_allowed
from detronome.data.readable import cannot_be_read
from detronome.data.split_files import AnnotationKind, SplitFiles
from detronome.data.store.index import AnnotationIndex
from detronome.data.store.maps import PanopticMaps
from detronome.data.store.shards.source import ShardSource, open_shards
from detronome.data.store.source import FolderSource
from detronome.errors import DataError, first_few
from detronome.types import Categories

__all__ = ["DataSplit", "label_map", "open_split"]

_SHOWN = 10
_SHARD_CACHE_BYTES = 64 * 2**30


@dataclass(frozen=True)
class DataSplit:
    """One split of a data set: where it lies, and its annotations."""

    files: SplitFiles
    index: AnnotationIndex
    source: FolderSource | ShardSource
    """The encoded images, by position in the index."""
    maps: PanopticMaps | None = None
    """The panoptic maps, where the annotations are panoptic."""

    def box_truth(self) -> Path | dict[str, Any]:
        """Return what boxes are measured against: the annotation file, or the boxes of all panoptic segments, things
        and stuff, as such a file has them."""
        if self.maps is None:
            return self.files.annotation_file
        index, category_ids = self.index, self.index.categories.ids
        records = [index.image(i) for i in range(len(index))]
        image_ids = np.repeat([record.image_id for record in records], index.num_annotations_per_image).tolist()
        columns = (index.labels.tolist(), index.boxes_xywh.tolist(), index.area.tolist(), index.iscrowd.tolist())
        return {
            "images": [
                {"id": r.image_id, "file_name": r.file_name, "height": r.size_hw[0], "width": r.size_hw[1]}
                for r in records
            ],
            "annotations": [
                {
                    "id": n,
                    "image_id": image_id,
                    "category_id": category_ids[label],
                    "bbox": box,
                    "area": area,
                    "iscrowd": int(iscrowd),
                }
                for n, (image_id, label, box, area, iscrowd) in enumerate(zip(image_ids, *columns, strict=True), 1)
            ],
            "categories": [{"id": i, "name": name} for i, name in self.index.categories.by_id.items()],
        }


def open_split(
    data_dir: str | Path,
    split: str,
    *,
    annotations: AnnotationKind = "instances",
    missing_budget: float = 0.0,
    shard_cache_bytes: int = _SHARD_CACHE_BYTES,
) -> DataSplit:
    """Return a split whose annotation file is sound and whose image files, and maps, are there.

    Args:
        data_dir: the data folder, or the address of a sharded data set.
        split: `train`, `val`, ...
        annotations: which kind of them is wanted.
        missing_budget: part of the image files that may be missing, 0-1; see `quarantine.num_allowed`.
        shard_cache_bytes: most that local copies of remote shards may take.

    Raises:
        DataError: folder, split or images are missing, or the annotation file is not sound; all problems of the kind.
    """
    files = find_split(data_dir, split, annotations)
    index = AnnotationIndex.open(files.annotation_file, files.annotations)
    if files.shards is not None:
        return DataSplit(files, index, open_shards(files, index, cache_bytes=shard_cache_bytes))
    _check_image_files(files, index, num_allowed(missing_budget, len(index)))
    maps = None
    if files.maps_dir is not None:
        _check_map_files(files, files.maps_dir, index, num_allowed(missing_budget, len(index)))
        maps = PanopticMaps(index, files.maps_dir)
    return DataSplit(files, index, FolderSource(index, files.images_dir), maps)


def label_map(split: DataSplit, categories: Categories) -> Int64[np.ndarray, " K"] | None:
    """Return the model's label for each label of the data, matched by category id; None where they are the same.

    Categories without any annotation may be unknown to the model (label -1).

    Raises:
        DataError: annotated categories that the model does not know, or the same ids with quite other names.
    """
    ours = split.index.categories
    if ours == categories:
        return None
    label_of = {category_id: label for label, category_id in enumerate(categories.ids)}
    used = split.index.used_labels()
    unknown = [label for label in used if ours.ids[label] not in label_of]
    where = str(split.files.annotation_file)
    if unknown:
        named = ", ".join(f"{ours.names[label]!r} (id {ours.ids[label]})" for label in unknown)
        raise DataError(
            f"the model does not know {len(unknown)} of the data's categories: {named}",
            where=where,
            fix="use data with the categories that the model was trained on (while it trains, those of the train "
            "split), or train a model on data that has them all",
        )
    pairs = [(ours.names[label], categories.names[label_of[ours.ids[label]]]) for label in used]
    if pairs and all(data_name.strip().lower() != name.strip().lower() for data_name, name in pairs):
        listed = ", ".join(f"{data_name!r} is {name!r}" for data_name, name in pairs[:_SHOWN])
        raise DataError(
            f"the data's category ids mean other things to the model: {listed}",
            where=where,
            fix="give the data the category ids of the model's classes, or train a model on this data",
        )
    return np.array([label_of.get(category_id, -1) for category_id in ours.ids], np.int64)


def _check_map_files(files: SplitFiles, maps_dir: Path, index: AnnotationIndex, num_allowed: int) -> None:
    try:
        present = set(os.listdir(maps_dir))
    except OSError as error:
        raise cannot_be_read(error, maps_dir) from error
    missing = [name for i in range(len(index)) if (name := index.map_name(i)) not in present]
    if len(missing) > num_allowed:
        raise DataError(
            f"{len(missing)} of {len(index)} panoptic maps are missing: {first_few(missing, most=_SHOWN)}",
            where=f"{maps_dir} (named by {files.annotation_file})",
            fix="unpack the archive of the maps again",
        )


def _check_image_files(files: SplitFiles, index: AnnotationIndex, num_allowed: int) -> None:
    """Compare the file names with listings of their folders: one call a folder, not one a file."""
    names: dict[str, list[str]] = defaultdict(list)
    for i in range(len(index)):
        folder, name = os.path.split(index.image(i).file_name)
        names[folder].append(name)
    missing: list[str] = []
    lowered: set[str] = set()
    for folder, wanted in names.items():
        try:
            present = set(os.listdir(files.images_dir / folder))
        except PermissionError as error:
            raise cannot_be_read(error, files.images_dir / folder) from error
        except (OSError, ValueError):
            present = set()
        absent = [name for name in wanted if name not in present]
        if absent:
            lowered |= {name.lower() for name in present}
            missing.extend(os.path.join(folder, name) for name in absent)
    if len(missing) <= num_allowed:
        return
    more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
    fix = "copy the files there, or write annotations without them: detronome data check DATA --fix FILE"
    if all(os.path.basename(name).lower() in lowered for name in missing):
        fix = "the files are there, spelt with other capital letters: rename them"
    raise DataError(
        f"{len(missing)} of {len(index)} image files are missing: {', '.join(missing[:_SHOWN])}{more}",
        where=f"{files.images_dir} (named by {files.annotation_file})",
        fix=fix,
    )

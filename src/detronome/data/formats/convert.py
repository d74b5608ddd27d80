"""From any layout to any other, without losing a field: through COCO documents.

COCO and Roboflow folders hold whole documents. YOLO and VOC label files cannot: what they leave out goes into the
folder's sidecar, and comes back with it. The reverse needs no sidecar, as documents keep the text of the label files
that they were read from.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from detronome.data.coco.layout import ROBOFLOW_FILE
from detronome.data.coco.problems import parse_json
from detronome.data.coco.read import read_annotations
from detronome.data.formats.document import SplitDocument, check_file_names, to_json_bytes
from detronome.data.formats.images import is_file
from detronome.data.formats.placement import ImagePlacement, place_image
from detronome.data.formats.read import read_documents
from detronome.data.formats.unsaid import unsaid
from detronome.data.formats.write import LabelTarget, voc_target, write_labels, yolo_target
from detronome.data.layout import Layout, available_splits, find_label_folder, find_split, recognise
from detronome.data.split_files import resolve_name
from detronome.errors import ConfigError, DataError, first_few
from detronome.runtime.files import filled_directory

__all__ = ["Conversion", "ConvertedSplit", "TargetLayout", "convert"]

TargetLayout = Literal["coco", "yolo", "voc", "roboflow"]
_SHOWN = 10
_PANOPTIC_FILES = "annotations/panoptic_*.json"
_RECOGNISED_BY = {"coco": "annotations", "yolo": "data.yaml", "voc": "Annotations", "roboflow": ""}


@dataclass(frozen=True, kw_only=True)
class ConvertedSplit:
    """One split that was written."""

    name: str
    """As it was called before."""
    written_as: str
    num_images: int
    num_annotations: int


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What was converted."""

    data: str
    out: str
    source: Layout
    target: TargetLayout
    images: ImagePlacement
    splits: Sequence[ConvertedSplit]
    unsaid: dict[str, int]
    """What the label files cannot say, counted by kind; see `has_sidecar`."""
    has_sidecar: bool
    """Whether `detronome.json` holds what the label files cannot say; without it, that is lost."""

    panoptic_files: Sequence[str]
    """Annotation files of panoptic maps in the data folder, which are not converted: other layouts have none."""

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def convert(
    data_dir: Path,
    out: Path,
    *,
    to: TargetLayout,
    splits: Sequence[str] | None = None,
    images: ImagePlacement = "symlink",
    sidecar: bool = True,
    voc_one_based: bool = False,
) -> Conversion:
    """Write a data folder in another layout.

    Args:
        data_dir: a folder in any layout but shards.
        out: a folder that does not exist or is empty; it appears when all of it is there.
        to: the layout to write.
        splits: names of the splits; None is all of them.
        images: how image files get there: links to the originals, copies, or not at all.
        sidecar: write `detronome.json` beside label files, so that nothing is lost.
        voc_one_based: VOC coordinates, read or written, count pixels from 1 and include the last.

    Raises:
        ConfigError: `voc_one_based` where nothing is VOC, or `out` is not empty.
        DataError: the data is not sound, image files are missing, or `out` cannot be written.
    """
    source = recognise(data_dir)
    if voc_one_based and "voc" not in (source, to):
        raise ConfigError("neither layout is VOC", where="voc_one_based", fix="leave it out")
    _check_places(data_dir, out, source, images)
    documents = _read(data_dir, source, splits, voc_one_based)
    check_file_names(documents)
    if to == "roboflow":
        _check_reserved_name(documents)
    names = _target_names(documents, source, to)
    target: LabelTarget | None = None
    if to == "yolo":
        target = yolo_target(documents, names)
    elif to == "voc":
        target = voc_target(documents, names, one_based=voc_one_based)
    _check_images(documents, images)
    with filled_directory(out, last=_RECOGNISED_BY[to]) as folder:
        if target is None:
            _write_coco(folder, documents, names, images, is_roboflow=to == "roboflow")
        else:
            write_labels(folder, documents, target, images, sidecar=sidecar)
    return Conversion(
        data=str(data_dir),
        out=str(out),
        source=source or "coco",
        target=to,
        images=images,
        splits=[
            ConvertedSplit(
                name=split.name,
                written_as=name,
                num_images=len(split.document["images"]),
                num_annotations=len(split.document["annotations"]),
            )
            for split, name in zip(documents, names, strict=True)
        ],
        unsaid={} if target is None else unsaid(documents, target),
        has_sidecar=target is not None and sidecar,
        panoptic_files=sorted(str(file.relative_to(data_dir)) for file in data_dir.glob(_PANOPTIC_FILES)),
    )


def _read(
    data_dir: Path, source: Layout | None, splits: Sequence[str] | None, voc_one_based: bool
) -> list[SplitDocument]:
    known = available_splits(data_dir)
    chosen = known if splits is None else [resolve_name(split, known) or split for split in splits]
    if not known or not set(chosen) <= set(known):
        find_split(data_dir, next((name for name in chosen if name not in known), "train"))  # says what is wrong
    if source in ("yolo", "voc"):
        folder = find_label_folder(data_dir)
        assert folder is not None, "recognised and not found"
        documents = read_documents(folder, keep_text=True, voc_one_based=voc_one_based)
        by_name = dict(zip(folder.split_names(), documents, strict=True))
        return [by_name[name] for name in dict.fromkeys(chosen)]
    return [_read_coco(data_dir, name) for name in dict.fromkeys(chosen)]


def _read_coco(data_dir: Path, name: str) -> SplitDocument:
    files = find_split(data_dir, name)
    read_annotations(files.annotation_file)  # for what it says of a file that is not sound
    document = parse_json(files.annotation_file.read_bytes(), files.annotation_file)
    return SplitDocument(files.name, document, files.images_dir, str(files.annotation_file))


def _target_names(documents: Sequence[SplitDocument], source: Layout | None, to: TargetLayout) -> list[str]:
    """Return what the splits are called in the target: each layout has its own word for `val`."""
    names = [split.name for split in documents]
    if to == "roboflow":
        synonyms = {"val": "valid"}
    elif to == "coco" and source != "roboflow":
        synonyms = {}
    else:
        synonyms = {"valid": "val"}
    renamed = [synonyms.get(name, name) for name in names]
    if to == "yolo":
        renamed = [re.sub(r"(?<=[a-z])\d{4}$", "", name) for name in renamed]
    return renamed if len(set(renamed)) == len(renamed) else names


def _check_places(data_dir: Path, out: Path, source: Layout | None, images: ImagePlacement) -> None:
    if source == "shards" and images != "none":
        raise DataError(
            "the images lie in shards, not in files",
            where=str(data_dir),
            fix="convert the annotations alone with --images none, or give the original data",
        )
    if out.resolve().is_relative_to(data_dir.resolve()):
        raise DataError(
            "the output lies inside the data folder, which is not to be changed",
            where=str(out),
            fix="name a folder elsewhere",
        )


def _check_reserved_name(documents: Sequence[SplitDocument]) -> None:
    """Refuse an image where the annotations go: written through a link, they would replace the user's file."""
    if any(image["file_name"] == ROBOFLOW_FILE for split in documents for image in split.document["images"]):
        raise DataError(
            f"an image is called {ROBOFLOW_FILE}, as the annotations are in this layout",
            where=", ".join(split.source for split in documents),
            fix="remove that image's record",
        )


def _check_images(documents: Sequence[SplitDocument], images: ImagePlacement) -> None:
    if images == "none":
        return
    missing = [
        str(split.images_dir / image["file_name"])
        for split in documents
        for image in split.document["images"]
        if not is_file(split.images_dir / image["file_name"])
    ]
    if missing:
        raise DataError(
            f"{len(missing)} image files are missing: {first_few(missing, most=_SHOWN)}",
            where=", ".join(split.source for split in documents),
            fix="copy the files there, or convert the annotations alone with --images none",
        )


def _write_coco(
    folder: Path, documents: Sequence[SplitDocument], names: Sequence[str], images: ImagePlacement, *, is_roboflow: bool
) -> None:
    for split, name in zip(documents, names, strict=True):
        images_dir = folder / name if is_roboflow else folder / "images" / name
        annotation_file = images_dir / ROBOFLOW_FILE if is_roboflow else folder / f"annotations/instances_{name}.json"
        for path in (images_dir, annotation_file.parent):
            path.mkdir(parents=True, exist_ok=True)
        for image in split.document["images"]:
            place_image(split.images_dir / image["file_name"], images_dir / image["file_name"], images)
        annotation_file.write_bytes(to_json_bytes(split.document))

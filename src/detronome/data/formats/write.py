"""Writing COCO documents as a folder of label files, with the sidecar that holds what those cannot say.

yolo    data.yaml, images/<split>/, labels/<split>/; classes are numbered in the order of the category ids
voc     Annotations/, JPEGImages/, ImageSets/Main/<split>.txt, label_map.pbtxt with the category ids
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from detronome.data.formats.document import SplitDocument, annotations_by_image, to_json_bytes
from detronome.data.formats.images import is_file, is_image_name, read_headers
from detronome.data.formats.label_map import LABEL_MAP_NAME, label_map_text
from detronome.data.formats.label_text import frame_of, label_text
from detronome.data.formats.labels import LabelCodec, LabelLayout
from detronome.data.formats.placement import ImagePlacement, place_image
from detronome.data.formats.problems import LabelProblems
from detronome.data.formats.sidecar import SIDECAR_NAME, KeptSplit, Sidecar, sidecar_record
from detronome.data.formats.voc_xml import VocCodec, is_voc_name
from detronome.data.formats.yolo import label_path, yolo_yaml
from detronome.data.formats.yolo_lines import YoloCodec
from detronome.errors import DataError, first_few

__all__ = ["LabelTarget", "voc_target", "write_labels", "yolo_target"]


@dataclass(frozen=True)
class TargetSplit:
    """Where a split goes, relative to the folder."""

    name: str
    images_dir: str
    prefix: str
    """Put before the file names."""


@dataclass(frozen=True)
class LabelTarget:
    """A folder of label files to be written."""

    layout: LabelLayout
    codec: LabelCodec
    labels: dict[int, str]
    """The label of each category id."""
    splits: Sequence[TargetSplit]
    label_file: Callable[[str], Path]
    """The label file of an image; both relative to the folder."""
    descriptions: Callable[[Sequence[SplitDocument]], dict[str, str]]
    """The text of the files that describe the whole, by name."""
    voc_one_based: bool = False


def yolo_target(documents: Sequence[SplitDocument], names: Sequence[str]) -> LabelTarget:
    """Return how documents are written as YOLO.

    Raises:
        DataError: splits disagree about a category, or file names cannot be used.
    """
    categories = _categories(documents)
    # Under their own names, so that official COCO keeps images/train2017 while data.yaml says `train`.
    splits = [
        TargetSplit(name, f"images/{split.name if split.name.startswith(name) else name}", "")
        for split, name in zip(documents, names, strict=True)
    ]
    folders = {split.name: split.images_dir for split in splits}
    target = LabelTarget(
        layout="yolo",
        codec=YoloCodec(len(categories)),
        labels={category_id: str(i) for i, category_id in enumerate(categories)},
        splits=splits,
        label_file=lambda image: label_path(PurePosixPath(image)),
        descriptions=lambda _: {"data.yaml": yolo_yaml(folders, list(categories.values()))},
    )
    _check_names(documents, target)
    return target


def voc_target(documents: Sequence[SplitDocument], names: Sequence[str], *, one_based: bool) -> LabelTarget:
    """Return how documents are written as Pascal VOC.

    Raises:
        DataError: splits disagree about a category, or names cannot be used.
    """
    categories = _categories(documents)
    unfit = [f"{name!r} (id {category_id})" for category_id, name in categories.items() if not is_voc_name(name)]
    if unfit:
        raise DataError(
            f"XML files cannot hold these category names: {first_few(unfit)}",
            where=", ".join(split.source for split in documents),
            fix="rename the categories",
        )
    names_used = [image["file_name"] for document in documents for image in document.document["images"]]
    stems = [str(PurePosixPath(name).with_suffix("")) for name in names_used]
    is_shared = len(set(stems)) < len(stems)
    splits = [TargetSplit(name, "JPEGImages", f"{name}/" if is_shared else "") for name in names]

    def descriptions(documents: Sequence[SplitDocument]) -> dict[str, str]:
        texts = {LABEL_MAP_NAME: label_map_text({key: name.strip() for key, name in categories.items()})}
        for split, document in zip(splits, documents, strict=True):
            listed = (PurePosixPath(split.prefix + image["file_name"]) for image in document.document["images"])
            lines = (f"{path.with_suffix('')}\n" for path in listed)
            texts[f"ImageSets/Main/{split.name}.txt"] = "".join(lines)
        return texts

    target = LabelTarget(
        layout="voc",
        codec=VocCodec(one_based=one_based),
        labels={category_id: name.strip() for category_id, name in categories.items()},
        splits=splits,
        label_file=lambda image: Path("Annotations", *PurePosixPath(image).parts[1:]).with_suffix(".xml"),
        descriptions=descriptions,
        voc_one_based=one_based,
    )
    _check_names(documents, target)
    return target


def write_labels(
    folder: Path, documents: Sequence[SplitDocument], target: LabelTarget, images: ImagePlacement, *, sidecar: bool
) -> None:
    """Write documents into an empty folder.

    Raises:
        DataError: image files cannot be read.
    """
    kept: dict[str, KeptSplit] = {}
    for document, split in zip(documents, target.splits, strict=True):
        _write_split(folder, document, split, target, images)
        used = {category["id"]: target.labels[category["id"]] for category in document.document["categories"]}
        kept[split.name] = KeptSplit(document.name, split.prefix, used, document.document)
    for name, text in target.descriptions(documents).items():
        _write(folder / name, text)
    if sidecar:
        record = sidecar_record(Sidecar(target.layout, target.voc_one_based, kept))
        (folder / SIDECAR_NAME).write_bytes(to_json_bytes(record))


def _write_split(
    folder: Path, document: SplitDocument, split: TargetSplit, target: LabelTarget, images: ImagePlacement
) -> None:
    problems = LabelProblems(document.images_dir)
    files = {image["file_name"]: document.images_dir / image["file_name"] for image in document.document["images"]}
    needed = [file for file in files.values() if is_file(file)] if target.codec.is_upright else []
    headers = read_headers(needed, problems)
    problems.raise_if_any()
    (folder / split.images_dir).mkdir(parents=True, exist_ok=True)
    grouped = annotations_by_image(document.document)
    for image in document.document["images"]:
        source = files[image["file_name"]]
        place = f"{split.images_dir}/{split.prefix}{image['file_name']}"
        frame = frame_of(image, headers.get(source))
        text = label_text(target.codec, image, grouped[image["id"]], target.labels, frame)
        _write(folder / target.label_file(place), text)
        place_image(source, folder / place, images)


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text.encode())


def _categories(documents: Sequence[SplitDocument]) -> dict[int, str]:
    """Return the names of all category ids of all splits, by id.

    Raises:
        DataError: an id means different things in different splits.
    """
    names: dict[int, str] = {}
    clashes = []
    for split in documents:
        for category in split.document["categories"]:
            known = names.setdefault(int(category["id"]), category["name"])
            if known != category["name"]:
                clashes.append(f"id {category['id']} is {known!r} and {category['name']!r}")
    if clashes:
        raise DataError(
            f"the splits disagree about categories: {first_few(clashes)}",
            where=", ".join(split.source for split in documents),
            fix="give all splits one list of categories, or convert them one at a time with --split",
        )
    return dict(sorted(names.items()))


def _check_names(documents: Sequence[SplitDocument], target: LabelTarget) -> None:
    """Refuse file names that would not be found again beside label files.

    Raises:
        DataError: two images would have one label file, or a name does not look like an image's.
    """
    unfit, taken, clashes = [], set(), []
    for split, document in zip(target.splits, documents, strict=True):
        for image in document.document["images"]:
            name = image["file_name"]
            if not is_image_name(name) or name != name.strip() or "\n" in name or "\r" in name:
                unfit.append(repr(name))
            label_file = target.label_file(f"{split.images_dir}/{split.prefix}{name}")
            if label_file in taken:
                clashes.append(repr(name))
            taken.add(label_file)
    if unfit:
        raise DataError(
            f"{len(unfit)} file names would not be recognised as images: {first_few(unfit)}",
            where=", ".join(document.source for document in documents),
            fix="give the files the ending of their format, such as .jpg",
        )
    if clashes:
        raise DataError(
            f"{len(clashes)} images would share a label file with another: {first_few(clashes)}",
            where=", ".join(document.source for document in documents),
            fix="rename images that differ in their ending alone",
        )

"""A folder of label files as COCO documents, all splits at once: they share one list of categories."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from detronome.data.formats.document import Record, SplitDocument
from detronome.data.formats.images import ImageHeader, is_file, read_headers
from detronome.data.formats.labels import Frame, LabelCodec, LabelFile, LabelFolder, LabelledImage, LabelSplit
from detronome.data.formats.problems import LabelProblems
from detronome.data.formats.sidecar import ReadImage, read_sidecar, restore
from detronome.data.readable import require_readable

__all__ = ["read_documents"]

_UNLABELLED_SPLIT = "test"
"""Its labels are often kept secret."""


@dataclass(frozen=True)
class _Labels:
    """One label file and the image it belongs to, as they were read."""

    file: LabelFile
    text: str | None
    header: ImageHeader | None
    size_hw: tuple[int, int]


def read_documents(
    folder: LabelFolder, *, keep_text: bool, voc_one_based: bool = False, leave_out_unreadable: bool = False
) -> list[SplitDocument]:
    """Return every split of a folder as a COCO document.

    Image and annotation ids count from 1 in each split. Where the folder has a sidecar, its records are used as far as
    they agree with the label files.

    Args:
        folder: the folder.
        keep_text: keep the text of each label file with its image, so that it can be written again as it was.
        voc_one_based: VOC coordinates count pixels from 1; a sidecar knows it of the folder it lies in.
        leave_out_unreadable: leave out image files whose header cannot be read, unless their label file says the size,
            rather than refuse the folder; see `SplitDocument.left_out`.

    Raises:
        DataError: everything that is wrong with images, label files and lists of classes, at once.
    """
    problems = LabelProblems(folder.root)
    sidecar = read_sidecar(folder.root, folder.layout)
    codec = folder.codec(voc_one_based=voc_one_based or (sidecar is not None and sidecar.voc_one_based))
    splits = [folder.read_split(name) for name in folder.split_names()]
    images = dict.fromkeys(image for split in splits for image in split.images)
    require_readable(*sorted({image.label_file.parent for image in images}))
    files = dict.fromkeys(image.image_file for image in images)
    unreadable = LabelProblems(folder.root) if leave_out_unreadable else problems
    headers = read_headers([file for file in files if is_file(file)], unreadable)
    labels = {image: _read(image, headers.get(image.image_file), codec, problems) for image in images}
    for split in splits:
        _check_split(split, folder, problems)
    problems.raise_if_any()
    left_out = {image for image in images if image.image_file not in headers and labels[image].file.size_hw is None}
    if any(left_out.issuperset(split.images) for split in splits):
        unreadable.raise_if_any()

    used = {item.label for read in labels.values() for item in read.file.objects}
    categories = folder.categories(used)
    documents = []
    for split in splits:
        present = [image for image in split.images if image not in left_out]
        read = [_read_image(i, image, labels[image], categories) for i, image in enumerate(present, 1)]
        kept = sidecar.splits.get(split.name) if sidecar else None
        if kept is None:
            name, images_dir, document = split.name, split.images_dir, _document(read, categories)
            if keep_text:
                _keep_text(read, codec.key)
        else:
            names = {label: category["name"] for label, category in categories.items()}
            name, images_dir, document = kept.name, split.images_dir / kept.prefix, restore(read, kept, codec, names)
        lost = tuple(os.path.relpath(image.image_file, images_dir) for image in split.images if image in left_out)
        documents.append(SplitDocument(name, document, images_dir, str(folder.root), lost))
    return documents


def _check_split(split: LabelSplit, folder: LabelFolder, problems: LabelProblems) -> None:
    """Refuse a split without images, or with images of which none has labels: it would train on empty background."""
    if not split.images:
        fix = "name the images in the list, or leave the split out"
        problems.add("splits have no images", folder.root, f"split {split.name!r}", fix=fix)
    elif split.name != _UNLABELLED_SPLIT and not any(is_file(image.label_file) for image in split.images):
        fix = "put the label files there; an empty one says that an image has no objects"
        detail = f"and none for the other images of {split.name!r} either"
        problems.add("splits have no label files", split.images[0].label_file, detail, fix=fix)


def _read(image: LabelledImage, header: ImageHeader | None, codec: LabelCodec, problems: LabelProblems) -> _Labels:
    content = _content(image.label_file, problems)
    shown_hw = (0, 0) if header is None else header.upright_hw if codec.is_upright else header.stored_hw
    frame = Frame(shown_hw, 1 if header is None else header.turn(shown_hw))
    file = codec.parse(content, frame, image.label_file, problems)
    if file.size_hw and (header is None or file.size_hw in (header.stored_hw, header.upright_hw)):
        size_hw = file.size_hw
    else:
        size_hw = shown_hw
        if header is None and not is_file(image.image_file):
            fix = "put the image files there, or remove them from the lists and label files"
            problems.add("images are missing and their size is not known", image.image_file, "", fix=fix)
    return _Labels(file, _decoded(content), header, size_hw)


def _content(file: Path, problems: LabelProblems) -> bytes:
    """Return the content of a label file, or nothing where there is none: the image has no objects."""
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        problems.add("label files cannot be read", file, error.strerror or str(error), fix="check their permissions")
        return b""


def _decoded(content: bytes) -> str | None:
    try:
        return content.decode()
    except UnicodeDecodeError:
        return None


def _read_image(number: int, image: LabelledImage, read: _Labels, categories: Mapping[str, Record]) -> ReadImage:
    height, width = read.size_hw
    record: Record = {"id": number, "file_name": image.file_name, "width": width, "height": height}
    if read.file.size_hw not in (None, read.size_hw):
        record["labelled_size_wh"] = list(read.file.size_hw[::-1])
    annotations = []
    for item in read.file.objects:
        width_px, height_px = item.fields["bbox"][2:]
        annotation = {"category_id": categories[item.label]["id"], "area": width_px * height_px, "iscrowd": 0}
        annotations.append({**annotation, **item.fields})
    return ReadImage(record, annotations, read.file.objects, read.text, read.header)


def _document(images: list[ReadImage], categories: Mapping[str, Record]) -> Record:
    records: list[Record] = []
    for image in images:
        for annotation in image.annotations:
            records.append({"id": len(records) + 1, "image_id": image.record["id"], **annotation})
    unique = {category["id"]: category for category in categories.values()}
    return {
        "images": [image.record for image in images],
        "annotations": records,
        "categories": [unique[category_id] for category_id in sorted(unique)],
    }


def _keep_text(images: list[ReadImage], key: str) -> None:
    for image in images:
        if image.text is not None:
            image.record[key] = image.text

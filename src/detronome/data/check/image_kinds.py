"""What each kind of finding about image files is called, what it does, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping

from detronome.data.check.tally import Kind

__all__ = ["IMAGE_KINDS"]

_REFUSED = (
    "training cannot use these images: another takes the place of each, and the run stops when they are more than "
    "its budget allows"
)
_RESTORE = (
    "copy or download the files again, or remove these images from the annotation file; --fix removes their records"
)


IMAGE_KINDS: Mapping[str, Kind] = {
    "image_missing": Kind(
        "error", "image file is missing | image files are missing", _REFUSED, _RESTORE, is_fixable=True
    ),
    "image_left_out": Kind(
        "error",
        "image file cannot be read, and its label file does not say its size | "
        "image files cannot be read, and their label files do not say their sizes",
        "they and their labels are left out: nothing is learned from them, and evaluation does not count them",
        "copy or download the files again, or remove them with their label files",
    ),
    "image_other_case": Kind(
        "error",
        "image file is written with other capital letters on disk | "
        "image files are written with other capital letters on disk",
        "they are found on systems that ignore the case of letters, and missing on all others",
        "rename the files, or write their names in the annotation file as they are on disk; --fix writes them",
        is_fixable=True,
    ),
    "image_other_spelling": Kind(
        "error",
        "image file is there, but the annotation file spells its name or folder otherwise | "
        "image files are there, but the annotation file spells their names or folders otherwise",
        _REFUSED,
        "write file_name as it is on disk, relative to the image folder; --fix writes it",
        is_fixable=True,
    ),
    "image_name_ambiguous": Kind(
        "error",
        "image file is missing, and what may be meant is not clear | "
        "image files are missing, and what may be meant is not clear",
        _REFUSED,
        "write file_name as it is on disk, relative to the image folder",
    ),
    "image_unreadable": Kind(
        "error",
        "image file cannot be read | image files cannot be read",
        _REFUSED,
        "check permissions, links and the disk",
    ),
    "image_empty": Kind("error", "image file is empty | image files are empty", _REFUSED, _RESTORE, is_fixable=True),
    "image_not_an_image": Kind(
        "error", "file is not an image | files are not images", _REFUSED, _RESTORE, is_fixable=True
    ),
    "image_truncated": Kind(
        "error", "image file ends too early | image files end too early", _REFUSED, _RESTORE, is_fixable=True
    ),
    "image_corrupt": Kind(
        "error", "image file is damaged | image files are damaged", _REFUSED, _RESTORE, is_fixable=True
    ),
    "image_zero_size": Kind(
        "error", "image is 0 pixels wide or high | images are 0 pixels wide or high", _REFUSED, _RESTORE
    ),
    "image_too_large": Kind(
        "error",
        "image has more pixels or bytes than is allowed | images have more pixels or bytes than is allowed",
        _REFUSED,
        "cut large images into tiles",
    ),
    "image_unsupported": Kind(
        "error",
        "image has pixels without a known range | images have pixels without a known range",
        _REFUSED,
        "save them with 8 or 16 bits per channel",
    ),
    "image_size_differs": Kind(
        "error",
        "image has another size than the annotation file says | images have another size than the annotation file says",
        "their boxes would lie in wrong places, so training refuses them like damaged files",
        "correct width and height (and boxes) in the annotation file, or restore the images that were annotated; "
        "--fix writes the size of the file where the boxes fit it",
    ),
    "image_names_differ_in_case": Kind(
        "warning",
        "file name differs from another in capital letters only | "
        "file names differ from others in capital letters only",
        "on systems that ignore the case of letters one file overwrites the other",
        "rename one of each",
    ),
    "image_exif_ignored": Kind(
        "note",
        "image has an EXIF orientation, and the annotated size is that of the stored pixels | "
        "images have an EXIF orientation, and the annotated size is that of the stored pixels",
        "the tag is ignored, as in COCO",
        "look at a few: if boxes were drawn on the turned image, turn the pixels and remove the tag",
    ),
    "image_exif_turned": Kind(
        "note",
        "image has an EXIF orientation, and only the turned image has the annotated size | "
        "images have an EXIF orientation, and only the turned image has the annotated size",
        "they are turned as the tag says",
        "nothing needs to be done; other tools may not turn them",
    ),
    "image_no_end_marker": Kind(
        "note",
        "JPEG file lacks its end marker, but all pixels are there | "
        "JPEG files lack their end marker, but all pixels are there",
        "they are used; some tools refuse or rewrite them",
        "nothing needs to be done, but the copy may have been cut short: compare with the source",
    ),
    "image_wrong_extension": Kind(
        "note",
        "file is of another format than its extension says | files are of another format than their extension says",
        "they are decoded by content",
        "rename them if other tools have to read them",
    ),
    "image_several_frames": Kind(
        "note",
        "file holds several frames or pages | files hold several frames or pages",
        "the first one is used",
        "split them",
    ),
    "image_greyscale": Kind(
        "note",
        "image is greyscale | images are greyscale",
        "their channel is repeated to RGB",
        "nothing needs to be done",
    ),
    "image_one_bit": Kind(
        "note", "image is black and white | images are black and white", "they become RGB", "nothing needs to be done"
    ),
    "image_palette": Kind(
        "note", "image has a palette | images have a palette", "they become RGB", "nothing needs to be done"
    ),
    "image_sixteen_bit": Kind(
        "note",
        "image has more than 8 bits per channel | images have more than 8 bits per channel",
        "they are scaled to 8 bits, 65535 becoming 255",
        "stretch their contrast if they use only part of the range",
    ),
    "image_cmyk": Kind(
        "note", "image is CMYK | images are CMYK", "they become RGB without a colour profile", "save them as RGB"
    ),
    "image_transparency": Kind(
        "note",
        "image has transparency | images have transparency",
        "it is dropped, so that what lies under transparent pixels shows",
        "lay them on a background",
    ),
    "image_colour_profile": Kind(
        "note",
        "image has a colour profile other than sRGB | images have a colour profile other than sRGB",
        "it is ignored",
        "convert them to sRGB",
    ),
    "image_progressive": Kind(
        "note",
        "JPEG file is progressive | JPEG files are progressive",
        "they take several times longer to decode",
        "save them as baseline JPEG",
    ),
    "image_arithmetic": Kind(
        "note",
        "JPEG file is arithmetic-coded | JPEG files are arithmetic-coded",
        "damage in them cannot be noticed, and many tools refuse them",
        "save them with Huffman codes",
    ),
    "image_unnamed": Kind(
        "note",
        "image file lies in the folder that no annotation file names | "
        "image files lie in the folder that no annotation file names",
        "they are not used",
        "add them to the annotation file (without boxes, if there is nothing on them) or remove them",
    ),
    "image_in_shards": Kind(
        "note",
        "images lie in shards",
        "they were not decoded here",
        "detronome data shard --verify DATA compares their checksums; or check the folder they were made from",
    ),
}
"""The worst first."""

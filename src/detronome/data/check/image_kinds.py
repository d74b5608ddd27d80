"""What each kind of finding about image files is called, what it does, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping

from detronome.data.check.tally import Kind

__all__ = ["IMAGE_KINDS"]

_REFUSED = (
    "training cannot use these images: another takes the place of each, and the run stops when they are more than "
    "its budget allows"
)
_RESTORE = "copy or download the files again, or remove these images from the annotation file"


IMAGE_KINDS: Mapping[str, Kind] = {
    "image_missing": Kind("error", "image files are missing", _REFUSED, _RESTORE),
    "image_other_case": Kind(
        "error",
        "image files are written with other capital letters on disk",
        "they are found on systems that ignore the case of letters, and missing on all others",
        "rename the files, or write their names in the annotation file as they are on disk",
    ),
    "image_unreadable": Kind("error", "image files cannot be read", _REFUSED, "check permissions, links and the disk"),
    "image_empty": Kind("error", "image files are empty", _REFUSED, _RESTORE),
    "image_not_an_image": Kind("error", "files are not images", _REFUSED, _RESTORE),
    "image_truncated": Kind("error", "image files end too early", _REFUSED, _RESTORE),
    "image_corrupt": Kind("error", "image files are damaged", _REFUSED, _RESTORE),
    "image_zero_size": Kind("error", "images are 0 pixels wide or high", _REFUSED, _RESTORE),
    "image_too_large": Kind(
        "error", "images have more pixels or bytes than is allowed", _REFUSED, "cut large images into tiles"
    ),
    "image_unsupported": Kind(
        "error", "pixels are numbers without a known range", _REFUSED, "save them with 8 or 16 bits per channel"
    ),
    "image_size_differs": Kind(
        "error",
        "images have another size than the annotation file says",
        "their boxes would lie in wrong places, so training refuses them like damaged files",
        "correct width and height (and boxes) in the annotation file, or restore the images that were annotated",
    ),
    "image_names_differ_in_case": Kind(
        "warning",
        "file names differ from others in capital letters only",
        "on systems that ignore the case of letters one file overwrites the other",
        "rename one of each",
    ),
    "image_exif_ignored": Kind(
        "note",
        "images have an EXIF orientation, and the annotated size is that of the stored pixels",
        "the tag is ignored, as in COCO",
        "look at a few: if boxes were drawn on the turned image, turn the pixels and remove the tag",
    ),
    "image_exif_turned": Kind(
        "note",
        "images have an EXIF orientation, and only the turned image has the annotated size",
        "they are turned as the tag says",
        "nothing needs to be done; other tools may not turn them",
    ),
    "image_no_end_marker": Kind(
        "note",
        "JPEG files lack their end marker, but all pixels are there",
        "they are used; some tools refuse or rewrite them",
        "nothing needs to be done, but the copy may have been cut short: compare with the source",
    ),
    "image_wrong_extension": Kind(
        "note",
        "files are of another format than their extension says",
        "they are decoded by content",
        "rename them if other tools have to read them",
    ),
    "image_several_frames": Kind("note", "files hold several frames or pages", "the first one is used", "split them"),
    "image_greyscale": Kind(
        "note", "images are greyscale", "their channel is repeated to RGB", "nothing needs to be done"
    ),
    "image_one_bit": Kind("note", "images are black and white", "they become RGB", "nothing needs to be done"),
    "image_palette": Kind("note", "images have a palette", "they become RGB", "nothing needs to be done"),
    "image_sixteen_bit": Kind(
        "note",
        "images have more than 8 bits per channel",
        "they are scaled to 8 bits, 65535 becoming 255",
        "stretch their contrast if they use only part of the range",
    ),
    "image_cmyk": Kind("note", "images are CMYK", "they become RGB without a colour profile", "save them as RGB"),
    "image_transparency": Kind(
        "note",
        "images have transparency",
        "it is dropped, so that what lies under transparent pixels shows",
        "lay them on a background",
    ),
    "image_colour_profile": Kind(
        "note", "images have a colour profile other than sRGB", "it is ignored", "convert them to sRGB"
    ),
    "image_progressive": Kind(
        "note", "JPEG files are progressive", "they take several times longer to decode", "save them as baseline JPEG"
    ),
    "image_arithmetic": Kind(
        "note",
        "JPEG files are arithmetic-coded",
        "damage in them cannot be noticed, and many tools refuse them",
        "save them with Huffman codes",
    ),
    "image_unnamed": Kind(
        "note",
        "image files lie in the folder that no annotation file names",
        "they are not used",
        "add them to the annotation file (without boxes, if there is nothing on them) or remove them",
    ),
    "image_in_shards": Kind(
        "note",
        "the images lie in shards",
        "they were not decoded here",
        "check the folder of images that the shards were made from, and verify the shards' checksums",
    ),
}
"""The worst first."""

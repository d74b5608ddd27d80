"""What each kind of finding about panoptic annotations is called, what it does, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping

from detronome.data.check.tally import Kind

__all__ = ["PANOPTIC_KINDS"]

_NO_USE = "these images cannot be trained on or evaluated"
_LOST = "their pixels count as unlabelled"
_AGAIN = "export the maps and the annotation file again, together"

PANOPTIC_KINDS: Mapping[str, Kind] = {
    "panoptic_file_unreadable": Kind(
        "error", "the panoptic annotation file cannot be read", "nothing of it can be used", "copy or export it again"
    ),
    "panoptic_folder_missing": Kind(
        "error",
        "the folder of panoptic maps is missing",
        "nothing of the panoptic annotations can be used",
        "unpack the maps into a folder named like the annotation file, beside it",
    ),
    "panoptic_field_wrong": Kind(
        "error",
        "field is missing or of a wrong type | fields are missing or of a wrong type",
        "these records cannot be used",
        "correct or remove them",
    ),
    "panoptic_category_twice": Kind(
        "error",
        "category id is used twice | category ids are used twice",
        "segments may get the wrong name",
        "give each category its own id",
    ),
    "panoptic_image_twice": Kind(
        "error",
        "image id is used twice | image ids are used twice",
        "maps cannot be told apart",
        "give each image its own id",
    ),
    "panoptic_map_twice": Kind(
        "error",
        "image or map file occurs in several annotations | images or map files occur in several annotations",
        "only one of the annotations of each is used",
        "keep one annotation for each image, each with a map of its own",
    ),
    "panoptic_image_unknown": Kind(
        "error",
        "annotation belongs to an image that the file does not have | "
        "annotations belong to images that the file does not have",
        _NO_USE,
        "add the images, or remove these",
    ),
    "panoptic_category_unknown": Kind(
        "error",
        "segment has a category that the file does not have | segments have categories that the file does not have",
        _NO_USE,
        "add the categories, or correct category_id",
    ),
    "panoptic_map_missing": Kind(
        "error", "map file is missing | map files are missing", _NO_USE, "unpack the archive of the maps again"
    ),
    "panoptic_map_damaged": Kind(
        "error",
        "map file cannot be decoded | map files cannot be decoded",
        _NO_USE,
        "unpack the archive of the maps again",
    ),
    "panoptic_map_mode": Kind(
        "error",
        "map is not a PNG file with 8 bits of red, green and blue | "
        "maps are not PNG files with 8 bits of red, green and blue",
        "segment ids (red + 256 green + 65536 blue) cannot be read from them",
        "write the maps as RGB PNG, without a palette or lossy compression",
    ),
    "panoptic_map_size": Kind(
        "error",
        "map has another size than the annotation file says | maps have another size than the annotation file says",
        "segments would lie in wrong places",
        "correct width and height, or export the maps again at the size of the images",
    ),
    "panoptic_channels_swapped": Kind(
        "error",
        "map has red and blue swapped | maps have red and blue swapped",
        "no segment is found in them",
        "write them as RGB: segment id = red + 256 green + 65536 blue",
    ),
    "panoptic_segment_twice": Kind(
        "error",
        "segment id occurs twice in one image | segment ids occur twice in one image",
        "one of the two segments is lost",
        "give each segment its own id, in the map too",
    ),
    "panoptic_segment_id": Kind(
        "error",
        "segment id cannot occur in a map | segment ids cannot occur in a map",
        _LOST,
        "use whole numbers from 1 to 16777215; 0 is unlabelled",
    ),
    "panoptic_segment_unlisted": Kind(
        "error",
        "map segment is not in the annotation file | map segments are not in the annotation file",
        _LOST,
        _AGAIN,
    ),
    "panoptic_segment_absent": Kind(
        "error",
        "segment has no pixel in its map | segments have no pixel in their map",
        "training meets objects that are nowhere",
        _AGAIN,
    ),
    "panoptic_image_missing": Kind(
        "error",
        "image file is missing | image files are missing",
        _NO_USE,
        "copy or download the files again, or correct their names",
    ),
    "panoptic_area_differs": Kind(
        "warning",
        "area is not the number of the segment's pixels | areas are not the number of the segment's pixels",
        "training and quality by size use wrong numbers",
        "write the number of pixels in the map",
    ),
    "panoptic_bbox_differs": Kind(
        "warning",
        "box is not that of the segment's pixels | boxes are not those of the segment's pixels",
        "detectors that learn from these boxes learn wrong places",
        "write [left, top, width, height] of the pixels in the map",
    ),
    "panoptic_iscrowd_wrong": Kind(
        "warning", "iscrowd is not 0 or 1", "crowds may be taken for single objects", "write 0 or 1"
    ),
    "panoptic_isthing_wrong": Kind(
        "warning",
        "category does not say whether it is a thing (isthing 0 or 1) | "
        "categories do not say whether they are things (isthing 0 or 1)",
        "quality of things and of stuff cannot be told apart",
        "write isthing 1 for what can be counted and 0 for the rest",
    ),
    "panoptic_image_unannotated": Kind(
        "warning",
        "image has no panoptic annotation | images have no panoptic annotation",
        "they are left out of panoptic training and evaluation",
        "annotate them, or remove them from the file",
    ),
    "panoptic_name_differs": Kind(
        "warning",
        "map is named after another image than it belongs to | maps are named after other images than they belong to",
        "tools that pair files by name pair them wrongly",
        "compare image_id and file_name, and correct the wrong one",
    ),
    "panoptic_map_unnamed": Kind(
        "note",
        "map file lies in the folder that no annotation names | map files lie in the folder that no annotation names",
        "they are not used",
        "remove or annotate them",
    ),
    "panoptic_color_twice": Kind(
        "note",
        "category shares a colour with another | categories share a colour with another",
        "they look alike in pictures",
        "give each category its own colour",
    ),
}
"""In the order in which they are told, the worst first."""

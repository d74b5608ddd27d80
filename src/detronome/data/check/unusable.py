"""The images that a repair removes: their file is missing or damaged, so that nothing can be learned from them."""

from __future__ import annotations

from detronome.data.check.image_cache import ImageCache
from detronome.data.check.image_names import ImageFolder
from detronome.data.check.image_verdict import judge_image
from detronome.data.split_files import SplitFiles
from detronome.data.store.index import AnnotationIndex

__all__ = ["HOPELESS", "unusable_images"]

HOPELESS = frozenset({"missing", "empty", "not_an_image", "truncated", "corrupt", "zero_size"})
"""Defects of a file that no setting and no correction of the annotations makes good."""


def unusable_images(files: SplitFiles, index: AnnotationIndex) -> dict[int, str]:
    """Return why a file cannot be used, by image id. Quick after `check_images`, whose verdicts are cached."""
    if files.shards is not None:
        return {}
    folder = ImageFolder(files.images_dir)
    cache = ImageCache(files.annotation_file, files.images_dir)
    reasons: dict[int, str] = {}
    for i in range(len(index)):
        image = index.image(i)
        if not folder.exists(image.file_name):
            if folder.in_other_case(image.file_name) is None:
                reasons[image.image_id] = f"{image.file_name} is missing"
            continue
        path = files.images_dir / image.file_name
        verdict = cache.get(cache.key(path, image.size_hw)) or judge_image(path, image.size_hw)
        if verdict.defect in HOPELESS:
            reasons[image.image_id] = f"{image.file_name}: {verdict.detail}"
    return reasons

"""Pictures as data URIs, small enough to travel with the page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from detronome.report.run_files import WorstImage
from detronome.report.run_folder import RunFolder

__all__ = ["ShownPicture", "gallery_of", "worst_of"]

_MAX_WIDTH_PX = 1080
_KEPT_BYTES = 90_000
"""A picture of at most this size and width is embedded as it is; others are made smaller."""
_QUALITY = 78


@dataclass(frozen=True, kw_only=True)
class ShownPicture:
    """One picture of the page."""

    uri: str
    """Empty where the file cannot be read."""
    caption: str
    note: str = ""
    score: str = ""


def gallery_of(run: RunFolder, limit: int) -> list[ShownPicture]:
    """Return the run's pictures, the first ones of many."""
    return [ShownPicture(uri=_data_uri(one.path), caption=one.caption) for one in run.pictures[:limit]]


def worst_of(run: RunFolder, limit: int) -> list[ShownPicture]:
    """Return the images that the model got wrong, worst first; those that have no picture are left out."""
    if run.details is None:
        return []
    shown = []
    for one in run.details.worst_images:
        path = _inside(run.path, one.picture or "") or _inside(run.path / "pictures", one.picture or "")
        if path is None:
            continue
        name = one.file or f"image {one.image_id}"
        f1 = "" if one.f1 is None else f"F1 {one.f1:.2f}"
        shown.append(ShownPicture(uri=_data_uri(path), caption=name, note=_mistakes(one), score=f1))
        if len(shown) == limit:
            break
    return shown


def _mistakes(one: WorstImage) -> str:
    counts = {
        "missed": one.missed,
        "on background": one.background,
        "of the wrong class": one.class_,
        "badly placed": one.location,
        "found twice": one.duplicate,
    }
    return " · ".join(f"{count} {what}" for what, count in counts.items() if count > 0)


def _inside(folder: Path, name: str) -> Path | None:
    """Return the file where it lies in the run folder: a page that is passed on must hold no file from elsewhere."""
    if not name or "\x00" in name:
        return None
    path = (folder / name).resolve()
    return path if path.is_relative_to(folder.resolve()) and path.is_file() else None


def _data_uri(path: Path) -> str:
    """Return the picture as a data URI, made smaller where it is larger than a page shows; empty if unreadable."""
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            kind = {"PNG": "png", "JPEG": "jpeg"}.get(image.format or "")
            if kind is None or image.width > _MAX_WIDTH_PX or len(content) > _KEPT_BYTES:
                content, kind = _smaller(image), "jpeg"
    except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError):
        return ""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _smaller(image: Image.Image) -> bytes:
    picture = image.convert("RGB")
    if picture.width > _MAX_WIDTH_PX:
        height = max(1, round(picture.height * _MAX_WIDTH_PX / picture.width))
        picture = picture.resize((_MAX_WIDTH_PX, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    return buffer.getvalue()

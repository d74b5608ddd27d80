"""Pictures of boxes and segments: the truth beside the prediction, readable on a thumbnail and on a photograph."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from detronome.errors import DataError
from detronome.runtime.files import write_atomic
from detronome.types import Segment

__all__ = ["class_color", "draw_boxes", "draw_segments", "save_picture", "side_by_side"]

Color = tuple[int, int, int]
_Rect = tuple[float, float, float, float]

_MIN_SIDE_PX = 480
"""Images with a shorter longest side are enlarged before drawing, so that labels can be read."""

_COLORS: tuple[Color, ...] = (
    (255, 99, 97),
    (64, 169, 255),
    (255, 199, 44),
    (61, 214, 140),
    (196, 118, 255),
    (255, 146, 56),
    (38, 209, 209),
    (255, 117, 190),
    (164, 217, 55),
    (124, 138, 255),
    (226, 166, 121),
    (159, 190, 211),
)
_BACKDROP: Color = (24, 27, 33)
_CAPTION: Color = (214, 219, 227)


def class_color(label: int) -> Color:
    """Return the RGB colour of a class: always the same for one label, and unlike that of its neighbours."""
    if 0 <= label < len(_COLORS):
        return _COLORS[label]
    hue = (label * 0.61803398875) % 1.0  # the golden ratio spreads hues evenly for any number of classes
    return _from_hue(hue, lightness=(0.62, 0.72, 0.55)[label % 3])


def draw_boxes(
    image: NDArray[np.uint8],
    boxes_xyxy: NDArray[np.floating],
    labels: Sequence[int] | NDArray[np.integer],
    *,
    names: Mapping[int, str] | None = None,
    scores: Sequence[float] | NDArray[np.floating] | None = None,
    colors: Mapping[int, Color] | None = None,
    may_enlarge: bool = True,
) -> NDArray[np.uint8]:
    """Return a copy of the image with its boxes, class names and scores drawn.

    Small images are enlarged by a whole factor to at least 480 px first. Large boxes are drawn before small ones.
    A label goes above its box, or wherever around it it hides the least; where boxes are so dense that it could
    only cover other labels it is left out, lowest scores first, and the colour alone names the class.

    Args:
        image: RGB, `[H, W, 3]`.
        boxes_xyxy: corners in pixels of `image`, `[N, 4]`; parts outside are cut, boxes wholly outside not drawn.
        labels: the class of each box, `[N]`.
        names: the name of each class; a class without one shows its number.
        scores: confidence of each box, 0-1, `[N]`; None draws no scores.
        colors: RGB by class; by default `class_color`.
        may_enlarge: enlarge small images; a frame of a video keeps its size.
    """
    height, width = image.shape[:2]
    canvas = Image.fromarray(np.ascontiguousarray(image)).convert("RGB")
    scale = max(1, -(-_MIN_SIDE_PX // max(height, width, 1))) if may_enlarge else 1
    if scale > 1:
        canvas = canvas.resize((width * scale, height * scale), Image.Resampling.BICUBIC)
    boxes = np.asarray(boxes_xyxy, dtype=np.float64).reshape(-1, 4) * scale
    order, boxes = _visible(boxes, canvas.width, canvas.height)
    if not order:
        return np.asarray(canvas)

    draw = ImageDraw.Draw(canvas)
    side = max(canvas.size)
    line = max(2, round(side / 330))
    palette = [(colors or {}).get(int(labels[i])) or class_color(int(labels[i])) for i in order]
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    for index in np.argsort(-areas, kind="stable"):
        _draw_frame(draw, boxes[index], palette[index], line, canvas.size)

    crowd = 1.0 if len(order) <= 12 else 0.85
    font = _font(round(max(12.0, side / 46) * crowd))
    captions = [_caption(int(labels[i]), names, None if scores is None else float(scores[i])) for i in order]
    priority = np.argsort(-np.asarray(scores, dtype=np.float64)[order]) if scores is not None else np.argsort(areas)
    placed: list[_Rect] = []
    for index in priority:
        spot = _place(boxes[index], _text_size(captions[index], font, line), boxes, placed, canvas.size)
        if spot is not None:
            placed.append(spot)
            _draw_label(draw, spot, captions[index], palette[index], font, line)
    return np.asarray(canvas)


def draw_segments(
    image: NDArray[np.uint8],
    segment_ids: NDArray[np.integer],
    segments: Sequence[Segment],
    *,
    names: Mapping[int, str] | None = None,
    with_scores: bool = True,
    may_enlarge: bool = True,
) -> NDArray[np.uint8]:
    """Return a copy of the image with each segment in its class's colour, a line around it and its name inside.

    Things of a class differ in shade. Small images are enlarged as by `draw_boxes`. Names go to the large segments
    first; one that could only cover another is left out.

    Args:
        image: RGB, `[H, W, 3]`.
        segment_ids: the segment of each pixel, `[H, W]`; 0 stays as it is.
        segments: what the ids mean.
        names: by category id; a category without one shows its number.
        with_scores: write the score beside the name.
        may_enlarge: as for `draw_boxes`.
    """
    height, width = image.shape[:2]
    scale = max(1, -(-_MIN_SIDE_PX // max(height, width, 1))) if may_enlarge else 1
    canvas = Image.fromarray(np.ascontiguousarray(image)).convert("RGB")
    canvas = canvas.resize((width * scale, height * scale), Image.Resampling.BICUBIC)
    ids = segment_ids.repeat(scale, 0).repeat(scale, 1)
    tinted = np.array(canvas, np.float32)
    colors = _shades(segments)
    for segment in segments:
        region = ids == segment.id
        tinted[region] = 0.45 * tinted[region] + 0.55 * np.array(colors[segment.id], np.float32)
    is_edge = np.zeros(ids.shape, np.bool_)
    is_edge[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    is_edge[1:] |= ids[1:] != ids[:-1]
    tinted[is_edge] = 255
    canvas = Image.fromarray(tinted.round().astype(np.uint8))

    draw = ImageDraw.Draw(canvas)
    side = max(canvas.size)
    line, font = max(2, round(side / 330)), _font(round(max(12.0, side / 52)))
    placed: list[_Rect] = []
    for segment in sorted(segments, key=lambda one: -one.area):
        caption = _caption(segment.category_id, names, segment.score if with_scores else None)
        wide, high = _text_size(caption, font, line)
        x, y = _centre(ids == segment.id)
        left = min(max(x - wide / 2, 0.0), max(canvas.width - 1 - wide, 0.0))
        top = min(max(y - high / 2, 0.0), max(canvas.height - 1 - high, 0.0))
        spot = (left, top, left + wide, top + high)
        if all(_overlap(spot, other) == 0 for other in placed):
            placed.append(spot)
            _draw_label(draw, spot, caption, colors[segment.id], font, line)
    return np.asarray(canvas)


def side_by_side(
    truth: NDArray[np.uint8],
    prediction: NDArray[np.uint8],
    *,
    captions: tuple[str, str] = ("truth", "prediction"),
) -> NDArray[np.uint8]:
    """Return one picture with the truth beside the prediction under small captions.

    Wide images are stacked instead, so that both stay large. The prediction is resized to the truth's size where
    they differ.
    """
    left, right = Image.fromarray(truth), Image.fromarray(prediction)
    if right.size != left.size:
        right = right.resize(left.size, Image.Resampling.LANCZOS)
    width, height = left.size
    font = _font(round(max(13.0, max(width, height) / 48)))
    strip = round(_line_height(font) * 1.7)
    gap = max(4, round(max(width, height) / 130))
    is_stacked = width > 2.2 * height
    size = (width, 2 * (height + strip)) if is_stacked else (2 * width + gap, height + strip)
    sheet = Image.new("RGB", size, _BACKDROP)
    draw = ImageDraw.Draw(sheet)
    for number, (picture, caption) in enumerate(zip((left, right), captions, strict=True)):
        x = 0 if is_stacked else number * (width + gap)
        y = number * (height + strip) if is_stacked else 0
        draw.text((x + strip * 0.35, y + strip / 2), caption, fill=_CAPTION, font=font, anchor="lm")
        sheet.paste(picture, (x, y + strip))
    return np.asarray(sheet)


def save_picture(image: NDArray[np.uint8], path: Path) -> None:
    """Write an RGB image as JPEG or PNG, by the file's extension, through a temporary name.

    Raises:
        DataError: the extension is neither.
    """
    formats = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}
    kind = formats.get(path.suffix.lower())
    if kind is None:
        raise DataError(
            f"pictures cannot be written as {path.suffix or 'a file without extension'}",
            where=str(path),
            fix=f"use one of {', '.join(formats)}",
        )
    buffer = io.BytesIO()
    picture = Image.fromarray(image)
    if kind == "JPEG":
        picture.save(buffer, kind, quality=90, subsampling=0, optimize=True)
    else:
        picture.save(buffer, kind, optimize=True)
    write_atomic(path, buffer.getvalue())


def _visible(boxes: NDArray[np.float64], width: int, height: int) -> tuple[list[int], NDArray[np.float64]]:
    """Return which boxes touch the picture, and those boxes cut to it, at least a few pixels large."""
    limits = np.array([width - 1, height - 1, width - 1, height - 1], dtype=np.float64)
    is_finite = np.isfinite(boxes).all(axis=1)
    with np.errstate(invalid="ignore"):
        is_inside = (boxes[:, 2] >= 0) & (boxes[:, 3] >= 0) & (boxes[:, 0] <= limits[0]) & (boxes[:, 1] <= limits[1])
        is_box = (boxes[:, 2] >= boxes[:, 0]) & (boxes[:, 3] >= boxes[:, 1])
    order = np.flatnonzero(is_finite & is_inside & is_box)
    return order.tolist(), np.clip(boxes[order], 0, limits)


def _draw_frame(
    draw: ImageDraw.ImageDraw, box: NDArray[np.float64], color: Color, line: int, size: tuple[int, int]
) -> None:
    """Draw a frame with a thin dark edge, so that it stands out on any picture."""
    x0, y0, x1, y1 = (round(value) for value in box)
    edge = max(1, line // 3)
    # A one-pixel object would vanish under its own frame: give it room, inside the picture.
    least = 2 * line + 2
    if x1 - x0 < least:
        x0 = max(0, min(x0 - (least - x1 + x0) // 2, size[0] - 1 - least))
        x1 = min(size[0] - 1, x0 + least)
    if y1 - y0 < least:
        y0 = max(0, min(y0 - (least - y1 + y0) // 2, size[1] - 1 - least))
        y1 = min(size[1] - 1, y0 + least)
    draw.rectangle((x0 - edge, y0 - edge, x1 + edge, y1 + edge), outline=_BACKDROP, width=edge)
    draw.rectangle((x0, y0, x1, y1), outline=color, width=line)


def _place(
    box: NDArray[np.float64],
    text_size: tuple[float, float],
    boxes: NDArray[np.float64],
    placed: Sequence[_Rect],
    size: tuple[int, int],
) -> _Rect | None:
    """Return where the label hides the least, or None where it would cover a good part of another label."""
    x0, y0, x1, y1 = box.tolist()
    wide, high = text_size
    corners = (
        (x0, y0 - high),  # above, the place where readers look
        (x1 - wide, y0 - high),
        (x0, y1),  # below
        (x1 - wide, y1),
        (x1, y0),  # beside
        (x0 - wide, y0),
        (x0, y0),  # inside
        (x1 - wide, y1 - high),
    )
    best: tuple[float, _Rect | None] = (float("inf"), None)
    for rank, (wanted_left, wanted_top) in enumerate(corners):
        left = min(max(wanted_left, 0.0), max(size[0] - 1 - wide, 0.0))
        top = min(max(wanted_top, 0.0), max(size[1] - 1 - high, 0.0))
        spot = (left, top, left + wide, top + high)
        area = wide * high
        on_labels = sum(_overlap(spot, other) for other in placed) / area
        on_self = _overlap(spot, (x0, y0, x1, y1)) / area
        on_boxes = float(_overlaps(spot, boxes).sum()) / area
        cost = 12 * on_labels + 1.5 * on_self + 0.6 * min(on_boxes, 2.0) + 0.05 * rank
        if on_labels < 0.2 and cost < best[0]:
            best = (cost, spot)
    return best[1]


def _shades(segments: Sequence[Segment]) -> dict[int, Color]:
    """Return the colour of each segment: its class's, lighter or darker from one thing to the next."""
    seen: dict[int, int] = {}
    colors = {}
    for segment in segments:
        number = seen[segment.category_id] = seen.get(segment.category_id, -1) + 1
        towards, share = (255, 0)[number % 2], min(0.5, 0.2 * ((number + 1) // 2))
        red, green, blue = (round(c + share * (towards - c)) for c in class_color(segment.category_id))
        colors[segment.id] = (red, green, blue)
    return colors


def _centre(region: NDArray[np.bool_]) -> tuple[int, int]:
    """Return (x, y) of the region's pixel that is nearest to its mean: inside it, whatever its form."""
    rows, columns = np.nonzero(region)
    if not len(rows):
        return 0, 0
    nearest = ((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2).argmin()
    return int(columns[nearest]), int(rows[nearest])


def _overlap(a: _Rect, b: _Rect) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _overlaps(a: _Rect, boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    across = np.minimum(a[2], boxes[:, 2]) - np.maximum(a[0], boxes[:, 0])
    down = np.minimum(a[3], boxes[:, 3]) - np.maximum(a[1], boxes[:, 1])
    overlaps: NDArray[np.float64] = across.clip(min=0) * down.clip(min=0)
    return overlaps


def _draw_label(
    draw: ImageDraw.ImageDraw, spot: _Rect, text: str, color: Color, font: ImageFont.FreeTypeFont, line: int
) -> None:
    x0, y0, x1, y1 = (round(value) for value in spot)
    draw.rounded_rectangle((x0, y0, x1, y1), radius=max(2, line), fill=color)
    draw.text((x0 + 2 * line, (y0 + y1) / 2), text, fill=_text_color(color), font=font, anchor="lm")


def _caption(label: int, names: Mapping[int, str] | None, score: float | None) -> str:
    name = (names or {}).get(label, str(label))
    name = name if len(name) <= 24 else f"{name[:22]}…"
    return name if score is None else f"{name} {score:.2f}"


def _text_size(text: str, font: ImageFont.FreeTypeFont, line: int) -> tuple[float, float]:
    return font.getlength(text) + 4 * line, _line_height(font) + max(2, line)


def _line_height(font: ImageFont.FreeTypeFont) -> int:
    ascent, descent = font.getmetrics()
    return int(ascent + descent)


def _text_color(background: Color) -> Color:
    red, green, blue = background
    return (18, 20, 24) if 0.299 * red + 0.587 * green + 0.114 * blue > 120 else (255, 255, 255)


@lru_cache(maxsize=16)
def _font(size_px: int) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans, which comes with matplotlib and knows Latin, Greek and Cyrillic, or Pillow's own font."""
    spec = find_spec("matplotlib")
    folders = list(spec.submodule_search_locations or []) if spec is not None else []
    for folder in folders:
        file = Path(folder) / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if file.exists():
            return ImageFont.truetype(str(file), size_px)
    font = ImageFont.load_default(size_px)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def _from_hue(hue: float, lightness: float) -> Color:
    """Return a saturated colour of this hue (0-1) and lightness (0-1)."""

    def channel(offset: float) -> int:
        distance = abs((hue + offset) % 1.0 * 6 - 3) - 1
        full = min(1.0, max(0.0, distance))
        return round(255 * (lightness + 0.8 * (full - 0.5) * (1 - abs(2 * lightness - 1))))

    return channel(0.0), channel(-1 / 3 + 1.0), channel(-2 / 3 + 1.0)

"""The picture of accuracy against time: it is drawn for any points, and names what it recommends."""

import io

import pytest
from matplotlib.axes import Axes
from PIL import Image

from detronome.report.trade_off import TradeOff, draw_trade_offs


def point(time: float, quality: float, label: str = "1 layer", *, is_recommended: bool = False) -> TradeOff:
    return TradeOff(
        group="64 px",
        label=label,
        time=time,
        time_interval=(0.9 * time, 1.1 * time),
        quality=quality,
        is_on_front=True,
        is_recommended=is_recommended,
    )


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The labels that are written beside points."""
    labels: list[str] = []
    annotate = Axes.annotate

    def spy(axes: Axes, text: str, *args: object, **kwargs: object) -> object:
        labels.append(text)
        return annotate(axes, text, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Axes, "annotate", spy)
    return labels


def test_a_single_point_is_drawn(written: list[str]) -> None:
    with Image.open(io.BytesIO(draw_trade_offs([point(1.0, 0.5)], metric="AP"))) as picture:
        assert picture.format == "PNG" and picture.size[0] > 500
    assert written == ["1 layer"]


def test_labels_that_would_cover_each_other_are_left_out_the_recommended_one_last(written: list[str]) -> None:
    points = [point(1.0, 0.5, "far"), point(0.5, 0.2, "$a$"), point(0.501, 0.201, "b", is_recommended=True)]
    draw_trade_offs(points, metric="PQ")
    assert written == ["b (recommended)", "far"]


def test_the_same_points_make_the_same_bytes() -> None:
    points = [point(1.0, 0.5), point(0.4, 0.4)]
    assert draw_trade_offs(points, metric="AP") == draw_trade_offs(points, metric="AP")

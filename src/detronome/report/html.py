"""The report: one HTML page about one run, or several compared, that needs nothing but a browser."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from detronome.report.formats import format_duration
from detronome.report.frame import Chart
from detronome.report.page.comparison import compare_runs
from detronome.report.page.events import MAX_ROWS_OF_A_KIND
from detronome.report.page.run_view import view_run
from detronome.report.run_folder import read_run_folders
from detronome.report.svg import FALLBACK_COLORS, with_own_ids
from detronome.runtime.files import write_atomic

__all__ = ["write_report"]

_MAX_PICTURES = 12
"""Of a kind and run on a page of one or two runs; fewer where there are more, so that the page can be sent around."""
_LEAST_PICTURES = 4
_TEMPLATES = Path(__file__).parent / "page"


def write_report(run_dirs: Sequence[Path], out: Path) -> Path:
    """Write one self-contained HTML page about these runs and return its path.

    With several runs the page starts with what differs between them. Whatever a run lacks (it has not ended, was
    never evaluated, has no pictures) is said on the page.

    Args:
        run_dirs: run folders, at least one.
        out: the file to write; a folder that exists gets `report.html`.

    Raises:
        DataError: a folder is no run, or its log is damaged.
    """
    assert run_dirs, "a report needs a run"
    if out.is_dir():
        out = out / "report.html"
    runs = read_run_folders(run_dirs)
    max_pictures = max(_LEAST_PICTURES, min(_MAX_PICTURES, 2 * _MAX_PICTURES // len(runs)))
    page = (
        _environment()
        .get_template("page.html.j2")
        .render(
            title=runs[0].name if len(runs) == 1 else f"{len(runs)} runs compared",
            runs=[view_run(run, max_pictures=max_pictures) for run in runs],
            comparison=compare_runs(runs) if len(runs) > 1 else None,
            num_series=len(FALLBACK_COLORS),
            max_rows=MAX_ROWS_OF_A_KIND,
            style=Markup((_TEMPLATES / "style.css").read_text(encoding="utf-8")),
        )
    )
    write_atomic(out, page.encode("utf-8", "replace"))  # names of files may hold what is no UTF-8
    return out


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    numbers = itertools.count()
    environment.filters["svg"] = lambda chart: _trusted_svg(chart, f"c{next(numbers)}-")
    environment.filters["duration"] = format_duration
    environment.filters["breakable"] = _breakable
    return environment


def _breakable(name: str) -> Markup:
    """Return a dotted name that may be broken after its dots and underscores, and nowhere else where that is enough."""
    return Markup(re.sub(r"([._])(?=.)", r"\1<wbr>", str(escape(name))))


def _trusted_svg(chart: Chart, prefix: str) -> Markup:
    return Markup(with_own_ids(chart.svg, prefix))

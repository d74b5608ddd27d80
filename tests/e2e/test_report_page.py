"""The report page in a real browser: Chromium, headless, at the width of a phone and of a desktop, and on paper.

Skipped where there is no Chromium. The page carries no script; a second page loads it into a frame of the width to try,
looks at it, and writes what it found into its own document, which `--dump-dom` prints.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from tests.unit.report.full_run import write_full_run

from detronome.report.html import write_report

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_BROWSER = next(filter(None, map(shutil.which, _BROWSERS)), None)
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--disable-dev-shm-usage",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)
_WIDTHS_PX = (390, 1280)
_HEIGHT_PX = 900

pytestmark = pytest.mark.skipif(_BROWSER is None, reason="no Chromium here")

_EXAMINE = """<!doctype html><meta charset="utf-8"><body style="margin:0">
<iframe id="page" src="PAGE" style="border:0; width:WIDTHpx; height:HEIGHTpx"></iframe><pre id="found"></pre>
<script>
const frame = document.getElementById("page");
const found = {errors: []};
addEventListener("error", event => found.errors.push(String(event.message)));
frame.addEventListener("load", () => {
  const page = frame.contentDocument, view = frame.contentWindow;
  page.querySelectorAll("details").forEach(details => details.open = true);
  const width = page.documentElement.clientWidth;
  const inScroller = element => {
    for (let up = element.parentElement; up; up = up.parentElement)
      if (["auto", "scroll", "hidden"].includes(view.getComputedStyle(up).overflowX)) return true;
    return false;
  };
  const outside = [...page.querySelectorAll("body *")].filter(element => {
    const box = element.getBoundingClientRect();
    return box.width > 0 && box.right > width + 1 && !element.closest("svg") && !inScroller(element);
  });
  found.width = view.innerWidth;
  found.scroll_width = page.documentElement.scrollWidth;
  found.outside = outside.slice(0, 5).map(
    element => `${element.tagName}.${element.className} ${element.textContent.slice(0, 40)}`);
  found.images = [...page.images].map(image => image.naturalWidth);
  found.charts = [...page.querySelectorAll(".chart svg")].map(svg => svg.getBoundingClientRect().height);
  const texts = [...page.querySelectorAll(".chart svg text")];
  found.smallest_text_px = Math.min(...texts.map(text => text.getBoundingClientRect().height));
  found.headings = [...page.querySelectorAll("h2")].map(heading => heading.textContent.trim());
  const loaded = view.performance.getEntriesByType("resource").map(entry => entry.name);
  found.requests = loaded.filter(name => !name.startsWith("data:"));
  document.getElementById("found").textContent = JSON.stringify(found);
});
</script>"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages of one run, of one with twenty classes of long names, and of three compared."""
    folder = tmp_path_factory.mktemp("pages")
    runs = [
        write_full_run(folder / "steady", epochs=6),
        write_full_run(folder / "few-workers", epochs=6, lr=5e-5, wait=9, verdict="DATA"),
        write_full_run(folder / "a-name-that-is-longer-than-any-phone-is-wide-and-then-some", epochs=6, lr=3e-5),
    ]
    names = tuple(f"{'a_very_long_class_name_' * 3}{number}" for number in range(20))
    long_names = write_full_run(folder / "long-names", classes=names, epochs=2)
    return {
        "run": write_report(runs[:1], folder / "run.html"),
        "long-names": write_report([long_names], folder / "long-names.html"),
        "compared": write_report(runs, folder / "compared.html"),
    }


@pytest.mark.parametrize("width_px", _WIDTHS_PX)
@pytest.mark.parametrize("name", ["run", "long-names", "compared"])
def test_the_page_fits_its_screen_and_shows_all_it_has(
    pages: dict[str, Path], name: str, width_px: int, tmp_path: Path
) -> None:
    found, messages = _examine(pages[name], width_px, tmp_path)
    assert found["errors"] == [] and messages == []
    assert found["width"] == width_px
    assert found["outside"] == []
    assert found["scroll_width"] <= width_px
    assert found["images"] and min(found["images"]) > 0
    assert found["charts"] and min(found["charts"]) > 100
    assert found["smallest_text_px"] >= 8
    assert found["requests"] == []


def test_an_element_that_is_too_wide_is_found(pages: dict[str, Path], tmp_path: Path) -> None:
    page = tmp_path / "wide.html"
    wide = '<div style="width: 700px">too wide</div></main><img alt="broken" src="data:image/png;base64,AAAA">'
    page.write_text(pages["run"].read_text(encoding="utf-8").replace("</main>", wide), encoding="utf-8")
    found, _ = _examine(page, 390, tmp_path)
    assert "DIV. too wide" in found["outside"] and found["scroll_width"] > 390 and min(found["images"]) == 0


@pytest.mark.parametrize("name", ["run", "compared"])
def test_the_page_prints(pages: dict[str, Path], name: str, tmp_path: Path) -> None:
    out = tmp_path / "page.pdf"
    _browse(tmp_path, f"--print-to-pdf={out}", "--no-pdf-header-footer", pages[name].as_uri())
    content = out.read_bytes()
    assert content.startswith(b"%PDF")
    num_pages = max(int(count) for count in re.findall(rb"/Count (\d+)", content))
    assert 2 <= num_pages <= 60


@pytest.mark.parametrize("name", ["run", "compared"])
def test_nothing_on_the_page_points_to_the_network(pages: dict[str, Path], name: str) -> None:
    text = pages[name].read_text(encoding="utf-8")
    assert "default-src 'none'" in text
    for address in re.findall(r'(?:src|href|action|srcset|poster)="([^"]*)"', text):
        assert address.startswith(("data:image/", "#")), address
    assert not re.findall(r"url\((?!#)|@import", text)


def _examine(page: Path, width_px: int, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Return what the page is like at this width, and what the browser had to say about it."""
    wrapper = folder / f"examine-{width_px}.html"
    script = _EXAMINE.replace("WIDTH", str(width_px)).replace("HEIGHT", str(_HEIGHT_PX)).replace("PAGE", page.as_uri())
    wrapper.write_text(script, encoding="utf-8")
    result = _browse(
        folder,
        "--allow-file-access-from-files",
        "--enable-logging=stderr",
        "--virtual-time-budget=20000",
        f"--window-size={max(width_px, 800)},{_HEIGHT_PX}",
        "--dump-dom",
        wrapper.as_uri(),
    )
    found = re.search(r'<pre id="found">(.*?)</pre>', result.stdout, flags=re.DOTALL)
    assert found and found[1], f"the page was not examined: {result.stderr[-2000:]}"
    messages = [line for line in result.stderr.splitlines() if ":CONSOLE" in line]
    return json.loads(unescape(found[1])), messages


def _browse(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the browser once, with a profile of its own; it is gone when this returns."""
    assert _BROWSER is not None
    command = [_BROWSER, *_FLAGS, f"--user-data-dir={folder / 'profile'}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)

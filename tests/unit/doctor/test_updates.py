"""What is behind an index of ours on the loopback: what may rise, what is held, and what does not answer."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from detronome.doctor.child import Answer
from detronome.doctor.findings import Severity
from detronome.doctor.indexes import Indexes
from detronome.doctor.install import Installer
from detronome.doctor.packages import Inventory
from detronome.doctor.probes import index as probe
from detronome.doctor.updates import Updates, judge_updates

MINOR = sys.version_info.minor
MARKER = {"python_version": f"3.{MINOR}", "sys_platform": sys.platform}


class Index:
    """A package index: pages by path, as (status, content type, body), and how long it waits."""

    def __init__(self) -> None:
        self.pages: dict[str, tuple[int, str, str]] = {}
        self.wait_s = 0.0
        self.asked: list[str] = []
        index = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                index.asked.append(self.path)
                time.sleep(index.wait_s)
                status, kind, body = index.pages.get(self.path, (404, "text/plain", "no such page"))
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body.encode())))
                if status == 301:
                    self.send_header("Location", body)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/simple"

    def has(self, name: str, *files: Any) -> None:
        """Let it have files: names, or records with `yanked` and `requires-python`."""
        records = [{"filename": file} if isinstance(file, str) else file for file in files]
        page = json.dumps({"meta": {"api-version": "1.1"}, "name": name, "files": records})
        self.pages[f"/simple/{name}/"] = (200, "application/vnd.pypi.simple.v1+json", page)


@pytest.fixture
def index() -> Iterator[Index]:
    found = Index()
    yield found
    found.server.shutdown()
    found.server.server_close()


def ask(monkeypatch: pytest.MonkeyPatch, names: list[str], *urls: str, is_first_enough: bool = False) -> dict[str, Any]:
    monkeypatch.setattr(probe, "_asked", lambda: names)
    monkeypatch.setattr(probe, "_indexes", lambda: Indexes(urls=urls, is_first_enough=is_first_enough))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    return probe.releases()


def wheel(name: str, number: str, tags: str = "py3-none-any", **record: Any) -> dict[str, Any]:
    return {"filename": f"{name}-{number}-{tags}.whl", **record}


def test_nothing_is_asked_for_nothing(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask(monkeypatch, [], index.url)["packages"] == {}
    assert index.asked == []


def test_only_releases_that_can_be_installed_here_count(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    system = {"linux": "manylinux_2_28_x86_64", "darwin": "macosx_11_0_universal2", "win32": "win_amd64"}[sys.platform]
    monkeypatch.setattr(probe.platform, "machine", lambda: "x86_64")
    index.has(
        "rich",
        wheel("rich", "1.0"),
        wheel("rich", "1.1", f"cp3{MINOR}-cp3{MINOR}-{system}"),
        wheel("rich", "1.2", f"cp38-abi3-{system}"),
        "rich-1.3.tar.gz",
        wheel("rich", "1.4", **{"requires-python": f"<=3.{MINOR + 1}"}),
        wheel("rich", "2.0rc1"),
        wheel("rich", "2.1", yanked="it deletes files"),
        wheel("rich", "2.2", yanked=True),
        wheel("rich", "2.3", **{"requires-python": f">=3.{MINOR + 1}"}),
        wheel("rich", "2.4", f"cp3{MINOR + 1}-cp3{MINOR + 1}-{system}"),
        wheel("rich", "2.5", f"cp3{MINOR}-cp3{MINOR}-manylinux_2_28_s390x"),
        wheel("rich", "2.6", f"cp3{MINOR + 1}-abi3-{system}"),
        wheel("rich", "2.7", f"cp3{MINOR}-cp3{MINOR}t-{system}"),
        wheel("other", "3.0"),
        "rich-3.1.exe",
        "rich-what.tar.gz",
        "rich-3.2.dev1.tar.gz",
    )
    found = ask(monkeypatch, ["rich"], index.url)["packages"]["rich"]
    assert found["releases"] == ["1.0", "1.1", "1.2", "1.3", "1.4"]
    assert found["holes"] is None


def test_a_page_of_html_says_the_same(index: Index, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page = f"""<!DOCTYPE html><html><body>
<a href="../../files/rich-1.0-py3-none-any.whl#sha256=00" data-requires-python="&gt;=3.8">rich-1.0</a><br/>
<a href="/files/rich-1.1.tar.gz">x</a> <a href="rich-1.2.tar.gz" data-yanked="">x</a>
<a href="rich-1.3.tar.gz" data-requires-python="&gt;=3.{MINOR + 1}">x</a> <a>nothing</a>
"""
    index.pages["/simple/rich/"] = (200, "text/html; charset=utf-8", page)
    assert ask(monkeypatch, ["rich"], index.url)["packages"]["rich"]["releases"] == ["1.0", "1.1"]
    (tmp_path / "rich").mkdir()
    (tmp_path / "rich" / "index.html").write_text(page)
    assert ask(monkeypatch, ["rich"], tmp_path.as_uri())["packages"]["rich"]["releases"] == ["1.0", "1.1"]
    assert "does not have it" in ask(monkeypatch, ["none"], tmp_path.as_uri())["packages"]["none"]["error"]


def test_the_name_of_a_folder_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "a%20b #1" / "rich"
    folder.mkdir(parents=True)
    (folder / "rich-1.0-py3-none-any.whl").touch()
    for url in (folder.parent.as_uri(), str(folder.parent)):
        assert ask(monkeypatch, ["rich"], url)["packages"]["rich"]["releases"] == ["1.0"]


def test_a_folder_that_may_not_be_read_hides_no_other_index(
    index: Index, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    index.has(
        "rich", wheel("rich", "1.0"), wheel("rich", "9" * 5000), wheel("rich", "2.0", f"cp3{'9' * 5000}-abi3-any")
    )

    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_dir", refuse)
    found = ask(monkeypatch, ["rich", "none"], tmp_path.as_uri(), index.url)["packages"]
    assert found["rich"]["releases"] == ["1.0"]
    assert "cannot be read: PermissionError" in found["none"]["error"]


def test_several_indexes(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Index()
    index.has("rich", wheel("rich", "1.0"))
    other.has("rich", wheel("rich", "2.0"))
    other.has("scipy", wheel("scipy", "3.0"))
    all_of_them = ask(monkeypatch, ["rich", "scipy"], index.url, other.url)["packages"]
    assert all_of_them["rich"]["releases"] == ["1.0", "2.0"] and all_of_them["scipy"]["releases"] == ["3.0"]
    first = ask(monkeypatch, ["rich", "scipy"], index.url, other.url, is_first_enough=True)["packages"]
    assert first["rich"]["releases"] == ["1.0"] and first["scipy"]["releases"] == ["3.0"]
    other.server.shutdown()
    other.server.server_close()


def test_holes_of_the_installed_release_are_told(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    index.has("rich", wheel("rich", "99.0"))
    holes = [
        {"id": "PYSEC-1", "aliases": ["CVE-2026-1", "GHSA-x"], "fixed_in": ["99.0"], "summary": "it leaks"},
        {"id": "PYSEC-2", "withdrawn": "2026-01-01T00:00:00Z"},
        {"id": "GHSA-3", "aliases": [], "fixed_in": [], "summary": None},
    ]
    page = (200, "application/json", json.dumps({"info": {}, "vulnerabilities": holes}))
    index.pages[f"/pypi/rich/{version('rich')}/json"] = page
    assert ask(monkeypatch, ["rich"], index.url)["packages"]["rich"]["holes"] == [
        {"id": "CVE-2026-1", "fixed_in": ["99.0"], "summary": "it leaks"},
        {"id": "GHSA-3", "fixed_in": [], "summary": ""},
    ]


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ((500, "text/plain", "no"), "HTTP 500"),
        ((401, "text/plain", "who are you"), "HTTP 401"),
        ((200, "application/json", "{"), "gives no list of files"),
        ((200, "application/json", "[]"), "gives no list of files"),
        ((200, "application/json", '{"files": [3]}'), "gives no list of files"),
        ((404, "text/plain", ""), "does not have it"),
        ((301, "text/plain", "/simple/rich/"), "cannot be asked"),
    ],
)
def test_an_index_that_answers_nonsense(
    page: tuple[int, str, str], words: str, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.pages["/simple/rich/"] = page
    address = index.url.replace("http://", "http://me:secret@")
    found = ask(monkeypatch, ["rich"], address)
    assert words in found["packages"]["rich"]["error"]
    assert "secret" not in json.dumps(found)


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = time.monotonic()
    names = [f"package-{number}" for number in range(40)]
    found = ask(monkeypatch, names, "http://127.0.0.1:9/simple", "http://no.such.host.invalid/simple", "nonsense://x")
    assert time.monotonic() - begin < probe.BUDGET_S
    assert all("cannot be asked: ConnectError" in facts["error"] for facts in found["packages"].values())


def test_an_index_that_is_slow_is_not_waited_for(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "BUDGET_S", 0.5)
    index.wait_s = 5
    begin = time.monotonic()
    found = ask(monkeypatch, ["rich", "scipy"], index.url)
    assert time.monotonic() - begin < 4
    assert [facts["error"] for facts in found["packages"].values()] == ["no answer within 0 s"] * 2


def test_the_command_asks_the_configured_index(index: Index, tmp_path: Path) -> None:
    """The whole, for real: pip and uv name an index each time in their own way."""
    index.has("rich", wheel("rich", "99.0"), wheel("rich", "98.0"))
    command = [sys.executable, "-c", "from detronome.cli import main; main()", "doctor", "--updates", "--json"]
    variables = {"PIP_INDEX_URL": index.url, "UV_DEFAULT_INDEX": index.url, "PIP_CONFIG_FILE": os.devnull}
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environment = {**kept, **variables, "UV_NO_CONFIG": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    record = json.loads(done.stdout)
    (update,) = record["updates"]
    assert (update["package"], update["newest"], update["allowed"]) == ("rich", "99.0", "99.0")
    assert update["installed"] == version("rich") and "rich==99.0" in record["fixes"][0]
    assert record["indexes"] == [index.url]
    (finding,) = record["findings"]  # this index has nothing else
    assert "numpy" in finding["evidence"] and finding["cause"] == "the index does not have it"
    assert "/simple/rich/" in index.asked


INSTALLED = {
    "detronome": ("1.0", ["torch>=2.11", "torchvision>=0.26", "numpy>=1.26", "hotcoco<2", "nncf>=2; extra == 'int8'"]),
    "torch": ("2.14.0+cpu", []),
    "torchvision": ("0.29.0+cpu", ["torch==2.14.0"]),
    "numpy": ("2.4.0", []),
    "hotcoco": ("1.3.0", []),
    "pillow": ("11.0.0", []),
    "nncf": ("3.4.0", ["numpy<2.5", "unseen; extra == 'x'"]),
    "far": ("0.1", ["numpy<2; extra == 'old'"]),
}


def judged(packages: dict[str, Any], *, installer: Installer | None = None, **facts: Any) -> Updates:
    entries = {
        name: {"version": number, "place": "/env", "requires": asked} for name, (number, asked) in INSTALLED.items()
    }
    inventory = Inventory(
        python={"marker": MARKER, "executable": "/env/bin/python"},
        packages={"packages": entries},
        installer=installer or Installer(command="pip"),
    )
    told = {"indexes": ["https://i/simple"], "is_off": False, "packages": packages, **facts}
    return judge_updates(Answer(probe="p", end="answered", facts=told), inventory, seconds=1.0)


def has(*releases: str, holes: list[Any] | None = None) -> dict[str, Any]:
    return {"releases": list(releases), "holes": holes}


def test_all_are_the_newest() -> None:
    found = judged({"numpy": has("2.4.0", "2.3.9"), "hotcoco": has()})
    assert (found.updates, found.findings, found.fixes, found.exit_code) == ([], [], [], 0)
    assert found.num_asked == 2
    assert json.loads(json.dumps(found.to_record()))["updates"] == []


def test_what_is_behind_is_no_fault() -> None:
    found = judged({"hotcoco": has("1.3.0", "1.10.0", "1.9.0")})
    (update,) = found.updates
    assert (update.installed, update.newest, update.allowed, update.held_by) == ("1.3.0", "1.10.0", "1.10.0", ())
    assert found.fixes == ["pip install --upgrade hotcoco==1.10.0"] and found.exit_code == 0


def test_ranges_of_ours_and_of_others_hold_a_package() -> None:
    hotcoco, numpy = judged({"hotcoco": has("1.4", "2.0"), "numpy": has("2.4.9", "2.5.1")}).updates
    assert (hotcoco.newest, hotcoco.allowed, list(hotcoco.held_by)) == ("2.0", "1.4", ["detronome 1.0 needs hotcoco<2"])
    assert (numpy.newest, numpy.allowed, list(numpy.held_by)) == ("2.5.1", "2.4.9", ["nncf 3.4.0 needs numpy<2.5"])
    (numpy,) = judged({"numpy": has("2.5.1")}).updates
    assert (numpy.allowed, numpy.fix) == ("", "")


def test_torch_and_torchvision_rise_together_from_the_index_of_their_build() -> None:
    found = judged({"torch": has("2.15.0"), "torchvision": has("0.29.2"), "hotcoco": has("1.4")})
    assert found.fixes == [
        "pip install --upgrade hotcoco==1.4",
        "pip install --upgrade --index-url https://download.pytorch.org/whl/cpu torch==2.15.0 torchvision",
    ]
    torch = judged({"torch": has("2.15.0"), "torchvision": has("0.29.0")}).updates[0]
    assert torch.allowed == "" and list(torch.held_by) == ["torchvision 0.29.0+cpu needs torch==2.14.0"]


def test_what_is_not_there_or_says_no_version_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(INSTALLED, "hotcoco", ("0.23ubuntu1", []))
    found = judged({"hotcoco": has("1.4"), "gone": has("1.0"), "numpy": has("2.4.1")})
    assert [update.package for update in found.updates] == ["numpy"]


def test_security_comes_first() -> None:
    holes = [{"id": "CVE-2026-9", "fixed_in": ["2.4.1"], "summary": "it leaks"}]
    found = judged({"hotcoco": has("1.4"), "numpy": has("2.4.1", holes=holes), "pillow": has("12.3.0")})
    assert [(one.package, one.severity) for one in found.updates] == [
        ("numpy", Severity.WARNING),
        ("pillow", Severity.WARNING),
        ("hotcoco", Severity.OK),
    ]
    assert list(found.updates[0].holes) == ["it leaks (CVE-2026-9, mended in 2.4.1)"]
    assert "CVE-2026-25990" in found.updates[1].holes[0]
    assert found.exit_code == 1 and found.holes_from == "the index"
    assert judged({"pillow": has("11.0.0")}).updates[0].fix == ""  # a hole, and nothing newer


def test_a_project_with_a_lock_file_is_brought_up_through_it() -> None:
    uv = Installer(command="uv pip", options="--python /env/bin/python ", project="/my project")
    found = judged({"hotcoco": has("1.4"), "nncf": has("3.5")}, installer=uv)
    assert found.fixes == [
        "uv lock --project '/my project' --upgrade-package hotcoco==1.4 --upgrade-package nncf==3.5 "
        "&& uv sync --project '/my project' --inexact"
    ]


def test_what_is_not_found_out_is_told() -> None:
    error = {"error": "https://i/simple cannot be asked: ConnectError: refused"}
    found = judged({"numpy": error, "hotcoco": error})
    (finding,) = found.findings
    assert "could not be asked" in finding.what and "refused" in finding.cause and found.exit_code == 1
    (finding,) = judged({"numpy": error, "hotcoco": has("1.4")}).findings
    assert finding.what == "not known: numpy"
    assert "forbid" in judged({}, is_off=True).findings[0].cause


@pytest.mark.parametrize(
    ("answer", "words", "fix"),
    [
        (Answer(probe="p", end="timed out"), "took too long", "detronome doctor"),
        (Answer(probe="p", end="died", error="by SIGSEGV"), "has ended", "detronome doctor"),
        (
            Answer(probe="p", end="raised", error="T\nModuleNotFoundError: No module named 'httpx2'"),
            "httpx2 is not installed",
            "install httpx2",
        ),
    ],
)
def test_a_probe_without_an_answer(answer: Answer, words: str, fix: str) -> None:
    inventory = Inventory(
        python={"executable": "x", "marker": {}}, packages={"packages": {}}, installer=Installer(command="pip")
    )
    found = judge_updates(answer, inventory, seconds=0.1)
    (finding,) = found.findings
    assert words in finding.cause and fix in finding.fix and found.exit_code == 1

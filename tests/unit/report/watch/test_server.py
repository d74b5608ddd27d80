from __future__ import annotations

import http.client
import json
import re
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from run_events import HOSTILE, eventful_run, logged, started
from timed_log import BEGAN, write

from detronome.errors import ConfigError, MissingExtraError
from detronome.report.watch.server import build_app, serve
from detronome.report.watch.state import Watcher

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@contextmanager
def served(run: Path) -> Iterator[int]:
    uvicorn = pytest.importorskip("uvicorn")
    app = build_app(Watcher(run, clock=lambda: BEGAN))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(30)


def get(port: int, path: str, host: str = "127.0.0.1") -> tuple[int, http.client.HTTPMessage, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", path, headers={"Host": f"{host}:{port}"})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read().decode()
    finally:
        connection.close()


def test_a_run_that_is_not_there_yet_has_a_page_and_no_report(tmp_path: Path) -> None:
    with served(tmp_path / f"later {HOSTILE[:8]}") as port:
        assert get(port, "/")[0] == 200
        assert json.loads(get(port, "/state.json")[2])["status"] == "waiting"
        status, _, text = get(port, "/report")
        assert status == 404 and "&lt;script&gt;" in text and "<script>" not in text


def test_the_state_follows_the_log_and_the_report_is_made_when_asked_for(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write(run, [started(), logged(1)])
    with served(run) as port:
        assert json.loads(get(port, "/state.json")[2])["step"] == 1
        write(run, list(eventful_run())[1:])
        import time

        time.sleep(0.6)  # viewers share a look that is younger
        state = json.loads(get(port, "/state.json")[2])
        assert state["status"] == "finished" and state["counts"]["rollback"] == 1
        status, _, page = get(port, "/report")
        assert status == 200 and "<svg" in page
    assert {path.name for path in run.iterdir()} == {"log.jsonl"}


def test_the_report_of_the_newest_run_is_made_again_when_its_folder_changes(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "run"
    write(run, eventful_run())
    with served(tmp_path / "runs") as port:
        status, _, page = get(port, "/report")
        assert status == 200 and "label statistics" in page
        data = {"format": 1, "splits": {"train": {"num_images": 7, "num_objects": 9}}}
        (run / "data.json").write_text(json.dumps(data))  # as a run that has ended does, after its log
        _, _, page = get(port, "/report")
        assert "label statistics" not in page


def test_a_folder_whose_name_is_no_utf8_is_served(tmp_path: Path) -> None:
    with served(tmp_path / "\udcff") as port:
        assert json.loads(get(port, "/state.json")[2])["folder"].endswith("/?")


def test_the_page_holds_nothing_of_a_run_and_asks_nobody_else(tmp_path: Path) -> None:
    write(tmp_path / "run", eventful_run())
    with served(tmp_path / "run") as port:
        _, headers, page = get(port, "/")
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'") and "connect-src 'self'" in policy
    assert re.findall(r"(?:src|href)=\"?(https?:)?//", page) == [] and "innerHTML" not in page
    outside = [url for url in re.findall(r"https?://[^\s\"')]+", page) if "www.w3.org/2000/svg" not in url]
    assert outside == []


def test_a_request_under_another_name_is_refused(tmp_path: Path) -> None:
    with served(tmp_path) as port:
        assert get(port, "/state.json", host="attacker.example")[0] == 400
        assert get(port, "/state.json", host="localhost")[0] == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "no.such.host.invalid", "192.168..1"])
def test_an_address_that_cannot_be_used_is_told(tmp_path: Path, host: str) -> None:
    pytest.importorskip("uvicorn")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        if host.endswith("invalid"):
            port = -1  # no name is looked up for it
        with pytest.raises(ConfigError, match="nothing can be served there") as error:
            serve(Watcher(tmp_path), host=host, port=port, on_ready=pytest.fail)
    assert "--port (0 picks a free one)" in error.value.problems[0].fix


@pytest.mark.parametrize("package", ["starlette", "uvicorn"])
def test_a_missing_package_gives_the_line_that_installs_it(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    if package == "starlette":
        monkeypatch.setitem(sys.modules, "starlette.applications", None)
    with pytest.raises(MissingExtraError, match="pip install 'detronome\\[serve\\]'"):
        build_app(Watcher(tmp_path))

"""Whatever a server does, a transfer ends with the right bytes or with an error that says what happened."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from faulty_server import Fault, FaultyServer, ServedFile

from detronome.data.download.events import DownloadEvent, Noticed, Progressed
from detronome.data.download.part_file import bytes_on_disk
from detronome.data.download.transfer import TransferOptions, fetch
from detronome.errors import DataError

QUICK = TransferOptions(
    connections=4,
    connect_timeout_s=5.0,
    stall_timeout_s=0.25,
    min_bytes_per_s=100.0,
    max_attempts=6,
    progress_bytes=1024,
    backoff_s=0.002,
    max_backoff_s=0.02,
    min_piece_bytes=4096,
    max_piece_bytes=32768,
    journal_interval_s=0.02,
)
ONE = replace(QUICK, connections=1)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def some_bytes(count: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(count)


CONTENT = some_bytes(200_000)


def get(server: FaultyServer, folder: Path, content: bytes = CONTENT, *, options: TransferOptions = QUICK) -> int:
    """Fetch `/file` and require the right bytes and no debris."""
    path = folder / "file.zip"
    received = fetch(server.url, path, sha256=sha256(content), size_bytes=len(content), options=options)
    assert path.read_bytes() == content
    assert [p.name for p in folder.iterdir()] == ["file.zip"]
    return received


def fails(server: FaultyServer, folder: Path, content: bytes = CONTENT, options: TransferOptions = QUICK) -> str:
    """Fetch `/file`, require a complete error and no file under the name, and return what is wrong."""
    path = folder / "file.zip"
    with pytest.raises(DataError) as caught:
        fetch(server.url, path, sha256=sha256(content), size_bytes=len(content), options=options)
    assert not path.exists()
    assert all(problem.what and problem.where and problem.fix for problem in caught.value.problems)
    return caught.value.problems[0].what


def serve(
    content: bytes = CONTENT, *faults: Fault | None, always: Fault | None = None, **about: object
) -> FaultyServer:
    """A server of `/file` with these faults, one per request, and then the last one for ever."""
    file = ServedFile(content, **about)  # type: ignore[arg-type]
    return FaultyServer({"/file": file}, script=lambda number: faults[number] if number < len(faults) else always)


def test_an_empty_file_needs_no_request(tmp_path: Path) -> None:
    with serve(b"") as server:
        assert get(server, tmp_path, b"") == 0
        assert server.requests == []


@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, 200_000])
@pytest.mark.parametrize("connections", [1, 5])
def test_every_byte_is_received_once(tmp_path: Path, size: int, connections: int) -> None:
    content = some_bytes(size)
    with serve(content) as server:
        assert get(server, tmp_path, content, options=replace(QUICK, connections=connections)) == size
        assert server.sent_bytes == size
        assert (len(server.requests) > 1) == (size > 4096)


def test_a_file_that_is_there_is_verified_and_kept(tmp_path: Path) -> None:
    with serve() as server:
        get(server, tmp_path)
        count = len(server.requests)
        assert get(server, tmp_path) == 0
        assert len(server.requests) == count
        (tmp_path / "file.zip").write_bytes(b"mine")
        with pytest.raises(DataError, match="another file where the download should go"):
            get(server, tmp_path)
        assert (tmp_path / "file.zip").read_bytes() == b"mine"


@pytest.mark.parametrize(
    "fault",
    [
        Fault("drop", 1000),
        Fault("drop", 0),
        Fault("stall", 1000),
        Fault("silent"),
        Fault("500"),
        Fault("503", retry_after="0"),
        Fault("429", retry_after="Wed, 21 Oct 2015 07:28:00 GMT"),
        Fault("html"),
        Fault("html_body"),
        Fault("redirect"),
        Fault("garbage"),
        Fault("wrong_range"),
        Fault("wrong_total"),
        Fault("wrong_length"),
        Fault("short_length"),
        Fault("no_length"),
        Fault("no_range_header"),
        Fault("gzip"),
        Fault("off_by_one"),
        Fault("corrupt"),
        Fault("ignore_range"),
    ],
    ids=lambda fault: fault.kind,
)
@pytest.mark.parametrize("options", [ONE, QUICK], ids=["one", "several"])
def test_a_fault_that_passes_costs_nothing_but_time(tmp_path: Path, fault: Fault, options: TransferOptions) -> None:
    with serve(CONTENT, None, fault, fault) as server:
        received = get(server, tmp_path, options=options)
    if fault.kind in ("off_by_one", "corrupt", "html_body"):
        assert received <= 2 * len(CONTENT)
    else:
        assert received <= len(CONTENT) + 2 * 32768


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        (Fault("html"), "a web page instead of the file"),
        (Fault("404"), "answered 404"),
        (Fault("403"), "answered 403"),
        (Fault("500"), "answered 500"),
        (Fault("429", retry_after="86400"), "asks to wait 86400 s"),
        (Fault("redirect_loop"), "redirects without end"),
        (Fault("garbage"), "the connection broke"),
        (Fault("silent"), "nothing came for"),
        (Fault("drop", 0), "the connection"),
        (Fault("wrong_range"), r"sent bytes 1-\d+ when asked for 0-"),
        (Fault("wrong_total"), "has 200,001 bytes, not 200,000"),
        (Fault("short_length"), "announced"),
        (Fault("gzip"), "encoded as 'gzip'"),
        (Fault("html_body"), "a web page instead of the file"),
        (Fault("corrupt"), "wrong SHA-256|not the expected one"),
        (Fault("off_by_one"), "wrong SHA-256|not the expected one"),
    ],
    ids=lambda value: value.kind if isinstance(value, Fault) else "",
)
def test_a_fault_that_stays_is_told(tmp_path: Path, fault: Fault, what: str) -> None:
    with serve(always=fault) as server:
        assert re.search(what, fails(server, tmp_path))


def test_an_address_where_nobody_answers_is_told(tmp_path: Path) -> None:
    with serve() as server:
        pass
    with pytest.raises(DataError, match=r"cannot be reached(.|\n)*proxy settings"):
        get(server, tmp_path)
    for url in ("ftp://127.0.0.1/file", "http://[", "nothing"):
        with pytest.raises(DataError, match=r"not valid|cannot be reached"):
            fetch(url, tmp_path / "x", sha256=sha256(b"x"), size_bytes=1, options=QUICK)


def test_the_next_address_is_tried_and_all_are_told(tmp_path: Path) -> None:
    with serve() as server:
        absent = [f"{server.base_url}/a", f"{server.base_url}/b"]
        arguments = {"sha256": sha256(CONTENT), "size_bytes": len(CONTENT), "options": QUICK}
        with pytest.raises(DataError) as caught:
            fetch(absent, tmp_path / "x", **arguments)  # type: ignore[arg-type]
        assert [problem.where for problem in caught.value.problems] == absent
        assert fetch([*absent, server.url], tmp_path / "x", **arguments) == len(CONTENT)  # type: ignore[arg-type]


def test_another_file_on_the_server_is_told_from_damage_on_the_way(tmp_path: Path) -> None:
    with serve(some_bytes(len(CONTENT), seed=1)) as server:
        assert "not the expected one" in fails(server, tmp_path)
    counter = iter(range(1000))

    def damage(number: int) -> Fault | None:
        return Fault("corrupt") if next(counter) % 2 == 0 else Fault("off_by_one")

    with serve() as server:
        server.script = damage
        assert "each time another one" in fails(server, tmp_path)


def test_a_server_whose_ranges_are_wrong_still_gives_the_whole_file(tmp_path: Path) -> None:
    with serve() as server:
        server.script = lambda number: Fault("off_by_one") if "Range" in server.requests[number][1] else None
        assert get(server, tmp_path) == 2 * len(CONTENT)


@pytest.mark.parametrize("options", [ONE, QUICK], ids=["one", "several"])
def test_a_server_without_ranges_sends_the_whole_file(tmp_path: Path, options: TransferOptions) -> None:
    with serve(has_ranges=False) as server:
        assert get(server, tmp_path, options=options) == len(CONTENT)
    with serve(CONTENT, Fault("drop", 150_000), has_ranges=False) as server:
        (tmp_path / "file.zip").unlink()
        assert get(server, tmp_path, options=options) == len(CONTENT) + 150_000


@pytest.mark.parametrize(
    "names", [{"etag": '"a"'}, {"etag": 'W/"a"'}, {"etag": None, "last_modified": "Wed, 21 Oct 2015 07:28:00 GMT"}]
)
@pytest.mark.parametrize("options", [ONE, QUICK], ids=["one", "several"])
def test_a_file_that_changes_starts_anew_and_is_never_mixed(
    tmp_path: Path, names: dict[str, str | None], options: TransferOptions
) -> None:
    new = {key: value and value.replace("a", "b").replace("2015", "2016") for key, value in names.items()}
    with serve(some_bytes(len(CONTENT), seed=1), None, None, None, Fault("change"), **names) as server:
        server.later = ServedFile(CONTENT, **new)  # type: ignore[arg-type]
        get(server, tmp_path, options=options)


def test_a_file_that_keeps_changing_is_told(tmp_path: Path) -> None:
    with serve() as server:
        served = server.files["/file"]

        def change(number: int) -> Fault:
            served.etag = f'"{number}"'
            return Fault("drop", 3000)

        server.script = change
        assert "changed again and again" in fails(server, tmp_path)


def test_an_interrupted_transfer_goes_on_where_it_stopped(tmp_path: Path) -> None:
    with serve() as server:
        server.bytes_per_s = 1e6
        reached = interrupt_at(server, tmp_path, 80_000)
        on_disk = bytes_on_disk(tmp_path / "file.zip", size_bytes=len(CONTENT), sha256=sha256(CONTENT))
        assert on_disk >= reached >= 80_000
        assert get(server, tmp_path) == len(CONTENT) - on_disk


def interrupt_at(server: FaultyServer, folder: Path, num_bytes: int, content: bytes = CONTENT) -> int:
    """Press Ctrl-C when so many bytes have come, and return how many there really were."""
    reached = 0

    def listen(event: DownloadEvent) -> None:
        nonlocal reached
        if isinstance(event, Progressed) and event.done_bytes >= num_bytes:
            reached = event.done_bytes
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(
            server.url,
            folder / "file.zip",
            sha256=sha256(content),
            size_bytes=len(content),
            options=QUICK,
            on_event=listen,
        )
    return reached


def test_a_journal_that_cannot_be_believed_starts_anew(tmp_path: Path) -> None:
    with serve() as server:
        server.bytes_per_s = 1e6
        journal = tmp_path / "file.zip.part.json"
        for damage in (b"", b"{", b'{"version":1,"size_bytes":200000,"sha256":"0","ranges":[[0,200000]]}'):
            interrupt_at(server, tmp_path, 50_000)
            journal.write_bytes(damage)
            assert get(server, tmp_path) == len(CONTENT)
            (tmp_path / "file.zip").unlink()


def test_bytes_that_were_damaged_on_disk_are_found_and_fetched_again(tmp_path: Path) -> None:
    with serve() as server:
        server.bytes_per_s = 1e6
        interrupt_at(server, tmp_path, 50_000)
        with (tmp_path / "file.zip.part").open("r+b") as part:
            part.write(b"\xff" * 50_000)
        get(server, tmp_path)


def test_a_full_disk_is_told_and_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, written = os.pwrite, 0

    def pwrite(descriptor: int, data: bytes, offset: int) -> int:
        nonlocal written
        if written > 100_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        written += len(data)
        return write(descriptor, data, offset)

    with serve() as server:
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", pwrite)
            assert "the disk is full" in fails(server, tmp_path)
        assert get(server, tmp_path) == len(CONTENT) - written


def test_a_connection_that_hardly_brings_anything_is_made_anew(tmp_path: Path) -> None:
    options = replace(ONE, min_bytes_per_s=1e6, stall_timeout_s=0.4, progress_bytes=100_000, max_attempts=3)
    with serve() as server:
        server.bytes_per_s = 20_000
        assert "bytes came in 0." in fails(server, tmp_path, options=options)


def test_two_processes_do_not_download_into_one_file(tmp_path: Path) -> None:
    def again(event: DownloadEvent) -> None:
        fetch(server.url, tmp_path / "file.zip", sha256=sha256(CONTENT), size_bytes=len(CONTENT))

    with serve() as server, pytest.raises(DataError, match="another process is downloading this file"):
        fetch(
            server.url,
            tmp_path / "file.zip",
            sha256=sha256(CONTENT),
            size_bytes=len(CONTENT),
            options=QUICK,
            on_event=again,
        )


def test_a_broken_connection_is_noticed(tmp_path: Path) -> None:
    heard: list[DownloadEvent] = []
    with serve(CONTENT, None, Fault("drop", 10)) as server:
        fetch(
            server.url,
            tmp_path / "file.zip",
            sha256=sha256(CONTENT),
            size_bytes=len(CONTENT),
            options=QUICK,
            on_event=heard.append,
        )
    assert any(isinstance(event, Noticed) and "connection" in event.text for event in heard)
    last = {event.stage: event for event in heard if isinstance(event, Progressed)}
    assert last["download"].done_bytes == last["verify"].done_bytes == len(CONTENT)


# ---- random faults

HARMLESS = ["drop", "stall", "silent", "500", "503", "429", "html", "redirect", "garbage", "wrong_range"]
HARMLESS += ["wrong_total", "wrong_length", "short_length", "no_length", "no_range_header", "gzip", "ignore_range"]
DAMAGING = ["corrupt", "off_by_one", "html_body"]


@dataclass
class Tally:
    """What came out of many runs."""

    right: int = 0
    told: int = 0
    received: int = 0
    """Bytes received by transfers of a file that stays the same, over ranges."""
    wasted: int = 0
    """Of these, those that were there before."""


def run_random(seed: int, folder: Path, tally: Tally) -> None:
    """One transfer, interrupted and troubled at random, then brought to its end by a server that is well again."""
    rng = random.Random(seed)
    content = some_bytes(rng.choice([0, 1, rng.randrange(5000), rng.randrange(300_000)]), seed)
    rate = rng.choice([0.1, 0.3, 0.6])
    kinds = rng.sample(HARMLESS, rng.randint(1, 5)) + (rng.sample(DAMAGING, 1) if rng.random() < 0.3 else [])
    has_ranges = rng.random() < 0.85
    changes = rng.random() < 0.2
    about = rng.choice([{"etag": '"a"'}, {"etag": 'W/"a"'}, {"etag": None}, {"last_modified": "yesterday"}])
    options = replace(QUICK, connections=rng.choice([1, 2, 4]), stall_timeout_s=0.06)
    is_countable = has_ranges and not changes and not set(kinds) & set(DAMAGING)

    def script(number: int) -> Fault | None:
        if changes and rng.random() < 0.1:
            return Fault("change")
        return Fault(rng.choice(kinds), rng.randrange(20_000), "0") if rng.random() < rate else None

    first = some_bytes(len(content), seed + 1) if changes else content
    path = folder / f"{seed}.zip"
    digest = sha256(content)
    with serve(first, has_ranges=has_ranges, **about) as server:  # type: ignore[arg-type]
        server.script, server.stall_s = script, 0.15
        server.later = ServedFile(content, has_ranges=has_ranges, etag='"b"') if changes else None
        for attempt in range(4):
            if attempt == 3:  # the server is well again: nothing that happened may stand in the way
                server.script = lambda number: None
                server.files["/file"] = ServedFile(content, has_ranges=has_ranges, etag='"b"' if changes else '"a"')
            stop_at = rng.randrange(len(content) + 1) if attempt < 2 else len(content) + 1
            before = bytes_on_disk(path, size_bytes=len(content), sha256=digest)
            reached = before

            def listen(event: DownloadEvent, stop_at: int = stop_at) -> None:
                nonlocal reached
                if isinstance(event, Progressed) and event.stage == "download":
                    reached = event.done_bytes
                    if event.done_bytes >= stop_at:
                        raise KeyboardInterrupt

            try:
                received = fetch(
                    server.url, path, sha256=digest, size_bytes=len(content), options=options, on_event=listen
                )
            except DataError as error:
                assert attempt < 3, (seed, error)
                assert all(problem.what and problem.where and problem.fix for problem in error.problems)
                tally.told += 1
            except KeyboardInterrupt:
                pass
            else:
                if is_countable:
                    tally.received += received
                    tally.wasted += max(received - (len(content) - before), 0)
                break
            assert not path.exists()
            if is_countable:
                after = bytes_on_disk(path, size_bytes=len(content), sha256=digest)
                tally.received += max(reached - before, 0)
                tally.wasted += max(reached - after, 0)
    assert path.read_bytes() == content, seed
    tally.right += 1


def check_random(seeds: range, folder: Path) -> None:
    tally = Tally()
    for seed in seeds:
        run_random(seed, folder, tally)
    print(f"{tally}; {100 * tally.wasted / tally.received:.2f} % fetched again")
    assert tally.right == len(seeds)
    assert tally.wasted <= 0.1 * tally.received


def test_random_faults_end_with_the_right_bytes_or_a_clear_error(tmp_path: Path) -> None:
    check_random(range(40), tmp_path)


@pytest.mark.slow
def test_a_thousand_random_faults(tmp_path: Path) -> None:
    check_random(range(1000, 2000), tmp_path)


# ---- killed

CHILD = """
import sys
from pathlib import Path
from detronome.data.download.transfer import TransferOptions, fetch
url, path, sha256, size = sys.argv[1:]
options = TransferOptions(connections=4, journal_interval_s=0.02, min_piece_bytes=16384, max_piece_bytes=65536)
fetch(url, Path(path), sha256=sha256, size_bytes=int(size), options=options)
assert "torch" not in sys.modules
"""


def check_kills(num_kills: int, size: int, folder: Path) -> None:
    content = some_bytes(size)
    path = folder / "file.zip"
    command = [sys.executable, "-c", CHILD]
    rng = random.Random(0)
    received = 0
    with serve(content) as server:
        server.bytes_per_s = 400_000
        command += [server.url, str(path), sha256(content), str(size)]
        for _ in range(num_kills):
            with subprocess.Popen(command) as child:
                enough = server.sent_bytes + size // (num_kills + 1) * rng.uniform(0.5, 1.0)
                while server.sent_bytes < enough:
                    assert child.poll() is None
                    time.sleep(0.005)
                os.kill(child.pid, signal.SIGKILL)
            assert not path.exists()
            time.sleep(0.1)  # the server notices that its client has gone
            received = server.sent_bytes
        subprocess.run(command, check=True, timeout=60)
        assert path.read_bytes() == content
        refetched = server.sent_bytes - size
        print(f"{num_kills} kills: {refetched} of {received} bytes fetched again, {100 * refetched / received:.1f} %")
        assert refetched < 0.1 * received


def test_a_killed_transfer_goes_on(tmp_path: Path) -> None:
    check_kills(2, 1_200_000, tmp_path)  # what is on its way when a client dies is some 25 kB, whatever the size


@pytest.mark.slow
def test_a_transfer_killed_ten_times_goes_on(tmp_path: Path) -> None:
    check_kills(10, 6_000_000, tmp_path)

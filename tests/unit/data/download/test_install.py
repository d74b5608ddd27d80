"""From a server to a data folder that trains, and back to it after every interruption."""

from __future__ import annotations

import hashlib
import io
import json
import random
import shutil
import subprocess
import sys
import zipfile
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from faulty_server import FaultyServer, ServedFile

from detronome.data.download import catalog
from detronome.data.download.catalog import COCO2017, Archive, NestedArchive, archive_urls, select_archives
from detronome.data.download.events import DownloadEvent, Planned, Progressed
from detronome.data.download.install import install
from detronome.data.layout import find_split
from detronome.errors import ConfigError, DataError

PICTURES = {f"{number:012d}": random.Random(number).randbytes(2000) for number in range(30)}


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def instances(split: str) -> bytes:
    images = [{"id": int(name), "file_name": f"{name}.jpg", "width": 1, "height": 1} for name in PICTURES]
    return json.dumps({"images": images, "annotations": [], "categories": [{"id": 1, "name": split}]}).encode()


def small_coco() -> tuple[dict[str, bytes], dict[str, Archive], dict[str, bytes]]:
    """Archives by path on the server, what the catalog says of them, and the files that they hold."""
    files = {f"{split}2017/{name}.jpg": content for split in ("train", "val") for name, content in PICTURES.items()}
    files |= {f"annotations/instances_{split}2017.json": instances(split) for split in ("train", "val")}
    maps = {f"panoptic_{split}2017/{name}.png": PICTURES[name] for split in ("train", "val") for name in PICTURES}
    inner = {
        f"annotations/panoptic_{split}2017.zip": zipped(
            {"__MACOSX/._x": b"x"} | {name: data for name, data in maps.items() if split in name}
        )
        for split in ("train", "val")
    }
    panoptic = {f"annotations/panoptic_{split}2017.json": instances(split) for split in ("train", "val")}
    contents = {
        "train": zipped({name: data for name, data in files.items() if name.startswith("train2017/")}),
        "val": zipped({name: data for name, data in files.items() if name.startswith("val2017/")}),
        "annotations": zipped({name: data for name, data in files.items() if name.startswith("annotations/")}),
        "panoptic": zipped({"annotations/": b""} | inner | panoptic),
    }
    archives = {
        part: replace(
            COCO2017[part],
            size_bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            num_files=30,
            room_bytes=200_000,
            nested=tuple(
                NestedArchive(member=name, folder="annotations", num_files=30, room_bytes=100_000) for name in inner
            )
            if part == "panoptic"
            else (),
        )
        for part, content in contents.items()
    }
    served = {archives[part].path: content for part, content in contents.items()}
    return served, archives, files | panoptic | {f"annotations/{name}": data for name, data in maps.items()}


SERVED, ARCHIVES, FILES = small_coco()


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with FaultyServer({path: ServedFile(content) for path, content in SERVED.items()}) as running:
        yield running


def tree(folder: Path) -> dict[str, bytes]:
    """The files of a data folder, the download's own left out."""
    paths = [path for path in folder.rglob("*") if path.is_file() and ".detronome" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def files_of(*parts: str) -> dict[str, bytes]:
    starts = {
        "train": "train2017/",
        "val": "val2017/",
        "annotations": "annotations/inst",
        "panoptic": "annotations/pan",
    }
    return {name: data for name, data in FILES.items() if any(name.startswith(starts[part]) for part in parts)}


def test_nothing_asked_for_is_nothing_done(tmp_path: Path) -> None:
    assert install(tmp_path / "data", []) == []
    assert tree(tmp_path / "data") == {}


def test_all_parts_arrive_in_the_layout_that_training_reads(tmp_path: Path, server: FaultyServer) -> None:
    heard: list[DownloadEvent] = []
    done = install(tmp_path, list(ARCHIVES.values()), mirror=server.base_url, on_event=heard.append)
    assert tree(tmp_path) == FILES
    assert [(part.part, part.outcome, part.num_files) for part in done] == [
        ("train", "installed", 30),
        ("val", "installed", 30),
        ("annotations", "installed", 2),
        ("panoptic", "installed", 62),
    ]
    assert sum(part.received_bytes for part in done) == sum(map(len, SERVED.values()))
    assert find_split(tmp_path, "val").images_dir == tmp_path / "val2017"
    own = ["annotations.json", "lock", "panoptic.json", "train.json", "val.json"]
    assert sorted(path.name for path in (tmp_path / ".detronome").iterdir()) == own
    assert isinstance(heard[0], Planned) and heard[0].sizes_bytes == {
        Path(path).name: len(content) for path, content in SERVED.items()
    }
    assert {event.stage for event in heard if isinstance(event, Progressed)} == {"download", "verify", "unpack"}


def test_run_again_it_only_looks(tmp_path: Path, server: FaultyServer) -> None:
    archives = [ARCHIVES["val"], ARCHIVES["panoptic"]]
    install(tmp_path, archives, mirror=server.base_url)
    count = len(server.requests)
    done = install(tmp_path, archives, mirror=server.base_url)
    assert [(part.outcome, part.num_files, part.received_bytes) for part in done] == [
        ("there", 30, 0),
        ("there", 62, 0),
    ]
    assert len(server.requests) == count


@pytest.mark.parametrize("part", ["val", "annotations", "panoptic"])
def test_a_file_that_has_gone_comes_back_and_the_others_stay(tmp_path: Path, server: FaultyServer, part: str) -> None:
    install(tmp_path, [ARCHIVES[part]], mirror=server.base_url)
    gone, *others = sorted(files_of(part))
    times = {name: (tmp_path / name).stat().st_mtime_ns for name in others}
    (tmp_path / gone).unlink()
    (done,) = install(tmp_path, [ARCHIVES[part]], mirror=server.base_url)
    assert (done.outcome, done.num_new) == ("restored", 1)
    assert tree(tmp_path) == files_of(part)
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in others} == times


def test_a_file_that_was_changed_is_told_before_anything_is_transferred(tmp_path: Path, server: FaultyServer) -> None:
    install(tmp_path, [ARCHIVES["annotations"]], mirror=server.base_url)
    mine = tmp_path / "annotations" / "instances_val2017.json"
    mine.write_bytes(b"{}")
    count = len(server.requests)
    with pytest.raises(DataError, match=r"1 files of 'annotations' have been changed(.|\n)*instances_val2017.json"):
        install(tmp_path, list(ARCHIVES.values()), mirror=server.base_url)
    assert mine.read_bytes() == b"{}" and len(server.requests) == count


def test_kept_archives_serve_for_a_repair_without_a_server(tmp_path: Path, server: FaultyServer) -> None:
    install(tmp_path, [ARCHIVES["val"]], mirror=server.base_url, keep_archives=True)
    assert (tmp_path / "val2017.zip").read_bytes() == SERVED["/zips/val2017.zip"]
    count = len(server.requests)
    shutil.rmtree(tmp_path / "val2017")
    (done,) = install(tmp_path, [ARCHIVES["val"]], mirror=server.base_url)
    assert (done.outcome, done.num_new, done.received_bytes) == ("restored", 30, 0)
    assert tree(tmp_path) == files_of("val") | {"val2017.zip": SERVED["/zips/val2017.zip"]}
    assert len(server.requests) == count


def test_an_archive_of_the_user_is_used_and_another_file_of_that_name_is_not_touched(
    tmp_path: Path, server: FaultyServer
) -> None:
    right, wrong = SERVED["/zips/val2017.zip"], SERVED["/zips/train2017.zip"][::-1]
    (tmp_path / "val2017.zip").write_bytes(right)
    (tmp_path / "train2017.zip").write_bytes(wrong)
    install(tmp_path, [ARCHIVES["val"], ARCHIVES["train"]], mirror=server.base_url, keep_archives=True)
    assert tree(tmp_path) == files_of("val", "train") | {"val2017.zip": right, "train2017.zip": wrong}
    assert {path for path, _ in server.requests} == {"/zips/train2017.zip"}


def test_files_that_are_there_without_a_receipt_are_compared_and_kept(tmp_path: Path, server: FaultyServer) -> None:
    for name, content in sorted(files_of("val").items())[:20]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    first = tmp_path / "val2017" / "000000000000.jpg"
    time_ns = first.stat().st_mtime_ns
    install(tmp_path, [ARCHIVES["val"]], mirror=server.base_url)
    assert tree(tmp_path) == files_of("val") and first.stat().st_mtime_ns == time_ns


def test_too_little_room_is_told_before_anything_is_transferred(
    tmp_path: Path, server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**30, 2**30, 2**20))
    with pytest.raises(DataError, match=r"too little room: up to 6\d MiB are needed, 1.0 MiB are free(.|\n)*--parts"):
        install(tmp_path, list(ARCHIVES.values()), mirror=server.base_url)
    assert server.requests == [] and tree(tmp_path) == {}


@pytest.mark.parametrize("name", [".detronome", ".detronome/lock"])
def test_links_among_the_downloads_own_files_are_not_followed(tmp_path: Path, server: FaultyServer, name: str) -> None:
    mine = tmp_path / "mine"
    (mine / "panoptic").mkdir(parents=True)
    (mine / "file").write_text("precious")
    link = tmp_path / "data" / name
    link.parent.mkdir(parents=True)
    link.symlink_to(mine / "file" if name.endswith("lock") else mine)
    with pytest.raises(DataError):
        install(tmp_path / "data", [ARCHIVES["panoptic"]], mirror=server.base_url)
    assert (mine / "file").read_text() == "precious"
    assert sorted(path.name for path in mine.iterdir()) == ["file", "panoptic"]


@pytest.mark.parametrize("stage", ["download", "verify", "unpack"])
def test_interrupted_at_any_stage_it_goes_on(tmp_path: Path, server: FaultyServer, stage: str) -> None:
    def interrupt(event: DownloadEvent) -> None:
        if isinstance(event, Progressed) and event.stage == stage and event.done_bytes > 0:
            raise KeyboardInterrupt

    archives = [ARCHIVES["val"], ARCHIVES["panoptic"]]
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            install(tmp_path, archives, mirror=server.base_url, on_event=interrupt)
    install(tmp_path, archives, mirror=server.base_url)
    assert tree(tmp_path) == files_of("val", "panoptic")
    if stage != "download":  # there, what the server had sent and nobody had read is gone
        assert server.sent_bytes == sum(ARCHIVES[part].size_bytes for part in ("val", "panoptic"))


def test_killed_before_tidying_up_it_tidies_up(tmp_path: Path, server: FaultyServer) -> None:
    install(tmp_path, [ARCHIVES["val"]], mirror=server.base_url)
    left = tmp_path / ".detronome" / "val2017.zip"
    left.write_bytes(SERVED["/zips/val2017.zip"])
    (done,) = install(tmp_path, [ARCHIVES["val"]], mirror=server.base_url)
    assert done.outcome == "there" and not left.exists()


def test_an_interrupted_unpacking_needs_only_the_room_that_is_missing(
    tmp_path: Path, server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(event: DownloadEvent) -> None:
        if isinstance(event, Progressed) and event.stage == "unpack" and event.done_bytes > 50_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        install(tmp_path, [ARCHIVES["val"]], mirror=server.base_url, on_event=interrupt)
    heard: list[DownloadEvent] = []
    install(tmp_path, [ARCHIVES["val"]], mirror=server.base_url, on_event=heard.append)
    (plan,) = [event for event in heard if isinstance(event, Planned)]
    assert plan.needed_bytes == 4 * 2000  # the four pictures that had not come


def test_a_mirror_may_have_all_archives_in_one_folder(tmp_path: Path, server: FaultyServer) -> None:
    server.files = {f"/coco/{Path(path).name}": file for path, file in server.files.items()}
    install(tmp_path, [ARCHIVES["val"]], mirror=f"{server.base_url}/coco/")
    assert tree(tmp_path) == files_of("val")
    with pytest.raises(DataError) as caught:
        install(tmp_path, [ARCHIVES["train"]], mirror=f"{server.base_url}/elsewhere")
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize("mirror", ["", "mirror.org", "ftp://mirror.org", "http://", "http://[", "https://a.org/?x=1"])
def test_a_mirror_that_is_no_address_is_told(tmp_path: Path, mirror: str) -> None:
    with pytest.raises(ConfigError, match="not an address of a server"):
        install(tmp_path / "data", [ARCHIVES["val"]], mirror=mirror)
    assert not (tmp_path / "data").exists()


def test_two_downloads_do_not_share_a_folder(tmp_path: Path, server: FaultyServer) -> None:
    def again(event: DownloadEvent) -> None:
        install(tmp_path, [])

    with pytest.raises(DataError, match="another download into this folder"):
        install(tmp_path, [ARCHIVES["val"]], mirror=server.base_url, on_event=again)
    install(tmp_path, [])


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be used"):
        install(tmp_path / "file", [])


def test_the_official_archives_are_known_by_size_and_sum() -> None:
    assert [archive.part for archive in select_archives("coco2017", None)] == ["train", "val", "annotations"]
    assert [archive.part for archive in select_archives("coco2017", ["val", "val"])] == ["val"]
    assert archive_urls(COCO2017["train"], None) == ("http://images.cocodataset.org/zips/train2017.zip",)
    for archive in COCO2017.values():
        assert len(bytes.fromhex(archive.sha256)) == 32
        assert archive.room_bytes >= archive.size_bytes


@pytest.mark.parametrize(
    ("dataset", "parts", "what"),
    [("coco", None, "unknown data set"), ("coco2017", [], "no part"), ("coco2017", ["vall", "x"], "no part 'vall'")],
)
def test_unknown_names_are_told_at_once(dataset: str, parts: list[str] | None, what: str) -> None:
    with pytest.raises(ConfigError, match=what) as caught:
        select_archives(dataset, parts)
    assert len(caught.value.problems) == max(len(parts or []), 1)


# ---- the command


@pytest.fixture
def small_catalog(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "COCO2017", ARCHIVES)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    from detronome.cli import main

    try:
        main(["data", "download", *arguments])
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    output = capsys.readouterr()
    return code, output.out, output.err


@pytest.mark.usefixtures("small_catalog")
def test_the_command_installs_and_says_so(
    tmp_path: Path, server: FaultyServer, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("coco2017", str(tmp_path), "--mirror", server.base_url, "--parts", "val", "annotations")
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (0, f"val: 30 files installed\nannotations: 2 files installed\ndata folder {tmp_path}\n")
    assert "to download: val2017.zip, annotations_trainval2017.zip" in err and "\r" not in err and "\x1b" not in err
    code, out, err = run(capsys, *arguments, "--json")
    assert code == 0 and err == ""
    assert [(part["part"], part["outcome"]) for part in json.loads(out)["parts"]] == [
        ("val", "there"),
        ("annotations", "there"),
    ]


@pytest.mark.usefixtures("small_catalog")
def test_mistakes_end_with_a_reason_and_an_interruption_with_130(
    tmp_path: Path, server: FaultyServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for arguments in (
        ("coco2018", "x"),
        ("coco2017", "x", "--parts", "vall"),
        ("coco2017", "x", "--connections", "0"),
        ("coco2017", "x", "--mirror", "nowhere"),
    ):
        code, out, err = run(capsys, *arguments)
        assert (code, out) == (2, "") and "error" in err and "Traceback" not in err

    def interrupt(*args: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("detronome.data.download.install.fetch", interrupt)
    code, out, err = run(capsys, "coco2017", str(tmp_path), "--mirror", server.base_url)
    assert (code, out) == (130, "") and "run the same command again" in err


def test_downloading_needs_no_torch() -> None:
    script = "import sys, detronome.cli.data.download, detronome.data.download.install as i; i.install\n"
    script += "import detronome.report.download_console; print({'torch', 'numpy'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"

"""Published weights come from a server into the cache: resumed, verified, once; offline the error says what to do."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from faulty_server import Fault, FaultyServer, ServedFile

from detronome.data.download.events import DownloadEvent, Progressed, ignore
from detronome.data.download.transfer import TransferOptions
from detronome.errors import CheckpointError
from detronome.weights import catalog, download
from detronome.weights.catalog import OfficialFile
from detronome.weights.download import bring_hub_model, bring_official_file
from detronome.weights.sources import bring

CONTENT = bytes(range(256)) * 4000
DIGITS = hashlib.sha256(CONTENT).hexdigest()[:8]
FILE = OfficialFile(preset="detr-r50", name=f"detr-r50-{DIGITS}.pth")
MODEL = "owner/name"


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """An empty cache, and no proxy between us and a server on this machine."""
    monkeypatch.setenv("DETRONOME_CACHE", str(tmp_path / "cache"))
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    yield


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    with FaultyServer({f"/{FILE.name}": ServedFile(CONTENT)}) as running:
        monkeypatch.setattr(catalog, "OFFICIAL_URL", running.base_url)
        monkeypatch.setenv("HF_ENDPOINT", running.base_url)
        yield running


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr(catalog, "OFFICIAL_URL", url)
    monkeypatch.setenv("HF_ENDPOINT", url)


def test_an_official_file_comes_once(server: FaultyServer, tmp_path: Path) -> None:
    heard: list[DownloadEvent] = []
    path = bring_official_file(FILE, heard.append)
    assert path == tmp_path / "cache" / "weights" / FILE.name
    assert path.read_bytes() == CONTENT
    assert [entry.name for entry in path.parent.iterdir()] == [FILE.name]
    assert any(isinstance(event, Progressed) and event.stage == "download" for event in heard)
    asked = len(server.requests)
    assert bring_official_file(FILE, ignore) == path
    assert len(server.requests) == asked


def test_an_interrupted_download_goes_on(server: FaultyServer) -> None:
    server.script = lambda number: Fault("drop", after=300_000) if number == 1 else Fault("500") if number > 1 else None
    with pytest.raises(CheckpointError, match="cannot be downloaded"):
        _quickly(FILE)
    server.script = lambda number: None
    server.sent.clear()
    assert bring_official_file(FILE, ignore).read_bytes() == CONTENT
    assert min(start for start, end in server.sent if end > 1) >= 300_000  # beside the byte that tells the size
    assert server.sent_bytes <= len(CONTENT) - 300_000 + 1


def test_others_wait_for_the_first(server: FaultyServer) -> None:
    """The ranks of a run all ask for the same file."""
    server.bytes_per_s = 4e6
    with ThreadPoolExecutor(3) as pool:
        paths = list(pool.map(lambda _: bring_official_file(FILE, ignore), range(3)))
    assert len(set(paths)) == 1 and paths[0].read_bytes() == CONTENT
    assert server.sent_bytes < 1.5 * len(CONTENT)


def test_a_server_without_ranges(server: FaultyServer) -> None:
    server.files[f"/{FILE.name}"] = ServedFile(CONTENT, has_ranges=False)
    assert bring_official_file(FILE, ignore).read_bytes() == CONTENT


def _quickly(file: OfficialFile) -> None:
    with pytest.MonkeyPatch.context() as patch:
        short = TransferOptions(connections=1, max_attempts=2, backoff_s=0.01, journal_interval_s=0.01)
        patch.setattr(download, "_OPTIONS", short)
        bring_official_file(file, ignore)


def test_a_file_with_other_digits_is_refused(server: FaultyServer, tmp_path: Path) -> None:
    server.files[f"/{FILE.name}"] = ServedFile(CONTENT[::-1])
    with pytest.raises(CheckpointError, match="SHA-256"):
        _quickly(FILE)
    assert not (tmp_path / "cache" / "weights" / FILE.name).exists()


def test_a_damaged_file_in_the_cache_is_told(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "weights" / FILE.name
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(CheckpointError, match=f"does not begin with {DIGITS}") as caught:
        bring_official_file(FILE, ignore)
    assert caught.value.problems[0].where == str(path)


@pytest.mark.usefixtures("nowhere")
def test_offline_the_error_says_where_to_put_the_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        bring("detr-r50", ignore)
    (problem,) = caught.value.problems
    assert "detr-r50-e632da11.pth, the published weights of detr-r50, cannot be downloaded" in problem.what
    assert problem.where.endswith("/detr-r50-e632da11.pth")
    assert str(tmp_path / "cache" / "weights" / "detr-r50-e632da11.pth") in problem.fix


@pytest.mark.usefixtures("nowhere")
def test_a_file_put_there_by_hand_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cache" / "weights" / FILE.name
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    assert bring_official_file(FILE, ignore) == path
    folder = tmp_path / "cache" / "weights" / "owner--name"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    assert bring(MODEL, ignore) == (folder, None)


def test_a_name_of_nothing() -> None:
    with pytest.raises(CheckpointError, match="no such file or folder") as caught:
        bring("detr-r50-e632da12.pth", ignore)
    assert "detr-r50-e632da11.pth" in caught.value.problems[0].fix


def hub_files(names: dict[str, bytes], *, commit: str = "c0ffee") -> dict[str, ServedFile]:
    """Return what huggingface.co serves of a model: the listing, and the files at a commit."""
    siblings: list[dict[str, Any]] = []
    for name, content in names.items():
        entry: dict[str, Any] = {"rfilename": name, "size": len(content)}
        if name.endswith((".safetensors", ".bin")):
            entry["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        else:
            entry["blobId"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        siblings.append(entry)
    listing = json.dumps({"sha": commit, "siblings": siblings}).encode()
    served = {f"/api/models/{MODEL}?blobs=true": ServedFile(listing)}
    return served | {f"/{MODEL}/resolve/{commit}/{name}": ServedFile(content) for name, content in names.items()}


CONFIG = b'{"model_type": "detr"}'


def test_a_model_comes_once_and_whole(server: FaultyServer, tmp_path: Path) -> None:
    names = {
        "config.json": CONFIG,
        "preprocessor_config.json": b'{"size": 800}',
        "model.safetensors": CONTENT,
        "pytorch_model.bin": b"not wanted",
        "README.md": b"not wanted",
    }
    server.files = hub_files(names)
    folder = bring_hub_model(MODEL, ignore)
    assert folder == tmp_path / "cache" / "weights" / "owner--name"
    found = {path.name for path in folder.iterdir()}
    assert found == {"config.json", "preprocessor_config.json", "model.safetensors", "hub.json"}
    assert (folder / "model.safetensors").read_bytes() == CONTENT
    server.files = {}
    assert bring_hub_model(MODEL, ignore) == folder
    (folder / "model.safetensors").write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(CheckpointError, match=r"not what was downloaded: model\.safetensors"):
        bring_hub_model(MODEL, ignore)


def test_a_model_in_several_files(server: FaultyServer) -> None:
    shards = {f"model-0000{i}-of-00002.safetensors": CONTENT[i:] for i in (1, 2)}
    index = json.dumps({"weight_map": dict(zip("ab", shards, strict=True))}).encode()
    server.files = hub_files({"config.json": CONFIG, "model.safetensors.index.json": index, **shards})
    folder = bring_hub_model(MODEL, ignore)
    assert {path.name for path in folder.iterdir()} > set(shards)


def test_a_folder_with_a_config_is_complete(server: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was left in the middle is not taken for one that was put there by hand."""
    written: list[str] = []
    monkeypatch.setattr(download, "write_atomic", lambda path, _: written.append(path.name))
    index = json.dumps({"weight_map": {"a": "a.safetensors"}}).encode()
    server.files = hub_files({"config.json": CONFIG, "model.safetensors.index.json": index, "a.safetensors": CONTENT})
    bring_hub_model(MODEL, ignore)
    assert written == ["model.safetensors.index.json", "config.json", "hub.json"]


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ({"model.safetensors": CONTENT}, "has no config.json"),
        ({"config.json": CONFIG, "model.onnx": CONTENT}, "no weights that can be read, but config.json, model.onnx"),
        (
            {"config.json": CONFIG, "model.safetensors.index.json": b'{"weight_map": {"a": "../../x"}}'},
            "names files that it does not have",
        ),
        ({"config.json": CONFIG, "model.safetensors.index.json": b"[]"}, "'list' object|names files"),
    ],
)
def test_models_that_cannot_be_used(names: dict[str, bytes], reason: str, server: FaultyServer, tmp_path: Path) -> None:
    server.files = hub_files(names)
    with pytest.raises(CheckpointError, match=reason):
        bring_hub_model(MODEL, ignore)
    assert not list((tmp_path / "cache").rglob("hub.json"))


def test_a_config_that_came_damaged(server: FaultyServer) -> None:
    server.files = hub_files({"config.json": CONFIG, "model.safetensors": CONTENT})
    server.files[f"/{MODEL}/resolve/c0ffee/config.json"] = ServedFile(CONFIG + b" ")
    with pytest.raises(CheckpointError, match=r"config\.json came damaged"):
        bring_hub_model(MODEL, ignore)


@pytest.mark.parametrize("listing", [b"[]", b"{}", b"<html>", b'{"sha": 3, "siblings": []}', b"[" * 100_000])
def test_answers_that_make_no_sense(listing: bytes, server: FaultyServer) -> None:
    server.files = {f"/api/models/{MODEL}?blobs=true": ServedFile(listing)}
    with pytest.raises(CheckpointError, match="is no folder or file here, and cannot be had from"):
        bring_hub_model(MODEL, ignore)


def test_a_model_that_is_not_there(server: FaultyServer) -> None:
    with pytest.raises(CheckpointError, match="no such thing"):
        bring_hub_model(MODEL, ignore)


@pytest.mark.usefixtures("nowhere")
def test_offline_a_model_says_where_to_put_it(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        bring(MODEL, ignore)
    (problem,) = caught.value.problems
    assert "'owner/name' is no folder or file here" in problem.what and "no connection" in problem.what
    assert str(tmp_path / "cache" / "weights" / "owner--name") in problem.fix


@pytest.mark.usefixtures("nowhere")
def test_offline_a_preset_is_told_by_its_name() -> None:
    with pytest.raises(CheckpointError) as caught:
        bring("rtdetr-v2-s", ignore)
    (problem,) = caught.value.problems
    assert "PekingU/rtdetr_v2_r18vd, the published weights of rtdetr-v2-s, cannot be had" in problem.what
    assert "path" not in problem.fix and "PekingU--rtdetr_v2_r18vd" in problem.fix

"""Shards at an address: fetched whole, verified, kept within a budget, by several processes at once."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from detronome.data.store.cache_folder import cache_folders
from detronome.data.store.index import AnnotationIndex
from detronome.data.store.shards import cloud
from detronome.data.store.shards.cache import CachedShards
from detronome.data.store.shards.find import find_shard_split, shard_splits
from detronome.data.store.shards.source import ShardSource, open_shards
from detronome.data.store.shards.verify import verify_shard_files
from detronome.data.store.shards.write import write_shards
from detronome.data.store.source import FolderSource
from detronome.errors import ConfigError, DataError, MissingExtraError
from detronome.runtime.files import locked

PLENTY = 10**9
URL = "faulty://bucket/coco"


class FaultyFileSystem(MemoryFileSystem):  # type: ignore[misc]
    """Files in memory; `on_open(path)` may raise, wait or change what is there."""

    protocol = "faulty"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    opened: ClassVar[list[str]] = []
    on_open: ClassVar[Callable[[str], None] | None] = None

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("faulty://").strip("/") if path.strip("/") else ""

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if "r" in mode:
            self.opened.append(path)
            if type(self).on_open is not None:
                type(self).on_open(path)
        return super()._open(path, mode, **options)


fsspec.register_implementation("faulty", FaultyFileSystem, clobber=True)


@pytest.fixture(autouse=True)
def _fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("DETRONOME_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(FaultyFileSystem, "on_open", None)
    yield
    for kind in (FaultyFileSystem, MemoryFileSystem):
        kind.store.clear()
        kind.pseudo_dirs[:] = [""]
    FaultyFileSystem.opened.clear()


@pytest.fixture
def remote(sharded: Path) -> str:
    """The sharded data in memory, at an address."""
    for path in sharded.rglob("*"):
        if path.is_file():
            cloud.upload(path, f"{URL}/{path.relative_to(sharded)}")
    return URL


def opened(url: str, cache_bytes: int = PLENTY) -> tuple[AnnotationIndex, ShardSource]:
    files = find_shard_split(url, "train")
    assert files is not None
    index = AnnotationIndex.open(files.annotation_file)
    return index, open_shards(files, index, cache_bytes=cache_bytes)


def fetched() -> list[str]:
    return [path.rpartition("/")[2] for path in FaultyFileSystem.opened if path.endswith(".tar")]


def kept() -> list[Path]:
    return sorted(cache_folders("shards")[0].glob("*/*.tar"))


def unfinished() -> list[Path]:
    return sorted(cache_folders("shards")[0].glob("**/.*.tmp"))


def used_bytes() -> int:
    """What the cache takes, seen as a fetching process sees it: nothing is evicted or reserved meanwhile."""
    root = cache_folders("shards")[0]
    with locked(root / ".lock", wait=True):
        sizes = [path.stat().st_size for path in kept()]
        for path in unfinished():
            with suppress(FileNotFoundError):  # published meanwhile
                sizes.append(path.stat().st_size)
        return sum(sizes)


def blob(url: str) -> Any:
    """The file in memory behind an address, to be changed."""
    return FaultyFileSystem.store[FaultyFileSystem._strip_protocol(url)]


def flip(url: str, place: int) -> None:
    file = blob(url)
    value = file.getvalue()[place]
    file.seek(place)
    file.write(bytes([value ^ 4]))


def test_an_address_without_shards(tmp_path: Path) -> None:
    assert shard_splits(URL) == []
    assert find_shard_split(URL, "train") is None
    with pytest.raises(DataError, match="there are no shards of split 'train'"):
        verify_shard_files(URL)


@pytest.mark.parametrize(
    ("place", "expected"),
    [("s3://b/x", True), ("file:///x", True), ("simplecache::s3://b/x", True), ("/x/s3:/", False), ("C:x", False)],
)
def test_what_an_address_is(place: str, expected: bool) -> None:
    assert cloud.is_url(place) is expected


def test_every_image_comes_from_its_address_and_each_shard_once(plain: Path, remote: str) -> None:
    assert shard_splits(remote) == ["train"]
    index, source = opened(remote)
    assert fetched() == []
    files = FolderSource(index, plain / "images")
    for i in np.random.default_rng(0).permutation(len(index)).tolist():
        assert source.read(i) == files.read(i)
    shards = [f"{n:05d}.tar" for n in range(source.shard_of.max() + 1)]
    assert sorted(fetched()) == shards == [path.name for path in kept()]
    again, _ = opened(remote)
    assert again.annotation_file == index.annotation_file
    assert source.read(0) == b""
    assert len(fetched()) == len(shards)
    assert source.largest_shard_bytes == max(path.stat().st_size for path in kept())
    meta = json.loads((kept()[0].parent / "meta.json").read_text())
    assert meta == {"annotation_file": f"{remote}/annotations/instances_train.json"}
    assert source.where(1) == f"{remote}/shards/train/00000.tar, member 000000001.jpg"
    assert len(pickle.dumps(source)) < 2000
    assert pickle.loads(pickle.dumps(source)).read(3) == files.read(3)
    assert unfinished() == []


def test_memory_addresses_of_fsspec_itself(plain: Path, sharded: Path) -> None:
    fsspec.filesystem("memory").put(str(sharded), "/data", recursive=True)
    index, source = opened("memory://data/")
    assert source.read(3) == FolderSource(index, plain / "images").read(3)
    assert verify_shard_files("memory://data").damaged == ()


def test_a_changed_file_is_another_also_where_fsspec_takes_it_for_unchanging(remote: str) -> None:
    """As at HTTP addresses, whose `ukey` is made of the address alone."""
    url = f"{remote}/annotations/instances_train.json"
    system, path = fsspec.core.url_to_fs(url)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FaultyFileSystem, "ukey", lambda self, path: "same")
        first = cloud.identity(url)
        assert cloud.identity(url) == first
        with system.open(path, "ab") as file:
            file.write(b" ")
        assert cloud.identity(url) != first


def test_corrected_boxes_are_seen_and_cost_no_shard(remote: str) -> None:
    index, source = opened(remote)
    source.read(1)
    name = f"{remote}/annotations/instances_train.json"
    content = blob(name).getvalue().replace(b'"bbox": [1, 2, 3.5, 4]', b'"bbox": [1, 2, 3.5, 5]', 1)
    fsspec.filesystem("faulty").pipe_file(name, content)
    changed, source = opened(remote)
    assert changed.fingerprint != index.fingerprint
    source.read(1)
    assert fetched() == ["00000.tar"]


def test_the_budget_is_kept_and_the_shard_used_longest_ago_goes(remote: str) -> None:
    index, whole = opened(remote)
    sizes = [shard.size_bytes for shard in whole._places.header.shards]
    assert len(sizes) >= 3
    budget = sizes[0] + sizes[1] + 1
    _, source = opened(remote, budget)
    first = [int(np.flatnonzero(source.shard_of == n)[0]) for n in range(3)]
    for n in (0, 1, 0, 2):
        time.sleep(0.01)
        source.read(first[n])
        assert sum(path.stat().st_size for path in kept()) <= budget
    assert [path.name for path in kept()] == ["00000.tar", "00002.tar"]
    for i in range(len(index)):
        source.read(i)
        assert sum(path.stat().st_size for path in kept()) <= budget
    with pytest.raises(ConfigError, match=f"a cache of {max(sizes) - 1:,} bytes cannot hold a shard of {max(sizes):,}"):
        opened(remote, max(sizes) - 1)


def test_a_reader_goes_on_after_the_eviction(remote: str) -> None:
    _, source = opened(remote)
    expected = source.read(1), source.read(2)
    for path in kept():
        path.unlink()
    assert (source.read(1), source.read(2)) == expected
    assert fetched() == ["00000.tar"]
    assert pickle.loads(pickle.dumps(source)).read(1) == expected[0]
    assert fetched() == ["00000.tar"] * 2


@pytest.mark.parametrize("content", [b"", None])
def test_a_damaged_copy_is_fetched_again(remote: str, content: bytes | None) -> None:
    _, source = opened(remote)
    expected = source.read(1)
    (path,) = kept()
    if content is None:
        with path.open("r+b") as file:
            file.seek(source._places.place(1).offset)
            file.write(bytes([expected[0] ^ 1]))
    else:
        path.write_bytes(content)
    assert pickle.loads(pickle.dumps(source)).read(1) == expected
    assert source.read(1) == expected
    assert fetched() == ["00000.tar"] * 2


def test_a_fault_on_the_way_is_tried_again(remote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, source = opened(remote)
    shard = f"{remote}/shards/train/00000.tar"
    healthy = blob(shard).getvalue()
    faults = [
        lambda: flip(shard, 700),
        lambda: blob(shard).truncate(5000),
        lambda: blob(shard).write(b"x" * 10**6),
    ]

    def on_open(path: str) -> None:
        file = blob(path)
        file.seek(0)
        file.truncate()
        file.write(healthy)
        if len(fetched()) % 2:
            file.seek(0 if len(fetched()) < 4 else len(healthy))
            faults[len(fetched()) // 2]()

    monkeypatch.setattr(FaultyFileSystem, "on_open", staticmethod(on_open))
    for n in range(3):
        assert len(pickle.loads(pickle.dumps(source)).read(1)) > 0
        assert len(fetched()) == 2 * (n + 1)
        kept()[0].unlink()
    assert unfinished() == []


def test_a_shard_that_stays_damaged_is_named(remote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, source = opened(remote)
    shard = f"{remote}/shards/train/00000.tar"

    def told() -> str:
        with pytest.raises(DataError) as error:
            source.read(1)
        (problem,) = error.value.problems
        assert problem.where == shard
        assert "upload 00000.tar again" in problem.fix
        assert kept() == unfinished() == []
        return problem.what

    flip(shard, 700)
    assert told() == "image 999 cannot be read: the shard cannot be fetched: its SHA-256 is not the one in the index"
    assert fetched() == ["00000.tar"] * 2
    blob(shard).truncate(5000)
    assert "it has 5,000 bytes where it had" in told()

    def refuse(path: str) -> None:
        raise RuntimeError("503: slow down")

    monkeypatch.setattr(FaultyFileSystem, "on_open", staticmethod(refuse))
    assert "503: slow down" in told()
    monkeypatch.setattr(FaultyFileSystem, "on_open", None)
    fsspec.filesystem("faulty").rm_file(shard)
    assert "there is no such file" in told()


def test_a_slow_shard_is_fetched_once_and_holds_no_other_up(remote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    index, source = opened(remote)
    begun, go_on = threading.Event(), threading.Event()

    def on_open(path: str) -> None:
        if path.endswith("00000.tar"):
            begun.set()
            assert go_on.wait(30)

    monkeypatch.setattr(FaultyFileSystem, "on_open", staticmethod(on_open))
    read: list[bytes] = []
    copies = [pickle.loads(pickle.dumps(source)) for _ in range(3)]
    threads = [threading.Thread(target=lambda copy=copy: read.append(copy.read(1))) for copy in copies]
    for thread in threads:
        thread.start()
    source.read(len(index) - 1)
    assert begun.wait(30)
    assert read == []
    assert len(unfinished()) == 1
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert len(read) == 3 and len(set(read)) == 1
    assert fetched().count("00000.tar") == 1


def test_room_waits_for_those_who_fetch(remote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, whole = opened(remote)
    budget = max(shard.size_bytes for shard in whole._places.header.shards)
    index, source = opened(remote, budget)
    used: list[int] = []

    def on_open(path: str) -> None:
        time.sleep(0.01)
        used.append(used_bytes())

    monkeypatch.setattr(FaultyFileSystem, "on_open", staticmethod(on_open))
    expected = [whole.read(i) for i in range(0, len(index), 8)]
    for path in kept():
        path.unlink()
    copies = [pickle.loads(pickle.dumps(source)) for _ in range(4)]
    found: dict[int, list[bytes]] = {}

    def work(worker: int) -> None:
        found[worker] = [copies[worker].read(i) for i in range(0, len(index), 8)]

    used.clear()
    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [found[n] for n in range(4)] == [expected] * 4
    assert max(used) <= budget
    assert unfinished() == []


def test_what_a_dead_process_left_is_removed(remote: str) -> None:
    _, source = opened(remote)
    leftover = source._places.folder / ".00000.tar-abc.tmp"
    with leftover.open("wb") as file:
        file.truncate(PLENTY)
    other = source._places.folder / ".index.json-abc.tmp"
    other.touch()
    source.read(1)
    assert unfinished() == [other]


def test_a_cache_that_cannot_be_written(remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DETRONOME_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match="cannot be kept on this machine") as told:
        find_shard_split(remote, "train")
    assert "DETRONOME_CACHE" in str(told.value)
    monkeypatch.setenv("DETRONOME_CACHE", str(tmp_path / "cache"))
    _, source = opened(remote)

    def full(descriptor: int, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("detronome.data.store.shards.cache._write", full)
    with pytest.raises(DataError, match=r"image 999 cannot be read: .*No space left on device"):
        source.read(1)
    assert unfinished() == []


def test_a_damaged_index_in_the_cache_is_copied_again(remote: str) -> None:
    _, source = opened(remote)
    (source._places.folder / "index.npy").write_bytes(b"x")
    _, source = opened(remote)
    assert source.read(0) == b""
    flip(f"{remote}/shards/train/index.npy", 200)
    (source._places.folder / "index.npy").unlink()
    with pytest.raises(DataError, match="index of the shards cannot be used"):
        opened(remote)


def test_shards_are_written_to_an_address(plain: Path, sharded: Path) -> None:
    result = write_shards(plain, f"{URL}/", shard_bytes=40_000)
    assert result.splits[0].num_shards == len(list((sharded / "shards" / "train").glob("*.tar")))
    written = {name: file.getvalue() for name, file in FaultyFileSystem.store.items()}
    base = FaultyFileSystem._strip_protocol(URL)
    assert written == {
        f"{base}/{path.relative_to(sharded)}": path.read_bytes() for path in sharded.rglob("*") if path.is_file()
    }
    with pytest.raises(ConfigError, match="not empty"):
        write_shards(plain, URL, shard_bytes=40_000)


def test_an_interrupted_run_leaves_nothing_at_the_address(plain: Path) -> None:
    def stop(done: int, total: int) -> None:
        assert not any(name.endswith("index.json") for name in FaultyFileSystem.store)
        if done > total / 2:
            assert FaultyFileSystem.store
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(plain, URL, shard_bytes=40_000, on_progress=stop)
    assert FaultyFileSystem.store == {}


def test_without_fsspec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(MissingExtraError, match=r"'fsspec', which is not installed\n.*detronome\[cloud\]"):
        find_shard_split("s3://bucket/data", "train")


def test_a_protocol_nobody_knows() -> None:
    with pytest.raises(DataError, match="the address cannot be listed: Protocol not known: gopher"):
        find_shard_split("gopher://bucket/data", "train")


WORKER = """
import sys
from detronome.data.store.index import AnnotationIndex
from detronome.data.store.shards.find import find_shard_split
from detronome.data.store.shards.source import open_shards
from detronome.data.store.source import FolderSource
from pathlib import Path
import numpy as np

url, images, budget, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
files = find_shard_split(url, "train")
index = AnnotationIndex.open(files.annotation_file)
source, plain = open_shards(files, index, cache_bytes=budget), FolderSource(index, images)
for i in np.random.default_rng(seed).integers(0, len(index), 150).tolist():
    assert source.read(i) == plain.read(i), i
assert "torch" not in sys.modules
"""


@pytest.mark.parametrize("num_shards", [1, 10])
def test_processes_share_the_cache(plain: Path, sharded: Path, num_shards: int) -> None:
    sizes = sorted(path.stat().st_size for path in (sharded / "shards" / "train").glob("*.tar"))
    budget = sum(sizes[-num_shards:])
    command = [sys.executable, "-W", "error", "-c", WORKER, sharded.as_uri(), str(plain / "images"), str(budget)]
    workers = [
        subprocess.Popen([*command, str(seed)], stderr=subprocess.PIPE, text=True, env={**os.environ})
        for seed in range(3)
    ]
    most = 0
    while any(worker.poll() is None for worker in workers):
        most = max(most, used_bytes())
        time.sleep(0.005)
    assert [worker.communicate()[1] for worker in workers] == [""] * 3
    assert [worker.returncode for worker in workers] == [0] * 3
    assert 0 < most <= budget
    assert unfinished() == []


def test_a_source_outlives_its_cache_folder(remote: str) -> None:
    _, source = opened(remote)
    expected = source.read(1)
    for path in kept():
        path.unlink()
    shards = CachedShards(f"{remote}/shards/train", source._places, PLENTY)
    assert shards.discard(0, None) is True
    assert shards.open(0).size_bytes == source._places.header.shards[0].size_bytes
    assert source.read(1) == expected

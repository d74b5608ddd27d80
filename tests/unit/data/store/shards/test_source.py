"""Reading gives the bytes that were put in, or an error that names shard, member and image."""

from __future__ import annotations

import copy
import json
import os
import pickle
import shutil
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from detronome.data.store.index import AnnotationIndex
from detronome.data.store.shards.find import find_shard_split, shard_splits
from detronome.data.store.shards.format import HEADER_FILE, RECORDS_FILE
from detronome.data.store.shards.source import ShardSource, open_shards
from detronome.data.store.source import FolderSource, ImageSource
from detronome.errors import DataError
from detronome.runtime.files import sha256_of


def opened(data: Path, split: str = "train") -> tuple[AnnotationIndex, ShardSource]:
    files = find_shard_split(str(data), split)
    assert files is not None
    index = AnnotationIndex.open(files.annotation_file)
    return index, open_shards(files, index, cache_bytes=0)


@pytest.fixture
def writable(sharded: Path, tmp_path: Path) -> Path:
    return shutil.copytree(sharded, tmp_path / "data")


def test_data_without_shards(blocks: Path, tmp_path: Path) -> None:
    assert shard_splits(str(blocks)) == shard_splits(str(tmp_path / "nowhere")) == []
    assert shard_splits("a\0b") == shard_splits("a" * 5000) == []
    assert find_shard_split(str(blocks), "train") is None


def test_every_image_is_what_it_was(plain: Path, sharded: Path) -> None:
    index, source = opened(sharded)
    as_source: ImageSource = source
    files = FolderSource(index, plain / "images")
    order = np.random.default_rng(0).permutation(len(index)).tolist()
    assert as_source.read(0) == b""
    assert all(as_source.read(i) == files.read(i) for i in order)
    assert source.where(1).endswith("/shards/train/00000.tar, member 000000001.jpg")
    assert source.stamp(3) == (len(source.read(3)), zlib.crc32(source.read(3)))
    assert source.shard_of.dtype == np.int64
    assert np.array_equal(np.unique(source.shard_of), np.arange(source.shard_of.max() + 1))


@pytest.mark.parametrize(
    ("name", "asked"), [("train", "train"), ("train2017", "train"), ("valid", "val"), ("val2014", "valid")]
)
def test_splits_are_found_by_the_names_that_users_give(sharded: Path, tmp_path: Path, name: str, asked: str) -> None:
    data = shutil.copytree(sharded, tmp_path / "data")
    (data / "shards" / "train").rename(data / "shards" / name)
    (data / "annotations" / "instances_train.json").rename(data / "annotations" / f"instances_{name}.json")
    files = find_shard_split(str(data), asked)
    assert files is not None
    assert (files.name, files.images_dir, files.shards) == (name, data / "shards" / name, str(data / "shards" / name))
    assert files.annotation_file == data / "annotations" / f"instances_{name}.json"
    assert shard_splits(str(data)) == [name]
    assert find_shard_split(str(data), "test") is None


def test_a_source_pickles_small_and_without_open_files(sharded: Path) -> None:
    _, source = opened(sharded)
    before = source.read(3)
    content = pickle.dumps(source)
    assert len(content) < 1500
    assert pickle.loads(content).read(3) == copy.deepcopy(source).read(3) == before


def test_few_files_stay_open(writable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index, source = opened(writable)
    monkeypatch.setattr(type(source._shards), "num_open", 2)

    def num_open() -> int:
        links = (os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd"))
        return sum(link.startswith(str(writable.resolve())) and link.endswith(".tar") for link in links)

    assert num_open() == 0
    for i in range(len(index)):
        source.read(i)
        assert 1 <= num_open() <= 2
    del source
    assert num_open() == 0


def test_threads_share_a_source(plain: Path, sharded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index, source = opened(sharded)
    monkeypatch.setattr(type(source._shards), "num_open", 1)
    files = FolderSource(index, plain / "images")
    order = np.random.default_rng(0).integers(0, len(index), 2000).tolist()
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda i: source.read(i) == files.read(i), order))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_reads_on(sharded: Path) -> None:
    _, source = opened(sharded)
    expected = source.read(5)
    child = os.fork()
    if child == 0:
        os._exit(0 if source.read(5) == expected else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert source.read(5) == expected


def test_any_flipped_bit_is_found_and_named(writable: Path) -> None:
    """A thousand random bits of images' contents, one at a time."""
    index, source = opened(writable)
    places = [source._places.place(i) for i in range(len(index))]
    lengths = np.array([place.length for place in places])
    rng = np.random.default_rng(0)
    for bit in rng.integers(0, 8 * lengths.sum(), 1000).tolist():
        byte = bit // 8
        i = int(np.searchsorted(np.cumsum(lengths), byte, side="right"))
        place = places[i]
        path = writable / "shards" / "train" / f"{place.shard:05d}.tar"
        offset = place.offset + byte - int(lengths[:i].sum())
        with path.open("r+b") as file:
            file.seek(offset)
            (value,) = file.read(1)
            file.seek(offset)
            file.write(bytes([value ^ 1 << bit % 8]))
            file.flush()
            with pytest.raises(DataError) as told:
                source.read(i)
            file.seek(offset)
            file.write(bytes([value]))
        (problem,) = told.value.problems
        assert f"image {index.image(i).image_id} cannot be read from its shard: its CRC-32 is" in problem.what
        assert f"{place.shard:05d}.tar, member {i:09d}." in problem.where
        assert f"copy {place.shard:05d}.tar again" in problem.fix and "--verify" in problem.fix
        source.read(i)


def test_a_shard_that_is_cut_or_gone_while_training(writable: Path) -> None:
    index, source = opened(writable)
    last = len(index) - 1
    shard = writable / "shards" / "train" / f"{source.shard_of[last]:05d}.tar"
    os.truncate(shard, source._places.place(last).offset + 1)
    with pytest.raises(DataError, match=r"image 961 cannot be read from its shard: the shard ends after [\d,]+ bytes"):
        source.read(last)
    shard.unlink()
    with pytest.raises(DataError, match="image 961 cannot be read from its shard: No such file") as told:
        pickle.loads(pickle.dumps(source)).read(last)
    assert told.value.problems[0].where == f"{shard}, member {last:09d}.jpg"
    assert source.read(0) == b""


def test_all_shards_that_are_cut_or_gone_are_named_at_the_start(writable: Path) -> None:
    os.truncate(writable / "shards" / "train" / "00000.tar", 1000)
    (writable / "shards" / "train" / "00001.tar").unlink()
    with pytest.raises(DataError) as told:
        opened(writable)
    first, second = told.value.problems
    assert first.what.startswith("a shard has 1,000 bytes where it had")
    assert second.what == "a shard cannot be read: No such file or directory"
    assert second.where.endswith("00001.tar")


def test_an_annotation_file_with_other_images_is_refused(writable: Path) -> None:
    file = writable / "annotations" / "instances_train.json"
    original = json.loads(file.read_bytes())

    def change(edit: Callable[[dict[str, list[dict[str, object]]]], object]) -> None:
        record = json.loads(json.dumps(original))
        edit(record)
        file.write_text(json.dumps(record))

    change(lambda record: record["annotations"][0].update(bbox=[0, 0, 1, 1]))
    opened(writable)
    change(lambda record: record["images"].reverse())
    with pytest.raises(DataError, match="does not belong to the shards: its image ids, or their order, are others"):
        opened(writable)
    change(lambda record: record["images"].append({"id": 7, "file_name": "x", "height": 1, "width": 1}))
    with pytest.raises(DataError, match="does not belong to the shards: it has 41 images, they have 40"):
        opened(writable)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        (HEADER_FILE, b"", "index of the shards cannot be used"),
        (HEADER_FILE, b"[]", "index of the shards cannot be used"),
        (HEADER_FILE, b'{"format": "other", "version": 1}', "it is no index of shards"),
        (HEADER_FILE, b'{"format": "detronome-shards", "version": 1}', "missing required field"),
        (HEADER_FILE, b'{"format": "detronome-shards", "version": 2}', "of format 2; .* reads format 1"),
        (HEADER_FILE, None, "No such file"),
        (RECORDS_FILE, b"", "not the one that index.json describes"),
        (RECORDS_FILE, None, "No such file"),
    ],
)
def test_a_damaged_index(writable: Path, name: str, content: bytes | None, told: str) -> None:
    files = find_shard_split(str(writable), "train")
    assert files is not None
    path = files.images_dir / name
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(DataError, match=told):
        open_shards(files, AnnotationIndex.open(files.annotation_file), cache_bytes=0)


@pytest.mark.parametrize(
    ("column", "value"),
    [("offset", 2**64 - 1), ("length", 2**64 - 1), ("offset", 10**6), ("length", 10**6), ("shard", 2**32 - 1)],
)
def test_an_index_that_points_outside_is_refused(writable: Path, column: str, value: int) -> None:
    """Also where offset and length together are more than 64 bits hold."""
    folder = writable / "shards" / "train"
    rows = np.load(folder / RECORDS_FILE)
    rows[column][5] = value
    np.save(folder / RECORDS_FILE, rows)
    header = json.loads((folder / HEADER_FILE).read_bytes())
    header["records_sha256"] = sha256_of(folder / RECORDS_FILE)
    (folder / HEADER_FILE).write_text(json.dumps(header))
    with pytest.raises(DataError, match="points outside the shards"):
        opened(writable)


@pytest.mark.parametrize("size", [-1, 2**63, 2**64])
def test_a_size_that_no_file_has_is_refused(writable: Path, size: int) -> None:
    file = writable / "shards" / "train" / HEADER_FILE
    header = json.loads(file.read_bytes())
    header["shards"][0]["size_bytes"] = size
    file.write_text(json.dumps(header))
    with pytest.raises(DataError, match="index of the shards"):
        opened(writable)


def test_an_index_of_no_shards_is_refused(writable: Path) -> None:
    folder = writable / "shards" / "train"
    np.save(folder / RECORDS_FILE, np.load(folder / RECORDS_FILE)[:0])
    header = json.loads((folder / HEADER_FILE).read_bytes())
    header |= {"num_images": 0, "shards": [], "records_sha256": sha256_of(folder / RECORDS_FILE)}
    (folder / HEADER_FILE).write_text(json.dumps(header))
    with pytest.raises(DataError, match="index of the shards"):
        opened(writable)


def test_an_index_of_fewer_images_is_refused_whatever_it_says_of_them(writable: Path) -> None:
    folder = writable / "shards" / "train"
    np.save(folder / RECORDS_FILE, np.load(folder / RECORDS_FILE)[:-1])
    header = json.loads((folder / HEADER_FILE).read_bytes())
    header |= {"num_images": 39, "records_sha256": sha256_of(folder / RECORDS_FILE)}
    (folder / HEADER_FILE).write_text(json.dumps(header))
    with pytest.raises(DataError, match="it has 40 images, they have 39"):
        opened(writable)


def test_a_flipped_bit_of_the_index_is_found(writable: Path) -> None:
    path = writable / "shards" / "train" / RECORDS_FILE
    content = path.read_bytes()
    for place in np.random.default_rng(0).integers(0, len(content), 20).tolist():
        path.write_bytes(content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :])
        with pytest.raises(DataError, match="index of the shards"):
            opened(writable)

"""Reading shards through names what is damaged; the command line says it, in words and as JSON."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import detronome as dt
from detronome.cli import main
from detronome.data.store.index import AnnotationIndex
from detronome.data.store.shards.format import HEADER_FILE, RECORDS_FILE, ShardIndex
from detronome.data.store.shards.verify import DamagedImage, verify_shard_files
from detronome.errors import ConfigError, DataError
from detronome.runtime.files import sha256_of

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def writable(sharded: Path, tmp_path: Path) -> Path:
    return shutil.copytree(sharded, tmp_path / "data")


@pytest.fixture(params=["folder", "address"])
def place(request: pytest.FixtureRequest, writable: Path) -> str:
    return str(writable) if request.param == "folder" else writable.as_uri()


def flip(data: Path, shard: int, offset: int) -> None:
    with (data / "shards" / "train" / f"{shard:05d}.tar").open("r+b") as file:
        file.seek(offset)
        (value,) = file.read(1)
        file.seek(offset)
        file.write(bytes([value ^ 128]))


def run(capsys: Capture, *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(["data", "shard", *map(str, arguments)])
    captured = capsys.readouterr()
    code = end.value.code
    return (code if isinstance(code, int) else 0), captured.out, captured.err


def test_nothing_to_verify(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there are no shards"):
        verify_shard_files(str(tmp_path))


def test_sound_shards(place: str, sharded: Path) -> None:
    heard: list[tuple[int, int]] = []
    check = verify_shard_files(place, on_progress=lambda *now: heard.append(now))
    shards = list((sharded / "shards" / "train").glob("*.tar"))
    assert (check.num_shards, check.num_images, check.damaged) == (len(shards), 40, ())
    check.raise_if_damaged()
    assert heard[-1] == (sum(path.stat().st_size for path in shards),) * 2


def test_every_damaged_image_is_named(place: str, writable: Path) -> None:
    folder = writable / "shards" / "train"
    places = ShardIndex.open(folder)
    last = len(places) - 1
    flip(writable, 0, places.place(3).offset)
    flip(writable, 0, places.place(5).offset + places.place(5).length - 1)
    os.truncate(folder / f"{places.place(last).shard:05d}.tar", places.place(last).offset + 1)
    (folder / "00001.tar").unlink()
    first, second, third = verify_shard_files(place).damaged
    root = place.rstrip("/")
    assert first.shard == f"{root}/shards/train/00000.tar"
    assert first.defect == "the shard's SHA-256 is not the one in the index"
    assert first.images == (DamagedImage(997, "000000003.png"), DamagedImage(995, "000000005.img"))
    assert "cannot be read" in second.defect
    assert [image.image_id for image in second.images] == [1000 - i for i in range(40) if places.place(i).shard == 1]
    assert third.defect.startswith("the shard has ")
    assert third.images == (DamagedImage(961, "000000039.jpg"),)


def test_damage_between_the_images_is_found_and_said_to_be_there(place: str, writable: Path) -> None:
    places = ShardIndex.open(writable / "shards" / "train")
    for offset in (100, places.place(1).offset - 1, places.place(1).offset + places.place(1).length):
        flip(writable, 0, offset)
        (damaged,) = verify_shard_files(place).damaged
        assert damaged.images == ()
        assert "no image is damaged" in damaged.to_problem().what
        flip(writable, 0, offset)
    with (writable / "shards" / "train" / "00000.tar").open("ab") as file:
        file.write(b"x")
    (damaged,) = verify_shard_files(place).damaged
    assert (damaged.images, "bytes where it had" in damaged.defect) == ((), True)


def test_an_index_with_another_crc_is_found(writable: Path) -> None:
    folder = writable / "shards" / "train"
    rows = np.load(folder / RECORDS_FILE)
    rows["crc32"][3] ^= 1
    np.save(folder / RECORDS_FILE, rows)
    header = json.loads((folder / HEADER_FILE).read_bytes())
    header["records_sha256"] = sha256_of(folder / RECORDS_FILE)
    (folder / HEADER_FILE).write_text(json.dumps(header))
    (damaged,) = verify_shard_files(str(writable)).damaged
    assert [image.member for image in damaged.images] == ["000000003.png"]
    assert "CRC-32" in damaged.defect


def test_shards_that_are_gone_are_missed(place: str, writable: Path) -> None:
    annotations = writable / "annotations/instances_train.json"
    shutil.copy(annotations, annotations.with_name("instances_val.json"))
    with pytest.raises(DataError, match="there are no shards of split 'val'; there are those of train"):
        verify_shard_files(place)
    assert verify_shard_files(place, splits=["train"]).damaged == ()
    shutil.rmtree(writable / "shards/train")
    with pytest.raises(DataError) as told:
        verify_shard_files(place)
    assert [problem.what for problem in told.value.problems] == [
        "there are no shards of split 'train'",
        "there are no shards of split 'val'",
    ]


@pytest.mark.parametrize("folder", ["shards", "shards/train"])
def test_shards_without_permission_are_told(writable: Path, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    scandir = os.scandir

    def denied(path: str | Path = ".") -> object:
        if str(path) == str(writable / folder):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(DataError, match=r"^cannot be read: Permission denied") as told:
        verify_shard_files(str(writable))
    assert told.value.problems[0].where == str(writable / folder)


def test_the_command_writes_and_verifies(capsys: Capture, plain: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, text, told = run(capsys, plain, out, "--shard-mib", 1)
    assert (code, text) == (0, "train: 40 images in 1 shard, 196 KiB\n")
    assert "train: 40 files not like an image: a.jpg, " in told and f"detronome data check {plain}" in told
    assert run(capsys, "--verify", out) == (0, "whole: 40 images in 1 shard\n", "")
    code, text, told = run(capsys, plain, tmp_path / "json", "--split", "train", "--json")
    assert (code, told) == (0, "")
    assert json.loads(text)["splits"][0]["num_shards"] == 1
    flip(out, 0, ShardIndex.open(out / "shards" / "train").place(3).offset)
    code, text, told = run(capsys, "--verify", out)
    assert (code, text) == (1, "")
    assert "damaged images: 997 (000000003.png)" in told and "00000.tar" in told and "Traceback" not in told
    code, text, told = run(capsys, "--verify", out, "--json")
    assert (code, told) == (1, "")
    assert json.loads(text)["damaged"][0]["images"] == [{"image_id": 997, "member": "000000003.png"}]


def test_mistakes_on_the_command_line(capsys: Capture, plain: Path, sharded: Path, tmp_path: Path) -> None:
    for arguments, ends_with, told in (
        ([plain], 2, "a data folder and an output are needed"),
        ([plain, "--verify", sharded], 2, "--verify stands alone"),
        ([plain, sharded], 2, "not an empty folder"),
        ([tmp_path / "nowhere", tmp_path / "out"], 1, "does not exist"),
        ([plain, tmp_path / "out", "--split", "test"], 1, "has no split 'test'; it has train"),
        ([plain, tmp_path / "out", "--shard-mib", 0], 2, "shards of 0 MiB"),
        (["--verify", plain], 1, "there are no shards"),
        (["--verify", sharded, "--split", "val"], 1, "no shards of split 'val'; there are those of train"),
        ([sharded, tmp_path / "out"], 1, "is already in shards"),
    ):
        code, text, error = run(capsys, *arguments)
        assert (code, text) == (ends_with, ""), arguments
        assert told in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_from_python(plain: Path, tmp_path: Path) -> None:
    result = dt.shard_data(plain, tmp_path / "out", shard_mib=1)
    assert result.splits[0].num_images == 40
    assert dt.verify_shards(tmp_path / "out").to_json() == {"num_shards": 1, "num_images": 40, "damaged": ()}
    with pytest.raises(ConfigError, match="shards of 0 MiB"):
        dt.shard_data(plain, tmp_path / "other", shard_mib=0)


def test_real_photos(shared_data: Path, tmp_path: Path) -> None:
    dt.shard_data(shared_data / "bccd", tmp_path / "out", shard_mib=1)
    check = dt.verify_shards(tmp_path / "out")
    assert (check.num_images, check.damaged) == (364, ())
    original = AnnotationIndex.open(shared_data / "bccd" / "annotations" / "instances_val.json")
    copied = AnnotationIndex.open(tmp_path / "out" / "annotations" / "instances_val.json")
    assert copied.fingerprint == original.fingerprint

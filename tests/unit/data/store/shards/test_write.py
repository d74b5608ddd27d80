"""Shards hold the files and records byte for byte, as WebDataset reads them; nothing unfinished looks finished."""

from __future__ import annotations

import ast
import errno
import fcntl
import io
import itertools
import json
import os
import shutil
import tarfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, features

from detronome.data.store.shards import write
from detronome.data.store.shards.format import image_member
from detronome.data.store.shards.verify import verify_shard_files
from detronome.data.store.shards.write import write_shards
from detronome.errors import ConfigError, DataError

SHARD_BYTES = 40_000


def webdataset(shards: list[Path]) -> Iterator[dict[str, Any]]:
    """Group tar members as WebDataset does: what is before the first dot is the key, what follows the kind."""
    for shard in shards:
        with tarfile.open(shard, "r|") as tar:
            members = ((*m.name.split(".", 1), tar.extractfile(m).read()) for m in tar)  # type: ignore[union-attr]
            for key, group in itertools.groupby(members, key=lambda member: member[0]):
                yield {"__key__": key} | {kind: content for _, kind, content in group}


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_an_image_without_annotations_or_content(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for name in ("images", "annotations"):
        (data / name).mkdir(parents=True)
    (data / "images" / "a.jpg").write_bytes(b"")
    record = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 1, "width": 1}],
        "annotations": [],
        "categories": [{"id": 1, "name": "x"}],
    }
    (data / "annotations" / "instances_train.json").write_text(json.dumps(record))
    result = write_shards(data, str(tmp_path / "out"), shard_bytes=1)
    assert [(s.split, s.num_images, s.num_shards) for s in result.splits] == [("train", 1, 1)]
    assert result.splits[0].suspicious == ("a.jpg",)
    (sample,) = webdataset([tmp_path / "out" / "shards" / "train" / "00000.tar"])
    assert sample["jpg"] == b""
    assert json.loads(sample["json"]) == {"image": record["images"][0], "annotations": []}


def test_shards_are_a_webdataset_of_the_files_and_their_records(plain: Path, sharded: Path) -> None:
    shards = sorted((sharded / "shards" / "train").glob("*.tar"))
    assert len(shards) > 2
    assert all(shard.stat().st_size <= SHARD_BYTES for shard in shards)
    record = json.loads((plain / "annotations" / "instances_train.json").read_bytes())
    samples = list(webdataset(shards))
    assert len({sample["__key__"] for sample in samples}) == len(samples) == len(record["images"])
    assert samples == sorted(samples, key=lambda sample: sample["__key__"])
    for image, sample in zip(record["images"], samples, strict=True):
        (kind,) = sample.keys() - {"__key__", "json"}
        assert sample[kind] == (plain / "images" / image["file_name"]).read_bytes()
        of_image = [a for a in record["annotations"] if a["image_id"] == image["id"]]
        assert json.loads(sample["json"]) == {"image": image, "annotations": of_image}


def test_the_annotation_file_is_the_same(plain: Path, sharded: Path) -> None:
    name = "annotations/instances_train.json"
    assert (sharded / name).read_bytes() == (plain / name).read_bytes()


@pytest.mark.parametrize(
    ("name", "member"),
    [
        ("a.jpg", "000000007.jpg"),
        ("a.b/c.tar.PNG", "000000007.png"),
        ("none", "000000007.img"),
        ("x.json", "000000007.img"),
        ("x.", "000000007.img"),
        ("x.é", "000000007.img"),
        ("x.a b", "000000007.img"),
    ],
)
def test_a_key_has_no_dot_whatever_the_file_is_called(name: str, member: str) -> None:
    assert image_member(7, name) == member


def test_the_bytes_are_a_function_of_the_data(plain: Path, sharded: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(plain, tmp_path / "copy")
    for path in copy.rglob("*"):
        path.chmod(0o700)
    (tmp_path / "empty").mkdir()
    write_shards(copy, str(tmp_path / "empty"), shard_bytes=SHARD_BYTES)
    assert tree(tmp_path / "empty") == tree(sharded)
    with tarfile.open(sharded / "shards" / "train" / "00000.tar") as tar:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in tar} == {(0, 0, 0, "", "", 0o644)}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_other_spellings_of_the_annotation_file(plain: Path, tmp_path: Path, encoding: str) -> None:
    copy = shutil.copytree(plain, tmp_path / "copy")
    file = copy / "annotations" / "instances_train.json"
    record = json.loads(file.read_bytes())
    record["annotations"][3]["image_id"] = float(record["annotations"][3]["image_id"])
    file.write_text(json.dumps(record, indent=2), encoding=encoding)
    write_shards(copy, str(tmp_path / "out"), shard_bytes=10**6)
    records = [json.loads(sample["json"]) for sample in webdataset([tmp_path / "out/shards/train/00000.tar"])]
    assert [r["image"] for r in records] == record["images"]
    written = sorted((a for r in records for a in r["annotations"]), key=lambda a: a["id"])
    assert written == record["annotations"]


def test_splits_are_chosen_by_name(blocks: Path, tmp_path: Path) -> None:
    both = write_shards(blocks, str(tmp_path / "both"), shard_bytes=10**6)
    assert [split.split for split in both.splits] == ["train", "val"]
    assert both.to_json()["splits"][1]["num_images"] == 6
    write_shards(blocks, str(tmp_path / "one"), splits=["val", "val"], shard_bytes=10**6)
    assert sorted(tree(tmp_path / "one")) == [
        "annotations/instances_val.json",
        "shards/val/00000.tar",
        "shards/val/index.json",
        "shards/val/index.npy",
    ]


def test_progress_ends_at_the_whole(plain: Path, tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []
    write_shards(plain, str(tmp_path / "out"), shard_bytes=10**6, on_progress=lambda *now: heard.append(now))
    assert len(heard) == 40
    assert heard == sorted(heard)
    assert heard[-1][0] == heard[-1][1] == sum(p.stat().st_size for p in (plain / "images").rglob("*") if p.is_file())


def test_all_missing_images_are_named_and_nothing_is_left(blocks: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(blocks, tmp_path / "copy")
    for name in ("train_03.png", "train_07.png", "val_02.png"):
        (copy / "images" / name).unlink()
    with pytest.raises(DataError) as told:
        write_shards(copy, str(tmp_path / "out"), shard_bytes=10**6)
    assert [problem.what for problem in told.value.problems] == [
        "2 of 24 image files are missing: train_03.png, train_07.png",
        "1 of 6 image files are missing: val_02.png",
    ]
    assert not (tmp_path / "out").exists()


def test_a_full_output_is_refused_and_left_alone(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(ConfigError, match="not an empty folder"):
        write_shards(plain, str(tmp_path / "out"), shard_bytes=10**6)
    assert tree(tmp_path / "out") == {"mine": b"x"}
    with pytest.raises(ConfigError, match="not an empty folder"):
        write_shards(plain, str(tmp_path / "out" / "mine"), shard_bytes=10**6)


def test_a_disk_without_space_is_found_before_writing(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    total, used, _ = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(write.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(total, used, 100_000))
    with pytest.raises(DataError, match=r"too little room: up to 2\d\d KiB are needed, 98 KiB are free"):
        write_shards(plain, str(tmp_path / "out"), shard_bytes=10**6)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
@pytest.mark.parametrize("is_there", [False, True])
def test_an_interrupted_run_leaves_nothing(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, is_there: bool
) -> None:
    out = tmp_path / "out"
    if is_there:
        out.mkdir()

    def stop(done: int, total: int) -> None:
        assert not (out / "shards").exists()
        if done > total / 2:
            raise error

    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else DataError):
        write_shards(plain, str(out), shard_bytes=SHARD_BYTES, on_progress=stop)
    assert list(tmp_path.iterdir()) == ([out] if is_there else [])
    assert not is_there or list(out.iterdir()) == []


def test_what_a_killed_run_left_is_no_hindrance(plain: Path, sharded: Path, tmp_path: Path) -> None:
    leftover = tmp_path / "out" / ".incomplete" / "shards" / "train"
    leftover.mkdir(parents=True)
    (leftover / "00000.tar").write_bytes(b"half")
    (tmp_path / "out" / ".lock").touch()
    write_shards(plain, str(tmp_path / "out"), shard_bytes=SHARD_BYTES)
    assert tree(tmp_path / "out") == tree(sharded)


def test_two_writers_do_not_meet(plain: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with (out / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another process is writing"):
            write_shards(plain, str(out), shard_bytes=10**6)
    write_shards(plain, str(out), shard_bytes=10**6)
    assert verify_shard_files(str(out)).damaged == ()


def test_the_output_lies_outside_the_data_folder(blocks: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(blocks, tmp_path / "copy")
    for out in (copy, copy / "sub", tmp_path / "other/../copy/sub"):
        with pytest.raises(DataError, match="lies inside the data folder"):
            write_shards(copy, str(out), shard_bytes=10**6)
    assert tree(copy) == tree(blocks) and not (copy / "sub").exists()


@pytest.mark.parametrize("place", ["images", "annotations", "images/train_03.png"])
def test_an_input_that_cannot_be_read_is_not_taken_for_the_output(
    blocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def refusing(function: Callable[..., object]) -> Callable[..., object]:
        def refuse(path: str | Path = ".", *args: object, **kwargs: object) -> object:
            if str(path) == str(blocks / place):
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return function(path, *args, **kwargs)

        return refuse

    monkeypatch.setattr(os, "scandir", refusing(os.scandir))
    monkeypatch.setattr(Path, "stat", refusing(Path.stat))
    with pytest.raises(DataError, match=r"^cannot be read: Permission denied") as told:
        write_shards(blocks, str(tmp_path / "out"), shard_bytes=10**6)
    assert told.value.problems[0].where == str(blocks / place)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("suffix", ["jpeg", "png", "gif", "tiff", "webp", "bmp", "avif"])
def test_what_begins_as_an_image_is_not_suspicious(suffix: str) -> None:
    if suffix in ("webp", "avif") and not features.check(suffix):
        pytest.skip("not in this build of Pillow")
    content = io.BytesIO()
    Image.new("RGB", (8, 8)).save(content, suffix)
    assert write._begins_as_image(content.getvalue())
    assert not write._begins_as_image(b"<html>not found</html>") and not write._begins_as_image(b"")


def test_memory_holds_one_image_at_a_time(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for name in ("images", "annotations"):
        (data / name).mkdir(parents=True)
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 1, "width": 1} for i in range(40)]
    for image in images:
        (data / "images" / str(image["file_name"])).write_bytes(bytes(1 << 20))
    record = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "x"}]}
    (data / "annotations" / "instances_train.json").write_text(json.dumps(record))
    tracemalloc.start()
    try:
        write_shards(data, str(tmp_path / "out"), shard_bytes=20 << 20)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_no_module_of_shards_imports_torch() -> None:
    for path in Path(write.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            module = node.module if isinstance(node, ast.ImportFrom) else None
            assert not any(name.startswith(("torch", "detronome.runtime.seeding")) for name in [*names, module or ""])

"""Unpacking: right files appear whole, hostile archives touch nothing outside the target, nothing is overwritten."""

from __future__ import annotations

import io
import random
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from detronome.data.download.members import Limits
from detronome.data.download.unpack import FileRecord, unpack
from detronome.errors import DataError

LIMITS = Limits(max_members=50, max_bytes=1_000_000)
Entry = tuple[str, bytes, dict[str, int]]
"""Name as it is written, content, and attributes to set on the entry's record."""


def zip_of(*entries: Entry) -> bytes:
    """A zip with entries of any name and attribute, sound or not."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content, attributes in entries:
            info = zipfile.ZipInfo("name")
            info.compress_type = zipfile.ZIP_DEFLATED
            info.filename = name
            archive.NameToInfo.clear()  # it warns of a name that is used twice
            with archive.open(info, "w") as member:
                member.write(content)
            for key, value in attributes.items():
                setattr(info, key, value)
    return buffer.getvalue()


def plain(*names: str) -> bytes:
    """A sound archive, with local names as in the directory."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, b"" if name.endswith("/") else content_of(name))
    return buffer.getvalue()


def content_of(name: str) -> bytes:
    return random.Random(name).randbytes(3000)


def put(folder: Path, content: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "archive.zip"
    path.write_bytes(content)
    return path


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_empty_archive_unpacks_to_nothing(tmp_path: Path) -> None:
    assert unpack(put(tmp_path, plain()), tmp_path / "out", limits=LIMITS) == {}
    assert tree(tmp_path / "out") == {}


def test_files_appear_whole_and_debris_does_not(tmp_path: Path) -> None:
    names = ["val2017/", "val2017/1.jpg", "annotations/a.json", "empty"]
    archive = put(tmp_path, plain(*names, "__MACOSX/val2017/._1.jpg", "val2017/.DS_Store"))
    told: list[tuple[int, int]] = []
    files = unpack(archive, tmp_path / "out", limits=LIMITS, on_progress=lambda *args: told.append(args))
    assert tree(tmp_path / "out") == {name: content_of(name) for name in names[1:]}
    assert files == {name: FileRecord(3000, zlib.crc32(content_of(name))) for name in names[1:]}
    assert told[-1] == (9000, 9000)


def test_only_what_is_not_there_is_unpacked(tmp_path: Path) -> None:
    archive, out = put(tmp_path, plain("a/1", "a/2", "a/3")), tmp_path / "out"
    unpack(archive, out, limits=LIMITS)
    times = {name: (out / name).stat().st_mtime_ns for name in ("a/1", "a/2")}
    (out / "a/3").unlink()
    unpack(archive, out, limits=LIMITS, known_good={"a/1"})
    assert {name: (out / name).stat().st_mtime_ns for name in times} == times
    assert (out / "a/3").read_bytes() == content_of("a/3")
    unpack(archive, out, limits=LIMITS, wanted=lambda name: name == "a/3")
    assert len(tree(out)) == 3


@pytest.mark.parametrize("mine", [b"mine", b"m" * 3000], ids=["another size", "the same size"])
def test_another_file_of_the_name_is_left_and_told_while_the_rest_is_unpacked(tmp_path: Path, mine: bytes) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "1").write_bytes(mine)
    with pytest.raises(DataError, match=r"1 files are not those of the archive(.|\n)*delete them"):
        unpack(put(tmp_path, plain("1", "2")), out, limits=LIMITS)
    assert tree(out) == {"1": mine, "2": content_of("2")}


def test_a_link_in_the_way_is_refused(tmp_path: Path) -> None:
    outside, out = tmp_path / "outside", tmp_path / "out"
    outside.mkdir()
    out.mkdir()
    (out / "a").symlink_to(outside)
    with pytest.raises(DataError, match="a link or file is where a folder"):
        unpack(put(tmp_path, plain("a/1")), out, limits=LIMITS)
    (out / "1").symlink_to(outside / "1")
    (out / ".2.unpacking").symlink_to(outside / "2")
    for name in ("1", "2"):
        with pytest.raises(DataError):
            unpack(put(tmp_path, plain(name)), out, limits=LIMITS)
    assert tree(outside) == {}


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", no_room)
    with pytest.raises(DataError, match=r"the disk is full(.|\n)*make room"):
        unpack(put(tmp_path, plain("a")), tmp_path / "out", limits=LIMITS)
    assert tree(tmp_path / "out") == {}


# ---- hostile archives

GOOD: list[Entry] = [("good/1", b"1", {}), ("good/2", b"2" * 99, {})]


def named(*names: str) -> Callable[[random.Random], bytes]:
    return lambda rng: zip_of(*GOOD, *((name, b"x", {}) for name in names))


def of_kind(kind: int) -> Callable[[random.Random], bytes]:
    return lambda rng: zip_of(*GOOD, ("evil", b"../../outside/canary", {"external_attr": (kind | 0o777) << 16}))


def with_attribute(**attributes: int) -> Callable[[random.Random], bytes]:
    return lambda rng: zip_of(*GOOD, ("evil", b"content", attributes))


def bomb(rng: random.Random) -> bytes:
    return zip_of(*GOOD, ("bomb", bytes(rng.randrange(200_000, 900_000)), {}))


def lying_bomb(rng: random.Random) -> bytes:
    """Says that it is small, in both headers, and is not."""
    zeros = bytes(5_000_000)
    content = zip_of(("bomb", zeros, {"file_size": 1000}))
    return content.replace(struct.pack("<L", len(zeros)), struct.pack("<L", 1000), 1)


def many_small_bombs(rng: random.Random) -> bytes:
    noise = rng.randbytes(20_000)
    return zip_of(*((f"{i}", noise * 2, {}) for i in range(40)))


def truncated(rng: random.Random) -> bytes:
    content = plain("a", "b", "c")
    return content[: rng.randrange(len(content) - 1)]


def wrong_bytes(rng: random.Random) -> bytes:
    content = bytearray(plain("aaaa"))
    content[rng.randrange(40, 3000)] ^= 1 << rng.randrange(8)
    return bytes(content)


def overlapping(rng: random.Random) -> bytes:
    return zip_of(("a", rng.randbytes(500), {}), ("b", b"x", {"header_offset": 0}))


HOSTILE: dict[str, Callable[[random.Random], bytes]] = {
    "parent": named("../canary"),
    "parent below": named("a/b/../../../canary"),
    "parent alone": named(".."),
    "parent folder": named("../outside/"),
    "dot": named("./canary"),
    "empty part": named("a//canary"),
    "empty name": named(""),
    "slash": named("/"),
    "absolute": named("/tmp/canary"),
    "absolute twice": named("//tmp/canary"),
    "drive": named("C:/canary"),
    "backslash": named("..\\outside\\canary"),
    "drive backslash": named("C:\\canary"),
    "null": named("good.jpg\0/../../outside/canary"),
    "escape code": named("\x1b[2Jcanary"),
    "new line": named("a\ncanary"),
    "right to left": named("gpj.\u202ecanary"),
    "long": named("x" * 5000),
    "long path": named("/".join(["x" * 150] * 12)),
    "deep": named("/".join("x" * 200)),
    "twice": named("a/canary", "a/canary"),
    "case": named("a/Canary", "a/canary"),
    "folder case": named("A/1", "a/2"),
    "kelvin sign": named("a/k", "a/\u212a"),
    "sharp s": named("strasse", "stra\u00dfe"),
    "composed": named("\u00e9", "e\u0301"),
    "file and folder": named("a", "a/canary"),
    "folder and file": named("a/canary", "a"),
    "folder entry and file": named("a/", "a"),
    "symlink": of_kind(stat.S_IFLNK),
    "fifo": of_kind(stat.S_IFIFO),
    "socket": of_kind(stat.S_IFSOCK),
    "block device": of_kind(stat.S_IFBLK),
    "character device": of_kind(stat.S_IFCHR),
    "folder without slash": of_kind(stat.S_IFDIR),
    "encrypted": with_attribute(flag_bits=0x1),
    "strongly encrypted": with_attribute(flag_bits=0x41),
    "method bzip2": with_attribute(compress_type=zipfile.ZIP_BZIP2),
    "method lzma": with_attribute(compress_type=zipfile.ZIP_LZMA),
    "method unknown": with_attribute(compress_type=99),
    "huge size": with_attribute(file_size=2**60),
    "negative place": with_attribute(header_offset=2**31),
    "wrong crc": with_attribute(CRC=1),
    "bomb": bomb,
    "lying bomb": lying_bomb,
    "many small bombs": many_small_bombs,
    "many entries": lambda rng: zip_of(*((f"f{i}", b"", {}) for i in range(51))),
    "many folders": lambda rng: zip_of(*((f"f{i}/", b"", {}) for i in range(51))),
    "truncated": truncated,
    "wrong bytes": wrong_bytes,
    "overlapping": overlapping,
    "no zip": lambda rng: rng.randbytes(rng.randrange(5000)),
    "web page": lambda rng: b"<!DOCTYPE html><html></html>",
    "empty file": lambda rng: b"",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_archive_is_refused_and_touches_nothing(tmp_path: Path, kind: str) -> None:
    out, outside = tmp_path / "data" / "out", tmp_path / "data" / "outside"
    outside.mkdir(parents=True)
    (outside / "canary").write_bytes(b"alive")
    for seed in range(4):
        archive = put(tmp_path, HOSTILE[kind](random.Random(seed)))
        before = {**tree(tmp_path), "archive.zip": archive.read_bytes()}
        with pytest.raises(DataError) as caught:
            unpack(archive, out, limits=LIMITS)
        assert all(problem.what and str(archive) in problem.where for problem in caught.value.problems)
        assert str(caught.value).isprintable() or all(line.isprintable() for line in str(caught.value).split("\n"))
        assert len(str(caught.value)) < 2000
        after = tree(tmp_path)
        inside = {name: content for name, content in after.items() if name.startswith("data/out/")}
        assert {name: content for name, content in after.items() if name not in inside} == before
        assert sum(map(len, inside.values())) <= LIMITS.max_bytes
        assert not any(name.endswith(".unpacking") for name in inside)
        assert not any(path.is_symlink() or not (path.is_file() or path.is_dir()) for path in tmp_path.rglob("*"))
        shutil.rmtree(out, ignore_errors=True)


def test_flipped_bits_never_make_a_wrong_file(tmp_path: Path) -> None:
    sound = plain("a/1", "b/2", "3")
    right = {name: content_of(name) for name in ("a/1", "b/2", "3")}
    for seed in range(150):
        rng = random.Random(seed)
        content = bytearray(sound)
        for _ in range(rng.randint(1, 4)):
            # half of the flips in the directory at the end, where they do the most
            place = rng.randrange(len(content)) if rng.random() < 0.5 else -1 - rng.randrange(200)
            content[place] ^= 1 << rng.randrange(8)
        folder = tmp_path / str(seed)
        with suppress(DataError):
            unpack(put(folder, bytes(content)), folder / "out", limits=LIMITS)
        assert [path.name for path in folder.iterdir() if path.name != "out"] == ["archive.zip"]
        assert set(tree(folder / "out").values()) <= {*right.values(), b""}

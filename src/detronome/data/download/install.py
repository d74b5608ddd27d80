"""Installing archives into a data folder: what is missing is fetched, verified, unpacked, and noted in a receipt.

Everything of the download's own lies in `.detronome/` in the data folder: part files, archives until they are unpacked,
receipts. So it may be interrupted at any moment, and run again at any time.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from operator import eq
from pathlib import Path
from typing import Literal

from detronome.data.download.catalog import Archive, NestedArchive, archive_urls
from detronome.data.download.events import Listener, Noticed, Planned, Progressed, ignore
from detronome.data.download.members import Limits
from detronome.data.download.part_file import bytes_on_disk
from detronome.data.download.receipt import Receipt, Standing, look, read_receipt, write_receipt
from detronome.data.download.transfer import TransferOptions, fetch, is_same_file
from detronome.data.download.unpack import FileRecord, bytes_to_unpack, unpack
from detronome.errors import DataError, Problem, first_few
from detronome.runtime.files import locked, require_space

__all__ = ["InstalledPart", "install"]

_WORK_DIR = ".detronome"
_SPARE_BYTES = 64 * 2**20


@dataclass(frozen=True, kw_only=True)
class InstalledPart:
    """What was done for one archive."""

    part: str
    outcome: Literal["installed", "restored", "there"]
    """`there`: nothing was missing. `restored`: some files had gone since the last time."""
    num_files: int
    num_new: int
    """Files that the last receipt does not know, or that had gone."""
    received_bytes: int

    def to_json(self) -> dict[str, str | int]:
        """Return plain data."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class _Job:
    archive: Archive
    receipt: Receipt | None
    standing: Standing
    own_copy: Path
    """Where the archive is downloaded to."""
    given_copy: Path | None
    """The archive as the user has put it into the data folder; it is never deleted."""

    @property
    def is_done(self) -> bool:
        """Whether everything is there already."""
        return self.receipt is not None and not self.standing.missing and not self.standing.changed


def install(
    target: Path,
    archives: Sequence[Archive],
    *,
    mirror: str | None = None,
    keep_archives: bool = False,
    options: TransferOptions | None = None,
    on_event: Listener = ignore,
) -> list[InstalledPart]:
    """Bring the files of these archives into a folder, and return what was done, in the order of `archives`.

    Args:
        target: the data folder; made if it does not exist.
        archives: which ones.
        mirror: base address to use instead of the official server.
        keep_archives: leave the verified zip files in the folder, instead of deleting each once it is unpacked.
        options: of the transfer.
        on_event: told the plan, progress and notices, from the calling thread.

    Raises:
        DataError: a file of the folder is not the archive's, the disk has too little room, the server does not give
            what it should, an archive is not safe. Run again, the work goes on where it stopped.
    """
    urls = {archive.part: archive_urls(archive, mirror) for archive in archives}
    with _folder_errors(), _alone_in(target):
        jobs = [_look_at(target, archive, on_event) for archive in archives]
        _require_unchanged(target, jobs)
        _plan(target, [job for job in jobs if not job.is_done], keep_archives=keep_archives, on_event=on_event)
        done: dict[str, InstalledPart] = {}
        # The small ones first: they are of use while the large one is on its way.
        for job in sorted(jobs, key=lambda job: job.archive.size_bytes):
            received_bytes, num_files = 0, len(job.standing.good)
            if not job.is_done:
                received_bytes = _fetch_archive(job, urls[job.archive.part], options or TransferOptions(), on_event)
                num_files = _unpack_archive(target, job, on_event)
            _put_away(job.own_copy, target / job.archive.name, keep=keep_archives)
            done[job.archive.part] = _summary(job, num_files, received_bytes)
    return [done[archive.part] for archive in archives]


@contextmanager
def _folder_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.filename is None:  # not of the folder: a broken pipe, say
            raise
        raise DataError(f"the data folder cannot be used: {error.strerror}", where=str(error.filename)) from error


@contextmanager
def _alone_in(target: Path) -> Iterator[None]:
    """Make the folder, and keep other downloads out of it: two would unpack into each other's files."""
    work_dir = target / _WORK_DIR
    if work_dir.is_symlink():
        raise DataError("a link stands where the download keeps its own files", where=str(work_dir), fix="remove it")
    with locked(work_dir / "lock") as is_ours:
        if not is_ours:
            what = "another download into this folder is under way"
            raise DataError(what, where=str(target), fix="wait until it has ended")
        yield


def _look_at(target: Path, archive: Archive, on_event: Listener) -> _Job:
    receipt = read_receipt(_receipt_path(target, archive), sha256=archive.sha256)
    job = _Job(
        archive=archive,
        receipt=receipt,
        standing=look(target, receipt.files if receipt is not None else {}),
        own_copy=target / _WORK_DIR / archive.name,
        given_copy=None,
    )
    return job if job.is_done else replace(job, given_copy=_given_copy(target, archive, on_event))


def _given_copy(target: Path, archive: Archive, on_event: Listener) -> Path | None:
    """Return the archive that the user has put into the data folder, if it is the right one."""
    path = target / archive.name
    if not is_same_file(path, sha256=archive.sha256, size_bytes=archive.size_bytes, on_event=on_event):
        return None
    on_event(Noticed(name=archive.name, text=f"{path} is complete and is used"))
    return path


def _require_unchanged(target: Path, jobs: Sequence[_Job]) -> None:
    problems = [
        Problem(
            what=f"{len(job.standing.changed):,} files of {job.archive.part!r} have been changed since the download",
            where=f"{target}: {first_few(job.standing.changed)}",
            fix="delete them, or move them away, and run the same command again: only they will be unpacked",
        )
        for job in jobs
        if job.standing.changed
    ]
    if problems:
        raise DataError(problems)


def _plan(target: Path, jobs: Sequence[_Job], *, keep_archives: bool, on_event: Listener) -> None:
    """Tell what will happen, and require the room for it."""
    to_come = {job.archive.name: _bytes_to_come(job) for job in jobs if job.given_copy is None}
    rooms = [_room_needed(target, job) for job in jobs]
    archives_bytes = sum(to_come.values()) if keep_archives else max(to_come.values(), default=0)
    needed = sum(rooms) + archives_bytes
    free = shutil.disk_usage(target).free
    sizes = {job.archive.name: job.archive.size_bytes for job in jobs if job.given_copy is None}
    on_event(Planned(sizes_bytes=sizes, needed_bytes=needed, free_bytes=free))
    if jobs:
        fix = "make room, give a folder on another disk, or leave out parts with --parts"
        require_space(target, needed + _SPARE_BYTES, fix=fix)


def _room_needed(target: Path, job: _Job) -> int:
    """Return the disk space that the unpacked files will take, beyond what is there."""
    if job.receipt is not None:
        return sum(job.receipt.files[name].size_bytes for name in job.standing.missing)
    copy = job.given_copy or (job.own_copy if job.own_copy.is_file() else None)
    if copy is None:
        return job.archive.total_room_bytes
    return bytes_to_unpack(copy, target) + sum(nested.room_bytes for nested in job.archive.nested)


def _bytes_to_come(job: _Job) -> int:
    archive = job.archive
    have = bytes_on_disk(job.own_copy, size_bytes=archive.size_bytes, sha256=archive.sha256)
    return archive.size_bytes - have


def _fetch_archive(job: _Job, urls: Sequence[str], options: TransferOptions, on_event: Listener) -> int:
    """Have the archive on disk, and return how many bytes were received for that."""
    if job.given_copy is not None:
        return 0
    if job.receipt is not None and not job.own_copy.exists():
        text = f"{len(job.standing.missing):,} of its files have gone; it is fetched again to restore them"
        on_event(Noticed(name=job.archive.name, text=text))
    return fetch(
        urls,
        job.own_copy,
        sha256=job.archive.sha256,
        size_bytes=job.archive.size_bytes,
        options=options,
        on_event=on_event,
    )


def _unpack_archive(target: Path, job: _Job, on_event: Listener) -> int:
    """Unpack what is missing, write the receipt, and return how many files there are."""
    files = _unpack_all(target, job, job.given_copy or job.own_copy, on_event)
    write_receipt(_receipt_path(target, job.archive), Receipt(sha256=job.archive.sha256, files=files))
    return len(files)


def _summary(job: _Job, num_files: int, received_bytes: int) -> InstalledPart:
    restored = len(job.standing.missing)
    return InstalledPart(
        part=job.archive.part,
        outcome="there" if job.is_done else "installed" if job.receipt is None else "restored",
        num_files=num_files,
        num_new=num_files if job.receipt is None else restored,
        received_bytes=received_bytes,
    )


def _unpack_all(target: Path, job: _Job, source: Path, on_event: Listener) -> dict[str, FileRecord]:
    """Unpack an archive and those in it, and return all files by their path in the data folder."""
    archive = job.archive
    nested_names = {nested.member for nested in archive.nested}
    limits = _limits(archive.num_files, archive.room_bytes)
    files = unpack(
        source,
        target,
        limits=limits,
        wanted=lambda name: name not in nested_names,
        known_good=job.standing.good,
        on_progress=_unpack_reporter(archive.name, on_event),
    )
    staging = target / _WORK_DIR / archive.part
    for nested in archive.nested:
        unpack(source, staging, limits=limits, wanted=partial(eq, nested.member))
        files |= _unpack_nested(target, job, nested, staging / nested.member, on_event)
        (staging / nested.member).unlink()
    if archive.nested:
        shutil.rmtree(staging)
    return files


def _unpack_nested(
    target: Path, job: _Job, nested: NestedArchive, source: Path, on_event: Listener
) -> dict[str, FileRecord]:
    prefix = f"{nested.folder}/"
    files = unpack(
        source,
        target / nested.folder,
        limits=_limits(nested.num_files, nested.room_bytes),
        known_good={name.removeprefix(prefix) for name in job.standing.good if name.startswith(prefix)},
        on_progress=_unpack_reporter(source.name, on_event),
    )
    return {prefix + name: record for name, record in files.items()}


def _limits(num_files: int, room_bytes: int) -> Limits:
    """Folders, and what macOS adds to archives, are entries too."""
    return Limits(max_members=2 * num_files + 64, max_bytes=room_bytes)


def _unpack_reporter(name: str, on_event: Listener) -> Callable[[int, int], None]:
    def report(done: int, total: int) -> None:
        on_event(Progressed(name=name, stage="unpack", done_bytes=done, total_bytes=total))

    return report


def _put_away(own_copy: Path, place: Path, *, keep: bool) -> None:
    """Delete our archive, or leave it in the data folder under its name, unless another file has that."""
    if not keep:
        own_copy.unlink(missing_ok=True)
    elif own_copy.exists() and not os.path.lexists(place):
        os.replace(own_copy, place)


def _receipt_path(target: Path, archive: Archive) -> Path:
    return target / _WORK_DIR / f"{archive.part}.json"

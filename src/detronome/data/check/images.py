"""Checking the image files of a split: every one is decoded, and judged as training would judge it."""

from __future__ import annotations

import posixpath
import signal
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import chain
from multiprocessing import get_context
from pathlib import Path

from detronome.data.check.findings import SHOWN, Finding
from detronome.data.check.image_cache import ImageCache
from detronome.data.check.image_kinds import IMAGE_KINDS
from detronome.data.check.image_names import ImageFolder, fold_name, names_in
from detronome.data.check.image_verdict import Verdict, judge_image
from detronome.data.check.manifest import compare_manifest
from detronome.data.check.tally import Tally
from detronome.data.split_files import SplitFiles
from detronome.data.store.index import AnnotationIndex
from detronome.errors import DataError

__all__ = ["NamedImages", "check_images", "name_images"]

_SOUND = Verdict()
_CHUNK = 32
"""Images that a process is given at once: a tenth of a second's work."""

_Size = tuple[int, int]
_Item = tuple[Path, _Size]


def check_images(
    files: SplitFiles,
    index: AnnotationIndex,
    *,
    workers: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
    trust_cache: bool = True,
    manifest: Path | None = None,
    max_cases: int | None = SHOWN,
) -> tuple[list[Finding], dict[str, int]]:
    """Return the findings about the image files of a split, and how many files were looked at.

    Every image is decoded, one at a time in each process, so memory does not grow with the data set. Verdicts are
    cached: a second run looks only at files that were written since. Damage that no write caused (a disk that loses
    bits) is noticed only with `trust_cache=False`, and flipped bits that leave a JPEG decodable only by comparing
    digests: see `manifest`.

    Args:
        files: where the split lies.
        index: its annotations.
        workers: processes that decode; 0 for this one. They are spawned, so a script needs its
            `if __name__ == "__main__":`.
        on_progress: called with the numbers of images done and in all.
        trust_cache: whether verdicts of earlier runs on unchanged files count.
        manifest: SHA-256 of the files as they should be, see `write_manifest`; None to decode only.
        max_cases: how many cases a finding names; None for all.

    Raises:
        DataError: a worker process was killed, or the manifest cannot be read.
    """
    found = Tally(IMAGE_KINDS, max_cases)
    if files.shards is not None:
        found.add("image_in_shards", files.shards)
        return found.findings(files.shards), {"image files": 0}
    changes = compare_manifest(files, index, manifest, max_cases=max_cases) if manifest is not None else []
    present = name_images(files, index, found).on_disk
    done = len(index) - len(present)
    for i, verdict in _verdicts(files, index, present, workers, trust_cache):
        if verdict != _SOUND:
            _add(found, _case(index, i), verdict)
        done += 1
        if on_progress is not None and (done % _CHUNK == 0 or done == len(index)):
            on_progress(done, len(index))
    return [*changes, *found.findings(str(files.images_dir))], {"image files": len(present)}


@dataclass(frozen=True)
class NamedImages:
    """Which files the images of a split have, by their places in the index."""

    on_disk: dict[int, str]
    """The name of each file that is there, also under another spelling."""
    spellings: dict[int, list[str]]
    """Of each image whose file is not there as it is spelt: the files that may be meant."""


def name_images(files: SplitFiles, index: AnnotationIndex, found: Tally | None = None) -> NamedImages:
    """Return which files the images have.

    Args:
        files: where the split lies.
        index: its annotations.
        found: is told the names that do not exist, or not as they are spelt.
    """
    folder = ImageFolder(files.images_dir)
    names = [index.image(i).file_name for i in range(len(index))]
    spellings = {i: folder.spellings(name) for i, name in enumerate(names) if not folder.exists(name)}
    claimed = Counter(spelling for i in spellings for spelling in spellings[i])
    claimed.update(set(names))
    named = NamedImages({}, spellings)
    for i, name in enumerate(names):
        if i not in spellings:
            named.on_disk[i] = name
        elif len(spellings[i]) == 1 and claimed[spellings[i][0]] == 1:
            named.on_disk[i] = spellings[i][0]
    if found is not None:
        _tell_names(index, names, named, found)
        taken = {one for candidates in spellings.values() for one in candidates}
        for name in _unnamed(files, folder, [*names, *taken, *files.left_out]):
            found.add("image_unnamed", name)
        for name in files.left_out:
            found.add("image_left_out", name)
    return named


def _tell_names(index: AnnotationIndex, names: list[str], named: NamedImages, found: Tally) -> None:
    first: dict[str, str] = {}
    for i, name in enumerate(names):
        other = first.setdefault(name.casefold(), name)
        if other != name:
            found.add("image_names_differ_in_case", f"{_case(index, i)} and {other}")
        if i not in named.spellings:
            continue
        if not named.spellings[i]:
            found.add("image_missing", _case(index, i))
        elif i not in named.on_disk:
            found.add("image_name_ambiguous", f"{_case(index, i)}: on disk {' and '.join(named.spellings[i])}")
        else:
            is_other_case = fold_name(named.on_disk[i]) == fold_name(posixpath.normpath(name))
            code = "image_other_case" if is_other_case else "image_other_spelling"
            found.add(code, f"{_case(index, i)}: on disk {named.on_disk[i]}")


def _unnamed(files: SplitFiles, folder: ImageFolder, names: list[str]) -> list[str]:
    """Return the files that neither this annotation file names nor one beside it: splits may share a folder."""
    unnamed = folder.unnamed(names)
    for sibling in files.annotation_file.parent.glob("*.json") if unnamed else ():
        if sibling != files.annotation_file:
            named = set(names_in(sibling))
            unnamed = [name for name in unnamed if name not in named]
    return unnamed


def _case(index: AnnotationIndex, i: int) -> str:
    image = index.image(i)
    return f"image {image.image_id} ({image.file_name})"


def _add(found: Tally, case: str, verdict: Verdict) -> None:
    if verdict.defect is not None:
        found.add(f"image_{verdict.defect}", f"{case}: {verdict.detail}")
    for trait, detail in verdict.traits:
        found.add(f"image_{trait}", f"{case}: {detail}" if detail else case)


def _verdicts(
    files: SplitFiles, index: AnnotationIndex, present: dict[int, str], workers: int, trust_cache: bool
) -> Iterator[tuple[int, Verdict]]:
    """Yield each image and the verdict on it, in order; what an interrupted run has found is kept."""
    cache = ImageCache(files.annotation_file, files.images_dir, trust=trust_cache)
    keys = [cache.key(*_item(files, index, i, present[i])) for i in present]
    known = [cache.get(key) for key in keys]
    unknown = [i for i, verdict in zip(present, known, strict=True) if verdict is None]
    starts = range(0, len(unknown), _CHUNK)
    chunks = ([_item(files, index, i, present[i]) for i in unknown[start : start + _CHUNK]] for start in starts)
    judged = map(_judge, chunks) if workers < 1 or len(starts) < 2 else _judge_in_processes(chunks, workers)
    new = chain.from_iterable(judged)
    try:
        for i, key, verdict in zip(present, keys, known, strict=True):
            if verdict is None:
                verdict = next(new)
                cache.put(key, verdict)
            yield i, verdict
    finally:
        if unknown:
            cache.save()


def _item(files: SplitFiles, index: AnnotationIndex, i: int, name: str) -> _Item:
    return files.images_dir / name, index.image(i).size_hw


def _judge(items: Sequence[_Item]) -> list[Verdict]:
    return [judge_image(path, size_hw) for path, size_hw in items]


def _judge_in_processes(chunks: Iterator[list[_Item]], workers: int) -> Iterator[list[Verdict]]:
    """Yield the verdicts on each chunk in order; only a few chunks wait at any time."""
    # Spawned, because forking a process in which libraries have started threads can deadlock.
    executor = ProcessPoolExecutor(workers, get_context("spawn"), _ignore_interrupts)
    waiting: deque[tuple[Path, Future[list[Verdict]]]] = deque()
    try:
        for chunk in chunks:
            waiting.append((chunk[0][0], executor.submit(_judge, chunk)))
            if len(waiting) > 2 * workers:
                yield waiting[0][1].result()
                waiting.popleft()
        while waiting:
            yield waiting[0][1].result()
            waiting.popleft()
    except BrokenProcessPool as error:
        raise DataError(
            "a process that decodes images was killed, perhaps because memory ran out",
            where=f"among the {_CHUNK * 2 * workers} images from {waiting[0][0]} on",
            fix="use fewer workers",
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


def _ignore_interrupts() -> None:
    """Leave Ctrl-C to the main process, which stops the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

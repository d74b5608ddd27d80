"""The annotation index against pycocotools' COCO object: to first use, per image, and in a worker's memory.

The file is synthetic, of COCO train2017's shape (see `synthetic_coco`). pycocotools has nothing to open: every process
that starts reads the file, and so it stands beside compiling and beside opening. Times of images are of all that the
file says of one: ours as arrays, theirs as lists of dictionaries.

Memory is what a worker has of its own (private pages in /proc/self/smaps_rollup) when it has looked at every image
once, beyond what it had when it was forked from a process that holds the index or the object, as loaders fork theirs:
`dirty` pages, and `clean` ones, of files, that no other process uses. Ours open the index anew and read in random
order. Files lie in the page cache throughout.

    python benches/bench_index.py --threads 1 --out benches/results
    python benches/bench_index.py --threads 1 --out benches/results --scale 10    # ours alone, ten times the size
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import random
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO  # type: ignore[import-untyped, unused-ignore]

from detronome.data.store.index import AnnotationIndex
from harness import arguments, compare, report
from synthetic_coco import write_synthetic_coco

FORK = multiprocessing.get_context("fork")
NUM_IMAGES, NUM_ANNOTATIONS = 118_287, 860_001
NUM_READ = 20_000
NUM_WORKERS = 8
POLL_S = 0.005


def main() -> None:
    """Compare with pycocotools at COCO's size, or ours with itself at a multiple of it."""
    parser = arguments(__doc__, repeats=3, warmup=0)
    parser.add_argument("--scale", type=int, default=1, help="times COCO's size; above 1, against our own 1x")
    parser.add_argument("--folder", type=Path, help="where the files go for the time being; 10x needs 6 GB")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        os.environ["DETRONOME_CACHE"] = str(Path(folder) / "cache")
        (against_pycocotools if options.scale == 1 else against_one)(Path(folder), options)


def against_pycocotools(folder: Path, options: Any) -> None:
    """Report compiling, opening, reading and memory beside pycocotools."""
    file = synthetic(folder, 1)
    _, compile_peak = in_child(lambda: compile_anew(file))
    _, theirs_peak = in_child(lambda: load_theirs(file))
    index = AnnotationIndex.open(file)
    # Before the parent holds pycocotools' objects, of which every child would copy some.
    memory = {f"detronome, 1 of {n}": private_memory(partial(read_ours, file), n) for n in (1, NUM_WORKERS)}
    fresh_open_s, _ = in_child(lambda: timed(lambda: AnnotationIndex.open(file)))
    kept: list[Any] = []

    def theirs() -> None:
        kept[:] = [load_theirs(file)]

    compiling = compare(
        {"pycocotools": theirs, "detronome": lambda: compile_anew(file)}, repeats=options.repeats, warmup=0
    )
    opening = compare({"detronome": lambda: AnnotationIndex.open(file)}, repeats=options.repeats, warmup=1)
    (coco,) = kept
    check_equal(index, coco)
    places = random.Random(0).choices(range(len(index)), k=NUM_READ)
    ids = [index.image(i).image_id for i in places]
    reading = compare(
        {
            "pycocotools": lambda: [(coco.loadImgs(k), coco.loadAnns(coco.getAnnIds(imgIds=k))) for k in ids],
            "detronome": lambda: [(index.image(i), index.annotations(i)) for i in places],
        },
        repeats=options.repeats,
        warmup=1,
    )
    memory["pycocotools, 1 of 1"] = private_memory(lambda: read_theirs(coco), 1)
    report(
        "index",
        {
            "compile, against load": compiling,
            "open what is compiled, against load": {"pycocotools": compiling["pycocotools"], **opening},
            f"{NUM_READ:,} random images": reading,
        },
        baseline="pycocotools",
        settings={
            "images": len(index),
            "annotations": len(index.labels),
            "json_bytes": file.stat().st_size,
            "index_bytes": folder_bytes(index.folder),
            "open_in_fresh_process_s": fresh_open_s,
            "peak_anonymous_bytes": {"detronome compile": compile_peak, "pycocotools load": theirs_peak},
            "private_bytes_per_worker": memory,
        },
        out=options.out,
    )


def against_one(folder: Path, options: Any) -> None:
    """Report how compiling, opening, reading and memory grow with the data set."""
    names = {"1x": 1, f"{options.scale}x": options.scale}
    files = {name: synthetic(folder, scale) for name, scale in names.items()}
    peaks = {name: in_child(partial(compile_anew, file))[1] for name, file in files.items()}
    indexes = {name: AnnotationIndex.open(file) for name, file in files.items()}
    memory = {name: private_memory(partial(read_ours, file), NUM_WORKERS) for name, file in files.items()}

    def case(work: Callable[[Path], object]) -> dict[str, Any]:
        contenders = {name: partial(work, file) for name, file in files.items()}
        return compare(contenders, repeats=options.repeats, warmup=0)

    cases = {"compile": case(compile_anew), "open": case(AnnotationIndex.open)}
    cases[f"open and read {NUM_READ:,} random images"] = case(lambda file: read_ours(file, NUM_READ))
    report(
        f"index-{options.scale}x",
        cases,
        baseline="1x",
        settings={
            "images": {name: NUM_IMAGES * scale for name, scale in names.items()},
            "annotations": {name: NUM_ANNOTATIONS * scale for name, scale in names.items()},
            "json_bytes": {name: file.stat().st_size for name, file in files.items()},
            "index_bytes": {name: folder_bytes(index.folder) for name, index in indexes.items()},
            "peak_anonymous_bytes": peaks,
            f"private_bytes_per_worker_of_{NUM_WORKERS}": memory,
        },
        out=options.out,
    )


def synthetic(folder: Path, scale: int) -> Path:
    """Write a file of a multiple of COCO's size."""
    file = folder / f"instances_{scale}x.json"
    write_synthetic_coco(file, NUM_IMAGES * scale, NUM_ANNOTATIONS * scale)
    return file


def compile_anew(file: Path) -> None:
    """Compile into an empty cache, beside the one that is kept."""
    kept = os.environ["DETRONOME_CACHE"]
    os.environ["DETRONOME_CACHE"] = f"{kept}-anew"
    shutil.rmtree(f"{kept}-anew", ignore_errors=True)
    AnnotationIndex.open(file)
    os.environ["DETRONOME_CACHE"] = kept


def load_theirs(file: Path) -> Any:
    """Return pycocotools' object."""
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(file)


def read_ours(file: Path, count: int | None = None) -> None:
    """Open the index and read every image, or so many, in random order."""
    index = AnnotationIndex.open(file)
    places = np.random.default_rng(os.getpid()).permutation(len(index))[:count]
    for i in places:  # no list of them, which would be the largest thing that the worker has
        index.image(i)
        index.annotations(i)


def read_theirs(coco: Any) -> None:
    """Look at every annotation of every image."""
    for image_id in coco.imgs:
        coco.loadImgs(image_id)
        for annotation in coco.loadAnns(coco.getAnnIds(imgIds=image_id)):
            annotation["bbox"], annotation["category_id"], annotation["area"], annotation["iscrowd"]


def check_equal(index: AnnotationIndex, coco: Any) -> None:
    """Refuse to report times of different things."""
    for i in range(0, len(index), 997):
        truth = coco.imgToAnns[index.image(i).image_id]
        boxes_xywh, labels, area, iscrowd = index.annotations(i)
        assert boxes_xywh.tolist() == [one["bbox"] for one in truth]
        assert [index.categories.ids[label] for label in labels] == [one["category_id"] for one in truth]
        assert area.tolist() == [one["area"] for one in truth]
        assert iscrowd.tolist() == [bool(one["iscrowd"]) for one in truth]


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that some work takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_child(work: Callable[[], Any]) -> tuple[Any, int]:
    """Run some work in a forked process; return its number and by how many bytes its own memory grew at most."""
    receiver, sender = FORK.Pipe(duplex=False)

    def run() -> None:
        result = work()
        sender.send(result if isinstance(result, float) else None)

    process = FORK.Process(target=run)
    process.start()
    sizes = [anonymous_bytes(process.pid)]
    while not receiver.poll(POLL_S):
        assert process.is_alive(), "the child process failed"
        sizes.append(anonymous_bytes(process.pid))
    result = receiver.recv()
    process.join()
    return result, max(sizes) - sizes[0]


def private_memory(work: Callable[[], object], num_workers: int) -> dict[str, float]:
    """Return by how much the private memory of a forked worker grows, on average, when all have done the work."""
    barrier = FORK.Barrier(num_workers)
    pipes = [FORK.Pipe(duplex=False) for _ in range(num_workers)]
    workers = [FORK.Process(target=measure_worker, args=(work, barrier, sender)) for _, sender in pipes]
    for worker in workers:
        worker.start()
    grown = [receiver.recv() for receiver, _ in pipes]
    for worker in workers:
        worker.join()
    return {name: sum(one[name] for one in grown) / num_workers for name in ("dirty", "clean")}


def measure_worker(work: Callable[[], object], barrier: Barrier, sender: Connection) -> None:
    """Work, wait until all workers have, and send how much private memory was added."""
    before = smaps()
    work()
    barrier.wait()
    after = smaps()
    barrier.wait()
    sender.send({name: after[name] - before[name] for name in after})


def smaps() -> dict[str, int]:
    """Return the bytes of private pages of this process."""
    text = Path("/proc/self/smaps_rollup").read_text()
    found = re.findall(r"^Private_(Clean|Dirty): +(\d+) kB", text, re.M)
    return {name.lower(): 1024 * int(size) for name, size in found}


def anonymous_bytes(pid: int | None) -> int:
    """Return a process's memory that is no file's, or 0 once it has ended."""
    try:
        found = re.search(r"^RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.M)
    except OSError:
        found = None
    return 1024 * int(found[1]) if found else 0


def folder_bytes(folder: Path) -> int:
    """Return the size of the files in a folder."""
    return sum(file.stat().st_size for file in folder.iterdir())


if __name__ == "__main__":
    main()

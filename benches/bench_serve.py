"""What `detronome serve` does under load: its capacity, three times its capacity, malformed bodies, and the end.

Where other programs use the machine too, goodput and capacity are also given for each second of processor time that the
model's process got (`per_model_cpu_s_median`), and how late the client itself was (`client_late_s`).

The server is started on a free port of this machine and ended again. Client and server share the machine, so the client
is kept cheap (`http_load.py`), and figures are those of the pair. Every answer of 200 is compared with what the same
image gave alone.

    python benches/bench_serve.py CHECKPOINT --images FOLDER --out benches/results

With `--url` and `--pid`, capacity and overload of another server that is running already are measured in the same way;
it is sent {"image": base64}.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from harness import new_document, publish
from http_load import Answer, Client, closed_loop, open_loop, post

GRACE_S = 0.5
REFUSAL_S = 0.05
START_S = 180


def main() -> int:
    """Start, load, end, report; 0 when every bar is met."""
    options = arguments()
    images = read_images(options.images, options.num_images)
    if options.url is None:
        path = f"/predict?score=0&max_detections=5&timeout={options.timeout:g}"
        requests = [post(path, image) for image in images]
    else:
        bodies = [json.dumps({"image": base64.b64encode(image).decode()}).encode() for image in images]
        requests = [post("/predict", body, content_type="application/json") for body in bodies]
    document = new_document("serve", vars(options) | {"checkpoint": "", "images": len(images), "out": str(options.out)})
    bars: dict[str, bool] = {}
    if options.url is not None:
        case = asyncio.run(overload(options, options.url, psutil.Process(options.pid), requests, None, bars))
        document["cases"]["overload"] = case
    else:
        with tempfile.TemporaryDirectory() as folder:
            process, url = start(options, Path(folder))
            try:
                document["cases"] = asyncio.run(all_loads(options, url, process, requests, images, bars))
            finally:
                if process.poll() is None:
                    process.kill()
    document["bars"] = bars
    print("\n" + "\n".join(f"{'ok ' if met else 'NOT'}  {bar}" for bar, met in bars.items()))
    publish(document, options.out)
    return 0 if all(bars.values()) else 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?")
    parser.add_argument("--images", type=Path, help="folder of JPEGs to send; made up by default")
    parser.add_argument("--num-images", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1, help="of the model")
    parser.add_argument("--max-batch", type=int, default=8)
    parser.add_argument("--timeout", type=float, default=2.0, help="deadline of each request in seconds")
    parser.add_argument("--capacity-s", type=float, default=5.0, help="of each measurement of the capacity")
    parser.add_argument("--seconds", type=float, default=60.0, help="of overload, in all rounds together")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--factor", type=float, default=3.0, help="of the capacity")
    parser.add_argument("--malformed", type=int, default=10_000)
    parser.add_argument("--url", help="of another server that runs already")
    parser.add_argument("--pid", type=int, help="of that server")
    parser.add_argument("--out", type=Path, help="file or folder for the JSON document")
    options = parser.parse_args()
    if (options.checkpoint is None) == (options.url is None):
        parser.error("give a checkpoint, or --url with --pid")
    return options


def read_images(folder: Path | None, count: int) -> list[bytes]:
    """Return JPEG files that differ from each other."""
    if folder is not None:
        return [path.read_bytes() for path in sorted(folder.glob("*.jpg"))[:count]]
    images = []
    for number in range(count):
        rng = np.random.default_rng(number)
        pixels = rng.integers(0, 255, (8, 8, 3), np.uint8).repeat(16, 0).repeat(16, 1)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, format="JPEG", quality=90)
        images.append(file.getvalue())
    return images


def start(options: argparse.Namespace, folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Start the server; return its process and address."""
    told = folder / "stderr.txt"
    command = [sys.executable, "-m", "detronome", "serve", options.checkpoint, "--port", "0"]
    command += ["--threads", str(options.threads), "--max-batch", str(options.max_batch), "--device", "cpu"]
    with told.open("wb") as file:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=file)
    for _ in range(10 * START_S):
        if found := re.search(r"http://\S+", told.read_text()):
            return process, found[0]
        if process.poll() is not None:
            break
        time.sleep(0.1)
    process.kill()
    raise SystemExit(f"the server did not start:\n{told.read_text()}")


async def all_loads(
    options: argparse.Namespace,
    url: str,
    process: subprocess.Popen[bytes],
    requests: Sequence[bytes],
    images: Sequence[bytes],
    bars: dict[str, bool],
) -> dict[str, Any]:
    server = psutil.Process(process.pid)
    client = Client(url)
    alone = [scores(await client.send(request, 0)) for request in requests]
    client.close()
    # Images that look alike to the model cannot show whose answer was given.
    kept = [n for n, own in enumerate(alone) if all(difference(own, alone[m]) > 0.01 for m in range(n))]
    print(f"{len(kept)} of {len(alone)} images have answers of their own")
    cases: dict[str, Any] = {}
    cases["overload"] = await overload(
        options, url, server, [requests[n] for n in kept], [alone[n] for n in kept], bars
    )
    cases["overload"]["refused_for"] = await reasons(url)
    cases["malformed"] = await malformed(url, images, options.malformed, bars)
    cases["ready afterwards"] = (await Client(url).send(requests[0], 0)).status
    bars["answers after all that"] = cases["ready afterwards"] == 200
    cases["SIGTERM"] = await end(url, process, server, requests, bars)
    return cases


async def overload(
    options: argparse.Namespace,
    url: str,
    server: psutil.Process,
    requests: Sequence[bytes],
    alone: Sequence[Sequence[float]] | None,
    bars: dict[str, bool],
) -> dict[str, Any]:
    """Measure the capacity and load with a multiple of it, in turn: a shared machine's speed drifts within a minute."""
    client = Client(url)
    await closed_loop(client, requests, connections=4, until=lambda begun: begun >= 100)
    connections = 3 * options.max_batch  # one batch in the model, one that waits for it, one on its way
    patient = [re.sub(rb"&timeout=[\d.]+", b"", request, count=1) for request in requests]
    workers = server.children(recursive=True)
    cpu_s = cpu_seconds(workers)
    capacities = [await measure_capacity(client, patient, connections, options.capacity_s)]
    efficiencies = [capacities[-1] * options.capacity_s / (cpu_seconds(workers) - cpu_s)]
    answers: list[Answer] = []
    ratios, cpu_ratios, goods, sent, client_cpus = [], [], [], [], []
    memory = [memory_bytes(server)]
    for _ in range(options.rounds):
        cpu, started, seconds = time.process_time(), time.monotonic(), options.seconds / options.rounds
        sent.append(options.factor * capacities[-1])
        cpu_s = cpu_seconds(workers)
        part = await open_loop(client, requests, rate=sent[-1], seconds=seconds)
        efficiency = sum(a.status == 200 for a in part) / (cpu_seconds(workers) - cpu_s)
        client_cpus.append((time.process_time() - cpu) / (time.monotonic() - started))
        goods.append(sum(a.status == 200 and a.ended <= started + seconds for a in part) / seconds)
        answers += part
        memory.append(memory_bytes(server))
        cpu_s = cpu_seconds(workers)
        capacities.append(await measure_capacity(client, patient, connections, options.capacity_s))
        efficiencies.append(capacities[-1] * options.capacity_s / (cpu_seconds(workers) - cpu_s))
        cpu_ratios.append(efficiency / statistics.fmean(efficiencies[-2:]))
        ratios.append(goods[-1] / statistics.fmean(capacities[-2:]))
    client.close()
    accepted = sorted(answer.seconds for answer in answers if answer.status == 200)
    refused = sorted(answer.seconds for answer in answers if answer.status in (429, 503))
    at_once = [seconds for seconds in refused if seconds < options.timeout]
    statuses = Counter(answer.status for answer in answers)
    wrong = None if alone is None else sum(is_wrong(answer, alone) for answer in answers if answer.status == 200)
    ratio = statistics.median(ratios)
    case = {
        "capacity_per_s": capacities,
        "sent_per_s": sent,
        "sent": len(answers),
        "statuses": {str(status): count for status, count in sorted(statuses.items())},
        "goodput_per_s": goods,
        "goodput_of_capacity": ratios,
        "goodput_of_capacity_median": ratio,
        "per_model_cpu_s_median": statistics.median(cpu_ratios),
        "accepted_s": quantiles(accepted),
        "refused_s": quantiles(refused),
        "late": sum(answer.seconds > options.timeout + GRACE_S for answer in answers),
        "without_retry_after": sum(answer.status in (429, 503) and not answer.retry_after for answer in answers),
        "answers_of_other_images": wrong,
        "memory_bytes": memory,
        "client_late_s": quantiles(sorted(answer.late for answer in answers)),
        "client_cpus": statistics.fmean(client_cpus),
        "load": os.getloadavg()[0],
    }
    print(json.dumps({name: rounded(value) for name, value in case.items()}, indent=1))
    bars["only 200, 429 and 503"] = set(statuses) <= {200, 429, 503}
    bars["goodput at least 95 % of the capacity"] = ratio >= 0.95
    bars["no answer later than the deadline + 0.5 s"] = case["late"] == 0
    bars["refusals within 50 ms, median and p99"] = bool(at_once) and quantiles(at_once)["p99"] < REFUSAL_S
    bars["every refusal says when to ask again"] = case["without_retry_after"] == 0
    bars["memory grows by less than 10 %"] = memory[-1] < 1.1 * memory[0]
    if alone is not None:
        bars["each answer belongs to its own image"] = wrong == 0
    return case


async def reasons(url: str) -> dict[str, int]:
    """Return how many predictions were refused until now, by reason."""
    answer = await Client(url).send(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n", 0)
    found = re.findall(r'detronome_refused_total\{reason="(\w+)"\} (\d+)', answer.body.decode())
    print("refused for:", dict(found))
    return {reason: int(count) for reason, count in found}


async def measure_capacity(client: Client, requests: Sequence[bytes], connections: int, seconds: float) -> float:
    """Return answered requests a second in a closed loop."""
    started = time.monotonic()
    answers = await closed_loop(
        client, requests, connections=connections, until=lambda begun: time.monotonic() > started + seconds
    )
    return sum(a.status == 200 for a in answers) / (time.monotonic() - started)


async def malformed(url: str, images: Sequence[bytes], count: int, bars: dict[str, bool]) -> dict[str, Any]:
    """Send bodies none of which holds a sound image."""
    rng = random.Random(0)
    requests = [malformed_request(rng, images) for _ in range(count)]
    client = Client(url)
    answers = await closed_loop(client, requests, connections=8, until=lambda begun: begun >= count)
    client.close()
    statuses = Counter(answer.status for answer in answers)
    print("malformed bodies:", dict(statuses))
    bars[f"{count:,} malformed bodies: 4xx only"] = all(400 <= status < 500 for status in statuses)
    slowest = quantiles(sorted(answer.seconds for answer in answers))
    return {"statuses": {str(status): n for status, n in sorted(statuses.items())}, "seconds": slowest}


def malformed_request(rng: random.Random, images: Sequence[bytes]) -> bytes:
    """Return a request whose image is cut, overwritten, of another kind, or not there."""
    image = rng.choice(images)
    kind = rng.randrange(9)
    if kind == 0:
        return post("/predict", rng.randbytes(rng.randrange(2000)))
    if kind == 1:
        return post("/predict", image[: rng.randrange(len(image) - 20)])
    if kind == 2:  # zeros over the header
        return post("/predict", image[:2] + bytes(200) + image[202:])
    if kind == 3:
        size = rng.randrange(30_000, 65_000)
        return post("/predict", png_header(size, size), content_type="image/png")
    if kind == 4:
        return post("/predict", b"\x89PNG\r\n\x1a\n" + rng.randbytes(rng.randrange(500)), content_type="image/png")
    if kind == 5:  # a form that is cut, or has no boundary
        form = b"--x\r\nContent-Disposition: form-data; name=image\r\n\r\n" + image
        boundary = rng.choice(["; boundary=x", "", "; boundary=" + "y" * 100])
        return post("/predict", form, content_type="multipart/form-data" + boundary)
    if kind == 6:
        content_type = rng.choice(["text/html", "application/json", "application/x-www-form-urlencoded", "a/b/c", "?"])
        return post("/predict", image, content_type=content_type)
    if kind == 7:
        return post(rng.choice(["/predict?score=2", "/predict?scores=0.1", "/predict?timeout=nan", "/predit"]), image)
    start = rng.choice([b"GIF89a", b"BM", b"II*\0", b"RIFF....WEBP", b"\0\0\0 ftypavif", b"%!PS-Adobe", b"\0\0\1\0"])
    return post("/predict", start + rng.randbytes(rng.randrange(300)), content_type="image/anything")


def png_header(width: int, height: int) -> bytes:
    """Return the beginning of a PNG file of this size."""
    import struct
    import zlib

    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(bytes(100_000))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in (header, data)
    )


async def end(
    url: str,
    process: subprocess.Popen[bytes],
    server: psutil.Process,
    requests: Sequence[bytes],
    bars: dict[str, bool],
) -> dict[str, Any]:
    """Send SIGTERM under load; nothing that was sent before may be lost, and no process may remain."""
    children = server.children(recursive=True)
    client = Client(url)
    signalled: list[float] = []
    answers: list[Answer] = []

    async def work(first: int) -> None:
        for number in range(10_000):
            index = (first + number) % len(requests)
            answer = await client.send(requests[index], index)
            answers.append(answer)
            if signalled and answer.status != 200:
                return

    load = asyncio.gather(*(work(n) for n in range(16)))
    await asyncio.sleep(2)
    process.send_signal(signal.SIGTERM)
    signalled.append(time.monotonic())
    await load
    while process.poll() is None and time.monotonic() < signalled[0] + 60:
        await asyncio.sleep(0.02)
    took_s = time.monotonic() - signalled[0]
    await asyncio.sleep(0.5)
    left = [child.pid for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    in_flight = [a for a in answers if a.ended > signalled[0] > a.ended - a.seconds]
    case = {
        "exit_code": process.returncode,
        "seconds": took_s,
        "in_flight": len(in_flight),
        "in_flight_statuses": dict(Counter(str(answer.status) for answer in in_flight)),
        "processes_left": len(left),
    }
    print("SIGTERM:", json.dumps(case))
    bars["SIGTERM: every request in flight is answered"] = all(answer.status in (200, 503) for answer in in_flight)
    bars["SIGTERM: exit code 0, no process left"] = process.returncode == 0 and not left
    return case


def scores(answer: Answer) -> list[float]:
    """Return the scores in an answer, highest first."""
    if answer.status != 200:
        raise SystemExit(f"an image gave status {answer.status}: {answer.body[:300]!r}")
    return [found["score"] for found in json.loads(answer.body)["detections"]]


def difference(one: Sequence[float], other: Sequence[float]) -> float:
    """Return how far two lists of scores are apart."""
    return max((abs(a - b) for a, b in zip(one, other, strict=False)), default=0.0) + abs(len(one) - len(other))


def is_wrong(answer: Answer, alone: Sequence[Sequence[float]]) -> bool:
    """Return whether an answer is another one's than that of its own image; batches change roundings."""
    return difference(scores(answer), alone[answer.index]) > 0.003


def cpu_seconds(processes: Sequence[psutil.Process]) -> float:
    """Return the processor time that processes have used."""
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def memory_bytes(server: psutil.Process) -> int:
    """Return what the server and its processes hold."""
    return sum(process.memory_info().rss for process in [server, *server.children(recursive=True)])


def rounded(value: Any) -> Any:
    """Return numbers with as many digits as a person reads."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return {name: rounded(one) for name, one in value.items()} if isinstance(value, dict) else value


def quantiles(ordered: Sequence[float]) -> dict[str, float]:
    """Return quantiles of sorted values."""
    if not ordered:
        return {}
    names = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
    return {name: ordered[round(q * (len(ordered) - 1))] for name, q in names.items()}


if __name__ == "__main__":
    sys.exit(main())

"""Two nodes, as two network namespaces joined by a cable: torchrun trains over them, also when the cable is pulled."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.dist.ranks import on_ranks
from tests.dist.runs import CLASSIC, farthest, tensors_of, train_run
from tests.faults.torchrun import Job, job, restart_after, train_command, wait_for

pytestmark = [pytest.mark.dist, pytest.mark.slow, pytest.mark.timeout(900)]

PORT = 29400
SETTINGS = {**CLASSIC, "train.eval_epochs": 5}
EPOCHS = 20


@dataclass(frozen=True)
class Node:
    """A network namespace, its end of the cable and its address."""

    name: str
    device: str
    address: str

    def ip(self, *arguments: str) -> None:
        ip("-n", self.name, *arguments)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    """Two nodes; whatever is made is taken away again."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and ip")
    mark = f"dt{os.getpid() % 100000}"
    both = [Node(f"{mark}-{end}", f"{mark}{end}", f"10.213.77.{end + 1}") for end in (0, 1)]
    try:
        try:
            for node in both:
                ip("netns", "add", node.name)
            first, second = both
            first.ip("link", "add", first.device, "type", "veth", "peer", "name", second.device, "netns", second.name)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces cannot be made here: {error.stderr.decode().strip()}")
        for node in both:
            node.ip("link", "set", "lo", "up")
            node.ip("address", "add", f"{node.address}/24", "dev", node.device)
            node.ip("link", "set", node.device, "up")
        yield both
    finally:
        for node in both:
            subprocess.run(["ip", "netns", "delete", node.name], check=False, capture_output=True)


@contextmanager
def on_nodes(nodes: list[Node], data: Path, folder: Path, **more: object) -> Iterator[list[Job]]:
    """A rank on each node."""
    folder.mkdir(exist_ok=True)
    run = folder / "run"
    settings = {**SETTINGS, **{name.replace("__", "."): value for name, value in more.items()}}
    command = train_command(data, run, "detr-r18", EPOCHS, settings)
    with ExitStack() as stack:
        jobs = []
        for number, node in enumerate(nodes):
            rendezvous = ["--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-id", "cable"]
            rendezvous += ["--rdzv-endpoint", f"{nodes[0].address}:{PORT}", "--local-addr", node.address]
            # A namespace has no host name by which torchrun could tell who keeps the store.
            conf = f"is_host={number == 0},join_timeout=120,keep_alive_interval=2,keep_alive_max_attempt=3"
            rendezvous += ["--rdzv-conf", conf]
            environment = {"GLOO_SOCKET_IFNAME": node.device}
            jobs.append(
                stack.enter_context(
                    job(
                        command,
                        run,
                        folder / f"node{number}.txt",
                        options=rendezvous,
                        num_ranks=1,
                        environment=environment,
                        prefix=("ip", "netns", "exec", node.name),
                    )
                )
            )
        yield jobs


def test_two_nodes_train_what_one_process_trains(nodes: list[Node], blocks: Path, tmp_path: Path) -> None:
    with on_nodes(nodes, blocks, tmp_path) as jobs:
        assert [one.finish(300) for one in jobs] == [0, 0], [one.output[-3000:] for one in jobs]
    on_ranks(1, alone, blocks, tmp_path / "alone", timeout_s=300)
    assert farthest(tensors_of(tmp_path / "run"), tensors_of(tmp_path / "alone")) < 1e-5


def alone(data: Path, out: Path) -> None:
    train_run(data, out, SETTINGS, epochs=EPOCHS)


def test_a_killed_rank_of_another_node_is_started_anew(nodes: list[Node], blocks: Path, tmp_path: Path) -> None:
    with on_nodes(nodes, blocks, tmp_path / "calm") as jobs:
        assert [one.finish(300) for one in jobs] == [0, 0], [one.output[-3000:] for one in jobs]
    with on_nodes(nodes, blocks, tmp_path / "struck") as jobs:
        main, other = jobs
        assert wait_for(lambda: main.steps_since(0) > 5, main), main.output[-3000:]
        last_step, struck_at = main.last_step(), time.time()
        os.kill(next(pid for ranks in (main.ranks(), other.ranks()) for rank, pid in ranks.items() if rank == 1), 9)
        restart = restart_after(main, struck_at, last_step, 180)
        assert [one.finish(300) for one in jobs] == [0, 0], [one.output[-3000:] for one in jobs]
    print(f"two nodes, a rank killed: {restart.seconds:.1f} s from kill to next step")
    calm, struck = (tensors_of(tmp_path / name / "run") for name in ("calm", "struck"))
    assert farthest(calm, struck) == 0


def test_a_cable_that_is_pulled_ends_the_job_with_a_word_or_it_goes_on(
    nodes: list[Node], blocks: Path, tmp_path: Path
) -> None:
    with on_nodes(nodes, blocks, tmp_path, train__hang_minutes=0.1) as jobs:
        main, _ = jobs
        assert wait_for(lambda: main.steps_since(0) > 5, main), main.output[-3000:]
        pulled_at = time.monotonic()
        nodes[1].ip("link", "set", nodes[1].device, "down")
        wait_for(lambda: any("The run hangs" in one.output for one in jobs), main, 120)
        told_s = time.monotonic() - pulled_at
        nodes[1].ip("link", "set", nodes[1].device, "up")
        codes = [one.finish(400) for one in jobs]
        texts = [one.output for one in jobs]
    reports = [json.loads(path.read_text())["what"] for path in (tmp_path / "run" / "hangs").glob("*.json")]
    print(f"two nodes, the cable pulled: told after {told_s:.0f} s | exit codes {codes} | {reports}")
    assert any("The run hangs" in text for text in texts), texts
    assert codes == [0, 0] or 0 not in codes

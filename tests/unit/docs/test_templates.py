"""What the documentation tells people to type exists: commands, options, settings. The templates do what they say."""

import dataclasses
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cyclopts import CycloptsError
from cyclopts.exceptions import MissingArgumentError

from detronome.cli.commands import app
from detronome.config.schema import DetrConfig, DFineConfig, NanoConfig, RtDetrConfig, RunConfig

REPOSITORY = Path(__file__).resolve().parents[3]
DOCS = REPOSITORY / "docs"
PAGES = [REPOSITORY / "README.md", *sorted(DOCS.glob("*.md"))]
SBATCH = DOCS / "slurm.sbatch"


def train_job() -> dict[str, Any]:
    service, job = yaml.safe_load_all((DOCS / "kubernetes.yaml").read_text())
    assert (service["kind"], job["kind"]) == ("Service", "Job")
    return job


def sbatch_command() -> list[str]:
    text = SBATCH.read_text().replace("\\\n", " ")
    (line,) = [line for line in text.splitlines() if line.startswith("srun ")]
    return shlex.split(line.replace('"$@" &', ""))


def commands_shown() -> Iterator[tuple[str, list[str]]]:
    """Yield where a command line of ours stands, and its arguments."""
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
        outside = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        for line in [line for block in blocks for line in block.splitlines()] + re.findall(r"`([^`\n]+)`", outside):
            if (command := re.search(r"(?:^|-m |run )detronome (.+)", line)) and "..." not in line:
                yield f"{page.name}: {line}", shlex.split(command[1], comments=True)
    container = train_job()["spec"]["template"]["spec"]["containers"][0]
    yield "kubernetes.yaml", container["args"]
    command = sbatch_command()
    yield "slurm.sbatch", command[command.index("detronome") + 1 :]


@pytest.mark.parametrize("arguments", [pytest.param(arguments, id=where) for where, arguments in commands_shown()])
def test_every_command_shown_has_these_options(arguments: list[str]) -> None:
    try:
        app.parse_args(arguments, print_error=False, exit_on_error=False)
    except MissingArgumentError:
        pass  # a sentence may name a command without all that it needs
    except CycloptsError as error:
        pytest.fail(str(error))


def test_every_setting_named_exists() -> None:
    run = RunConfig()
    sections = {f.name: getattr(run, f.name) for f in dataclasses.fields(run) if f.name != "preset"}
    known = {f"{name}.{f.name}" for name, section in sections.items() for f in dataclasses.fields(section)}
    known |= {
        f"model.{f.name}"
        for config in (DetrConfig, NanoConfig, RtDetrConfig, DFineConfig)
        for f in dataclasses.fields(config)
    }
    in_code = {page.name: " ".join(re.findall(r"`([^`\n]+)`", page.read_text())) for page in PAGES}
    named = re.compile(rf"(?<![\w./])(?:{'|'.join(sections)})\.(?!(?:md|py|yaml|safetensors|onnx|xml)\b)[a-z_]+")
    found = {(page, setting) for page, text in in_code.items() for setting in named.findall(text)}
    assert found
    assert {(page, setting) for page, setting in found if setting not in known} == set()


def test_torchrun_knows_the_options_that_the_templates_give_it() -> None:
    from torch.distributed.run import get_args_parser

    container = train_job()["spec"]["template"]["spec"]["containers"][0]
    assert container["command"][0] == "torchrun"
    command = sbatch_command()
    filled = [word.replace("$SLURM_NNODES", "2").replace("${SLURM_GPUS_ON_NODE:-1}", "8") for word in command]
    # torch 2.11 has not heard of the one; the templates say so.
    known = {name for action in get_args_parser()._actions for name in action.option_strings}
    is_known = {"--shutdown-timeout": "--shutdown-timeout" in known}
    for words in ([*container["command"], *container["args"]], filled[filled.index("torchrun") :]):
        words = [word for word in words if is_known.get(word.partition("=")[0], True)]
        options = get_args_parser().parse_args(words[1:])
        assert options.module and options.training_script == "detronome"
        assert options.nnodes == "2" and options.nproc_per_node == "8"
        assert {"SIGTERM", "SIGINT"} < set(options.signals_to_handle.split(","))
    assert "SIGUSR1" in options.signals_to_handle.split(",")


def test_the_pods_have_time_room_and_names() -> None:
    job = train_job()["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    (shutdown_s,) = [int(w.removeprefix("--shutdown-timeout=")) for w in container["command"] if "shutdown" in w]
    assert pod["terminationGracePeriodSeconds"] > shutdown_s
    assert job["completionMode"] == "Indexed" and job["completions"] == job["parallelism"] == 2
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert "/dev/shm" in {mount["mountPath"] for mount in container["volumeMounts"]}


@pytest.mark.parametrize(
    ("of_srun", "is_time_over", "code", "is_requeued"),
    [
        ("exit 0", False, 0, False),
        ("exit 3", False, 3, False),
        ("trap 'exit 1' USR1; touch ready; while true; do sleep 0.05; done", True, 0, True),
        ("trap 'sleep 0.2; exit 0' USR1; touch ready; while true; do sleep 0.05; done", True, 0, False),
    ],
    ids=["ended", "failed", "time is over", "ended just in time"],
)
def test_the_job_goes_back_into_the_queue_only_when_its_time_is_over(
    tmp_path: Path, of_srun: str, is_time_over: bool, code: int, is_requeued: bool
) -> None:
    for name, body in (("srun", of_srun), ("scontrol", 'echo "$@" >> scontrol.log; echo first-node')):
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "SLURM_JOB_ID": "17",
        "SLURM_NNODES": "2",
        "SLURM_JOB_NODELIST": "node[1-2]",
    }
    job = subprocess.Popen(["bash", SBATCH, "data", "run"], cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
    try:
        if is_time_over:
            deadline = time.monotonic() + 30
            while not (tmp_path / "ready").exists() and time.monotonic() < deadline:
                time.sleep(0.02)
            job.send_signal(signal.SIGUSR1)
        assert job.wait(timeout=30) == code
    finally:
        job.kill()
    assert ("requeue 17" in (tmp_path / "scontrol.log").read_text()) == is_requeued

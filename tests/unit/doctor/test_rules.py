"""What the rules make of facts that no machine at hand has."""

import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from importlib.metadata import Distribution, requires
from pathlib import Path
from typing import Any

import pytest
from cyclopts import CycloptsError
from cyclopts.exceptions import MissingArgumentError

from detronome.api.environment import check_environment
from detronome.cli.commands import app
from detronome.doctor import examination as examination_module
from detronome.doctor.calls import judge_calls
from detronome.doctor.child import Answer, Batch, run_batch
from detronome.doctor.examination import examine_environment
from detronome.doctor.findings import Examination, Finding, Severity
from detronome.doctor.gpu import judge_gpu
from detronome.doctor.install import Installer
from detronome.doctor.machine import judge_machine, judge_speed
from detronome.doctor.packages import _PAIR, Inventory, judge_packages, judge_python
from detronome.doctor.probes import installed as installed_probe
from detronome.doctor.releases import TORCH_RELEASES, torch_release
from detronome.errors import ConfigError

GIB = 2**30
PIP = Installer(command="pip")
UV = Installer(command="uv pip", options="--python /env/python ")
PYTHON: dict[str, Any] = {
    "version": "3.12.3",
    "release": [3, 12, 3],
    "is_final": True,
    "implementation": "CPython",
    "is_64_bit": True,
    "is_free_threaded": False,
    "executable": "/env/bin/python",
    "is_virtual": True,
    "libc": ["glibc", "2.39"],
    "system": "Linux",
    "marker": {"python_version": "3.12", "sys_platform": "linux"},
}


def answered(probe: str, **facts: Any) -> Answer:
    return Answer(probe=probe, end="answered", facts=facts)


def inventory(versions: dict[str, str] | None = None, **python: Any) -> Inventory:
    packages = {
        name: {"version": version, "place": "/env/site", "requires": [], "is_editable": False}
        for name, version in (versions or {}).items()
    }
    facts = {
        "packages": packages,
        "twice": {},
        "leftovers": [],
        "damaged": {},
        "origins": {},
        "shadows": [],
    }
    return Inventory(python={**PYTHON, **python}, packages=facts, installer=PIP)


Wrong = list[tuple[str, Severity, str]]


def wrong(findings: Iterable[Finding]) -> Wrong:
    return [(f.check, f.severity, f.what) for f in findings if f.severity is not Severity.OK]


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"version": "3.10.14", "release": [3, 10, 14]}, "not supported"),
        ({"version": "3.15.2", "release": [3, 15, 2]}, "not supported"),
        ({"version": "3.14.0rc1", "is_final": False}, "pre-release"),
        ({"is_64_bit": False}, "32 bit"),
        ({"implementation": "PyPy"}, "PyPy"),
        ({"libc": ["", ""]}, "no glibc"),
        ({"libc": ["glibc", "2.17"]}, "too old"),
    ],
)
def test_a_python_that_does_not_serve(facts: dict[str, Any], words: str) -> None:
    ((_, severity, what),) = wrong(judge_python(inventory(**facts)))
    assert severity is Severity.FAILURE and words in what


@pytest.mark.parametrize("release", [[3, 11, 0], [3, 12, 1], [3, 13, 5], [3, 14, 1]])
def test_a_python_that_serves(release: list[int]) -> None:
    assert wrong(judge_python(inventory(release=release))) == []
    assert wrong(judge_python(inventory(system="Darwin", libc=["", ""]))) == []


def test_nothing_installed_is_no_crash() -> None:
    assert wrong(judge_packages(inventory())) == []


@pytest.mark.parametrize("row", TORCH_RELEASES, ids=lambda row: f"torch {row.torch}")
def test_each_row_of_the_table_is_a_pair_and_no_other_torchvision_goes_with_it(row: Any) -> None:
    def pair_findings(torch: tuple[int, int], torchvision: tuple[int, int]) -> list[str]:
        versions = {
            "torch": f"{torch[0]}.{torch[1]}.1",
            "torchvision": f"{torchvision[0]}.{torchvision[1]}.1",
            "numpy": "1.26.4" if row.is_for_numpy_1 else "2.4.6",
        }
        python = {"release": [*row.newest_python, 0]}
        return [
            what for check, _, what in wrong(judge_packages(inventory(versions, **python))) if check == "torchvision"
        ]

    assert pair_findings(row.torch, row.torchvision) == []
    for other in {one.torchvision for one in TORCH_RELEASES} - {row.torchvision}:
        assert any("not a pair" in what for what in pair_findings(row.torch, other)), other
    assert torch_release((*row.torch, 1)) == row


@pytest.mark.parametrize(
    ("versions", "python", "check"),
    [
        ({"torch": "2.2.2", "torchvision": "0.17.2", "numpy": "2.0.0"}, {}, "numpy"),
        ({"torch": "2.5.1", "torchvision": "0.20.1"}, {"release": [3, 13, 0]}, "torch"),
        ({"pycocotools": "2.0.7", "numpy": "2.1.0"}, {}, "pycocotools"),
        ({"pycocotools": "2.0.10", "numpy": "2.4.0"}, {"release": [3, 14, 0]}, "pycocotools"),
        ({"pycocotools": "2.0.2", "numpy": "1.26.4"}, {}, "pycocotools"),
    ],
)
def test_versions_that_do_not_go_together(versions: dict[str, str], python: dict[str, Any], check: str) -> None:
    found = wrong(judge_packages(inventory(versions, **python)))
    assert check in [one for one, severity, _ in found if severity is Severity.FAILURE]


def package_findings(versions: dict[str, str], requires: Iterable[str] = (), **facts: Any) -> list[Finding]:
    there = inventory({"detronome": "1.0", **versions})
    there.packages["packages"]["detronome"]["requires"] = list(requires)
    there.packages.update(facts)
    return [finding for finding in judge_packages(there) if finding.severity is not Severity.OK]


def test_a_version_of_another_kind_is_no_damage() -> None:
    (finding,) = package_findings(
        {"scipy": "unknown", "cloud-init": "0.23ubuntu1"}, ["scipy>=1.14", "rich; extra == 'x'"]
    )
    assert (finding.check, finding.what) == ("scipy", "the version of scipy cannot be read: 'unknown'")
    assert finding.fix == "pip install --force-reinstall 'scipy>=1.14'"


def test_of_two_runtimes_the_special_build_stays() -> None:
    (finding,) = package_findings({"onnxruntime": "1.31", "onnxruntime-gpu": "1.31"})
    assert finding.fix.endswith("&& pip install onnxruntime-gpu")
    (finding,) = package_findings({"opencv-python": "5.0", "opencv-python-headless": "5.0"})
    assert finding.fix.endswith("&& pip install opencv-python-headless")


@pytest.mark.parametrize(
    ("torch", "torchvision", "index"),
    [
        ("2.12.0+xpu", "0.26.0+xpu", "xpu"),
        ("2.12.0+cu126", "0.26.0+cu126", "cu126"),
        ("2.12.0+rocm7.1", "0.26.0", "rocm7.1"),
        ("2.13.0+xpu", "0.28.0+cpu", "xpu"),
        ("2.13.0+cpu", "", "cpu"),
        ("2.1.0+cpu", "0.26.0+cpu", "cpu"),
        ("2.1.0+cu118", "0.26.0+cu118", ""),
        ("2.12.0", "0.26.0", ""),
        ("2.12.0+custom", "0.26.0", ""),
    ],
)
def test_a_pair_is_from_the_index_of_the_build_that_is_there(torch: str, torchvision: str, index: str) -> None:
    versions = {"torch": torch} | ({"torchvision": torchvision} if torchvision else {})
    fix = next(finding.fix for finding in package_findings(versions) if finding.check == "torchvision")
    words = fix.split()
    assert (words[words.index("--index-url") + 1].rpartition("/")[2] if "--index-url" in words else "") == index


def test_a_package_that_is_edited_where_it_lies_is_no_copy() -> None:
    origins = {"supervision": "/home/u/supervision/__init__.py"}
    assert [one.check for one in package_findings({"supervision": "0.26"}, origins=origins)] == ["supervision"]
    there = inventory({"supervision": "0.26"})
    there.packages["packages"]["supervision"]["is_editable"] = True
    there.packages["origins"] = origins
    assert wrong(judge_packages(there)) == []


def write_metadata(folder: Path, name: str, version: str) -> Path:
    info = folder / f"{name}-{version or 'x'}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\n" + (f"Version: {version}\n" if version else "")
    )
    return info


def test_metadata_is_read_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_metadata(tmp_path, "odd", "0.23ubuntu1")
    half = write_metadata(tmp_path, "half", "")
    edited = write_metadata(tmp_path, "edited", "1.0")
    (edited / "direct_url.json").write_text('{"url": "file:///home/u/edited", "dir_info": {"editable": true}}')
    (write_metadata(tmp_path, "copied", "1.0") / "direct_url.json").write_text('{"url": "file:///a", "dir_info": {}}')
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    facts = installed_probe.packages()
    assert facts["packages"]["odd"]["version"] == "0.23ubuntu1"
    assert facts["damaged"] == {"half": str(half)}
    assert [facts["packages"][name]["is_editable"] for name in ("odd", "edited", "copied")] == [False, True, False]


def test_what_lies_in_no_folder_of_metadata_is_never_to_be_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    class FromElsewhere(Distribution):
        def read_text(self, filename: str) -> None:
            return None

        def locate_file(self, path: object) -> Path:
            return Path()

    monkeypatch.setattr(installed_probe, "distributions", lambda: [FromElsewhere()])
    assert installed_probe.packages()["damaged"] == {}


def test_a_working_folder_that_is_gone_is_told(tmp_path: Path) -> None:
    """For real, in a shell whose folder was removed: it is no damage of Python."""
    folder = tmp_path / "gone"
    folder.mkdir()
    script = (
        "import os, sys; os.rmdir(os.getcwd())\n"
        "from detronome.doctor.examination import examine_environment\n"
        "print(*(f'{f.check}: {f.what}' for f in examine_environment(limit_s=240).findings), sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True, cwd=folder)
    assert "working folder: the working folder is gone" in done.stdout
    assert "requirements: " in done.stdout and "cannot tell what is installed" not in done.stdout
    assert "fails when it is called" not in done.stdout  # processes need a folder to start in


def test_the_pair_that_is_advised_is_what_we_ask_for() -> None:
    ours = {line for line in requires("detronome") or () if line.startswith(("torch>", "torchvision>"))}
    assert set(_PAIR) == ours


MACHINE: dict[str, dict[str, Any]] = {
    "machine.processors": {
        "machine": "x86_64",
        "present": 64,
        "bound": 64,
        "usable": 2,
        "omp_threads": "",
        "name": "A CPU",
        "flags": ["avx2"],
    },
    "machine.memory": {"total_bytes": 64 * GIB, "available_bytes": 60 * GIB},
    "machine.shared_memory": {"is_there": True, "total_bytes": 32 * GIB, "free_bytes": 32 * GIB},
    "machine.open_files": {"soft": 1024, "hard": 1048576},
    "machine.disks": {
        "disks": [
            {
                "use": "working folder",
                "folder": "/home/u/project",
                "file_system": "ext4",
                "free_bytes": 100 * GIB,
                "total_bytes": 200 * GIB,
                "write_s": 0.1,
                "write_bytes": 2**24,
                "is_whole": True,
                "locks": True,
            }
        ]
    },
    "machine.compiler": {"compiler": "", "headers": ""},
    "torch_calls.import_torch": {"version": "2.15.0", "cuda": None, "hip": None, "threads": 2},
}


def machine(**changes: dict[str, Any]) -> Wrong:
    facts = {name: {**values, **changes.get(name.split(".")[1], {})} for name, values in MACHINE.items()}
    if "disk" in changes:
        facts["machine.disks"] = {"disks": [{**MACHINE["machine.disks"]["disks"][0], **changes["disk"]}]}
    return wrong(judge_machine({name: answered(name, **values) for name, values in facts.items()}))


def test_a_sound_machine_gives_no_alarm() -> None:
    assert machine() == []
    assert machine(open_files={"soft": None, "hard": None}) == []
    assert machine(shared_memory={"is_there": False}) == []
    assert machine(processors={"machine": "aarch64", "flags": []}) == []


@pytest.mark.parametrize(
    ("changes", "check", "words"),
    [
        ({"processors": {"flags": ["sse2"]}}, "processors", "no AVX2"),
        ({"import_torch": {"threads": 64}}, "threads", "64 threads where 2"),
        ({"memory": {"available_bytes": GIB}}, "memory", "1.0 GiB of 64.0 GiB"),
        ({"shared_memory": {"free_bytes": 64 * 2**20}}, "shared memory", "64 MiB free"),
        ({"open_files": {"soft": 256}}, "open files", "256 files"),
        ({"disk": {"free_bytes": GIB}}, "working folder", "1.0 GiB free"),
        ({"disk": {"write_s": 10.0}}, "working folder", "1.6 MiB/s"),
        ({"disk": {"is_whole": False}}, "working folder", "does not keep"),
        ({"disk": {"locks": False}}, "working folder", "no locks"),
        ({"disk": {"error": "OSError: Read-only file system", "errno": 30}}, "working folder", "cannot be written"),
        ({"disk": {"error": "OSError: No space left on device", "errno": 28}}, "working folder", "disk is full"),
        ({"disk": {"error": "OSError: Disk quota exceeded", "errno": 122}}, "working folder", "disk is full"),
        ({"disk": {"use": "cache"}}, "working folder", "folder is gone"),
    ],
)
def test_what_a_machine_lacks(changes: dict[str, Any], check: str, words: str) -> None:
    ((told, _, what),) = machine(**changes)
    assert told == check and words in what


def test_a_disk_that_hangs_is_told() -> None:
    answers = {name: answered(name, **values) for name, values in MACHINE.items()}
    answers["machine.disks"] = Answer(probe="machine.disks", end="timed out")
    ((check, severity, what),) = wrong(judge_machine(answers))
    assert (check, severity) == ("disks", Severity.WARNING) and "no answer in time" in what


def gpu(driver: dict[str, Any], torch: dict[str, Any], devices: Answer | None = None) -> Wrong:
    return wrong(gpu_findings(driver, torch, devices))


def gpu_findings(driver: dict[str, Any], torch: dict[str, Any], devices: Answer | None = None) -> list[Finding]:
    facts = {
        "device_files": 1,
        "kernel_module": "NVRM",
        "visible": None,
        "library_path": "",
        "is_nvml_there": True,
        "driver": "580.65.06",
        "cuda": "13.0",
        "devices": [{"name": "A GPU", "total_bytes": 80 * GIB, "used_bytes": GIB, "capability": "sm_90"}],
        **driver,
    }
    answers = {
        "gpu.driver": answered("gpu.driver", **facts),
        "torch_calls.import_torch": answered(
            "torch_calls.import_torch", **{"version": "2.15.0", "cuda": "13.2", "hip": None, "threads": 1, **torch}
        ),
        "torch_calls.devices": devices
        or answered("torch_calls.devices", is_available=True, devices=[], built_for=["sm_80", "sm_90"]),
    }
    return list(judge_gpu(answers, UV))


def test_a_gpu_that_works() -> None:
    assert gpu({}, {}) == []
    assert gpu({"driver": "525.60"}, {"cuda": "12.6"}) == []
    assert gpu({"devices": [], "device_files": 0, "kernel_module": ""}, {}) == []


@pytest.mark.parametrize("has_driver", [True, False])
def test_a_build_for_rocm_is_judged_by_what_torch_sees(has_driver: bool) -> None:
    torch = answered("torch_calls.import_torch", version="2.15.0", cuda=None, hip="7.1", threads=1)
    driver = (
        answered("gpu.driver", devices=[], device_files=0, kernel_module="")
        if has_driver
        else Answer(probe="gpu.driver", end="died", error="gone")
    )

    def judged(devices: Answer) -> Finding:
        answers = {"gpu.driver": driver, "torch_calls.import_torch": torch, "torch_calls.devices": devices}
        (finding,) = judge_gpu(answers, PIP)
        return finding

    card = {"name": "AMD Instinct MI300X", "capability": "sm_94", "free_bytes": 190 * GIB, "total_bytes": 192 * GIB}
    fine = judged(answered("torch_calls.devices", is_available=True, devices=[card], built_for=["gfx942"]))
    assert (fine.severity, fine.what) == (Severity.OK, "AMD Instinct MI300X (192.0 GiB); ROCm 7.1")
    none = judged(answered("torch_calls.devices", is_available=False, devices=[], reason="RuntimeError: No HIP GPUs"))
    assert none.severity is Severity.WARNING and "uses no GPU" in none.what and "No HIP" in none.evidence
    failed = judged(Answer(probe="torch_calls.devices", end="raised", error="RuntimeError: HIP error: invalid"))
    assert failed.severity is Severity.FAILURE and "HIP error" in failed.evidence


@pytest.mark.parametrize(
    ("built_for", "is_fine"),
    [(["sm_80"], True), (["sm_89"], True), (["sm_90"], False), (["sm_75"], False), (["sm_75", "compute_75"], True)],
)
def test_which_code_a_gpu_runs(built_for: list[str], is_fine: bool) -> None:
    devices = answered("torch_calls.devices", is_available=True, devices=[], built_for=built_for)
    card = [{"name": "L4", "total_bytes": GIB, "used_bytes": 0, "capability": "sm_89"}]
    assert (gpu({"devices": card}, {}, devices) == []) == is_fine


NO_CUDA = answered("torch_calls.devices", is_available=False, devices=[], reason="the driver is too old")


def test_a_gpu_that_computes_has_a_driver_that_is_new_enough() -> None:
    """By CUDA's forward compatibility, whose libraries stand in for a newer driver's."""
    assert gpu({"driver": "550.54"}, {}) == []


@pytest.mark.parametrize(
    ("driver", "torch", "devices", "words"),
    [
        ({"driver": "550.54"}, {}, NO_CUDA, "too old"),
        ({"driver": "470.10"}, {"cuda": "12.6"}, NO_CUDA, "needs 525"),
        ({}, {"cuda": None}, None, "CPU build"),
        ({"visible": "-1"}, {}, None, "hides all"),
        ({}, {}, Answer(probe="d", end="died", error="was ended by SIGSEGV"), "computation on the GPU fails"),
        ({}, {}, Answer(probe="d", end="timed out"), "does not answer"),
        ({}, {}, answered("d", is_available=False, devices=[], reason="CUDA unknown error"), "cannot start CUDA"),
        ({"devices": [], "error": "NVMLError: Driver/library version mismatch"}, {}, None, "updated"),
        ({"devices": [], "error": "NVMLError: no", "is_nvml_there": True}, {}, None, "does not answer"),
    ],
)
def test_a_gpu_that_does_not_work(driver: dict[str, Any], torch: dict[str, Any], devices: Answer, words: str) -> None:
    ((check, _, what),) = gpu(driver, torch, devices)
    assert check == "GPU" and words in what


@pytest.mark.parametrize(
    ("driver", "devices", "fix"),
    [
        ({"devices": [], "error": "ImportError: pynvml", "is_nvml_there": False}, None, "install --python /env/python"),
        ({"devices": [], "error": "NVMLError_LibraryNotFound: NVML Shared Library Not Found"}, None, "docker run"),
        ({"devices": [], "error": "NVMLError_GpuIsLost: GPU is lost"}, None, "sudo nvidia-smi -q"),
        ({"devices": [], "error": "NVMLError_Unknown: Unknown Error"}, None, "nvidia-smi"),
        (
            {},
            Answer(probe="d", end="raised", error="RuntimeError: The NVIDIA driver on your system is too old"),
            "uv pip install --python /env/python --reinstall",
        ),
        ({}, Answer(probe="d", end="raised", error="RuntimeError: nobody knows it"), "sudo dmesg"),
    ],
)
def test_what_a_gpu_needs_is_a_command_for_this_environment(driver: dict[str, Any], devices: Answer, fix: str) -> None:
    (finding,) = gpu_findings(driver, {}, devices)
    assert fix in finding.fix and not finding.fix.startswith("#")
    assert ("docker" in finding.fix) == (fix == "docker run")


def test_memory_that_others_hold() -> None:
    card = [{"name": "A", "total_bytes": 80 * GIB, "used_bytes": 70 * GIB, "capability": "sm_90"}]
    assert [check for check, _, _ in gpu({"devices": card}, {})] == ["GPU memory"]


def test_slow_decoding() -> None:
    def speed(rate: float) -> Wrong:
        decoding = answered("speed.decoding", per_cpu_s=rate, pillow_per_s=20.0)
        return wrong(judge_speed({"speed.decoding": decoding, "speed.matrices": Answer(probe="m")}, 4))

    assert speed(400.0) == []
    assert [check for check, _, _ in speed(20.0)] == ["decoding"]


def calls(**ends: Answer) -> Wrong:
    return wrong(call_findings(NEEDED, **ends))


NEEDED = ("detronome", "simplejpeg", "pillow", "scipy", "safetensors", "hotcoco", "numpy", "torch", "torchvision")


def call_findings(packages: Iterable[str], installer: Installer = PIP, **ends: Answer) -> list[Finding]:
    batches = examination_module._BATCHES
    answers = {probe: answered(probe) for batch in batches for probe in batch.probes}
    answers["torch_calls.import_torch"] = answered(
        "torch_calls.import_torch", version="2.15.0", cuda=None, hip=None, path="/x", seconds=1.0
    )
    answers["torch_calls.ranks"] = answered("r", is_available=True, backend="gloo", nccl=None, seconds=0.1)
    answers["torch_calls.worker_tensor"] = answered("w", strategy="file_descriptor")
    answers["machine.start_methods"] = answered("s", default="forkserver", seconds={"forkserver": 0.1})
    answers |= {name.replace("__", "."): answer for name, answer in ends.items()}
    there = replace(inventory(dict.fromkeys(packages, "1.0")), installer=installer)
    return list(judge_calls(answers, there, []))


def test_calls_that_all_answer() -> None:
    assert calls() == []


def test_a_call_that_hangs_is_a_warning() -> None:
    ((check, severity, what),) = calls(compiled__hotcoco=Answer(probe="h", end="timed out"))
    assert (check, severity) == ("hotcoco", Severity.WARNING) and "no answer in time" in what


def test_an_nccl_that_can_hang_and_workers_that_cannot_send() -> None:
    nccl = answered("r", is_available=True, backend="nccl", nccl="2.28.5", seconds=0.1)
    assert [check for check, _, _ in calls(torch_calls__ranks=nccl)] == ["ranks"]
    good = answered("r", is_available=True, backend="nccl", nccl="2.30.7", seconds=0.1)
    assert calls(torch_calls__ranks=good) == []
    error = "Traceback\nRuntimeError: received 0 items of ancdata"
    ((check, _, what),) = calls(torch_calls__worker_tensor=Answer(probe="w", end="raised", error=error))
    assert check == "loader workers" and "too many open files" in what


def raised(*modules: str, error: str) -> Answer:
    frames = "".join(f'  File "/env/site/{module}/__init__.py", line 1, in <module>\n' for module in modules)
    return Answer(probe="p", end="raised", error=f"Traceback (most recent call last):\n{frames}{error}")


def failed_call(*packages: str, installer: Installer = PIP, **ends: Answer) -> Finding:
    (finding,) = (one for one in call_findings([*NEEDED, *packages], installer, **ends) if one.severity != "ok")
    return finding


@pytest.mark.parametrize(
    ("package", "call"),
    [
        ("opencv-contrib-python", "compiled__opencv"),
        ("opencv-python", "compiled__opencv"),
        ("onnxruntime-gpu", "compiled__onnxruntime"),
    ],
)
def test_the_twin_that_is_there_is_installed_again(package: str, call: str) -> None:
    failed = Answer(probe="p", end="raised", error="ImportError: nobody knows it")
    assert failed_call(package, **{call: failed}).fix == f"pip install --upgrade --force-reinstall {package}"


def test_of_several_packages_the_one_that_failed_is_installed_again() -> None:
    uvicorn = raised("uvicorn", error="ImportError: nobody knows it")
    assert failed_call(compiled__serving=uvicorn).fix == "pip install --upgrade --force-reinstall uvicorn"
    yaml = raised("yaml", error="ImportError: nobody knows it")
    assert failed_call("pyyaml", compiled__core_imports=yaml).fix == "pip install --upgrade --force-reinstall pyyaml"


def test_no_command_has_a_hole_where_no_package_is_known() -> None:
    numpy_1 = "A module that was compiled using NumPy 1.x cannot be run in NumPy 2"
    assert failed_call(compiled__core_imports=raised(error=numpy_1)).fix == "pip install 'numpy<2'"
    matplotlib = raised("matplotlib", error=numpy_1)
    assert failed_call("matplotlib", compiled__core_imports=matplotlib).fix == "pip install --upgrade matplotlib"
    assert failed_call(compiled__core_imports=raised(error="ImportError: nobody knows it")).fix == ""


def test_each_part_of_a_command_is_for_the_environment() -> None:
    no_libraries = raised("cv2", error="ImportError: libGL.so.1: cannot open shared object file")
    assert failed_call("opencv-python", installer=UV, compiled__opencv=no_libraries).fix == (
        "uv pip uninstall --python /env/python opencv-python opencv-contrib-python "
        "&& uv pip install --python /env/python --reinstall opencv-python-headless"
    )


def test_a_comment_is_no_command() -> None:
    assert UV.first_command(["# read this", "pip install a   # why"]) == "uv pip install --python /env/python a"
    assert UV.first_command(["pip install PACKAGE", "echo b"]) == "echo b"
    assert UV.first_command(["# one", "# two"]) == "# one"
    assert UV.first_command(["pip install PACKAGE"]) == ""
    error = "RuntimeError: Cannot re-initialize CUDA in forked subprocess"
    assert failed_call(torch_calls__worker_tensor=raised(error=error)).fix.startswith("# give workers")


def test_what_a_source_tree_lacks_is_told() -> None:
    packages = [name for name in NEEDED if name not in ("detronome", "scipy")]
    no_scipy = raised(error="ModuleNotFoundError: No module named 'scipy'")
    no_yaml = answered("c", missing=["yaml", "tomli_w"])
    found = call_findings(packages, compiled__scipy=no_scipy, compiled__core_imports=no_yaml)
    fixes = {one.check: one.fix for one in found if one.severity is Severity.FAILURE}
    assert fixes == {name: f"pip install {name}" for name in ("scipy", "pyyaml", "tomli-w")}
    found = call_findings(["detronome", *packages], compiled__scipy=no_scipy, compiled__core_imports=no_yaml)
    assert wrong(found) == []  # told as requirements that are missing


def test_the_worst_finding_gives_the_exit_code() -> None:
    def examined(*severities: Severity) -> Examination:
        findings = [Finding(check="c", severity=severity, what="w") for severity in severities]
        return Examination(version="", python="", executable="", platform="", findings=findings, seconds=0.0)

    assert examined().exit_code == 0
    assert examined(Severity.OK, Severity.WARNING, Severity.OK).exit_code == 1
    assert examined(Severity.FAILURE, Severity.WARNING).exit_code == 2
    record = json.loads(json.dumps(examined(Severity.FAILURE).to_record()))
    assert record["verdict"] == "failure" and record["findings"][0]["severity"] == "failure"


def test_a_python_that_tells_nothing_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(batch: Batch, limit_s: float, stop: object = None) -> dict[str, Answer]:
        return {probe: Answer(probe=probe, end="died", error="gone") for probe in batch.probes}

    monkeypatch.setattr(examination_module, "run_batch", nothing)
    stages: list[str] = []
    found = examine_environment(stages.append)
    assert found.exit_code == 2 and len(found.findings) == 1 and len(stages) == 2
    assert found.executable == sys.executable


@pytest.mark.parametrize("limit_s", [0, 1.9, -3, 3601, 1e9, float("inf"), float("nan")])
def test_a_limit_that_cannot_be_meant_is_a_mistake(limit_s: float) -> None:
    with pytest.raises(ConfigError, match="an examination takes some seconds"):
        check_environment(limit_s=limit_s)


def test_when_the_time_is_over_what_did_not_finish_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """For real, with a limit in which no Python starts."""
    monkeypatch.setattr(examination_module, "LEAST_LIMIT_S", 0)
    begin = time.monotonic()
    found = examine_environment(limit_s=0.01)
    assert time.monotonic() - begin < 10
    ((check, severity, what),) = wrong(found.findings)
    assert (check, severity) == ("time", Severity.WARNING) and "within 0.01 s" in what
    assert all(name in what for name in ("import torch", "nms", "scipy", "disks", "decoding", "packages"))
    assert found.findings[-1].fix == "detronome doctor --limit-s 120"


def test_a_torch_that_hangs_is_named_and_the_rest_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    def hanging(batch: Batch, limit_s: float, stop: object = None) -> dict[str, Answer]:
        if batch.is_first_needed:
            first, *rest = batch.probes
            return {first: Answer(probe=first, end="timed out")} | {probe: Answer(probe=probe) for probe in rest}
        return run_batch(batch, limit_s=240)

    monkeypatch.setattr(examination_module, "run_batch", hanging)
    found = {finding.check: finding for finding in examine_environment().findings}
    assert "import torch" in found["time"].what and "nms" in found["time"].what and "scipy" not in found["time"].what
    assert "no answer in time" in found["torch"].what
    assert found["requirements"].severity is Severity.OK and "scipy" in found["calls"].what


def test_a_torch_that_fails_is_no_matter_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(batch: Batch, limit_s: float, stop: object = None) -> dict[str, Answer]:
        if batch.is_first_needed:
            first, *rest = batch.probes
            broken = Answer(probe=first, end="raised", error="ImportError: it is broken")
            return {first: broken} | {probe: Answer(probe=probe) for probe in rest}
        return run_batch(batch, limit_s=240)

    monkeypatch.setattr(examination_module, "run_batch", failing)
    assert "time" not in {finding.check for finding in examine_environment().findings}


def test_it_can_be_asked_in_python() -> None:
    """In a process of its own: torch is not imported there."""
    script = (
        "import sys, detronome as dt\n"
        "found = dt.check_environment(limit_s=120)\n"
        "assert isinstance(found, dt.Examination), found\n"
        "print(sorted({f.group for f in found.findings} - {'time'}), sorted({'torch', 'numpy'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['GPU', 'calls', 'machine', 'packages', 'speed'] []"


def test_commands_are_for_the_environment() -> None:
    assert (
        PIP.install("torch>=2.11", upgrade=True, again=True) == "pip install --upgrade --force-reinstall 'torch>=2.11'"
    )
    uv = Installer(command="uv pip", options="--python /a/python ")
    assert uv.is_uv and not PIP.is_uv
    assert PIP.uninstall(["a;b"]) == "pip uninstall -y 'a;b'"
    assert uv.install("a", again=True) == "uv pip install --python /a/python --reinstall a"
    assert uv.uninstall(["a", "b"]) == "uv pip uninstall --python /a/python a b"
    assert PIP.uninstall(["a"]) == "pip uninstall -y a"
    assert uv.translate("pip install --force-reinstall a 'b>=2'") == (
        "uv pip install --python /a/python --reinstall a 'b>=2'"
    )
    assert PIP.update(["a==2"]) == "pip install --upgrade a==2"
    assert uv.update(["torch==2.15.0", "torchvision"], build="cpu") == (
        "uv pip install --python /a/python --upgrade --index-url https://download.pytorch.org/whl/cpu "
        "torch==2.15.0 torchvision"
    )
    assert PIP.translate("pip install --force-reinstall a") == "pip install --force-reinstall a"


def commands_in_rules() -> list[str]:
    folder = Path(examination_module.__file__).parent
    text = "".join((folder / f"{name}.py").read_text() for name in ("machine", "disks", "gpu", "calls", "packages"))
    return [
        part for line in re.findall(r'"(detronome (?:data|train|doctor) [^"]+)"', text) for part in line.split(" && ")
    ]


@pytest.mark.parametrize("command", commands_in_rules())
def test_every_command_of_ours_that_a_rule_advises_exists(command: str) -> None:
    try:
        app.parse_args(shlex.split(command.partition("   #")[0])[1:], print_error=False, exit_on_error=False)
    except MissingArgumentError:
        pass
    except CycloptsError as error:
        pytest.fail(str(error))

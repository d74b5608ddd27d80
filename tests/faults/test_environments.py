"""Environments that are broken on purpose: the doctor names the cause in each, and finds nothing in sound ones."""

import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pytest
from tests.faults.environments import (
    CORE,
    Environment,
    make_environment,
    stub_nvml,
    stub_torch,
    stub_torchvision,
)

pytestmark = [pytest.mark.dist, pytest.mark.alone]

TORCH, TORCHVISION = "2.15.0", "0.29.2"


@dataclass(frozen=True)
class Broken:
    """One broken environment and what the doctor has to say of it."""

    name: str
    break_it: Callable[[Environment], None]
    check: str
    severity: str
    cause: str
    """Part of the finding's sentence or cause."""
    fix: str
    """Part of its command."""
    beside: Sequence[str] = ()
    """Other checks that may speak up, for they are wrong too."""
    is_quick: bool = False
    """Whether it belongs to the fast tests."""
    needs_numpy_2: bool = False
    """Whether the installed NumPy, which the environment borrows, must be of version 2."""


def sound(root: Path, *packages: str, torch: str = TORCH, torchvision: str = TORCHVISION) -> Environment:
    return make_environment(root, *CORE, *packages, torch=torch, torchvision=torchvision)


def remade_torch(version: str = TORCH, torchvision: str = TORCHVISION, **how: object) -> Callable[[Environment], None]:
    def remake(environment: Environment) -> None:
        remove_torch(environment)
        stub_torch(environment, version, **how)  # type: ignore[arg-type]
        stub_torchvision(environment, torchvision)

    return remake


def remove_torch(environment: Environment) -> None:
    for name in ("torch", "torchvision"):
        shutil.rmtree(environment.site / name)
        for info in environment.site.glob(f"{name}-*.dist-info"):
            shutil.rmtree(info)


def raising(text: str) -> str:
    return f"raise ImportError({text!r})\n"


def without(*names: str) -> Callable[[Environment], None]:
    def remove(environment: Environment) -> None:
        for name in names:
            environment.remove(name)

    return remove


def other_version(name: str, version: str, *requires: str) -> Callable[[Environment], None]:
    return lambda environment: environment.replace_metadata(name, version, *requires)


def added(name: str, version: str, *requires: str, **modules: str) -> Callable[[Environment], None]:
    return lambda environment: environment.stub(name, version, *requires, **modules)


def replaced(name: str, version: str, **modules: str) -> Callable[[Environment], None]:
    return lambda environment: environment.replace(name, version, **modules)


def two_opencvs(environment: Environment) -> None:
    environment.stub("opencv-python", "5.0.0.93", cv2="__version__ = '5.0.0'\n")
    environment.stub("opencv-python-headless", "5.0.0.93")


def torch_is_gone(environment: Environment) -> None:
    remove_torch(environment)


def torchvision_is_gone(environment: Environment) -> None:
    remove_torch(environment)
    stub_torch(environment, TORCH)


def torchvision_fails(version: str, torch: str = TORCH) -> Callable[[Environment], None]:
    def remake(environment: Environment) -> None:
        remove_torch(environment)
        stub_torch(environment, torch)
        stub_torchvision(environment, version, nms='raise RuntimeError("operator torchvision::nms does not exist")\n')

    return remake


def old_coco_api_on_the_path(environment: Environment) -> None:
    """A clone of the original repository in PYTHONPATH, as many projects tell people to do."""
    import pycocotools

    environment.link("pycocotools")
    clone = environment.root / "cocoapi" / "PythonAPI" / "pycocotools"
    clone.mkdir(parents=True)
    for file in Path(pycocotools.__file__).parent.iterdir():
        if file.suffix == ".py":
            code = file.read_text()
            if file.name == "cocoeval.py":
                assert "dtype=float)" in code or "np.float64" in code or ".astype(" in code
                code = code.replace(
                    "def accumulate(self, p = None):", "def accumulate(self, p = None):\n        np.float"
                )
                assert "        np.float\n" in code
            (clone / file.name).write_text(code)
        elif file.suffix == ".so":
            (clone / file.name).symlink_to(file)
    environment.variables["PYTHONPATH"] = str(clone.parent)


def wrong_numpy_for_coco(environment: Environment) -> None:
    words = (
        "numpy.dtype size changed, may indicate binary incompatibility. Expected 96 from C header, got 88 from PyObject"
    )
    environment.stub("pycocotools", "2.0.11", pycocotools="", pycocotools___mask=f"raise ValueError({words!r})\n")


def shadow(name: str) -> Callable[[Environment], None]:
    def write(environment: Environment) -> None:
        path = environment.work / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("")

    return write


def leftovers(environment: Environment) -> None:
    (environment.site / "~umpy").mkdir()


def without_metadata(name: str) -> Callable[[Environment], None]:
    """What a removal leaves that was interrupted: the folder of the metadata, with some of its files."""

    def empty(environment: Environment) -> None:
        (info,) = environment.site.glob(f"{name}-*.dist-info")
        path = environment.site / info.name
        path.unlink()
        path.mkdir()
        (path / "RECORD").write_text("")

    return empty


def numpy_twice(environment: Environment) -> None:
    environment.stub("numpy", "1.26.4")


def gpu(torch: dict[str, object], **driver: object) -> Callable[[Environment], None]:
    def add(environment: Environment) -> None:
        remade_torch(**torch)(environment)  # type: ignore[arg-type]
        stub_nvml(environment, **driver)  # type: ignore[arg-type]

    return add


def hidden_gpu(environment: Environment) -> None:
    gpu({"cuda": "13.2"})(environment)
    environment.variables["CUDA_VISIBLE_DEVICES"] = ""


def in_shell(before: str, *, in_namespace: bool = False) -> Callable[[Environment], None]:
    def prepare(environment: Environment) -> None:
        environment.before, environment.in_namespace = before, in_namespace

    return prepare


def in_folder(folder: str) -> Callable[[Environment], None]:
    def move(environment: Environment) -> None:
        environment.folder = Path(folder)

    return move


_GLOO = """
class distributed:
    is_available = staticmethod(lambda: True)
    is_nccl_available = staticmethod(lambda: False)

import sys as _sys
_words = "[enforce fail at /pytorch/third_party/gloo/gloo/transport/tcp/device.cc:84] ifa != nullptr. Unable to find "
_words += "interface for: [10.255.255.1]"
_code = f"def init_process_group(*a, **k): raise RuntimeError({_words!r})"
_module = type(_sys)("torch.distributed")
exec(_code, _module.__dict__)
_module.is_available, _module.is_nccl_available = distributed.is_available, distributed.is_nccl_available
_sys.modules["torch.distributed"] = distributed = _module
def device(*words):
    return words
"""
_SEGFAULT = "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n"

BROKEN = (
    Broken(
        "torch is not installed", torch_is_gone, "torch", "failure", "not installed", "install", ["torchvision"], True
    ),
    Broken(
        "torchvision is not installed", torchvision_is_gone, "torchvision", "failure", "not installed", "torchvision"
    ),
    Broken(
        "torchvision of another release",
        torchvision_fails("0.26.0"),
        "torchvision",
        "failure",
        "not a pair",
        "torchvision==0.29.*",
        is_quick=True,
    ),
    Broken(
        "torchvision for the CPU beside torch for CUDA",
        remade_torch("2.13.0+cu130", "0.28.0+cpu", cuda="13.0"),
        "torchvision",
        "failure",
        "torch is built for cu13 and torchvision for cpu",
        "torch torchvision",
    ),
    Broken(
        "torchvision's operators do not load, though the versions are a pair",
        torchvision_fails(TORCHVISION),
        "torchvision",
        "failure",
        "torchvision does not fit torch",
        "torchvision",
    ),
    Broken(
        "torch 2.1 with NumPy 2",
        remade_torch("2.1.2", "0.16.2", from_numpy='raise RuntimeError("Numpy is not available")'),
        "numpy",
        "failure",
        "built for NumPy 1",
        "torch>=2.11",
        ["torch", "torchvision"],
        is_quick=True,
        needs_numpy_2=True,
    ),
    Broken(
        "a torch of unknown make without NumPy",
        remade_torch("2.17.0", "0.31.0", from_numpy='raise RuntimeError("Numpy is not available")'),
        "torch with numpy",
        "failure",
        "built for NumPy 1",
        "torch",
    ),
    Broken(
        "torch with a known hole",
        remade_torch("2.9.1", "0.24.1"),
        "torch",
        "failure",
        "CVE-2026-24747",
        "torch>=2.11",
        ["torchvision"],
    ),
    Broken(
        "torch finds another NCCL",
        remade_torch(
            first=raising("/x/torch/lib/libtorch_cuda.so: undefined symbol: ncclCommWindowRegister"),
        ),
        "torch",
        "failure",
        "LD_LIBRARY_PATH",
        "unset LD_LIBRARY_PATH",
    ),
    Broken(
        "torch without cuDNN",
        remade_torch(first=raising("libcudnn.so.9: cannot open shared object file: No such file or directory")),
        "torch",
        "failure",
        "libcudnn",
        "torch",
    ),
    Broken(
        "torch crashes when it is imported", remade_torch(first=_SEGFAULT), "torch", "failure", "torch crashes", "torch"
    ),
    Broken(
        "pycocotools built for another NumPy",
        wrong_numpy_for_coco,
        "pycocotools",
        "warning",
        "built against another NumPy",
        "pycocotools>=2.0.11",
        is_quick=True,
    ),
    Broken(
        "an old clone of the COCO API in PYTHONPATH",
        old_coco_api_on_the_path,
        "pycocotools",
        "warning",
        "imported from another folder",
        "unset PYTHONPATH",
    ),
    Broken(
        "OpenCV without libGL",
        added(
            "opencv-python",
            "5.0.0.93",
            cv2=raising("libGL.so.1: cannot open shared object file: No such file or directory"),
        ),
        "opencv",
        "warning",
        "graphics libraries",
        "opencv-python-headless",
    ),
    Broken("two OpenCVs", two_opencvs, "opencv-python-headless", "warning", "installed together", "uninstall"),
    Broken("two pynvml", added("pynvml", "11.5.3"), "nvidia-ml-py", "warning", "both bring the module", "nvidia-ml-py"),
    Broken("the stolen Lightning", added("lightning", "2.6.3"), "lightning", "failure", "steals", "lightning>=2.6.6"),
    Broken("the stolen Ultralytics", added("ultralytics", "8.3.45"), "ultralytics", "failure", "mines", "8.3.47"),
    Broken("an onnx with known holes", added("onnx", "1.16.0", onnx=""), "onnx", "failure", "CVE-2026", "onnx>=1.21"),
    Broken("an old Pillow", other_version("pillow", "10.4.0"), "pillow", "warning", "CVE-2026-25990", "pillow>=12.3"),
    Broken(
        "a folder torch in the working folder",
        shadow("torch/__init__.py"),
        "shadows",
        "warning",
        "hides",
        "mv",
        (),
        True,
    ),
    Broken(
        "a file random.py in the working folder", shadow("random.py"), "shadows", "warning", "random.py", "my_random.py"
    ),
    Broken("what an interrupted pip leaves", leftovers, "leftovers", "warning", "interrupted", "rm -r"),
    Broken("half a SciPy", without_metadata("scipy"), "scipy", "failure", "half there", "rm -r", (), True),
    Broken(
        "a version that is none",
        other_version("scipy", "unknown"),
        "scipy",
        "warning",
        "the version of scipy cannot be read: 'unknown'",
        "install",
    ),
    Broken("NumPy installed twice", numpy_twice, "numpy", "failure", "twice in the same folder", "numpy"),
    Broken(
        "a decoder that crashes",
        replaced("simplejpeg", "1.9.1", simplejpeg=_SEGFAULT),
        "simplejpeg",
        "failure",
        "simplejpeg crashes",
        "simplejpeg",
        is_quick=True,
    ),
    Broken(
        "a C++ library that is too old",
        replaced(
            "scipy",
            "1.17.1",
            scipy="",
            scipy__optimize=raising("/lib/x86_64-linux-gnu/libstdc++.so.6: version `GLIBCXX_3.4.32' not found"),
        ),
        "scipy",
        "failure",
        "GLIBCXX_3.4.32",
        "libstdcxx-ng",
    ),
    Broken(
        "NNCF beside a NumPy that is too new for it",
        added("nncf", "3.4.0", "numpy<2.0", nncf=""),
        "nncf",
        "warning",
        "nncf needs numpy<2.0",
        "numpy<2.0",
    ),
    Broken(
        "TensorRT without its libraries",
        added(
            "tensorrt",
            "10.13.3",
            tensorrt=raising("libnvinfer.so.10: cannot open shared object file: No such file or directory"),
        ),
        "tensorrt",
        "warning",
        "TensorRT's own libraries",
        "detronome[tensorrt]",
    ),
    Broken("a PyAV that crashes", added("av", "18.1.0", av=_SEGFAULT), "av", "warning", "av crashes", "install"),
    Broken(
        "a server with known holes",
        added("starlette", "0.45.0", starlette=""),
        "starlette",
        "warning",
        "CVE-2026-54283",
        "starlette>=1.3.1",
    ),
    Broken(
        "an ONNX Runtime beside another one",
        lambda environment: (
            environment.stub("onnxruntime", "1.31.1", onnxruntime="get_available_providers = list\n"),
            environment.stub("onnxruntime-gpu", "1.31.1"),
        )[0],
        "onnxruntime-gpu",
        "warning",
        "installed together",
        "uninstall",
    ),
    Broken(
        "a requirement that is missing",
        without("safetensors"),
        "safetensors",
        "failure",
        "not installed",
        "safetensors",
    ),
    Broken("a requirement that is too new", other_version("hotcoco", "2.0.0"), "hotcoco", "failure", "<2", "hotcoco<2"),
    Broken("an extra that is too old", added("optuna", "3.6.1"), "optuna", "warning", "detronome[search]", "optuna>=5"),
    Broken(
        "packages that exclude each other",
        other_version("scipy", "1.17.1", "numpy<2.0"),
        "scipy",
        "warning",
        "scipy needs numpy<2.0",
        "numpy<2.0",
    ),
    Broken(
        "a driver that is too old",
        gpu({"cuda": "13.2"}, driver="535.183.01", cuda=12020),
        "GPU",
        "failure",
        "driver 535.183.01 is too old",
        "cu126",
        is_quick=True,
    ),
    Broken(
        "a driver that was updated",
        gpu({"cuda": "13.2"}, init='raise NVMLError("Driver/library version mismatch")'),
        "GPU",
        "failure",
        "different versions",
        "reboot",
    ),
    Broken("torch for the CPU beside a GPU", gpu({}), "GPU", "warning", "CPU build", "torchvision"),
    Broken("hidden GPUs", hidden_gpu, "GPU", "warning", "hides all GPUs", "unset CUDA_VISIBLE_DEVICES"),
    Broken(
        "a GPU that this torch has no code for",
        gpu(
            {"cuda": "13.2", "devices": ("sm_60",), "built_for": ("sm_75", "sm_80", "sm_90")},
            name="Tesla P100",
            capability=(6, 0),
        ),
        "GPU",
        "failure",
        "no code for Tesla P100",
        "cu126",
    ),
    Broken("ranks without a network interface", remade_torch(more=_GLOO), "ranks", "warning", "interface", "ip -br"),
    Broken(
        "more threads than processors", remade_torch(threads=64), "threads", "warning", "64 threads", "OMP_NUM_THREADS"
    ),
    Broken("few open files", in_shell("ulimit -Sn 128;"), "open files", "warning", "128 files", "ulimit -n", (), True),
    Broken(
        "a small /dev/shm",
        in_shell("mount -t tmpfs -o size=16m tmpfs /dev/shm &&", in_namespace=True),
        "shared memory",
        "warning",
        "bus error",
        "--shm-size",
    ),
    Broken(
        "a full disk",
        in_shell("mount -t tmpfs -o size=4m tmpfs . && cd . &&", in_namespace=True),
        "working folder",
        "failure",
        "the disk is full",
        "cache --clear",
    ),
    Broken(
        "a working folder that was removed",
        in_shell('rmdir "$PWD";'),
        "working folder",
        "failure",
        "the working folder is gone",
        "cd ",
    ),
    Broken(
        "a folder that cannot be written", in_folder("/proc"), "working folder", "failure", "cannot be written", "--out"
    ),
)


def parameters() -> list[object]:
    return [pytest.param(case, id=case.name, marks=[] if case.is_quick else pytest.mark.slow) for case in BROKEN]


def can_mount() -> bool:
    words = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"]
    try:
        return subprocess.run(words, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("case", parameters())
def test_the_cause_of_a_broken_environment_is_named(
    case: Broken, tmp_path: Path, report_figure: Callable[[str, str], None]
) -> None:
    if case.needs_numpy_2 and version("numpy").startswith("1."):
        pytest.skip("NumPy 1 is installed here")
    environment = sound(tmp_path / "environment")
    case.break_it(environment)
    if environment.in_namespace and not can_mount():
        pytest.skip("this system lets nobody mount a small disk")
    record = environment.examine()
    wrong = [finding for finding in record["findings"] if finding["severity"] != "ok"]
    hits = [
        finding
        for finding in wrong
        if finding["check"] == case.check
        and finding["severity"] == case.severity
        and case.cause in f"{finding['what']} {finding['cause']}"
    ]
    assert hits, wrong
    assert case.fix in hits[0]["fix"], hits[0]
    of_this_machine = {} if case.check in ("open files", "shared memory", "working folder") else MACHINE
    others = {f["check"] for f in wrong} - {case.check, *case.beside, *of_this_machine}
    assert not others, wrong
    report_figure(f"broken: {case.name}", hits[0]["what"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "check", "severity", "words"),
    [
        ("pycocotools==2.0.7", "pycocotools", "failure", "before 2.0.8 was built for NumPy 1"),
        ("torchvision==0.26.0", "torchvision", "failure", "not a pair"),
    ],
)
def test_real_releases_that_do_not_fit(
    package: str, check: str, severity: str, words: str, tmp_path: Path, report_figure: Callable[[str, str], None]
) -> None:
    """Real wheels of the package index; their calls fail too, which is told once."""
    environment = make_environment(tmp_path / "environment", *CORE, "torch")
    if "torchvision" not in package:
        stub_torchvision(environment, TORCHVISION)
    python = str(environment.root / "bin" / "python")
    install = ["uv", "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:", "--python", python, package]
    if subprocess.run(install, check=False).returncode:
        pytest.skip("the package index cannot be reached")
    record = environment.examine()
    wrong = [f for f in record["findings"] if f["severity"] != "ok" and f["check"] not in MACHINE]
    assert [f["check"] for f in wrong] == [check], wrong
    assert wrong[0]["severity"] == severity and words in f"{wrong[0]['what']} {wrong[0]['cause']}"
    report_figure(f"broken: {package}, the real wheel", wrong[0]["what"])


MACHINE = dict.fromkeys(("processors", "memory", "shared memory", "open files", "working folder", "cache", "decoding"))
"""Checks of the machine that these tests run on: it may be small or busy."""


def harmless_folder(environment: Environment) -> None:
    for name in ("datasets", "models", "torch", "util"):
        (environment.work / name).mkdir()
    (environment.work / "torch" / "weights.pth").write_bytes(b"")
    for name in ("train.py", "coco.py", "torch_utils.py", "engine.py"):
        (environment.work / name).write_text("")


HEALTHY: dict[str, tuple[Callable[[Environment], None], bool]] = {
    "today's releases": (lambda environment: None, True),
    "the oldest torch that is allowed": (remade_torch("2.11.0", "0.26.0"), False),
    "torch 2.13 for CUDA 13.0, both from one index": (remade_torch("2.13.0+cu130", "0.28.0+cu130", cuda="13.0"), False),
    "an older torchvision of the stable kind": (remade_torch("2.15.0", "0.29.0"), False),
    "releases newer than the table": (remade_torch("2.17.1", "0.31.0"), False),
    "a GPU with its driver": (gpu({"cuda": "13.2", "devices": ("sm_90",), "built_for": ("sm_80", "sm_90")}), True),
    "a GPU that runs an older sibling's code": (
        gpu(
            {"cuda": "13.2", "devices": ("sm_86",), "built_for": ("sm_75", "sm_80", "sm_90")},
            name="NVIDIA GeForce RTX 3090",
            capability=(8, 6),
        ),
        False,
    ),
    "one OpenCV, pycocotools and other packages": (
        lambda environment: (
            environment.link("pycocotools", "onnxruntime", "scikit-learn"),
            environment.stub("opencv-python-headless", "5.0.0.93", cv2="__version__ = '5.0.0'\n"),
            environment.stub("unknown-tool", "0.1", "numpy<1"),
        )[0],
        False,
    ),
    "a working folder with names that only look alike": (harmless_folder, False),
    "builds for the CPU on a machine without a GPU": (remade_torch("2.15.0+cpu", "0.29.2+cpu"), False),
    "a package with a version of its system": (added("command-not-found", "0.23ubuntu1"), False),
    "run from its source, without metadata": (
        lambda environment: next(environment.site.glob("detronome-*.dist-info")).unlink(),
        False,
    ),
}


def check_is_sound(environment: Environment) -> None:
    record = environment.examine()
    wrong = [
        finding for finding in record["findings"] if finding["severity"] != "ok" and finding["check"] not in MACHINE
    ]
    assert not wrong


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(make, id=name, marks=[] if is_quick else pytest.mark.slow)
        for name, (make, is_quick) in HEALTHY.items()
    ],
)
def test_a_sound_environment_gives_no_alarm(
    make: Callable[[Environment], None],
    tmp_path: Path,
    request: pytest.FixtureRequest,
    report_figure: Callable[[str, str], None],
) -> None:
    environment = sound(tmp_path / "environment")
    make(environment)
    check_is_sound(environment)
    report_figure(f"sound: {request.node.callspec.id}", "no alarm")


@pytest.mark.slow
def test_real_packages_without_any_extra_give_no_alarm(
    tmp_path: Path, report_figure: Callable[[str, str], None]
) -> None:
    environment = make_environment(tmp_path / "environment", *CORE, "torch", "torchvision")
    check_is_sound(environment)
    report_figure("sound: real torch and torchvision, no extras", "no alarm")


def test_it_works_where_nothing_but_the_command_line_is_installed(tmp_path: Path) -> None:
    environment = make_environment(tmp_path / "environment")
    record = environment.examine()
    missing = {f["check"] for f in record["findings"] if f["severity"] == "failure"}
    assert missing == {*CORE, "torch", "torchvision"} - {"cyclopts", "rich"}
    assert all("not installed" in f["what"] for f in record["findings"] if f["severity"] == "failure")
    done = environment.doctor("--explain", "RuntimeError: received 0 items of ancdata")
    assert done.returncode == 0 and "ulimit -n 65536" in done.stdout
    assert environment.doctor("--help").returncode == 0

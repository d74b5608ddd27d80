"""What error texts mean: the words that libraries print, the cause behind them, and the fix.

What a pattern's named group has found can stand in cause and fix as `{name}`; the group `at` says which line counts.
A consequence is what follows from another error, often on another rank; it is told only where nothing better is found.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from detronome.doctor.modules import PACKAGES

__all__ = ["SYMPTOMS", "Symptom"]


@dataclass(frozen=True, kw_only=True)
class Symptom:
    """A text that users paste, its cause and its fix."""

    name: str
    pattern: re.Pattern[str]
    cause: str
    fix: tuple[str, ...]
    """Steps: commands, and comments that begin with `#`."""
    is_consequence: bool = False
    is_general: bool = False
    """Whether the lines after it may say more, as another symptom."""


def _symptom(
    name: str, pattern: str, cause: str, *fix: str, is_consequence: bool = False, is_general: bool = False
) -> Symptom:
    return Symptom(
        name=name,
        pattern=re.compile(pattern, re.MULTILINE),
        cause=cause,
        fix=fix,
        is_consequence=is_consequence,
        is_general=is_general,
    )


_NEW_COCO_API = "pip install --upgrade --force-reinstall 'pycocotools>=2.0.11'"
_MATCHING_TORCH = "pip install --upgrade --force-reinstall 'torch>=2.11' torchvision"
_CUDA_12_BUILD = (
    "pip install --force-reinstall 'torch>=2.11,<2.15' torchvision --index-url https://download.pytorch.org/whl/cu126"
)
_CHECK_DATA = "detronome data check DATA"
_KNOWN_MODULES = "|".join(map(re.escape, PACKAGES))
_ON_CPU = "CUDA_LAUNCH_BLOCKING=1 python ...   # or on the CPU: there the message names the line and the value"
_OUR_EVALUATION = "# detronome eval needs no pycocotools: it has an evaluator of its own with the same numbers"

SYMPTOMS = (
    _symptom(
        "a message of Detronome",
        r"^.{0,60}?\berror: (?P<name>.+)\n(?:.{0,60}? where: .*\n)?.{0,60}? fix: +(?P<own_fix>.+)",
        "{name}",
        "# {own_fix}",
    ),
    # Binaries that do not fit each other.
    _symptom(
        "package built for another NumPy",
        r"\bin init (?P<name>(?!(?:xt|py)cocotools)[A-Za-z]\w{0,60})[\s\S]{0,250}?"
        r"numpy\.(?:ndarray|dtype|ufunc)(?:\.dtype)? size changed, may indicate binary incompatibility",
        "a compiled part of {package} was built against another NumPy than the one installed",
        "pip install --upgrade --force-reinstall {package}",
    ),
    _symptom(
        "built for another NumPy",
        r"numpy\.(?:ndarray|dtype|ufunc)(?:\.dtype)? size changed, may indicate binary incompatibility"
        r"|module (?:was )?compiled against (?:ABI|API) version 0x\w+ but this version of numpy is",
        "a compiled package (the traceback names it; most often pycocotools or xtcocotools) was built against another "
        "NumPy than the one installed",
        _NEW_COCO_API,
        _OUR_EVALUATION,
    ),
    _symptom(
        "torch built for NumPy 1",
        r"RuntimeError: Numpy is not available|Could not infer dtype of numpy\.\w+"
        r"|Failed to initialize NumPy: _ARRAY_API not found",
        "this torch is older than 2.3: it was built for NumPy 1 and cannot talk to NumPy 2",
        _MATCHING_TORCH,
        "pip install 'numpy<2'   # if the old torch has to stay",
    ),
    _symptom(
        "package built for NumPy 1",
        r"_ARRAY_API not found|A module that was compiled using NumPy 1\.x cannot be run in",
        "a compiled package (the traceback names it) was built for NumPy 1, and NumPy 2 is installed",
        "pip install --upgrade PACKAGE   # the one that the traceback names",
        "pip install 'numpy<2'   # where it has no newer release",
    ),
    _symptom(
        "name that NumPy has removed",
        r"module 'numpy' has no attribute '(?P<name>float|int|bool|object|str|complex|long|unicode|float_|Inf|NaN"
        r"|product|in1d|trapz|string_|unicode_)'|`np\.(?P<name_2>Inf|NaN|float_|product|string_|unicode_|in1d"
        r"|cumproduct)` was removed in the "
        r"NumPy 2\.0 release",
        "old code under a new NumPy: np.float, np.int and their like are gone since 1.24, np.Inf and its like since "
        "2.0. In detection it is nearly always an old copy of the COCO API (cocodataset/cocoapi, cocoeval.py)",
        _NEW_COCO_API,
        "python -c 'import pycocotools; print(pycocotools.__file__)'   # a copy of yours hides the installed one",
        "pip install 'numpy<1.24'   # only where the old code cannot be replaced",
    ),
    _symptom(
        "old COCO API: float as a count",
        r"'numpy\.float64' object cannot be interpreted as an integer"
        r"|object of type <class 'numpy\.float64'> cannot be safely interpreted as an integer",
        "np.linspace gets a float as its count in cocoeval.py: a COCO API from before 2020",
        _NEW_COCO_API,
        _OUR_EVALUATION,
    ),
    _symptom(
        "old COCO API: Python 2",
        r"NameError: name 'unicode' is not defined",
        "code for Python 2, in loadRes of an old copy of the COCO API",
        _NEW_COCO_API,
    ),
    _symptom(
        "torchvision does not fit torch",
        r"operator torchvision::\w+ does not exist|Couldn't load custom C\+\+ ops"
        r"|No such operator torchvision::\w+|'torchvision' has no attribute 'extension'"
        r"|PyTorch and torchvision were compiled with different CUDA",
        "torch and torchvision are not a pair: different releases, or one of them built for CPU and the other for CUDA",
        _MATCHING_TORCH,
        "detronome doctor   # names both versions, and the pair that fits",
    ),
    _symptom(
        "torchvision without CUDA",
        r"Could not run 'torchvision::\w+' with arguments from the 'CUDA' backend",
        "torchvision is the CPU build and torch the CUDA build",
        _MATCHING_TORCH,
    ),
    _symptom(
        "NVIDIA libraries mixed",
        r"undefined symbol: (?P<name>__nvJitLink\w*|nccl\w+|cudnn\w+|cublas\w+|cusparse\w+)",
        "torch loads an NVIDIA library of another release ({name} is missing in it): LD_LIBRARY_PATH names a CUDA "
        "installation, or the nvidia-* packages were upgraded apart from torch",
        "unset LD_LIBRARY_PATH",
        "pip install --force-reinstall torch   # brings back the nvidia-* packages that it was built with",
    ),
    _symptom(
        "MKL too new for this torch",
        r"undefined symbol: iJIT_NotifyEvent",
        "this conda build of torch needs an MKL older than 2024.1",
        "conda install 'mkl<2024.1'",
    ),
    _symptom(
        "torchvision or torchaudio built for another torch",
        r"(?P<name>torchvision|torchaudio)[/\\]\S{1,100}:\s{1,9}undefined symbol: _Z",
        "torch and {name} are not a pair: the compiled part of {name} calls what this torch does not have",
        _MATCHING_TORCH,
        "pip install --upgrade --force-reinstall --no-deps torchaudio   # where it is installed",
    ),
    _symptom(
        "extension built for another torch",
        r"undefined symbol: (?P<name>\w+)",
        "a compiled extension (the file before the words) was built against another torch or another C++ ABI",
        "pip install --force-reinstall --no-deps --no-build-isolation --no-cache-dir --no-binary PACKAGE PACKAGE"
        "   # build it again for this torch",
        "detronome doctor",
    ),
    _symptom(
        "OpenCV without its system libraries",
        r"lib(?:GL|gthread-2\.0|glib-2\.0|SM|Xext|Xrender|xcb[\w-]{0,40}|X11)\.so\.\d+: cannot open shared object file",
        "opencv-python draws windows and needs graphics libraries that servers and containers lack",
        "pip uninstall -y opencv-python opencv-contrib-python && pip install --force-reinstall opencv-python-headless",
        "sudo apt-get install -y libgl1 libglib2.0-0   # where windows are wanted",
    ),
    _symptom(
        "C++ library too old",
        r"version [`'](?P<name>(?:GLIBCXX|CXXABI)_[\d.]+)' not found",
        "a compiled package needs a newer libstdc++ ({name}) than the one that is loaded first; in conda the system's "
        "hides the newer one of the environment",
        'conda install -c conda-forge libstdcxx-ng && export LD_LIBRARY_PATH="$CONDA_PREFIX/lib"',
        "sudo apt-get install -y libstdc++6   # outside conda",
    ),
    _symptom(
        "system too old for this wheel",
        r"version [`'](?P<name>GLIBC_[\d.]+)' not found",
        "the package was built for a newer Linux: it needs {name} of the C library, which cannot be upgraded alone",
        "# run in a container of a newer Linux (glibc 2.28 or later: Debian 10, Ubuntu 20.04, RHEL 8)",
    ),
    _symptom(
        "ONNX Runtime finds no CUDA",
        r"Failed to load library \S{0,300}libonnxruntime_providers_\w{1,40}\.so with error"
        r"|Failed to create CUDAExecutionProvider",
        "ONNX Runtime's GPU build does not find the CUDA and cuDNN that it was built for, and computes on the CPU: the "
        "line names the library, whose number is the release of CUDA",
        "pip install --upgrade --force-reinstall 'onnxruntime-gpu[cuda,cudnn]'",
        "import torch   # before `import onnxruntime`: it then takes torch's libraries, if they are of the same CUDA",
    ),
    _symptom(
        "TensorRT's libraries missing",
        r"libnvinfer\w{0,40}\.so[.\d]*: cannot open shared object file|Unable to load library: libnvinfer",
        "TensorRT's own libraries are not installed, or only some of them",
        "pip install --upgrade --force-reinstall 'detronome[tensorrt]'",
        "unset LD_LIBRARY_PATH   # if it names another TensorRT",
    ),
    _symptom(
        "OpenVINO finds no such device",
        r"libopenvino_intel_(?:gpu|npu)_plugin\.so\W|libOpenCL\.so\.1: cannot open shared object file"
        r"|Device with \"\w+\" name is not registered in the OpenVINO Runtime",
        "there is no such device (GPU, NPU) for OpenVINO, or its driver is not installed",
        "python -c 'import openvino; print(openvino.Core().available_devices)'   # what there is; CPU always is",
        "sudo apt-get install -y intel-opencl-icd   # for Intel's GPUs",
    ),
    _symptom(
        "CUDA library missing",
        r"(?<!dlerror: )(?P<name>lib(?:cudnn\w{0,40}|cublas\w{0,40}|cudart|nccl|cusparse\w{0,40}|nvrtc|cufft|curand"
        r"|cusolver|nvJitLink|cupti|nvToolsExt)(?:\.so[.\d]*)?): cannot open shared object file"
        r"|Could not load library (?P<name_2>libcudnn\w{0,40})"
        r"|Unable to load any of \{(?P<name_3>libcudnn\S*)",
        "torch does not find a library of CUDA ({name}): its nvidia-* packages are missing or incomplete",
        "pip install --force-reinstall torch torchvision",
        "unset LD_LIBRARY_PATH   # if it names another CUDA",
    ),
    _symptom(
        "another cuDNN is loaded",
        r"cuDNN version incompatibility|CUDNN_STATUS_(?:SUBLIBRARY_)?VERSION_MISMATCH"
        r"|CUDNN_STATUS_SUBLIBRARY_LOADING_FAILED",
        "a cuDNN of another release is found before the one that torch brings, most often through LD_LIBRARY_PATH",
        "unset LD_LIBRARY_PATH",
        "pip install --force-reinstall torch   # brings back the nvidia-cudnn package that it was built with",
    ),
    _symptom(
        "GPU newer than this torch",
        r"with CUDA capability sm_(?:8\d|9\d|1\d\d)\w? is not compatible with the current PyTorch installation",
        "this torch is older than the GPU and holds no code for it",
        "pip install --upgrade torch torchvision",
    ),
    _symptom(
        "GPU not supported by this torch",
        r"no kernel image is available for execution on the device"
        r"|with CUDA capability sm_\d+ is not compatible with the current PyTorch installation",
        "this torch holds no code for this GPU: builds for CUDA 13 begin with Turing (sm_75), and a GPU newer than the "
        "build is missing too",
        f"{_CUDA_12_BUILD}   # GPUs older than Turing",
        "pip install --upgrade torch torchvision   # a GPU newer than this torch",
    ),
    _symptom(
        "driver too old",
        r"NVIDIA driver on your system is too old|CUDA driver version is insufficient for CUDA runtime version"
        r"|CUDA initialization failure with error:? 35\b"
        r"|forward compatibility was attempted on non supported HW",
        "the NVIDIA driver is older than the CUDA that torch was built for: CUDA 13 asks for driver 580 or later, CUDA "
        "12 for 525",
        "# update the NVIDIA driver to 580 or later and restart the machine, or take a build for CUDA 12:",
        _CUDA_12_BUILD,
    ),
    _symptom(
        "driver updated without a restart",
        r"Driver/library version mismatch|NVML_ERROR_LIB_RM_VERSION_MISMATCH",
        "the NVIDIA driver was updated while its old kernel module was loaded",
        "sudo reboot",
    ),
    _symptom(
        "GPU lost to the container",
        r"Failed to initialize NVML: Unknown Error",
        "the container has lost its right to the GPU, as happens when systemd reloads its control groups",
        "docker restart CONTAINER",
        "docker run --gpus all --device /dev/nvidia0 --device /dev/nvidiactl --device /dev/nvidia-uvm ...   # for good",
    ),
    _symptom(
        "no NVIDIA driver",
        r"Found no NVIDIA driver on your system|libcuda\.so\.1: cannot open shared object file",
        "this machine or container has no NVIDIA driver",
        "docker run --gpus all ...   # in a container",
        "detronome train DATA --set train.device=cpu",
    ),
    _symptom(
        "torch without CUDA",
        r"Torch not compiled with CUDA enabled",
        "the installed torch is a CPU build",
        "pip uninstall -y torch torchvision && pip install torch torchvision",
    ),
    _symptom(
        "no such GPU",
        r"CUDA error: invalid device ordinal|invalid device ordinal",
        "a process asks for a GPU that is not there: more processes than GPUs, or CUDA_VISIBLE_DEVICES hides some",
        "nvidia-smi -L && echo $CUDA_VISIBLE_DEVICES",
        "torchrun --nproc-per-node=NUMBER_OF_GPUS -m detronome train DATA --out RUN",
    ),
    _symptom(
        "GPU taken",
        r"CUDA-capable device\(s\) is/are busy or unavailable|all CUDA-capable devices are busy or unavailable",
        "another process holds the GPU in exclusive mode, or an old process of yours has not ended",
        "nvidia-smi   # which processes hold it",
    ),
    _symptom(
        "GPU hardware error",
        r"uncorrectable ECC error|GPU has fallen off the bus|NVRM: Xid \(|GPU is lost",
        "the GPU, its memory or its power fails: this is hardware, not software",
        "sudo nvidia-smi -q -d ECC,PAGE_RETIREMENT && sudo dmesg | grep -i xid",
        "# restart the machine; if it comes back, replace the GPU. detronome train --resume RUN goes on elsewhere",
    ),
    _symptom(
        "processor too old for this wheel",
        r"Illegal instruction(?: \(core dumped\))?|was ended by SIGILL",
        "a compiled package uses instructions (AVX, AVX2) that this processor or virtual machine lacks",
        "grep -m1 -o 'avx[^ ]*' /proc/cpuinfo   # nothing: choose another kind of machine, or another CPU type of the "
        "VM",
    ),
    _symptom(
        "two OpenMP runtimes",
        r"OMP: Error #15: Initializing libi?omp|MKL_THREADING_LAYER=INTEL is incompatible with libgomp",
        "two packages bring an OpenMP runtime each, most often conda's MKL beside pip's torch",
        "export MKL_THREADING_LAYER=GNU",
        "# better: an environment with all packages from pip, or all from conda",
    ),
    _symptom(
        "NumPy is damaged",
        r"Importing the numpy C-extensions failed|numpy\.core\.multiarray failed to import"
        r"|No module named 'numpy\._core|Error importing numpy: you should not try to import numpy from",
        "NumPy's files are incomplete or of two releases, or a folder named numpy lies in the working folder; a pickle "
        "of NumPy 2 under NumPy 1 says numpy._core is missing",
        "pip install --upgrade --force-reinstall numpy",
    ),
    # Modules that are missing or hidden.
    _symptom(
        "a file hides a package",
        r"partially initialized module '(?P<name>[\w.]+)'",
        "a file or folder of yours is named like the package {name} and is imported in its place",
        "python -c 'import {name}; print({name}.__file__)'   # rename that file, and remove its __pycache__",
    ),
    _symptom(
        "code for torch 1",
        r"No module named 'torch\._six'|cannot import name '\w+' from 'torch\._six'"
        r"|cannot import name '_new_empty_tensor'|cannot import name '_NewEmptyTensorOp'"
        r"|cannot import name '_output_size' from 'torchvision",
        "code from before 2021 (the original DETR's util/misc.py, old Deformable DETR) under a new torch or "
        "torchvision; float(torchvision.__version__[:3]) < 0.7 takes 0.10 and later for 0.1",
        "detronome eval detr-r50 DATA   # the same networks and official weights, on today's torch",
    ),
    _symptom(
        "deformable attention not compiled",
        r"No module named 'MultiScaleDeformableAttention'|name 'MultiScaleDeformableAttention' is not defined"
        r"|cannot import name '_C' from '\w+'|THC/THC\.h: No such file|identifier \"AT_CHECK\" is undefined",
        "the original Deformable DETR needs a CUDA operator of its own, which was not compiled or does not compile "
        "with this torch",
        "detronome train DATA --model rtdetr-v2-s   # deformable attention in plain torch: nothing to compile",
    ),
    _symptom(
        "CUDA toolkit missing or other",
        r"CUDA_HOME environment variable is not set"
        r"|The detected CUDA version \([\d.]+\) mismatches the version that was used to compile",
        "a package compiles CUDA code and finds no CUDA toolkit, or one of another major version than torch's",
        "python -c 'import torch; print(torch.version.cuda)'   # install this toolkit, then: export "
        "CUDA_HOME=/usr/local/cuda-VERSION",
        "# Detronome compiles nothing at installation",
    ),
    _symptom(
        "Python's headers missing",
        r"Python\.h: No such file or directory",
        "something is compiled (a package, or torch.compile's code) and Python's headers are not installed",
        "sudo apt-get install -y python3-dev build-essential",
        "detronome train DATA --set train.compile=false",
    ),
    _symptom(
        "no compiler for torch.compile",
        r"No working C\+\+ compiler found|InvalidCxxCompiler|Failed to find C compiler"
        r"|Cannot find a working triton installation",
        "torch.compile generates code and finds no compiler (on a GPU: Triton, with a C compiler)",
        "sudo apt-get install -y build-essential",
        "detronome train DATA --set train.compile=false",
    ),
    _symptom(
        "compiled again and again",
        r"torch\._dynamo hit config\.(?:recompile_limit|cache_size_limit)",
        "torch.compile meets a new shape in each step and gives up after some: the images have many sizes",
        "# Detronome pads images to six shapes for this reason; in your own code mark sizes with "
        "torch._dynamo.mark_dynamic",
    ),
    _symptom(
        "package is built from source",
        r"Microsoft Visual C\+\+ 14\.\d or greater is required|Failed (?:to build|building wheel for) pycocotools"
        r"|Failed to build `?pycocotools|pycocotools/_mask\.(?:pyx|c): (?:No such file|.{0,200}error)"
        r"|error: command '?\S{0,200}(?:gcc|g\+\+|cc|cl\.exe|clang|nvcc)\S{0,100}'? failed",
        "pip finds no ready wheel for this Python and compiles the package, which needs a compiler and its build "
        "packages; pycocotools has wheels since 2.0.8, for Python 3.14 since 2.0.11",
        "pip install --upgrade pip && pip install --only-binary :all: 'pycocotools>=2.0.11'",
        _OUR_EVALUATION,
        is_general=True,
    ),
    _symptom(
        "setuptools without old parts",
        r"No module named '(?P<name>distutils|pkg_resources|setuptools\.command\.test)\b",
        "old code needs {name}: distutils is gone since Python 3.12, pkg_resources since setuptools 82",
        "pip install 'setuptools<81'",
        "pip install --upgrade PACKAGE   # better: a release of it that does without",
    ),
    _symptom(
        "Python built without a library",
        r"No module named '(?P<name>_lzma|_ctypes|_bz2|_sqlite3|_ssl|_tkinter)'",
        "this Python was compiled without the headers that {name} needs",
        "uv python install 3.12 && uv venv --python 3.12   # a complete Python",
        "sudo apt-get install -y liblzma-dev libffi-dev libbz2-dev libsqlite3-dev libssl-dev   # then build Python "
        "again",
    ),
    _symptom(
        "COCO API not installed",
        r"No module named 'pycocotools'",
        "pycocotools is not installed; Detronome does not need it",
        "pip install 'pycocotools>=2.0.11'",
        _OUR_EVALUATION,
    ),
    _symptom(
        "PIL name removed",
        r"module 'PIL\.Image' has no attribute '(?P<name>ANTIALIAS|LINEAR|CUBIC)'",
        "old code under Pillow 10 or later, where Image.{name} has another name (LANCZOS, BILINEAR, BICUBIC)",
        "pip install --upgrade PACKAGE   # the one that the traceback names; sed -i s/ANTIALIAS/LANCZOS/ in code of "
        "yours",
    ),
    _symptom(
        "protobuf too new",
        r"Descriptors cannot (?:not )?be created directly",
        "a package (most often an old TensorBoard or onnx) was generated for protobuf 3",
        "pip install --upgrade tensorboard onnx protobuf",
    ),
    _symptom(
        "no wheel for this Python",
        r"No matching distribution found for (?P<name>torch\w*|onnxruntime\S*|pycocotools)"
        r"|is not a supported wheel on this platform|because torch\S* has no wheels with a matching",
        "there is no release for this Python, system or processor: torch has wheels for Python 3.11 to 3.14, 64 bit, "
        "on Linux with glibc (not Alpine), macOS on ARM and Windows",
        "uv venv --python 3.12 && uv pip install detronome",
    ),
    _symptom(
        "system Python is protected",
        r"error: externally-managed-environment",
        "the system's own Python takes no packages from pip",
        "python3 -m venv env && . env/bin/activate && pip install detronome",
    ),
    _symptom(
        "installed packages do not go together",
        r"(?<![\w.-])(?P<name>\w[\w.-]{0,79}) \S{1,80} requires (?P<asked>\w[^\s;]{0,199}), but you have "
        r"(?P<other>[\w.-]{1,80}) \S{1,80} which is incompatible",
        "{name} asks for {asked}, and the installation that has just run brought another {other}: pip changes what it "
        "is told to, whatever others ask for",
        "pip install --upgrade {name} {asked}   # has {name} no newer release that takes it, {other} goes back",
        "detronome doctor --updates   # what each package allows",
    ),
    _symptom(
        "NumPy too new for Numba",
        r"Numba needs NumPy (?P<name>[\d.]+) or less",
        "this Numba knows NumPy up to {name}, and a newer one is installed",
        "pip install --upgrade numba",
        "pip install 'numpy=={name}.*'   # where there is no newer Numba",
    ),
    _symptom(
        "requirements contradict each other",
        r"ResolutionImpossible|No solution found when resolving dependencies|conflicting dependencies",
        "two packages ask for ranges of a third that exclude each other",
        "# give each its own environment: uv venv env-2; known fighters: nncf (numpy<2.5), datumaro (one numpy), "
        "trackio (pillow<13)",
    ),
    # Checkpoints.
    _symptom(
        "checkpoint holds more than tensors",
        r"Weights only load failed|Unsupported (?:global|class): GLOBAL"
        r"|weights_only\W{1,5}True.{0,200}argparse\.Namespace",
        "torch.load refuses objects since 2.6, and this checkpoint has some: the official DETR files hold the "
        "training's arguments (argparse.Namespace)",
        "detronome eval FILE.pth DATA   # Detronome reads the weights of such files without running their code",
        "torch.load(FILE, weights_only=False)   # in your own code, and only for files that you trust: it runs what "
        "they say",
    ),
    _symptom(
        "not a checkpoint: a pointer or a page",
        r"invalid load key, '[v<]'",
        "the file is text: a Git LFS pointer (v) or a web page (<) was saved in place of the weights",
        "head -c 200 FILE   # then: git lfs pull, or download it again",
    ),
    _symptom(
        "checkpoint damaged",
        r"failed finding central directory|invalid load key|PytorchStreamReader failed"
        r"|unexpected EOF, expected \d+ more bytes|EOFError: Ran out of input|invalid magic number; corrupt file"
        r"|Error while deserializing header|file in archive is not in a subdirectory",
        "the file is incomplete or damaged: a download or a save that was cut off, or a full disk",
        "sha256sum FILE   # compare, and download it again",
        "detronome train --resume RUN   # Detronome's own checkpoints are verified; the newest whole one is taken",
    ),
    _symptom(
        "other number of classes",
        r"size mismatch for \S*(?:class_embed|cls_head|score_head|class_labels_classifier|cls_embed|fc_cls)\S*",
        "the checkpoint was trained for another number of classes than the model has (COCO's DETR: 91 and one for no "
        "object)",
        "detronome train DATA --model FILE   # takes the weights and gives the model a head for your classes",
    ),
    _symptom(
        "other number of queries",
        r"size mismatch for \S*(?:query_embed|query_feat|refpoint_embed|tgt_embed)\S*",
        "the checkpoint was trained with another number of queries, or with several groups of them",
        "detronome train DATA --model FILE   # takes the network as the checkpoint has it",
    ),
    _symptom(
        "weights of another network",
        r"Error\(s\) in loading state_dict for|Missing key\(s\) in state_dict|Unexpected key\(s\) in state_dict"
        r"|size mismatch for \S+",
        "the checkpoint belongs to another network: other depth, width or family; names that begin with `module.` come "
        "from a model wrapped in DDP",
        "detronome eval FILE DATA   # recognises the published families by their weights, and says what does not fit",
        is_general=True,
    ),
    _symptom(
        "optimizer of another model",
        r"loaded state dict (?:contains a parameter group that doesn't match"
        r"|has a different number of parameter groups)",
        "the optimizer's state was saved for other parameter groups: the model or what is frozen has changed",
        "detronome train DATA --model RUN   # a new run that begins with these weights",
    ),
    # Losses, boxes and classes.
    _symptom(
        "boxes are not numbers or turned over",
        r"assert \(boxes[12]\[:, 2:\] >= boxes[12]\[:, :2\]\)\.all\(\)",
        "generalized_box_iou got boxes that are NaN or have a negative side. boxes1 are the model's: NaN from a rate "
        "that is too high, from fp16, or from bad targets; boxes2 are the annotations': [left, top, right, bottom] "
        "read as [left, top, width, height], or boxes without area",
        f"{_CHECK_DATA}   # finds turned, empty and wrongly read boxes, with their ids",
        "detronome train DATA --set optim.lr=1e-5 train.precision=fp32   # Detronome skips such a step and names "
        "module and images",
    ),
    _symptom(
        "matching costs are not numbers",
        r"matrix contains invalid numeric entries|cost matrix is infeasible",
        "the Hungarian matcher got NaN or infinite costs: the model's outputs are not finite (a rate that is too high, "
        "fp16 overflow in the focal cost), or a target box is",
        f"{_CHECK_DATA}",
        "detronome train DATA --set optim.lr=1e-5 train.precision=fp32   # Detronome skips such a step and names "
        "module and images",
    ),
    _symptom(
        "loss is not finite",
        r"Loss is (?:nan|inf|-inf), stopping training|loss is (?:nan|not finite)\b"
        r"|returned nan values in its \d+th output",
        "training has diverged: a rate that is too high for the batch, fp16 overflow, or bad boxes",
        f"{_CHECK_DATA}",
        "detronome train DATA --set optim.lr=1e-5 train.precision=fp32",
    ),
    _symptom(
        "class or index out of range, on the GPU",
        r"Assertion `(?:t >= 0 && t < n_classes|target_val >= zero && target_val <= one"
        r"|-?sizes\[i\] <= index && index < sizes\[i\].{0,100}?|idx_dim >= 0 && idx_dim < index_size.*?"
        r"|srcIndex < srcSelectDimSize|ind >= 0 && ind < ind_dim_size.{0,100}?|input_val >= zero && input_val <= one)"
        r"|(?:ScatterGatherKernel|IndexKernel|IndexKernelUtils|Indexing|Loss|NLLLoss2d)\.cu:\d+.{0,300}?[Aa]ssert",
        "an index is out of range on the GPU: nearly always a category id that is not below the number of classes "
        "(COCO's ids go to 90 with gaps: DETR wants the highest id + 1), or scores that are NaN",
        f"{_CHECK_DATA}   # lists the category ids; Detronome numbers classes from 0 itself, whatever the ids",
        _ON_CPU,
    ),
    _symptom(
        "class out of range",
        r"IndexError: Target \d+ is out of bounds|Class values must be smaller than num_classes"
        r"|index \d+ is out of bounds for dimension \d+ with size (?:80|81|90|91|92)\b",
        "a category id is not below the number of classes; COCO's ids go to 90 with gaps",
        f"{_CHECK_DATA}   # lists the category ids; Detronome numbers classes from 0 itself, whatever the ids",
    ),
    _symptom(
        "number too large for half precision",
        r"value cannot be converted to type (?:at::Half|c10::Half|at::BFloat16) without overflow",
        "a constant such as -1e9, meant as minus infinity, does not fit into 16 bits",
        "detronome train DATA --set train.precision=bf16   # or fp32",
    ),
    _symptom(
        "precisions mixed",
        r"Index put requires the source and destination dtypes match"
        r"|expected scalar type (?:Half|BFloat16|Float) but found"
        r"|(?:mat1 and mat2 must|expected m1 and m2 to) have the same dtype"
        r"|Input type \(\S+\) and (?:bias|weight) type \(\S+\) should be the same",
        "16 and 32 bit tensors meet outside autocast: a model converted by .half() with inputs that were not, or code "
        "that autocast does not cover",
        "detronome train DATA --set train.precision=fp32",
    ),
    _symptom(
        "empty tensors cannot be resized",
        r"Input and output sizes should be greater than 0, but got|non-empty 3D or 4D input tensor but got",
        "an image without objects or predictions reaches code that resizes masks",
        "pip install --upgrade transformers   # or what the traceback names; Detronome handles empty images",
    ),
    # COCO files and images.
    _symptom(
        "results are of other images",
        r"Results do not correspond to current coco set",
        "the results hold image ids that the annotation file lacks: another split, or ids as text",
        "detronome eval --detections RESULTS.json --annotations THE_SPLIT.json   # names the ids that do not fit",
    ),
    _symptom(
        "annotation file has the wrong shape",
        r"annotation file format <class '\w+'> not supported"
        r"|coco(?:(?!coco)[\s\S]){0,2000}(?P<at>TypeError: (?:string|list) indices must be integers)",
        "the annotation file is not an object with images, annotations and categories: a list of results, or another "
        "format",
        f"{_CHECK_DATA}   # or the file itself: detronome data check FILE.json",
    ),
    _symptom(
        "masks or boxes of the wrong kind",
        r"Exception: input type is not supported\.|TypeError: Argument 'bb' has incorrect type",
        "pycocotools got a segmentation or boxes in a shape that it does not know: numbers as text, or empty polygons",
        f"{_CHECK_DATA}",
    ),
    _symptom(
        "field of an annotation is missing",
        r"KeyError: '(?P<name>area|iscrowd|segmentation|bbox|category_id|image_id|file_name|info|licenses)'",
        "an annotation file lacks '{name}', which the reading code demands",
        f"{_CHECK_DATA} --fix FOLDER   # names what is missing; the repaired copies have area and iscrowd",
    ),
    _symptom(
        "JSON cannot be read",
        r"JSONDecodeError: |orjson\.JSONDecodeError|msgspec\.DecodeError",
        "a JSON file is empty, cut off, or something else: a web page, a Git LFS pointer, an archive",
        "head -c 200 FILE   # then download it again; detronome data check FILE names the place",
    ),
    _symptom(
        "image file is damaged",
        r"cannot identify image file|image file is truncated|broken data stream when reading image file"
        r"|Premature end of JPEG file|Corrupt JPEG data|cannot read image data",
        "an image is damaged, empty or no image",
        f"{_CHECK_DATA}   # lists every bad image; detronome train replaces them and goes on",
    ),
    _symptom(
        "video is damaged",
        r"Invalid data found when processing input|moov atom not found|partial file\b.{0,200}mp4",
        "the file is no video, or its end is missing, as after a recording that was cut off or a copy that is not done",
        "ffprobe FILE   # what is in it",
        "ffmpeg -i FILE -c copy WHOLE.mp4   # writes anew what can be read",
    ),
    _symptom(
        "no such video codec",
        r"UnknownCodecError: \S+|av\.error\.(?:Decoder|Encoder)NotFoundError|Unknown (?:en|de)coder '\w+'"
        r"|[Cc]ould not find (?:en|de)coder for|Could not find codec parameters",
        "the FFmpeg that PyAV or OpenCV brings has no such codec, or the header that names it is damaged",
        "pip install --upgrade --force-reinstall --only-binary :all: av   # its wheels bring the usual codecs",
        "ffmpeg -i FILE -c:v libx264 READABLE.mp4",
    ),
    _symptom(
        "image too large",
        r"DecompressionBomb(?:Error|Warning)|exceeds limit of \d+ pixels, could be decompression bomb",
        "an image has more pixels than Pillow's limit against decompression bombs",
        f"{_CHECK_DATA}   # names it; cut large images into tiles",
    ),
    _symptom(
        "data file not found",
        r"FileNotFoundError: \[Errno 2\] No such file or directory: "
        r"'(?P<name>[^']*\.(?:jpe?g|png|json|webp|bmp|tiff?))'",
        "{name} is not where the code looks for it: another folder, another split, or names that differ in case",
        f"{_CHECK_DATA}   # names every image that is missing",
    ),
    _symptom(
        "model or video not found",
        r"(?:No such file or directory: |Could not open the file: )['\"]?"
        r"(?P<name>[^'\"\n]{1,300}?\.(?:onnx|xml|engine|plan|pth?|pt2|safetensors|mp4|avi|mov|mkv|webm))\b"
        r"|Load model (?P<name_2>\S+) failed\. File doesn't exist",
        "{name} is not there: a relative path from another folder, or a step before this one that has not written it",
        "ls -l {name}",
    ),
    # Memory, disks and limits of the machine.
    _symptom(
        "GPU memory ran out",
        r"(?:CUDA|HIP|XPU) out of memory\. (?:Tried to allocate|Allocation was)"
        r"|(?<!except )torch(?:\.cuda)?\.OutOfMemoryError"
        r"|MPS backend out of memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED"
        r"|Unable to find a valid cuDNN algorithm to run convolution"
        r"|unable to find an engine to execute this computation",
        "the GPU's memory ran out: the largest images with the most objects decide, so it may come late, or first in "
        "evaluation; other programs on the GPU count too",
        "detronome plan DATA --model MODEL   # what fits, by cause, before the run",
        "detronome train DATA --set batch.micro_batch_size=1   # the same gradient with less memory; or "
        "train.checkpoint_activations=true",
        "nvidia-smi   # who else holds memory",
    ),
    _symptom(
        "cuBLAS cannot start",
        r"CUBLAS_STATUS_NOT_INITIALIZED|CUDNN_STATUS_NOT_INITIALIZED",
        "cuBLAS or cuDNN could not start: most often the GPU's memory is full, else an index error came before it",
        "nvidia-smi   # is memory free? else:",
        _ON_CPU,
    ),
    _symptom(
        "shared memory too small",
        r"\bBus error\b|the worker was ended by SIGBUS|Unexpected bus error encountered in worker"
        r"|insufficient shared memory \(shm\)"
        r"|unable to (?:allocate shared memory|write to file </torch_|mmap \d+ bytes from file </torch_"
        r"|resize file </torch_|open shared memory object </torch_(?![\s\S]{0,120}Too many open files))"
        r"|No space left on device: '?/dev/shm"
        r"|/dev/shm/\S{1,200}'?: No space left",
        "/dev/shm is too small for the batches that loader workers hand over; containers have 64 MB by default",
        "docker run --shm-size=8g ...   # or --ipc=host; in Kubernetes an emptyDir with medium: Memory at /dev/shm",
        "detronome train DATA --set data.workers=0   # slower, without shared memory",
    ),
    _symptom(
        "killed for its memory",
        r"is killed by signal: Killed|Out of memory: Killed process|oom[-_]kill(?!\w{0,20}[\s:=]{1,20}0\b)"
        r"|OOMKilled(?!\W{1,4}false)|was ended by SIGKILL|(?:^|\n)Killed(?:\n|$)|: line \d{1,9}: +\d{1,9} Killed\b",
        "main memory ran out and the system killed a process: too many workers, data sets held as Python objects, or a "
        "container's limit",
        "detronome train DATA --set data.workers=2   # its annotations are memory-mapped: 3.5 MB a worker",
        "detronome doctor   # shows the limit of the control group",
    ),
    _symptom(
        "tensors on different devices",
        r"Expected all tensors to be on the same device",
        "one part of a computation lies on the GPU and another on the processor: a batch, targets or new tensors that "
        "were not moved",
        "# move them: targets = [{name: value.to(device) for name, value in target.items()} for target in targets]",
    ),
    _symptom(
        "library that transformers asks for is missing",
        r"requires the (?P<name>[\w-]{1,40}) library but it was not found in your environment",
        "a model of transformers is built with '{name}', which is not installed",
        "pip install {name}",
    ),
    _symptom(
        "main memory ran out",
        r"DefaultCPUAllocator: (?:can't|not enough) (?:allocate )?memory|numpy\S{0,40}ArrayMemoryError"
        r"|Unable to allocate [\d.]+ [KMGT]iB"
        r"|^MemoryError|\[Errno 12\] Cannot allocate memory|std::bad_alloc",
        "main memory ran out",
        "detronome doctor   # shows how much there is, within the limit of the control group",
        "detronome train DATA --set data.workers=2 batch.micro_batch_size=1",
    ),
    _symptom(
        "too many open files",
        r"Too many open files|received 0 items of ancdata",
        "the limit of open files is too low for the tensors that loader workers share through file descriptors",
        "ulimit -n 65536   # in the shell that starts the run; in Docker: --ulimit nofile=65536",
        "torch.multiprocessing.set_sharing_strategy('file_system')   # in your own code, where the limit cannot be "
        "raised",
    ),
    _symptom(
        "too many threads or processes",
        r"can't start new thread|libgomp: Thread creation failed|pthread_create failed for thread"
        r"|BlockingIOError: \[Errno 11\] Resource temporarily unavailable"
        r"|fork: retry: Resource temporarily unavailable",
        "the limit of processes and threads is reached (ulimit -u, or pids of a container)",
        "export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1",
        "ulimit -u 65536   # in Docker: --pids-limit -1",
    ),
    _symptom(
        "disk full",
        r"No space left on device|Disk quota exceeded|PytorchStreamWriter failed writing file|errno 28\b"
        r"|\[Errno (?:28|122)\]",
        "the disk, or your share of it, is full",
        "df -h . && du -xh --max-depth=1 . | sort -h | tail",
        "detronome data cache --clear   # frees Detronome's cache, which can always be made again",
    ),
    _symptom(
        "folder cannot be written",
        r"Read-only file system|PermissionError: \[Errno 13\]",
        "a folder or file cannot be written by this user: often a mounted data folder, or files made by root in a "
        "container",
        "detronome train DATA --out FOLDER_OF_YOURS",
        "export DETRONOME_CACHE=FOLDER_OF_YOURS",
    ),
    _symptom(
        "network disk lost a file",
        r"Stale (?:NFS )?file handle|\[Errno (?:116|5)\]|Input/output error",
        "the disk fails, or a network disk was remounted or its file replaced",
        "sudo dmesg | tail -50",
        "detronome train --resume RUN",
    ),
    # Worker processes.
    _symptom(
        "main module is not guarded",
        r"before the current process has finished its bootstrapping phase|freeze_support\(\)",
        "processes are started by spawn or forkserver (macOS, Windows, Python 3.14), which import your script: what "
        "starts training has to stand behind a guard",
        "# in your script:  if __name__ == '__main__': main()",
    ),
    _symptom(
        "object cannot go to a worker",
        r"cannot pickle '[^']+' object|[Cc]an't pickle|Can't get (?:local object|attribute) '[^']+'",
        "the data set, its transforms or a function cannot be sent to a worker: lambdas, open files, locks, and "
        "classes inside functions cannot. Python 3.14 starts workers by forkserver, which sends what fork only copied",
        "# move the function to the top of a module, and open files in the worker",
        "detronome train DATA --set data.workers=0   # one process, to go on meanwhile",
    ),
    _symptom(
        "CUDA started before fork",
        r"Cannot re-initialize CUDA in forked subprocess",
        "the main process used CUDA before it forked workers that use it too",
        "# give workers CPU tensors only, or: torch.multiprocessing.set_start_method('spawn')",
    ),
    _symptom(
        "worker takes too long",
        r"DataLoader timed out after \d+ seconds",
        "a loader worker hangs or is slow: a network disk, a lock inherited through fork (OpenCV's threads), too few "
        "processors",
        "detronome profile DATA --model nano   # says what a step waits for",
        "cv2.setNumThreads(0)   # in your own code, in each worker",
    ),
    _symptom(
        "worker crashed",
        r"is killed by signal: (?:Segmentation fault|Aborted)",
        "a compiled library crashed in a loader worker: two OpenCVs, a library that does not survive fork, a damaged "
        "image",
        "detronome doctor",
        f"{_CHECK_DATA}",
    ),
    # Several processes and machines.
    _symptom(
        "parameters without gradient",
        r"Expected to have finished reduction in the prior iteration before starting a new one"
        r"|Parameter indices which did not receive grad|Parameters which did not receive grad for rank",
        "DDP waits for gradients of parameters that took no part in the loss: a head that an image without objects "
        "leaves out, or a frozen part",
        "DistributedDataParallel(model, find_unused_parameters=True)   # in your own code; slower",
        "torchrun --nproc-per-node=NUMBER_OF_GPUS -m detronome train DATA --out RUN   # takes ranks without objects as "
        "they are",
    ),
    _symptom(
        "parameter used twice under DDP",
        r"Expected to mark a variable ready only once",
        "activation checkpointing or a shared layer lets a parameter's gradient come twice under DDP",
        "DistributedDataParallel(model, static_graph=True)   # and checkpoint(..., use_reentrant=False)",
    ),
    _symptom(
        "ranks took different ways",
        r"Detected mismatch between collectives on ranks",
        "ranks called different collectives: a branch that depends on the data, or a loss that is not computed on each "
        "rank",
        "TORCH_DISTRIBUTED_DEBUG=DETAIL torchrun ...   # names the call of each rank",
    ),
    _symptom(
        "two ranks on one GPU",
        r"Duplicate GPU detected",
        "two processes use the same GPU: torch.cuda.set_device(local_rank) is missing, or there are more processes "
        "than GPUs",
        "torchrun --nproc-per-node=NUMBER_OF_GPUS -m detronome train DATA --out RUN",
    ),
    _symptom(
        "no network interface for ranks",
        r"no socket interface found|[Uu]nable to find (?:address|interface) for: \S+|makeDeviceForHostname"
        r"|makeDeviceForInterface|Gloo connectFullMesh failed",
        "NCCL or gloo finds no network interface, or the machine's name has no address",
        "ip -br addr   # then name the interface: export NCCL_SOCKET_IFNAME=eth0 GLOO_SOCKET_IFNAME=eth0",
        'echo "127.0.0.1 $(hostname)" | sudo tee -a /etc/hosts   # one machine whose name has no address',
    ),
    _symptom(
        "port of a server in use",
        r"error while attempting to bind on address|OSError: \[(?:Errno|WinError) (?:98|48|10048)\]",
        "another process listens on this port already, often an earlier server that was not ended",
        "ss -ltnp   # who holds it",
        "detronome serve MODEL --port 8001",
    ),
    _symptom(
        "port in use",
        r"EADDRINUSE|[Aa]ddress already in use|errno: 98\b",
        "the port is taken: another run on this machine, or an earlier one whose processes live on",
        "torchrun --standalone --nproc-per-node=8 -m detronome train DATA --out RUN   # picks a free port",
        "ss -ltnp | grep 29500   # who holds it",
    ),
    _symptom(
        "ranks do not find each other",
        r"client socket has timed out after|RendezvousTimeoutError|RendezvousConnectionError"
        r"|DistStoreError: (?:Timed out|wait timeout)"
        r"|The client socket has failed to connect to|DistNetworkError",
        "a process cannot reach the first machine: wrong MASTER_ADDR, a firewall, or not all machines have started",
        "nc -vz $MASTER_ADDR $MASTER_PORT   # from each of the other machines",
        "# docs/distributed.md has tested templates for SLURM and Kubernetes",
        is_general=True,
    ),
    _symptom(
        "not started by torchrun",
        r"environment variable (?P<name>RANK|WORLD_SIZE|MASTER_ADDR|MASTER_PORT|LOCAL_RANK) expected, but not set"
        r"|KeyError: '(?P<name_2>LOCAL_RANK|RANK|WORLD_SIZE)'|Default process group has not been initialized",
        "the script expects several ranks and was not started by torchrun",
        "torchrun --nproc-per-node=8 -m detronome train DATA --out RUN",
    ),
    _symptom(
        "NCCL failed",
        r"ncclSystemError|ncclUnhandledCudaError|ncclInternalError|ncclInvalidUsage|NCCL error in:|NCCL Error \d+",
        "NCCL could not set up or use a connection between GPUs: shared memory, network interface, peer access or "
        "driver",
        "NCCL_DEBUG=INFO torchrun ...   # the line before the error names the reason",
        "docker run --shm-size=8g --ipc=host ...   # in a container",
        "export NCCL_P2P_DISABLE=1   # if it then works: turn IOMMU (ACS) off in the BIOS",
        is_general=True,
    ),
    _symptom(
        "a rank was too late",
        r"Watchdog caught collective operation timeout|Some NCCL operations have failed or timed out"
        r"|collective operation timeout: WorkNCCL|Timed out waiting \d+ms for (?:recv|send) operation to complete",
        "ranks waited for one that did not come: it has failed (look for an earlier error on another rank), evaluates "
        "or loads alone for longer than the limit, or has another number of batches",
        "# look for the first error in the logs of all ranks: torchrun --log-dir logs --redirects 3 ...",
        "torchrun ... -m detronome train DATA --out RUN   # its report of a hang names the rank, what it did and its "
        "images",
        is_consequence=True,
    ),
    _symptom(
        "another rank died",
        r"Connection closed by peer|Connection reset by peer|Socket Timeout|ncclRemoteError|Broken pipe",
        "another process has ended; its error is the cause, and stands in its own log",
        "torchrun --log-dir logs --redirects 3 ...   # one log for each rank: look for the first error",
        is_consequence=True,
    ),
    _symptom(
        "a rank failed",
        r"torch\.distributed\.elastic\.multiprocessing\.errors\.ChildFailedError|ChildFailedError:"
        r"|failed \(exitcode: -?\d+\)",
        "torchrun says that a rank has ended; why stands above, in that rank's own words. Exit code -9 without words: "
        "the system killed it, most often for its memory",
        "torchrun --log-dir logs --redirects 3 ...   # one log for each rank",
        is_consequence=True,
    ),
    # Consequences, and what says little.
    _symptom(
        "illegal access on the GPU",
        r"an illegal memory access was encountered|unspecified launch failure|CUBLAS_STATUS_EXECUTION_FAILED"
        r"|CUDNN_STATUS_(?:EXECUTION_FAILED|INTERNAL_ERROR|MAPPING_ERROR)",
        "a GPU kernel failed; the line that is named comes later than the fault. Most often an index out of range, "
        "else a custom operator or failing memory",
        _ON_CPU,
        "compute-sanitizer python ...   # names the kernel",
        is_consequence=True,
    ),
    _symptom(
        "assertion on the GPU",
        r"device-side assert triggered",
        "a kernel on the GPU met a value out of range, most often a category id that is not below the number of "
        "classes; the line that says which stands above, and the traceback's line comes later than the fault",
        f"{_CHECK_DATA}   # lists the category ids",
        _ON_CPU,
        is_consequence=True,
    ),
    _symptom(
        "worker ended",
        r"DataLoader worker \(pid(?:\(s\))? [\d, ]+\) exited unexpectedly",
        "a loader worker has ended without an error: killed for its memory, by a crash, or by too little shared memory",
        "detronome train DATA --set data.workers=0   # the error then shows itself",
        "sudo dmesg | tail -20",
        is_consequence=True,
    ),
    _symptom(
        "native code crashed",
        r"Segmentation fault|Fatal Python error: |was ended by SIG(?:SEGV|ABRT|BUS)|double free or corruption"
        r"|exitcode: -11\b",
        "a compiled package crashed: often packages built for other versions of each other",
        "detronome doctor   # calls each of them in a process of its own and names the one that crashes",
        "python -X faulthandler ...   # names the line",
        is_consequence=True,
    ),
    # Others.
    _symptom(
        "operator missing on Apple's GPU",
        r"is not currently implemented for the MPS device",
        "torch has no such operator for Apple's GPU",
        "export PYTORCH_ENABLE_MPS_FALLBACK=1",
    ),
    _symptom(
        "operator is not deterministic",
        r"does not have a deterministic implementation, but you set|Deterministic behavior was enabled with either",
        "use_deterministic_algorithms is on, and this operator has no deterministic kernel, or cuBLAS its workspace",
        "export CUBLAS_WORKSPACE_CONFIG=:4096:8",
        "torch.use_deterministic_algorithms(True, warn_only=True)",
    ),
    _symptom(
        "download failed",
        r"Temporary failure in name resolution|Name or service not known|Max retries exceeded with url"
        r"|CERTIFICATE_VERIFY_FAILED"
        r"|LocalEntryNotFoundError|We couldn't connect to 'https://huggingface\.co'|urlopen error"
        r"|Network is unreachable",
        "the machine cannot reach the network, or a proxy or its certificates are not set up",
        "export HTTPS_PROXY=http://PROXY:PORT SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt",
        "detronome train DATA --set model.backbone_weights=none   # without weights; a path takes your own",
    ),
    _symptom(
        "operator cannot be exported",
        r"Exporting the operator '[^']+' to ONNX opset version \d+ is not supported|Unsupported ONNX opset version"
        r"|UnsupportedOperatorError|torch\.onnx\.(?:errors|_internal\.exporter\._errors)\.\w+"
        r"|GuardOnDataDependentSymNode",
        "the ONNX exporter does not know an operator or a construct of this model in this opset, such as a branch that "
        "depends on a value",
        "pip install --upgrade 'torch>=2.11' 'onnx>=1.21' onnxscript",
        "detronome export RUN --to onnx   # our networks are written so that they can be exported",
    ),
    _symptom(
        "ONNX file too new for the runtime",
        r"Unsupported model IR version|ONNX Runtime only \*?guarantees\*? support for models stamped with",
        "the file was written for a newer ONNX than this ONNX Runtime reads",
        "pip install --upgrade onnxruntime",
        "detronome export RUN --to onnx   # writes an opset that older runtimes read too",
    ),
    _symptom(
        "operator unknown to the runtime",
        r"No Op registered for \w+ with domain_version"
        r"|Fatal error: [\w.]{1,100}:\w\S{0,200} is not a registered function/op"
        r"|Could not find an implementation for \w+\(|No conversion rule found for operations:",
        "the runtime has no such operator: it is of a newer opset, or of a library (mmdeploy, a TensorRT plugin) that "
        "has to be registered first",
        "pip install --upgrade onnxruntime openvino",
        "detronome export RUN --to onnx   # our files hold standard operators alone",
    ),
    _symptom(
        "exported model is damaged",
        r"[Pp]rotobuf parsing failed|Error parsing message with type 'onnx\.|Unable to read the model: ",
        "the file is no model, or its end is missing: a download that was cut off, a Git LFS pointer, another format",
        "head -c 200 FILE   # readable text: it is a pointer or a page",
        "detronome export RUN --to onnx",
    ),
    _symptom(
        "input does not fit the exported model",
        r"Got invalid dimensions for input: |Invalid rank for input: |Unexpected input data type\. Actual: "
        r"|Required inputs \(\[[^\]]{0,500}\]\) are missing from input feed",
        "an exported model takes inputs of one name, shape and type, and got another",
        "detronome predict FILE.onnx IMAGES   # prepares images as the file asks for",
        "print([(i.name, i.shape, i.type) for i in session.get_inputs()])   # in your own code: what it asks for",
    ),
    _symptom(
        "ONNX Runtime without this device",
        r"Specified provider '(?P<name>\w+)' is not in available provider names|Unknown Provider Type: (?P<name_2>\w+)",
        "the installed ONNX Runtime has no {name} and takes the CPU instead; the package onnxruntime is the CPU build",
        "pip uninstall -y onnxruntime && pip install --force-reinstall onnxruntime-gpu   # for CUDA and TensorRT",
        "python -c 'import onnxruntime; print(onnxruntime.get_available_providers())'   # what there is",
    ),
    _symptom(
        "TensorRT engine of another machine",
        r"engine plan file is (?:not compatible|generated on an incompatible device)|Version tag does not match"
        r"|stdVersionRead == \w+",
        "an engine runs with the release of TensorRT and on the kind of GPU that it was built with, and with no other",
        "detronome export RUN --to tensorrt   # on the machine where it will run",
    ),
    _symptom(
        "form parser not installed",
        r"`?python-multipart`? library must be installed|Form data requires \"python-multipart\" to be installed",
        "a server that takes uploads needs python-multipart, which is not installed",
        "pip install 'detronome[serve]'",
    ),
    _symptom(
        "package not installed",
        rf"(?:ModuleNotFoundError|ImportError): No module named '(?P<name>(?:{_KNOWN_MODULES})(?:\.[\w.]+)?)'",
        "the package that brings the module {name} is not installed in the Python that runs",
        "python -m pip install {package}   # `python` being the one that runs your script",
        "detronome doctor",
    ),
    _symptom(
        "module not found",
        r"(?:ModuleNotFoundError|ImportError): No module named '(?P<name>[\w.]+)'",
        "{name} is of a package that is not installed in the Python that runs, or a file of the project that runs, "
        "which is started from another folder than its own",
        "# start the project from its folder, or install what its instructions name: a package of a module's name may "
        "be somebody else's",
    ),
)

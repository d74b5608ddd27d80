"""Texts as people paste them, in the words that the libraries print, by the symptom that is their cause."""

# The lines are as long as they are printed.
# ruff: noqa: E501

__all__ = ["HEALTHY", "PASTED"]

_TRAIN = """Traceback (most recent call last):
  File "main.py", line 248, in <module>
    main(args)
  File "main.py", line 198, in main
    train_stats = train_one_epoch(
  File "/home/u/detr/engine.py", line 33, in train_one_epoch
    loss_dict = criterion(outputs, targets)
"""

PASTED: dict[str, list[str]] = {
    "tensors on different devices": [
        "RuntimeError: Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!",
    ],
    "library that transformers asks for is missing": [
        "ImportError: \nDetrConvEncoder requires the timm library but it was not found in your environment. You can install it with pip:\n`pip install timm`.",
    ],
    "a message of Detronome": [
        "error: the disk has too little room: up to 4.1 GiB are needed, 1.0 GiB are free\n  where: /data\n  fix:   free some space",
        "error: no data folder\n  fix:   detronome train DATA --model nano",
    ],
    "built for another NumPy": [
        """Traceback (most recent call last):
  File "<stdin>", line 1, in <module>
  File "/opt/conda/lib/python3.8/site-packages/pycocotools/coco.py", line 55, in <module>
    from . import mask as maskUtils
  File "/opt/conda/lib/python3.8/site-packages/pycocotools/mask.py", line 3, in <module>
    import pycocotools._mask as _mask
  File "pycocotools/_mask.pyx", line 1, in init pycocotools._mask
ValueError: numpy.ndarray size changed, may indicate binary incompatibility. Expected 88 from C header, got 80 from PyObject
""",
        "ValueError: numpy.dtype size changed, may indicate binary incompatibility. Expected 96 from C header, got 88 from "
        "PyObject",
        "RuntimeError: module compiled against ABI version 0x1000009 but this version of numpy is 0x2000000",
    ],
    "package built for another NumPy": [
        """  File "/venv/lib/python3.11/site-packages/pandas/__init__.py", line 22, in <module>
    from pandas.compat import is_numpy_dev as _is_numpy_dev  # pyright: ignore # noqa:F401
  File "pandas/_libs/interval.pyx", line 1, in init pandas._libs.interval
ValueError: numpy.dtype size changed, may indicate binary incompatibility. Expected 96 from C header, got 88 from PyObject
""",
        '  File "sklearn/__check_build/_check_build.pyx", line 1, in init sklearn.__check_build._check_build\n'
        "ValueError: numpy.ufunc size changed, may indicate binary incompatibility. Expected 232 from C header, got 216",
    ],
    "torch built for NumPy 1": [
        _TRAIN + "RuntimeError: Numpy is not available\n",
        """/usr/lib/python3.11/site-packages/torch/nn/modules/transformer.py:20: UserWarning: Failed to initialize NumPy: _ARRAY_API not found (Triggered internally at ../torch/csrc/utils/tensor_numpy.cpp:84.)
  device: torch.device = torch.device(torch._C._get_default_device()),
Traceback (most recent call last):
  File "t.py", line 3, in <module>
    torch.tensor(np.float32(1))
RuntimeError: Could not infer dtype of numpy.float32
""",
    ],
    "package built for NumPy 1": [
        """A module that was compiled using NumPy 1.x cannot be run in
NumPy 2.1.0 as it may crash. To support both 1.x and 2.x
versions of NumPy, modules must be compiled with NumPy 2.0.
Some module may need to rebuild instead e.g. with 'pybind11>=2.12'.

Traceback (most recent call last):  File "<string>", line 1, in <module>
  File "/usr/lib/python3/dist-packages/cv2/__init__.py", line 181, in <module>
AttributeError: _ARRAY_API not found
""",
    ],
    "name that NumPy has removed": [
        """Traceback (most recent call last):
  File "train.py", line 61, in <module>
    coco_eval.accumulate()
  File "/home/u/cocoapi/PythonAPI/pycocotools/cocoeval.py", line 378, in accumulate
    tp_sum = np.cumsum(tps, axis=1).astype(dtype=np.float)
  File "/opt/venv/lib/python3.10/site-packages/numpy/__init__.py", line 305, in __getattr__
    raise AttributeError(__former_attrs__[attr])
AttributeError: module 'numpy' has no attribute 'float'.
`np.float` was a deprecated alias for the builtin `float`. To avoid this error in existing code, use `float` by itself.
""",
        "AttributeError: `np.Inf` was removed in the NumPy 2.0 release. Use `np.inf` instead.",
        "AttributeError: module 'numpy' has no attribute 'bool'.",
    ],
    "old COCO API: float as a count": [
        """  File "/opt/venv/lib/python3.7/site-packages/pycocotools/cocoeval.py", line 508, in setDetParams
    self.iouThrs = np.linspace(.5, 0.95, np.round((0.95 - .5) / .05) + 1, endpoint=True)
  File "<__array_function__ internals>", line 6, in linspace
TypeError: 'numpy.float64' object cannot be interpreted as an integer
""",
        "TypeError: object of type <class 'numpy.float64'> cannot be safely interpreted as an integer.",
    ],
    "old COCO API: Python 2": [
        """  File "/home/u/coco/PythonAPI/pycocotools/coco.py", line 302, in loadRes
    if type(resFile) == str or type(resFile) == unicode:
NameError: name 'unicode' is not defined
""",
    ],
    "torchvision does not fit torch": [
        """  File "/opt/venv/lib/python3.11/site-packages/torchvision/_meta_registrations.py", line 164, in <module>
    @register_fake("torchvision::nms")
RuntimeError: operator torchvision::nms does not exist
""",
        """RuntimeError: Couldn't load custom C++ ops. This can happen if your PyTorch and torchvision versions are incompatible, or if you had errors while compiling torchvision from source.""",
        "RuntimeError: Detected that PyTorch and torchvision were compiled with different CUDA major versions. PyTorch has "
        "CUDA Version=12.4 and torchvision has CUDA Version=11.8. Please reinstall the torchvision that matches your PyTorch install.",
    ],
    "torchvision without CUDA": [
        "NotImplementedError: Could not run 'torchvision::nms' with arguments from the 'CUDA' backend. This could be because "
        "the operator doesn't exist for this backend, or was omitted during the selective/custom build process",
    ],
    "NVIDIA libraries mixed": [
        """  File "/opt/venv/lib/python3.11/site-packages/torch/__init__.py", line 367, in <module>
    from torch._C import *  # noqa: F403
ImportError: /opt/venv/lib/python3.11/site-packages/torch/lib/../../nvidia/cusparse/lib/libcusparse.so.12: undefined symbol: __nvJitLinkComplete_12_4, version libnvJitLink.so.12
""",
        "ImportError: /opt/venv/lib/python3.11/site-packages/torch/lib/libtorch_cuda.so: undefined symbol: ncclCommWindowRegister",
    ],
    "MKL too new for this torch": [
        "ImportError: /opt/conda/lib/python3.10/site-packages/torch/lib/libtorch_cpu.so: undefined symbol: iJIT_NotifyEvent",
    ],
    "extension built for another torch": [
        "ImportError: /home/u/Deformable-DETR/MultiScaleDeformableAttention.cpython-38-x86_64-linux-gnu.so: undefined symbol: "
        "_ZN3c104cuda9SetDeviceEi",
    ],
    "torchvision or torchaudio built for another torch": [
        "OSError: /opt/venv/lib/python3.11/site-packages/torchaudio/lib/libtorchaudio.so: undefined symbol: "
        "_ZNK5torch8autograd4Node4nameEv",
        "  warn(\nUserWarning: Failed to load image Python extension: '/opt/venv/lib/python3.11/site-packages/torchvision/"
        "image.so: undefined symbol: _ZN3c1017RegisterOperatorsD1Ev'",
        "ImportError: /opt/venv/lib/python3.11/site-packages/torchvision/_C.so: undefined symbol: "
        "_ZN3c104impl23ExcludeDispatchKeyGuardC1ENS_14DispatchKeySetE",
    ],
    "OpenCV without its system libraries": [
        """  File "/usr/local/lib/python3.11/site-packages/cv2/__init__.py", line 153, in bootstrap
    native_module = importlib.import_module("cv2")
ImportError: libGL.so.1: cannot open shared object file: No such file or directory
""",
        "ImportError: libgthread-2.0.so.0: cannot open shared object file: No such file or directory",
    ],
    "C++ library too old": [
        "ImportError: /lib/x86_64-linux-gnu/libstdc++.so.6: version `GLIBCXX_3.4.29' not found (required by "
        "/opt/conda/lib/python3.10/site-packages/matplotlib/_path.cpython-310-x86_64-linux-gnu.so)",
    ],
    "system too old for this wheel": [
        "ImportError: /lib64/libm.so.6: version `GLIBC_2.29' not found (required by /opt/venv/lib/libonnxruntime.so.1)",
    ],
    "CUDA library missing": [
        "ImportError: libcudnn.so.9: cannot open shared object file: No such file or directory",
        "OSError: libcublas.so.12: cannot open shared object file: No such file or directory",
        "Could not load library libcudnn_cnn_infer.so.8. Error: libcuda.so: cannot open shared object file: No such file or directory",
    ],
    "another cuDNN is loaded": [
        "RuntimeError: cuDNN version incompatibility: PyTorch was compiled  against (8, 7, 0) but found runtime version (8, 5, "
        "0). PyTorch already comes bundled with cuDNN. One option to resolving this error is to ensure PyTorch can find the "
        "bundled cuDNN.",
        "RuntimeError: cuDNN error: CUDNN_STATUS_SUBLIBRARY_VERSION_MISMATCH",
    ],
    "GPU not supported by this torch": [
        """/opt/venv/lib/python3.12/site-packages/torch/cuda/__init__.py:283: UserWarning:
    Found GPU0 Tesla P100-PCIE-16GB which is of cuda capability 6.0.
RuntimeError: CUDA error: no kernel image is available for execution on the device
CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be incorrect.
""",
        "Tesla K80 with CUDA capability sm_37 is not compatible with the current PyTorch installation.",
    ],
    "GPU newer than this torch": [
        "NVIDIA GeForce RTX 5090 with CUDA capability sm_120 is not compatible with the current PyTorch installation.",
        """/venv/lib/python3.12/site-packages/torch/cuda/__init__.py:235: UserWarning:
NVIDIA H100 PCIe with CUDA capability sm_90 is not compatible with the current PyTorch installation.
The current PyTorch install supports CUDA capabilities sm_37 sm_50 sm_60 sm_70.
RuntimeError: CUDA error: no kernel image is available for execution on the device
""",
    ],
    "driver too old": [
        "RuntimeError: The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver by "
        "downloading and installing a new version",
        "RuntimeError: CUDA error: CUDA driver version is insufficient for CUDA runtime version",
    ],
    "driver updated without a restart": [
        "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.65"
    ],
    "GPU lost to the container": ["Failed to initialize NVML: Unknown Error"],
    "no NVIDIA driver": [
        "RuntimeError: Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed a driver "
        "from http://www.nvidia.com/Download/index.aspx",
    ],
    "torch without CUDA": ["AssertionError: Torch not compiled with CUDA enabled"],
    "no such GPU": ["RuntimeError: CUDA error: invalid device ordinal"],
    "GPU taken": ["RuntimeError: CUDA error: CUDA-capable device(s) is/are busy or unavailable"],
    "GPU hardware error": [
        "RuntimeError: CUDA error: uncorrectable ECC error encountered",
        "[ 8341.2] NVRM: Xid (PCI:0000:3b:00): 79, pid=1234, GPU has fallen off the bus.",
    ],
    "processor too old for this wheel": ["Illegal instruction (core dumped)"],
    "two OpenMP runtimes": [
        "OMP: Error #15: Initializing libiomp5md.dll, but found libiomp5md.dll already initialized.",
        "Error: mkl-service + Intel(R) MKL: MKL_THREADING_LAYER=INTEL is incompatible with libgomp-a34b3233.so.1 library.",
    ],
    "NumPy is damaged": [
        "IMPORTANT: PLEASE READ THIS FOR ADVICE ON HOW TO SOLVE THIS ISSUE!\n\nImporting the numpy C-extensions failed. This "
        "error can happen for many reasons, often due to issues with your setup",
        "ImportError: numpy.core.multiarray failed to import",
        "ModuleNotFoundError: No module named 'numpy._core'",
    ],
    "a file hides a package": [
        "AttributeError: partially initialized module 'torch' has no attribute 'nn' (most likely due to a circular import)",
        "ImportError: cannot import name 'COCO' from partially initialized module 'pycocotools.coco' (most likely due to a "
        "circular import) (/home/u/project/pycocotools/coco.py)",
    ],
    "code for torch 1": [
        "ModuleNotFoundError: No module named 'torch._six'",
        """  File "/home/u/detr/util/misc.py", line 22, in <module>
    from torchvision.ops import _new_empty_tensor
ImportError: cannot import name '_new_empty_tensor' from 'torchvision.ops' (/opt/venv/lib/python3.8/site-packages/torchvision/ops/__init__.py)
""",
    ],
    "deformable attention not compiled": ["ModuleNotFoundError: No module named 'MultiScaleDeformableAttention'"],
    "CUDA toolkit missing or other": [
        "OSError: CUDA_HOME environment variable is not set. Please set it to your CUDA install root.",
        "RuntimeError:\nThe detected CUDA version (11.4) mismatches the version that was used to compile\nPyTorch (12.1).",
    ],
    "Python's headers missing": ["/tmp/tmpq1/main.c:3:10: fatal error: Python.h: No such file or directory"],
    "no compiler for torch.compile": [
        "torch._inductor.exc.InductorError: InvalidCxxCompiler: No working C++ compiler found in "
        "torch._inductor.config.cpp.cxx: (None, 'g++')",
        "torch._dynamo.exc.BackendCompilerFailed: backend='inductor' raised:\nRuntimeError: Cannot find a working triton installation.",
    ],
    "compiled again and again": [
        "W1121 10:00:01.123 torch/_dynamo/convert_frame.py:906] [0/8] torch._dynamo hit config.recompile_limit (8)",
    ],
    "package is built from source": [
        'error: Microsoft Visual C++ 14.0 or greater is required. Get it with "Microsoft C++ Build Tools"',
        "  error: command 'gcc' failed: No such file or directory\n  ERROR: Failed building wheel for pycocotools",
        "error: command '/usr/bin/x86_64-linux-gnu-gcc' failed with exit code 1",
    ],
    "setuptools without old parts": [
        "ModuleNotFoundError: No module named 'distutils'",
        "ModuleNotFoundError: No module named 'pkg_resources'",
    ],
    "Python built without a library": ["ModuleNotFoundError: No module named '_lzma'"],
    "COCO API not installed": ["ModuleNotFoundError: No module named 'pycocotools'"],
    "PIL name removed": ["AttributeError: module 'PIL.Image' has no attribute 'ANTIALIAS'"],
    "protobuf too new": [
        "TypeError: Descriptors cannot be created directly.\nIf this call came from a _pb2.py file, your generated code is out of date"
    ],
    "no wheel for this Python": [
        "ERROR: Could not find a version that satisfies the requirement torch>=2.11 (from versions: none)\n"
        "ERROR: No matching distribution found for torch>=2.11",
    ],
    "system Python is protected": ["error: externally-managed-environment\n\n× This environment is externally managed"],
    "requirements contradict each other": [
        "ERROR: ResolutionImpossible: for help visit https://pip.pypa.io/en/latest/topics/dependency-resolution/",
    ],
    "checkpoint holds more than tensors": [
        """  File "/opt/venv/lib/python3.11/site-packages/torch/serialization.py", line 1470, in load
    raise pickle.UnpicklingError(_get_wo_message(str(e))) from None
_pickle.UnpicklingError: Weights only load failed. This file can still be loaded, to do so you have two options, do those steps only if you trust the source of the checkpoint.
	WeightsUnpickler error: Unsupported global: GLOBAL argparse.Namespace was not an allowed global by default.
""",
    ],
    "not a checkpoint: a pointer or a page": ["_pickle.UnpicklingError: invalid load key, 'v'."],
    "checkpoint damaged": [
        "RuntimeError: PytorchStreamReader failed reading zip archive: failed finding central directory",
        "EOFError: Ran out of input",
        "safetensors_rust.SafetensorError: Error while deserializing header: incomplete metadata, file not fully covered",
    ],
    "other number of classes": [
        """RuntimeError: Error(s) in loading state_dict for DETR:
	size mismatch for class_embed.weight: copying a param with shape torch.Size([92, 256]) from checkpoint, the shape in current model is torch.Size([3, 256]).
	size mismatch for class_embed.bias: copying a param with shape torch.Size([92]) from checkpoint, the shape in current model is torch.Size([3]).
""",
    ],
    "other number of queries": [
        """RuntimeError: Error(s) in loading state_dict for LWDETR:
	size mismatch for query_feat.weight: copying a param with shape torch.Size([3900, 256]) from checkpoint, the shape in current model is torch.Size([1300, 256]).
""",
    ],
    "weights of another network": [
        """RuntimeError: Error(s) in loading state_dict for DETR:
	Missing key(s) in state_dict: "transformer.encoder.layers.0.self_attn.in_proj_weight".
	Unexpected key(s) in state_dict: "module.transformer.encoder.layers.0.self_attn.in_proj_weight".
""",
    ],
    "optimizer of another model": [
        "ValueError: loaded state dict contains a parameter group that doesn't match the size of optimizer's group",
    ],
    "boxes are not numbers or turned over": [
        _TRAIN
        + """  File "/home/u/detr/models/matcher.py", line 76, in forward
    cost_giou = -generalized_box_iou(box_cxcywh_to_xyxy(out_bbox), box_cxcywh_to_xyxy(tgt_bbox))
  File "/home/u/detr/util/box_ops.py", line 51, in generalized_box_iou
    assert (boxes1[:, 2:] >= boxes1[:, :2]).all()
AssertionError
""",
    ],
    "matching costs are not numbers": [
        _TRAIN
        + """    indices = [linear_sum_assignment(c[i]) for i, c in enumerate(C.split(sizes, -1))]
ValueError: matrix contains invalid numeric entries
""",
        "ValueError: cost matrix is infeasible",
    ],
    "loss is not finite": [
        "Loss is nan, stopping training\n{'loss_ce': tensor(nan, device='cuda:0'), 'loss_bbox': tensor(nan, device='cuda:0')}",
    ],
    "class or index out of range, on the GPU": [
        """/pytorch/aten/src/ATen/native/cuda/ScatterGatherKernel.cu:365: operator(): block: [0,0,0], thread: [12,0,0] Assertion `idx_dim >= 0 && idx_dim < index_size && "index out of bounds"` failed.
"""
        + _TRAIN
        + "RuntimeError: CUDA error: device-side assert triggered\n",
        "../aten/src/ATen/native/cuda/Loss.cu:242: nll_loss_forward_reduce_cuda_kernel_2d: block: [0,0,0], thread: [4,0,0] "
        "Assertion `t >= 0 && t < n_classes` failed.",
        "/pytorch/aten/src/ATen/native/cuda/IndexKernel.cu:111: operator(): block: [0,0,0], thread: [32,0,0] Assertion "
        '`-sizes[i] <= index && index < sizes[i] && "index out of bounds"` failed.',
    ],
    "class out of range": [
        "IndexError: Target 91 is out of bounds.",
        "RuntimeError: index 90 is out of bounds for dimension 2 with size 80",
    ],
    "number too large for half precision": [
        "RuntimeError: value cannot be converted to type at::Half without overflow"
    ],
    "precisions mixed": [
        "RuntimeError: Index put requires the source and destination dtypes match, got BFloat16 for the destination and Float "
        "for the source.",
        "RuntimeError: mat1 and mat2 must have the same dtype, but got Half and Float",
    ],
    "empty tensors cannot be resized": [
        "RuntimeError: Input and output sizes should be greater than 0, but got input (H: 0, W: 0) output (H: 800, W: 1066)",
    ],
    "results are of other images": ["AssertionError: Results do not correspond to current coco set"],
    "annotation file has the wrong shape": [
        "AssertionError: annotation file format <class 'list'> not supported",
        """  File "/opt/venv/lib/python3.11/site-packages/pycocotools/coco.py", line 96, in createIndex
    for ann in self.dataset['annotations']:
TypeError: string indices must be integers, not 'str'
""",
    ],
    "masks or boxes of the wrong kind": [
        """  File "pycocotools/_mask.pyx", line 198, in pycocotools._mask._preproc
Exception: input type is not supported.
""",
    ],
    "field of an annotation is missing": [
        """  File "/opt/venv/lib/python3.11/site-packages/pycocotools/cocoeval.py", line 110, in _prepare
    gt['ignore'] = 'iscrowd' in gt and gt['iscrowd']
KeyError: 'area'
""",
        "KeyError: 'info'",
    ],
    "JSON cannot be read": ["json.decoder.JSONDecodeError: Expecting value: line 1 column 1 (char 0)"],
    "image file is damaged": [
        "PIL.UnidentifiedImageError: cannot identify image file <_io.BytesIO object at 0x7f>",
        "OSError: image file is truncated (44 bytes not processed)",
    ],
    "image too large": [
        "PIL.Image.DecompressionBombError: Image size (933120000 pixels) exceeds limit of 178956970 pixels, could be "
        "decompression bomb DOS attack.",
    ],
    "data file not found": [
        "FileNotFoundError: [Errno 2] No such file or directory: 'coco/train2017/000000391895.jpg'",
    ],
    "GPU memory ran out": [
        _TRAIN
        + "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.07 GiB. GPU 0 has a total capacity of 23.69 GiB of "
        "which 512.00 MiB is free. Including non-PyTorch memory, this process has 23.11 GiB memory in use.\n",
        "RuntimeError: CUDA out of memory. Tried to allocate 20.00 MiB (GPU 0; 7.93 GiB total capacity; 6.9 GiB already allocated)",
        "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "RuntimeError: GET was unable to find an engine to execute this computation",
    ],
    "cuBLAS cannot start": [
        "RuntimeError: CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"
    ],
    "shared memory too small": [
        """ERROR: Unexpected bus error encountered in worker. This might be caused by insufficient shared memory (shm).
Traceback (most recent call last):
  File "/opt/venv/lib/python3.11/site-packages/torch/utils/data/dataloader.py", line 1284, in _try_get_data
    data = self._data_queue.get(timeout=timeout)
RuntimeError: DataLoader worker (pid 4211) is killed by signal: Bus error. It is possible that dataloader's workers are out of shared memory. Please try to raise your shared memory limit.

The above exception was the direct cause of the following exception:

RuntimeError: DataLoader worker (pid(s) 4211) exited unexpectedly
""",
        "RuntimeError: unable to write to file </torch_1234_567>: No space left on device (28)",
    ],
    "killed for its memory": [
        "run.sh: line 3: 12345 Killed                  python train.py",
        "RuntimeError: DataLoader worker (pid 812) is killed by signal: Killed. ",
        "slurmstepd: error: Detected 1 oom_kill event in StepId=4211.0. Some of the step tasks have been OOM Killed.",
    ],
    "main memory ran out": [
        "RuntimeError: [enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 12884901888 bytes. Error code 12 (Cannot allocate memory)",
        "numpy._core._exceptions._ArrayMemoryError: Unable to allocate 7.45 GiB for an array with shape (1000000000,)",
        "OSError: [Errno 12] Cannot allocate memory",
    ],
    "too many open files": [
        "RuntimeError: unable to open shared memory object </torch_4242_1> in read-write mode: Too many open files (24)",
        "OSError: [Errno 24] Too many open files: '/data/coco/train2017/000000000009.jpg'",
        "RuntimeError: received 0 items of ancdata",
        "RuntimeError: Too many open files. Communication with the workers is no longer possible. Please increase the limit "
        "using `ulimit -n` in the shell or change the sharing strategy by calling "
        "`torch.multiprocessing.set_sharing_strategy('file_system')` at the beginning of your code",
    ],
    "too many threads or processes": [
        "RuntimeError: can't start new thread",
        "OpenBLAS blas_thread_init: pthread_create failed for thread 3 of 64: Resource temporarily unavailable",
    ],
    "disk full": [
        "OSError: [Errno 28] No space left on device",
        "RuntimeError: [enforce fail at inline_container.cc:659] . PytorchStreamWriter failed writing file data/12: file write failed",
    ],
    "folder cannot be written": [
        "PermissionError: [Errno 13] Permission denied: '/data/coco/cache'",
        "OSError: [Errno 30] Read-only file system: '/data/runs'",
    ],
    "network disk lost a file": ["OSError: [Errno 116] Stale file handle"],
    "main module is not guarded": [
        """RuntimeError:
        An attempt has been made to start a new process before the
        current process has finished its bootstrapping phase.

        This probably means that you are not using fork to start your
        child processes and you have forgotten to use the proper idiom
        in the main module:

            if __name__ == '__main__':
                freeze_support()
""",
    ],
    "object cannot go to a worker": [
        "_pickle.PicklingError: Can't pickle <function <lambda> at 0x7f2>: attribute lookup <lambda> on __main__ failed",
        "TypeError: cannot pickle '_thread.lock' object",
        "AttributeError: Can't get local object 'build.<locals>.transform'",
    ],
    "CUDA started before fork": [
        "RuntimeError: Cannot re-initialize CUDA in forked subprocess. To use CUDA with multiprocessing, you must use the "
        "'spawn' start method",
    ],
    "worker takes too long": ["RuntimeError: DataLoader timed out after 60 seconds"],
    "worker crashed": ["RuntimeError: DataLoader worker (pid 17) is killed by signal: Segmentation fault. "],
    "parameters without gradient": [
        "RuntimeError: Expected to have finished reduction in the prior iteration before starting a new one. This error "
        "indicates that your module has parameters that were not used in producing loss. You can enable unused parameter "
        "detection by passing the keyword argument `find_unused_parameters=True`",
    ],
    "parameter used twice under DDP": [
        "RuntimeError: Expected to mark a variable ready only once. This error is caused by one of the following reasons",
    ],
    "ranks took different ways": [
        "RuntimeError: Detected mismatch between collectives on ranks. Rank 0 is running collective: CollectiveFingerPrint"
        "(SequenceNumber=3, OpType=ALLREDUCE), but Rank 1 is running collective: BROADCAST",
    ],
    "two ranks on one GPU": [
        "torch.distributed.DistBackendError: NCCL error in: ../torch/csrc/distributed/c10d/NCCLUtils.cpp:94, invalid usage "
        "(run with NCCL_DEBUG=WARN for details), NCCL version 2.27.3\nncclInvalidUsage: This usually reflects invalid usage of "
        "NCCL library.\nLast error:\nDuplicate GPU detected : rank 1 and rank 0 both on CUDA device 1b000",
    ],
    "no network interface for ranks": [
        "Bootstrap : no socket interface found",
        "RuntimeError: [enforce fail at /pytorch/third_party/gloo/gloo/transport/tcp/device.cc:84] ifa != nullptr. Unable to "
        "find interface for: [0.0.0.0]",
        "RuntimeError: Gloo connectFullMesh failed with [../third_party/gloo/gloo/transport/tcp/pair.cc:144] no error",
    ],
    "port in use": [
        "torch.distributed.DistNetworkError: The server socket has failed to listen on any local network address. port: 29500, "
        "useIpv6: false, code: -98, name: EADDRINUSE, message: address already in use",
    ],
    "ranks do not find each other": [
        "torch.distributed.DistNetworkError: The client socket has timed out after 300000ms while trying to connect to "
        "(10.0.0.1, 29500).",
    ],
    "not started by torchrun": [
        "ValueError: Error initializing torch.distributed using env:// rendezvous: environment variable RANK expected, but not set",
        "ValueError: Default process group has not been initialized, please make sure to call init_process_group.",
    ],
    "NCCL failed": [
        "torch.distributed.DistBackendError: NCCL error in: /pytorch/torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:3356, "
        "unhandled system error (run with NCCL_DEBUG=INFO for details), NCCL version 2.27.5\nncclSystemError: System call "
        "(e.g. socket, malloc) or external library call failed or device error.",
    ],
    "a rank was too late": [
        "[rank1]:[E1121 10:10:00.123 ProcessGroupNCCL.cpp:685] [Rank 1] Watchdog caught collective operation timeout: "
        "WorkNCCL(SeqNum=812, OpType=ALLREDUCE, NumelIn=41279495, NumelOut=41279495, Timeout(ms)=600000) ran for 600021 "
        "milliseconds before timing out.",
    ],
    "another rank died": [
        "RuntimeError: [../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:41211",
    ],
    "a rank failed": [
        """torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
train.py FAILED
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  rank      : 1 (local_rank: 1)
  exitcode  : 1 (pid: 4211)
""",
    ],
    "illegal access on the GPU": ["RuntimeError: CUDA error: an illegal memory access was encountered"],
    "assertion on the GPU": ["RuntimeError: CUDA error: device-side assert triggered"],
    "worker ended": ["RuntimeError: DataLoader worker (pid(s) 12, 13) exited unexpectedly"],
    "native code crashed": [
        "Fatal Python error: Segmentation fault\n\nCurrent thread 0x00007f (most recent call first):",
        "Segmentation fault (core dumped)",
    ],
    "operator missing on Apple's GPU": [
        "NotImplementedError: The operator 'torchvision::deform_conv2d' is not currently implemented for the MPS device.",
    ],
    "operator is not deterministic": [
        "RuntimeError: grid_sampler_2d_backward_cuda does not have a deterministic implementation, but you set "
        "'torch.use_deterministic_algorithms(True)'.",
    ],
    "download failed": [
        "requests.exceptions.ConnectionError: HTTPSConnectionPool(host='huggingface.co', port=443): Max retries exceeded with "
        "url: /facebook/detr-resnet-50/resolve/main/config.json (Caused by NameResolutionError: Failed to resolve)",
        "urllib.error.URLError: <urlopen error [Errno -3] Temporary failure in name resolution>",
    ],
    "operator cannot be exported": [
        "torch.onnx.errors.UnsupportedOperatorError: Exporting the operator 'aten::grid_sampler' to ONNX opset version 11 is "
        "not supported.",
        "torch.onnx._internal.exporter._errors.TorchExportError: Failed to export the model with torch.export. This is step 1/3 of exporting the model to ONNX.",
    ],
    "ONNX file too new for the runtime": [
        "onnxruntime.capi.onnxruntime_pybind11_state.Fail: [ONNXRuntimeError] : 1 : FAIL : Load model from model.onnx "
        "failed:Unsupported model IR version: 12, max supported IR version: 10",
        "onnxruntime.capi.onnxruntime_pybind11_state.Fail: [ONNXRuntimeError] : 1 : FAIL : ONNX Runtime only *guarantees* support for models stamped with official released onnx opset versions. Opset 27 is under development and support for this is limited.",
    ],
    "operator unknown to the runtime": [
        "onnxruntime.capi.onnxruntime_pybind11_state.Fail: [ONNXRuntimeError] : 1 : FAIL : Fatal error: mmdeploy:MMCVMultiScaleDeformableAttention(-1) is not a registered function/op",
        'onnxruntime.capi.onnxruntime_pybind11_state.InvalidGraph: [ONNXRuntimeError] : 10 : INVALID_GRAPH : This is an invalid model. In Node, ("", GridSample, "", -1) , Error No Op registered for GridSample with domain_version of 15',
        """RuntimeError: Exception from src/inference/src/cpp/core.cpp:105:
Check 'false' failed at src/frontends/common_translators/src/unconverted_ops_report.cpp:151:
FrontEnd API failed with OpConversionFailure:
Model wasn't fully converted.
Summary:
-- No conversion rule found for operations: DeformableAttention-17
""",
    ],
    "exported model is damaged": [
        "onnxruntime.capi.onnxruntime_pybind11_state.InvalidProtobuf: [ONNXRuntimeError] : 7 : INVALID_PROTOBUF : Failed to load model because protobuf parsing failed.",
        "google.protobuf.message.DecodeError: Error parsing message with type 'onnx.ModelProto': Wire format was corrupt",
        'RuntimeError: Exception from src/inference/src/model_reader.cpp:148:\nUnable to read the model: "/srv/model.xml" Please check that model format: ".xml" is supported and the model is correct.',
    ],
    "input does not fit the exported model": [
        "onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument: [ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Got invalid dimensions for input: images for the following indices\n index: 2 Got: 480 Expected: 640\n Please fix either the inputs/outputs or the model.",
        "onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument: [ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Unexpected input data type. Actual: (tensor(double)) , expected: (tensor(float))",
        "ValueError: Required inputs (['pixel_values']) are missing from input feed (['images']).",
    ],
    "ONNX Runtime without this device": [
        "UserWarning: Specified provider 'CUDAExecutionProvider' is not in available provider names.Available providers: "
        "'AzureExecutionProvider, CPUExecutionProvider'",
        "EP Error Unknown Provider Type: TensorRTExecutionProvider when using ['TensorRTExecutionProvider']",
    ],
    "ONNX Runtime finds no CUDA": [
        """2026-11-08 19:02:18.488301611 [E:onnxruntime:Default, provider_bridge_ort.cc:1546 TryGetProviderInfo_CUDA] /onnxruntime_src/onnxruntime/core/session/provider_bridge_ort.cc:1209 onnxruntime::Provider& onnxruntime::ProviderLibrary::Get() [ONNXRuntimeError] : 1 : FAIL : Failed to load library libonnxruntime_providers_cuda.so with error: libcublasLt.so.12: cannot open shared object file: No such file or directory

2026-11-08 19:02:18.488327179 [W:onnxruntime:Default, onnxruntime_pybind_state.cc:861 CreateExecutionProviderInstance] Failed to create CUDAExecutionProvider. Please reference the page to ensure all dependencies are met.
""",
    ],
    "OpenVINO finds no such device": [
        """RuntimeError: Exception from src/inference/src/cpp/core.cpp:117:
Cannot load library "/opt/venv/lib/python3.11/site-packages/openvino/libs/libopenvino_intel_gpu_plugin.so": libOpenCL.so.1: cannot open shared object file: No such file or directory
""",
        'RuntimeError: Device with "NPU" name is not registered in the OpenVINO Runtime',
    ],
    "TensorRT engine of another machine": [
        "[TRT] [E] 6: The engine plan file is not compatible with this version of TensorRT, expecting library version 10.13.3 got 10.3.0, please rebuild.",
        "[TRT] [E] IRuntime::deserializeCudaEngine: Error Code 6: The engine plan file is generated on an incompatible device, expecting compute 8.6 got compute 7.5, please rebuild.",
        "[TRT] [E] 1: [stdArchiveReader.cpp::StdArchiveReader::30] Error Code 1: Serialization (Serialization assertion stdVersionRead == serializationVersion failed.Version tag does not match. Note: Current Version: 205, Serialized Engine Version: 213)",
    ],
    "TensorRT's libraries missing": [
        "ImportError: libnvinfer.so.10: cannot open shared object file: No such file or directory",
    ],
    "installed packages do not go together": [
        """ERROR: pip's dependency resolver does not currently take into account all the packages that are installed. This behaviour is the source of the following dependency conflicts.
nncf 3.4.0 requires numpy<2.5.0,>=1.24.0, but you have numpy 2.5.1 which is incompatible.
""",
    ],
    "NumPy too new for Numba": ["ImportError: Numba needs NumPy 2.3 or less. Got NumPy 2.5."],
    "form parser not installed": [
        "AssertionError: The `python-multipart` library must be installed to use form parsing.",
        'RuntimeError: Form data requires "python-multipart" to be installed. ',
    ],
    "video is damaged": [
        "av.error.InvalidDataError: [Errno 1094995529] Invalid data found when processing input: 'clip.mp4'",
        "[mov,mp4,m4a,3gp,3g2,mj2 @ 0x55d] moov atom not found",
    ],
    "no such video codec": [
        "av.codec.codec.UnknownCodecError: libx265",
        "av.error.DecoderNotFoundError: [Errno 1128613112] Decoder not found",
    ],
    "model or video not found": [
        "av.error.FileNotFoundError: [Errno 2] No such file or directory: 'clips/street.mp4'",
        "onnxruntime.capi.onnxruntime_pybind11_state.NoSuchFile: [ONNXRuntimeError] : 3 : NO_SUCHFILE : Load model from exports/nano.onnx failed:Load model exports/nano.onnx failed. File doesn't exist",
        "FileNotFoundError: [Errno 2] No such file or directory: 'detr-r50-e632da11.pth'",
    ],
    "port of a server in use": [
        "ERROR:    [Errno 98] error while attempting to bind on address ('127.0.0.1', 8000): address already in use",
        "OSError: [Errno 98] Address already in use",
    ],
    "package not installed": [
        "ModuleNotFoundError: No module named 'cv2'",
        "ModuleNotFoundError: No module named 'optuna'",
        "ModuleNotFoundError: No module named 'google.protobuf'",
    ],
    "module not found": [
        "ModuleNotFoundError: No module named 'util.misc'",
        "ImportError: No module named 'datasets_local'",
    ],
}

HEALTHY = {
    "nothing": "",
    "TensorFlow without a GPU": "2022-05-03 10:11:12.131415: W tensorflow/stream_executor/platform/default/dso_loader.cc:64] "
    "Could not load dynamic library 'libcudart.so.11.0'; dlerror: libcudart.so.11.0: cannot open shared object file: No such "
    "file or directory\n",
    "a training log of DETR": """Start training
Epoch: [0]  [   0/2500]  eta: 3:21:15  lr: 0.000100  class_error: 97.52  loss: 38.1221 (38.1221)  time: 4.8301  data: 1.0213  max mem: 4123
Averaged stats: lr: 0.000100  class_error: 44.21  loss: 9.1220 (12.8821)
Accumulating evaluation results...
DONE (t=10.21s).
 Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ] = 0.402
""",
    "a log of ours": """step 100  epoch 0.4  loss 2.114  grad norm 1.8  lr 1.0e-04  41.2 images/s
step 200  epoch 0.8  loss 1.771  grad norm 2.2  lr 1.0e-04  41.8 images/s
evaluation  AP 0.412  AP50 0.611  AP75 0.432
best checkpoint  runs/nano/checkpoints/best
""",
    "pip": """Collecting torch>=2.11
  Using cached torch-2.15.0-cp312-cp312-manylinux_2_28_x86_64.whl.metadata (30 kB)
Installing collected packages: numpy, torch
Successfully installed numpy-2.5.5 torch-2.15.0
""",
    "NCCL starts": """node1:4211:4211 [0] NCCL INFO Bootstrap : Using eth0:10.0.0.1<0>
node1:4211:4240 [0] NCCL INFO Init COMPLETE comm 0x5 rank 0 nranks 8 cudaDev 0 busId 1b000
""",
    "nvidia-smi": """| NVIDIA-SMI 580.65.06              Driver Version: 580.65.06      CUDA Version: 13.0     |
| N/A   34C    P0             71W /  700W |       0MiB / 143771MiB |      0%      Default |
""",
    "warnings that do no harm": """/opt/venv/lib/python3.11/site-packages/torch/functional.py:504: UserWarning: torch.meshgrid: in an upcoming release, it will be required to pass the indexing argument.
FutureWarning: The secret `HF_TOKEN` does not exist in your Colab secrets.
W1121 10:00:00.000 torch/distributed/run.py:793] Setting OMP_NUM_THREADS environment variable for each process to be 1 in default
""",
    "a sentence": "my model has an AP of 0.1 after 300 epochs on 2000 images, what can I do about the memory of the matcher?",
}

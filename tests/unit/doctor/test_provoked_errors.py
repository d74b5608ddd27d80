"""Errors that are provoked for real, with the libraries as they are installed, and explained from their traceback."""

import argparse
import io
import json
import os
import pickle
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detronome.doctor.explain import explain_error


def matching_costs() -> None:
    from scipy.optimize import linear_sum_assignment

    linear_sum_assignment(np.array([[np.nan, 1.0], [1.0, 2.0]]))


def official_checkpoint(folder: Path) -> None:
    torch.save({"model": {}, "args": argparse.Namespace(lr=1e-4)}, folder / "detr.pth")
    torch.load(folder / "detr.pth")


def cut_checkpoint(folder: Path) -> None:
    torch.save({"a": torch.ones(1000)}, folder / "a.pth")
    (folder / "b.pth").write_bytes((folder / "a.pth").read_bytes()[:2000])
    torch.load(folder / "b.pth")


def pointer_instead_of_a_checkpoint(folder: Path) -> None:
    (folder / "a.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 166618694\n")
    torch.load(folder / "a.pth", weights_only=False)


def cut_safetensors(folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    save_file({"a": np.ones(1000)}, folder / "a.safetensors")
    (folder / "b.safetensors").write_bytes((folder / "a.safetensors").read_bytes()[:-8])
    load_file(folder / "b.safetensors")


class Detector(torch.nn.Module):
    def __init__(self, num_classes: int, num_queries: int = 100) -> None:
        super().__init__()
        self.class_embed = torch.nn.Linear(8, num_classes)
        self.query_embed = torch.nn.Embedding(num_queries, 8)


def other_head() -> None:
    Detector(3).load_state_dict(Detector(92).state_dict())


def other_queries() -> None:
    Detector(3, 300).load_state_dict(Detector(3, 100).state_dict())


def other_network() -> None:
    Detector(3).load_state_dict({f"module.{name}": value for name, value in Detector(3).state_dict().items()})


def other_optimizer() -> None:
    one, two = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2, bias=False)
    torch.optim.AdamW(one.parameters()).load_state_dict(torch.optim.AdamW(two.parameters()).state_dict())


def class_out_of_range() -> None:
    torch.nn.functional.cross_entropy(torch.zeros(2, 91), torch.tensor([0, 91]))


def boxes_turned_over() -> None:
    boxes1 = torch.tensor([[5.0, 5.0, 1.0, 1.0]])
    assert (boxes1[:, 2:] >= boxes1[:, :2]).all()


def two_precisions() -> None:
    torch.ones(2, 2) @ torch.ones(2, 2, dtype=torch.bfloat16)


def two_precisions_in_an_index() -> None:
    torch.zeros(4, dtype=torch.bfloat16)[torch.tensor([0, 1])] = torch.ones(2)


def minus_infinity_in_half() -> None:
    torch.zeros(2, dtype=torch.float16).masked_fill_(torch.tensor([True, False]), -1e9)


def empty_mask() -> None:
    torch.nn.functional.interpolate(torch.zeros(1, 1, 0, 0), size=(4, 4))


def results_of_another_split() -> None:
    from pycocotools.coco import COCO

    truth = COCO()
    truth.dataset = {"info": {}, "images": [{"id": 1}], "categories": [], "annotations": []}
    truth.createIndex()
    truth.loadRes([{"image_id": 2, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1.0}])


def annotations_are_a_list(folder: Path) -> None:
    from pycocotools.coco import COCO

    (folder / "a.json").write_text("[]")
    COCO(str(folder / "a.json"))


def annotations_are_text(folder: Path) -> None:
    from pycocotools.coco import COCO

    (folder / "a.json").write_text(json.dumps({"annotations": ["a"]}))
    COCO(str(folder / "a.json"))


def mask_of_the_wrong_kind() -> None:
    from pycocotools import mask

    mask.frPyObjects("polygon", 4, 4)


def empty_json() -> None:
    json.loads("")


def no_image() -> None:
    Image.open(io.BytesIO(b"<html>"))


def cut_image() -> None:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(file, "JPEG")
    Image.open(io.BytesIO(file.getvalue()[:1000])).load()


def huge_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    file = io.BytesIO()
    Image.new("L", (64, 64)).save(file, "PNG")
    Image.open(io.BytesIO(file.getvalue()))


def missing_image() -> None:
    Image.open("/data/coco/train2017/000000000009.jpg")


def a_lambda_for_a_worker() -> None:
    pickle.dumps(lambda image: image)


def a_lock_for_a_worker() -> None:
    pickle.dumps(threading.Lock())


def a_local_function_for_a_worker() -> None:
    def transform() -> None: ...

    pickle.dumps(transform)


def too_much_memory() -> None:
    torch.empty(2**50)


def too_much_memory_in_numpy() -> None:
    np.empty(2**50)


def numpy_name_of_old() -> None:
    np.float  # noqa: B018


def numpy_name_removed_in_2() -> None:
    if np.lib.NumpyVersion(np.__version__) < "2.0.0":
        pytest.skip("NumPy 1 has the name")
    np.Inf  # noqa: B018


def float_as_a_count() -> None:
    np.linspace(0.5, 0.95, np.round((0.95 - 0.5) / 0.05) + 1, endpoint=True)


def pillow_name_of_old() -> None:
    Image.ANTIALIAS  # noqa: B018


def torch_module_of_old() -> None:
    import torch._six  # noqa: F401


def package_that_is_missing() -> None:
    import mmdet_of_nobody  # noqa: F401


def not_under_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    torch.distributed.init_process_group("gloo")


def no_group() -> None:
    torch.distributed.get_rank()
    torch.distributed.all_reduce(torch.ones(1))


def port_is_taken() -> None:
    first = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    torch.distributed.TCPStore("127.0.0.1", first.port, is_master=True, wait_for_workers=False)


def no_gpu_driver() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    torch.ones(1, device="cuda")


def onnx_model(operator: str = "Relu", *, opset: int = 17, ir: int = 8, domain: str = "") -> bytes:
    onnx = pytest.importorskip("onnx")
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, (1, 2)) for name in "xy"]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(operator, ["x"], ["y"], domain=domain)], "g", values[:1], values[1:]
    )
    opsets = [onnx.helper.make_opsetid("", opset), *([onnx.helper.make_opsetid(domain, 1)] if domain else [])]
    return bytes(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=ir).SerializeToString())


def session(model: object) -> Any:
    runtime = pytest.importorskip("onnxruntime")
    return runtime.InferenceSession(model, providers=["CPUExecutionProvider"])


def opset_of_the_future() -> None:
    session(onnx_model(opset=99))


def onnx_file_of_the_future() -> None:
    session(onnx_model(ir=99))


def operator_of_a_plugin() -> None:
    session(onnx_model("MSDeformAttn", domain="mmdeploy"))


def operator_of_nobody() -> None:
    session(onnx_model("NoSuchOperator"))


def operator_of_nobody_in_openvino() -> None:
    openvino = pytest.importorskip("openvino")
    openvino.Core().read_model(onnx_model("NoSuchOperator"))


def onnx_file_that_is_none() -> None:
    session(b"version https://git-lfs.github.com/spec/v1")


def onnx_file_that_is_not_there(folder: Path) -> None:
    session(str(folder / "nano.onnx"))


def openvino_file_that_is_not_there(folder: Path) -> None:
    pytest.importorskip("openvino").Core().read_model(str(folder / "nano.xml"))


def input_of_another_shape() -> None:
    session(onnx_model()).run(None, {"x": np.zeros((3, 2), np.float32)})


def input_of_another_type() -> None:
    session(onnx_model()).run(None, {"x": np.zeros((1, 2))})


def input_of_another_name() -> None:
    session(onnx_model()).run(None, {"images": np.zeros((1, 2), np.float32)})


def device_that_openvino_does_not_have() -> None:
    core = pytest.importorskip("openvino").Core()
    if "GPU" in core.available_devices:
        pytest.skip("there is a GPU for OpenVINO")
    core.compile_model(core.read_model(onnx_model()), "GPU")


def video_that_is_none(folder: Path) -> None:
    (folder / "clip.mp4").write_text("<html>")
    pytest.importorskip("av").open(str(folder / "clip.mp4"))


def video_that_is_not_there() -> None:
    pytest.importorskip("av").open("/data/clip.mp4")


def codec_of_nobody() -> None:
    pytest.importorskip("av").codec.Codec("libnothing", "w")


def port_of_a_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as first:
        socket.create_server(first.getsockname(), reuse_port=False)


PROVOKED: list[tuple[str, Callable[..., None]]] = [
    ("ONNX file too new for the runtime", opset_of_the_future),
    ("ONNX file too new for the runtime", onnx_file_of_the_future),
    ("operator unknown to the runtime", operator_of_a_plugin),
    ("operator unknown to the runtime", operator_of_nobody),
    ("operator unknown to the runtime", operator_of_nobody_in_openvino),
    ("exported model is damaged", onnx_file_that_is_none),
    ("model or video not found", onnx_file_that_is_not_there),
    ("model or video not found", openvino_file_that_is_not_there),
    ("input does not fit the exported model", input_of_another_shape),
    ("input does not fit the exported model", input_of_another_type),
    ("input does not fit the exported model", input_of_another_name),
    ("OpenVINO finds no such device", device_that_openvino_does_not_have),
    ("video is damaged", video_that_is_none),
    ("model or video not found", video_that_is_not_there),
    ("no such video codec", codec_of_nobody),
    ("port of a server in use", port_of_a_server),
    ("matching costs are not numbers", matching_costs),
    ("checkpoint holds more than tensors", official_checkpoint),
    ("checkpoint damaged", cut_checkpoint),
    ("not a checkpoint: a pointer or a page", pointer_instead_of_a_checkpoint),
    ("checkpoint damaged", cut_safetensors),
    ("other number of classes", other_head),
    ("other number of queries", other_queries),
    ("weights of another network", other_network),
    ("optimizer of another model", other_optimizer),
    ("class out of range", class_out_of_range),
    ("boxes are not numbers or turned over", boxes_turned_over),
    ("precisions mixed", two_precisions),
    ("precisions mixed", two_precisions_in_an_index),
    ("number too large for half precision", minus_infinity_in_half),
    ("empty tensors cannot be resized", empty_mask),
    ("results are of other images", results_of_another_split),
    ("annotation file has the wrong shape", annotations_are_a_list),
    ("annotation file has the wrong shape", annotations_are_text),
    ("masks or boxes of the wrong kind", mask_of_the_wrong_kind),
    ("JSON cannot be read", empty_json),
    ("image file is damaged", no_image),
    ("image file is damaged", cut_image),
    ("image too large", huge_image),
    ("data file not found", missing_image),
    ("object cannot go to a worker", a_lambda_for_a_worker),
    ("object cannot go to a worker", a_lock_for_a_worker),
    ("object cannot go to a worker", a_local_function_for_a_worker),
    ("main memory ran out", too_much_memory),
    ("main memory ran out", too_much_memory_in_numpy),
    ("name that NumPy has removed", numpy_name_of_old),
    ("name that NumPy has removed", numpy_name_removed_in_2),
    ("old COCO API: float as a count", float_as_a_count),
    ("PIL name removed", pillow_name_of_old),
    ("code for torch 1", torch_module_of_old),
    ("module not found", package_that_is_missing),
    ("not started by torchrun", not_under_torchrun),
    ("not started by torchrun", no_group),
    ("port in use", port_is_taken),
    ("no NVIDIA driver", no_gpu_driver),
]


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("name", "provoke"), [pytest.param(*pair, id=pair[1].__name__) for pair in PROVOKED])
def test_a_real_error_is_explained(
    name: str, provoke: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"folder": tmp_path, "monkeypatch": monkeypatch}
    wanted = provoke.__code__.co_varnames[: provoke.__code__.co_argcount]
    try:
        provoke(**{argument: given[argument] for argument in wanted})
    except Exception:
        text = traceback.format_exc()
    else:
        pytest.fail("no error was provoked")
    found = explain_error(text)
    assert found.best is not None and found.best.name == name, (text, found.best)


_LOADER = """
import os, signal, sys, torch
class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 8
    def __getitem__(self, index):
        {what}
        return torch.ones(2)
for batch in torch.utils.data.DataLoader(Data(), num_workers=2, multiprocessing_context={context!r}):
    pass
"""


def _loader(what: str, *, context: str = "fork") -> str:
    return _LOADER.format(what=what, context=context)


_GLOO = """
import tempfile, torch.distributed as d
d.init_process_group("gloo", init_method="file://" + tempfile.mktemp(), rank=0, world_size=1)
"""
_UNUSED = """
import tempfile, torch, torch.distributed as d
d.init_process_group("gloo", init_method="file://" + tempfile.mktemp(), rank=0, world_size=1)
class Two(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    def forward(self, x):
        return self.a(x)
model = torch.nn.parallel.DistributedDataParallel(Two())
for _ in range(2):
    model(torch.ones(1, 2)).sum().backward()
"""
_OPEN_FILES = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
files = [open("/dev/null") for _ in range(100)]
"""
_SERVER = """
import socket, uvicorn
first = socket.create_server(("127.0.0.1", 0))
uvicorn.run(lambda scope: None, host="127.0.0.1", port=first.getsockname()[1])
"""
_FORM = """
import sys
sys.modules["python_multipart"] = sys.modules["multipart"] = None
import asyncio
from starlette.requests import Request
async def main():
    await Request({"type": "http", "headers": [(b"content-type", b"multipart/form-data; boundary=a")]}).form()
asyncio.run(main())
"""
IN_PROCESSES = [
    ("port of a server in use", _SERVER, {}),
    ("form parser not installed", _FORM, {}),
    (
        "shared memory too small",
        _loader("os.kill(os.getpid(), signal.SIGBUS)"),
        {},
    ),
    (
        "killed for its memory",
        _loader("os.kill(os.getpid(), signal.SIGKILL)"),
        {},
    ),
    ("worker crashed", _loader("os.kill(os.getpid(), signal.SIGSEGV)"), {}),
    ("main module is not guarded", _loader("pass", context="spawn"), {}),
    ("disk full", _loader("os.write(os.open('/dev/full', os.O_WRONLY), b'a')"), {}),
    ("no network interface for ranks", _GLOO, {"GLOO_SOCKET_IFNAME": "nothing0"}),
    ("parameters without gradient", _UNUSED, {"GLOO_SOCKET_IFNAME": "lo"}),
    ("too many open files", _OPEN_FILES, {}),
]


@pytest.mark.dist
@pytest.mark.parametrize(("name", "script", "variables"), [pytest.param(*case, id=case[0]) for case in IN_PROCESSES])
def test_what_ends_a_process_is_explained(name: str, script: str, variables: dict[str, str], tmp_path: Path) -> None:

    (tmp_path / "script.py").write_text(script)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py")],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        env={**os.environ, **variables},
    )
    assert done.returncode != 0
    found = explain_error(done.stdout + done.stderr)
    assert found.best is not None and found.best.name == name, (done.stderr, found.best)

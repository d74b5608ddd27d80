"""Files that were made to do harm are refused before anything in them is run or any other file is read."""

from __future__ import annotations

import io
import json
import pickle
import sys
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from tests.unit.deploy.export.forms import CPU, folder_of

from detronome.deploy.export.onnx import open_onnx
from detronome.deploy.export.openvino import open_openvino
from detronome.deploy.export.tensorrt import open_tensorrt, require_tensorrt
from detronome.deploy.export.torch_program import open_torch_program
from detronome.errors import CheckpointError, ConfigError, MissingExtraError

Edit = Callable[[dict[str, bytes]], None]


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (f"open({str(self.canary)!r}, 'w').close()",)


def external(name: str, location: str) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


def onnx_file(path: Path, *, where: str, tensor: TensorProto) -> Path:
    """Write a graph that adds a tensor to its input; the tensor is an initializer, an attribute, or in a subgraph."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    constant = helper.make_node("Constant", [], ["w"], value=tensor)
    add = helper.make_node("Add", ["x", "w"], ["y"])
    if where == "initializer":
        graph = helper.make_graph([add], "g", [x], [y], [tensor])
    elif where == "attribute":
        graph = helper.make_graph([constant, add], "g", [x], [y])
    else:
        inner = helper.make_graph(
            [constant, helper.make_node("Identity", ["w"], ["z"])],
            "i",
            [],
            [helper.make_tensor_value_info("z", TensorProto.FLOAT, [2])],
        )
        yes = helper.make_node("Constant", [], ["c"], value=helper.make_tensor("c", TensorProto.BOOL, [], [True]))
        branch = helper.make_node("If", ["c"], ["v"], then_branch=inner, else_branch=inner)
        graph = helper.make_graph([yes, branch, helper.make_node("Add", ["x", "v"], ["y"])], "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("where", ["initializer", "attribute", "subgraph"])
@pytest.mark.parametrize("location", ["weights.bin", "../secret", "/etc/passwd"])
def test_onnx_with_weights_in_other_files_is_refused(where: str, location: str, tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(bytes(8))
    file = onnx_file(tmp_path / "model.onnx", where=where, tensor=external("w", location))
    with pytest.raises(CheckpointError, match="points to weights in other files"):
        open_onnx(file, device=CPU)


def test_the_same_graph_with_its_weights_inside_runs(tmp_path: Path) -> None:
    tensor = onnx.numpy_helper.from_array(np.ones(2, np.float32), "w")
    for where in ("initializer", "attribute", "subgraph"):
        open_onnx(onnx_file(tmp_path / "model.onnx", where=where, tensor=tensor), device=CPU)


@pytest.mark.parametrize("content", [b"", b"\x08", b"PK\x03\x04", b"not a model" * 50])
def test_files_that_are_none_are_told(content: bytes, tmp_path: Path) -> None:
    for name, open_form in (("m.onnx", open_onnx), ("m.xml", open_openvino), ("m.pt2", open_torch_program)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError):
            open_form(tmp_path / name, device=CPU)


def edited(path: Path, edit: Edit) -> Path:
    """Write a copy of a sound program with its members changed."""
    with zipfile.ZipFile(folder_of("nano") / "model.pt2") as archive:
        members = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    edit(members)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"model/{name}", content)
    return path


def replaced(old: str, new: str) -> Edit:
    def edit(members: dict[str, bytes]) -> None:
        text = members["models/model.json"].decode()
        assert old in text
        members["models/model.json"] = text.replace(old, new, 1).encode()

    return edit


def with_code(members: dict[str, bytes]) -> None:
    record = json.loads(members["models/model.json"])
    record["guards_code"] = ["print('here')"]
    members["models/model.json"] = json.dumps(record).encode()


def changed(edit: Callable[[dict[str, Any], Path], None]) -> Callable[[Path], Edit]:
    """Return what changes the graph's record, given the file that must not appear."""

    def of(canary: Path) -> Edit:
        def edit_members(members: dict[str, bytes]) -> None:
            record = json.loads(members["models/model.json"])
            edit(record, canary)
            members["models/model.json"] = json.dumps(record).encode()

        return edit_members

    return of


def with_a_function(record: dict[str, Any], canary: Path) -> None:
    argument = {"name": "", "arg": {"as_operator": "torch.os.system"}, "kind": 1}
    record["graph_module"]["graph"]["nodes"][0]["inputs"].append(argument)


def with_a_file(record: dict[str, Any], canary: Path) -> None:
    """Map a file, which is made where there is none, and can be written to."""
    node = next(node for node in record["graph_module"]["graph"]["nodes"] if "arange" in node["target"])
    node["target"] = "torch.ops.aten.from_file.default"
    values = {"filename": {"as_string": str(canary)}, "shared": {"as_bool": True}, "size": {"as_int": 8}}
    node["inputs"] = [{"name": name, "arg": value, "kind": 1} for name, value in values.items()]


def with_code_for_a_name(record: dict[str, Any], canary: Path) -> None:
    """Torch writes the names of inputs into the head of a function, as they stand."""
    text = json.dumps(record["graph_module"])
    evil = f"images=open('{canary}', 'w'), *_"
    record["graph_module"] = json.loads(text.replace('"images"', json.dumps(evil)))


def with_an_import(record: dict[str, Any], canary: Path) -> None:
    """Torch imports the module in which it is told to look for an enumeration."""
    (canary.parent / "harmful.py").write_text(f"open({str(canary)!r}, 'w').close()\nnames = {{'a': 1}}\n")
    signature = record["graph_module"]["module_call_graph"][0]["signature"]
    context = json.dumps(json.dumps([{"__enum__": True, "fqn": "harmful:names", "name": "a"}]))
    plain = '"builtins.dict", "context": "[]"'
    assert plain in signature["in_spec"]
    signature["in_spec"] = signature["in_spec"].replace(plain, f'"collections.OrderedDict", "context": {context}')


def pickled(member: str, path_name: str | None = None) -> Callable[[Path], Edit]:
    def of(canary: Path) -> Edit:
        def edit(members: dict[str, bytes]) -> None:
            members[member] = pickle.dumps(Bomb(canary))
            if path_name is not None:
                config = json.loads(members["data/constants/model_constants_config.json"])
                entry = next(iter(config["config"].values()))
                config["config"]["more"] = {**entry, "use_pickle": True, "path_name": path_name, "tensor_meta": None}
                members["data/constants/model_constants_config.json"] = json.dumps(config).encode()

        return edit

    return of


def pickled_weight(canary: Path) -> Edit:
    def edit(members: dict[str, bytes]) -> None:
        config = json.loads(members["data/weights/model_weights_config.json"])
        entry = next(iter(config["config"].values()))
        entry["use_pickle"] = True
        buffer = io.BytesIO()
        torch.save(Bomb(canary), buffer)
        members[f"data/weights/{entry['path_name']}"] = buffer.getvalue()
        members["data/weights/model_weights_config.json"] = json.dumps(config).encode()

    return edit


@pytest.mark.parametrize(
    "harm",
    [
        pickled("data/sample_inputs/model.pt"),
        pickled("data/constants/opaque_obj_0", "opaque_obj_0"),
        pickled("data/constants/custom_obj_0", "custom_obj_0"),
        pickled("data/constants/tensor_0", "tensor_0"),
        pickled("data/weights/model.pt"),
        pickled("data/constants/model.pt"),
        pickled("models/other.json"),
        pickled("data/aotinductor/model/x.so"),
        pickled_weight,
        lambda canary: with_code,
        changed(with_a_function),
        changed(with_a_file),
        changed(with_code_for_a_name),
        changed(with_an_import),
        lambda canary: replaced('"torch.ops.aten.add.Tensor"', '"torch.hub.load"'),
        lambda canary: replaced('"torch.ops.aten.add.Tensor"', '"builtins.exec"'),
        lambda canary: replaced("Symbol('s", f"exec(\\\"open('{canary}','w')\\\") or Symbol('s"),
        lambda canary: replaced("Integer(", "().__class__.__base__.__subclasses__("),
        lambda canary: replaced("Integer(", "eval("),
    ],
)
def test_programs_that_do_more_than_compute_are_refused(
    harm: Callable[[Path], Edit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    canary = tmp_path / "canary"
    file = edited(tmp_path / "model.pt2", harm(canary))
    with pytest.raises(CheckpointError, match="safe to load"):
        run = open_torch_program(file, device=CPU)
        run(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), torch.zeros(1, 64, 64, dtype=torch.bool))
    assert not canary.exists()


def test_an_unchanged_copy_of_a_program_is_loaded(tmp_path: Path) -> None:
    open_torch_program(edited(tmp_path / "model.pt2", lambda members: None), device=CPU)


def test_a_program_with_a_part_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    file = edited(tmp_path / "model.pt2", lambda members: None)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(file, "a") as archive:
        archive.writestr("model/models/model.json", "{}")
    with pytest.raises(CheckpointError, match="twice"):
        open_torch_program(file, device=CPU)


def test_a_program_whose_parts_are_compressed_is_refused(tmp_path: Path) -> None:
    """A small file could fill any memory."""
    sound, packed = folder_of("nano") / "model.pt2", tmp_path / "model.pt2"
    with zipfile.ZipFile(sound) as archive, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as copy:
        for name in archive.namelist():
            copy.writestr(name, archive.read(name))
    with pytest.raises(CheckpointError, match="compressed"):
        open_torch_program(packed, device=CPU)


@pytest.mark.parametrize(
    "config", [[], {}, {"config": []}, {"config": {"a": None}}, {"config": {"a": {"path_name": 1}}}]
)
def test_records_of_another_kind_end_in_no_other_error(config: Any, tmp_path: Path) -> None:
    def edit(members: dict[str, bytes]) -> None:
        members["data/weights/model_weights_config.json"] = json.dumps(config).encode()

    with pytest.raises(CheckpointError, match="safe to load"):
        open_torch_program(edited(tmp_path / "model.pt2", edit), device=CPU)


@pytest.mark.parametrize("name", ["model.onnx", "model.pt2", "model.xml", "model.onnx.json"])
def test_a_file_does_not_tell_where_it_was_made(name: str) -> None:
    content = (folder_of("nano") / name).read_bytes()
    for place in (Path(onnx.__file__).parents[1], Path(__file__).parents[4], folder_of("nano")):
        assert str(place).encode() not in content


@given(st.binary(max_size=200), st.integers(0, 10**6))
def test_damaged_programs_end_in_no_other_error(noise: bytes, place: int) -> None:
    """What the digest of the description would find before."""
    content = (folder_of("nano") / "model.pt2").read_bytes()
    place %= len(content)
    file = folder_of("nano") / "damaged.pt2"
    file.write_bytes(content[:place] + noise + content[place + len(noise) + 1 :])
    with suppress(CheckpointError):
        open_torch_program(file, device=CPU)


@pytest.mark.parametrize(
    ("package", "extra", "open_form", "name"),
    [
        ("onnx", "onnx", open_onnx, "model.onnx"),
        ("onnxruntime", "onnx", open_onnx, "model.onnx"),
        ("openvino", "openvino", open_openvino, "model.xml"),
        ("tensorrt", "tensorrt", open_tensorrt, "model.engine"),
    ],
)
def test_a_missing_package_is_told_with_the_line_that_installs_it(
    package: str, extra: str, open_form: Callable[..., object], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"pip install 'detronome\[{extra}\]'"):
        open_form(Path(name), device=CPU)


def test_tensorrt_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", type(sys)("tensorrt"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="needs a CUDA device"):
        require_tensorrt(needed_for="exporting to tensorrt")


def test_forms_say_which_device_they_run_on() -> None:
    cuda = torch.device("cuda")
    with pytest.raises(ConfigError, match="cannot compute on cuda"):
        open_onnx(folder_of("nano") / "model.onnx", device=cuda)
    with pytest.raises(ConfigError, match="runs on the CPU"):
        open_openvino(folder_of("nano") / "model.xml", device=cuda)

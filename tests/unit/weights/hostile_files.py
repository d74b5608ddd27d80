"""Files that nobody should load: damaged, cut, lying about sizes, or with code in them.

Each maker writes one case into a folder, drawn from `rng`, and returns what a user would name. `Makers.marker` is a
file that any code in a case would create.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import os
import pickle
import shutil
import struct
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

__all__ = ["KINDS", "Sound", "write_sound"]

State = dict[str, Tensor]


class Code:
    """Pickles to a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


@dataclass(frozen=True)
class Sound:
    """Files that load, and what they were made from."""

    state: State
    zipped: Path
    legacy: Path
    safetensors: Path
    hub: Path
    """A folder: config.json and model.safetensors."""


def write_sound(state: State, folder: Path) -> Sound:
    """Write the same weights in every form, as bfloat16 to be small."""
    state = {key: value.bfloat16().contiguous() for key, value in state.items()}
    folder.mkdir(parents=True)
    content = {"model": state, "args": argparse.Namespace(nheads=4, dilation=False, dropout=0.1, lr=1e-4)}
    torch.save(content, folder / "zipped.pth")
    torch.save(content, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    save_file(state, folder / "weights.safetensors")
    hub = folder / "hub"
    hub.mkdir()
    os.link(folder / "weights.safetensors", hub / "model.safetensors")
    (hub / "config.json").write_text(json.dumps(hub_config()))
    return Sound(state, folder / "zipped.pth", folder / "legacy.pth", folder / "weights.safetensors", hub)


def hub_config() -> dict[str, Any]:
    return {
        "model_type": "detr",
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "dilation": False,
        "id2label": {str(label): f"thing {label}" for label in range(91)},
    }


def _cut(source: str) -> Callable[[Random, Path, Sound], Path]:
    def make(rng: Random, folder: Path, sound: Sound) -> Path:
        path = Path(shutil.copy(getattr(sound, source), folder))
        size = path.stat().st_size
        # Ends and beginnings are where formats keep what matters.
        os.truncate(path, rng.choice([rng.randrange(size), rng.randrange(2000), size - 1 - rng.randrange(2000)]))
        return path

    return make


def _flip(path: Path, rng: Random, positions: range) -> None:
    with path.open("r+b") as file:
        for position in rng.sample(positions, rng.choice([1, 1, 3, 20])):
            file.seek(position)
            byte = file.read(1)[0] ^ (1 << rng.randrange(8))
            file.seek(position)
            file.write(bytes([byte]))


def _flipped_zip(rng: Random, folder: Path, sound: Sound) -> Path:
    """Bits flipped within the tensors and the pickle; names of the format's own parts may change harmlessly."""
    path = Path(shutil.copy(sound.zipped, folder))
    with zipfile.ZipFile(path) as archive:
        members = [m for m in archive.infolist() if "/data" in m.filename and m.file_size > 1000]
        member = rng.choice(members)
        with archive.open(member) as opened:
            start = opened._orig_compress_start  # type: ignore[attr-defined]
    _flip(path, rng, range(start, start + member.file_size))
    return path


def _flipped_named(rng: Random, folder: Path, sound: Sound) -> Path:
    """A file named as official ones, damaged anywhere."""
    source = rng.choice([sound.zipped, sound.legacy])
    digits = hashlib.sha256(source.read_bytes()).hexdigest()[:8]
    path = Path(shutil.copy(source, folder / f"detr-r50-{digits}.pth"))
    _flip(path, rng, range(path.stat().st_size))
    return path


def _flipped_header(rng: Random, folder: Path, sound: Sound) -> Path:
    path = Path(shutil.copy(sound.safetensors, folder))
    (length,) = struct.unpack("<Q", path.read_bytes()[:8])
    _flip(path, rng, range(8 + length))
    return path


def _payload(rng: Random, marker: Path) -> Code:
    script = f"open({str(marker)!r}, 'w').close()"
    return rng.choice(
        [
            Code(os.system, f"touch {marker}"),
            Code(open, str(marker), "w"),
            Code(exec, script),
            Code(eval, script),
            Code(os.mkdir, str(marker)),
            Code(Path.touch, marker),
            Code(partial(open, str(marker)), "w"),
            Code(getattr, Code(__import__, "os"), "system"),
            Code(torch.save, {}, str(marker)),
            Code(shutil.copy, __file__, str(marker)),
            Code(bytearray, 2**33),
            Code(torch.hub.download_url_to_file, f"file://{__file__}", str(marker)),
        ]
    )


def _code(rng: Random, folder: Path, sound: Sound) -> Path:
    """Code in a place of a checkpoint that may look harmless."""
    marker = folder / "marker"
    payload = _payload(rng, marker)
    state = dict(list(sound.state.items())[:3])
    content: Any = rng.choice(
        [
            payload,
            {"model": state, "args": payload},
            {"model": state, "args": argparse.Namespace(lr=payload)},
            {"model": {**state, "x": payload}},
            OrderedDict(model=state, optimizer=[{"state": payload}]),
            [payload],
        ]
    )
    path = folder / rng.choice(["a.pth", "a.bin", "a.safetensors"])
    form = rng.choice(["zip", "legacy", "pickle", "zip protocol 4"])
    if form == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=rng.randrange(6)))
    elif form == "zip protocol 4":
        torch.save(content, path, pickle_protocol=4)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    return path


def _raw_code(rng: Random, folder: Path, sound: Sound) -> Path:
    """Instructions that no pickler writes, where torch's reader expects its pickle."""
    touch = f"touch {folder / 'marker'}".encode()
    body = rng.choice(
        [
            b"cos\nsystem\n(S'" + touch + b"'\ntR.",
            b"(S'" + touch + b"'\nios\nsystem\n.",
            b"\x80\x02cposix\nsystem\nX" + struct.pack("<I", len(touch)) + touch + b"\x85R.",
            b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c" + bytes([len(touch)]) + touch + b"\x85R.",
            b"\x80\x02cbuiltins\nexec\nX\x04\x00\x00\x00pass\x85R.",
            b"\x80\x02ctorch.serialization\nload\nX\x01\x00\x00\x00x\x85R.",
            b"\x80\x02ccollections\nOrderedDict\n)R}X\x0c\x00\x00\x00__setstate__cos\nsystem\nsbX\x01\x00\x00\x00xb.",
        ]
    )
    path = folder / "raw.pth"
    if rng.random() < 0.5:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("raw/data.pkl", body)
            archive.writestr("raw/version", "3\n")
    else:
        path.write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03." + body * 3)
    return path


def _code_in_hub(rng: Random, folder: Path, sound: Sound) -> Path:
    (folder / "config.json").write_text(json.dumps(hub_config()))
    torch.save({"x": _payload(rng, folder / "marker")}, folder / "pytorch_model.bin")
    return folder


def _rewritten_zip(source: Path, target: Path, change: Callable[[str, bytes], bytes], *, packed: bool) -> None:
    method = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", method) as new:
        for member in old.infolist():
            new.writestr(member.filename, change(member.filename, old.read(member)))


def _bomb(rng: Random, folder: Path, sound: Sound) -> Path:
    """A small file that would fill much memory."""
    path, small = folder / "bomb.pth", folder / "small.pth"
    torch.save({"model": {"x": torch.zeros(1000)}}, small)
    num_bytes = rng.randrange(10_000_000, 60_000_000)
    part = rng.choice(["data.pkl", "data/0", "padding"])
    change = partial(_blown_up, part=part, num_bytes=num_bytes)
    _rewritten_zip(small, path, change, packed=True)
    if part == "padding":
        with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("small/padding", b"\0" * num_bytes)
    small.unlink()
    return path


def _blown_up(name: str, content: bytes, *, part: str, num_bytes: int) -> bytes:
    return content + b"\0" * num_bytes if name.endswith(part) else content


def _overlapping(rng: Random, folder: Path, sound: Sound) -> Path:
    """Many parts that are the same bytes of the file."""
    path = folder / "overlap.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps({}, protocol=2))
        archive.writestr("a/data/0", b"\0" * 1_000_000)
        one = archive.getinfo("a/data/0")
        for number in range(1, rng.randrange(3, 2000)):
            again = zipfile.ZipInfo(f"a/data/{number}")
            again.header_offset, again.CRC = one.header_offset, one.CRC
            again.file_size = again.compress_size = one.file_size
            archive.filelist.append(again)
            archive.NameToInfo[again.filename] = again
    return path


def _save(content: Any, folder: Path, rng: Random, name: str = "changed") -> Path:
    if isinstance(content, dict) and rng.random() < 0.4:
        save_file({key: value.contiguous().clone() for key, value in content.items()}, folder / f"{name}.safetensors")
        return folder / f"{name}.safetensors"
    torch.save({"model": content}, folder / f"{name}.pth", _use_new_zipfile_serialization=rng.random() < 0.5)
    return folder / f"{name}.pth"


def _shapes(rng: Random, folder: Path, sound: Sound) -> Path:
    state = dict(sound.state)
    for key in rng.sample(sorted(state), rng.randrange(1, 8)):
        value = state[key]
        state[key] = rng.choice(
            [value[None], value.flatten()[:1], value.flatten()[0], value[:0], torch.cat([value, value])]
        )
    return _save(state, folder, rng)


def _not_finite(rng: Random, folder: Path, sound: Sound) -> Path:
    state = dict(sound.state)
    for key in rng.sample(sorted(state), rng.choice([1, 1, 5, 100])):
        value = state[key].clone()
        value.view(-1)[rng.randrange(value.numel())] = rng.choice([float("nan"), float("inf"), float("-inf")])
        state[key] = value
    return _save(state, folder, rng)


def _missing(rng: Random, folder: Path, sound: Sound) -> Path:
    gone = set(rng.sample(sorted(sound.state), rng.choice([1, 1, 10, len(sound.state) - 1])))
    return _save({key: value for key, value in sound.state.items() if key not in gone}, folder, rng)


def _extra(rng: Random, folder: Path, sound: Sound) -> Path:
    name = rng.choice(
        [
            "transformer.decoder.layers.3.linear1.weight",
            "transformer.decoder.layers.999999999.linear1.weight",
            "backbone.0.body.layer4.2.conv1.weight",
            "transformer.level_embed",
            "something",
            "module.class_embed.weight",
            "\x1b[31m" * 50,
            "x" * 5000,
        ]
    )
    return _save({**sound.state, name: torch.zeros(rng.randrange(9))}, folder, rng)


def _odd_tensors(rng: Random, folder: Path, sound: Sound) -> Path:
    state: dict[Any, Any] = dict(sound.state)
    key = rng.choice(["query_embed.weight", "class_embed.bias", "input_proj.weight"])
    value = state[key].float()
    odd: Any = rng.choice(
        [
            lambda: value.to_sparse(),
            lambda: value.to(torch.complex64),
            lambda: value.to(torch.int64),
            lambda: value.bool(),
            lambda: value.to("meta"),
            lambda: torch.zeros(1).expand(value.shape),
            lambda: torch.zeros(1).as_strided((10**6, 10**6), (0, 0)),
            lambda: torch.empty(2**62, 0),
            lambda: "text",
            lambda: {"nested": value},
            lambda: value.to(torch.float8_e4m3fn),
        ]
    )()
    state[key] = odd
    if rng.random() < 0.2:
        state[7] = value
    torch.save({"model": state}, folder / "odd.pth", _use_new_zipfile_serialization=rng.random() < 0.5)
    return folder / "odd.pth"


def _no_checkpoint(rng: Random, folder: Path, sound: Sound) -> Path:
    path = folder / rng.choice(["a.pth", "a.safetensors", "a.bin"])
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("word/document.xml", "<w/>")
    tarred = io.BytesIO()
    with tarfile.open(fileobj=tarred, mode="w") as tar:
        for name in ("storages", "tensors", "pickle"):
            member = tarfile.TarInfo(name)
            member.size = 5
            tar.addfile(member, io.BytesIO(b"\x80\x02K\x00."))
    content = rng.choice(
        [
            b"",
            b"\0",
            b"{}",
            b"<!DOCTYPE html><html>login</html>",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n",
            b"\x89PNG\r\n\x1a\n" + rng.randbytes(100),
            rng.randbytes(rng.randrange(5000)),
            b"PK\x03\x04" + rng.randbytes(rng.randrange(5000)),
            b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + rng.randbytes(rng.randrange(5000)),
            gzip.compress(b"weights"),
            pickle.dumps({"weights": [1.0, 2.0]}),
            packed.getvalue(),
            tarred.getvalue(),
        ]
    )
    path.write_bytes(content)
    return path


def _other_content(rng: Random, folder: Path, sound: Sound) -> Path:
    """Sound files of torch.save and safetensors that hold something else."""
    content = rng.choice(
        [
            [],
            {},
            {"model": {}},
            {"model": None, "epoch": 3},
            torch.zeros(3),
            {"state_dict": {"fc.weight": torch.zeros(3, 3)}},
            {"model": {1: torch.zeros(3)}},
            {"x": torch.zeros(3), "epoch": 3},
            argparse.Namespace(model=3),
            "text",
            None,
            {"model": {"transformer.decoder.layers.0.linear1.weight": torch.zeros(0)}},
            {"model": {"class_embed.weight": torch.zeros(2**10, 2), "transformer.encoder.layers.0.x": torch.zeros(1)}},
            {"model": {f"transformer.decoder.layers.{i}.x": torch.zeros(1) for i in range(500)}},
            {"model": {"decoder.enc_score_head.weight": torch.zeros(0, 3)}},
            {"model": {"decoder.dec_score_head.0.weight": torch.zeros(4, 3)}},
        ]
    )
    torch.save(content, folder / "other.pth", _use_new_zipfile_serialization=rng.random() < 0.5)
    return folder / "other.pth"


def _claims(rng: Random, folder: Path, sound: Sound) -> Path:
    """A pickle that claims tensors or storages far larger than the file."""
    path, small = folder / "claims.pth", folder / "small.pth"
    huge = struct.pack("<i", rng.choice([2**30, 2**31 - 1, 2**28]))
    is_zip = rng.random() < 0.5
    torch.save({"model": {"x": torch.zeros(4)}}, small, _use_new_zipfile_serialization=is_zip)
    where = rng.choice([b"K\x04\x85", b"K\x04t", b"K\x04N"])

    def change(name: str, content: bytes) -> bytes:
        return content.replace(where, b"J" + huge + where[2:]) if not name or name.endswith("data.pkl") else content

    if is_zip:
        _rewritten_zip(small, path, change, packed=False)
    else:
        path.write_bytes(change("", small.read_bytes()))
    small.unlink()
    return path


def _shared(rng: Random, folder: Path, sound: Sound) -> Path:
    """Tensors of all shapes that are the same few bytes: each is sound, and all of them are a large network."""
    values = torch.zeros(max(value.numel() for value in sound.state.values()), dtype=torch.bfloat16)
    state = {key: values[: value.numel()].view(value.shape) for key, value in sound.state.items()}
    state |= {f"transformer.encoder.layers.{i}.linear1.weight": values for i in range(2, rng.randrange(20, 60))}
    torch.save(state, folder / "shared.pth", _use_new_zipfile_serialization=rng.random() < 0.5)
    return folder / "shared.pth"


def _endless_key(rng: Random, folder: Path, sound: Sound) -> Path:
    """A key made of tuples within tuples: hashing it takes all the stack, or years."""
    number = b"K" + rng.randbytes(1)
    nested = rng.choice([b"\x85" * 1_000_000, b"q\0h\0\x86" * 50, b"q\0(" + b"h\0" * 99 + b"t" + b"q\0h\0\x86" * 40])
    path = folder / "key.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("key/data.pkl", b"\x80\x02}" + number + nested + number + b"s.")
        archive.writestr("key/version", "3\n")
    return path


def _header(rng: Random, folder: Path, sound: Sound) -> Path:
    """A safetensors file whose header lies."""
    entry = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    header: Any = rng.choice(
        [
            {"x": {**entry, "data_offsets": [0, 2**60]}},
            {"x": {**entry, "data_offsets": [16, 0]}},
            {"x": {**entry, "data_offsets": [-16, 0]}},
            {"x": {**entry, "shape": [2**60]}},
            {"x": {**entry, "shape": [2**62, 2**62]}},
            {"x": {**entry, "shape": [-4]}},
            {"x": {**entry, "dtype": "F99"}},
            {"x": {**entry, "dtype": "F64"}},
            {"x": entry, "y": entry},
            {"x": {**entry, "data_offsets": [4, 20]}},
            {"x": []},
            {"x": {"dtype": "F32"}},
            {"__metadata__": {"a": 1}},
            {"__metadata__": [], "x": entry},
            [],
            "x",
        ]
    )
    text = json.dumps(header).encode()
    text = rng.choice([text] * 4 + [text[:-1], b"{" * 50_000, b'{"x":' * 30_000, b"{" + b" " * 1000 + b"}"])
    length = rng.choice([len(text)] * 6 + [2**60, 2**64 - 1, len(text) + 1, 99_999_999, 0])
    path = folder / "lies.safetensors"
    path.write_bytes(struct.pack("<Q", length) + text + b"\0" * 16)
    return path


_BROKEN_CONFIGS: tuple[Callable[[dict[str, Any]], Any], ...] = (
    lambda config: [config],
    lambda config: 3,
    lambda config: None,
    lambda config: {**config, "model_type": "bert"},
    lambda config: {**config, "model_type": ["detr"]},
    lambda config: {**config, "model_type": "rt_detr_v2"},
    lambda config: {**config, "id2label": {"0": "one"}},
    lambda config: {**config, "id2label": ["a"] * 91},
    lambda config: {**config, "id2label": {str(label): label for label in range(91)}},
    lambda config: {**config, "id2label": {f"x{label}": "a" for label in range(91)}},
    lambda config: {**config, "encoder_attention_heads": 0, "decoder_attention_heads": 0},
    lambda config: {**config, "encoder_attention_heads": 5, "decoder_attention_heads": 5},
    lambda config: {**config, "encoder_attention_heads": -4, "decoder_attention_heads": -4},
    lambda config: {**config, "encoder_attention_heads": "8"},
    lambda config: {**config, "encoder_attention_heads": 10**400},
    lambda config: {**config, "decoder_attention_heads": 2},
    lambda config: {**config, "dilation": "yes"},
    lambda config: {**config, "dropout": [0.1]},
    lambda config: {**config, "dropout": -3},
    lambda config: {**config, "dropout": 10**400},
    lambda config: {**config, "position_embedding_type": "learned"},
    lambda config: {**config, "activation_function": {"a": 1}},
    lambda config: {**config, "num_channels": 4},
    lambda config: {**config, "backbone_config": {"downsample_in_bottleneck": True}},
)


def _broken_config(rng: Random, folder: Path, sound: Sound) -> Path:
    os.link(sound.hub / "model.safetensors", folder / "model.safetensors")
    text = json.dumps(rng.choice(_BROKEN_CONFIGS)(hub_config()))
    text = rng.choice([text] * 8 + [text[: rng.randrange(len(text))], "[" * 100_000, '{"a":' * 100_000, "\0" + text])
    (folder / "config.json").write_text(text)
    return rng.choice([folder, folder / "model.safetensors"])


def _broken_index(rng: Random, folder: Path, sound: Sound) -> Path:
    outside = folder.parent / "outside.safetensors"
    outside.write_bytes(b"secret")
    keys = sorted(sound.state)
    shard = "model-00001-of-00001.safetensors"
    os.link(sound.hub / "model.safetensors", folder / shard)
    weight_map: Any = rng.choice(
        [
            dict.fromkeys(keys, "../outside.safetensors"),
            {key: str(outside) for key in keys},
            dict.fromkeys(keys, "/etc/passwd"),
            dict.fromkeys(keys, "missing.safetensors"),
            {**dict.fromkeys(keys, shard), "x": "missing.safetensors"},
            dict.fromkeys(keys, 3),
            dict.fromkeys(keys, ""),
            dict.fromkeys(keys, "."),
            dict.fromkeys(keys, "config.json"),
            {key: f"{number}.safetensors" for number, key in enumerate(keys * 20)},
            [],
            {},
            None,
        ]
    )
    (folder / "config.json").write_text(json.dumps(hub_config()))
    text = json.dumps(rng.choice([{"weight_map": weight_map}] * 5 + [[], {}]))
    (folder / "model.safetensors.index.json").write_text(text)
    return folder


def _incomplete_hub(rng: Random, folder: Path, sound: Sound) -> Path:
    (folder / "config.json").write_text(json.dumps(hub_config()))
    if rng.random() < 0.5:
        (folder / "model.safetensors").mkdir()
    if rng.random() < 0.5:
        (folder / "pytorch_model.bin").write_bytes(b"")
    return folder


KINDS: dict[str, Callable[[Random, Path, Sound], Path]] = {
    "cut zip": _cut("zipped"),
    "cut legacy file": _cut("legacy"),
    "cut safetensors": _cut("safetensors"),
    "flipped bits in a zip": _flipped_zip,
    "flipped bits in an official file": _flipped_named,
    "flipped bits in a safetensors header": _flipped_header,
    "code": _code,
    "code in raw instructions": _raw_code,
    "code in a Hugging Face folder": _code_in_hub,
    "zip bomb": _bomb,
    "overlapping zip": _overlapping,
    "wrong shapes": _shapes,
    "values not finite": _not_finite,
    "missing tensors": _missing,
    "unknown tensors": _extra,
    "odd tensors": _odd_tensors,
    "no checkpoint": _no_checkpoint,
    "other content": _other_content,
    "huge claims": _claims,
    "shared values": _shared,
    "endless key": _endless_key,
    "lying header": _header,
    "broken config.json": _broken_config,
    "broken index": _broken_index,
    "incomplete folder": _incomplete_hub,
}

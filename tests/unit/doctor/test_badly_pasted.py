"""Texts as they come out of terminals, logs, chats and cut-off windows; and healthy logs that speak of errors."""

import json
import os
import random
import re
from collections.abc import Callable

import pytest
from tests.cpu_time import CpuTime
from tests.unit.doctor.pasted_texts import HEALTHY, PASTED

from detronome.doctor.explain import explain_error
from detronome.doctor.symptoms import SYMPTOMS, Symptom

# The lines are as long as people paste them.
# ruff: noqa: E501


def each_line(before: str, after: str = "") -> Callable[[str], str]:
    return lambda text: "\n".join(f"{before}{line}{after}" for line in text.split("\n"))


def broken_at(width: int) -> Callable[[str], str]:
    def wrap(text: str) -> str:
        lines = [
            line[place : place + width] for line in text.split("\n") for place in range(0, max(1, len(line)), width)
        ]
        return "\n".join(["-" * width, *lines])  # some line reaches the edge

    return wrap


PASTES: dict[str, Callable[[str], str]] = {
    "colours": each_line("\x1b[1;31m", "\x1b[0m"),
    "colours within words": lambda text: re.sub("(Error|error|failed)", "\x1b[91m\\1\x1b[39m", text),
    "a title of the terminal": lambda text: "\x1b]0;train\x07" + text,
    "ends of lines of Windows": lambda text: text.replace("\n", "\r\n"),
    "docker compose": each_line("trainer-1  | "),
    "a rank": each_line("[rank3]: "),
    "torchrun": each_line("[default0]:"),
    "logging": each_line("2026-11-21 10:00:00,123 ERROR root train.py:12 - "),
    "kubectl": each_line("2026-11-21T10:00:00.123456789Z stderr F "),
    "a mail": each_line("> "),
    "indented": each_line("        "),
    "a code block": lambda text: f"it says\n```\n{text}\n```\nwhat can I do?",
    "a log of JSON": lambda text: json.dumps({"log": text, "stream": "stderr"}),
    "UTF-16": lambda text: text.encode("utf-16").decode(errors="replace"),
    "quotes of a word processor": lambda text: text.replace("'", "\u2019").replace(' "', " \u201c"),
    "spaces of a web page": lambda text: text.replace(" ", "\u00a0"),
    "a byte order mark": lambda text: "\ufeff" + text,
    "lines broken by a terminal": broken_at(80),
}


@pytest.mark.parametrize("paste", PASTES.values(), ids=PASTES)
def test_however_it_is_pasted_the_cause_is_found(paste: Callable[[str], str]) -> None:
    lost = {}
    for name, texts in PASTED.items():
        for text in texts:
            best = explain_error(paste(text)).best
            if best is None or best.name != name:
                lost[text[:60]] = (name, best and best.name)
    # A broken line may hide the special words of an error whose general ones are still there.
    assert len(lost) <= (1 if paste is PASTES["lines broken by a terminal"] else 0), lost
    assert all(found for _, found in lost.values()), lost


OWN = {
    "GPU memory ran out": 'step 412  loss 3.1\nTraceback (most recent call last):\n  File "/srv/train.py", line 9, in <module>\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 512.00 MiB. GPU 3 has a total cap',
    "shared memory too small": "ERROR: Unexpected bus error encountered in worker. This might be caused by insuff",
    "killed for its memory": "Nov 21 10:00 node kernel: Out of memory: Killed process 4711 (python) total-vm:123456kB",
    "disk full": "cp: error writing 'a.tar': No space left on device",
    "too many open files": "OSError: [Errno 24] Too many open files: '/proc/stat'",
    "port in use": "RuntimeError: The server socket has failed to listen on any local network address. EADDRINUSE",
    "port of a server in use": "INFO:     Started server process [7]\nERROR:    [Errno 98] error while attempting to bind on address ('0.0.0.0', 8000): [errno 98] address already in use",
    "OpenCV without its system libraries": "  import cv2\nImportError: libGL.so.1: cannot open shared object file: No such file",
    "package not installed": "    from uvloop import Loop\nModuleNotFoundError: No module named 'uvloop'",
    "installed packages do not go together": "openvino 2026.4.1 requires numpy<2.5,>=1.16.6, but you have numpy 2.5.1 which is incompatible.\nSuccessfully installed numpy-2.5.1",
    "ONNX Runtime without this device": "/venv/onnxruntime_inference_collection.py:197: UserWarning: Specified provider 'TensorrtExecutionProvider' is not in available provider names.",
    "TensorRT engine of another machine": "[11/21/2026-10:00:00] [TRT] [E] IRuntime::deserializeCudaEngine: Error Code 1: Serialization (Serialization assertion stdVersionRead == kSERIALIZATION_VERSION failed.",
    "torchvision does not fit torch": "RuntimeError: operator torchvision::nms does not exist\nERROR conda.cli.main_run:execute(125)",
    "built for another NumPy": "ValueError: numpy.dtype size changed, may indicate binary incompatibility. Expec",
    "class or index out of range, on the GPU": '../aten/src/ATen/native/cuda/IndexKernel.cu:92: operator(): block: [3,0,0], thread: [1,0,0] Assertion `-sizes[i] <= index && index < sizes[i] && "index out of bounds"` failed.\nCUDA error: device-side assert trig',
    "checkpoint holds more than tensors": "_pickle.UnpicklingError: Weights only load failed. This file can still be loaded, to do so you have two options",
    "data file not found": "FileNotFoundError: [Errno 2] No such file or directory: '/data/val2017/0001.JPG'".replace(
        "JPG", "jpg"
    ),
    "folder cannot be written": "mkdir: PermissionError: [Errno 13] Permission denied: '/runs'",
    "download failed": "curl: (6) ... Temporary failure in name resolution",
    "matching costs are not numbers": "    indices = linear_sum_assignment(c[i])\nValueError: matrix contains invalid numeric entries",
    "native code crashed": "run.sh: line 3:  4711 Segmentation fault      (core dumped) python train.py",
    "no NVIDIA driver": "RuntimeError: Found no NVIDIA driver on your system. Please check",
    "video is damaged": "[mov,mp4,m4a,3gp,3g2,mj2 @ 0x1] moov atom not found\nclip.mp4: Invalid data found when processing input",
    "form parser not installed": "    assert multipart is not None\nAssertionError: The `python-multipart` library must be installed to use form parsing.",
    "a message of Detronome": "fit.sh | error: the data folder has no annotations\nfit.sh |   where: data/\nfit.sh |   fix:   detronome data check data/",
}


@pytest.mark.parametrize(("name", "text"), OWN.items(), ids=OWN)
def test_half_a_paste_is_enough(name: str, text: str) -> None:
    """Twice: as it is, and in the middle of a noisy log in colours."""
    for pasted in (text, "\r\n".join([*HEALTHY.values(), each_line("\x1b[2m", "\x1b[0m")(text), *HEALTHY.values()])):
        best = explain_error(pasted).best
        assert best is not None and best.name == name, best


def test_what_is_left_of_a_text_is_explained_rightly_or_not_at_all() -> None:
    """A third is missing, at its begin or its end: it may say less, but it does not lead elsewhere."""
    found = elsewhere = count = 0
    for name, texts in PASTED.items():
        for text in texts:
            for left in (text[len(text) // 3 :], text[: 2 * len(text) // 3]):
                best = explain_error(left).best
                count += 1
                found += best is not None and best.name == name
                elsewhere += best is not None and best.name != name
    assert elsewhere <= 0.03 * count and found >= 0.4 * count, (found, elsewhere, count)


@pytest.mark.parametrize("consequence", [False, True])
def test_of_two_errors_the_cause_is_first_whatever_their_order(consequence: bool) -> None:
    cause = PASTED["GPU memory ran out"][1]
    other = PASTED["a rank was too late" if consequence else "disk full"][0]
    for text in (f"{cause}\n\n{other}", f"{other}\n\n{cause}"):
        found = explain_error(text)
        assert found.best is not None and len(found.others) == 1
        first = found.best.name
        assert first == ("GPU memory ran out" if consequence or text.startswith(cause) else "disk full")


HARMLESS = [
    "Epoch: [3]  [ 100/2500]  eta: 1:02:03  lr: 0.0001  class_error: 12.50  cardinality_error_unscaled: 4.2",
    "0 errors, 3 warnings in 214 files",
    "mean error 0.03 px, max error 0.4 px",
    "val/error 0.12  test_error=0.31",
    "[INFO] no error was found in the annotations",
    "set -o errexit; trap 'echo error on line $LINENO' ERR",
    'INFO:     127.0.0.1:51344 - "POST /predict HTTP/1.1" 200 OK',
    'INFO:     127.0.0.1:51344 - "GET /error.html HTTP/1.1" 404 Not Found',
    '"OOMKilled": false, "ExitCode": 0, "Error": "",',
    "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\noom_group_kill 0",
    "tests/test_errors.py::test_error_message PASSED",
    "mypy: Success: no issues found in 25 source files",
    "found 0 vulnerabilities; audited 106 packages, no known errors",
    "  except torch.OutOfMemoryError:",
    "NCCL INFO comm 0x7f rank 3 nRanks 8 - Init COMPLETE",
    "error_rate: 0.0  retries: 0  timeouts: 0",
    "killed 3 zombie processes; GPU memory 12 GiB free; driver 580.65.06 is fine",
    "WARNING:nncf:NNCF provides best results with torch==2.9.*, while current torch version is 2.15.0.",
    "2026-11-21 10:00:00 [W:onnxruntime:, graph.cc:4885] Could not find a CPU kernel and hence can't constant fold Exp node",
    "Requirement already satisfied: numpy<2.5,>=1.24 in /venv (from nncf) (2.4.6)",
    "libGL.so.1 => /lib/x86_64-linux-gnu/libGL.so.1 (0x00007f)",
    "Adding tests for errors: device-side asserts, bus errors and NaN losses",
    "ffmpeg version 7.1 Copyright (c) 2000-2026 the FFmpeg developers",
    "memory: 3.1 GiB of 23.5 GiB; port 8000; 2 workers; error budget 1 %",
    "Loaded 118,287 images, 860,001 boxes; 0 unreadable, 0 errors",
]


@pytest.mark.parametrize("text", HARMLESS)
def test_a_healthy_line_that_speaks_of_errors_is_not_explained(text: str) -> None:
    found = explain_error("\n".join([HEALTHY["a log of ours"], text, HEALTHY["pip"]]))
    assert found.best is None and found.others == []


def test_binary_junk_gives_nothing_and_nothing_that_disturbs_a_terminal() -> None:
    for seed in range(5):
        found = explain_error(random.Random(seed).randbytes(200_000).decode(errors="replace"))
        assert found.best is None
        assert "\ufffd" not in found.last_error and not re.search(r"[\x00-\x1f\x7f-\x9f]", found.last_error)
    shown = explain_error("\x9b31mRuntimeError: Bus error\x9b0m \x1b[5A").best
    assert shown is not None and shown.text == "RuntimeError: Bus error"


ADVERSE = {
    "letters": "a" * 40_000,
    "spaces": " " * 40_000,
    "lines": "\n" * 40_000,
    "errors": "error: " * 6_000,
    "quotes": "'" * 40_000,
    "backslashes": "\\" * 40_000,
    "coco": "coco " * 8_000,
    "paths": "No such file or directory: " * 1_500,
    "kernels": "Indexing.cu:11 " * 3_000,
    "asserts": "Assertion `-sizes[i] <= index && index < sizes[i] " * 800,
    "requires": "a requires b, but you have " * 1_500,
    "weights": "weights_only" * 3_000,
    "weights and signs": "weights_only" + "=" * 40_000,
    "compilers": "error: command " + "gcc" * 13_000,
    "libraries": "libcudnn" * 5_000,
    "libraries of windows": "libxcb" * 7_000,
    "providers": "Failed to load library " + "libonnxruntime_providers_" * 1_600,
    "functions": "Fatal error: a:" + "a" * 40_000,
}


@pytest.mark.parametrize("text", ADVERSE.values(), ids=ADVERSE)
def test_no_text_makes_it_slow(text: str) -> None:
    with CpuTime() as spent:
        for symptom in SYMPTOMS:
            for _ in symptom.pattern.finditer(text):
                pass
        explain_error(text)
    assert spent.seconds < 3


def literals(pattern: str) -> list[str]:
    """Return the words of a pattern that stand for themselves."""
    return [
        word
        for word in re.split(r"\\[a-zA-Z]|\[[^]]*\]|\(\?(?:P<\w+>|[:!=]|<!)|[(){}|?*+.^$]", pattern)
        if len(word) > 2
    ]


@pytest.mark.parametrize("symptom", SYMPTOMS, ids=lambda symptom: symptom.name)
def test_no_pattern_is_slow_on_its_own_words(symptom: Symptom) -> None:
    """Its words alone, again and again, and before what its repeats may take: a square of the length would be seconds."""
    words = [word.replace("\\", "") for word in literals(symptom.pattern.pattern)]
    for place, word in enumerate(words):
        beginnings = {"", *words[max(0, place - 2) : place]}
        texts = [f"{beginning}{word * (40_000 // len(word))}" for beginning in beginnings]
        texts += [word + letter * 40_000 for letter in "a= '1"]
        for text in texts:
            with CpuTime() as spent:
                for _ in symptom.pattern.finditer(text):
                    pass
            assert spent.seconds < 0.5, text[:80]


def test_the_text_is_not_held_against_the_machine() -> None:
    """Empty texts, one line without an end, and nothing but ends of lines."""
    for text in ("", "\n", "\r\r\r", "\x00" * 1000, os.linesep):
        found = explain_error(text)
        assert (found.num_lines, found.best, found.last_error) == (0, None, "")

"""`detronome benchmark` for real: processes, exports, a form that fails."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

import detronome as dt
from detronome.cli import main

pytestmark = pytest.mark.alone


def test_all_mistakes_are_told_at_once_and_nothing_is_written(tiny_run: Path, blocks: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(dt.ConfigError) as caught:
        dt.benchmark(tiny_run, blocks, batch_sizes=[0], images=-1, seconds=0, threads=0, image_size=8, out=out)
    assert len(caught.value.problems) == 5
    with pytest.raises(dt.ConfigError, match="no form 'onyx'"):
        dt.benchmark(tiny_run, blocks, forms=["onyx"], out=out)
    with pytest.raises(dt.ConfigError, match="has no other forms"):
        dt.benchmark(tmp_path / "model.onnx", blocks, forms=["onnx"], out=out)
    assert not out.exists()


def test_forms_of_a_model_are_measured_beside_each_other(
    tiny_run: Path, blocks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    out, broken = tmp_path / "out", tmp_path / "broken.onnx"
    broken.write_bytes(b"no graph")
    arguments = (
        *(tiny_run, blocks, "--forms", "optimized, onnx,tensorrt", "--also", broken, "--batch-sizes", "1,2"),
        *("--threads", "1", "--images", "6", "--seconds", "0.1", "--out", out, "--json"),
    )
    with pytest.raises(SystemExit) as ended:
        main(["benchmark", *map(str, arguments)])
    printed = capsys.readouterr()
    assert not ended.value.code, printed.err
    record = json.loads(printed.out)
    assert record == json.loads((out / "results.json").read_text())
    assert [one["form"] for one in record["left_out"]] == ["tensorrt"]
    forms: dict[str, dict[str, Any]] = {one["form"]: one for one in record["forms"]}
    assert list(forms) == ["eager", "optimized", "onnx", "broken.onnx"]

    bad = forms.pop("broken.onnx")
    assert bad["failure"] and not bad["batches"] and bad["metrics"] is None
    expected = dt.evaluate(tiny_run, blocks, device="cpu").numbers["AP"]
    for name, form in forms.items():
        assert form["failure"] == "", form["failure"]
        assert form["metrics"]["AP"] == pytest.approx(expected, abs=2e-3)
        assert [batch["batch_size"] for batch in form["batches"]] == [1, 2]
        for batch in form["batches"]:
            assert batch["network"]["p50_ms"] < batch["whole"]["p50_ms"]
            assert batch["peak_bytes"] > 50 * 2**20 and batch["num_calls"] >= 6
            assert (batch["network_speedup"] is None) == (name == "eager")
    assert forms["eager"]["difference"] is None and forms["onnx"]["difference"]["largest_score"] < 1e-2
    assert forms["onnx"]["file_bytes"] > 10_000 and record["threads"] == 1

    assert (out / "benchmark.png").read_bytes()[:4] == b"\x89PNG" and (out / "benchmark.svg").stat().st_size > 1000
    (file,) = (out / "exports" / "onnx").glob("*.onnx")

    alone = dt.benchmark(file, blocks, batch_sizes=[1], images=0, seconds=0.05, threads=1, out=tmp_path / "alone")
    (form,) = alone.forms
    assert (form.backend, form.precision, form.failure) == ("ONNX Runtime", "fp32", "")
    assert form.metrics is None and alone.recommended is None and form.batches[0].network_speedup is None


def test_no_process_outlives_a_benchmark_that_is_killed(tiny_run: Path, blocks: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "detronome", "benchmark", str(tiny_run), str(blocks)]
    options = ["--forms", "eager", "--seconds", "600", "--images", "0", "--out", str(tmp_path / "out")]
    process = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    while "in turn" not in (line := process.stderr.readline()) and line:
        pass
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.kill()
    process.wait()
    process.stderr.close()
    psutil.wait_procs(children, timeout=30)
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


def test_ranks_do_not_benchmark(tiny_run: Path, blocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(dt.ConfigError, match="started 2 times"):
        dt.benchmark(tiny_run, blocks, out=tmp_path / "out")

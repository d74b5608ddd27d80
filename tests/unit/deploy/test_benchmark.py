"""Forms measured in turn: what is run, what is counted, and what becomes of a form that fails."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import detronome as dt
from detronome.api import benchmark_exports
from detronome.api.benchmark_exports import Exporter
from detronome.api.exporting import _require_packages
from detronome.data.build import build_eval_batches
from detronome.data.split import open_split
from detronome.deploy.benchmark import forms as forms_module
from detronome.deploy.benchmark.calls import Call, calls_of
from detronome.deploy.benchmark.child import FormSession, OpenForm
from detronome.deploy.benchmark.difference import difference_of
from detronome.deploy.benchmark.forms import FORMS, Form, available_forms
from detronome.deploy.benchmark.messages import CallTimes, Measure, Measured, Opened, Output, Subject
from detronome.deploy.benchmark.peak_memory import peak_bytes_since, watch_peak_from_now
from detronome.deploy.benchmark.process import FormFailedError, FormProcess
from detronome.deploy.benchmark.records import FormRecord, latency_of, summarize, to_json
from detronome.deploy.benchmark.rounds import Runner, measure_in_turn, plan_rounds
from detronome.deploy.export.description import description_of
from detronome.engine.evaluator import evaluate
from detronome.errors import ConfigError, MissingExtraError
from detronome.evaluation.detection import DetectionEvaluator
from detronome.types import Categories

CPU = torch.device("cpu")
shape = st.sampled_from([(32, 32), (32, 64), (64, 32)])


# --- which images --------------------------------------------------------------------------------------------------


def test_without_images_there_are_no_calls() -> None:
    assert calls_of([], 4, most=8) == []


@given(shapes=st.lists(shape, min_size=1, max_size=30), batch_size=st.integers(1, 5), most=st.integers(1, 9))
def test_a_call_has_its_size_and_one_shape(shapes: list[tuple[int, int]], batch_size: int, most: int) -> None:
    numbered = list(enumerate(shapes))
    calls = calls_of(numbered, batch_size, most=most)
    assert 1 <= len(calls) <= most
    for call in calls:
        assert len(call.images) == batch_size
        assert {shapes[i] for i in call.images} == {call.shape_hw}
    if any(shapes.count(one) >= batch_size for one in shapes):
        used = [i for call in calls for i in call.images]
        assert len(used) == len(set(used)), "no image twice where there are enough"


# --- which forms ---------------------------------------------------------------------------------------------------


def test_all_unknown_forms_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        available_forms(["onx", "eager", "tpu"], CPU)
    assert len(caught.value.problems) == 2 and "onnx" in caught.value.problems[0].fix


def test_eager_is_always_measured() -> None:
    usable, _ = available_forms(["optimized"], CPU)
    assert [form.name for form in usable] == ["eager", "optimized"]


def test_a_form_without_its_package_is_left_out_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms_module, "find_spec", lambda name: None if name == "openvino" else object())
    usable, left_out = available_forms(None, CPU)
    assert not any(form.backend == "OpenVINO" for form in usable)
    (one,) = [left for left in left_out if left.form == "openvino"]
    assert "openvino" in one.why and one.fix == "pip install 'detronome[openvino]'"


def test_what_only_a_gpu_runs_is_told_where_it_was_asked_for() -> None:
    usable, left_out = available_forms(["tensorrt"], CPU)
    assert [form.name for form in usable] == ["eager"] and "cuda" in left_out[0].why
    assert "tensorrt" not in [one.form for one in available_forms(None, CPU)[1]]


@pytest.mark.parametrize(
    "form", [form for form in FORMS if form.to not in (None, "tensorrt")], ids=lambda form: form.name
)
def test_a_form_needs_all_that_writes_its_file(form: Form, monkeypatch: pytest.MonkeyPatch) -> None:
    assert form.to is not None
    for package in ("onnx", "onnxscript", "onnxruntime", "openvino", "nncf"):
        with monkeypatch.context() as without:
            without.setitem(sys.modules, package, None)
            if package in form.packages:
                with pytest.raises(MissingExtraError, match=package):
                    _require_packages(form.to, int8=form.precision == "int8")
            else:
                _require_packages(form.to, int8=form.precision == "int8")


def test_an_engine_is_what_its_export_makes() -> None:
    (engine,) = (form for form in FORMS if form.to == "tensorrt")
    assert engine.precision == "fp32" and {"onnx", "onnxscript"} <= set(engine.packages)


def test_names_of_forms_are_different() -> None:
    assert len({form.name for form in FORMS}) == len(FORMS)


# --- exported files that are kept ----------------------------------------------------------------------------------


def export_again(folder: Path, name: str, begun: list[str], *, device: str = "cpu") -> Path:
    """Ask for a form's file of an exporter whose process does not even start; where it begins to export, pretend."""
    form = next(form for form in FORMS if form.name == name)
    subject = Subject(source="run", form=form, data="d", split="val", device=device, threads=1, image_size=None)
    exporter = Exporter("no_such_module", folder / "exports", weights="a", logs=folder, on_begin=begun.append)
    try:
        return exporter.file_of(subject)
    except FormFailedError:
        file = folder / "exports" / name / f"model{form.suffix}"
        for part in (file, description_of(file)):
            part.touch()
        return file


def test_what_an_interrupted_export_left_behind_is_removed(tmp_path: Path) -> None:
    file = export_again(tmp_path, "onnx", [])
    description_of(file).unlink()
    left = file.parent / f".{file.name}-abc.tmp"
    left.mkdir()
    (left / file.name).touch()
    export_again(tmp_path, "onnx", [])
    assert not left.exists() and file.exists()


def test_a_file_that_other_versions_cannot_run_is_made_again_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = {"tensorrt": "10", "gpu": "one"}
    monkeypatch.setattr(benchmark_exports, "version", now.__getitem__)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: now["gpu"])
    begun: list[str] = []

    def export_all() -> None:
        begun.clear()
        for name in ("onnx", "torch", "tensorrt"):
            export_again(tmp_path, name, begun, device="cuda")

    export_all()
    assert len(begun) == 3
    export_all()
    assert begun == []
    for package, number in (("tensorrt", "11"), ("gpu", "another")):
        now[package] = number
        export_all()
        assert begun == ["exporting tensorrt"]
    monkeypatch.setattr(torch, "__version__", "99.0")
    export_all()
    assert begun == ["exporting torch"]


# --- numbers -------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(1e-4, 10.0), min_size=1, max_size=300))
def test_percentiles_are_calls_that_happened(seconds: list[float]) -> None:
    latency = latency_of(seconds)
    for value, share, least in ((latency.p50_ms, 0.5, 1), (latency.p95_ms, 0.95, 20), (latency.p99_ms, 0.99, 100)):
        assert (value is None) == (len(seconds) < least)
        if value is not None:
            within = sum(1e3 * s <= value for s in seconds)
            below = sum(1e3 * s < value for s in seconds)
            assert within >= share * len(seconds) - 1e-9 and below < share * len(seconds)


@given(seconds=st.floats(0.01, 1e4), call_s=st.floats(1e-7, 1e3))
def test_a_plan_has_enough_rounds_and_keeps_its_time(seconds: float, call_s: float) -> None:
    rounds, calls = plan_rounds(seconds, call_s)
    assert 6 <= rounds <= 15 and calls >= 1
    assert rounds * calls * call_s <= max(1.6 * seconds, 6 * call_s) + 15e-6


def times(network_s: float, *, other_s: float = 0.001) -> CallTimes:
    return CallTimes(decode_s=other_s, before_s=other_s, network_s=network_s, after_s=other_s, network_cpu_s=network_s)


def test_a_ratio_is_taken_within_the_round() -> None:
    slow_then_fast = [[times(0.4)], [times(0.2)], [times(0.1)]]
    half = [[times(0.2)], [times(0.1)], [times(0.05)]]
    record = summarize(half, slow_then_fast, batch_size=2, peak_bytes=7)
    assert record.network_speedup is not None
    assert record.network_speedup.ratio == record.network_speedup.low == pytest.approx(2.0)
    assert record.whole_speedup is not None and record.whole_speedup.ratio < 2.0
    assert record.network.p50_ms == pytest.approx(100) and record.whole.p50_ms == pytest.approx(103)
    assert record.images_per_s == pytest.approx(2 / 0.103) and record.num_calls == 3
    assert summarize(half, None, batch_size=2, peak_bytes=7).network_speedup is None


def test_json_has_no_nan() -> None:
    record = FormRecord(form="a", backend="b", precision="fp32", what="", metrics={"AP": float("nan")})
    assert to_json([record], [])["forms"][0]["metrics"] == {"AP": None}


# --- difference ----------------------------------------------------------------------------------------------------


def output(rng: np.random.Generator, queries: int = 12) -> Output:
    return Output(scores=rng.random((queries, 3), np.float32), boxes_cxcywh=rng.random((queries, 4), np.float32))


@given(seed=st.integers(0, 1000), score=st.floats(0, 0.01), box=st.floats(0, 0.01))
def test_a_difference_does_not_depend_on_the_order_of_queries(seed: int, score: float, box: float) -> None:
    rng = np.random.default_rng(seed)
    first = output(rng)
    order = rng.permutation(12)
    other = Output(
        scores=(first.scores + np.float32(score))[order], boxes_cxcywh=(first.boxes_cxcywh + np.float32(box))[order]
    )
    found = difference_of([first], [other])
    assert found.largest_score <= score + 1e-6 and found.largest_box <= box + 1e-6
    assert difference_of([first], [first]).largest_score == 0


# --- in turn -------------------------------------------------------------------------------------------------------


@dataclass
class FakeProcess:
    """Answers as a form's process does; its calls take as long as they are told, the machine grows slower."""

    name: str
    network_s: float
    log: list[str]
    fails_after: int = 10**9
    asked: list[Measure] = field(default_factory=list)

    def ask(self, request: Measure, answer: type[Any]) -> Measured:
        self.asked.append(request)
        self.log.append(self.name)
        if len(self.asked) > self.fails_after:
            raise FormFailedError("broke")
        drift = 1.0 + 0.1 * len(self.asked)
        return Measured(times=tuple(times(self.network_s * drift) for _ in request.calls), peak_bytes=100)


def runner(process: FakeProcess) -> Runner:
    opened = Opened(
        seconds=1.0,
        backend="b",
        precision="fp32",
        categories=Categories(ids=(1,), names=("thing",)),
        resident_bytes=1,
        available_bytes=10,
    )
    return Runner(name=process.name, process=process, opened=opened)  # type: ignore[arg-type]


def test_each_form_goes_first_in_turn_on_the_same_images() -> None:
    log: list[str] = []
    processes = [FakeProcess(name, s, log) for name, s in (("a", 0.01), ("b", 0.02), ("c", 0.03))]
    runners = [runner(process) for process in processes]
    calls = [Call((n,), (32, 32)) for n in range(7)]
    measure_in_turn(runners, calls, batch_size=1, seconds=1.0)
    rounds = log[3:]  # after the warm-up
    assert [rounds[3 * n] for n in range(6)] == ["a", "b", "c", "a", "b", "c"]
    for one, two in zip(processes[0].asked[1:], processes[1].asked[1:], strict=True):
        assert one.calls == two.calls
    assert [request.from_now for request in processes[0].asked[:3]] == [False, True, False]
    record = summarize(runners[1].rounds[1], runners[0].rounds[1], batch_size=1, peak_bytes=0)
    assert record.network_speedup is not None and record.network_speedup.ratio == pytest.approx(0.5)


def test_a_form_that_breaks_is_left_and_the_others_go_on() -> None:
    log: list[str] = []
    good, bad = FakeProcess("good", 0.01, log), FakeProcess("bad", 0.01, log, fails_after=3)
    runners = [runner(good), runner(bad)]
    measure_in_turn(runners, [Call((0,), (32, 32))], batch_size=1, seconds=1.0)
    assert runners[1].failure is not None and runners[1].failure.why == "broke"
    assert len(bad.asked) == 4 and len(runners[1].rounds[1]) == 2
    assert runners[0].failure is None and len(runners[0].rounds[1]) == 15


def test_nothing_is_planned_where_no_form_runs() -> None:
    broken = runner(FakeProcess("broken", 0.01, [], fails_after=0))
    plans: list[tuple[int, int]] = []
    measure_in_turn(
        [broken], [Call((0,), (32, 32))], batch_size=1, seconds=5.0, on_plan=lambda *plan: plans.append(plan)
    )
    assert broken.failure is not None and not broken.rounds and not plans


def test_a_process_that_cannot_start_is_told_by_its_last_words(tmp_path: Path) -> None:
    with FormProcess("detronome.no_such_module", threads=1, log=tmp_path / "log") as process:
        with pytest.raises(FormFailedError) as caught:
            process.ask(object, Opened)
        assert "no_such_module" in caught.value.why


def test_no_module_is_taken_from_the_folder_one_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stray.py").write_text("print('taken')")
    monkeypatch.chdir(tmp_path)
    with (
        FormProcess("stray", threads=1, log=tmp_path / "log") as process,
        pytest.raises(FormFailedError, match="No module named stray"),
    ):
        process.ask(object, Opened)


def test_the_peak_of_memory_is_that_since_a_moment() -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("this system cannot forget a peak")
    watch_peak_from_now(CPU)
    before = peak_bytes_since(CPU)
    block = np.ones(64 * 2**20, np.uint8)
    with_block = peak_bytes_since(CPU)
    assert with_block - before > 60 * 2**20
    del block
    watch_peak_from_now(CPU)
    assert with_block - peak_bytes_since(CPU) > 30 * 2**20


# --- one form at work ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def opened(tiny_run: Path, blocks: Path) -> OpenForm:
    model = dt.load(tiny_run, device="cpu")
    return OpenForm(
        detector=model.detector,
        config=model.config,
        categories=model.categories,
        split=open_split(blocks, "val"),
        device=CPU,
        backend="PyTorch",
        precision="fp32",
    )


def test_the_stages_of_a_call_add_up(opened: OpenForm) -> None:
    session = FormSession(opened, batch_size=2)
    measured = session.measure(Measure(calls=((0, 1), (2, 3)), from_now=True))
    assert len(measured.times) == 2 and measured.peak_bytes > 2**20
    for call in measured.times:
        assert min(call.decode_s, call.before_s, call.network_s, call.after_s) > 0
        assert call.whole_s == pytest.approx(call.decode_s + call.before_s + call.network_s + call.after_s)


def test_accuracy_is_that_of_the_evaluation(opened: OpenForm) -> None:
    session = FormSession(opened, batch_size=1)
    with build_eval_batches(
        opened.config, opened.split, opened.categories, batch_size=2, workers=0, device=CPU
    ) as batches:
        metrics = evaluate(
            opened.detector,
            batches,
            DetectionEvaluator(opened.split.box_truth()),
            categories=opened.categories,
            max_detections=opened.config.eval.max_detections,
            precision="fp32",
            device=CPU,
        )
    found = session.evaluate(range(6)).numbers
    assert found["AP"] == pytest.approx(metrics.numbers["AP"], abs=1e-3)


def test_a_form_does_not_differ_from_itself(opened: OpenForm) -> None:
    session = FormSession(opened, batch_size=1)
    first, again = session.outputs([0, 3]), session.outputs([0, 3])
    assert [one.scores.shape[1] for one in first] == [2, 2], "no-object is no class"
    assert difference_of(first, again).largest_box == 0

"""An exported file of an earlier benchmark serves again, for as long as nothing that it was made from has changed."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import detronome as dt
from detronome.api.benchmark_exports import Exporter, digest_of
from detronome.deploy.benchmark.forms import FORMS
from detronome.deploy.benchmark.messages import Subject
from detronome.deploy.benchmark.process import FormFailedError
from detronome.deploy.export.description import description_of

ONNX, INT8, OPENVINO_BF16 = (
    next(form for form in FORMS if form.name == name) for name in ("onnx", "onnx-int8", "openvino-bf16")
)
SUBJECT = Subject(source="run", form=ONNX, data="data", split="val", device="cpu", threads=1, image_size=None)


def exporter(folder: Path, begun: list[str], *, weights: str = "a") -> Exporter:
    """Return one whose process does not even start, so that nothing is made."""
    (folder / "logs").mkdir(exist_ok=True)
    return Exporter(
        "detronome.no_such_module", folder / "exports", weights=weights, logs=folder / "logs", on_begin=begun.append
    )


def make(folder: Path, subject: Subject, *, weights: str = "a") -> Path:
    """Leave what an export leaves."""
    with pytest.raises(FormFailedError):
        exporter(folder, [], weights=weights).file_of(subject)
    assert subject.form is not None
    file = folder / "exports" / subject.form.name / f"model{subject.form.suffix}"
    for part in (file, description_of(file)):
        part.touch()
    return file


def test_a_file_is_made_again_only_where_what_it_was_made_from_differs(tmp_path: Path) -> None:
    file, begun = make(tmp_path, SUBJECT), list[str]()
    assert exporter(tmp_path, begun).file_of(replace(SUBJECT, data="other", split="test")) == file and not begun
    with pytest.raises(FormFailedError, match="no_such_module"):
        exporter(tmp_path, begun, weights="b").file_of(SUBJECT)
    assert begun == ["exporting onnx"] and not file.exists()

    int8 = replace(SUBJECT, form=INT8)
    calibrated = make(tmp_path, int8)
    assert exporter(tmp_path, begun).file_of(int8) == calibrated
    with pytest.raises(FormFailedError):
        exporter(tmp_path, begun).file_of(replace(int8, data="other"))
    assert not calibrated.exists()


def test_half_a_file_is_made_again(tmp_path: Path) -> None:
    file = make(tmp_path, SUBJECT)
    description_of(file).unlink()
    with pytest.raises(FormFailedError):
        exporter(tmp_path, []).file_of(SUBJECT)
    assert not file.exists()


def test_a_file_that_two_forms_need_is_tried_once(tmp_path: Path) -> None:
    begun: list[str] = []
    one = exporter(tmp_path, begun)
    openvino = next(form for form in FORMS if form.name == OPENVINO_BF16.file_of)
    for form in (openvino, OPENVINO_BF16):
        with pytest.raises(FormFailedError):
            one.file_of(replace(SUBJECT, form=form))
    assert begun == ["exporting openvino"]


def test_the_digest_is_that_of_weights_and_configuration(tiny_run: Path) -> None:
    model = dt.load(tiny_run, device="cpu")
    before = digest_of(model)
    assert digest_of(dt.load(tiny_run, device="cpu")) == before
    with torch.no_grad():
        next(iter(model.checkpoint.model.values())).flatten()[0].add_(1)
    assert digest_of(model) != before

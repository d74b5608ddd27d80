"""What a run leaves behind beside its numbers: `data.json`, `evaluation.json`, and pictures of the worst images."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import detronome as dt
from detronome.api import run_details
from detronome.cli import main
from detronome.evaluation.detection import DetectionEvaluator
from detronome.report.run_files import DataFile, EvaluationFile, read_run_file

Settings = dict[str, Any]


def read(file: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(file.read_text())
    return record


def num_objects(data: Path, split: str) -> list[int]:
    annotations = read(data / "annotations" / f"instances_{split}.json")
    return [
        sum(one["category_id"] == category["id"] and not one.get("iscrowd") for one in annotations["annotations"])
        for category in sorted(annotations["categories"], key=lambda category: category["id"])
    ]


def test_evaluation_agrees_with_truth_and_metrics(tiny_run: Path, blocks: Path) -> None:
    record = read(tiny_run / "evaluation.json")
    confusion = np.array(record["confusion"])
    assert confusion.sum(axis=1)[:-1].tolist() == num_objects(blocks, "val")
    assert record["errors"]["missed"] == confusion[:, -1].sum()
    assert record["split"] == "val"
    model = dt.load(tiny_run)
    assert record["step"] == model.checkpoint.state.step
    assert record["overall"]["ap50"] == pytest.approx(model.metrics["AP50"], abs=1e-6)
    for curve in record["curves"]:
        assert len(curve["precision"]) == 101 and np.mean(curve["precision"]) == pytest.approx(curve["ap50"], abs=1e-6)


def test_worst_images_have_pictures_and_the_gallery_does_not_list_them(tiny_run: Path) -> None:
    worst = read(tiny_run / "evaluation.json")["worst_images"]
    assert worst
    for number, image in enumerate(worst):
        assert (tiny_run / image["picture"]).read_bytes()[:2] == b"\xff\xd8"
        assert image["picture"] == f"pictures/worst_{number:02d}-{Path(image['file']).stem}.jpg"
    listed = {entry["file"] for entry in json.loads((tiny_run / "pictures" / "index.json").read_text())}
    assert not any(name.startswith("worst_") for name in listed)


def test_data_counts_both_splits(tiny_run: Path, blocks: Path) -> None:
    splits = read(tiny_run / "data.json")["splits"]
    assert list(splits) == ["train", "val"]
    for name, split in splits.items():
        assert [one["num_objects"] for one in split["classes"]] == num_objects(blocks, name)
        assert sum(split["objects_per_image"]["counts"]) == split["num_images"]
        assert sum(split["areas"].values()) == split["num_objects"]


def test_the_page_reads_both(tiny_run: Path) -> None:
    gaps: list[str] = []
    details = read_run_file(tiny_run / "evaluation.json", EvaluationFile, gaps)
    assert details is not None and read_run_file(tiny_run / "data.json", DataFile, gaps) is not None
    assert gaps == []


def test_a_resumed_run_measures_its_best_checkpoint_again(
    tiny_run: Path, blocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run, symlinks=True)
    for lost in ("report.html", "evaluation.json", "data.json"):
        (run / lost).unlink()
    measured = []
    measure = run_details.measure
    monkeypatch.setattr(run_details, "measure", lambda *given: measured.append(given) or measure(*given))
    dt.resume(run)
    assert len(measured) == 1
    assert read(run / "evaluation.json") == read(tiny_run / "evaluation.json")
    assert read(run / "data.json") == read(tiny_run / "data.json")


def test_a_run_is_not_measured_twice_nor_lost_with_its_details(
    blocks: Path,
    tiny_settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    def never(*_: object) -> None:
        raise AssertionError("the detections of the best evaluation were kept")

    monkeypatch.setattr(DetectionEvaluator, "details", fail)
    monkeypatch.setattr(run_details, "label_counts", fail)
    monkeypatch.setattr(run_details, "measure", never)
    run = dt.train(blocks, model="nano", epochs=1, out=tmp_path / "run", settings=tiny_settings)
    assert run.reason == "finished" and run.report is not None and run.report.is_file()
    assert not (run.folder / "evaluation.json").exists() and not (run.folder / "data.json").exists()
    told = [record.getMessage() for record in caplog.records]
    assert [text.split(" is not written")[0] for text in told] == [
        str(run.folder / "data.json"),
        str(run.folder / "evaluation.json"),
    ]
    assert all("No space left on device" in text for text in told)


def test_a_run_without_validation_has_no_details(blocks: Path, tiny_settings: Settings, tmp_path: Path) -> None:
    settings = {**tiny_settings, "data.val_split": "", "train.eval_epochs": 1}
    run = dt.train(blocks, model="nano", epochs=1, out=tmp_path / "run", settings=settings)
    assert not (run.folder / "evaluation.json").exists()
    assert list(read(run.folder / "data.json")["splits"]) == ["train"]


def test_eval_writes_the_same_document(tiny_run: Path, blocks: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["eval", str(tiny_run), str(blocks), "--details", str(tmp_path / "details.json"), "--json"])
    assert ended.value.code in (0, None)
    ours, of_the_run = read(tmp_path / "details.json"), read(tiny_run / "evaluation.json")
    assert [image.pop("picture") for image in ours["worst_images"]] == [""] * len(ours["worst_images"])
    for image in of_the_run["worst_images"]:
        del image["picture"]
    assert ours == of_the_run


def test_eval_of_a_results_file(blocks: Path, tmp_path: Path) -> None:
    truth = blocks / "annotations" / "instances_val.json"
    results = [
        {"image_id": one["image_id"], "category_id": one["category_id"], "bbox": one["bbox"], "score": 0.5}
        for one in read(truth)["annotations"]
    ]
    (tmp_path / "results.json").write_text(json.dumps(results))
    dt.evaluate_results(tmp_path / "results.json", truth, details=tmp_path / "details.json")
    record = read(tmp_path / "details.json")
    assert set(record["errors"].values()) == {0}
    assert np.diag(record["confusion"]).tolist() == [*num_objects(blocks, "val"), 0]
    with pytest.raises(dt.ConfigError, match="cannot write there"):  # before the results are looked at
        dt.evaluate_results(tmp_path / "missing.json", truth, details=tmp_path / "results.json" / "details.json")
    with pytest.raises(dt.ConfigError, match="details are made of boxes"):
        dt.evaluate_results(tmp_path / "results.json", truth, iou_type="segm", details=tmp_path / "x.json")

"""Whole runs in a second each: what they leave behind, and that no interruption changes what they learn."""

import builtins
import contextlib
import json
import os
import shutil
import signal
import sys
import threading
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import detronome as dt
from detronome.data.prefetch import DeviceStream
from detronome.engine import build
from detronome.engine.events import Event, Observer, RunEnded, RunStarted, StepLogged
from detronome.report.run_log import read_run_log
from detronome.types import EffectiveBatch

Settings = dict[str, Any]
EPOCHS = 3
STEPS_PER_EPOCH = 3


def losses_of(run: Path) -> list[tuple[object, ...]]:
    """Return all that a log says about learning, without clocks: each step once, as the last resume left it."""
    rows: list[tuple[object, ...]] = []
    for record in read_run_log(run / "log.jsonl"):
        if record["kind"] == "step":
            rows.append(("step", record["step"], record["loss"], record["grad_norm"], record["losses"]))
        if record["kind"] == "eval":
            rows.append(("eval", record["step"], record["metrics"], record["is_best"]))
    return rows


def weights_of(run: Path) -> dict[str, bytes]:
    files = (run / "checkpoints" / "last").glob("*.safetensors")
    return {file.name: file.read_bytes() for file in files}


def at_step(step: int, action: Callable[[], object]) -> Observer:
    done = False

    def observer(event: Event) -> None:
        nonlocal done
        if isinstance(event, StepLogged) and event.step == step and not done:
            done = True
            action()

    return observer


def send(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


@pytest.fixture(scope="module")
def whole_run(
    blocks: Path, tiny_settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[int, Path]]:
    """An uninterrupted run, and copies of its folder as a kill -9 at several steps would have left it."""
    root = tmp_path_factory.mktemp("runs")
    copies = {step: root / f"killed at {step}" for step in (1, 4, 9)}

    def copy_to(folder: Path) -> None:
        for thread in threading.enumerate():
            if thread.name == "checkpoint":  # no kill waits for it, but a copy takes longer than one
                thread.join()
        shutil.copytree(root / "a", folder, symlinks=True)

    def copy(step: int) -> Observer:
        return at_step(step, lambda: copy_to(copies[step]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETRONOME_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        run = dt.train(
            blocks,
            model="nano",
            epochs=EPOCHS,
            out=root / "a",
            settings=tiny_settings,
            observers=[copy(step) for step in copies],
        )
    assert run.reason == "finished"
    return run.folder, copies


def test_a_run_folder_is_complete(whole_run: tuple[Path, dict[int, Path]], blocks: Path) -> None:
    folder, _ = whole_run
    names = {path.name for path in folder.iterdir()}
    written = {"config.toml", "log.jsonl", "data.json", "evaluation.json", "verdict.json", "report.html"}
    assert names == {*written, "checkpoints", "pictures"}
    config = tomllib.loads((folder / "config.toml").read_text())
    assert config["train"]["epochs"] == EPOCHS and config["data"]["root"] == str(blocks)
    assert "auto" not in (folder / "config.toml").read_text()
    records = read_run_log(folder / "log.jsonl")
    assert [r["kind"] for r in records].count("step") == EPOCHS * STEPS_PER_EPOCH
    assert [r["step"] for r in records if r["kind"] == "eval"] == [3, 6, 9]
    assert (records[0]["kind"], records[-1]["kind"], records[-1]["reason"]) == ("start", "end", "finished")
    checkpoints = {path.name for path in (folder / "checkpoints").iterdir()}
    assert {"last", "best", "step-00000009"} <= checkpoints and len(checkpoints) <= 4
    pictures = json.loads((folder / "pictures" / "index.json").read_text())
    assert len(pictures) == 6 and all((folder / "pictures" / entry["file"]).is_file() for entry in pictures)
    assert "<svg" in (folder / "report.html").read_text()


@pytest.mark.parametrize("step", [1, 4, 9])
def test_a_run_killed_at_any_moment_and_resumed_equals_one_that_was_not(
    step: int, whole_run: tuple[Path, dict[int, Path]], tmp_path: Path
) -> None:
    folder, copies = whole_run
    shutil.copytree(copies[step], tmp_path / "run", symlinks=True)
    run = dt.resume(tmp_path / "run")
    assert run.reason == "finished" and run.folder == tmp_path / "run"
    assert losses_of(run.folder) == losses_of(folder)
    assert weights_of(run.folder) == weights_of(folder)
    assert set(weights_of(folder)) == {"model.safetensors", "training.safetensors", "optimizer.safetensors"}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_told_to_stop_saves_and_resumes_exactly(
    workers: int,
    whole_run: tuple[Path, dict[int, Path]],
    blocks: Path,
    tiny_settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, _ = whole_run
    monkeypatch.chdir(tmp_path)
    (tmp_path / "linked").symlink_to(blocks)
    stopped = dt.train(
        "linked",
        model="nano",
        epochs=EPOCHS,
        out="run b",
        settings={**tiny_settings, "data.workers": workers},
        observers=[at_step(4, send(signal.SIGTERM))],
    )
    # The signal comes while step 4 is logged: it is heeded after the next step.
    assert (stopped.reason, stopped.report) == ("interrupted", None)
    assert dt.load("run b/checkpoints/last").checkpoint.state.step == 5
    assert read_run_log(stopped.folder / "log.jsonl")[-1]["reason"] == "interrupted"
    again = dt.resume("run b", observers=[at_step(7, send(signal.SIGINT))])
    assert again.reason == "interrupted"
    # From another folder: the data are found all the same.
    monkeypatch.chdir("/")
    run = dt.resume(tmp_path / "run b")
    assert run.reason == "finished"
    assert losses_of(run.folder) == losses_of(folder)
    assert weights_of(run.folder) == weights_of(folder)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


class TwoAtATime(DeviceStream):
    """Fetches every other batch ahead, as happens on a GPU: a log window may pass without a word to the loader."""

    def __next__(self) -> EffectiveBatch:
        batch, self._ahead = self._ahead, None
        if batch is None:
            batch = super().__next__()
            with contextlib.suppress(StopIteration):
                self._ahead = super().__next__()
        return batch


def test_a_log_window_without_a_request_to_the_loader_is_logged_too(
    whole_run: tuple[Path, dict[int, Path]],
    blocks: Path,
    tiny_settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, _ = whole_run
    monkeypatch.setattr(build, "DeviceStream", TwoAtATime)
    run = dt.train(blocks, model="nano", epochs=EPOCHS, out=tmp_path, settings=tiny_settings)
    assert losses_of(run.folder) == losses_of(folder)
    steps = [r for r in read_run_log(tmp_path / "log.jsonl") if r["kind"] == "step"]
    assert {bool(r["data_stages_s"]) for r in steps} == {True, False}


def test_classic_detr_resumes_exactly_too(blocks: Path, tmp_path: Path) -> None:
    """Its backbone lies channels-last in memory, which checkpoints do not keep; it has dropout and no average."""
    settings: Settings = {
        "model.backbone_weights": "none",
        "model.frozen_stages": 3,
        "model.backbone_norm": "trainable",
        "model.hidden_dim": 16,
        "model.num_heads": 2,
        "model.ffn_dim": 16,
        "model.num_encoder_layers": 1,
        "model.num_decoder_layers": 2,
        "model.num_queries": 6,
        "augment.sizes": [48],
        "augment.max_size": 64,
        "augment.crop": "none",
        "augment.eval_size": 32,
        "augment.eval_max_size": 64,
        "batch.global_batch_size": 6,
        "batch.micro_batch_size": 3,
        "optim.lr": 1e-3,
        "optim.backbone_lr": 1e-3,
        "train.log_steps": 1,
        "train.device": "cpu",
        "data.workers": 0,
        "data.val_split": "",
    }
    folder = tmp_path / "a"
    stop = at_step(1, send(signal.SIGTERM))
    dt.train(blocks, model="detr-r18", epochs=1, out=folder, settings=settings, observers=[stop])
    dt.resume(folder)
    whole = dt.train(blocks, model="detr-r18", epochs=1, out=tmp_path / "whole", settings=settings)
    assert whole.metrics == {}
    assert losses_of(folder) == losses_of(whole.folder)
    assert weights_of(folder) == weights_of(whole.folder)


def test_a_second_ctrl_c_ends_at_once_and_leaves_a_run_to_resume(
    blocks: Path, tiny_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("detronome.runtime.signals._SAME_REQUEST_S", 0.0)

    def twice() -> None:
        send(signal.SIGINT)()
        send(signal.SIGINT)()

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        dt.train(blocks, model="nano", epochs=1, out=tmp_path, settings=tiny_settings, observers=[at_step(2, twice)])
    assert signal.getsignal(signal.SIGINT) == before
    assert dt.resume(tmp_path).reason == "finished"


def test_a_finished_run_is_left_as_it_is_by_a_resume(tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run, tmp_path / "run", symlinks=True)
    run = dt.resume(tmp_path / "run")
    assert run.reason == "finished"
    assert losses_of(run.folder) == losses_of(tiny_run)
    assert weights_of(run.folder) == weights_of(tiny_run)


def test_an_early_stop_is_final(blocks: Path, tiny_settings: Settings, tmp_path: Path) -> None:
    from detronome.engine.early_stop import BestMetric

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BestMetric, "should_stop", property(lambda self: self.step > 0))
        run = dt.train(blocks, model="nano", epochs=EPOCHS, out=tmp_path, settings=tiny_settings)
        assert run.reason == "early_stop"
        before = losses_of(tmp_path)
        assert dt.resume(tmp_path).reason == "early_stop"
    assert losses_of(tmp_path) == before


def test_an_older_checkpoint_is_resumed_when_the_last_is_damaged(
    whole_run: tuple[Path, dict[int, Path]], tmp_path: Path
) -> None:
    folder, copies = whole_run
    run = tmp_path / "run"
    shutil.copytree(copies[9], run, symlinks=True)
    checkpoints = run / "checkpoints"
    for checkpoint in checkpoints.glob("step-*"):
        damaged = bytearray((checkpoint / "model.safetensors").read_bytes())
        damaged[-100] ^= 1
        (checkpoint / "model.safetensors").write_bytes(damaged)
    with pytest.raises(dt.CheckpointError, match="SHA-256"):
        dt.resume(run)
    older = (copies[4] / "checkpoints" / "last").resolve()
    shutil.rmtree(checkpoints / older.name, ignore_errors=True)
    shutil.copytree(older, checkpoints / older.name)
    told: list[RunStarted] = []
    resumed = dt.resume(run, observers=[lambda event: told.append(event) if isinstance(event, RunStarted) else None])
    assert resumed.folder == run and "newer ones cannot be used" in told[0].resolved["checkpoint"]
    assert losses_of(run) == losses_of(folder)
    assert weights_of(run) == weights_of(folder)


def copy_of(blocks: Path, folder: Path, change: Callable[[dict[str, Any]], object], split: str = "train") -> Path:
    shutil.copytree(blocks, folder)
    file = folder / "annotations" / f"instances_{split}.json"
    record = json.loads(file.read_text())
    change(record)
    file.write_text(json.dumps(record))
    return folder


def test_resume_is_refused_when_the_annotations_have_changed(
    blocks: Path, tiny_settings: Settings, tmp_path: Path
) -> None:
    data = copy_of(blocks, tmp_path / "data", lambda record: None)
    stop = at_step(1, send(signal.SIGTERM))
    run = dt.train(data, model="nano", epochs=1, out=tmp_path / "run", settings=tiny_settings, observers=[stop])
    file = data / "annotations" / "instances_train.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record, indent=2))  # written otherwise, with the same meaning
    shutil.copytree(run.folder, tmp_path / "copy", symlinks=True)
    assert dt.resume(tmp_path / "copy").reason == "finished"
    record["annotations"].pop()
    file.write_text(json.dumps(record))
    with pytest.raises(dt.CheckpointError, match="annotations have changed") as error:
        dt.resume(run.folder)
    assert "fix:" in str(error.value)


def test_skipped_steps_are_logged_and_too_many_stop_the_run(
    blocks: Path, tiny_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from detronome.losses.set_criterion import SetCriterion

    original = SetCriterion.total
    monkeypatch.setattr(SetCriterion, "total", lambda self, losses: original(self, losses) * float("nan"))
    with pytest.raises(dt.TrainingError, match="2 steps in a row"):
        dt.train(
            blocks,
            model="nano",
            epochs=EPOCHS,
            out=tmp_path,
            settings={**tiny_settings, "guard.max_skipped_steps": 2, "guard.max_rollbacks": 0, "data.workers": 2},
        )
    skips = [r for r in read_run_log(tmp_path / "log.jsonl") if r["kind"] == "skip"]
    assert [r["step"] for r in skips] == [0, 1]
    assert all(len(r["image_ids"]) == 8 for r in skips)


def test_fine_tuning_starts_from_the_weights_of_a_run(
    tiny_run: Path, blocks: Path, tiny_settings: Settings, tmp_path: Path
) -> None:
    first: list[float] = []
    run = dt.train(
        blocks,
        model=tiny_run,
        epochs=1,
        out=tmp_path,
        settings={"optim.lr": 1e-30, "optim.backbone_lr": 1e-30, "train.ema_decay": 0.0},
        observers=[lambda event: first.append(event.loss) if isinstance(event, StepLogged) else None],
    )
    before, after = dt.load(tiny_run).checkpoint.model, run.model.checkpoint.model
    assert all(np.array_equal(before[n], after[n]) for n in before if "running" not in n and "num_batches" not in n)
    assert "preset" in (tmp_path / "config.toml").read_text()
    assert all(np.isfinite(first))


def test_fine_tuning_chooses_padded_shapes_that_fit_its_own_images(
    blocks: Path, tiny_settings: Settings, tmp_path: Path
) -> None:
    settings: Settings = {name: value for name, value in tiny_settings.items() if not name.startswith("model.")} | {
        "model.backbone_weights": "none",
        "model.hidden_dim": 16,
        "model.num_heads": 2,
        "model.ffn_dim": 16,
        "model.num_encoder_layers": 1,
        "model.num_decoder_layers": 1,
        "augment.crop": "none",
        "train.log_steps": 10,
        "data.val_split": "",
    }
    first = dt.train(blocks, model="detr-r18", epochs=1, out=tmp_path / "first", settings=settings)
    assert first.model.config.data.buckets == ("64x96",)
    smaller = {"augment.sizes": [32], "augment.eval_size": 32}
    second = dt.train(blocks, model=first.folder, epochs=1, out=tmp_path / "second", settings=smaller)
    assert second.model.config.data.buckets == ("32x64",)
    asked_for = {**smaller, "data.buckets": ["64x64"]}
    third = dt.train(blocks, model=first.folder, epochs=1, out=tmp_path / "third", settings=asked_for)
    assert third.model.config.data.buckets == ("64x64",)


def test_fine_tuning_refuses_settings_that_the_weights_do_not_fit(tiny_run: Path, blocks: Path, tmp_path: Path) -> None:
    with pytest.raises(dt.CheckpointError, match="do not fit the model"):
        dt.train(blocks, model=tiny_run, epochs=1, out=tmp_path, settings={"model.ffn_dim": 24})
    # The failed start does not block the folder.
    assert dt.train(blocks, model=tiny_run, epochs=1, out=tmp_path).reason == "finished"


def test_training_without_a_validation_split(blocks: Path, tiny_settings: Settings, tmp_path: Path) -> None:
    data = copy_of(blocks, tmp_path / "data", lambda record: None)
    (data / "annotations" / "instances_val.json").unlink()
    with pytest.raises(dt.DataError, match="no validation split") as error:
        dt.train(data, model="nano", epochs=1, out=tmp_path / "run", settings=tiny_settings)
    assert "data.val_split=''" in str(error.value)
    settings = {**tiny_settings, "data.val_split": ""}
    run = dt.train(data, model="nano", epochs=1, out=tmp_path / "run", settings=settings)
    assert (run.reason, run.metrics) == ("finished", {})
    assert run.model.checkpoint.state.step == STEPS_PER_EPOCH
    assert not (run.folder / "checkpoints" / "best").exists()


def test_a_validation_split_of_any_year_is_found(blocks: Path, tiny_settings: Settings, tmp_path: Path) -> None:
    data = copy_of(blocks, tmp_path / "data", lambda record: None)
    for split in ("train", "val"):
        (data / f"annotations/instances_{split}.json").rename(data / f"annotations/instances_{split}2019.json")
    assert dt.train(data, model="nano", epochs=1, out=tmp_path / "run", settings=tiny_settings).metrics["AP"] >= 0


def keep_images(count: int) -> Callable[[dict[str, Any]], None]:
    def change(record: dict[str, Any]) -> None:
        record["images"] = record["images"][:count]
        ids = {image["id"] for image in record["images"]}
        record["annotations"] = [a for a in record["annotations"] if a["image_id"] in ids]

    return change


def keep_one_class(record: dict[str, Any]) -> None:
    record["categories"] = record["categories"][:1]
    record["annotations"] = [a for a in record["annotations"] if a["category_id"] == 3]


@pytest.mark.parametrize(
    ("split", "change"),
    [
        ("train", keep_images(1)),
        ("train", keep_images(3)),
        ("train", lambda record: record["annotations"].clear()),
        ("val", lambda record: record["annotations"].clear()),
        ("val", keep_images(1)),
    ],
    ids=["one image", "batch larger than the data", "no objects", "val without objects", "one val image"],
)
def test_empty_and_tiny_data_train(
    split: str, change: Callable[[dict[str, Any]], object], blocks: Path, tiny_settings: Settings, tmp_path: Path
) -> None:
    data = copy_of(blocks, tmp_path / "d a t ä", change, split)
    run = dt.train(data, model="nano", epochs=1, out=tmp_path / "r ü n", settings=tiny_settings)
    assert run.reason == "finished"
    assert run.report is not None and run.report.is_file()
    steps = [r for r in read_run_log(run.folder / "log.jsonl") if r["kind"] == "step"]
    assert steps and all(np.isfinite(r["loss"]) for r in steps)
    assert [r for r in read_run_log(run.folder / "log.jsonl") if r["kind"] == "skip"] == []
    assert run.model.predict(np.zeros((1, 1, 3), np.uint8)).image.shape == (1, 1, 3)


def test_one_class(blocks: Path, tiny_settings: Settings, tmp_path: Path) -> None:
    data = copy_of(blocks, tmp_path / "data", keep_one_class)
    file = data / "annotations" / "instances_val.json"
    record = json.loads(file.read_text())
    keep_one_class(record)
    file.write_text(json.dumps(record))
    run = dt.train(data, model="nano", epochs=1, out=tmp_path / "run", settings=tiny_settings)
    assert run.model.categories.names == ("red",)
    assert run.metrics["AP"] >= 0


def test_images_of_one_pixel_and_of_one_row(tiny_settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "images").mkdir()
    images = []
    for number, (height, width) in enumerate(((1, 1), (1, 300), (300, 1)), start=1):
        Image.new("RGB", (width, height), "red").save(tmp_path / "images" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": height, "width": width})
    record = {
        "images": images,
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "area": 1, "iscrowd": 0}],
        "categories": [{"id": 1, "name": "dot"}],
    }
    for split in ("train", "val"):
        (tmp_path / "annotations" / f"instances_{split}.json").write_text(json.dumps(record))
    run = dt.train(tmp_path, model="nano", epochs=2, out=tmp_path / "run", settings=tiny_settings)
    assert run.reason == "finished"


def test_evaluate_gives_the_numbers_of_the_runs_best_evaluation(tiny_run: Path, blocks: Path) -> None:
    model = dt.load(tiny_run)
    assert dt.evaluate(model, blocks).numbers == pytest.approx(model.metrics, nan_ok=True)
    assert dt.evaluate(tiny_run, blocks, split="train", device="cpu").num_images == 24


def test_evaluate_refuses_data_with_a_class_that_the_model_does_not_know(
    tiny_run: Path, blocks: Path, tmp_path: Path
) -> None:
    def change(record: dict[str, Any]) -> None:
        record["categories"].append({"id": 9, "name": "new"})
        record["annotations"][0]["category_id"] = 9

    with pytest.raises(dt.DataError, match=r"'new' \(id 9\)"):
        dt.evaluate(tiny_run, copy_of(blocks, tmp_path / "data", change, "val"))


def test_every_kind_of_image_gives_the_same_objects(tiny_run: Path, blocks: Path) -> None:
    model = dt.load(tiny_run)
    file = blocks / "images" / "val_00.png"
    picture = Image.open(file)
    pixels = np.asarray(picture)
    flipped = np.ascontiguousarray(pixels[::-1])[::-1]  # negative strides
    sources = [file, str(file), picture, pixels, flipped, picture.convert("RGBA")]
    first, *others = model.predict(sources, score=0.0)
    assert len(first) > 0 and first.detections.image_id == -1
    for other in others:
        np.testing.assert_array_equal(other.boxes_xyxy, first.boxes_xyxy)
        np.testing.assert_array_equal(other.labels, first.labels)
    assert isinstance(model.predict(file), dt.Prediction)
    assert model.predict([]) == []


def test_a_turned_photo_is_predicted_upright_from_a_file_and_from_pillow(tiny_run: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20), "red").save(tmp_path / "turned.png", exif=exif)
    model = dt.load(tiny_run)
    assert model.predict(tmp_path / "turned.png").image.shape == (40, 20, 3)
    assert model.predict(Image.open(tmp_path / "turned.png")).image.shape == (40, 20, 3)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((0, 8, 3), np.uint8),
    ],
    ids=["grey", "four channels", "floats", "empty"],
)
def test_arrays_of_another_kind_are_refused(tiny_run: Path, array: Any) -> None:
    with pytest.raises(dt.DataError, match="image array must be uint8"):
        dt.load(tiny_run).predict(array)


def test_a_prediction_is_drawn_saved_and_handed_to_supervision(
    tiny_run: Path, blocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prediction = dt.load(tiny_run).predict(blocks / "images" / "val_00.png", score=0.0)
    assert set(prediction.names) <= {"red", "blue"} and len(prediction.names) == len(prediction)
    assert prediction.draw().dtype == np.uint8
    for name in ("a.jpg", "a.png"):
        with Image.open(prediction.save(tmp_path / "new folder" / name)) as picture:
            assert picture.size[0] >= 96
    with pytest.raises(dt.DataError, match="cannot be written"):
        prediction.save(tmp_path / "a.tga")

    original = builtins.__import__

    def without_supervision(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "supervision":
            raise ImportError(name)
        return original(name, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.delitem(sys.modules, "supervision", raising=False)
        patch.setattr(builtins, "__import__", without_supervision)
        with pytest.raises(dt.MissingExtraError, match=r"pip install 'detronome\[supervision\]'"):
            prediction.to_supervision()


def test_supervision_gets_boxes_scores_ids_and_names(tiny_run: Path, blocks: Path) -> None:
    pytest.importorskip("supervision")
    prediction = dt.load(tiny_run).predict(blocks / "images" / "val_00.png", score=0.0)
    converted = prediction.to_supervision()
    np.testing.assert_array_equal(converted.xyxy, prediction.boxes_xyxy)
    assert list(converted.data["class_name"]) == prediction.names


def test_a_preset_has_no_weights_to_load() -> None:
    with pytest.raises(dt.ConfigError, match="has no trained weights yet"):
        dt.load("nano")


def test_observers_hear_of_the_end(tiny_run: Path, tmp_path: Path) -> None:
    heard: list[Event] = []
    shutil.copytree(tiny_run, tmp_path / "run", symlinks=True)
    dt.resume(tmp_path / "run", observers=[heard.append])
    assert isinstance(heard[-1], RunEnded) and heard[-1].reason == "finished"


def test_a_report_compares_runs(tiny_run: Path, whole_run: tuple[Path, dict[int, Path]], tmp_path: Path) -> None:
    page = dt.write_report([tiny_run, whole_run[0]], out=tmp_path / "compared.html")
    assert "runs compared" in page.read_text()
    assert dt.write_report(tiny_run, out=tmp_path / "one.html").is_file()
    with pytest.raises(dt.ConfigError, match="no run to report on"):
        dt.write_report([])


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_cost_no_run_and_a_resume_meets_them_alike(
    workers: int, blocks: Path, tiny_settings: Settings, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(blocks, data)
    for name in ("train_03.png", "train_17.png", "val_02.png"):
        photo = data / "images" / name
        photo.write_bytes(photo.read_bytes()[:200])
    (data / "images" / "train_17.png").unlink()
    settings = {**tiny_settings, "data.workers": workers, "data.bad_image_budget": 0.1}

    whole = dt.train(data, model="nano", epochs=2, out=tmp_path / "a", settings=settings)
    stopped = dt.train(
        data,
        model="nano",
        epochs=2,
        out=tmp_path / "b",
        settings=settings,
        observers=[at_step(2, send(signal.SIGTERM))],
    )
    resumed = dt.resume(stopped.folder)
    assert (whole.reason, stopped.reason, resumed.reason) == ("finished", "interrupted", "finished")
    assert losses_of(resumed.folder) == losses_of(whole.folder)
    assert weights_of(resumed.folder) == weights_of(whole.folder)
    for run in (whole, resumed):
        bad = [r for r in read_run_log(run.folder / "log.jsonl") if r["kind"] == "bad_image"]
        told = sorted((r["split"], r["image_id"], r["action"].partition(" ")[0]) for r in bad)
        assert sorted(set(told)) == [("train", 103, "replaced"), ("train", 117, "replaced"), ("val", 102, "left")]
    assert len([r for r in read_run_log(whole.folder / "log.jsonl") if r["kind"] == "bad_image"]) == 3
    page = (whole.folder / "report.html").read_text()
    assert "What happened" in page and "train_17.png" in page
    assert any("image id 102 was left out" in note for note in dt.evaluate(whole.folder, data).notes)
    with pytest.raises(dt.DataError, match="more than the 1 of 24"):
        dt.train(
            data,
            model="nano",
            out=tmp_path / "c",
            settings={**settings, "data.bad_image_budget": 0.001, "train.epochs": 2},
        )
    with pytest.raises(dt.DataError, match=r"1 of 24 image files are missing: train_17\.png"):
        dt.train(data, model="nano", epochs=1, out=tmp_path / "d", settings={**settings, "data.on_bad_image": "stop"})


@pytest.mark.parametrize("address", [False, True])
def test_a_run_on_shards_is_the_run_on_files(
    address: bool, whole_run: tuple[Path, dict[int, Path]], blocks: Path, tiny_settings: Settings, tmp_path: Path
) -> None:
    dt.shard_data(blocks, tmp_path / "shards")
    data = (tmp_path / "shards").as_uri() if address else tmp_path / "shards"
    run = dt.train(data, model="nano", epochs=EPOCHS, out=tmp_path / "run", settings=tiny_settings)
    assert losses_of(run.folder) == losses_of(whole_run[0])
    assert weights_of(run.folder) == weights_of(whole_run[0])
    assert run.report is not None and "val_00" in run.report.read_text()


@pytest.mark.parametrize("layout", ["yolo", "voc", "roboflow"])
def test_every_layout_is_trained_and_evaluated(
    layout: Any, whole_run: tuple[Path, dict[int, Path]], blocks: Path, tiny_settings: Settings, tmp_path: Path
) -> None:
    dt.convert_data(blocks, tmp_path / layout, to=layout)
    shutil.rmtree(tmp_path / layout / "detronome.json", ignore_errors=True)
    settings = {**tiny_settings, "augment.crop": "none", "augment.horizontal_flip": 0.0}
    run = dt.train(tmp_path / layout, model="nano", epochs=1, out=tmp_path / "run", settings=settings)
    assert run.reason == "finished"
    start = read_run_log(run.folder / "log.jsonl")[0]
    assert (start["num_train_images"], start["num_val_images"]) == (24, 6)
    numbers = dt.evaluate(run.folder, tmp_path / layout).numbers
    assert numbers["AP"] == run.metrics["AP"]

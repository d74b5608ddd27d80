"""A user's mistakes end in a message with what was wrong and how to fix it, never in a traceback."""

import json
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from detronome.cli import main

Capture = pytest.CaptureFixture[str]
Change = Callable[[dict[str, Any]], object]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(capsys: Capture, *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    code = end.value.code
    return (code if isinstance(code, int) else 0), captured.out, captured.err


def fails(capsys: Capture, *arguments: object, ends_with: int = 1) -> str:
    code, out, err = run(capsys, *arguments)
    assert code == ends_with
    assert out == ""
    assert "error:" in err and "fix:" in err
    assert "Traceback" not in err
    return err


def changed(blocks: Path, folder: Path, change: Change, split: str = "train") -> Path:
    shutil.copytree(blocks, folder)
    file = folder / "annotations" / f"instances_{split}.json"
    record = json.loads(file.read_text())
    change(record)
    file.write_text(json.dumps(record))
    return folder


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("trian", "x"), "did you mean 'train'"),
        (("train", "x", "--epohcs", "3"), "Did you mean --epochs"),
        (("train", "x", "--epochs", "many"), 'unable to convert "many" into int'),
        (("eval", "x", "y", "--iou-type", "box"), 'Choose from: "bbox", "segm"'),
        (("predict",), "CHECKPOINT"),
        (("predict", "nowhere"), "no images"),
        (("report",), "RUN"),
        (("train",), "no data folder"),
        (("train", "--set", "optim.lr=1", "data"), "'data' is not key=value"),
        (("eval",), "a checkpoint and a data folder are needed"),
        (("eval", "run"), "a checkpoint and a data folder are needed"),
        (("eval", "run", "data", "--max-detections", "5"), "--max-detections: of no effect"),
        (("eval", "--detections", "x", "--annotations", "y", "--split", "test"), "--split: of no effect"),
        (("eval", "--panoptic", "--detections", "x", "--annotations", "y", "--iou-type", "segm"), "--iou-type: of no"),
        (("eval", "--detections", "x.json"), "--detections and --annotations, both"),
        (("eval", "--annotations", "x.json"), "--detections and --annotations, both"),
        (("eval", "run", "--detections", "x.json", "--annotations", "y.json"), "alone"),
        (("train", "x", "--resume", "nowhere", "--set", "optim.lr=1"), "DATA cannot be given with --resume"),
        (("train", "--resume", "nowhere", "--model", "nano"), "--model cannot be given with --resume"),
    ],
)
def test_a_mistake_on_the_command_line(capsys: Capture, arguments: tuple[str, ...], told: str) -> None:
    if arguments[:2] == ("train", "--set"):
        arguments = ("train", "x", *arguments[1:])
    assert told in fails(capsys, *arguments, ends_with=2)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("eval", "--detections", "x.json", "--annotations", "y.json"), "y.json"),
        (("eval", "nowhere", "data"), "does not exist"),
        (("predict", "nowhere", "a.jpg"), "there is no such file"),
        (("report", "nowhere"), "there is no such folder"),
        (("train", "--resume", "nowhere"), "does not exist"),
    ],
)
def test_a_place_where_nothing_is(capsys: Capture, arguments: tuple[str, ...], told: str) -> None:
    assert told in fails(capsys, *arguments)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--model", "detr-r51"), "did you mean 'detr-r50'?"),
        (("--set", "optim.lrr=1"), "did you mean 'lr'?"),
        (("--set", "optm.lr=1"), "did you mean 'optim'?"),
        (("--set", "lr=1"), "did you mean optim.lr?"),
        (("--set", "optim.lr=fast"), "give a number"),
        (("--set", "optim.lr=nan"), "give a number"),
        (("--set", "optim.lr=1" + "0" * 400), "give a number"),
        (("--set", "optim.lr", "=", "1"), "'optim.lr' is not key=value"),
        (("--set", "optim.lr = fast"), "optim.lr = 'fast' is not allowed"),
        (("--set", "optim.lr.x=1"), "unknown setting"),
        (("--set", "=1"), "is not key=value"),
        (("--set", "optim.lr=0"), "optim.lr must be above 0"),
        (("--set", "optim.backbone_lr=-1"), "optim.backbone_lr = -1.0 is out of range"),
        (("--set", "preset.x=1"), "give a text"),
        (("--set", "model.family=yolo"), "unknown model.family 'yolo'"),
        (("--set", "model.family=[1]"), "unknown model.family [1]"),
        (("--set", "loss.family=x"), "unknown setting 'loss.family'"),
        (("--set", "model.family=detr"), "set loss.classification=softmax"),
        (("--set", "loss.classification=softmax"), "does not fit the family 'nano'"),
        (("--set", "model.num_heads=0"), "model.num_heads = 0 is out of range"),
        (("--set", "model.num_heads=5"), "no multiple of num_heads = 5"),
        (("--set", "model.widths=[16,32]"), "one entry for each stage"),
        (("--set", "model.widths=[8,16,24]"), "multiples of 16"),
        (("--set", "augment.sizes=[]"), "augment.sizes"),
        (("--set", "augment.sizes=[0]"), "augment.sizes"),
        (("--set", "batch.global_batch_size=0"), "batch.global_batch_size = 0 is out of range"),
        (("--set", "batch.micro_batch_size=-1"), "batch.micro_batch_size = -1 is out of range"),
        (("--set", "data.workers=-1"), "data.workers"),
        (("--set", "data.prefetch=0"), "data.prefetch = 0 is out of range"),
        (("--set", "train.device=cuda:77"), "offers no device 'cuda:77'"),
        (("--set", "train.device=gpu"), "'gpu' is no device"),
        (("--set", "train.precision=fp16", "train.device=cpu"), "fp16 needs a GPU"),
        (("--set", "schedule.kind=step", "schedule.drop_epochs=[]"), "the schedule 'step' takes one period"),
        (("--set", "schedule.kind=cosin"), "'cosine'"),
        (("--epochs", "0"), "train.epochs = 0 is out of range"),
        (("--track",), "no tracker is named"),
        (("--config", "nowhere.toml"), "cannot read the file"),
        (("--config", "unknown.toml"), "did you mean 'lr'?"),
        (("--config", "broken.toml"), "not valid TOML"),
        (("--config", "flat.toml"), "optim must be a section of settings"),
    ],
)
def test_a_mistake_in_the_settings(capsys: Capture, blocks: Path, arguments: tuple[str, ...], told: str) -> None:
    Path("unknown.toml").write_text("[optim]\nlrr = 1\n")
    Path("broken.toml").write_text("[optim\n")
    Path("flat.toml").write_text("optim = 3\n")
    model = () if "--model" in arguments else ("--model", "nano")
    assert told in fails(capsys, "train", blocks, *model, "--out", "run", *arguments, ends_with=2)
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--set", "data.train_split=trian"), "has no split 'trian'; it has train, val"),
        (("--set", "data.val_split=test"), "has no split 'test'"),
        (("--model", "unknown.toml"), "the file is no checkpoint"),
    ],
)
def test_settings_that_do_not_fit_the_files(
    capsys: Capture, blocks: Path, arguments: tuple[str, ...], told: str
) -> None:
    Path("unknown.toml").write_text("[optim]\nlrr = 1\n")
    model = () if "--model" in arguments else ("--model", "nano")
    assert told in fails(capsys, "train", blocks, *model, "--out", "run", *arguments)
    assert not Path("run").exists()


def test_all_mistakes_in_the_settings_are_told_at_once(capsys: Capture, blocks: Path) -> None:
    settings = ("optim.lrr=1", "train.epochs=many", "augment.sizes=big")
    err = fails(capsys, "train", blocks, "--model", "nano", "--set", *settings, ends_with=2)
    assert err.count("error:") == 3
    err = fails(capsys, "train", blocks, "--model", "nano", "--set", "train.log_steps=0", "optim.lr=-1", ends_with=2)
    assert err.count("error:") == 2


def two_files_are_gone(record: dict[str, Any]) -> None:
    """One would be replaced."""
    for n in range(2):
        record["images"][n]["file_name"] = f"gone {n}.png"


def image_of_an_unknown_id(record: dict[str, Any]) -> None:
    record["annotations"][0]["image_id"] = 999


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda record: record.update(images=[]), "'images' is empty"),
        (lambda record: record.pop("images"), "there is no list 'images'"),
        (lambda record: record.update(categories=[]), "'categories' is empty"),
        (lambda record: record["annotations"][0].update(bbox=[1, 2]), "bbox is not 4 finite numbers"),
        (image_of_an_unknown_id, "image ids that the file does not have"),
        (two_files_are_gone, "2 of 24 image files are missing: gone 0.png, gone 1.png"),
    ],
    ids=["no images", "no image list", "no categories", "bad box", "unknown image id", "missing files"],
)
def test_a_mistake_in_the_annotations(capsys: Capture, blocks: Path, tmp_path: Path, change: Change, told: str) -> None:
    data = changed(blocks, tmp_path / "d a t ä", change)
    assert told in fails(capsys, "train", data, "--model", "nano", "--out", "run")
    assert not Path("run").exists()


def test_a_data_folder_that_is_none(capsys: Capture, blocks: Path, tmp_path: Path) -> None:
    assert "does not exist" in fails(capsys, "train", tmp_path / "nowhere", "--model", "nano")
    (tmp_path / "empty").mkdir()
    assert "holds no COCO annotations" in fails(capsys, "train", tmp_path / "empty", "--model", "nano")
    (tmp_path / "file").write_text("x")
    assert "is a file" in fails(capsys, "train", tmp_path / "file", "--model", "nano")
    data = shutil.copytree(blocks, tmp_path / "broken")
    (data / "annotations" / "instances_train.json").write_text('{"images": [')
    assert "not valid JSON" in fails(capsys, "train", data, "--model", "nano")


def test_a_damaged_image_ends_the_run_with_its_name_and_the_run_can_be_resumed_once_it_is_mended(
    capsys: Capture, blocks: Path, tiny_settings: dict[str, Any], tmp_path: Path
) -> None:
    data = shutil.copytree(blocks, tmp_path / "data")
    image = data / "images" / "train_05.png"
    content = image.read_bytes()
    image.write_bytes(content[:200])
    settings = [f"{key}={value}" for key, value in {**tiny_settings, "data.on_bad_image": "stop"}.items()]
    train = ("train", data, "--model", "nano", "--epochs", 1, "--out", "run", "--set", *settings)
    assert "train_05.png (image id 105)" in fails_after_start(capsys, *train)
    image.write_bytes(content)
    code, out, _ = run(capsys, "train", "--resume", "run", "--json")
    assert code == 0 and json.loads(out)["reason"] == "finished"


def fails_after_start(capsys: Capture, *arguments: object) -> str:
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (1, "") and "error:" in err and "fix:" in err and "Traceback" not in err
    return err


def test_out_that_holds_a_run_or_cannot_be_written(capsys: Capture, blocks: Path, tiny_run: Path) -> None:
    err = fails(capsys, "train", blocks, "--model", "nano", "--out", tiny_run, ends_with=2)
    assert "already holds a run" in err and f"--resume {tiny_run}" in err
    Path("a file").write_text("x")
    for out in ("a file", "a file/run"):
        assert "cannot write there" in fails(capsys, "train", blocks, "--model", "nano", "--out", out, ends_with=2)
    image = blocks / "images" / "val_00.png"
    assert "cannot write there" in fails(capsys, "predict", tiny_run, image, "--out", "a file", ends_with=2)
    assert "cannot write there" in fails(capsys, "report", tiny_run, "--out", "a file/report.html", ends_with=2)
    Path("a folder").mkdir()
    err = fails(capsys, "eval", tiny_run, blocks, "--details", "a folder", ends_with=2)
    assert "where: a folder\n" in err and "with --details" in err
    space = ("--space", "optim.lr=1e-4..1e-2", "--epochs", "1")
    err = fails(capsys, "search", blocks, "--model", "nano", *space, "--out", tiny_run, ends_with=2)
    assert "the folder holds a run" in err and not list(tiny_run.glob("study*"))


def test_device_that_is_not_there(
    capsys: Capture, blocks: Path, tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    image = blocks / "images" / "val_00.png"
    assert "no device 'cuda'" in fails(capsys, "eval", tiny_run, blocks, "--device", "cuda", ends_with=2)
    assert "no device 'cuda'" in fails(capsys, "predict", tiny_run, image, "--device", "cuda", ends_with=2)
    space = ("--space", "optim.lr=1e-4..1e-2", "--epochs", "1", "--set", "train.device=cuda")
    assert "no device 'cuda'" in fails(
        capsys, "search", blocks, "--model", "nano", *space, "--out", "a search", ends_with=2
    )
    assert not Path("a search").exists()


def test_checkpoints_that_are_none(capsys: Capture, blocks: Path, tmp_path: Path, tiny_run: Path) -> None:
    assert "no checkpoint in" in fails(capsys, "eval", tmp_path, blocks)
    assert "no checkpoint in" in fails(capsys, "train", "--resume", tmp_path)
    alone = shutil.copytree(tiny_run / "checkpoints" / "last", tmp_path / "alone")
    assert "config.toml is missing" in fails(capsys, "train", "--resume", alone)
    (alone / "model.safetensors").write_bytes(b"")
    assert "the file is damaged" in fails(capsys, "eval", alone, blocks)
    assert "this folder is no run" in fails(capsys, "report", tmp_path)
    assert "there is no such folder" in fails(capsys, "report", tiny_run, "nowhere")


def test_eval_of_data_with_other_classes(capsys: Capture, blocks: Path, tiny_run: Path, tmp_path: Path) -> None:
    def rename(record: dict[str, Any]) -> None:
        for category in record["categories"]:
            category["name"] = {"red": "cat", "blue": "dog"}[category["name"]]

    data = changed(blocks, tmp_path / "renamed", rename, "val")
    assert "'cat' is 'red'" in fails(capsys, "eval", tiny_run, data)
    assert "has no split 'test'" in fails(capsys, "eval", tiny_run, blocks, "--split", "test")


@pytest.mark.parametrize(
    ("content", "told"), [(b"", "not an image"), (b"\xff\xd8\xff\xe0 no", "cannot be used"), (None, "no such file")]
)
def test_predict_on_an_image_that_is_none(capsys: Capture, tiny_run: Path, content: bytes | None, told: str) -> None:
    image = Path("an image ü.jpg")
    if content is not None:
        image.write_bytes(content)
    err = fails(capsys, "predict", tiny_run, image)
    assert told in err and str(image) in err


@pytest.mark.parametrize(
    "text", ["", "{", "{}", "[1]", '[{"image_id": 100}]', '[{"image_id": 1, "category_id": 3, "bbox": 4, "score": 1}]']
)
def test_malformed_results(capsys: Capture, blocks: Path, text: str) -> None:
    Path("results.json").write_text(text)
    truth = blocks / "annotations" / "instances_val.json"
    assert "results.json" in fails(capsys, "eval", "--detections", "results.json", "--annotations", truth)
    Path("truth.json").write_text("{}")
    Path("results.json").write_text("[]")
    assert "truth.json" in fails(capsys, "eval", "--detections", "results.json", "--annotations", "truth.json")


def test_json_goes_to_stdout_alone(capsys: Capture, blocks: Path, tiny_run: Path, tmp_path: Path) -> None:
    code, out, err = run(capsys, "eval", tiny_run, blocks, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)

    code, out, _ = run(capsys, "report", tiny_run, "--out", "page.html", "--json")
    assert code == 0 and json.loads(out) == {"report": "page.html"} and Path("page.html").is_file()

    images = shutil.copytree(blocks / "images", tmp_path / "i m ä g")
    code, out, _ = run(capsys, "predict", tiny_run, images, "--out", "found", "--score", 0, "--json")
    assert code == 0 and len(json.loads(out)["num_objects"]) == 30

    truth = blocks / "annotations" / "instances_val.json"
    Path("results.json").write_text('[{"image_id": 100, "category_id": 3, "bbox": [1, 2, 9, 9], "score": 0.5}]')
    code, out, _ = run(capsys, "eval", "--detections", "results.json", "--annotations", truth, "--json")
    assert code == 0 and json.loads(out)


def test_text_output_names_what_was_written(capsys: Capture, blocks: Path, tiny_run: Path) -> None:
    code, out, _ = run(capsys, "predict", tiny_run, blocks / "images" / "val_00.png", "--out", "[bold]found")
    assert code == 0 and "[bold]found/detections.json" in out.replace("\\", "/")
    code, out, _ = run(capsys, "eval", tiny_run, blocks)
    assert code == 0 and "AP75" in out and "red" in out


def test_train_and_resume_end_with_the_right_code(
    capsys: Capture, blocks: Path, tiny_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import os
    import signal

    from detronome.engine.events import Event, StepLogged
    from detronome.report.console import ConsoleProgress

    closed: list[int] = []
    shown = ConsoleProgress.__call__

    def interrupt(self: ConsoleProgress, event: Event) -> None:
        shown(self, event)
        if isinstance(event, StepLogged) and event.step == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(ConsoleProgress, "__call__", interrupt)
        patch.setattr(ConsoleProgress, "close", lambda self: closed.append(1))
        settings = [f"{key} = {value}" for key, value in tiny_settings.items()]
        code, out, err = run(capsys, "train", blocks, "--model", "nano", "--epochs", 1, "--set", *settings)
    assert (code, out) == (130, "") and "resume with: detronome train --resume runs/nano\n" in err
    assert "interrupted at step 2" in err and closed
    code, out, err = run(capsys, "train", "--resume", "runs/nano")
    assert code == 0 and "report           runs/nano/report.html" in out
    assert "Traceback" not in err
    config = tomllib.loads(Path("runs/nano/config.toml").read_text())
    assert config["data"]["root"] == str(blocks)

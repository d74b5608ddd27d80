"""From a trained run to a trimmed model, by the command and from Python: it loads, is measured, predicts and learns."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import detronome as dt
from detronome.cli import main
from detronome.cli.trim import _command
from detronome.deploy.trim import Extent


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run `detronome trim ...`; return exit code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "1000")

    def run(*arguments: object) -> tuple[int, str, str]:
        try:
            main(["trim", *map(str, arguments)])
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_a_trimmed_model_loads_is_measured_predicts_and_learns(
    command: Any, tiny_run: Path, blocks: Path, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    code, out, _ = command(tiny_run, blocks, "--decoder-layers", 1, "--queries", 10, "--image-size", 48, "--out", small)
    assert code == 0
    assert "2 decoder layers, 25 queries, 64 px -> 1 decoder layer, 10 queries, 48 px" in out
    assert str(small) in out and "AP50" in out
    model = dt.load(small)
    assert (model.config.model.num_decoder_layers, model.config.model.num_queries) == (1, 10)
    assert (model.config.augment.eval_size, model.config.augment.eval_max_size) == (48, 72)
    assert any("trimmed from" in note and "25 queries" in note for note in model.notes)
    assert model.metrics == pytest.approx(dt.evaluate(model, blocks).numbers, nan_ok=True)
    found = model.predict(blocks / "images" / "val_00.png", score=0.0)
    assert 0 < len(found) <= 20  # ten queries, two classes
    run = dt.train(
        blocks,
        model=small,
        epochs=1,
        out=tmp_path / "tuned",
        settings={"train.device": "cpu", "data.workers": 0},
    )
    assert run.model.config.model.num_decoder_layers == 1


def test_a_sweep_recommends_draws_and_writes(command: Any, tiny_run: Path, blocks: Path, tmp_path: Path) -> None:
    picture, small = tmp_path / "sweep.png", tmp_path / "best"
    code, out, _ = command(
        tiny_run, blocks, "--queries", 25, 8, "--tolerance", 1, "--rounds", 6, "--picture", picture, "--out", small,
        "--json",
    )  # fmt: skip
    assert code == 0
    record = json.loads(out)
    points = record["points"]
    # The sizes tried by themselves are multiples of 32: of 64, that is 64 itself and 32.
    assert len(points) == 2 * 2 * len({point["image_size"] for point in points})
    assert points[0]["speedup"] == 1 and points[0]["loss"] == 0
    assert [point for point in points if point["is_on_front"]]
    best = record["recommended"]
    model = dt.load(small)
    assert model.config.model.num_decoder_layers == best["decoder_layers"]
    assert model.config.model.num_queries == best["queries"]
    assert model.config.augment.eval_size == best["image_size"]
    with Image.open(picture) as drawn:
        assert drawn.size[0] > 500
    assert {path.name for path in tmp_path.iterdir()} == {"sweep.png", "best"}


def test_a_sweep_without_out_writes_nothing_and_says_what_to_do_next(
    command: Any, tiny_run: Path, blocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = command(tiny_run, blocks, "--image-size", 64, "--rounds", 6, "--sweep")
    assert code == 0 and not list(tmp_path.iterdir())
    assert "the whole model" in out and "recommended" in out
    assert "latency of" in err


def test_the_next_command_measures_on_the_same_split_and_device() -> None:
    extent = Extent(decoder_layers=1, num_queries=8, image_size=64)
    plain = "detronome trim run data --decoder-layers 1 --queries 8 --image-size 64"
    assert _command("run", "data", extent, split="val", device="auto") == plain
    asked = _command("run", "data", extent, split="test", device="cuda:1")
    assert asked == f"{plain} --split test --device cuda:1"


def test_fine_tuning_makes_an_ordinary_run(tiny_run: Path, blocks: Path, tmp_path: Path) -> None:
    done = dt.trim(
        tiny_run,
        blocks,
        decoder_layers=1,
        fine_tune=1,
        out=tmp_path / "tuned",
        settings={"train.device": "cpu", "data.workers": 0},
    )
    assert done.run is not None and done.run.folder == done.folder == tmp_path / "tuned"
    assert (done.folder / "report.html").is_file()
    config = done.model.config
    assert config.model.num_decoder_layers == 1 and config.train.epochs == 1
    assert config.optim.lr == pytest.approx(0.5 * dt.load(tiny_run).config.optim.lr)
    assert done.fine_tuned_metrics == pytest.approx(dt.evaluate(done.folder, blocks).numbers, nan_ok=True)
    assert done.to_json()["fine_tuned_metrics"] == done.fine_tuned_metrics


def test_classic_detr_keeps_the_queries_that_find_objects(blocks: Path, tmp_path: Path) -> None:
    settings = {
        "model.backbone": "resnet18",
        "model.backbone_weights": "none",
        "model.backbone_norm": "trainable",
        "model.frozen_stages": 0,
        "model.hidden_dim": 16,
        "model.num_heads": 2,
        "model.ffn_dim": 16,
        "model.num_encoder_layers": 1,
        "model.num_decoder_layers": 2,
        "model.num_queries": 8,
        "augment.sizes": [64],
        "augment.crop": "none",
        "augment.max_size": 96,
        "augment.eval_size": 64,
        "augment.eval_max_size": 96,
        "train.device": "cpu",
        "data.workers": 0,
    }
    run = dt.train(blocks, model="detr-r18", epochs=1, out=tmp_path / "run", settings=settings)
    with pytest.raises(dt.ConfigError, match="queries are learned"):
        dt.trim(run.folder, queries=3, out=tmp_path / "small")
    done = dt.trim(run.folder, blocks, queries=3, out=tmp_path / "small")
    assert done.notes == ("those learned queries are kept that found most of the objects in the split 'train'",)
    kept = dt.load(done.folder).checkpoint.model["query_embed.weight"]
    own = run.model.checkpoint.model["query_embed.weight"]
    assert kept.shape == (3, 16) and all((own == row).all(1).any() for row in kept)


def test_mistakes_are_told_with_their_fix(
    command: Any, tiny_run: Path, blocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    cases = [
        ((tiny_run,), 2, "nothing is said to be trimmed"),
        ((tiny_run, "--sweep"), 2, "a sweep measures on data"),
        ((tiny_run, "--decoder-layers", 1, 2), 2, "a sweep measures on data"),
        ((tiny_run, "--decoder-layers", 1, "--picture", tmp_path / "a.png"), 2, "a single model makes no picture"),
        ((tiny_run, "--decoder-layers", 3), 2, "3 decoder layers: the model has 2"),
        ((tiny_run, "--decoder-layers", 0), 2, "0 decoder layers are too few"),
        ((tiny_run, "--queries", 26), 2, "26 queries: the model has 25"),
        ((tiny_run, "--image-size", 65), 2, "65 pixels: the model has 64"),
        ((tiny_run, "--image-size", 8), 2, "8 pixels are too few"),
        ((tiny_run, "--decoder-layers", 2), 2, "the model is as asked for already"),
        ((tiny_run, "--decoder-layers", 1, "--out", tmp_path / "there"), 2, "exists already"),
        ((tiny_run, "--decoder-layers", 1, "--fine-tune", 2), 2, "fine-tuning needs data"),
        ((tiny_run, blocks, "--fine-tune", 1), 2, "a fine-tuned model needs a folder"),
        ((tiny_run, blocks, "--tolerance", 2), 2, "a tolerance of 2"),
        ((tiny_run, blocks, "--rounds", 5), 2, "5 rounds prove nothing"),
        ((tiny_run, "--decoder-layers", 1, "--set", "optim.lr=1e-3"), 2, "settings are those of fine-tuning"),
        ((tiny_run, blocks, "--sweep", "--out", "/proc/detronome/small"), 2, "cannot write there"),
        ((tiny_run, blocks, "--picture", tmp_path), 2, "cannot write there"),
        ((tmp_path / "model.onnx", "--decoder-layers", 1), 2, "the graph of an exported file is fixed"),
        ((tmp_path / "nothing", "--decoder-layers", 1), 1, "does not exist"),
        ((tiny_run, tmp_path, "--sweep"), 1, "the data folder holds no COCO annotations"),
    ]
    for arguments, ends_with, message in cases:
        code, out, err = command(*arguments)
        assert (code, out) == (ends_with, ""), arguments
        assert message in err and "fix:" in err, (arguments, err)
        assert "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["there"]

"""`detronome eval --panoptic` measures files of any tool, and says everything that is wrong with them at once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.data.panoptic_folder import edit, write_map, write_panoptic

from detronome.api import evaluate_panoptic_results
from detronome.cli.dispatch import run
from detronome.data.coco.panoptic_map import read_segment_ids
from detronome.errors import DataError

Json = dict[str, Any]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A truth of four images, and its copy as the prediction of a tool: annotations alone."""
    truth = write_panoptic(tmp_path, 4, "val") / "annotations" / "panoptic_val.json"
    predicted = tmp_path / "mine.json"
    shutil.copytree(truth.with_suffix(""), predicted.with_suffix(""))
    annotations = json.loads(truth.read_text())["annotations"]
    for annotation in annotations:
        annotation["segments_info"] = [
            {"id": s["id"], "category_id": s["category_id"], "score": 0.9} for s in annotation["segments_info"]
        ]
    predicted.write_text(json.dumps({"annotations": annotations}))
    return predicted, truth


def test_predictions_of_nothing_score_nothing(files: tuple[Path, Path]) -> None:
    predicted, truth = files
    edit(predicted, lambda content: [a["segments_info"].clear() for a in content["annotations"]])
    for path in predicted.with_suffix("").iterdir():
        write_map(path, np.zeros_like(read_segment_ids(path)))
    assert evaluate_panoptic_results(predicted, truth).all.PQ == 0.0


def test_the_truth_is_perfect_but_for_its_crowds(files: tuple[Path, Path]) -> None:
    metrics = evaluate_panoptic_results(*files)
    assert metrics.all.PQ == metrics.things.SQ == metrics.stuff.RQ == 1.0
    assert metrics.num_images == 4 and metrics.notes == ()
    crowds = 4  # one in each image, of the second category
    num_segments = sum(len(a["segments_info"]) for a in json.loads(files[1].read_text())["annotations"])
    assert sum(q.true_positives for q in metrics.per_category.values()) == num_segments - crowds


def test_predictions_for_other_images_are_left_aside(files: tuple[Path, Path]) -> None:
    predicted, truth = files
    whole = evaluate_panoptic_results(predicted, truth)
    edit(predicted, lambda content: content["annotations"].append({**content["annotations"][0], "image_id": 5}))
    metrics = evaluate_panoptic_results(predicted, truth)
    assert metrics.numbers == whole.numbers
    assert metrics.notes == ("1 predictions are for images without panoptic annotation: they were left aside",)


def test_images_without_annotation_are_not_measured(files: tuple[Path, Path]) -> None:
    predicted, truth = files
    edit(truth, lambda content: content["annotations"].pop())
    assert evaluate_panoptic_results(predicted, truth).num_images == 3


def test_everything_wrong_is_said_at_once(files: tuple[Path, Path]) -> None:
    predicted, truth = files
    maps = predicted.with_suffix("")
    names = [annotation["file_name"] for annotation in json.loads(predicted.read_text())["annotations"]]

    def spoil(content: Json) -> None:
        first, second, _, last = content["annotations"]
        first["segments_info"][0]["category_id"] = 3
        first["segments_info"].append({"id": 12345, "category_id": 1})
        second["segments_info"].pop()
        content["annotations"].remove(last)

    edit(predicted, spoil)
    write_map(maps / names[2], np.zeros((5, 6), np.int32))
    (truth.with_suffix("") / names[1]).unlink()
    (maps / names[3]).unlink()
    with pytest.raises(DataError) as caught:
        evaluate_panoptic_results(predicted, truth)
    told = [problem.what for problem in caught.value.problems]
    assert told[0].startswith("1 images have no prediction: image 70")
    assert told[1].startswith("1 maps cannot be used: ") and names[1] in told[1]
    assert "another size" in told[2] and "image 69: 6x5, the true one 41x31" in told[2]
    assert "without a pixel in their map: image 67: 12345" in told[3]
    assert "categories that the annotation file does not list: image 67: 3" in told[4]
    assert len(told) == 5
    shutil.copy(maps / names[1], truth.with_suffix("") / names[1])
    with pytest.raises(
        DataError, match=r"1 predicted maps have segment ids that segments_info does not list: image 68"
    ):
        evaluate_panoptic_results(predicted, truth)


def test_both_files_and_both_folders_are_looked_at(tmp_path: Path, files: tuple[Path, Path]) -> None:
    predicted, truth = files
    edit(predicted, lambda content: content["annotations"][0].pop("file_name"))
    edit(predicted, lambda content: content["annotations"][1]["segments_info"][0].update(id=2**24))
    edit(predicted, lambda content: content["annotations"].append(content["annotations"][2]))
    edit(truth, lambda content: content["categories"].append(content["categories"][0]))
    shutil.rmtree(predicted.with_suffix(""))
    with pytest.raises(DataError) as caught:
        evaluate_panoptic_results(predicted, truth)
    told = [problem.what for problem in caught.value.problems]
    assert told == [
        "1 predictions lack an image_id or file_name: $.annotations[0]",
        "1 segments lack an id or category_id, or have no sound one: $.annotations[1].segments_info[0]",
        "1 images have several predictions: 69",
        "1 category id is used twice",
        "the folder of the panoptic maps is missing",
    ]
    with pytest.raises(DataError, match=r"file of predictions cannot be used(.|\n)*annotation file cannot be read"):
        evaluate_panoptic_results(tmp_path / "no.json", tmp_path / "none.json")


@pytest.mark.parametrize("content", ["", "[]", '{"annotations": 3}', '{"images": []}'])
def test_a_file_that_holds_no_predictions_is_refused(files: tuple[Path, Path], content: str) -> None:
    files[0].write_text(content)
    with pytest.raises(DataError, match="the file of predictions cannot be used"):
        evaluate_panoptic_results(*files)


def test_the_command_prints_numbers(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["eval", "--panoptic", "--detections", str(files[0]), "--annotations", str(files[1])]
    with pytest.raises(SystemExit) as ended:
        run([*arguments, "--json"])
    assert not ended.value.code
    record = json.loads(capsys.readouterr().out)
    assert record["numbers"]["PQ_stuff"] == 1.0 and record["num_categories"]["things"] == 1
    assert record["per_category"]["200"]["name"] == "sky"
    with pytest.raises(SystemExit):
        run(arguments)
    shown = capsys.readouterr().out
    assert "things  1.000  1.000  1.000" in shown and "sky" in shown


def test_the_command_needs_both_files(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(["eval", "--panoptic", "--detections", "mine.json"])
    assert ended.value.code == 2
    assert "with --detections and --annotations" in capsys.readouterr().err

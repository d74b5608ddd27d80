"""`predict`: what goes in, what comes out, and what it refuses to touch."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

import detronome as dt
from detronome.deploy.video import VideoReader, VideoWriter


@pytest.fixture(scope="module")
def model(tiny_run: Path) -> dt.Model:
    return dt.load(tiny_run)


@pytest.fixture
def photos(blocks: Path, tmp_path: Path) -> Path:
    """Six photos in a folder and its subfolders, two of one name."""
    root = tmp_path / "photos"
    places = ["a.png", "b.png", "deep/a.png", "deep/er/c.png", "z/x.png", "z/y.png"]
    for source, place in zip(sorted((blocks / "images").glob("val_*.png")), places, strict=True):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, root / place)
    return root


@pytest.fixture(scope="module")
def clip(blocks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of seven frames at 12.5 per second."""
    file = tmp_path_factory.mktemp("clips") / "clip.mp4"
    with VideoWriter(file, size_hw=(64, 96), fps=Fraction(25, 2)) as video:
        for i in range(7):
            with Image.open(blocks / "images" / f"train_{i:02d}.png") as picture:
                video.write(np.asarray(picture), i / 12.5)
    return file


def relative_files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def read_csv(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def test_predicted_results_evaluate_like_the_model(model: dt.Model, blocks: Path, tmp_path: Path) -> None:
    truth = blocks / "annotations" / "instances_val.json"
    numbered = tmp_path / "numbered ü"
    numbered.mkdir()
    for image in json.loads(truth.read_text())["images"]:
        shutil.copy(blocks / "images" / image["file_name"], numbered / f"{image['id']:012}.png")
    predictions = dt.predict(model, [numbered], out=tmp_path / "out")
    assert predictions.num_images == 6 and predictions.num_frames == 0
    assert len(list((tmp_path / "out").glob("*.jpg"))) == 6
    metrics = dt.evaluate_results(tmp_path / "out" / "detections.json", truth)
    expected = dt.evaluate(model, blocks).numbers
    assert metrics.numbers == pytest.approx(expected, nan_ok=True, abs=1e-6)

    pattern = str(blocks / "images" / "val_*.png")
    dt.predict(model, pattern, out=tmp_path / "named", annotations=truth, formats=["coco"], batch_size=3)
    named = dt.evaluate_results(tmp_path / "named" / "detections.json", truth)
    assert named.numbers == pytest.approx(expected, nan_ok=True, abs=1e-6)
    assert relative_files(tmp_path / "named") == ["detections.json"]


def test_image_ids_are_the_numbers_in_the_names_only_where_they_tell_images_apart(
    model: dt.Model, blocks: Path, tmp_path: Path
) -> None:
    for case, (names, ids) in enumerate(
        [(["000139", "7"], {139, 7}), (["1", "01"], {1, 2}), (["²", "5"], {1, 2}), (["a", "5"], {1, 2})]
    ):
        files = [tmp_path / f"{case}" / f"{name}.png" for name in names]
        files[0].parent.mkdir()
        for file in files:
            shutil.copy(blocks / "images" / "val_00.png", file)
        dt.predict(model, files, out=tmp_path / f"out{case}", formats=["coco"])
        assert {r["image_id"] for r in json.loads((tmp_path / f"out{case}/detections.json").read_text())} == ids


def test_all_formats_tell_the_same(model: dt.Model, photos: Path, blocks: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    every_format = ["csv", "coco", "yolo", "pictures"]
    cut = float(np.median(model.predict(photos / "a.png", score=0).scores[:7]))
    done = dt.predict(model, photos, out=out, recursive=True, formats=every_format, score=cut, max_detections=7)
    names = ["a", "b", "deep/a", "deep/er/c", "z/x", "z/y"]
    assert relative_files(out) == sorted(
        ["classes.txt", "detections.csv", "detections.json"]
        + [f"{name}.jpg" for name in names]
        + [f"labels/{name}.txt" for name in names]
    )
    assert (out / "classes.txt").read_text() == "red\nblue\n"
    records = json.loads((out / "detections.json").read_text())
    assert {record["file_name"] for record in records} == {f"{name}.png" for name in names}
    confident = [record for record in records if record["score"] >= cut]
    table = read_csv(out / "detections.csv")
    assert len(records) > len(table) == len(confident) == sum(done.num_objects.values()) > 0
    assert all(count <= 7 for count in done.num_objects.values())
    labels = [
        (name, *map(float, line.split()))
        for name in names
        for line in (out / "labels" / f"{name}.txt").read_text().splitlines()
    ]
    for record, row, label in zip(confident, table, labels, strict=True):
        left, top, width, height = record["bbox"]
        assert row["file"] == record["file_name"] == f"{label[0]}.png"
        assert int(row["image_id"]) == record["image_id"] and row["frame"] == row["time_s"] == ""
        corners = [float(row[key]) for key in ("x1", "y1", "x2", "y2")]
        assert corners == pytest.approx([left, top, left + width, top + height], abs=0.006)
        assert float(row["score"]) == pytest.approx(record["score"], abs=6e-5)
        assert row["name"] == {3: "red", 7: "blue"}[record["category_id"]] == ("red", "blue")[int(label[1])]
        x1, x2 = (min(max(x / 96, 0), 1) for x in (left, left + width))  # readers of YOLO files want 0-1
        y1, y2 = (min(max(y / 64, 0), 1) for y in (top, top + height))
        assert label[2:6] == pytest.approx([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], abs=1e-5)
        assert label[6] == pytest.approx(record["score"], abs=6e-5)

    truth = json.loads((blocks / "annotations" / "instances_val.json").read_text())
    truth["images"] = [{"id": i + 1, "file_name": f"{n}.png", "height": 64, "width": 96} for i, n in enumerate(names)]
    truth["annotations"] = []
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    accepted = COCO(str(tmp_path / "truth.json")).loadRes(str(out / "detections.json"))
    assert len(accepted.anns) == len(records)


def test_every_file_name_gets_its_records(model: dt.Model, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    names = {
        b"caf\xe9.png": "caf\\xe9.png",
        b"a\rb.png": "a\rb.png",
        b'"=1,2".png': '"=1,2".png',
        "日本.png".encode(): "日本.png",
    }
    for name in names:
        shutil.copy(photos / "a.png", os.fsencode(folder) + b"/" + name)
    done = dt.predict(model, folder, out=tmp_path / "out", formats=["pictures", "coco", "yolo", "csv"], score=0)
    assert done.num_images == len(list((tmp_path / "out").glob("*.jpg"))) == len(names)
    records = json.loads((tmp_path / "out" / "detections.json").read_text())
    table = read_csv(tmp_path / "out" / "detections.csv")
    assert {record["file_name"] for record in records} == {row["file"] for row in table} == set(names.values())
    assert len(table) == len(records) and {row["name"] for row in table} <= {"red", "blue"}


def test_a_batch_changes_nothing(model: dt.Model, photos: Path, tmp_path: Path) -> None:
    results = []
    for batch_size in (1, 3):
        out = tmp_path / f"{batch_size}"
        dt.predict(model, photos, out=out, recursive=True, formats=["coco"], batch_size=batch_size)
        results.append(json.loads((out / "detections.json").read_text()))
    assert len(results[0]) == len(results[1]) > 0
    scores = [[record["score"] for record in records] for records in results]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)


def test_classes_and_the_most_detections(model: dt.Model, photos: Path, tmp_path: Path) -> None:
    dt.predict(model, photos / "a.png", out=tmp_path, formats=["coco"], classes=["blue"], max_detections=3)
    records = json.loads((tmp_path / "detections.json").read_text())
    assert [record["category_id"] for record in records] == [7, 7, 7]
    with pytest.raises(dt.ConfigError) as caught:
        dt.predict(model, photos, out=tmp_path / "x", classes=["blu", "rod"])
    assert [problem.fix for problem in caught.value.problems] == ["did you mean 'blue'?", "did you mean 'red'?"]


def test_images_of_one_name_keep_results_of_their_own(model: dt.Model, photos: Path, tmp_path: Path) -> None:
    dt.predict(model, [photos / "a.png", photos / "deep/a.png", photos / "b.png"], out=tmp_path / "o")
    assert relative_files(tmp_path / "o") == ["a.jpg", "b.jpg", "deep/a.jpg", "detections.json"]
    Image.new("RGB", (20, 20)).save(photos / "b.bmp")
    dt.predict(model, [photos], out=tmp_path / "p")
    assert relative_files(tmp_path / "p") == ["a.jpg", "b.bmp.jpg", "b.png.jpg", "detections.json"]


def test_nothing_is_overwritten(model: dt.Model, photos: Path, tmp_path: Path) -> None:
    Image.open(photos / "a.png").save(photos / "a.jpg")
    before = (photos / "a.jpg").read_bytes()
    with pytest.raises(dt.ConfigError, match=r"overwrite images that are looked at: .*a\.jpg"):
        dt.predict(model, photos / "a.jpg", out=photos, if_exists="replace")
    out = tmp_path / "out"
    dt.predict(model, photos / "a.png", out=out)
    (out / "mine.txt").write_text("mine")
    before_out = relative_files(out)
    with pytest.raises(dt.ConfigError, match=r"there already: detections\.json, a\.jpg"):
        dt.predict(model, [photos / "a.png", photos / "b.png"], out=out)
    assert relative_files(out) == before_out and (photos / "a.jpg").read_bytes() == before
    dt.predict(model, photos / "b.png", out=out, if_exists="replace")
    assert relative_files(out) == sorted([*before_out, "b.jpg"])
    (tmp_path / "file").write_text("")
    with pytest.raises(dt.ConfigError, match="cannot write there"):
        dt.predict(model, photos / "b.png", out=tmp_path / "file")


def test_results_in_the_folder_of_the_images_are_not_looked_at(model: dt.Model, photos: Path) -> None:
    first = dt.predict(model, photos, out=photos / "found", recursive=True)
    second = dt.predict(model, photos, out=photos / "found", recursive=True, if_exists="replace")
    assert first.num_images == second.num_images == 6


def test_unreadable_images_do_not_keep_the_others_from_their_results(
    model: dt.Model, photos: Path, tmp_path: Path
) -> None:
    for name in ("a.png", "deep/a.png"):
        (photos / name).write_bytes((photos / name).read_bytes()[:200])
    done = dt.predict(model, photos, out=tmp_path / "found", recursive=True)
    assert [problem.where for problem in done.unreadable] == [str(photos / "a.png"), str(photos / "deep/a.png")]
    assert done.num_images == 4 and len(list((tmp_path / "found").rglob("*.jpg"))) == 4
    assert {r["image_id"] for r in json.loads((tmp_path / "found/detections.json").read_text())} == {1, 2, 3, 4}

    with pytest.raises(dt.DataError) as caught:
        dt.predict(model, photos, out=tmp_path / "stopped", recursive=True, on_error="stop")
    assert len(caught.value.problems) == 2
    assert relative_files(tmp_path / "stopped") == []
    with pytest.raises(dt.DataError):
        dt.predict(model, photos / "a.png", out=tmp_path / "none")
    assert relative_files(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"formats": ["jsn"]}, "'jsn' is no format"),
        ({"formats": []}, "no format"),
        ({"tile": "6x4x2"}, "no size of a tile"),
        ({"tile": 4}, "show nothing"),
        ({"tile": 64, "overlap": 1.5}, "overlap"),
        ({"every": 0}, "every is 0"),
        ({"score": 50, "batch_size": 0}, "batch-size is 0"),
        ({"score": 2}, "score is 2"),
        ({"score": float("nan")}, "score is nan"),
        ({"on_error": "skp"}, "'skp' is not known"),
        ({"if_exists": "overwrite"}, "'overwrite' is not known"),
        ({"classes": []}, "no class is named"),
    ],
)
def test_options_that_make_no_sense(
    model: dt.Model, photos: Path, tmp_path: Path, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(dt.ConfigError, match=told):
        dt.predict(model, photos, out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_an_annotation_file_that_does_not_fit(model: dt.Model, photos: Path, blocks: Path, tmp_path: Path) -> None:
    truth = blocks / "annotations" / "instances_val.json"
    with pytest.raises(dt.DataError, match=r"does not list 2 of 2 images: a\.png, b\.png"):
        dt.predict(model, photos, out=tmp_path / "out", annotations=truth)
    with pytest.raises(dt.DataError, match="cannot be read"):
        dt.predict(model, photos, out=tmp_path / "out", annotations=tmp_path / "none.json")


def test_tiles_are_looked_at(model: dt.Model, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(90, 130, (150, 260, 3), dtype=np.uint8)
    pixels[40:60, 100:125] = (220, 40, 40)
    Image.fromarray(pixels).save(tmp_path / "large.png")
    calls = dt.predict(model, tmp_path / "large.png", out=tmp_path / "tiles", tile="96x64", formats=["coco"])
    assert calls.num_images == 1
    records = json.loads((tmp_path / "tiles" / "detections.json").read_text())
    assert len(records) > model.config.eval.max_detections, "the objects of several tiles"
    for left, top, width, height in (record["bbox"] for record in records):
        assert left >= 0 and top >= 0 and left + width <= 260.01 and top + height <= 150.01


def test_a_video_gives_a_video_and_records_with_times(model: dt.Model, clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    told: list[tuple[int, int]] = []
    done = dt.predict(
        model,
        clip,
        out=out,
        formats=["pictures", "coco", "yolo", "csv"],
        score=0.02,
        on_progress=lambda n, total: told.append((n, total)),
    )
    assert (done.num_images, done.num_frames) == (0, 7)
    assert told == [(n, 7) for n in range(1, 8)]
    assert relative_files(out / "labels") == [f"clip/{i:06d}.txt" for i in range(7)]
    with VideoReader(out / "clip.mp4") as video:
        assert video.fps == Fraction(25, 2) and not video.has_audio
        frames = list(video)
    assert [frame.pixels.shape for frame in frames] == [(64, 96, 3)] * 7
    assert [frame.time_s for frame in frames] == pytest.approx([i / 12.5 for i in range(7)])
    with VideoReader(clip) as video:
        plain = [frame.pixels for frame in video]
    for before, after in zip(plain, frames, strict=True):
        assert np.abs(before.astype(int) - after.pixels).max() > 60, "boxes are drawn"
    records = json.loads((out / "detections.json").read_text())
    assert {(r["image_id"], r["frame"], round(r["time_s"], 3)) for r in records} == {
        (i + 1, i, round(i / 12.5, 3)) for i in range(7)
    }
    assert {row["frame"] for row in read_csv(out / "detections.csv")} == {str(i) for i in range(7)}


def test_every_third_frame_beside_an_image(model: dt.Model, clip: Path, photos: Path, tmp_path: Path) -> None:
    done = dt.predict(model, [photos / "a.png", clip, photos / "b.png"], out=tmp_path / "out", every=3)
    assert (done.num_images, done.num_frames) == (2, 3)
    records = json.loads((tmp_path / "out/detections.json").read_text())
    places = list(dict.fromkeys((r["image_id"], r["file_name"], r.get("frame")) for r in records))
    assert places == [
        (1, "a.png", None),
        (2, "clip.mp4", 0),
        (3, "clip.mp4", 3),
        (4, "clip.mp4", 6),
        (5, "b.png", None),
    ]
    assert relative_files(tmp_path / "out") == ["a.jpg", "b.jpg", "clip.mp4", "detections.json"]
    with VideoReader(tmp_path / "out/clip.mp4") as video:
        assert [frame.time_s for frame in video] == pytest.approx([0, 0.24, 0.48])


def test_a_damaged_video_keeps_what_came_before(model: dt.Model, clip: Path, photos: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(clip.read_bytes()[:300])
    done = dt.predict(model, [broken, photos / "a.png"], out=tmp_path / "out")
    assert (done.num_images, done.num_frames) == (1, 0)
    assert [problem.where for problem in done.unreadable] == [str(broken)]
    with pytest.raises(dt.DataError, match="no pictures in it"):
        dt.predict(model, [broken, photos / "a.png"], out=tmp_path / "stopped", on_error="stop")
    with pytest.raises(dt.ConfigError, match="frames of a video have no names"):
        dt.predict(model, clip, out=tmp_path / "ids", annotations=tmp_path / "a.json")


def test_work_that_breaks_off_leaves_what_there_is_under_another_name(
    model: dt.Model, photos: Path, clip: Path, tmp_path: Path
) -> None:
    class InterruptError(Exception):
        pass

    def interrupt(done: int, _: int) -> None:
        if done == 8:
            raise InterruptError

    with pytest.raises(InterruptError):
        dt.predict(
            model, [photos, clip], out=tmp_path / "out", recursive=True, formats=["coco", "csv", "pictures"],
            batch_size=1, on_progress=interrupt,
        )  # fmt: skip
    left = relative_files(tmp_path / "out")
    assert [name for name in left if not name.endswith(".jpg")] == ["detections.partial.csv", "detections.partial.json"]
    assert len({r["image_id"] for r in json.loads((tmp_path / "out/detections.partial.json").read_text())}) == 8

    with pytest.raises(dt.ConfigError, match=r"there already: detections\.partial\.json"):
        dt.predict(model, photos / "z", out=tmp_path / "out", formats=["coco"])
    dt.predict(model, photos / "z", out=tmp_path / "out", formats=["coco", "csv"], if_exists="replace")
    assert not [name for name in relative_files(tmp_path / "out") if "partial" in name]


def test_the_command(tiny_run: Path, photos: Path, tmp_path: Path) -> None:
    (photos / "b.png").write_bytes(b"no image")
    command = [sys.executable, "-m", "detronome", "predict", str(tiny_run), str(photos / "**" / "*.png")]
    options = ["--format", "csv,yolo", "coco", "--score", "0.01", "--tile", "64", "--no-tile-whole", "--json"]
    done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"left out: {photos / 'b.png'}" in done.stderr
    told = json.loads(done.stdout)
    assert told["num_images"] == 5 and told["results"]["csv"] == "predictions/detections.csv"
    assert "deep/er/c.txt" in relative_files(tmp_path / "predictions" / "labels")

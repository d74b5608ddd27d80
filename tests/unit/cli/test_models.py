"""`detronome models`: a table that fits a terminal, the same as JSON, and no wait for torch."""

import json
import subprocess
import sys
from typing import Any

import pytest

import detronome as dt
from detronome.cli import main
from detronome.config.presets import PRESETS


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as end:
        main(["models", *arguments])
    captured = capsys.readouterr()
    assert not end.value.code, captured.err
    return captured.out


def test_the_table_has_every_preset_in_80_characters(capsys: pytest.CaptureFixture[str]) -> None:
    lines = run(capsys).splitlines()
    assert max(map(len, lines)) <= 80
    (detr,) = [line.split() for line in lines if line.startswith("detr-r50 ")]
    assert detr == ["detr-r50", "detr", "41.5", "M", "162.3", "800x1066", "42.0", "-", "yes"]
    (nano,) = [line.split() for line in lines if line.startswith("nano ")]
    assert nano == ["nano", "nano", "0.6", "M", "0.5", "192x256", "-", "-", "-"]
    assert all(any(line.startswith(f"{name} ") for line in lines) for name in PRESETS)
    assert "github.com/facebookresearch/detr" in "".join(lines)


def test_json_is_what_python_gives(capsys: pytest.CaptureFixture[str]) -> None:
    shown: list[dict[str, Any]] = json.loads(run(capsys, "--json"))["models"]
    infos = dt.list_models()
    assert shown == [{**info.to_json(), "image_hw": list(info.image_hw)} for info in infos]
    by_name = {info.name: info for info in infos}
    assert by_name.keys() == PRESETS.keys()
    panoptic = by_name["detr-r50-panoptic"]
    assert (panoptic.PQ, panoptic.AP, panoptic.summary) == (43.4, 38.8, "DETR with ResNet-50 and masks")
    assert panoptic.weights.endswith("/detr-r50-panoptic-00ce5173.pth")
    assert by_name["nano"].weights == ""


def test_families_stand_together() -> None:
    families = [info.family for info in dt.list_models()]
    assert families == sorted(families, key=families.index)


def test_the_list_does_not_wait_for_torch() -> None:
    script = "import sys, detronome; detronome.list_models(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"

"""Bad images are counted once each, told once, and bounded."""

from __future__ import annotations

import pytest

from detronome.data.quarantine import BadImage, Quarantine
from detronome.errors import DataError


def bad(image_id: int) -> BadImage:
    return BadImage(
        image_id=image_id, where=f"{image_id}.jpg", what="it is cut short", fix="copy it", action="left out"
    )


def test_nothing_bad() -> None:
    quarantine = Quarantine("train", 100, 0.001)
    quarantine.admit([])
    assert quarantine.drain() == [] and quarantine.image_ids == []


@pytest.mark.parametrize(
    ("num_images", "budget", "allowed"), [(100, 0.0, 0), (100, 0.001, 1), (5000, 0.001, 5), (3, 1.0, 3)]
)
def test_the_budget(num_images: int, budget: float, allowed: int) -> None:
    quarantine = Quarantine("val", num_images, budget)
    assert quarantine.allowed == allowed
    quarantine.admit(bad(n) for n in range(allowed))
    with pytest.raises(DataError, match=f"{allowed + 1} images of split 'val' cannot be used") as caught:
        quarantine.admit([bad(allowed)])
    assert f"image id {allowed}, {allowed}.jpg: it is cut short" in str(caught.value)
    # Evaluating takes no settings: there the way out is another annotation file.
    assert "--fix" in caught.value.problems[0].fix and "data.bad_image_budget" in caught.value.problems[0].fix


def test_an_image_met_again_counts_once_also_after_a_resume() -> None:
    quarantine = Quarantine("train", 2000, 0.001)
    quarantine.admit([bad(7)])
    quarantine.admit([bad(7), bad(3)])
    assert [image.image_id for image in quarantine.drain()] == [7, 3]
    resumed = Quarantine("train", 2000, 0.001)
    resumed.restore(quarantine.image_ids)
    resumed.admit([bad(3)])
    assert resumed.drain() == [] and resumed.image_ids == [3, 7]
    with pytest.raises(DataError, match="3 images"):
        resumed.admit([bad(4)])

"""Label maps give back what was written into them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detronome.data.formats.label_map import LABEL_MAP_NAME, label_map_text, read_label_map
from detronome.errors import DataError

NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r"), min_size=1).map(str.strip)


@given(names=st.lists(NAMES.filter(bool), min_size=1, unique=True))
def test_any_names_are_read_as_they_were_written(names: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("map") / LABEL_MAP_NAME
    file.write_text(label_map_text({3 * i - 2: name for i, name in enumerate(names)}), newline="")
    assert read_label_map(file) == {name: 3 * i - 2 for i, name in enumerate(names)}


def test_a_missing_map_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_label_map(tmp_path / "classes.txt")

"""Exports are made once a session, in a folder of its own."""

import pytest
from tests.unit.deploy.export import forms


@pytest.fixture(scope="session", autouse=True)
def _folder_of_exports(tmp_path_factory: pytest.TempPathFactory) -> None:
    forms.root = tmp_path_factory.mktemp("exports")

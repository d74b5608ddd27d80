"""A suite of faults ends with a table of what it counted."""

from collections.abc import Callable

import pytest

_FIGURES = pytest.StashKey[list[tuple[str, str]]]()


@pytest.fixture
def report_figure(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Add a line (name, figure) to the table that is printed under the results of the tests."""
    figures = request.config.stash.setdefault(_FIGURES, [])
    return lambda name, figure: figures.append((name, figure))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    figures = config.stash.get(_FIGURES, [])
    if not figures:
        return
    terminalreporter.section("faults")
    width = max(len(name) for name, _ in figures)
    for name, figure in figures:
        terminalreporter.write_line(f"{name:{width}} | {figure}")

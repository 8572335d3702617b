"""The undisturbed run, and the counts at the end: tried, survived, lost."""

import collections
from collections.abc import Callable

import pytest

from tests.faults.runs import Run


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    """The folder of an undisturbed run."""
    run = Run(tmp_path_factory.mktemp("reference")).start()
    status, output = run.finish()
    assert status == 0, output
    return run.path


@pytest.fixture
def count(request) -> Callable[[str, int, int], None]:
    """count(fault, tried, survived): those that did not survive are lost, and fail the test."""

    def note(fault: str, tried: int, survived: int) -> None:
        request.node.user_properties.append(("fault", (fault, tried, survived)))
        assert survived == tried, f"{fault}: {tried - survived} of {tried} runs lost"

    return note


def pytest_terminal_summary(terminalreporter) -> None:
    totals = collections.defaultdict(lambda: [0, 0])
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) == "call":
                for name, value in report.user_properties:
                    if name == "fault":
                        fault, tried, survived = value
                        totals[fault][0] += tried
                        totals[fault][1] += survived
    if totals:
        terminalreporter.section("faults")
        for fault, (tried, survived) in totals.items():
            terminalreporter.line(f"{fault:44} tried {tried:3}  survived {survived:3}  lost {tried - survived}")

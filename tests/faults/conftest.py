"""How often each fault is tried, and the table of it at the end.

A test of a fault is marked with the fault's name and with how often it runs; `repeat` is the number of the run, and the
seed of whatever is random in it:

    @pytest.mark.repeats("kill -9 of the producer", short=1, full=5)
    def test_what_is_promised(place, repeat): ...

`short` is for `make test`, `full` for `make test-faults`. A `short` of 0 keeps a long test out of `make test`. A test that
tries many at once, rather than the same again and again, asks for the number itself: `repeats`.
"""

from __future__ import annotations

import pytest

FAULT = "fault"


def repeats_of(config: pytest.Config, marker: pytest.Mark | None) -> int:
    """Return how often a test with this marker runs; once, without."""
    if marker is None:
        return 1
    return int(marker.kwargs.get(config.getoption("--repeats"), 1))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test as often as it says; the run's number stands in its name."""
    if "repeat" in metafunc.fixturenames:
        count = repeats_of(metafunc.config, metafunc.definition.get_closest_marker("repeats"))
        metafunc.parametrize("repeat", range(1, max(count, 1) + 1))  # one of none at all is left out below


@pytest.fixture
def repeats(request: pytest.FixtureRequest) -> int:
    """How many tries the run is to make, for a test that makes them all itself."""
    return repeats_of(request.config, request.node.get_closest_marker("repeats"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what does not belong to this run, and give each test the name of its fault for the table."""
    left_out = []
    for item in items:
        marker = item.get_closest_marker("repeats")
        if marker is None:
            continue
        item.user_properties.append((FAULT, marker.args[0]))
        if repeats_of(config, marker) == 0:
            left_out.append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the faults, how often each was tried, and how often all was well afterwards."""
    tried: dict[str, list[pytest.TestReport]] = {}
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.getreports(outcome):
            fault = dict(getattr(report, "user_properties", [])).get(FAULT)
            if fault is not None and (outcome == "passed" or report.when in ("call", "setup")):
                tried.setdefault(fault, []).append(report)
    if not tried or config.getoption("--repeats") != "full":
        return
    terminalreporter.section("faults")
    width = max(map(len, tried))
    terminalreporter.line(f"{'fault':{width}}  tests  passed  failed  skipped  seconds")
    for fault, reports in sorted(tried.items()):
        count = {outcome: sum(report.outcome == outcome for report in reports) for outcome in ("passed", "failed", "skipped")}
        seconds = sum(report.duration for report in reports)
        terminalreporter.line(
            f"{fault:{width}}  {len(reports):5}  {count['passed']:6}  {count['failed']:6}  {count['skipped']:7}  {seconds:7.0f}"
        )

"""python -m pytest -p tests.fault_page: only the tests that inject faults, and docs/faults.md from what they count."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs/faults.md"
ABOUT = """# Faults

`make faults` injects faults into real runs and sweeps of a small network, and into the files beside them. The tests
count what comes of each, and the command writes this page from their counts.

- *equal*: every loss, accuracy and line of the history is as without the fault, to the last digit. A killed run was
  called again. A damaged file was repaired as its error's line says.
- *told*: the command ended with one line that says what is wrong.
- *lost*: the fault was neither equal nor told, or something else in the test went wrong.
"""


@dataclasses.dataclass(slots=True)
class Fate:
    """What came of a fault, as a test has seen it."""

    kind: str
    equal: bool = False
    told: bool = False


Inject = Callable[[str], AbstractContextManager[Fate]]


def injecting(record: Callable[[str, object], None]) -> Inject:
    """`with fault(kind) as fate:` around a fault and what is asserted of it; one that raises has lost all."""

    @contextmanager
    def fault(kind: str) -> Iterator[Fate]:
        fate = Fate(kind)
        try:
            yield fate
        except BaseException:
            fate = Fate(kind)
            raise
        finally:
            record("fault", dataclasses.asdict(fate))  # what a test process may send to the one that writes

    return fault


def page(fates: Sequence[Fate], tests: dict[str, int]) -> str:
    """A row a kind of fault, in the order in which they came; the last one is the sum."""
    lines = [ABOUT, "| fault | injected | equal | told | lost |", "|:--|--:|--:|--:|--:|"]
    of_kinds = {kind: [each for each in fates if each.kind == kind] for kind in dict.fromkeys(f.kind for f in fates)}
    for kind, found in {**of_kinds, "**all**": fates}.items():
        equal, told = sum(fate.equal for fate in found), sum(fate.told for fate in found)
        lost = sum(not (fate.equal or fate.told) for fate in found)
        lines.append(f"| {kind} | {len(found)} | {equal} | {told} | {lost} |")
    counted = ", ".join(f"{number} {outcome}" for outcome, number in tests.items() if number)
    return "\n".join([*lines, "", f"Tests: {counted}.", ""])


class _Counts:
    def __init__(self) -> None:
        self.fates: list[Fate] = []
        self.tests = {"passed": 0, "failed": 0, "skipped": 0}

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        injecting = [item for item in items if "fault" in getattr(item, "fixturenames", ())]
        config.hook.pytest_deselected(items=[item for item in items if item not in injecting])
        items[:] = injecting

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.tests[report.outcome] += 1
        if report.when == "call":
            self.fates += [Fate(**found) for _, found in report.user_properties if isinstance(found, dict)]

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.fates:
            PAGE.write_text(page(self.fates, self.tests), encoding="utf-8")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_Counts())

"""tests/fault_page.py: a fault is counted as what the test has seen of it, and one whose test fails as lost."""

import pytest

from .fault_page import Fate, injecting, page


def _fail_after(fate: Fate) -> None:
    fate.equal = True
    raise AssertionError


def test_a_fault_whose_test_fails_is_lost_whatever_was_seen_before() -> None:
    seen: list[Fate] = []
    fault = injecting(lambda _, found: seen.append(Fate(**found)))  # type: ignore[arg-type]
    with fault("a kill") as fate:
        fate.equal = True
    with fault("a full disk") as fate:
        fate.told = True
    with pytest.raises(AssertionError), fault("a kill") as fate:
        _fail_after(fate)
    with fault("a kill"):
        pass
    lines = page(seen, {"passed": 3, "failed": 1, "skipped": 0}).splitlines()
    assert "| a kill | 3 | 1 | 0 | 2 |" in lines
    assert "| a full disk | 1 | 0 | 1 | 0 |" in lines
    assert "| **all** | 4 | 1 | 1 | 2 |" in lines
    assert lines[-1] == "Tests: 3 passed, 1 failed."

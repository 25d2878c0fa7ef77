"""Says which tests run which lines, and how long each test takes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import coverage
import pytest

FIXTURE = "fixture:"


class Trace:
    """A pytest plugin that records the lines that every test and every shared fixture runs.

    A fixture that several tests share runs once, in the first of them. Its lines count for all
    tests that use it.
    """

    def __init__(self, cov: coverage.Coverage) -> None:
        self._cov = cov
        self._users: dict[str, set[str]] = defaultdict(set)
        self._failed: set[str] = set()
        self._contexts = [""]
        self.seconds: dict[str, float] = defaultdict(float)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        for name in getattr(item, "fixturenames", ()):
            self._users[name].add(item.nodeid)
        self._enter(item.nodeid)
        try:
            return (yield)
        finally:
            self._leave()

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[None]:
        self._enter(FIXTURE + fixturedef.argname)
        try:
            return (yield)
        finally:
            self._leave()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] += report.duration
        if not report.passed:
            self._failed.add(report.nodeid)

    def _enter(self, context: str) -> None:
        self._contexts.append(context)
        self._cov.switch_context(context)

    def _leave(self) -> None:
        self._contexts.pop()
        self._cov.switch_context(self._contexts[-1])

    def tests_of_lines(self, data: coverage.CoverageData) -> dict[str, dict[int, list[str]]]:
        """File -> line -> the tests that run it and pass; a line that only imports run has none."""
        found: dict[str, dict[int, list[str]]] = {}
        for file in data.measured_files():
            found[file] = {}
            for line, contexts in data.contexts_by_lineno(file).items():
                tests: set[str] = set()
                for context in contexts:
                    if context.startswith(FIXTURE):
                        tests |= self._users[context.removeprefix(FIXTURE)]
                    elif context:
                        tests.add(context)
                found[file][line] = sorted(tests - self._failed)
        return found

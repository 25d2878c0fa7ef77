"""Progress for callers of the API: a function of theirs, quiet, a bar in a notebook."""

from __future__ import annotations

import sys
import threading
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import kdedge
from kdedge.progress import progress, working


def work(what: str = "reading") -> None:
    with working(f"opening for {what}"), progress(what, 2) as advance:
        advance(1, "loss 0.5")
        advance(2)


def test_a_function_is_told_what_how_much_and_of_how_much(
    capsys: pytest.CaptureFixture[str],
) -> None:
    told: list[tuple[str, int, int | None]] = []
    with kdedge.progress_to(lambda *news: told.append(news)):
        work()
    assert told == [
        ("opening for reading", 0, None),
        ("reading", 0, 2),
        ("reading", 1, 2),
        ("reading", 2, 2),
    ]
    work("afterwards")
    assert len(told) == 4
    assert capsys.readouterr().err == ""


def test_none_is_quiet_also_inside_of_a_function(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "kdedge")
    told: list[str] = []
    with kdedge.progress_to(lambda what, done, total: told.append(what)):
        with kdedge.progress_to(None):
            work("quietly")
        work("aloud")
    assert set(told) == {"opening for aloud", "aloud"}
    assert not caplog.messages


def test_each_thread_has_a_function_of_its_own() -> None:
    told: dict[str, set[str]] = {"one": set(), "two": set()}
    both = threading.Barrier(2, timeout=60)

    def call(name: str) -> None:
        with kdedge.progress_to(lambda what, done, total: told[name].add(what)):
            both.wait()
            work(name)
            both.wait()

    threads = [threading.Thread(target=call, args=(name,)) for name in told]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told == {name: {f"opening for {name}", name} for name in told}


def test_an_error_of_the_function_ends_the_work() -> None:
    def stop(what: str, done: int, total: int | None) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), kdedge.progress_to(stop):
        work()


def test_a_notebook_has_a_bar_that_is_erased(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[dict[str, str]] = []
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    def display(data: dict[str, str], **options: Any) -> Any:
        assert options == {"raw": True, "display_id": True}
        shown.append(data)
        return SimpleNamespace(update=lambda data, raw: shown.append(data))

    ipython, displays = ModuleType("IPython"), ModuleType("IPython.display")
    vars(ipython)["get_ipython"] = lambda: SimpleNamespace(kernel=object())
    vars(displays)["display"] = display
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", displays)
    with progress("a <b>", 4) as advance:
        advance(1)  # too soon to be drawn
        now[0] += 1
        advance(2, "loss 0.5")
    assert [one["text/plain"] for one in shown] == [
        "a <b>",
        "a <b>: 2 of 4, ETA 0:00:01, loss 0.5",
        "",
    ]
    assert shown[1]["text/html"].startswith('<progress max="4" value="2"></progress> a &lt;b&gt;')

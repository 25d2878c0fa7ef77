"""The page in a real browser: a chosen image, a dropped one, and the camera get their class."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import kdedge
from kdedge.runtime.artifact import Artifact

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"),
)

DROP = """
([data, name]) => {
  const bytes = Uint8Array.from(atob(data), (one) => one.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name));
  document.dispatchEvent(new DragEvent("drop", {dataTransfer: transfer, cancelable: true}));
}
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if not CHROMIUM.exists():
        pytest.skip("needs Chromium in /usr/bin")
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=str(CHROMIUM), args=list(FLAGS))
        yield started
        started.close()


@pytest.fixture(scope="module")
def url(make_artifact: Callable[..., Artifact], tmp_path_factory: Any) -> Iterator[str]:
    with kdedge.serve(make_artifact(tmp_path_factory.mktemp("page") / "art"), port=0) as server:
        yield server.url


@pytest.fixture
def page(browser: Any, url: str) -> Iterator[Any]:
    """The page, opened; nothing went elsewhere and nothing was forbidden when the test ends."""
    opened = browser.new_page()
    asked: list[str] = []
    said: list[str] = []
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.goto(url)
    yield opened
    opened.close()
    assert all(one.startswith((url, "blob:", "data:")) for one in asked)
    assert [one for one in said if "400 (Bad Request)" not in one] == []


def first_class(page: Any, wanted: str) -> None:
    page.wait_for_function(
        "name => document.querySelector('#classes td')?.textContent === name", arg=wanted
    )


def test_a_chosen_file_gets_its_classes(
    page: Any, color_file: Callable[[str], bytes], tmp_path: Path
) -> None:
    (tmp_path / "a.jpg").write_bytes(color_file("green"))
    page.set_input_files("#file", str(tmp_path / "a.jpg"))
    first_class(page, "green")
    assert page.locator("#classes tr").count() == 4
    assert page.locator("#classes tr").first.locator("td.score").inner_text().endswith(" %")
    assert page.locator("#shown").is_visible()
    (tmp_path / "b.jpg").write_bytes(b"no image")
    page.set_input_files("#file", str(tmp_path / "b.jpg"))
    page.wait_for_function(
        "() => document.querySelector('#state').textContent.includes('text file')"
    )
    assert page.locator("#classes tr").count() == 0


def test_a_dropped_file_gets_its_classes(page: Any, color_file: Callable[[str], bytes]) -> None:
    page.evaluate(DROP, [base64.b64encode(color_file("blue")).decode(), "a.jpg"])
    first_class(page, "blue")


def test_the_camera_is_classified_until_it_is_closed(page: Any) -> None:
    page.click("#camera")
    first_class(page, "green")  # Chromium's camera without a camera is a green image
    page.wait_for_function("() => document.querySelector('#video').videoWidth > 0")
    page.click("#camera")
    page.wait_for_selector("#video", state="hidden")

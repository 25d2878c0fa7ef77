"""`kdedge export --browser`: the page answers in headless Chromium as `kdedge predict` does."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import http.server
import json
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

import kdedge as package
from kdedge.artifacts.browser import write_browser
from kdedge.artifacts.parity import SMOKE_SET, SmokeSet, write_smoke_set
from kdedge.deploy.known_images import fit_gaussians, fit_limit
from kdedge.files import sha256_file
from kdedge.runtime.artifact import Artifact, load_artifact
from kdedge.runtime.none_of_these import GAUSSIANS_FILE, NoneOfThese
from kdedge.runtime.preprocess import resize_and_crop

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

Run = Callable[..., Any]
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"),
]


@pytest.fixture(scope="module")
def artifact(device: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """An artifact with a file for images, whose class names are none for HTML or JavaScript."""
    from kdedge.cli.main import run

    made = device.write_artifact(tmp_path_factory.mktemp("browser") / "art")
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (30, 40, 3)).astype(np.uint8)) for _ in range(4)]
    pixels = np.stack([np.asarray(resize_and_crop(image, made.preprocess)) for image in images])
    means = pixels.mean(axis=(1, 2)) / 255
    logits = (means @ device.WEIGHT + device.BIAS).astype(np.float32)
    write_smoke_set(made.path / SMOKE_SET, SmokeSet(pixels, logits))
    names = ("red", "green", "<b>blue</b>", "dark 'thing'")
    smoke = {SMOKE_SET: sha256_file(made.path / SMOKE_SET)}
    dataclasses.replace(made, class_names=names, others=smoke).save()
    assert run(["export", str(made.path), "--with-preprocess"]) == 0
    return load_artifact(made.path)


@pytest.fixture
def telling(artifact: Artifact, tmp_path: Path) -> Artifact:
    """The artifact with "none of these", for which no image of class green is known."""
    folder = tmp_path / "telling"
    shutil.copytree(artifact.path, folder)
    rng = np.random.default_rng(5)
    with package.load(folder) as model:
        pixels = np.eye(3)[rng.integers(0, 3, 200)] * 200 + rng.normal(25, 10, (200, 3))
        pixels = pixels.clip(0, 255).astype(np.uint8)[:, None, None]
        logits = model.logits(np.broadcast_to(pixels, (200, 16, 16, 3)))
    logits = logits[logits.argmax(axis=1) != artifact.class_names.index("green")]
    gaussians = fit_gaussians(logits, logits.argmax(axis=1))
    limits = fit_limit(gaussians.scores(logits), 95.0)
    assert limits is not None
    (folder / GAUSSIANS_FILE).write_bytes(gaussians.to_bytes())
    files = tuple(dataclasses.replace(file, none_below=limits) for file in artifact.files)
    none = NoneOfThese("mahalanobis", GAUSSIANS_FILE, 95.0, "colors", 200)
    others = {**artifact.others, GAUSSIANS_FILE: sha256_file(folder / GAUSSIANS_FILE)}
    changes: dict[str, Any] = {"files": files, "none_of_these": none, "others": others}
    dataclasses.replace(artifact, path=folder, **changes).save()
    return load_artifact(folder)


@pytest.fixture
def page(artifact: Artifact, tmp_path: Path) -> Path:
    """The folder of a page, of the test's own."""
    return write_browser(artifact, tmp_path / "page").parent


@pytest.fixture(scope="module")
def modules() -> Path:
    """The folder that has onnxruntime-web."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs Node.js, to find onnxruntime-web")
    code = "console.log(require.resolve('onnxruntime-web'))"
    done = subprocess.run([node, "-e", code], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("needs onnxruntime-web, in a folder that NODE_PATH names")
    return Path(done.stdout.partition("/onnxruntime-web/")[0])


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium")
    with playwright.sync_playwright() as started:
        running = started.chromium.launch(executable_path=chromium, args=FLAGS)
        yield running
        running.close()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@contextlib.contextmanager
def serving(page: Path) -> Iterator[str]:
    """Address of a folder on a server that has nothing else."""
    handler = functools.partial(_Quiet, directory=str(page))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def served(page: Path) -> Iterator[str]:
    """Address of the page."""
    with serving(page) as address:
        yield address


@pytest.fixture
def opened(browser: Any, served: str, page: Path, modules: Path) -> Iterator[Any]:
    """The page in a browser, with onnxruntime-web beside it, when its model is loaded."""
    (page / "node_modules").mkdir()
    (page / "node_modules" / "onnxruntime-web").symlink_to(modules / "onnxruntime-web")
    tab = browser.new_page()
    requests: list[str] = []
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto(served)
    tab.wait_for_selector("#file:not([disabled])")
    yield tab
    assert all(url.startswith((served, "blob:", "data:")) for url in requests)
    tab.close()


def answers(tab: Any) -> list[tuple[str, float]]:
    rows = tab.query_selector_all("#answers li")
    texts = [[one.inner_text() for one in row.query_selector_all("span")] for row in rows]
    return [(name, float(score.removesuffix(" %"))) for name, score in texts]


def give(tab: Any, file: Path) -> None:
    tab.evaluate("document.querySelector('#answers').replaceChildren()")
    tab.set_input_files("#file", str(file))
    tab.wait_for_selector("#answers li")


def choose(tab: Any, file: Path) -> list[tuple[str, float]]:
    give(tab, file)
    return answers(tab)


def test_images_of_any_size_are_answered_as_predict_answers_them(
    opened: Any, artifact: Artifact, tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    colors = [(250, 20, 10), (10, 220, 0), (20, 20, 240), (2, 3, 4), (90, 90, 80)]
    for number, (size, color) in enumerate(
        zip([(40, 30), (31, 77), (300, 17), (1, 1), (16, 16)], colors, strict=True)
    ):
        pixels = np.clip(rng.normal(0, 30, (*size[::-1], 3)) + color, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    see_through = Image.new("RGBA", (20, 20), (255, 0, 0, 0))  # white, as predict sees it
    see_through.save(tmp_path / "5.png")
    turned = Image.open(tmp_path / "1.png")
    exif = Image.Exif()
    exif[0x112] = 6  # to be turned by 90 degrees
    turned.save(tmp_path / "6.png", exif=exif)
    for number in range(7):
        file = tmp_path / f"{number}.png"
        (expected,) = package.predict(artifact, file, top=4).classified
        found = choose(opened, file)
        assert [name for name, _ in found] == [name for name, _ in expected.top], file
        for (_, score), one in zip(found, expected.top, strict=True):
            assert score == pytest.approx(one.score_percent, abs=0.006)  # two digits are shown
    assert opened.inner_text("h1") == "colors"
    assert "4 classes, WebAssembly" in opened.inner_text("#status")
    assert not opened.query_selector("#error").is_visible()


def test_an_image_of_none_of_the_classes_is_answered_none_as_predict_answers_it(
    telling: Artifact, browser: Any, modules: Path, tmp_path: Path
) -> None:
    page = write_browser(telling, tmp_path / "telling_page").parent
    (page / "node_modules").mkdir()
    (page / "node_modules" / "onnxruntime-web").symlink_to(modules / "onnxruntime-web")
    colors = [(225, 25, 25), (25, 225, 25), (25, 25, 225), (128, 128, 128), (255, 255, 255)]
    with serving(page) as address:
        tab = browser.new_page()
        tab.goto(address)
        tab.wait_for_selector("#file:not([disabled])")
        found = []
        for number, color in enumerate(colors):
            file = tmp_path / f"{number}.png"
            Image.new("RGB", (40, 30), color).save(file)
            (expected,) = package.predict(telling, file, top=4).classified
            give(tab, file)
            spans = tab.query_selector_all("#answers span:first-child")
            names = [span.inner_text() for span in spans]
            shown = [name for name, _ in expected.top]
            assert names == (["none", *shown] if expected.is_none else shown)
            found.append(expected.is_none)
        assert found == [False, True, False, True, True]
        tab.close()


def test_what_is_no_image_is_said_and_the_next_image_is_answered(
    opened: Any, tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    opened.set_input_files("#file", str(tmp_path / "broken.png"))
    opened.wait_for_selector("#error:not([hidden])")
    said = opened.inner_text("#error")
    assert said == "broken.png is not an image that this browser can read."
    Image.new("RGB", (20, 20), (0, 0, 250)).save(tmp_path / "blue.png")
    assert choose(opened, tmp_path / "blue.png")[0][0] == "<b>blue</b>"
    assert not opened.query_selector("#error").is_visible()


def test_the_camera_is_answered_until_it_is_stopped(opened: Any) -> None:
    opened.context.grant_permissions(["camera"])
    opened.click("#camera")
    opened.wait_for_selector("#answers li")
    assert opened.inner_text("#camera") == "Stop"
    assert len(answers(opened)) == 4
    opened.click("#camera")
    assert opened.inner_text("#camera") == "Camera"


@pytest.mark.usefixtures("page")
def test_without_onnxruntime_web_the_page_says_how_to_get_it(browser: Any, served: str) -> None:
    tab = browser.new_page()
    tab.goto(served)
    tab.wait_for_selector("#error:not([hidden])")
    assert "Run `npm install` in the folder of this page" in tab.inner_text("#error")
    assert tab.is_disabled("#file")
    tab.close()


def test_with_webgpu_in_software_the_answers_are_those_of_predict(
    browser: Any, served: str, page: Path, modules: Path, artifact: Artifact, tmp_path: Path
) -> None:
    (page / "node_modules").mkdir()
    (page / "node_modules" / "onnxruntime-web").symlink_to(modules / "onnxruntime-web")
    flags = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"]
    flags += ["--use-angle=swiftshader", "--enable-features=Vulkan"]
    kind = browser.browser_type
    path = shutil.which("chromium") or shutil.which("google-chrome")
    others = [flag for flag in FLAGS if flag != "--disable-gpu"]
    running = kind.launch(executable_path=path, args=[*others, *flags])
    tab = running.new_page()
    tab.goto(served)
    if not tab.evaluate("navigator.gpu?.requestAdapter().then(Boolean, () => false)"):
        running.close()
        pytest.skip("needs a Chromium with SwiftShader's WebGPU")
    tab.wait_for_selector("#file:not([disabled])")
    assert "4 classes, WebGPU" in tab.inner_text("#status")
    rng = np.random.default_rng(3)
    Image.fromarray(rng.integers(0, 256, (40, 31, 3)).astype(np.uint8)).save(tmp_path / "a.png")
    (expected,) = package.predict(artifact, tmp_path / "a.png", top=4).classified
    found = choose(tab, tmp_path / "a.png")
    assert [name for name, _ in found] == [name for name, _ in expected.top]
    assert [score for _, score in found] == pytest.approx(
        [one.score_percent for one in expected.top], abs=0.02
    )
    running.close()


def test_where_webgpu_fails_webassembly_answers_and_the_page_says_so(
    browser: Any, served: str, page: Path, modules: Path
) -> None:
    (page / "node_modules").mkdir()
    (page / "node_modules" / "onnxruntime-web").symlink_to(modules / "onnxruntime-web")
    tab = browser.new_page()
    adapter = "{ requestAdapter: async () => ({ features: new Set(), limits: {} }) }"
    tab.add_init_script(f"Object.defineProperty(navigator, 'gpu', {{ value: {adapter} }})")
    tab.goto(served)
    tab.wait_for_selector("#file:not([disabled])")
    assert "4 classes, WebAssembly, as WebGPU failed" in tab.inner_text("#status")
    tab.close()


def test_a_browser_without_simd_is_told_which_ones_have_it(browser: Any, served: str) -> None:
    tab = browser.new_page()
    tab.add_init_script("WebAssembly.validate = () => false")
    tab.goto(served)
    tab.wait_for_selector("#error:not([hidden])")
    assert "This browser has no WebAssembly SIMD" in tab.inner_text("#error")
    tab.close()


def test_the_check_for_simd_is_a_module_that_only_simd_makes_valid(browser: Any) -> None:
    text = (Path(package.__file__).parent / "artifacts/browser_page/classify.mjs").read_text()
    module = text.partition("Uint8Array([")[2].partition("]")[0]
    tab = browser.new_page()
    assert tab.evaluate(f"WebAssembly.validate(new Uint8Array([{module}]))") is True
    other = module.replace("253, 15", "253, 255")  # no such instruction
    assert tab.evaluate(f"WebAssembly.validate(new Uint8Array([{other}]))") is False
    tab.close()


def test_a_model_that_is_missing_is_said(
    browser: Any, served: str, page: Path, modules: Path
) -> None:
    (page / "model.onnx").unlink()
    tab = browser.new_page()
    tab.goto(served)
    tab.wait_for_selector("#error:not([hidden])")
    assert tab.inner_text("#error") == "model.onnx cannot be loaded: the server answers 404."
    tab.close()


def test_the_folder_has_the_model_the_names_and_what_to_do(artifact: Artifact, page: Path) -> None:
    assert {path.name for path in page.iterdir()} == {
        *("index.html", "page.css", "page.mjs", "classify.mjs", "package.json", "README.md"),
        *("preprocess.onnx", "model.onnx", "settings.json"),
    }
    settings = json.loads((page / "settings.json").read_text())
    assert settings["class_names"] == list(artifact.class_names)
    assert sha256_file(artifact.path / settings["made_from"]) == settings["sha256"]
    image = np.random.default_rng(2).integers(0, 256, (33, 50, 3)).astype(np.uint8)
    whole, first, second = (
        onnxruntime.InferenceSession(path)
        for path in (
            artifact.path / settings["made_from"],
            page / settings["preprocess"],
            page / settings["model"],
        )
    )
    (pixels,) = first.run(None, {"image": image})
    (logits,) = second.run(None, {"pixels": pixels})
    np.testing.assert_array_equal(logits, whole.run(["logits"], {"image": image})[0])
    assert "npm install" in (page / "README.md").read_text()
    assert "https://" not in (page / "index.html").read_text()


def test_the_folder_has_the_limit_where_the_artifact_tells_none(
    artifact: Artifact, telling: Artifact, page: Path, tmp_path: Path
) -> None:
    assert json.loads((page / "settings.json").read_text())["none_of_these"] is None
    assert artifact.none_of_these is None
    own = write_browser(telling, tmp_path / "telling_page").parent
    none = json.loads((own / "settings.json").read_text())["none_of_these"]
    assert (own / none["file"]).read_bytes() == (telling.path / GAUSSIANS_FILE).read_bytes()
    limits = telling.files[0].none_below
    assert none["limit"] == limits.limit


def test_what_a_page_cannot_be_made_of_is_an_error_and_nothing_is_overwritten(
    artifact: Artifact, make_artifact: Callable[..., Artifact], kdedge: Run, tmp_path: Path
) -> None:
    plain = make_artifact(tmp_path / "plain")
    done = kdedge("export", str(plain.path), "--browser", str(tmp_path / "page"))
    assert done.code == 3
    assert f"Make it with: kdedge export {plain.path} --with-preprocess" in done.err
    assert not (tmp_path / "page").exists()
    done = kdedge("export", str(artifact.path), "--fp16", "--browser", str(tmp_path / "page"))
    assert done.code == 2
    assert "no FP16 files; it has: fp32, int8" in done.err
    files = tuple(dataclasses.replace(file, gate="missed") for file in artifact.files)
    with pytest.raises(package.DataError, match="missed its gate"):
        write_browser(dataclasses.replace(artifact, files=files), tmp_path / "page")
    arguments = ("export", str(artifact.path), "--browser", str(tmp_path / "page"))
    assert kdedge(*arguments).code == 0
    kept = (tmp_path / "page" / "index.html").stat()
    again = kdedge(*arguments)
    assert again.code == 2
    assert "exists, and nothing is overwritten" in again.err
    assert (tmp_path / "page" / "index.html").stat() == kept

"""`kdedge.load`: any kind of image in, the answers of `Classifier` out, from any thread."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import kdedge
from kdedge.api.model import LoadedModel, load
from kdedge.cli.main import run
from kdedge.errors import DataError, RecipeError, SetupError
from kdedge.inference.classify import Classifier
from kdedge.inference.results import Prediction
from kdedge.runs.find import find_run
from kdedge.runtime.artifact import Artifact, artifact_at
from kdedge.runtime.preprocess import UnreadableImage
from kdedge.targets.registry import load_file

MakeArtifact = Callable[..., Artifact]


@pytest.fixture(autouse=True)
def _installed() -> None:
    pytest.importorskip("onnxruntime")


@pytest.fixture
def model(artifact: Artifact) -> Any:
    with load(artifact.path) as loaded:
        yield loaded


def photo(seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    return Image.fromarray(pixels)


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_every_kind_of_image_gets_the_same_answer(model: LoadedModel, tmp_path: Path) -> None:
    image = photo()
    path = tmp_path / "photo.png"
    path.write_bytes(png(image))
    expected = model(png(image), top=3).top
    assert len(expected) == 3
    pixels = np.asarray(image)
    assert model(path, top=3).top == expected
    assert model(str(path), top=3).top == expected
    assert model(image, top=3).top == expected
    assert model(pixels, top=3).top == expected
    assert model(pixels[:, :, ::-1], top=3, bgr=True).top == expected
    assert model(pixels[:, :, ::-1], top=3).top != expected


def test_a_pillow_image_is_converted_as_its_file_would_be(model: LoadedModel) -> None:
    clear = photo().convert("RGBA")
    clear.putalpha(Image.fromarray(np.full((40, 60), 90, np.uint8)))
    assert model(clear, top=3).top == model(png(clear), top=3).top
    gray = photo().convert("L")
    assert model(np.asarray(gray), top=3).top == model(png(gray), top=3).top


@pytest.mark.parametrize("kind", [list, iter, tuple])
def test_several_images_are_classified_in_their_order(kind: Any, model: LoadedModel) -> None:
    images = [photo(seed) for seed in range(5)]
    found = [one.top for one in model(kind(images), top=2)]
    assert found == [model(image, top=2).top for image in images]


def test_an_image_may_be_changed_once_the_next_is_asked_for(model: LoadedModel) -> None:
    canvas, colors = Image.new("RGB", (64, 64)), ["red", "lime", "blue", "white"]

    def drawn() -> Iterator[Image.Image]:
        for color in colors:
            canvas.paste(color, (0, 0, 64, 64))
            yield canvas

    alone = [model(Image.new("RGB", (64, 64), color)).top for color in colors]
    assert [one.top for one in model(drawn())] == alone
    assert len(set(alone)) > 1


def test_an_image_that_cannot_be_read_ends_a_call_and_not_classify(
    model: LoadedModel, tmp_path: Path
) -> None:
    missing = tmp_path / "missing.jpg"
    with pytest.raises(DataError, match=r"missing\.jpg: cannot be read"):
        model([photo(), missing])
    results = list(model.classify([photo(), missing, b"", photo(1)]))
    kinds = [type(result) for result in results]
    assert kinds == [Prediction, UnreadableImage, UnreadableImage, Prediction]
    assert [result.key for result in results] == ["0", str(missing), "2", "3"]


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), "float32"),
        (np.zeros((2, 4, 4, 3), np.uint8), r"\[2, 4, 4, 3\]"),
        (np.zeros((3, 4, 4), np.uint8), r"\[3, 4, 4\]"),
    ],
)
def test_pixels_of_another_form_are_refused(pixels: Any, message: str, model: LoadedModel) -> None:
    with pytest.raises(DataError, match=message):
        model(pixels)


def test_logits_are_those_of_prepared_pixels(model: LoadedModel) -> None:
    size_px = model.artifact.preprocess.size_px
    batch = np.random.default_rng(0).integers(0, 256, (3, size_px, size_px, 3)).astype(np.uint8)
    logits = model.logits(batch)
    assert logits.shape == (3, len(model.class_names))
    best = [model.class_names[c] for c in logits.argmax(axis=1)]
    assert best == [model(image).class_name for image in batch]


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 3, 16, 16), (2, 17, 16, 3)])
def test_logits_of_unprepared_pixels_are_refused(model: LoadedModel, shape: Any) -> None:
    with pytest.raises(DataError, match=r"The batch is uint8, .* \[N, \d+, \d+, 3\]"):
        model.logits(np.zeros(shape, np.uint8))
    size_px = model.artifact.preprocess.size_px
    floats: Any = np.zeros((2, size_px, size_px, 3), np.float32)
    with pytest.raises(DataError, match="The batch is float32"):
        model.logits(floats)


def test_a_model_file_is_loaded_by_its_path_and_has_its_own_precision(
    model: LoadedModel, tmp_path: Path
) -> None:
    image = tmp_path / "a.png"
    photo().save(image)
    file = model.artifact.path / model.artifact.files[0].name
    with load(file) as again:
        assert again.class_names == model.class_names
    for call in (load, lambda path, **how: kdedge.predict(path, image, **how)):
        with pytest.raises(RecipeError, match="is a file, which has its own precision"):
            call(file, precision="int8")


def test_a_strip_in_memory_is_refused_as_its_file_is(model: LoadedModel) -> None:
    strip = Image.new("RGB", (1, 101))
    results = list(model.classify([strip, np.asarray(strip), png(strip)]))
    reasons = {result.reason for result in results if isinstance(result, UnreadableImage)}
    assert len(results) == 3
    assert reasons == {"1 x 101 pixels: longer than 100 times its shorter side"}


def test_a_model_closed_by_another_thread_ends_its_calls(model: LoadedModel) -> None:
    results = model.classify(photo(seed) for seed in range(1000))
    next(results)
    thread = threading.Thread(target=model.close)
    thread.start()
    thread.join()
    with pytest.raises(SetupError, match="The model is closed"):
        list(results)
    size_px = model.artifact.preprocess.size_px
    with pytest.raises(SetupError, match="The model is closed"):
        model.logits(np.zeros((1, size_px, size_px, 3), np.uint8))


class Slow:
    """A backend that says when a batch begins, and takes its time for it."""

    def __init__(self, backend: Any) -> None:
        self._backend, self.has_begun = backend, threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def run(self, images: Any) -> Any:
        self.has_begun.set()
        time.sleep(0.2)
        return self._backend.run(images)


def test_close_waits_for_the_batch_that_runs(artifact: Artifact) -> None:
    slow: Any = Slow(load_file(artifact, artifact.files[0]))
    classifier = Classifier(artifact, artifact.files[0], slow)
    closing = threading.Thread(target=lambda: slow.has_begun.wait() and classifier.close())
    closing.start()
    (result,) = classifier.classify_many([("photo", photo())])
    closing.join()
    assert isinstance(result, Prediction)


def test_several_threads_get_the_answers_of_one(model: LoadedModel) -> None:
    images = [photo(seed) for seed in range(8)]
    expected = [model(image, top=3) for image in images]
    got: dict[int, Any] = {}

    def work(number: int) -> None:
        got[number] = [model(image, top=3) for image in images]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == dict.fromkeys(range(4), expected)


@pytest.mark.parametrize("given", [None, 5, [None], io.BytesIO(b"lines")])
def test_what_is_no_image_is_said(given: Any, model: LoadedModel) -> None:
    got = r"(None \(NoneType\)|5 \(int\)|<_io.* \(BytesIO\))"
    with pytest.raises(DataError, match=rf"(?s)Expected an image .*, got {got}\..*OpenCV"):
        model(given)


def test_no_classes_are_refused_and_so_is_a_closed_model(model: LoadedModel) -> None:
    with pytest.raises(RecipeError, match="top is 0; it must be 1 or more"):
        model(photo(), top=0)
    model.close()
    with pytest.raises(SetupError, match=r"closed.\n  Load it again"):
        model(photo())


@pytest.mark.parametrize("place", ["~/runs/a/01/artifacts/01", "runs/a/01/artifacts/01"])
@pytest.mark.parametrize("suffix", ["", "/artifact.json"])
def test_every_call_knows_an_artifact_by_its_path(
    make_artifact: MakeArtifact,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    suffix: str,
) -> None:
    folder = tmp_path / "runs/a/01/artifacts/01"
    folder.parent.mkdir(parents=True)
    make_artifact(folder)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    path = place + suffix
    assert kdedge.open_artifact(path).class_names
    with pytest.raises(RecipeError, match=r"is an artifact\. Name what to build"):
        kdedge.export(path)
    assert artifact_at(path) is not None
    assert run(["show", path]) == 0
    (folder.parents[1] / "provenance.json").touch()
    with pytest.raises(DataError, match=r"runs/a/01/provenance\.json is not valid JSON"):
        find_run(path, tmp_path / "other")


# `kdedge.predict`


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images and one that is none."""
    path = tmp_path / "images"
    path.mkdir()
    for number in range(5):
        photo(number).save(path / f"{number}.png")
    (path / "broken.jpg").write_bytes(b"no image")
    return path


def test_a_folder_gets_the_answers_of_a_loaded_model_in_its_order(
    artifact: Artifact, folder: Path
) -> None:
    found = kdedge.predict(artifact, folder, top=2)
    assert len(found) == 6
    assert [one.key for one in found] == sorted(map(str, folder.iterdir()))
    assert [one.key for one in found.failed] == [str(folder / "broken.jpg")]
    assert isinstance(found.failed[0], UnreadableImage)
    with kdedge.load(artifact) as model:
        assert found.classified == [model(folder / f"{number}.png", top=2) for number in range(5)]


def test_it_prints_as_a_table_and_shows_as_one(artifact: Artifact, folder: Path) -> None:
    found = kdedge.predict(artifact, folder, top=2)
    first = found[0]
    assert isinstance(first, Prediction)
    lines = str(found).splitlines()
    assert lines[0].split() == ["image", "class", "score", "class", "2", "score", "2"]
    assert lines[1].startswith(first.key)
    assert f"{first.top[1].score_percent:.2f} %" in lines[1]
    assert lines[6].split() == [str(folder / "broken.jpg"), "-"]
    assert lines[7].startswith(f"{folder / 'broken.jpg'}: not a readable image")
    page = found._repr_html_()
    assert page.startswith("<table>")
    assert page.count("<tr>") == 7


def test_its_csv_is_that_of_the_command(
    artifact: Artifact, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = kdedge.predict(artifact, folder, top=3)
    capsys.readouterr()
    command = ["predict", str(artifact.path), str(folder), "--top", "3", "--format", "csv"]
    assert run(command) == 0
    assert found.to_csv() == capsys.readouterr().out


def test_without_scores_nothing_is_least_certain(
    make_artifact: MakeArtifact, folder: Path, tmp_path: Path
) -> None:
    ranks = make_artifact(tmp_path / "ranks", head="argmax")
    with pytest.raises(kdedge.RecipeError, match="gives no scores"):
        kdedge.predict(ranks, folder).least_certain(1)


def test_no_threads_and_no_path_are_refused(artifact: Artifact, folder: Path) -> None:
    with pytest.raises(kdedge.RecipeError, match="1 or more"):
        kdedge.predict(artifact, folder, threads=0)
    with pytest.raises(kdedge.RecipeError, match="No path is given"):
        kdedge.predict(artifact)


@pytest.mark.parametrize("number", ["top", "every"])
def test_a_number_below_1_is_refused_as_the_command_refuses_it(
    artifact: Artifact, folder: Path, number: str
) -> None:
    with pytest.raises(kdedge.RecipeError, match=f"{number} is 0"):
        kdedge.predict(artifact, folder, **{number: 0})
    assert run(["predict", str(artifact.path), str(folder), f"--{number}", "0"]) == 2

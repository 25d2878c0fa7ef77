"""Image to class names: the same answers whatever the batches, and order and keys kept."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdedge.errors import RecipeError
from kdedge.inference.classify import Classifier, ImageInput
from kdedge.inference.results import NonFiniteLogits, Prediction
from kdedge.runtime.artifact import Artifact
from kdedge.runtime.backend import run_batches, softmax, to_input
from kdedge.runtime.preprocess import ImageError, UnreadableImage, decode_image, resize_and_crop

MakeArtifact = Callable[..., Artifact]
ByHand = Callable[[bytes, Artifact], np.ndarray]


@pytest.fixture(autouse=True)
def _installed() -> None:
    pytest.importorskip("onnxruntime")


def jpeg(seed: int, side_px: int = 30) -> bytes:
    """An image of one color with some noise."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, 3) + rng.normal(0, 20, (side_px, side_px + seed, 3))
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=95)
    return file.getvalue()


@pytest.fixture
def by_hand(mean_color_logits: Any) -> ByHand:
    """Gives an image's logits in numpy, [C]: see the artifact's model."""

    def compute(data: bytes, artifact: Artifact) -> np.ndarray:
        pixels = np.asarray(resize_and_crop(decode_image(data), artifact.preprocess))
        return mean_color_logits(pixels[None])[0]

    return compute


def test_the_input_is_planes_of_the_pixels() -> None:
    images = np.arange(2 * 2 * 2 * 3).astype(np.uint8).reshape(2, 2, 2, 3)
    planes = to_input(images, "uint8")
    assert (planes.dtype, planes.shape, planes.flags.c_contiguous) == (np.uint8, (2, 3, 2, 2), True)
    assert planes[1, 2].tolist() == images[1, :, :, 2].tolist()


def test_the_float_input_is_the_pixels_over_255() -> None:
    images = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    planes = to_input(images, "float")
    assert (planes.dtype, planes.flags.c_contiguous) == (np.float32, True)
    assert planes[0, 0].ravel().tolist() == (np.arange(256, dtype=np.float32) / 255).tolist()


def test_softmax_neither_overflows_nor_vanishes() -> None:
    scores = softmax(np.array([[1000, 999, -1000], [0, 0, 0]], np.float32))
    expected = 1 / (1 + np.exp(-1.0))
    np.testing.assert_allclose(scores, [[expected, 1 - expected, 0], [1 / 3] * 3], rtol=1e-12)


def classified(classifier: Classifier, image: ImageInput, top: int = 1) -> Any:
    (result,) = classifier.classify_many([("image", image)], top=top)
    return result.top


@pytest.mark.parametrize("pixels", ["float", "uint8"])
@pytest.mark.parametrize("external", [False, True])
def test_scores_and_order_are_those_of_numpy(
    tmp_path: Path, make_artifact: MakeArtifact, by_hand: ByHand, pixels: str, external: bool
) -> None:
    artifact = make_artifact(tmp_path, pixels=pixels, external=external)
    classifier = Classifier.load(tmp_path)
    top = classified(classifier, jpeg(1), top=4)
    logits = by_hand(jpeg(1), artifact)
    scores = 100 * np.exp(logits) / np.exp(logits).sum()
    order = np.argsort(-scores)
    assert [answer.class_name for answer in top] == [artifact.class_names[c] for c in order]
    # Logits are float32 sums; a hundredth of the digits that are shown
    np.testing.assert_allclose([a.score_percent for a in top], scores[order], rtol=0, atol=1e-4)


def test_of_equal_scores_the_first_class_wins(tmp_path: Path, make_artifact: MakeArtifact) -> None:
    make_artifact(tmp_path, factor=0)
    top = classified(Classifier.load(tmp_path), jpeg(1), top=9)
    assert [answer.class_name for answer in top] == ["red", "green", "blue", "dark thing"]


def test_a_head_that_only_ranks_has_no_scores(tmp_path: Path, make_artifact: MakeArtifact) -> None:
    make_artifact(tmp_path, head="argmax")
    (answer,) = classified(Classifier.load(tmp_path), jpeg(1))
    assert answer.score_percent is None


@pytest.mark.parametrize("fixed", [None, 1, 3])
@pytest.mark.parametrize("n_images", [1, 3, 4, 7])
def test_batches_change_no_answer(
    tmp_path: Path, make_artifact: MakeArtifact, by_hand: ByHand, fixed: int | None, n_images: int
) -> None:
    """A fixed batch is filled up where too few images are left."""
    artifact = make_artifact(tmp_path, batch=fixed)
    data = [jpeg(seed) for seed in range(n_images)]
    images = [resize_and_crop(decode_image(entry), artifact.preprocess) for entry in data]
    logits = Classifier.load(tmp_path).logits(np.stack([np.asarray(image) for image in images]))
    expected = [by_hand(entry, artifact) for entry in data]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)


def test_no_image_has_no_logits(artifact: Artifact) -> None:
    logits = Classifier.load(artifact.path).logits(np.zeros((0, 16, 16, 3), np.uint8))
    assert logits.shape == (0, 4)


class Recording:
    """A backend that keeps what it is given."""

    name, pixels = "recording", "uint8"

    def __init__(self, batches: tuple[int, int | None]) -> None:
        self.batches = batches
        self.sizes: list[int] = []

    def run(self, images: np.ndarray) -> np.ndarray:
        self.sizes.append(len(images))
        return images.reshape(len(images), -1)[:, :2].astype(np.float32)

    def describe(self) -> str:
        return "recording"

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("batches", "max_batch", "sizes"),
    [
        ((1, None), 4, [4, 4, 1]),
        ((1, 2), 4, [2, 2, 2, 2, 1]),
        ((2, 4), 4, [4, 4, 2]),
        ((3, 3), 4, [3, 3, 3]),
        ((7, 7), 4, [7, 7]),
        ((8, 8), 4, [8, 8]),
    ],
)
def test_a_backend_gets_batches_that_it_takes(
    batches: tuple[int, int | None], max_batch: int, sizes: list[int]
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (9, 4, 4, 3)).astype(np.uint8)
    backend = Recording(batches)
    rows = run_batches(backend, images, max_batch=max_batch)
    assert backend.sizes == sizes
    assert rows.tolist() == images.transpose(0, 3, 1, 2).reshape(9, -1)[:, :2].tolist()


@pytest.mark.parametrize("batch", [None, 1, 2, 3, 4])
def test_results_come_in_order_with_their_keys_and_reasons(
    artifact: Artifact, by_hand: ByHand, batch: int | None
) -> None:
    images: list[tuple[str, Any]] = [(f"{seed}", jpeg(seed)) for seed in range(11)]
    images[0] = ("0", b"no image")
    images[4] = ("4", jpeg(4)[:200])
    images[5] = ("5", ImageError("cannot be read: no such file"))
    images[10] = ("10", b"")
    results = list(Classifier.load(artifact.path).classify_many(images, batch=batch))
    assert [result.key for result in results] == [f"{i}" for i in range(11)]
    bad = {result.key: result.reason for result in results if isinstance(result, UnreadableImage)}
    assert sorted(bad, key=int) == ["0", "4", "5", "10"]
    assert bad["5"] == "cannot be read: no such file"
    assert bad["10"] == "the file is empty"
    for result in results:
        if isinstance(result, Prediction):
            best = int(by_hand(jpeg(int(result.key)), artifact).argmax())
            assert result.top[0].class_name == artifact.class_names[best]


def test_with_batch_one_a_result_comes_before_the_next_image_is_asked_for(
    artifact: Artifact,
) -> None:
    asked: list[int] = []

    def frames() -> Iterator[tuple[str, bytes]]:
        for i in range(3):
            asked.append(i)
            yield str(i), jpeg(i)

    results = Classifier.load(artifact.path).classify_many(frames(), batch=1)
    for i in range(3):
        assert next(results).key == str(i)
        assert asked == list(range(i + 1))


@pytest.mark.parametrize("n_threads", [1, None])
def test_a_consumer_that_stops_leaves_no_thread(artifact: Artifact, n_threads: int | None) -> None:
    before = threading.active_count()
    images = ((str(i), jpeg(i % 5)) for i in range(1000))
    results = Classifier.load(artifact.path, n_threads=n_threads).classify_many(images)
    next(results)
    if n_threads is not None:  # it also bounds those that decode
        assert threading.active_count() == before + n_threads
    results.close()
    assert threading.active_count() == before


class OneAtATime:
    """A backend that another call may not disturb, as an engine's one context."""

    def __init__(self, backend: Any) -> None:
        self._backend, self._is_busy = backend, False
        self.n_calls, self.n_disturbed = 0, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def run(self, images: np.ndarray) -> np.ndarray:
        self.n_calls += 1
        self.n_disturbed += self._is_busy
        self._is_busy = True
        time.sleep(0.005)  # lets the other threads come
        self._is_busy = False
        return self._backend.run(images)


def test_a_backend_of_several_threads_runs_one_call_at_a_time(artifact: Artifact) -> None:
    loaded = Classifier.load(artifact.path)
    backend = OneAtATime(loaded.backend)
    classifier = Classifier(artifact, loaded.file, backend)
    pictures = [jpeg(seed) for seed in range(4)]
    expected = [classified(loaded, picture) for picture in pictures]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(partial(classified, classifier), 5 * pictures)) == 5 * expected
    assert (backend.n_calls, backend.n_disturbed) == (20, 0)


def test_a_decoded_image_counts_as_its_file_does(artifact: Artifact) -> None:
    classifier = Classifier.load(artifact.path)
    assert classified(classifier, decode_image(jpeg(3))) == classified(classifier, jpeg(3))


def test_an_answer_that_is_not_finite_is_no_prediction(
    tmp_path: Path, make_artifact: MakeArtifact
) -> None:
    make_artifact(tmp_path, factor=float("nan"))
    classifier = Classifier.load(tmp_path)
    (result,) = classifier.classify_many([("a", jpeg(1))])
    assert result == NonFiniteLogits("a", "the model gives NaN or infinity")


def test_a_file_of_a_fixed_batch_names_the_key_that_sets_it(artifact: Artifact) -> None:
    loaded = Classifier.load(artifact.path)
    fixed = SimpleNamespace(batches=(1, 1), run=loaded.backend.run)
    classifier = Classifier(artifact, loaded.file, fixed)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match=r"takes 1 to 1 images.*\n.*another export\.batch\."):
        classifier.classify_many([], batch=2)

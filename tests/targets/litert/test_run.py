"""LiteRT: a file gives what the model gives, and what cannot run says why."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from kdedge.errors import DataError
from kdedge.inference.classify import Classifier

if TYPE_CHECKING:
    from kdedge.fold import FoldedModel

pytest.importorskip("litert_torch")
torch = pytest.importorskip("torch")

from kdedge.targets.litert import run as target  # noqa: E402


def draw_images(n_images: int) -> np.ndarray:
    return np.random.default_rng(2).random((n_images, 3, 32, 32), dtype=np.float32)


def test_its_logits_are_those_of_the_model(files: Path, tiny_model: FoldedModel) -> None:
    backend = target.load(files / "model.tflite", n_threads=1)
    for image in np.split(draw_images(3), 3):
        logits = backend.run(image)
        assert logits.dtype == np.float32
        expected = tiny_model(torch.from_numpy(image)).numpy()
        # Another order of sums over at most 192 float32 products
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


def test_int8_rounds_weights_by_output_and_inputs_by_token(
    files: Path, check_int8_by_token: Callable[..., None]
) -> None:
    check_int8_by_token(target.load(files / "model.int8.tflite", n_threads=1))


def test_a_result_is_not_changed_by_the_next_call(files: Path) -> None:
    backend = target.load(files / "model.tflite", n_threads=1)
    first = backend.run(draw_images(1))
    before = first.copy()
    backend.run(1 - draw_images(1))
    np.testing.assert_array_equal(first, before)


def test_arrays_in_any_layout_are_taken_and_not_changed(files: Path) -> None:
    backend = target.load(files / "model.tflite", n_threads=1)
    images = draw_images(1)
    expected = backend.run(images)
    turned = np.asfortranarray(images)
    turned.flags.writeable = False
    np.testing.assert_array_equal(backend.run(turned), expected)


def test_threads_get_the_logits_of_their_own_images(files: Path) -> None:
    backend = target.load(files / "model.int8.tflite", n_threads=1)
    images = draw_images(16)
    expected = [backend.run(image[None]) for image in images]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda image: backend.run(image[None]), images))
    np.testing.assert_array_equal(found, expected)


def test_it_says_what_it_is_and_what_it_takes(files: Path) -> None:
    backend = target.load(files / "model.tflite")
    assert backend.describe() == f"litert {version('ai-edge-litert')} CPU"
    assert (backend.batches, backend.pixels) == ((1, 1), "float")
    assert backend.image_shape == (3, 32, 32)
    backend.close()
    backend.close()


@pytest.mark.parametrize(
    ("images", "got"),
    [
        (np.zeros((1, 3, 32, 32), np.uint8), r"uint8 \[1, 3, 32, 32\]"),
        (np.zeros((1, 3, 31, 32), np.float32), r"float32 \[1, 3, 31, 32\]"),
        (np.zeros((2, 3, 32, 32), np.float32), r"float32 \[2, 3, 32, 32\]"),
    ],
)
def test_images_that_it_does_not_take_are_told(files: Path, images: Any, got: str) -> None:
    backend = target.load(files / "model.tflite", n_threads=1)
    with pytest.raises(DataError, match=rf"on {got}; expected float32 \[1, 3, 32, 32\]"):
        backend.run(images)


@pytest.mark.parametrize("damage", ["empty", "text", "half", "header", "offset", "middle"])
def test_a_damaged_file_is_told(files: Path, damage: str, capfd: Any) -> None:
    path = files / "model.tflite"
    data = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "text": b"no model",
            "half": data[: len(data) // 2],
            "header": b"\xff" * 64 + data[64:],
            "offset": b"\xff" * 4 + data[4:],
            "middle": data[:8] + b"\xff" * 40 + data[48:],
        }[damage]
    )
    with pytest.raises(DataError, match=r"model\.tflite cannot be loaded by ai-edge-litert \d"):
        target.load(path, n_threads=1)
    assert capfd.readouterr().err == ""


def test_a_changed_file_is_not_loaded(files: Path) -> None:
    path = files / "model.tflite"
    path.write_bytes(path.read_bytes() + b"?")
    with pytest.raises(DataError, match=r"model\.tflite.* has changed since the export"):
        Classifier.load(files, backend="litert")


def test_a_file_of_another_kind_is_told(tmp_path: Path) -> None:
    from kdedge.targets.litert.build import silent

    class Doubles(torch.nn.Module):
        def forward(self, values: Any) -> Any:
            return 2 * values

    path = tmp_path / "double.tflite"
    with silent():
        import litert_torch

        litert_torch.convert(Doubles(), (torch.zeros(2, 3),)).export(str(path))
    with pytest.raises(DataError, match=r"takes .*float32 \[2, 3\].* and gives .*\n  Expected im"):
        target.load(path, n_threads=1)


def test_loading_and_running_need_no_torch_and_write_nothing_to_stderr(files: Path) -> None:
    code = (
        "import sys, numpy as np\n"
        "from pathlib import Path\n"
        "from kdedge.targets.litert import run\n"
        "backend = run.load(Path(sys.argv[1]), n_threads=1)\n"
        "print(backend.run(np.zeros((1, 3, 32, 32), np.float32)).shape, 'torch' in sys.modules)\n"
    )
    command = [sys.executable, "-c", code, str(files / "model.int8.tflite")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "(1, 5) False\n", "")

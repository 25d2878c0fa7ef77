"""What every backend on the CPU keeps to: its logits, its threads, and what it refuses."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from kdedge.artifacts.build import ExportInputs, build_files
from kdedge.errors import DataError
from kdedge.inference.classify import Classifier
from kdedge.runtime.artifact import Artifact, load_artifact
from kdedge.targets.registry import find_target, run_module

if TYPE_CHECKING:
    from kdedge.fold import FoldedModel

MAX_BATCH = 4


@dataclass(frozen=True)
class Case:
    """A backend, and the float32 file that is built for it.

    Attributes:
        target: the target's name.
        file: the file.
        builder: the package that builds it.
        batches: the number of images that calls may have.
        loads_torch: whether its package imports torch.
    """

    target: str
    file: str
    builder: str
    batches: tuple[int, ...]
    loads_torch: bool = False


CASES = [
    Case("onnx", "model.onnx", "onnxruntime", (1, 3, MAX_BATCH)),
    Case("openvino", "model.xml", "openvino", (1, 3, MAX_BATCH)),
    Case("litert", "model.tflite", "litert_torch", (1,)),
    Case("executorch", "model.pte", "executorch", (1, 3, MAX_BATCH), loads_torch=True),
]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.target)
def case(request: Any) -> Case:
    """A backend whose file can be built here."""
    pytest.importorskip(request.param.builder)
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def built(
    case: Case,
    block_artifact: Artifact,
    block_model: FoldedModel,
    block_inputs: ExportInputs,
    listed: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
    made_once: Callable[..., Path],
) -> Path:
    """The folder of an artifact with the file; not to be changed."""
    from kdedge.builders.onnx.trace import write_onnx

    folder = tmp_path_factory.mktemp(case.target) / "artifact"
    artifact = load_artifact(shutil.copytree(block_artifact.path, folder))

    def write(made: Path) -> None:
        write_onnx(block_model, made / "model.onnx", size_px=32, batches=(1, MAX_BATCH))

    path = shutil.copy(made_once("one block", write) / "model.onnx", folder / "model.onnx")
    artifact = artifact.with_files(listed(path))
    artifact.save()
    if case.target != "onnx":
        build_files(artifact, find_target(case.target), ["fp32"], inputs=block_inputs)
    return folder


@pytest.fixture
def load(case: Case, built: Path) -> Callable[..., Any]:
    """Loads the file."""
    module = run_module(find_target(case.target))
    return lambda **options: module.load(built / case.file, **options)


def draw_images(n_images: int) -> np.ndarray:
    return np.random.default_rng(2).random((n_images, 3, 32, 32), dtype=np.float32)


def test_its_logits_are_those_of_the_model(case: Case, load: Any, block_model: FoldedModel) -> None:
    import torch

    backend = load(n_threads=1)
    for n_images in case.batches:
        images = draw_images(n_images)
        logits = backend.run(images)
        assert logits.dtype == np.float32
        # Another order of sums over at most 192 float32 products
        expected = block_model(torch.from_numpy(images)).numpy()
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


def test_arrays_in_any_layout_are_taken_and_results_stay(load: Any) -> None:
    backend, images = load(n_threads=1), draw_images(1)
    first = backend.run(images)
    before = first.copy()
    backend.run(1 - images)
    np.testing.assert_array_equal(first, before)
    turned = np.asfortranarray(images)
    turned.flags.writeable = False
    np.testing.assert_array_equal(backend.run(turned), before)


def test_threads_get_the_logits_of_their_own_images(load: Any) -> None:
    backend, images = load(n_threads=1), draw_images(16)
    expected = [backend.run(image[None]) for image in images]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda image: backend.run(image[None]), images))
    np.testing.assert_array_equal(found, expected)


def test_it_says_what_it_is_and_what_it_takes(case: Case, load: Any) -> None:
    backend, name = load(), find_target(case.target).backend
    assert backend.name == name
    assert backend.describe().startswith(f"{name} ")
    assert backend.describe().endswith(" CPU")
    low, high = backend.batches
    assert low == 1
    assert high in (None, max(case.batches))
    assert (backend.pixels, backend.image_shape) == ("float", (3, 32, 32))
    backend.close()
    backend.close()


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 3, 32, 32), np.uint8),
        np.zeros((1, 3, 31, 32), np.float32),
        np.zeros((0, 3, 32, 32), np.float32),
        np.zeros((MAX_BATCH + 1, 3, 32, 32), np.float32),
    ],
    ids=["bytes", "another size", "none", "too many"],
)
def test_images_that_it_does_not_take_are_told(case: Case, load: Any, images: Any) -> None:
    backend = load(n_threads=1)
    n_images, takes_any = len(images), backend.batches[1] is None
    if takes_any and n_images > 1:
        pytest.skip("it takes any number of images")
    with pytest.raises(DataError, match=rf"{case.file} cannot be run"):
        backend.run(images)


def test_a_file_that_changed_since_the_export_is_not_loaded(
    case: Case, built: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(built, tmp_path / "artifact")
    with (folder / case.file).open("ab") as file:
        file.write(b"?")
    with pytest.raises(DataError, match=rf"{case.file}.* has changed since the export"):
        Classifier.load(folder, backend=find_target(case.target).backend)


def test_loading_and_running_print_nothing_and_need_no_torch(case: Case, built: Path) -> None:
    code = (
        "import sys\n"
        "import numpy as np\n"
        "from pathlib import Path\n"
        "from kdedge.targets.registry import find_target, run_module\n"
        f"run = run_module(find_target({case.target!r}))\n"
        "backend = run.load(Path(sys.argv[1]), n_threads=1)\n"
        "print(backend.run(np.zeros((1, 3, 32, 32), np.float32)).shape, 'torch' in sys.modules)\n"
    )
    command = [sys.executable, "-c", code, str(built / case.file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"(1, 5) {case.loads_torch}\n"

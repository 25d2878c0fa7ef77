"""ExecuTorch: a program gives what the model gives, and what cannot run says why."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kdedge.artifacts.build import ExportInputs, build_files
from kdedge.runtime.artifact import Artifact, load_artifact
from kdedge.targets.registry import find_target

pytest.importorskip("executorch")
torch = pytest.importorskip("torch")

from kdedge.targets.executorch import run as target  # noqa: E402


@pytest.fixture(scope="module")
def files(
    block_artifact: Artifact, block_inputs: ExportInputs, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of an artifact with programs in float32 and INT8."""
    folder = shutil.copytree(block_artifact.path, tmp_path_factory.mktemp("built") / "artifact")
    build_files(
        load_artifact(folder), find_target("executorch"), ["fp32", "int8"], inputs=block_inputs
    )
    return folder


def test_threads_are_those_of_the_first_program_while_it_is_loaded(
    files: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import executorch.extension.pybindings.portable_lib as native

    first = target.load(files / "model.pte", n_threads=1)
    assert native._threadpool_get_thread_count() == 1
    second = target.load(files / "model.int8.pte", n_threads=2)
    assert "ExecuTorch runs on 1 threads instead of 2" in caplog.text
    assert native._threadpool_get_thread_count() == 1
    first.close()
    second.close()
    caplog.clear()
    backend = target.load(files / "model.pte", n_threads=2)
    assert native._threadpool_get_thread_count() == 2
    assert backend.run(np.zeros((1, 3, 32, 32), np.float32)).shape == (1, 5)
    assert "threads" not in caplog.text


def test_a_torn_program_is_told_without_the_runtimes_own_lines(files: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.pte"  # the first load writes lines about the machine's processors
    path.write_bytes((files / "model.pte").read_bytes()[:-3000])
    script = "import sys; from pathlib import Path; from kdedge.targets.executorch import run;"
    script += " run.load(Path(sys.argv[1]))"
    command = [sys.executable, "-c", script, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "DataError" in done.stderr
    assert "/sys/" not in done.stderr


def test_logs_are_as_loud_as_before(files: Path, caplog: pytest.LogCaptureFixture) -> None:
    target.load(files / "model.pte", n_threads=1).close()
    logging.getLogger("kdedge").warning("still heard")
    assert "still heard" in caplog.text


def test_lines_are_not_printed_twice_after_a_build() -> None:
    """XNNPACK's partitioner gives the root logger a handler."""
    code = (
        "import logging\n"
        "from kdedge.native_lines import quiet\n"
        "with quiet():\n"
        "    import executorch.backends.xnnpack.partition.xnnpack_partitioner\n"
        "print(logging.root.handlers, logging.root.level == logging.WARNING)\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "[] True\n"

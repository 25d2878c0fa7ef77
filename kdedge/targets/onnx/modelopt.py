"""Calls NVIDIA ModelOpt's quantizer, with its files and output under control."""

from __future__ import annotations

import io
import logging
import re
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt

from kdedge.errors import GateError, SetupError
from kdedge.files import explain_os_error
from kdedge.targets.onnx.describe import MODELOPT
from kdedge.targets.onnx.graph import batches, weight_matmuls

Calibration = Literal["max", "entropy"]

log = logging.getLogger(__name__)


class _Reader:
    """Gives the calibration images to ModelOpt and counts them."""

    def __init__(self, model: Any, images: npt.NDArray[Any]) -> None:
        self._model, self._images = model, images
        self._name = model.graph.input[0].name
        self.n_read = 0
        self.rewind()

    def rewind(self) -> None:
        """Starts again from the first batch."""
        self._runs: Iterator[npt.NDArray[Any]] = batches(self._model, self._images)

    def get_first(self) -> dict[str, npt.NDArray[Any]]:
        """The first batch of images."""
        return {self._name: next(batches(self._model, self._images))}

    def get_next(self) -> dict[str, npt.NDArray[Any]] | None:
        """The next batch of images, or None after the last."""
        images = next(self._runs, None)
        if images is None:
            return None
        self.n_read += len(images)
        return {self._name: images}

    def __iter__(self) -> _Reader:
        return self

    def __next__(self) -> dict[str, npt.NDArray[Any]]:
        found = self.get_next()
        if found is None:
            raise StopIteration
        return found


def check_environment() -> None:
    """Checks for ModelOpt, before anything slow is done.

    Raises:
        MissingPackage: ModelOpt is not installed.
    """
    if find_spec("modelopt") is None:
        raise MODELOPT.missing("INT8 export")


def insert_qdq(model: Any, output: Path, images: npt.NDArray[Any], *, method: Calibration) -> Any:
    """Makes a graph with Q/DQ around the blocks' linear products; the rest stays float32.

    Args:
        model: the float32 graph; not changed.
        output: the final file. ModelOpt's temporary files are in a hidden folder next to it.
        images: images as the graph takes them.
        method: how a tensor's range is computed from its values.

    Raises:
        GateError: ModelOpt did not read all images.
        MissingPackage: ModelOpt is not installed.
        SetupError: ModelOpt is installed, but cannot be loaded.
        ResourceError: the disk has no room for its files.
    """
    import onnx

    reader = _Reader(model, images)
    try:
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
            source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
            source.write_bytes(model.SerializeToString())
            with modelopt_quantizer(Path(folder)) as quantize:
                quantize(
                    str(source),
                    quantize_mode="int8",
                    calibration_data_reader=reader,
                    calibration_method=method,
                    calibration_eps=["cpu"],
                    op_types_to_quantize=["MatMul"],
                    nodes_to_quantize=[f"{re.escape(n.name)}$" for n in weight_matmuls(model)],
                    disable_mha_qdq=True,
                    high_precision_dtype="fp32",
                    output_path=str(target),
                    log_level="ERROR",
                )
            quantized = onnx.load(target)
    except OSError as error:
        raise explain_os_error(error, output) from error
    if reader.n_read < len(images):
        raise GateError(
            f"INT8: ModelOpt read only {reader.n_read} of {len(images)} calibration images, so its"
            " ranges are wrong.\n"
            "  Install the right version of nvidia-modelopt: pip install 'kdedge[export]'"
        )
    return quantized


@contextmanager
def modelopt_quantizer(folder: Path) -> Iterator[Any]:
    """Context manager with ModelOpt's quantizer, its files in a folder and its errors in our log.

    Its output is dropped. It searches an installed TensorRT for plugins, which needs a GPU. These
    graphs have no plugins, so the search is turned off.
    """
    logger = logging.getLogger("modelopt.onnx")
    errors: list[str] = []

    def take(record: logging.LogRecord) -> bool:
        if record.levelno >= logging.ERROR and "GPU count" not in record.getMessage():
            errors.append(record.getMessage())
        return False

    try:
        with (
            warnings.catch_warnings(),
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
        ):
            # Of ModelOpt's, ONNX Runtime's and torch's use of deprecated parts
            warnings.simplefilter("ignore", (DeprecationWarning, FutureWarning, UserWarning))
            logger.addFilter(take)
            trt_utils, quantize = _import()
            before = tempfile.tempdir, trt_utils.TRT_PYTHON_AVAILABLE
            tempfile.tempdir, trt_utils.TRT_PYTHON_AVAILABLE = str(folder), False
            try:
                yield quantize
            finally:
                tempfile.tempdir, trt_utils.TRT_PYTHON_AVAILABLE = before
    finally:
        logger.removeFilter(take)
        for text in errors:
            log.error("ModelOpt: %s", text)


def _import() -> tuple[Any, Any]:
    check_environment()
    try:
        from modelopt.onnx import trt_utils
        from modelopt.onnx.quantization import quantize
    except ImportError as error:
        raise SetupError(
            f"nvidia-modelopt is installed, but cannot be loaded: {error}.\n"
            "  Install it with its requirements: pip install 'kdedge[export]'"
        ) from error
    return trt_utils, quantize

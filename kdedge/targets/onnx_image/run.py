"""Runs ONNX files with preprocessing on the CPU with ONNX Runtime: images of any size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdedge.errors import DataError
from kdedge.runtime.artifact import Pixels
from kdedge.targets.onnx.run import Session, check_environment, open_session
from kdedge.targets.onnx_image.graph import IMAGE_NAME, PIXELS_NAME

__all__ = ["check_environment", "load", "run_preprocessing"]

NAME = "onnxruntime-image"


def load(
    path: Path, *, n_threads: int | None = None, built_with: Mapping[str, Any] | None = None
) -> OnnxImageSession:
    """Loads an ONNX file with preprocessing.

    Args:
        path: the file.
        n_threads: threads per operator; None: the number in OMP_NUM_THREADS, or else one per
            physical core.
        built_with: has `pixels`, the pixels of the file that it was built from.

    Raises:
        MissingPackage: ONNX Runtime is not installed.
        SetupError: ONNX Runtime is too old for the file.
        DataError: the file is broken.
    """
    pixels = (built_with or {}).get("pixels", "uint8")
    return OnnxImageSession(open_session(path, n_threads), path, pixels)


class OnnxImageSession(Session):
    """A loaded ONNX file with preprocessing; see `runtime.backend.TakesImages`."""

    name = NAME

    def __init__(self, session: Any, path: Path, pixels: Pixels) -> None:
        shape = {"batches": (1, 1), "image_shape": (3, None, None), "pixels": pixels}
        super().__init__(session, path, **shape)
        self._output = session.get_outputs()[0].name

    def run(self, images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """[B, 3, S, S] -> [B, C], or features [B, D]; images of this size stay as they are."""
        rows = images.transpose(0, 2, 3, 1)  # [B, S, S, 3]
        if rows.dtype != np.uint8:
            rows = np.rint(rows * np.float32(255)).astype(np.uint8)
        return np.concatenate([self.run_image(row) for row in rows])

    def run_image(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """[H, W, 3] -> [1, C], or features [1, D]; see `TakesImages.run_image`."""
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise DataError(
                f"{self._path} cannot be run on {image.dtype} {list(image.shape)}; expected uint8"
                " [height, width, 3], RGB.\n"
                "  Convert gray images and images with transparency to RGB first."
            )
        with self._explaining():
            feeds = {IMAGE_NAME: np.ascontiguousarray(image)}
            (outputs,) = self._session.run([self._output], feeds)
        return np.asarray(outputs, dtype=np.float32)


def run_preprocessing(
    graph: bytes, images: Sequence[npt.NDArray[np.uint8]]
) -> list[npt.NDArray[np.uint8]]:
    """Runs a graph of the preprocessing alone: [H, W, 3] -> [3, S, S] for each image."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return [session.run([PIXELS_NAME], {IMAGE_NAME: image})[0][0] for image in images]

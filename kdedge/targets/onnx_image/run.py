"""Runs ONNX files with preprocessing on the CPU with ONNX Runtime: images of any size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kdedge.errors import DataError
from kdedge.targets.onnx.run import OnnxSession
from kdedge.targets.onnx_image.graph import IMAGE_NAME, PIXELS_NAME


class OnnxImageSession(OnnxSession):
    """A loaded ONNX file with preprocessing; see `runtime.backend.TakesImages`."""

    name = "onnxruntime-image"

    def _open(self, module: Any, n_threads: int | None) -> None:
        super()._open(module, n_threads)
        self.batches = (1, 1)
        self.image_shape = (3, None, None)
        self.pixels = self._built_with.get("pixels", "uint8")  # of its source file

    def run(self, images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """[B, 3, S, S] -> [B, C], or features [B, D]; images of this size are not resized."""
        rows = images.transpose(0, 2, 3, 1)  # [B, S, S, 3]
        if rows.dtype != np.uint8:
            rows = np.rint(rows.clip(0, 1) * np.float32(255)).astype(np.uint8)  # no byte wraps
        return np.concatenate([self.run_image(row) for row in rows])

    def run_image(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """[H, W, 3] -> [1, C], or features [1, D]; see `TakesImages.run_image`."""
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise DataError(
                f"{self._path} cannot be run on {image.dtype} {list(image.shape)}; expected uint8"
                " [height, width, 3], RGB.\n"
                "  Convert gray images and images with transparency to RGB first."
            )
        with self._explaining("run"):
            (outputs,) = self._model.run([self._output], {IMAGE_NAME: np.ascontiguousarray(image)})
        return np.asarray(outputs, dtype=np.float32)


load = OnnxImageSession


def run_preprocessing(
    graph: bytes, images: Sequence[npt.NDArray[np.uint8]]
) -> list[npt.NDArray[np.uint8]]:
    """Runs a graph of only the preprocessing: [H, W, 3] -> [3, S, S] for each image."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return [session.run([PIXELS_NAME], {IMAGE_NAME: image})[0][0] for image in images]

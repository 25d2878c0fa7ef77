"""Classifies images with the ONNX file next to this script: python example.py IMAGE ...

Needs NumPy, Pillow and ONNX Runtime, but neither kdedge nor torch. Class names, image size,
resizing and the graph's input are read from `artifact.json`. Images are not normalized here, as
mean and standard deviation are in the graph.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

MODEL = "model.onnx"


def read_rgb(path: str) -> Image.Image:
    """Reads an image as 8-bit RGB: upright, transparent parts over white."""
    image = Image.open(path)
    image.load()
    turned = ImageOps.exif_transpose(image)
    if turned.mode.startswith("I"):  # 16-bit gray, which Pillow would cut off at 255
        gray = (np.asarray(turned).astype(np.int64) + 128) // 257
        return Image.fromarray(gray.astype(np.uint8)).convert("RGB")
    if not turned.has_transparency_data:
        return turned.convert("RGB")
    white = Image.new("RGBA", turned.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, turned.convert("RGBA")).convert("RGB")


def resize_and_crop(image: Image.Image, wanted: dict[str, Any]) -> Image.Image:
    """Resizes and crops to the model's square, as `preprocess` of artifact.json says."""
    size, (width, height) = wanted["size_px"], image.size
    new_size = [size, size]
    if wanted["resize_mode"] == "shortest":
        shorter = min(width, height)
        new_size = [int(size * width / shorter), int(size * height / shorter)]
    image = image.resize(new_size, Image.Resampling[wanted["interpolation"].upper()])
    left, top = (round((side - size) / 2) for side in new_size)
    return image.crop((left, top, left + size, top + size))


def prepare(path: str, artifact: dict[str, Any]) -> Any:
    """The graph's input for one image, [3, S, S]."""
    image = resize_and_crop(read_rgb(path), artifact["preprocess"])
    pixels = np.asarray(image).transpose(2, 0, 1)
    if artifact["input"]["dtype"] == "uint8":
        return pixels
    return pixels.astype(np.float32) / np.float32(255)


def main() -> None:
    """Prints the best class of each image, and its score in percent if the model has scores."""
    if len(sys.argv) < 2:
        sys.exit("Usage: python example.py IMAGE ...")
    here = Path(__file__).resolve().parent
    artifact = json.loads((here / "artifact.json").read_text(encoding="utf-8"))
    session = onnxruntime.InferenceSession(here / MODEL, providers=["CPUExecutionProvider"])
    batch = artifact["input"]["batch"]
    classes = artifact.get("open_classes")
    matrix = None if classes is None else np.load(here / classes["file"])
    n_copies = 1 if batch == "dynamic" else batch  # a graph with a fixed batch takes no fewer
    for path in sys.argv[1:]:
        images = np.stack([prepare(path, artifact)] * n_copies)
        logits = session.run(None, {"images": images})[0][0].astype(np.float64)
        if matrix is not None:
            logits = matrix @ logits  # with open classes, the graph gives image features
        best = int(logits.argmax())
        line = f"{path}\t{artifact['class_names'][best]}"
        if artifact["output"]["head"] == "scores":
            scores = np.exp(logits - logits.max())
            line += f"\t{100 * scores[best] / scores.sum():.2f}"
        print(line)


if __name__ == "__main__":
    main()

"""An artifact's file with preprocessing beside Pillow's preprocessing and the file for pixels.

Draws images of odd sizes from photos100, and counts pixels and labels that differ. Then times both
ways from a decoded image to logits, interleaved, for images of several sizes, on one thread.

    python benchmarks/image_in.py ARTIFACT [--images 1000] [--rounds 20] [--no-pixels]

ARTIFACT is from `kdedge export RUN --with-preprocess`, with the pixels of the same Pillow.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
from PIL import Image

import kdedge
from kdedge.runtime.artifact import Artifact, load_artifact
from kdedge.runtime.machine import cpu_model
from kdedge.runtime.preprocess import resize_and_crop
from kdedge.targets.onnx import run as onnx_run
from kdedge.targets.onnx_image import run as image_run

sys.path.insert(0, str(Path(__file__).parent))
from interleaved import interleaved

PHOTOS = Path(__file__).parents[2] / "shared" / "mini" / "photos100"
SIZES = ((96, 64), (320, 240), (640, 480), (1920, 1080), (4000, 3000))


def photos() -> Iterator[Image.Image]:
    """The test photos, 64 x 64, in the order of the shards."""
    for shard in sorted(PHOTOS.glob("test-*.tar")):
        with tarfile.open(shard) as archive:
            for entry in archive:
                file = archive.extractfile(entry) if entry.name.endswith(".jpg") else None
                if file is not None:
                    yield Image.open(io.BytesIO(file.read())).convert("RGB")


def odd_images(n_images: int) -> Iterator[Image.Image]:
    """Photos, cut and resized by draws with the seed 0: sides of 1 to 900 pixels, up to 1 : 30."""
    rng = np.random.default_rng(0)
    files = list(photos())
    for number in range(n_images):
        photo = files[number * len(files) // n_images]
        left, top = rng.integers(0, 24, 2)
        width, height = rng.integers(24, 41, 2)
        cut = photo.crop((left, top, left + width, top + height))
        side = int(np.exp(rng.uniform(0, np.log(900))))
        other = int(np.clip(side * np.exp(rng.normal(0, 0.7)), max(1, side // 30), 30 * side))
        size = (max(1, side), min(900, max(1, other)))
        yield cut.resize(size, Image.Resampling.BICUBIC)


def compare(artifact: Artifact, n_images: int) -> None:
    """Prints how many pixels and labels differ, in ONNX Runtime and in OpenVINO."""
    path = artifact.checked("model.image.onnx")
    built_with = artifact.file("model.image.onnx").built_with
    runtime = image_run.load(path, n_threads=1, built_with=built_with)
    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    other = core.compile_model(core.read_model(path), "CPU", settings)
    worst, different, equal, sides = [0, 0], [0, 0], [0, 0], []
    with (
        kdedge.load(artifact, backend="onnxruntime") as plain,
        kdedge.load(artifact, backend="onnxruntime-image") as whole,
    ):
        for image in odd_images(n_images):
            sides.append(image.size)
            wanted = np.asarray(resize_and_crop(image, artifact.preprocess)).astype(int)
            label = plain(image)[0].class_name
            pixels = np.asarray(image)
            found = other({"image": pixels})
            seen = (runtime.see_image(pixels), found["pixels"][0].transpose(1, 2, 0))
            labels = whole(image)[0].class_name, artifact.class_names[found["logits"][0].argmax()]
            for i in range(2):
                apart = np.abs(seen[i].astype(int) - wanted)
                worst[i] = max(worst[i], int(apart.max()))
                different[i] += int((apart > 0).sum())
                equal[i] += labels[i] == label
    n_pixels = n_images * 3 * artifact.preprocess.size_px**2
    widths, heights = zip(*sides, strict=True)
    print(f"{n_images} images, {min(widths)} to {max(widths)} x {min(heights)} to {max(heights)}")
    for i, name in enumerate(("ONNX Runtime", "OpenVINO")):
        print(
            f"{name}: labels equal to kdedge predict's {equal[i]}; largest difference of a value"
            f" {worst[i]} of 255; {100 * different[i] / n_pixels:.4f} % of values differ"
        )


def compare_resize(n_images: int) -> None:
    """Prints how far ONNX Runtime's own Resize is from Pillow's, for images made 0.2 to 3 times."""
    port, node = onnx.helper.make_tensor_value_info, onnx.helper.make_node
    bytes_, integers = onnx.TensorProto.UINT8, onnx.TensorProto.INT64
    resize = node(
        "Resize", ["planes", "", "", "sizes"], ["resized"], mode="cubic", antialias=1,
        cubic_coeff_a=-0.5, coordinate_transformation_mode="half_pixel", exclude_outside=1,
    )  # fmt: skip
    inputs = [port("planes", bytes_, [1, 3, "h", "w"]), port("sizes", integers, [4])]
    outputs = [port("resized", bytes_, [1, 3, "a", "b"])]
    graph = onnx.helper.make_graph([resize], "resize", inputs, outputs)
    opsets = [onnx.helper.make_opsetid("", 18)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    rng, worst, different, n_values = np.random.default_rng(0), 0, 0, 0
    for image in odd_images(n_images):
        size = [max(1, int(side * rng.uniform(0.2, 3))) for side in image.size]
        wanted = np.asarray(image.resize(size, Image.Resampling.BICUBIC)).transpose(2, 0, 1)
        planes = np.asarray(image).transpose(2, 0, 1)[None]
        sizes = np.asarray([1, 3, size[1], size[0]], np.int64)
        (got,) = session.run(None, {"planes": np.ascontiguousarray(planes), "sizes": sizes})
        apart = np.abs(got[0].astype(int) - wanted)
        worst, n_values = max(worst, int(apart.max())), n_values + apart.size
        different += int((apart > 0).sum())
    print(
        f"ONNX Runtime's Resize on {n_images} images: largest difference {worst} of 255;"
        f" {100 * different / n_values:.1f} % of values differ"
    )


def time_both(artifact: Artifact, n_rounds: int) -> None:
    """Prints the times from a decoded image to logits."""
    plain = onnx_run.load(artifact.checked("model.onnx"), n_threads=1)
    built_with = artifact.file("model.image.onnx").built_with
    whole = image_run.load(artifact.checked("model.image.onnx"), n_threads=1, built_with=built_with)
    print("| image | Pillow + model.onnx ms | model.image.onnx ms | ratio | ratio of minima |")
    print("|---|---:|---:|---:|---:|")
    photo = next(photos())
    for size in SIZES:
        image = photo.resize(size, Image.Resampling.BICUBIC)
        pixels = np.asarray(image)

        def with_pillow(image: Image.Image = image) -> None:
            small = np.asarray(resize_and_crop(image, artifact.preprocess))
            planes = np.ascontiguousarray(small.transpose(2, 0, 1)[None])
            plain.run(planes.astype(np.float32) / np.float32(255))

        def with_graph(pixels: np.ndarray = pixels) -> None:
            whole.run_image(pixels)

        times = interleaved({"pillow": with_pillow, "graph": with_graph}, n_rounds)
        middle = [statistics.median(times[name]) for name in ("pillow", "graph")]
        least = [min(times[name]) for name in ("pillow", "graph")]
        print(
            f"| {size[0]} x {size[1]} | {middle[0]:.2f} | {middle[1]:.2f} |"
            f" {middle[1] / middle[0]:.2f} | {least[1] / least[0]:.2f} |",
            flush=True,
        )


def main() -> None:
    """Prints both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--no-pixels", action="store_true", help="only times")
    given = parser.parse_args()
    artifact = load_artifact(given.artifact)
    print(cpu_model())
    if not given.no_pixels:
        compare(artifact, given.images)
        compare_resize(given.images // 10)
    time_both(artifact, given.rounds)


if __name__ == "__main__":
    main()

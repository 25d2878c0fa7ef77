"""Classifies images with an ONNX file next to this script.

    python example.py IMAGE|FOLDER ...        prints the class of each image, and its score, by
                                              the file that `choose` takes
    python example.py MODEL.onnx IMAGE ...    prints JSON, as `kdedge verify` asks for it

Needs NumPy, Pillow and ONNX Runtime, but neither kdedge nor torch. Class names, image size,
resizing and the graph's input are read from `artifact.json`. Images are not normalized here, as
mean and standard deviation are in the graph. A model.image.onnx resizes and crops by itself, too.
An artifact that was exported with --none-of-these gives none for an image of none of its classes.
"""

from __future__ import annotations

import hashlib
import json
import sys
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def read_rgb(path: str) -> Image.Image:
    """Reads an image as 8-bit RGB: upright, transparent parts over white."""
    with Path(path).open("rb") as file:  # given a path, Pillow turns some TIFF files wrongly
        image = Image.open(file)
        image.load()
    turned = ImageOps.exif_transpose(image)
    if turned.mode.startswith("I"):  # gray of 8 or 16 bits, which Pillow would clip at 255
        values = np.asarray(turned).astype(np.int64)
        is_16_bit = turned.mode != "I" or image.format in ("PNG", "PPM") or np.max(values) > 255
        gray = (values + 128) // 257 if is_16_bit else values
        gray[values == image.info.get("transparency")] = 255
        return Image.fromarray(gray.astype(np.uint8)).convert("RGB")
    if not turned.has_transparency_data:
        return turned.convert("RGB")
    white = Image.new("RGBA", turned.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, turned.convert("RGBA")).convert("RGB")


def resize_and_crop(image: Image.Image, preprocess: dict[str, Any]) -> Image.Image:
    """Resizes and crops to the model's square, as `preprocess` of artifact.json says."""
    size, (width, height) = preprocess["size_px"], image.size
    new_size = [size, size]
    if preprocess["resize_mode"] == "shortest":
        shorter = min(width, height)
        new_size = [int(size * width / shorter), int(size * height / shorter)]
    image = image.resize(new_size, Image.Resampling[preprocess["interpolation"].upper()])
    left, top = (round((side - size) / 2) for side in new_size)
    return image.crop((left, top, left + size, top + size))


def read_arrays(path: Path) -> dict[str, Any]:
    """Reads the arrays of a file in the format of safetensors, all float64."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    arrays = {}
    for name, entry in json.loads(data[8:start]).items():
        begin, end = (start + offset for offset in entry["data_offsets"])
        arrays[name] = np.frombuffer(data[begin:end], "<f8").reshape(entry["shape"])
    return arrays


def choose(folder: Path, artifact: dict[str, Any]) -> str:
    """Chooses the newest file of cpu_choice.json, if it is for ONNX Runtime, or the float32 file.

    A file that missed its gate is only taken if all missed theirs.
    """
    files = [f for f in artifact["files"] if f["target"] == "onnx" and f["device"] != "gpu"]
    passed = [f for f in files if f["gate"] != "missed"] or files
    file = folder / "cpu_choice.json"
    if "cpu_choice.json" in artifact["others"] and file.is_file():
        choices = json.loads(file.read_text(encoding="utf-8"))["choices"]
        fastest = max(choices, key=lambda choice: choice["measured_at"])
        name, sha256 = fastest["file"], fastest["sha256"]
        passed = [f for f in passed if (f["name"], f["sha256"]) == (name, sha256)] or passed
    return str(min(passed, key=lambda f: f["precision"] == "int8")["name"])


class Model:
    """A loaded ONNX file of an artifact."""

    def __init__(self, file: Path, artifact: dict[str, Any]) -> None:
        self.artifact = artifact
        classes = artifact.get("open_classes")
        self.matrix = None if classes is None else np.load(file.parent / classes["file"])
        entries = {entry["name"]: entry for entry in artifact["files"]}
        entry = entries.get(file.name, {})
        self.none_below = entry.get("none_below") if "none_of_these" in artifact else None
        if self.none_below is not None:
            self.arrays = read_arrays(file.parent / artifact["none_of_these"]["file"])
        data = file.read_bytes()
        options = onnxruntime.SessionOptions()
        if entry and hashlib.sha256(data).hexdigest() != entry["sha256"]:
            sys.exit(f"{file} is not the file that was exported. Copy it again.")
        if b'"\x0eQuantizeLinear' in data:  # fixed ranges, which may overflow without it
            options.add_session_config_entry("session.x64quantprecision", "1")
        providers = ["CPUExecutionProvider"]
        try:
            self.session = onnxruntime.InferenceSession(file, options, providers=providers)
        except Exception as error:  # ONNX Runtime's errors have no common class
            sys.exit(f"{file} cannot be loaded: {error}\nCopy it again.")

    def answer(self, path: str) -> dict[str, Any]:
        """Returns an image's class, its score in percent, and the mean of its pixels by color.

        The score is None if the model has none. `is_none` says whether the image shows none of the
        classes, if the artifact can tell.
        """
        output, pixels = self.run(path)
        # With open classes, the graph gives image features
        logits = output if self.matrix is None else self.matrix @ output
        best = int(logits.argmax())
        score = None
        if self.artifact["output"]["head"] == "scores":
            shares = np.exp(logits.astype(np.float64) - logits.max())
            score = 100 * float(shares[best] / shares.sum())
        label = self.artifact["class_names"][best]
        answer = {"label": label, "score": score, "rgb_mean": pixels.mean(axis=(1, 2)).tolist()}
        if "none_of_these" in self.artifact:
            answer["is_none"] = self.is_none(output)
        return answer

    def run(self, path: str) -> tuple[Any, Any]:
        """Returns the graph's output for an image, and its pixels, [3, S, S] from 0 to 255."""
        image = read_rgb(path)
        if self.session.get_inputs()[0].name == "image":  # with preprocessing
            outputs, pixels = self.session.run(None, {"image": np.asarray(image)})
            return outputs[0], pixels[0]
        cropped = resize_and_crop(image, self.artifact["preprocess"])
        pixels = values = np.asarray(cropped).transpose(2, 0, 1)
        if self.artifact["input"]["dtype"] == "float32":
            values = pixels.astype(np.float32) / np.float32(255)
        batch = self.artifact["input"]["batch"]
        n_copies = 1 if batch == "dynamic" else batch  # a graph with a fixed batch takes no fewer
        return self.session.run(None, {"images": np.stack([values] * n_copies)})[0][0], pixels

    def is_none(self, output: Any) -> bool:
        """Whether the graph's output for an image is too far from the outputs of known images."""
        if self.none_below is None:
            return False
        distances = self.arrays["whitening"] @ output.astype(np.float64) - self.arrays["means"]
        return bool(-(distances**2).sum(axis=1).min() < self.none_below["limit"])


def main() -> None:
    """Prints the best class of each image, and its score in percent if the model has scores."""
    stdout: Any = sys.stdout
    stdout.reconfigure(errors="backslashreplace")  # for file names that are not text
    arguments = sys.argv[1:]
    folder = Path(__file__).absolute().parent  # its files may be links to other folders,
    if not (folder / "artifact.json").is_file():  # or this script a link to one there
        folder = Path(__file__).resolve().parent
    as_json = bool(arguments) and arguments[0].endswith(".onnx")
    given = Path(arguments.pop(0)) if as_json else None
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.exit("Usage: python example.py [MODEL.onnx] IMAGE|FOLDER ...")
    if given is not None and not given.is_file():
        given = folder / given  # next to this script
    folder = folder if given is None else given.parent
    if not (folder / "artifact.json").is_file():
        sys.exit(f"{folder / 'artifact.json'} is missing. Copy the artifact's .json files, too.")
    artifact = json.loads((folder / "artifact.json").read_text(encoding="utf-8"))
    file = given or folder / choose(folder, artifact)
    if not file.is_file():
        sys.exit(
            f"{file} is missing. Copy it and cpu_choice.json, which names the fastest one, or"
            " name another: python example.py MODEL.onnx IMAGE"
        )
    try:
        model = Model(file, artifact)
    except FileNotFoundError as error:  # its class matrix, or what finds none of these
        sys.exit(f"{error.filename} is missing. Copy it, too.")
    n_classified = 0
    folders = (sorted(map(str, Path(one).iterdir())) for one in arguments if Path(one).is_dir())
    files = [one for one in arguments if not Path(one).is_dir()]
    for path in chain(files, *folders):
        try:
            answer = model.answer(path)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            print(f"{path} cannot be read: {error}", file=sys.stderr)
            continue
        n_classified += 1
        if as_json:
            print(json.dumps(answer))
        else:
            score = "" if answer["score"] is None else f"\t{answer['score']:.2f}"
            print(f"{path}\t{'none' if answer.get('is_none') else answer['label'] + score}")
    sys.exit(0 if n_classified else 3)  # as `kdedge predict` exits


if __name__ == "__main__":
    main()

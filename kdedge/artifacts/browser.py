"""Writes a page that classifies images in a browser."""

from __future__ import annotations

import shlex
from importlib.resources import files
from pathlib import Path

from kdedge.errors import DataError
from kdedge.files import new_folder, write_atomic, write_json
from kdedge.runtime.artifact import OUTPUT_NAME, Artifact, Precision
from kdedge.runtime.none_of_these import GAUSSIANS_FILE
from kdedge.runtime.open_classes import check_gives_logits
from kdedge.targets.onnx import ONNX
from kdedge.targets.registry import check_precisions, find_target

PREPROCESS = "preprocess.onnx"
MODEL = "model.onnx"
SETTINGS = "settings.json"
PAGE = "index.html"

_FILES = (PAGE, "page.css", "page.mjs", "classify.mjs", "package.json", "README.md")
_N_CLASSES_SHOWN = 5  # classes that the page shows


def write_browser(artifact: Artifact, folder: Path, *, precision: Precision | None = None) -> Path:
    """Writes a folder with the page, the model and the class names, complete or not at all.

    Args:
        artifact: the artifact; the file's hash is checked before it is copied.
        folder: the folder to create; must not exist.
        precision: precision of the file, fp32 or int8; None for fp32.

    Returns:
        Path of the page.

    Raises:
        RecipeError: the folder exists, there are no files of this precision with preprocessing, or
            the artifact has open classes.
        DataError: the artifact has no such file, or it missed its gate or has changed.
        MissingPackage: onnx is not installed.
        ResourceError: the folder cannot be written.
    """
    precision = precision or "fp32"
    target = find_target("onnx-image")
    check_gives_logits(artifact, "a browser's page")
    check_precisions(target, [precision])
    made = [f for f in artifact.files if (f.target, f.precision) == (target.name, precision)]
    if not made:
        raise DataError(
            f"{artifact.path} has no {precision} file with preprocessing, which a page needs.\n"
            f"  Make it with: kdedge export {shlex.quote(str(artifact.path))} {target.flag}"
        )
    file = made[0]
    if file.gate == "missed":
        raise DataError(
            f"{artifact.path / file.name} missed its gate.\n"
            "  Export the run again with another precision."
        )
    settings = {
        "name": artifact.name,
        "preprocess": PREPROCESS,
        "model": MODEL,
        "made_from": file.name,
        "sha256": file.sha256,
        "head": artifact.head,
        "top": _N_CLASSES_SHOWN,
        "class_names": list(artifact.class_names),
        "none_of_these": None,
    }
    none = artifact.none_of_these
    below = artifact.none_below(file)
    parts: dict[str, bytes] = {}
    if none is not None and below is not None:
        parts[GAUSSIANS_FILE] = artifact.checked(none.file).read_bytes()
        settings["none_of_these"] = {"file": GAUSSIANS_FILE, "limit": below.limit}
    with new_folder(folder) as new:
        for name in _FILES:
            write_atomic(new.part / name, (files(__package__) / "browser_page" / name).read_bytes())
        parts |= _split_graph(artifact.checked(file.name))
        for name, data in parts.items():
            write_atomic(new.part / name, data)
        write_json(new.part / SETTINGS, settings)
    return folder / PAGE


def _split_graph(path: Path) -> dict[str, bytes]:
    """Cuts a graph with preprocessing in two at its uint8 pixels, [1, 3, S, S]."""
    onnx = ONNX.load()
    from onnx.utils import Extractor

    from kdedge.targets.onnx_image.graph import IMAGE_NAME, PIXELS_NAME

    extractor = Extractor(onnx.load(path))
    cuts = {PREPROCESS: (IMAGE_NAME, PIXELS_NAME), MODEL: (PIXELS_NAME, OUTPUT_NAME)}
    return {
        name: extractor.extract_model([start], [end]).SerializeToString()
        for name, (start, end) in cuts.items()
    }

"""Writes a page that classifies pictures and the camera in a browser, with onnxruntime-web.

The page takes the ONNX file with preprocessing, so resize and crop are the model's and not the
browser's. The file is cut in two: onnxruntime-web's build with WebGPU cannot run the preprocessing.
onnxruntime-web comes from npm; its files are not part of kdedge.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from kdedge.deploy._serving import choose_file
from kdedge.errors import DataError, MissingPackage
from kdedge.files import write_atomic, write_json
from kdedge.folders import new_folder
from kdedge.runtime.artifact import OUTPUT_NAME, Artifact, Precision
from kdedge.runtime.none_of_these import FILE_NAME

PREPROCESS, MODEL = "preprocess.onnx", "model.onnx"
SETTINGS, PAGE = "settings.json", "index.html"

_FILES = (PAGE, "page.css", "page.mjs", "classify.mjs", "package.json", "README.md")
_TOP = 5  # classes that the page shows


def write_browser(artifact: Artifact, folder: Path, *, precision: Precision | None = None) -> Path:
    """Writes a folder with the page, the model and the class names, complete or not at all.

    Args:
        artifact: the artifact; the file's hash is checked before it is copied.
        folder: the folder to create; must not exist.
        precision: precision of the file, fp32 or int8; None for fp32.

    Returns:
        Path of the page.

    Raises:
        RecipeError: the folder exists, or the artifact has open classes.
        DataError: the artifact has no file with preprocessing, or it has changed since the export.
        MissingPackage: onnx is not installed.
        ResourceError: the folder cannot be written.
    """
    wanted = "onnx-image", precision or "fp32"
    if not any((file.target, file.precision) == wanted for file in artifact.files):
        raise DataError(
            f"{artifact.path} has no {wanted[1]} file with preprocessing, which a page needs.\n"
            f"  Make it with: kdedge export {artifact.path} --with-preprocess"
        )
    file = choose_file(artifact, [wanted], server="browsers")
    settings = {
        "name": artifact.name,
        "preprocess": PREPROCESS,
        "model": MODEL,
        "made_from": file.name,
        "sha256": file.sha256,
        "head": artifact.head,
        "top": _TOP,
        "class_names": list(artifact.class_names),
        "none_of_these": None,
    }
    none, below, gaussians = artifact.none_of_these, artifact.none_below(file), None
    if none is not None and below is not None:
        gaussians = artifact.checked(none.file).read_bytes()
        settings["none_of_these"] = {"file": FILE_NAME, "limit": below.limit}
    with new_folder(folder) as (part, _):
        for name in _FILES:
            write_atomic(part / name, (files(__package__) / "browser_page" / name).read_bytes())
        for name, data in _halves(artifact.checked(file.name)).items():
            write_atomic(part / name, data)
        if gaussians is not None:
            write_atomic(part / FILE_NAME, gaussians)
        write_json(part / SETTINGS, settings)
    return folder / PAGE


def _halves(path: Path) -> dict[str, bytes]:
    """Cuts a graph with preprocessing at its uint8 pixels [1, 3, S, S], which both halves have."""
    try:
        import onnx
        from onnx.utils import Extractor
    except ImportError as error:
        raise MissingPackage("onnx", extra="export", purpose="Writing a page") from error
    from kdedge.targets.onnx_image.graph import IMAGE_NAME, PIXELS_NAME

    extractor = Extractor(onnx.load(path))
    cuts = {PREPROCESS: (IMAGE_NAME, PIXELS_NAME), MODEL: (PIXELS_NAME, OUTPUT_NAME)}
    return {
        name: extractor.extract_model([start], [end]).SerializeToString()
        for name, (start, end) in cuts.items()
    }

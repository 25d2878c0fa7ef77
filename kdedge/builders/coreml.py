"""Builds Core ML packages: classifiers with an image as input, and class and scores as outputs.

API: coremltools 9, https://apple.github.io/coremltools/docs-guides/. A package is a folder, so it
is stored as one ZIP file, which has a hash in the artifact. Only Apple's frameworks can run it, so
it is built here but not compared with the float32 model.

FP16 is the arithmetic of Apple's neural engine. The head stays in float32, since squares in the L2
norm overflow FP16 from 256 on. INT8 stores weights with one scale per output channel, and computes
in FP16: it makes the package half as large, and needs no ranges.
"""

from __future__ import annotations

import io
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdedge import __version__
from kdedge.builders.program import example_images, export_program, write_converted
from kdedge.errors import RecipeError
from kdedge.native_lines import ANY_LINE, silenced
from kdedge.runtime.artifact import Artifact, Precision
from kdedge.targets.base import BuildRequest, PlannedFile
from kdedge.targets.coreml import COREML

INPUT_NAME = "image"

_N_QUANTIZED = 2048  # weights with fewer values are not quantized


def build(file: PlannedFile, request: BuildRequest) -> dict[str, Any]:
    """Builds one package.

    Raises:
        RecipeError: the classes are not in the graph, the batch is fixed to more than one image, or
            coremltools cannot express a step of the model.
        ResourceError: memory ran out, or the file cannot be written.
    """
    artifact = request.artifact
    if artifact.open_classes is not None:
        raise RecipeError(
            "A Core ML package has its class names inside, but this artifact's classes are open.\n"
            "  Leave out the open classes or Core ML."
        )
    if artifact.batches[0] != 1:
        raise RecipeError(
            f"A Core ML package takes one image, but export.batch is {artifact.batches[0]}.\n"
            "  Set export.batch to dynamic or 1, or leave out Core ML."
        )

    def converted() -> bytes:
        return zipped(convert(request.model, artifact, file.precision), request.path)

    write_converted(request.path, converted, converter="coremltools")
    return {"tool": "Core ML Tools", "version": COREML.version, "torch": torch.__version__}


@silenced(ANY_LINE)
def convert(model: nn.Module, artifact: Artifact, precision: Precision) -> Any:
    """Converts the folded model to a Core ML classifier, an `MLModel` of coremltools.

    Its input is an RGB image of the artifact's size. Its outputs are `classLabel`, and the
    probabilities `classLabel_probs` by class name; with the head argmax, they are logits.

    Args:
        model: the folded model, on the CPU.
        artifact: class names, side of the images, and head.
        precision: see the module's docstring.
    """
    import coremltools as ct

    size_px = artifact.preprocess.size_px
    shape = (1, 3, size_px, size_px)
    one_value = (1, 1)
    has_scores = artifact.head == "scores"
    classifier = nn.Sequential(model, nn.Softmax(dim=-1)).eval() if has_scores else model
    images = example_images(model, size_px=size_px, batches=one_value).float()
    program = export_program(classifier, images, batches=one_value).run_decompositions({})
    # All operations but the head's, which have outputs of one vector per image, [1, D]
    half = ct.transform.FP16ComputePrecision(op_selector=lambda op: bool(op.outputs[0].rank > 2))
    package: Any = ct.convert(
        program,
        inputs=[
            ct.ImageType(
                name=INPUT_NAME,
                shape=shape,
                scale=1 / 255 if artifact.pixels == "float" else 1.0,
                color_layout=ct.colorlayout.RGB,
            )
        ],
        classifier_config=ct.ClassifierConfig(list(artifact.class_names)),
        minimum_deployment_target=ct.target.iOS16,
        compute_precision=half,
        skip_model_load=True,
    )
    if precision == "int8":
        by_channel = ct.optimize.coreml.OpLinearQuantizerConfig(
            mode="linear_symmetric", weight_threshold=_N_QUANTIZED
        )
        package = ct.optimize.coreml.linear_quantize_weights(
            package, ct.optimize.coreml.OptimizationConfig(global_config=by_channel)
        )
    is_squashed = artifact.preprocess.resize_mode == "squash"
    package.short_description = f"{artifact.name}, {len(artifact.class_names)} classes"
    package.input_description[INPUT_NAME] = f"RGB image, {size_px} x {size_px} pixels, " + (
        "resized" if is_squashed else "its shorter side resized and its center cropped"
    )
    package.user_defined_metadata["kdedge"] = __version__
    package.user_defined_metadata["head"] = artifact.head
    return package


@silenced(ANY_LINE)
def zipped(package: Any, archive_path: Path) -> bytes:
    """Returns a package as the bytes of one ZIP file.

    Args:
        package: an `MLModel` of coremltools.
        archive_path: where the file will be, such as `model.mlpackage.zip`; temporary files are
            written beside it.
    """
    with tempfile.TemporaryDirectory(dir=archive_path.parent, prefix=".coreml.") as folder:
        path = Path(folder) / archive_path.stem
        package.save(str(path))
        written = io.BytesIO()
        with zipfile.ZipFile(written, "w") as archive:  # weights cannot be compressed
            for file in sorted(path for path in path.rglob("*") if path.is_file()):
                entry = zipfile.ZipInfo(str(file.relative_to(path.parent)))
                entry.external_attr = 0o644 << 16
                archive.writestr(entry, file.read_bytes())
    return written.getvalue()

"""Whether an artifact that is there is the one that an export would make."""

from __future__ import annotations

from kdedge.config.recipe import Recipe
from kdedge.results import EvalResult, ParityResult, are_same_images
from kdedge.runtime.artifact import Artifact, Precision


def is_as_exported(
    artifact: Artifact, recipe: Recipe, precisions: set[Precision], result: EvalResult
) -> bool:
    """Whether an artifact of a run is what an export with this recipe would make.

    Args:
        artifact: of the run.
        recipe: whose `export` and `gates` count.
        precisions: that are wanted besides the recipe's.
        result: the run's accuracies; files are compared on the same test images.
    """
    spec = recipe.export
    files = [file for file in artifact.files if file.target == "onnx"]
    n_images = min(spec.parity_images, result.n_images)
    has = (artifact.class_names, artifact.head, artifact.pixels, artifact.batch, artifact.gates)
    wants = (tuple(result.per_class), spec.head, spec.pixels, spec.batch, recipe.gates.as_record())
    return (
        has == wants
        and all_precisions(precisions, recipe) <= {file.precision for file in files}
        and all(_is_compared_on(file.parity, result, n_images) for file in files)
    )


def all_precisions(precisions: set[Precision], recipe: Recipe) -> set[Precision]:
    """The precisions of the ONNX files that an export makes."""
    chosen: set[Precision] = {"fp32", *precisions, *recipe.export.precisions}
    return chosen | {"fp16"} if "int8" in chosen else chosen


def _is_compared_on(parity: ParityResult | None, result: EvalResult, n_images: int) -> bool:
    """Whether a file was compared on this number of the test images of an evaluation."""
    if parity is None or parity.test_set is None:
        return False
    return parity.n_images == n_images and are_same_images(parity.test_set, result)

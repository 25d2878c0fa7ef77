"""The files that may be the fastest on a CPU: which can be made here, and why others cannot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdedge.deploy.build import RunInputs, build_files
from kdedge.errors import KdedgeError, RecipeError, SetupError
from kdedge.runtime.artifact import Artifact, Precision
from kdedge.targets.protocol import Target
from kdedge.targets.registry import find_target, list_targets, load_build

if TYPE_CHECKING:  # a device has no torch
    from kdedge.runs.model import RunModel

_FROM_RUN = "the artifact has none; it is made when a run is exported: kdedge export RUN --cpu"


def onnx_precisions(trained: RunModel) -> tuple[set[Precision], dict[str, str]]:
    """Precisions of ONNX files for CPUs that the export of a run can make, besides float32.

    Returns:
        The precisions; and why INT8 is not among them, by its name, if it is not.
    """
    target = find_target("onnx")
    name = f"{target.label} int8"
    pool = trained.images("unlabeled")
    if pool is None or not pool.indices:
        return set(), {name: "the recipe has no unlabeled images to calibrate with: data.unlabeled"}
    try:
        load_build(target).plan("int8")
    except SetupError as error:
        return set(), {name: _in_one_line(error)}
    return {"int8"}, {}


def add_cpu_files(
    artifact: Artifact, *, run: RunInputs | None = None
) -> tuple[Artifact, dict[str, str]]:
    """Builds the missing files of every target that has files for CPUs.

    Args:
        artifact: gets the files; ONNX files are those that it has.
        run: what the run's export has; None for an artifact that was exported before.

    Returns:
        The artifact, and why a target's precision is missing, by their names.

    Raises:
        DataError: a file has changed since the export, or a file of another export is in the way.
        ResourceError: memory or disk ran out.
    """
    missing: dict[str, str] = {}
    for target in list_targets():
        of_run = target.name == "onnx" or target.source == "folded model"
        for precision in target.cpu_precisions:
            try:
                if of_run and (run is None or target.name == "onnx"):  # the run's export writes it
                    names = _names(artifact, target, precision)
                else:
                    artifact, names = build_files(artifact, target.name, [precision], run=run)
            except (RecipeError, SetupError) as error:
                missing[f"{target.label} {precision}"] = _in_one_line(error)
            else:
                if not names:
                    reason = _FROM_RUN if of_run else "this machine makes none. " + target.remark
                    missing[f"{target.label} {precision}"] = reason
    return artifact, missing


def _names(artifact: Artifact, target: Target, precision: Precision) -> tuple[str, ...]:
    return tuple(
        file.name
        for file in artifact.files
        if (file.target, file.precision) == (target.name, precision) and file.device != "gpu"
    )


def _in_one_line(error: KdedgeError) -> str:
    """The message with its remedy, which has the line that installs a package."""
    return " ".join(str(error).split())

"""The files that may be the fastest on a CPU: which can be made here, and why others cannot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdedge.deploy.build import RunInputs, build_files
from kdedge.errors import DataError, KdedgeError, RecipeError, SetupError
from kdedge.runtime.artifact import Artifact, Precision
from kdedge.targets.protocol import Target
from kdedge.targets.registry import list_targets

if TYPE_CHECKING:  # a device has no torch
    from kdedge.runs.model import RunModel

_FROM_RUN = "the artifact has none; it is made when a run is exported: kdedge export RUN --cpu"
_NO_IMAGES = "the recipe has no unlabeled images to calibrate with: data.unlabeled"


def onnx_precisions(trained: RunModel) -> set[Precision]:
    """Precisions of ONNX files for CPUs that the export of a run can make, besides float32."""
    pool = trained.images("unlabeled")
    return set() if pool is None or not pool.indices else {"int8"}


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
        ResourceError: memory or disk ran out.
    """
    missing: dict[str, str] = {}
    for target in list_targets():
        of_run = target.name == "onnx" or target.source == "folded model"
        is_built_here = not of_run or (target.name != "onnx" and run is not None)
        for precision in target.cpu_precisions:
            # A file from the folded model is there already if its target was asked for, too
            names = _names(artifact, target, precision) if of_run else ()
            reason = _FROM_RUN if of_run else "this machine makes none. " + target.remark
            if of_run and precision == "int8" and run is not None and run.calibration is None:
                reason = _NO_IMAGES
            elif is_built_here and not names:
                try:
                    artifact, names = build_files(artifact, target.name, [precision], run=run)
                except (DataError, RecipeError, SetupError) as error:
                    reason = _in_one_line(error)
            if not names:
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

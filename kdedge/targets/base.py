"""What a target is: `TARGET` in `__init__.py`, and the functions of build.py and run.py.

An installed package adds a target by an entry point of the group `kdedge.targets`, which names a
package with the same modules.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from kdedge.packages import Package as Package

if TYPE_CHECKING:  # a description imports nothing heavy, not even NumPy
    import numpy.typing as npt

    from kdedge.runtime.artifact import Artifact, Device, Precision
    from kdedge.runtime.backend import Backend

BuildSource = Literal["folded model", "ONNX file"]

# Prefixes of the names of the head's nodes and layers, from the projector to the class vectors.
# They stay float32, which class margins need and which costs little.
HEAD_LAYERS = ("hidden/", "features/", "fused_head/")

# Weights on CPUs are -64 to 64. Processors without VNNI add two products of unsigned and signed
# bytes in 16 bits; 2 x 255 x 64 < 32768, so that no file overflows on another processor.
CPU_WEIGHT_LEVELS = 64


@dataclass(frozen=True)
class PlannedFile:
    """A file that a target can build here.

    Attributes:
        name: name in the artifact's folder.
        precision: precision of its weights and arithmetic.
        device: device for which it is meant.
        data: name of a second file with the weights; None if they are in the file itself.
    """

    name: str
    precision: Precision
    device: Device
    data: str | None = None


@dataclass(frozen=True)
class Target:
    """The description of a target: `TARGET` in `__init__.py`.

    Attributes:
        name: name in `artifact.json`.
        label: name in messages and tables.
        flag: flag of `kdedge export`, such as `--trt`.
        help: help text of the flag, one sentence.
        files: pattern of its files' names, such as `model*.tflite`.
        data: pattern of the names of second files with weights; None if there are none.
        source: source of its files. ONNX files are part of the artifact, so that files can be built
            from them on the device. The folded model exists only during a run's export.
        precisions: precisions of its files, the preferred one first.
        cpu_precisions: the precisions whose files run on a CPU, which `kdedge export --cpu` tries.
        build_packages: optional packages that are needed to build its files.
        run_package: optional package that runs its files; None if none is needed.
        backend: name of the backend that runs its files in `kdedge predict` and `kdedge bench`;
            None if kdedge does not run them, so that the folder has no run.py.
        device: device for which its files are meant.
        preference: files of targets with a higher preference are used before others.
        is_engine: whether its files are built for one kind of GPU.
        base_precision: precision of the file that is always built, and of the ONNX file from which
            files other than INT8 are built. None: each file has an ONNX file of its precision as
            its source.
        uses_cpu_int8: whether its INT8 files are built from the INT8 ONNX file for CPUs.
        remark: further facts for users, as sentences.
        find_problem: returns a message about an installed package that cannot work on this
            machine; None if there is no problem.
    """

    name: str
    label: str
    flag: str
    help: str
    files: str
    source: BuildSource
    precisions: tuple[Precision, ...]
    data: str | None = None
    cpu_precisions: tuple[Precision, ...] = ()
    build_packages: tuple[Package, ...] = ()
    run_package: Package | None = None
    backend: str | None = None
    device: Device = "cpu"
    preference: int = 0
    is_engine: bool = False
    base_precision: Precision | None = None
    uses_cpu_int8: bool = False
    remark: str = ""
    find_problem: Callable[[], str | None] = field(default=lambda: None, compare=False)

    def plan(self, precision: Precision) -> PlannedFile:
        """The file of a precision; of `model*.tflite`, model.tflite in fp32, model.int8.tflite."""
        kind = "" if precision == "fp32" else f".{precision}"
        data = None if self.data is None else self.data.replace("*", kind)
        return PlannedFile(self.files.replace("*", kind), precision, self.device, data)

    def export_command(self, what: str | Path, *, int8: bool) -> str:
        """The command that builds a file of the target from an artifact or a run."""
        flags = [self.flag, "--int8"] if int8 else [self.flag]
        return shlex.join(["kdedge", "export", str(what), *flags])


@dataclass(frozen=True)
class BuildRequest:
    """The source of a file to build.

    Attributes:
        artifact: has side of the images, pixels, batches and head.
        path: the file to write.
        model: the folded model, a torch module from pixels [B, 3, S, S] to logits [B, C]; None if
            ONNX files are the source.
        onnx_path: the ONNX file of the target's `base_precision` or of the same precision; None if
            the folded model is the source.
        images: [N, 3, S, S], calibration images as the graph takes them; None if no ranges are
            needed.
    """

    artifact: Artifact
    path: Path
    model: Any = None
    onnx_path: Path | None = None
    images: npt.NDArray[Any] | None = None


class BuildModule(Protocol):
    """A target's build.py; it may import torch and onnx.

    That of `onnx` has no `build`: `deploy.export` writes its files.

    It may have three more functions:

    - `check_environment()` checks what a build requires, if `Target.build_packages` are not all;
    - `plan(precision)` returns the file of a precision, if its name differs from `Target.plan`'s;
    - `load(path, artifact)` returns the `Backend` of a target without run.py, so that its files can
      be compared with the model on the machine that builds them.
    """

    def build(self, file: PlannedFile, request: BuildRequest) -> dict[str, Any]:
        """Builds one file, which is complete or absent afterwards.

        Args:
            file: the file, from `plan`.
            request: the source of the file.

        Returns:
            A record of the build, as values for JSON: `tool`, `version` and more.

        Raises:
            DataError: the source is damaged or does not fit, or the file exists.
            SetupError: a package or device is missing or cannot build the file.
            ResourceError: memory or disk ran out.
        """


class RunModule(Protocol):
    """A target's run.py; it imports no torch, except for a runtime that needs torch."""

    def load(
        self,
        path: Path,
        *,
        n_threads: int | None = None,
        built_with: Mapping[str, Any] | None = None,
    ) -> Backend:
        """Loads a file.

        Args:
            path: the file; its bytes are trusted, so the caller checks its hash first.
            n_threads: CPU threads; None for the backend's own choice.
            built_with: the record of the file's build.

        Raises:
            MissingPackage: the Python package is not installed.
            SetupError: this machine cannot run the file.
            DataError: the file is damaged, or not an image classifier.
        """

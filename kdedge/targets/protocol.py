"""What a target's folder holds: `TARGET` in describe.py, and the functions of build.py and run.py.

A package of one's own joins by an entry point of the group `kdedge.targets` that names a package
with the same modules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from kdedge.errors import BackendUnavailable, MissingPackage, SetupError

if TYPE_CHECKING:  # a description loads nothing, NumPy included
    import numpy.typing as npt

    from kdedge.runtime.artifact import Artifact, Device, Precision
    from kdedge.runtime.backend import Backend

Source = Literal["folded model", "ONNX file"]


@dataclass(frozen=True)
class Package:
    """An optional Python package of a target, as `kdedge doctor` lists it.

    Attributes:
        module: the name that it is imported by.
        distributions: any of these brings it.
        purpose: what needs it, as in `TensorRT engines`.
        extra: the kdedge extra that brings it; None where no extra does.
        install: how it is installed; by its extra where nothing is said.
    """

    module: str
    distributions: tuple[str, ...]
    purpose: str
    extra: str | None = None
    install: str = ""

    @property
    def install_line(self) -> str:
        """How it is installed."""
        return self.install or f"pip install 'kdedge[{self.extra}]'"

    def missing(self, purpose: str) -> SetupError:
        """Gives the error for a machine without it.

        Args:
            purpose: what it is needed for, as the start of a sentence: "Running ONNX files".
        """
        name = self.distributions[0]
        if self.extra is not None and not self.install:
            return MissingPackage(name, extra=self.extra, purpose=purpose)
        return BackendUnavailable(
            f"{purpose} needs {name}, which is not installed.\n  Install it with: {self.install}"
        )


@dataclass(frozen=True)
class Target:
    """A target, as data: `TARGET` in describe.py.

    Attributes:
        name: as `artifact.json` has it.
        label: as messages and tables have it.
        flag: of `kdedge export`, such as `--trt`.
        help: of the flag, one sentence.
        files: what its files are called, as a pattern such as `model.*.engine`.
        source: what its files are built from. ONNX files travel in the artifact, so that what is
            built from them can be built on the device. The folded model is there at a run's export
            alone.
        precisions: that it has files for, the preferred one first.
        packages: optional packages that it needs.
        backend: the name of what runs its files in `kdedge predict` and `kdedge bench`; None where
            kdedge does not run them there, so that the folder has no run.py.
        preference: files of a higher preference are run before others.
        is_engine: its files are built for one kind of GPU.
        remark: what else a user should know, as sentences.
        find_problem: looks for what is installed and cannot work on this machine; None where
            nothing is wrong.
    """

    name: str
    label: str
    flag: str
    help: str
    files: str
    source: Source
    precisions: tuple[Precision, ...]
    packages: tuple[Package, ...] = ()
    backend: str | None = None
    preference: int = 0
    is_engine: bool = False
    remark: str = ""
    find_problem: Callable[[], str | None] = field(default=lambda: None, compare=False)


@dataclass(frozen=True)
class PlannedFile:
    """A file that a target can build here.

    Attributes:
        name: in the artifact's folder.
        precision: of its weights and arithmetic.
        device: where it is meant to run.
    """

    name: str
    precision: Precision
    device: Device


@dataclass(frozen=True)
class BuildRequest:
    """What a file is built from.

    Attributes:
        artifact: says what the file takes: side of the images, pixels, batches, head.
        folder: where the file goes.
        model: the folded model, a torch module from pixels [B, 3, S, S] to logits [B, C]; None
            where an artifact is the source.
        onnx_path: the ONNX file of the same precision; for ONNX files of lower precision the
            float32 one; None where the folded model is the source.
        images: [N, 3, S, S], real images as the graph takes them, to choose ranges by; None where
            no ranges are chosen.
        options: values of the recipe's `export` that concern one target alone.
    """

    artifact: Artifact
    folder: Path
    model: Any = None
    onnx_path: Path | None = None
    images: npt.NDArray[Any] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


class BuildModule(Protocol):
    """A target's build.py; it may import torch and onnx.

    A target without a backend has a third function, `load(path, artifact) -> Backend`, so that its
    files can be compared with the model where they are built.
    """

    def check_environment(self) -> None:
        """Looks for everything that building needs, before anything slow is done.

        Raises:
            SetupError: a package or device is missing or broken.
        """
        ...

    def plan(self, precision: Precision) -> tuple[PlannedFile, ...]:
        """Gives the files of a precision that can be built here.

        Raises:
            SetupError: a package or device is missing, on which the names depend.
        """
        ...

    def build(self, file: PlannedFile, request: BuildRequest) -> dict[str, Any]:
        """Builds one file, which is complete or absent afterwards.

        Args:
            file: from `plan`.
            request: what it is built from.

        Returns:
            What built it, as values for JSON: `tool`, `version` and more.

        Raises:
            DataError: the source is damaged or does not fit, or the file exists.
            SetupError: a package or device is missing, or cannot do it.
            ResourceError: memory or disk ran out.
        """
        ...


class RunModule(Protocol):
    """A target's run.py; it imports no torch."""

    def check_environment(self) -> None:
        """Looks for the engine, its libraries and the device that it needs.

        Raises:
            MissingPackage: the Python package is not installed.
            BackendUnavailable: the package, the driver or the device is missing.
            SetupError: they are there, and something about them is broken.
        """
        ...

    def load(
        self,
        path: Path,
        *,
        n_threads: int | None = None,
        built_with: Mapping[str, Any] | None = None,
    ) -> Backend:
        """Loads a file.

        Args:
            path: the file; its bytes are trusted, so check its hash before.
            n_threads: of the CPU; None for the engine's own choice.
            built_with: what the file was built with, for the message where it cannot be loaded.

        Raises:
            MissingPackage: the Python package is not installed.
            SetupError: this machine cannot run it.
            DataError: the file is not what it should be.
        """
        ...

"""The protocol of targets: `TARGET` in `__init__.py`, and the functions of build.py and run.py.

An installed package adds a target by an entry point of the group `kdedge.targets`, which names a
package with the same modules.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from kdedge.errors import BackendUnavailable, MissingPackage, SetupError, is_out_of_memory
from kdedge.runtime.native_lines import filter_native_stderr, quiet

if TYPE_CHECKING:  # a description imports nothing heavy, not even NumPy
    import numpy.typing as npt

    from kdedge.runtime.artifact import Artifact, Device, Precision
    from kdedge.runtime.backend import Backend

ExportInput = Literal["folded model", "ONNX file"]

HEAD_LAYERS = ("hidden/", "features/", "fused_head/")
"""How the names of the head's nodes and layers begin, from the projector to the class vectors. They
are a small cost, and float32 where class margins need it."""

CPU_WEIGHT_LEVELS = 64
"""Weights on CPUs are -64 to 64. Processors without VNNI add two products of unsigned and signed
bytes in 16 bits, 2 x 255 x 64 < 32768: no file that passed its gate here overflows elsewhere."""


LOG_LINES = re.compile(
    rb"device_discovery\.cc|^\[\w+\.(cpp|h):\d+\]|^(INFO|WARNING|ERROR): |^[IWE]\d{4} "
)
"""Lines that packages write to stderr and that no setting turns off. ONNX Runtime warns of graphics
cards that it does not know: github.com/microsoft/onnxruntime/issues/27092"""

ANY_LINE = re.compile(rb"")


@contextlib.contextmanager
def silenced(lines: re.Pattern[bytes] = LOG_LINES) -> Iterator[None]:
    """Context without stdout, warnings, logs and these lines on stderr of a target's package."""
    with filter_native_stderr(lines), contextlib.redirect_stdout(io.StringIO()), quiet():
        yield


@dataclass(frozen=True)
class Package:
    """An optional Python package of a target, as `kdedge doctor` lists it.

    Attributes:
        module: name for the import.
        purpose: what needs it, such as `running ONNX files`.
        extra: the kdedge extra that installs it; None if no extra does.
        install: how to install it; empty for its extra.
        entry: a module and its attribute that `load` looks for, such as `openvino:Core`: type stubs
            leave a folder that can be imported, too, but has no attribute.
        names: names of the distributions that contain it; empty for one of its own name.
    """

    module: str
    purpose: str
    extra: str | None = None
    install: str = ""
    entry: str = ""
    names: tuple[str, ...] = ()

    @property
    def distributions(self) -> tuple[str, ...]:
        """Names of the distributions that contain it; messages have the first."""
        return self.names or (self.module.replace("_", "-"),)

    @property
    def install_line(self) -> str:
        """How to install it."""
        return self.install or f"pip install 'kdedge[{self.extra}]'"

    @property
    def version(self) -> str | None:
        """The installed version; None if it is not installed."""
        for distribution in self.distributions:
            with contextlib.suppress(PackageNotFoundError):
                return version(distribution)
        # Of a distribution with another name, once it is imported
        return getattr(sys.modules.get(self.module), "__version__", None)

    def load(self) -> Any:
        """Imports the module of `entry`, without a line on stderr.

        Raises:
            MissingPackage, BackendUnavailable: it is not installed.
            SetupError: it is installed, but cannot be imported.
        """
        module, _, attribute = (self.entry or f"{self.module}:__version__").partition(":")
        loaded: Any = sys.modules.get(module)
        try:
            if loaded is None:
                with silenced():
                    loaded = importlib.import_module(module)
        except (ImportError, OSError, AttributeError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            absent = error.name if isinstance(error, ModuleNotFoundError) else None
            if absent is None or not f"{module}.".startswith(f"{absent}."):
                raise SetupError(
                    f"{self.distributions[0]} is installed, but cannot be imported: {error}.\n"
                    f"  Remove it, and install it again: {self.install_line}"
                ) from error
        if not hasattr(loaded, attribute):
            raise self.missing()
        return loaded

    def missing(self) -> SetupError:
        """Makes the error for a machine without the package."""
        name, purpose = self.distributions[0], self.purpose[0].upper() + self.purpose[1:]
        if self.extra is not None and not self.install:
            return MissingPackage(name, extra=self.extra, purpose=purpose)
        return BackendUnavailable(
            f"{purpose} needs {name}, which is not installed.\n  Install it with: {self.install}"
        )


@dataclass(frozen=True)
class PlannedFile:
    """A file that a target can build here.

    Attributes:
        name: name in the artifact's folder.
        precision: precision of its weights and arithmetic.
        device: device that it is meant for.
        data: name of the second file, which has its weights; None if they are in the file itself.
    """

    name: str
    precision: Precision
    device: Device
    data: str | None = None


@dataclass(frozen=True)
class Target:
    """A target, as data: `TARGET` in `__init__.py`.

    Attributes:
        name: name in `artifact.json`.
        label: name in messages and tables.
        flag: flag of `kdedge export`, such as `--trt`.
        help: help text of the flag, one sentence.
        files: pattern of its files' names, such as `model*.tflite`.
        data: pattern of their second files' names, which have the weights; None if there are none.
        source: what its files are built from. ONNX files are part of the artifact, so files from
            them can be built on the device. The folded model exists only during a run's export.
        precisions: precisions of its files, the preferred one first.
        cpu_precisions: the precisions whose files run on a CPU, which `kdedge export --cpu` tries.
        packages: optional packages that building its files needs.
        runtime: the one that runs them; None if it needs none.
        backend: name of the backend that runs its files in `kdedge predict` and `kdedge bench`;
            None if kdedge does not run them, so that the folder has no run.py.
        device: device that its files are meant for.
        preference: files of targets with a higher preference are used before others.
        is_engine: whether its files are built for one kind of GPU.
        base_precision: precision of the file that it always has, and of the ONNX file that all but
            INT8 files are built from. None: each file is built from the ONNX file of its precision.
        is_for_cpu: whether its INT8 files are built from the INT8 ONNX file for CPUs.
        remark: further facts for users, as sentences.
        find_problem: returns a message about an installed package that cannot work on this
            machine; None if there is no problem.
    """

    name: str
    label: str
    flag: str
    help: str
    files: str
    source: ExportInput
    precisions: tuple[Precision, ...]
    data: str | None = None
    cpu_precisions: tuple[Precision, ...] = ()
    packages: tuple[Package, ...] = ()
    runtime: Package | None = None
    backend: str | None = None
    device: Device = "cpu"
    preference: int = 0
    is_engine: bool = False
    base_precision: Precision | None = None
    is_for_cpu: bool = False
    remark: str = ""
    find_problem: Callable[[], str | None] = field(default=lambda: None, compare=False)

    def plan(self, precision: Precision) -> PlannedFile:
        """The file of a precision: `model.tflite` in fp32, `model.int8.tflite` in INT8."""
        kind = "" if precision == "fp32" else f".{precision}"
        data = None if self.data is None else self.data.replace("*", kind)
        return PlannedFile(self.files.replace("*", kind), precision, self.device, data)


@dataclass(frozen=True)
class BuildRequest:
    """Source of a file.

    Attributes:
        artifact: describes the file's input: side of the images, pixels, batches, head.
        folder: folder of the file.
        model: the folded model, a torch module from pixels [B, 3, S, S] to logits [B, C]; None if
            ONNX files are the source.
        onnx_path: the ONNX file of the target's `base_precision` or of the same precision; None if
            the folded model is the source.
        images: [N, 3, S, S], real images as the graph takes them, which decide the ranges; None if
            no ranges are needed.
    """

    artifact: Artifact
    folder: Path
    model: Any = None
    onnx_path: Path | None = None
    images: npt.NDArray[Any] | None = None


class BuildModule(Protocol):
    """A target's build.py; it may import torch and onnx.

    It may have three more functions:

    - `check_environment()` checks for all that building needs, if packages are not enough;
    - `plan(precision)` gives the file of a precision, if `Target.plan` has another name;
    - `load(path, artifact)` gives the `Backend` of a target without run.py, so that its files can
      be compared with the model where they are built.
    """

    def build(self, file: PlannedFile, request: BuildRequest) -> dict[str, Any]:
        """Builds one file, which is complete or absent afterwards.

        Args:
            file: a file of `plan`.
            request: its source.

        Returns:
            What it was built with, as values for JSON: `tool`, `version` and more.

        Raises:
            DataError: the source is damaged or does not fit, or the file exists.
            SetupError: a package or device is missing or cannot build the file.
            ResourceError: memory or disk ran out.
        """
        ...


class RunModule(Protocol):
    """A target's run.py; it imports no torch."""

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
            n_threads: CPU threads; None for the backend's own choice.
            built_with: what the file was built with.

        Raises:
            MissingPackage: the Python package is not installed.
            SetupError: this machine cannot run the file.
            DataError: the file is damaged, or not an image classifier.
        """
        ...

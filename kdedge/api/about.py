"""Describes this machine and its packages, the methods, and the keys of a recipe."""

from __future__ import annotations

import importlib
import logging
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from kdedge import __version__
from kdedge.errors import KdedgeError, SetupError
from kdedge.messages import first_line, option
from kdedge.methods import registry
from kdedge.packages import PACKAGES, Package
from kdedge.progress import readable_bytes
from kdedge.records.record import Record
from kdedge.records.tables import Table, Tabled
from kdedge.runtime.cuda import find_gpus
from kdedge.runtime.machine import cpu_model, memory_bytes, usable_cores
from kdedge.targets.registry import list_targets, target_records

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MachineFacts:
    """What kdedge runs on; None for what is not known.

    Attributes:
        kdedge: its version.
        python: Python's version.
        system: the operating system.
        cpu: the CPU's model.
        cpu_cores: cores that this process may use, within a container's CPU quota.
        memory_bytes: total memory.
        disk_free_bytes: free space of the current folder's disk.
    """

    kdedge: str
    python: str
    system: str
    cpu: str
    cpu_cores: int
    memory_bytes: int | None
    disk_free_bytes: int


@dataclass(frozen=True)
class GpuFacts:
    """A GPU.

    Attributes:
        name: its name.
        memory_bytes: total memory.
        compute_capability: major and minor version, such as 8.7.
        cuda: the CUDA version of torch; None if torch is missing or was built without.
    """

    name: str
    memory_bytes: int
    compute_capability: str
    cuda: str | None


@dataclass(frozen=True)
class CudaFacts:
    """The GPUs that CUDA programs can use.

    Attributes:
        devices: the driver's GPUs.
        problem: why there is none, or why torch cannot use them; None if it can.
    """

    devices: tuple[GpuFacts, ...]
    problem: str | None


@dataclass(frozen=True)
class PackageFacts:
    """An optional package.

    Attributes:
        version: the installed version; None if it is missing.
        purpose: what needs it.
        install: the command that installs it; None if it is installed.
        extra: the extra that installs it; None if no extra does.
    """

    version: str | None
    purpose: str
    install: str | None
    extra: str | None


@dataclass(frozen=True)
class Diagnosis(Record, Tabled):
    """What a machine has, and what each step still needs.

    Attributes:
        machine: the machine.
        cuda: its GPUs.
        packages: the optional packages, by the name under which they are imported.
        problems: installed packages that cannot work here, a sentence each.
    """

    machine: MachineFacts
    cuda: CudaFacts
    packages: dict[str, PackageFacts]
    problems: tuple[str, ...]

    @property
    def table(self) -> Table:
        """The machine and its GPUs."""
        devices = self.cuda.devices
        problem = self.cuda.problem
        rows = [*_named(self.machine)]
        rows += [("GPU", ", ".join(map(" ".join, _named(device)))) for device in devices]
        if problem is not None:
            rows.append(("torch", problem) if devices else ("GPU", f"none: {problem}"))
        return Table("", (), rows, align="l")

    @property
    def tables(self) -> list[Table]:
        """The machine, and the packages of the extras that are installed, wholly or in part."""
        absent = self._absent_extras
        chosen = {name: one for name, one in self.packages.items() if one.extra not in absent}
        return [self.table, _packages_table(chosen)]

    @property
    def all_tables(self) -> list[Table]:
        """The machine, and the packages of all extras."""
        return [self.table, _packages_table(self.packages)]

    @property
    def notes(self) -> Sequence[str]:
        """The problems, and the extras that are not installed."""
        absent = self._absent_extras
        if not absent:
            return self.problems
        everything = option("`kdedge doctor --all` lists", "`packages` has")
        return [*self.problems, f"Not installed: {', '.join(absent)}. {everything} their packages."]

    @property
    def _absent_extras(self) -> list[str]:
        """The extras of which no package is installed."""
        installed = {one.extra for one in self.packages.values() if one.version is not None}
        extras = dict.fromkeys(one.extra for one in self.packages.values())
        return [extra for extra in extras if extra is not None and extra not in installed]


def _packages_table(packages: Mapping[str, PackageFacts]) -> Table:
    header = ("package", "version", "for", "install with")
    rows = [
        [name, one.version or "missing", one.purpose, one.install or ""]
        for name, one in packages.items()
    ]
    return Table("", header, rows, align="l")


@dataclass(frozen=True)
class MethodFacts:
    """A method that a recipe can name.

    Attributes:
        label: its name in tables.
        paper: arXiv number of its paper, or of a related one.
        about: what it does, one sentence.
        labels: whether it is trained on labels.
        unlabeled_images: whether it is trained on unlabeled images.
        novel_class_names: whether it is trained on the names of classes without labels.
        losses: the losses that its settings can name, each with its description.
    """

    label: str
    paper: str
    about: str
    labels: bool
    unlabeled_images: bool
    novel_class_names: bool
    losses: dict[str, str]


class Methods(Tabled, dict[str, MethodFacts | None]):
    """The methods by name, printed as a table; None for a method that cannot be loaded."""

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        return {
            name: {} if one is None else {k: v for k, v in asdict(one).items() if v != {}}
            for name, one in self.items()
        }

    @property
    def table(self) -> Table:
        """A row for each method."""
        rows = []
        for name, one in self.items():
            cells = ["?"] * 4 + [""]
            if one is not None:
                needs = (one.labels, one.unlabeled_images, one.novel_class_names)
                marks = ("yes" if needed else "-" for needed in needs)
                cells = [one.label, *marks, one.about.removeprefix(f"{one.label}: ")]
            rows.append([name, *cells])
        header = ("method", "label", "labels", "unlabeled", "novel names", "")
        return Table("", header, rows, align="l")

    @property
    def tables(self) -> list[Table]:
        """The methods, and the losses of each that has some."""
        losses = {name: one.losses for name, one in self.items() if one and one.losses}
        return [self.table] + [
            Table("", (f"loss of {name}", ""), [*each.items()], align="l")
            for name, each in losses.items()
        ]


def doctor() -> Diagnosis:
    """Shows what this machine has and what each step still needs.

    Nothing is installed, and the network is not used.
    """
    packages = {
        one.module: PackageFacts(
            one.version, one.purpose, None if one.version else one.install_line, one.extra
        )
        for one in optional_packages()
    }
    machine = MachineFacts(
        __version__, platform.python_version(), platform.platform(), cpu_model(), usable_cores(),
        memory_bytes(), shutil.disk_usage(Path.cwd()).free,
    )  # fmt: skip
    cuda = _cuda(has_torch=packages["torch"].version is not None)
    problems = filter(None, [target.find_problem() for target in list_targets()])
    return Diagnosis(machine, cuda, packages, tuple(problems))


def list_methods() -> Methods:
    """Lists the methods that a recipe can name, and what each is trained on.

    A method that cannot be loaded is None, and a warning says why.
    """
    modules = _loaded_methods("only the names are listed")
    names = registry.list_methods()
    return Methods({n: describe(modules[n]) if n in modules else None for n in names})


def schema() -> dict[str, Any]:
    """Returns the JSON schema of a recipe.

    Returns:
        The schema, with each method's settings under `methods` and the targets of `export` under
        `targets`. A method that cannot be loaded is left out, and a warning says why.
    """
    from kdedge.config.recipe import Recipe

    modules = _loaded_methods("the settings are not listed")
    settings = {name: module.Settings.model_json_schema() for name, module in modules.items()}
    return {**Recipe.model_json_schema(), "methods": settings, "targets": target_records()}


def optional_packages() -> tuple[Package, ...]:
    """Every optional package of kdedge and of the targets, each once."""
    target_packages = [package for target in list_targets() for package in target.build_packages]
    return tuple({p.module: p for p in (*PACKAGES.values(), *target_packages)}.values())


def _named(record: Any) -> Iterator[tuple[str, str]]:
    """Yields the name and text of each value that is known; bytes get a unit."""
    for key, value in asdict(record).items():
        if value is not None:
            shown = readable_bytes(value) if key.endswith("_bytes") else str(value)
            yield key.removesuffix("_bytes").replace("_", " "), shown


def _cuda(*, has_torch: bool) -> CudaFacts:
    """The driver's GPUs, and the reason if torch is installed and cannot use them."""
    cuda, problem = _cuda_of_torch() if has_torch else (None, None)
    try:
        gpus = find_gpus()
    except SetupError as error:
        return CudaFacts((), first_line(error))
    devices = [GpuFacts(x.name, x.memory_bytes, x.compute_capability, cuda) for x in gpus]
    return CudaFacts(tuple(devices), problem)


def _cuda_of_torch() -> tuple[str | None, str | None]:
    """The CUDA version of torch or None, and the reason if torch cannot use GPUs."""
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:
        return None, f"torch cannot be imported: {error}"
    if torch.version.cuda is None:
        return None, "the installed torch was built without CUDA"
    problem = None if torch.cuda.is_available() else "torch sees no CUDA device"
    return torch.version.cuda, problem


def _loaded_methods(effect: str) -> dict[str, ModuleType]:
    """Returns the methods that can be loaded; a warning names the others and ends with `effect`."""
    modules: dict[str, ModuleType] = {}
    problems: dict[str, list[str]] = {}
    for name in registry.list_methods():
        try:
            modules[name] = registry.load_method(name)
        except KdedgeError as error:
            problems.setdefault(getattr(error, "remedy", str(error)), []).append(name)
    for problem, names in problems.items():
        log.warning(f"{', '.join(names)} cannot be loaded; {effect}.\n  {problem}")
    return modules


def describe(module: ModuleType) -> MethodFacts:
    """A method's declared facts."""
    from kdedge.methods.losses import losses_model

    declared = module.METHOD
    about = (module.__doc__ or "").partition("\n")[0]
    needs = asdict(declared.main_data_needs)
    losses = {}
    field = module.Settings.model_fields.get("losses")
    if field is not None and field.annotation is losses_model():
        losses = {name: str(loss.description) for name, loss in losses_model().model_fields.items()}
    return MethodFacts(declared.label, declared.paper, about, **needs, losses=losses)

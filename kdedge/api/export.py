"""Exports a run to files for the device, or adds engines to an artifact."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from kdedge.api.evaluate import run_argument
from kdedge.api.keywords import check_keywords
from kdedge.api.recipe import Overrides
from kdedge.errors import KdedgeError, RecipeError
from kdedge.runs.find import find_run
from kdedge.runtime.artifact import FILE_NAME, Artifact, Precision, load_artifact
from kdedge.runtime.cpu_choice import CpuChoice, check_can_keep, keep_choice
from kdedge.targets.protocol import Target
from kdedge.targets.registry import find_target

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from kdedge.deploy.build import RunInputs

log = logging.getLogger(__name__)

_EARLIER = ("those of its export, before the gates in artifact.json were changed",)


class ExportOptions(TypedDict, total=False):
    """Options of a run's export; an artifact that exists takes none of them.

    Attributes:
        classes: class names to export instead of the run's, or a file with one name per line. They
            may be fewer or in another order; new ones need the teacher's run.
        output: the artifact's folder; `artifacts/NN` in the run if left out.
        overrides: keys of the recipe with other values, such as `{"export.head": "argmax"}`.
        root: folder of all runs.
        device: `cpu`, `cuda` or `cuda:N`; None for `cuda` if available, else `cpu`.
    """

    classes: str | Path | Sequence[str]
    output: str | Path | None
    overrides: Overrides
    root: str | Path
    device: str | None


@dataclass(frozen=True)
class ExportRequest:
    """What to export.

    Attributes:
        source: an artifact's folder, or a run's folder or name; None for the newest finished
            student.
        targets: besides the ONNX files, which a run's export always has.
        fp16: make FP16 files.
        int8: make INT8 files, and FP16 ones to compare them with.
        cpu: find the fastest file for this CPU, and make all that could be it.
    """

    source: str | None
    targets: tuple[Target, ...] = ()
    fp16: bool = False
    int8: bool = False
    cpu: bool = False

    @property
    def is_artifact(self) -> bool:
        """Whether the source is an artifact."""
        return self.source is not None and (Path(self.source) / FILE_NAME).is_file()

    @property
    def precisions(self) -> set[Precision]:
        """The precisions to make; INT8 adds FP16, to compare with."""
        return set() if self.lowest is None else {self.lowest, "fp16"}

    @property
    def lowest(self) -> Precision | None:
        """The lowest precision asked for."""
        return "int8" if self.int8 else "fp16" if self.fp16 else None


@dataclass
class Export:
    """The files that an export has made so far.

    Attributes:
        artifact: its current state.
        gflops: 1e9 operations per image, before and after folding; empty if the artifact existed
            before.
        names: files of the artifact that were made or compared; their gates count.
        written: folders and files that were written.
        failed: errors of what could not be made; the other files stay.
        choice: the fastest file on this CPU, if it was asked for and could be found.
    """

    artifact: Artifact
    gflops: dict[str, float] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    written: list[Path] = field(default_factory=list)
    failed: list[KdedgeError] = field(default_factory=list)
    choice: CpuChoice | None = None

    @property
    def errors(self) -> list[KdedgeError]:
        """An error for each file that missed its gates, and for what could not be made."""
        from kdedge.deploy.parity import gate_error, misses

        errors: list[KdedgeError] = []
        for file in self.artifact.files:
            if file.name in self.names and file.gate == "missed":
                assert file.parity is not None  # a missed gate was measured
                missed = misses(file.parity, file.precision, self.artifact.gates) or _EARLIER
                errors.append(gate_error(file.name, file.precision, file.parity, missed))
        return [*errors, *self.failed]

    def add_target(
        self, target: Target, precisions: set[Precision], *, run: RunInputs | None = None
    ) -> None:
        """Builds one target's files into the artifact; some need what a run's export has."""
        from kdedge.deploy.build import build_files

        before, chosen = self.artifact, precisions_of(target, precisions)
        left_out = sorted(precisions - set(target.precisions))
        if left_out and set(chosen) & precisions:
            log.info("%s has no %s files.", target.label, " and no ".join(left_out))
        try:
            self.artifact, names = build_files(before, target.name, chosen, run=run)
        except KdedgeError as error:
            self.failed.append(error)
            # It has the files that were built before the one that failed
            self.artifact = load_artifact(before.path)
        else:
            self.names += names
        if self.artifact != before and before.path not in self.written:
            self.written.append(before.path)

    def choose_for_cpu(self, *, run: RunInputs | None = None) -> None:
        """Makes the files that may be the fastest on this CPU, measures them, and keeps the choice.

        Args:
            run: what a run's export has.
        """
        from kdedge.benchmarking.cpu_files import add_cpu_files, fastest_on_cpu
        from kdedge.deploy.model_card import renew_model_card

        before = self.artifact
        try:
            check_can_keep(self.artifact)
            self.artifact, missing = add_cpu_files(self.artifact, run=run)
            self.choice = fastest_on_cpu(self.artifact, not_tried=missing)
            self.artifact = renew_model_card(keep_choice(self.artifact, self.choice))
        except KdedgeError as error:
            self.failed.append(error)
            self.artifact = load_artifact(before.path)
        if self.artifact != before and before.path not in self.written:
            self.written.append(before.path)

    def add_servers(
        self,
        triton: Path | None,
        browser: Path | None,
        precision: Precision | None,
    ) -> None:
        """Writes the folders for Triton and browsers that were asked for."""
        from kdedge.deploy.browser import write_browser
        from kdedge.deploy.triton import write_triton

        try:
            if triton is not None:
                self.written.append(
                    write_triton(self.artifact, triton, precision=precision, built=self.names)
                )
            if browser is not None:
                self.written.append(write_browser(self.artifact, browser, precision=precision))
        except KdedgeError as error:
            self.failed.append(error)


def export(
    source: Any = None,
    *,
    targets: Sequence[str] = (),
    fp16: bool = False,
    int8: bool = False,
    cpu: bool = False,
    **options: Unpack[ExportOptions],
) -> Artifact:
    """Exports a run for the device, or builds engines from an artifact's ONNX files.

    Every file is compared with the float32 model on real images.

    Args:
        source: a `Run`, its folder, `name/NN`, or a recipe's name for its newest finished student;
            or an artifact; None for the newest finished student.
        targets: besides the ONNX files, such as `["tensorrt"]`; `kdedge export --help` lists them.
        fp16: make FP16 files.
        int8: make INT8 files, and FP16 ones to compare them with.
        cpu: make and measure all files that run on a CPU. `predict` and `load` then take the
            fastest one that passed its gate, on machines like this; `cpu_choice` has the table.
        options: `classes` (names or a file), `output` (the artifact's folder), `overrides` (keys of
            the recipe), `root` (folder of all runs) and `device`.

    Returns:
        The artifact: a folder that runs without torch.

    Raises:
        GateError: a file misses the recipe's gates. The artifact is kept and marks the file.
        RecipeError: no such run or target, or the output folder exists.
        DataError: images cannot be read, or there are none to calibrate INT8 with.
        SetupError: a package, weights or a device is missing.
    """
    check_keywords(
        options,
        ExportOptions.__annotations__,
        remedy="Give keys of the recipe as overrides={'export.head': 'argmax'}.",
    )
    names = [targets] if isinstance(targets, str) else targets
    chosen = tuple(find_target(name) for name in names if name != "onnx")
    request = ExportRequest(run_argument(source), chosen, fp16=fp16, int8=int8, cpu=cpu)
    if request.is_artifact and options.keys() - {"root"}:
        raise RecipeError(
            f"{request.source} is an artifact, and {', '.join(sorted(options))} can only be given"
            " when a run is exported.\n  Name its run instead."
        )
    made = make_export(request, options)
    for error in made.errors[1:]:
        log.warning("%s", error)
    if made.errors:
        raise made.errors[0]
    return made.artifact


def make_export(request: ExportRequest, options: ExportOptions) -> Export:
    """Makes the files; `errors` has those that could not be made or missed their gates."""
    from kdedge.deploy.build import check_precisions

    for target in request.targets:  # fail before the slow work
        check_precisions(target, [] if request.lowest is None else [request.lowest])
    if not request.is_artifact:
        return _export_run(request, options)
    made = Export(load_artifact(Path(str(request.source))))
    for target in request.targets:
        made.add_target(target, request.precisions)
    if request.cpu:
        made.choose_for_cpu()
    return made


def precisions_of(target: Target, precisions: set[Precision]) -> list[Precision]:
    """The requested precisions that a target has, or its preferred one if it has none of them.

    A target with a base precision always has that, too.
    """
    base = set() if target.base_precision is None else {target.base_precision}
    return sorted((precisions | base) & set(target.precisions)) or [target.precisions[0]]


def _export_run(request: ExportRequest, options: ExportOptions) -> Export:
    """Folds a run, writes its artifact, and adds the targets that can be built on this machine."""
    from kdedge.benchmarking.cpu_files import onnx_precisions
    from kdedge.deploy.build import warn_where_unbuildable
    from kdedge.deploy.export import export_artifact
    from kdedge.runs.exports import record_export
    from kdedge.runs.model import load_run
    from kdedge.setup.classes import given_class_names
    from kdedge.setup.device import choose_device
    from kdedge.setup.method import check_has_class_vectors
    from kdedge.setup.workspace import Workspace

    run = find_run(request.source, Path(options.get("root", "runs")), prefer="student")
    classes = options.get("classes")
    trained = load_run(
        run,
        Workspace(run.root, choose_device(options.get("device"))),
        overrides=options.get("overrides"),
        names=None if classes is None else given_class_names(classes),
    )
    check_has_class_vectors(trained.setup.choice)
    recipe = trained.loaded.recipe
    needed = request.precisions | set(recipe.export.precisions)
    built_from = set(needed)
    if "int8" in needed:
        built_from.add("fp16")
    for target in request.targets:
        chosen = precisions_of(target, built_from)
        warn_where_unbuildable(target, chosen)
        if target.source == "ONNX file" and target.base_precision is None:
            needed.update(chosen)
    for_cpu = onnx_precisions(trained) if request.cpu else set()
    output = options.get("output")
    exported = export_artifact(
        trained,
        spec=recipe.export,
        gates=recipe.gates,
        precisions=needed | for_cpu,
        output=None if output is None else Path(output),
    )
    asked = {"fp32", *built_from, *needed}
    names = [file.name for file in exported.artifact.files if file.precision in asked]
    made = Export(exported.artifact, exported.gflops, names, [exported.artifact.path])
    for target in request.targets:
        made.add_target(target, built_from, run=exported.inputs)
    if request.cpu:
        made.choose_for_cpu(run=exported.inputs)
    record_export(run, made.artifact.path)
    return made

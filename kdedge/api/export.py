"""Exports a run to files for the device, or adds engines to an artifact."""

from __future__ import annotations

import contextlib
import logging
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from kdedge.api.arguments import need_training_packages
from kdedge.config.load import Overrides, merged
from kdedge.errors import Interrupted, KdedgeError, RecipeError, signum_of
from kdedge.files import check_writable, home_path
from kdedge.locks import lock_itself
from kdedge.messages import option
from kdedge.runs.find import RunOrArtifact, find_run, named_artifact
from kdedge.runs.folder import RunFolder, recorded_export, runs_folder
from kdedge.runtime.artifact import Artifact, Head, PixelType, Precision, load_artifact
from kdedge.runtime.cpu_choice import keep_choice
from kdedge.runtime.process import torch_as_before, warn_if_busy
from kdedge.targets.base import Target
from kdedge.targets.registry import check_precisions, check_utf_8, find_target, list_targets

if TYPE_CHECKING:
    from kdedge.artifacts.build import ExportInputs

log = logging.getLogger(__name__)


@dataclass
class _Export:
    """An export: what is asked for, and the files that it has made so far.

    Attributes:
        targets: targets whose files are built, besides the ONNX files.
        named: precisions that the caller names.
        cpu: whether to make and measure all files for CPUs.
        triton: folder for a model repository; None for none.
        browser: folder for a page; None for none.
        run: the exported run; None if files are added to an artifact that existed before.
        precisions: precisions of the targets' files: the named ones, or else the recipe's.
        inputs: what targets need of the run.
        artifact: the artifact in its current state.
        made: names of the files that this export made or compared; it is an error if one misses a
            gate.
        failed: errors of files that could not be made; the other files are kept.
    """

    targets: Sequence[Target]
    named: Sequence[Precision]
    cpu: bool
    triton: str | Path | None
    browser: str | Path | None
    run: RunFolder | None = None
    precisions: Set[Precision] = frozenset()
    inputs: ExportInputs | None = None
    artifact: Artifact = field(init=False)
    made: list[str] = field(default_factory=list)
    failed: list[KdedgeError] = field(default_factory=list)

    @property
    def required(self) -> set[Precision]:
        """Precisions of the ONNX files that the artifact of a run must have."""
        required = {"fp32", *self.precisions}
        for target in self.targets:
            if target.source == "ONNX file" and target.base_precision is None:
                required.update(precisions_of(target, self.precisions))
        return required

    def add_files(self, path: Path) -> Artifact:
        """Adds all files that are asked for to an artifact; one that fails does not stop the next.

        Raises:
            KdedgeError: a file missed its gates or could not be made. Other errors are logged.
            InUseError: another process is changing the artifact.
            Interrupted: a signal came; the files that were made are kept.
        """
        with lock_itself(path), recorded_export(path, is_new=self.run is not None):
            self.artifact = load_artifact(path)  # which no other process changes now
            try:
                self._add_files()
            except KeyboardInterrupt as interrupt:
                raise Interrupted(
                    f"interrupted. {path} is kept.\n"
                    "  Export it for its missing files; this lists their options:"
                    f" kdedge export {shlex.quote(str(path))} --help",
                    signum=signum_of(interrupt),
                ) from interrupt
        self._raise_errors()
        return self.artifact

    def _add_files(self) -> None:
        from kdedge.artifacts.browser import write_browser
        from kdedge.artifacts.triton import write_triton

        if self.run is not None:
            log.info(f"Wrote {self.artifact.path}")
        for target in self.targets:
            self._build(target)
        if self.cpu:
            self._choose_for_cpu()
        precision = self.named[0] if self.named else None
        write = partial(write_triton, precision=precision, built=self.made)
        self._write_folder(write, self.triton)
        self._write_folder(partial(write_browser, precision=precision), self.browser)

    def _build(self, target: Target) -> None:
        """Builds a target's files."""
        from kdedge.artifacts.build import build_files

        chosen = precisions_of(target, self.precisions)
        left_out = sorted(self.precisions - set(target.precisions))
        if left_out and self.precisions & set(chosen):
            log.info(f"{target.label} has no {' and no '.join(left_out)} files.")
        with self._keeping_errors():
            self.artifact, names = build_files(self.artifact, target, chosen, inputs=self.inputs)
            self.made += names

    def _choose_for_cpu(self) -> None:
        """Builds every file that runs on a CPU, and chooses the fastest on this one."""
        from kdedge.artifacts.build import add_cpu_files
        from kdedge.artifacts.model_card import renew_model_card
        from kdedge.benchmarking.cpu_files import fastest_on_cpu

        warn_if_busy()
        with self._keeping_errors():
            check_writable(self.artifact.path)
            self.artifact, missing = add_cpu_files(self.artifact, inputs=self.inputs)
            choice = fastest_on_cpu(self.artifact, not_tried=missing)
            self.artifact = renew_model_card(keep_choice(self.artifact, choice))

    def _write_folder(
        self, write: Callable[[Artifact, Path], Path], folder: str | Path | None
    ) -> None:
        """Writes a folder with one of the files; after an error it might get another file."""
        if folder is not None and not self.failed:
            with self._keeping_errors():
                log.info(f"Wrote {write(self.artifact, home_path(folder))}")

    @contextlib.contextmanager
    def _keeping_errors(self) -> Iterator[None]:
        """Context that keeps an error, and the files that were made before it."""
        before = self.artifact
        try:
            yield
        except KdedgeError as error:
            self.failed.append(error)
            self.artifact = load_artifact(before.path)
        if added := [file.name for file in self.artifact.files if file not in before.files]:
            log.info(f"Wrote {', '.join(added)} into {before.path}")

    def _raise_errors(self) -> None:
        """Raises the error of a file that missed its gates or was not made; logs the others."""
        from kdedge.artifacts.parity import gate_error

        files = self.artifact.files
        gates = self.artifact.gates
        passed = [file.name for file in files if file.gate == "passed"]
        missed = [
            gate_error(file, file.parity, gates, passed)
            for file in files
            if file.name in self.made and file.parity is not None
        ]
        errors = [*filter(None, missed), *self.failed]
        for error in errors[1:]:
            log.warning("%s", error)
        if errors:
            errors[0].result = self.artifact
            raise errors[0]


def export(
    run: RunOrArtifact | None = None,
    *,
    targets: Sequence[str] = (),
    fp16: bool = False,
    int8: bool = False,
    cpu: bool = False,
    triton: str | Path | None = None,
    browser: str | Path | None = None,
    classes: str | Path | Sequence[str] | None = None,
    head: Head | None = None,
    pixels: PixelType | None = None,
    open_classes: bool | None = None,
    calibrate: bool | None = None,
    none_of_these: str | None = None,
    int8_minutes: float | None = None,
    output: str | Path | None = None,
    overrides: Overrides | None = None,
    root: str | Path | None = None,
    device: str | None = None,
) -> Artifact:
    """Exports a run for the device, or builds engines from an artifact's ONNX files.

    Every file is compared with the float32 model on real images.

    Args:
        run: a `Run`, its folder, `name/NN`, or a recipe's name for its newest finished student;
            or an artifact; None for the newest finished student.
        targets: besides the ONNX files, such as `["tensorrt"]`; `kdedge export --help` lists them.
        fp16: make FP16 files.
        int8: make INT8 files, and FP16 ones to compare them with. `fp16` and `int8` replace the
            recipe's `export.precisions`.
        cpu: make and measure all files that run on a CPU. `predict` and `load` then take the
            fastest one that passed its gate, on machines like this; `cpu_choice` has the table.
        triton: a new folder for a model repository of Triton.
        browser: a new folder for a page that classifies images in a browser.
        classes: class names to export instead of the run's, or a file with one name per line. They
            may be fewer or in another order; new ones need the teacher's run.
        head: `scores` for logits; `argmax` for their ranking alone. None: as the recipe says.
        pixels: the graph's input: `float` from 0 to 1, or `uint8`. None: as the recipe says.
        open_classes: keep the class vectors in a file that `change_classes` changes. None: as the
            recipe says.
        calibrate: fit a temperature, so that a score is the share of correct predictions. None: as
            the recipe says.
        none_of_these: predict "none" for images unlike the known ones, of which this share, such as
            `"95%"`, still gets a class. None: as the recipe says.
        int8_minutes: time for the search of INT8's ranges and layers. None: as the recipe says.
        output: the artifact's folder; `artifacts/NN` in the run if left out.
        overrides: keys of the recipe with other values, such as `{"export.max_batch": 16}`.
        root: folder of all runs; None for `$KDEDGE_RUNS`, or `runs` if it is not set.
        device: `cpu`, `cuda` or `cuda:N`; None for `cuda` if available, else `cpu`.

    Returns:
        The artifact: a folder that runs without torch.

    Raises:
        GateError: a file misses the recipe's gates. The artifact is kept and marks the file.
            Whatever the error, its `result` is the artifact, if there is one.
        RecipeError: no such run or target, the output folder exists, or an artifact that exists is
            given options of a run's export.
        DataError: images cannot be read, there are none to calibrate INT8 with, or the artifact's
            path is not UTF-8.
        SetupError: a package, weights or a device is missing.
        InUseError: another process is changing the artifact, or makes the output folder.

    Examples:
        >>> artifact = kdedge.export("line3", fp16=True, head="argmax")
        >>> print([(file.name, file.gate) for file in artifact.files])
    """
    root = runs_folder(root, run)
    existing = named_artifact(run, root)
    for folder in (output, existing):
        check_utf_8(Path(folder or ""))
    requested = _find_targets(targets)
    precisions: list[Precision] = []
    if int8:
        precisions.append("int8")
    if fp16:
        precisions.append("fp16")
    work = _Export(
        [target for target in requested if target.name != "onnx"], precisions, cpu, triton, browser
    )
    for target in work.targets:  # fail before the slow work
        check_precisions(target, precisions)
    recipe_keys = {
        "head": head,
        "pixels": pixels,
        "open_classes": open_classes,
        "calibrate": calibrate,
        "none_of_these": none_of_these,
        "int8_minutes": int8_minutes,
    }
    with torch_as_before():
        if existing is None:
            given = {key: value for key, value in recipe_keys.items() if value is not None}
            keys = {f"export.{key}": value for key, value in given.items()}
            keys = merged(overrides or {}, keys)
            return _export_run(work, find_run(run, root), keys, classes, output, device)
        run_options = {"classes": classes, "output": output, "device": device, **recipe_keys}
        wrong = [_option(key, value) for key, value in run_options.items() if value is not None]
        wrong += overrides or ()
        wrong += [target.label for target in requested if target.name == "onnx"]
        return _extend_artifact(work, existing, wrong)


def _find_targets(names: str | Sequence[str]) -> list[Target]:
    """The targets of these names; the words of their flags, such as `trt`, are names as well."""
    by_flag = {target.flag.removeprefix("--"): target.name for target in list_targets()}
    given = [names] if isinstance(names, str) else names
    return [find_target(by_flag.get(name, name)) for name in given]


def _option(key: str, value: object) -> str:
    """The option of `export` that gave a value, for a message."""
    flag = key.replace("_", "-")
    return option(f"--no-{flag}" if value is False else f"--{flag}", key)


def _export_run(
    work: _Export,
    run: RunFolder,
    overrides: Overrides,
    classes: str | Path | Sequence[str] | None,
    output: str | Path | None,
    device: str | None,
) -> Artifact:
    """Writes a run's artifact, and adds the files that are asked for.

    Args:
        work: what is asked for.
        run: the run.
        overrides: all keys of the recipe that are given.
        classes: as in `export`, like the next two.
        output: the artifact's folder.
        device: where the model runs.
    """
    if work.browser is not None and all(t.name != "onnx-image" for t in work.targets):
        flag = option("--with-preprocess", 'targets=["onnx-image"]')
        raise RecipeError(f"A page needs a file with preprocessing.\n  Add {flag}.")
    need_training_packages("Folding a run")
    from kdedge.artifacts.build import warn_where_unbuildable
    from kdedge.deploy.export import export_artifact
    from kdedge.runs.model import load_run, run_workspace
    from kdedge.setup.classes import given_class_names
    from kdedge.setup.method import check_has_class_vectors

    workspace = run_workspace(run, device)
    names = None if classes is None else given_class_names(classes)
    trained = load_run(run, workspace, overrides=overrides, names=names)
    check_has_class_vectors(trained.setup, "be exported")
    work.run = run
    work.precisions = _with_fp16(work.named or trained.recipe.export.precisions)
    for target in work.targets:
        warn_where_unbuildable(target, precisions_of(target, work.precisions))
    artifact, work.inputs = export_artifact(
        trained,
        required=work.required,
        optional={"fp16", "int8"} if work.cpu else set(),
        output=None if output is None else home_path(output),
    )
    work.made += [file.name for file in artifact.files if file.precision in work.required]
    return work.add_files(artifact.path)


def _extend_artifact(work: _Export, path: Path, wrong: Sequence[str]) -> Artifact:
    """Adds the files that are asked for to an artifact that exists.

    Args:
        work: what is asked for.
        path: the artifact's folder.
        wrong: given options that need its run.
    """
    if wrong:
        raise RecipeError(
            f"{path} is an artifact, and {', '.join(wrong)} can only be given when a run is"
            " exported.\n  Name its run instead."
        )
    if not (work.targets or work.cpu or work.triton or work.browser):
        from_onnx = [target for target in list_targets() if target.source == "ONNX file"]
        options = [option(target.flag, f'targets=["{target.name}"]') for target in from_onnx]
        raise RecipeError(
            f"{path} is an artifact. Name what to build from it: {', '.join(options)},"
            f" {option('--cpu', 'cpu=True')}, {option('--triton DIR')} or"
            f" {option('--browser DIR')}."
        )
    if work.named and not (work.targets or work.triton or work.browser):
        given = " and ".join(option(f"--{precision}") for precision in work.named)
        raise RecipeError(
            f"{path} is an artifact, from which {option('--cpu')} makes the files of every"
            f" precision: {given} would change nothing.\n"
            f"  Leave {given} out, or name the artifact's run instead."
        )
    work.precisions = _with_fp16(work.named)
    return work.add_files(path)


def _with_fp16(precisions: Iterable[Precision]) -> set[Precision]:
    """The precisions, and FP16 if INT8 is among them, as users compare the two."""
    requested = set(precisions)
    return {"fp16", *requested} if "int8" in requested else requested


def precisions_of(target: Target, precisions: Set[Precision]) -> list[Precision]:
    """The requested precisions that a target has, or its preferred one if it has none of them.

    A target with a base precision always has that, too.
    """
    base = set() if target.base_precision is None else {target.base_precision}
    return sorted((precisions | base) & set(target.precisions)) or [target.precisions[0]]

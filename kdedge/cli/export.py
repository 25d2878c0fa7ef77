"""Fold, write ONNX files and engines for the device, and compare each with the model."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdedge.cli._options import (
    device_option,
    need_training_packages,
    options_as,
    runs_option,
    threads_option,
)
from kdedge.cli._output import json_option, next_line, percent, print_result, set_option, table
from kdedge.errors import KdedgeError
from kdedge.targets.protocol import Target
from kdedge.targets.registry import find_target, list_targets

if TYPE_CHECKING:  # --help loads neither pydantic nor NumPy
    from kdedge.runtime.artifact import Artifact, ModelFile, Precision

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _RunOptions:
    """Options that shape what a run's export writes; an artifact's ONNX files stay as they are."""

    classes: Path | None
    head: str | None
    pixels: str | None
    output: Path | None
    overrides: tuple[str, ...]
    device: str | None


@dataclass(frozen=True)
class _Wanted:
    """What is asked for beside float32 ONNX files.

    Attributes:
        targets: those whose flags are set.
        fp16: `--fp16`.
        int8: `--int8`.
    """

    targets: tuple[Target, ...]
    fp16: bool
    int8: bool

    @property
    def asked(self) -> set[Precision]:
        """INT8 files have FP16 ones beside them to compare with."""
        return {"int8", "fp16"} if self.int8 else {"fp16"} if self.fp16 else set()

    @property
    def flagged(self) -> list[Precision]:
        """The lowest precision whose flag is set; none without a flag."""
        return ["int8"] if self.int8 else ["fp16"] if self.fp16 else []


@dataclass(frozen=True)
class _Servers:
    """Folders for inference servers."""

    triton: Path | None
    deepstream: Path | None


def _target_flags(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds a flag for each target; the command gets the chosen ones as `targets`."""
    taken = {name for option in getattr(function, "__click_params__", []) for name in option.opts}
    targets = [target for target in list_targets() if target.flag not in taken]
    names = {f"target_{number}": target for number, target in enumerate(targets)}

    @functools.wraps(function)
    def command(*arguments: Any, **values: Any) -> Any:
        chosen = tuple(target for name, target in names.items() if values.pop(name))
        return function(*arguments, targets=chosen, **values)

    for name, target in reversed(names.items()):
        command = click.option(target.flag, name, is_flag=True, help=target.help)(command)
    return command


@click.command("export")
@click.argument("source", metavar="[RUN|ARTIFACT]", required=False)
@_target_flags
@click.option("--fp16", is_flag=True, help="FP16 files; engines are FP16 where nothing is said.")
@click.option("--int8", is_flag=True, help="INT8 files, and FP16 ones beside them to compare with.")
@click.option(
    "--classes",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Class names, one a line, in place of the run's: fewer, in another order, or new ones"
    " where the teacher's run is at hand. Nothing is trained.",
)
@click.option(
    "--head",
    type=click.Choice(["scores", "argmax"]),
    help="scores: as the model. argmax: a little less work, and only the ranking means something.",
)
@click.option(
    "--pixels",
    type=click.Choice(["float", "uint8"]),
    help="What the graph takes: float32 from 0 to 1, or bytes.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="The artifact's folder. [default: artifacts/NN in the run]",
)
@click.option(
    "--reseal",
    is_flag=True,
    help="Accept the artifact.json of ARTIFACT as it was changed by hand; the record keeps that.",
)
@click.option("--triton", type=click.Path(path_type=Path), help="Write a Triton model repository.")
@click.option("--deepstream", type=click.Path(path_type=Path), help="Write a DeepStream config.")
@set_option
@runs_option
@device_option
@threads_option
@json_option
@options_as(_RunOptions, "for_run")
@options_as(_Servers, "servers")
@options_as(_Wanted, "wanted")
def command(
    source: str | None,
    wanted: _Wanted,
    servers: _Servers,
    for_run: _RunOptions,
    root: Path,
    reseal: bool,
    as_json: bool,
) -> None:
    """Export RUN for the device, or build engines from an ARTIFACT that was exported already.

    RUN is a run folder, name/NN, or a recipe's name for its newest finished student; left out, it
    is the newest finished student, or any run where no student is finished. The result is one
    folder that runs without torch. Each file in it is compared with the float32 model on real
    images, and one that misses the recipe's gates is marked and ends in exit code 6. Where a
    target's files cannot be built here, nothing is written.

    On the device, `kdedge export ARTIFACT --trt` builds engines from the ONNX files of the folder;
    it needs no torch.
    """
    from kdedge.deploy.build import check_precisions
    from kdedge.runtime.artifact import FILE_NAME, load_artifact

    targets = [target for target in wanted.targets if target.name != "onnx"]
    for target in targets:  # known before anything slow is done
        check_precisions(find_target(target.name), wanted.flagged)
    made = _Made()
    is_artifact = source is not None and (Path(source) / FILE_NAME).is_file()
    if reseal:
        given = [*vars(for_run).values(), *vars(wanted).values(), *vars(servers).values()]
        if source is None or not is_artifact or any(given):
            raise click.UsageError("--reseal goes with an artifact's folder and nothing else.")
        _reseal(Path(source), as_json=as_json)
        return
    if source is not None and is_artifact:
        _refuse_run_options(source, wanted, for_run)
        made.artifact = load_artifact(Path(source))
        if not (targets or servers.triton or servers.deepstream):
            raise click.UsageError(
                f"{source} is exported already. Name what to build from it:"
                f" {', '.join(_flags_for_artifacts())}, --triton DIR or --deepstream DIR."
            )
        for target in targets:
            made.add_target(target, wanted.asked)
    else:
        made.from_run(source, root, wanted, for_run)
    if not made.failed:  # a server would get another file than the one that is missing
        made.add_servers(servers, next(iter(wanted.flagged), None))
    record = {
        "artifact": str(made.artifact.path),
        "gflops": made.gflops,
        "files": [file.to_dict() for file in made.artifact.files],
    }
    print_result(record, as_json=as_json, text=_as_text(made))
    errors = [*_gate_errors(made), *made.failed]
    for other in errors[1:]:
        log.warning("%s", other)
    if errors:
        raise errors[0]


class _Made:
    """What the command has made so far.

    Attributes:
        artifact: as it is by now.
        gflops: of the folded model and what it came from; empty where the artifact was there.
        names: files of the artifact that were made or looked at, by which it is judged.
        written: folders and files to tell of.
        failed: what could not be made; the rest stays, and is shown.
    """

    artifact: Artifact

    def __init__(self) -> None:
        self.gflops: dict[str, float] = {}
        self.names: list[str] = []
        self.written: list[Path] = []
        self.failed: list[KdedgeError] = []

    def from_run(
        self, source: str | None, root: Path, wanted: _Wanted, for_run: _RunOptions
    ) -> None:
        """Exports a run, with the files of all targets that are asked for."""
        exported = _export_run(source, root, wanted, for_run)
        self.artifact, self.gflops = exported.artifact, exported.gflops
        self.names = [file.name for file in self.artifact.files]
        self.written = [self.artifact.path]

    def add_target(self, target: Target, precisions: set[Precision]) -> None:
        """Builds one target's files into the artifact."""
        from kdedge.deploy.build import build_files
        from kdedge.runtime.artifact import load_artifact

        before = self.artifact
        chosen = _precisions_of(target, precisions)
        try:
            self.artifact, names = build_files(before, target.name, chosen)
        except KdedgeError as error:
            self.failed.append(error)
            # With the files that were built before the one that failed
            self.artifact = load_artifact(before.path)
        else:
            self.names += names
        if self.artifact != before and before.path not in self.written:
            self.written.append(before.path)

    def add_servers(self, servers: _Servers, precision: Precision | None) -> None:
        """Writes what was asked for of Triton and DeepStream."""
        from kdedge.deploy.deepstream import write_deepstream
        from kdedge.deploy.triton import write_triton

        try:
            if servers.triton is not None:
                self.written.append(
                    write_triton(
                        self.artifact, servers.triton, precision=precision, built=self.names
                    )
                )
            if servers.deepstream is not None:
                if precision == "int8":
                    log.warning("DeepStream gets no INT8 file: it takes none with ranges inside.")
                self.written.append(write_deepstream(self.artifact, servers.deepstream))
        except KdedgeError as error:
            self.failed.append(error)


def _precisions_of(target: Target, precisions: set[Precision]) -> list[Precision]:
    """The precisions that a target makes of those asked for, or its preferred one without any."""
    chosen = sorted(precisions & set(target.precisions))
    left_out = sorted(precisions - set(target.precisions))
    if chosen and left_out:
        log.info("%s has no %s files.", target.label, " and no ".join(left_out))
    return chosen or [target.precisions[0]]


def _export_run(source: str | None, root: Path, wanted: _Wanted, for_run: _RunOptions) -> Any:
    """Folds a run and writes its artifact."""
    from kdedge.runs.find import find_run

    need_training_packages("Folding a run")
    from kdedge.deploy.export import export_artifact
    from kdedge.runs.model import load_run
    from kdedge.setup.classes import read_class_names
    from kdedge.setup.device import choose_device
    from kdedge.setup.method import check_has_class_vectors
    from kdedge.setup.workspace import Workspace

    given = {"head": for_run.head, "pixels": for_run.pixels}
    flags = tuple(f"export.{key}={value}" for key, value in given.items() if value is not None)
    run = find_run(source, root, prefer="student")
    trained = load_run(
        run,
        Workspace(run.root, choose_device(for_run.device)),
        overrides=(*for_run.overrides, *flags),
        names=None if for_run.classes is None else read_class_names(for_run.classes),
    )
    check_has_class_vectors(trained.setup.choice)
    recipe = trained.loaded.recipe
    precisions = wanted.asked | set(recipe.export.precisions)
    built_from = set(precisions)
    if "int8" in precisions:
        built_from.add("fp16")
    others = [target for target in wanted.targets if target.name != "onnx"]
    targets = {target.name: _precisions_of(target, built_from) for target in others}
    needed = set(precisions)
    for target in others:
        if target.source == "ONNX file":
            needed.update(targets[target.name])
    return export_artifact(
        trained,
        spec=recipe.export,
        gates=recipe.gates,
        precisions=needed,
        targets=targets,
        output=for_run.output,
    )


def _reseal(path: Path, *, as_json: bool) -> None:
    """Accepts a record that was changed by hand, and says so."""
    from kdedge.runtime.artifact import reseal

    artifact, problem = reseal(path)
    text = f"{artifact.path} is as it was sealed: there is nothing to accept."
    if problem is not None:
        text = f"Resealed {artifact.path}: {problem}. `kdedge show` and artifact.json keep that."
    record = {"artifact": str(artifact.path), "resealed": problem is not None}
    print_result(record, as_json=as_json, text=text)


def _flags_for_artifacts() -> list[str]:
    """Flags of what is built from ONNX files, and so from an artifact."""
    return [target.flag for target in list_targets() if target.source == "ONNX file"]


def _refuse_run_options(source: str, wanted: _Wanted, for_run: _RunOptions) -> None:
    """Raises where an option shapes ONNX files, which an artifact has already."""
    named = {"--onnx": any(target.name == "onnx" for target in wanted.targets)}
    named |= {f"--{name}": bool(value) for name, value in vars(for_run).items()}
    for option, is_given in named.items():
        if is_given:
            option = "--set" if option == "--overrides" else option
            raise click.UsageError(
                f"{option} does not go with an artifact, and {source} is one. Name its run."
            )


def _gate_errors(made: _Made) -> list[KdedgeError]:
    """An error for each file that was made and missed its gates."""
    from kdedge.deploy.parity import gate_error, misses

    errors: list[KdedgeError] = []
    for file in made.artifact.files:
        if file.name in made.names and file.gate == "missed":
            assert file.parity is not None  # measured, or it would not have been missed
            missed = misses(file.parity, file.precision, made.artifact.gates)
            errors.append(gate_error(file.name, file.precision, file.parity, missed))
    return errors


def _as_text(made: _Made) -> str:
    artifact, gflops = made.artifact, made.gflops
    lines = []
    if gflops:
        lines.append(
            f"GFLOPs an image: {gflops['unfused']:.4g} as trained, {gflops['folded']:.4g} folded;"
            f" CLIP's bare image encoder {gflops['clip_image_encoder']:.4g}\n"
        )
    header = ("file", "precision", "MB", "agreement", "distance", "accuracy", "drop", "gate")
    rows = [_row(file) for file in artifact.files]
    lines.append(table(rows, header=header, align="llrrrrrl"))
    sets = dict.fromkeys(file.parity.images for file in artifact.files if file.parity is not None)
    if sets:
        labeled = [file.parity for file in artifact.files if file.parity and file.parity.n_labeled]
        own = f" (the model's: {percent(labeled[0].reference_accuracy_percent)})" if labeled else ""
        lines.append(
            f"\nAgainst the float32 model on {'; engines on '.join(sets)}: top-1 agreement in"
            f" percent, mean softmax distance (0-1), accuracy in percent{own}, points lost."
        )
    lines += [f"Wrote {path}" for path in made.written]
    lines.append(next_line("predict", artifact.path, "IMAGE"))
    return "\n".join(lines)


def _row(file: ModelFile) -> list[str]:
    parity = file.parity
    size = f"{file.n_bytes / 1e6:.1f}"
    if parity is None:
        return [file.name, file.precision, size, "-", "-", "-", "-", file.gate]
    distance = parity.mean_softmax_distance
    return [
        file.name,
        file.precision,
        size,
        percent(parity.agreement_percent),
        "-" if distance is None else f"{distance:.4f}",
        percent(parity.accuracy_percent),
        percent(parity.accuracy_drop),
        file.gate,
    ]

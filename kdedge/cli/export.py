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
    options_as,
    runs_option,
    threads_option,
)
from kdedge.cli._output import json_option, next_line, percent, print_result, set_option, table
from kdedge.setup.packages import need_training_packages
from kdedge.targets.protocol import Target
from kdedge.targets.registry import list_targets

if TYPE_CHECKING:  # --help loads neither pydantic nor NumPy
    from kdedge.api.export import Export, ExportOptions
    from kdedge.runtime.artifact import ModelFile

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

    def as_options(self, root: Path) -> ExportOptions:
        """The options of the call; head and pixels are keys of the recipe."""
        given = {"head": self.head, "pixels": self.pixels}
        flags = [f"export.{key}={value}" for key, value in given.items() if value is not None]
        options: ExportOptions = {
            "output": self.output,
            "overrides": [*self.overrides, *flags],
            "root": root,
            "device": self.device,
        }
        if self.classes is not None:
            options["classes"] = self.classes
        return options


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
    images, and one that misses the recipe's gates is marked and ends in exit code 6. What cannot be
    built here ends in exit code 4; the rest is written.

    On the device, `kdedge export ARTIFACT --trt` builds engines from the ONNX files of the folder;
    it needs no torch.
    """
    from kdedge.api.export import ExportRequest, make_export

    targets = tuple(target for target in wanted.targets if target.name != "onnx")
    request = ExportRequest(source, targets, fp16=wanted.fp16, int8=wanted.int8)
    if reseal:
        given = [*vars(for_run).values(), *vars(wanted).values(), *vars(servers).values()]
        if source is None or not request.is_artifact or any(given):
            raise click.UsageError("--reseal goes with an artifact's folder and nothing else.")
        _reseal(Path(source), as_json=as_json)
        return
    if request.is_artifact:
        _refuse_run_options(str(source), wanted, for_run)
        if not (targets or servers.triton or servers.deepstream):
            raise click.UsageError(
                f"{source} is exported already. Name what to build from it:"
                f" {', '.join(_flags_for_artifacts())}, --triton DIR or --deepstream DIR."
            )
    else:
        need_training_packages("Folding a run")
    made = make_export(request, for_run.as_options(root))
    if not made.failed:  # a server would get another file than the one that is missing
        made.add_servers(servers.triton, servers.deepstream, next(iter(request.lowest), None))
    record = {
        "artifact": str(made.artifact.path),
        "gflops": made.gflops,
        "files": [file.to_dict() for file in made.artifact.files],
    }
    print_result(record, as_json=as_json, text=_as_text(made))
    errors = made.errors
    for other in errors[1:]:
        log.warning("%s", other)
    if errors:
        raise errors[0]


def _reseal(path: Path, *, as_json: bool) -> None:
    """Accepts a record that was changed by hand, and says so."""
    from kdedge.api.artifact import make_reseal

    done = make_reseal(path)
    artifact = done.artifact
    text = f"{artifact.path} is as it was sealed: there is nothing to accept."
    if done.problem is not None:
        text = (
            f"Resealed {artifact.path}: {done.problem}. `kdedge show` and artifact.json keep that."
        )
    if not done.has_card:
        log.warning(
            "%s was changed by hand, or is not the export's, and stays as it is.\n"
            "  Make sure that its class names and settings are those of artifact.json.",
            artifact.path / "README.md",
        )
    record = {"artifact": str(artifact.path), "resealed": done.problem is not None}
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


def _as_text(made: Export) -> str:
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

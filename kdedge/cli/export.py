"""Export ONNX files and engines for the device, and compare each with the model."""

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
from kdedge.cli._output import json_option, next_line, percent, print_result, table
from kdedge.cli._overrides import set_option
from kdedge.setup.packages import need_training_packages
from kdedge.targets.protocol import Target
from kdedge.targets.registry import list_targets

if TYPE_CHECKING:  # --help loads neither pydantic nor NumPy
    from kdedge.api.export import Export, ExportOptions
    from kdedge.runtime.artifact import Artifact, ModelFile

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _RunOptions:
    """Options of a run's export; an artifact that exists takes none of them."""

    classes: Path | None
    head: str | None
    pixels: str | None
    open_classes: bool
    calibrate: bool
    none_of_these: str | None
    int8_minutes: float | None
    output: Path | None
    overrides: dict[str, Any]
    device: str | None

    def as_options(self, root: Path) -> ExportOptions:
        """The options of the call; head, pixels and minutes are keys of the recipe."""
        keys = ("head", "pixels", "int8_minutes", "none_of_these")
        given = {key: getattr(self, key) for key in keys}
        flags = {f"export.{key}": value for key, value in given.items() if value is not None}
        flags |= {"export.open_classes": True} if self.open_classes else {}
        flags |= {"export.calibrate": True} if self.calibrate else {}
        options: ExportOptions = {
            "output": self.output,
            "overrides": {**self.overrides, **flags},
            "root": root,
            "device": self.device,
        }
        if self.classes is not None:
            options["classes"] = self.classes
        return options


@dataclass(frozen=True)
class _Wanted:
    """Requested files besides the float32 ONNX file.

    Attributes:
        targets: targets whose flags are set.
        fp16: `--fp16`.
        int8: `--int8`.
        cpu: `--cpu`.
    """

    targets: tuple[Target, ...]
    fp16: bool
    int8: bool
    cpu: bool


@dataclass(frozen=True)
class _Servers:
    """Folders for inference servers and browsers."""

    triton: Path | None
    browser: Path | None


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
@click.option("--fp16", is_flag=True, help="Write FP16 files. Engines are FP16 by default.")
@click.option("--int8", is_flag=True, help="Write INT8 files, and FP16 ones to compare them with.")
@click.option(
    "--cpu",
    is_flag=True,
    help="Make and measure every file that runs on a CPU. `kdedge predict` then takes the fastest"
    " one that passes its gate, on machines like this.",
)
@click.option(
    "--classes",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="File of class names, one per line, to export instead of the run's: fewer, in another"
    " order, or new ones, which need the teacher's run. Nothing is trained.",
)
@click.option(
    "--head",
    type=click.Choice(["scores", "argmax"]),
    help="scores: the model's logits. argmax: a little less work, but only the ranking is valid.",
)
@click.option(
    "--pixels",
    type=click.Choice(["float", "uint8"]),
    help="Input of the graph: float32 pixels from 0 to 1, or uint8 pixels.",
)
@click.option(
    "--open-classes",
    is_flag=True,
    help="Keep the class vectors in a file beside the graph, for `kdedge classes`.",
)
@click.option(
    "--calibrate",
    is_flag=True,
    help="Fit a temperature, so that a score is as high as answers of that score are right.",
)
@click.option(
    "--none-of-these",
    metavar="SHARE",
    help='Answer "none" for images that look like none of the classes, and keep this share of the'
    " known images, such as 95%.",
)
@click.option(
    "--int8-minutes",
    type=click.FloatRange(0, 1440),
    metavar="MINUTES",
    help="Time for the search of INT8's ranges and layers; the best so far is kept. [default: the"
    " recipe's, 10]",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="The artifact's folder. [default: artifacts/NN in the run]",
)
@click.option(
    "--triton",
    type=click.Path(path_type=Path),
    help="Write a model repository for Triton into this new folder.",
)
@click.option(
    "--browser",
    type=click.Path(path_type=Path),
    help="Write a page that classifies pictures and the camera in a browser into this new folder;"
    " needs the file of --with-preprocess.",
)
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
    as_json: bool,
) -> None:
    """Export RUN for the device, or build engines from an ARTIFACT that was exported already.

    RUN is a run folder, name/NN, or a recipe's name for its newest finished student. The default is
    the newest finished student, or any finished run if there is no student. The result is one
    folder that runs without torch. Each file in it is compared with the float32 model on real
    images. A file that misses the recipe's gates is marked, and the exit code is 6. If a target
    cannot be built on this machine, the other files are written, and the exit code is 4.

    On the device, `kdedge export ARTIFACT --trt` builds engines from the ONNX files of the folder,
    without torch.
    """
    from kdedge.api.export import ExportRequest, make_export

    targets = tuple(target for target in wanted.targets if target.name != "onnx")
    request = ExportRequest(source, targets, fp16=wanted.fp16, int8=wanted.int8, cpu=wanted.cpu)
    if request.is_artifact:
        _refuse_run_options(str(source), wanted, for_run)
        if not (targets or wanted.cpu or any(vars(servers).values())):
            raise click.UsageError(
                f"{source} is an artifact. Name what to build from it:"
                f" {', '.join(_flags_for_artifacts())}, --cpu, --triton DIR or --browser DIR."
            )
    else:
        need_training_packages("Folding a run")
    made = make_export(request, for_run.as_options(root))
    if not made.failed:  # else a server would get another file than the one that failed
        made.add_servers(servers.triton, servers.browser, request.lowest)
    record = {
        "artifact": str(made.artifact.path),
        "gflops": made.gflops,
        "files": [file.to_dict() for file in made.artifact.files],
        "cpu_choice": None if made.choice is None else made.choice.to_dict(),
    }
    print_result(record, as_json=as_json, text=_as_text(made))
    errors = made.errors
    for other in errors[1:]:
        log.warning("%s", other)
    if errors:
        raise errors[0]


def _flags_for_artifacts() -> list[str]:
    """Flags of targets that are built from ONNX files, and so from an artifact."""
    return [target.flag for target in list_targets() if target.source == "ONNX file"]


def _refuse_run_options(source: str, wanted: _Wanted, for_run: _RunOptions) -> None:
    """Raises if an option applies only to a run's export."""
    named = {"--onnx": any(target.name == "onnx" for target in wanted.targets)}
    for name, value in vars(for_run).items():
        is_given = value is not None and value is not False and value != {}
        named[f"--{name.replace('_', '-')}"] = is_given
    for option, is_given in named.items():
        if is_given:
            option = "--set" if option == "--overrides" else option
            raise click.UsageError(
                f"{source} is an artifact, and {option} works only with a run. Name its run"
                " instead."
            )


def _as_text(made: Export) -> str:
    artifact, gflops = made.artifact, made.gflops
    lines = []
    if gflops:
        lines.append(
            f"GFLOPs per image: {gflops['unfused']:.4g} as trained, {gflops['folded']:.4g} folded;"
            f" the image encoder alone {gflops['clip_image_encoder']:.4g}\n"
        )
    header = ("file", "precision", "MB", "agreement", "distance", "accuracy", "drop", "gate")
    rows = [_row(file) for file in artifact.files]
    lines.append(table(rows, header=header, align="llrrrrrl"))
    sets = dict.fromkeys(file.parity.images for file in artifact.files if file.parity is not None)
    if sets:
        labeled = [file.parity for file in artifact.files if file.parity and file.parity.n_labeled]
        own = f" (the model's: {percent(labeled[0].reference_accuracy_percent)})" if labeled else ""
        lines.append(
            f"\nCompared with the float32 model on {'; later files on '.join(sets)}: top-1"
            f" agreement in percent, mean softmax distance (0-1), accuracy in percent{own},"
            " accuracy drop in points."
        )
    lines += _fitted_lines(artifact)
    if made.choice is not None:
        lines.append(f"\nFastest on this CPU:\n{made.choice}\n")
    lines += [f"Wrote {path}" for path in made.written]
    lines.append(next_line("predict", artifact.path, "IMAGE"))
    return "\n".join(lines)


def _fitted_lines(artifact: Artifact) -> list[str]:
    """What was fitted to images besides the graph: the temperature, and "none of these"."""
    lines = []
    fitted, none = artifact.temperature, artifact.none_of_these
    if fitted is not None:
        errors = [
            f"{file.name} {percent(file.parity.ece_percent_before)} before,"
            f" {percent(file.parity.ece_percent)} after"
            for file in artifact.files
            if file.parity is not None and file.parity.ece_percent is not None
        ]
        measured = f"\nCalibration error in percent: {'; '.join(errors)}." if errors else ""
        lines.append(
            f"Calibrated by the temperature {fitted.value:.4g}, fitted to the"
            f" {'labels' if fitted.fitted_to == 'labels' else 'teacher'} of {fitted.images}."
            f"{measured}"
        )
    if none is not None:
        lines.append(
            f'Answers "none" below the score that {none.share_percent:g} % of {none.images} reach.'
        )
    return lines


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

"""Export ONNX files and engines for the device, and compare each with the model."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdedge.cli.options import path_option, run_options, set_option
from kdedge.cli.output import (
    Brief,
    help_all_option,
    next_line,
    print_result,
    show_result,
    table,
    table_text,
)
from kdedge.errors import Interrupted, signum_of
from kdedge.records.tables import decimals, digits, images_text
from kdedge.targets.base import Target
from kdedge.targets.registry import list_targets

if TYPE_CHECKING:  # --help loads neither pydantic nor NumPy
    from kdedge.runtime.artifact import Artifact
    from kdedge.runtime.cpu_choice import CpuChoice

_BRIEF = ("--int8", "--fp16", "--trt", "--cpu", "--set")  # options in the short help
# With fewer images, a file that agrees on all of them may differ on more than 4 % of others
_MIN_GATE_IMAGES = 100


def _target_flags(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds a flag for each target."""
    for target in reversed(list_targets()):
        flag = click.option(target.flag, _parameter(target), is_flag=True, help=target.help)
        function = flag(function)
    return function


def _parameter(target: Target) -> str:
    return f"to_{target.name.replace('-', '_')}"


@click.command("export", cls=Brief, first=_BRIEF)
@click.argument("run", metavar="[RUN|ARTIFACT]", required=False)
@_target_flags
@click.option("--fp16", is_flag=True, help="Write FP16 files. Engines are FP16 by default.")
@click.option("--int8", is_flag=True, help="Write INT8 files, and FP16 ones to compare them with.")
@click.option(
    "--cpu",
    is_flag=True,
    help="Make and measure every file that runs on a CPU, OpenVINO's too where it is installed."
    " `kdedge predict` then takes the fastest one that passes its gate, on machines like this.",
)
@click.option(
    "--classes",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="File of class names, one per line, to export instead of the run's: fewer, in another"
    " order, or new ones, which need class vectors and the teacher's run. Nothing is trained.",
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
    "--open-classes/--no-open-classes",
    default=None,
    help="Keep the class vectors in a file next to the graph, for `kdedge classes`.",
)
@click.option(
    "--calibrate/--no-calibrate",
    default=None,
    help="Fit a temperature, so that of predictions with a score of 80 % about 80 % are right.",
)
@click.option(
    "--none-of-these",
    metavar="SHARE",
    help='Predict "none" for images unlike the known ones, of which this share, such as 95%, still'
    " gets a class.",
)
@click.option(
    "--int8-minutes",
    type=click.FloatRange(0, 1440),
    metavar="MINUTES",
    help="Time for the search of INT8's ranges and layers; the best so far is kept. [default: the"
    " recipe's, 10]",
)
@path_option("--output", help="The artifact's folder. [default: artifacts/NN in the run]")
@path_option("--triton", help="Write a model repository for Triton into this new folder.")
@path_option(
    "--browser",
    help="Write a page that classifies images and the camera in a browser into this new folder;"
    " needs the file of --with-preprocess.",
)
@set_option
@run_options
@help_all_option
def command(run: str | None, as_json: bool, **options: Any) -> None:
    """Export RUN for the device, or build engines from an ARTIFACT that was exported already.

    For a CPU take --cpu, which makes the files and times them; with the ARTIFACT, it times them on
    the device. For an NVIDIA GPU or a Jetson take --trt.

    RUN is a run folder, name/NN, or a recipe's name for its newest finished student. The default is
    the newest finished student, or any finished run if there is no student. The result is one
    folder that runs without torch. Each file in it is compared with the float32 model on real
    images. A file that misses the recipe's gates is marked, and the exit code is 6; one that
    only --cpu asks for is just marked. If a target cannot be built on this machine, the
    other files are written, and the exit code is 4. From an ARTIFACT, engines and files are built
    without torch.
    """
    from kdedge.api.export import export
    from kdedge.runs.find import named_artifact

    names = [target.name for target in list_targets() if options.pop(_parameter(target))]
    try:
        artifact = show_result(
            lambda: export(run, targets=names, **options),
            lambda made: _print(made, has_choice=options["cpu"], as_json=as_json),
        )
    except KeyboardInterrupt as interrupt:
        raise Interrupted(
            "interrupted. Run the same command again.", signum=signum_of(interrupt)
        ) from interrupt
    if not as_json:
        following = next_line("predict", artifact.path, "IMAGE")
        if options["output"] is None and named_artifact(run, options["root"]) is None:
            given = run or artifact.provenance["run"]  # the latter is only found in its own root
            following = next_line("report", given, given=["root"])
        print_result({}, as_json=False, text=following)


def _print(artifact: Artifact, *, has_choice: bool, as_json: bool) -> None:
    from kdedge.runtime.cpu_choice import choice_here, readable_choices

    # One that cannot be read is in the export's error
    choice = choice_here(readable_choices(artifact)) if has_choice else None
    record = {
        "artifact": str(artifact.path),
        "gflops": artifact.provenance.get("gflops", {}),
        "files": [file.to_dict() for file in artifact.files],
        "cpu_choice": None if choice is None else choice.to_dict(),
    }
    print_result(record, as_json=as_json, text=_as_text(artifact, choice))


def _as_text(artifact: Artifact, choice: CpuChoice | None) -> str:
    from kdedge.artifacts.model_card import files_table
    from kdedge.artifacts.ship import file_to_ship
    from kdedge.reporting.model_records import accuracy_interval

    gflops = artifact.provenance.get("gflops")
    lines = []
    if gflops:
        lines.append(f"GFLOPs per image: {gflops['folded']:.4g}\n")
    parities = {file.name: file.parity for file in artifact.files if file.parity is not None}
    lines.append(_timed_table(artifact, choice) if choice else table_text(files_table(artifact)))
    sets = dict.fromkeys(parity.images for parity in parities.values())
    if sets:
        labeled = [parity for parity in parities.values() if parity.n_labeled]
        exact = decimals(labeled[0].reference_accuracy_percent) if labeled else ""
        reference = f", and accuracy (the model's: {exact})" if labeled else ""
        explained = "; drop in points; distance of scores, 0 to 1"
        if choice is not None:
            explained = "; speedup by the quickest tenth of the calls, which others disturb least"
        lines.append(
            f"\nOn {'; later files on '.join(sets)}: agreement, the images with the float32 model's"
            f" class{reference}{explained}."
        )
        n_images = max(parity.n_images for parity in parities.values())
        if n_images < _MIN_GATE_IMAGES:
            unknown = 100 - accuracy_interval(n_images, n_images)[0]  # where all agree
            lines.append(
                f"{n_images} images are few: if a file agrees on all of them, it may still differ"
                f" on up to {unknown:.0f} % of others. More in data.test make the gate sharper."
            )
    lines += _fitted_lines(artifact)
    if choice is not None:
        time = choice.time
        cost = "" if time is None else f": {digits(time.p50_ms)} ms for {images_text(choice.batch)}"
        parity = parities.get(choice.file)
        if parity is not None and parity.ece_percent is not None:
            errors = f"{decimals(parity.ece_percent_before)} and {decimals(parity.ece_percent)} %"
            lines.append(f"ECE of {choice.file}: {errors}.")
        lines += [*choice.remarks, f"\nFor a CPU like this, ship {choice.file}{cost}."]
        return "\n".join(lines)
    shipped = file_to_ship(artifact, None)
    if shipped is not None:
        advice = f"\nFor a {shipped.processor}, ship {shipped.file.name}."
        if shipped.processor == "CPU":
            command = f"kdedge export {shlex.quote(str(artifact.path))} --cpu"
            advice += f" To time all files: {command}"
        lines.append(advice)
    return "\n".join(lines)


def _timed_table(artifact: Artifact, choice: CpuChoice) -> str:
    """The files that were measured on this CPU, and the names of the others."""
    rows = []
    for timed in choice.candidates:
        file = artifact.file(timed.file)
        parity = file.parity
        agreement = timed.agreement_percent if parity is None else parity.agreement_percent
        rows.append([
            timed.file, (timed.runtime or "-").partition(" ")[0], digits(file.n_bytes, 1e6),
            decimals(agreement), decimals(None if parity is None else parity.accuracy_percent),
            *choice.outcome(timed),
        ])  # fmt: skip
    header = ["file", "runtime", "MB", "agreement %", "accuracy %", "ms", "speedup", "result"]
    text = f"{choice.machine}, {images_text(choice.batch)} per call:\n"
    text += table(rows, header=header, align="llrrrrrl")
    timed_files = {timed.file for timed in choice.candidates}
    others = [file.name for file in artifact.files if file.name not in timed_files]
    return f"{text}\nAlso written, not timed: {', '.join(others)}" if others else text


def _fitted_lines(artifact: Artifact) -> list[str]:
    """Lines about the values fitted to images: the temperature and the limit of "none"."""
    lines = []
    fitted = artifact.temperature
    none = artifact.none_of_these
    if fitted is not None:
        lines.append(
            f"Calibrated by the temperature {fitted.value:.4g}, fitted to the"
            f" {fitted.fitted_to} of {fitted.images}."
            " ECE: calibration error in percent, before and with it."
        )
    if none is not None:
        lines.append(
            f'Predicts "none" below the score that {none.share_percent:g} % reach of every second'
            f" one of {none.images}."
            " How many strange images that catches was not measured: try some with kdedge predict."
        )
    return lines

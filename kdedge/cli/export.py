"""Fold, write ONNX files and engines for the device, and compare each with the model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from kdedge.cli._options import device_option, need_training_packages, runs_option
from kdedge.cli._output import json_option, next_line, percent, print_result, set_option, table
from kdedge.errors import KdedgeError, RecipeError
from kdedge.runtime.artifact import FILE_NAME, Artifact, ModelFile, Precision, load_artifact
from kdedge.setup.classes import read_class_names

log = logging.getLogger(__name__)

_NO_INT8_PROGRAM = (
    "There is no INT8 in Torch-TensorRT's programs. Build INT8 engines from the ONNX file (--trt"
    " --int8), or leave --int8 out."
)
_ONLY_FOR_RUNS = ("onnx", "classes", "head", "pixels", "output", "overrides", "device")


@click.command("export")
@click.argument("source", metavar="[RUN|ARTIFACT]", required=False)
@click.option("--onnx", is_flag=True, help="ONNX files, which every export of a run writes.")
@click.option("--trt", is_flag=True, help="TensorRT engines, for the GPU of this machine.")
@click.option("--trt-rtx", is_flag=True, help="TensorRT-RTX engines; builds without a GPU.")
@click.option("--torch-trt", is_flag=True, help="A Torch-TensorRT program, for PyTorch services.")
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
@click.option("--triton", type=click.Path(path_type=Path), help="Write a Triton model repository.")
@click.option("--deepstream", type=click.Path(path_type=Path), help="Write a DeepStream config.")
@set_option
@runs_option
@device_option
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    /,
    source: str | None,
    trt: bool,
    trt_rtx: bool,
    torch_trt: bool,
    fp16: bool,
    int8: bool,
    triton: Path | None,
    deepstream: Path | None,
    as_json: bool,
    **for_runs: Any,
) -> None:
    """Export RUN for the device, or build engines from an ARTIFACT that was exported already.

    RUN is a run folder, name/NN, or a recipe's name for its newest finished run; left out, it is
    the newest finished student, or any run where no student is finished. The result is one folder
    that runs without torch. Each file in it is compared with the float32 model on real images, and
    one that misses the recipe's gates is marked and ends in exit code 6.

    On the device, `kdedge export ARTIFACT --trt` builds engines from the ONNX files of the folder;
    it needs no torch.
    """
    flags = {"tensorrt": trt, "tensorrt-rtx": trt_rtx, "torch-tensorrt": torch_trt}
    targets = [target for target, is_wanted in flags.items() if is_wanted]
    asked: set[Precision] = {"int8", "fp16"} if int8 else {"fp16"} if fp16 else set()
    if torch_trt and int8:  # known before anything slow is done
        raise click.UsageError(_NO_INT8_PROGRAM)
    made = _Made()
    if source is not None and (Path(source) / FILE_NAME).is_file():
        _refuse_run_options(ctx, source)
        made.artifact = load_artifact(Path(source))
        if not (targets or triton or deepstream):
            raise click.UsageError(
                f"{source} is exported already. Name what to build from it: --trt, --trt-rtx,"
                " --triton DIR or --deepstream DIR."
            )
        engines = asked or {"fp16"}
    else:
        engines = made.from_run(source, asked, has_engines=bool(targets), **for_runs)
    for target in targets:
        made.add_engines(target, engines)
    precision: Precision | None = "int8" if int8 else "fp16" if fp16 else None
    if not made.failed:  # a server would get another file than the one that is missing
        made.add_servers(triton, deepstream, precision)
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
        self._model: Any = None

    def from_run(
        self, source: str | None, asked: set[Precision], *, has_engines: bool, **for_runs: Any
    ) -> set[Precision]:
        """Exports a run; gives the precisions of its engines."""
        exported, wanted = _export_run(source, asked, has_engines=has_engines, **for_runs)
        self.artifact, self.gflops = exported.artifact, exported.gflops
        self._model = exported.model
        self.names = [file.name for file in self.artifact.files]
        self.written = [self.artifact.path]
        return wanted

    def add_engines(self, target: str, precisions: set[Precision]) -> None:
        """Builds engines of one target into the artifact."""
        before = self.artifact
        try:
            self.artifact, names = _build(before, target, sorted(precisions), self._model)
        except KdedgeError as error:
            self.failed.append(error)
            self.artifact = load_artifact(
                before.path
            )  # with the engines before the one that failed
        else:
            self.names += names
        if self.artifact != before and before.path not in self.written:
            self.written.append(before.path)

    def add_servers(
        self, triton: Path | None, deepstream: Path | None, precision: Precision | None
    ) -> None:
        """Writes what was asked for of Triton and DeepStream."""
        from kdedge.deploy.deepstream import write_deepstream
        from kdedge.deploy.triton import write_triton

        try:
            if triton is not None:
                self.written.append(
                    write_triton(self.artifact, triton, precision=precision, built=self.names)
                )
            if deepstream is not None:
                if precision == "int8":
                    log.warning("DeepStream gets no INT8 file: it takes none with ranges inside.")
                self.written.append(write_deepstream(self.artifact, deepstream))
        except KdedgeError as error:
            self.failed.append(error)


def _export_run(
    source: str | None,
    asked: set[Precision],
    *,
    has_engines: bool,
    onnx: bool,
    classes: Path | None,
    head: str | None,
    pixels: str | None,
    output: Path | None,
    overrides: tuple[str, ...],
    root: Path,
    device: str | None,
) -> tuple[Any, set[Precision]]:
    """Folds a run and writes its artifact; gives the precisions of its engines too."""
    from kdedge.runs.find import find_run

    need_training_packages("Folding a run")
    from kdedge.deploy.export import export_artifact
    from kdedge.runs.model import load_run
    from kdedge.setup.device import choose_device
    from kdedge.setup.method import check_has_class_vectors
    from kdedge.setup.workspace import Workspace

    given = {"head": head, "pixels": pixels}
    flags = tuple(f"export.{key}={value}" for key, value in given.items() if value is not None)
    run = find_run(source, root)
    trained = load_run(
        run,
        Workspace(run.root, choose_device(device)),
        overrides=(*overrides, *flags),
        names=None if classes is None else read_class_names(classes),
    )
    check_has_class_vectors(trained.setup.choice)
    recipe = trained.setup.loaded.recipe
    precisions = asked | set(recipe.export.precisions)
    engines: set[Precision] = precisions or {"fp16"}
    exported = export_artifact(
        trained,
        spec=recipe.export,
        gates=recipe.gates,
        precisions=engines if has_engines else precisions,
        output=output,
    )
    return exported, engines | ({"fp16"} if "int8" in engines else set())


def _refuse_run_options(ctx: click.Context, source: str) -> None:
    """An artifact's ONNX files are what they are: what shapes them is said at their export."""
    for name in _ONLY_FOR_RUNS:
        if ctx.params[name]:
            option = "--set" if name == "overrides" else f"--{name}"
            raise click.UsageError(
                f"{option} does not go with an artifact, and {source} is one. Name its run."
            )


def _build(
    artifact: Artifact, target: str, precisions: Sequence[Precision], model: Any
) -> tuple[Artifact, tuple[str, ...]]:
    """Builds engines of one target into the artifact; gives their names too."""
    if target == "torch-tensorrt":
        from kdedge.deploy.targets import torch_tensorrt

        if model is None:
            raise RecipeError(
                f"{artifact.path} holds no PyTorch model, which Torch-TensorRT compiles.\n"
                "  Name the run that it was exported from."
            )
        return torch_tensorrt.add_programs(artifact, model, precisions)
    from kdedge.deploy.engines import build_engines

    return build_engines(artifact, target, precisions)


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
        lines.append(
            f"\nAgainst the float32 model on {'; engines on '.join(sets)}: top-1 agreement in"
            " percent, mean softmax distance (0-1), accuracy in percent, points lost."
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

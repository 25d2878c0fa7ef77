"""Distill the recipe's student on unlabeled images; train its teacher first if needed."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from kdedge.cli._options import (
    device_option,
    resume_option,
    runs_option,
    threads_option,
)
from kdedge.cli._output import json_option, next_line, print_result
from kdedge.cli._overrides import set_options, size_option
from kdedge.cli._results import run_record, run_text
from kdedge.config.load import load_recipe

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Compress:
    """Options of a student that is compressed.

    Attributes:
        run: `--resume-from`.
        quantize: `--quantize`.
        sparsity: `--sparsity`.
    """

    run: str | None
    quantize: str | None
    sparsity: str | None


def _compress_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: the options of a student that is compressed, as one parameter `compress`."""

    @click.option(
        "--resume-from",
        metavar="RUN",
        help="Compress the finished student RUN: fold it, and train it on in the form of --quantize"
        " or --sparsity. Without RECIPE, with the recipe and the teacher of RUN.",
    )
    @click.option(
        "--quantize",
        type=click.Choice(["int8"]),
        help="Train with the rounding of INT8, which an export then writes as trained. Needs"
        " --resume-from.",
    )
    @click.option(
        "--sparsity",
        type=click.Choice(["2:4"]),
        help="Zeros that TensorRT may skip: two of each four weights along a layer's input. Needs"
        " --resume-from.",
    )
    @functools.wraps(function)
    def command(
        *arguments: Any,
        resume_from: str | None,
        quantize: str | None,
        sparsity: str | None,
        **values: Any,
    ) -> Any:
        return function(*arguments, compress=_Compress(resume_from, quantize, sparsity), **values)

    return command


@click.command("distill")
@click.argument("recipe", required=False)
@_compress_options
@size_option
@set_options("student")
@resume_option
@runs_option
@device_option
@threads_option
@json_option
def command(
    recipe: str | None,
    overrides: tuple[str, ...],
    resume: bool,
    root: Path,
    device: str | None,
    as_json: bool,
    compress: _Compress,
) -> None:
    """Distill the student of RECIPE from its teacher, on unlabeled images.

    RECIPE is a file, or the name of a shipped recipe. A finished teacher with the same settings and
    data is used again; otherwise it is trained first.

    With --resume-from, a finished student is compressed, and RECIPE may be left out.

    To use several processes or machines: torchrun --nproc-per-node=N -m kdedge distill RECIPE.
    batch_size is the total over all processes.
    """
    from kdedge.api.compress import from_run
    from kdedge.api.train import Place, make_student

    how = {"quantize": compress.quantize, "sparsity": compress.sparsity}
    started = from_run(recipe, compress.run, root, **how)
    if started.texts:
        log.info("Compressing sets %s.", ", ".join(started.texts))
    loaded = load_recipe(started.recipe, [*started.texts, *overrides])
    made = make_student(loaded, Place(root, device, resume))
    if not made.is_rank0:
        return
    *teachers, student = made.runs
    following = "export" if loaded.recipe.data.test is None else "eval"
    text = f"{run_text(list(made.runs), used=made.used)}\n{next_line(following, student.path)}"
    record: dict[str, Any] = {"teacher": run_record(teachers[0]), "student": run_record(student)}
    if len(teachers) > 1:
        record["teachers"] = [run_record(teacher) for teacher in teachers]
    print_result(record, as_json=as_json, text=text)

"""Import a checkpoint of the public PromptSRC or PromptKD code as a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from kdedge.cli._options import (
    device_option,
    options_as,
    runs_option,
    threads_option,
)
from kdedge.cli._output import json_option, next_line, print_result
from kdedge.runs.find import find_run
from kdedge.setup.classes import read_class_names
from kdedge.setup.packages import need_training_packages


@dataclass(frozen=True)
class _Backbone:
    """The backbone that the checkpoint was trained on."""

    backbone: str | None
    config: Path | None
    weights: str
    quick_gelu: bool | None


@dataclass(frozen=True)
class _Checkpoint:
    """The kind of checkpoint, and what it does not hold itself."""

    file: Path
    kind: str
    classes: Path | None
    teacher: str | None
    exact: bool


@dataclass(frozen=True)
class _Place:
    """Folder and name of the run, and the device."""

    name: str | None
    root: Path
    device: str | None


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--as",
    "kind",
    required=True,
    type=click.Choice(["promptsrc", "promptkd"]),
    help="Kind of checkpoint: a PromptSRC teacher or a PromptKD student.",
)
@click.option("--name", help="Name of the run. [default: the file's name and --as]")
@click.option("--backbone", help="Its backbone: an open_clip model name such as ViT-L-14.")
@click.option(
    "--config",
    type=click.Path(path_type=Path, exists=True),
    help="Its backbone: your own model config (JSON).",
)
@click.option(
    "--weights", required=True, help="Weights of the backbone: a pretrained tag or a file."
)
@click.option(
    "--quick-gelu/--gelu",
    "quick_gelu",
    default=None,
    help="Activation of the backbone, if its weights do not tell it. OpenAI's use QuickGELU.",
)
@click.option(
    "--classes",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="File of class names, one per line. promptsrc needs it: the checkpoint has no names.",
)
@click.option(
    "--teacher", help="Run of the teacher. promptkd needs it: the checkpoint has no class vectors."
)
@click.option(
    "--exact",
    is_flag=True,
    help="Use the checkpoint's own copy of the backbone, which differs by rounding (promptsrc"
    " only).",
)
@runs_option
@device_option
@threads_option
@json_option
@options_as(_Checkpoint, "checkpoint")
@options_as(_Backbone, "trained_on")
@options_as(_Place, "place")
def command(checkpoint: _Checkpoint, trained_on: _Backbone, place: _Place, as_json: bool) -> None:
    """Import FILE, a checkpoint of the public PromptSRC or PromptKD code, as a finished run.

    The output lists every key of the file that is not used. Nothing in the file is executed.
    """
    need_training_packages("Reading a checkpoint")
    from kdedge.clip.resolve import BackboneSpec
    from kdedge.setup.device import choose_device
    from kdedge.setup.workspace import Workspace
    from kdedge.training.import_public import import_student, import_teacher

    on = BackboneSpec(
        trained_on.backbone, trained_on.weights, trained_on.config, trained_on.quick_gelu
    )
    file = checkpoint.file
    run_name = place.name or f"{file.name.split('.')[0]}-{checkpoint.kind}"
    workspace = Workspace(place.root, choose_device(place.device))
    if checkpoint.kind == "promptsrc":
        if checkpoint.classes is None:
            raise click.UsageError(
                "--as promptsrc needs --classes FILE: the checkpoint has no names."
            )
        found = import_teacher(
            file,
            workspace,
            name=run_name,
            on=on,
            class_names=read_class_names(checkpoint.classes.absolute()),
            is_exact=checkpoint.exact,
        )
    else:
        if checkpoint.teacher is None:
            raise click.UsageError(
                "--as promptkd needs --teacher RUN: the checkpoint has no class vectors."
            )
        teacher = find_run(checkpoint.teacher, place.root)
        found = import_student(file, workspace, name=run_name, on=on, teacher=teacher)
    relative, key = found.largest_deviation
    record = {
        "path": str(found.run.path),
        "epoch": found.epoch,
        "left_out": list(found.left_out),
        "unread": list(found.unread),
        "largest_deviation": relative,
        "largest_deviation_key": key,
    }
    epoch = "" if found.epoch is None else f", epoch {found.epoch}"
    text = (
        f"{file}{epoch}\n"
        f"Not needed: {', '.join(found.left_out) or 'no key'}.\n"
        f"Not read, beside state_dict: {', '.join(found.unread) or 'no entry'}.\n"
        f"Its backbone differs from {on.name or on.weights} by at most {relative:.2g} (relative, at"
        f" {key}).\n"
        f"Wrote {found.run.path} ({found.run.weights.name}, {found.run.class_vectors.name})\n"
        f"{next_line('show', found.run.path)}"
    )
    print_result(record, as_json=as_json, text=text)

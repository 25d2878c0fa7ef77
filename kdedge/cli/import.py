"""Import a checkpoint of the public PromptSRC or PromptKD code as a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from kdedge.api.import_checkpoint import CheckpointOptions, CheckpointRequest, make_import
from kdedge.cli._options import (
    device_option,
    options_as,
    runs_option,
    threads_option,
)
from kdedge.cli._output import json_option, next_line, print_result


@dataclass(frozen=True)
class _Options:
    """Backbone of the checkpoint; folder and name of the run, and the device."""

    backbone: str | None
    config: Path | None
    quick_gelu: bool | None
    name: str | None
    exact: bool
    root: Path
    device: str | None

    def as_call(self) -> CheckpointOptions:
        """Returns the options of the call."""
        return {
            "backbone": self.backbone,
            "config": self.config,
            "quick_gelu": self.quick_gelu,
            "name": self.name,
            "exact": self.exact,
            "root": self.root,
            "device": self.device,
        }


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
@options_as(CheckpointRequest, "request")
@options_as(_Options, "options")
def command(request: CheckpointRequest, options: _Options, as_json: bool) -> None:
    """Import FILE, a checkpoint of the public PromptSRC or PromptKD code, as a finished run.

    The output lists every key of the file that is not used. Nothing in the file is executed.
    """
    found = make_import(request, options.as_call())
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
        f"{request.file}{epoch}\n"
        f"Not needed: {', '.join(found.left_out) or 'no key'}.\n"
        f"Not read, beside state_dict: {', '.join(found.unread) or 'no entry'}.\n"
        f"Its backbone differs from {options.backbone or request.weights} by at most"
        f" {relative:.2g} (relative, at {key}).\n"
        f"Wrote {found.run.path} ({found.run.weights.name}, {found.run.class_vectors.name})\n"
        f"{next_line('show', found.run.path)}"
    )
    print_result(record, as_json=as_json, text=text)

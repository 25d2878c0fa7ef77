"""Import a checkpoint of the public PromptSRC or PromptKD code as a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click

from kdedge.cli.options import run_options
from kdedge.cli.output import next_line, print_result
from kdedge.paper.checkpoints.api import import_checkpoint


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
@run_options
def command(
    file: Path, kind: Literal["promptsrc", "promptkd"], as_json: bool, **options: Any
) -> None:
    """Import FILE, a checkpoint of the public PromptSRC or PromptKD code, as a finished run.

    Every key of the file that is not used is listed. Nothing in the file is executed.
    """
    run = import_checkpoint(file, kind, **options)
    text = f"Wrote {run.path} ({run.folder.weights.name}, {run.folder.class_vectors.name})"
    record = {"path": str(run.path), "epoch": run.provenance.epoch}
    print_result(record, as_json=as_json, text=f"{text}\n{next_line('show', run.path)}")

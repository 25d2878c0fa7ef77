"""Write a commented recipe for your own images."""

from __future__ import annotations

from typing import Any

import click

from kdedge.api.init import STUDENT_CLIP, TEACHER_CLIP, init
from kdedge.cli.options import path_option, size_option
from kdedge.cli.output import json_option, next_line, print_result, table_text

_CLIP_HELP = (
    "The teacher's CLIP as MODEL:WEIGHTS. MODEL is an open_clip name or your model config (.json);"
    " WEIGHTS is a pretrained tag or a file. A file of OpenAI's weights needs no MODEL."
    " Or efficientnet-lite0, 1 or 2, whose weights come with the extra efficientnet; they need"
    " labels of every class."
)


@click.command("init")
@click.argument("name")
@path_option(
    "--images",
    required=True,
    metavar="DIR",
    help="Folder of unlabeled images that the student is trained on.",
)
@path_option(
    "--classes", required=True, metavar="FILE", help="Text file of class names, one per line."
)
@path_option(
    "--labeled",
    metavar="DIR",
    help="Labeled images, one subfolder per class. They teach the teacher, and the student too.",
)
@path_option(
    "--test", metavar="DIR", help="Labeled images for measuring accuracy, one subfolder per class."
)
@click.option("--teacher", metavar="CLIP", help=f"{_CLIP_HELP} [default: {TEACHER_CLIP}]")
@click.option(
    "--student",
    metavar="CLIP",
    help=f"The student's CLIP, in the same form. [default: {STUDENT_CLIP}]",
)
@click.option("--all-keys", is_flag=True, help="Write more keys, each with its description.")
@size_option
@json_option
def command(name: str, as_json: bool, **options: Any) -> None:
    """Write NAME.yaml, a commented recipe for your own images.

    It checks the folders first; `kdedge check` checks the rest of the recipe. An existing file is
    never overwritten. Without --labeled the teacher is zero-shot CLIP.
    """
    made = init(name, **options)
    text = "\n".join([table_text(made.table), *made.notes, next_line("check", made.path)])
    print_result(made, as_json=as_json, text=text)

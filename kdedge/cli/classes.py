"""List the classes of an artifact; add classes to it, and remove them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from kdedge.cli.options import device_option, runs_option
from kdedge.cli.output import json_option, next_line, print_result


@click.command("classes")
@click.argument("artifact", metavar="ARTIFACT")
@click.option("--add", metavar="NAME", multiple=True, help="Add this class; may be repeated.")
@click.option("--remove", metavar="NAME", multiple=True, help="Remove this class; may be repeated.")
@click.option(
    "--from", "run", metavar="RUN", help="Run that ARTIFACT was exported from; needed by --add."
)
@runs_option
@device_option
@json_option
def command(
    artifact: str,
    add: tuple[str, ...],
    remove: tuple[str, ...],
    root: Path,
    as_json: bool,
    **options: Any,
) -> None:
    """List the classes of ARTIFACT, in the order of its logits, or add and remove classes.

    Only an artifact that was exported with --open-classes can be changed. Nothing is trained, and
    no graph or engine is built again. The teacher of RUN makes the vectors of new classes; on a
    machine without RUN, classes can only be removed. The change is a new file, classes.N.npy, which
    artifact.json names; earlier files stay. To a device that has the artifact, copy the new file,
    README.md and artifact.json, whose agreement and accuracy are of the exported classes.
    """
    from kdedge.api.artifact import change_classes, open_artifact

    if not add and not remove:
        result = open_artifact(artifact, root=root)
        text = "\n".join(result.class_names)
    else:
        result = change_classes(artifact, add=add, remove=remove, root=root, **options)
        assert result.open_classes is not None  # only such artifacts can be changed
        text = (
            f"{result.path}: {len(add)} classes added, {len(remove)} removed;"
            f" {len(result.class_names)} in {result.open_classes.file}\n"
            + next_line("predict", result.path, "IMAGE")
        )
    open_classes = result.open_classes
    record = {
        "artifact": str(result.path),
        "class_names": list(result.class_names),
        "open_classes": None if open_classes is None else open_classes.to_dict(),
    }
    print_result(record, as_json=as_json, text=text)

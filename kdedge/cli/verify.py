"""Check the answers of a client program in any language against an artifact."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kdedge.cli.options import path_option, runs_option
from kdedge.cli.output import json_option, print_result, show_result

if TYPE_CHECKING:
    from kdedge.artifacts.client import ImageFormat


@click.command("verify")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.argument("answers", type=click.Path(path_type=Path), required=False)
@path_option(
    "--images",
    metavar="DIR",
    help="Write the images of the smoke set into this new folder, for the program to classify.",
)
@click.option(
    "--image-format",
    type=click.Choice(["ppm", "png"]),
    default="ppm",
    show_default=True,
    help="Format of the images. Both are lossless; a PPM file is read without a library.",
)
@click.option(
    "--file",
    metavar="NAME",
    help="The artifact's model file that the program ran. [default: model.image.onnx, or else"
    " model.onnx]",
)
@runs_option
@json_option
def command(
    artifact: Path,
    answers: Path | None,
    images: Path | None,
    image_format: ImageFormat,
    file: str | None,
    root: Path,
    as_json: bool,
) -> None:
    """Check that a program answers as ARTIFACT does on the images of its smoke set.

    First, --images DIR writes the images. ANSWERS is a file with the program's answers: a JSON
    object a line for each image, in the order of their names: {"label": "cat", "score": 93.1}. The
    score, in percent, may be left out. With "rgb_mean", the means of red, green and blue over the
    square that the model sees, 0 to 255, the message also tells whether resize, crop and channels
    are right.

    The exit code is 6 if an answer differs or ANSWERS is something else.
    """
    from kdedge.api.artifact import verify_client, write_smoke_images

    if (answers is None) == (images is None):
        raise click.UsageError("Give either ANSWERS or --images DIR.")
    if images is not None:
        written = write_smoke_images(artifact, images, image_format=image_format, root=root)
        paths = [str(path) for path in written]
        print_result(paths, as_json=as_json, text=f"Wrote {len(paths)} images into {images}.")
        return
    assert answers is not None
    show_result(
        partial(verify_client, artifact, answers, file=file, root=root),
        lambda checked: print_result(checked, as_json=as_json, text=str(checked)),
    )

"""Check a client program in any language against an artifact."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kdedge.cli._output import FiniteRange, json_option, print_result

if TYPE_CHECKING:
    from kdedge.deploy.client import ClientCheck, Pictures


@click.command("verify")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option(
    "--client",
    required=True,
    metavar="CMD",
    help='The program and its first arguments, as one text: "python client.py".',
)
@click.option(
    "--file",
    metavar="NAME",
    help="The artifact's model file that the client gets. [default: model.image.onnx, or else"
    " model.onnx]",
)
@click.option(
    "--pictures",
    type=click.Choice(["ppm", "png"]),
    default="ppm",
    show_default=True,
    help="Format of the images. Both are lossless; a PPM file is read without a library.",
)
@click.option(
    "--timeout",
    type=FiniteRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="Time for all images; a client that takes longer is ended.",
)
@json_option
def command(
    artifact: Path, client: str, file: str | None, pictures: Pictures, timeout: float, as_json: bool
) -> None:
    """Check that a program answers as ARTIFACT does on the images of its smoke set.

    The program is called once, as CMD MODEL IMAGE ..., and prints a JSON object a line for each
    image, in their order: {"label": "cat", "score": 93.1}. The score, in percent, may be left out.
    With "rgb_mean", the means of red, green and blue over the square that the model sees, 0 to 255,
    the message also tells whether resize, crop and channels are right.

    The exit code is 6 if an answer differs, or if the program fails, hangs or prints something
    else.
    """
    from kdedge.api.verify import make_client_check

    found = make_client_check(artifact, client, file=file, pictures=pictures, timeout_s=timeout)
    print_result(asdict(found), as_json=as_json, text=_as_text(found))
    if found.error is not None:
        raise found.error


def _as_text(found: ClientCheck) -> str:
    wrong = len({mistake.image for mistake in found.mistakes})
    text = f"{found.n_images - wrong} of {found.n_images} images with {found.file} are answered"
    text += " as the artifact does"
    if found.max_score_difference is not None:
        text += f"; scores differ by up to {found.max_score_difference:.3f} points"
    if found.max_mean_difference is not None:
        text += f"; channel means by up to {found.max_mean_difference:.3f} of 255"
    if not found.n_whole:
        text += "\nThe smoke set has only resized images: resize and crop are not checked."
    return text

"""Checks the answers of a program in any language against an artifact's smoke set.

The program classifies the smoke set's images and writes one JSON object a line for each image, in
the order of the images' names:

    {"label": "cat", "score": 93.1, "rgb_mean": [118.2, 110.9, 98.4]}

`label` is the name of the best class. `score` is its softmax in percent, and `rgb_mean` the mean of
red, green and blue over the square that the model sees, 0 to 255; both may be left out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError

from kdedge.artifacts.parity import SmokeSet, load_smoke_set, smoke_logits
from kdedge.errors import GateError
from kdedge.files import new_folder, read_bytes
from kdedge.records.record import Record
from kdedge.runtime.artifact import Artifact, ModelFile
from kdedge.runtime.backend import softmax
from kdedge.targets.registry import load_file

ImageFormat = Literal["ppm", "png"]

# Largest difference of a score, in percentage points; pixels that differ by 1 of 255 cause less.
# A label is right if the score of its class is within this distance of the best.
SCORE_TOLERANCE = 1.0

# Largest difference of a channel's mean, of 255
MEAN_TOLERANCE = 0.5

_MAX_SHOWN = 3


@dataclass(frozen=True)
class Mismatch:
    """A client's answer that differs from the artifact's.

    Attributes:
        image: number of the image in the smoke set, from 0.
        expected: the artifact's answer, in words.
        got: the client's answer, in words.
    """

    image: int
    expected: str
    got: str


@dataclass(frozen=True)
class ClientCheck(Record):
    """Comparison of a client's answers with the artifact's.

    Attributes:
        file: name of the model file that the client ran.
        n_images: number of images.
        max_score_difference: in percentage points; None if no score was compared.
        max_mean_difference: in units of 1/255; None if the client gives no `rgb_mean`.
        mistakes: answers that differ from the artifact's.
    """

    file: str
    n_images: int
    max_score_difference: float | None
    max_mean_difference: float | None
    mistakes: tuple[Mismatch, ...]

    def __str__(self) -> str:
        wrong = len({mistake.image for mistake in self.mistakes})
        text = f"{self.n_images - wrong} of {self.n_images} images with {self.file}"
        text += " are answered as the artifact does"
        if self.max_score_difference is not None:
            text += f"; scores differ by up to {self.max_score_difference:.3f} points"
        if self.max_mean_difference is not None:
            text += f"; channel means by up to {self.max_mean_difference:.3f} of 255"
        return text


class _ClientLine(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    label: str
    score: float | None = None
    rgb_mean: tuple[float, float, float] | None = None


def write_images(artifact: Artifact, folder: Path, *, image_format: ImageFormat) -> list[Path]:
    """Writes the smoke set's images, which a client classifies, into a new folder.

    Args:
        artifact: the artifact, with a smoke set.
        folder: the folder, which must not exist.
        image_format: format of the images; both formats are lossless.

    Raises:
        RecipeError: the folder exists.
        DataError: the smoke set is missing, or has changed since the export.
        ResourceError: the folder cannot be written.
    """
    smoke = _uncropped_part(load_smoke_set(artifact))
    names = [f"{number:03}.{image_format}" for number in range(len(smoke.images))]
    with new_folder(folder) as new:
        for name, image in zip(names, smoke.uncropped(), strict=True):
            Image.fromarray(image).save(new.part / name)
    return [folder / name for name in names]


def check_answers(artifact: Artifact, path: Path, *, file: ModelFile) -> ClientCheck:
    """Compares a client's answers with the artifact's.

    The smoke set has the answers of the float32 file. Any other file is run here to get its
    answers.

    Args:
        artifact: the artifact, with a smoke set.
        path: the file of the client's answers.
        file: the model file that the client ran.

    Raises:
        GateError: an answer differs (`result` has the check), or the file does not have an answer
            for each image.
        DataError: the answers cannot be read; the smoke set or the model file is missing, or has
            changed since the export.
    """
    artifact.checked(file.name)
    smoke = _uncropped_part(load_smoke_set(artifact))
    try:
        lines = read_bytes(path).decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise GateError(f"{path} is no UTF-8 text: {error}.\n  {_FORMAT}") from error
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    answers = [_answer(line, number, artifact.class_names) for number, line in numbered]
    if len(answers) != len(smoke.pixels):
        raise GateError(
            f"The client gave {len(answers)} answers for {len(smoke.pixels)} images.\n  {_FORMAT}"
        )
    logits = smoke.logits
    if file.precision != "fp32":
        with contextlib.closing(load_file(artifact, file)) as backend:
            logits = smoke_logits(artifact, backend, smoke)
    checked = _compare(artifact, file, smoke, 100 * softmax(logits), answers)
    if checked.mistakes:
        shown = "".join(
            f"  image {mistake.image}: expected {mistake.expected}, got {mistake.got}\n"
            for mistake in checked.mistakes[:_MAX_SHOWN]
        )
        differs = GateError(
            f"The client differs from the artifact on {len({m.image for m in checked.mistakes})} of"
            f" {len(answers)} images.\n{shown}"
            "  Compare its resize, crop, channel order and scaling with `preprocess` in"
            f" artifact.json; or, if it ran another file than {file.name}, name that one."
        )
        differs.result = checked
        raise differs
    return checked


def _uncropped_part(smoke: SmokeSet) -> SmokeSet:
    """The part of the smoke set whose images are stored before resize and crop."""
    n_images = len(smoke.images)
    return SmokeSet(smoke.pixels[:n_images], smoke.logits[:n_images], smoke.images)


_FORMAT = (
    'Expected one line for each image, in their order, such as {"label": "cat", "score": 93.1}.'
)


def _answer(line: str, number: int, class_names: Sequence[str]) -> _ClientLine:
    problem = None
    try:
        answer = _ClientLine.model_validate_json(line)
        if answer.label in class_names:
            return answer
        problem = "label is no class name of the artifact"
    except ValidationError as error:
        first = error.errors()[0]
        problem = ": ".join([*map(str, first["loc"]), first["msg"]])
    raise GateError(
        f"Line {number} of the client is no answer: {problem}: {line[:120]!r}.\n  {_FORMAT}"
    )


def _compare(
    artifact: Artifact,
    file: ModelFile,
    smoke: SmokeSet,
    scores: npt.NDArray[np.float64],
    answers: Sequence[_ClientLine],
) -> ClientCheck:
    names = artifact.class_names
    has_scores = artifact.head == "scores"
    means = smoke.pixels.mean(axis=(1, 2))  # [K, 3]
    mistakes: list[Mismatch] = []
    score_differences: list[float] = []
    mean_differences: list[float] = []
    for number, (answer, row, mean) in enumerate(zip(answers, scores, means, strict=True)):
        best = int(row.argmax())
        position = names.index(answer.label)
        gap = row[best] - row[position]
        if gap > (SCORE_TOLERANCE if has_scores else 0):
            mistakes.append(Mismatch(number, f"the label {names[best]!r}", repr(answer.label)))
        elif has_scores and answer.score is not None:
            score_differences.append(abs(answer.score - float(row[position])))
            if score_differences[-1] > SCORE_TOLERANCE:
                expected = f"the score {row[position]:.2f} for {answer.label!r}"
                mistakes.append(Mismatch(number, expected, f"{answer.score:.2f}"))
        if answer.rgb_mean is not None:
            difference = np.abs(np.asarray(answer.rgb_mean) - mean).max()
            mean_differences.append(float(difference))
            if difference > MEAN_TOLERANCE:
                expected = f"the means {_shown(mean)} of red, green and blue"
                mistakes.append(Mismatch(number, expected, _shown(answer.rgb_mean)))
    return ClientCheck(
        file=file.name,
        n_images=len(answers),
        max_score_difference=max(score_differences, default=None),
        max_mean_difference=max(mean_differences, default=None),
        mistakes=tuple(mistakes),
    )


def _shown(values: Any) -> str:
    return ", ".join(f"{value:.1f}" for value in values)

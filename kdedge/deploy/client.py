"""Checks a program in any language against an artifact's smoke set.

The program is called once, as `CMD MODEL IMAGE ...`, and prints one JSON object a line for each
image, in their order:

    {"label": "cat", "score": 93.1, "rgb_mean": [118.2, 110.9, 98.4]}

`label` is the name of the best class. `score` is its softmax in percent, and `rgb_mean` the mean of
red, green and blue over the square that the model sees, 0 to 255; both may be left out.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from kdedge.deploy.parity import SmokeSet, load_smoke_set, smoke_logits
from kdedge.errors import GateError, RecipeError
from kdedge.runtime.artifact import Artifact, ModelFile
from kdedge.runtime.batches import softmax
from kdedge.targets.load import load_file

Pictures = Literal["ppm", "png"]

SCORE_TOLERANCE = 1.0
"""Largest difference of a score, percentage points: pixels that differ by 1 of 255 stay below it.
A label is right if its class is no further below the best."""

MEAN_TOLERANCE = 0.5
"""Largest difference of a channel's mean, of 255."""

_MAX_ANSWER_BYTES = 10_000_000
_LOOK_EVERY_S = 0.02
_N_SHOWN = 3


@dataclass(frozen=True)
class Mistake:
    """An answer that is not the artifact's.

    Attributes:
        image: number of the image in the smoke set, from 0.
        expected: the artifact's answer, in words.
        got: the client's answer, in words.
    """

    image: int
    expected: str
    got: str


@dataclass(frozen=True)
class ClientCheck:
    """How a client's answers compare with the artifact's.

    Attributes:
        file: name of the model file that the client was given.
        n_images: number of images.
        n_whole: how many of them the client had to resize and crop.
        max_score_difference: percentage points; None if no score was compared.
        max_mean_difference: of 255; None if the client gives no `rgb_mean`.
        mistakes: answers that are not the artifact's.
    """

    file: str
    n_images: int
    n_whole: int
    max_score_difference: float | None
    max_mean_difference: float | None
    mistakes: tuple[Mistake, ...]

    @property
    def error(self) -> GateError | None:
        """The error of a client whose answers differ; None if they agree."""
        if not self.mistakes:
            return None
        shown = "".join(
            f"  image {one.image}: expected {one.expected}, got {one.got}\n"
            for one in self.mistakes[:_N_SHOWN]
        )
        return GateError(
            f"The client differs from the artifact on {len({m.image for m in self.mistakes})} of"
            f" {self.n_images} images.\n{shown}"
            "  Compare its resize, crop, channel order and scaling with `preprocess` in"
            " artifact.json."
        )


@dataclass(frozen=True)
class _Answer:
    label: str
    score: float | None
    rgb_mean: tuple[float, ...] | None


def check_client(
    artifact: Artifact,
    client: Sequence[str],
    *,
    file: ModelFile,
    pictures: Pictures = "ppm",
    timeout_s: float = 60.0,
) -> ClientCheck:
    """Runs a client on the images of the smoke set, and compares its answers.

    A float32 file's answers are those of the smoke set. Another file is run by kdedge here, for
    the answers that it gives.

    Args:
        artifact: the artifact, with a smoke set.
        client: the program and its first arguments.
        file: the model file that the client gets.
        pictures: format of the images: both are lossless.
        timeout_s: time for all images, seconds.

    Raises:
        RecipeError: the program cannot be started.
        GateError: it fails, does not end in time, or does not print an answer for each image.
        DataError: the smoke set or the file is missing, or has changed since the export.
    """
    model = artifact.checked(file.name).resolve()
    smoke = _chosen(load_smoke_set(artifact))
    scores = 100 * softmax(_expected_logits(artifact, file, smoke))
    with tempfile.TemporaryDirectory(prefix="kdedge-verify-") as folder:
        paths = []
        for number, image in enumerate(smoke.whole()):
            paths.append(Path(folder) / f"{number:03}.{pictures}")
            Image.fromarray(image).save(paths[-1])
        text = _run(client, [str(model), *map(str, paths)], Path(folder), timeout_s)
    answers = _parse(text, len(smoke.pixels), artifact.class_names)
    return _compare(artifact, file, smoke, scores, answers)


def _chosen(smoke: SmokeSet) -> SmokeSet:
    """The images before resize and crop; in artifacts that have none, the others."""
    n_images = len(smoke.images) or min(16, len(smoke.pixels))
    return SmokeSet(smoke.pixels[:n_images], smoke.logits[:n_images], smoke.images)


def _expected_logits(
    artifact: Artifact, file: ModelFile, smoke: SmokeSet
) -> npt.NDArray[np.float32]:
    if file.precision == "fp32":
        return smoke.logits
    backend = load_file(artifact, file)
    try:
        return smoke_logits(artifact, backend, smoke)
    finally:
        backend.close()


def _run(client: Sequence[str], arguments: list[str], folder: Path, timeout_s: float) -> str:
    """Runs a program to its end, and returns what it printed.

    Raises:
        RecipeError: it cannot be started.
        GateError: it fails, does not end in time, or prints too much or no text.
    """
    out, err = folder / "stdout", folder / "stderr"
    with out.open("wb") as stdout, err.open("wb") as stderr:
        try:
            process = subprocess.Popen(  # noqa: S603 - the user's own program, without a shell
                [*client, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            reason = (getattr(error, "strerror", None) or str(error)).lower()
            raise RecipeError(
                f"The client {client[0]} cannot be started: {reason}.\n"
                '  Give a program and its arguments: --client "python client.py"'
            ) from error
        with _ended(process):
            problem = _wait(process, (out, err), timeout_s)
    if problem is None and process.returncode:
        problem = f"ended with {_code(process.returncode)}"
    if problem is not None:
        last = err.read_bytes()[-2000:].decode(errors="replace").strip().splitlines()[-5:]
        told = "".join(f"\n  {line[:300]}" for line in last)
        raise GateError(f"The client {problem}: {shlex.join(client)[:200]} MODEL IMAGE ...{told}")
    try:
        return out.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise GateError(f"The client prints no UTF-8 text: {error}.\n  {_FORMAT}") from error


@contextlib.contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Context after which the process has ended, with those that it started."""
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait(
    process: subprocess.Popen[bytes], outputs: Sequence[Path], timeout_s: float
) -> str | None:
    """Waits for a process; returns what is wrong with it, or None if it has ended."""
    end = time.monotonic() + timeout_s
    while True:
        has_ended = process.poll() is not None
        if any(path.stat().st_size > _MAX_ANSWER_BYTES for path in outputs):
            return f"printed more than {_MAX_ANSWER_BYTES:,} bytes"
        if has_ended:
            return None
        if time.monotonic() > end:
            return f"did not end within {timeout_s:g} s"
        time.sleep(_LOOK_EVERY_S)


def _code(code: int) -> str:
    if code > 0:
        return f"exit code {code}"
    try:
        return f"the signal {signal.Signals(-code).name}"
    except ValueError:
        return f"the signal {-code}"


_FORMAT = (
    'Expected one line for each image, in their order, such as {"label": "cat", "score": 93.1}.'
)


def _parse(text: str, n_images: int, class_names: Sequence[str]) -> list[_Answer]:
    """Reads a client's answers.

    Raises:
        GateError: there are more or fewer than images, or one is not an answer.
    """
    lines = [line for line in text.split("\n") if line.strip()]
    known = frozenset(class_names)
    answers = [_answer(line, number, known) for number, line in enumerate(lines, 1)]
    if len(answers) != n_images:
        raise GateError(
            f"The client printed {len(answers)} answers for {n_images} images.\n  {_FORMAT}"
        )
    return answers


def _answer(line: str, number: int, known: frozenset[str]) -> _Answer:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    problem = None
    if not isinstance(found, dict):
        problem = "is no JSON object"
    elif not isinstance(found.get("label"), str):
        problem = "has no label"
    elif found["label"] not in known:
        problem = "has a label that is no class name of the artifact"
    elif not (found.get("score") is None or _is_number(found["score"])):
        problem = "has a score that is no number"
    elif not (found.get("rgb_mean") is None or _are_three(found["rgb_mean"])):
        problem = "has an rgb_mean that is not three numbers"
    if problem is not None:
        raise GateError(f"Line {number} of the client {problem}: {line[:120]!r}.\n  {_FORMAT}")
    mean = found.get("rgb_mean")
    return _Answer(found["label"], found.get("score"), None if mean is None else tuple(mean))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _are_three(values: Any) -> bool:
    return isinstance(values, list) and len(values) == 3 and all(map(_is_number, values))


def _compare(
    artifact: Artifact,
    file: ModelFile,
    smoke: SmokeSet,
    scores: npt.NDArray[np.float64],
    answers: Sequence[_Answer],
) -> ClientCheck:
    names, has_scores = artifact.class_names, artifact.head == "scores"
    means = smoke.pixels.mean(axis=(1, 2))  # [K, 3]
    mistakes, score_differences, mean_differences = [], [], []
    for number, (answer, row, mean) in enumerate(zip(answers, scores, means, strict=True)):
        best, place = int(row.argmax()), names.index(answer.label)
        below = row[best] - row[place]
        if below > (SCORE_TOLERANCE if has_scores else 0):
            mistakes.append(Mistake(number, f"the label {names[best]!r}", repr(answer.label)))
        elif has_scores and answer.score is not None:
            score_differences.append(abs(answer.score - float(row[place])))
            if score_differences[-1] > SCORE_TOLERANCE:
                told = f"the score {row[place]:.2f} for {answer.label!r}"
                mistakes.append(Mistake(number, told, f"{answer.score:.2f}"))
        if answer.rgb_mean is not None:
            apart = np.abs(np.asarray(answer.rgb_mean) - mean).max()
            mean_differences.append(float(apart))
            if apart > MEAN_TOLERANCE:
                told = f"the means {_shown(mean)} of red, green and blue"
                mistakes.append(Mistake(number, told, _shown(answer.rgb_mean)))
    return ClientCheck(
        file=file.name,
        n_images=len(answers),
        n_whole=len(smoke.images),
        max_score_difference=max(score_differences, default=None),
        max_mean_difference=max(mean_differences, default=None),
        mistakes=tuple(mistakes),
    )


def _shown(values: Any) -> str:
    return ", ".join(f"{value:.1f}" for value in values)

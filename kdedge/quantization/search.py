"""The search for an INT8 model that agrees with the float model, within a time limit.

Steps follow in order of cost, until the agreement expected on other images reaches a target.
Steps 1 to 4 cost nothing on the device. Step 5 makes the file slower, so that a lower agreement
ends it:

1. channels centered, SmoothQuant with alpha 0.5, also for the values of attention;
2. SmoothQuant's alpha for each site by the error of its layers;
3. biases corrected by the mean error of quantized layers (Nagel et al., arXiv:1906.04721);
4. layer-wise rounding of weights (`round_weight`);
5. as few layers as possible left in float, by their sensitivity: the error of the logits with all
   layers in INT8, minus the error with this layer in float.

Ranges include the largest values. Ranges by percentile, squared error or entropy gained at most 0.2
points of the expected agreement on a small CLIP, also with planted outliers, and on
EfficientNet-Lite0.

A step's candidate is kept if it raises the expected agreement (`Score`).
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kdedge.errors import DataError, Terminated, survive
from kdedge.progress import progress
from kdedge.quantization.candidate import (
    DEFAULT_ALPHA,
    CalibratedModel,
    Candidate,
    layer_error,
    output_shift,
    round_weight,
)
from kdedge.quantization.fake import attach
from kdedge.quantization.sites import BATCH, InputStatistics, Site, observe_layers

log = logging.getLogger(__name__)

_N_INT8_STEPS = 4  # candidates with all layers in INT8

# Images on which each layer's sensitivity is measured; the error of logits needs few images
_N_SENSITIVITY = 64

# A slow model is measured on fewer images, by shares of the time limit: one for each candidate, but
# with at least four times the least images, and one for the sensitivity of all layers.
_LEAST_IMAGES = 16
_CANDIDATE_SHARE = 1 / 25
_SENSITIVITY_SHARE = 1 / 4


@dataclass(frozen=True)
class Score:
    """Agreement of a candidate with the float model on the held-out images.

    Attributes:
        agreement_percent: share of images with the same top-1.
        expected_percent: the agreement expected on other images. A few hundred images have few
            disagreements, so each image's error is added to every image's float logits; this is
            the share of these M * M pairs that keep their top-1.
        logit_error_percent: length of the logits' error as a share of the logits' length, both
            without their mean over the classes.
    """

    agreement_percent: float
    expected_percent: float
    logit_error_percent: float


class _Stop(Exception):  # noqa: N818 - not an error
    """Ends the search with the best candidate so far."""


class SearchResult(NamedTuple):
    """The INT8 model that a search has found.

    Attributes:
        candidate: the model.
        record: plain values for `artifact.json`: images, target, steps, layers, and why the search
            ended.
    """

    candidate: Candidate
    record: dict[str, Any]


def search(
    model: nn.Module,
    sites: Sequence[Site],
    calibration: Tensor,
    held_out: Tensor,
    *,
    target_percent: float,
    enough_percent: float,
    minutes: float,
    class_matrix: Tensor | None = None,
) -> SearchResult:
    """Searches for an INT8 model; the first candidate is made even if the time is over.

    Ctrl-C ends the search with the best candidate so far; before the first one it interrupts.

    Args:
        model: the folded model, float32 on the CPU; not changed.
        sites: the layers to quantize, grouped by common inputs.
        calibration: [N, 3, S, S], as the model takes them.
        held_out: [M, 3, S, S], other images, which decide between candidates. If there are none,
            the first candidate is the result.
        target_percent: expected agreement that ends the search.
        enough_percent: expected agreement from which no more layers are left in float, since these
            make the file slower.
        minutes: time limit; the search ends before a step that would exceed it.
        class_matrix: [C, D], for a model with open classes, whose outputs are features [B, D].

    Raises:
        DataError: pixels or the model's values are NaN or infinite.
    """
    for images in (calibration, held_out):
        if images.is_floating_point() and not images.isfinite().all():
            raise DataError("INT8: an image has NaN or infinite pixels.\n  Check data.unlabeled.")
    running = _Search(
        folded=model,
        sites=sites,
        held_out=held_out,
        target=target_percent,
        enough=enough_percent,
        minutes=minutes,
        class_matrix=class_matrix,
    )
    with torch.no_grad():
        running.run(calibration)
    return SearchResult(running.best, running.record())


@dataclass
class _Search:
    """The state of a search; see `search` for its arguments."""

    folded: nn.Module
    sites: Sequence[Site]
    held_out: Tensor
    target: float
    enough: float
    minutes: float
    class_matrix: Tensor | None
    observed: dict[str, InputStatistics] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)
    sensitivity: dict[str, float] = field(default_factory=dict)
    best: Candidate = field(init=False)
    expected_percent: float = -1.0
    ended: str = "all steps were tried"

    def run(self, calibration: Tensor) -> None:
        """Tries candidates until one of them ends the search."""
        self._began = time.monotonic()
        names: list[str] = []
        for site in self.sites:
            names += site.layers
        with progress("INT8: reading ranges", len(calibration), unit="images") as advance:
            self.observed = observe_layers(self.folded, names, calibration, advance)
        self._seconds_per_image = (time.monotonic() - self._began) / max(1, len(calibration))
        self.held_out = self._affordable(self.held_out, 4 * _LEAST_IMAGES, _CANDIDATE_SHARE)
        self._expected = _logits(self.folded, self.held_out, self.class_matrix)
        self._candidate_seconds = 0.0  # time of a candidate on the held-out images
        try:
            with progress("INT8: searching", _N_INT8_STEPS) as advance:
                for number, (name, candidate) in enumerate(self._int8_candidates(), 1):
                    self._try(name, candidate)
                    advance(number, f"agreement {self.expected_percent:.2f} %")
            self._leave_layers_in_float()
        except _Stop as stop:
            self.ended = str(stop)
        except Terminated:
            raise
        except KeyboardInterrupt as interrupt:
            if not self.steps:
                raise
            survive(interrupt)
            self.ended = "Ctrl-C ended it"
            log.warning("INT8: Ctrl-C stopped the search; the best file so far is kept.")

    def _int8_candidates(self) -> Iterator[tuple[str, Candidate]]:
        """Steps 1 to 4 of the module's docstring: a candidate's name and the candidate."""
        centered = CalibratedModel(self.folded, self.sites, self.observed).centered()
        alphas = {site.layers[0]: DEFAULT_ALPHA for site in self.sites if site.can_be_smoothed}
        yield f"centered, SmoothQuant {DEFAULT_ALPHA}", centered.smoothed(alphas).candidate()
        alphas = centered.best_alphas(self._check_time)
        yield "alpha by site", centered.smoothed(alphas).candidate()
        yield "biases corrected", correct_biases(self.best)
        yield "weights rounded by layer", self._rounded()

    def _affordable(self, images: Tensor, least: int, share: float) -> Tensor:
        """The images, thinned out so that the model runs on them in a share of the time limit."""
        n_images = max(least, int(60 * self.minutes * share / self._seconds_per_image))
        n_images = min(n_images, len(images))
        return images[torch.linspace(0, len(images) - 1, n_images).long()]

    def record(self) -> dict[str, Any]:
        """Plain values about the search and its best candidate, for `artifact.json`."""
        best = self.best  # always set: the first candidate is made at any time limit
        layers = {}
        for name in self.observed:
            quantized = best.layers.get(name)
            error = None
            if quantized is not None:
                layer = best.model.get_submodule(name)
                error = round(100 * layer_error(layer, quantized, best.inputs[name]) ** 0.5, 4)
            layers[name] = {
                "precision": "float" if quantized is None else "int8",
                "error_percent": error,
                "sensitivity": self.sensitivity.get(name),
            }
        return {
            "n_held_out": len(self.held_out),
            "target_agreement_percent": self.target,
            "enough_agreement_percent": self.enough,
            "minutes": self.minutes,
            "seconds": round(time.monotonic() - self._began, 1),
            "ended": self.ended,
            "reached": self.expected_percent >= self.target,
            "steps": self.steps,
            "alphas": best.alphas,
            "layers": layers,
            "in_float": [name for name in self.observed if name not in best.layers],
        }

    def _rounded(self) -> Candidate:
        """The best candidate with the weights of all linear layers rounded by `round_weight`."""
        layers = dict(self.best.layers)
        for name, quantized in layers.items():
            self._check_time()
            layer = self.best.model.get_submodule(name)
            if isinstance(layer, nn.Linear):
                layers[name] = round_weight(layer, quantized, self.best.inputs[name])
        return dataclasses.replace(self.best, layers=layers)

    def _leave_layers_in_float(self) -> None:
        """Step 5: tries candidates with the most sensitive layers in float: 1, then more."""
        best = self.best
        self._check_enough()
        images = self.held_out[:_N_SENSITIVITY]
        images = self._affordable(images, _LEAST_IMAGES, _SENSITIVITY_SHARE / len(best.layers))
        expected = _logits(self.folded, images, self.class_matrix)
        baseline = _error_percent(_candidate_logits(best, images, self.class_matrix), expected)
        with progress("INT8: sensitivity", len(best.layers), unit="layers") as advance:
            for number, name in enumerate(best.layers):
                self._check_time()
                logits = _candidate_logits(leave_in_float(best, [name]), images, self.class_matrix)
                self.sensitivity[name] = round(baseline - _error_percent(logits, expected), 4)
                advance(number + 1)
        worst = sorted(self.sensitivity, key=lambda name: -self.sensitivity[name])
        numbers = [1]
        while numbers[-1] < len(worst):
            numbers.append(numbers[-1] + max(1, numbers[-1] // 3))
        del numbers[-1]  # no layer would be left in INT8
        with progress("INT8: trying layers in float", len(numbers)) as advance:
            for tried, n_left in enumerate(numbers, 1):
                noun = "layer" if n_left == 1 else "layers"
                self._try(f"{n_left} {noun} in float", leave_in_float(best, worst[:n_left]))
                advance(tried, f"agreement {self.expected_percent:.2f} %")
                self._check_enough()

    def _try(self, name: str, candidate: Candidate) -> None:
        """Measures a candidate, and keeps it if it is the best; ends the search at the target."""
        if self.steps:
            self._check_time()
        began = time.monotonic()
        if len(self.held_out) == 0:
            self.best = candidate
            raise _Stop("no images were left to choose by")
        logits = _candidate_logits(candidate, self.held_out, self.class_matrix)
        measured = score(logits, self._expected)
        self._candidate_seconds = time.monotonic() - began
        is_kept = measured.expected_percent > self.expected_percent
        seconds = round(time.monotonic() - self._began, 1)
        step = {"step": name, **dataclasses.asdict(measured), "kept": is_kept}
        self.steps.append({**step, "at_seconds": seconds})
        if is_kept:  # the record has the other steps, too
            self.best = candidate
            self.expected_percent = measured.expected_percent
            log.info(
                f"INT8, {name}: {measured.agreement_percent:.1f} % of {len(self.held_out)} held-out"
                " images keep their class."
            )
        if self.expected_percent >= self.target:
            raise _Stop("the target was reached")

    def _check_enough(self) -> None:
        """Ends the search if the agreement justifies no more layers in float."""
        if self.expected_percent >= self.enough:
            raise _Stop("enough agreement for the layers left in float")

    def _check_time(self) -> None:
        """Ends the search if the next candidate would take too long."""
        if time.monotonic() + self._candidate_seconds > self._began + 60 * self.minutes:
            raise _Stop("its time was over")


def correct_biases(candidate: Candidate) -> Candidate:
    """Returns a candidate whose biases compensate for the mean error of its layers.

    Attention, LayerNorm and GELU do not average out a shift, so it adds up over the blocks.
    """
    model = copy.deepcopy(candidate.model)
    for name, quantized in candidate.layers.items():
        layer: Any = model.get_submodule(name)
        if layer.bias is not None:
            layer.bias.add_(output_shift(layer, quantized, candidate.inputs[name]))
    return dataclasses.replace(candidate, model=model)


def leave_in_float(candidate: Candidate, names: Sequence[str]) -> Candidate:
    """Returns a candidate with some layers in float, with their exact biases."""
    layers = {name: layer for name, layer in candidate.layers.items() if name not in names}
    model = copy.deepcopy(candidate.model)
    for name in names:
        layer: Any = model.get_submodule(name)
        if layer.bias is not None:
            layer.bias.copy_(candidate.exact.get_submodule(name).bias)
    return dataclasses.replace(candidate, model=model, layers=layers)


def _candidate_logits(candidate: Candidate, images: Tensor, class_matrix: Tensor | None) -> Tensor:
    """The logits [M, C] of a candidate in INT8."""
    model = copy.deepcopy(candidate.model)
    attach(model, candidate.layers)
    return _logits(model, images, class_matrix)


def _logits(model: nn.Module, images: Tensor, class_matrix: Tensor | None) -> Tensor:
    """[M, 3, S, S] -> [M, C]."""
    parts = [model(images[start : start + BATCH]) for start in range(0, len(images), BATCH)]
    if not parts:
        return torch.zeros(0, 0)
    outputs = torch.cat(parts)
    return outputs if class_matrix is None else outputs @ class_matrix.T


def _error_percent(logits: Tensor, expected: Tensor) -> float:
    """Length of the error as a share of the logits' length, without means over the classes."""
    centered = expected - expected.mean(dim=1, keepdim=True)
    error = logits - expected
    error = error - error.mean(dim=1, keepdim=True)
    return 100 * float(error.norm() / centered.norm().clamp(min=1e-12))


def score(logits: Tensor, expected: Tensor) -> Score:
    """The agreement of a model's logits [M, C] with the float model's."""
    is_same = logits.argmax(dim=1) == expected.argmax(dim=1)
    errors = logits - expected
    is_kept = [(row + errors).argmax(dim=1) == row.argmax() for row in expected]
    return Score(
        agreement_percent=100 * float(is_same.double().mean()),
        expected_percent=100 * float(torch.cat(is_kept).double().mean()),
        logit_error_percent=_error_percent(logits, expected),
    )

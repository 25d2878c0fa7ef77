"""Ridge regression: on the features of several blocks of a frozen encoder, without gradients.

With `h` an image's standardized block features (`clip/vision.py`), a random layer `R`, `r`
(random features, Rahimi and Recht, NIPS 2007), and rows `phi(h) = [relu(R h + r), h]`:

    W = (sum_i w_i phi_i phi_i^T + lambda tr I)^-1 sum_i w_i phi_i z_i^T

over centered rows and targets, in float64; `tr` is the mean of the first sum's diagonal. The
intercept is not penalized. Related: LP++, arXiv:2404.02285.

As a teacher or a baseline it learns from labels alone: `z_i` is the one-hot label, each class has
the same weight, and there is no random layer. With the hat matrix `H` (`zhat = H z`), a regression
on all images but i predicts exactly `z_i + (zhat_i - z_i) / (1 - H_ii)` for image i. The
cross-entropy of these leave-one-out predictions chooses `lambda`, the features (of the last or of
all chosen blocks), the scale of the logits, and the share of CLIP's own balanced zero-shot logits.
The only image of a class is left out of that cross-entropy, since the other images say nothing
about its class. If most classes have only one image, `lambda` and scale are fixed, and the share is
the one whose zero-shot logits alone have the lowest cross-entropy.

As a student it learns the teacher's centered logits, or its image features, on the unlabeled
images; `lambda` has the smallest divergence from the teacher on held-out images. Labeled images
may be further rows (`labeled_weight`), whose target is the centered one-hot label, scaled to the
length of the teacher's logits. Leave-one-out cannot judge a student, whose teacher has seen the
labels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from kdedge.clip.backbone import Backbone, ImageBackbone, unit_length
from kdedge.clip.blocks import linear_of
from kdedge.clip.logit_adjustment import find_offsets
from kdedge.clip.vision import BlockFeatures
from kdedge.distributed import SINGLE_PROCESS
from kdedge.errors import DivergedError, RecipeError
from kdedge.methods.base import (
    Classifier,
    ClosedFormData,
    ClosedFormMethod,
    ImageModules,
    MethodInputs,
    MethodSettings,
)
from kdedge.methods.registry import DataNeeds, Declaration
from kdedge.methods.zeroshot import ensemble_text_features
from kdedge.quantization.sites import FloatLinear

METHOD = Declaration(
    label="Ridge regression",
    paper="arXiv:2404.02285",
    data_needs=DataNeeds(labels=True),
    student_data_needs=DataNeeds(unlabeled_images=True, novel_class_names=True),
)

IMPOSSIBLE = -1e4
"""Logit of a class without labels: its softmax in float32 is 0."""

_LAMBDAS_LABELS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
_LAMBDAS_TEACHER = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
_MIDDLE_LAMBDA = 1e-2
# Standard deviations of the zero-shot logits, relative to one-hot targets of 1
_TEXT_SHARES = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
# Used where most classes have one label. Chosen on training images of DTD's ten, EuroSAT,
# Caltech101 and CIFAR-10: 0.3 to 4.4 points below the best setting of each draw; leave-one-out's
# choice is 1 to 9 points below it.
_ONE_LABEL_LAMBDA = 100.0
_ONE_LABEL_SCALE = 8.0
# Chosen on training images of EuroSAT, DTD's ten, Caltech101 and CIFAR-10: among 0, 1, 4, 16 and
# 64, at 1 to 16 labels of 4, 10 and 100 classes. With 4 labels of 4 classes, EfficientNet-Lite2
# gains 7 to 9 points; nowhere does it cost more than 0.5.
_PRIOR_ROWS = 16
# Logit of a predicted one-hot target of 1, from 1 to 64
_SCALES = tuple(2.0 ** (i / 2) for i in range(13))


class Settings(MethodSettings):
    """Settings of the ridge regression."""

    outputs: Literal["logits", "features"] = Field(
        "logits",
        description="logits: one output per class, for a closed list of classes; features: a"
        " student's image features, to compare with its teacher's class vectors, also of later"
        " classes.",
    )
    labeled_weight: float = Field(
        0.0,
        ge=0,
        le=1e6,
        description="What a labeled image weighs for a student, where an unlabeled one weighs 1;"
        " needs outputs: logits and labels of every class.",
    )
    n_blocks: int = Field(
        5,
        ge=0,
        le=1000,
        description="Blocks or stages whose features are used, spread evenly to the last.",
    )
    n_random: int = Field(
        2048, ge=0, le=65_536, description="Random features of a student; 0 for none."
    )

    @property
    def classifier(self) -> Classifier:
        """Its features are the logits, unless they are a student's image features."""
        return "feature_logits" if self.outputs == "logits" else "teacher_vectors"

    @property
    def learns_from_labels(self) -> bool:
        """True if labeled images are rows of a student's regression."""
        return self.labeled_weight > 0

    needs_text_encoder: ClassVar[bool] = False  # without one, zero-shot logits are left out


class Regression(nn.Module):
    """Block features [B, D_blocks] -> [B, D_out]: standardized, a random layer, a linear layer.

    Args:
        n_in: D_blocks.
        n_own: D, the number of the encoder's own features, which come first.
        n_random: outputs of the random layer.
        n_out: D_out.
        generator: draws the random layer.
    """

    mean: Tensor
    gain: Tensor
    scale: Tensor

    def __init__(
        self, n_in: int, n_own: int, n_random: int, n_out: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.n_own = n_own
        self.register_buffer("mean", torch.zeros(n_in))
        self.register_buffer("gain", torch.ones(n_in))
        self.register_buffer("scale", torch.ones(()))
        self.random = _linear(n_in, n_random)
        self.random.weight.data = torch.randn(n_random, n_in, generator=generator) / n_in**0.5
        self.random.bias.data = torch.randn(n_random, generator=generator)
        self.out = _linear(n_random + n_in, n_out)
        self.text: nn.Linear | None = _linear(n_own, n_out)
        self.requires_grad_(False)

    def standardize(self, blocks: Tensor, weights: Tensor) -> None:
        """Sets mean and gain from weighted rows [n, D_blocks]; constant columns become 0.

        In few rows, some columns are nearly constant by chance, and would dominate. So variances
        are shrunk toward their mean, which counts like 16 further rows.
        """
        share = (weights / weights.sum()).double()[:, None]
        mean = (share * blocks.double()).sum(dim=0)
        variance = (share * (blocks.double() - mean).square()).sum(dim=0)
        n = len(blocks)
        std = ((n * variance + _PRIOR_ROWS * variance.mean()) / (n + _PRIOR_ROWS)).sqrt()
        is_constant = std <= 1e-6 * (1 + mean.abs())
        self.mean.copy_(mean)
        self.gain.copy_(torch.where(is_constant, 0.0, 1 / std))

    def rows(self, blocks: Tensor) -> Tensor:
        """[B, D_blocks] -> [B, n_random + D_blocks], `phi`."""
        blocks = (blocks - self.mean) * self.gain
        if not len(self.random.bias):
            return blocks
        return torch.cat([F.relu(self.random(blocks)), blocks], dim=1)

    def forward(self, blocks: Tensor) -> Tensor:
        """[B, D_blocks] -> [B, D_out]."""
        outputs: Tensor = self.out(self.rows(blocks))
        if self.text is not None:
            outputs = outputs + self.text(unit_length(blocks[:, : self.n_own]))
        return outputs


class RidgeEncoder(nn.Module):
    """Images [B, 3, H, W] -> [B, D_out]: the deployed path."""

    def __init__(self, blocks: BlockFeatures, regression: Regression) -> None:
        super().__init__()
        self.blocks = blocks
        self.regression = regression

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D_out]."""
        outputs: Tensor = self.regression(self.blocks(images))
        return outputs


class Method(ClosedFormMethod):
    """A ridge regression on a frozen backbone, which may have no text encoder.

    Raises:
        RecipeError: `outputs` is features, but there is no teacher or `labeled_weight` is set.
    """

    module: Regression

    def __init__(self, backbone: ImageBackbone, settings: Settings, inputs: MethodInputs) -> None:
        super().__init__(backbone, settings, inputs)
        is_student = inputs.is_student
        vectors = torch.eye(len(inputs.class_names))
        if settings.outputs == "features":
            if not is_student or settings.labeled_weight:
                what = "labeled_weight needs" if is_student else "a teacher or a baseline has"
                raise RecipeError(
                    f"ridge with outputs: features: {what} outputs: logits.\n  Leave outputs out."
                )
            vectors = inputs.vectors()
        self._vectors = vectors.to(backbone.device)
        self._train_classes = list(inputs.train_classes)
        self._blocks = BlockFeatures(backbone.visual, settings.n_blocks)
        size_px = backbone.preprocess.size_px
        with torch.no_grad():
            blocks = self._blocks(torch.zeros(1, 3, size_px, size_px, device=backbone.device))
        n_random = settings.n_random if is_student else 0
        self.module = Regression(
            n_in=blocks.shape[1],
            n_own=backbone.embed_dim,
            n_random=n_random,
            n_out=vectors.shape[1],
            generator=inputs.generator,
        )
        if inputs.teacher is not None and settings.outputs == "features":
            self.module.scale.fill_(inputs.teacher.scale)
        self.module.to(backbone.device)

    @property
    def scale(self) -> float:
        """The teacher's scale if outputs are features, 1 if they are logits."""
        return float(self.module.scale)

    @torch.no_grad()
    def forward_features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D], unit length, or [B, C] logits, by `outputs`."""
        outputs: Tensor = self.module(self._blocks(images))
        return outputs if self._settings.outputs == "logits" else unit_length(outputs)

    @torch.no_grad()
    def fit(self, data: ClosedFormData) -> dict[str, Any]:
        """Fits a student to its teacher, a teacher or a baseline to labels."""
        if self._inputs.is_student:
            return self._fit_to_teacher(data)
        return self._fit_to_labels(data)

    def _fit_to_labels(self, data: ClosedFormData) -> dict[str, Any]:
        """Fits the regression to labeled images; leave-one-out chooses the settings."""
        module = self.module
        n_classes = len(self._train_classes)
        encoded = []
        label_batches = []
        for images, batch_labels in data.labeled(slice(0, data.n_leave_one_out)):
            encoded.append(self._encode(data, images))
            label_batches.append(batch_labels)
        blocks = _joined(encoded)
        labels = torch.cat(label_batches).to(blocks.device)
        weights = data.equal_classes(labels)
        module.standardize(blocks, weights)
        rows = module.rows(blocks).double()
        targets = F.one_hot(labels, n_classes).double()
        solvers = {
            n: DualRidge(rows[:, :n], targets, weights)
            for n in sorted({module.n_own, rows.shape[1]})
        }
        texts = self._text_logits(blocks, labels)
        counts = torch.bincount(labels, minlength=n_classes)
        n_single = int((counts == 1).sum())
        if n_single > (counts > 1).sum():
            attempts = _with_fixed_settings(rows.shape[1], texts, labels, weights)
        else:
            is_alone = counts[labels] == 1  # the only image of its class
            weights = weights.masked_fill(is_alone, 0)
            attempts = _leave_one_out(solvers, texts, labels, weights)
        best = min(attempts, key=lambda attempt: attempt.loss)
        if data.n_labeled > data.n_leave_one_out:
            solution = self._solve_for_all(data, best)
        else:
            solution = solvers[best.n_columns].solve(best.lam)
        self._set_label_solution(best, solution, texts)
        n_single = int((data.label_counts == 1).sum())  # of all labels, not only these
        return self._label_record(best, data.n_labeled, n_single)

    def _encode(self, data: ClosedFormData, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D_blocks], float32, in the precision of the recipe."""
        with data.autocast():
            blocks: Tensor = self._blocks(images)
        return blocks

    def _text_logits(self, blocks: Tensor, labels: Tensor) -> _TextLogits | None:
        """Zero-shot CLIP's logits, balanced; None if the backbone has no text encoder."""
        if not isinstance(self._backbone, Backbone):
            return None
        vectors = ensemble_text_features(
            self._backbone, self._inputs.class_names, [self._inputs.template]
        )
        features = unit_length(blocks[:, : self.module.n_own])
        logits = self._backbone.scale * features @ vectors[self._train_classes].T
        counts = torch.bincount(labels, minlength=len(self._train_classes)).double() + 1
        offsets = find_offsets(logits, counts / counts.sum()).float()
        std = (logits - offsets).std().clamp_min(1e-6)
        weight = self._backbone.scale * vectors[self._train_classes] / std
        return _TextLogits(((logits - offsets) / std).double(), weight, offsets / std)

    def _solve_for_all(self, data: ClosedFormData, chosen: _Attempt) -> Solution:
        """The regression on all labeled images, with the settings chosen on some of them."""
        n_columns = chosen.n_columns
        n_classes = len(self._train_classes)
        sums = NormalEquations(n_columns, n_classes, self.module.mean.device)
        for images, labels in data.labeled(slice(None)):
            rows = self.module.rows(self._encode(data, images))[:, :n_columns]
            labels = labels.to(rows.device)
            sums.add(rows, F.one_hot(labels, n_classes), data.equal_classes(labels))
        return sums.solve(chosen.lam)

    def _set_label_solution(
        self, chosen: _Attempt, solution: Solution, texts: _TextLogits | None
    ) -> None:
        """Sets the layers of classes with labels; all others become impossible."""
        module = self.module
        known = self._train_classes
        scale = chosen.scale
        module.out.weight[known, : chosen.n_columns] = (scale * solution.weight.T).float()
        module.out.bias.fill_(IMPOSSIBLE)
        module.out.bias[known] = (scale * solution.bias).float()
        if texts is not None:
            assert module.text is not None
            module.text.weight[known] = scale * chosen.text_share * texts.weight
            module.out.bias[known] -= scale * chosen.text_share * texts.offsets

    def _label_record(self, chosen: _Attempt, n_labeled: int, n_single: int) -> dict[str, Any]:
        features = "all blocks" if chosen.n_columns > self.module.n_own else "the last layer"
        settings = f"features of {features}, lambda {chosen.lam:g}"
        if isinstance(self._backbone, Backbone):
            settings += f", {chosen.text_share:g} times zero-shot CLIP's logits"
        if chosen.percent is None:
            summary = (
                f"learned from {n_labeled:,} labels: {settings}. {n_single} of"
                f" {len(self._train_classes)} classes have one label, so that these settings are"
                " fixed and no accuracy can be estimated; label four images of each class or more"
            )
        else:
            without = f", without {n_single} that have one label" if n_single else ""
            summary = (
                f"right on {chosen.percent:.1f} % of its labeled images (mean over"
                f" classes{without}), each judged by a fit to the others. Chosen for that:"
                f" {settings}"
            )
        return {
            "summary": summary,
            "features": features,
            "lambda": chosen.lam,
            "text_share": chosen.text_share,
            "scale": chosen.scale,
            "leave_one_out_percent": chosen.percent,
        }

    def _fit_to_teacher(self, data: ClosedFormData) -> dict[str, Any]:
        """Fits the regression to the teacher; held-out images choose lambda."""
        n = data.n_held_out
        encoded = []
        feature_batches = []
        logit_batches = []
        first = data.unlabeled(slice(0, n + data.n_standardize), SINGLE_PROCESS)
        for images, batch_features, batch_logits in first:
            encoded.append(self._encode(data, images))
            feature_batches.append(batch_features)
            logit_batches.append(batch_logits)
        blocks = _joined(encoded)
        features = torch.cat(feature_batches)
        logits = torch.cat(logit_batches)
        self.module.standardize(blocks[n:], torch.ones(len(blocks) - n, device=blocks.device))
        sums = self._unlabeled_sums(data, blocks[n:], self._target(features[n:], logits[n:]))
        n_unlabeled = sums.n_rows
        best = self._choose_lambda(sums, blocks[:n], logits[:n])
        solution = best.solution
        if data.n_labeled:
            self._add_labels(data, sums)
            solution = sums.solve(best.lam)
        self._set_solution(solution)
        record = {"lambda": best.lam}
        if n:
            record["divergence"] = best.divergence
        return self._teacher_record(record, data, logits, n_unlabeled)

    def _unlabeled_sums(
        self, data: ClosedFormData, blocks: Tensor, targets: Tensor
    ) -> NormalEquations:
        """The sums over unlabeled images without the held-out; the first were read already."""
        out = self.module.out
        sums = NormalEquations(out.in_features, out.out_features, blocks.device)
        share = data.group.shard(len(blocks))
        sums.add(self.module.rows(blocks[share]), targets[share])
        rest = slice(data.n_held_out + data.n_standardize, None)
        for images, features, logits in data.unlabeled(rest, data.group):
            sums.add(self.module.rows(self._encode(data, images)), self._target(features, logits))
        sums.reduce(data.group.all_reduce_sum)
        return sums

    def _choose_lambda(
        self, sums: NormalEquations, blocks: Tensor, teacher_logits: Tensor
    ) -> _TeacherAttempt:
        """The lambda with the smallest divergence; a middle one if no images are held out."""
        lambdas = _LAMBDAS_TEACHER if len(blocks) else (_MIDDLE_LAMBDA,)
        attempts = []
        for lam in lambdas:
            solution = sums.solve(lam)
            self._set_solution(solution)
            divergence = self._divergence(blocks, teacher_logits)
            attempts.append(_TeacherAttempt(lam, divergence, solution))
        return min(attempts, key=lambda attempt: attempt.divergence)

    def _teacher_record(
        self, settings: dict[str, float], data: ClosedFormData, logits: Tensor, n_unlabeled: int
    ) -> dict[str, Any]:
        """A summary in words, the settings, and the classes that the teacher never predicts."""
        summary = f"learned from {n_unlabeled:,} unlabeled images"
        if data.n_labeled:
            summary += f" and {data.n_labeled:,} labels"
        summary += f". Lambda is {settings['lambda']:g}"
        if data.n_held_out:
            summary += f", which agrees best with the teacher on {data.n_held_out:,} other images"
        names = self._inputs.class_names
        per_class = torch.bincount(logits.argmax(dim=1), minlength=len(names)).tolist()
        absent = [name for name, n_images in zip(names, per_class, strict=True) if not n_images]
        if not absent or len(logits) < 5 * len(names):
            return {"summary": summary, **settings}
        examples = ", ".join(absent[:3])
        if len(absent) > 3:
            examples += ", ..."
        summary += (
            f". The teacher predicts none of {len(logits):,} unlabeled images as"
            f" {examples}:"
            " the student learns nothing of these classes there; add images"
        )
        return {"summary": summary, **settings, "unseen_classes": absent}

    def _target(self, features: Tensor, logits: Tensor) -> Tensor:
        """The regression's targets: image features, or centered logits."""
        if self._settings.outputs == "features":
            return features
        return logits - logits.mean(dim=1, keepdim=True)

    def _set_solution(self, solution: Solution) -> None:
        """Sets the linear layer to a solution."""
        self.module.out.weight.copy_(solution.weight.T)
        self.module.out.bias.copy_(solution.bias)

    def _divergence(self, blocks: Tensor, teacher_logits: Tensor) -> float:
        """Mean KL(teacher | student) in nats; NaN if there are no images."""
        outputs = self.module(blocks)
        if self._settings.outputs == "features":
            outputs = self.scale * unit_length(outputs) @ self._vectors.T
        log_probabilities = teacher_logits.to(outputs.device).log_softmax(dim=1)
        return float(
            F.kl_div(
                outputs.log_softmax(dim=1),
                log_probabilities,
                reduction="batchmean",
                log_target=True,
            )
        )

    def _add_labels(self, data: ClosedFormData, sums: NormalEquations) -> None:
        """Adds the labeled images as rows, with targets as long as the teacher's."""
        n_classes = self.module.out.out_features
        device = sums.rows.device
        size = sums.target_size() / (1 - 1 / n_classes) ** 0.5
        for images, labels in data.labeled(slice(None)):
            labels = labels.to(device)
            targets = size * (F.one_hot(labels, n_classes).double() - 1 / n_classes)
            weights = self._settings.labeled_weight * data.equal_classes(labels)
            sums.add(self.module.rows(self._encode(data, images)), targets, weights)

    def class_vectors(self) -> Tensor:
        """[C, D], the teacher's class vectors; for logits [C, C], unit vectors."""
        return self._vectors

    def image_modules(self) -> ImageModules:
        """Block features and regression, without blocks and texts whose weights are all 0."""
        module = copy.deepcopy(self.module)
        blocks = self._blocks
        n_own = module.n_own
        out = module.out
        if not len(module.random.bias) and not out.weight[:, n_own:].any():
            blocks = BlockFeatures(self._backbone.visual, 0)
            module.mean = module.mean[:n_own]
            module.gain = module.gain[:n_own]
            module.out = linear_of(out.weight[:, :n_own], out.bias, FloatLinear)
            module.requires_grad_(False)
        if module.text is not None and not module.text.weight.any():
            module.text = None
        encoder = RidgeEncoder(blocks, module)
        return ImageModules(encoder, has_unit_length=self._settings.outputs == "features")


class Solution(NamedTuple):
    """A linear layer that predicts K targets from D columns.

    Attributes:
        weight: [D, K].
        bias: [K].
    """

    weight: Tensor
    bias: Tensor


class DualRidge:
    """Ridge regression of few rows in the dual form; one decomposition serves all lambdas.

    Args:
        rows: [n, D], float64.
        targets: [n, K], float64.
        weights: [n], weights of the rows.
    """

    def __init__(self, rows: Tensor, targets: Tensor, weights: Tensor) -> None:
        self._share = (weights / weights.sum())[:, None]
        self._root = weights.sqrt()[:, None]
        self._center = (self._share * rows).sum(dim=0)
        self._target_center = (self._share * targets).sum(dim=0)
        self._rows = self._root * (rows - self._center)
        self._targets = self._root * (targets - self._target_center)
        self._raw_targets = targets
        self._values, self._vectors = torch.linalg.eigh(self._rows @ self._rows.T)
        self._values = self._values.clamp_min(0)
        # For equal rows, the solution is the mean
        self._lambda_unit = (self._values.sum() / rows.shape[1]).clamp_min(1e-12)

    def leave_one_out(self, lam: float) -> Tensor:
        """[n, K]: for each row, the prediction of a regression on the other rows."""
        shrinkage = self._values / (self._values + lam * self._lambda_unit)
        fitted = self._vectors @ (shrinkage[:, None] * (self._vectors.T @ self._targets))
        leverage = (self._vectors.square() * shrinkage).sum(dim=1, keepdim=True) + self._share
        residuals: Tensor = (self._targets - fitted) / self._root / (1 - leverage).clamp_min(1e-9)
        return self._raw_targets - residuals

    def solve(self, lam: float) -> Solution:
        """Weight [D, K] and bias [K]."""
        solved = self._vectors.T @ self._targets / (self._values + lam * self._lambda_unit)[:, None]
        weight = self._rows.T @ (self._vectors @ solved)
        return Solution(weight, self._target_center - self._center @ weight)


class NormalEquations:
    """Ridge regression from sums over the rows; memory does not grow with their number."""

    def __init__(self, n_in: int, n_out: int, device: torch.device) -> None:

        def zeros(*sizes: int) -> Tensor:
            return torch.zeros(*sizes, dtype=torch.float64, device=device)

        self.rows_rows = zeros(n_in, n_in)
        self.rows_targets = zeros(n_in, n_out)
        self.rows = zeros(n_in)
        self.targets = zeros(n_out)
        self.counts = zeros(2)

    @property
    def n_rows(self) -> int:
        """Weighted number of rows."""
        return int(self.counts[0])

    def target_size(self) -> float:
        """Root mean square of the targets' lengths."""
        return float((self.counts[1] / self.counts[0]).sqrt())

    def add(self, rows: Tensor, targets: Tensor, weights: Tensor | None = None) -> None:
        """Adds rows [B, n_in] and targets [B, n_out] with weights [B]."""
        rows = rows.double()
        targets = targets.double().to(rows.device)
        weighted = rows if weights is None else weights[:, None] * rows
        weighted_targets = targets if weights is None else weights[:, None] * targets
        self.rows_rows.addmm_(weighted.T, rows)
        self.rows_targets.addmm_(weighted.T, targets)
        self.rows += weighted.sum(dim=0)
        self.targets += weighted_targets.sum(dim=0)
        n_rows = targets.new_tensor(len(rows)) if weights is None else weights.sum()
        self.counts += torch.stack([n_rows, (weighted_targets * targets).sum()])

    def reduce(self, all_reduce: Callable[[Tensor], None]) -> None:
        """Adds the sums of all processes."""
        for tensor in (self.rows_rows, self.rows_targets, self.rows, self.targets, self.counts):
            all_reduce(tensor)

    def solve(self, lam: float) -> Solution:
        """Weight [n_in, n_out] and bias [n_out]."""
        _check_finite(self.rows)
        n = self.counts[0]
        mean = self.rows / n
        matrix = self.rows_rows - n * torch.outer(mean, mean)
        # If all images are equal, the matrix is rounding error, and the solution should be the
        # mean: lambda then needs another unit that is not near 0
        lambda_unit = torch.maximum(
            matrix.diagonal().mean(), 1e-6 * self.rows_rows.diagonal().mean() + 1e-12
        )
        matrix.diagonal().add_(lam * lambda_unit)
        centered = self.rows_targets - torch.outer(mean, self.targets)
        weight = torch.cholesky_solve(centered, torch.linalg.cholesky(matrix))
        return Solution(weight, self.targets / n - mean @ weight)


def _linear(n_in: int, n_out: int) -> nn.Linear:
    """A frozen linear layer of zeros."""
    layer = linear_of(torch.zeros(n_out, n_in), torch.zeros(n_out), FloatLinear)
    return layer.requires_grad_(False)


class _TextLogits(NamedTuple):
    """Zero-shot CLIP's logits, balanced over the classes, with standard deviation 1.

    Attributes:
        logits: [n, C_known].
        weight: [C_known, D], of unit-length features.
        offsets: [C_known], subtracted from the logits.
    """

    logits: Tensor
    weight: Tensor
    offsets: Tensor


class _TeacherAttempt(NamedTuple):
    """A regression on the teacher, and its mean divergence on held-out images, in nats."""

    lam: float
    divergence: float
    solution: Solution


class _Attempt(NamedTuple):
    """Settings of a regression on labels, and how well it predicts each label from the others.

    Attributes:
        loss: the mean cross-entropy, in nats.
        percent: how many predictions are right; None if nothing was predicted.
        n_columns: the first columns, which are used.
        lam: lambda.
        text_share: share of the zero-shot logits.
        scale: what the logits are multiplied by.
    """

    loss: float
    percent: float | None
    n_columns: int
    lam: float
    text_share: float
    scale: float


def _leave_one_out(
    solvers: Mapping[int, DualRidge], texts: _TextLogits | None, labels: Tensor, weights: Tensor
) -> Iterator[_Attempt]:
    for n_columns, solver in solvers.items():
        for lam in _LAMBDAS_LABELS:
            predictions = solver.leave_one_out(lam)
            for share in (0.0,) if texts is None else _TEXT_SHARES:
                mixed = predictions if texts is None else predictions + share * texts.logits
                losses = {x: _mean_loss(x * mixed, labels, weights) for x in _SCALES}
                scale = min(losses, key=losses.__getitem__)
                is_correct = (mixed.argmax(dim=1) == labels).double()
                # The mean over classes: their weights have equal sums
                percent = 100 * float((weights * is_correct).sum() / weights.sum())
                yield _Attempt(
                    loss=losses[scale],
                    percent=percent,
                    n_columns=n_columns,
                    lam=lam,
                    text_share=share,
                    scale=scale,
                )


def _with_fixed_settings(
    n_columns: int, texts: _TextLogits | None, labels: Tensor, weights: Tensor
) -> Iterator[_Attempt]:
    for share in (0.0,) if texts is None else _TEXT_SHARES:
        loss = 0.0
        if texts is not None:
            loss = _mean_loss(_ONE_LABEL_SCALE * share * texts.logits, labels, weights)
        yield _Attempt(
            loss=loss,
            percent=None,
            n_columns=n_columns,
            lam=_ONE_LABEL_LAMBDA,
            text_share=share,
            scale=_ONE_LABEL_SCALE,
        )


def _mean_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> float:
    """The weighted mean of the cross-entropy, in nats."""
    losses = F.cross_entropy(logits, labels, reduction="none")
    return float((weights * losses).sum() / weights.sum())


def _joined(batches: list[Tensor]) -> Tensor:
    """The block features of all batches in one tensor, checked."""
    blocks = torch.cat(batches)
    _check_finite(blocks)
    return blocks


def _check_finite(rows: Tensor) -> None:
    if not rows.isfinite().all():
        raise DivergedError(
            "The image encoder's features of an image are not finite.\n"
            "  Set optim.precision: fp32, or use other weights."
        )

"""Ridge regression: leave-one-out, sums and the deployed path against slow, obvious versions."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from kdedge.clip.backbone import Backbone
from kdedge.clip.class_vectors import TextFeatureCache
from kdedge.clip.logit_adjustment import find_offsets
from kdedge.clip.vision import BlockFeatures
from kdedge.errors import DivergedError, RecipeError
from kdedge.methods import ridge, zeroshot
from kdedge.methods.base import ClosedFormData, MethodInputs
from kdedge.quantization.sites import FloatLinear
from kdedge.runtime.artifact import Head

NAMES = ["cat", "school_bus", "fox", "golden retriever"]
N_ROWS, N_COLUMNS, N_TARGETS = 12, 7, 3


def table() -> tuple[Tensor, Tensor, Tensor]:
    """Rows, targets and weights, float64."""
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(N_ROWS, N_COLUMNS, generator=generator, dtype=torch.float64)
    targets = torch.randn(N_ROWS, N_TARGETS, generator=generator, dtype=torch.float64)
    weights = torch.rand(N_ROWS, generator=generator, dtype=torch.float64) + 0.5
    return rows, targets, weights


def slow_fit(rows: Tensor, targets: Tensor, weights: Tensor, penalty: float) -> Tensor:
    """[D + 1, K]: weighted ridge regression with an intercept, as last row, that costs nothing."""
    design = torch.cat([rows, torch.ones_like(rows[:, :1])], dim=1)
    penalties = torch.full((design.shape[1],), penalty).double()
    penalties[-1] = 0
    matrix = design.T @ (weights[:, None] * design) + penalties.diag()
    return torch.linalg.solve(matrix, design.T @ (weights[:, None] * targets))


def penalty_of(rows: Tensor, weights: Tensor, lam: float) -> float:
    center = (weights[:, None] * rows).sum(0) / weights.sum()
    return lam * float((weights[:, None] * (rows - center).square()).sum()) / rows.shape[1]


def slow_leave_one_out(rows: Tensor, targets: Tensor, weights: Tensor, penalty: float) -> Tensor:
    answers = []
    for i in range(len(rows)):
        kept = [j for j in range(len(rows)) if j != i]
        fitted = slow_fit(rows[kept], targets[kept], weights[kept], penalty)
        answers.append(rows[i] @ fitted[:-1] + fitted[-1])
    return torch.stack(answers)


@pytest.mark.parametrize("lam", [0.01, 1.0])
def test_rows_at_once_and_in_any_parts_are_solved_as_by_the_normal_equations(lam: float) -> None:
    rows, targets, weights = table()
    sums = ridge.NormalEquations(N_COLUMNS, N_TARGETS, rows.device)
    for part in (slice(0, 5), slice(5, 6), slice(6, None)):
        sums.add(rows[part], targets[part], weights[part])
    expected = slow_fit(rows, targets, weights, penalty_of(rows, weights, lam))
    for solver in (ridge.DualRidge(rows, targets, weights), sums):
        weight, bias = solver.solve(lam)
        torch.testing.assert_close(torch.cat([weight, bias[None]]), expected)


@pytest.mark.parametrize("lam", [0.01, 1.0])
def test_leave_one_out_of_a_few_rows_is_that_of_as_many_fits(lam: float) -> None:
    rows, targets, weights = table()
    found = ridge.DualRidge(rows, targets, weights).leave_one_out(lam)
    penalty = penalty_of(rows, weights, lam)
    torch.testing.assert_close(found, slow_leave_one_out(rows, targets, weights, penalty))


def test_the_sums_of_two_processes_are_added_up() -> None:
    rows, targets, weights = table()
    whole, *halves = (ridge.NormalEquations(N_COLUMNS, N_TARGETS, rows.device) for _ in range(3))
    whole.add(rows, targets, weights)
    for half, part in zip(halves, (slice(0, 4), slice(4, None)), strict=True):
        half.add(rows[part], targets[part], weights[part])
    sent: list[Tensor] = []
    halves[1].reduce(sent.append)
    halves[0].reduce(lambda tensor: tensor.add_(sent.pop(0)))
    torch.testing.assert_close(halves[0].solve(1.0), whole.solve(1.0))
    assert halves[0].target_size() == pytest.approx(whole.target_size())


def build(backbone: Backbone, *, is_student: bool = False, **settings: Any) -> Any:
    shared: dict[str, Any] = {"template": "a photo of a {}.", "train_classes": range(len(NAMES))}
    teacher = None
    if is_student:
        teacher = zeroshot.Method(
            backbone,
            zeroshot.Settings(),
            MethodInputs(NAMES, generator=torch.Generator(), **shared),
        )
    return ridge.Method(
        backbone,
        ridge.Settings(n_random=16, **settings),
        MethodInputs(NAMES, teacher=teacher, generator=torch.Generator().manual_seed(1), **shared),
    )


def images(n_images: int = 24) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(len(NAMES), 3, 32, 32, generator=generator)
    noise = torch.randn(n_images, 3, 32, 32, generator=generator)
    return base[torch.arange(n_images) % len(NAMES)] + 0.5 * noise


def data(backbone: Backbone, *, n_labels: int = 24, spoil: bool = False) -> ClosedFormData:
    pixels, labels = images(), torch.arange(24) % len(NAMES)
    if spoil:
        pixels[3] = float("nan")
    teacher = build(backbone, is_student=True)  # gives the class vectors' axes alone
    texts = zeroshot.ensemble_text_features(backbone, NAMES, ["a photo of a {}."])
    assert teacher.class_vectors().shape == (4, 4)

    def unlabeled(part: slice, _: Any = None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for one in pixels[part].split(5):
            features = backbone.image_features(one)
            yield one, features, backbone.scale * features @ texts.T

    def labeled(part: slice) -> Iterator[tuple[Tensor, Tensor]]:
        chosen = slice(0, n_labels)
        yield from zip(pixels[chosen][part].split(5), labels[chosen][part].split(5), strict=True)

    return ClosedFormData(
        unlabeled,
        n_held_out=4,
        n_standardize=12,
        labeled=labeled,
        n_leave_one_out=24,
        label_counts=torch.bincount(labels[:n_labels], minlength=len(NAMES)),
    )


def fitted(backbone: Backbone, **settings: Any) -> tuple[Any, dict[str, Any]]:
    method = build(backbone, **settings)
    with torch.no_grad():
        record = method.fit(data(backbone, n_labels=24))
    return method, record


def test_labels_alone_are_learned(tiny_backbone: Backbone) -> None:
    method, record = fitted(tiny_backbone)
    answers = method.forward_features(images()).argmax(dim=1)
    assert torch.equal(answers, torch.arange(24) % len(NAMES))
    assert record["leave_one_out_percent"] == 100


def with_labels(given: ClosedFormData, pixels: Tensor, labels: Tensor) -> ClosedFormData:
    """The data with other labeled images."""

    def labeled(part: slice) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(pixels[part].split(5), labels[part].split(5), strict=True)

    counts = torch.bincount(labels, minlength=len(NAMES))
    return replace(given, labeled=labeled, label_counts=counts)


def zero_shot_logits(backbone: Backbone, pixels: Tensor) -> Tensor:
    texts = zeroshot.ensemble_text_features(backbone, NAMES, ["a photo of a {}."])
    with torch.no_grad():
        return backbone.scale * backbone.image_features(pixels) @ texts.T


def test_more_labels_than_choose_the_settings_are_all_learned_from_and_weigh_as_their_classes(
    tiny_backbone: Backbone,
) -> None:
    """The labels are zero-shot CLIP's; those that choose the settings lack the last class."""
    pixels = torch.randn(40, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    logits = zero_shot_logits(tiny_backbone, pixels)
    labels = (logits - logits.mean(dim=0)).argmax(dim=1)
    order = (labels == 3).sort(stable=True).indices  # the last class last
    pixels, logits, labels = pixels[order], logits[order], labels[order]
    counts = torch.bincount(labels)
    n_first = len(labels) - int(counts[3])
    given = with_labels(data(tiny_backbone), pixels, labels)
    method = build(tiny_backbone)
    record = method.fit(replace(given, n_leave_one_out=n_first))
    # Zero-shot logits are balanced and scaled by the first images, of which each class has one more
    prior = (counts * torch.tensor([1, 1, 1, 0]) + 1) / (n_first + len(NAMES))
    balanced = logits - find_offsets(logits[:n_first], prior)
    text_logits = balanced / balanced[:n_first].std()
    weights = len(labels) / len(NAMES) / counts.double()[labels]
    rows = slow_standardized(tiny_backbone, pixels, slice(0, n_first), weights[:n_first])
    rows = rows if record["features"] == "all blocks" else rows[:, : tiny_backbone.embed_dim]
    targets = torch.eye(len(NAMES)).double()[labels]
    fit = slow_fit(rows, targets, weights, penalty_of(rows, weights, record["lambda"]))
    answers = rows @ fit[:-1] + fit[-1]
    assert record["text_share"] > 0
    expected = record["scale"] * (answers + record["text_share"] * text_logits)
    found = method.forward_features(pixels).double()
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_a_clip_whose_texts_say_nothing_learns_the_labels_all_the_same(
    tiny_backbone: Backbone,
) -> None:
    """Its zero-shot logits have no spread, by which they could be divided."""
    model = copy.deepcopy(tiny_backbone.model)
    model.text_projection.data.zero_()
    method, _ = fitted(replace(tiny_backbone, model=model, text_cache=TextFeatureCache(None)))
    answers = method.forward_features(images()).argmax(dim=1)
    assert torch.equal(answers, torch.arange(24) % len(NAMES))


def test_where_as_many_classes_have_one_label_as_more_the_latter_choose_the_settings(
    tiny_backbone: Backbone,
) -> None:
    record = build(tiny_backbone).fit(data(tiny_backbone, n_labels=6))  # 2, 2, 1, 1
    assert record["leave_one_out_percent"] is not None


def test_a_student_comes_near_its_teacher(tiny_backbone: Backbone) -> None:
    method = build(tiny_backbone, is_student=True)
    with torch.no_grad():
        method.fit(data(tiny_backbone, n_labels=0))
        batches = data(tiny_backbone).unlabeled(slice(None), None)
        theirs = torch.cat([logits for *_, logits in batches])
    spread = theirs - theirs.mean(dim=1, keepdim=True)
    error = method.forward_features(images()) - spread
    assert error.square().mean() < 0.2 * spread.square().mean()


def slow_standardized(backbone: Backbone, pixels: Tensor, first: slice, weights: Tensor) -> Tensor:
    """[n, D_blocks], float64: block features with the mean and gain of some of the images."""
    with torch.no_grad():
        blocks = BlockFeatures(backbone.visual, 5)(pixels).double()
    some, share = blocks[first], (weights / weights.sum())[:, None]
    mean = (share * some).sum(dim=0)
    variance = (share * (some - mean).square()).sum(dim=0)
    n = len(some)
    std = ((n * variance + 16 * variance.mean()) / (n + 16)).sqrt()
    return (blocks - mean) * torch.where(std > 1e-6 * (1 + mean.abs()), 1 / std, 0.0)


def slow_student_rows(method: Any, backbone: Backbone, standardizing: slice) -> Tensor:
    """[24, n_random + D_blocks]: of the images, standardized by some of them."""
    n_images = standardizing.stop - standardizing.start
    standardized = slow_standardized(backbone, images(), standardizing, torch.ones(n_images))
    layer = method.module.random
    random = (standardized @ layer.weight.double().T + layer.bias.double()).relu()
    return torch.cat([random, standardized], dim=1)


def teacher_logits(given: ClosedFormData) -> Tensor:
    with torch.no_grad():
        return torch.cat([logits for *_, logits in given.unlabeled(slice(None), None)]).double()


@pytest.mark.parametrize("n_held_out", [0, 4, 12])
def test_a_student_is_that_of_slow_fits_in_which_held_out_images_only_choose_lambda(
    tiny_backbone: Backbone, n_held_out: int
) -> None:
    method = build(tiny_backbone, is_student=True)
    given = replace(data(tiny_backbone, n_labels=0), n_held_out=n_held_out, n_standardize=8)
    record = method.fit(given)
    rows = slow_student_rows(method, tiny_backbone, slice(n_held_out, n_held_out + 8))
    theirs = teacher_logits(given)
    targets = theirs - theirs.mean(dim=1, keepdim=True)
    kept, weights = rows[n_held_out:], torch.ones(24 - n_held_out).double()
    attempts = {}
    for lam in (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0) if n_held_out else (1e-2,):
        fit = slow_fit(kept, targets[n_held_out:], weights, penalty_of(kept, weights, lam))
        answers = rows @ fit[:-1] + fit[-1]
        surprise = theirs.log_softmax(dim=1) - answers.log_softmax(dim=1)
        divergence = (theirs.softmax(dim=1) * surprise).sum(dim=1)[:n_held_out].mean()
        attempts[lam] = (float(divergence), answers)
    best = min(attempts, key=lambda lam: attempts[lam][0])
    assert record["lambda"] == best
    found = method.forward_features(images()).double()
    torch.testing.assert_close(found, attempts[best][1], atol=1e-3, rtol=1e-3)


def test_labels_are_rows_as_long_as_the_teachers_and_weigh_the_same_for_every_class(
    tiny_backbone: Backbone,
) -> None:
    method = build(tiny_backbone, is_student=True, labeled_weight=0.5)
    given = data(tiny_backbone, n_labels=9)
    record = method.fit(given)
    rows, theirs = slow_student_rows(method, tiny_backbone, slice(4, 16)), teacher_logits(given)
    targets = (theirs - theirs.mean(dim=1, keepdim=True))[4:]
    mean_length = targets.square().sum(dim=1).mean().sqrt()
    labels = torch.arange(9) % len(NAMES)  # 3, 2, 2, 2
    centered = torch.eye(len(NAMES)).double()[labels] - 1 / len(NAMES)
    label_targets = mean_length * centered / centered.norm(dim=1, keepdim=True)
    label_weights = 0.5 * (9 / len(NAMES)) / torch.tensor([3, 2, 2, 2]).double()[labels]
    all_rows, all_targets = torch.cat([rows[4:], rows[:9]]), torch.cat([targets, label_targets])
    weights = torch.cat([torch.ones(20).double(), label_weights])
    penalty = penalty_of(all_rows, weights, record["lambda"])
    fit = slow_fit(all_rows, all_targets, weights, penalty)
    found = method.forward_features(images()).double()
    torch.testing.assert_close(found, rows @ fit[:-1] + fit[-1], atol=1e-3, rtol=1e-3)


def test_a_lower_precision_rounds_the_encoder_and_not_the_choice(tiny_backbone: Backbone) -> None:
    method, given = build(tiny_backbone, is_student=True), data(tiny_backbone, n_labels=0)
    autocast = partial(torch.autocast, "cpu", torch.bfloat16)
    with torch.no_grad():
        record = method.fit(replace(given, autocast=autocast))
        held_out, _, theirs = next(given.unlabeled(slice(0, given.n_held_out), None))
        with autocast():
            blocks = method._blocks(held_out)
    assert record["divergence"] == method._divergence(blocks, theirs)


def test_classes_that_the_teacher_takes_no_image_for_are_named(tiny_backbone: Backbone) -> None:
    plain = data(tiny_backbone, n_labels=0)

    def unlabeled(part: slice, _: Any = None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for pixels, features, logits in plain.unlabeled(part, None):
            yield pixels, features, logits - 1000 * torch.eye(len(NAMES))[1]

    with torch.no_grad():
        method = build(tiny_backbone, is_student=True)
        record = method.fit(replace(plain, unlabeled=unlabeled, n_standardize=19))
        taken = torch.cat([logits.argmax(dim=1) for *_, logits in unlabeled(slice(23))]).tolist()
    unseen = [name for i, name in enumerate(NAMES) if i not in taken]
    assert record["unseen_classes"] == unseen
    assert NAMES[1] in unseen
    assert f"predicts none of 23 unlabeled images as {unseen[0]}" in record["summary"]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"n_blocks": 0},
        {"is_student": True},
        {"is_student": True, "labeled_weight": 1.0},
        {"is_student": True, "outputs": "features"},
    ],
    ids=["labels", "last", "student", "student with labels", "features"],
)
@pytest.mark.parametrize("head", ["scores", "argmax"])
@pytest.mark.parametrize("has_offsets", [False, True])
def test_the_folded_graph_answers_as_the_method(
    tiny_backbone: Backbone,
    fold_and_unfolded: Any,
    settings: dict[str, Any],
    head: Head,
    has_offsets: bool,
) -> None:
    method, _ = fitted(tiny_backbone, **settings)
    offsets = torch.tensor([0.5, -1.0, 0.2, 0.3]) if has_offsets else None
    folded, pixels, expected = fold_and_unfolded(
        method, tiny_backbone.preprocess, head=head, offsets=offsets
    )
    expected = expected if offsets is None else expected - offsets
    found = folded(pixels)
    if settings.get("outputs") != "features":  # a small solution that INT8 would spoil
        assert isinstance(folded.fused_head, FloatLinear)
    if head == "argmax" and settings.get("outputs") == "features" and not has_offsets:
        assert torch.equal(found.argmax(1), expected.argmax(1))
    else:
        torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)


def test_with_open_classes_offsets_are_a_column_of_the_class_vectors(
    tiny_backbone: Backbone, fold_and_unfolded: Any
) -> None:
    method, _ = fitted(tiny_backbone, is_student=True, outputs="features")
    offsets = torch.tensor([0.5, -1.0, 0.2, 0.3])
    folded, *_ = fold_and_unfolded(
        method, tiny_backbone.preprocess, open_classes=True, offsets=offsets
    )
    features = folded(torch.rand(3, 3, 32, 32))
    assert torch.equal(features[:, -1], torch.ones(3))
    torch.testing.assert_close(features[:, :-1].norm(dim=1), torch.ones(3))


def test_the_first_columns_are_the_encoders_features(tiny_backbone: Backbone) -> None:
    """And a constant column, as the class token before the first block, becomes 0, not NaN."""
    blocks = BlockFeatures(tiny_backbone.visual, 5)
    rows = blocks(images(3))
    raw = rows[:, : tiny_backbone.embed_dim]
    expected = tiny_backbone.image_features(images(3))
    torch.testing.assert_close(torch.nn.functional.normalize(raw, dim=1), expected)
    module = ridge.Regression(4, 2, 0, 3, torch.Generator())
    module.standardize(torch.ones(5, 4), torch.ones(5))
    assert torch.equal(module.rows(torch.ones(2, 4)), torch.zeros(2, 4))


def test_few_rows_that_happen_to_be_alike_in_a_column_do_not_make_it_count_most() -> None:
    module = ridge.Regression(2, 1, 0, 3, torch.Generator())
    module.standardize(torch.tensor([[0.0, 0.0], [1.0, 1e-3]]), torch.ones(2))
    variances = torch.tensor([0.25, 2.5e-7])
    torch.testing.assert_close(
        module.gain, ((2 * variances + 16 * variances.mean()) / 18).rsqrt(), rtol=1e-5, atol=0
    )


def test_classes_weigh_the_same_however_many_labels_they_have(tiny_backbone: Backbone) -> None:
    given = data(tiny_backbone, n_labels=9)  # 3, 2, 2, 2
    weights = given.equal_classes(torch.arange(9) % len(NAMES))
    for label in range(len(NAMES)):
        share = weights[torch.arange(9) % len(NAMES) == label].sum() / weights.sum()
        assert share == pytest.approx(1 / len(NAMES))


def test_the_first_images_are_shared_by_processes_too(tiny_backbone: Backbone) -> None:
    """Of 24, 4 are held out, 12 standardize, and half of these are another process's."""
    group: Any = SimpleNamespace(shard=lambda n: slice(0, n // 2), all_reduce_sum=lambda _: None)
    method = build(tiny_backbone, is_student=True)
    with torch.no_grad():
        record = method.fit(replace(data(tiny_backbone, n_labels=0), group=group))
    assert record["summary"].startswith("learned from 14 unlabeled")


@pytest.mark.parametrize(
    ("n_labels", "percent"), [(4, None), (5, None), (7, 100)], ids=["one each", "most", "few"]
)
def test_images_that_are_their_class_alone_choose_nothing(
    tiny_backbone: Backbone, n_labels: int, percent: float | None
) -> None:
    """Left out, they would be wrong whatever the settings are."""
    method = build(tiny_backbone)
    with torch.no_grad():
        record = method.fit(data(tiny_backbone, n_labels=n_labels))
    assert record["leave_one_out_percent"] == percent
    said = "without 1 that have one label" if percent else "label four images of each class"
    assert said in record["summary"]
    answers = method.forward_features(images()).argmax(dim=1)
    assert (answers == torch.arange(24) % len(NAMES)).double().mean() > 0.6
    # Of many labels, only some choose the settings
    more = replace(data(tiny_backbone, n_labels=7), label_counts=torch.full((len(NAMES),), 2))
    with torch.no_grad():
        assert "one label" not in build(tiny_backbone).fit(more)["summary"]


@pytest.mark.parametrize("is_student", [False, True])
def test_features_that_are_not_finite_are_an_error(
    tiny_backbone: Backbone, is_student: bool
) -> None:
    method = build(tiny_backbone, is_student=is_student)
    with pytest.raises(DivergedError, match="not finite"):
        method.fit(data(tiny_backbone, spoil=True))


@pytest.mark.parametrize("settings", [{}, {"is_student": True, "labeled_weight": 1.0}])
def test_features_are_for_students_without_labels(
    tiny_backbone: Backbone, settings: dict[str, Any]
) -> None:
    with pytest.raises(RecipeError, match="outputs: logits"):
        build(tiny_backbone, outputs="features", **settings)

"""PromptKD's ablations: what each setting trains, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from kdedge.clip.backbone import Backbone
from kdedge.errors import RecipeError
from kdedge.loading.batch import Batch
from kdedge.methods import promptkd
from kdedge.methods.base import Projector
from kdedge.methods.losses import list_losses
from kdedge.methods.losses.kl import distillation_loss

Student = Callable[..., promptkd.Method]
OWN_TEXT: dict[str, Any] = {"class_vectors": "student", "prompt_depth_text": 2}


def images(n: int = 4) -> Tensor:
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def trained(method: promptkd.Method) -> set[str]:
    """Parameters with a gradient after a step, numbers of blocks and layers left out."""
    method.training_step(Batch(images(), None)).loss.backward()
    with_gradient = [n for n, p in method.trainable_parameters().items() if p.grad is not None]
    return {name.split(".")[0] for name in with_gradient}


@pytest.mark.parametrize(
    ("chosen", "parts"),
    [
        ({}, {"visual_prompts", "projector"}),
        ({"tune": "projector"}, {"projector"}),
        ({"tune": "full"}, {"visual", "projector"}),
        (OWN_TEXT, {"visual_prompts", "text_prompts"}),
        ({"tune": "full", **OWN_TEXT}, {"visual", "text_prompts"}),
        ({"prompt_depth": 0}, {"projector"}),
    ],
)
def test_each_setting_trains_its_own_parts(student: Student, chosen: Any, parts: set[str]) -> None:
    assert trained(student(**chosen)) == parts


@pytest.mark.parametrize("chosen", [{"tune": "projector"}, {"n_ctx_vision": 0}])
def test_the_projector_alone_sees_the_image_tower_as_it_is(
    student: Student, tiny_backbone: Backbone, chosen: Any
) -> None:
    method = student(**chosen)
    trained = {name for name, p in method.trainable_parameters().items() if p.numel()}
    assert trained == {
        f"projector.{name}" for name, _ in method.module.projector.named_parameters()
    }
    method.module.eval()
    expected = F.normalize(method.module.projector(tiny_backbone.model.visual(images())), dim=-1)
    torch.testing.assert_close(method.forward_features(images()), expected, atol=1e-5, rtol=1e-4)


def test_full_fine_tuning_trains_a_copy_that_starts_as_the_backbone(
    student: Student, tiny_backbone: Backbone
) -> None:
    method = student(tune="full")
    own = {k: v for k, v in method.module.state_dict().items() if k.startswith("visual.")}
    theirs = {f"visual.{k}": v for k, v in tiny_backbone.model.visual.state_dict().items()}
    assert own.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[key]) for key, value in own.items())
    assert all(value.dtype == torch.float32 for value in own.values())
    for name, parameter in method.trainable_parameters().items():
        assert parameter.requires_grad, name

    optimizer = torch.optim.SGD(method.trainable_parameters().values(), lr=1e-3)
    method.training_step(Batch(images(), None)).loss.backward()
    unmoved = [n for n, p in method.trainable_parameters().items() if p.grad is None]
    optimizer.step()

    assert unmoved == []
    assert not torch.equal(method.visual.conv1.weight, tiny_backbone.model.visual.conv1.weight)
    assert method.image_modules().visual is method.visual


def test_a_student_without_shared_text_features_answers_with_its_own(
    student: Student, tiny_teacher_backbone: Backbone
) -> None:
    method = student(**OWN_TEXT)
    shared = student()
    assert method.module.projector is None
    assert method.module.text_prompts.context.shape == (4, 64)
    assert method.module.text_prompts.deep_context.shape == (1, 4, 64)
    assert method.class_vectors().shape == (5, 24)
    assert method.forward_features(images()).shape == (4, 24)
    assert shared.class_vectors().shape == (5, 40)
    torch.testing.assert_close(method.class_vectors().norm(dim=-1), torch.ones(5))

    outputs = method.outputs(Batch(images(), None), method.image_features(images()))
    torch.testing.assert_close(outputs.teacher_vectors, shared.class_vectors())
    expected = distillation_loss(
        method.scale * outputs.student_features @ method.class_vectors().T,
        tiny_teacher_backbone.scale * outputs.teacher_features @ shared.class_vectors().T,
        temperature=1.0,
    )
    loss = method.training_step(Batch(images(), None)).loss
    torch.testing.assert_close(loss, 1000 * expected)


def test_learning_changes_a_students_own_class_vectors_and_no_shared_ones(
    student: Student, learn: Any
) -> None:
    for chosen, changes in ((OWN_TEXT, True), ({}, False)):
        method = student(**chosen)
        before = method.class_vectors()
        learn(method, Batch(images(), None), n_steps=1, lr=0.01)
        assert torch.equal(method.class_vectors(), before) is not changes


@pytest.mark.parametrize(("depth", "n_parameters"), [(1, 1000), (2, 2720), (3, 4440)])
def test_the_projector_has_one_to_three_linear_layers(depth: int, n_parameters: int) -> None:
    """24 -> 40, and each further layer 40 -> 40 with its batch norm's 80."""
    projector = Projector(24, 40, torch.Generator().manual_seed(0), depth=depth)
    assert len(projector.linears) == depth
    assert len(projector.batch_norms) == depth - 1
    assert sum(p.numel() for p in projector.parameters()) == n_parameters
    projector.eval()
    features = images(2).flatten(1)[:, :24]
    hidden = features
    for index, linear in enumerate(projector.linears):
        hidden = hidden @ linear.weight.T + linear.bias
        if index < depth - 1:
            norm = projector.batch_norms[index]
            hidden = (hidden - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
            hidden = (hidden * norm.weight + norm.bias).clamp(min=0)
    torch.testing.assert_close(projector(features), hidden)


def test_a_deeper_projector_begins_with_the_same_values() -> None:
    """So that runs of one seed differ in the depth alone."""
    shallow, deep = (
        Projector(24, 40, torch.Generator().manual_seed(0), depth=depth) for depth in (2, 3)
    )
    for key, value in shallow.state_dict().items():
        assert torch.equal(deep.state_dict()[key], value)


def test_one_image_is_enough_where_there_is_no_batch_norm(student: Student) -> None:
    for chosen in ({"projector_depth": 1}, OWN_TEXT):
        method = student(**chosen)
        assert bool(method.training_step(Batch(images(1), None)).loss.isfinite())


@pytest.mark.parametrize("loss", list_losses())
@pytest.mark.parametrize("chosen", [{}, OWN_TEXT], ids=["shared", "own"])
def test_a_student_learns_by_every_loss(
    student: Student, learn: Any, tiny_backbone: Backbone, loss: str, chosen: Any
) -> None:
    # Without a projector, features need a teacher of their own dimension
    teacher = {"teacher": tiny_backbone} if chosen and loss != "kl" else {}
    method, batch = student(losses={loss: {}}, **teacher, **chosen), Batch(images(), None)
    losses = learn(method, batch, n_steps=6, kind=torch.optim.Adam, lr=1e-3)
    assert losses[-1] < losses[0]
    scalars = method.training_step(batch).scalars
    assert "teacher_agreement_percent" in scalars
    assert ("divergence_per_image" in scalars) is (loss == "kl")


@pytest.mark.parametrize("loss", list_losses())
def test_every_loss_takes_the_teachers_features_from_the_batch_and_does_not_run_it(
    student: Student, tiny_teacher_backbone: Backbone, loss: str
) -> None:
    n_calls = []
    visual = tiny_teacher_backbone.model.visual
    hook = visual.conv1.register_forward_hook(lambda *_: n_calls.append(1))
    method = student(losses={loss: {}})
    live = method.training_step(Batch(images(), None)).loss
    assert len(n_calls) == 1
    features = tiny_teacher_backbone.image_features(images())
    step = method.training_step(Batch(images(), None, teacher_features=features))
    hook.remove()
    assert torch.equal(live, step.loss)
    assert len(n_calls) == 2


def test_losses_add_up_with_their_weights(student: Student) -> None:
    def loss(**chosen: Any) -> Tensor:
        method = student(**chosen)
        return method.training_step(Batch(images(), None)).loss.detach()

    kl, other = {"kl": {"weight": 30.0}}, {"feature_l1": {"weight": 0.5}}
    both = loss(losses={"feature": {}, **kl, **other})
    expected = loss(losses={"feature": {}}) + loss(losses=kl) + loss(losses=other)
    torch.testing.assert_close(both, expected)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"kl": 1000.0}),
        ({"losses": {"kl": {"weight_per_image": 2.0}}}, {"kl": 20.0}),
        ({"losses": {"feature": {}}}, {"feature": 2000.0}),
        (
            {"losses": {"feature_l1": {"weight": 3.0}, "feature": {}, "kl": {"weight": 7}}},
            {"feature_l1": 3.0, "feature": 2000.0, "kl": 7.0},
        ),
    ],
)
def test_each_loss_has_its_authors_weight_or_the_recipes_in_the_recipes_order(
    given: Any, expected: Any
) -> None:
    settings = promptkd.Settings(**given)
    assert {name: loss.weight_for(10) for name, loss in settings.losses.items()} == expected
    again = promptkd.Settings(**settings.model_dump(mode="json"))
    assert list(settings.losses) == list(again.losses) == list(expected)
    assert again == settings


def test_a_record_of_settings_holds_the_chosen_losses_only() -> None:
    record = promptkd.Settings(losses={"feature": {"weight": 20.0}}).model_dump(mode="json")
    assert record["losses"] == {"feature": {"weight": 20.0}}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tune": "projector", "class_vectors": "student"}, "which has no projector"),
        ({"losses": {}}, "must name at least one loss"),
        ({"losses": {"feature": {"weight": 0.0}}}, "greater than 0"),
        ({"losses": {"kl": {"weight": 1.0, "weight_per_image": 1.0}}}, "set only one of them"),
        # The loss would be infinite
        ({"losses": {"kl": {"temperature": 1e300}}}, "less than or equal to 1000"),
        ({"losses": {"kl": {"temperature": 1e-38}}}, "equal to 0.01"),
        ({"labeled_weight": -1.0}, "greater than or equal to 0"),
        ({"losses": {"feature": {"temperature": 1.0}}}, "Extra inputs"),
        ({"losses": {"fature": {}}}, "Extra inputs"),
        ({"projector_depth": 4}, "less than or equal to 3"),
        ({"tune": "everything"}, "'full'"),
        ({"tune": "full", "lora": {"rank": 4}}, "have lora with tune: full, which does not use it"),
        *(
            ({"tune": "lora", "lora": lora}, message)
            for lora, message in (
                ({"rank": 0}, "greater than or equal to 1"),
                ({"alpha": 0.0}, "greater than 0"),
                ({"projections": ["qkv"]}, "'q', 'k', 'v', 'out' or 'mlp'"),
                ({"projections": []}, "at least 1 item"),
                ({"blocks": [-1]}, "greater than or equal to 0"),
                ({"blocks": []}, "at least 1 item"),
            )
        ),
        ({"depth": 2, "prompt_depth": 3}, "have depth: 2 with prompt_depth: 3; set prompt_depth"),
        ({"depth": 0}, "greater than or equal to 1"),
        ({"merge_tokens": -1}, "greater than or equal to 0"),
        ({"merge_tokens": 1.5}, "valid integer"),
    ],
)
def test_settings_that_cannot_be_are_refused(given: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        promptkd.Settings(**given)


def test_features_of_two_dimensions_cannot_be_compared(student: Student) -> None:
    with pytest.raises(RecipeError, match=r"\(24 dimensions\) with the teacher's \(40\)"):
        student(**OWN_TEXT, losses={"kl": {}, "feature": {}})

"""A loss from an installed package: trained with, documented and listed as kdedge's own."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("torch")

TOY = '''
"""Powers of distances: how far the student's features are from the teacher's."""

import torch
from pydantic import Field
from kdedge.methods.losses import DistillationLoss, LossSettings


class Settings(LossSettings):
    weight: float = Field(3.0, gt=0, description="Multiplies the loss. The default is the toy's.")
    power: float = Field(2.0, gt=0, le=9, description="Exponent of the distance. 2: a square.")


class Loss(DistillationLoss):
    needs_equal_dims = True

    def __init__(self, settings):
        super().__init__(settings)
        self.offset = torch.nn.Parameter(torch.zeros(()))
        self.power = settings.power

    def forward(self, outputs):
        distance = (outputs.student_features - outputs.teacher_features).norm(dim=-1)
        return (distance + self.offset.square()).pow(self.power).mean()
'''
RECIPE = """\
name: toy
classes: [a, b, c]
data: {unlabeled: {folder: images}}
teacher: {method: zeroshot, backbone: kdedge-demo-teacher, weights: builtin}
student:
  backbone: kdedge-demo-student
  weights: builtin
  settings:
    prompt_depth: 1
    losses: {kl: {weight: 10.0}, toy: {power: 1.0}}
optim: {epochs: 1, batch_size: 12, warmup_epochs: 0}
"""


@pytest.fixture
def outside(install: Callable[..., Any]) -> Any:
    package = install({"outside_loss": TOY}, {"kdedge.losses": {"toy": "outside_loss"}})
    (package.cwd / "r.yaml").write_text(RECIPE)
    return package


def test_a_student_is_distilled_by_it_beside_another_loss(outside: Any) -> None:
    code, _, err = outside.run("distill r.yaml")[0]
    assert code == 0, err
    run = outside.cwd / "runs/toy/02"
    record = json.loads((run / "provenance.json").read_text())
    assert record["settings"]["losses"]["toy"] == {"weight": 3.0, "power": 1.0}
    assert list(record["settings"]["losses"]) == ["kl", "toy"]
    step = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    sum_of_terms = 10 * step["divergence_per_image"] / 3 + 3 * step["toy_loss"]
    assert step["loss"] == pytest.approx(sum_of_terms, rel=1e-4)

    from safetensors.torch import load_file

    assert "losses.toy.offset" in load_file(run / "student.safetensors")


def test_its_settings_are_documented_and_checked_with_the_nearest_name(outside: Any) -> None:
    key = "student.settings.losses"
    schema, methods, *wrong = outside.run(
        "schema",
        "methods",
        f"check r.yaml --set {key}.toy.power=10",
        f"check r.yaml --set {key}.toy.pwoer=1",
        f"check r.yaml --set {key}.toyy.power=1",
    )
    assert (schema.code, schema.err) == (0, "")
    assert "losses.toy  (mapping)\n      Powers of distances: how far the student's" in schema.out
    assert "losses.toy.power  (number more than 0, at most 9, default 2.0)" in schema.out
    assert (methods.code, methods.err) == (0, "")
    assert re.search(r"^toy +Powers of distances: how far", methods.out, re.MULTILINE)
    for done, message in zip(
        wrong,
        [
            f"--set {key}.toy.power must be at most 9, got 10.",
            f"--set {key}.toy.pwoer is not a known key.\n  Did you mean power?",
            f"{key}.toyy is not a known key.\n  Did you mean toy?",
        ],
        strict=True,
    ):
        assert done.code == 2
        assert message in done.err


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import no_such_module", "cannot be imported: ModuleNotFoundError"),
        ("Settings = None", "lacks Loss.\n  Loss: a subclass of kdedge.methods.losses.Distill"),
    ],
)
def test_a_broken_one_is_an_error_only_where_it_is_chosen(
    install: Callable[..., Any], source: str, message: str
) -> None:
    package = install({"outside_loss": source}, {"kdedge.losses": {"toy": "outside_loss"}})
    (package.cwd / "r.yaml").write_text(RECIPE)
    chosen, left_out = package.run(
        "check r.yaml", "check r.yaml --set 'student.settings.losses={kl: {}}'"
    )
    assert chosen.code == 2
    assert 'r.yaml:10: student.settings.losses.toy cannot be used. The loss "toy" fr' in chosen.err
    assert message in chosen.err
    assert left_out.code == 0, left_out.err

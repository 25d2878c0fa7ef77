"""Zero-shot CLIP: the templates behind a setting, and one vector of many of them."""

from __future__ import annotations

import torch

from kdedge.clip.backbone import Backbone
from kdedge.methods.base import MethodInputs
from kdedge.methods.zeroshot import Method, Settings, template_list

TEMPLATE = "{} texture."


def test_the_recipes_template_stands_alone_or_beside_the_seven_that_lack_it() -> None:
    seven = template_list("ensemble7", "itap of a {}.")
    assert (len(seven), seven[0]) == (7, "itap of a {}.")
    assert template_list("ensemble7", TEMPLATE) == [*seven, TEMPLATE]
    assert len(template_list("ensemble80", TEMPLATE)) == 80
    assert template_list("single", TEMPLATE) == [TEMPLATE]


def test_an_ensemble_averages_vectors_of_unit_length_and_scales_once_more(
    tiny_backbone: Backbone,
) -> None:
    total = torch.zeros(2, tiny_backbone.embed_dim)
    for template in template_list("ensemble7", TEMPLATE):
        raw = tiny_backbone.text_features_raw([template.format(x) for x in ("cat", "school bus")])
        total += raw / raw.norm(dim=1, keepdim=True)
    method = Method(
        tiny_backbone,
        Settings(templates="ensemble7"),
        MethodInputs(["cat", "school_bus"], TEMPLATE, range(2), torch.Generator()),
    )
    expected = total / total.norm(dim=1, keepdim=True)
    torch.testing.assert_close(method.class_vectors(), expected, atol=1e-6, rtol=1e-5)

"""A CLIP with planted outliers: no output changes, plain INT8 fails, the search passes."""

from __future__ import annotations

import copy
from types import ModuleType
from typing import Any

import pytest
import torch

from kdedge.quantization.candidate import CalibratedModel
from kdedge.quantization.fake import attach
from kdedge.quantization.search import score, search
from kdedge.quantization.sites import observe_layers

pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def planted(tiny_backbone: Any, fold_student: Any, planted_outliers: ModuleType) -> Any:
    """The folded student of the planted CLIP."""
    visual = tiny_backbone.visual
    before = {key: value.clone() for key, value in visual.state_dict().items()}
    visual.load_state_dict(planted_outliers.plant(before))
    try:
        return fold_student()
    finally:
        visual.load_state_dict(before)


def test_no_output_changes_in_float64(tiny_open_clip: Any, planted_outliers: ModuleType) -> None:
    visual = tiny_open_clip.visual.double()
    before = {key: value.clone() for key, value in visual.state_dict().items()}
    images = torch.rand(4, 3, 32, 32, dtype=torch.float64)
    expected = visual(images)
    try:
        visual.load_state_dict(planted_outliers.plant(before))
        actual = visual(images)
    finally:
        visual.load_state_dict(before)
        tiny_open_clip.float()
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def balanced(model: Any, images: torch.Tensor) -> Any:
    """A copy whose classes are all predicted: random weights alone would prefer one of them."""
    model = copy.deepcopy(model)
    hidden = torch.relu(model.hidden(model.encode(images)))
    with torch.no_grad():
        model.fused_head.bias.sub_(model.fused_head(hidden).mean(dim=0))
    return model


@torch.no_grad()
def agreement(exact: Any, layers: Any, images: torch.Tensor, model: Any) -> float:
    """How often a model with some layers in INT8 gives the float model's top-1, percent."""
    quantized = copy.deepcopy(exact)
    attach(quantized, layers)
    return score(quantized(images), model(images)).agreement_percent


def test_plain_ranges_fail_on_it_and_the_search_passes_with_few_layers_in_float(
    planted: Any, folded: Any, sites: Any, pictures: torch.Tensor
) -> None:
    calibration, held_out, test = pictures[:64], pictures[64:128], pictures[128:]
    names = [name for site in sites for name in site.layers]
    folded, planted = balanced(folded, pictures), balanced(planted, pictures)

    def plain(model: Any, alphas: dict[str, float]) -> float:
        seen = observe_layers(model, names, calibration, lambda _: None)
        changed = CalibratedModel(model, sites, seen).smoothed(alphas)
        return agreement(changed.model, changed.candidate().layers, test, model)

    norms = {site.layers[0]: 0.5 for site in sites if site.norm is not None}
    got = plain(folded, {}), plain(planted, {}), plain(planted, norms)
    assert got[0] > 94
    assert got[1] < 90
    assert got[2] < got[0]  # its values are not smoothed

    # Of 64 channels with random weights, INT8 costs more than of a trained CLIP's
    best, record = search(
        planted, sites, calibration, held_out, target_percent=95, enough_percent=95, minutes=5
    )
    assert agreement(best.model, best.layers, test, planted) >= got[0] - 1
    assert len(record["in_float"]) <= 4

"""The search: exact changes, better rounding, its steps, its time, and images that it refuses."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch

from kdedge.errors import DataError
from kdedge.progress import progress_to
from kdedge.quantization import fake
from kdedge.quantization.candidate import CalibratedModel, Candidate, layer_error, round_weight
from kdedge.quantization.fake import attach
from kdedge.quantization.search import correct_biases, leave_in_float, score, search
from kdedge.quantization.sites import InputStatistics, observe_layers


def observed(model: Any, sites: Any, images: torch.Tensor) -> Any:
    names = [name for site in sites for name in site.layers]
    return observe_layers(model, names, images, lambda _: None)


def test_sites_are_all_linear_layers_with_what_can_be_smoothed(sites: Any) -> None:
    assert sum(len(site.layers) for site in sites) == 18
    assert [site.norm for site in sites][:4] == ["blocks.0.ln_1", None, "blocks.0.ln_2", None]
    assert [site.block for site in sites][:4] == [None, "blocks.0", None, None]
    activations = [site.activation for site in sites][:4]
    assert activations == [None, None, None, "blocks.0.mlp.gelu"]
    last = next(site for site in sites if "blocks.2.query" in site.layers)
    assert set(last.layers) == {"blocks.2.query", "blocks.2.key", "blocks.2.value"}


def test_smoothing_changes_no_logit_and_evens_out_what_layers_read(
    folded: Any, sites: Any, pictures: torch.Tensor
) -> None:
    seen = observed(folded, sites, pictures[:64])
    alphas = {site.layers[0]: 0.7 for site in sites if site.norm or site.block}
    changed = CalibratedModel(folded, sites, seen).smoothed(alphas)
    smoothed, inputs = changed.model, changed.inputs
    expected, actual = folded(pictures[:16]), smoothed(pictures[:16])
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)
    again = observed(smoothed, sites, pictures[:64])
    for name, each in again.items():
        torch.testing.assert_close(each.channel_max, inputs[name].channel_max, rtol=1e-3, atol=1e-4)
    before, after = (s["blocks.1.query"].channel_max for s in (seen, inputs))
    assert after.max() / after.min() < before.max() / before.min()


@torch.no_grad()
def test_centering_changes_no_logit_and_gives_each_channel_both_signs_alike(
    folded: Any, sites: Any, pictures: torch.Tensor
) -> None:
    seen = observed(folded, sites, pictures[:64])
    changed = CalibratedModel(folded, sites, seen).centered()
    centered, inputs = changed.model, changed.inputs
    expected, actual = folded(pictures[64:96]), centered(pictures[64:96])
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)
    again = observed(centered, sites, pictures[:64])
    assert [site.layers[0] for site in sites if site.activation] == list(changed.centers)
    for site in sites:
        (name, *_) = site.layers
        center = torch.as_tensor(changed.centers.get(name, 0.0))
        torch.testing.assert_close(again[name].low - center, inputs[name].low, rtol=0, atol=1e-4)
        if site.norm or site.block or site.activation:
            torch.testing.assert_close(inputs[name].low, -inputs[name].high, rtol=0, atol=1e-4)
    # Quantized layers subtract the centers, for which their biases make up
    subtracting = changed.with_biases()
    for name, center in changed.centers.items():
        subtracting.get_submodule(name).register_forward_pre_hook(
            lambda _, x, center=center: x[0] - torch.from_numpy(center)
        )
    torch.testing.assert_close(subtracting(pictures[64:96]), expected, rtol=0, atol=1e-4)
    reach = [float(each["blocks.0.mlp.c_proj"].channel_max.max()) for each in (seen, inputs)]
    assert reach[1] < 0.7 * reach[0]


def test_layers_without_biases_are_not_centered(
    folded: Any, sites: Any, pictures: torch.Tensor
) -> None:
    model = copy.deepcopy(folded)
    model.get_submodule("blocks.0.mlp.c_proj").register_parameter("bias", None)
    model.get_submodule("blocks.1.key").register_parameter("bias", None)
    seen = observed(model, sites, pictures[:32])
    changed = CalibratedModel(model, sites, seen).centered()
    centered, inputs = changed.model, changed.inputs
    torch.testing.assert_close(centered(pictures[:8]), model(pictures[:8]), rtol=0, atol=1e-4)
    for name in ("blocks.0.mlp.c_proj", "blocks.1.query", "blocks.1.key"):
        assert torch.equal(inputs[name].sample, seen[name].sample)


def test_rounding_by_layer_loses_less_than_the_nearest_levels(
    folded: Any, sites: Any, pictures: torch.Tensor
) -> None:
    seen = observed(folded, sites, pictures[:64])
    layers = CalibratedModel(folded, sites, seen).candidate().layers
    fresh = observed(folded, sites, pictures[64:128])
    for name in ("blocks.0.key", "blocks.1.mlp.c_fc", "blocks.2.mlp.c_proj"):
        layer = folded.get_submodule(name)
        rounded = round_weight(layer, layers[name], seen[name])
        assert (rounded.levels != layers[name].levels).any()
        assert layer_error(layer, rounded, seen[name]) < layer_error(
            layer, layers[name], seen[name]
        )
        # Also where the inputs are not quantized more coarsely than the weights
        assert layer_error(layer, rounded, fresh[name]) < 1.2 * layer_error(
            layer, layers[name], fresh[name]
        )


@torch.no_grad()
def test_each_column_takes_the_rounding_errors_of_all_before_it() -> None:
    generator = torch.Generator().manual_seed(0)
    x, mixing = (torch.randn(n, 200, generator=generator) for n in (300, 200))
    layer, x = torch.nn.Linear(200, 4), x @ mixing
    steps = fake.weight_scale(layer.weight)
    levels = fake.weight_levels(layer.weight, steps).numpy()
    nearest = fake.QuantizedLayer(0.5, steps.numpy(), levels)
    seen = fake.fake_quantize(x, torch.tensor(0.5)).double()
    moments = seen.T @ seen / 300
    moments += 0.01 * moments.diagonal().mean() * torch.eye(200)
    weight, expected = layer.weight.double(), torch.zeros(4, 200)
    for i in range(200):
        inverse = torch.linalg.inv(moments[i:, i:])
        expected[:, i] = (weight[:, i] / steps).round().clamp(-127, 127)
        errors = (weight[:, i] - expected[:, i] * steps) / inverse[0, 0]
        weight[:, i:] -= errors[:, None] * inverse[0]
    found = round_weight(layer, nearest, InputStatistics(x, x.amin(0), x.amax(0))).levels
    assert (found == expected.numpy()).all()


@torch.no_grad()
def test_a_layer_left_in_float_has_the_exact_bias_and_the_others_the_corrected_one(
    folded: Any, sites: Any, pictures: torch.Tensor
) -> None:
    seen = observed(folded, sites, pictures[:64])
    layers = CalibratedModel(folded, sites, seen).candidate().layers
    with_biases = correct_biases(Candidate(folded, folded, layers, seen, {}))
    left, kept = "blocks.0.mlp.c_fc", "blocks.1.mlp.c_fc"
    found = leave_in_float(with_biases, [left])
    assert found.layers.keys() == layers.keys() - {left}

    def bias(model: Any, name: str) -> torch.Tensor:
        return model.get_submodule(name).bias

    assert not torch.equal(bias(with_biases.model, left), bias(folded, left))
    assert torch.equal(bias(found.model, left), bias(folded, left))
    assert torch.equal(bias(found.model, kept), bias(with_biases.model, kept))
    every = leave_in_float(with_biases, list(layers)).model(pictures[:8])
    torch.testing.assert_close(every, folded(pictures[:8]))


def test_the_agreement_to_expect_adds_every_images_error_to_every_images_logits(
    folded: Any, sites: Any, pictures: torch.Tensor
) -> None:
    seen = observed(folded, sites, pictures[:64])
    fine = CalibratedModel(folded, sites, seen).candidate().layers
    layers = {
        name: dataclasses.replace(layer, input_scale=32 * layer.input_scale)
        for name, layer in fine.items()
    }
    images = pictures[64:88]
    float_logits = folded(images)
    quantized = copy.deepcopy(folded)
    attach(quantized, layers)
    logits = quantized(images)
    found = score(logits, float_logits)
    n_kept = 0
    for row in float_logits:
        for other, answer in zip(float_logits, logits, strict=True):
            n_kept += int((row + answer - other).argmax() == row.argmax())
    assert found.expected_percent == pytest.approx(100 * n_kept / 24**2, abs=0.2)
    assert found.expected_percent < 100


def search_beyond_reach(folded: Any, sites: Any, pictures: torch.Tensor, *, minutes: float) -> Any:
    """A search that no candidate can satisfy."""
    held_out = pictures[32:64]
    beyond = {"target_percent": 101, "enough_percent": 101}
    return search(folded, sites, pictures[:32], held_out, **beyond, minutes=minutes)


def test_without_time_the_first_candidate_is_the_result(
    folded: Any, sites: Any, pictures: torch.Tensor
) -> None:
    best, record = search_beyond_reach(folded, sites, pictures, minutes=0)
    assert record["ended"] == "its time was over"
    assert [step["step"] for step in record["steps"]] == ["centered, SmoothQuant 0.5"]
    assert not record["reached"]
    assert len(best.layers) == 18


def test_a_slow_model_is_measured_on_images_spread_over_all(
    folded: Any, sites: Any, pictures: torch.Tensor
) -> None:
    """Without time on 64 of them, which count as much as they alone."""

    def step(held_out: torch.Tensor) -> dict[str, Any]:
        beyond = {"target_percent": 101, "enough_percent": 101}
        _, record = search(folded, sites, pictures[:32], held_out, **beyond, minutes=0)
        assert record["n_held_out"] == 64
        (first,) = record["steps"]
        return {**first, "at_seconds": None}

    held_out = pictures[32:285]  # 253 images: every fourth, with both ends
    assert step(held_out) == step(held_out[::4])
    assert step(held_out) != step(held_out[:64])


def test_a_target_that_cannot_be_reached_ends_after_all_steps_with_the_best(
    folded: Any, sites: Any, pictures: torch.Tensor
) -> None:
    before = copy.deepcopy(folded.state_dict())
    best, record = search_beyond_reach(folded, sites, pictures, minutes=20)
    assert record["ended"] == "all steps were tried"
    steps = record["steps"]
    kept = [step["expected_percent"] for step in steps if step["kept"]]
    assert kept == sorted(kept)
    assert kept[-1] == max(step["expected_percent"] for step in steps)
    assert {layer["sensitivity"] is None for layer in record["layers"].values()} == {False}
    assert set(record["in_float"]) == record["layers"].keys() - best.layers.keys()
    for name, value in folded.state_dict().items():
        assert torch.equal(value, before[name])


def test_each_candidate_is_tried_under_a_progress_that_is_not_finished(
    folded: Any, sites: Any, pictures: torch.Tensor
) -> None:
    told: list[tuple[str, int, int | None]] = []
    with progress_to(lambda *event: told.append(event)):
        _, record = search_beyond_reach(folded, sites, pictures, minutes=20)
    counted = [event for event in told if event[0] != "INT8: reading ranges"]
    names = [f"INT8: {what}" for what in ("searching", "sensitivity", "trying layers in float")]
    assert list(dict.fromkeys(what for what, *_ in counted)) == names
    n_in_float = sum("in float" in step["step"] for step in record["steps"])
    for name, total in zip(names, (4, 18, n_in_float), strict=True):
        expected = [(name, done, total) for done in range(total + 1)]
        assert [event for event in counted if event[0] == name] == expected


def test_one_layer_in_float_is_one(folded: Any, sites: Any, pictures: torch.Tensor) -> None:
    _, record = search_beyond_reach(folded, sites, pictures, minutes=20)
    in_float = [step["step"] for step in record["steps"] if "in float" in step["step"]]
    assert in_float[:2] == ["1 layer in float", "2 layers in float"]


def test_ctrl_c_ends_it_with_the_best_so_far_and_before_that_ends_everything(
    folded: Any, sites: Any, pictures: torch.Tensor
) -> None:
    def run(at: str) -> Any:
        def told(what: str, done: int, total: int | None) -> None:
            if what == at and done:
                raise KeyboardInterrupt

        with progress_to(told):
            return search_beyond_reach(folded, sites, pictures, minutes=20)

    best, record = run("INT8: searching")
    assert record["ended"] == "Ctrl-C ended it"
    assert len(record["steps"]) == 1
    assert len(best.layers) == 18
    with pytest.raises(KeyboardInterrupt):
        run("INT8: reading ranges")


def test_no_layer_is_left_in_float_for_agreement_above_what_is_enough(
    folded: Any, sites: Any, pictures: torch.Tensor
) -> None:
    best, record = search(
        folded, sites, pictures[:32], pictures[32:64],
        target_percent=101, enough_percent=1, minutes=20,
    )  # fmt: skip
    assert record["ended"] == "enough agreement for the layers left in float"
    assert record["steps"][-1]["step"] == "weights rounded by layer"
    assert (len(best.layers), record["in_float"], record["reached"]) == (18, [], False)


def test_with_no_images_to_choose_by_the_first_candidate_is_the_result(
    folded: Any, sites: Any, pictures: torch.Tensor
) -> None:
    _, record = search(
        folded, sites, pictures[:1], pictures[:0], target_percent=99, enough_percent=99, minutes=1
    )
    assert record["steps"] == []
    assert record["ended"] == "no images were left to choose by"


def test_pixels_that_are_not_finite_are_refused(
    folded: Any, sites: Any, pictures: torch.Tensor
) -> None:
    broken = pictures[:8].clone()
    broken[3, 0, 0, 0] = float("nan")
    with pytest.raises(DataError, match="NaN or infinite pixels"):
        search(
            folded, sites, broken, pictures[8:16], target_percent=99, enough_percent=99, minutes=1
        )


def test_dead_channels_stay_finite(folded: Any, sites: Any, pictures: torch.Tensor) -> None:
    model = copy.deepcopy(folded)
    with torch.no_grad():
        model.blocks[0].ln_1.weight[5] = model.blocks[0].ln_1.bias[5] = 0
        model.blocks[1].value.weight[7] = model.blocks[1].value.bias[7] = 0
        model.blocks[1].mlp.c_fc.weight[3] = 0
    seen = observed(model, sites, pictures[:32])
    alphas = CalibratedModel(model, sites, seen).best_alphas(lambda: None)
    changed = CalibratedModel(model, sites, seen).smoothed(alphas)
    smoothed, inputs = changed.model, changed.inputs
    torch.testing.assert_close(smoothed(pictures[:8]), model(pictures[:8]), rtol=0, atol=1e-4)
    layers = CalibratedModel(smoothed, sites, inputs).candidate().layers
    assert all((layer.weight_scale > 0).all() for layer in layers.values())

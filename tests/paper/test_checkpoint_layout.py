"""Checkpoints of the public PromptSRC and PromptKD code, written as that code writes them."""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kdedge.errors import DataError
from kdedge.methods.base import Projector
from kdedge.paper.checkpoints.layout import (
    deviation,
    promptkd_parameters,
    promptsrc_parameters,
    read_public_checkpoint,
)

GOLDEN = Path(__file__).parents[1] / "golden"
DEEP_CONTEXT = "text_prompts.deep_context"
HALF = re.compile(r"ctx$|token_|proj|conv1\.weight|conv1\.[03]|c_fc|c_proj|text_projection")


def draw(method: str) -> OrderedDict[str, Tensor]:
    """A state dict with every key of the public code's checkpoints, in its types, seeded."""
    shapes = json.loads((GOLDEN / f"{method}_checkpoint_keys.json").read_text())
    generator = torch.Generator().manual_seed(0)
    state: OrderedDict[str, Tensor] = OrderedDict()
    for key, shape in shapes.items():
        value = torch.randn(shape, generator=generator)
        state[key] = value.half() if HALF.search(key) else value
    for key in state:
        if key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(17)
    return state


@pytest.fixture(scope="module")
def promptsrc() -> OrderedDict[str, Tensor]:
    return draw("promptsrc")


@pytest.fixture(scope="module")
def promptkd() -> OrderedDict[str, Tensor]:
    return draw("promptkd")


class ConstantWarmupScheduler:
    """Stands for Dassl's scheduler, an object that holds another scheduler and the optimizer."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.successor = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
        self.last_epoch = 20


def save(path: Path, state: dict[str, Tensor], **changes: Any) -> Path:
    """Writes a checkpoint as Dassl's `save_checkpoint` does, scheduler object included."""
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    parameter.sum().backward()
    optimizer.step()
    checkpoint = {
        "state_dict": state,
        "epoch": 20,
        "optimizer": optimizer.state_dict(),
        "scheduler": ConstantWarmupScheduler(optimizer),
        "val_result": np.float64(81.25),
        **changes,
    }
    torch.save(checkpoint, path)
    return path


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_checkpoint_that_torch_refuses_is_read_whole(
    promptsrc: OrderedDict[str, Tensor], tmp_path: Path, prefix: str
) -> None:
    named = OrderedDict((f"{prefix}{key}", value) for key, value in promptsrc.items())
    path = save(tmp_path / "model.pth.tar-20", named)
    with pytest.raises(Exception, match="Weights only load failed"):
        torch.load(path, weights_only=True)
    checkpoint = read_public_checkpoint(path)
    assert list(promptsrc) == list(checkpoint.state_dict)
    for key, value in promptsrc.items():
        assert value.dtype == checkpoint.state_dict[key].dtype, key
        assert torch.equal(value, checkpoint.state_dict[key]), key
    assert checkpoint.epoch == 20


def test_views_transposes_and_parameters_are_read_as_they_are(tmp_path: Path) -> None:
    block = torch.arange(24.0).reshape(4, 6)
    tagged = torch.nn.Parameter(torch.rand(2))
    tagged.note = "an attribute of its own"
    state = {
        "tagged": tagged,
        "view": block[1:3],
        "transposed": block.t(),
        "parameter": torch.nn.Parameter(torch.rand(2, 2)),
        "empty": torch.empty(0, 5),
        "scalar": torch.tensor(2.5, dtype=torch.bfloat16),
    }
    read = read_public_checkpoint(save(tmp_path / "m.pth.tar", state)).state_dict
    for key, value in state.items():
        assert torch.equal(value.detach(), read[key]), key
        assert read[key].is_contiguous()
        assert not read[key].requires_grad


@pytest.mark.parametrize("epoch", [None, "20", -1, np.int64(3)])
def test_an_epoch_that_is_no_count_is_left_out(tmp_path: Path, epoch: Any) -> None:
    path = save(tmp_path / "m.pth.tar", {"a": torch.ones(1)}, epoch=epoch)
    assert read_public_checkpoint(path).epoch is None


@pytest.mark.parametrize("saved", [{"epoch": 3}, {"state_dict": {}}, [1], {"state_dict": [1]}])
def test_a_file_without_a_state_dict_is_an_error(tmp_path: Path, saved: Any) -> None:
    torch.save(saved, tmp_path / "m.pth.tar")
    with pytest.raises(DataError, match="has no state_dict"):
        read_public_checkpoint(tmp_path / "m.pth.tar")


@pytest.mark.parametrize(
    "state", [{"a": 3}, {3: torch.ones(1)}, {"a": torch.ones(1), "module.a": torch.ones(1)}]
)
def test_an_entry_without_a_tensor_or_a_name_of_its_own_is_an_error(
    tmp_path: Path, state: Any
) -> None:
    with pytest.raises(DataError, match="not a named tensor, or has a repeated name"):
        read_public_checkpoint(save(tmp_path / "m.pth.tar", state))


def test_values_that_are_not_finite_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="ctx holds values that are not finite"):
        read_public_checkpoint(save(tmp_path / "m.pth.tar", {"ctx": torch.tensor([torch.inf])}))


def test_a_safetensors_file_is_no_public_checkpoint(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.ones(1)}, tmp_path / "m.safetensors")
    with pytest.raises(DataError, match="is not a checkpoint of the public code"):
        read_public_checkpoint(tmp_path / "m.safetensors")


def test_promptsrc_prompts_lie_in_block_order(promptsrc: OrderedDict[str, Tensor]) -> None:
    context, deep_context, visual_prompts = promptsrc_parameters(promptsrc).trained.values()
    assert context.dtype == torch.float32
    assert torch.equal(promptsrc["prompt_learner.ctx"].float(), context)
    assert deep_context.shape == (8, 4, 64)
    assert visual_prompts.shape == (9, 4, 128)
    assert torch.equal(promptsrc["image_encoder.VPT"], visual_prompts[0])
    for block in range(1, 9):
        key = f"transformer.resblocks.{block}.VPT_shallow"
        assert torch.equal(promptsrc[f"text_encoder.{key}"], deep_context[block - 1])
        assert torch.equal(promptsrc[f"image_encoder.{key}"], visual_prompts[block])


def test_prompts_of_more_than_ten_blocks_lie_in_the_order_of_their_numbers(
    promptsrc: OrderedDict[str, Tensor],
) -> None:
    deeper = {
        f"{encoder}.transformer.resblocks.{block}.VPT_shallow": torch.full((4, width), float(block))
        for encoder, width in (("text_encoder", 64), ("image_encoder", 128))
        for block in range(1, 12)
    }
    _, deep_context, visual_prompts = promptsrc_parameters({**promptsrc, **deeper}).trained.values()
    assert deep_context[:, 0, 0].tolist() == list(range(1, 12))
    assert visual_prompts[1:, 0, 0].tolist() == list(range(1, 12))


def test_every_key_of_a_promptsrc_checkpoint_is_used_or_known(
    promptsrc: OrderedDict[str, Tensor],
) -> None:
    found = promptsrc_parameters(promptsrc)
    n_prompts = 1 + sum(len(found.trained[key]) for key in (DEEP_CONTEXT, "visual_prompts"))
    starts = ("prompt_learner.ZS_image_encoder.", "prompt_learner.token_")
    n_ignored = sum(key.startswith(starts) for key in promptsrc)
    assert len(promptsrc) == n_prompts + len(found.backbone) + n_ignored


def test_backbone_tensors_have_open_clips_names(promptsrc: OrderedDict[str, Tensor]) -> None:
    import open_clip

    with torch.device("meta"):
        model = open_clip.CLIP(
            embed_dim=48,
            vision_cfg={
                "image_size": 32,
                "patch_size": 8,
                "width": 128,
                "layers": 12,
                "head_width": 64,
            },
            text_cfg={"width": 64, "heads": 1, "layers": 12},
        )
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    del shapes["token_embedding.weight"]  # the public code does not save it
    backbone = promptsrc_parameters(promptsrc).backbone
    assert shapes == {key: value.shape for key, value in backbone.items()}
    key = "transformer.resblocks.3.attn.in_proj_weight"
    assert torch.equal(promptsrc[f"text_encoder.{key}"], backbone[key])
    assert torch.equal(promptsrc[f"image_encoder.{key}"], backbone[f"visual.{key}"])
    assert backbone[key].dtype == torch.float16


def test_the_second_token_buffers_are_ignorable(promptsrc: OrderedDict[str, Tensor]) -> None:
    more = {f"prompt_learner.token_{name}2": torch.ones(7, 1, 64) for name in ("prefix", "suffix")}
    found = promptsrc_parameters({**promptsrc, **more})
    assert found.backbone.keys() == promptsrc_parameters(promptsrc).backbone.keys()


@pytest.mark.parametrize(("text_depth", "vision_depth"), [(3, 3), (1, 1), (2, 5)])
def test_depth_is_inferred_from_the_keys(
    promptsrc: OrderedDict[str, Tensor], text_depth: int, vision_depth: int
) -> None:
    depths = {"text_encoder": text_depth, "image_encoder": vision_depth}

    def is_kept(key: str) -> bool:
        if "VPT_shallow" not in key:
            return True
        encoder, _, _, block, _ = key.split(".")
        return int(block) < depths[encoder]

    found = promptsrc_parameters({k: v for k, v in promptsrc.items() if is_kept(k)})
    assert found.trained[DEEP_CONTEXT].shape == (text_depth - 1, 4, 64)
    assert found.trained["visual_prompts"].shape == (vision_depth, 4, 128)


@pytest.mark.parametrize("encoder", ["text_encoder", "image_encoder"])
def test_a_gap_in_the_prompted_blocks_is_an_error(
    promptsrc: OrderedDict[str, Tensor], encoder: str
) -> None:
    state = dict(promptsrc)
    for block in (2, 5):
        del state[f"{encoder}.transformer.resblocks.{block}.VPT_shallow"]
    with pytest.raises(DataError, match=f"{encoder} has VPT_shallow in blocks 1, 3, 4, 6, 7, 8; "):
        promptsrc_parameters(state)


def test_promptkd_projector_computes_what_its_convolutions_compute(
    promptkd: OrderedDict[str, Tensor],
) -> None:
    trained = promptkd_parameters(promptkd).trained
    features = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    for conv, linear in (("0", "linear1"), ("3", "linear2")):
        weight = promptkd[f"VPT_image_trans.conv1.{conv}.weight"].float()
        bias = promptkd[f"VPT_image_trans.conv1.{conv}.bias"].float()
        expected = torch.nn.functional.conv2d(features[:, :, None, None], weight, bias)[:, :, 0, 0]
        features = torch.nn.functional.linear(
            features, trained[f"projector.{linear}.weight"], trained[f"projector.{linear}.bias"]
        )
        # float32 sums of up to 48 terms in another order
        torch.testing.assert_close(expected, features, atol=1e-5, rtol=1e-5)


def test_promptkd_tensors_are_all_used(promptkd: OrderedDict[str, Tensor]) -> None:
    found = promptkd_parameters(promptkd)
    projector = Projector(32, 48, torch.Generator()).state_dict()
    assert list(found.trained) == ["visual_prompts", *(f"projector.{key}" for key in projector)]
    assert found.trained["projector.batch_norm.num_batches_tracked"].item() == 17
    running_var = promptkd["VPT_image_trans.conv1.1.running_var"]
    assert torch.equal(running_var, found.trained["projector.batch_norm.running_var"])
    assert found.trained["visual_prompts"].shape == (9, 4, 64)
    assert len(promptkd) == 9 + len(projector) + len(found.backbone)
    assert {"logit_scale"} == {key for key in found.backbone if not key.startswith("visual.")}


@pytest.mark.parametrize(
    "key",
    ["VPT_image_trans.conv1.3.bias", "VPT_image_trans.conv1.1.running_mean", "image_encoder.VPT"],
)
def test_a_missing_tensor_is_named(promptkd: OrderedDict[str, Tensor], key: str) -> None:
    rest = {name: value for name, value in promptkd.items() if name != key}
    with pytest.raises(DataError, match=f"has no {key}"):
        promptkd_parameters(rest)


BLOCK = "image_encoder.transformer.resblocks"


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        (f"{BLOCK}.0.VPT_shallow", (4, 64), "in blocks 0, 1, 2"),
        (f"{BLOCK}.3.VPT_shallow", (2, 64), r"in block 3 are \[2, 64\]"),
        # A projector of linear layers is not guessed at
        ("VPT_image_trans.conv1.0.weight", (48, 32), r"expected \[out, in, 1, 1\]"),
    ],
)
def test_a_tensor_in_the_wrong_place_or_shape_is_named(
    promptkd: OrderedDict[str, Tensor], key: str, shape: Any, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        promptkd_parameters({**promptkd, key: torch.ones(shape)})


def test_neither_method_is_taken_for_the_other(
    promptsrc: OrderedDict[str, Tensor], promptkd: OrderedDict[str, Tensor]
) -> None:
    with pytest.raises(DataError, match="looks like a checkpoint of a PromptKD student"):
        promptsrc_parameters(promptkd)
    with pytest.raises(DataError, match="looks like a PromptSRC checkpoint"):
        promptkd_parameters(promptsrc)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"ctx": (16, 64), "token_prefix": (7, 1, 64)}, r"a prompt learner's checkpoint \(CoOp\)"),
        ({"prompt_learner.ctx": (2, 64)}, "a checkpoint of prompt-learning code"),
        ({"image_encoder.VPT": (8, 64), "logit_scale": ()}, "a checkpoint of prompt-learning code"),
        ({"visual.layer1.0.weight": (3,)}, "a ResNet CLIP"),
        ({"encoder.weight": (3,)}, "nothing known: encoder.weight"),
    ],
)
@pytest.mark.parametrize("sort", [promptsrc_parameters, promptkd_parameters])
def test_another_methods_checkpoint_is_named(
    keys: dict[str, tuple[int, ...]], said: str, sort: Any
) -> None:
    with pytest.raises(DataError, match=f"looks like {said}"):
        sort({key: torch.ones(shape) for key, shape in keys.items()})


def test_ivlp_with_promptsrcs_keys_is_taken(promptsrc: OrderedDict[str, Tensor]) -> None:
    ivlp = {key: value for key, value in promptsrc.items() if "ZS_image_encoder" not in key}
    assert promptsrc_parameters(ivlp).trained["visual_prompts"].shape == (9, 4, 128)


def test_deviation_names_the_farthest_tensor() -> None:
    loaded = {"a": torch.tensor([100.0, 1.0]), "b": torch.tensor([0.5, -1.0]), "c": torch.ones(1)}
    theirs = {"a": torch.tensor([101.0, 1.0]), "b": torch.tensor([0.5, -0.75])}
    assert deviation(loaded, theirs) == (0.25, "b")
    assert deviation(loaded, {"a": loaded["a"], "b": loaded["b"]}) == (0.0, "a")
    assert deviation(loaded, {}) == (0.0, "")
    assert deviation({"none": torch.ones(0)}, {"none": torch.ones(0)}) == (0.0, "")


def test_deviation_of_averaged_halves_is_rounding(promptsrc: OrderedDict[str, Tensor]) -> None:
    backbone = promptsrc_parameters(promptsrc).backbone
    averaged = {
        key: sum(((value * weight).to(value.dtype) for weight in (0.25, 0.5, 0.25)), value * 0)
        for key, value in backbone.items()
    }
    relative, _ = deviation(backbone, averaged)
    assert 0 < relative <= 2e-3


def test_deviation_refuses_another_clip() -> None:
    with pytest.raises(DataError, match=r"proj is \[3\] in the checkpoint and \[2\] in the"):
        deviation({"proj": torch.ones(2)}, {"proj": torch.ones(3)})
    with pytest.raises(DataError, match=r"proj is \[3\] in the checkpoint and not there in the"):
        deviation({}, {"proj": torch.ones(3)})

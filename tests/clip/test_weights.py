"""Files of weights: what is read, what is inferred from it, and what is said about a wrong one."""

from __future__ import annotations

import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from kdedge.clip.weights import infer_config, match_shapes, read_weights
from kdedge.errors import DataError

CONFIG: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {
        "image_size": 32,
        "patch_size": 8,
        "head_width": 64,
        "width": 64,
        "layers": 2,
    },
    "text_cfg": {"context_length": 12, "vocab_size": 300, "heads": 2, "width": 128, "layers": 3},
}
SIZES = {"input_resolution": 32, "context_length": 12, "vocab_size": 300}


def small_clip(**changes: Any) -> open_clip.CLIP:
    torch.manual_seed(0)
    return open_clip.CLIP(**{**CONFIG, "quick_gelu": True, **changes}).eval()


@pytest.fixture(scope="module")
def state_dict() -> dict[str, Tensor]:
    return dict(small_clip().state_dict())


def sizes_as_tensors() -> dict[str, Tensor]:
    return {key: torch.tensor(value) for key, value in SIZES.items()}


def write_archive(path: Path, model: torch.nn.Module) -> Path:
    """Traces a CLIP into a TorchScript archive, as OpenAI did."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace_module(model, {"encode_image": torch.ones(1, 3, 32, 32)})
        torch.jit.save(traced, path)
    return path


def openai_archive(path: Path) -> Path:
    """An archive in OpenAI's layout, with three sizes among the buffers."""
    model = small_clip()
    del model.context_length, model.vocab_size
    for key, value in sizes_as_tensors().items():
        model.register_buffer(key, value)
    model.plain_attribute = torch.ones(3)  # in the archive, but no part of its state dict
    return write_archive(path, model)


def assert_same(expected: dict[str, Tensor], actual: dict[str, Tensor]) -> None:
    assert sorted(expected) == sorted(actual)
    for key, value in expected.items():
        assert value.dtype == actual[key].dtype, key
        assert torch.equal(value, actual[key]), key


def save_safetensors(state: dict[str, Tensor], path: Path) -> None:
    save_file({key: value.contiguous() for key, value in state.items()}, path)


def save_legacy(state: dict[str, Tensor], path: Path) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


def save_training_checkpoint(state: dict[str, Tensor], path: Path) -> None:
    state = {f"module.{key}": value for key, value in state.items()}
    torch.save({"epoch": 3, "name": "run", "state_dict": state, "optimizer": {"lr": 0.1}}, path)


@pytest.mark.parametrize(
    "save",
    [
        save_safetensors,
        torch.save,
        save_legacy,
        save_training_checkpoint,
        lambda state, path: torch.save(OrderedDict(state), path),
    ],
    ids=["safetensors", "bare", "legacy", "training checkpoint", "ordered"],
)
@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt", "weights"])
def test_every_format_gives_the_stored_tensors_whatever_the_files_name(
    state_dict: dict[str, Tensor],
    tmp_path: Path,
    save: Callable[[dict[str, Tensor], Path], None],
    name: str,
) -> None:
    path = tmp_path / name
    save(state_dict, path)
    weights = read_weights(path)
    assert_same(state_dict, weights.state_dict)
    assert weights.quick_gelu is None


def test_half_precision_and_parameters_come_as_stored(tmp_path: Path) -> None:
    state = {"a": torch.nn.Parameter(torch.rand(2).half()), "b": torch.rand(3).bfloat16()}
    torch.save(state, tmp_path / "w.pt")
    read = read_weights(tmp_path / "w.pt").state_dict
    assert_same({key: value.detach() for key, value in state.items()}, read)
    assert not read["a"].requires_grad
    assert type(read["a"]) is Tensor


def test_an_openai_archive_gives_what_torchscript_itself_would_give(tmp_path: Path) -> None:
    path = openai_archive(tmp_path / "ViT-B-32.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = {k: v for k, v in torch.jit.load(path).state_dict().items() if k not in SIZES}
    weights = read_weights(path)
    assert_same(expected, weights.state_dict)
    assert weights.quick_gelu is True
    assert infer_config(shapes_of(weights.state_dict)) == CONFIG


def test_torchscript_without_openais_sizes_does_not_say_its_activation(tmp_path: Path) -> None:
    weights = read_weights(write_archive(tmp_path / "own.pt", small_clip(quick_gelu=False)))
    assert weights.quick_gelu is None


@pytest.mark.parametrize("as_tensors", [True, False])
def test_a_state_dict_with_openais_three_sizes_is_quick_gelu(
    state_dict: dict[str, Tensor], tmp_path: Path, as_tensors: bool
) -> None:
    sizes = sizes_as_tensors() if as_tensors else SIZES
    torch.save({**state_dict, **sizes}, tmp_path / "w.pt")
    weights = read_weights(tmp_path / "w.pt")
    assert weights.quick_gelu is True
    assert_same(state_dict, weights.state_dict)


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        (None, None),
        ({"format": "pt"}, None),
        ({"quick_gelu": "true"}, True),
        ({"quick_gelu": "false"}, False),
    ],
)
def test_safetensors_metadata_may_state_the_activation(
    tmp_path: Path, metadata: dict[str, str] | None, expected: bool | None
) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "w.safetensors", metadata=metadata)
    assert expected is read_weights(tmp_path / "w.safetensors").quick_gelu


def test_an_unknown_word_for_the_activation_is_an_error(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "w.safetensors", metadata={"quick_gelu": "yes"})
    with pytest.raises(DataError, match='"quick_gelu": "yes"'):
        read_weights(tmp_path / "w.safetensors")


def test_module_is_stripped_only_where_every_key_has_it(tmp_path: Path) -> None:
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "w.pt")
    assert {"module.a", "b"} == set(read_weights(tmp_path / "w.pt").state_dict)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "git-lfs pointer"),
        (b"\n<!DOCTYPE html><html><body>404</body></html>", "a web page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "a web page"),
        (b"\x1f\x8b\x08\x00rest", "a compressed archive"),
        (b"\x80\x04}.", "a Python pickle that torch.save did not write"),
        (b"hello", "not a file of weights"),
        (bytes(100), "not a file of weights"),
        (b"PK\x03\x04 and no more", "truncated"),
        (b"\xff\xff\xff\xff\xff\xff\xff\x7f{}", "not a file of weights"),
    ],
)
def test_another_kind_of_file_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "w.pt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        read_weights(path)
    assert str(path) in str(caught.value)
    assert "fetch the file again" in str(caught.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(DataError, match="cannot be read"):
            read_weights(path)


def test_a_zip_of_something_else_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        archive.writestr("folder/readme.txt", "hello")
    with pytest.raises(DataError, match="a zip archive that torch did not write"):
        read_weights(tmp_path / "w.pt")


@pytest.mark.parametrize("saved", [[torch.ones(1)], torch.ones(1), {}, {"state_dict": {}}])
def test_what_is_no_state_dict_is_an_error(tmp_path: Path, saved: Any) -> None:
    torch.save(saved, tmp_path / "w.pt")
    with pytest.raises(DataError, match=r"not a state dict|holds no tensors"):
        read_weights(tmp_path / "w.pt")


@pytest.mark.parametrize(
    "value", ["text", 3, {"b": 1}, torch.eye(2).to_sparse(), torch.ones(1, dtype=torch.complex64)]
)
def test_an_entry_that_is_no_plain_tensor_is_named(tmp_path: Path, value: Any) -> None:
    torch.save({"a": torch.ones(1), "odd": value}, tmp_path / "w.pt")
    with pytest.raises(DataError, match="'odd' is not a plain tensor"):
        read_weights(tmp_path / "w.pt")


def test_values_that_are_not_finite_are_named_but_for_a_mask(tmp_path: Path) -> None:
    mask = {"attn_mask": torch.full((2, 2), float("-inf"))}
    torch.save({"a": torch.ones(1), **mask}, tmp_path / "fine.pt")
    assert "attn_mask" in read_weights(tmp_path / "fine.pt").state_dict
    torch.save({"fine": torch.ones(1), "bad": torch.tensor([1.0, float("nan")])}, tmp_path / "w.pt")
    with pytest.raises(DataError, match="bad holds values that are not finite"):
        read_weights(tmp_path / "w.pt")


def test_all_sizes_come_from_the_shapes(state_dict: dict[str, Tensor]) -> None:
    config = infer_config(shapes_of(state_dict))
    assert config == CONFIG
    assert {key: value.shape for key, value in open_clip.CLIP(**config).state_dict().items()} == {
        key: value.shape for key, value in state_dict.items()
    }


def test_an_mlp_of_another_width_is_inferred_for_each_encoder() -> None:
    vision = {**CONFIG["vision_cfg"], "mlp_ratio": 2.0}
    text = {**CONFIG["text_cfg"], "mlp_ratio": 3.0}
    model = small_clip(vision_cfg=vision, text_cfg=text)
    assert infer_config(shapes_of(model.state_dict())) == {
        **CONFIG,
        "vision_cfg": vision,
        "text_cfg": text,
    }


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("vision_model.head.probe logit_bias", "a SigLIP"),
        ("vision_model.embeddings.class_embedding", "a CLIP of Hugging Face transformers"),
        ("visual.layer1.0.conv1.weight", "a ResNet CLIP"),
        ("visual.trunk.patch_embed.proj.weight", "a CLIP with an image encoder of timm"),
        ("text_decoder.resblocks.0.ln_1.weight", "a CoCa"),
        ("text.positional_embedding", "a text encoder of its own"),
        ("image_encoder.conv1.weight", "a checkpoint of prompt-learning code"),
        ("ctx", "a prompt learner's checkpoint"),
        ("encoder.weight", "has no visual.conv1.weight.\n"),
    ],
)
def test_another_layout_is_named(keys: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        infer_config(dict.fromkeys(keys.split(), (1,)), where="w.pt")


@pytest.mark.parametrize(
    "key",
    [
        "visual.conv1.weight",
        "visual.positional_embedding",
        "text_projection",
        "positional_embedding",
        "token_embedding.weight",
        "visual.transformer.resblocks.0.mlp.c_fc.weight",
    ],
)
def test_a_missing_key_is_named(state_dict: dict[str, Tensor], key: str) -> None:
    rest = {name: value for name, value in state_dict.items() if name != key}
    with pytest.raises(DataError, match=f"w.pt has no {key}"):
        infer_config(shapes_of(rest), where="w.pt")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"transformer.resblocks.0.ln_1.bias": None}, "1 missing: transformer.resblocks.0.ln_1"),
        ({"visual.positional_embedding": (16, 64)}, "1 of another shape: visual.positional"),
        ({"visual.conv1.weight": (64, 3, 8, 4)}, "1 of another shape: visual.conv1.weight"),
    ],
)
def test_a_file_that_is_not_the_inferred_model_is_refused(
    state_dict: dict[str, Tensor], changes: dict[str, Any], said: str
) -> None:
    shapes = {**shapes_of(state_dict), **changes}
    shapes = {key: shape for key, shape in shapes.items() if shape is not None}
    with torch.device("meta"):
        model = open_clip.CLIP(**infer_config(shapes))
    with pytest.raises(DataError, match=said):
        match_shapes(shapes_of(model.state_dict()), shapes, "w.pt")


@pytest.mark.parametrize(
    ("key", "shape"),
    [("visual.positional_embedding", (0, 64)), ("visual.conv1.weight", (64, 8))],
)
def test_shapes_without_sizes_are_errors(
    state_dict: dict[str, Tensor], key: str, shape: tuple[int, ...]
) -> None:
    with pytest.raises(DataError, match="expected"):
        infer_config({**shapes_of(state_dict), key: shape})


def shapes_of(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in state.items()}


def test_an_equal_state_dict_matches_with_or_without_the_mask(
    state_dict: dict[str, Tensor],
) -> None:
    match_shapes(shapes_of(state_dict), shapes_of(state_dict), "w.pt")
    mask = {"attn_mask": torch.zeros(12, 12), "transformer.resblocks.0.attn_mask": torch.zeros(1)}
    match_shapes(shapes_of(state_dict), shapes_of({**state_dict, **mask}), "w.pt")


def test_every_difference_is_in_one_message(state_dict: dict[str, Tensor]) -> None:
    changed = dict(state_dict)
    for index in range(2):
        del changed[f"visual.transformer.resblocks.{index}.ln_1.weight"]
    for index in range(7):
        changed[f"added.{index}"] = torch.ones(1)
    changed["visual.proj"] = torch.ones(64, 31)
    with pytest.raises(DataError) as caught:
        match_shapes(shapes_of(state_dict), shapes_of(changed), "ViT-B-16 from w.pt")
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("ViT-B-16 from w.pt: ")
    assert lines[1:4] == [
        "  2 missing: visual.transformer.resblocks.0.ln_1.weight,"
        " visual.transformer.resblocks.1.ln_1.weight",
        "  7 unexpected: added.0, added.1, added.2, added.3, added.4, and 2 more",
        "  1 of another shape: visual.proj [64, 31] (the model: [64, 32])",
    ]


def test_a_name_from_a_file_cannot_write_to_the_terminal(state_dict: dict[str, Tensor]) -> None:
    hostile = {**state_dict, "\x1b[2J\nerased" + "x" * 1000: torch.ones(1)}
    with pytest.raises(DataError) as caught:
        match_shapes(shapes_of(state_dict), shapes_of(hostile), "w.pt")
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 600

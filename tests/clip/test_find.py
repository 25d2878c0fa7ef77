"""Backbones found before they are built, by the hashes of their files."""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from open_clip import CLIP, CustomTextCLIP
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from kdedge.clip.builtin import builtin_file
from kdedge.clip.find import find_backbone
from kdedge.clip.resolve import BackboneSpec
from kdedge.clip.weights_file import HashCache
from kdedge.files import SETTLED_NS

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
VIT = {"image_size": 32, "layers": 2, "width": 64, "head_width": 64, "patch_size": 8}


def config(vision: dict[str, Any], **text: Any) -> dict[str, Any]:
    return {"embed_dim": 24, "vision_cfg": vision, "text_cfg": {**TEXT, **text}}


def draw(model: nn.Module) -> dict[str, Tensor]:
    """Draws a state dict for a model, the same on every platform."""
    state = {}
    for key, value in model.state_dict().items():
        rng = np.random.default_rng(zlib.crc32(key.encode()))
        drawn = np.asarray(rng.integers(-30, 31, size=tuple(value.shape)) / 256)
        positive = np.abs(drawn) if "running_var" in key else drawn
        state[key] = torch.from_numpy(positive).to(value.dtype)  # exact in half precision too
    return state


def openai_state_dict(folder: Path) -> BackboneSpec:
    sizes = {"input_resolution": 32, "context_length": 77, "vocab_size": 49408}
    state = draw(CLIP(**config(VIT)))
    torch.save({**state, **sizes}, folder / "w.pt")
    return BackboneSpec(None, str(folder / "w.pt"))


def openai_archive(folder: Path) -> BackboneSpec:
    model = CLIP(**config(VIT), quick_gelu=True).eval()
    model.load_state_dict(draw(model))
    del model.context_length, model.vocab_size
    for name, size in {"input_resolution": 32, "context_length": 77, "vocab_size": 49408}.items():
        model.register_buffer(name, torch.tensor(size))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace_module(model, {"encode_image": torch.ones(1, 3, 32, 32)})
        torch.jit.save(traced, folder / "w.pt")
    return BackboneSpec(None, str(folder / "w.pt"))


def half_safetensors(folder: Path) -> BackboneSpec:
    state = {key: value.half() for key, value in draw(CLIP(**config(VIT))).items()}
    save_file(state, folder / "w.safetensors", metadata={"quick_gelu": "false"})
    return BackboneSpec(None, str(folder / "w.safetensors"))


def training_checkpoint(folder: Path) -> BackboneSpec:
    (folder / "c.json").write_text(json.dumps(config(VIT)))
    state = {f"module.{key}": value for key, value in draw(CLIP(**config(VIT))).items()}
    torch.save({"epoch": 3, "state_dict": state, "optimizer": {"lr": 0.1}}, folder / "w.pt")
    return BackboneSpec(None, str(folder / "w.pt"), folder / "c.json")


def builtin(_: Path) -> BackboneSpec:
    return BackboneSpec("kdedge-demo-student", "builtin")


def with_config(vision: dict[str, Any], *, custom_text: bool = False) -> Any:
    def write(folder: Path) -> BackboneSpec:
        kind, text = (CustomTextCLIP, {"no_causal_mask": True}) if custom_text else (CLIP, {})
        sizes = config(vision, **text)
        (folder / "c.json").write_text(json.dumps({**sizes, "custom_text": custom_text}))
        save_file(draw(kind(**sizes)), folder / "w.safetensors")
        return BackboneSpec(None, str(folder / "w.safetensors"), folder / "c.json", False)

    return write


def of_timm(name: str) -> Callable[[Path], BackboneSpec]:
    def write(folder: Path) -> BackboneSpec:
        save_file(draw(timm.create_model(name)), folder / "w.safetensors")
        return BackboneSpec(f"timm/{name}", str(folder / "w.safetensors"))

    return write


CONVNEXT = {"timm_model_name": "test_convnext", "image_size": 32, "timm_proj": "linear"}
RELPOS = {"timm_model_name": "test_vit_relpos", "image_size": 160, "timm_proj": "linear"}
RESNET = {"layers": [1, 1, 1, 1], "width": 8, "image_size": 32, "patch_size": None}
KINDS: dict[str, Callable[[Path], BackboneSpec]] = {
    "OpenAI state dict": openai_state_dict,
    "OpenAI archive": openai_archive,
    "half-precision safetensors": half_safetensors,
    "training checkpoint": training_checkpoint,
    "built-in": builtin,
    "ResNet": with_config(RESNET),
    "average pooling": with_config({**VIT, "pool_type": "avg"}),
    "position indices in no file": with_config(RELPOS),
    "ViT beside another text encoder": with_config(VIT, custom_text=True),
    "ConvNeXt beside another text encoder": with_config(CONVNEXT, custom_text=True),
    "timm ViT": of_timm("test_vit"),
    "timm ResNet": of_timm("test_resnet"),
    "timm position indices in no file": of_timm("test_vit_relpos"),
}


@pytest.fixture
def made_on_cpu() -> Iterator[list[str]]:
    """The names of parameters that modules get while a test runs and that have values."""
    names: list[str] = []

    def note(_: nn.Module, name: str, parameter: nn.Parameter) -> None:
        if parameter is not None and parameter.device.type != "meta":
            names.append(name)

    handle = register_module_parameter_registration_hook(note)
    yield names
    handle.remove()


_opened: list[str] = []


@pytest.fixture(scope="session")
def _audit() -> None:
    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            _opened.append(str(arguments[0]))

    sys.addaudithook(note)


@pytest.fixture
def opened(_audit: None) -> list[str]:
    """The files that Python opens while a test runs."""
    _opened.clear()
    return _opened


@pytest.fixture
def a_minute_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], HashCache]:
    """Opens a cache as commands do that start long after the test wrote its files."""
    now_ns = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now_ns() + 60_000_000_000)
    return lambda: HashCache(tmp_path / "cache")


Open = Callable[[], HashCache]


def found_values(spec: BackboneSpec, hashes: HashCache | None) -> dict[str, Any]:
    found = find_backbone(spec, needs_text_encoder=False, hashes=hashes)
    return {name: getattr(found, name) for name in ("weights_hash", "identity", "embed_dim")}


@pytest.mark.parametrize("kind", KINDS)
def test_a_backbone_is_found_without_values_and_loads_as_it_was_found(
    tmp_path: Path, a_minute_later: Open, kind: str, request: pytest.FixtureRequest
) -> None:
    spec = KINDS[kind](tmp_path)
    made_on_cpu = request.getfixturevalue("made_on_cpu")  # the files are written by now
    caches = (None, a_minute_later(), a_minute_later())
    first, _, again = [find_backbone(spec, needs_text_encoder=False, hashes=one) for one in caches]
    assert made_on_cpu == []
    path = builtin_file(spec.name) if spec.weights == "builtin" else Path(str(spec.weights))
    assert first.weights_hash == again.weights_hash == sha256(path.read_bytes()).hexdigest()
    for found in (first, again):
        backbone = found.load()
        for name in ("identity", "embed_dim", "name", "preprocess"):
            assert getattr(backbone, name) == getattr(found, name) == getattr(first, name)
        assert found.has_text_encoder == hasattr(backbone, "text_cache")


def test_a_file_that_is_known_from_an_earlier_command_is_read_only_for_loading(
    tmp_path: Path, a_minute_later: Open, opened: list[str]
) -> None:
    spec = openai_state_dict(tmp_path)
    opened.clear()
    found = find_backbone(spec, needs_text_encoder=True, hashes=a_minute_later())
    n_read = opened.count(str(spec.weights)) - 1  # once more for its hash
    assert n_read > 0
    found.load()
    assert opened.count(str(spec.weights)) == 2 * n_read + 1

    opened.clear()
    found = find_backbone(spec, needs_text_encoder=True, hashes=a_minute_later())
    assert str(spec.weights) not in opened
    found.load()
    assert opened.count(str(spec.weights)) == n_read
    found.load()  # again, since nothing of the file is kept
    assert opened.count(str(spec.weights)) == 2 * n_read


def other_weights(path: Path) -> None:
    """Changes a value in a file, whose size stays."""
    content = bytearray(path.read_bytes())
    content[-3] ^= 0x10
    path.write_bytes(content)


def test_a_replaced_file_is_hashed_anew_even_with_the_old_time(
    tmp_path: Path, a_minute_later: Open
) -> None:
    spec, path = half_safetensors(tmp_path), tmp_path / "w.safetensors"
    old = find_backbone(spec, needs_text_encoder=True, hashes=a_minute_later())
    times = path.stat()
    time.sleep(0.05)  # longer than the clock's tick
    other_weights(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    new = find_backbone(spec, needs_text_encoder=True, hashes=a_minute_later())
    assert new.weights_hash != old.weights_hash
    assert new.identity != old.identity


def test_a_file_that_has_only_just_changed_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = half_safetensors(tmp_path)
    changed_ns = (tmp_path / "w.safetensors").stat().st_ctime_ns
    for later_ns, n_kept in ((0, 0), (SETTLED_NS, 0), (SETTLED_NS + 1, 1)):
        monkeypatch.setattr(time, "time_ns", lambda later_ns=later_ns: changed_ns + later_ns)
        find_backbone(spec, needs_text_encoder=True, hashes=HashCache(tmp_path / "cache"))
        assert len(list((tmp_path / "cache").glob("*"))) == n_kept


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 1}', "\x00" * 100])
def test_a_cache_that_is_damaged_or_older_is_made_again_without_a_word(
    tmp_path: Path, a_minute_later: Open, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    spec = half_safetensors(tmp_path)
    expected = found_values(spec, a_minute_later())
    (kept,) = (tmp_path / "cache").iterdir()
    sound = kept.read_bytes()
    kept.write_text(content)
    assert found_values(spec, a_minute_later()) == expected
    assert not caplog.text
    assert kept.read_bytes() == sound

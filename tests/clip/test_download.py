"""Weights by tag: what is on this machine needs no network, and no network is told at once."""

from __future__ import annotations

import logging
import socket
from pathlib import Path

import open_clip
import pytest

from kdedge.clip.resolve import fetch_from_hub, fetch_pretrained, not_fetched

HUB = {"hf_hub": "owner/clip/"}


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """A machine that reaches nothing; gives the addresses that were tried."""
    tried: list[tuple[str, int]] = []

    def refuse(address: tuple[str, int], timeout: float) -> None:
        tried.append(address)
        raise OSError("Network is unreachable")

    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(socket, "create_connection", refuse)
    return tried


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache with one commit of owner/clip in it; gives the commit's folder."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--owner--clip"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    (repository / "snapshots" / "abc").mkdir(parents=True)
    return repository / "snapshots" / "abc"


def test_a_file_in_the_hubs_cache_is_taken_without_a_connection_or_a_word(
    no_network, hub_cache, caplog
):
    caplog.set_level(logging.INFO, "kdedge")
    pickled = hub_cache / "open_clip_pytorch_model.bin"
    pickled.write_bytes(b"x")
    assert fetch_pretrained(HUB) == pickled
    safe = hub_cache / "open_clip_model.safetensors"
    safe.write_bytes(b"x")
    assert fetch_pretrained(HUB) == safe
    assert no_network == caplog.messages == []


def test_a_file_named_in_the_entry_is_looked_for_under_that_name(no_network, hub_cache):
    named = hub_cache / "weights.bin"
    named.write_bytes(b"x")
    assert fetch_pretrained({"hf_hub": "owner/clip/weights.bin"}) == named


def test_a_server_out_of_reach_is_tried_once(no_network, hub_cache, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://hub.test")
    with pytest.raises(OSError, match="unreachable"):
        fetch_pretrained(HUB)
    assert no_network == [("hub.test", 443)]


def test_a_named_file_of_the_hub_is_taken_from_its_cache_or_its_server_is_tried_once(
    no_network, hub_cache, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://hub.test")
    (hub_cache / "model.safetensors").write_bytes(b"x")
    assert fetch_from_hub("owner/clip", "model.safetensors") == hub_cache / "model.safetensors"
    assert no_network == []
    with pytest.raises(OSError, match="unreachable"):
        fetch_from_hub("owner/clip", "other.safetensors")
    assert no_network == [("hub.test", 443)]


def test_a_named_file_is_fetched_from_the_hub(hub, file_server, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    path = "/owner/clip/resolve/main/model.safetensors"
    hub.give(path, file_server.Answer(b"weights"))
    assert fetch_from_hub("owner/clip", "model.safetensors").read_bytes() == b"weights"


def test_a_plain_address_is_tried_at_its_own_port(no_network, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(OSError, match="unreachable"):
        fetch_pretrained({"url": "http://files.test:8080/a/model.pt"})
    assert no_network == [("files.test", 8080)]


def test_what_open_clip_has_of_a_plain_address_needs_no_connection(
    no_network, tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    kept = tmp_path / ".cache" / "clip" / "model.pt"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"x")
    assert fetch_pretrained({"url": "https://files.test/a/model.pt"}) == kept
    assert no_network == []


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (HUB, "Fetching the weights owner/clip from hub.test:8443 into {home}."),
        (
            {"url": "https://me:secret@files.test/a/model.pt"},
            "Fetching the weights model.pt from files.test into {home}/.cache/clip.",
        ),
    ],
)
@pytest.mark.usefixtures("no_network", "hub_cache")
def test_what_is_fetched_from_where_and_into_which_folder_is_said_first(
    entry: dict[str, str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://hub.test:8443")
    monkeypatch.setenv("HOME", str(tmp_path))
    with caplog.at_level(logging.INFO, "kdedge"), pytest.raises(OSError, match="unreachable"):
        fetch_pretrained(entry)
    assert caplog.messages == [message.format(home=tmp_path)]


def test_missing_weights_say_what_to_fetch_and_where_to_name_it() -> None:
    source = open_clip.get_pretrained_cfg("ViT-B-16", "openai")
    text = str(not_fetched("openai of ViT-B-16", source, OSError("Name or service not known\nx")))
    assert "could not be fetched: Name or service not known\n" in text
    assert "https://openaipublic.azureedge.net/clip/models/" in text
    assert "ViT-B-16.pt" in text
    assert "huggingface.co/timm/vit_base_patch16_clip_224.openai/resolve/main/" in text
    assert "weights: /path/to/file" in text


def test_every_pretrained_tag_has_something_to_fetch() -> None:
    for name, tag in open_clip.list_pretrained():
        source = open_clip.get_pretrained_cfg(name, tag)
        text = str(not_fetched(tag, source, OSError("no network")))
        assert "Fetch https://" in text, (name, tag)
        if source.get("hf_hub"):
            repository, _, file = source["hf_hub"].rpartition("/")
            file = file or "open_clip_model.safetensors"
            assert f"https://huggingface.co/{repository}/resolve/main/{file}\n" in text, (name, tag)

"""Sizes of a CLIP that a recipe names, read from its config without building it."""

from __future__ import annotations

import json
from pathlib import Path

from kdedge.clip.resolve import BackboneSpec, named_sizes


def test_a_config_that_was_edited_meanwhile_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "clip.json"
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
    found = []
    for n_layers in (2, 13):
        vision = {"image_size": 32, "layers": n_layers, "width": 64, "patch_size": 8}
        file.write_text(json.dumps({"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}))
        sizes = named_sizes(BackboneSpec(None, str(tmp_path / "clip.safetensors"), config=file))
        found.append(sizes.n_layers["image"])
    assert found == [2, 13]

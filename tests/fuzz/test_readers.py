"""Each reader of files meets damage: kdedge's own errors come out, in time, and nothing is run.

`damage.py` says how to draw more examples. What it finds gets a test of its own, where it belongs.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save, save_file

from kdedge.cli.main import run as run_command
from kdedge.clip.class_vectors import ClassVectors, load_class_vectors
from kdedge.clip.find import find_backbone
from kdedge.clip.resolve import BackboneSpec
from kdedge.clip.weights import infer_config, read_weights
from kdedge.config.load import check_paths, load_recipe
from kdedge.data.classes import read_class_file, read_class_texts
from kdedge.data.pseudo_labels import read_pseudo_labels
from kdedge.data.sources import csv_list, webdataset
from kdedge.errors import KdedgeError
from kdedge.paper.benchmark_sets import read_split
from kdedge.paper.benchmark_sets.unpack import unpack
from kdedge.paper.checkpoints.layout import read_public_checkpoint
from kdedge.paper.suite.spec import load_suite
from kdedge.records.speed import read_speed
from kdedge.runtime.artifact import load_artifact
from kdedge.runtime.preprocess import decode_image
from kdedge.training.loop.checkpoint import (
    TrainingState,
    capture_rng,
    load_checkpoint,
    save_checkpoint,
)

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "tests" / "golden" / "records"
NAMES = ("cat", "dog")
MANY = 0.1
"""The cost of readers that are quick and get most of the files of strangers."""

Seeds = Callable[[Path], Iterator[Path]]
Read = Callable[[Path], object]


@dataclass(frozen=True)
class Reader:
    """A reader, whole files for it, and the ways to damage them.

    Attributes:
        read: takes a damaged file, which lies where the whole one lay.
        seeds: writes whole files into a folder, and whatever has to lie beside them.
        damages: names of functions of `damage.py`.
        cost: how many times fewer examples it gets, as a slow one; below 1, how many more.
    """

    read: Read
    seeds: Seeds
    damages: tuple[str, ...] = ("damage_bytes",)
    cost: float = 1


def _files(**contents: bytes) -> Seeds:
    def write(folder: Path) -> Iterator[Path]:
        for name, data in contents.items():
            path = folder / name.replace("__", ".")
            path.write_bytes(data)
            yield path

    return write


def _copies(*sources: Path) -> Seeds:
    return lambda folder: (Path(shutil.copy(source, folder)) for source in sources)


def _named(read: Read) -> Read:
    """Has a reader name the file that it refuses."""

    def read_named(path: Path) -> None:
        try:
            read(path)
        except KdedgeError as error:
            assert str(path) in str(error)  # noqa: PT017 - the error goes on
            raise

    return read_named


# Weights and pickles


_read_checkpoint = _named(read_public_checkpoint)


def _read_weights(path: Path) -> None:
    """By both readers; that of public checkpoints refuses some of the whole files, too."""
    with contextlib.suppress(KdedgeError):
        _read_checkpoint(path)
    _named(read_weights)(path)


class Scheduler:
    """Stands for what public checkpoints have beside their tensors."""

    def __init__(self) -> None:
        self.state = {"last_epoch": 3, "base_lrs": [0.0025]}


def _state_dicts() -> dict[str, Any]:
    tensors = {"weight": torch.arange(6.0).reshape(2, 3), "half": torch.ones(4).half()}
    return {"bare": tensors, "checkpoint": {"state_dict": tensors, "epoch": 2}}


def _weights(folder: Path) -> Iterator[Path]:
    tensors = {"weight": torch.arange(6.0).reshape(2, 3), "bf16": torch.ones(4).bfloat16()}
    save_file(tensors, folder / "w.safetensors", {"quick_gelu": "true"})
    yield folder / "w.safetensors"
    for name, saved in _state_dicts().items():
        for is_zip in (True, False):
            path = folder / f"{name}-{is_zip}.pt"
            torch.save(saved, path, _use_new_zipfile_serialization=is_zip)
            yield path
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 3)), folder / "jit.pt")
    yield folder / "jit.pt"


def _zipped(seeds: Seeds) -> Seeds:
    return lambda folder: (path for path in seeds(folder) if zipfile.is_zipfile(path))


def _pickles(folder: Path) -> Iterator[Path]:
    path = folder / "model.pth.tar-1"
    saved = {**_state_dicts()["checkpoint"], "scheduler": Scheduler(), "val_result": 1.5}
    torch.save(saved, path)
    yield path


def _clip() -> bytes:
    sizes = {"layers": 1, "width": 64}
    vision, text = {**sizes, "patch_size": 16, "image_size": 32}, {**sizes, "heads": 1}
    state = open_clip.CLIP(8, vision, text).state_dict()
    return save({key: value for key, value in state.items() if key != "attn_mask"})


def _configs(folder: Path) -> Iterator[Path]:
    (folder / "clip.safetensors").write_bytes(_clip())
    shapes = {
        name: tuple(x.shape)
        for name, x in read_weights(folder / "clip.safetensors").state_dict.items()
    }
    config = {**infer_config(shapes), "quick_gelu": True}
    path = folder / "clip.json"
    path.write_text(json.dumps(config))
    yield path


def _find(path: Path) -> None:
    spec = BackboneSpec(None, str(path.with_name("clip.safetensors")), config=path)
    for needs_text_encoder in (True, False):
        find_backbone(spec, needs_text_encoder=needs_text_encoder)


# Recipes and suites

RECIPE = """\
name: line3
seed: 1
classes: {names: [cat, dog], template: "a photo of a {}."}
data:
  unlabeled: {folder: pool}
  labeled: {folder: labeled, shots: 16}
  test: {synthetic: shapes}
  split: all
teacher: {method: promptsrc, backbone: ViT-B-16, weights: openai, settings: {n_ctx_text: 4}}
student: {method: promptkd, backbone: ViT-B-32, weights: openai}
optim: {epochs: 2, batch_size: 4}
gates: {agreement: {fp16: 99.5%, int8: 98%}, max_drop: 1.0}
"""


def _recipe_values() -> bytes:
    from ruamel.yaml import YAML

    return json.dumps(YAML(typ="safe").load(RECIPE)).encode()


def _read_recipe(path: Path) -> None:
    for name in ("pool", "labeled"):
        path.with_name(name).mkdir(exist_ok=True)
    check_paths(load_recipe(path))


SUITE = {
    "name": "grid",
    "recipes": ["recipe.yaml"],
    "seeds": [1, 2],
    "set": {"data.split": "all"},
    "methods": [
        {"name": "CLIP", "method": "zeroshot"},
        {"name": "CoOp, 16", "method": "coop", "set": {"baseline.settings": {"n_ctx": 16}}},
    ],
}


def _suites(folder: Path) -> Iterator[Path]:
    (folder / "recipe.yaml").write_text(RECIPE)
    path = folder / "suite.yaml"
    path.write_text(json.dumps(SUITE))
    yield path


# Lists, shards, archives, images


def _images() -> dict[str, bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3)).astype(np.uint8)
    images = {}
    for kind in ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF", "GIF", "ICO", "TGA"):
        for mode in ("RGB", "P", "L", "CMYK", "I;16"):
            file = io.BytesIO()
            try:
                Image.fromarray(pixels).convert("L" if mode == "I;16" else mode).save(file, kind)
            except (OSError, ValueError):
                continue
            images[f"{kind}_{mode}"] = file.getvalue()
    rotated = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(rotated, "JPEG", exif=exif, quality=95, progressive=True)
    return {**images, "rotated": rotated.getvalue()}


def _decode(path: Path) -> None:
    assert decode_image(path.read_bytes()).mode == "RGB"


def _tar(folder: Path) -> Iterator[Path]:
    jpeg, long = _images()["JPEG_RGB"], "é" * 80
    for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = folder / f"s{kind}.tar"
        with tarfile.open(path, "w", format=kind) as tar:
            for name, data in {
                "set/0.jpg": jpeg,
                "set/0.cls": b"1",
                f"set/{long}.jpg": jpeg,
                f"set/{long}.cls": b"0",
            }.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        yield path


def _zip(folder: Path) -> Iterator[Path]:
    path = folder / "set.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("set/cat/0.jpg", _images()["JPEG_RGB"])
        archive.writestr("set/split.json", "{}" * 50)
    yield path


def _unpack(path: Path) -> None:
    folder = path.with_name("unpacked")
    try:
        unpack(path, folder, ["set"])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _read_all(source: Any) -> None:
    for i in range(len(source.items)):
        decode_image(source.read(i))


def _csv(path: Path) -> None:
    for name in ("a.jpg", "b,b.jpg"):
        path.with_name(name).touch()
    for labeled in (True, False):
        csv_list.open_source(path, class_names=NAMES, labeled=labeled)


def _shard(path: Path) -> None:
    for labeled in (False, True):
        _read_all(webdataset.open_source(str(path), class_names=NAMES, labeled=labeled))


def _pseudo_labels(path: Path) -> None:
    positions = {f"{i}_{j}.jpg": 10 * i + j for i in range(5) for j in range(10)}
    images = "af476d8aef32037fd91b73336187ff5bc68b99c13fa1792a1552959433375618"
    pool: Any = SimpleNamespace(list_hash=images, positions=positions)
    read_pseudo_labels(path, pool, class_names=("cat", "dog", "red fox", "school bus"))


SPLIT = {
    part: [[f"cat/{part}{i}.jpg", i % 2, NAMES[i % 2]] for i in range(4)]
    for part in ("train", "val", "test")
}


# Records

RECIPE_OF_A_RUN = """\
name: r
classes: [cat, dog]
data: {}
student: {backbone: kdedge-demo-student, weights: builtin}
"""


def _runs(folder: Path) -> Iterator[Path]:
    run = folder / "runs" / "r" / "01"
    bench = run / "bench"
    bench.mkdir(parents=True)
    shutil.copy(RECORDS / "provenance_student.json", run / "provenance.json")
    for name in ("eval.json", "eval_details.json", "metrics.jsonl"):
        shutil.copy(RECORDS / name, run)
    (run / "recipe.yaml").write_text(RECIPE_OF_A_RUN)
    shutil.copy(RECORDS / "bench.json", bench / "01.json")
    artifact = run / "artifacts" / "01"
    artifact.mkdir(parents=True, exist_ok=True)
    shutil.copy(RECORDS / "artifact.json", artifact)
    for name in ("provenance.json", "eval.json", "eval_details.json"):
        yield run / name
    yield bench / "01.json"
    yield artifact / "artifact.json"


def _command(*arguments: str) -> None:
    """Runs a command, which prints what it will; a bug's exit code is 1."""
    assert run_command(arguments) != 1


def _show(path: Path) -> None:
    root = next(parent for parent in path.parents if parent.name == "runs")
    _command("show", str(root / "r" / "01"), "--runs", str(root))


def _report(path: Path) -> None:
    root = next(parent for parent in path.parents if parent.name == "runs")
    output = root.parent / "report"
    shutil.rmtree(output, ignore_errors=True)
    _command("report", str(root / "r" / "01"), "--runs", str(root), "--output", str(output))


# Checkpoints, class vectors, artifacts


def _checkpoints(folder: Path) -> Iterator[Path]:
    state = TrainingState(
        epoch=2,
        step=3,
        module={"weight": torch.ones(2, 3)},
        optimizer={"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"params": [0]}]},
        scaler={},
        rng=capture_rng(torch.device("cpu")),
        best={"score": None, "epoch": None, "module": {}},
        record={"loss_sum": 0.5, "final_loss": 0.25, "seconds": 1.0},
    )
    yield save_checkpoint(folder, state)


def _class_vectors(folder: Path) -> Iterator[Path]:
    path = folder / "class_vectors.safetensors"
    ClassVectors(torch.eye(2, 4), NAMES, "9f3c").save(path)
    yield path


READERS = {
    "weights": Reader(_read_weights, _weights, cost=MANY),
    "weights, zip members": Reader(_read_weights, _zipped(_weights), ("damage_zip",), MANY),
    "weights, header": Reader(
        _read_weights,
        lambda folder: (p for p in _weights(folder) if p.suffix == ".safetensors"),
        ("damage_safetensors",),
    ),
    "pickles": Reader(_read_checkpoint, _pickles, cost=MANY),
    "pickles, zip members": Reader(_read_checkpoint, _pickles, ("damage_zip",), MANY),
    "configs": Reader(_find, _configs, ("damage_json", "damage_bytes")),
    "recipes": Reader(_read_recipe, _files(r__yaml=RECIPE.encode())),
    "recipes, values": Reader(_read_recipe, _files(r__yaml=_recipe_values()), ("damage_json",)),
    # ruamel is slow at thousands of brackets within each other
    "suites": Reader(load_suite, _suites, ("damage_json", "damage_bytes"), cost=5),
    "class lists": Reader(read_class_file, _files(c__txt="cat\ndog\nred fox\né\n".encode())),
    "class texts": Reader(
        lambda path: read_class_texts(path, NAMES),
        _files(t__json=b'{"cat": ["a cat.", "one"], "dog": ["a dog."]}'),
        ("damage_json", "damage_bytes"),
    ),
    "image lists": Reader(_csv, _files(l__csv=b'path,label\na.jpg,cat\n"b,b.jpg",dog\n')),
    "pseudo-labels": Reader(
        _pseudo_labels, _copies(RECORDS / "pseudo_labels.jsonl"), ("damage_lines", "damage_bytes")
    ),
    "splits": Reader(
        lambda path: read_split(path, remedy="Fetch it."),
        _files(split__json=json.dumps(SPLIT).encode()),
        ("damage_json", "damage_bytes"),
    ),
    "shards": Reader(_shard, _tar, ("damage_bytes", "damage_tar")),
    "archives": Reader(_unpack, _zip, ("damage_bytes", "damage_zip")),
    "images": Reader(_decode, _files(**_images()), cost=MANY),
    "records, show": Reader(_show, _runs, ("damage_json", "damage_bytes")),
    "records, report": Reader(_report, _runs, ("damage_json", "damage_bytes"), cost=20),
    "speed": Reader(read_speed, _copies(RECORDS / "bench.json"), ("damage_json", "damage_bytes")),
    "checkpoints": Reader(load_checkpoint, _checkpoints, ("damage_bytes", "damage_safetensors")),
    "class vectors": Reader(
        load_class_vectors, _class_vectors, ("damage_bytes", "damage_safetensors")
    ),
    "artifacts": Reader(
        load_artifact, _copies(RECORDS / "artifact.json"), ("damage_json", "damage_bytes")
    ),
}


@pytest.mark.parametrize("name", READERS)
def test_damage_ends_in_a_message(tmp_path: Path, load_module: Any, name: str) -> None:
    reader, damage = READERS[name], load_module("damage", Path(__file__).parent)
    seeds = {path: path.read_bytes() for path in reader.seeds(tmp_path)}
    for path in list(seeds)[: 1 if reader.cost > 1 else None]:
        reader.read(path)

    @damage.fuzzing(reader.cost)
    @given(st.data())
    def check(data: Any) -> None:
        path = data.draw(st.sampled_from(list(seeds)))
        harm = getattr(damage, data.draw(st.sampled_from(reader.damages)))
        path.write_bytes(harm(data.draw, seeds[path]))
        with damage.watched(), contextlib.suppress(KdedgeError):
            reader.read(path)
        path.write_bytes(seeds[path])

    check()

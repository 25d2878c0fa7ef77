"""artifact.json: what was written is read, anything else is refused, and files must be the same."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdedge.errors import DataError, SetupError
from kdedge.records.evaluation import Gates
from kdedge.runtime.artifact import (
    ARTIFACT_FORMAT,
    Artifact,
    ModelFile,
    load_artifact,
)
from kdedge.runtime.preprocess import Preprocess

SHA = "0123456789abcdef" * 4


@pytest.fixture
def written(tmp_path: Path, parity: Callable[..., Any]) -> Artifact:
    """An artifact with every kind of entry; no model file of it exists."""
    artifact = Artifact(
        path=tmp_path,
        name="line3",
        class_names=("scratch", "größer", "ok"),
        preprocess=Preprocess(32, (0.48, 0.45, 0.4), (0.26, 0.26, 0.27), "bilinear", "squash"),
        pixels="uint8",
        head="scores",
        max_batch=8,
        batch="dynamic",
        gates=Gates({"fp16": 99.5}, max_drop=1.0),
        files=(
            ModelFile("model.onnx", "onnx", "fp32", "any", SHA, 10, data="model.onnx.data"),
            ModelFile(
                "model.fp16.trt10.3-sm87.engine",
                "tensorrt",
                "fp16",
                "gpu",
                SHA,
                20,
                made_from=SHA,
                built_with={"tensorrt": "10.3.0", "profile": [1, 4, 8]},
                parity=parity(),
                gate="passed",
            ),
        ),
        others={"model.onnx.data": SHA, "calibration.json": SHA},
        provenance={"command": "kdedge export", "seed": 1},
    )
    artifact.save()
    return artifact


MISSING = object()
REQUIRED = ("format", "class_names", "preprocess", "input", "files", "description_sha256")


def edit(artifact: Artifact, *keys: str | int, value: Any) -> None:
    """Changes one value of the artifact.json on disk, or takes it out."""
    path = artifact.path / "artifact.json"
    whole = place = json.loads(path.read_text(encoding="utf-8"))
    for key in keys[:-1]:
        place = place[key]
    if value is MISSING:
        del place[keys[-1]]
    else:
        place[keys[-1]] = value
    path.write_text(json.dumps(whole), encoding="utf-8")


def test_what_was_saved_is_read_back_equal(written: Artifact) -> None:
    assert load_artifact(written.path) == written
    assert load_artifact(written.path / "artifact.json") == written


def test_artifact_json_has_the_documented_keys(written: Artifact) -> None:
    values = json.loads((written.path / "artifact.json").read_text(encoding="utf-8"))
    assert list(values) == [
        *("format", "kdedge", "name", "class_names", "preprocess", "input", "in_graph", "output"),
        *("description_sha256", "gates", "files", "others", "provenance"),
    ]
    assert values["input"] == {
        "name": "images", "pixels": "uint8", "batch": "dynamic", "max_batch": 8,
        "dtype": "uint8", "layout": "NCHW", "channels": "RGB", "values": [0, 255],
    }  # fmt: skip
    assert values["preprocess"]["normalization"] == "in graph"
    assert not {"mean", "std"} & values["preprocess"].keys()
    assert values["output"] == {"name": "logits", "head": "scores"}


def test_a_newer_format_says_to_update(written: Artifact) -> None:
    edit(written, "format", value=ARTIFACT_FORMAT + 1)
    with pytest.raises(SetupError, match=r"a newer kdedge, in format 7.*up to 6") as caught:
        load_artifact(written.path)
    assert "Install the newer kdedge here, from its wheel or its folder." in str(caught.value)
    assert "pip install" not in str(caught.value)  # on PyPI another project has the name


@pytest.mark.parametrize(
    "name",
    [
        "../model.onnx",
        "/etc/passwd",
        "..",
        ".",
        "",
        "sub/model.onnx",
        "a\\b",
        "C:x",
        "a\0b",
        "a\nb",
    ],
)
def test_a_file_name_that_leaves_the_folder_is_refused(written: Artifact, name: str) -> None:
    edit(written, "files", 1, "name", value=name)
    with pytest.raises(DataError, match="plain name of a file in the artifact's folder"):
        load_artifact(written.path)


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        *(((key,), MISSING, key) for key in REQUIRED),
        (("format",), "1", r"format: .*a valid integer, got '1'"),
        (("format",), True, "a valid integer"),
        (("name",), None, "name: .*a valid string, got None"),
        (("class_names",), [], "class_names: .*distinct names, one or more"),
        (("class_names",), ["a", "a"], "distinct names"),
        (("class_names",), ["a", 1], r"class_names\.1: .*a valid string, got 1"),
        (("class_names",), "abc", "a valid array"),
        *(
            (("class_names",), [name, "b"], "distinct names.* without line breaks and")
            for name in ("a\x1b[2J", "a\nb", "a\u2028b")
        ),
        (("class_names",), ["a\udc80b"], r"artifact\.json is not valid JSON"),
        (("in_graph", "std"), [0, 1, 1], r"in_graph\.std\.0: .*greater than 0"),
        (("preprocess", "size_px"), None, "size_px: .*got None"),
        (("preprocess",), [], "preprocess.size_px: Field required"),
        (("input", "pixels"), "bgr", "input.pixels: .*'float' or 'uint8', got 'bgr'"),
        (("input", "batch"), "any", r"input\.batch.*: Input should be 'dynamic', got 'any'"),
        (("input", "max_batch"), 0, "greater than or equal to 1"),
        (("output", "head"), ["scores"], "'scores' or 'argmax'"),
        (("gates",), None, "gates: Input should be an object, got None"),
        (("gates", "agreement"), [99.5], "gates.agreement: Input should be an object"),
        (("gates", "agreement", "fp16"), "99.5%", "gates.agreement.fp16: .*got '99.5%'"),
        (("gates", "max_drop"), None, "gates.max_drop: .*got None"),
        (("files",), {}, "files: .*a valid array"),
        (("files", 0), "model.onnx", r"files\.0: Input should be an object"),
        (("files", 0, "sha256"), SHA[:-1], r"files\.0\.sha256: .*should match pattern"),
        (("files", 0, "sha256"), SHA.upper(), "should match pattern"),
        (("files", 0, "precision"), "fp4", r"files\.0\.precision: .*got 'fp4'"),
        (("files", 0, "device"), "tpu", "'any', 'cpu' or 'gpu'"),
        (("files", 0, "gate"), "ok", "'passed', 'missed' or 'not measured'"),
        (("files", 0, "n_bytes"), 1.5, "a valid integer"),
        (("files", 1, "parity", "n_images"), 0, r"files\.1\.parity\.n_images: .*got 0"),
        (("others", "calibration.json"), 3, r"others\.calibration\.json: .*got 3"),
        (("others", "../../x"), SHA, r"plain name of a file .*got '\.\./\.\./x'"),
        (("files", 1, "name"), "artifact.json", r"plain name .*got 'artifact\.json'"),
    ],
)
def test_a_value_that_is_not_what_it_should_be_is_named(
    written: Artifact, keys: tuple[str | int, ...], value: Any, message: str
) -> None:
    edit(written, *keys, value=value)
    with pytest.raises(DataError, match=message) as caught:
        load_artifact(written.path)
    assert str(written.path / "artifact.json") in str(caught.value)


def test_every_name_that_a_class_list_may_hold_can_be_loaded(written: Artifact) -> None:
    """Python's own list of printable characters grows; no-break spaces are not on it."""
    names = ("größer als 3 mm", "猫", "🦊", "no\u00a0break", "q\u0307", "later \U0003fffd")
    dataclasses.replace(written, class_names=names).save()
    assert load_artifact(written.path).class_names == names


TOO_DEEP = "[" * 100_000


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format": NaN}', "\udcff", TOO_DEEP])
def test_what_is_not_a_json_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "artifact.json").write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(DataError, match=r"artifact\.json"):
        load_artifact(tmp_path)


def test_a_folder_that_is_no_artifact_says_what_one_is(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no artifact\.json.\n.*`kdedge export` writes"):
        load_artifact(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        load_artifact(tmp_path / "nowhere")
    (tmp_path / "model.onnx").touch()
    with pytest.raises(DataError, match="is not a folder"):
        load_artifact(tmp_path / "model.onnx")


def test_a_file_is_given_with_the_bytes_of_the_export_alone(artifact: Artifact) -> None:
    path = artifact.path / "model.onnx"
    assert artifact.checked("model.onnx") == path
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"model\.onnx has changed since the export") as caught:
        artifact.checked("model.onnx")
    assert artifact.files[0].sha256 in str(caught.value)
    assert "from the export again, or export again" in str(caught.value)
    path.unlink()
    with pytest.raises(DataError, match=r"model\.onnx is missing"):
        artifact.checked("model.onnx")
    (artifact.path / "other.onnx").write_bytes(b"x")
    with pytest.raises(DataError, match=r"no model file 'other\.onnx'; it has model\.onnx"):
        artifact.checked("other.onnx")


@pytest.mark.parametrize("what", ["missing", "changed"])
def test_external_data_is_checked_with_its_file(
    tmp_path: Path, make_artifact: Callable[..., Artifact], what: str
) -> None:
    artifact = make_artifact(tmp_path, external=True)
    data = tmp_path / "model.onnx.data"
    assert artifact.checked("model.onnx").exists()
    if what == "missing":
        data.unlink()
    else:
        data.write_bytes(data.read_bytes()[::-1])
    said = "is missing" if what == "missing" else "has changed since the export"
    with pytest.raises(DataError, match=rf"model\.onnx\.data {said}"):
        artifact.checked("model.onnx")


def test_with_files_replaces_the_entry_of_the_same_name(written: Artifact) -> None:
    newer = dataclasses.replace(written.files[0], gate="passed")
    another = dataclasses.replace(written.files[1], name="model.int8.onnx")
    assert written.with_files(newer, another).files == (newer, written.files[1], another)
    assert written.files[0].gate == "not measured"


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("class_names",), ["größer", "scratch", "ok"]),
        (("preprocess", "interpolation"), "bicubic"),
        (("preprocess", "resize_mode"), "shortest"),
        (("preprocess", "size_px"), 48),
        (("input", "pixels"), "float"),
        (("in_graph", "mean"), [0.45, 0.48, 0.4]),
        (("output", "head"), "argmax"),
    ],
)
def test_a_description_that_was_changed_by_hand_is_refused(
    written: Artifact, keys: tuple[str, ...], value: Any
) -> None:
    edit(written, *keys, value=value)
    with pytest.raises(DataError, match="or output has changed since kdedge wrote it") as caught:
        load_artifact(written.path)
    assert "For other class names, export the run with them." in str(caught.value)


@pytest.mark.parametrize("mean", [(0.0, 0.0, 0.0), (0, 0, 0)])
def test_whole_numbers_of_a_description_are_read_back(
    written: Artifact, mean: tuple[float, float, float]
) -> None:
    preprocess = dataclasses.replace(written.preprocess, mean=mean)
    dataclasses.replace(written, preprocess=preprocess).save()
    assert load_artifact(written.path).preprocess == preprocess


def test_saving_replaces_the_old_record_in_one_step(written: Artifact) -> None:
    before = (written.path / "artifact.json").stat().st_ino
    dataclasses.replace(written, name="other").save()
    assert (written.path / "artifact.json").stat().st_ino != before
    assert load_artifact(written.path).name == "other"
    assert [path.name for path in written.path.iterdir()] == ["artifact.json"]

"""A folder for nvinfer: keys that it reads, labels as it splits them, a model that gives scores."""

from __future__ import annotations

import configparser
import dataclasses
import hashlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdedge.deploy.deepstream import add_softmax, config_text, write_deepstream
from kdedge.errors import DataError, RecipeError
from kdedge.runtime.artifact import Artifact, ModelFile
from kdedge.runtime.preprocess import Preprocess

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

SIZE, NAMES = 16, ("scratch", 'a "deep" one', "rayé, 2")
WEIGHTS = np.random.default_rng(0).normal(0, 0.1, (3 * SIZE * SIZE, 3)).astype(np.float32)


def classifier(*, output: str = "logits") -> Any:
    """An ONNX graph: images [batch, 3, S, S] -> logits [batch, 3], linear."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["images"], ["flat"], axis=1),
            helper.make_node("MatMul", ["flat", "weights"], [output]),
        ],
        "classifier",
        [helper.make_tensor_value_info("images", kind, ["batch", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info(output, kind, ["batch", 3])],
        [onnx.numpy_helper.from_array(WEIGHTS, "weights")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def make_file(folder: Path, name: str, *, external: bool = False, **changes: Any) -> ModelFile:
    path = folder / name
    onnx.save(
        classifier(),
        path,
        save_as_external_data=external,
        location=f"{name}.data",
        size_threshold=0,
    )
    values: dict[str, Any] = {
        "name": name,
        "target": "onnx",
        "precision": "fp32",
        "device": "any",
        "sha256": digest(path),
        "n_bytes": path.stat().st_size,
        "data": f"{name}.data" if external else None,
    }
    return ModelFile(**(values | changes))


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    folder = tmp_path / "artifact"
    folder.mkdir()
    return Artifact(
        path=folder,
        name="line3",
        class_names=NAMES,
        preprocess=Preprocess(size_px=SIZE, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        pixels="float",
        head="scores",
        max_batch=16,
        batch="dynamic",
        files=(make_file(folder, "model.onnx"),),
    )


def properties(text: str) -> dict[str, str]:
    """The keys of [property], read as strictly as GLib reads key files."""
    parser = configparser.ConfigParser(
        delimiters=("=",), comment_prefixes=("#",), interpolation=None, strict=True
    )
    parser.read_string(text)
    assert parser.sections() == ["property"]
    return dict(parser["property"])


def labels(path: Path) -> list[list[str]]:
    """Labels as nvinfer's parser reads them: a line an output, semicolons between its labels."""
    return [line.split(";") for line in path.read_bytes().decode().split("\n") if line]


def test_the_folder_is_complete(artifact: Artifact, tmp_path: Path) -> None:
    folder = tmp_path / "deepstream"
    assert write_deepstream(artifact, folder) == folder / "config_infer.txt"
    assert {path.name for path in folder.iterdir()} == {
        "config_infer.txt",
        "labels.txt",
        "model.onnx",
    }
    assert labels(folder / "labels.txt") == [list(NAMES)]
    assert properties((folder / "config_infer.txt").read_text()) == {
        "gpu-id": "0",
        "gie-unique-id": "1",
        "process-mode": "1",
        "network-type": "1",
        "onnx-file": "model.onnx",
        "model-engine-file": "model.onnx_b16_gpu0_fp32.engine",
        "labelfile-path": "labels.txt",
        "batch-size": "16",
        "network-mode": "0",
        "infer-dims": f"3;{SIZE};{SIZE}",
        "model-color-format": "0",
        "net-scale-factor": "0.00392156862745098",
        "offsets": "0;0;0",
        "maintain-aspect-ratio": "0",
        "output-blob-names": "scores",
        "classifier-threshold": "0.0",
    }


@pytest.mark.parametrize("external", [False, True])
def test_the_model_gives_the_softmax_of_the_logits(
    artifact: Artifact, tmp_path: Path, external: bool
) -> None:
    file = make_file(artifact.path, "model.fp16.onnx", external=external, precision="fp16")
    others = {file.data: digest(artifact.path / file.data)} if file.data else {}
    artifact = dataclasses.replace(artifact, files=(*artifact.files, file), others=others)
    config = write_deepstream(artifact, tmp_path / "deepstream")
    assert properties(config.read_text())["network-mode"] == "2"
    path = config.parent / "model.onnx"
    assert (config.parent / "model.onnx.data").exists() == external
    onnx.checker.check_model(path, full_check=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == ["images"]
    (output,) = session.get_outputs()
    assert (output.name, output.type, output.shape) == ("scores", "tensor(float)", ["batch", 3])
    images = np.random.default_rng(1).random((5, 3, SIZE, SIZE), dtype=np.float32)
    (scores,) = session.run(None, {"images": images})
    powers = np.exp(images.reshape(5, -1) @ WEIGHTS)
    expected = powers / powers.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(scores, expected, rtol=1e-5)  # float32


def test_fp16_is_taken_before_fp32_unless_it_missed_its_gate(
    artifact: Artifact, tmp_path: Path
) -> None:
    def mode(folder: str, half: ModelFile) -> str:
        config = write_deepstream(artifact.with_files(half), tmp_path / folder)
        return properties(config.read_text())["network-mode"]

    half = make_file(artifact.path, "model.fp16.onnx", precision="fp16")
    assert mode("a", half) == "2"
    assert mode("b", dataclasses.replace(half, gate="missed")) == "0"


def test_a_fixed_batch_is_the_batch_size(artifact: Artifact) -> None:
    fixed = dataclasses.replace(artifact, batch=4, max_batch=4)
    values = properties(config_text(fixed, fixed.files[0]))
    assert values["batch-size"] == "4"
    assert values["model-engine-file"] == "model.onnx_b4_gpu0_fp32.engine"


def test_the_missing_center_crop_is_said_only_where_there_is_one(artifact: Artifact) -> None:
    assert "central square" in config_text(artifact, artifact.files[0])
    squash = dataclasses.replace(artifact.preprocess, resize_mode="squash")
    squashed = dataclasses.replace(artifact, preprocess=squash)
    assert "central square" not in config_text(squashed, artifact.files[0])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"pixels": "uint8"}, "takes uint8 pixels.*\n.*--pixels float, or export.pixels: float"),
        ({"head": "argmax"}, "only rank classes.*\n.*--head scores, or export.head: scores"),
    ],
)
def test_an_artifact_that_nvinfer_cannot_run_is_refused(
    artifact: Artifact, tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    with pytest.raises(RecipeError, match=expected):
        write_deepstream(dataclasses.replace(artifact, **changes), tmp_path / "deepstream")
    assert not (tmp_path / "deepstream").exists()


def test_an_artifact_with_int8_only_is_refused(artifact: Artifact, tmp_path: Path) -> None:
    int8 = dataclasses.replace(artifact.files[0], precision="int8")
    with pytest.raises(DataError, match="no file that DeepStream can run"):
        write_deepstream(dataclasses.replace(artifact, files=(int8,)), tmp_path / "deepstream")


@pytest.mark.parametrize(
    ("name", "what"), [("cat; dog", "a semicolon"), ("two\nlines", "a line break")]
)
def test_a_class_name_that_the_labels_file_cannot_hold_is_named(
    artifact: Artifact, tmp_path: Path, name: str, what: str
) -> None:
    broken = dataclasses.replace(artifact, class_names=("a", name, "b"))
    with pytest.raises(DataError) as caught:
        write_deepstream(broken, tmp_path / "deepstream")
    assert f"The class name {name!r} contains {what}" in str(caught.value)
    assert not (tmp_path / "deepstream").exists()


def test_nothing_is_overwritten(artifact: Artifact, tmp_path: Path) -> None:
    (tmp_path / "deepstream").mkdir()
    with pytest.raises(RecipeError, match="deepstream exists, and nothing is overwritten"):
        write_deepstream(artifact, tmp_path / "deepstream")


def test_a_changed_model_leaves_nothing_behind(artifact: Artifact, tmp_path: Path) -> None:
    with (artifact.path / "model.onnx").open("ab") as file:
        file.write(b"x")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(DataError, match="has changed since the export"):
        write_deepstream(artifact, tmp_path / "deepstream")
    assert sorted(tmp_path.iterdir()) == before


def test_a_graph_with_another_output_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x\.onnx has the outputs features; expected logits"):
        add_softmax(classifier(output="features"), tmp_path / "x.onnx")


def test_without_onnx_the_install_line_is_given(artifact: Artifact, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['onnx'] = None\n"
        "from pathlib import Path\n"
        "from kdedge.errors import MissingPackage\n"
        "from kdedge.runtime.artifact import load_artifact\n"
        "from kdedge.deploy.deepstream import write_deepstream\n"
        "try:\n"
        f"    write_deepstream(load_artifact(Path({str(artifact.path)!r})), Path('deepstream'))\n"
        "except MissingPackage as error:\n"
        "    print(error)\n"
        "print('torch' in sys.modules, Path('deepstream').exists())\n"
    )
    artifact.save()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert "needs onnx, which is not installed" in done.stdout
    assert "pip install 'kdedge[export]'" in done.stdout
    assert done.stdout.splitlines()[-1] == "False False"


EXAMPLE = {
    "gpu-id", "net-scale-factor", "onnx-file", "model-engine-file", "labelfile-path",
    "int8-calib-file", "batch-size", "network-mode", "input-object-min-width",
    "input-object-min-height", "process-mode", "model-color-format", "gie-unique-id",
    "operate-on-gie-id", "operate-on-class-ids", "is-classifier", "classifier-async-mode",
    "classifier-threshold",
}  # fmt: skip
"""Keys of NVIDIA-AI-IOT/deepstream_python_apps, apps/deepstream-test2/dstest2_sgie1_config.txt:
a ResNet-18 that classifies the cars of a detector."""

NOT_WRITTEN = {
    "int8-calib-file": "only of INT8, which is not written",
    "is-classifier": "the older name of network-type=1",
    "operate-on-gie-id": "only of a detector's crops; a comment says how",
    "operate-on-class-ids": "only of a detector's crops",
    "input-object-min-width": "only of a detector's crops",
    "input-object-min-height": "only of a detector's crops",
    "classifier-async-mode": "only of a detector's crops",
}
ADDED = {
    "network-type": "nvinfer's name of is-classifier since DeepStream 5",
    "infer-dims": "a graph with a dynamic batch has no size of its own for nvinfer",
    "output-blob-names": "the output that is read",
    "offsets": "0, as the mean is in the graph",
    "maintain-aspect-ratio": "0, as the example's default",
}
ENGINE_NAME = re.compile(r"(.+\.onnx)_b(\d+)_gpu(\d+)_(fp32|fp16|int8)\.engine")
"""How nvinfer names the engine that it builds, as model-engine-file of the example has it:
resnet18_vehiclemakenet_pruned.onnx_b16_gpu0_int8.engine."""


def test_the_keys_are_those_of_the_public_example_of_a_classifier(artifact: Artifact) -> None:
    ours = properties(config_text(artifact, artifact.files[0]))
    assert EXAMPLE - ours.keys() == NOT_WRITTEN.keys()
    assert ours.keys() - EXAMPLE == ADDED.keys()
    found = ENGINE_NAME.fullmatch(ours["model-engine-file"])
    assert found is not None
    assert found.groups() == (ours["onnx-file"], ours["batch-size"], ours["gpu-id"], "fp32")

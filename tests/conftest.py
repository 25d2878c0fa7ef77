"""Small CLIPs that every test can have: made from a seed, no downloads."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import hypothesis
import numpy as np
import pytest

# What a process compiles, the next one takes
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Before torch is loaded: tests run side by side, and pinned sums are those of one thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell's background job, such as a CI's, starts with SIGINT ignored, and hands that on to the
# processes that the tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup, too

# No time limit of one example: the first one may import torch, and machines are slow at times
hypothesis.settings.register_profile("kdedge", deadline=None)
hypothesis.settings.load_profile("kdedge")

GOLDEN = Path(__file__).parent / "golden"


# Tests of the other rows of CONTRIBUTING.md's table: papers, CPU runtimes, what never ran on its
# hardware
NOT_CORE = re.compile(
    r"tests/(serving|paper|data/benchmarks|methods/losses|cli/plugins|docs|fuzz"
    r"|targets/(openvino|litert|executorch|coreml|engines|torch_tensorrt)"
    r"|methods/test_(?!ridge|promptkd|promptsrc|zeroshot|contract|registry)"
    r"|cli/test_(gpu|suite\w*|several_processes|rounds|pseudo_label|ablations|watch|browser"
    r"|benchmarks|import)|artifacts/test_triton)\b"
)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Marks the tests of the core."""
    if not NOT_CORE.search(item.path.as_posix()):
        item.add_marker("core")


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_xdist_auto_num_workers() -> Iterator[None]:
    """One worker more than cores: many tests wait for a process or a time."""
    return (yield) + ("PYTEST_XDIST_AUTO_NUM_WORKERS" not in os.environ)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts files with slow tests first: at the end, one worker would be alone with them."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """Leaves modules and tests, a million objects, out of later and rarer garbage collections."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 20)


def clip_shapes(sizes: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """Key -> shape of an OpenAI-layout CLIP with these sizes."""
    vision, text, embed = sizes["vision_width"], sizes["text_width"], sizes["embed_dim"]
    patch, image = sizes["patch_size"], sizes["image_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "logit_scale": (),
        "positional_embedding": (sizes.get("context_length", 77), text),
        "text_projection": (text, embed),
        "token_embedding.weight": (49408, text),
        "ln_final.weight": (text,),
        "ln_final.bias": (text,),
        "visual.class_embedding": (vision,),
        "visual.positional_embedding": ((image // patch) ** 2 + 1, vision),
        "visual.proj": (vision, embed),
        "visual.conv1.weight": (vision, 3, patch, patch),
    }
    for norm in ("ln_pre", "ln_post"):
        shapes |= {f"visual.{norm}.weight": (vision,), f"visual.{norm}.bias": (vision,)}
    encoders = (("visual.", vision, sizes["vision_layers"]), ("", text, sizes["text_layers"]))
    for prefix, width, layers in encoders:
        for index in range(layers):
            block = f"{prefix}transformer.resblocks.{index}."
            shapes |= {
                f"{block}attn.in_proj_weight": (3 * width, width),
                f"{block}attn.in_proj_bias": (3 * width,),
                f"{block}attn.out_proj.weight": (width, width),
                f"{block}attn.out_proj.bias": (width,),
                f"{block}mlp.c_fc.weight": (4 * width, width),
                f"{block}mlp.c_fc.bias": (4 * width,),
                f"{block}mlp.c_proj.weight": (width, 4 * width),
                f"{block}mlp.c_proj.bias": (width,),
            }
            for norm in ("ln_1", "ln_2"):
                shapes |= {f"{block}{norm}.weight": (width,), f"{block}{norm}.bias": (width,)}
    return shapes


def draw_clip(sizes: dict[str, int], *, seed: int, tag: int) -> dict[str, np.ndarray]:
    """Draws the weights of a small CLIP: the rule is in tests/golden/README.md."""
    state = {}
    for key, shape in clip_shapes(sizes).items():
        rng = np.random.default_rng([seed, tag, zlib.crc32(key.encode())])
        x = rng.standard_normal(shape, dtype=np.float32)
        is_norm = ".ln_" in key or key.startswith(("ln_final", "visual.ln_"))
        if key == "logit_scale":
            x = np.log(np.float32(20)).astype(np.float32)
        elif key in {"token_embedding.weight", "visual.class_embedding"}:
            x = np.float32(0.5) * x
        elif key.endswith("positional_embedding"):
            x = np.float32(0.3) * x
        elif is_norm and key.endswith("weight"):
            x = 1 + np.float32(0.2) * x
        elif key.endswith("bias"):
            x = np.float32(0.1) * x
        else:
            x = x * np.float32(shape[-1] ** -0.5)
        state[key] = np.asarray(x, dtype=np.float32)
    return state


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Lets torch and child processes compute in one thread, whatever a test before has left.

    Small tensors are slower in several, by far where these wait for a core.
    """
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)
    for name in os.environ.pop("KDEDGE_CHOSEN", "").split():  # what a command here has set
        os.environ.pop(name, None)
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session")
def reference_folder() -> Path:
    """The reference vectors: those in tests/golden, or the folder that KDEDGE_REFERENCE names."""
    return Path(os.environ.get("KDEDGE_REFERENCE") or GOLDEN)


@pytest.fixture(scope="session")
def reference_meta(reference_folder: Path) -> dict[str, Any]:
    """meta.json of the reference vectors."""
    return json.loads((reference_folder / "meta.json").read_text())


@pytest.fixture(scope="session")
def _shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of all workers of this run."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def made_once(_shared: Path) -> Callable[..., Path]:
    """Has a folder written by the first of all workers that needs it; the others wait for it."""
    from kdedge.locks import lock_file

    root = _shared

    def make(name: str, write: Callable[[Path], object]) -> Path:
        folder, finished = root / f"made {name}", root / f"made {name}.finished"
        with lock_file(root / f"made {name}.lock", wait_s=300):
            if not finished.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a worker that failed
                folder.mkdir()
                write(folder)
                finished.touch()
        return folder

    return make


@pytest.fixture(scope="session")
def write_clip(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Draws a CLIP and writes it as a bare OpenAI state dict; gives the file."""
    import torch

    def write(sizes: dict[str, int], *, seed: int = 0, tag: int = 1) -> Path:
        state: dict[str, Any] = {
            key: torch.from_numpy(value.copy())
            for key, value in draw_clip(sizes, seed=seed, tag=tag).items()
        }
        state["input_resolution"] = torch.tensor(sizes["image_size"])
        state["context_length"] = torch.tensor(sizes.get("context_length", 77))
        state["vocab_size"] = torch.tensor(49408)
        path = tmp_path_factory.mktemp("clip") / "openai.pt"
        torch.save(state, path)
        return path

    return write


TINY = {
    "vision_width": 64,
    "vision_layers": 3,
    "patch_size": 8,
    "image_size": 32,
    "embed_dim": 24,
    "text_width": 64,
    "text_layers": 3,
}


@pytest.fixture(scope="session")
def tiny_sizes() -> dict[str, int]:
    """Sizes of a CLIP with three layers a tower, 32x32 pixels, joint dimension 24."""
    return dict(TINY)


@pytest.fixture(scope="session")
def tiny_weights(write_clip: Callable[..., Path]) -> Path:
    """The file of a CLIP with three layers a tower, 32x32 pixels, joint dimension 24."""
    return write_clip(TINY)


@pytest.fixture(scope="session")
def tiny_backbone(tiny_weights: Path) -> Any:
    """That CLIP, loaded; frozen, so that tests can share it."""
    from kdedge.clip.find import find_backbone
    from kdedge.clip.resolve import BackboneSpec

    return find_backbone(BackboneSpec(None, str(tiny_weights))).load()


@pytest.fixture(scope="session")
def fold_student(tiny_backbone: Any) -> Callable[..., Any]:
    """Folds a PromptKD student, 32x32 pixels, five classes, of the CLIP as it is when called."""
    import torch

    from kdedge.fold import FoldRequest, fold
    from kdedge.methods import promptkd
    from kdedge.methods.base import MethodInputs

    class Teacher:
        scale = 20.0

        def class_vectors(self) -> torch.Tensor:
            vectors = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
            return torch.nn.functional.normalize(vectors, dim=-1)

    def make(backbone: Any = tiny_backbone, projector_depth: int = 2, **options: Any) -> Any:
        names = [f"class {index}" for index in range(5)]
        generator = torch.Generator().manual_seed(0)
        student = promptkd.Method(
            backbone,
            promptkd.Settings(prompt_depth=2, projector_depth=projector_depth),
            MethodInputs(names, "{}", range(5), generator, teacher=Teacher()),
        )
        given = {"scale": student.scale, "preprocess": backbone.preprocess, **options}
        return fold(student.image_modules(), FoldRequest(student.class_vectors(), **given))

    return make


@pytest.fixture(scope="session")
def tiny_open_clip(tiny_backbone: Any) -> Any:
    """The same CLIP as open_clip builds it, with open_clip's own blocks."""
    from open_clip import CLIP

    from kdedge.clip.weights import infer_config

    state = tiny_backbone.model.state_dict()
    model = (
        CLIP(
            **{
                **infer_config({key: tuple(value.shape) for key, value in state.items()}),
                "quick_gelu": True,
            }
        )
        .eval()
        .requires_grad_(False)
    )
    model.load_state_dict(state)
    return model


@pytest.fixture(scope="session")
def plain_features() -> Callable[..., Any]:
    """Encodes images with whole blocks; prompts are tokens of their own in each block.

    As IVLP does it in the first blocks, LaFTer in the first one, and VPT-deep in all.
    """
    import torch

    def encode(visual: Any, images: Any, prompts: Any) -> Any:
        patches = visual.conv1(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([visual.class_embedding.expand(len(images), 1, -1), patches], dim=1)
        tokens = tokens + visual.positional_embedding
        n_tokens = tokens.shape[1]
        for index, block in enumerate(visual.transformer.resblocks):
            if index < len(prompts):
                own = prompts[index].expand(len(images), -1, -1)
                tokens = torch.cat([tokens[:, :n_tokens], own], dim=1)
            if index == 0:
                tokens = visual.ln_pre(tokens)
            tokens = block(tokens)
        return visual.ln_post(tokens)[:, 0] @ visual.proj

    return encode


@pytest.fixture(scope="session")
def tiny_teacher_backbone(write_clip: Callable[..., Path]) -> Any:
    """A wider CLIP with four image layers and joint dimension 40."""
    from kdedge.clip.find import find_backbone
    from kdedge.clip.resolve import BackboneSpec

    sizes = {**TINY, "vision_width": 128, "vision_layers": 4, "embed_dim": 40}
    return find_backbone(BackboneSpec(name=None, weights=str(write_clip(sizes, tag=2)))).load()


@pytest.fixture
def add_benchmark() -> Iterator[Callable[[Any], None]]:
    """Adds a benchmark set to kdedge's, for the test's time."""
    from kdedge.data.benchmarks import benchmarks

    own = dict(benchmarks())
    yield lambda added: benchmarks().update({added.name: added})
    benchmarks().clear()
    benchmarks().update(own)


@pytest.fixture(scope="session")
def parity() -> Callable[..., Any]:
    """Makes the record of a comparison of a file without labels, with other values if given."""
    from kdedge.records.evaluation import ParityResult

    def make(**changes: Any) -> ParityResult:
        values = {
            "n_images": 200,
            "n_labeled": 0,
            "n_nonfinite": 0,
            "agreement_percent": 99.5,
            "mean_softmax_distance": 0.001,
            "max_softmax_distance": 0.01,
            "accuracy_percent": None,
            "reference_accuracy_percent": None,
            "accuracy_drop": None,
            "worst": (),
            "images": "200 images of data.test",
            "runtime": "onnxruntime 1.24.4 CPU",
        }
        return ParityResult(**values | changes)

    return make


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a disk of so many kilobytes; skips where this user may not."""
    mounted: list[Path] = []

    def mount(n_kilobytes: int) -> Path:
        folder = tmp_path / "disk"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={n_kilobytes}k", "none", str(folder)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("mounting a small disk needs root")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def _load(name: str, folder: Path = Path(__file__).parent) -> ModuleType:
    """A module beside this file, or in another folder; its own copy at each call."""
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


_device = _load("device")
artifact, make_artifact, write_model = _device.artifact, _device.make_artifact, _device.write_model
mean_color_logits, paint = _device.mean_color_logits, _device.paint
cudart, no_gpu, jetson = _device.cudart, _device.no_gpu, _device.jetson
cuda_libraries, system_file = _device.cuda_libraries, _device.system_file


@pytest.fixture
def system_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of a file system in which kdedge reads what machine this is."""
    from kdedge.runtime import machine

    monkeypatch.setattr(machine, "ROOT", tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def host_gpu() -> ModuleType:
    """A GPU and a TensorRT made of host memory."""
    return _load("host_gpu")


@pytest.fixture(scope="session")
def load_module() -> Callable[..., ModuleType]:
    """Loads a module beside this file, or in another folder."""
    return _load


@pytest.fixture(scope="session", autouse=True)
def _traced_once(_shared: Path) -> Iterator[None]:
    """Lets torch, where the tests have loaded it, trace a model once: see `traces.py`."""
    torch, packages = sys.modules.get("torch"), ("onnx", "onnxscript")
    with pytest.MonkeyPatch.context() as patch:
        if torch is not None and all(map(importlib.util.find_spec, packages)):
            patch.setattr(torch.onnx, "export", _load("traces").traced_once(_shared))
        yield


@pytest.fixture(scope="session")
def _forking(_shared: Path) -> Iterator[Any]:
    """Starts processes of `kdedge` and of scripts."""
    processes = _load("processes").Processes(_shared)
    yield processes
    processes.close()


@pytest.fixture
def forked_cells(_forking: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells are processes of their own that need not import torch first, which takes 4 s each."""
    monkeypatch.setattr(sys, "executable", str(_forking.python))


@pytest.fixture(scope="session")
def file_server() -> ModuleType:
    """A web server that does what servers do wrong."""
    return _load("file_server")


@pytest.fixture(scope="session")
def speed() -> ModuleType:
    """Makes tables of speed that never were measured."""
    return _load("speed")


@pytest.fixture(scope="session")
def planted_outliers() -> ModuleType:
    """Plants outliers in a CLIP: `benchmarks/planted_outliers.py`."""
    return _load("planted_outliers", Path(__file__).parents[1] / "benchmarks")


@pytest.fixture
def hub(file_server: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """That server as the Hugging Face Hub: `give` a file as /OWNER/NAME/resolve/COMMIT/FILE."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with file_server.Server() as running:
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield running


@pytest.fixture(scope="session")
def int8_by_maxima() -> Callable[..., None]:
    """Writes an INT8 file for TensorRT without a search: ranges reach the largest values."""
    import torch
    from onnx import numpy_helper

    from kdedge.quantization.fake import (
        HIGHEST,
        QuantizedLayer,
        round_scale,
        weight_levels,
        weight_scale,
    )
    from kdedge.targets.onnx.graph import initializers, load_graph
    from kdedge.targets.onnx.half import absolute_maxima
    from kdedge.targets.onnx.insert import quantizable
    from kdedge.targets.onnx.quantize import to_int8

    def write(source: Path, output: Path, *, calibration: np.ndarray) -> None:
        model = load_graph(source)
        maxima, constants = absolute_maxima(model, calibration), initializers(model)
        layers = {}
        for name, (node, *_) in quantizable(model).items():
            values = numpy_helper.to_array(constants[node.input[1]])
            weight = torch.from_numpy((values if node.op_type == "Conv" else values.T).copy())
            scale = weight_scale(weight)
            step = round_scale(torch.tensor(maxima[node.input[0]] / HIGHEST))
            levels = weight_levels(weight, scale)
            layers[name] = QuantizedLayer(float(step), scale.numpy(), levels.numpy())
        to_int8(source, output, calibration=calibration, layers=layers)

    return write


@pytest.fixture(scope="session")
def gpu(made_once: Callable[..., Path]) -> Any:
    """Makes torch find a GPU, for the time of a `with`; see `simulated_cuda.py`.

    A real one, which does not count, where there is one.
    """
    import torch

    if torch.cuda.is_available():
        return contextlib.nullcontext
    simulated = _load("simulated_cuda")
    install = simulated.build_guard(made_once)
    return lambda: simulated.simulated_gpu(install)

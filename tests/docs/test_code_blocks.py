"""What README and documentation show is run, page by page, in a folder with small images.

A page's code blocks run in their order and in one folder. A block with a title is written to the
file of that name. Of a shell block every command is a process, of a Python block the whole; each
has to end in exit code 0. A YAML block without a title is a part of the recipe of "Recipes".

`NOT_RUN` lists what does not run here, and why.
"""

from __future__ import annotations

import doctest
import importlib.util
import itertools
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import kdedge

ROOT = Path(__file__).parents[2]
PAGES = {
    page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8")
    for page in (
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
        *sorted((ROOT / "docs").rglob("*.md")),
    )
}
RECIPE = "line3.yaml"

TEACHER, STUDENT = "kdedge-demo-teacher", "kdedge-demo-student"
# What a command is given in addition: CLIPs that need no download, and less work.
ADDED = {
    "init": ("--teacher", f"{TEACHER}:builtin", "--student", f"{STUDENT}:builtin"),
    "bench": ("--seconds", "0.01", "--calls", "3", "--batch", "1"),
}
# What changes in the recipe that `kdedge init` wrote, for its Python blocks too: less work, and
# gates that so short a training cannot miss.
CHANGED = {
    "\nexport:\n": "\noptim: {epochs: 1}\n\nexport:\n  int8_minutes: 0\n",
    **{"fp16: 99.5%": "fp16: 0%", "int8: 98%": "int8: 0%", "max_drop: 1.0": "max_drop: 100"},
}


BENCH = "tests/cli/test_bench.py runs it"
CPU = "tests/cli/test_export_targets.py and README.md run it"
CAMERA = "needs a camera"
DEMO = "takes a minute"
DOCKER = "needs Docker"
DOWNLOAD = "downloads images or weights"
DRAWN = "tests/docs/test_examples.py runs it"
GPU = "needs a GPU with NVIDIA's libraries"
NEEDED = {
    "openvino": "openvino",
    "executorch": "executorch",
    "litert": "litert_torch",
    "coreml": "coremltools",
}
"""The packages of pages about targets."""

INSTALL = "installs packages"
LARGE = "is for a ViT-B/16; these tests have a student of 3 blocks and 16 patch tokens"
APPLE = "needs Xcode"
BEGIN = "made what the page begins with"
MACHINES = "needs several machines"
MANY = "trains for minutes; tests/cli/test_suite.py runs a smaller suite"
FRONT = "trains for minutes; tests/cli/test_suite_export.py runs a smaller one"
NONE = "needs 38 known images; tests/cli/test_none_of_these.py runs it with fewer"
REPORT = "tests/cli/test_report.py runs it"
SERVER = "needs the server"
SERVED = "tests/serving runs it"
STEP = "is a step of these tests"
TARGETS = "tests/cli/test_export_targets.py runs it"
CLASSES = "tests/cli/test_export.py runs it"

EXPORT = "kdedge export --fp16 --int8"
# These weights are not installed where the tests run; `ADDED` has others
WEIGHTS = " --teacher efficientnet-lite2 --student efficientnet-lite0"
INIT = "kdedge init line3 --images cams --classes classes.txt --labeled labeled --test test"
FIRST = [INIT, "kdedge distill line3.yaml", "kdedge export --cpu"]
"""What README and "Your own images" begin with: it is run once for both."""

# What is run on no page, by its beginning, and why.
NOWHERE_RUN = {
    **dict.fromkeys(("pip install ", "pip wheel ", "python3 -m venv "), INSTALL),
    "docker build ": DOCKER,
}
# By page: what else is not run, and why. Of a shell block whose first command cannot run, nothing
# does.
# A block of another language is listed by its first line after its imports.
NOT_RUN: dict[str, dict[str, str]] = {
    "README.md": {
        "kdedge distill recipes/sun397.yaml": DOWNLOAD,
    },
    "CONTRIBUTING.md": {
        "python -m pytest -m core -n auto": STEP,
        "python -m pytest tests/methods -n 0": STEP,
    },
    "docs/benchmark-sets.md": {
        "kdedge data fetch sun397 --data /data/sets": DOWNLOAD,
        "kdedge data verify sun397 --data /data/sets": DOWNLOAD,
    },
    "docs/how-it-works.md": {
        "kdedge distill line3.yaml --set student.settings.merge_tokens=8": LARGE,
        "kdedge distill line3.yaml --set student.method=promptkd --set 'student.settings={tune:"
        " full, class_vectors: student, labeled_weight: 1}' --set student.optim.lr=0.00004": LARGE,
    },
    "docs/deploy/artifacts.md": {
        "kdedge export line3 --classes other.txt": CLASSES,
    },
    "docs/deploy/openvino.md": {
        "kdedge export --openvino --int8": TARGETS,
    },
    "docs/deploy/scores.md": {
        "kdedge export line3 --calibrate --none-of-these 95%": NONE,
        "kdedge predict runs/line3/02/artifacts/01 new-images --format csv": NONE,
    },
    "docs/deploy/onnx.md": {
        EXPORT: BEGIN,
    },
    "docs/deploy/watch.md": {
        "kdedge watch artifacts/01 /dev/video0": CAMERA,
        'for event in kdedge.watch("artifacts/01", 0):': CAMERA,
    },
    "docs/deploy/cpu.md": {
        "kdedge export --cpu": CPU,
        "kdedge export artifacts/01 --cpu": CPU,
        'kdedge.export("artifacts/01", cpu=True)': CPU,
    },
    "docs/deploy/serve.md": {
        "curl --data-binary @image.jpg http://127.0.0.1:8000/predict": SERVER,
        '{"class": "red", "score_percent": 99.1, "top": [{"class": "red", "score_percent": 99.1},'
        ' {"class": "blue", "score_percent": 0.9}]}': SERVER,
        'with kdedge.serve("artifacts/01", port=0) as server:': SERVED,
        'client = triton.InferenceServerClient("127.0.0.1:8000")': SERVER,
        "ln -sfn artifacts/01 served": SERVED,
    },
    "docs/deploy/coreml.md": {
        "let classifier = try model_fp16(configuration: MLModelConfiguration())": APPLE,
    },
    "docs/deploy/triton.md": {
        "docker run --gpus all --rm -p 8000:8000 -v $PWD/models:/models"
        " nvcr.io/nvidia/tritonserver:<version>-py3 tritonserver"
        " --model-repository=/models": SERVER,
    },
    "docs/deploy/tensorrt.md": {
        "sudo nvpmodel -q": GPU,
        "kdedge export artifacts/01 --trt --fp16": GPU,
        'with kdedge.load("artifacts/01", backend="tensorrt", precision="fp16") as model:': GPU,
    },
    "docs/deploy/tensorrt-rtx.md": {
        "kdedge predict artifacts/01 new-images --backend tensorrt-rtx": GPU,
        'with kdedge.load("artifacts/01", backend="tensorrt-rtx", precision="fp16") as model:': GPU,
    },
    "docs/deploy/torch-tensorrt.md": {
        "kdedge export line3 --torch-trt --fp16": GPU,
        'model = torch.export.load("model.pt2").module().cuda()': GPU,
    },
    "docs/examples.md": {
        "ARTIFACT=runs/line3/02/artifacts/01 uvicorn service:app": SERVER,
    },
    "docs/measure.md": {
        "kdedge bench": BENCH,
        "kdedge report": REPORT,
    },
    "docs/own-images.md": {
        "python docs/examples/draw_images.py drawings": DRAWN,
        "kdedge report": REPORT,
    },
    "docs/python.md": {
        "demo = kdedge.demo()  # a minute on two cores, without a download": DEMO,
    },
    "docs/runs.md": {
        "kdedge import model.pth.tar-20 --as promptsrc --backbone ViT-L-14"
        " --weights openai --classes classes.txt": DOWNLOAD,
    },
    "docs/scale.md": {
        "torchrun --nproc-per-node=8 -m kdedge distill sun397": DOWNLOAD,
        "torchrun --nnodes=2 --nproc-per-node=8 --rdzv-backend=c10d --rdzv-id=line3"
        " --rdzv-endpoint=first:29500 -m kdedge distill line3.yaml": MACHINES,
    },
    "docs/suites.md": {
        "kdedge suite line3-suite.yaml --jobs 2": MANY,
        "kdedge suite benchmarks/suites/table1.yaml --jobs 2": DOWNLOAD,
        "kdedge suite line3-sizes.yaml --export": FRONT,
    },
}


@dataclass(frozen=True)
class Block:
    """A code block: its language, the file that its title names, its text."""

    language: str
    title: str
    text: str

    def parts(self) -> list[str]:
        """What runs or is listed: commands without their comments, no `text`, else all of it."""
        if self.language == "text":
            return []
        if self.language != "sh":
            return [self.text]
        lines = self.text.replace("\\\n", " ").splitlines()
        commands = [part for line in lines for part in re.sub(r"\s#\s.*", "", line).split(" && ")]
        return [" ".join(command.split()).removesuffix(WEIGHTS) for command in commands]


def blocks(page: str) -> Iterator[Block]:
    """The code blocks of a page, in order."""
    pattern = r'^( *)```(\w+)(?: title="(.+?)")?\n(.*?)^\1```$'
    for indent, language, title, text in re.findall(pattern, PAGES[page], re.M | re.S):
        yield Block(language, title, re.sub(f"^{indent}", "", text, flags=re.M))


def listed(part: str) -> str:
    """What a command or block is called in NOT_RUN."""
    lines = part.splitlines()
    return next(line for line in lines if line and not line.startswith(("import ", "from ")))


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders and files of "Your own images", red and blue images; and the clone's examples."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "classes.txt").write_text("red\nblue\n")
    (folder / "other.txt").write_text("blue\nred\n")
    n_images = {"cams": 24, "labeled": 4, "test": 4, "new-images": 2}
    for start, (part, n) in enumerate(n_images.items()):
        for step in range(n):
            level = 120 + 120 * step // n + 3 * start
            for name, color in (("red", (level, 10, 10)), ("blue", (10, 10, level))):
                place = folder / part / name / f"{step}.jpg"
                place.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (64, 48), color).save(place)
    shutil.copy(folder / "new-images" / "red" / "0.jpg", folder / "image.jpg")
    shutil.copytree(ROOT / "docs" / "examples", folder / "docs" / "examples")
    return folder


class Folder:
    """The folder that a page's blocks run in."""

    def __init__(self, path: Path, forking: Any) -> None:
        self.path, self._forking = path, forking

    def run(self, block: Block, part: str) -> None:
        """Runs a command or a Python block, or writes the block's file."""
        if block.language == "yaml" and block.title in ("", RECIPE):
            self._check_recipe(part)
        elif block.title:
            (self.path / block.title).write_text(part)
        elif block.language == "python":
            (self.path / ".block.py").write_text(part)
            self._start(script=".block.py")
        else:
            program, *arguments = shlex.split(part)
            assert program in {"kdedge", "python"}, f"NOT_RUN has no reason for: {part}"
            if program == "python":
                script, *given = arguments
                output = self.path / given.pop() if ">" in given else None
                given = [word for word in given if word != ">"]
                found = [sorted(map(str, self.path.glob(word))) or [word] for word in given]
                printed = self._start(*itertools.chain(*found), script=script)
                if output is not None:
                    output.write_text(printed)
            else:
                self._start(*arguments, *ADDED.get(arguments[0], ()))
                for old, new in CHANGED.items() if arguments[0] == "init" else ():
                    text = (self.path / RECIPE).read_text()
                    assert text.count(old) == 1
                    (self.path / RECIPE).write_text(text.replace(old, new))

    def _start(self, *arguments: str, script: str | None = None) -> str:
        process = self._forking.start(*arguments, cwd=self.path, script=script, clock=50)
        assert process.wait() == 0, f"{arguments}\n{process.stdout}\n{process.stderr}"
        return str(process.stdout)

    def _check_recipe(self, part: str) -> None:
        from kdedge.config.load import load_recipe, parse_yaml

        (whole,) = [block.text for block in blocks("docs/recipes.md") if block.title == RECIPE]
        (values, _), (changes, _) = (parse_yaml(text, name="r") for text in (whole, part))
        if "file" in changes.get("teacher", {}):
            del values["teacher"]  # no other key stands beside it
        load_recipe(_merged(values, changes))


def _merged(values: Any, changes: Any) -> Any:
    if not isinstance(values, dict) or not isinstance(changes, dict):
        return changes
    return {**values, **{key: _merged(values.get(key), changes[key]) for key in changes}}


@pytest.fixture(scope="session")
def copy(_forking: Any) -> Callable[[Path, Path], Folder]:
    """Copies a folder, for blocks to run in."""

    def copy_folder(source: Path, target: Path) -> Folder:
        shutil.copytree(source, target)
        return Folder(target, _forking)

    return copy_folder


def take_prompts(recipe: Path) -> None:
    """Makes a recipe one of PromptSRC and PromptKD, of which these pages speak."""
    text = recipe.read_text()
    for old, new in (
        (r"method: ridge .*", "method: promptsrc\n  settings: {n_anchor_templates: 4}"),
        (r"method: ridge .*", "method: promptkd"),
        (r"settings: \{labeled_weight.*", "settings: {prompt_depth: 3}"),
        (r"  views: 1 .*\n", ""),
        (r"n_anchor_templates: 4", "n_anchor_templates: 4, prompt_depth_text: 2"),
        (r"prompt_depth_text: 2", "prompt_depth_text: 2, prompt_depth_vision: 4"),
    ):
        text, n_found = re.subn(old, new, text, count=1)
        assert n_found == 1, old
    recipe.write_text(text)


@pytest.fixture(scope="session")
def project_after(
    images: Path, made_once: Callable[..., Path], copy: Callable[[Path, Path], Folder]
) -> Callable[..., Path]:
    """Runs commands in a copy of the images."""
    for name in ("torch", "onnx", "onnxruntime"):
        pytest.importorskip(name)

    def run(
        name: str, commands: list[str], change: Callable[[Path], None] = lambda recipe: None
    ) -> Path:
        def write(made: Path) -> None:
            folder = copy(images, made / "project")
            for command in commands:
                folder.run(Block("sh", "", command), command)
                if command == INIT:
                    change(folder.path / RECIPE)
            newest = folder.path / "runs/line3/02/artifacts/01"
            shutil.copytree(newest, folder.path / "artifacts/01")

        return made_once(name, write) / "project"

    return run


@pytest.fixture(scope="session")
def finished(project_after: Callable[..., Path]) -> Path:
    """The images with a finished teacher and student, and the student's export in artifacts/01."""
    return project_after("finished", [INIT, "kdedge distill line3.yaml", EXPORT], take_prompts)


def why_not(page: str, part: str) -> str | None:
    """Why a part of a page is not run; None where it is."""
    name = listed(part)
    nowhere = [why for start, why in NOWHERE_RUN.items() if name.startswith(start)]
    return NOT_RUN.get(page, {}).get(name, nowhere[0] if nowhere else None)


def run_parts(page: str) -> list[tuple[Block, str]]:
    """What runs or is written of a page, in order."""
    return [
        (block, part)
        for block in blocks(page)
        if block.parts() and why_not(page, block.parts()[0]) is None
        for part in block.parts()
        if why_not(page, part) is None
    ]


RUN = [
    page
    for page in PAGES
    if any(block.language == "yaml" or not block.title for block, _ in run_parts(page))
]


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN)
def test_what_a_page_shows_runs(
    page: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    copy: Callable[[Path, Path], Folder],
    project_after: Callable[..., Path],
) -> None:
    for name in ("torch", "onnxruntime", "matplotlib", "tensorrt_rtx"):
        pytest.importorskip(name)
    for name, package in NEEDED.items():
        if page == f"docs/deploy/{name}.md":
            pytest.importorskip(package)
    parts = run_parts(page)
    begins = [part for _, part in parts if part in FIRST]
    if INIT in begins:
        assert begins == FIRST
        parts = [(block, part) for block, part in parts if part not in FIRST]
    start: Path = (
        project_after("first", FIRST) if INIT in begins else request.getfixturevalue("finished")
    )
    folder = copy(start, tmp_path / "project")
    for block, part in parts:
        folder.run(block, part)


def examples() -> dict[str, str]:
    """The examples of each function of the API, by its name."""
    parse = doctest.DocTestParser().get_examples
    shown = {name: parse(getattr(kdedge, name).__doc__ or "") for name in kdedge.__all__}
    return {name: "".join(one.source for one in each) for name, each in shown.items() if each}


@pytest.mark.slow
@pytest.mark.parametrize("name", examples())
def test_the_example_of_a_function_runs(
    name: str, finished: Path, tmp_path: Path, copy: Callable[[Path, Path], Folder]
) -> None:
    pytest.importorskip("matplotlib")
    folder = copy(finished, tmp_path / "project")
    text = f"import kdedge\n\n{examples()[name]}"
    folder.run(Block("python", "", text), text)


def test_what_is_not_run_is_on_its_page() -> None:
    shown = {
        (page, listed(part)) for page in PAGES for block in blocks(page) for part in block.parts()
    }
    assert {(page, part) for page, parts in NOT_RUN.items() for part in parts} - shown == set()


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("onnxruntime.cpp", "onnxruntime/onnxruntime_cxx_api.h"),
        ("openvino.cpp", "openvino/openvino.hpp"),
        ("tensorrt.cpp", "NvInfer.h"),
    ],
)
def test_the_cpp_examples_compile(name: str, header: str) -> None:
    compiler, places = shutil.which("c++"), [Path("/usr/include"), Path("/usr/local/include")]
    package = importlib.util.find_spec("openvino")
    if package is not None and package.origin is not None:  # it brings its headers
        places.append(Path(package.origin).parent / "include")
    found = [place for place in places if (place / header).is_file()]
    if compiler is None or not found:
        pytest.skip(f"needs a C++ compiler and {header}")
    folders = [f"-I{found[0]}", f"-I{(found[0] / header).parent}", "-I/usr/local/cuda/include"]
    example = ROOT / "docs/examples" / name
    command = [compiler, "-std=c++17", "-fsyntax-only", *folders, str(example)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

"""What README and documentation say is there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

import kdedge
from kdedge.cli.main import cli
from kdedge.config.export_spec import ExportSpec
from kdedge.config.keys import list_keys
from kdedge.config.recipe import Recipe
from kdedge.config.student_sizes import SIZES
from kdedge.serving.watch import DRIFT_FRAMES, WINDOW

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
README = TEXTS["README.md"]
RECORDS = ("benchmarks/README.md", "tests/golden/README.md")


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf'```{language}(?: title=".+?")?\n(.*?)```', text, re.DOTALL)


def commands() -> list[list[str]]:
    """Every `kdedge ...` line of the pages' code blocks, without its comment."""
    lines = [
        line
        for text in TEXTS.values()
        for block in blocks(text, "sh")
        for line in block.splitlines()
    ]
    found = [part for line in lines for part in line.split("&&") if "kdedge " in part]
    found = [part.partition(" # ")[0].strip() for part in found if "pip install" not in part]
    found = [re.sub(r"^.*-m kdedge ", "kdedge ", part) for part in found]
    return [shlex.split(part) for part in dict.fromkeys(found) if "kdedge " in part]


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_is_one_that_kdedge_has_with_these_options(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    name, arguments = command[1], command[2:]
    there = str(ROOT / "recipes" / "demo.yaml")  # options that want a file get one
    arguments = [
        there if re.fullmatch(r"[\w.-]+\.(json|txt|tar-20|yaml)", one) else one for one in arguments
    ]
    with click.Context(cli) as context:
        found = cli.get_command(context, name)
        found.make_context(name, arguments, parent=context)


def test_the_python_of_the_pages_uses_names_that_the_api_has() -> None:
    used = {
        name
        for text in TEXTS.values()
        for block in blocks(text, "python")
        for name in re.findall(r"\bkdedge\.(\w+)\(", block)
    }
    assert used - set(kdedge.__all__) == set()


def test_the_page_on_python_has_each_name_of_the_api() -> None:
    described = re.findall(r"(?:kdedge|run)\.(\w+)", TEXTS["docs/python.md"])
    functions = {name for name in kdedge.__all__ if not isinstance(getattr(kdedge, name), type)}
    assert functions - {*described} == {"__version__"}


def test_every_key_of_a_recipe_that_is_named_exists() -> None:
    keys = {key.name for key in list_keys(Recipe.model_json_schema())}
    named = {
        (name, re.sub(r"^(teacher|student|baseline)\.optim", "optim", key))
        for name, text in TEXTS.items()
        for key in re.findall(
            r"(?:--set |[`\"])((?:optim|data|teacher|student|export|gates|classes)\.[a-z0-9_.]+)",
            text,
        )
        if not key.endswith((".safetensors", ".txt", ".yaml", ".npy")) and ".settings." not in key
    }
    assert {(name, key) for name, key in named if key not in keys} == set()


@pytest.mark.parametrize("name", [*TEXTS, *RECORDS])
def test_every_file_that_is_named_exists(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    mentioned = re.findall(r"\b((?:tests|benchmarks|recipes|kdedge)/[\w./-]+\.\w+)", text)
    assert [path for path in mentioned if not (ROOT / path).exists()] == []


def extras() -> set[str]:
    """The optional dependencies of pyproject.toml."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = text.partition("[project.optional-dependencies]\n")[2].partition("\n[")[0]
    return set(re.findall(r"^([\w-]+) = ", section, re.MULTILINE))


def test_the_page_of_the_installation_has_every_extra() -> None:
    rows = re.findall(r"^\| (`.+`) \| .+ \|$", TEXTS["docs/install.md"], re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`([\w-]+)`", row)} == extras()


@pytest.mark.parametrize("name", TEXTS)
def test_every_extra_that_a_page_installs_exists(name: str) -> None:
    lists = re.findall(r"(?:kdedge|\.|any\.whl)\[([\w,-]+)\]'", TEXTS[name])
    assert {extra for one in lists for extra in one.split(",")} - extras() == set()


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_links_lead_to_files_of_the_repository(name: str) -> None:
    links = re.findall(r"\]\(([^)#]+)", TEXTS[name])
    inside = [link for link in links if "://" not in link]
    assert [link for link in inside if not (ROOT / link).is_file()] == []


def methods_in(text: str) -> set[str]:
    """The methods, by name or label, and the papers' numbers that a text names."""
    methods = kdedge.list_methods()
    known = {*methods, *(one.label for one in methods.values() if one is not None)}
    found = {name for name in known if re.search(rf"\b{re.escape(name)}\b", text, re.IGNORECASE)}
    return found | {*re.findall(r"arxiv\S*", text, re.IGNORECASE)}


def test_the_first_screen_of_the_readme_names_no_method_but_in_the_door_to_it() -> None:
    first, *_ = README.partition("\n## Try it\n")
    doors = [line for line in first.splitlines() if line.startswith("* **")]
    assert [sorted(methods_in(door)) for door in doors] == [[], ["PromptKD", "promptkd"]]
    assert methods_in(first.replace(doors[1], "")) == set()


def test_the_second_door_leads_to_its_three_commands() -> None:
    _, _, behind = README.partition("\n## CLIP made small by PromptKD\n")
    assert "(#clip-made-small-by-promptkd)" in README
    assert blocks(behind, "sh")[0].splitlines() == [
        "kdedge distill recipes/sun397.yaml",
        "kdedge export --trt --int8",
        "kdedge bench",
    ]


def test_the_page_for_own_images_names_no_method_and_no_paper() -> None:
    page = TEXTS["docs/own-images.md"]
    assert methods_in(page) == set()
    assert [word for word in ("paper", "PyTorch", "CLIP") if word in page] == []


def test_the_installation_links_to_no_other_site() -> None:
    assert re.findall(r"https?://\S+", TEXTS["docs/install.md"]) == []


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 100


@pytest.mark.parametrize("name", [*TEXTS, *RECORDS])
def test_no_placeholder_is_left(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    real = (
        r"(?:OMP|CUDA|RAY|WATCHFILES|KDEDGE|SLURM|NCCL|GLOO|FONT_HERSHEY|INTER|CAP|INFERENCE)_\w+"
        r"|PERFORMANCE_HINT|MODEL_CARD"
    )
    text = re.sub(real, "", text)
    assert re.findall(r"\b[A-Z]{2,}_[A-Z_]{2,}\b", text) == []


def test_the_site_builds_without_a_broken_link_or_an_undocumented_name(tmp_path: Path) -> None:
    pytest.importorskip("zensical")
    pytest.importorskip("torch")
    build = [sys.executable, str(ROOT / "docs" / "build.py"), str(tmp_path / "site")]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    reference = (tmp_path / "site" / "commands" / "index.html").read_text(encoding="utf-8")
    with click.Context(cli) as context:
        missing = [name for name in cli.list_commands(context) if f"kdedge {name}" not in reference]
    assert missing == []


def test_the_example_of_a_loss_is_the_package_beside_it() -> None:
    folder = ROOT / "docs" / "examples" / "power_loss"
    page = TEXTS["docs/extend.md"]
    assert (folder / "power_loss.py").read_text(encoding="utf-8") in blocks(page, "python")
    assert (folder / "pyproject.toml").read_text(encoding="utf-8") in blocks(page, "toml")


def test_the_messages_of_troubleshooting_are_those_of_the_code() -> None:
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "kdedge").rglob("*.py"))
    joined = re.sub(r'"\s*\n\s*f?"', "", source)  # a text over several lines
    quoted = re.findall(r"^\* \*\*`(.+?)`.*\*\* ", TEXTS["docs/troubleshooting.md"], re.MULTILINE)
    pieces = [piece.strip(" .") for text in quoted for piece in text.split("...")]
    assert len(quoted) > 4
    assert [piece for piece in pieces if piece not in joined] == []


def serve_default(name: str) -> float:
    """The default of an option of `kdedge serve`."""
    with click.Context(cli) as context:
        command = cli.get_command(context, "serve")
    (option,) = [one for one in command.params if one.name == name]
    return float(option.default)


@pytest.mark.parametrize(
    ("page", "said", "value"),
    [
        ("onnx", r"takes at most (\d+) minutes", ExportSpec().int8_minutes),
        ("onnx", r"`export.max_batch` \((\d+) if left out", ExportSpec().max_batch),
        ("serve", r"`--max-megabytes` of a body \((\d+)\)", serve_default("max_megabytes")),
        ("serve", r"of an image \((\d+)\)", serve_default("max_megapixels")),
        ("serve", r"that wait\s+\((\d+)\)", serve_default("max_requests")),
        ("serve", r"of a request \((\d+) seconds", serve_default("timeout")),
        ("watch", r"over the last (\d+) frames \(`--window`", WINDOW),
        (
            "watch",
            r"the mean of (\d+) frames in a row as one\s+observation \(`--drift-frames`",
            DRIFT_FRAMES,
        ),
    ],
)
def test_a_default_on_a_page_is_that_of_the_code(page: str, said: str, value: float) -> None:
    text = TEXTS[f"docs/deploy/{page}.md"]
    assert [float(found) for found in re.findall(said, text)] == [value]


@pytest.mark.parametrize("size", SIZES)
def test_the_students_by_size_are_those_of_the_code(size: str) -> None:
    one = SIZES[size]
    start = rf"^\| `{one.backbone}` \| \d+ \| {one.n_parameters} \| {one.gflops} \|"
    assert re.search(rf"{start} .*`--size {size}` \|$", TEXTS["docs/choose.md"], re.MULTILINE)


def steps_of_the_walks() -> list[tuple[str, str]]:
    """Each file of a walk in the page on architecture, with a function or class named after it."""
    return re.findall(r"`([\w/]+\.py)` `([\w.]+)`", TEXTS["docs/architecture.md"])


@pytest.mark.parametrize(("file", "name"), steps_of_the_walks(), ids=lambda part: part)
def test_a_step_of_a_walk_names_what_its_file_defines(file: str, name: str) -> None:
    code = (ROOT / "kdedge" / file).read_text(encoding="utf-8")
    for part in name.split("."):
        assert re.search(rf"^\s*(async )?(def|class) {part}\b", code, re.MULTILINE)

"""Build the documentation: write the generated pages, then run the site generator in strict mode.

    python docs/build.py [OUTPUT]

A broken link, a public name without a docstring, or a page outside the navigation ends in exit
code 1. OUTPUT is `site` beside this folder if left out, and is replaced. Needs the extra `docs`.
"""

from __future__ import annotations

import argparse
import inspect
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

import kdedge
from kdedge.cli.main import cli
from kdedge.config.keys import RecipeKey, list_keys
from kdedge.config.recipe import Recipe
from kdedge.methods.registry import list_methods, load_method
from kdedge.targets.registry import list_targets, target_records

DOCS = Path(__file__).parent
ROOT = DOCS.parent


def main(output: Path) -> int:
    """Builds the site into `output`; gives the exit code."""
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        pages = project / "docs"
        shutil.copytree(DOCS, pages, ignore=shutil.ignore_patterns("*.toml", "build.py"))
        shutil.copy(DOCS / "zensical.toml", project)
        for name in ("CHANGELOG.md", "CONTRIBUTING.md"):
            shutil.copy(ROOT / name, pages / name.lower())
        shutil.copy(ROOT / "benchmarks" / "README.md", pages / "results.md")
        for image in (ROOT / "benchmarks").glob("*.svg"):
            shutil.copy(image, pages)
        for page in pages.rglob("*.md"):  # links that also work in the repository
            text = page.read_text(encoding="utf-8").replace("../benchmarks/README.md", "results.md")
            text = text.replace("../CONTRIBUTING.md", "contributing.md").replace("../docs/", "")
            page.write_text(text, encoding="utf-8")
        for name, text in generated_pages().items():
            (pages / name).write_text(text, encoding="utf-8")
        faults = [*undocumented(), *outside_navigation(project)]
        for fault in faults:
            print(fault, file=sys.stderr)
        tool = [str(Path(sys.executable).with_name("zensical")), "build", "--strict"]
        code = subprocess.run(tool, cwd=project, check=False).returncode
        if code or faults:
            return 1
        shutil.rmtree(output, ignore_errors=True)
        shutil.copytree(project / "site", output)
    return 0


def undocumented() -> Iterator[str]:
    """Public names of the Python API that have no docstring."""
    for name in kdedge.__all__:
        if name != "__version__" and not (getattr(kdedge, name).__doc__ or "").strip():
            yield f"kdedge.{name} has no docstring."


def outside_navigation(project: Path) -> Iterator[str]:
    """Pages that the navigation does not list."""
    listed = set(re.findall(r'"([\w/-]+\.md)"', (project / "zensical.toml").read_text("utf-8")))
    for page in sorted((project / "docs").rglob("*.md")):
        name = page.relative_to(project / "docs").as_posix()
        if name not in listed:
            yield f"docs/{name} is not in the navigation of docs/zensical.toml."


def generated_pages() -> dict[str, str]:
    """Pages that come from the code, by file name."""
    return {
        "commands.md": commands_page(),
        "recipe-keys.md": recipe_page(),
        "methods.md": methods_page(),
        "python-names.md": python_page(),
        "deploy/targets.md": targets_page(),
    }


def python_page() -> str:
    """The documentation of every name of the Python API; the site generator fills it in."""
    names = [name for name in kdedge.__all__ if name != "__version__"]
    errors = [name for name in names if hasattr(kdedge.errors, name)]
    classes = [name for name in names if isinstance(getattr(kdedge, name), type)]
    groups = {
        "Functions": [name for name in names if name not in classes and name != "errors"],
        "Classes": [name for name in classes if name not in errors],
        "Errors": ["errors"],
    }
    lines = ["# Names of the Python API", "", "[Python API](python.md) says which to use when.", ""]
    for title, members in groups.items():
        lines += [f"## {title}", ""]
        for name in members:
            lines += [f"::: kdedge.{name}", ""]
            if name == "LoadedModel":
                lines[-1:] = ["    options:", "      inherited_members: [close, logits]", ""]
    return "\n".join(lines)


def targets_page() -> str:
    """What `kdedge export` makes."""
    lines = [
        "# Targets\n\nWhat `kdedge export` makes.\n",
        "| `kdedge export` | makes | built from | precisions | run by | extras | |",
        "|---|---|---|---|---|---|---|",
    ]
    for target, record in zip(list_targets(), target_records().values(), strict=True):
        runs = f"`--backend {target.backend}`" if target.backend else "-"
        extras = ", ".join(f"`{extra}`" for extra in record["extras"]) or "-"
        lines.append(
            f"| `{target.flag}` | {target.label}, `{target.files}` | {target.source} |"
            f" {', '.join(target.precisions)} | {runs} | {extras} | {target.remark} |"
        )
    return "\n".join(lines) + "\n"


def commands_page() -> str:
    """The help of every command."""
    lines = ["# Command reference", "", "The text of each command's `--help-all`.", ""]
    with click.Context(cli, info_name="kdedge") as context:
        for name in cli.list_commands(context):
            command = cli.get_command(context, name)
            assert command is not None
            lines += _help(command, context, name)
    return "\n".join(lines)


def _help(command: click.Command, parent: click.Context, name: str) -> Iterator[str]:
    settings = command.context_settings
    context = click.Context(command, info_name=name, parent=parent, **settings)
    context.max_content_width = 100
    context.meta["kdedge.cli.shows_all"] = True
    level = "#" * (len(context.command_path.split()))
    yield from (f"{level} {context.command_path}", "", "```text", command.get_help(context))
    yield from ("```", "")
    if isinstance(command, click.Group):
        for inner in command.list_commands(context):
            found = command.get_command(context, inner)
            assert found is not None
            yield from _help(found, context, inner)


def recipe_page() -> str:
    """Every key of a recipe."""
    schema = Recipe.model_json_schema()
    return "\n".join(
        [
            "# Recipe keys",
            "",
            "Every key of a recipe, as `kdedge schema` explains it. [Recipes](recipes.md) shows how"
            " they are used; [Methods and losses](methods.md) has each method's `settings`.",
            "",
            *_table(list_keys(schema)),
        ]
    )


def _table(keys: Iterator[RecipeKey]) -> Iterator[str]:
    yield from ("| key | value | meaning |", "|---|---|---|")
    for key in keys:
        yield f"| `{key.name}` | {_cell(key.facts)} | {_cell(key.description)} |"
    yield ""


def _cell(text: str) -> str:
    return re.sub(r"([|{}<>*_])", r"\\\1", text)


def methods_page() -> str:
    """What each method and loss is, and its settings."""
    lines = [
        "# Methods and losses",
        "",
        "The methods that `teacher.method`, `student.method` and `kdedge train --method` can name,"
        " each in one file of `kdedge/methods/`. *Labels*: it learns from `data.labeled`."
        " *Unlabeled*: from `data.unlabeled`. *Novel names*: class names without labels take part."
        " [What differs from the public code](differences.md) is a page of its own.",
        "",
        "| name | method | labels | unlabeled | novel names | paper |",
        "|---|---|---|---|---|---|",
    ]
    modules = {name: load_method(name) for name in list_methods()}
    for name, module in modules.items():
        declared = module.METHOD
        needs = declared.main_data_needs
        marked = (needs.labels, needs.unlabeled_images, needs.novel_class_names)
        marks = ["yes" if one else "-" for one in marked]
        row = [f"[`{name}`](#{name})", declared.label, *marks, declared.paper or "-"]
        lines.append(f"| {' | '.join(row)} |")
    for name, module in modules.items():
        lines += ["", f"## {name}", "", _prose(module.__doc__ or ""), ""]
        settings: Mapping[str, Any] = module.Settings.model_json_schema()
        if settings.get("properties"):
            lines += [*_table(list_keys(dict(settings)))]
    return "\n".join(lines)


def _prose(docstring: str) -> str:
    """A docstring as Markdown: lists keep their bullets, other signs are plain text."""
    text = re.sub(r"([<>*_])", r"\\\1", inspect.cleandoc(docstring))
    text = re.sub(r"^\\\* ", "* ", text, flags=re.MULTILINE)
    return re.sub(r"(?<!\n)\n(\* )", r"\n\n\1", text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Builds the documentation, in strict mode.")
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / "site")
    sys.exit(main(parser.parse_args().folder))

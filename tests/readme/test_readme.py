"""What the README says is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from kdedge.cli.main import cli

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def commands() -> list[list[str]]:
    """Every `kdedge ...` line of the README's code blocks, without its comment."""
    blocks = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    found = [part for line in lines for part in line.split("&&") if "kdedge " in part]
    return [shlex.split(part.partition(" # ")[0]) for part in found if "pip install" not in part]


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_is_one_that_kdedge_has_with_these_options(command: list[str]) -> None:
    name, arguments = command[1], command[2:]
    with click.Context(cli) as context:
        found = cli.get_command(context, name)
        assert found is not None
        found.make_context(name, arguments, parent=context)


def test_the_table_of_commands_lists_them_all() -> None:
    with click.Context(cli) as context:
        names = cli.list_commands(context)
    section = TEXT.partition("## Commands")[2].partition("\n## ")[0]
    assert [name for name in names if not re.search(rf"`(kdedge )?{name}\b", section)] == []


@pytest.mark.parametrize("name", ["README.md", "benchmarks/README.md", "tests/golden/README.md"])
def test_every_file_that_is_named_exists(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    mentioned = re.findall(r"\b((?:tests|benchmarks|recipes|kdedge)/[\w./-]+\.\w+)", text)
    assert [path for path in mentioned if not (ROOT / path).exists()] == []


def test_the_demo_and_the_tests_are_one_command_each() -> None:
    for heading in ("## Try it", "## Run the tests"):
        section = TEXT.partition(heading)[2].partition("\n## ")[0]
        (block,) = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
        assert len(block.strip().splitlines()) == 1


@pytest.mark.parametrize("name", ["README.md", "benchmarks/README.md"])
def test_no_placeholder_is_left(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    text = re.sub("OMP_NUM_THREADS|KDEDGE_DATA|KDEDGE_FUZZ", "", text)
    assert re.findall(r"\b[A-Z]{2,}_[A-Z_]{2,}\b", text) == []

"""A command from an installed package, of `kdedge` and of `kdedge data`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HELLO = '''
"""Say hello."""

import click


@click.command("hello")
def command():
    """Say hello."""
    click.echo("hello")
'''


@pytest.mark.parametrize(
    ("group", "start"), [("kdedge.commands", ""), ("kdedge.commands.data", "data ")]
)
def test_a_command_is_listed_with_its_first_line_and_runs(
    group: str, start: str, install: Callable[..., Any], tmp_path: Path
) -> None:
    package = install({"says_hello": HELLO}, {group: {"hello": "says_hello"}}, tmp_path)
    overview = "data --help" if start else "--help-all"
    listed, said = package.run(overview, f"{start}hello")
    assert "\n  hello " in listed.out
    assert " Say hello.\n" in listed.out
    assert (said.code, said.out) == (0, "hello\n"), said.err

"""List, fetch and verify the benchmark sets, or scan your own images."""

from __future__ import annotations

import click

from kdedge.cli.lazy_group import LazyGroup, commands_of

_COMMANDS = commands_of("kdedge.cli.data_commands", "kdedge.commands.data")


@click.group("data", cls=LazyGroup, plugins=_COMMANDS)
def command() -> None:
    """List, fetch and verify the benchmark sets, or scan your own images.

    The sets are in one folder, in the layout of CoOp's code. A folder that you use with CoOp works
    as it is.
    """
